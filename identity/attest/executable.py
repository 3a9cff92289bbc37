"""The program that a process runs: where it lies, and its SHA-256.

The text of ``/proc/PID/exe`` is a path in the process's own mount namespace. A user may make a namespace, mount his
program over ``/usr/bin/postgres`` there and run it, and the link says ``/usr/bin/postgres``. So a path counts only
when the file that *we* see under it is the very file that runs (device and inode). Programs in containers therefore
have no ``unix:path`` for an agent outside: they are known by their hash, or by pod and image.

The hash is read through the link, so it is of what runs and not of what lies under the name by now. Hashes are kept
by (device, inode, mtime, ctime, size): the owner of a file can set its mtime back, not its ctime. Files that were
changed a moment ago are not kept, since a clock tick may hide the next change.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable
from typing import Final

from identity.attest.proc import Proc

MAX_PROGRAM: Final = 512 * 1024 * 1024  # bytes; larger ones have no hash
MAX_KEPT: Final = 256  # programs
_FRESH: Final = 2.0  # seconds after a change in which the file times may not tell the next one
_PART: Final = 1024 * 1024  # bytes
_DELETED: Final = " (deleted)"

_Key = tuple[int, int, int, int, int]


class ProgramHashes:
    """SHA-256 of programs, of the last ``MAX_KEPT`` remembered. Safe for several threads. ``wall``: seconds since
    1970, the clock of the file times."""

    def __init__(self, wall: Callable[[], float] = time.time, limit: int = MAX_PROGRAM) -> None:
        self._wall = wall
        self._limit = limit
        self._kept: dict[_Key, str] = {}
        self._lock = threading.Lock()

    def of(self, proc: Proc) -> str:
        """Hex digits; "" when the program is too large or changed while it was read. Blocks. Raises OSError."""
        fd = proc.open("exe")
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode) or before.st_size > self._limit:
                return ""
            key = _key(before)
            with self._lock:
                known = self._kept.get(key)
            return known or self._read(fd, key, before)
        finally:
            os.close(fd)

    def _read(self, fd: int, key: _Key, before: os.stat_result) -> str:
        digest = _digest(fd, before.st_size)
        if not digest or _key(os.fstat(fd)) != key:
            return ""
        if self._wall() - max(before.st_ctime, before.st_mtime) > _FRESH:
            with self._lock:
                while len(self._kept) >= MAX_KEPT:
                    del self._kept[next(iter(self._kept))]
                self._kept[key] = digest
        return digest

    def __len__(self) -> int:
        return len(self._kept)


def path_of(proc: Proc, text: str) -> str:
    """The path under which the running program lies here, "" when there is none. ``text``: of the link. Blocks.
    Raises OSError: the process has gone, or may not be looked at."""
    running = proc.stat("exe")
    if text.endswith(_DELETED) or not text.startswith("/"):
        return ""
    try:
        here = os.stat(text, follow_symlinks=False)
    except OSError:
        return ""
    return text if (here.st_dev, here.st_ino) == (running.st_dev, running.st_ino) else ""


def same_program(one: str, other: str) -> bool:
    """Whether two texts of the link may be of the same program: it may have been replaced on the disk meanwhile."""
    return one.removesuffix(_DELETED) == other.removesuffix(_DELETED)


def _digest(fd: int, size: int) -> str:
    """Of exactly ``size`` bytes; "" when there are more or fewer."""
    hasher = hashlib.sha256()
    left = size
    while part := os.read(fd, min(_PART, left + 1)):
        left -= len(part)
        if left < 0:
            return ""
        hasher.update(part)
    return hasher.hexdigest() if left == 0 else ""


def _key(found: os.stat_result) -> _Key:
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
