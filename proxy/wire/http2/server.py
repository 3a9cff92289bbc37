"""The server half of an HTTP/2 engine: requests in, answers out. Pure; see ``engine.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from proxy.errors import MalformedRequest
from proxy.wire.events import (
    DataReceived,
    Event,
    Field,
    Headers,
    RequestReceived,
    RequestRefused,
    StreamReset,
    TrailersReceived,
)
from proxy.wire.frames import PROTOCOL_ERROR
from proxy.wire.framing import check_values
from proxy.wire.http2 import known
from proxy.wire.http2.engine import NO_ERROR, REFUSED_STREAM, Http2Engine, StreamState
from proxy.wire.limits import WireLimits
from proxy.wire.validate import check_h2_request

# Refusals that the caller should read as an answer: the stream is left open for the owner to give one.
ANSWERABLE: Final = frozenset(
    {
        "head_too_large",
        "too_many_headers",
        "uri_too_long",
        "method_not_allowed",
        "method_unknown",
        "expectation_failed",
        "body_too_large",
    }
)
_STATUS: Final = {status: (b":status", b"%d" % status) for status in range(100, 600)}
_WITHOUT_BODY: Final = frozenset({204, 304})


class Http2Server(Http2Engine):
    """Requests are numbered by their stream. ``release`` frees a place of L-8."""

    is_server: ClassVar[bool] = True

    def __init__(self, limits: WireLimits) -> None:
        super().__init__(limits)
        self._unreleased: set[int] = set()

    # -- the owner's --------------------------------------------------------------------------------------

    def release(self, stream_id: int) -> None:
        """The app's side of this exchange has ended: another request may take its place (L-8)."""
        self._unreleased.discard(stream_id)

    def resume(self) -> list[Event]:
        return []

    def send_informational(self, stream_id: int, status: int, headers: Headers) -> None:
        stream = self._streams.get(stream_id)
        if stream is None or not stream.ours or stream.begun or self.must_close or status == 101:
            return
        self._lib.send_head(stream_id, [_STATUS[status], *headers], end=False, interim=True)

    def send_response(
        self, stream_id: int, status: int, headers: Headers, *, length: int | None, end_stream: bool
    ) -> None:
        """Begin the answer; dropped when the stream is gone. Raises ValueError for an illegal value (S-19).

        It also ends it for HEAD, 204 and 304, which have no body (RFC 9110 6.4.1): what is sent then is dropped.
        """
        stream = self._streams.get(stream_id)
        if stream is None or not stream.ours or stream.begun or self.must_close:
            return
        if not check_values(headers):
            raise ValueError("control character in a response header")
        fields = [_STATUS[status], *headers]
        if length is not None and status != 204:
            fields.append((b"content-length", b"%d" % length))
        ends = end_stream or stream.method == b"HEAD" or status in _WITHOUT_BODY
        self._lib.send_head(stream_id, fields, end=ends, interim=False)
        stream.begun = True
        if ends:
            self._end_ours(stream_id, stream)

    def shut_down(self) -> None:
        """GOAWAY(2^31-1): the end is announced, requests on their way are still taken (RFC 9113 6.8)."""
        if not self.must_close and not self._closing:
            self._closing = True
            self._lib.send_notice()

    # -- what the library met -----------------------------------------------------------------------------

    def _request(self, stream_id: int, fields: Sequence[Field], end: bool) -> None:
        self._last_peer_id = stream_id
        limits = self.limits
        busy = max(len(self._unreleased), len(self._streams))
        if busy >= limits.streams:
            self._refuse(stream_id, end)
            return
        stream = StreamState(b"", not end, True)
        self._streams[stream_id] = stream
        try:
            head = check_h2_request(fields, limits)
        except MalformedRequest as error:
            self._refuse_request(stream_id, stream, error)
            return
        stream.method = head.method
        length = head.length
        if length is not None and end and length:  # S-17, CVE-2026-48743
            self._refuse_request(stream_id, stream, MalformedRequest(reason="body_length_mismatch"))
            return
        if length is not None:
            stream.left = length
        elif limits.body:
            stream.room = limits.body
        self._unreleased.add(stream_id)
        self._events.append(RequestReceived(stream_id, head, end))

    def _refuse(self, stream_id: int, end: bool) -> None:
        """L-8: no place. The owner hears nothing, the caller may try again elsewhere."""
        stream = self._streams[stream_id] = StreamState(b"", not end, False)
        stream.told = True
        self._lib.reset(stream_id, REFUSED_STREAM)
        self.meter.note_refusal(self.now)

    def _refuse_request(self, stream_id: int, stream: StreamState, error: MalformedRequest) -> None:
        event = RequestRefused(stream_id, error.reason, error.detail)
        if error.reason in ANSWERABLE:
            event.answerable = stream.told = True
            self.meter.note_glitch()
        else:
            self._offend(stream_id, stream)
        self._events.append(event)

    def _data(self, stream_id: int, data: bytes, size: int, end: bool) -> None:
        stream = self._streams.get(stream_id)
        if stream is None or stream.told:
            self._swallow(stream_id, stream, size, end)
            return
        if stream.left >= 0:
            stream.left -= len(data)
            if stream.left < 0 or (end and stream.left):
                self._lib.consume(stream_id, size)
                self._abort(stream_id, stream, "body_length_mismatch")
                return
            if not stream.left and not end:
                self._hold(stream, data, size)
                return
            if stream.held is not None:
                data, size = self._release_held(stream, data, size)
        else:
            stream.room -= len(data)
            if stream.room < 0:
                self._lib.consume(stream_id, size)
                self._abort(stream_id, stream, "body_too_large")
                return
        if end:
            stream.theirs = False
        self._events.append(DataReceived(stream_id, data, end, size))

    def _hold(self, stream: StreamState, data: bytes, size: int) -> None:
        # S-17: with the last byte of content-length the app would take the request for complete.
        if stream.held is None:
            stream.held = []
        if data:
            stream.held.append(data)
        stream.held_size += size

    def _abort(self, stream_id: int, stream: StreamState, reason: str, detail: str = "") -> None:
        """A request that the owner has begun turns out to be malformed."""
        self._offend(stream_id, stream)
        self._events.append(RequestRefused(stream_id, reason, detail, opened=True))

    def _trailers(self, stream_id: int, fields: Sequence[Field]) -> None:
        stream = self._streams.get(stream_id)
        if stream is None or stream.told:
            self._swallow(stream_id, stream, 0, True)
            return
        if stream.left > 0:
            self._abort(stream_id, stream, "body_length_mismatch")
            return
        try:
            trailers = known.trailers(fields, self.limits)
        except MalformedRequest as error:
            self._abort(stream_id, stream, error.reason, error.detail)
            return
        if stream.held_size:
            data, size = self._release_held(stream, b"", 0)
            self._events.append(DataReceived(stream_id, data, False, size))
        stream.theirs = False
        self._events.append(TrailersReceived(stream_id, trailers))

    def _peer_reset(self, stream_id: int, code: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        was_over = stream.told or not (stream.theirs or stream.ours)
        stream.theirs = stream.ours = False
        if was_over:
            stream.told = True
            return
        if not stream.begun:
            self.meter.note_unanswered_reset()
        self._forget(stream_id, stream)
        self._events.append(StreamReset(stream_id, code, reason="downstream_reset"))

    def _stream_closed(self, stream_id: int, code: int) -> None:
        """The library has forgotten the stream; unless both halves had ended, because of an error of the peer's."""
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            if code != NO_ERROR:
                self._refused_by_library(stream_id)
            return
        if stream.told or not (stream.theirs or stream.ours):
            return
        self._forget(stream_id, stream)
        self._count_offence()
        if code == PROTOCOL_ERROR and stream.left >= 0 and stream.theirs:
            # nghttp2 compares with content-length, too, and is the first to see too much.
            self._events.append(RequestRefused(stream_id, "body_length_mismatch", opened=True))
        else:
            self._events.append(StreamReset(stream_id, code, by_peer=False, reason="frame_error"))

    def _refused_by_library(self, stream_id: int) -> None:
        # nghttp2 checks fields before we see them (RFC 9113 8.2, 8.3) and does not say which one it disliked.
        self._last_peer_id = max(self._last_peer_id, stream_id)
        self._count_offence()
        self._events.append(RequestRefused(stream_id, "bad_request_line", "malformed field section"))
