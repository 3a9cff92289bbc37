"""Where access-log lines go: a file, pipe or terminal, written by the writer thread."""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Sequence
from typing import Final

_PIPE_BUF: Final = 4096  # POSIX: writes of at most this many bytes to a pipe are not torn apart


class Sink:
    """A file, pipe or terminal to append lines to. ``write`` may block; it belongs to the writer thread."""

    def __init__(self, target: str) -> None:
        """``target``: ``stdout``, ``stderr`` or a path. Raises OSError when the file cannot be opened."""
        self.target = target
        self._fd = self._open()
        self._is_pipe = self._look()
        self._reopen = False

    def _open(self) -> int:
        if self.target in ("stdout", "stderr"):
            return os.dup(1 if self.target == "stdout" else 2)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        if os.path.exists(self.target) and stat.S_ISFIFO(os.stat(self.target).st_mode):
            flags = os.O_RDWR | os.O_CLOEXEC  # fifo(7): opening a FIFO both ways never waits for its reader
        return os.open(self.target, flags, 0o640)

    def _look(self) -> bool:
        mode = os.fstat(self._fd).st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)

    def reopen(self) -> None:
        """After rotation (USR1): the next ``write`` goes to a file opened anew. Any thread may call this."""
        self._reopen = True

    def write(self, lines: Sequence[bytes]) -> None:
        """Append all lines. Raises OSError; how much was written before is then unknown."""
        if self._reopen:
            self._reopen = False
            self._open_again()
        if not self._is_pipe:
            self._write_all(b"".join(lines))
            return
        for group in _group(lines, _PIPE_BUF):  # several workers may share the pipe: no line is torn
            self._write_all(group)

    def _open_again(self) -> None:
        fresh = self._open()  # first, so that a failure leaves the old file in use
        os.close(self._fd)
        self._fd = fresh
        self._is_pipe = self._look()

    def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:  # somebody made our stdout non-blocking; we may wait, the loop does not
                self._wait()

    def _wait(self) -> None:
        poll = select.poll()  # select() refuses descriptors above 1023
        poll.register(self._fd, select.POLLOUT)
        poll.poll()

    def close(self) -> None:
        os.close(self._fd)


def _group(lines: Sequence[bytes], size: int) -> list[bytes]:
    """Join lines into pieces of at most ``size`` bytes; a longer line is a piece of its own."""
    pieces: list[list[bytes]] = []
    used = size + 1
    for line in lines:
        if used + len(line) > size:
            pieces.append([])
            used = 0
        pieces[-1].append(line)
        used += len(line)
    return [b"".join(piece) for piece in pieces]
