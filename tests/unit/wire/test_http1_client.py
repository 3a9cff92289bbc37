from __future__ import annotations

from typing import Any

import pytest

from proxy.wire.events import (
    ConnectionEnded,
    DataReceived,
    Event,
    Headers,
    InformationalReceived,
    RequestHead,
    ResponseReceived,
    StreamReset,
    TrailersReceived,
)
from proxy.wire.http1 import Http1Client
from proxy.wire.limits import WireLimits
from tests.unit.wire.feeding import bytewise, merged, whole

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 1.3, with its proof
PROOF = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
    + PROOF
    + b"\r\n\r\n"
)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
PROTOCOL_ERROR = StreamReset(1, 1, by_peer=False, reason="upstream_protocol_error")
FEEDS = pytest.mark.parametrize("feed", [whole, bytewise])


def request(method: bytes = b"GET", **more: Any) -> RequestHead:
    facts: dict[str, Any] = {
        "scheme": b"http", "authority": b"a:80", "host": b"a", "path": b"/x", "target": b"/x?y", "headers": [],
        "version": 11, "length": 0, **more,
    }  # fmt: skip
    return RequestHead(method=method, **facts)


def opened(
    method: bytes = b"GET",
    headers: Headers | None = None,
    end: bool = True,
    limits: WireLimits | None = None,
    **more: Any,
) -> Http1Client:
    """A client whose request has left."""
    engine = Http1Client(limits or WireLimits())
    engine.open_stream(request(method, **more), headers or [], end_stream=end)
    engine.take()
    return engine


def upgrading() -> Http1Client:
    return opened(headers=[(b"x-a", b"1"), (b"sec-websocket-key", KEY)], upgrade=b"websocket")


# -- requests --------------------------------------------------------------------------------------------


def written(head: RequestHead, headers: Headers, *, end: bool) -> bytes:
    engine = Http1Client(WireLimits())
    engine.open_stream(head, headers, end_stream=end)
    return engine.take()


def test_a_request_is_generated_from_its_head() -> None:
    assert (
        written(request(), [(b"x-a", b"1")], end=True) == b"GET /x?y HTTP/1.1\r\nhost: a:80\r\nx-a: 1\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("method", "length", "end", "framing"),
    [
        (b"GET", 0, True, b""),
        (b"GET", None, True, b""),
        (b"POST", 0, True, b"content-length: 0\r\n"),
        (b"POST", None, True, b"content-length: 0\r\n"),
        (b"POST", 5, False, b"content-length: 5\r\n"),
        (b"POST", None, False, b"transfer-encoding: chunked\r\n"),
        (b"GET", None, False, b"transfer-encoding: chunked\r\n"),
    ],
)
def test_we_say_how_the_body_is_framed(method: bytes, length: int | None, end: bool, framing: bytes) -> None:
    text = written(request(method, length=length), [], end=end)
    assert text == method + b" /x?y HTTP/1.1\r\nhost: a:80\r\n" + framing + b"\r\n"


def test_te_trailers_is_said_for_this_hop() -> None:
    assert written(request(te_trailers=True), [], end=True).endswith(
        b"te: trailers\r\nconnection: te\r\n\r\n"
    )


def test_an_upgrade_is_said_for_this_hop() -> None:
    text = written(request(upgrade=b"websocket"), [(b"sec-websocket-key", KEY)], end=True)
    assert text.endswith(
        b"sec-websocket-key: " + KEY + b"\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    )
    with pytest.raises(ValueError, match="sec-websocket-key"):
        written(request(upgrade=b"websocket"), [], end=True)


@pytest.mark.parametrize(
    "more",
    [
        {"method": b"GET x"}, {"method": b"CONNECT"}, {"method": b""}, {"target": b"/ x"}, {"target": b""},
        {"target": b"/\r\nx: y"}, {"target": b"/\xe9"}, {"authority": b"a\r\nx: y"}, {"authority": b""},
        {"authority": b"a b"},
    ],
)  # fmt: skip
def test_what_would_not_be_one_request_line_and_host_is_never_written(more: dict[str, Any]) -> None:
    engine = Http1Client(WireLimits())
    with pytest.raises(ValueError, match="not writable"):
        engine.open_stream(request(**more), [], end_stream=True)
    assert (engine.take(), engine.can_open) == (b"", True)


@pytest.mark.parametrize(
    "name", [b"host", b"content-length", b"transfer-encoding", b"connection", b"te", b"upgrade", b"x\r\ny"]
)
def test_a_field_that_frames_or_routes_is_never_written(name: bytes) -> None:
    with pytest.raises(ValueError, match="not writable"):
        written(request(), [(name, b"1")], end=True)


def test_an_announced_body_must_come() -> None:
    with pytest.raises(ValueError, match="announced"):
        written(request(b"POST", length=5), [], end=True)


def test_a_body_is_written_as_announced() -> None:
    engine = opened(b"POST", end=False, length=5)
    engine.send_data(1, b"hel", False)
    engine.send_data(1, b"lo", True)
    assert (engine.take(), engine.must_close) == (b"hello", False)
    engine = opened(b"POST", end=False, length=None)
    engine.send_data(1, b"hello", False)
    engine.send_trailers(1, [(b"x-sum", b"1")])
    assert engine.take() == b"5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n"


@pytest.mark.parametrize("data", [b"hell", b"hello!"])
def test_a_body_that_does_not_fit_closes(data: bytes) -> None:
    engine = opened(b"POST", end=False, length=5)
    engine.send_data(1, data, True)
    assert engine.must_close
    assert len(engine.take()) < 5


def test_a_second_request_waits_for_the_first_answer() -> None:
    engine = opened()
    assert not engine.can_open
    with pytest.raises(RuntimeError):
        engine.open_stream(request(), [], end_stream=True)


# -- answers ---------------------------------------------------------------------------------------------


@FEEDS
@pytest.mark.parametrize("data", [OK, CHUNKED])
def test_an_answer_is_read_by_its_own_framing(feed: Any, data: bytes) -> None:
    engine = opened()
    head, *body = feed(engine, data)
    assert isinstance(head, ResponseReceived)
    assert (head.head.status, head.end_stream) == (200, False)
    assert b"".join(event.data for event in body) == b"hello"
    assert [event.end_stream for event in body] == [False] * (len(body) - 1) + [True]
    assert (engine.reusable, engine.can_open, engine.is_idle, engine.must_close) == (True, True, True, False)


@FEEDS
def test_a_connection_carries_one_exchange_after_the_other(feed: Any) -> None:
    engine = opened()
    for number, data in enumerate((OK, CHUNKED, b"HTTP/1.1 204 No Content\r\n\r\n", OK), 1):
        assert {event.stream_id for event in feed(engine, data)} == {number}
        assert engine.open_stream(request(), [], end_stream=True) == number + 1
        engine.take()


@FEEDS
@pytest.mark.parametrize(
    ("method", "data", "length"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 5),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None),
        (b"HEAD", b"HTTP/1.1 200 OK\r\n\r\n", None),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", None),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 5),
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 0),
        (b"GET", b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 0),
        (b"GET", b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", 0),
    ],
)
def test_some_answers_have_no_body(feed: Any, method: bytes, data: bytes, length: int | None) -> None:
    engine = opened(method)
    (event,) = feed(engine, data)
    assert (event.end_stream, event.head.length) == (True, length)
    assert engine.reusable


@FEEDS
def test_a_body_without_framing_goes_on_to_the_end(feed: Any) -> None:
    engine = opened()
    events = feed(engine, b"HTTP/1.1 200 OK\r\n\r\nhello")
    assert b"".join(event.data for event in events[1:]) == b"hello"
    assert not any(event.end_stream for event in events)
    assert engine.receive_eof() == [DataReceived(1, b"", True)]
    assert engine.must_close
    assert not engine.reusable


@FEEDS
def test_trailers_are_filtered(feed: Any) -> None:
    events = feed(opened(), CHUNKED[:-2] + b"X-Sum: 1\r\nSet-Cookie: a\r\n\r\n")
    assert events[-1] == TrailersReceived(1, [(b"x-sum", b"1")])


@FEEDS
def test_interim_answers_are_told_and_counted(feed: Any) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    events = feed(opened(), b"HTTP/1.1 100 Continue\r\n\r\n" + interim + OK)
    assert events[:2] == [
        InformationalReceived(1, 100, []),
        InformationalReceived(1, 103, [(b"link", b"</a>")]),
    ]
    assert isinstance(events[2], ResponseReceived)
    engine = opened()
    assert len(feed(engine, interim * 32)) == 32
    assert feed(engine, interim) == [PROTOCOL_ERROR]
    assert engine.must_close


HEADS = [
    b"HTTP/1.1 20 OK\r\n\r\n",
    b"HTTP/1.1 2000 OK\r\n\r\n",
    b"HTTP/1.1 600 OK\r\n\r\n",
    b"HTTP/1.1 099 OK\r\n\r\n",
    b"HTTP/1.1 +20 OK\r\n\r\n",
    b"HTTP/1.1  200 OK\r\n\r\n",
    b"HTTP/1.2 200 OK\r\n\r\n",
    b"HTTP/2 200 OK\r\n\r\n",
    b"http/1.1 200 OK\r\n\r\n",
    b"ICY 200 OK\r\n\r\n",
    b"HTTP/1.1 200 O\x00K\r\n\r\n",
    b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    b"hello",
    *(
        b"HTTP/1.1 200 OK\r\n" + field + b"\r\n\r\n"
        for field in (
            b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: chunked\r\nContent-Length: 5",
            b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: 5\r\nContent-Length: 5",
            b"Content-Length: 5, 5",
            b"Content-Length: +5", b"Content-Length: -1", b"Content-Length:", b"Transfer-Encoding: gzip, chunked",
            b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked, chunked", b"X: \x00", b"X: a\rb",
            b"X: a\nb",
            b"X: a\r\n folded", b"X : 1", b"no colon", b": 1", b"X: " + b"a" * 40_000,
        )
    ),
    b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 101 + b"\r\n",
    b"HTTP/1.1 200 OK\r\n" + (b"X: " + b"a" * 30_000 + b"\r\n") * 3 + b"\r\n",
]  # fmt: skip


@pytest.mark.parametrize("data", HEADS)
def test_an_answer_with_two_readings_is_refused(data: bytes) -> None:
    for feed in (whole, bytewise) if len(data) < 1000 else (whole,):
        engine = opened()
        events = feed(engine, data + (OK if b"\r\n\r\n" in data else b" " * 20 + b"\r\n\r\n"))
        assert events == [PROTOCOL_ERROR]
        assert engine.must_close
        assert engine.fault
        assert not engine.reusable
        assert feed(engine, OK) == []


@FEEDS
def test_a_bad_chunk_resets_the_open_answer(feed: Any) -> None:
    engine = opened()
    events = feed(engine, CHUNKED.replace(b"hello\r\n", b"hello!\r\n"))
    assert events[-1] == PROTOCOL_ERROR
    assert not any(getattr(event, "end_stream", False) for event in events)
    assert engine.must_close


@pytest.mark.parametrize(
    "data", [b"", b"HTTP/1.1 200", OK[:-1], CHUNKED[:-1], CHUNKED[:-5], b"HTTP/1.1 103 A\r\n\r\n"]
)
def test_an_answer_cut_off_is_never_complete(data: bytes) -> None:
    engine = opened()
    engine.receive(data)
    assert engine.receive_eof() == [StreamReset(1, 2, by_peer=True, reason="truncated")]
    assert engine.must_close
    assert not engine.reusable


def test_an_end_before_the_request_has_left_may_be_tried_elsewhere() -> None:
    engine = Http1Client(WireLimits())
    engine.open_stream(request(), [], end_stream=True)
    assert engine.receive_eof() == [StreamReset(1, 7, by_peer=True, reason="upstream_closed")]


def test_the_end_while_idle_is_clean() -> None:
    engine = opened()
    engine.receive(OK)
    assert engine.receive_eof() == [ConnectionEnded()]
    assert engine.must_close
    assert not engine.can_open
    assert engine.receive_eof() == []


# -- whether the connection may be used again (S-13) -----------------------------------------------------


@FEEDS
@pytest.mark.parametrize("surplus", [b"x", OK, b"\r\n"])
def test_bytes_behind_an_answer_close_the_connection(feed: Any, surplus: bytes) -> None:
    engine = opened()
    events = feed(engine, OK + surplus)
    assert merged(events) == merged(whole(opened(), OK))
    assert engine.must_close
    assert not engine.reusable


@pytest.mark.parametrize("method", [b"HEAD", b"GET"])
def test_a_body_that_may_not_be_closes_the_connection(method: bytes) -> None:
    engine = opened(method)
    status = b"200 OK" if method == b"HEAD" else b"204 No Content"
    (event,) = engine.receive(b"HTTP/1.1 " + status + b"\r\nContent-Length: 5\r\n\r\nhello")
    assert event.end_stream  # type: ignore[attr-defined]
    assert engine.must_close


def test_bytes_before_any_request_close_the_connection() -> None:
    engine = Http1Client(WireLimits())
    assert engine.receive(OK) == []
    assert engine.must_close
    assert not engine.can_open


def test_an_answer_before_its_request_has_left_is_not_its_answer() -> None:
    engine = Http1Client(WireLimits())
    engine.open_stream(request(), [], end_stream=True)
    assert engine.receive(OK) == [PROTOCOL_ERROR]
    assert engine.must_close


@pytest.mark.parametrize(
    "data",
    [
        OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        OK.replace(b"\r\n\r\n", b"\r\nConnection: x, Close\r\n\r\n"),
        OK.replace(b"1.1", b"1.0"),
        OK.replace(b"1.1", b"1.0").replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n"),
    ],
)
def test_a_connection_the_app_gives_up_is_not_used_again(data: bytes) -> None:
    engine = opened()
    assert engine.receive(data)[-1] == DataReceived(1, b"hello", True)
    assert not engine.reusable
    assert engine.must_close


def test_an_answer_before_the_end_of_the_request_ends_the_connection() -> None:
    engine = opened(b"POST", end=False, length=5)
    engine.send_data(1, b"he", False)
    engine.take()
    assert engine.receive(OK)[-1] == DataReceived(1, b"hello", True)
    assert not engine.reusable
    assert engine.must_close
    engine.send_data(1, b"llo", True)
    assert engine.take() == b""


def test_an_answer_that_begins_before_the_end_of_the_request_is_the_last() -> None:
    engine = opened(b"POST", end=False, length=5)
    engine.receive(OK[:-1])
    engine.send_data(1, b"hello", True)
    engine.take()
    assert engine.receive(OK[-1:]) == [DataReceived(1, b"o", True)]
    assert not engine.reusable


def test_a_request_that_has_not_all_left_is_not_complete() -> None:
    engine = opened(b"POST", end=False, length=5)
    engine.send_data(1, b"hello", True)
    engine.receive(OK)
    assert not engine.reusable


def test_after_shutting_down_no_request_is_opened() -> None:
    engine = opened()
    engine.shut_down()
    engine.receive(OK)
    assert not engine.can_open
    assert not engine.must_close


def test_a_reset_closes_the_connection() -> None:
    engine = opened(b"POST", end=False, length=None)
    engine.send_data(1, b"part", False)
    engine.reset(1)
    engine.send_data(1, b"", True)
    assert engine.must_close
    assert engine.take() == b"4\r\npart\r\n"
    assert engine.receive(OK) == []


def test_a_reset_after_the_answer_changes_nothing() -> None:
    engine = opened()
    engine.receive(OK)
    engine.reset(1)
    assert engine.reusable


# -- upgrade ---------------------------------------------------------------------------------------------


@FEEDS
def test_a_proven_101_opens_the_tunnel(feed: Any) -> None:
    engine = upgrading()
    events = feed(engine, SWITCH + b"\x81\x01a")
    assert events[0].head.status == 101
    assert events[0].head.upgrade == b"websocket"
    assert events[0].head.headers == [(b"sec-websocket-accept", PROOF)]
    assert b"".join(event.data for event in events[1:]) == b"\x81\x01a"
    engine.send_data(1, b"raw", False)
    assert engine.take() == b"raw"
    engine.send_data(1, b"", True)
    assert engine.half_close
    assert engine.receive_eof() == [DataReceived(1, b"", True)]
    assert not engine.reusable


@FEEDS
@pytest.mark.parametrize(
    "data",
    [
        SWITCH.replace(PROOF, b"x" * 28),
        SWITCH.replace(b"Sec-WebSocket-Accept", b"X-Other"),
        SWITCH.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Accept: " + PROOF + b"\r\n\r\n"),
        SWITCH.replace(b": websocket", b": h2c"),
        SWITCH.replace(b"Connection: Upgrade", b"Connection: x"),
        SWITCH.replace(b"1.1", b"1.0"),
    ],
)
def test_a_101_that_proves_nothing_is_refused(feed: Any, data: bytes) -> None:
    engine = upgrading()
    assert feed(engine, data + b"x") == [PROTOCOL_ERROR]
    assert engine.must_close


@FEEDS
def test_a_101_nobody_asked_for_is_refused(feed: Any) -> None:
    engine = opened()
    assert feed(engine, SWITCH) == [PROTOCOL_ERROR]
    assert engine.must_close


def test_another_answer_to_an_upgrade_ends_the_connection() -> None:
    engine = upgrading()
    assert engine.receive(OK)[-1] == DataReceived(1, b"hello", True)
    assert not engine.reusable


@pytest.mark.parametrize(
    "data", [OK, CHUNKED, b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"HTTP/1.1 200 OK\r\n\r\nhello"]
)
def test_where_the_bytes_are_cut_changes_nothing(data: bytes) -> None:
    def read(engine: Http1Client, *pieces: bytes) -> list[Event]:
        return [event for piece in pieces for event in engine.receive(piece)] + engine.receive_eof()

    expected = merged(read(opened(), data))
    for cut in range(1, len(data)):
        assert merged(read(opened(), data[:cut], data[cut:])) == expected
