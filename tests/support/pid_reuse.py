"""Forces the reuse of process ids around ``UnixPeer.of`` and counts who was taken for whom.

    unshare --pid --fork --mount-proc python -m tests.support.pid_reuse ROUNDS

It is process 1 of a pid namespace of its own, so nobody else takes numbers, and ``ns_last_pid`` decides the next one.
In each round a stranger connects, hands the connection to a child and ends; then a better process (another user,
where that is allowed) gets the stranger's number. ``MOMENTS`` says when: before anybody looks, between the steps of
the look, or after it. Printed as JSON: for each kind of kernel and moment how many were reused, refused, fooled.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from identity.attest import sockets, unix
from identity.attest.proc import AttestationError
from identity.attest.unix import UnixPeer

MOMENTS = ("before", "before_folder", "before_facts", "before_recheck", "after")
BETTER_UID = 2345


def child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


class Round:
    """One stranger, and the process that gets its number."""

    def __init__(self, listener: socket.socket, path: str) -> None:
        self._read, self._write = os.pipe()
        self._go_read, self._go_write = os.pipe()
        self.stranger = child(lambda: self._connect(path))
        self.holder = int(os.read(self._read, 16))
        self.sock, _ = listener.accept()
        self.better = 0

    def _connect(self, path: str) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        holder = child(signal.pause)  # has the connection too
        os.write(self._write, str(holder).encode())
        os.read(self._go_read, 1)

    def reuse(self) -> None:
        """The stranger ends, and its number is given to the better process."""
        os.write(self._go_write, b"x")
        os.waitpid(self.stranger, 0)
        with open("/proc/sys/kernel/ns_last_pid", "w") as file:
            file.write(str(self.stranger - 1))
        ready, told = os.pipe()
        self.better = child(lambda: self._be_better(told))
        os.read(ready, 1)
        os.close(ready)
        os.close(told)

    def _be_better(self, told: int) -> None:
        if os.environ.get("OTHER_USER"):
            os.setuid(BETTER_UID)
        os.write(told, b"x")
        signal.pause()

    def end(self) -> None:
        self.sock.close()
        for pid in filter(None, (self.better, self.holder)):  # 0 would be everybody
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for fd in (self._read, self._write, self._go_read, self._go_write):
            os.close(fd)


def at(moment: str, now: Callable[[], None]) -> Callable[[], None]:
    """Have ``now`` called once at that moment of the look. Gives what undoes it."""
    places: dict[str, tuple[Any, str]] = {
        "before_folder": (unix, "ProcFolder"),
        "before_facts": (unix, "facts_of"),
        "before_recheck": (sockets, "has_ended"),
    }
    if moment not in places:
        return lambda: None
    module, name = places[moment]
    original = getattr(module, name)
    left = [now]

    def hooked(*arguments: Any) -> Any:
        if left:
            left.pop()()
        return original(*arguments)

    setattr(module, name, hooked)
    return lambda: setattr(module, name, original)


def judge(round_: Round, moment: str) -> str:
    """What came of it: "refused", or "fooled" when the reused number was believed."""
    if moment == "before":
        round_.reuse()
    undo = at(moment, round_.reuse)
    try:
        peer = UnixPeer.of(round_.sock)
    except AttestationError:
        return "refused"
    finally:
        undo()
    try:
        if moment != "after" or not peer.still_there():
            return "fooled"
        round_.reuse()
        if peer.still_there():
            return "fooled"
        try:
            peer.selectors()
        except AttestationError:
            return "refused"
        return "fooled"
    finally:
        peer.close()


def run(listener: socket.socket, path: str, moment: str, rounds: int) -> dict[str, int]:
    counts = {"reused": 0, "refused": 0, "fooled": 0}
    for _ in range(rounds):
        round_ = Round(listener, path)
        counts[judge(round_, moment)] += 1
        counts["reused"] += bool(round_.better) and round_.better == round_.stranger and is_running(round_.better)
        round_.end()
    return counts


def is_running(pid: int) -> bool:
    pidfd = os.pidfd_open(pid)
    try:
        return not sockets.has_ended(pidfd)
    finally:
        os.close(pidfd)


def main() -> None:
    rounds = int(sys.argv[1])
    assert os.getpid() == 1
    exact = sockets.peer_pidfd
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = f"{folder}/socket"
        listener.bind(path)
        listener.listen()
        found = {}
        for kernel in ("with_peerpidfd", "without"):
            sockets.peer_pidfd = exact if kernel == "with_peerpidfd" else lambda _: None
            found[kernel] = {moment: run(listener, path, moment, rounds) for moment in MOMENTS}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
