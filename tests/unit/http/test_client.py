"""The upstream's connection: what its end means for the exchanges on it, and its clocks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.http.client import ClientConnection
from proxy.wire.events import ConnectionEnded, GoAwayReceived, PingAcknowledged, StreamReset
from tests.support.fake_engines import FakeClient
from tests.support.rig import Rig, answer, data, request, upload
from tests.unit.observe.records import peer as make_peer

MakeRig = Callable[..., Rig]


def client(rig: Rig) -> ClientConnection:
    """The only upstream connection."""
    (pool,) = rig.cluster.endpoints[0].pools.values()
    (connection,) = pool.all()
    return connection


# -- ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upstream", [11, 20])
def test_an_idle_connection_that_ends_is_forgotten(make_rig: MakeRig, upstream: int) -> None:
    rig = make_rig(20, upstream)
    rig.caller.say(request(1))
    up = rig.connect()
    up.say(answer(1))
    up.vanish()
    assert rig.cluster.connections == 0
    rig.caller.say(request(3))
    assert len(rig.cluster.dials) == 1


def test_every_exchange_of_a_lost_connection_fails(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(request(1), request(3))
    up = rig.connect()
    up.say(answer(1, end=False))
    up.vanish()
    assert {record.reason for record in rig.service.records} == {"upstream_closed"}
    got = rig.caller.read()
    assert b"<reset 1 2>" in got
    assert b"<head 3 503>" in got
    assert rig.cluster.connections == 0
    assert rig.left() == {}


def test_a_dying_connection_is_not_given_to_who_waits(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20, max_connections=1)
    rig.caller.say(request(1), request(3))
    up = rig.connect(FakeClient(20, room=1))
    assert rig.cluster.waiting == 1
    up.vanish()
    assert rig.record.reason == "upstream_closed"
    assert rig.cluster.waiting == 1
    rig.connect().say(answer(1))
    assert [record.reason for record in rig.service.records] == ["upstream_closed", ""]
    assert rig.left() == {}


@pytest.mark.parametrize("how", ["ended", "shut", "silent", "expired", "crash"])
def test_however_it_dies_who_waits_gets_another_connection(
    make_rig: MakeRig, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    rig = make_rig(20, 20, max_connections=1)
    rig.caller.say(request(1), request(3))
    up = rig.connect(FakeClient(20, room=1))
    connection = client(rig)
    endings: dict[str, Callable[[], object]] = {
        "ended": lambda: up.say(ConnectionEnded("frame_error")),
        "shut": lambda: rig.poller.run(connection.shut),
        "silent": lambda: (
            rig.poller.run(lambda: connection.sweep(rig.poller.now + 31, 300, 30)),
            rig.poller.run(lambda: connection.sweep(rig.poller.now + 42, 300, 30)),
        ),
        "expired": lambda: (
            setattr(connection, "cut_at", rig.poller.now + 1),
            rig.poller.run(lambda: connection.sweep(rig.poller.now + 2, 300, 30)),
        ),
        "crash": lambda: rig.poller.run(lambda: connection.on_crash(RuntimeError("bug"))),
    }
    endings[how]()
    rig.pump()
    if how == "ended":
        up.engine.must_close = True
        rig.poller.run(connection.touch)
        rig.pump()
    assert len(rig.service.records) == 1
    assert connection.closed
    assert connection.exchanges == {}
    rig.connect().say(answer(1))
    assert rig.record.reason == ""
    assert rig.left() == {}


def test_a_close_without_close_notify_is_not_a_clean_end(make_rig: MakeRig) -> None:
    rig = make_rig(20, 11)
    rig.caller.say(request(1))
    up = rig.connect()
    up.engine.at_eof = [answer(1)]
    rig.poller.run(lambda: client(rig).on_eof(clean=False))
    assert rig.record.reason == "upstream_closed"
    assert "close_notify" in rig.record.details


def test_an_answer_that_ends_with_the_connection_is_complete(make_rig: MakeRig) -> None:
    rig = make_rig(20, 11)
    rig.caller.say(request(1))
    up = rig.connect()
    up.say(answer(1, end=False), data(1, 5))
    up.finish(data(1, 0, end=True))
    assert rig.record.reason == ""
    assert rig.caller.read() == b"<head 1 200>xxxxx<end 1>"
    assert rig.cluster.connections == 0
    assert rig.left() == {}


def test_a_broken_protocol_is_a_502(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(request(1))
    up = rig.connect()
    up.engine.must_close = True
    up.say(ConnectionEnded("frame_error", "what was wrong"))
    assert (rig.record.status, rig.record.reason) == (502, "upstream_protocol_error")
    assert rig.record.details == "what was wrong"
    assert rig.cluster.connections == 0


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (StreamReset(1, 2), "upstream_reset"),
        (StreamReset(1, 2, reason="truncated"), "upstream_closed"),
        (StreamReset(1, 1, by_peer=False), "upstream_protocol_error"),
    ],
)
def test_a_reset_fails_one_exchange(make_rig: MakeRig, event: StreamReset, reason: str) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(request(1), request(3))
    up = rig.connect()
    up.say(event)
    assert rig.record.reason == reason
    up.say(answer(3))
    assert rig.record.reason == ""
    assert rig.left() == {}


def test_data_of_an_exchange_that_was_given_up_is_acknowledged(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(request(1))
    up = rig.connect()
    rig.caller.say(StreamReset(1, 8))
    up.say(answer(1, end=False), data(1, 700))
    assert up.engine.owed == 0


def test_events_of_a_stream_that_was_given_up_are_ignored(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(request(1))
    up = rig.connect()
    rig.caller.say(StreamReset(1, 8))
    up.say(StreamReset(1, 8), PingAcknowledged())
    assert len(rig.service.records) == 1
    assert rig.left() == {}


# -- tried again only when nothing was written ------------------------------------------------------------------


@pytest.mark.parametrize("event", [StreamReset(1, 7), GoAwayReceived(0, 0)])
def test_what_the_upstream_did_not_process_is_tried_again(make_rig: MakeRig, event: StreamReset) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(request(1))
    rig.connect().say(event)
    assert not rig.exchange.finished
    if rig.cluster.dials:
        rig.connect().say(answer(1))
    else:
        rig.upstreams[0].say(answer(3))
    assert (rig.record.reason, rig.record.status, rig.record.attempts) == ("", 200, 2)
    assert rig.left() == {}


@pytest.mark.parametrize("event", [StreamReset(1, 7), GoAwayReceived(0, 0)])
def test_a_body_byte_that_was_written_forbids_a_second_attempt(make_rig: MakeRig, event: StreamReset) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(upload(1), data(1, 1))
    rig.connect().say(event)
    assert (rig.record.status, rig.record.reason) == (503, "upstream_closed")
    assert rig.cluster.dials == []
    assert rig.left() == {}


def test_a_body_that_has_not_begun_is_sent_with_the_second_attempt(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(upload(1))
    up = rig.connect()
    up.say(GoAwayReceived(0, 0))
    rig.caller.say(data(1, 4, end=True))
    again = rig.connect()
    assert again.read() == b"<open 1 />xxxx<end 1>"
    again.say(answer(1))
    assert rig.record.reason == ""


def test_an_upstream_that_always_refuses_is_asked_three_times(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(request(1))
    up = rig.connect()
    for stream_id in (1, 3, 5, 7, 9):
        if not rig.exchange.finished:
            up.say(StreamReset(stream_id, 7))
    assert len(up.engine.called("open")) == 3
    assert (rig.record.status, rig.record.attempts) == (503, 3)
    assert rig.left() == {}


def test_goaway_moves_what_is_above_and_keeps_what_is_below(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(request(1, b"/below"), request(3, b"/above"))
    up = rig.connect()
    up.say(GoAwayReceived(1, 0))
    again = rig.connect()
    assert b"/above" in again.read()
    up.say(answer(1))
    assert rig.cluster.connections == 1
    again.say(answer(1))
    assert [record.reason for record in rig.service.records] == ["", ""]
    assert rig.left() == {}


def test_an_answer_that_has_begun_is_never_tried_again(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(request(1))
    up = rig.connect()
    up.say(answer(1, end=False))
    up.say(StreamReset(1, 7))
    assert rig.record.reason == "upstream_closed"
    assert rig.cluster.dials == []


# -- clocks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upstream", [11, 20])
def test_an_idle_connection_is_closed_after_its_time(make_rig: MakeRig, upstream: int) -> None:
    rig = make_rig(20, upstream, idle_timeout=300.0)
    rig.caller.say(request(1))
    rig.connect().say(answer(1))
    rig.sweep(299.0)
    assert rig.cluster.connections == 1
    rig.sweep(301.0)
    assert rig.cluster.connections == 0


@pytest.mark.parametrize("upstream", [11, 20])
def test_an_upstream_that_takes_nothing_fails_its_exchanges(make_rig: MakeRig, upstream: int) -> None:
    rig = make_rig(20, upstream)
    rig.caller.say(upload(1))
    rig.connect()
    for _ in range(10):
        rig.caller.say(data(1, 60_000))
    assert client(rig).stream.pending
    rig.sweep(29.0)
    assert not rig.exchange.finished
    rig.poller.run(lambda: rig.cluster.sweep(rig.poller.now + 31.0))
    rig.pump()
    assert (rig.record.status, rig.record.reason) == (504, "upstream_timeout")
    assert rig.cluster.connections == 0
    assert rig.left() == {}


def test_a_silent_upstream_is_asked_and_then_given_up(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.service.times.stream_idle = 0.0
    rig.caller.say(request(1))
    up = rig.connect()
    up.read()
    rig.sweep(31.0)
    assert up.read() == b"<ping>"
    rig.sweep(35.0)
    assert not rig.exchange.finished
    rig.sweep(42.0)
    assert rig.record.reason == "upstream_closed"
    assert rig.left() == {}


def test_an_answered_ping_keeps_the_connection(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.service.times.stream_idle = 0.0
    rig.caller.say(request(1))
    up = rig.connect()
    rig.sweep(31.0)
    up.say(PingAcknowledged())
    rig.sweep(25.0)
    assert not rig.exchange.finished


def test_a_connection_takes_nothing_new_shortly_before_the_peers_certificate_ends(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.service.times.stream_idle = 0.0
    rig.caller.say(request(1))
    who = make_peer()
    object.__setattr__(who, "not_after", rig.poller.wall() + 100.0)
    up = rig.connect(peer=who)
    rig.sweep(95.0)
    assert not rig.exchange.finished
    rig.caller.say(request(3))
    assert len(rig.cluster.dials) == 1
    up.say(answer(1))
    assert rig.cluster.connections == 1  # the dial; the old one went with its last exchange


def test_nothing_passes_after_the_peers_certificate_has_ended(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.service.times.stream_idle = 0.0
    rig.caller.say(request(1))
    who = make_peer()
    object.__setattr__(who, "not_after", rig.poller.wall() + 100.0)
    rig.connect(peer=who)
    rig.sweep(101.0)
    assert rig.record.reason == "certificate_expired"
    assert rig.cluster.connections == 0
    assert rig.left() == {}


def test_the_record_says_where_it_went(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(request(1))
    who = make_peer()
    object.__setattr__(who, "not_after", rig.poller.wall() + 100.0)
    rig.connect(peer=who).say(answer(1))
    record = rig.record
    assert (record.upstream_name, record.upstream_address, record.upstream_peer) == ("app", "10.0.0.1:80", who)
    assert (record.upstream_version, record.attempts) == (20, 1)
