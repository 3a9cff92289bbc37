"""HTTP/2 engines: the server fed by hand, the client fed by hand, and clients against servers in memory.

Every test runs over both libraries; a pair runs over all four combinations.
"""

from __future__ import annotations

from typing import Any

import pytest

from proxy.errors import UpstreamGone
from proxy.wire.events import (
    ConnectionEnded,
    DataReceived,
    Event,
    GoAwayReceived,
    InformationalReceived,
    PingAcknowledged,
    RequestHead,
    RequestReceived,
    RequestRefused,
    ResponseReceived,
    StreamDrained,
    StreamReset,
    TrailersReceived,
)
from proxy.wire.http2 import H2Client, H2Server, NgClient, NgServer, client_engine, server_engine
from proxy.wire.limits import WireLimits
from tests.support import h2_frames as h2
from tests.support.h2_frames import GET, OK, POST, Reader
from tests.unit.wire.feeding import bytewise, merged, whole

SERVERS = [NgServer, H2Server]
CLIENTS = [NgClient, H2Client]
TAIL = h2.raw(6, 0, 0, b"1234")[:11]  # the beginning of a PING


class Peer:
    """An engine and the reader of what it writes."""

    def __init__(self, made: Any, *, hello: bytes, **limits: Any) -> None:
        self.engine = made(WireLimits(**limits))
        self.reader = Reader()
        self.engine.start()
        self.engine.receive(hello)
        self.written()

    def written(self) -> list[Any]:
        return self.reader.feed(self.engine.take())

    def __call__(self, *frames: bytes) -> list[Event]:
        """Feed, then write."""
        events: list[Event] = self.engine.receive(b"".join(frames))
        self.written()
        return events


def served(made: Any, **limits: Any) -> Peer:
    return Peer(made, hello=h2.HELLO + h2.settings(ack=True), **limits)


def asking(made: Any, **limits: Any) -> Peer:
    return Peer(made, hello=h2.SERVER_HELLO + h2.settings(ack=True), **limits)


def request_head(method: bytes = b"POST", *, length: int | None = None, **more: Any) -> RequestHead:
    return RequestHead(
        method=method,
        scheme=b"https",
        authority=b"api.shop",
        host=b"api.shop",
        path=b"/a",
        target=b"/a?b=c",
        headers=[],
        version=20,
        length=length,
        **more,
    )


def asked(peer: Peer, method: bytes = b"GET", *, end: bool = True, **more: Any) -> int:
    stream_id: int = peer.engine.open_stream(request_head(method, **more), [], end_stream=end)
    peer.written()
    return stream_id


def kinds(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


servers = pytest.mark.parametrize("made", SERVERS)
clients = pytest.mark.parametrize("made", CLIENTS)


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
    assert peer(h2.headers(1, sized(2), end=False), h2.data(1, b"ab", end=True))[1:] == [DataReceived(1, b"ab", True, 2)]


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


# -- the server: windows --------------------------------------------------------------------------------------------


def fill(peer: Peer, stream_id: int, total: int) -> list[Event]:
    events: list[Event] = []
    for _ in range(total // 16_000):
        events += peer.engine.receive(h2.data(stream_id, b"x" * 16_000))
    return events


@servers
def test_windows_open_only_for_what_was_acknowledged(made: Any) -> None:
    peer = served(made)
    peer(h2.headers(1, POST, end=False))
    before = peer.reader.window_given(0)
    events = fill(peer, 1, 64_000)
    peer.written()
    assert peer.reader.window_given(1) == 0
    for event in events:
        peer.engine.acknowledge(1, event.size)  # type: ignore[attr-defined]
    peer.written()
    assert peer.reader.window_given(1) > 32_000
    for _ in range(20):
        for event in fill(peer, 1, 48_000):
            peer.engine.acknowledge(1, event.size)  # type: ignore[attr-defined]
        peer.written()
    assert not peer.engine.must_close
    assert peer.reader.window_given(0) - before > 400_000


@servers
def test_padding_gives_its_window_back(made: Any) -> None:
    peer = served(made)
    peer(h2.headers(1, POST, end=False))
    for _ in range(400):
        (event,) = peer(h2.data(1, b"x", padding=255))
        peer.engine.acknowledge(1, event.size)  # type: ignore[attr-defined]
    assert peer.reader.window_given(1) > 50_000
    assert not peer.engine.must_close


@servers
@pytest.mark.parametrize("how", ["peer", "owner", "mismatch", "refused"])
def test_streams_that_die_with_data_under_way_do_not_stall_the_connection(made: Any, how: str) -> None:
    peer = served(made, own_resets_burst=10_000, resets_burst=10_000, glitches=10_000)
    given = 0
    stream_id = -1
    sent = 0
    while sent < 3_000_000:
        stream_id += 2
        fields = sized(20_000) if how == "mismatch" else [*POST, (b"bad_one", b"x")] if how == "refused" else POST
        events = peer(h2.headers(stream_id, fields, end=False), h2.data(stream_id, b"x" * 16_000))
        part = h2.data(stream_id, b"x" * 16_000)
        events += peer(part[:8000])
        if how == "owner":
            peer.engine.reset(stream_id)
            peer.written()
        events += peer(part[8000:])
        if how == "peer":
            events += peer(h2.reset(stream_id))
        for event in events:
            if isinstance(event, DataReceived):  # the owner gives back late, when the stream is gone
                peer.engine.acknowledge(stream_id, event.size)
        peer.engine.release(stream_id)
        peer.written()
        sent += 32_000
        given = peer.reader.window_given(0) + 65_535
        assert sent - given < 1_100_000
        assert not peer.engine.must_close
    assert sent - given < 600_000


@servers
def test_bytes_are_not_given_back_twice(made: Any) -> None:
    peer = served(made)
    peer(h2.headers(1, POST, end=False))
    before = peer.reader.window_given(0)
    for _ in range(20):
        for event in peer(h2.data(1, b"x" * 16_000)):
            for _ in range(10):
                peer.engine.acknowledge(1, event.size)  # type: ignore[attr-defined]
    peer(h2.reset(1))
    for _ in range(100):
        peer.engine.acknowledge(1, 16_000)
    peer.written()
    assert peer.reader.window_given(0) - before <= 20 * 16_000


# -- the server: concurrency (L-8) --------------------------------------------------------------------------------


@servers
def test_one_stream_too_many_is_refused_and_nobody_hears_of_it(made: Any) -> None:
    peer = served(made, streams=3)
    events = peer(*[h2.headers(n, POST, end=False) for n in (1, 3, 5, 7)])
    assert [event.stream_id for event in events] == [1, 3, 5]
    assert peer.reader.resets(7) == [7]
    assert peer.reader.goaways() == []
    assert peer(h2.data(7, b"late", end=True)) == []


@servers
def test_a_place_is_free_only_when_the_app_side_is_gone(made: Any) -> None:
    peer = served(made, streams=2)
    events = peer(h2.headers(1), h2.reset(1), h2.headers(3), h2.reset(3), h2.headers(5))
    assert kinds(events) == ["RequestReceived", "StreamReset"] * 2
    assert peer.reader.resets(5) == [7]
    peer.engine.release(1)
    assert kinds(peer(h2.headers(7), h2.headers(9))) == ["RequestReceived"]
    assert peer.reader.resets(9) == [7]


@servers
def test_an_answer_that_nobody_reads_keeps_its_place(made: Any) -> None:
    peer = served(made, streams=1)
    peer(h2.settings({4: 0}), h2.headers(1))
    peer.engine.send_response(1, 200, [], length=None, end_stream=False)
    peer.engine.send_data(1, b"x", True)
    peer.engine.release(1)
    peer.written()
    assert peer(h2.headers(3)) == []
    assert peer.reader.resets(3) == [7]


# -- the server: floods ---------------------------------------------------------------------------------------------


@servers
@pytest.mark.parametrize(
    ("frames", "limit"),
    [
        ([h2.headers(n) + h2.reset(n) for n in range(1, 303, 2)], "L-9"),
        ([h2.ping()] * 120, "L-11"),
        ([h2.settings()] * 120, "L-11"),
        ([h2.headers(1, POST, end=False)] + [h2.data(1, b"")] * 11, "L-12"),
        ([h2.priority(1)] * 101, "L-13"),
        ([h2.window(0, 1)] * 6, "L-14"),
        ([h2.headers(1, b"\x82", done=False)] + [h2.continuation(1, b"\x84", done=False)] * 9, "L-15"),
        ([h2.headers(n, [*GET, (b"te", b"gzip")]) for n in range(1, 200, 2)], "L-10"),
    ],
)
def test_floods_end_the_connection(made: Any, frames: list[bytes], limit: str) -> None:
    peer = served(made, streams=1000)
    events = peer(*frames)
    ended = events[-1]
    assert isinstance(ended, ConnectionEnded)
    assert (ended.reason, ended.detail.split(" ")[0]) == ("flood", limit)
    assert peer.reader.goaways() == [0xB]
    assert peer.engine.must_close
    assert peer.engine.take() == b""


@servers
def test_glitches_add_up_over_streams(made: Any) -> None:
    peer = served(made, glitches=3, own_resets_burst=100)
    for number in range(3):
        peer(h2.headers(1 + 2 * number, [*GET, (b"connection", b"x")]))
    assert not peer.engine.must_close
    events = peer(h2.headers(9, [*GET, (b"connection", b"x")]))
    assert isinstance(events[-1], ConnectionEnded)
    assert events[-1].detail.startswith("L-17")


@servers
def test_time_refills_the_buckets(made: Any) -> None:
    peer = served(made)
    for second in range(30):
        peer.engine.now = float(second)
        peer(*[h2.ping()] * 10)
    assert not peer.engine.must_close


@servers
def test_an_unasked_ping_answer_is_no_event(made: Any) -> None:
    peer = served(made)
    assert peer(h2.ping(ack=True)) == []
    peer.engine.ping()
    peer.written()
    assert len(peer(h2.ping(bytes(8) if made is NgServer else b"sidewall", ack=True))) == 1


# -- the server: the end ----------------------------------------------------------------------------------------------


@servers
def test_a_graceful_end_takes_what_is_under_way(made: Any) -> None:
    peer = served(made)
    peer(h2.headers(1))
    peer.engine.shut_down()
    peer.written()
    assert kinds(peer(h2.headers(3))) == ["RequestReceived"]
    peer.engine.finish()
    peer.written()
    assert [(f.last_stream_id, f.error_code) for f in peer.reader.frames if f.type == 7] == [(2**31 - 1, 0), (3, 0)]
    assert peer(h2.headers(5)) == []
    assert not peer.engine.must_close
    for stream_id in (1, 3):
        peer.engine.send_response(stream_id, 200, [], length=0, end_stream=True)
    peer.written()
    assert [peer.reader.fields[n][0][0] for n in (1, 3)] == OK * 2
    assert peer.engine.must_close


@servers
def test_a_client_that_goes_away_still_gets_its_answers(made: Any) -> None:
    peer = served(made)
    events = peer(h2.headers(1), h2.goaway())
    assert kinds(events) == ["RequestReceived", "GoAwayReceived"]
    assert not peer.engine.must_close
    peer.engine.send_response(1, 200, [], length=None, end_stream=False)
    peer.engine.send_data(1, b"hello", True)
    peer.written()
    assert peer.reader.body(1) == b"hello"
    assert peer.engine.must_close


@servers
def test_fail_says_why_and_closes(made: Any) -> None:
    peer = served(made)
    peer(h2.headers(1))
    peer.engine.fail(0xB, "head_timeout")
    peer.written()
    assert peer.reader.goaways() == [0xB]
    assert peer.engine.must_close
    peer.engine.send_response(1, 200, [], length=0, end_stream=True)
    peer.engine.reset(1)
    peer.engine.ping()
    peer.engine.finish()
    peer.engine.shut_down()
    assert peer.engine.take() == b""


@servers
@pytest.mark.parametrize(("tail", "reason"), [(b"", ""), (TAIL, "truncated")])
def test_the_end_of_the_bytes(made: Any, tail: bytes, reason: str) -> None:
    peer = served(made)
    peer(h2.headers(1), tail)
    (ended,) = peer.engine.receive_eof()
    assert isinstance(ended, ConnectionEnded)
    assert ended.reason == reason
    assert peer.engine.receive_eof() == []


@servers
def test_garbage_ends_the_connection_with_a_goaway(made: Any) -> None:
    peer = served(made)
    events = peer(h2.headers(1, POST, end=False), h2.raw(0, 0, 0, b"x"))
    assert isinstance(events[-1], ConnectionEnded)
    assert events[-1].reason == "frame_error"
    assert peer.reader.goaways() == [1]
    assert peer.engine.must_close


# -- the client -------------------------------------------------------------------------------------------------------


@clients
def test_a_request_as_it_is_written(made: Any) -> None:
    peer = asking(made)
    head = request_head(b"POST", length=0, te_trailers=True)
    stream_id = peer.engine.open_stream(head, [(b"a", b"b")], end_stream=True)
    peer.written()
    assert peer.reader.fields[stream_id] == [
        [
            (b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"api.shop"), (b":path", b"/a?b=c"),
            (b"a", b"b"), (b"content-length", b"0"), (b"te", b"trailers"),
        ]
    ]  # fmt: skip


@clients
def test_a_client_begins_with_preface_and_settings(made: Any) -> None:
    engine = made(WireLimits())
    engine.start()
    written = engine.take()
    assert written.startswith(h2.PREFACE)
    reader = Reader()
    reader.feed(written)
    assert reader.frames[0].settings.items() >= {1: 4096, 2: 0, 4: 65536, 6: 65536, 9: 1}.items()


@clients
@pytest.mark.parametrize("feed", [whole, bytewise])
def test_an_answer_as_it_is_read(made: Any, feed: Any) -> None:
    peer = asking(made)
    stream_id = asked(peer)
    events = feed(
        peer.engine,
        h2.headers(stream_id, [(b":status", b"103"), (b"link", b"x")], end=False)
        + h2.headers(stream_id, [*OK, (b"content-length", b"5"), (b"a", b"b")], end=False)
        + h2.data(stream_id, b"hello")
        + h2.headers(stream_id, [(b"grpc-status", b"0")])
        + TAIL,
    )
    assert kinds(events) == ["InformationalReceived", "ResponseReceived", "DataReceived", "TrailersReceived"]
    interim, response = events[:2]
    assert isinstance(interim, InformationalReceived)
    assert isinstance(response, ResponseReceived)
    assert (interim.status, interim.headers) == (103, [(b"link", b"x")])
    assert (response.head.status, response.head.length, response.head.headers) == (200, 5, [(b"a", b"b")])
    peer.written()
    assert peer.engine.is_idle


@clients
@pytest.mark.parametrize(
    "frames",
    [
        [h2.headers(1, [(b":status", b"101")], end=False)],
        [h2.headers(1, [(b":status", b"99x")])],
        [h2.headers(1, [(b"a", b"b")])],
        [h2.headers(1, [*OK, (b"connection", b"close")])],
        [h2.headers(1, [*OK, (b"content-length", b"5")])],
        [h2.headers(1, [*OK, (b"content-length", b"5")], end=False), h2.data(1, b"abc", end=True)],
        [h2.headers(1, [*OK, (b"content-length", b"5")], end=False), h2.data(1, b"abcdef")],
        [h2.headers(1, [*OK, (b"content-length", b"5")], end=False), h2.headers(1, [(b"a", b"b")])],
        [h2.headers(1, [(b":status", b"204")], end=False), h2.data(1, b"abc")],
        [h2.headers(1, OK, end=False), h2.headers(1, [(b":status", b"200")])],
        [h2.headers(1, [(b":status", b"103")], end=False)] * 33,
    ],
)
def test_a_malformed_answer_is_the_upstreams_error(made: Any, frames: list[bytes]) -> None:
    peer = asking(made)
    stream_id = asked(peer)
    other = asked(peer)
    events = peer(*frames)
    resets = [event for event in events if isinstance(event, StreamReset)]
    assert [(r.stream_id, r.by_peer, r.reason) for r in resets] == [(1, False, "upstream_protocol_error")]
    assert not any(getattr(event, "end_stream", False) for event in events)
    # Where both sides had ended already, h2 has nothing to reset.
    assert peer.reader.resets(stream_id) == [1] or (made is H2Client and frames[-1][4] & 1)
    assert kinds(peer(h2.headers(other, OK))) == ["ResponseReceived"]
    assert peer.engine.is_idle


@clients
def test_the_answer_to_head_has_a_length_and_no_body(made: Any) -> None:
    peer = asking(made)
    stream_id = asked(peer, b"HEAD")
    (event,) = peer(h2.headers(stream_id, [*OK, (b"content-length", b"500")]))
    assert isinstance(event, ResponseReceived)
    assert (event.head.length, event.end_stream) == (500, True)


@clients
def test_a_push_is_refused(made: Any) -> None:
    peer = asking(made)
    asked(peer)
    events = peer(h2.raw(5, 4, 1, (2).to_bytes(4, "big") + h2.block(GET)))
    assert isinstance(events[-1], ConnectionEnded)
    assert peer.reader.goaways() == [1]


@clients
def test_no_more_streams_than_the_peer_allows(made: Any) -> None:
    peer = Peer(made, hello=h2.settings({3: 2}) + h2.settings(ack=True))
    first, second = asked(peer), asked(peer)
    assert not peer.engine.can_open
    with pytest.raises(UpstreamGone) as caught:
        asked(peer)
    assert not caught.value.wrote
    peer(h2.headers(first, OK))
    assert peer.engine.can_open
    peer(h2.headers(second, OK), h2.settings({3: 0}))
    assert not peer.engine.can_open


@clients
def test_streams_above_the_goaway_were_not_processed(made: Any) -> None:
    peer = asking(made)
    first, second = asked(peer), asked(peer, end=False, method=b"POST")
    events = peer(h2.goaway(first))
    assert events == [GoAwayReceived(first, 0), StreamReset(second, 7, reason="upstream_reset")]
    assert not peer.engine.can_open
    assert not peer.engine.must_close
    assert kinds(peer(h2.headers(first, OK))) == ["ResponseReceived"]
    peer.written()
    assert peer.engine.must_close


@clients
def test_a_reset_after_the_answer_is_no_second_end(made: Any) -> None:
    peer = asking(made)
    stream_id = asked(peer, b"POST", end=False)
    assert kinds(peer(h2.headers(stream_id, OK), h2.reset(stream_id, 0))) == ["ResponseReceived"]
    peer.engine.send_data(stream_id, b"late", True)
    assert peer.engine.take() == b""
    assert peer.engine.is_idle


@clients
def test_a_reset_by_the_server(made: Any) -> None:
    peer = asking(made)
    stream_id = asked(peer)
    assert peer(h2.reset(stream_id, 7)) == [StreamReset(stream_id, 7, reason="upstream_reset")]
    assert peer(h2.reset(stream_id, 7)) == []


@clients
def test_a_client_that_shuts_down_opens_nothing_more(made: Any) -> None:
    peer = asking(made)
    stream_id = asked(peer)
    peer.engine.shut_down()
    assert not peer.engine.can_open
    assert kinds(peer(h2.headers(stream_id, OK))) == ["ResponseReceived"]
    peer.engine.finish()
    peer.written()
    assert peer.reader.goaways() == [0]
    assert peer.engine.must_close


@clients
def test_a_client_meets_floods_as_well(made: Any) -> None:
    peer = asking(made)
    events = peer(*[h2.ping()] * 200)
    assert events[-1].reason == "flood"  # type: ignore[attr-defined]


# -- client and server ------------------------------------------------------------------------------------------------


class Pair:
    """Both ends, joined in memory."""

    def __init__(self, client: Any, server: Any, **limits: Any) -> None:
        self.client = client(WireLimits(**limits))
        self.server = server(WireLimits(**limits))
        self.client.start()
        self.server.start()
        assert self.pump() == ([], [])

    def pump(self) -> tuple[list[Event], list[Event]]:
        """-> events of the client, events of the server, when nothing moves any more."""
        at_client: list[Event] = []
        at_server: list[Event] = []
        for _ in range(100):
            out, back = self.client.take(), self.server.take()
            if not out and not back:
                return at_client, at_server
            at_server += self.server.receive(out)
            at_client += self.client.receive(back)
        raise AssertionError("it never ends")


@pytest.fixture(params=[(c, s) for c in CLIENTS for s in SERVERS], ids=lambda p: f"{p[0].__name__}-{p[1].__name__}")
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(*request.param)


def test_one_exchange(pair: Pair) -> None:
    stream_id = pair.client.open_stream(request_head(length=4), [(b"a", b"b")], end_stream=False)
    pair.client.send_data(stream_id, b"ping", True)
    _, events = pair.pump()
    assert kinds(events) == ["RequestReceived", "DataReceived"]
    head = events[0].head  # type: ignore[attr-defined]
    assert (head.method, head.target, head.authority, head.length) == (b"POST", b"/a?b=c", b"api.shop", 4)
    pair.server.send_response(stream_id, 200, [(b"c", b"d")], length=None, end_stream=False)
    pair.server.send_data(stream_id, b"pong", False)
    pair.server.send_trailers(stream_id, [(b"grpc-status", b"0")])
    answer, _ = pair.pump()
    assert kinds(answer) == ["ResponseReceived", "DataReceived", "TrailersReceived"]
    assert pair.client.is_idle
    assert pair.server.is_idle


def test_large_bodies_both_ways(pair: Pair) -> None:
    body = bytes(range(256)) * 4000
    stream_id = pair.client.open_stream(request_head(length=len(body)), [], end_stream=False)
    pair.client.send_data(stream_id, body, True)
    there, back = b"", b""
    for _ in range(200):
        at_client, at_server = pair.pump()
        for event in at_server:
            if isinstance(event, RequestReceived):
                pair.server.send_response(stream_id, 200, [], length=None, end_stream=False)
            elif isinstance(event, DataReceived):
                there += event.data
                pair.server.acknowledge(stream_id, event.size)
                pair.server.send_data(stream_id, event.data, event.end_stream)
        for event in at_client:
            if isinstance(event, DataReceived):
                back += event.data
                pair.client.acknowledge(stream_id, event.size)
        if not at_client and not at_server:
            break
    assert there == back == body
    assert pair.client.is_idle
    assert pair.server.is_idle


def test_a_thousand_streams_on_one_connection(pair: Pair) -> None:
    for number in range(1000):
        assert pair.client.can_open
        stream_id = pair.client.open_stream(request_head(b"GET"), [], end_stream=True)
        pair.pump()
        pair.server.send_response(stream_id, 200, [], length=0, end_stream=True)
        pair.server.release(stream_id)
        answer, _ = pair.pump()
        assert kinds(answer) == ["ResponseReceived"], number


def test_resets_reach_the_other_side_once(pair: Pair) -> None:
    first = pair.client.open_stream(request_head(), [], end_stream=False)
    second = pair.client.open_stream(request_head(), [], end_stream=False)
    pair.pump()
    pair.client.reset(first)
    pair.server.reset(second, 2)
    at_client, at_server = pair.pump()
    assert at_server == [StreamReset(first, 8, reason="downstream_reset")]
    assert at_client == [StreamReset(second, 2, reason="upstream_reset")]
    assert pair.client.is_idle
    assert pair.server.is_idle


def test_pings_are_answered(pair: Pair) -> None:
    pair.client.ping()
    pair.server.ping()
    assert pair.pump() == ([PingAcknowledged()], [PingAcknowledged()])


def test_the_connection_ends_gracefully_on_both_sides(pair: Pair) -> None:
    stream_id = pair.client.open_stream(request_head(), [], end_stream=False)
    pair.pump()
    pair.server.shut_down()
    assert kinds(pair.pump()[0]) == ["GoAwayReceived"]
    assert not pair.client.can_open
    pair.server.finish()
    pair.pump()
    pair.client.send_data(stream_id, b"x", True)
    pair.pump()
    pair.server.send_response(stream_id, 200, [], length=0, end_stream=True)
    assert kinds(pair.pump()[0]) == ["ResponseReceived"]
    assert pair.server.must_close
    assert pair.client.must_close
