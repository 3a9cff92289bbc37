"""The client's end of an HTTP/1.1 connection: one request out, its answer in. Pure.

The app at the other end is an attacker too (S-31): its answer could be framed in two ways, or be followed by a
second one meant for the next caller (queue poisoning). So answers are held to the same rules as requests, and a
connection is used again (``reusable``) only when nothing at all speaks against it (S-13): the answer was complete by
its own framing, the request was completely written before the answer began, not one byte came
after it, both sides keep the connection alive, and no error occurred. Bytes that arrive while no request is open,
or before the open request has left, close the connection.

    answer: HEAD -> [1xx]* -> final head -> LENGTH | CHUNKED | UNTIL_EOF -> complete (WAIT)
                 -> 101, asked for and proven -> TUNNEL
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any, Final

from proxy.errors import MalformedRequest, MalformedResponse
from proxy.wire.events import (
    ConnectionEnded,
    DataReceived,
    Event,
    Headers,
    InformationalReceived,
    RequestHead,
    ResponseHead,
    ResponseReceived,
    StreamReset,
)
from proxy.wire.http1_connection import (
    COUNTED,
    DEAD,
    HEAD,
    IN_CHUNKS,
    RAW,
    TUNNEL,
    UNTIL_EOF,
    WAIT,
    Http1Connection,
    render_fields,
)
from proxy.wire.limits import WireLimits
from proxy.wire.validate import METHODS, frame_response, list_members

# RFC 9110 8.6: without a body these say "content-length: 0"; the others say nothing.
_WITH_CONTENT: Final = frozenset({b"POST", b"PUT", b"PATCH"})
_UPGRADE: Final = b"connection: upgrade\r\nupgrade: websocket\r\n"
_TE: Final = b"te: trailers\r\nconnection: te\r\n"
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3

# RFC 9113 7: the words for what happened, used for HTTP/1.1 as well.
_PROTOCOL_ERROR: Final = 0x1
_INTERNAL_ERROR: Final = 0x2
_REFUSED_STREAM: Final = 0x7
_CANCEL: Final = 0x8


class Http1Client(Http1Connection):
    """See the module's text. ``fault`` says, for operators, why the answer was not accepted."""

    def __init__(self, limits: WireLimits) -> None:
        super().__init__(limits, requests=False)
        self._mode = WAIT
        self.body_limit = 0  # L-6 is about requests
        self._method = b""
        self._key = b""  # of an upgrade request
        self._persists = True
        self._answering = False
        self._left_us = True  # the open request's head was taken by the owner
        self._interim = 0
        self.fault = ""

    # -- requests -----------------------------------------------------------------------------------------

    @property
    def reusable(self) -> bool:
        """Nothing speaks against another request on this connection (S-13)."""
        return not self._open and self._persists and not self._closing and not self.must_close

    @property
    def can_open(self) -> bool:
        return self.reusable

    def open_stream(self, head: RequestHead, headers: Headers, *, end_stream: bool) -> int:
        """Write a request's head -> its stream id. ``headers`` is the final field list.

        ValueError for what HTTP/1.1 cannot say (S-19), RuntimeError when the connection cannot take a request.
        """
        if not self.reusable:
            raise RuntimeError("the connection cannot take a request")
        lines = self._render_head(head, headers, end_stream)
        self._stream_id += 1
        self._open = True
        self._mode = HEAD
        self._method = head.method
        self._interim = 0
        self._sent = self._answering = self._left_us = False
        self._out.append(lines)
        if end_stream:
            self._end_body(b"0\r\n\r\n")
        return self._stream_id

    def _render_head(self, head: RequestHead, headers: Headers, end_stream: bool) -> bytes:
        target, authority = head.target, head.authority
        if head.method not in METHODS or target.translate(None, _VISIBLE) or not target:
            raise ValueError("not writable as HTTP/1.1: request line")
        if authority.translate(None, _VISIBLE) or not authority:
            raise ValueError("not writable as HTTP/1.1: host")
        line = head.method + b" " + target + b" HTTP/1.1\r\nhost: " + authority + b"\r\n"
        hop = self._frame(head, end_stream)
        self._key = b""
        if head.upgrade is not None:
            self._key = _key_of(headers)
            hop += _UPGRADE
        elif head.te_trailers:
            hop += _TE
        return line + render_fields(headers) + hop + b"\r\n"

    def _frame(self, head: RequestHead, end_stream: bool) -> bytes:
        """Choose how the body is framed -> the field that says so (S-12)."""
        length = head.length
        if length:
            if end_stream:
                raise ValueError("a body was announced and none comes")
            self._framing, self._send_left = COUNTED, length
            return b"content-length: %d\r\n" % length
        if length is None and not end_stream:
            self._framing = IN_CHUNKS
            return b"transfer-encoding: chunked\r\n"
        self._framing, self._send_left = COUNTED, 0
        return b"content-length: 0\r\n" if head.method in _WITH_CONTENT else b""

    def take(self) -> bytes:
        self._left_us = True
        return super().take()

    def shut_down(self) -> None:
        """Take no new request."""
        self._closing = True

    def reset(self, stream_id: int, code: int = _CANCEL) -> None:
        """Abort the exchange: the connection closes and an unfinished body stays unfinished."""
        if stream_id == self._stream_id and self._open:
            self._open = False
            self._sent = True
            self._die()

    # -- answers ------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Event]:
        """Bytes from the app -> events. Never raises for what they are."""
        events: list[Event] = []
        try:
            while data:
                data = _STEPS[self._mode](self, data, events)
        except (MalformedRequest, MalformedResponse) as error:
            self._refuse(f"{error.reason} {error.detail}".strip(), events)
        return events

    def receive_eof(self) -> list[Event]:
        """The app will send no more (FIN; with TLS after close_notify, S-6)."""
        mode = self._mode
        if mode == TUNNEL:
            return [DataReceived(self._stream_id, b"", True)]
        was_open, self._open = self._open, False
        self._die()
        if mode == UNTIL_EOF and was_open:
            return [DataReceived(self._stream_id, b"", True)]
        if not was_open:
            return [] if mode == DEAD else [ConnectionEnded()]
        if not self._left_us:  # nothing of the request was written: it may go elsewhere (S-32)
            return [StreamReset(self._stream_id, _REFUSED_STREAM, reason="upstream_closed")]
        return [StreamReset(self._stream_id, _INTERNAL_ERROR, reason="truncated")]

    def _refuse(self, fault: str, events: list[Event]) -> None:
        self.fault = fault
        self._open = False
        self._sent = True
        self._buffer.clear()
        self._die()
        reason = "upstream_protocol_error"
        events.append(StreamReset(self._stream_id, _PROTOCOL_ERROR, by_peer=False, reason=reason))

    def _on_head(self, data: bytes, events: list[Event]) -> bytes:
        if not self._left_us:
            raise MalformedResponse("an answer before its request", reason="bad_status_line")
        raw = self._buffer.add(data)
        if raw is None:
            return b""
        status, version, fields = self._heads.read_response(raw)
        self._heads.forget()  # llhttp would now wait for a body it frames its own way
        if status == 101:
            self._on_switch(version, fields, events)
            return self._buffer.rest
        head, chunked, persists = frame_response(
            status, fields, version=version, request_method=self._method, limits=self.limits
        )
        if status < 200:
            self._on_interim(head, events)
        else:
            self._on_final(head, chunked, persists, raw, events)
        return self._buffer.rest

    def _on_interim(self, head: ResponseHead, events: list[Event]) -> None:
        self._interim += 1
        if self._interim > self.limits.interim_answers:
            raise MalformedResponse(reason="too_many_interim_answers")
        events.append(InformationalReceived(self._stream_id, head.status, head.headers))

    def _on_final(
        self, head: ResponseHead, chunked: bool, persists: bool, raw: bytes, events: list[Event]
    ) -> None:
        # An app that answers before it has read the request may take the rest of it for the next one (S-13).
        self._persists = persists and self._sent and not self._out and not self._key
        bodiless = self._method == b"HEAD" or head.status in (204, 304) or head.length == 0
        events.append(ResponseReceived(self._stream_id, head, bodiless))
        if bodiless:
            self._message_received()
        else:
            self._expect_body(head.length, chunked=chunked, head=raw)

    def _on_switch(self, version: int, fields: Headers, events: list[Event]) -> None:
        """101 is believed only when it was asked for and proves that our handshake was read (RFC 6455 4.1)."""
        head, _, _ = frame_response(
            101, fields, version=version, request_method=self._method, limits=self.limits
        )
        values: dict[bytes, bytes] = {}
        for name, value in fields:
            values[name] = values[name] + b", " + value if name in values else value
        proof = base64.b64encode(hashlib.sha1(self._key + _GUID, usedforsecurity=False).digest())
        sound = (
            self._key
            and version == 11
            and values.get(b"upgrade", b"").lower() == b"websocket"
            and b"upgrade" in list_members(values.get(b"connection", b""))
            and values.get(b"sec-websocket-accept") == proof
        )
        if not sound:
            raise MalformedResponse("101", reason="bad_upgrade")
        head.upgrade = b"websocket"
        self._persists = False
        self._framing, self._sent = RAW, False
        self._mode = TUNNEL
        events.append(ResponseReceived(self._stream_id, head, False))

    def _on_tunnel(self, data: bytes, events: list[Event]) -> bytes:
        events.append(DataReceived(self._stream_id, data, False))
        return b""

    def _message_received(self) -> None:
        self._open = False
        self._mode = WAIT
        if not self._sent:
            self._sent = True  # the rest of the request is of no use to anybody
            self._persists = False
        if not self._persists:
            self._die()

    def _on_wait(self, data: bytes, events: list[Event]) -> bytes:
        """Bytes that answer nothing: what else they are meant for nobody should find out (S-13)."""
        self.fault = "bytes without a request"
        self._persists = False
        self._die()
        return b""


_VISIBLE: Final = bytes(range(0x21, 0x7F))

_STEPS: Final[tuple[Callable[[Any, bytes, list[Event]], bytes], ...]] = (
    Http1Client._on_head,
    Http1Client._on_length,
    Http1Client._on_chunks,
    Http1Client._on_until_eof,
    Http1Client._on_wait,
    Http1Client._on_wait,
    Http1Client._on_tunnel,
    Http1Client._on_dead,
)


def _key_of(headers: Headers) -> bytes:
    for name, value in headers:
        if name == b"sec-websocket-key":
            return value
    raise ValueError("an upgrade without sec-websocket-key")
