"""Ends a database conversation that hangs. A server behind a dead route or a stopped relay never answers, and the
driver has no limit for reading; so whoever talks to it is timed from outside, and the socket is shut under it.
The driver then fails as with any lost connection."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator


class Watchdog:
    """Times conversations on sockets. One thread, started by the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._watched: dict[int, float] = {}  # descriptor (our own copy) -> deadline, monotonic
        self._thread: threading.Thread | None = None
        self._closed = False

    @contextlib.contextmanager
    def watching(self, fd: int, seconds: float) -> Iterator[None]:
        """The socket behind ``fd`` is shut down when the block takes longer than ``seconds``."""
        copy = os.dup(fd)  # the driver may close its own and the number be given to another
        with self._lock:
            self._watched[copy] = time.monotonic() + seconds
            self._start()
        try:
            yield
        finally:
            with self._lock:
                self._watched.pop(copy, None)
                os.close(copy)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        if self._thread is not None:
            self._thread.join(5)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ca-watchdog", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        with self._lock:
            while not self._closed:
                now = time.monotonic()
                for fd in [fd for fd, deadline in self._watched.items() if deadline <= now]:
                    del self._watched[fd]
                    _shut(fd)
                self._lock.wait(0.5)


def _shut(fd: int) -> None:
    with contextlib.suppress(OSError), contextlib.closing(socket.socket(fileno=os.dup(fd))) as found:
        found.shutdown(socket.SHUT_RDWR)
