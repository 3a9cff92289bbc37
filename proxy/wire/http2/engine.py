"""What an HTTP/2 engine does whatever library reads the frames: limits, streams, order of events. Pure.

A library (``ngh2_engine.py``, ``h2_engine.py``) does frames, HPACK and flow control, and calls ``_request``,
``_response``, ``_data``, ``_trailers``, ``_peer_reset``, ``_stream_closed``, ``_goaway`` here. The two roles are in
``server.py`` and ``client.py``; this module is what they share. Bytes pass ``FrameMeter`` first, in whole frames.

A ``StreamState`` lives from the head of the request until the library has forgotten the stream, which is later
than the owner thinks: an answer that was handed over waits for the peer's window. ``told`` means that the owner
will hear no more of it (a terminal event was emitted, or the owner reset it): data that still arrives is given
back to the connection's window at once, everything else is swallowed. So each stream has exactly one end.

Errors have three sizes. A stream's error resets that stream, costs a glitch point (L-17) and a token of L-10; its
neighbours live. A limit passed ends the connection with GOAWAY(ENHANCE_YOUR_CALM) and ``ConnectionEnded("flood")``.
What breaks framing or HPACK ends it with the code RFC 9113 names and ``ConnectionEnded("frame_error")``. In the
latter two ``must_close`` is set: write what ``take()`` returns, and close.
"""

from __future__ import annotations

from typing import ClassVar, Final

from proxy.wire.events import ConnectionEnded, Event, GoAwayReceived, Headers, PingAcknowledged
from proxy.wire.frames import ENHANCE_YOUR_CALM, MAX_FRAME_SIZE, PROTOCOL_ERROR, FrameMeter
from proxy.wire.limits import WireLimits

NO_ERROR: Final = 0x0
INTERNAL_ERROR: Final = 0x2
REFUSED_STREAM: Final = 0x7
CANCEL: Final = 0x8
LAST_STREAM_ID: Final = 2**31 - 1

# Settings (RFC 9113 6.5.2, RFC 9218 2.1)
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 1, 2, 3, 4
MAX_HEADER_LIST_SIZE, NO_RFC7540_PRIORITIES = 6, 9

PSEUDO_HEADERS: Final = 4  # they come on top of the fields that L-3 counts
UNLIMITED: Final = 1 << 62

_WIDER: Final = 4  # stream windows


class StreamState:
    """One stream. ``left``: bytes the content-length still promises, -1 when it says nothing."""

    __slots__ = ("begun", "held", "held_size", "interim", "left", "method", "ours", "room", "taken", "theirs", "told")

    def __init__(self, method: bytes, theirs: bool, ours: bool) -> None:
        self.method = method
        self.theirs = theirs  # the peer may still send
        self.ours = ours  # we may still send
        self.told = False
        self.begun = False  # our head was sent
        self.left = -1
        self.room = UNLIMITED  # bytes that L-6 still allows
        self.held: list[bytes] | None = None  # S-17: what completes content-length, until END_STREAM came
        self.held_size = 0
        self.interim = 0  # client: 1xx answers so far
        self.taken = 0  # bytes that the other side has taken, until the window was widened


class Library:
    """What reads and writes frames for an engine, by one library and in one role. Written beside its engine: it uses
    the engine's ``_written`` and ``_events`` and calls what stands there under "what the library met"."""

    def start(self) -> None:
        """Queue the preface (client) and SETTINGS, and open the connection's window."""
        raise NotImplementedError

    def read(self, whole: bytes) -> None:
        """Give whole frames to the library and handle what it finds."""
        raise NotImplementedError

    def write(self) -> bytes:
        """What the library has to write."""
        raise NotImplementedError

    def has_written(self, stream_id: int) -> bool:
        """Our half of the stream has left the library."""
        raise NotImplementedError

    def queued(self, stream_id: int) -> int:
        """Body bytes of one stream (0: of all) that wait."""
        raise NotImplementedError

    def consume(self, stream_id: int, n: int) -> None:
        """Open the windows again by ``n`` bytes."""
        raise NotImplementedError

    def widen(self, stream_id: int, window: int) -> None:
        """Let one stream's peer send ``window`` bytes ahead from now on."""
        raise NotImplementedError

    def send_head(self, stream_id: int, fields: Headers, *, end: bool, interim: bool) -> None:
        """Server: begin the answer, or an interim one."""
        raise NotImplementedError

    def open(self, fields: Headers, end: bool) -> int:
        """Client: send a request's head; -> its stream."""
        raise NotImplementedError

    def send_data(self, stream_id: int, data: bytes, end: bool) -> None:
        raise NotImplementedError

    def send_trailers(self, stream_id: int, headers: Headers) -> None:
        raise NotImplementedError

    def reset(self, stream_id: int, code: int) -> None:
        raise NotImplementedError

    def ping(self) -> None:
        raise NotImplementedError

    def send_notice(self) -> None:
        """Server: GOAWAY(2^31-1)."""
        raise NotImplementedError

    def send_goaway(self) -> None:
        raise NotImplementedError

    def terminate(self, code: int) -> None:
        raise NotImplementedError


class Http2Engine:
    """Both roles. ``_lib`` is set by the engine's class, which knows the library."""

    version = 20
    wants_read = True
    half_close = False
    is_server: ClassVar[bool] = False
    _lib: Library

    def __init__(self, limits: WireLimits) -> None:
        self.limits = limits
        self.now = 0.0
        self.must_close = False
        self.meter = FrameMeter(limits, server=self.is_server)
        self._streams: dict[int, StreamState] = {}
        self._events: list[Event] = []
        self._written: list[bytes] = []  # left the library before ``take`` was called
        self._late: list[int] = []  # to be reset with NO_ERROR once our half has been written
        self._last_peer_id = 0  # highest stream the peer opened
        # A stream that has carried this much may read as much ahead: a transfer stops less often and is half as fast
        # again. What all of them hold is bounded by the connection's window as before (L-7).
        self._wide = min(_WIDER * limits.stream_window, limits.connection_window // _WIDER)
        self._pings = 0
        self._closing = False  # a last GOAWAY was sent or received, or no new streams are wanted
        self._gone_away = False
        self._final = False
        self._is_over = False  # ConnectionEnded stands in the events
        self._told_over = False  # and was returned, or the owner ended it

    def start(self) -> None:
        """Queue what opens the connection."""
        self._lib.start()

    # -- bytes --------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Event]:
        """Bytes from the peer -> events, in order. Never raises for what a peer sent."""
        if not self.must_close:
            meter = self.meter
            whole = meter.feed(data, self.now)
            if whole:
                self._lib.read(whole)
            if meter.fault is not None:
                self._end(meter.fault.code, meter.fault.detail)
        events, self._events = self._events, []
        return self._until_end(events) if self._is_over else events

    def receive_eof(self) -> list[Event]:
        """The peer has closed its direction: nothing can come any more for what is open."""
        if not self.must_close:
            self.must_close = True
            cut = self.meter.is_inside_frame
            reason = "truncated" if cut and self.is_server else ""
            self._is_over = True
            self._events.append(ConnectionEnded(reason, "inside a frame" if cut else ""))
        events, self._events = self._events, []
        return self._until_end(events) if self._is_over else events

    def _until_end(self, events: list[Event]) -> list[Event]:
        """``ConnectionEnded`` is the last event of all; streams that close with the connection are not told."""
        if self._told_over:
            return []
        ends = [place for place, event in enumerate(events) if type(event) is ConnectionEnded]
        if ends:
            self._told_over = True
            del events[ends[0] + 1 :]
        return events

    def take(self) -> bytes:
        """Everything that can be written now."""
        self.meter.acks_owed = 0
        data = self._lib.write()
        if self._late and not self.must_close and self._reset_late():
            data += self._lib.write()
        if self._written:
            data = b"".join(self._written) + data
            self._written.clear()
        if (self._final or self._gone_away) and not self._streams:
            self.must_close = True
        return data

    def _reset_late(self) -> bool:
        """RFC 9113 8.1: NO_ERROR after a complete answer asks the peer to stop sending its request."""
        ready = [stream_id for stream_id in self._late if self._lib.has_written(stream_id)]
        for stream_id in ready:
            self._late.remove(stream_id)
            if stream_id in self._streams:
                self._lib.reset(stream_id, NO_ERROR)
        return bool(ready)

    def acknowledge(self, stream_id: int, n: int) -> None:
        """The other side took ``n`` bytes of ``DataReceived.size``: open the windows again."""
        if n and not self.must_close:
            self._lib.consume(stream_id, n)
            stream = self._streams.get(stream_id)
            if stream is not None and stream.taken < self._wide:
                stream.taken += n
                if stream.taken >= self._wide > self.limits.stream_window and stream.theirs:
                    self._lib.widen(stream_id, self._wide)

    def queued(self, stream_id: int) -> int:
        """Body bytes of one stream (0: of all) that ``take`` has not returned."""
        waiting = self._lib.queued(stream_id)
        return waiting + sum(map(len, self._written)) if self._written else waiting

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    @property
    def is_idle(self) -> bool:
        return not self._streams

    @property
    def mid_head(self) -> bool:
        """A header block has begun and not ended (T-2)."""
        return self.meter.open_header_block

    # -- sending ------------------------------------------------------------------------------------------

    def send_data(self, stream_id: int, data: bytes, end_stream: bool) -> None:
        """Queue body bytes. Dropped when the stream has ended or was reset meanwhile."""
        stream = self._streams.get(stream_id)
        if stream is None or not (stream.ours and stream.begun) or self.must_close:
            return
        self.meter.data_sent += 1 + len(data) // MAX_FRAME_SIZE
        self._lib.send_data(stream_id, data, end_stream)
        if end_stream:
            self._end_ours(stream_id, stream)

    def send_trailers(self, stream_id: int, headers: Headers) -> None:
        """Queue trailers behind the body; they end our half."""
        stream = self._streams.get(stream_id)
        if stream is None or not (stream.ours and stream.begun) or self.must_close:
            return
        if headers:
            self._lib.send_trailers(stream_id, headers)
        else:  # RFC 9113 8.1: an empty trailer section is only END_STREAM
            self._lib.send_data(stream_id, b"", True)
        self._end_ours(stream_id, stream)

    def _end_ours(self, stream_id: int, stream: StreamState) -> None:
        stream.ours = False
        if stream.told and stream.theirs:  # the answer to a refused request is complete
            self._late.append(stream_id)

    def reset(self, stream_id: int, code: int = CANCEL) -> None:
        """Abort one stream; the owner hears no more of it. NO_ERROR waits until our half has been written."""
        stream = self._streams.get(stream_id)
        if stream is None or self.must_close:
            return
        self._forget(stream_id, stream)
        if code == NO_ERROR and not stream.ours:
            if stream_id not in self._late:
                self._late.append(stream_id)
            return
        stream.ours = False
        self._lib.reset(stream_id, code)

    def ping(self) -> None:
        if not self.must_close:
            self._pings += 1
            self._lib.ping()

    def fail(self, code: int, reason: str) -> None:
        """End the connection with GOAWAY(``code``); the owner knows why."""
        if not self.must_close:
            self.must_close = self._is_over = self._told_over = True
            self._lib.terminate(code)

    def finish(self) -> None:
        """GOAWAY with the last stream that will be processed; what is open goes on to its end."""
        if not self.must_close and not self._final:
            self._closing = self._final = True
            self._lib.send_goaway()

    # -- what the library met -------------------------------------------------------------------------------

    def _forget(self, stream_id: int, stream: StreamState) -> None:
        """No more events of this stream; what was held back returns to the window."""
        stream.told = True
        if stream.held_size:
            self._lib.consume(stream_id, stream.held_size)
            stream.held, stream.held_size = None, 0

    def _swallow(self, stream_id: int, stream: StreamState | None, size: int, end: bool) -> None:
        """Data that nobody wants: the connection's window must not shrink by it."""
        if stream is not None and end:
            stream.theirs = False
        if size:
            self._lib.consume(stream_id, size)

    def _release_held(self, stream: StreamState, data: bytes, size: int) -> tuple[bytes, int]:
        held = stream.held or []
        size += stream.held_size
        stream.held, stream.held_size = None, 0
        return b"".join([*held, data]), size

    def _offend(self, stream_id: int, stream: StreamState, code: int = PROTOCOL_ERROR) -> None:
        """The peer broke a rule on one stream: reset it, and remember."""
        self._forget(stream_id, stream)
        stream.ours = False
        self._lib.reset(stream_id, code)
        self._count_offence()

    def _count_offence(self) -> None:
        self.meter.note_glitch()
        self.meter.note_own_reset(self.now)

    def _goaway(self, last_stream_id: int, code: int) -> None:
        self._closing = self._gone_away = True
        self._events.append(GoAwayReceived(last_stream_id, code))

    def _pong(self) -> None:
        if self._pings:
            self._pings -= 1
            self._events.append(PingAcknowledged())
        else:
            self.meter.note_glitch()

    def _end(self, code: int, detail: str) -> None:
        """The connection cannot go on: say so to the peer and to the owner."""
        if not self.must_close:
            self.must_close = True
            self._lib.terminate(code)
            self._report_end(code, detail)

    def _report_end(self, code: int, detail: str) -> None:
        self._is_over = True
        reason = "flood" if code == ENHANCE_YOUR_CALM else "frame_error"
        self._events.append(ConnectionEnded(reason, detail))

    # -- the role's ---------------------------------------------------------------------------------------

    def _stream_closed(self, stream_id: int, code: int) -> None:
        """The role's: the library has forgotten a stream."""
        raise NotImplementedError

    def _data(self, stream_id: int, data: bytes, size: int, end: bool) -> None:
        """The role's: body bytes; ``size`` counts against the windows."""
        raise NotImplementedError


def settings_of(limits: WireLimits, *, server: bool) -> dict[int, int]:
    """What we announce. ``MAX_CONCURRENT_STREAMS`` is what the library enforces: see ``announce``."""
    settings = {
        HEADER_TABLE_SIZE: limits.hpack_table,
        INITIAL_WINDOW_SIZE: limits.stream_window,
        MAX_HEADER_LIST_SIZE: limits.head,
        NO_RFC7540_PRIORITIES: 1,
    }
    settings[MAX_CONCURRENT_STREAMS if server else ENABLE_PUSH] = _enforced(limits) if server else 0
    return settings


def _enforced(limits: WireLimits) -> int:
    return 2 * limits.streams + 1


def announce(frame: bytes, limits: WireLimits) -> bytes:
    """The first SETTINGS frame with the limit of streams that peers shall see.

    Both libraries answer one stream too many by ending the connection, and with it its neighbours; RFC 9113
    5.1.2 allows REFUSED_STREAM. So the library is told a higher limit than the peer, and we refuse in between.
    """
    told = MAX_CONCURRENT_STREAMS.to_bytes(2, "big") + _enforced(limits).to_bytes(4, "big")
    meant = MAX_CONCURRENT_STREAMS.to_bytes(2, "big") + limits.streams.to_bytes(4, "big")
    return frame.replace(told, meant, 1)
