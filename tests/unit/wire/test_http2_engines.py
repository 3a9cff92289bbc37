"""HTTP/2 server engines, fed by hand: requests, answers, refusals. Every test runs over both libraries."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.wire.events import (
    ConnectionEnded,
    DataReceived,
    RequestReceived,
    RequestRefused,
    StreamDrained,
    StreamReset,
    TrailersReceived,
)
from proxy.wire.http2 import H2Client, H2Server, NgClient, NgServer, client_engine, server_engine
from proxy.wire.limits import WireLimits
from tests.support import h2_frames as h2
from tests.support.h2_frames import GET, POST, Reader
from tests.support.h2_peer import (
    TAIL,
    kinds,
    served,
    servers,
)
from tests.unit.wire.feeding import bytewise, merged, whole


def test_engines_are_found_by_name() -> None:
    assert (server_engine("ngh2"), server_engine("h2")) == (NgServer, H2Server)
    assert (client_engine("ngh2"), client_engine("h2")) == (NgClient, H2Client)
    with pytest.raises(KeyError):
        server_engine("nghttp3")


# -- the server: beginning ------------------------------------------------------------------------------------


@servers
def test_a_server_begins_with_settings_and_a_wide_connection_window(made: Any) -> None:
    engine = made(WireLimits())
    engine.start()
    reader = Reader()
    reader.feed(engine.take())
    expected = {1: 4096, 3: 100, 4: 65536, 6: 65536, 9: 1}
    assert reader.frames[0].settings.items() >= expected.items()
    assert reader.window_given(0) == 1024 * 1024 - 65535


@servers
@pytest.mark.parametrize("feed", [whole, bytewise])
def test_a_conversation_goes_the_same_way_in_any_pieces(made: Any, feed: Any) -> None:
    head = [*POST, (b"content-type", b"text/plain"), (b"cookie", b"a=1"), (b"cookie", b"b=2")]
    conversation = (
        h2.HELLO
        + h2.headers(1, head, end=False)
        + h2.data(1, b"hel", padding=200)
        + h2.data(1, b"lo", end=True)
        + h2.headers(3, done=False, fields=h2.block(GET)[:5])
        + h2.continuation(3, h2.block(GET)[5:])
        + h2.headers(5, POST, end=False)
        + h2.data(5, b"x")
        + h2.headers(5, [(b"x-sum", b"1")])
        + h2.headers(7, POST, end=False)
        + h2.reset(7)
        + TAIL
    )
    engine = made(WireLimits())
    engine.start()
    engine.take()
    events = feed(engine, conversation)
    assert merged(events) == merged(whole(fresh(made), conversation))
    assert kinds(events) == [
        "RequestReceived", "DataReceived", "DataReceived", "RequestReceived", "RequestReceived",
        "DataReceived", "TrailersReceived", "RequestReceived", "StreamReset",
    ]  # fmt: skip
    assert events[0].head.headers == [(b"content-type", b"text/plain"), (b"cookie", b"a=1; b=2")]  # type: ignore[attr-defined]


def fresh(made: Any) -> Any:
    engine = made(WireLimits())
    engine.start()
    engine.take()
    return engine


@servers
def test_mid_head_says_that_a_header_block_is_open(made: Any) -> None:
    peer = served(made)
    assert not peer.engine.mid_head
    peer(h2.headers(1, h2.block(GET)[:4], done=False))
    assert peer.engine.mid_head
    peer(h2.continuation(1, h2.block(GET)[4:]))
    assert not peer.engine.mid_head


# -- the server: answers ----------------------------------------------------------------------------------------


@servers
def test_an_answer_with_body_and_trailers(made: Any) -> None:
    peer = served(made)
    peer(h2.headers(1))
    engine = peer.engine
    engine.send_informational(1, 103, [(b"link", b"</a>")])
    engine.send_response(1, 200, [(b"a", b"b")], length=5, end_stream=False)
    engine.send_data(1, b"hello", False)
    engine.send_trailers(1, [(b"grpc-status", b"0")])
    peer.written()
    assert peer.reader.fields[1] == [
        [(b":status", b"103"), (b"link", b"</a>")],
        [(b":status", b"200"), (b"a", b"b"), (b"content-length", b"5")],
        [(b"grpc-status", b"0")],
    ]
    assert peer.reader.body(1) == b"hello"
    assert engine.is_idle


@servers
@pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"GET", 304), (b"GET", 204)])
def test_what_has_no_body_gets_none(made: Any, method: bytes, status: int) -> None:
    peer = served(made)
    peer(h2.headers(1, [(b":method", method), *GET[1:]]))
    peer.engine.send_response(1, status, [], length=5, end_stream=False)
    peer.engine.send_data(1, b"hello", True)
    peer.written()
    assert peer.reader.body(1) == b""
    assert peer.engine.is_idle
    assert ((b"content-length", b"5") in peer.reader.fields[1][0]) == (status != 204)


@servers
def test_an_illegal_header_value_is_not_written(made: Any) -> None:
    peer = served(made)
    peer(h2.headers(1))
    with pytest.raises(ValueError, match="control"):
        peer.engine.send_response(1, 200, [(b"a", b"b\r\nc: d")], length=0, end_stream=True)


@servers
def test_data_beyond_the_window_waits(made: Any) -> None:
    peer = served(made)
    peer(h2.headers(1))
    peer.engine.send_response(1, 200, [], length=None, end_stream=False)
    peer.engine.send_data(1, b"x" * 70_000, True)
    assert peer.engine.queued(1) == 70_000
    peer.written()
    assert peer.engine.queued(1) == peer.engine.queued(0) == 70_000 - 65_535
    assert not peer.engine.is_idle
    assert StreamDrained(1) in peer(h2.window(0, 10_000), h2.window(1, 10_000))
    assert peer.reader.body(1) == b"x" * 70_000
    assert peer.engine.queued(0) == 0
    assert peer.engine.is_idle


@servers
def test_many_answers_share_the_connection_window(made: Any) -> None:
    peer = served(made)
    peer(h2.headers(1), h2.headers(3), h2.headers(5))
    for stream_id in (1, 3, 5):
        peer.engine.send_response(stream_id, 200, [], length=None, end_stream=False)
        peer.engine.send_data(stream_id, b"x" * 60_000, True)
    peer.written()
    assert all(peer.reader.body(stream_id) for stream_id in (1, 3, 5))


@servers
def test_what_is_sent_on_a_stream_that_is_gone_is_dropped(made: Any) -> None:
    peer = served(made)
    events = peer(h2.headers(1), h2.reset(1))
    assert kinds(events) == ["RequestReceived", "StreamReset"]
    engine = peer.engine
    engine.send_informational(1, 100, [])
    engine.send_response(1, 200, [], length=3, end_stream=False)
    engine.send_data(1, b"abc", False)
    engine.send_trailers(1, [(b"a", b"b")])
    engine.reset(1)
    engine.acknowledge(1, 0)
    assert engine.take() == b""
    assert engine.is_idle


@servers
def test_an_early_answer_is_complete_before_the_request_is_reset(made: Any) -> None:
    peer = served(made)
    peer(h2.headers(1, POST, end=False), h2.window(0, 100_000))
    peer.engine.send_response(1, 413, [], length=None, end_stream=False)
    peer.engine.send_data(1, b"x" * 70_000, True)
    peer.engine.reset(1, 0)
    peer.written()
    assert peer.reader.resets(1) == []
    peer(h2.window(1, 100_000))
    peer.written()
    assert peer.reader.body(1) == b"x" * 70_000
    assert peer.reader.resets(1) == [0]
    assert peer.engine.is_idle


@servers
def test_a_reset_by_the_owner_ends_the_stream_silently(made: Any) -> None:
    peer = served(made)
    peer(h2.headers(1, POST, end=False))
    peer.engine.reset(1, 2)
    peer.written()
    assert peer.reader.resets(1) == [2]
    assert peer(h2.data(1, b"late", end=True)) == []
    assert peer.engine.open_streams == 0


# -- the server: malformed requests -----------------------------------------------------------------------------


@servers
@pytest.mark.parametrize(
    "fields",
    [
        [*GET, (b"connection", b"close")],
        [*GET, (b"Upper", b"x")],
        [*GET, (b"host", b"other.shop")],
        [*GET, (b"a", b" padded")],
        [*GET, (b"content-length", b"1")],
        [*GET, (b"content-length", b"+0")],
        [*GET, (b"x_y", b"1")],
        [*GET[:2], (b":path", b"/a b"), GET[3]],
        [*GET[:2], (b":path", b"/%2e%2e%2f"), GET[3]],
        [GET[0], (b":scheme", b"file"), *GET[2:]],
        [*GET[:3], (b":authority", b"user@api.shop")],
        GET[1:],
        [],
    ],
)
def test_a_malformed_request_is_reset_and_its_neighbours_live(made: Any, fields: h2.Fields) -> None:
    peer = served(made)
    peer(h2.headers(1, POST, end=False))
    events = peer(h2.headers(3, fields), h2.headers(5), h2.data(1, b"x", end=True))
    assert sorted(kinds(events)) == ["DataReceived", "RequestReceived", "RequestRefused"]
    (refused,) = [event for event in events if isinstance(event, RequestRefused)]
    assert (refused.stream_id, refused.opened, refused.answerable) == (3, False, False)
    assert peer.reader.resets(3) == [1]
    assert peer.reader.goaways() == []
    assert not peer.engine.must_close


@servers
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([*GET, *[(b"a%d" % n, b"") for n in range(110)]], "too_many_headers"),
        ([*GET, (b"a", b"x" * 15_000), (b"b", b"x" * 15_000)], "head_too_large"),
        ([(b":method", b"TRACE"), *GET[1:]], "method_not_allowed"),
        ([(b":method", b"BREW"), *GET[1:]], "method_unknown"),
        ([*GET, (b"expect", b"a-miracle")], "expectation_failed"),
    ],
)
@pytest.mark.parametrize("end", [True, False])
def test_some_refusals_can_be_answered(made: Any, fields: h2.Fields, reason: str, end: bool) -> None:
    peer = served(made, head=25_000)
    encoded = h2.block(fields)
    cuts = [encoded[place : place + 16_000] for place in range(0, len(encoded), 16_000)]
    frames = [h2.headers(1, cuts[0], end=end, done=len(cuts) == 1)]
    frames += [h2.continuation(1, cut, done=cut is cuts[-1]) for cut in cuts[1:]]
    (refused,) = peer(*frames)
    assert isinstance(refused, RequestRefused)
    assert (refused.reason, refused.answerable, refused.opened) == (reason, True, False)
    assert peer([h2.data(1, b"ignored"), b""][end]) == []
    peer.engine.send_response(1, 431, [], length=4, end_stream=False)
    peer.engine.send_data(1, b"nope", True)
    peer.written()
    assert peer.reader.fields[1][0][0] == (b":status", b"431")
    assert peer.reader.body(1) == b"nope"
    assert peer.reader.resets(1) == [] if end else [0]
    assert peer.engine.is_idle
    assert kinds(peer(h2.headers(3))) == ["RequestReceived"]  # HPACK is still in step (S-21)


@servers
def test_a_head_far_beyond_the_limit_ends_the_connection(made: Any) -> None:
    peer = served(made, head=10_000)
    encoded = h2.block([*GET, *[(b"a%d" % n, b"x" * 5000) for n in range(10)]])
    cuts = [encoded[place : place + 16_000] for place in range(0, len(encoded), 16_000)]
    frames = [h2.headers(1, cuts[0], done=False)]
    frames += [h2.continuation(1, cut, done=cut is cuts[-1]) for cut in cuts[1:]]
    (ended,) = peer(*frames)
    assert isinstance(ended, ConnectionEnded)
    assert ended.reason == "flood"
    assert peer.reader.goaways() == [0xB]
    assert peer.engine.must_close
    assert peer.engine.receive(h2.ping()) == []


# -- the server: content-length (S-17) --------------------------------------------------------------------------


def sized(length: int) -> h2.Fields:
    return [*POST, (b"content-length", b"%d" % length)]


@servers
def test_the_byte_that_completes_a_body_waits_for_the_end(made: Any) -> None:
    peer = served(made)
    assert kinds(peer(h2.headers(1, sized(5), end=False), h2.data(1, b"abc"))) == ["RequestReceived", "DataReceived"]
    assert peer(h2.data(1, b"de")) == []
    assert peer(h2.data(1, b"", end=True)) == [DataReceived(1, b"de", True, 2)]


@servers
def test_the_completing_byte_with_the_end_passes_at_once(made: Any) -> None:
    peer = served(made)
    assert peer(h2.headers(1, sized(2), end=False), h2.data(1, b"ab", end=True))[1:] == [
        DataReceived(1, b"ab", True, 2)
    ]


@servers
def test_trailers_release_what_was_held_back(made: Any) -> None:
    peer = served(made)
    peer(h2.headers(1, sized(2), end=False), h2.data(1, b"ab"))
    events = peer(h2.headers(1, [(b"x-sum", b"1"), (b"content-length", b"7")][:1]))
    assert events == [DataReceived(1, b"ab", False, 2), TrailersReceived(1, [(b"x-sum", b"1")])]


@servers
@pytest.mark.parametrize(
    "frames",
    [
        [h2.data(1, b"abcdef")],
        [h2.data(1, b"abc"), h2.data(1, b"abc")],
        [h2.data(1, b"abcde"), h2.data(1, b"f", end=True)],
        [h2.data(1, b"abcd", end=True)],
        [h2.data(1, b"", end=True)],
        [h2.data(1, b"abc"), h2.headers(1, [(b"a", b"b")])],
    ],
)
def test_a_body_of_another_length_is_a_stream_error(made: Any, frames: list[bytes]) -> None:
    peer = served(made)
    peer(h2.headers(1, sized(5), end=False))
    events = peer(*frames, h2.headers(3))
    refused = [event for event in events if isinstance(event, RequestRefused)]
    assert [(r.stream_id, r.reason, r.opened) for r in refused] == [(1, "body_length_mismatch", True)]
    assert not any(isinstance(e, DataReceived) and e.end_stream for e in events)
    assert peer.reader.resets(1) == [1]
    assert isinstance(events[-1], RequestReceived) or isinstance(events[-2], RequestReceived)
    assert not peer.engine.must_close


@servers
def test_a_body_limit_holds_without_content_length(made: Any) -> None:
    peer = served(made, body=10)
    peer(h2.headers(1, POST, end=False))
    assert kinds(peer(h2.data(1, b"x" * 10))) == ["DataReceived"]
    (refused,) = peer(h2.data(1, b"x"))
    assert isinstance(refused, RequestRefused)
    assert (refused.reason, refused.opened) == ("body_too_large", True)


# -- the server: trailers -----------------------------------------------------------------------------------------


@servers
def test_trailers_that_frame_or_authenticate_are_dropped(made: Any) -> None:
    peer = served(made)
    peer(h2.headers(1, POST, end=False))
    fields = [(b"x-ok", b"1"), (b"authorization", b"x"), (b"x-forwarded-client-cert", b"x")]
    assert peer(h2.headers(1, fields)) == [TrailersReceived(1, [(b"x-ok", b"1")])]


@servers
def test_a_pseudo_header_in_trailers_aborts_the_request(made: Any) -> None:
    peer = served(made)
    peer(h2.headers(1, POST, end=False))
    (event,) = peer(h2.headers(1, [(b":path", b"/x")]))
    assert isinstance(event, (RequestRefused, StreamReset))
    assert peer.reader.resets(1) == [1]
