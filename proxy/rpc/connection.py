"""What both ends of an RPC connection share: a stream of bytes, an HTTP/2 engine, and the inbox of each call.

The connection is driven by the poller (``proxy/net/poller.py``), the calls are trio tasks. Between the two stand an
``Inbox`` for each direction in, and ``writable`` for the direction out; both are woken by plain ``trio.Event``
objects, because poller and tasks run in one thread.

Back-pressure. In: body bytes are acknowledged (the HTTP/2 window is given back) while at most ``_QUEUED`` complete
messages wait to be taken; what arrives on top keeps the window shut. A caller can thus make us hold ``_QUEUED``
messages and one window for a stream, whatever it sends. Out: a sender waits until its stream and the socket have
fallen under the low-water mark; a reader who does not read stops his own stream only.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

import trio

from identity.rpc import RpcError, Status
from proxy.net.poller import Poller
from proxy.net.stream import HIGH_WATER, LOW_WATER, Stream
from proxy.rpc.frames import MessageReader
from proxy.wire.events import Event, Headers

_QUEUED = 8  # complete messages of one stream that wait for their reader

NO_ERROR = 0x0
CANCEL = 0x8
ENHANCE_YOUR_CALM = 0xB


class Engine(Protocol):
    """What is used of the engines of ``proxy.wire.http2``."""

    now: float

    @property
    def must_close(self) -> bool: ...
    @property
    def mid_head(self) -> bool: ...
    def start(self) -> None: ...
    def receive(self, data: bytes) -> list[Event]: ...
    def receive_eof(self) -> list[Event]: ...
    def take(self) -> bytes: ...
    def acknowledge(self, stream_id: int, n: int) -> None: ...
    def queued(self, stream_id: int) -> int: ...
    def send_data(self, stream_id: int, data: bytes, end_stream: bool) -> None: ...
    def send_trailers(self, stream_id: int, headers: Headers) -> None: ...
    def reset(self, stream_id: int, code: int = CANCEL) -> None: ...
    def shut_down(self) -> None: ...
    def finish(self) -> None: ...
    def fail(self, code: int, reason: str) -> None: ...
    def ping(self) -> None: ...


class RpcConnection:
    """Moves bytes between a stream and an engine. Subclasses handle events in ``_handle``, the end in ``_lost``."""

    def __init__(self, stream: Stream, engine: Engine) -> None:
        self.transport = stream
        self.engine = engine
        self.poller: Poller = stream.poller
        self.closed = False
        self.last_active = self.poller.now
        self._dirty = False
        self._drained = trio.Event()
        stream.owner = self

    def start(self) -> None:
        self.engine.start()
        self.transport.start()
        self.touch()

    def touch(self) -> None:
        """Have the engine's output written at the end of this dispatch, or soon."""
        if not self._dirty and not self.closed:
            self._dirty = True
            self.poller.mark_dirty(self)

    # -- called by the poller ---------------------------------------------------------------------------------------

    def on_data(self, data: bytes) -> None:
        self.engine.now = self.last_active = self.poller.now
        for event in self.engine.receive(data):
            if self.closed:
                return  # by an event before it
            self._handle(event)
        self.touch()

    def on_eof(self, clean: bool) -> None:
        for event in self.engine.receive_eof() if clean else ():
            self._handle(event)
        self.close("closed by the peer" if clean else "TLS ended without close_notify")

    def on_lost(self, detail: str) -> None:
        self.close(detail)

    def on_drained(self) -> None:
        self.touch()

    def on_crash(self, error: Exception) -> None:
        self.close(f"internal error: {type(error).__name__}", abort=True)

    def flush(self) -> None:
        self._dirty = False
        if self.closed:
            return
        if self.transport.pending < HIGH_WATER:
            data = self.engine.take()
            if data:
                self.transport.push(data)
        if self.transport.closed:
            return  # that broke it: ``on_lost`` has been called
        if self.transport.pending <= LOW_WATER:
            drained, self._drained = self._drained, trio.Event()
            drained.set()
        self._after_flush()

    def _after_flush(self) -> None:
        if self.engine.must_close and self.transport.pending < HIGH_WATER:
            self.close("the connection has ended")

    # -- called by tasks --------------------------------------------------------------------------------------------

    async def writable(self, stream_id: int) -> None:
        """Wait until the stream may be written to; at once when the connection is closed."""
        await trio.lowlevel.checkpoint()
        while not self.closed and self.engine.queued(stream_id) + self.transport.pending > LOW_WATER:
            await self._drained.wait()

    def close(self, detail: str, *, abort: bool = False) -> None:
        """End now. What is open ends with UNAVAILABLE and ``detail``."""
        if self.closed:
            return
        self.closed = True
        self._drained.set()
        (self.transport.abort if abort else self.transport.close)()
        self._lost(detail)

    # -- the subclass's ---------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        raise NotImplementedError

    def _lost(self, detail: str) -> None:
        raise NotImplementedError


class Inbox:
    """The messages of one stream, for one reader: an async iterator whose wait may be cancelled at any time."""

    def __init__(self, connection: RpcConnection, stream_id: int, limit: int) -> None:
        self._connection = connection
        self._stream_id = stream_id
        self._reader = MessageReader(limit)
        self._messages: deque[bytes] = deque()
        self._held = 0  # bytes that were not acknowledged
        self._ended = False
        self._error: RpcError | None = None
        self._news = trio.Event()

    # -- called by the connection -----------------------------------------------------------------------------------

    def feed(self, data: bytes, size: int, end: bool) -> None:
        """Body bytes; ``size`` counts against the window. Raises RpcError for what cannot be taken."""
        self._held += size
        try:
            self._messages.extend(self._reader.feed(data))
        finally:
            self._give_back()
            self._news.set()
        if end:
            self.end()

    def end(self) -> None:
        """No more will come. Raises RpcError when that is in the middle of a message."""
        self._ended = True
        self._news.set()
        if not self._reader.is_between:
            raise RpcError(Status.INTERNAL, "the stream ended inside a message")

    def fail(self, error: RpcError) -> None:
        """What was received can still be read; then ``error`` is raised. The first one counts."""
        if self._error is None and not self._ended:
            self._error = error
        self._news.set()

    # -- called by the reader ---------------------------------------------------------------------------------------

    def __aiter__(self) -> Inbox:
        return self

    async def __anext__(self) -> bytes:
        """The next message. Raises RpcError when the stream has failed."""
        await trio.lowlevel.checkpoint()
        while not self._messages:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._news = trio.Event()
            await self._news.wait()
        message = self._messages.popleft()
        self._give_back()
        return message

    def _give_back(self) -> None:
        if self._held and len(self._messages) < _QUEUED and not self._connection.closed:
            held, self._held = self._held, 0
            self._connection.engine.acknowledge(self._stream_id, held)
            self._connection.touch()

    def abandon(self) -> None:
        """Nobody will read this any more."""
        self._messages.clear()
        self._ended = True
        self._give_back()
