"""h2spec's group "http2", re-stated by RFC 9113 (which differs from RFC 7540 mainly in ignoring priority)."""

from __future__ import annotations

from tests.conformance.h2_driver import ANSWERED, CLOSED, IGNORED, PONG, SETTLED, Case, goaway, rst
from tests.support import h2_frames as h2
from tests.support.h2_frames import (
    GET,
    POST,
    Fields,
    block,
    continuation,
    data,
    headers,
    ping,
    priority,
    raw,
    reset,
    settings,
    window,
)

_PING = ping(b"h2spec!!")
_PONG = f"{PONG} h2spec!!"
PROTOCOL, FLOW, CLOSED_STREAM, SIZE, REFUSED, COMPRESSION = 1, 3, 5, 6, 7, 9
_PROTOCOL = (goaway(PROTOCOL),)
_SIZE = (goaway(SIZE),)
_FLOW = (goaway(FLOW),)
_ON_STREAM = (rst(PROTOCOL),)
_CLOSED = (rst(CLOSED_STREAM), goaway(CLOSED_STREAM))  # RFC 9113 5.1 allows both where h2spec names one
_EXTRA = [(b"x-dummy0", b"x" * 20)]
_OPEN = headers(1, POST, end=False)
_BLOCK = block(GET)


def _fields(name: str, title: str, fields: Fields) -> Case:
    """A malformed request (8.1.1): an error of its stream."""
    return Case(f"http2/{name}", title, [headers(1, fields)], _ON_STREAM)


def _without(place: int) -> Fields:
    return [field for at, field in enumerate(GET) if at != place]


PREFACES = [
    Case("http2/3.5/1", "a client preface is answered with SETTINGS", [h2.HELLO], (SETTLED,), hello=b""),
    Case("http2/3.5/2", "an invalid preface", [b"INVALID CONNECTION PREFACE\r\n\r\n"], _PROTOCOL, hello=b""),
]

FRAMES = [
    Case("http2/4.1/1", "a frame of unknown type", [raw(0x16, 0, 0, bytes(8)), _PING], (_PONG,)),
    Case("http2/4.1/2", "a frame with undefined flags", [raw(6, 0x16, 0, b"h2spec!!")], (_PONG,)),
    Case("http2/4.1/3", "a frame with the reserved bit", [raw(6, 0x16, 1 << 31, b"h2spec!!")], (_PONG,)),
    Case("http2/4.2/1", "DATA of 2^14 bytes", [_OPEN, data(1, bytes(16384), end=True)], (ANSWERED,)),
    Case("http2/4.2/2", "DATA longer than announced", [_OPEN, raw(0, 1, 1, bytes(16385))], (goaway(SIZE), rst(SIZE))),
    Case("http2/4.2/3", "HEADERS longer than announced", [raw(1, 5, 1, _BLOCK + bytes(16385))], _SIZE),
    Case("http2/4.3/1", "an invalid field block", [raw(1, 5, 1, b"\x40")], (goaway(COMPRESSION),)),
    Case(
        "http2/4.3/2",
        "PRIORITY between the parts of a block",
        [headers(1, done=False), priority(1), continuation(1, _EXTRA)],
        _PROTOCOL,
    ),
    Case(
        "http2/4.3/3",
        "HEADERS of another stream between the parts of a block",
        [headers(1, done=False), headers(3), continuation(1, _EXTRA)],
        _PROTOCOL,
    ),
]

STATES = [
    Case("http2/5.1/1", "idle: DATA", [data(1, b"test", end=True)], _PROTOCOL),
    Case("http2/5.1/2", "idle: RST_STREAM", [reset(1)], _PROTOCOL),
    Case("http2/5.1/3", "idle: WINDOW_UPDATE", [window(1, 100)], _PROTOCOL),
    Case("http2/5.1/4", "idle: CONTINUATION", [continuation(1, GET)], _PROTOCOL),
    Case("http2/5.1/5", "half closed: DATA", [headers(1), data(1, b"test", end=True)], _CLOSED, mute=True),
    Case("http2/5.1/6", "half closed: HEADERS", [headers(1), headers(1)], _CLOSED, mute=True),
    Case("http2/5.1/7", "half closed: CONTINUATION", [headers(1), continuation(1, GET)], _PROTOCOL, mute=True),
    Case("http2/5.1/8", "closed by reset: DATA", [_OPEN, reset(1), data(1, b"test", end=True)], _CLOSED),
    Case("http2/5.1/9", "closed by reset: HEADERS", [_OPEN, reset(1), headers(1)], _CLOSED),
    Case("http2/5.1/10", "closed by reset: CONTINUATION", [_OPEN, reset(1), continuation(1, _EXTRA)], _PROTOCOL),
    Case("http2/5.1/11", "closed: DATA", [headers(1), data(1, b"test", end=True)], _CLOSED),
    Case("http2/5.1/12", "closed: HEADERS", [headers(1), headers(1)], _CLOSED),
    Case("http2/5.1/13", "closed: CONTINUATION", [headers(1), continuation(1, _EXTRA)], _PROTOCOL),
    Case("http2/5.1.1/1", "an even stream", [headers(2)], _PROTOCOL),
    Case("http2/5.1.1/2", "a stream below an earlier one", [headers(5), headers(3)], _PROTOCOL, stream=3),
    Case(
        "http2/5.1.2/1",
        "one stream too many",
        [settings({4: 0}), *[headers(1 + 2 * number) for number in range(101)]],
        (rst(PROTOCOL), rst(REFUSED)),
        stream=201,
        mute=True,
    ),
    # RFC 9113 5.3.1 deprecates priority: what depended on itself was an error in RFC 7540 and may be ignored now.
    Case(
        "http2/5.3.1/1",
        "HEADERS that depend on themselves",
        [headers(1, stream_weight=255, depends_on=1)],
        (rst(PROTOCOL), goaway(PROTOCOL), ANSWERED),
    ),
    Case(
        "http2/5.3.1/2",
        "PRIORITY that depends on itself",
        [priority(1, depends_on=1)],
        (rst(PROTOCOL), goaway(PROTOCOL), IGNORED),
    ),
    Case("http2/5.4.1/1", "an invalid PING closes the connection", [raw(6, 0, 3, bytes(8))], _PROTOCOL),
    Case("http2/5.4.1/2", "and GOAWAY says why", [raw(6, 0, 3, bytes(8))], _PROTOCOL),
    Case("http2/5.5/1", "an extension frame", [raw(0x16, 0, 0, bytes(8)), _PING], (_PONG,)),
    Case("http2/5.5/2", "an extension frame in a field block", [headers(1, done=False), raw(0x16, 0, 0)], _PROTOCOL),
]

DEFINITIONS = [
    Case("http2/6.1/1", "DATA on stream 0", [raw(0, 1, 0, b"test")], _PROTOCOL),
    Case("http2/6.1/2", "DATA after the end", [headers(1, POST), data(1, b"test", end=True)], _CLOSED, mute=True),
    Case(
        "http2/6.1/3",
        "DATA with more padding than bytes",
        [headers(1, [*POST, (b"content-length", b"4")], end=False), raw(0, 9, 1, b"\x06Test")],
        _PROTOCOL,
    ),
    Case("http2/6.2/1", "HEADERS unfinished, then PRIORITY", [headers(1, done=False), priority(1)], _PROTOCOL),
    Case("http2/6.2/2", "HEADERS unfinished, then another's", [headers(1, done=False), headers(3)], _PROTOCOL),
    Case("http2/6.2/3", "HEADERS on stream 0", [raw(1, 5, 0, _BLOCK)], _PROTOCOL),
    Case(
        "http2/6.2/4",
        "HEADERS with more padding than bytes",
        [raw(1, 0xD, 1, bytes((len(_BLOCK) + 2,)) + _BLOCK)],
        _PROTOCOL,
    ),
    Case("http2/6.3/1", "PRIORITY on stream 0", [priority(0)], _PROTOCOL),
    Case("http2/6.3/2", "PRIORITY of 4 bytes", [_OPEN, raw(2, 0, 1, bytes(4))], (rst(SIZE), goaway(SIZE))),
    Case("http2/6.4/1", "RST_STREAM on stream 0", [reset(0)], _PROTOCOL),
    Case("http2/6.4/2", "RST_STREAM on an idle stream", [reset(1)], _PROTOCOL),
    Case("http2/6.4/3", "RST_STREAM of 3 bytes", [headers(1), raw(3, 0, 1, bytes(3))], _SIZE, mute=True),
    Case("http2/6.5/1", "a SETTINGS acknowledgement with bytes", [raw(4, 1, 0, b"\0")], _SIZE),
    Case("http2/6.5/2", "SETTINGS on a stream", [raw(4, 0, 1, b"\0\x03\0\0\0\x64")], _PROTOCOL),
    Case("http2/6.5/3", "SETTINGS of 3 bytes", [raw(4, 0, 0, b"\0\x03\0")], (goaway(SIZE), goaway(PROTOCOL))),
    Case("http2/6.5.2/1", "ENABLE_PUSH of 2", [raw(4, 0, 0, b"\0\x02\0\0\0\x02")], _PROTOCOL),
    Case("http2/6.5.2/2", "INITIAL_WINDOW_SIZE above 2^31-1", [raw(4, 0, 0, b"\0\x04\x80\0\0\0")], _FLOW),
    Case("http2/6.5.2/3", "MAX_FRAME_SIZE below 2^14", [raw(4, 0, 0, b"\0\x05\0\0\x3f\xff")], _PROTOCOL),
    Case("http2/6.5.2/4", "MAX_FRAME_SIZE above 2^24-1", [raw(4, 0, 0, b"\0\x05\x01\0\0\0")], _PROTOCOL),
    Case("http2/6.5.2/5", "an unknown setting", [raw(4, 0, 0, b"\0\xff\0\0\0\x01"), _PING], (_PONG,)),
    Case(
        "http2/6.5.3/1",
        "the last of two values counts",
        [raw(4, 0, 0, b"\0\x04\0\0\0\x64\0\x04\0\0\0\x01"), headers(1)],
        ("1 bytes",),
    ),
    Case("http2/6.5.3/2", "SETTINGS are acknowledged", [settings({2: 0})], (SETTLED,)),
    Case("http2/6.7/1", "PING is answered with its bytes", [_PING], (_PONG,)),
    Case("http2/6.7/2", "an answer to PING is not answered", [ping(b"invalid!", ack=True), _PING], (_PONG,)),
    Case("http2/6.7/3", "PING on a stream", [raw(6, 0, 1, bytes(8))], _PROTOCOL),
    Case("http2/6.7/4", "PING of 6 bytes", [raw(6, 0, 0, bytes(6))], _SIZE),
    Case("http2/6.8/1", "GOAWAY on a stream", [h2.goaway(0, 0, stream_id=1)], _PROTOCOL),
    Case("http2/6.9/1", "WINDOW_UPDATE of 0", [window(0, 0)], _PROTOCOL),
    Case("http2/6.9/2", "WINDOW_UPDATE of 0 on a stream", [_OPEN, window(1, 0)], (rst(PROTOCOL), goaway(PROTOCOL))),
    Case("http2/6.9/3", "WINDOW_UPDATE of 3 bytes", [raw(8, 0, 0, b"\0\0\1")], _SIZE),
    Case("http2/6.9.1/1", "a window of 1", [settings({4: 1}), headers(1)], ("1 bytes",)),
    Case("http2/6.9.1/2", "a window above 2^31-1", [window(0, 2**31 - 1), window(0, 2**31 - 1)], _FLOW),
    Case(
        "http2/6.9.1/3",
        "a window above 2^31-1 on a stream",
        [_OPEN, window(1, 2**31 - 1), window(1, 2**31 - 1)],
        (rst(FLOW),),
    ),
    Case(
        "http2/6.9.2/1",
        "a new INITIAL_WINDOW_SIZE changes open streams",
        [settings({4: 0}), headers(1), settings({4: 1})],
        ("1 bytes",),
    ),
    Case(
        "http2/6.9.2/2",
        "a window may become negative",
        [settings({4: 3}), headers(1), settings({4: 2}), window(1, 2)],
        ("3 bytes",),
    ),
    Case("http2/6.9.2/3", "INITIAL_WINDOW_SIZE above 2^31-1", [raw(4, 0, 0, b"\0\x04\x80\0\0\0")], _FLOW),
    Case(
        "http2/6.10/1",
        "several CONTINUATION frames",
        [headers(1, done=False), continuation(1, _EXTRA, done=False), continuation(1, _EXTRA)],
        (ANSWERED,),
    ),
    Case(
        "http2/6.10/2",
        "CONTINUATION, then another frame",
        [headers(1, POST, done=False, end=False), continuation(1, _EXTRA, done=False), data(1, b"test")],
        _PROTOCOL,
    ),
    Case(
        "http2/6.10/3", "CONTINUATION on stream 0", [headers(1, done=False), raw(9, 4, 0, block(_EXTRA))], _PROTOCOL
    ),
    Case("http2/6.10/4", "CONTINUATION after a whole block", [headers(1), continuation(1, _EXTRA)], _PROTOCOL),
    Case(
        "http2/6.10/5",
        "CONTINUATION after the last CONTINUATION",
        [headers(1, done=False), continuation(1, _EXTRA), continuation(1, _EXTRA)],
        _PROTOCOL,
    ),
    Case(
        "http2/6.10/6",
        "CONTINUATION after DATA",
        [headers(1, POST, done=False, end=False), data(1, b"test", end=True), continuation(1, _EXTRA)],
        _PROTOCOL,
    ),
    Case("http2/7/1", "GOAWAY with an unknown code", [h2.goaway(0, 0xFF), _PING], (_PONG, CLOSED)),
    Case("http2/7/2", "RST_STREAM with an unknown code", [_OPEN, reset(1, 0xFF), _PING], (_PONG,)),
]

MESSAGES = [
    Case(
        "http2/8.1/1",
        "a second HEADERS frame without the end",
        [_OPEN, data(1, b"test"), headers(1, [(b"x-test", b"ok")], end=False)],
        _ON_STREAM,
    ),
    _fields("8.1.2/1", "an upper-case name", [*GET, (b"X-TEST", b"ok")]),
    _fields("8.1.2.1/1", "an unknown pseudo-header", [*GET, (b":test", b"ok")]),
    _fields("8.1.2.1/2", "a pseudo-header of responses", [*GET, (b":status", b"200")]),
    Case(
        "http2/8.1.2.1/3",
        "a pseudo-header in trailers",
        [_OPEN, data(1, b"test"), headers(1, [(b":method", b"POST")])],
        _ON_STREAM,
    ),
    _fields("8.1.2.1/4", "a pseudo-header after a field", [(b"x-test", b"ok"), *GET]),
    _fields("8.1.2.2/1", "a connection-specific field", [*GET, (b"connection", b"keep-alive")]),
    _fields("8.1.2.2/2", "te other than trailers", [*GET, (b"trailers", b"test"), (b"te", b"trailers, deflate")]),
    _fields("8.1.2.3/1", "an empty :path", [*_without(2), (b":path", b"")]),
    _fields("8.1.2.3/2", "no :method", _without(0)),
    _fields("8.1.2.3/3", "no :scheme", _without(1)),
    _fields("8.1.2.3/4", "no :path", _without(2)),
    _fields("8.1.2.3/5", "two :method", [*GET, GET[0]]),
    _fields("8.1.2.3/6", "two :scheme", [*GET, GET[1]]),
    _fields("8.1.2.3/7", "two :path", [*GET, GET[2]]),
    Case(
        "http2/8.1.2.6/1",
        "content-length differs from a DATA frame",
        [headers(1, [*POST, (b"content-length", b"1")], end=False), data(1, b"test", end=True)],
        _ON_STREAM,
    ),
    Case(
        "http2/8.1.2.6/2",
        "content-length differs from the sum of DATA frames",
        [headers(1, [*POST, (b"content-length", b"1")], end=False), data(1, b"test"), data(1, b"test", end=True)],
        _ON_STREAM,
    ),
    Case("http2/8.2/1", "PUSH_PROMISE from a client", [_OPEN, raw(5, 4, 1, b"\0\0\0\3" + _BLOCK)], _PROTOCOL),
]

RFC9113 = PREFACES + FRAMES + STATES + DEFINITIONS + MESSAGES
