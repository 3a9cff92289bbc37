"""HTTP/2 server engines: windows, concurrency, floods and the end of a connection, over both libraries."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.wire.events import (
    ConnectionEnded,
    DataReceived,
    Event,
)
from proxy.wire.http2 import NgServer
from tests.support import h2_frames as h2
from tests.support.h2_frames import GET, OK, POST
from tests.support.h2_peer import (
    TAIL,
    Peer,
    kinds,
    served,
    servers,
)


def sized(length: int) -> h2.Fields:
    return [*POST, (b"content-length", b"%d" % length)]


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
def test_a_transfer_may_read_further_ahead_and_the_connection_bounds_it_as_before(made: Any) -> None:
    peer = served(made)
    peer(h2.headers(1, POST, end=False), h2.headers(3, POST, end=False))
    taken = 0
    for _ in range(6):
        for event in fill(peer, 1, 48_000):
            taken += event.size  # type: ignore[attr-defined]
            peer.engine.acknowledge(1, event.size)  # type: ignore[attr-defined]
        peer.written()
    assert taken > 256 * 1024
    given, whole = peer.reader.window_given(1), peer.reader.window_given(0)
    # Libraries give windows back in portions: at most half of one is outstanding.
    assert 192 * 1024 <= given + 64 * 1024 - taken <= 256 * 1024
    assert whole <= 1024 * 1024 - 65_535 + taken, "the connection's window is no wider than before"
    assert peer.reader.window_given(3) == 0, "and no other stream's"
    assert not peer.engine.must_close


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
