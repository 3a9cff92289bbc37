"""HTTP/2 by libnghttp2, through ngh2: the default engines. The only module that knows ngh2. Pure.

What is not plain about the library:

- It raises where the peer passes a resource limit (field lists, queued ACKs) and has then deleted its session: no
  GOAWAY can be had from it, so we write one. Its own limits are set above ours, so that ours answer first.
- An error that it answers with GOAWAY is not reported by ``receive_data``, only by the ``ConnectionClosed`` that
  follows when the GOAWAY is written. So after reading, what wants to be written is drained at once.
- It checks field sections and content-length itself and resets the stream without a word: such a stream is only
  seen to close (``Http2Server._refused_by_library``).
- Data of streams that were reset is counted as consumed by the library; data it has reported must be acknowledged,
  also after the stream has closed, or the connection's window shrinks for good.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

import ngh2

from proxy.wire.events import Headers, StreamDrained
from proxy.wire.frames import ENHANCE_YOUR_CALM, PROTOCOL_ERROR, render_goaway
from proxy.wire.http2.client import Http2Client
from proxy.wire.http2.engine import (
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    NO_ERROR,
    PSEUDO_HEADERS,
    Http2Engine,
    Library,
    announce,
    settings_of,
)
from proxy.wire.http2.server import Http2Server
from proxy.wire.limits import WireLimits

_LONGEST_SENT_BLOCK: Final = 1 << 20  # what we send was bounded when we received it
# RFC 9218 serves streams one after the other unless they are incremental. Ours have nothing to do with each other:
# a download must not starve a small answer where both share a narrow connection window.
_IN_TURNS: Final = ngh2.Priority(3, True)


def _configuration(limits: WireLimits) -> ngh2.Configuration:
    return ngh2.Configuration(
        auto_window_update=False,
        max_inbound_header_count=2 * limits.headers + PSEUDO_HEADERS,
        max_inbound_header_list_size=2 * limits.head,
        max_continuations=limits.continuations,
        max_settings=limits.settings_entries,
        max_outbound_ack=2 * limits.control_burst,
        max_deflate_dynamic_table_size=limits.hpack_table,
        max_send_header_block_length=_LONGEST_SENT_BLOCK,
    )


class _Nghttp2(Library):
    """Both roles. ``_on`` is the role's table from event to method."""

    _on: ClassVar[dict[type[ngh2.Event], Callable[[Any, Any], None]]] = {}

    def __init__(self, engine: Http2Engine, role: ngh2.Role) -> None:
        self._engine = engine
        self._session = ngh2.Connection(role, _configuration(engine.limits))
        self._deleted = False  # the library's session

    def start(self) -> None:
        engine, session = self._engine, self._session
        session.initiate_connection(settings_of(engine.limits, server=engine.is_server))
        engine._written.append(announce(session.data_to_send(), engine.limits))
        session.set_local_window_size(engine.limits.connection_window)

    # -- bytes --------------------------------------------------------------------------------------------

    def read(self, whole: bytes) -> None:
        session, engine, on = self._session, self._engine, self._on
        try:
            session.receive_data(whole)
        except ngh2.NGH2Error as error:
            for event in session.events():  # what came before the error
                on[type(event)](self, event)
            self._lose(error)
            return
        for event in session.events():
            on[type(event)](self, event)
        if not engine.must_close and session.want_write and not engine._written:
            engine._written.append(self.write())

    def write(self) -> bytes:
        if self._deleted:
            return b""
        try:
            data = self._session.data_to_send()
        except ngh2.NGH2Error as error:
            self._lose(error)
            return b""
        on = self._on
        for event in self._session.events():
            on[type(event)](self, event)
        return data

    def _lose(self, error: ngh2.NGH2Error) -> None:
        self._deleted = True
        engine = self._engine
        if not engine.must_close:
            engine.must_close = True
            flood = isinstance(error, ngh2.DenialOfServiceError)
            code = ENHANCE_YOUR_CALM if flood else PROTOCOL_ERROR
            engine._written.append(render_goaway(engine._last_peer_id, code))
            engine._report_end(code, str(error))

    def terminate(self, code: int) -> None:
        if not self._deleted:
            self._session.terminate_connection(code)

    # -- sending ------------------------------------------------------------------------------------------

    def send_data(self, stream_id: int, data: bytes, end: bool) -> None:
        self._session.send_data(stream_id, data, end_stream=end)

    def send_trailers(self, stream_id: int, headers: Headers) -> None:
        self._session.send_trailers(stream_id, headers)  # type: ignore[arg-type]  # Field

    def reset(self, stream_id: int, code: int) -> None:
        self._session.reset_stream(stream_id, code)

    def ping(self) -> None:
        self._session.ping()

    def send_goaway(self) -> None:
        self._session.send_goaway(NO_ERROR)

    def queued(self, stream_id: int) -> int:
        return self._session.queued_body_size(stream_id or None)

    def has_written(self, stream_id: int) -> bool:
        session = self._session
        if session.queued_body_size(stream_id):
            return False
        try:  # an END_STREAM without data waits for the window, too
            return session.remote_window_size > 0 and session.stream_remote_window_size(stream_id) > 0
        except ngh2.StreamUnavailableError:
            return True

    def consume(self, stream_id: int, n: int) -> None:
        try:
            self._session.acknowledge_received_data(n, stream_id)
        except (ngh2.NGH2Error, ValueError):  # given back before, or the session has ended
            pass

    def widen(self, stream_id: int, window: int) -> None:
        try:
            self._session.set_local_window_size(window, stream_id=stream_id)
        except (ngh2.NGH2Error, ValueError):  # it has ended meanwhile
            pass

    # -- events -------------------------------------------------------------------------------------------

    def _on_data(self, event: ngh2.DataReceived) -> None:
        data = event.data  # padding was consumed by the library
        self._engine._data(event.stream_id, data, len(data), event.end_stream)

    def _on_window(self, event: ngh2.WindowUpdated) -> None:
        if self._session.queued_body_size():
            self._engine._events.append(StreamDrained(event.stream_id))

    def _on_settings(self, event: ngh2.SettingsReceived) -> None:
        if INITIAL_WINDOW_SIZE in event.settings and self._session.queued_body_size():
            self._engine._events.append(StreamDrained(0))

    def _on_goaway(self, event: ngh2.GoAwayReceived) -> None:
        self._engine._goaway(event.last_stream_id, event.error_code)

    def _on_pong(self, event: ngh2.PingAcknowledged) -> None:
        self._engine._pong()

    def _on_closed(self, event: ngh2.StreamClosed) -> None:
        self._engine._stream_closed(event.stream_id, event.error_code)

    def _on_connection_closed(self, event: ngh2.ConnectionClosed) -> None:
        """Nothing more to read or write: after our GOAWAY for an error, or after a graceful end."""
        engine = self._engine
        if engine.must_close:
            return
        engine.must_close = True
        if event.error_code != NO_ERROR and not engine._gone_away:
            engine._report_end(event.error_code, f"GOAWAY {event.error_code:#x}")

    def _ignore(self, event: ngh2.Event) -> None:
        pass


_BOTH: Final[dict[type[ngh2.Event], Callable[[Any, Any], None]]] = {
    ngh2.DataReceived: _Nghttp2._on_data,
    ngh2.StreamClosed: _Nghttp2._on_closed,
    ngh2.WindowUpdated: _Nghttp2._on_window,
    ngh2.SettingsReceived: _Nghttp2._on_settings,
    ngh2.GoAwayReceived: _Nghttp2._on_goaway,
    ngh2.PingAcknowledged: _Nghttp2._on_pong,
    ngh2.ConnectionClosed: _Nghttp2._on_connection_closed,
    ngh2.SettingsAcknowledged: _Nghttp2._ignore,
    ngh2.PingReceived: _Nghttp2._ignore,
    ngh2.AltSvcReceived: _Nghttp2._ignore,
    ngh2.OriginReceived: _Nghttp2._ignore,
    ngh2.PriorityUpdateReceived: _Nghttp2._ignore,
}


class _ServerSide(_Nghttp2):
    def __init__(self, engine: Http2Server) -> None:
        super().__init__(engine, ngh2.Role.SERVER)
        self._server = engine

    def _on_request(self, event: ngh2.RequestReceived) -> None:
        self._server._request(event.stream_id, event.headers, event.end_stream)

    def _on_trailers(self, event: ngh2.TrailersReceived) -> None:
        self._server._trailers(event.stream_id, event.headers)

    def _on_reset(self, event: ngh2.StreamReset) -> None:
        self._server._peer_reset(event.stream_id, event.error_code)

    def send_head(self, stream_id: int, fields: Headers, *, end: bool, interim: bool) -> None:
        if interim:
            self._session.send_informational_response(stream_id, fields)  # type: ignore[arg-type]  # Field
        else:
            self._session.send_response(stream_id, fields, end_stream=end)  # type: ignore[arg-type]  # Field
            if not end:
                self._session.set_stream_priority(stream_id, _IN_TURNS, ignore_client_signal=True)

    def send_notice(self) -> None:
        self._session.send_shutdown_notice()


class _ClientSide(_Nghttp2):
    def __init__(self, engine: Http2Client) -> None:
        super().__init__(engine, ngh2.Role.CLIENT)
        self._client = engine

    def open(self, fields: Headers, end: bool) -> int:
        return self._session.send_request(fields, end_stream=end)  # type: ignore[arg-type]  # Field

    def _on_response(self, event: ngh2.ResponseReceived) -> None:
        self._client._response(event.stream_id, event.headers, event.end_stream)

    def _on_informational(self, event: ngh2.InformationalResponseReceived) -> None:
        self._client._informational(event.stream_id, event.headers)

    def _on_trailers(self, event: ngh2.TrailersReceived) -> None:
        self._client._trailers(event.stream_id, event.headers)

    def _on_reset(self, event: ngh2.StreamReset) -> None:
        self._client._peer_reset(event.stream_id, event.error_code)

    def _on_client_settings(self, event: ngh2.SettingsReceived) -> None:
        self._on_settings(event)
        streams = event.settings.get(MAX_CONCURRENT_STREAMS)
        if streams is not None:
            self._client._peer_settings(streams)


_ServerSide._on = {
    **_BOTH,
    ngh2.RequestReceived: _ServerSide._on_request,
    ngh2.TrailersReceived: _ServerSide._on_trailers,
    ngh2.StreamReset: _ServerSide._on_reset,
}
_ClientSide._on = {
    **_BOTH,
    ngh2.ResponseReceived: _ClientSide._on_response,
    ngh2.InformationalResponseReceived: _ClientSide._on_informational,
    ngh2.TrailersReceived: _ClientSide._on_trailers,
    ngh2.StreamReset: _ClientSide._on_reset,
    ngh2.SettingsReceived: _ClientSide._on_client_settings,
    ngh2.PushedStreamReceived: _ClientSide._ignore,
}


class NgServer(Http2Server):
    """The default server engine."""

    def __init__(self, limits: WireLimits) -> None:
        super().__init__(limits)
        self._lib = _ServerSide(self)


class NgClient(Http2Client):
    """The default client engine."""

    def __init__(self, limits: WireLimits) -> None:
        super().__init__(limits)
        self._lib = _ClientSide(self)
