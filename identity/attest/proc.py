"""One process in ``/proc``: read through its opened folder, so that a number which is used again cannot deceive.

A descriptor of ``/proc/PID`` belongs to the process, not to the number: once the process has been reaped, every read
through it ends in ESRCH, whoever has the number now. ``Proc`` is what reads; tests bring their own.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final, Protocol

MAX_PROC: Final = 64 * 1024  # bytes of one file of /proc
_STAT: Final = re.compile(r" [A-Za-z](?: -?\d+){18} (\d+)(?: -?\d+)*\s*")  # state, 18 fields, starttime (field 22)


class AttestationError(OSError):
    """Who a process is cannot be said, so it is nobody. ``reason`` is one of the words of ``REASONS``."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{REASONS[reason]}{': ' if detail else ''}{detail}")
        self.reason = reason


REASONS: Final = {
    "not_local": "the caller is not at the other end of a Unix socket",
    "other_namespace": "the caller is in a process namespace that cannot be seen from here"
    " (share it, or run the agent in the host's)",
    "gone": "the calling process has ended",
    "changed": "the calling process is not what it was when it connected",
    "not_the_caller": "the process with the caller's number does not hold the caller's end of the connection",
    "unreadable": "the calling process cannot be looked at",
}


class Proc(Protocol):
    """The opened folder of one process."""

    def read(self, name: str) -> bytes: ...
    def link(self, name: str) -> str: ...
    def open(self, name: str) -> int: ...
    def stat(self, name: str) -> os.stat_result: ...
    def names(self, folder: str) -> list[str]: ...
    def close(self) -> None: ...


class ProcFolder:
    """``/proc/PID`` of the machine. Everything raises OSError; ESRCH or ENOENT when the process has gone."""

    def __init__(self, pid: int, root: str = "/proc") -> None:
        self._fd = os.open(f"{root}/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def read(self, name: str) -> bytes:
        """At most ``MAX_PROC`` bytes."""
        fd = self.open(name)
        try:
            parts = []
            left = MAX_PROC
            while left and (part := os.read(fd, left)):
                parts.append(part)
                left -= len(part)
            return b"".join(parts)
        finally:
            os.close(fd)

    def link(self, name: str) -> str:
        return os.readlink(name, dir_fd=self._fd)

    def open(self, name: str) -> int:
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._fd)

    def stat(self, name: str) -> os.stat_result:
        """Of what a link leads to. May block on a file system that does not answer."""
        return os.stat(name, dir_fd=self._fd)

    def names(self, folder: str) -> list[str]:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """What must stay the same while a process is trusted to be the one that connected.

    start: ticks of the clock since boot; with the pid it names a process. uid, gid: the effective ones, which is what
    SO_PEERCRED tells too. exe: the link's text, "" when it may not be read.
    """

    start: int
    uid: int
    gid: int
    groups: tuple[int, ...]
    exe: str


def facts_of(proc: Proc) -> ProcessFacts:
    """Raises OSError (gone, or not allowed), ValueError (not what the kernel writes)."""
    status = _status(proc.read("status").decode("utf-8", "replace"))
    return ProcessFacts(
        start_time(proc.read("stat").decode("utf-8", "replace")),
        int(status["Uid"][1]),
        int(status["Gid"][1]),
        tuple(int(group) for group in status["Groups"]),
        exe_of(proc),
    )


def start_time(stat: str) -> int:
    """Field 22 of ``/proc/PID/stat``. Field 2, the name in brackets, is whatever the process likes, brackets, blanks
    and line feeds included, so the count begins behind the last one. Raises ValueError."""
    match = _STAT.fullmatch(stat[stat.rfind(")") + 1 :])
    if match is None or ")" not in stat:
        raise ValueError("not the line of /proc/PID/stat")
    return int(match[1])


def exe_of(proc: Proc) -> str:
    """The text of the link to the program, "" when it may not be read (another user's process). Raises OSError when
    the process has gone."""
    try:
        return proc.link("exe")
    except (PermissionError, FileNotFoundError):  # without a file: a kernel thread, or a leader that has ended
        return ""


def _status(text: str) -> dict[str, list[str]]:
    """The lines of ``/proc/PID/status`` that count. The first, Name, is the process's own; the kernel escapes its
    line feeds, and only the first line of a name is taken. Raises ValueError."""
    found: dict[str, list[str]] = {}
    for line in text.split("\n"):
        name, _, rest = line.partition(":")
        if name in ("Uid", "Gid", "Groups") and name not in found:
            found[name] = rest.split()
    if len(found) != 3 or len(found["Uid"]) != 4 or len(found["Gid"]) != 4:
        raise ValueError("not the text of /proc/PID/status")
    return found
