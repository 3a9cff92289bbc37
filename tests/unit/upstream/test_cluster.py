"""A cluster: endpoints, attempts, addresses that change, and names that do not resolve."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from proxy.errors import SidewallError
from proxy.net.listener import Address
from proxy.net.poller import Poller
from proxy.policy.engine import permit_configured
from proxy.upstream import cluster as module
from proxy.upstream.cluster import Cluster, ClusterSettings
from proxy.wire.events import StreamReset
from proxy.wire.limits import WireLimits
from tests.support.fake_engines import FakeClient
from tests.support.rig import Rig, answer, request

MakeRig = Callable[..., Rig]
A, B, C, D = (Address(f"10.0.0.{n}", 80) for n in (1, 2, 3, 4))


def ask(rig: Rig, *stream_ids: int) -> None:
    rig.caller.say(*(request(stream_id) for stream_id in stream_ids))


# -- choosing -------------------------------------------------------------------------------------------------


def test_endpoints_take_turns(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20, [A, B])
    ask(rig, 1, 3, 5, 7)
    assert sorted(d.pool.endpoint.address.host for d in rig.cluster.dials) == ["10.0.0.1", "10.0.0.2"]
    assert rig.cluster.waiting == 4


def test_a_refused_connect_moves_the_exchange_to_another_endpoint(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20, [A, B])
    ask(rig, 1)
    first = rig.cluster.dials[0].pool.endpoint.text
    rig.refuse_dial()
    assert rig.cluster.dials[0].pool.endpoint.text != first
    rig.connect().say(answer(1))
    assert (rig.record.reason, rig.record.attempts) == ("", 2)
    assert rig.left() == {}


def test_three_attempts_and_no_more(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20, [A, B, C, D])
    ask(rig, 1)
    for _ in range(3):
        rig.refuse_dial()
    assert (rig.record.status, rig.record.attempts) == (503, 3)
    assert rig.cluster.dials == []
    assert rig.left() == {}


def test_a_failing_endpoint_is_passed_over_and_comes_back(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20, [A, B])
    ask(rig, 1)
    failing = rig.cluster.dials[0].pool.endpoint
    rig.refuse_dial()
    rig.connect().say(answer(1))
    for stream_id in (3, 5, 7):
        ask(rig, stream_id)
    assert rig.cluster.dials == []
    assert failing.failing_until == pytest.approx(rig.poller.now + 1.0, abs=0.5)
    failing.failing_until = rig.poller.now - 0.1  # as if a second had passed
    ask(rig, 9, 11)
    assert [d.pool.endpoint for d in rig.cluster.dials] == [failing]


def test_when_all_fail_one_is_tried_nevertheless(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    ask(rig, 1)
    rig.refuse_dial()
    ask(rig, 3)
    rig.connect().say(answer(1))
    assert [record.reason for record in rig.service.records] == ["upstream_connect_failed", ""]


def test_no_endpoint_is_a_503(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20, [])
    ask(rig, 1)
    assert (rig.record.status, rig.record.reason) == (503, "no_healthy_endpoint")


def test_a_refused_stream_may_go_to_another_endpoint(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20, [A, B])
    ask(rig, 1)
    rig.connect().say(StreamReset(1, 7))
    rig.connect().say(answer(1))
    assert (rig.record.reason, rig.record.attempts) == ("", 2)
    assert rig.active == 0


@pytest.mark.parametrize(
    ("protocol", "tls", "more", "kind"),
    [
        ("auto", True, {}, "any"),
        ("auto", True, {"upgrade": b"websocket"}, "http1"),
        ("auto", False, {}, "http1"),
        ("auto", False, {"is_grpc": True}, "h2"),
        ("h2", False, {"upgrade": b"websocket"}, "http1"),
        ("http1", True, {"is_grpc": True}, "http1"),
    ],
)
def test_the_kind_of_connection_follows_protocol_and_request(
    make_rig: MakeRig, protocol: str, tls: bool, more: dict[str, Any], kind: str
) -> None:
    rig = make_rig(20, 11, protocol=protocol, tls=tls)
    rig.caller.say(request(1, **more))
    assert rig.cluster.dials[0].pool.kind == kind


def test_forwarding_without_a_permit_is_refused(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    ask(rig, 1)
    with pytest.raises(SidewallError, match="without a permit"):
        rig.cluster.forward(rig.exchange, None)  # type: ignore[arg-type]
    with pytest.raises(SidewallError, match="without a permit"):
        rig.cluster.connect_raw(lambda *_: None, lambda *_: None, object())  # type: ignore[arg-type]


def test_more_exchanges_than_allowed_overflow(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20, max_requests=2)
    ask(rig, 1)
    up = rig.connect()
    ask(rig, 3, 5)
    assert rig.record.reason == "overflow_requests"
    up.say(answer(1))
    ask(rig, 7)
    assert len(rig.service.records) == 2


# -- addresses that change ------------------------------------------------------------------------------------


def test_an_endpoint_that_went_away_finishes_what_it_carries(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20, [A])
    ask(rig, 1)
    up = rig.connect()
    rig.poller.run(lambda: rig.cluster.set_addresses([B]))
    ask(rig, 3)
    assert rig.cluster.dials[0].pool.endpoint.address == B
    up.say(answer(1))
    assert rig.record.reason == ""
    assert rig.cluster.connections == 1  # the dial to B
    rig.connect().say(answer(1))


def test_an_endpoint_that_stays_keeps_its_connections(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20, [A])
    ask(rig, 1)
    up = rig.connect()
    up.say(answer(1))
    rig.poller.run(lambda: rig.cluster.set_addresses([B, A]))
    assert rig.cluster.connections == 1


def test_who_waits_for_an_endpoint_that_went_away_is_sent_to_another(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20, [A])
    ask(rig, 1)
    rig.poller.run(lambda: rig.cluster.set_addresses([B]))
    late = rig.cluster.dials.pop(0)
    assert rig.cluster.dials[0].pool.endpoint.address == B
    rig.connect().say(answer(1))
    assert (rig.record.reason, rig.record.upstream_address) == ("", "10.0.0.2:80")
    rig.cluster.dials.append(late)
    rig.connect()  # the dial to A succeeds after all: nobody wants it
    rig.sweep(1.0)
    assert rig.cluster.connections == 1
    assert rig.left() == {}


def test_who_waits_when_every_endpoint_went_away_gets_an_answer(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20, [A])
    ask(rig, 1)
    rig.poller.run(lambda: rig.cluster.set_addresses([]))
    assert (rig.record.status, rig.record.reason) == (503, "no_healthy_endpoint")
    rig.refuse_dial()
    assert rig.cluster.connections == 0


def test_an_endpoint_that_went_away_is_forgotten_when_its_last_connection_closed(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20, [A])
    ask(rig, 1)
    up = rig.connect()
    rig.poller.run(lambda: rig.cluster.set_addresses([B]))
    rig.sweep(1.0)
    assert len(rig.cluster._leaving) == 1
    up.say(answer(1))
    rig.sweep(1.0)
    assert rig.cluster._leaving == []


def test_a_list_without_end_is_cut(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20, [Address("10.0.0.1", port) for port in range(1, 2000)])
    assert len(rig.cluster.endpoints) == 256


# -- the end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upstream", [11, 20])
def test_draining_closes_idle_connections_and_waits_for_the_others(make_rig: MakeRig, upstream: int) -> None:
    rig = make_rig(20, upstream, [A, B])
    ask(rig, 1, 3)
    one, two = rig.connect(), rig.connect()
    one.say(answer(1))
    rig.poller.run(rig.cluster.drain)
    assert rig.cluster.connections == 1
    two.say(answer(1))
    assert rig.record.reason == ""
    assert rig.cluster.connections == 0


def test_shutting_ends_everything_now(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20, [A, B])
    ask(rig, 1, 3)
    rig.connect()
    rig.connect()
    rig.poller.run(rig.cluster.shut)
    assert {record.reason for record in rig.service.records} == {"draining"}
    assert rig.cluster.connections == 0
    assert rig.left() == {}


# -- dialling for real ------------------------------------------------------------------------------------------


def plain(poller: Poller, **more: Any) -> Cluster:
    return Cluster(poller, ClusterSettings("c", **more), lambda: None, WireLimits(), random.Random(1))


def test_mtls_without_an_svid_fails_closed(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20, tls=True)
    rig.cluster.dial = lambda *args: Cluster.dial(rig.cluster, *args)  # type: ignore[method-assign]
    ask(rig, 1)
    assert rig.service.records == []
    rig.pass_time(0.0)
    assert (rig.record.status, rig.record.reason) == (503, "no_identity")
    assert rig.left() == {}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"addresses": (A,), "tls": True}, "no_identity"), ({}, "no_healthy_endpoint"), ({"dns": "x"}, "dns_failed")],
)
def test_a_raw_connection_that_cannot_begin_says_why(settings: dict[str, Any], reason: str) -> None:
    poller = Poller()
    failed: list[str] = []
    cluster = plain(poller, **settings)
    cluster.connect_raw(lambda *_: None, lambda why, _: failed.append(why), permit_configured("c"))
    poller.now += 1
    poller.fire_due()
    assert failed == [reason]
    poller.close()


def test_the_engine_follows_alpn_and_the_declared_protocol() -> None:
    poller = Poller()
    cases = [(True, "any", "h2", 20), (True, "any", "http/1.1", 11), (False, "h2", "", 20), (False, "http1", "", 11)]
    for tls, kind, alpn, version in cases:
        cluster = plain(poller, addresses=(A,), tls=tls)
        assert cluster.engine_for(cluster.endpoints[0].pool(kind), alpn).version == version
    poller.close()


def test_a_tls_peer_that_chose_http1_gets_one_dial_for_each_who_waits(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20, protocol="auto", tls=True)
    rig.cluster.next_engine = lambda: FakeClient(11)
    ask(rig, 1, 3, 5)
    assert len(rig.cluster.dials) == 1
    rig.connect()
    assert len(rig.cluster.dials) == 2
    rig.connect()
    rig.connect()
    assert (rig.cluster.waiting, rig.cluster.connections) == (0, 3)


# -- names ----------------------------------------------------------------------------------------------------


class Names(trio.abc.HostnameResolver):
    """A name server."""

    def __init__(self, *answers: list[str] | OSError) -> None:
        self.answers = list(answers)

    async def getaddrinfo(self, host: Any, port: Any, *args: Any, **more: Any) -> Any:
        found = self.answers.pop(0)
        if isinstance(found, OSError):
            raise found
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


def resolving(*answers: list[str] | OSError) -> Cluster:
    trio.socket.set_custom_hostname_resolver(Names(*answers))
    return plain(Poller(), dns="api.shop.svc", dns_port=8080)


def hosts(cluster: Cluster) -> list[str]:
    return [endpoint.address.host for endpoint in cluster.endpoints]


async def test_a_name_becomes_endpoints_without_repetition() -> None:
    cluster = resolving(["10.0.0.1", "10.0.0.1", "10.0.0.2"])
    await cluster.resolve_once()
    assert hosts(cluster) == ["10.0.0.1", "10.0.0.2"]
    assert cluster.endpoints[0].address.port == 8080
    cluster.poller.close()


async def test_the_last_good_answer_is_kept_while_the_name_server_fails(autojump_clock: Any) -> None:
    down = OSError("name server down")
    cluster = resolving(["10.0.0.1"], down, down)
    await cluster.resolve_once()
    await trio.sleep(599)
    await cluster.resolve_once()
    assert hosts(cluster) == ["10.0.0.1"]
    assert "name server down" in cluster.resolve_error
    await trio.sleep(2)
    await cluster.resolve_once()
    assert hosts(cluster) == []
    cluster.poller.close()


async def test_a_name_server_that_says_nothing_is_given_up_after_five_seconds(autojump_clock: Any) -> None:
    cluster = resolving(["10.0.0.1"])

    async def never(*args: Any, **more: Any) -> Any:
        await trio.sleep_forever()

    trio.socket.set_custom_hostname_resolver(Names())
    module.trio.socket.set_custom_hostname_resolver(type("Never", (Names,), {"getaddrinfo": never})())
    began = trio.current_time()
    await cluster.resolve_once()
    assert trio.current_time() - began == pytest.approx(5.0)
    assert "api.shop.svc" in cluster.resolve_error
    cluster.poller.close()


async def test_names_are_asked_again_until_cancelled(autojump_clock: Any) -> None:
    cluster = resolving(OSError("down"), ["10.0.0.1"], ["10.0.0.2"])
    with trio.move_on_after(6.5):
        await cluster.resolve_forever()
    assert hosts(cluster) == ["10.0.0.2"]
    cluster.poller.close()


async def test_static_endpoints_are_never_resolved() -> None:
    cluster = plain(Poller(), addresses=(A,))
    await cluster.resolve_forever()
    assert hosts(cluster) == ["10.0.0.1"]
    cluster.poller.close()


def test_a_retired_cluster_finishes_what_it_carries_and_asks_for_no_name(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20)
    ask(rig, 1)
    upstream = rig.connect()
    rig.cluster.retire()
    assert rig.cluster.open_connections == 1
    upstream.say(answer(1))
    assert (rig.record.status, rig.record.reason) == (200, "")
    rig.cluster.sweep(rig.poller.now)
    assert rig.cluster.open_connections == 0


async def test_the_names_of_a_retired_cluster_are_left_alone(make_rig: MakeRig) -> None:
    rig = make_rig(20, 20, dns="nowhere.invalid", dns_port=1)
    rig.cluster.retire()
    with trio.fail_after(1):
        await rig.cluster.resolve_forever()
