"""What the two ends of an exchange share: a stream, an engine, and output that is flushed once per dispatch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from proxy.net.poller import Poller
from proxy.net.stream import HIGH_WATER, LOW_WATER, Stream
from proxy.wire.events import Event, Headers

if TYPE_CHECKING:
    from proxy.http.exchange import Exchange


class Engine(Protocol):
    """An HTTP engine of ``proxy.wire``: bytes to events and back, no I/O. See ``proxy/wire/events.py``."""

    version: int
    now: float

    @property
    def must_close(self) -> bool: ...
    @property
    def is_idle(self) -> bool: ...
    @property
    def open_streams(self) -> int: ...
    def start(self) -> None: ...
    def receive(self, data: bytes) -> list[Event]: ...
    def receive_eof(self) -> list[Event]: ...
    def take(self) -> bytes: ...
    def acknowledge(self, stream_id: int, n: int) -> None: ...
    def queued(self, stream_id: int) -> int: ...
    def send_data(self, stream_id: int, data: bytes, end_stream: bool) -> None: ...
    def send_trailers(self, stream_id: int, headers: Headers) -> None: ...
    def reset(self, stream_id: int, code: int = 0x8) -> None: ...
    def shut_down(self) -> None: ...
    def finish(self) -> None: ...
    def fail(self, code: int, reason: str) -> None: ...
    def ping(self) -> None: ...


AnyEngine = TypeVar("AnyEngine", bound=Engine)


class HttpConnection(Generic[AnyEngine]):
    """A stream with an engine. Subclasses handle events; this class moves bytes and keeps back-pressure.

    ``blocked`` holds the exchanges whose *other* side waits until our output has drained. ``held`` counts
    exchanges that asked us to stop reading (HTTP/1.1: the socket is paused; HTTP/2: their window is withheld).
    """

    __slots__ = (
        "_dirty",
        "_half_closed",
        "blocked",
        "closed",
        "engine",
        "exchanges",
        "held",
        "last_active",
        "opened_at",
        "poller",
        "stream",
    )

    def __init__(self, stream: Stream, engine: AnyEngine) -> None:
        self.stream = stream
        self.engine: AnyEngine = engine
        self.poller: Poller = stream.poller
        self.exchanges: dict[int, Exchange] = {}
        self.blocked: set[Exchange] = set()
        self.held = 0
        self.closed = False
        self.opened_at = self.last_active = self.poller.now
        self._dirty = False
        self._half_closed = False

    def touch(self) -> None:
        """Have the engine's output written at the end of this dispatch."""
        if not self._dirty:
            self._dirty = True
            self.poller.mark_dirty(self)

    def backlog(self, stream_id: int) -> int:
        """Bytes accepted for this stream that the kernel has not taken yet."""
        return self.engine.queued(stream_id) + self.stream.pending

    def flush(self) -> None:
        self._dirty = False
        if self.closed:
            return
        if self.stream.pending < HIGH_WATER:
            data = self.engine.take()
            if data:
                self.stream.push(data)
                if self.stream.closed:
                    return
        if self.blocked:
            self._unblock()
        self.after_flush()

    def after_flush(self) -> None:
        """Close when the engine is through, half-close when a tunnel's other side has ended."""
        engine = self.engine
        if engine.must_close:
            self.finish_closing()
        elif not self._half_closed and getattr(engine, "half_close", False):
            self._half_closed = True
            self.stream.send_eof()

    def finish_closing(self) -> None:
        raise NotImplementedError

    def _unblock(self) -> None:
        for exchange in list(self.blocked):
            stream_id = exchange.stream_on(self)
            if self.backlog(stream_id) <= LOW_WATER:
                self.blocked.discard(exchange)
                exchange.drained(self)

    def on_drained(self) -> None:
        self.touch()

    def on_crash(self, error: Exception) -> None:
        raise NotImplementedError

    # -- reading is held back ---------------------------------------------------------------------------

    def hold(self) -> None:
        """Stop reading for one exchange. HTTP/2 needs nothing: its window is simply not given back."""
        self.held += 1
        if self.engine.version != 20:
            self.stream.pause()

    def release(self, stream_id: int, size: int) -> None:
        """The counterpart of ``hold``: ``size`` bytes of this stream were taken by the other side."""
        self.held -= 1
        if self.closed:
            return
        self.engine.acknowledge(stream_id, size)
        if self.engine.version == 20:
            self.touch()
        elif not self.held:
            self.stream.resume()

    def acknowledge(self, stream_id: int, size: int) -> None:
        if self.engine.version == 20 and size and not self.closed:
            self.engine.acknowledge(stream_id, size)
            self.touch()
