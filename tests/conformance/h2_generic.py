"""h2spec's group "generic": what any server must be able to do."""

from __future__ import annotations

from tests.conformance.h2_driver import ANSWERED, CLOSED, PONG, SETTLED, Case
from tests.support import h2_frames as h2
from tests.support.h2_frames import (
    GET,
    POST,
    block,
    continuation,
    data,
    headers,
    ping,
    priority,
    reset,
    settings,
    window,
)

_PING = ping(b"h2spec!!")
_PONG = f"{PONG} h2spec!!"
_BLOCK = block(GET)
_TRAILERS = [(b"x-test", b"ok")]
_HEAD = [(b":method", b"HEAD"), *GET[1:]]


def _literal(first: bytes, *rest: bytes) -> bytes:
    """A request whose last field is given in HPACK by hand."""
    return headers(1, block(GET) + first + b"".join(rest))


_UA = b"\x03ua1"  # a value
_NAME = b"\x06x-name"
_NAME_HUFFMAN = b"\x85\xf2\xb2\x4a\x84\xff"  # "x-test"
_VALUE_HUFFMAN = b"\x83\x49\x50\x9f"  # "test"

GENERIC = [
    Case("generic/1/1", "a client preface", [settings({4: 65535})], (SETTLED,)),
    Case("generic/2/1", "PRIORITY on an idle stream", [priority(1), _PING], (_PONG,)),
    Case(
        "generic/2/2",
        "WINDOW_UPDATE on a half-closed stream",
        [settings({4: 0}), headers(1), window(1, 1)],
        ("1 bytes",),
    ),
    Case(
        "generic/2/3",
        "PRIORITY on a half-closed stream",
        [settings({4: 0}), headers(1), priority(1), window(1, 1)],
        ("1 bytes",),
    ),
    Case("generic/2/4", "RST_STREAM on a half-closed stream", [headers(1), reset(1), _PING], (_PONG,), mute=True),
    Case("generic/2/5", "PRIORITY on a closed stream", [headers(1), priority(1), _PING], (_PONG,)),
    Case("generic/3.1/1", "a DATA frame", [headers(1, POST, end=False), data(1, b"test", end=True)], (ANSWERED,)),
    Case(
        "generic/3.1/2",
        "several DATA frames",
        [headers(1, POST, end=False), data(1, b"test"), data(1, b"test", end=True)],
        (ANSWERED,),
    ),
    Case(
        "generic/3.1/3",
        "a padded DATA frame",
        [headers(1, POST, end=False), data(1, b"test", end=True, padding=5)],
        (ANSWERED,),
    ),
    Case("generic/3.2/1", "a HEADERS frame", [headers(1)], (ANSWERED,)),
    Case("generic/3.2/2", "a padded HEADERS frame", [headers(1, pad_length=5)], (ANSWERED,)),
    Case("generic/3.2/3", "a HEADERS frame with priority", [headers(1, stream_weight=255)], (ANSWERED,)),
    Case("generic/3.3/1", "PRIORITY 1", [priority(1, weight=0), headers(1)], (ANSWERED,)),
    Case("generic/3.3/2", "PRIORITY 256", [priority(1, weight=255), headers(1)], (ANSWERED,)),
    Case("generic/3.3/3", "PRIORITY with a dependency", [priority(3, depends_on=1), headers(1)], (ANSWERED,)),
    Case("generic/3.3/4", "PRIORITY, exclusive", [priority(1, exclusive=True), headers(1)], (ANSWERED,)),
    Case("generic/3.3/5", "PRIORITY on idle, HEADERS on a lower stream", [priority(3), headers(1)], (ANSWERED,)),
    Case("generic/3.4/1", "RST_STREAM", [headers(1), reset(1), _PING], (_PONG,), mute=True),
    Case("generic/3.5/1", "SETTINGS", [settings({3: 100, 4: 65535, 5: 16384})], (SETTLED,)),
    Case("generic/3.7/1", "PING", [_PING], (_PONG,)),
    Case("generic/3.8/1", "GOAWAY", [h2.goaway(0, 0), _PING], (_PONG, CLOSED)),
    Case("generic/3.9/1", "WINDOW_UPDATE on stream 0", [window(0, 1), _PING], (_PONG,)),
    Case(
        "generic/3.9/2",
        "WINDOW_UPDATE on stream 1",
        [headers(1, POST, end=False), window(1, 1), data(1, b"", end=True)],
        (ANSWERED,),
    ),
    Case(
        "generic/3.10/1",
        "CONTINUATION",
        [headers(1, _BLOCK[:5], done=False), continuation(1, _BLOCK[5:])],
        (ANSWERED,),
    ),
    Case(
        "generic/3.10/2",
        "several CONTINUATION frames",
        [headers(1, _BLOCK[:5], done=False), continuation(1, _BLOCK[5:10], done=False), continuation(1, _BLOCK[10:])],
        (ANSWERED,),
    ),
    Case("generic/4/1", "GET", [headers(1)], (ANSWERED,)),
    Case("generic/4/2", "HEAD", [headers(1, _HEAD)], (ANSWERED,)),
    Case("generic/4/3", "POST", [headers(1, POST, end=False), data(1, b"test", end=True)], (ANSWERED,)),
    Case(
        "generic/4/4",
        "POST with trailers",
        [headers(1, [*POST, (b"trailer", b"x-test")], end=False), data(1, b"test"), headers(1, _TRAILERS)],
        (ANSWERED,),
    ),
    Case("generic/5/1", "an indexed field", [_literal(b"\x90")], (ANSWERED,)),
    Case("generic/5/2", "literal, indexing, indexed name", [_literal(b"\x7a", _UA)], (ANSWERED,)),
    Case("generic/5/3", "the same, Huffman", [_literal(b"\x7a", _VALUE_HUFFMAN)], (ANSWERED,)),
    Case("generic/5/4", "literal, indexing, new name", [_literal(b"\x40", _NAME, _UA)], (ANSWERED,)),
    Case("generic/5/5", "the same, Huffman", [_literal(b"\x40", _NAME_HUFFMAN, _VALUE_HUFFMAN)], (ANSWERED,)),
    Case("generic/5/6", "literal, no indexing, indexed name", [_literal(b"\x0f\x2b", _UA)], (ANSWERED,)),
    Case("generic/5/7", "the same, Huffman", [_literal(b"\x0f\x2b", _VALUE_HUFFMAN)], (ANSWERED,)),
    Case("generic/5/8", "literal, no indexing, new name", [_literal(b"\x00", _NAME, _UA)], (ANSWERED,)),
    Case("generic/5/9", "the same, Huffman", [_literal(b"\x00", _NAME_HUFFMAN, _VALUE_HUFFMAN)], (ANSWERED,)),
    Case("generic/5/10", "never indexed, indexed name", [_literal(b"\x1f\x2b", _UA)], (ANSWERED,)),
    Case("generic/5/11", "the same, Huffman", [_literal(b"\x1f\x2b", _VALUE_HUFFMAN)], (ANSWERED,)),
    Case("generic/5/12", "never indexed, new name", [_literal(b"\x10", _NAME, _UA)], (ANSWERED,)),
    Case("generic/5/13", "the same, Huffman", [_literal(b"\x10", _NAME_HUFFMAN, _VALUE_HUFFMAN)], (ANSWERED,)),
    Case("generic/5/14", "a dynamic table size update", [headers(1, b"\x21" + _BLOCK)], (ANSWERED,)),
    Case("generic/5/15", "several dynamic table size updates", [headers(1, b"\x21\x30" + _BLOCK)], (ANSWERED,)),
]
