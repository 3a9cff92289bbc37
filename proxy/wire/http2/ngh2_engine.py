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
from typing import Any, Final

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
    announce,
    settings_of,
)
from proxy.wire.http2.server import Http2Server
from proxy.wire.limits import WireLimits

_LONGEST_SENT_BLOCK = 1 << 20  # what we send was bounded when we received it
# RFC 9218 serves streams one after the other unless they are incremental. Ours have nothing to do with each other:
# a download must not starve a small answer where both share a narrow connection window.
_IN_TURNS = ngh2.Priority(3, True)


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


class _Nghttp2(Http2Engine):
    """The library's side of both roles."""

    _role: ngh2.Role
    _on: dict[type[ngh2.Event], Callable[[Any, Any], None]]

    def __init__(self, limits: WireLimits) -> None:
        super().__init__(limits)
        self._library = ngh2.Connection(self._role, _configuration(limits))
        self._deleted = False  # the library's session

    def start(self) -> None:
        """Queue the preface (client) and SETTINGS, and open the connection's window."""
        self._library.initiate_connection(settings_of(self.limits, server=self.is_server))
        self._written.append(announce(self._library.data_to_send(), self.limits))
        self._library.set_local_window_size(self.limits.connection_window)

    # -- bytes --------------------------------------------------------------------------------------------

    def _read(self, whole: bytes) -> None:
        library = self._library
        try:
            library.receive_data(whole)
        except ngh2.NGH2Error as error:
            for event in library.events():  # what came before the error
                self._on[type(event)](self, event)
            self._lose(error)
            return
        on = self._on
        for event in library.events():
            on[type(event)](self, event)
        if not self.must_close and library.want_write and not self._written:
            self._written.append(self._write())

    def _write(self) -> bytes:
        if self._deleted:
            return b""
        try:
            data = self._library.data_to_send()
        except ngh2.NGH2Error as error:
            self._lose(error)
            return b""
        on = self._on
        for event in self._library.events():
            on[type(event)](self, event)
        return data

    def _lose(self, error: ngh2.NGH2Error) -> None:
        self._deleted = True
        if not self.must_close:
            self.must_close = True
            flood = isinstance(error, ngh2.DenialOfServiceError)
            code = ENHANCE_YOUR_CALM if flood else PROTOCOL_ERROR
            self._written.append(render_goaway(self._last_peer_id, code))
            self._report_end(code, str(error))

    def _terminate(self, code: int) -> None:
        if not self._deleted:
            self._library.terminate_connection(code)

    # -- sending ------------------------------------------------------------------------------------------

    def _send_data(self, stream_id: int, data: bytes, end: bool) -> None:
        self._library.send_data(stream_id, data, end_stream=end)

    def _send_trailers(self, stream_id: int, headers: Headers) -> None:
        self._library.send_trailers(stream_id, headers)

    def _reset(self, stream_id: int, code: int) -> None:
        self._library.reset_stream(stream_id, code)

    def _ping(self) -> None:
        self._library.ping()

    def _send_goaway(self) -> None:
        self._library.send_goaway(NO_ERROR)

    def _queued(self, stream_id: int) -> int:
        return self._library.queued_body_size(stream_id or None)

    def _has_written(self, stream_id: int) -> bool:
        library = self._library
        if library.queued_body_size(stream_id):
            return False
        try:  # an END_STREAM without data waits for the window, too
            return library.remote_window_size > 0 and library.stream_remote_window_size(stream_id) > 0
        except ngh2.StreamUnavailableError:
            return True

    def _consume(self, stream_id: int, n: int) -> None:
        try:
            self._library.acknowledge_received_data(n, stream_id)
        except (ngh2.NGH2Error, ValueError):  # given back before, or the session has ended
            pass

    # -- events -------------------------------------------------------------------------------------------

    def _on_data(self, event: ngh2.DataReceived) -> None:
        data = event.data  # padding was consumed by the library
        self._data(event.stream_id, data, len(data), event.end_stream)

    def _on_window(self, event: ngh2.WindowUpdated) -> None:
        if self._library.queued_body_size():
            self._events.append(StreamDrained(event.stream_id))

    def _on_settings(self, event: ngh2.SettingsReceived) -> None:
        if INITIAL_WINDOW_SIZE in event.settings and self._library.queued_body_size():
            self._events.append(StreamDrained(0))

    def _on_goaway(self, event: ngh2.GoAwayReceived) -> None:
        self._goaway(event.last_stream_id, event.error_code)

    def _on_pong(self, event: ngh2.PingAcknowledged) -> None:
        self._pong()

    def _on_connection_closed(self, event: ngh2.ConnectionClosed) -> None:
        """Nothing more to read or write: after our GOAWAY for an error, or after a graceful end."""
        if self.must_close:
            return
        self.must_close = True
        if event.error_code != NO_ERROR and not self._gone_away:
            self._report_end(event.error_code, f"GOAWAY {event.error_code:#x}")

    def _ignore(self, event: ngh2.Event) -> None:
        pass


_BOTH: Final[dict[type[ngh2.Event], Callable[[Any, Any], None]]] = {
    ngh2.DataReceived: _Nghttp2._on_data,
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


class NgServer(Http2Server, _Nghttp2):
    """The default server engine."""

    _role = ngh2.Role.SERVER

    def _on_request(self, event: ngh2.RequestReceived) -> None:
        self._request(event.stream_id, event.headers, event.end_stream)

    def _on_trailers(self, event: ngh2.TrailersReceived) -> None:
        self._trailers(event.stream_id, event.headers)

    def _on_reset(self, event: ngh2.StreamReset) -> None:
        self._peer_reset(event.stream_id, event.error_code)

    def _on_closed(self, event: ngh2.StreamClosed) -> None:
        self._stream_closed(event.stream_id, event.error_code)

    def _send_head(self, stream_id: int, fields: Headers, *, end: bool, interim: bool) -> None:
        if interim:
            self._library.send_informational_response(stream_id, fields)
        else:
            self._library.send_response(stream_id, fields, end_stream=end)
            if not end:
                self._library.set_stream_priority(stream_id, _IN_TURNS, ignore_client_signal=True)

    def _send_notice(self) -> None:
        self._library.send_shutdown_notice()


class NgClient(Http2Client, _Nghttp2):
    """The default client engine."""

    _role = ngh2.Role.CLIENT

    def _open(self, fields: Headers, end: bool) -> int:
        return self._library.send_request(fields, end_stream=end)

    def _on_response(self, event: ngh2.ResponseReceived) -> None:
        self._response(event.stream_id, event.headers, event.end_stream)

    def _on_informational(self, event: ngh2.InformationalResponseReceived) -> None:
        self._informational(event.stream_id, event.headers)

    def _on_trailers(self, event: ngh2.TrailersReceived) -> None:
        self._trailers(event.stream_id, event.headers)

    def _on_reset(self, event: ngh2.StreamReset) -> None:
        self._peer_reset(event.stream_id, event.error_code)

    def _on_closed(self, event: ngh2.StreamClosed) -> None:
        self._stream_closed(event.stream_id, event.error_code)

    def _on_settings(self, event: ngh2.SettingsReceived) -> None:
        super()._on_settings(event)
        streams = event.settings.get(MAX_CONCURRENT_STREAMS)
        if streams is not None:
            self._peer_settings(streams)


NgServer._on = {
    **_BOTH,
    ngh2.RequestReceived: NgServer._on_request,
    ngh2.TrailersReceived: NgServer._on_trailers,
    ngh2.StreamReset: NgServer._on_reset,
    ngh2.StreamClosed: NgServer._on_closed,
}
NgClient._on = {
    **_BOTH,
    ngh2.ResponseReceived: NgClient._on_response,
    ngh2.InformationalResponseReceived: NgClient._on_informational,
    ngh2.TrailersReceived: NgClient._on_trailers,
    ngh2.StreamReset: NgClient._on_reset,
    ngh2.StreamClosed: NgClient._on_closed,
    ngh2.SettingsReceived: NgClient._on_settings,
    ngh2.PushedStreamReceived: NgClient._ignore,
}
