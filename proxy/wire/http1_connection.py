"""What both ends of an HTTP/1.1 connection do alike: write heads and bodies, and read bodies. Pure.

Reading is a small state machine. ``_mode`` says what the next byte is; each mode has one method that takes
bytes, appends events and returns the bytes it left over:

    HEAD ----head----> LENGTH | CHUNKED | UNTIL_EOF ----body's end----> (the role decides: HEAD again, WAIT)
    HEAD --101 sent or received--> TUNNEL          anything --error, close--> DEAD (nothing is read any more)

Writing: bytes are collected in ``_out`` and leave with ``take``. A body is written with the framing its head
announced, and it is counted: a body that ends early or goes on too long closes the connection instead of
ever looking complete. Everything written passes ``render_fields``, which raises on bytes that would not
be one field (S-19, defence in depth: what comes here was validated when it was read).
"""

from __future__ import annotations

from typing import Final, NoReturn

from proxy.errors import MalformedRequest
from proxy.wire.chunked import ChunkedReader
from proxy.wire.events import DataReceived, Event, Headers, TrailersReceived
from proxy.wire.http1_heads import HEAD_BYTES, HeadBuffer, HeadReader
from proxy.wire.limits import WireLimits
from proxy.wire.names import FRAMING_HEADERS

HEAD, LENGTH, CHUNKED, UNTIL_EOF, WAIT, HELD, TUNNEL, DEAD = range(8)

# How our body is framed.
NO_BODY, COUNTED, IN_CHUNKS, TO_EOF, RAW = range(5)

_NAME_BYTES: Final = (
    b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"  # lower case, so that names compare as bytes
)
_OURS_TO_WRITE: Final = FRAMING_HEADERS | {b"connection", b"host", b"te", b"upgrade"}


def _refuse_write(what: str) -> NoReturn:
    raise ValueError(f"not writable as HTTP/1.1: {what}")


def render_fields(headers: Headers) -> bytes:
    """Field list -> lines, each with its CRLF. ValueError for what would not be exactly these fields (S-19)."""
    if not headers:
        return b""
    names = [name for name, _ in headers]
    if b"" in names or b"".join(names).translate(None, _NAME_BYTES):
        _refuse_write("field name")
    if not _OURS_TO_WRITE.isdisjoint(names):
        _refuse_write("framing field")
    lines = b"\r\n".join([name + b": " + value for name, value in headers]) + b"\r\n"
    ends = lines.count(b"\n")
    if ends != len(names) or lines.count(b"\r") != ends or lines.translate(None, HEAD_BYTES):
        _refuse_write("field value")
    return lines


class Http1Connection:
    """State of one connection; ``Http1Server`` and ``Http1Client`` add their role."""

    version = 11

    def __init__(self, limits: WireLimits, *, requests: bool) -> None:
        self.limits = limits
        self.now = 0.0  # set by the owner; HTTP/1.1 has no limit that depends on it
        self.must_close = False
        self.half_close = False
        self.body_limit = limits.body  # L-6: of the request being read, 0 = none; the owner may change it
        self._mode = HEAD
        self._stream_id = 0
        self._open = False
        self._closing = False
        self._left = 0
        self._body_size = 0
        self._heads = HeadReader(limits, requests=requests)
        self._buffer = HeadBuffer(limits, requests=requests)
        self._chunks = ChunkedReader(limits)
        self._framing = NO_BODY
        self._send_left = 0
        self._sent = True  # our message of this exchange is complete
        self._out: list[bytes] = []
        self._out_size = 0

    # -- what an owner asks -------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """No exchange is open and none has begun to arrive."""
        return not self._open and not self.mid_head

    @property
    def mid_head(self) -> bool:
        """A head has begun and not ended (T-2)."""
        return self._mode == HEAD and len(self._buffer) > 0

    @property
    def open_streams(self) -> int:
        return int(self._open)

    def queued(self, stream_id: int) -> int:
        """Body bytes not yet taken."""
        return self._out_size

    def start(self) -> None:
        """HTTP/1.1 has no preface."""

    def acknowledge(self, stream_id: int, n: int) -> None:
        """HTTP/1.1 has no windows: the owner stops reading the socket instead."""

    def finish(self) -> None:
        """Second step of a graceful end: nothing beyond the first."""

    def ping(self) -> None:
        """HTTP/1.1 has no PING."""

    def take(self) -> bytes:
        """Everything to write now."""
        out = self._out
        if not out:
            return b""
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        self._out_size = 0
        return data

    def fail(self, code: int, reason: str) -> None:
        """End the connection once what was written has left."""
        self._die()

    def _die(self) -> None:
        self._mode = DEAD
        self.must_close = True

    # -- writing ------------------------------------------------------------------------------------------

    def send_data(self, stream_id: int, data: bytes, end_stream: bool) -> None:
        """Write body bytes of the open exchange; ``end_stream`` with the last."""
        if stream_id != self._stream_id or self._sent:
            return  # the exchange ended meanwhile; there is nobody to tell
        if data:
            self._write_body(data)
        if end_stream:
            self._end_body(b"0\r\n\r\n")

    def _write_body(self, data: bytes) -> None:
        framing = self._framing
        if framing == NO_BODY:
            return
        size = len(data)
        self._out_size += size
        if framing == IN_CHUNKS:
            self._out += (b"%x\r\n" % size, data, b"\r\n")
            return
        if framing == COUNTED:
            self._send_left -= size
            if self._send_left < 0:
                self._out_size -= size
                self._cut()
                return
        self._out.append(data)

    def _cut(self) -> None:
        """The body does not fit its announced length: never let it look complete."""
        self._sent = True
        self._die()

    def send_trailers(self, stream_id: int, headers: Headers) -> None:
        """End the body; trailers are written when it is chunked, else dropped (RFC 9110 6.5)."""
        if stream_id == self._stream_id and not self._sent:
            self._end_body(b"0\r\n" + render_fields(headers) + b"\r\n")

    def _end_body(self, last_chunk: bytes) -> None:
        framing = self._framing
        if framing == COUNTED and self._send_left:
            self._cut()
            return
        if framing == IN_CHUNKS:
            self._out.append(last_chunk)
        elif framing == RAW:
            self.half_close = True
        elif framing == TO_EOF:
            self._closing = True
        self._sent = True
        self._message_sent()

    def _message_sent(self) -> None:
        """Our message is complete. For the role to say what follows."""

    # -- reading bodies -----------------------------------------------------------------------------------

    def _expect_body(self, length: int | None, *, chunked: bool, head: bytes) -> None:
        """The next bytes are a body: ``length`` of them, chunked, or all until the end of the connection."""
        self._body_size = 0
        if chunked:
            self._mode = CHUNKED
            self._chunks = ChunkedReader(self.limits, fields=head.count(b"\n") - 2, size=len(head))
        elif length is None:
            self._mode = UNTIL_EOF
        else:
            self._mode = LENGTH
            self._left = length

    def _on_length(self, data: bytes, events: list[Event]) -> bytes:
        size = len(data)
        left = self._left
        if size < left:
            self._left = left - size
            self._count_body(size)
            events.append(DataReceived(self._stream_id, data, False))
            return b""
        rest = b""
        if size > left:
            data, rest = data[:left], data[left:]
        self._count_body(left)
        events.append(DataReceived(self._stream_id, data, True))
        self._message_received()
        return rest

    def _on_chunks(self, data: bytes, events: list[Event]) -> bytes:
        chunks = self._chunks
        pieces: list[bytes] = []
        ended = False
        try:
            ended = chunks.feed(data, pieces)
        finally:
            body = b"".join(pieces)  # many small chunks are one event; one large chunk is not copied
            plain_end = ended and not chunks.trailers
            if body or plain_end:
                self._count_body(len(body))
                events.append(DataReceived(self._stream_id, body, plain_end))
        if not ended:
            return b""
        if chunks.trailers:
            events.append(TrailersReceived(self._stream_id, chunks.trailers))
        self._message_received()
        return chunks.rest

    def _on_until_eof(self, data: bytes, events: list[Event]) -> bytes:
        events.append(DataReceived(self._stream_id, data, False))
        return b""

    def _on_dead(self, data: bytes, events: list[Event]) -> bytes:
        return b""

    def _count_body(self, size: int) -> None:
        self._body_size += size
        if self.body_limit and self._body_size > self.body_limit:
            raise MalformedRequest(reason="body_too_large")

    def _message_received(self) -> None:
        """The peer's message is complete. For the role to say what follows."""
        raise NotImplementedError
