"""The caller's connection: clocks, draining, refusals, and its end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.errors import SidewallError
from proxy.http.facts import Times
from proxy.net.stream import HIGH_WATER, LOW_WATER
from proxy.wire.events import ConnectionEnded, GoAwayReceived, RequestReceived, RequestRefused, StreamReset
from tests.support.rig import Rig, answer, data, head, request, upload

MakeRig = Callable[..., Rig]


def drain(rig: Rig) -> None:
    rig.poller.run(rig.server.drain)
    rig.pump()


# -- clocks ---------------------------------------------------------------------------------------------------


def test_a_head_that_drips_is_answered_408_and_the_connection_closed(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    rig.caller.engine.mid_head = True
    rig.caller.say()
    rig.sweep(9.0)
    assert rig.caller.read() == b""
    rig.sweep(10.5)
    assert rig.caller.read().startswith(b"<head 1 408>")
    assert rig.server.closed
    assert rig.service.malformed == ["head_timeout"]


def test_the_head_clock_runs_from_the_first_byte_not_from_the_last(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    rig.caller.engine.mid_head = True
    rig.caller.say()
    rig.poller.now += 8.0
    rig.poller.run(lambda: rig.server.on_data(b""))
    rig.server.sweep(rig.poller.now + 3.0)
    rig.pump()
    assert rig.service.malformed == ["head_timeout"]


def test_a_complete_head_stops_its_clock(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    rig.service.times = Times(head=10.0, stream_idle=0.0)
    rig.caller.engine.mid_head = True
    rig.caller.say()
    rig.caller.engine.mid_head = False
    rig.caller.say(request(1))
    rig.sweep(60.0)
    assert rig.service.malformed == []
    assert not rig.server.closed


def test_an_http2_header_block_that_drips_ends_the_connection(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.engine.mid_head = True
    rig.caller.say()
    rig.sweep(10.5)
    assert b"<fail 11 head_timeout>" in rig.caller.read()
    assert rig.server.closed


@pytest.mark.parametrize("version", [11, 20])
def test_an_idle_connection_is_drained(make_rig: MakeRig, version: int) -> None:
    rig = make_rig(version, 11)
    rig.sweep(599.0)
    assert not rig.server.draining
    rig.sweep(601.0)
    rig.pass_time(1.5)
    assert rig.server.closed
    assert rig.service.ended == [rig.server]


def test_a_caller_that_does_not_read_its_answer_is_cut(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(request(1))
    up = rig.connect()
    up.say(answer(1, end=False))
    for _ in range(20):
        up.say(data(1, 60_000))
    assert rig.server.stream.pending
    rig.sweep(29.0)
    assert not rig.exchange.finished
    rig.sweep(31.0)
    assert rig.record.reason == "write_timeout"
    assert rig.server.closed
    assert rig.left() == {}


def test_an_upstream_that_does_not_answer_in_time_is_a_504(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.service.total = 15.0
    rig.caller.say(request(1))
    up = rig.connect()
    rig.sweep(14.0)
    assert not rig.exchange.finished
    rig.sweep(15.5)
    assert rig.caller.read().startswith(b"<head 1 504>")
    assert b"<reset 1 8>" in up.read()
    assert rig.record.reason == "upstream_timeout"
    assert rig.left() == {}


def test_the_total_time_begins_when_the_request_has_ended(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.service.total = 15.0
    rig.caller.say(upload(1))
    rig.connect()
    rig.sweep(20.0)
    assert not rig.exchange.finished
    rig.caller.say(data(1, 0, end=True))
    rig.sweep(15.5)
    assert rig.record.reason == "upstream_timeout"


def test_the_total_time_ends_with_the_answers_head(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.service.total = 15.0
    rig.caller.say(request(1))
    rig.connect().say(answer(1, end=False))
    rig.sweep(20.0)
    assert not rig.exchange.finished


def test_a_stream_on_which_nothing_moves_ends_and_its_connection_goes_on(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(request(1))
    up = rig.connect()
    up.say(answer(1, end=False))
    rig.sweep(61.0)
    assert rig.record.reason == "idle_timeout"
    rig.caller.say(request(3))
    up.say(answer(3))
    assert rig.record.reason == ""


def test_a_tunnel_may_be_silent(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    rig.caller.say(RequestReceived(1, head(upgrade=b"websocket"), False))
    rig.connect().say(answer(1, 101, end=False, upgrade=b"websocket"))
    rig.sweep(3600.0)
    assert not rig.exchange.finished


def test_a_request_parked_for_too_long_is_answered(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.service.total = 15.0
    rig.caller.say(request(1))
    rig.sweep(15.5)
    assert rig.caller.read().startswith(b"<head 1 504>")
    assert rig.left() == {}


def test_lifted_limits_never_strike(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20, idle_timeout=0.0, write_timeout=0.0)
    rig.service.times = Times(head=10.0, stream_idle=0.0, idle=0.0, age=0.0, write=0.0)
    rig.caller.say(request(1))
    rig.connect()
    rig.sweep(1e6)
    assert not rig.exchange.finished
    assert not rig.server.closed


def test_an_old_connection_is_drained_and_its_exchange_finishes(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.server.expires_at = rig.poller.now + 10
    rig.caller.say(request(1))
    up = rig.connect()
    rig.sweep(11.0)
    assert b"<goaway soon>" in rig.caller.read()
    rig.pass_time(1.5)
    up.say(answer(1))
    assert rig.record.reason == ""
    assert rig.server.closed


def test_nothing_is_forwarded_after_the_end_of_a_certificate(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.server.cut_at = rig.poller.now + 10
    rig.caller.say(request(1))
    up = rig.connect()
    rig.sweep(11.0)
    assert rig.record.reason == "certificate_expired"
    assert rig.server.closed
    assert b"<reset 1 8>" in up.read()
    assert rig.left() == {}


# -- draining -------------------------------------------------------------------------------------------------


def test_an_idle_http1_connection_that_is_drained_is_closed_a_second_later(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    drain(rig)
    assert not rig.server.closed, "a request may be on its way"
    rig.poller.now += 1.1
    rig.poller.fire_due()
    assert rig.server.closed
    assert rig.caller.at_eof()


def test_an_http1_exchange_finishes_before_its_connection_is_closed(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    rig.caller.say(request(1))
    up = rig.connect()
    drain(rig)
    assert not rig.server.closed
    up.say(answer(1))
    assert rig.caller.read() == b"<head 1 200><end 1>"
    assert rig.server.closed


def test_http2_is_drained_in_two_steps_and_a_request_between_them_is_served(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    drain(rig)
    assert rig.caller.read() == b"<goaway soon>"
    rig.caller.say(request(1))  # was on its way when the first GOAWAY left (RFC 9113, 6.8)
    up = rig.connect()
    rig.pass_time(1.5)
    assert rig.caller.read() == b"<goaway last>"
    assert not rig.server.closed
    up.say(answer(1))
    assert rig.caller.read() == b"<head 1 200><end 1>"
    assert rig.server.closed


def test_draining_twice_says_it_once(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    drain(rig)
    drain(rig)
    rig.pass_time(3.0)
    assert rig.caller.read() == b"<goaway soon><goaway last>"
    assert rig.service.ended == [rig.server]


def test_a_connection_that_is_closed_meanwhile_is_not_written_to_by_the_second_step(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    drain(rig)
    rig.caller.vanish()
    rig.pass_time(1.5)
    assert rig.server.closed
    assert rig.caller.engine.called("goaway") == [("goaway", "soon")]


def test_a_caller_that_says_goaway_finishes_what_is_open(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(request(1))
    up = rig.connect()
    rig.caller.say(GoAwayReceived(0, 0))
    assert not rig.server.closed
    up.say(answer(1))
    assert rig.server.closed


def test_the_last_request_a_connection_may_carry_is_served(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    rig.server.requests_left = 2
    rig.caller.say(request(1))
    up = rig.connect()
    up.say(answer(1))
    assert not rig.server.draining
    rig.caller.say(request(2))
    assert rig.server.draining
    up.say(answer(2))
    assert rig.caller.read().endswith(b"<head 2 200><end 2>")
    assert rig.server.closed


@pytest.mark.parametrize("version", [11, 20])
def test_a_cut_records_every_exchange_with_its_reason(make_rig: MakeRig, version: int) -> None:
    rig = make_rig(version, 20)
    rig.caller.say(request(1))
    if version == 20:
        rig.caller.say(upload(3), data(3, 100))
    rig.poller.run(lambda: rig.server.shut("draining"))
    assert {record.reason for record in rig.service.records} == {"draining"}
    assert rig.service.ended == [rig.server]
    rig.poller.run(lambda: rig.server.shut("draining"))
    assert rig.service.ended == [rig.server]
    assert rig.left() == {}


# -- what cannot be served ------------------------------------------------------------------------------------


def test_a_malformed_http1_request_is_answered_recorded_and_closed(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    rig.caller.say(RequestRefused(1, "bad_chunk", "detail"))
    assert rig.caller.read().startswith(b"<head 1 400>")
    (record,) = rig.service.refusals
    assert (record.status, record.reason, record.flags, record.details) == (400, "bad_chunk", "DPE", "detail")
    assert rig.server.closed


def test_a_malformed_http2_request_costs_its_stream_only(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(RequestRefused(1, "bad_pseudo_header"))
    rig.caller.say(request(3))
    rig.connect().say(answer(1))
    assert rig.caller.read() == b"<head 3 200><end 3>"
    assert [record.reason for record in rig.service.refusals] == ["bad_pseudo_header"]


def test_a_request_that_turns_out_malformed_takes_its_exchange_with_it(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    rig.caller.say(upload(1))
    up = rig.connect()
    rig.caller.say(data(1, 3), RequestRefused(1, "bad_chunk", opened=True))
    assert rig.record.reason == "bad_chunk"
    assert rig.service.refusals == []
    assert b"<end" not in up.read()
    assert rig.left() == {}


def test_a_refused_upload_ends_with_close_over_http1(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    rig.service.refuse = SidewallError(reason="draining")
    rig.caller.say(upload(1))
    assert rig.caller.read().startswith(b"<head 1 503>")
    assert rig.server.closed


def test_data_after_the_answer_is_read_and_forgotten(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.service.refuse = SidewallError(reason="route_not_found")
    rig.caller.say(upload(1))
    rig.caller.say(data(1, 500))
    assert rig.caller.engine.owed == 0


def test_a_reset_by_the_caller_reaches_the_upstream(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(request(1))
    up = rig.connect()
    rig.caller.say(StreamReset(1, 8))
    assert rig.record.reason == "downstream_reset"
    assert b"<reset 1 8>" in up.read()
    assert rig.left() == {}


# -- the connection's end -------------------------------------------------------------------------------------


def test_a_caller_that_goes_away_abandons_everything(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(request(1), request(3))
    up = rig.connect()
    rig.caller.vanish()
    assert [record.reason for record in rig.service.records] == ["downstream_closed"] * 2
    assert b"<reset 1 8>" in up.read()
    assert rig.service.ended == [rig.server]
    assert rig.left() == {}


def test_an_http1_caller_that_half_closes_still_gets_its_answer(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    rig.caller.say(request(1))
    up = rig.connect()
    rig.caller.finish()
    assert not rig.exchange.finished
    up.say(answer(1))
    assert rig.caller.read() == b"<head 1 200><end 1>"
    assert rig.server.closed


def test_an_http1_caller_that_closes_in_the_middle_of_its_request_is_gone(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    rig.caller.say(upload(1), data(1, 10))
    up = rig.connect()
    rig.caller.finish(StreamReset(1, 8, reason="downstream_closed"), ConnectionEnded("truncated"))
    assert rig.exchange.finished
    assert b"<end" not in up.read()
    assert rig.left() == {}


def test_an_idle_connection_that_ends_is_closed_once(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    rig.caller.finish()
    assert rig.service.ended == [rig.server]
    assert rig.caller.at_eof()


def test_an_engine_that_raises_costs_one_connection(make_rig: MakeRig, caplog: pytest.LogCaptureFixture) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(upload(1), data(1, 100))

    def boom(data: bytes) -> list[object]:
        raise RuntimeError("bug")

    rig.caller.engine.receive = boom  # type: ignore[assignment,method-assign]
    rig.caller.say()
    assert rig.record.reason == "internal_error"
    assert rig.server.closed
    assert "internal error" in caplog.text
    rig.poller.crashes = 0
    other, connection = rig.accept(20)
    other.say(request(1))
    assert not connection.closed
    rig.poller.run(lambda: connection.shut("draining"))


# -- HTTP/1.1 pipelining --------------------------------------------------------------------------------------


def test_a_pipelined_request_is_taken_up_after_the_answer(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    rig.caller.engine.later.append([request(2, b"/two")])
    rig.caller.say(request(1, b"/one"))
    up = rig.connect()
    assert [e.head.path for e in rig.service.exchanges] == [b"/one"]
    up.say(answer(1))
    assert [e.head.path for e in rig.service.exchanges] == [b"/one", b"/two"]
    up.say(answer(2))
    assert rig.caller.read() == b"<head 1 200><end 1><head 2 200><end 2>"


def test_many_pipelined_requests_that_are_refused_at_once_do_not_recurse(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    rig.service.refuse = SidewallError(reason="route_not_found")
    rig.caller.engine.later.extend([request(number)] for number in range(2, 3000))
    rig.caller.say(request(1))
    assert rig.caller.read().count(b"<end") == 2999
    assert len(rig.service.records) == 2999


def test_pipelined_requests_wait_while_the_caller_does_not_read_the_answers(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    rig.service.refuse = SidewallError(reason="route_not_found")
    rig.caller.engine.later.extend([request(number)] for number in range(2, 6_000))
    rig.caller.say(request(1))
    assert rig.server.backlog(0) < HIGH_WATER + 1000
    assert rig.caller.read().count(b"<end") == 5_999


def test_an_answer_that_ends_the_connection_is_written_whole_to_a_slow_caller(make_rig: MakeRig) -> None:
    rig = make_rig(11, 20)
    rig.caller.engine.closing = True
    rig.caller.say(request(1))
    up = rig.connect()
    up.say(answer(1, end=False))
    for _ in range(20):
        up.say(data(1, 60_000))
    up.say(data(1, 0, end=True))
    assert rig.caller.read(1000) == b"<head 1 200>" + b"x" * 988
    rig.pass_time(2.0)
    got = rig.caller.read()
    assert len(got) == 20 * 60_000 - 988 + len("<end 1>")
    assert got.endswith(b"<end 1>")


def test_a_drained_connection_closes_after_a_slow_caller_has_taken_the_last_bytes(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(request(1))
    up = rig.connect()
    drain(rig)
    rig.pass_time(1.5)
    up.say(answer(1, end=False))
    while not rig.server.stream.pending:
        up.say(data(1, 10_000))
    up.say(data(1, 0, end=True))
    assert 0 < rig.server.stream.pending < LOW_WATER
    assert rig.caller.read().endswith(b"<end 1>")
    assert rig.server.closed


def test_reading_stops_while_too_much_is_pipelined(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    rig.caller.engine.wants_read = False
    rig.caller.say(request(1))
    up = rig.connect()
    rig.caller.say(request(2, b"/two"))
    assert len(rig.service.exchanges) == 1
    rig.caller.engine.wants_read = True
    up.say(answer(1))
    assert [e.head.path for e in rig.service.exchanges] == [b"/", b"/two"]
