"""HTTP/2 frames by hand, for conversations with an engine: hyperframe writes and reads them, hpack the fields."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hpack import Decoder, Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
Fields = list[tuple[bytes, bytes]]
GET: Fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b":authority", b"api.shop")]
POST: Fields = [(b":method", b"POST"), *GET[1:]]
OK: Fields = [(b":status", b"200")]


def block(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A field block that uses no dynamic table, so that blocks may come in any order."""
    encoder = Encoder()
    encoder.header_table_size = 0
    encoded = encoder.encode(list(fields), huffman=False)
    return encoded.removeprefix(b"\x20")  # the table size update that the line above asked for


def raw(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Any frame, legal or not."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def headers(
    stream_id: int, fields: Fields | bytes = GET, *, end: bool = True, done: bool = True, **more: Any
) -> bytes:
    frame = HeadersFrame(stream_id, fields if isinstance(fields, bytes) else block(fields))
    for name, on in (("END_STREAM", end), ("END_HEADERS", done)):
        if on:
            frame.flags.add(name)
    for name, value in more.items():
        setattr(frame, name, value)
    if "pad_length" in more:
        frame.flags.add("PADDED")
    if "stream_weight" in more:
        frame.flags.add("PRIORITY")
    return frame.serialize()


def continuation(stream_id: int, fields: Fields | bytes, *, done: bool = True) -> bytes:
    frame = ContinuationFrame(stream_id, fields if isinstance(fields, bytes) else block(fields))
    if done:
        frame.flags.add("END_HEADERS")
    return frame.serialize()


def data(stream_id: int, payload: bytes, *, end: bool = False, padding: int | None = None) -> bytes:
    frame = DataFrame(stream_id, payload)
    if end:
        frame.flags.add("END_STREAM")
    if padding is not None:
        frame.flags.add("PADDED")
        frame.pad_length = padding
    return frame.serialize()


def settings(values: dict[int, int] | None = None, *, ack: bool = False) -> bytes:
    frame = SettingsFrame(0, values or {})
    if ack:
        frame.flags.add("ACK")
    return frame.serialize()


def ping(payload: bytes = b"12345678", *, ack: bool = False) -> bytes:
    frame = PingFrame(0, payload)
    if ack:
        frame.flags.add("ACK")
    return frame.serialize()


def reset(stream_id: int, code: int = 8) -> bytes:
    return raw(3, 0, stream_id, code.to_bytes(4, "big"))


def window(stream_id: int, increment: int) -> bytes:
    return raw(8, 0, stream_id, increment.to_bytes(4, "big"))


def goaway(last: int = 0, code: int = 0, *, stream_id: int = 0) -> bytes:
    return raw(7, 0, stream_id, last.to_bytes(4, "big") + code.to_bytes(4, "big"))


def priority(stream_id: int, *, depends_on: int = 0, weight: int = 15, exclusive: bool = False) -> bytes:
    return raw(2, 0, stream_id, (depends_on | exclusive << 31).to_bytes(4, "big") + bytes((weight,)))


HELLO = PREFACE + settings()  # how a client begins
SERVER_HELLO = settings()


class Reader:
    """Reads what an engine wrote. ``frames`` holds everything so far; field blocks are decoded in order."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.fields: dict[int, list[Fields]] = {}
        self._decoder = Decoder()

    def feed(self, written: bytes) -> list[Frame]:
        written = written.removeprefix(PREFACE)
        new = []
        while written:
            frame, length = Frame.parse_frame_header(memoryview(written[:9]))
            frame.parse_body(memoryview(written[9 : 9 + length]))
            written = written[9 + length :]
            if isinstance(frame, HeadersFrame):
                decoded = [(bytes(n), bytes(v)) for n, v in self._decoder.decode(bytes(frame.data), raw=True)]
                self.fields.setdefault(frame.stream_id, []).append(decoded)
            new.append(frame)
        self.frames += new
        return new

    def resets(self, stream_id: int) -> list[int]:
        """Codes of RST_STREAM on one stream."""
        return [f.error_code for f in self.frames if isinstance(f, RstStreamFrame) and f.stream_id == stream_id]

    def goaways(self) -> list[int]:
        return [f.error_code for f in self.frames if isinstance(f, GoAwayFrame)]

    def body(self, stream_id: int) -> bytes:
        return b"".join(f.data for f in self.frames if isinstance(f, DataFrame) and f.stream_id == stream_id)

    def window_given(self, stream_id: int) -> int:
        """The sum of WINDOW_UPDATE increments."""
        return sum(
            f.window_increment for f in self.frames if isinstance(f, WindowUpdateFrame) and f.stream_id == stream_id
        )
