"""Opaque TCP: two streams joined byte for byte, with half-close and back-pressure both ways.

Neither side is ever waited for: a server that speaks first is heard first. Each direction ends by itself
(FIN is passed on); the splice ends when both have, when either side breaks, or when nothing moved for the
idle time.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.net.stream import HIGH_WATER, Stream


class Splice:
    """Joins ``near`` (the caller) and ``far`` (the upstream). ``ended`` is called once, with a reason word
    ("" after a clean end of both directions)."""

    def __init__(self, near: Stream, far: Stream, ended: Callable[[Splice, str], None]) -> None:
        self.near = near
        self.far = far
        self.sent = 0  # bytes to the caller
        self.received = 0  # bytes from the caller
        self.moved_at = near.poller.now
        self.cut_at = 0.0  # monotonic: a certificate has ended (S-4), 0 = never
        self.idle = 0.0  # T-5: seconds without a byte, 0 = no limit
        self.judge: Callable[[], str] | None = None  # asked again after a policy change: "" or a reason
        self._ended: Callable[[Splice, str], None] | None = ended
        self._near_side = _Side(self, near, far, "downstream_closed")
        self._far_side = _Side(self, far, near, "upstream_closed")
        near.owner = self._near_side
        far.owner = self._far_side

    def start(self) -> None:
        """Begin. Neither stream has been read before: what the caller sent early waits in the kernel."""
        self.far.start()
        self.near.start()

    def sweep(self, now: float) -> None:
        """Compare with the clock, twice a second."""
        if self.cut_at and now > self.cut_at:
            self.end("certificate_expired")
        elif self.idle and now - self.moved_at > self.idle:
            self.end("idle_timeout")

    def judge_again(self) -> None:
        reason = self.judge() if self.judge is not None else ""
        if reason:
            self.end(reason)

    def note(self, side: _Side, size: int) -> None:
        self.moved_at = self.near.poller.now
        if side is self._near_side:
            self.received += size
        else:
            self.sent += size

    def check_end(self) -> None:
        if self._near_side.ended and self._far_side.ended:
            self.end("")

    def end(self, reason: str) -> None:
        """End both sides; ``reason`` "" flushes what is queued, any other cuts."""
        callback, self._ended = self._ended, None
        if callback is None:
            return
        for stream in (self.near, self.far):
            if reason:
                stream.abort()
            else:
                stream.close()
        callback(self, reason)


class _Side:
    """The owner of one stream: what it reads goes to the other."""

    __slots__ = ("_other", "_reason", "_splice", "_stream", "ended")

    def __init__(self, splice: Splice, stream: Stream, other: Stream, reason: str) -> None:
        self._splice = splice
        self._stream = stream
        self._other = other
        self._reason = reason
        self.ended = False

    def on_data(self, data: bytes) -> None:
        self._splice.note(self, len(data))
        self._other.send(data)
        if self._other.pending > HIGH_WATER:
            self._stream.pause()

    def on_eof(self, clean: bool) -> None:
        if not clean:
            self._splice.end(self._reason)  # a truncated TLS stream must not look complete (S-6)
            return
        self.ended = True
        self._other.send_eof()
        self._splice.check_end()

    def on_lost(self, detail: str) -> None:
        self._splice.end(self._reason)

    def on_drained(self) -> None:
        self._other.resume()

    def on_crash(self, error: Exception) -> None:
        self._splice.end("internal_error")
