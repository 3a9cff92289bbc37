"""The pool: who gets which connection, who waits, and what is counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.wire.events import StreamReset
from tests.support.fake_engines import FakeClient
from tests.support.rig import Rig, answer, data, request, upload

MakeRig = Callable[..., Rig]


def ask(rig: Rig, *stream_ids: int) -> None:
    rig.caller.say(*(request(stream_id) for stream_id in stream_ids))


# -- reuse ----------------------------------------------------------------------------------------------------


def test_an_http1_connection_is_used_again(make_rig: MakeRig) -> None:
    rig = make_rig(20, 11)
    ask(rig, 1)
    up = rig.connect()
    up.say(answer(1))
    ask(rig, 3)
    up.say(answer(2))
    assert rig.cluster.dials == []
    assert (rig.record.reason, rig.cluster.connections) == ("", 1)


def test_the_connection_used_last_is_used_first(make_rig: MakeRig) -> None:
    rig = make_rig(20, 11)
    ask(rig, 1, 3)
    one, two = rig.connect(), rig.connect()
    two.say(answer(1))
    one.say(answer(1))
    ask(rig, 5)
    assert len(one.engine.called("open")) == 2


def test_an_http1_connection_carries_one_exchange_at_a_time(make_rig: MakeRig) -> None:
    rig = make_rig(20, 11)
    ask(rig, 1, 3, 5)
    assert len(rig.cluster.dials) == 3
    for up in [rig.connect() for _ in range(3)]:
        up.say(answer(1))
    assert [record.reason for record in rig.service.records] == ["", "", ""]
    assert rig.cluster.connections == 3


def test_an_http2_connection_is_dialled_once_for_all_who_wait(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    ask(rig, 1, 3, 5)
    assert len(rig.cluster.dials) == 1
    up = rig.connect()
    up.say(answer(1), answer(3), answer(5))
    assert len(rig.service.records) == 3


def test_a_full_http2_connection_gets_a_second_beside_it(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    ask(rig, 1)
    up = rig.connect(FakeClient(20, room=1))
    ask(rig, 3)
    second = rig.connect(FakeClient(20, room=1))
    second.say(answer(1))
    up.say(answer(1))
    assert [record.reason for record in rig.service.records] == ["", ""]


def test_an_answer_that_forbids_reuse_closes_the_connection(make_rig: MakeRig) -> None:
    rig = make_rig(20, 11)
    ask(rig, 1)
    up = rig.connect()
    up.engine.reusable = False
    up.say(answer(1))
    assert rig.record.reason == ""
    assert rig.cluster.connections == 0
    assert up.read() == b"<open 1 /><end 1>"
    assert up.at_eof()
    ask(rig, 3)
    assert len(rig.cluster.dials) == 1


@pytest.mark.parametrize("stale", ["surplus", "closed"])
def test_a_connection_with_anything_waiting_in_its_socket_is_not_used_again(make_rig: MakeRig, stale: str) -> None:
    rig = make_rig(20, 11)
    ask(rig, 1)
    up = rig.connect()
    up.say(answer(1))
    if stale == "surplus":
        up.sock.send(b"x")
    else:
        up.sock.close()
    rig.caller.engine.inbox.append([request(3)])
    rig.poller.run(lambda: rig.server.on_data(b"."))  # before the poller has seen what waits there
    assert len(up.engine.called("open")) == 1
    rig.connect().say(answer(1))
    assert [record.reason for record in rig.service.records] == ["", ""]
    assert rig.cluster.connections == 1


def test_a_stale_connection_gives_its_place_to_a_new_one(make_rig: MakeRig) -> None:
    rig = make_rig(20, 11, max_connections=1)
    ask(rig, 1)
    up = rig.connect()
    up.say(answer(1))
    up.sock.close()
    rig.caller.engine.inbox.append([request(3)])
    rig.poller.run(lambda: rig.server.on_data(b"."))
    rig.pump()
    rig.connect().say(answer(1))
    assert [record.reason for record in rig.service.records] == ["", ""]


def test_surplus_bytes_after_an_answer_end_the_connection(make_rig: MakeRig) -> None:
    rig = make_rig(20, 11)
    ask(rig, 1)
    up = rig.connect()
    up.say(answer(1))
    up.engine.must_close = True  # what an engine says to bytes nobody asked for
    up.say()
    assert rig.cluster.connections == 0


def test_an_upload_that_was_given_up_costs_the_http1_connection(make_rig: MakeRig) -> None:
    rig = make_rig(20, 11)
    rig.caller.say(upload(1), data(1, 10))
    rig.connect()
    rig.caller.say(StreamReset(1, 8))
    assert rig.cluster.connections == 0
    assert rig.left() == {}


@pytest.mark.parametrize("upstream", [11, 20])
def test_a_connection_retires_after_as_many_exchanges_as_it_may_carry(make_rig: MakeRig, upstream: int) -> None:
    rig = make_rig(20, upstream, max_requests_per_connection=2)
    ask(rig, 1)
    up = rig.connect()
    up.say(answer(1))
    ask(rig, 3)
    assert rig.cluster.dials == []
    up.say(answer(3 if upstream == 20 else 2))
    assert rig.cluster.connections == 0
    ask(rig, 5)
    assert len(rig.cluster.dials) == 1


@pytest.mark.parametrize("upstream", [11, 20])
@pytest.mark.parametrize("parked", [True, False])
def test_an_engine_that_will_not_open_fails_one_exchange_and_nothing_is_left(
    make_rig: MakeRig, upstream: int, parked: bool
) -> None:
    rig = make_rig(20, upstream)
    engine = FakeClient(upstream)
    if parked:
        engine.refuse_open = True
    ask(rig, 1)
    up = rig.connect(engine)
    if not parked:
        up.say(answer(1))
        engine.refuse_open = True
        ask(rig, 3)
    assert (rig.record.status, rig.record.reason) == (500, "internal_error")
    assert "cannot open" in rig.record.details
    assert rig.left() == {}
    assert rig.cluster.connections == 0


# -- limits ---------------------------------------------------------------------------------------------------


def test_no_more_connections_than_allowed(make_rig: MakeRig) -> None:
    rig = make_rig(20, 11, max_connections=2)
    ask(rig, 1, 3, 5, 7)
    assert (len(rig.cluster.dials), rig.cluster.connections, rig.cluster.waiting) == (2, 2, 4)
    one, two = rig.connect(), rig.connect()
    one.say(answer(1))
    two.say(answer(1))
    one.say(answer(2))
    two.say(answer(2))
    assert len(rig.service.records) == 4
    assert rig.left() == {}


def test_a_lost_connection_makes_room_for_a_dial(make_rig: MakeRig) -> None:
    rig = make_rig(20, 11, max_connections=1)
    ask(rig, 1, 3)
    rig.connect().vanish()
    rig.connect().say(answer(1))
    assert [record.reason for record in rig.service.records] == ["upstream_closed", ""]


def test_no_more_exchanges_wait_than_allowed(make_rig: MakeRig) -> None:
    rig = make_rig(20, 11, max_pending=2)
    ask(rig, 1, 3, 5)
    assert (rig.record.status, rig.record.reason) == (503, "overflow_pending")
    assert rig.cluster.waiting == 2


def test_another_pool_that_has_all_connections_is_an_overflow(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20, max_connections=1, protocol="auto")
    rig.cluster.next_engine = lambda: FakeClient(11)
    rig.caller.say(request(1))
    rig.connect()
    rig.caller.say(request(3, is_grpc=True))
    assert rig.record.reason == "overflow_connections"
    assert rig.cluster.waiting == 0


# -- waiting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upstream", [11, 20])
def test_who_leaves_while_waiting_is_not_opened(make_rig: MakeRig, upstream: int) -> None:
    rig = make_rig(20, upstream)
    ask(rig, 1)
    rig.caller.say(StreamReset(1, 8))
    assert rig.cluster.waiting == 0
    assert rig.left() == {}
    up = rig.connect()
    assert up.engine.called("open") == []
    ask(rig, 3)
    up.say(answer(1))
    assert rig.record.reason == ""


def test_they_are_served_in_the_order_they_came(make_rig: MakeRig) -> None:
    rig = make_rig(20, 11, max_connections=1)
    rig.caller.say(*(request(n, b"/%d" % n) for n in (1, 3, 5)))
    up = rig.connect()
    for number in (1, 2, 3):
        up.say(answer(number))
    assert [e.path for e in up.engine.heads] == [b"/1", b"/3", b"/5"]


def test_a_stream_that_was_reset_makes_room(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20, max_connections=1)
    ask(rig, 1, 3)
    up = rig.connect(FakeClient(20, room=1))
    rig.caller.say(StreamReset(1, 8))
    up.say(answer(3))
    assert [record.reason for record in rig.service.records] == ["downstream_reset", ""]
    assert rig.left() == {}


# -- failed connects ------------------------------------------------------------------------------------------


def test_a_refused_connect_with_nowhere_else_to_go_is_a_503(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    ask(rig, 1, 3)
    rig.refuse_dial()
    assert {record.reason for record in rig.service.records} == {"upstream_connect_failed"}
    assert {record.attempts for record in rig.service.records} == {1}
    assert "10.0.0.1:80" in rig.record.details
    assert rig.cluster.connections == 0
    assert rig.left() == {}


def test_a_refused_connect_fails_nobody_who_can_get_another_connection(make_rig: MakeRig) -> None:
    rig = make_rig(20, 11)
    ask(rig, 1)
    up = rig.connect()
    ask(rig, 3)
    rig.refuse_dial()
    assert rig.service.records == []
    up.say(answer(1))
    up.say(answer(2))
    assert [record.reason for record in rig.service.records] == ["", ""]


def test_when_the_last_connection_goes_after_a_refused_connect_who_waits_hears_of_it(make_rig: MakeRig) -> None:
    rig = make_rig(20, 11)
    ask(rig, 1)
    up = rig.connect()
    ask(rig, 3)
    rig.refuse_dial()
    up.vanish()
    rig.refuse_dial()
    assert [record.reason for record in rig.service.records] == ["upstream_closed", "upstream_connect_failed"]
    assert rig.left() == {}
