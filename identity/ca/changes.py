"""How a write becomes known to who waits for it: at once in this process, within a second in other replicas.

PostgreSQL tells by NOTIFY, heard on one connection by one thread that lives while somebody waits. It may fall
silent (a proxy in between, a restart of the server), so the counter is also read every two seconds. SQLite has
no such thing: the counter is read five times a second while somebody waits, which costs a page of cache.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

CHANNEL: Final = "sidewall_ca"
_POLL_LOCAL: Final = 0.2  # seconds
_POLL_NOTIFIED: Final = 2.0
_LISTEN: Final = 1.0  # how long the listener sits in one read
_STAY: Final = 10.0  # and stays after the last one who waited
_PAUSE: Final = 1.0  # before connecting again

Connect = Callable[[], Any]  # a psycopg connection in autocommit mode


class Changes:
    """One counter of a store. ``read``: asks the database. ``listen``: opens a connection for LISTEN, or None."""

    def __init__(self, read: Callable[[], int], listen: Connect | None) -> None:
        self._read = read
        self._listen = listen
        self._poll = _POLL_LOCAL if listen is None else _POLL_NOTIFIED
        self._condition = threading.Condition()
        self._nudges = 0
        self._waiting = 0
        self._stay_until = 0.0  # monotonic
        self._listener: threading.Thread | None = None
        self._closed = False

    def nudge(self) -> None:
        """Something was written: who waits looks again."""
        with self._condition:
            self._nudges += 1
            self._condition.notify_all()

    def wait(self, seen: int, timeout: float) -> int:
        """The counter, as soon as it is not ``seen``, at the latest after ``timeout`` seconds."""
        end = time.monotonic() + timeout
        with self._present():
            while True:
                before = self._nudges
                found = self._read()
                left = end - time.monotonic()
                if found != seen or left <= 0 or self._closed:
                    return found
                with self._condition:
                    if self._nudges == before and not self._closed:
                        self._condition.wait(min(left, self._poll))

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        if (listener := self._listener) is not None:
            listener.join(5)

    @contextlib.contextmanager
    def _present(self) -> Iterator[None]:
        with self._condition:
            self._waiting += 1
            if self._listen is not None and self._listener is None and not self._closed:
                self._listener = threading.Thread(target=self._run, name="ca-listen", daemon=True)
                self._listener.start()
        try:
            yield
        finally:
            with self._condition:
                self._waiting -= 1
                self._stay_until = time.monotonic() + _STAY

    def _run(self) -> None:
        while True:
            with self._condition:
                if not self._is_wanted():
                    self._listener = None  # the next one who waits starts another
                    return
            try:
                self._hear()
            except Exception:  # whatever the driver raises when a connection dies; polling goes on meanwhile
                with self._condition:
                    self._condition.wait_for(lambda: self._closed, _PAUSE)

    def _hear(self) -> None:
        assert self._listen is not None
        with contextlib.closing(self._listen()) as connection:
            connection.execute(f"LISTEN {CHANNEL}")
            self.nudge()  # for what was written before we listened
            while self._is_wanted():
                for _ in connection.notifies(timeout=_LISTEN, stop_after=1):
                    self.nudge()

    def _is_wanted(self) -> bool:
        return not self._closed and (self._waiting > 0 or time.monotonic() < self._stay_until)
