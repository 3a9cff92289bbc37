from __future__ import annotations

import pytest

from proxy.errors import MalformedRequest
from proxy.version import is_compiled
from proxy.wire.chunked import ChunkedReader
from proxy.wire.events import Headers
from proxy.wire.limits import WireLimits

LIMITS = WireLimits()


def read(data: bytes, step: int, limits: WireLimits = LIMITS) -> tuple[bytes, bool, Headers, bytes]:
    """Feed in pieces of ``step`` -> (body, ended, trailers, what followed)."""
    reader = ChunkedReader(limits)
    out: list[bytes] = []
    for place in range(0, len(data), step):
        if reader.feed(data[place : place + step], out):
            return b"".join(out), True, reader.trailers, reader.rest + data[place + step :]
    return b"".join(out), False, [], b""


STEPS = pytest.mark.parametrize("step", [1, 2, 3, 7, 100_000])


@STEPS
@pytest.mark.parametrize(
    ("data", "body"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", b"hello!"),
        (b"0000000000000005\r\nhello\r\n000\r\n\r\n", b"hello"),
        (b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2),
        (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n"),
        (b'5;a;b=c;d="e;\\"f" ; g = h\r\nhello\r\n0;x\r\n\r\n', b"hello"),
    ],
)
def test_a_body_is_what_its_chunks_hold(data: bytes, body: bytes, step: int) -> None:
    assert read(data, step) == (body, True, [], b"")
    assert read(data + b"GET /", step) == (body, True, [], b"GET /")


@STEPS
@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"x\r\n",
        b"0x5\r\nhello\r\n",
        b"+5\r\nhello\r\n",
        b"-5\r\nhello\r\n",
        b"1_0\r\n",
        b" 5\r\nhello\r\n",
        b"5 \r\nhello\r\n",
        b"5 ;a\r\nhello\r\n",
        b"5\t\r\nhello\r\n",
        b"5h\r\nhello\r\n",
        b"00000000000000005\r\nhello\r\n",
        b"8000000000000000\r\n",
        b"ffffffffffffffff\r\n",
        b"5\nhello\n0\n\n",
        b"5\nhello",
        b"5\r\rhello",
        b"5;a\nb\r\nhello\r\n",
        b"5;a\rb\r\nhello\r\n",
        b"5;a\x00\r\nhello\r\n",
        b"5;\r\nhello\r\n",
        b'5;a="\r\nhello\r\n',
        b"5,6\r\nhello\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello\r0",
        b"5\r\nhello!\r\n0\r\n\r\n",
        "٥\r\nhello\r\n".encode(),
    ],
)
def test_a_chunk_with_two_readings_is_refused(data: bytes, step: int) -> None:
    with pytest.raises(MalformedRequest) as caught:
        read(data, step)
    assert caught.value.reason == "bad_chunk"


@STEPS
def test_trailers_are_cut_filtered_and_never_guessed(step: int) -> None:
    data = b"0\r\nX-Sum:  1 \r\nGrpc-Status: 0\r\nContent-Length: 5\r\nX_Forwarded_Client_Cert: a\r\n\r\nrest"
    assert read(data, step) == (b"", True, [(b"x-sum", b"1"), (b"grpc-status", b"0")], b"rest")


@STEPS
@pytest.mark.parametrize(
    "lines",
    [
        b"no colon\r\n\r\n", b"a : 1\r\n\r\n", b": 1\r\n\r\n", b" a: 1\r\n\r\n", b"a: 1\r\n b\r\n\r\n",
        b"a: \x00\r\n\r\n",
        b"a: 1\n\r\n\r\n", b"a: 1\r2\r\n\r\n", b"a b: 1\r\n\r\n", b"\n", b"a: 1\r\r\n\r\n", b"a: 1\n\n",
    ],
)  # fmt: skip
def test_malformed_trailers_are_refused(lines: bytes, step: int) -> None:
    with pytest.raises(MalformedRequest) as caught:
        read(b"0\r\n" + lines, step)
    assert caught.value.reason == "bad_trailer"


@STEPS
def test_a_chunk_line_is_bounded(step: int) -> None:
    line = b"5;" + b"a" * 4094
    assert read(line + b"\r\nhello\r\n0\r\n\r\n", step)[0] == b"hello"
    for long in (line + b"a\r\nhello", line + b"aa"):
        with pytest.raises(MalformedRequest) as caught:
            read(long, step)
        assert caught.value.reason == "bad_chunk"


def test_all_extensions_together_are_bounded_by_the_body() -> None:
    chunk = b"1;" + b"a" * 1023 + b"\r\nx\r\n"
    assert not read(chunk * 16, 5000)[1]
    with pytest.raises(MalformedRequest):
        read(chunk * 17, 5000)
    generous = b"1000;" + b"a" * 1023 + b"\r\n" + b"x" * 4096 + b"\r\n"
    assert len(read(generous * 100, 5000)[0]) == 409_600


@pytest.mark.parametrize("step", [1, 1000, 100_000])
def test_trailers_count_towards_the_limits_of_the_head(step: int) -> None:
    def feed(data: bytes, fields: int = 0, size: int = 0) -> bool:
        reader = ChunkedReader(WireLimits(head=4000, header=1000, headers=10), fields=fields, size=size)
        out: list[bytes] = []
        return any(reader.feed(data[at : at + step], out) for at in range(0, len(data), step))

    line = b"a: " + b"b" * 495 + b"\r\n"
    assert feed(b"0\r\n" + line * 4 + b"\r\n", fields=6, size=1900)
    for data, fields, size, reason in (
        (line * 5, 6, 0, "too_many_headers"),
        (line * 5, 0, 1900, "head_too_large"),
        (b"a: " + b"b" * 1000, 0, 0, "head_too_large"),
        (b"a: " + b"b" * 1000 + b"\r\n\r\n", 0, 0, "head_too_large"),
    ):
        with pytest.raises(MalformedRequest) as caught:
            feed(b"0\r\n" + data, fields, size)
        assert caught.value.reason == reason


def test_what_came_before_an_error_was_delivered() -> None:
    out: list[bytes] = []
    with pytest.raises(MalformedRequest):
        ChunkedReader(LIMITS).feed(b"5\r\nhello\r\nzz\r\n", out)
    assert out == [b"hello"]


def test_a_large_chunk_is_not_copied_more_than_once() -> None:
    reader = ChunkedReader(LIMITS)
    out: list[bytes] = []
    reader.feed(b"100000\r\n", out)
    data = b"x" * 65536
    reader.feed(data, out)
    assert out[0] is data or is_compiled()  # compiled, a slice of everything is a copy
    assert out[0] == data
