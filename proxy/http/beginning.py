"""How a plaintext connection begins: whether TLS is coming, and whether HTTP/2 with prior knowledge is.

Both look at bytes only, and one differing byte decides: nothing is waited for on a timer but the peer's first byte.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from proxy.net.poller import READ, Poller, Timer
from proxy.net.stream import Stream
from proxy.wire.sniff import PREFACE

_HANDSHAKE: Final = 0x16  # the first byte of a TLS connection (RFC 8446 5.1); no HTTP message begins with it


class FirstByte:
    """Waits until the peer has sent something, and leaves it in the socket.

    Owns the socket until it calls ``decided`` with whether TLS begins, or ``gone`` after closing it."""

    __slots__ = ("_decided", "_gone", "_poller", "_sock", "_timer")

    def __init__(
        self,
        poller: Poller,
        sock: socket.socket,
        deadline: float,
        decided: Callable[[bool], None],
        gone: Callable[[str], None],
    ) -> None:
        self._poller = poller
        self._sock = sock
        self._decided = decided
        self._gone = gone
        self._timer: Timer = poller.call_at(deadline, lambda: self._end("timeout"))

    def start(self) -> None:
        self._poller.register(self._sock.fileno(), self, READ)

    def on_ready(self, mask: int) -> None:
        try:
            seen = self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            seen = b""
        if not seen:
            self._end("closed")
            return
        self._let_go()
        self._decided(seen[0] == _HANDSHAKE)

    def _let_go(self) -> None:
        self._timer.cancel()
        self._poller.unregister(self._sock.fileno())

    def _end(self, why: str) -> None:
        self._let_go()
        self._sock.close()
        self._gone(why)

    def on_crash(self, error: Exception) -> None:
        if self._timer.action is not None:
            self._end("protocol")
            return
        self._poller.unregister(self._sock.fileno())  # handed over: it was the new owner that failed
        self._sock.close()

    def release(self) -> None:
        if self._timer.action is not None:
            self._let_go()
            self._sock.close()


class Preface:
    """Reads until it is certain whether the caller speaks HTTP/2 with prior knowledge (RFC 9113 3.3), and tells
    ``decided`` with all that was read; ``gone``, when given, why there was nothing to decide."""

    __slots__ = ("_decided", "_gone", "_seen", "_stream")

    def __init__(
        self, stream: Stream, decided: Callable[[bytes, bool], None], gone: Callable[[str], None] | None = None
    ) -> None:
        self._stream = stream
        self._decided = decided
        self._gone = gone
        self._seen = b""
        stream.owner = self

    def start(self, poller: Poller, deadline: float) -> None:
        self._stream.start()
        poller.call_at(deadline, self._give_up)

    def on_data(self, data: bytes) -> None:
        self._seen += data
        seen = self._seen
        if len(seen) < len(PREFACE) and PREFACE.startswith(seen):
            return
        self._decided(seen, seen.startswith(PREFACE))

    def _give_up(self) -> None:
        if self._stream.owner is self:
            self._end("timeout")

    def _end(self, why: str) -> None:
        self._stream.abort()
        if self._gone is not None:
            self._gone(why)

    def on_eof(self, clean: bool) -> None:
        self._end("closed")

    def on_lost(self, detail: str) -> None:
        self._end("closed")

    def on_drained(self) -> None:
        pass

    def on_crash(self, error: Exception) -> None:
        self._end("protocol")
