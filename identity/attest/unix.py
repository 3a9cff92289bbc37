"""Who is at the other end of a Unix socket: the process that connected, held so that it cannot be swapped (C-9).

A process id is a number that is used again. Between the moment when a caller connects and the moment when somebody
reads ``/proc/PID`` the caller may have ended and its number may belong to another, better process. So:

1. A pidfd first. It belongs to the process for ever; as long as that process has not ended, its number is its own.
   From Linux 6.5 the kernel gives the pidfd of the process that connected; before, see ``sockets``.
2. The folder ``/proc/PID`` is opened and everything is read through it; it belongs to one process as well.
3. Then again: the pidfd's process has not ended (so number, folder and pidfd were one process all the time), and
   start time, user, groups and program are what they were at the first look.

The same look is taken before every message (``still_there``): a caller that has ended, changed its user or become
another program gets nothing more.

What this does not see: a connection that was handed to another process stays the connector's, as for every
attestation by Unix credentials (the connector could hand over the answers just as well). Two processes of one user
are no secret to each other: entries for programs should ask for a user of their own.
"""

from __future__ import annotations

import grp
import os
import pwd
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from identity.attest import sockets
from identity.attest.cgroup import parse_cgroup
from identity.attest.executable import ProgramHashes, path_of, same_program
from identity.attest.proc import AttestationError, Proc, ProcessFacts, ProcFolder, facts_of
from identity.attest.units import fragment_paths

__all__ = ["AttestationError", "UnixPeer"]

_HASHES: Final = ProgramHashes()


class UnixPeer:
    """The process that connected (``identity.rpc.LocalPeer``). Made by ``of``; whoever has it calls ``close``."""

    def __init__(self, credentials: tuple[int, int, int], pidfd: int, proc: Proc) -> None:
        """Takes over ``pidfd`` and ``proc``, and closes them when it raises AttestationError."""
        self.pid, self.uid, self.gid = credentials
        self._pidfd = pidfd
        self._proc = proc
        self._users = 0
        self._closed = False
        self._lock = threading.Lock()
        try:
            self._facts = self._look()
            if (self._facts.uid, self._facts.gid) != (self.uid, self.gid):
                raise AttestationError("changed", "its user or group")
            self._check()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"UnixPeer(pid={self.pid}, uid={self.uid}, gid={self.gid})"

    @classmethod
    def of(cls, sock: socket.socket) -> UnixPeer:
        """The process that connected to the accepted Unix stream. Does not block. Raises AttestationError."""
        credentials = sockets.credentials(sock)
        pid = credentials[0]
        pidfd = sockets.peer_pidfd(sock)
        by_number = pidfd is None
        if pidfd is None:
            pidfd = sockets.pidfd_of(pid)
        try:
            proc = _folder(pid, pidfd)
        except BaseException:
            os.close(pidfd)
            raise
        peer = cls(credentials, pidfd, proc)
        if by_number:
            peer._check_holds(sock)
        return peer

    # -- the same process? ----------------------------------------------------------------------------------

    def still_there(self) -> bool:
        """Whether it runs, with the user, groups and program it had. False once closed. Does not block."""
        try:
            self._check()
        except AttestationError:
            return False
        return True

    def _check(self) -> None:
        """Raises AttestationError."""
        with self._used():
            now = self._look()
            then = self._facts
            if sockets.has_ended(self._pidfd):
                raise AttestationError("gone")
        if (now.start, now.uid, now.gid, now.groups) != (then.start, then.uid, then.gid, then.groups):
            raise AttestationError("changed", "its user, its groups or its start time")
        if not same_program(now.exe, then.exe):
            raise AttestationError("changed", "its program")

    def _look(self) -> ProcessFacts:
        try:
            return facts_of(self._proc)
        except (ProcessLookupError, FileNotFoundError):
            raise AttestationError("gone") from None
        except (OSError, ValueError) as error:
            raise AttestationError("unreadable", str(error)) from None

    def _check_holds(self, sock: socket.socket) -> None:
        """For kernels that tell only a number: see ``sockets``. Closes and raises AttestationError."""
        try:
            holds = sockets.holds_other_end(self._proc, sock)
            self._check()
        except AttestationError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise AttestationError("unreadable", str(error)) from None
        if not holds:
            self.close()
            raise AttestationError("not_the_caller")

    # -- what it is -----------------------------------------------------------------------------------------

    def selectors(self, *, hash_exe: bool = False) -> frozenset[str]:
        """SPIRE's selectors ``unix:*`` and ``systemd:*``, and pod and container as far as its cgroup tells. What
        cannot be read has no selector. Blocks (users by NSS, files; ``hash_exe`` reads up to 512 MiB): call it in a
        thread. Raises AttestationError."""
        with self._used():
            self._check()
            found = {f"unix:uid:{self.uid}", f"unix:gid:{self.gid}"}
            found |= self._names() | self._program(hash_exe) | self._control_group()
            self._check()
        return frozenset(found)

    def _names(self) -> set[str]:
        found = {f"unix:supplementary_gid:{gid}" for gid in self._facts.groups}
        found |= {f"unix:user:{name}" for name in _user(self.uid)}
        found |= {f"unix:group:{name}" for name in _group(self.gid)}
        for gid in self._facts.groups:
            found |= {f"unix:supplementary_group:{name}" for name in _group(gid)}
        return found

    def _program(self, hash_exe: bool) -> set[str]:
        try:
            path = path_of(self._proc, self._facts.exe)
            digest = _HASHES.of(self._proc) if hash_exe else ""
        except OSError:  # another user's process and no right to look; that it has not ended is checked afterwards
            return set()
        named = {"unix:path": path, "unix:sha256": digest}
        return {f"{name}:{value}" for name, value in named.items() if value}

    def _control_group(self) -> set[str]:
        try:
            facts = parse_cgroup(self._proc.read("cgroup").decode("utf-8", "replace"))
        except OSError:
            return set()
        paths = fragment_paths(facts.unit) if facts.unit else frozenset()
        return set(facts.selectors()) | {f"systemd:fragment_path:{path}" for path in paths}

    # -- letting go -----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the process. A ``selectors`` that runs in a thread ends first, and fails."""
        with self._lock:
            self._closed = True
            self._release()

    @contextmanager
    def _used(self) -> Iterator[None]:
        """No descriptor is closed, and its number given to another file, while somebody reads through it."""
        with self._lock:
            if self._closed:
                raise AttestationError("gone", "the connection is closed")
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                self._release()

    def _release(self) -> None:
        if self._closed and self._users == 0 and self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
            self._proc.close()


def _folder(pid: int, pidfd: int) -> ProcFolder:
    """``/proc/PID`` of the pidfd's process, provided that it has not ended afterwards. Raises AttestationError."""
    number = sockets.pid_of(pidfd)
    if number != pid:
        raise AttestationError("other_namespace" if number == 0 else "gone")
    try:
        return ProcFolder(pid)
    except FileNotFoundError:
        raise AttestationError("gone") from None
    except OSError as error:
        raise AttestationError("unreadable", str(error)) from None


def _user(uid: int) -> list[str]:
    try:
        return [pwd.getpwuid(uid).pw_name]
    except KeyError:
        return []


def _group(gid: int) -> list[str]:
    try:
        return [grp.getgrgid(gid).gr_name]
    except KeyError:
        return []
