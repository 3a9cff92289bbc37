"""HTTP/2 by h2 (pure Python): the second engines, ten times slower, for comparison and as the way out. Pure.

The only module that knows h2. It is fed one frame at a time, so that everything it does belongs to a known frame,
and some things are kept from it because it treats them as the end of the connection:

- GOAWAY, in both directions, closes h2's state machine although open streams may go on (RFC 9113 6.8): read and
  written here.
- A wrong content-length is an error of the connection to h2; here it is one of the stream (S-17), so counting is
  taken from it (``_Connection``). Validation of fields is switched off, ours follows (S-16).
- It has no queue for data that must wait for the peer's window: ``_Outbox`` is that queue.

h2 itself ends the connection for some errors that concern one stream only (a WINDOW_UPDATE of 0, trailers without
END_STREAM, a priority on itself): stricter than nghttp2, and allowed by RFC 9113 5.4.2.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final

from h2 import events as h2_events
from h2.config import H2Configuration
from h2.connection import AllowedStreamIDs, H2Connection
from h2.exceptions import DenialOfServiceError, ProtocolError
from h2.settings import SettingCodes, Settings
from h2.stream import H2Stream
from hpack.exceptions import HPACKError

from proxy.wire.events import Headers, StreamDrained
from proxy.wire.frames import (
    ENHANCE_YOUR_CALM,
    FRAME_SIZE_ERROR,
    GOAWAY,
    MAX_FRAME_SIZE,
    PREFACE,
    PROTOCOL_ERROR,
    render_goaway,
)
from proxy.wire.http2.client import Http2Client
from proxy.wire.http2.engine import (
    LAST_STREAM_ID,
    MAX_CONCURRENT_STREAMS,
    NO_ERROR,
    REFUSED_STREAM,
    Http2Engine,
    Library,
    announce,
    settings_of,
)
from proxy.wire.http2.server import Http2Server
from proxy.wire.limits import WireLimits

COMPRESSION_ERROR: Final = 0x9
_DEFAULT_WINDOW: Final = 65535
_PING: Final = b"sidewall"


class _Connection(H2Connection):
    """h2 without its own counting of bodies. Should h2 rename what is overridden, it only becomes stricter."""

    def _begin_new_stream(self, stream_id: int, allowed_ids: AllowedStreamIDs) -> H2Stream:
        stream = super()._begin_new_stream(stream_id, allowed_ids)
        stream._initialize_content_length = _leave_length  # type: ignore[method-assign]
        return stream


def _leave_length(headers: Iterable[Any]) -> None:
    """In place of ``H2Stream._initialize_content_length``: expect nothing."""


class _Outbox:
    """What waits to be sent on one stream; it exists until our END_STREAM has left."""

    __slots__ = ("chunks", "ended", "size", "trailers")

    def __init__(self) -> None:
        self.chunks: deque[memoryview] = deque()
        self.size = 0
        self.ended = False
        self.trailers: Headers | None = None


class _H2(Library):
    """Both roles. ``_on`` is the role's table from event to method."""

    _on: ClassVar[dict[type[h2_events.Event], Callable[[Any, Any], None]]] = {}

    def __init__(self, engine: Http2Engine) -> None:
        self._engine = engine
        self.limits = engine.limits
        configuration = H2Configuration(
            client_side=not engine.is_server,
            header_encoding=None,
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self._library = _Connection(configuration)
        self._outboxes: dict[int, _Outbox] = {}
        self._unread: dict[int, int] = {}  # bytes per stream that were reported and not given back
        self._preface_seen = not engine.is_server

    def start(self) -> None:
        library, limits = self._library, self.limits
        settings = settings_of(limits, server=self._engine.is_server)
        library.local_settings = Settings(
            client=not self._engine.is_server,
            initial_values=settings,  # type: ignore[arg-type]  # numbers serve for SettingCodes
        )
        library.initiate_connection()
        library.decoder.max_header_list_size = 2 * limits.head  # a little beyond L-2, which is answered with 431
        library.decoder.max_allowed_table_size = limits.hpack_table
        more = limits.connection_window - _DEFAULT_WINDOW
        self._engine._written.append(announce(library.data_to_send(), limits))
        if more > 0:
            library.increment_flow_control_window(more)

    # -- bytes --------------------------------------------------------------------------------------------

    def read(self, whole: bytes) -> None:
        place = 0
        if not self._preface_seen:
            self._preface_seen = True
            place = len(PREFACE)
            self._library.receive_data(PREFACE)
        while place < len(whole) and not self._engine.must_close:
            stop = place + 9 + int.from_bytes(whole[place : place + 3], "big")
            self._read_frame(whole[place:stop])
            place = stop

    def _read_frame(self, frame: bytes) -> None:
        if frame[3] == GOAWAY:
            self._read_goaway(frame)
            return
        try:
            events = self._library.receive_data(frame)
        except ProtocolError as error:
            self._lose(error)
            return
        for event in events:
            handle = self._on.get(type(event))
            if handle is not None:
                handle(self, event)

    def _lose(self, error: ProtocolError) -> None:
        """h2 has given up and queued a GOAWAY, whose code does not tell HPACK's errors from others."""
        code = int(error.error_code)
        if isinstance(error, DenialOfServiceError):
            code = ENHANCE_YOUR_CALM
        elif isinstance(error.__cause__, HPACKError):
            code = COMPRESSION_ERROR
        self._engine.must_close = True
        written = self._library.data_to_send()
        # GOAWAY came last, its code comes last in it.
        self._engine._written.append(written[:-4] + code.to_bytes(4, "big"))
        self._engine._report_end(code, str(error))

    def _read_goaway(self, frame: bytes) -> None:
        if len(frame) < 17 or frame[5:9] != b"\0\0\0\0":
            code = FRAME_SIZE_ERROR if len(frame) < 17 else PROTOCOL_ERROR
            self._engine._end(code, "malformed GOAWAY")
            return
        last = int.from_bytes(frame[9:13], "big") & LAST_STREAM_ID
        self._engine._goaway(last, int.from_bytes(frame[13:17], "big"))
        if not self._engine.is_server:
            for stream_id in [key for key in self._engine._streams if key > last]:
                self._outboxes.pop(stream_id, None)
                self._engine._stream_closed(stream_id, REFUSED_STREAM)

    def write(self) -> bytes:
        if not self._engine.must_close:
            while self._send_round():
                pass
            over = [key for key, stream in self._engine._streams.items() if not (stream.theirs or stream.ours)]
            for stream_id in over:
                if stream_id not in self._outboxes:
                    self._engine._stream_closed(stream_id, NO_ERROR)
        return self._library.data_to_send()

    def _send_round(self) -> bool:
        """One frame of each stream that may send; -> whether any could."""
        progress = [self._send_some(stream_id) for stream_id in list(self._outboxes)]  # all of them: no short cut
        return True in progress

    def _send_some(self, stream_id: int) -> bool:
        outbox, library = self._outboxes[stream_id], self._library
        try:
            if outbox.chunks:
                window = min(library.local_flow_control_window(stream_id), MAX_FRAME_SIZE)
                if window <= 0:
                    return False
                self._send_piece(stream_id, outbox, window)
            elif not outbox.ended:
                return False
            elif outbox.trailers is not None:
                library.send_headers(stream_id, outbox.trailers, end_stream=True)  # type: ignore[arg-type]  # Field
                del self._outboxes[stream_id]
            else:
                library.end_stream(stream_id)
                del self._outboxes[stream_id]
        except ProtocolError:  # the stream ended meanwhile
            self._outboxes.pop(stream_id, None)
            return False
        return True

    def _send_piece(self, stream_id: int, outbox: _Outbox, window: int) -> None:
        piece = outbox.chunks.popleft()
        if len(piece) > window:
            outbox.chunks.appendleft(piece[window:])
            piece = piece[:window]
        outbox.size -= len(piece)
        ends = outbox.ended and outbox.trailers is None and not outbox.chunks
        self._library.send_data(stream_id, bytes(piece), end_stream=ends)
        if ends:
            del self._outboxes[stream_id]

    # -- sending ------------------------------------------------------------------------------------------

    def send_data(self, stream_id: int, data: bytes, end: bool) -> None:
        outbox = self._outboxes.get(stream_id)
        if outbox is None:
            return
        if data:
            outbox.chunks.append(memoryview(data))
            outbox.size += len(data)
        outbox.ended = outbox.ended or end

    def send_trailers(self, stream_id: int, headers: Headers) -> None:
        outbox = self._outboxes.get(stream_id)
        if outbox is not None:
            outbox.ended = True
            outbox.trailers = headers

    def reset(self, stream_id: int, code: int) -> None:
        self._outboxes.pop(stream_id, None)
        stream = self._engine._streams[stream_id]
        stream.ours = stream.theirs = False
        try:
            self._library.reset_stream(stream_id, code)
        except ProtocolError:  # closed already
            pass

    def ping(self) -> None:
        self._library.ping(_PING)

    def send_goaway(self) -> None:
        self.terminate(NO_ERROR)

    def terminate(self, code: int) -> None:
        self._engine._written.append(self._library.data_to_send() + render_goaway(self._engine._last_peer_id, code))

    def queued(self, stream_id: int) -> int:
        if not stream_id:
            return sum(outbox.size for outbox in self._outboxes.values())
        outbox = self._outboxes.get(stream_id)
        return 0 if outbox is None else outbox.size

    def has_written(self, stream_id: int) -> bool:
        return stream_id not in self._outboxes

    def consume(self, stream_id: int, n: int) -> None:
        unread = self._unread.get(stream_id, 0)
        n = min(n, unread)  # h2 would open the window twice
        if n:
            if n == unread:
                del self._unread[stream_id]
            else:
                self._unread[stream_id] = unread - n
            self._library.acknowledge_received_data(n, stream_id)

    def widen(self, stream_id: int, window: int) -> None:
        more = window - self._engine.limits.stream_window
        with contextlib.suppress(ProtocolError, KeyError):  # it has ended meanwhile
            self._library.increment_flow_control_window(more, stream_id)

    # -- events -------------------------------------------------------------------------------------------

    def _on_data(self, event: h2_events.DataReceived) -> None:
        stream_id, size = event.stream_id, event.flow_controlled_length or 0
        if size:
            self._unread[stream_id] = self._unread.get(stream_id, 0) + size
        self._engine._data(stream_id, bytes(event.data or b""), size, event.stream_ended is not None)

    def _on_window(self, event: h2_events.WindowUpdated) -> None:
        if self._outboxes:
            self._engine._events.append(StreamDrained(event.stream_id or 0))

    def _on_settings(self, event: h2_events.RemoteSettingsChanged) -> None:
        encoder = self._library.encoder
        if encoder.header_table_size > self.limits.hpack_table:  # L-16: our memory, the peer's wish
            encoder.header_table_size = self.limits.hpack_table
        if SettingCodes.INITIAL_WINDOW_SIZE in event.changed_settings and self._outboxes:
            self._engine._events.append(StreamDrained(0))

    def _on_pong(self, event: h2_events.PingAckReceived) -> None:
        self._engine._pong()

    def _on_settings_acknowledged(self, event: h2_events.SettingsAcknowledged) -> None:
        self._library.decoder.max_header_list_size = 2 * self.limits.head


_BOTH: Final[dict[type[h2_events.Event], Callable[[Any, Any], None]]] = {
    h2_events.DataReceived: _H2._on_data,
    h2_events.WindowUpdated: _H2._on_window,
    h2_events.RemoteSettingsChanged: _H2._on_settings,
    h2_events.SettingsAcknowledged: _H2._on_settings_acknowledged,
    h2_events.PingAckReceived: _H2._on_pong,
}


class _ServerSide(_H2):
    def __init__(self, engine: Http2Server) -> None:
        super().__init__(engine)
        self._server = engine

    def _on_request(self, event: h2_events.RequestReceived) -> None:
        stream_id, end = event.stream_id, event.stream_ended is not None
        if self._server._final and stream_id > self._server._last_peer_id:  # RFC 9113 6.8: ignored from now on
            self._server._refuse(stream_id, end)
            return
        self._server._request(stream_id, event.headers or [], end)

    def _on_trailers(self, event: h2_events.TrailersReceived) -> None:
        self._server._trailers(event.stream_id, event.headers or [])

    def _on_reset(self, event: h2_events.StreamReset) -> None:
        _reset_received(self, self._server, event)

    def send_head(self, stream_id: int, fields: Headers, *, end: bool, interim: bool) -> None:
        try:
            self._library.send_headers(stream_id, fields, end_stream=end)  # type: ignore[arg-type]  # Field
        except ProtocolError:  # reset meanwhile
            return
        if not end and not interim:
            self._outboxes[stream_id] = _Outbox()

    def send_notice(self) -> None:
        self._engine._written.append(self._library.data_to_send() + render_goaway(LAST_STREAM_ID, NO_ERROR))


class _ClientSide(_H2):
    def __init__(self, engine: Http2Client) -> None:
        super().__init__(engine)
        self._client = engine

    def open(self, fields: Headers, end: bool) -> int:
        stream_id = self._library.get_next_available_stream_id()
        self._library.send_headers(stream_id, fields, end_stream=end)  # type: ignore[arg-type]  # Field
        if not end:
            self._outboxes[stream_id] = _Outbox()
        return stream_id

    def _on_response(self, event: h2_events.ResponseReceived) -> None:
        self._client._response(event.stream_id, event.headers or [], event.stream_ended is not None)

    def _on_informational(self, event: h2_events.InformationalResponseReceived) -> None:
        self._client._informational(event.stream_id, event.headers or [])

    def _on_trailers(self, event: h2_events.TrailersReceived) -> None:
        self._client._trailers(event.stream_id, event.headers or [])

    def _on_reset(self, event: h2_events.StreamReset) -> None:
        _reset_received(self, self._client, event)

    def _on_client_settings(self, event: h2_events.RemoteSettingsChanged) -> None:
        self._on_settings(event)
        changed = event.changed_settings.get(MAX_CONCURRENT_STREAMS)
        if changed is not None:
            self._client._peer_settings(changed.new_value)


def _reset_received(side: _H2, engine: Http2Server | Http2Client, event: h2_events.StreamReset) -> None:
    stream_id, code = event.stream_id, int(event.error_code or 0)
    side._outboxes.pop(stream_id, None)
    if event.remote_reset:
        engine._peer_reset(stream_id, code)
    else:  # h2 reset it
        engine._stream_closed(stream_id, code)


_ServerSide._on = {
    **_BOTH,
    h2_events.RequestReceived: _ServerSide._on_request,
    h2_events.TrailersReceived: _ServerSide._on_trailers,
    h2_events.StreamReset: _ServerSide._on_reset,
}
_ClientSide._on = {
    **_BOTH,
    h2_events.ResponseReceived: _ClientSide._on_response,
    h2_events.InformationalResponseReceived: _ClientSide._on_informational,
    h2_events.TrailersReceived: _ClientSide._on_trailers,
    h2_events.StreamReset: _ClientSide._on_reset,
    h2_events.RemoteSettingsChanged: _ClientSide._on_client_settings,
}


class H2Server(Http2Server):
    """The second server engine."""

    def __init__(self, limits: WireLimits) -> None:
        super().__init__(limits)
        self._lib = _ServerSide(self)


class H2Client(Http2Client):
    """The second client engine."""

    def __init__(self, limits: WireLimits) -> None:
        super().__init__(limits)
        self._lib = _ClientSide(self)
