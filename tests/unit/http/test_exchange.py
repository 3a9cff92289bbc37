"""An exchange between its two connections: order, back-pressure, and every way to end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.errors import SidewallError
from proxy.net.stream import HIGH_WATER, LOW_WATER
from proxy.wire.events import (
    InformationalReceived,
    RequestReceived,
    StreamReset,
    TrailersReceived,
)
from tests.support.rig import Peer, Rig, answer, data, head, request, upload

MakeRig = Callable[..., Rig]
PAIRS = [(11, 11), (11, 20), (20, 11), (20, 20)]
_PIECE = 60_000


# -- the ordinary course --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("caller", "upstream"), PAIRS)
def test_a_request_and_its_answer_pass_and_leave_nothing(make_rig: MakeRig, caller: int, upstream: int) -> None:
    rig = make_rig(caller, upstream)
    rig.caller.say(request(1, b"/orders"))
    up = rig.connect()
    assert up.read() == b"<open 1 /orders><end 1>"
    up.say(answer(1, end=False), data(1, 3), data(1, 2, end=True))
    assert rig.caller.read() == b"<head 1 200>xxxxx<end 1>"
    assert (rig.record.status, rig.record.reason, rig.record.bytes_sent) == (200, "", 5)
    assert rig.left() == {}


@pytest.mark.parametrize(("caller", "upstream"), PAIRS)
def test_a_body_that_came_before_the_connection_follows_its_head(
    make_rig: MakeRig, caller: int, upstream: int
) -> None:
    rig = make_rig(caller, upstream)
    rig.caller.say(upload(1), data(1, 4))
    rig.caller.say(data(1, 2, end=True))
    up = rig.connect()
    assert up.read() == b"<open 1 />xxxxxx<end 1>"
    assert rig.exchange.record.bytes_received == 6
    up.say(answer(1))
    assert rig.left() == {}


def test_interim_answers_pass_before_the_head_and_not_after(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(request(1))
    up = rig.connect()
    up.say(InformationalReceived(1, 103, []))
    up.say(answer(1, end=False))
    up.say(InformationalReceived(1, 103, []))
    up.say(data(1, 0, end=True))
    assert rig.caller.read() == b"<interim 1 103><head 1 200><end 1>"


def test_trailers_pass_both_ways(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(upload(1))
    up = rig.connect()
    rig.caller.say(data(1, 1), TrailersReceived(1, []))
    assert up.read() == b"<open 1 />x<trailers 1>"
    up.say(answer(1, end=False), TrailersReceived(1, []))
    assert rig.caller.read() == b"<head 1 200><trailers 1>"
    assert rig.left() == {}


def test_the_grpc_status_is_recorded_from_trailers_and_from_a_trailers_only_answer(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    for stream_id in (1, 3):
        rig.caller.say(RequestReceived(stream_id, head(is_grpc=True), True))
    up = rig.connect()
    only = answer(1)
    only.head.headers.append((b"grpc-status", b"5"))
    up.say(only)
    assert rig.record.grpc_status == 5
    up.say(answer(3, end=False), TrailersReceived(3, [(b"grpc-status", b"0")]))
    assert rig.record.grpc_status == 0


@pytest.mark.parametrize("value", [b"", b"-1", b"123", b"\xb2", b"x"])
def test_a_grpc_status_that_is_no_small_number_is_not_recorded(make_rig: MakeRig, value: bytes) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(RequestReceived(1, head(is_grpc=True), True))
    up = rig.connect()
    up.say(answer(1, end=False), TrailersReceived(1, [(b"grpc-status", value)]))
    assert rig.record.grpc_status is None


# -- back-pressure --------------------------------------------------------------------------------------------


def test_an_http1_upstream_is_not_read_while_the_caller_does_not_read(make_rig: MakeRig) -> None:
    rig = make_rig(20, 11)
    rig.caller.engine.window = 0
    rig.caller.say(request(1))
    up = rig.connect()
    up.say(answer(1, end=False))
    for _ in range(100):
        up.say(data(1, _PIECE))
    assert HIGH_WATER <= rig.caller.engine.queued(1) < HIGH_WATER + _PIECE
    rig.caller.engine.window = None
    rig.poller.run(rig.server.touch)
    assert len(rig.caller.read()) > 100 * _PIECE
    up.say(data(1, 0, end=True))
    assert rig.caller.read() == b"<end 1>"
    assert rig.left() == {}


def test_an_http2_upstream_gets_no_window_while_the_caller_does_not_read(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.engine.window = 0
    rig.caller.say(request(1))
    up = rig.connect()
    up.say(answer(1, end=False))
    for _ in range(10):
        up.say(data(1, _PIECE))
    assert up.engine.taken_back[1] < HIGH_WATER
    rig.caller.engine.window = None
    rig.poller.run(rig.server.touch)
    rig.caller.read()
    assert up.engine.owed == 0
    up.say(data(1, 0, end=True))
    assert rig.left() == {}


def test_an_http1_caller_is_not_read_while_the_upstream_does_not_take(make_rig: MakeRig) -> None:
    rig = make_rig(11, 20)
    rig.caller.say(upload(1))
    up = rig.connect()
    up.engine.window = 0
    for _ in range(100):
        rig.caller.say(data(1, _PIECE))
    assert HIGH_WATER <= up.engine.queued(1) < HIGH_WATER + _PIECE
    up.engine.window = None
    client = rig.exchange.client
    rig.poller.run(client.touch)
    assert len(up.read()) > 100 * _PIECE
    rig.caller.say(data(1, 0, end=True))
    up.say(answer(1))
    assert rig.left() == {}


def test_an_http2_caller_gets_no_window_while_the_upstream_does_not_take(make_rig: MakeRig) -> None:
    rig = make_rig(20, 11)
    rig.caller.say(upload(1))
    up = rig.connect()
    for _ in range(20):
        rig.caller.say(data(1, _PIECE))  # nobody reads the upstream's socket
    assert rig.caller.engine.owed >= HIGH_WATER
    up.read()
    assert rig.caller.engine.owed == 0
    rig.caller.say(data(1, 0, end=True))
    up.say(answer(1))
    assert rig.left() == {}


def test_one_slow_stream_does_not_stop_its_neighbour(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(upload(1), upload(3))
    up = rig.connect()
    up.engine.window = 0
    for _ in range(5):
        rig.caller.say(data(1, _PIECE))
    assert rig.caller.engine.given[1] > rig.caller.engine.taken_back[1]
    rig.caller.say(data(3, 10))
    assert rig.caller.engine.taken_back[3] == 10


@pytest.mark.parametrize("caller", [11, 20])
def test_the_end_of_a_body_alone_never_holds_the_caller(make_rig: MakeRig, caller: int) -> None:
    rig = make_rig(caller, 20)
    rig.caller.say(upload(1))
    up = rig.connect()
    other, _ = rig.accept(20)
    other.say(upload(1, b"/other"))
    for _ in range(20):
        other.say(data(1, _PIECE))  # the shared connection's socket is full now
    rig.caller.say(data(1, 0, end=True))
    up.read()
    up.say(answer(1))
    assert rig.server.held == 0
    rig.caller.read()
    if caller == 11:
        rig.caller.say(request(2, b"/next"))
        assert rig.exchange.head.path == b"/next"


def test_what_waits_for_a_connection_is_bounded_and_goes_on_when_it_is_there(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    rig.caller.say(upload(1))
    for _ in range(50):
        rig.caller.say(data(1, _PIECE))
    assert LOW_WATER < rig.caller.engine.given[1] <= LOW_WATER + _PIECE
    up = rig.connect()
    assert len(up.read()) > 50 * _PIECE
    rig.caller.say(data(1, 0, end=True))
    up.say(answer(1))
    assert rig.left() == {}


def test_an_http2_body_that_waits_is_not_acknowledged_until_it_left(make_rig: MakeRig) -> None:
    rig = make_rig(20, 11)
    rig.caller.say(upload(1), data(1, 1000, counted=1100))
    assert rig.caller.engine.owed == 1100
    up = rig.connect()
    up.read()
    assert rig.caller.engine.owed == 0


# -- how it ends ----------------------------------------------------------------------------------------------


def _half_way(rig: Rig, *, parked: bool) -> None:
    """An upload with unacknowledged bytes, parked or open, and held back when it is open."""
    rig.caller.say(upload(1), data(1, 1000))
    if parked:
        return
    up = rig.connect()
    up.engine.window = 0
    for _ in range(5):
        rig.caller.say(data(1, _PIECE))


_ENDINGS = ("fail", "abandon", "reset", "vanish", "cut", "answered early")


@pytest.mark.parametrize("caller", [11, 20])
@pytest.mark.parametrize(("ending", "parked"), [*((e, False) for e in _ENDINGS), *((e, True) for e in _ENDINGS[:-1])])
def test_whatever_ends_it_everything_is_given_back_once(
    make_rig: MakeRig, ending: str, caller: int, parked: bool
) -> None:
    rig = make_rig(caller, 20)
    _half_way(rig, parked=parked)
    exchange = rig.exchange
    assert parked or rig.server.held == 1
    endings: dict[str, Callable[[], object]] = {
        "fail": lambda: rig.poller.run(lambda: exchange.fail(SidewallError(reason="idle_timeout"))),
        "abandon": lambda: rig.poller.run(lambda: exchange.abandon("downstream_closed")),
        "reset": lambda: rig.caller.say(StreamReset(1, 8)),
        "vanish": rig.caller.vanish,
        "cut": lambda: rig.poller.run(lambda: rig.server.shut("draining")),
        "answered early": lambda: rig.upstreams[0].say(answer(1)),
    }
    if ending == "reset" and caller == 11:
        rig.poller.run(lambda: rig.server._dispatch([StreamReset(1, 8)]))
    else:
        endings[ending]()
    assert exchange.finished
    assert len(rig.service.records) == 1
    assert rig.left() == {}
    exchange.fail(SidewallError(reason="internal_error"))
    exchange.abandon("internal_error")
    exchange.finish()
    assert len(rig.service.records) == 1


def test_a_failure_before_the_head_is_an_answer(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    rig.caller.say(request(1))
    up = rig.connect()
    up.vanish()
    assert rig.caller.read().startswith(b"<head 1 503>")
    assert (rig.record.status, rig.record.reason, rig.record.flags) == (503, "upstream_closed", "UC")


@pytest.mark.parametrize("caller", [11, 20])
def test_a_failure_after_the_head_cuts_and_never_looks_complete(make_rig: MakeRig, caller: int) -> None:
    rig = make_rig(caller, 11)
    rig.caller.say(request(1))
    up = rig.connect()
    up.say(answer(1, end=False), data(1, 10))
    got = rig.caller.read()
    up.vanish()
    got += rig.caller.read()
    assert b"<end" not in got
    assert (b"<reset 1 2>" in got) is (caller == 20)
    assert rig.server.closed is (caller == 11)
    assert (rig.record.status, rig.record.reason) == (200, "upstream_closed")


def test_a_failure_of_a_grpc_call_is_trailers_only(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.service.refuse = SidewallError(reason="no_allow_policy_matched")
    rig.caller.say(RequestReceived(1, head(is_grpc=True), True))
    assert rig.caller.read() == b"<head 1 200><end 1>"
    assert (rig.record.status, rig.record.grpc_status) == (200, 7)


def test_a_refused_request_closes_nothing_and_the_next_is_served(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    rig.service.refuse = SidewallError(reason="no_allow_policy_matched")
    rig.caller.say(request(1))
    rig.service.refuse = None
    rig.caller.say(request(2))
    rig.connect().say(answer(1))
    assert [record.status for record in rig.service.records] == [403, 200]


def test_a_body_over_its_limit_is_refused_while_it_comes(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.service.most_body = 1000
    rig.caller.say(upload(1))
    up = rig.connect()
    rig.caller.say(data(1, 1000))
    assert not rig.exchange.finished
    rig.caller.say(data(1, 1))
    assert rig.record.reason == "body_too_large"
    assert b"<reset 1 8>" in up.read()
    assert rig.left() == {}


def test_a_body_over_its_limit_is_refused_when_it_waited(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.service.most_body = 1000
    rig.caller.say(upload(1), data(1, 600), data(1, 600))
    up = rig.connect()
    assert rig.record.reason == "body_too_large"
    assert rig.caller.read().startswith(b"<head 1 413>")
    assert b"<reset 1 8>" in up.read()
    assert rig.left() == {}


def test_an_answer_before_the_end_of_the_request_stops_the_upload(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(upload(1), data(1, 5))
    up = rig.connect()
    up.say(answer(1))
    assert rig.caller.read() == b"<head 1 200><end 1><reset 1 0>"
    rig.caller.say(data(1, 50, end=True))
    assert rig.left() == {}


def test_an_answer_whose_body_follows_an_unfinished_upload_is_written_whole(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    rig.caller.say(upload(1))
    up = rig.connect()
    up.say(answer(1, end=False))
    rig.caller.engine.window = 10
    up.say(data(1, 50, end=True))
    assert rig.caller.read() == b"<head 1 200>" + b"x" * 10
    rig.caller.engine.window = None
    rig.poller.run(rig.server.touch)
    assert rig.caller.read() == b"x" * 40 + b"<end 1><reset 1 0>"


# -- tunnels --------------------------------------------------------------------------------------------------


def _tunnel(rig: Rig) -> Peer:
    rig.caller.say(RequestReceived(1, head(upgrade=b"websocket"), False))
    up = rig.connect()
    up.say(answer(1, 101, end=False, upgrade=b"websocket"))
    rig.caller.say(data(1, 3))
    up.say(data(1, 4))
    assert rig.exchange.tunnel
    return up


def test_a_tunnel_half_closed_by_the_app_carries_the_callers_bytes_still(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    up = _tunnel(rig)
    up.finish(data(1, 0, end=True))
    assert not rig.exchange.finished
    rig.caller.say(data(1, 9))
    assert up.read().endswith(b"x" * 12)
    rig.caller.finish(data(1, 0, end=True))
    assert rig.exchange.finished
    assert rig.record.reason == ""
    assert rig.caller.read() == b"<head 1 101>xxxx<end 1>"
    assert rig.server.closed
    assert rig.cluster.connections == 0
    assert rig.left() == {}


def test_a_tunnel_half_closed_by_the_caller_carries_the_apps_bytes_still(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    up = _tunnel(rig)
    rig.caller.finish(data(1, 0, end=True))
    assert not rig.exchange.finished
    up.say(data(1, 9))
    up.finish(data(1, 0, end=True))
    assert rig.exchange.finished
    assert rig.caller.read() == b"<head 1 101>" + b"x" * 13 + b"<end 1>"
    assert rig.left() == {}


def test_a_half_close_of_a_tunnel_reaches_the_other_side(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    up = _tunnel(rig)
    rig.caller.engine.half_close = True  # what an engine says once the end is written
    up.finish(data(1, 0, end=True))
    rig.caller.read()
    assert rig.caller.at_eof()
    assert not rig.server.closed


def test_a_tunnel_that_breaks_ends_both_sides(make_rig: MakeRig) -> None:
    rig = make_rig(11, 11)
    up = _tunnel(rig)
    up.vanish()
    assert rig.exchange.finished
    assert rig.record.reason == "upstream_closed"
    assert rig.server.closed
    assert rig.left() == {}
