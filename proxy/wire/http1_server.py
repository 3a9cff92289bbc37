"""The server's end of an HTTP/1.1 connection: requests in, answers out. Pure.

One exchange at a time. A request that was pipelined behind another waits unread in ``_waiting`` until the answer
before it is written and the owner calls ``resume``; so what is judged, and what it is judged by, are never
those of another request. Bytes are dropped, not read, after an error, after a message that closes the
connection, and after a refused upgrade (2.3).

    request:   HEAD -> [body] -> WAIT -> (answer complete, resume) -> HEAD
    upgrade:   HEAD -> HELD -> (101 sent) -> TUNNEL, or (any other answer) -> DEAD
    answer:    nothing -> [1xx]* -> head -> [body] -> complete

The connection persists when both messages were complete in their own framing and neither side said close.
HTTP/1.0 is served, and closed.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from proxy.errors import MalformedRequest
from proxy.wire.events import (
    ConnectionEnded,
    DataReceived,
    Event,
    Headers,
    RequestHead,
    RequestReceived,
    RequestRefused,
    StreamReset,
)
from proxy.wire.http1_connection import (
    CHUNKED,
    COUNTED,
    DEAD,
    HEAD,
    HELD,
    IN_CHUNKS,
    LENGTH,
    NO_BODY,
    RAW,
    TO_EOF,
    TUNNEL,
    WAIT,
    Http1Connection,
    render_fields,
)
from proxy.wire.limits import WireLimits
from proxy.wire.validate import check_request

_PHRASES: Final = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}
STATUS_LINES: Final = {
    status: b"HTTP/1.1 %d %b\r\n" % (status, _PHRASES.get(status, b"")) for status in range(100, 600)
}
_SWITCH: Final = b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"
_MOST_WAITING: Final = 64 * 1024  # pipelined bytes after which the owner should stop reading (L-7)
_MOST_HELD: Final = 16 * 1024  # S-30
_CANCEL: Final = 0x8  # RFC 9113 7: the word for "the caller needs it no more", used for HTTP/1.1 as well


class Http1Server(Http1Connection):
    """See the module's text. ``scheme`` is what the listener speaks, b"https" behind mTLS or b"http"."""

    def __init__(self, limits: WireLimits, *, scheme: bytes = b"http") -> None:
        super().__init__(limits, requests=True)
        self._scheme = scheme
        self._waiting: list[bytes] = []
        self._waiting_size = 0
        self._head: RequestHead | None = None
        self._without_body = False  # the answer is to HEAD
        self._answered = False
        self._continued = False
        self._ended = False  # the caller will send no more

    # -- bytes in -----------------------------------------------------------------------------------------

    @property
    def wants_read(self) -> bool:
        """False while so much is waiting behind the open exchange that more should stay in the kernel."""
        return self._waiting_size < _MOST_WAITING

    def receive(self, data: bytes) -> list[Event]:
        """Bytes from the caller -> events. Never raises for what they are."""
        events: list[Event] = []
        try:
            while data:
                data = _STEPS[self._mode](self, data, events)
        except MalformedRequest as error:
            self._refuse(error, events)
        return events

    def resume(self) -> list[Event]:
        """After an answer: read what was pipelined meanwhile. After 101: the tunnel's first bytes."""
        if self._mode not in (HEAD, TUNNEL):
            return []
        data = b"".join(self._waiting)
        self._forget_waiting()
        events = self.receive(data)
        if self._ended and self._mode == TUNNEL:
            events.append(DataReceived(self._stream_id, b"", True))
            self._ended = False
        return events

    def receive_eof(self) -> list[Event]:
        """The caller will send no more (FIN; with TLS after close_notify, S-6)."""
        mode, self._ended = self._mode, True
        if mode == TUNNEL:
            self._ended = False
            return [DataReceived(self._stream_id, b"", True)]
        if mode in (WAIT, HELD):
            self._closing = True  # a complete request still gets its answer (F-4)
            return []
        truncated = self.mid_head
        self._die()
        if mode in (LENGTH, CHUNKED):
            return [StreamReset(self._stream_id, _CANCEL, by_peer=True, reason="truncated")]
        return [] if mode == DEAD else [ConnectionEnded("truncated" if truncated else "")]

    def _on_head(self, data: bytes, events: list[Event]) -> bytes:
        raw = self._buffer.add(data)
        if raw is None:
            return b""
        self._without_body = raw.startswith(b"HEAD ")
        method, target, version, fields = self._heads.read_request(raw)
        head = check_request(method, self._scheme, b"", target, fields, version=version, limits=self.limits)
        self._stream_id += 1
        self._open = True
        self._sent = self._answered = self._continued = False
        self._head = head
        self.body_limit = self.limits.body
        if not head.keep_alive:
            self._closing = True
        if head.length == 0:
            self._request_without_body(head)
        else:
            self._heads.forget()
            self._expect_body(head.length, chunked=head.length is None, head=raw)
        events.append(RequestReceived(self._stream_id, head, head.length == 0))
        return self._buffer.rest

    def _request_without_body(self, head: RequestHead) -> None:
        self._mode = WAIT
        if head.upgrade is not None:
            self._mode = HELD
        if self._closing or head.upgrade is not None:
            self._heads.forget()

    def _message_received(self) -> None:
        self._mode = WAIT

    def _on_wait(self, data: bytes, events: list[Event]) -> bytes:
        if not self._closing:
            self._waiting.append(data)
            self._waiting_size += len(data)
        return b""

    def _on_held(self, data: bytes, events: list[Event]) -> bytes:
        self._waiting.append(data)
        self._waiting_size += len(data)
        if self._waiting_size > _MOST_HELD:
            raise MalformedRequest("bytes before the upgrade was accepted", reason="bad_upgrade")
        return b""

    def _on_tunnel(self, data: bytes, events: list[Event]) -> bytes:
        events.append(DataReceived(self._stream_id, data, False))
        return b""

    def _refuse(self, error: MalformedRequest, events: list[Event]) -> None:
        opened = self._open
        if not opened:
            self._stream_id += 1
            self._open = True
            self._sent = self._answered = False
            self._head = None
        self._mode = DEAD
        self._closing = True
        self._forget_waiting()
        self._buffer.clear()
        self._heads.forget()
        events.append(RequestRefused(self._stream_id, error.reason, error.detail, opened))

    def _forget_waiting(self) -> None:
        self._waiting.clear()
        self._waiting_size = 0

    # -- answers ------------------------------------------------------------------------------------------

    def send_informational(self, stream_id: int, status: int, headers: Headers) -> None:
        """Write a 1xx answer; HTTP/1.0 callers do not know them (RFC 9110 15.2)."""
        head = self._head
        if stream_id != self._stream_id or self._answered or head is None or head.version == 10:
            return
        if not 100 <= status < 200 or status == 101:
            raise ValueError(f"not an interim status: {status}")
        self._continued = self._continued or status == 100
        self._out.append(STATUS_LINES[status] + render_fields(headers) + b"\r\n")

    def send_response(
        self, stream_id: int, status: int, headers: Headers, *, length: int | None, end_stream: bool
    ) -> None:
        """Write the final answer's head with the framing of its body.

        ValueError for what HTTP/1.1 cannot say (S-19). An idle connection may be answered too (408): with the
        id the next request would have had.
        """
        if not self._open and stream_id == self._stream_id + 1 and self._mode != DEAD:
            self._open_for_answer()
        if stream_id != self._stream_id or self._answered or self.must_close:
            return
        fields = render_fields(headers)
        if status == 101:
            self._switch(fields)
            return
        if not 200 <= status < 600:
            raise ValueError(f"not a final status: {status}")
        if not self._closing:
            self._decide_closing(end_stream)
        framing = self._frame(status, length, end_stream)
        close = b"connection: close\r\n\r\n" if self._closing else b"\r\n"
        self._out.append(STATUS_LINES[status] + fields + framing + close)
        self._answered = True
        if end_stream:
            self._end_body(b"0\r\n\r\n")

    def _open_for_answer(self) -> None:
        self._stream_id += 1
        self._open = self._closing = True
        self._sent = self._answered = False
        self._mode = DEAD
        self._head = None
        self._without_body = False

    def _decide_closing(self, end_stream: bool) -> None:
        """S-14, S-30: an answer that does not wait for its request's end leaves bytes nobody may interpret."""
        unread = self._mode != WAIT
        head = self._head
        waits = head is not None and head.expects_continue and not self._continued
        self._closing = unread and (end_stream or waits or self._mode == HELD)

    def _frame(self, status: int, length: int | None, end_stream: bool) -> bytes:
        """Choose how the body is framed -> the field that says so."""
        if status == 204:
            self._framing = NO_BODY
            return b""
        if self._without_body or status == 304:
            self._framing = NO_BODY
            return b"" if length is None else b"content-length: %d\r\n" % length
        if length is None and end_stream:
            length = 0
        if length is not None:
            self._framing, self._send_left = COUNTED, length
            return b"content-length: %d\r\n" % length
        if self._head is not None and self._head.version == 10:
            self._framing, self._closing = TO_EOF, True
            return b""
        self._framing = IN_CHUNKS
        return b"transfer-encoding: chunked\r\n"

    def _switch(self, fields: bytes) -> None:
        if self._mode != HELD:
            raise ValueError("101 without an upgrade request")
        self._out.append(STATUS_LINES[101] + fields + _SWITCH)
        self._answered = True
        self._framing = RAW
        self._mode = TUNNEL

    def _message_sent(self) -> None:
        if self._framing != RAW:
            self._after_answer()

    def _after_answer(self) -> None:
        """The answer is complete: on to the next request if this one is complete too, else the end."""
        self._open = False
        if self._closing or self._mode != WAIT:
            self._forget_waiting()
            self._die()
        else:
            self._mode = HEAD

    def reset(self, stream_id: int, code: int = _CANCEL) -> None:
        """Abort the exchange: the connection closes and an unfinished body stays unfinished."""
        if stream_id == self._stream_id and self._open:
            self._open = False
            self._sent = True
            self._die()

    def shut_down(self) -> None:
        """The next answer says that it is the last."""
        self._closing = True


_STEPS: Final[tuple[Callable[[Any, bytes, list[Event]], bytes], ...]] = (
    Http1Server._on_head,
    Http1Server._on_length,
    Http1Server._on_chunks,
    Http1Server._on_until_eof,
    Http1Server._on_wait,
    Http1Server._on_held,
    Http1Server._on_tunnel,
    Http1Server._on_dead,
)
