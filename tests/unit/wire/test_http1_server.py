from __future__ import annotations

from typing import Any

import pytest

from proxy.errors import MALFORMED, MalformedRequest
from proxy.wire.events import (
    ConnectionEnded,
    DataReceived,
    Event,
    RequestReceived,
    RequestRefused,
    StreamReset,
    TrailersReceived,
)
from proxy.wire.http1 import Http1Server
from proxy.wire.http1_heads import HeadReader
from proxy.wire.limits import WireLimits
from tests.unit.wire.feeding import bytewise, merged, whole

GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
UPGRADE = (
    b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
FEEDS = pytest.mark.parametrize("feed", [whole, bytewise])


def server(**limits: Any) -> Http1Server:
    return Http1Server(WireLimits(**limits), scheme=b"https")


def lines(*fields: bytes, start: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join([start, *fields, b"", b""])


def answer(engine: Http1Server, stream_id: int, body: bytes = b"ok") -> bytes:
    engine.send_response(stream_id, 200, [], length=len(body), end_stream=not body)
    if body:
        engine.send_data(stream_id, body, True)
    return engine.take()


# -- requests --------------------------------------------------------------------------------------------


@FEEDS
def test_a_request_without_a_body(feed: Any) -> None:
    engine = server()
    (event,) = feed(engine, GET)
    assert isinstance(event, RequestReceived)
    assert (event.stream_id, event.end_stream) == (1, True)
    assert (event.head.method, event.head.path, event.head.scheme) == (b"GET", b"/a", b"https")
    assert (engine.open_streams, engine.is_idle, engine.must_close) == (1, False, False)


@FEEDS
def test_names_are_lower_cased_and_values_trimmed(feed: Any) -> None:
    (event,) = feed(server(), lines(b"HOST: a", b"X-A: \t 1 \t", b"X-B:2", b"X-C:"))
    assert event.head.headers == [(b"x-a", b"1"), (b"x-b", b"2"), (b"x-c", b"")]


@FEEDS
@pytest.mark.parametrize("data", [POST, CHUNKED])
def test_a_body_follows_its_head(feed: Any, data: bytes) -> None:
    request, *body = feed(server(), data)
    assert isinstance(request, RequestReceived)
    assert not request.end_stream
    assert b"".join(event.data for event in body) == b"hello"
    assert [event.end_stream for event in body] == [False] * (len(body) - 1) + [True]


def test_a_chunked_body_that_comes_at_once_is_one_event() -> None:
    events = server().receive(CHUNKED.replace(b"5\r\nhello\r\n", b"2\r\nhe\r\n3\r\nllo\r\n"))
    assert events[1:] == [DataReceived(1, b"hello", True)]


@FEEDS
def test_trailers_end_a_request(feed: Any) -> None:
    events = feed(server(), CHUNKED[:-2] + b"X-Sum: 1\r\nHost: evil\r\n\r\n")
    assert events[-1] == TrailersReceived(1, [(b"x-sum", b"1")])
    assert not any(event.end_stream for event in events[1:-1])


def test_body_bytes_are_passed_on_as_they_came() -> None:
    engine = server()
    engine.receive(lines(b"Host: a", b"Content-Length: 100000", start=b"POST / HTTP/1.1"))
    data = b"x" * 65536
    assert engine.receive(data)[0].data is data  # type: ignore[attr-defined]


@FEEDS
def test_empty_lines_before_a_request_are_skipped_up_to_the_limit(feed: Any) -> None:
    assert isinstance(feed(server(), b"\r\n" * 4 + GET)[0], RequestReceived)
    (event,) = feed(server(), b"\r\n" * 5 + GET)
    assert (type(event), event.reason) == (RequestRefused, "bad_request_line")


@FEEDS
def test_the_limit_of_empty_lines_is_for_each_request(feed: Any) -> None:
    engine = server()
    for number in range(1, 4):
        assert feed(engine, b"\r\n\r\n\r\n" + GET)[0].stream_id == number
        answer(engine, number)
        engine.resume()


# -- section 2.3, row by row -----------------------------------------------------------------------------

H = b"Host: a"
TABLE: list[tuple[bytes, str]] = [
    # content-length and transfer-encoding
    (lines(H, b"Content-Length: 5", b"Transfer-Encoding: chunked"), "bad_transfer_encoding"),
    (lines(H, b"Transfer-Encoding: chunked", b"Content-Length: 5"), "bad_transfer_encoding"),
    (lines(H, b"Content-Length: 5", b"Content-Length: 6"), "bad_content_length"),
    (lines(H, b"Content-Length: 5", b"Content-Length: 5"), "bad_content_length"),
    *(
        (lines(H, b"Content-Length: " + value), "bad_content_length")
        for value in (b"5, 5", b"+3", b"-1", b"0x3", b"1_0", "²".encode(), b"", b"18446744073709551619", b"05")
    ),
    *(
        (lines(H, b"Transfer-Encoding: " + value), "bad_transfer_encoding")
        for value in (
            b"xchunked", b"identity", b"chunked, identity", b"chunked, chunked", b'"chunked"', b"chunked;a=b",
            b"chunked,", b"chunked\xa0", b"\xa0chunked", b"", b"gzip",
        )
    ),
    (lines(H, b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), "bad_transfer_encoding"),
    (lines(H, b"Transfer-Encoding: \x0bchunked"), "bad_header_value"),
    (lines(H, b"Transfer-Encoding: gzip, chunked"), "encoding_unsupported"),
    (lines(H, b"Transfer-Encoding: chunked", start=b"POST / HTTP/1.0"), "bad_transfer_encoding"),
    # field lines
    *(
        (lines(H, line), "bad_header_name")
        for line in (b"X : 1", b"X\t: 1", b"no colon", b": 1", b"a(b): 1", b"a b: 1", b"\xe9: 1", b"X\x80: 1")
    ),
    *((lines(H, b"X: a" + bytes((c,)) + b"b"), "bad_header_value") for c in (0, 1, 8, 10, 11, 12, 13, 27, 31, 127)),
    (lines(H, b"X: a", b" folded"), "bad_header_value"),
    (lines(H, b"X: a", b"\tfolded"), "bad_header_value"),
    (lines(b" X: a", H), "bad_header_name"),
    (b"GET / HTTP/1.1\nHost: a\n\n", "bad_request_line"),
    (b"GET / HTTP/1.1\r\nHost: a\n\r\n\r\n", "bad_header_value"),
    # host
    (lines(), "bad_host"),
    (lines(H, b"Host: b"), "duplicate_header"),
    (lines(H, H), "duplicate_header"),
    *(
        (lines(b"Host: " + value), "bad_host")
        for value in (b"a, b", b"u@a", b"a b", b"a/b", b"a:x", b"a:99999", b"\xe9", b"")
    ),
    # target
    *(
        (lines(H, start=b"GET " + target + b" HTTP/1.1"), reason)
        for target, reason in (
            (b"http://u@a/", "bad_host"), (b"http:///", "bad_host"), (b"ftp://a/", "bad_target"),
            (b"a", "bad_target"),
            (b"*", "bad_target"), (b"/a\xe9", "bad_target"), (b"/a#b", "bad_path"), (b"/a\tb", "bad_target"),
            (b"/%00", "bad_path"), (b"/?a#b", "bad_target"),
        )
    ),
    (lines(H, start=b"GET /a b HTTP/1.1"), "bad_request_line"),
    (lines(H, start=b"GET  / HTTP/1.1"), "bad_request_line"),
    (lines(H, start=b"GET /  HTTP/1.1"), "bad_request_line"),
    (lines(H, start=b" GET / HTTP/1.1"), "bad_request_line"),
    (lines(H, start=b"GET / HTTP/1.1 "), "bad_request_line"),
    (lines(H, start=b"GET\t/ HTTP/1.1"), "bad_request_line"),
    (lines(H, start=b"G\x00T / HTTP/1.1"), "bad_request_line"),
    # version
    (lines(start=b"GET /"), "bad_request_line"),
    (lines(H, start=b"GET / HTTP/1.2"), "version_unsupported"),
    (lines(H, start=b"GET / HTTP/2.0"), "version_unsupported"),
    (lines(H, start=b"GET / HTTP/2"), "version_unsupported"),
    (lines(H, start=b"GET / http/1.1"), "version_unsupported"),
    (lines(H, start=b"GET / HTTP/0.9"), "version_unsupported"),
    (lines(H, start=b"GET / HTTP/1.10"), "bad_request_line"),
    (lines(H, start=b"GET / HTP/1.1"), "bad_request_line"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "version_unsupported"),
    # method
    (lines(H, start=b"CONNECT a:443 HTTP/1.1"), "method_not_allowed"),
    (lines(H, start=b"TRACE / HTTP/1.1"), "method_not_allowed"),
    (lines(H, start=b"TRACK / HTTP/1.1"), "method_not_allowed"),
    (lines(H, start=b"FOO / HTTP/1.1"), "method_unknown"),
    (lines(H, start=b"get / HTTP/1.1"), "method_unknown"),
    (lines(H, start=b"G=T / HTTP/1.1"), "bad_request_line"),
    # the rest
    (lines(H, b"X_A: 1"), "underscore_header"),
    (lines(H, b"Connection: x-forwarded-client-cert"), "connection_header"),
    (lines(H, b"Content-Length: 5", b"Expect: 200-ok"), "expectation_failed"),
    (lines(H, b"Authorization: a", b"Authorization: b"), "duplicate_header"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", "bad_request_line"),
]  # fmt: skip


@FEEDS
@pytest.mark.parametrize(("data", "reason"), TABLE)
def test_an_ambiguous_head_is_refused_and_nothing_behind_it_is_read(
    feed: Any, data: bytes, reason: str
) -> None:
    engine = server()
    events = feed(engine, data + GET)
    assert [type(event) for event in events] == [RequestRefused]
    assert (events[0].stream_id, events[0].opened) == (1, False)
    if feed is whole:
        assert events[0].reason == reason
    assert events[0].reason in MALFORMED
    engine.send_response(1, 400, [], length=3, end_stream=False)
    engine.send_data(1, b"bad", True)
    assert engine.take() == b"HTTP/1.1 400 Bad Request\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbad"
    assert engine.must_close
    assert feed(engine, GET) == []
    assert engine.resume() == []


BAD_CHUNKS = [
    b"x\r\n",
    b"0x5\r\nhello\r\n",
    b"5\nhello",
    b"5\r\nhello!",
    b"5;a\nb\r\n",
    b"-1\r\n",
    b"5\r\nhello\r\n0\r\nno colon\r\n\r\n",
]


@FEEDS
@pytest.mark.parametrize("chunks", BAD_CHUNKS)
def test_a_bad_chunk_aborts_the_request_that_was_opened(feed: Any, chunks: bytes) -> None:
    engine = server()
    events = feed(engine, CHUNKED[: CHUNKED.index(b"5\r\nhello")] + chunks + GET)
    refusal = events[-1]
    assert isinstance(refusal, RequestRefused)
    assert refusal.opened
    assert refusal.reason in {"bad_chunk", "bad_trailer"}
    assert sum(type(event) is RequestReceived for event in events) == 1
    assert not any(event.end_stream for event in events[:-1])
    engine.send_response(1, 400, [], length=None, end_stream=True)
    assert b"connection: close" in engine.take()
    assert engine.must_close


def test_after_an_answer_began_a_bad_chunk_only_closes() -> None:
    engine = server()
    engine.receive(CHUNKED[: CHUNKED.index(b"5\r\nhello")])
    engine.send_response(1, 200, [], length=None, end_stream=False)
    assert isinstance(engine.receive(b"zz\r\n")[0], RequestRefused)
    engine.reset(1, 2)
    assert engine.must_close
    assert not engine.take().endswith(b"0\r\n\r\n")


def test_two_counts_of_the_fields_must_agree() -> None:
    class Deaf:
        def feed_data(self, data: bytes) -> None:
            """A tokeniser that loses fields."""

    reader = HeadReader(WireLimits(), requests=True)
    reader._parser = Deaf()  # type: ignore[assignment]
    with pytest.raises(MalformedRequest, match="differ in number"):
        reader.read_request(GET)


# -- limits ----------------------------------------------------------------------------------------------


@FEEDS
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET /" + b"a" * 500, "uri_too_long"),
        (b"GET /" + b"a" * 500 + b" HTTP/1.1\r\nHost: a\r\n\r\n", "uri_too_long"),
        (lines(H, *[b"X: 1"] * 10), "too_many_headers"),
        (b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 12, "too_many_headers"),
        (lines(H, b"X: " + b"a" * 600), "head_too_large"),
        (lines(H, *[b"X: " + b"a" * 300] * 4), "head_too_large"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 1200, "head_too_large"),
    ],
)
def test_a_head_is_bounded(feed: Any, data: bytes, reason: str) -> None:
    (event,) = feed(server(request_line=400, headers=10, header=500, head=1000), data)
    assert (type(event), event.reason) == (RequestRefused, reason)


@FEEDS
def test_heads_at_the_limits_pass(feed: Any) -> None:
    (event,) = feed(server(), lines(H, *[b"X: 1"] * 99, start=b"GET /" + b"a" * 8000 + b" HTTP/1.1"))
    assert len(event.head.headers) == 99
    (event,) = whole(server(), lines(H, b"X: " + b"a" * 32_000, b"Y: " + b"a" * 32_000))
    assert isinstance(event, RequestReceived)


@FEEDS
def test_a_body_over_the_limit_is_refused(feed: Any) -> None:
    (event,) = feed(server(body=4), POST)[:1]
    assert (event.reason, event.opened) == ("body_too_large", False)
    *_, event = feed(server(body=4), CHUNKED)
    assert (event.reason, event.opened) == ("body_too_large", True)


@FEEDS
def test_the_owner_may_limit_the_body_of_an_open_request(feed: Any) -> None:
    engine = server()
    engine.receive(POST[:-5])
    engine.body_limit = 4
    event = feed(engine, b"hello")[-1]
    assert (event.reason, event.opened) == ("body_too_large", True)


# -- answers ---------------------------------------------------------------------------------------------


def test_an_answer_is_framed_by_its_length() -> None:
    engine = server()
    engine.receive(GET)
    engine.send_response(1, 200, [(b"x-a", b"1"), (b"x-b", b"2")], length=2, end_stream=False)
    engine.send_data(1, b"ok", True)
    assert engine.queued(1) == 2
    assert engine.take() == b"HTTP/1.1 200 OK\r\nx-a: 1\r\nx-b: 2\r\ncontent-length: 2\r\n\r\nok"
    assert (engine.queued(1), engine.is_idle, engine.must_close) == (0, True, False)


def test_an_answer_of_unknown_length_is_chunked() -> None:
    engine = server()
    engine.receive(GET)
    engine.send_response(1, 200, [], length=None, end_stream=False)
    engine.send_data(1, b"hello, world", False)
    engine.send_data(1, b"", False)
    engine.send_data(1, b"", True)
    assert (
        engine.take()
        == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nc\r\nhello, world\r\n0\r\n\r\n"
    )


def test_trailers_follow_a_chunked_answer_only() -> None:
    for length, tail in ((None, b"2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n"), (2, b"\r\n\r\nok")):
        engine = server()
        engine.receive(GET)
        engine.send_response(1, 200, [], length=length, end_stream=False)
        engine.send_data(1, b"ok", False)
        engine.send_trailers(1, [(b"x-sum", b"1")])
        assert engine.take().endswith(tail)
        assert engine.is_idle


@pytest.mark.parametrize(
    ("status", "method", "length", "framing"),
    [
        (204, b"GET", None, b""),
        (204, b"GET", 5, b""),
        (304, b"GET", 5, b"content-length: 5\r\n"),
        (304, b"GET", None, b""),
        (200, b"HEAD", 5, b"content-length: 5\r\n"),
        (200, b"HEAD", None, b""),
        (200, b"GET", None, b"content-length: 0\r\n"),
        (200, b"GET", 0, b"content-length: 0\r\n"),
    ],
)
def test_answers_without_a_body(status: int, method: bytes, length: int | None, framing: bytes) -> None:
    engine = server()
    engine.receive(GET.replace(b"GET", method))
    engine.send_response(1, status, [], length=length, end_stream=True)
    head, _, body = engine.take().partition(b"\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert body == framing + b"\r\n"
    assert not engine.must_close


@pytest.mark.parametrize(("status", "method"), [(200, b"HEAD"), (204, b"GET"), (304, b"GET")])
def test_a_body_that_may_not_be_is_swallowed(status: int, method: bytes) -> None:
    engine = server()
    engine.receive(GET.replace(b"GET", method))
    engine.send_response(1, status, [], length=5, end_stream=False)
    engine.send_data(1, b"hello", True)
    assert engine.take().endswith(b"\r\n\r\n")
    assert engine.is_idle


@pytest.mark.parametrize(("first", "second"), [(b"toolong", b""), (b"abc", b""), (b"ab", b"toolong")])
def test_an_answer_that_does_not_fit_its_length_closes(first: bytes, second: bytes) -> None:
    engine = server()
    engine.receive(GET)
    engine.send_response(1, 200, [], length=5, end_stream=False)
    engine.send_data(1, first, False)
    engine.send_data(1, second, True)
    assert engine.must_close
    assert len(engine.take().partition(b"\r\n\r\n")[2]) < 5


def test_an_answer_without_its_announced_body_closes() -> None:
    engine = server()
    engine.receive(GET)
    engine.send_response(1, 200, [], length=5, end_stream=True)
    assert engine.must_close


@pytest.mark.parametrize(
    "field",
    [
        (b"x", b"a\r\nb: c"), (b"x", b"a\nb"), (b"x", b"a\rb"), (b"x", b"a\x00"), (b"x", b"\x7f"), (b"x\r\ny", b"1"),
        (b"x: y\r\nz", b"1"), (b"", b"1"), (b"a b", b"1"), (b"a:", b"1"), (b"A", b"1"), (b"content-length", b"5"),
        (b"transfer-encoding", b"chunked"), (b"connection", b"close"), (b"\xe9", b"1"), (b"x", b"\r\n"),
    ],
)  # fmt: skip
def test_what_would_not_be_one_field_is_never_written(field: tuple[bytes, bytes]) -> None:
    engine = server()
    engine.receive(GET)
    with pytest.raises(ValueError, match="not writable"):
        engine.send_response(1, 200, [(b"ok", b"1"), field], length=0, end_stream=True)
    assert engine.take() == b""


@pytest.mark.parametrize("status", [100, 199, 99, 600, 0])
def test_a_final_answer_has_a_final_status(status: int) -> None:
    engine = server()
    engine.receive(GET)
    with pytest.raises(ValueError, match="status"):
        engine.send_response(1, status, [], length=0, end_stream=True)


def test_an_unnamed_status_has_no_phrase() -> None:
    engine = server()
    engine.receive(GET)
    engine.send_response(1, 599, [], length=0, end_stream=True)
    assert engine.take().startswith(b"HTTP/1.1 599 \r\n")


def test_interim_answers_come_before_the_final_one() -> None:
    engine = server()
    engine.receive(GET)
    engine.send_informational(1, 103, [(b"link", b"</a>")])
    assert engine.take() == b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    answer(engine, 1)
    engine.send_informational(1, 103, [])
    assert engine.take() == b""


def test_http_1_0_gets_no_interim_answer_no_chunks_and_a_close() -> None:
    engine = server()
    engine.receive(GET.replace(b"1.1", b"1.0"))
    engine.send_informational(1, 100, [])
    engine.send_response(1, 200, [], length=None, end_stream=False)
    engine.send_data(1, b"hello", False)
    engine.send_data(1, b"", True)
    assert engine.take() == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello"
    assert engine.must_close


def test_only_interim_statuses_are_informational() -> None:
    engine = server()
    engine.receive(GET)
    for status in (101, 200, 99):
        with pytest.raises(ValueError, match="interim"):
            engine.send_informational(1, status, [])


def test_an_answer_to_a_stream_that_is_gone_is_not_written() -> None:
    engine = server()
    engine.receive(GET)
    answer(engine, 1)
    engine.send_data(1, b"more", True)
    engine.send_trailers(1, [])
    engine.send_response(1, 200, [], length=0, end_stream=True)
    assert engine.take() == b""
    assert not engine.must_close


# -- one exchange after the other ------------------------------------------------------------------------


@FEEDS
def test_a_pipelined_request_waits_for_the_answer_before_it(feed: Any) -> None:
    engine = server()
    assert len(feed(engine, GET + POST + GET)) == 1
    answer(engine, 1)
    events = engine.resume()
    assert [type(event) for event in events] == [RequestReceived, DataReceived]
    assert events[0].stream_id == 2
    assert engine.resume() == []
    answer(engine, 2)
    assert [event.stream_id for event in engine.resume()] == [3]
    answer(engine, 3)
    assert engine.resume() == []
    assert engine.is_idle


def test_too_much_behind_an_open_request_stops_reading() -> None:
    engine = server()
    engine.receive(GET)
    engine.receive(b"x" * 65_535)
    assert engine.wants_read
    engine.receive(b"x")
    assert not engine.wants_read


def test_a_parser_is_fit_for_the_next_request_whatever_came_before() -> None:
    engine = server()
    h2c = lines(b"Host: a", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AA")
    head = GET.replace(b"GET", b"HEAD")
    for number, data in enumerate((GET, POST, GET, CHUNKED, GET, h2c, GET, head, GET), 1):
        events = engine.receive(data)
        assert isinstance(events[0], RequestReceived), data
        assert events[0].stream_id == number
        assert events[0].head.upgrade is None
        answer(engine, number, b"")
        assert not engine.must_close


@pytest.mark.parametrize(
    "request_", [GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), GET.replace(b"1.1", b"1.0")]
)
def test_nothing_behind_a_closing_request_is_read(request_: bytes) -> None:
    engine = server()
    assert len(engine.receive(request_ + GET)) == 1
    assert engine.receive(GET) == []
    assert b"connection: close\r\n" in answer(engine, 1)
    assert engine.must_close
    assert engine.resume() == []
    assert engine.receive(GET) == []


def test_an_answer_before_the_end_of_the_request_closes() -> None:
    engine = server()
    engine.receive(POST[:-2])
    engine.send_response(1, 413, [], length=None, end_stream=True)
    assert b"connection: close" in engine.take()
    assert engine.must_close
    assert engine.receive(b"lo" + GET) == []


def test_an_answer_may_begin_before_the_end_of_the_request() -> None:
    engine = server()
    engine.receive(POST[:-2])
    engine.send_response(1, 200, [], length=2, end_stream=False)
    assert b"close" not in engine.take()
    assert engine.receive(b"lo") == [DataReceived(1, b"lo", True)]
    engine.send_data(1, b"ok", True)
    assert not engine.must_close
    assert engine.is_idle


@pytest.mark.parametrize(("continued", "closes"), [(False, True), (True, False)])
def test_a_final_answer_instead_of_100_closes(continued: bool, closes: bool) -> None:
    engine = server()
    (event,) = engine.receive(
        lines(b"Host: a", b"Content-Length: 5", b"Expect: 100-continue", start=b"PUT / HTTP/1.1")
    )
    assert event.head.expects_continue  # type: ignore[attr-defined]
    if continued:
        engine.send_informational(1, 100, [])
        assert engine.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    engine.send_response(1, 200, [], length=2, end_stream=False)
    assert (b"connection: close" in engine.take()) is closes


def test_shutting_down_says_so_in_the_next_answer() -> None:
    engine = server()
    engine.receive(GET)
    engine.shut_down()
    assert b"connection: close\r\n" in answer(engine, 1)
    assert engine.must_close


def test_a_reset_closes_and_leaves_the_body_unfinished() -> None:
    engine = server()
    engine.receive(GET)
    engine.send_response(1, 200, [], length=None, end_stream=False)
    engine.send_data(1, b"part", False)
    engine.reset(1)
    engine.send_data(1, b"", True)
    assert engine.must_close
    assert engine.take().endswith(b"4\r\npart\r\n")


def test_a_reset_of_another_stream_changes_nothing() -> None:
    engine = server()
    engine.receive(GET)
    engine.reset(7)
    assert not engine.must_close
    answer(engine, 1)
    engine.reset(1)
    assert not engine.must_close


def test_an_idle_connection_can_be_answered_once() -> None:
    engine = server()
    engine.receive(GET[:10])
    assert engine.mid_head
    assert not engine.is_idle
    engine.shut_down()
    engine.send_response(1, 408, [], length=0, end_stream=True)
    assert engine.take() == b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    assert engine.must_close
    assert engine.receive(GET) == []


def test_failing_closes() -> None:
    engine = server()
    engine.fail(11, "head_timeout")
    assert engine.must_close
    assert engine.receive(GET) == []


def test_the_http2_words_are_understood_and_do_nothing() -> None:
    engine = server()
    engine.start()
    engine.acknowledge(1, 5)
    engine.finish()
    engine.ping()
    assert (engine.take(), engine.must_close, engine.version) == (b"", False, 11)


# -- the end of the connection ---------------------------------------------------------------------------


def ended(*pieces: bytes) -> tuple[Http1Server, list[Event]]:
    engine = server()
    for piece in pieces:
        engine.receive(piece)
    return engine, engine.receive_eof()


def test_the_end_between_requests_is_clean() -> None:
    engine, events = ended()
    assert events == [ConnectionEnded()]
    assert engine.must_close


def test_the_end_within_a_head_is_not() -> None:
    assert ended(GET[:-1])[1] == [ConnectionEnded("truncated")]


@pytest.mark.parametrize("data", [POST[:-1], CHUNKED[:-1], CHUNKED[:-5]])
def test_the_end_within_a_body_aborts_the_request(data: bytes) -> None:
    engine, events = ended(data)
    assert events == [StreamReset(1, 8, by_peer=True, reason="truncated")]
    assert engine.must_close


def test_after_the_end_a_complete_request_is_still_answered() -> None:
    engine, events = ended(GET + GET)
    assert events == []
    assert b"connection: close" in answer(engine, 1)
    assert engine.must_close
    assert engine.resume() == []


def test_the_end_after_an_error_is_nothing_new() -> None:
    assert ended(b"\x00")[1] == []


# -- upgrade ---------------------------------------------------------------------------------------------


def switch(engine: Http1Server) -> bytes:
    engine.send_response(1, 101, [(b"sec-websocket-accept", b"x")], length=None, end_stream=False)
    return engine.take()


@FEEDS
def test_a_tunnel_begins_with_101_and_what_was_held(feed: Any) -> None:
    engine = server()
    (event,) = feed(engine, UPGRADE + b"\x81\x01a")
    assert event.head.upgrade == b"websocket"
    assert switch(engine) == (
        b"HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: x\r\n"
        b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"
    )
    assert engine.resume() == [DataReceived(1, b"\x81\x01a", False)]
    assert engine.receive(b"\r\n\r\n") == [DataReceived(1, b"\r\n\r\n", False)]
    engine.send_data(1, b"raw", False)
    assert engine.take() == b"raw"
    assert not engine.half_close
    engine.send_data(1, b"", True)
    assert engine.half_close
    assert engine.receive_eof() == [DataReceived(1, b"", True)]
    assert not engine.must_close


def test_the_end_before_101_is_told_after_it() -> None:
    engine = server()
    engine.receive(UPGRADE + b"x")
    assert engine.receive_eof() == []
    switch(engine)
    assert engine.resume() == [DataReceived(1, b"x", False), DataReceived(1, b"", True)]
    assert engine.resume() == []


def test_a_refused_upgrade_drops_what_was_held_and_closes() -> None:
    engine = server()
    engine.receive(UPGRADE + GET)
    assert b"connection: close" in answer(engine, 1)
    assert engine.must_close
    assert engine.resume() == []
    assert engine.receive(GET) == []


def test_too_much_before_101_is_refused() -> None:
    engine = server()
    engine.receive(UPGRADE)
    assert engine.receive(b"x" * 16 * 1024) == []
    (event,) = engine.receive(b"x")
    assert isinstance(event, RequestRefused)
    assert (event.reason, event.opened) == ("bad_upgrade", True)


def test_101_needs_an_upgrade_request() -> None:
    engine = server()
    engine.receive(GET)
    with pytest.raises(ValueError, match="101"):
        switch(engine)


def test_an_unsound_upgrade_is_an_ordinary_request_and_the_last() -> None:
    engine = server()
    (event,) = engine.receive(UPGRADE.replace(b": 13", b": 12") + GET)
    assert event.head.upgrade is None  # type: ignore[attr-defined]
    assert b"connection: close" in answer(engine, 1)
    assert engine.must_close


@pytest.mark.parametrize("data", [GET, POST, CHUNKED, UPGRADE, GET + GET, b"\r\n" + POST])
def test_where_the_bytes_are_cut_changes_nothing(data: bytes) -> None:
    expected = merged(whole(server(), data))
    assert merged(bytewise(server(), data)) == expected
    for cut in range(1, len(data)):
        engine = server()
        assert merged(engine.receive(data[:cut]) + engine.receive(data[cut:])) == expected
