"""The client half of an HTTP/2 engine: requests out, answers in. Pure; see ``engine.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from proxy.errors import MalformedRequest, MalformedResponse, UpstreamGone
from proxy.wire.events import (
    DataReceived,
    Field,
    Headers,
    InformationalReceived,
    RequestHead,
    ResponseReceived,
    StreamReset,
    TrailersReceived,
)
from proxy.wire.framing import check_values
from proxy.wire.http2 import known
from proxy.wire.http2.engine import LAST_STREAM_ID, NO_ERROR, REFUSED_STREAM, Http2Engine, StreamState
from proxy.wire.limits import WireLimits

_ASSUMED_STREAMS: Final = 100  # until the peer's SETTINGS arrive, as nghttp2, curl and Go assume
_BODY_METHODS: Final = frozenset({b"POST", b"PUT", b"PATCH"})
_PSEUDO: Final = {
    method: (b":method", method) for method in (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH")
}
_SCHEMES: Final = {scheme: (b":scheme", scheme) for scheme in (b"http", b"https")}
_TE: Final = (b"te", b"trailers")


class Http2Client(Http2Engine):
    """Streams are opened by ``open_stream`` while ``can_open`` says so."""

    def __init__(self, limits: WireLimits) -> None:
        super().__init__(limits)
        self._peer_streams = _ASSUMED_STREAMS
        self._last_id = -1

    # -- the owner's --------------------------------------------------------------------------------------

    @property
    def can_open(self) -> bool:
        """The peer has room for a stream, is not going away, and a stream id is left."""
        return (
            len(self._streams) < self._peer_streams
            and not self._closing
            and not self.must_close
            and self._last_id < LAST_STREAM_ID - 1
        )

    def open_stream(self, head: RequestHead, headers: Headers, *, end_stream: bool) -> int:
        """Send a request head; -> its stream. Raises UpstreamGone when none can be opened (see ``can_open``)
        and ValueError for an illegal header value (S-19)."""
        if not self.can_open:
            raise UpstreamGone("no stream can be opened", wrote=False)
        if not check_values(headers):
            raise ValueError("control character in a request header")
        method = head.method
        fields = [
            _PSEUDO.get(method) or (b":method", method),
            _SCHEMES.get(head.scheme) or (b":scheme", head.scheme),
            (b":authority", head.authority),
            (b":path", head.target),
            *headers,
        ]
        length = head.length
        if length or (length == 0 and method in _BODY_METHODS):
            fields.append((b"content-length", b"%d" % length))
        if head.te_trailers:
            fields.append(_TE)
        stream_id = self._last_id = self._lib.open(fields, end_stream)
        stream = self._streams[stream_id] = StreamState(method, True, not end_stream)
        stream.begun = True
        self.meter.opened += 1
        return stream_id

    def shut_down(self) -> None:
        """Open no new streams."""
        self._closing = True

    # -- what the library met -----------------------------------------------------------------------------

    def _informational(self, stream_id: int, fields: Sequence[Field]) -> None:
        stream = self._streams.get(stream_id)
        if stream is None or stream.told:
            return
        stream.interim += 1
        if stream.interim > self.limits.interim_answers:
            self._abort(stream_id, stream)
            return
        try:
            head = known.response_head(fields, stream.method, self.limits)
        except MalformedResponse:
            self._abort(stream_id, stream)
            return
        self._events.append(InformationalReceived(stream_id, head.status, head.headers))

    def _response(self, stream_id: int, fields: Sequence[Field], end: bool) -> None:
        stream = self._streams.get(stream_id)
        if stream is None or stream.told:
            self._swallow(stream_id, stream, 0, end)
            return
        try:
            head = known.response_head(fields, stream.method, self.limits)
        except MalformedResponse:
            self._abort(stream_id, stream)
            return
        if stream.method == b"HEAD" or head.status in (204, 304):
            stream.left = 0  # no body, whatever content-length says (RFC 9110 6.4.1)
        elif head.length is not None:
            stream.left = head.length
        if end:
            if stream.left > 0:
                self._abort(stream_id, stream)
                return
            stream.theirs = False
        self._events.append(ResponseReceived(stream_id, head, end))

    def _data(self, stream_id: int, data: bytes, size: int, end: bool) -> None:
        stream = self._streams.get(stream_id)
        if stream is None or stream.told:
            self._swallow(stream_id, stream, size, end)
            return
        if stream.left >= 0:
            stream.left -= len(data)
            if stream.left < 0 or (end and stream.left):
                self._lib.consume(stream_id, size)
                self._abort(stream_id, stream)
                return
        if end:
            stream.theirs = False
        self._events.append(DataReceived(stream_id, data, end, size))

    def _trailers(self, stream_id: int, fields: Sequence[Field]) -> None:
        stream = self._streams.get(stream_id)
        if stream is None or stream.told:
            self._swallow(stream_id, stream, 0, True)
            return
        try:
            trailers = known.trailers(fields, self.limits, of_response=True)
        except MalformedRequest:
            self._abort(stream_id, stream)
            return
        if stream.left > 0:
            self._abort(stream_id, stream)
            return
        stream.theirs = False
        self._events.append(TrailersReceived(stream_id, trailers))

    def _abort(self, stream_id: int, stream: StreamState) -> None:
        """The upstream's answer is malformed (S-31)."""
        self._offend(stream_id, stream)
        self._events.append(StreamReset(stream_id, 1, by_peer=False, reason="upstream_protocol_error"))

    def _peer_reset(self, stream_id: int, code: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        over = stream.told or not stream.theirs  # after a complete answer RST_STREAM only means: stop sending
        stream.theirs = stream.ours = False
        self._forget(stream_id, stream)
        if not over:
            self._events.append(StreamReset(stream_id, code, reason="upstream_reset"))

    def _stream_closed(self, stream_id: int, code: int) -> None:
        """The library has forgotten the stream; unless both halves had ended, because of somebody's error."""
        stream = self._streams.pop(stream_id, None)
        if stream is None or stream.told or not stream.theirs:
            return
        self._forget(stream_id, stream)
        if self._gone_away and code == REFUSED_STREAM:  # above the peer's last stream: never processed
            self._events.append(StreamReset(stream_id, code, reason="upstream_reset"))
            return
        if code != NO_ERROR:
            self._count_offence()
        self._events.append(StreamReset(stream_id, code, by_peer=False, reason="upstream_protocol_error"))

    def _peer_settings(self, streams: int) -> None:
        self._peer_streams = streams
