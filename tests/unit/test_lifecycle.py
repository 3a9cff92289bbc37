"""A worker's counts, gates, sweeps and its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

from identity.svid import PeerIdentity
from proxy.errors import Overflow, SidewallError
from proxy.http.exchange import Exchange
from proxy.http.facts import Facts, Times
from proxy.http.server import ServerConnection
from proxy.lifecycle import Caps, Runtime, Worker
from proxy.net.poller import Poller
from proxy.net.splice import Splice
from proxy.net.stream import Stream
from proxy.observe.record import ExchangeRecord
from proxy.observe.telemetry import Telemetry
from proxy.policy.engine import WorkloadFacts, compile_policies, permit_configured
from proxy.wire.events import Headers, ResponseHead
from tests.support.build import interpreted_only
from tests.support.fake_engines import FakeServer
from tests.support.rig import Peer, Rig, answer, request
from tests.unit.observe.records import peer as make_peer

WEB, OTHER = make_peer("shop/web"), make_peer("shop/other")


def runtime(generation: int = 1) -> Runtime:
    return Runtime(generation, compile_policies([], WorkloadFacts("shop", {}), "audit"))


class Limits(Telemetry):
    """The real one; remembers which limits were hit."""

    def __init__(self) -> None:
        super().__init__(env={})
        self.hit: list[str] = []

    def limit(self, name: str) -> None:
        self.hit.append(name)
        super().limit(name)


class Service:
    """What the worker needs of a service: it counts in and out, and judges."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.times = Times()
        self.exchanges: list[Exchange] = []
        self.records: list[ExchangeRecord] = []
        self.forbidden: set[bytes] = set()

    def handle(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        self.house.worker.enter(exchange)
        self.house.rig.cluster.forward(exchange, permit_configured("app"))

    def judge_again(self, exchange: Exchange) -> None:
        if exchange.head.path in self.forbidden:
            exchange.fail(SidewallError(reason="no_allow_policy_matched"))

    def response_headers(self, exchange: Exchange, head: ResponseHead) -> Headers:
        return head.headers

    def done(self, exchange: Exchange) -> None:
        self.house.worker.leave(exchange)
        self.records.append(exchange.record)

    def refused(self, connection: ServerConnection, record: ExchangeRecord) -> None:
        self.records.append(record)

    def closed(self, connection: ServerConnection) -> None:
        self.house.worker.remove(connection)

    def note_malformed(self, reason: str) -> None:
        pass


class House:
    """A worker with callers and one cluster, all by hand."""

    def __init__(self, **caps: Any) -> None:
        self.rig = Rig(20, 20)
        self.telemetry = Limits()
        self.worker = Worker(self.rig.poller, self.telemetry, runtime(), Caps(**caps))
        self.worker.clusters["app"] = self.rig.cluster
        self.service = Service(self)

    def enter(self, peer: PeerIdentity | None = WEB, version: int = 20) -> tuple[Peer, ServerConnection]:
        """A caller comes in."""
        ours, theirs = self.rig.pair()
        facts = Facts(
            direction="inbound",
            listener="in",
            local="l:1",
            local_port=1,
            peer_address="p:1",
            peer_host="p",
            peer=peer,
        )
        engine = FakeServer(version)
        connection = ServerConnection(Stream(self.rig.poller, ours), engine, self.service, facts)  # type: ignore[arg-type]
        if self.worker.add(connection):
            connection.start()
        else:
            connection.stream.abort()
        self.rig.pump()
        return Peer(theirs, engine, self.rig.pump), connection

    def splice(self) -> tuple[Splice, list[str]]:
        ends: list[str] = []
        streams = [Stream(self.rig.poller, self.rig.pair()[0]) for _ in range(2)]

        def ended(splice: Splice, reason: str) -> None:
            ends.append(reason)
            self.worker.unspliced(splice)

        made = Splice(streams[0], streams[1], ended)
        made.start()
        self.worker.spliced(made)
        return made, ends

    @property
    def uses(self) -> dict[str, tuple[int, int]]:
        return {key: (use.connections, use.requests) for key, use in self.worker._uses.items()}


@pytest.fixture
def make_house() -> Iterator[Callable[..., House]]:
    made: list[House] = []

    def make(**caps: Any) -> House:
        made.append(House(**caps))
        return made[-1]

    yield make
    for house in made:
        house.rig.poller.run(house.worker._cut_all)
        house.rig.close()
        assert house.uses == {}
        assert (house.worker.requests, len(house.worker.connections), len(house.worker.splices)) == (0, 0, 0)
        assert house.rig.poller.crashes == 0


MakeHouse = Callable[..., House]


# -- counts ---------------------------------------------------------------------------------------------------


def test_a_peer_is_counted_while_it_has_a_connection_or_a_request(make_house: MakeHouse) -> None:
    house = make_house()
    caller, _connection = house.enter()
    house.enter(OTHER)
    assert house.uses == {WEB.uri: (1, 0), OTHER.uri: (1, 0)}
    caller.say(request(1), request(3))
    assert house.uses[WEB.uri] == (1, 2)
    up = house.rig.connect()
    up.say(answer(1))
    assert (house.uses[WEB.uri], house.worker.requests) == ((1, 1), 1)
    caller.vanish()
    assert house.uses == {OTHER.uri: (1, 0)}


def test_a_peer_has_no_more_connections_than_allowed(make_house: MakeHouse) -> None:
    house = make_house(connections_per_peer=2)
    callers = [house.enter()[0] for _ in range(3)]
    assert callers[2].at_eof()
    assert house.uses == {WEB.uri: (2, 0)}
    assert house.telemetry.hit == ["connections_per_peer"]
    house.enter(OTHER)
    callers[0].vanish()
    assert not house.enter()[1].stream.closed


def test_local_callers_share_one_count(make_house: MakeHouse) -> None:
    house = make_house(connections_per_peer=1)
    house.enter(None)
    assert house.enter(None)[0].at_eof()


def test_a_peer_has_no_more_requests_than_allowed_and_the_count_comes_back(make_house: MakeHouse) -> None:
    house = make_house(requests_per_peer=2)
    caller, _ = house.enter()
    caller.say(request(1), request(3), request(5))
    assert [r.reason for r in house.service.records] == ["overflow_requests"]
    assert house.uses[WEB.uri] == (1, 2)
    other, _ = house.enter(OTHER)
    other.say(request(1))
    assert len(house.service.records) == 1
    house.rig.connect().say(answer(1))
    caller.say(request(7))
    assert len(house.service.records) == 2


def test_all_peers_together_have_no_more_requests_than_allowed(make_house: MakeHouse) -> None:
    house = make_house(requests=2)
    for who in (WEB, OTHER):
        house.enter(who)[0].say(request(1))
    house.enter(OTHER)[0].say(request(1))
    assert [r.reason for r in house.service.records] == ["overflow_requests"]
    assert house.worker.requests == 2


def test_entering_over_the_limit_raises_overflow(make_house: MakeHouse) -> None:
    house = make_house(requests=0)
    caller, _connection = house.enter()
    caller.say(request(1))
    exchange = house.service.exchanges[0]
    with pytest.raises(Overflow):
        house.worker.enter(exchange)
    house.worker.leave(exchange)
    assert house.worker.requests == 0


def test_removing_twice_counts_once(make_house: MakeHouse) -> None:
    house = make_house()
    _, one = house.enter()
    house.enter()
    house.worker.remove(one)
    house.worker.remove(one)
    assert house.uses == {WEB.uri: (1, 0)}
    house.rig.poller.run(lambda: one.shut("draining"))


# -- the gate -------------------------------------------------------------------------------------------------


def test_no_more_handshakes_at_a_time_than_allowed(make_house: MakeHouse) -> None:
    house = make_house(handshakes=2)
    house.worker.handshaking = 1
    assert house.worker.may_accept()
    house.worker.handshaking = 2
    assert not house.worker.may_accept()
    assert house.telemetry.hit == ["handshakes"]
    house.worker.handshaking = 0


def test_when_full_the_longest_idle_connection_makes_room(make_house: MakeHouse) -> None:
    house = make_house(connections=2)
    _, old = house.enter(version=11)
    _, young = house.enter(version=11)
    old.last_active, young.last_active = 1.0, 2.0
    assert house.worker.may_accept()
    house.rig.pump()
    assert (old.closed, young.closed) == (True, False)


def test_every_caller_let_in_when_full_costs_another_idle_connection(make_house: MakeHouse) -> None:
    house = make_house(connections=2)
    house.enter()
    house.enter()
    assert house.worker.may_accept()
    assert len(house.worker.connections) == 1


def test_a_busy_connection_makes_no_room(make_house: MakeHouse) -> None:
    house = make_house(connections=1)
    caller, connection = house.enter()
    caller.say(request(1))
    assert not house.worker.may_accept()
    assert not connection.draining


def test_splices_and_handshakes_count_as_connections(make_house: MakeHouse) -> None:
    house = make_house(connections=2)
    house.splice()
    house.worker.handshaking = 1
    assert not house.worker.may_accept()
    house.worker.handshaking = 0
    assert house.worker.may_accept()


def test_a_draining_worker_lets_nobody_in(make_house: MakeHouse) -> None:
    house = make_house()
    house.worker.draining = True
    assert not house.worker.may_accept()
    late, _connection = house.enter()  # its handshake had begun before
    assert late.at_eof()
    assert house.uses == {}


# -- change ---------------------------------------------------------------------------------------------------


def test_a_swap_ends_what_is_no_longer_allowed_and_its_neighbours_go_on(make_house: MakeHouse) -> None:
    house = make_house()
    caller, connection = house.enter()
    caller.say(request(1, b"/kept"), request(3, b"/lost"))
    up = house.rig.connect()
    house.service.forbidden.add(b"/lost")
    house.worker.swap(runtime(2))
    assert house.worker.runtime.generation == 2
    assert [(r.path, r.reason) for r in house.service.records] == [(b"/lost", "no_allow_policy_matched")]
    up.say(answer(1))
    assert house.service.records[-1].reason == ""
    assert not connection.closed


# -- clocks ---------------------------------------------------------------------------------------------------


@interpreted_only
async def test_every_connection_is_looked_at_again_and_again(make_house: MakeHouse, autojump_clock: Any) -> None:
    house = make_house()
    looked: list[float] = []
    _, connection = house.enter()
    house.service.times = Times(idle=0.0)
    splice, _ = house.splice()
    splice.sweep = looked.append  # type: ignore[method-assign]
    house.rig.cluster.sweep = looked.append  # type: ignore[method-assign]
    connection.expires_at = house.rig.poller.now - 1.0
    with trio.move_on_after(1.6):
        await house.worker.sweep_forever()
    assert len(looked) == 6
    assert connection.draining


# -- the end --------------------------------------------------------------------------------------------------


async def test_an_empty_worker_is_drained_at_once(make_house: MakeHouse, autojump_clock: Any) -> None:
    house = make_house()
    assert await house.worker.drain(30.0) == 0
    assert trio.current_time() == 0.0


async def test_what_is_open_may_finish(make_house: MakeHouse, autojump_clock: Any) -> None:
    house = make_house()
    caller, _connection = house.enter(version=11)
    caller.say(request(1))
    up = house.rig.connect()

    async def finish() -> None:
        await trio.sleep(10.0)
        up.say(answer(1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(finish)
        assert await house.worker.drain(30.0) == 0
    assert trio.current_time() == pytest.approx(10.0)
    assert house.service.records[0].reason == ""


async def test_what_does_not_finish_is_cut_counted_and_recorded(make_house: MakeHouse, autojump_clock: Any) -> None:
    house = make_house()
    caller, connection = house.enter()
    caller.say(request(1))
    house.rig.connect()
    _splice, ends = house.splice()
    assert await house.worker.drain(30.0) == 2
    assert trio.current_time() == pytest.approx(30.0, abs=0.1)
    assert [r.reason for r in house.service.records] == ["draining"]
    assert ends == ["draining"]
    assert connection.closed
    assert house.rig.cluster.connections == 0


async def test_a_splice_that_ends_lets_the_drain_finish(make_house: MakeHouse, autojump_clock: Any) -> None:
    house = make_house()
    splice, _ = house.splice()

    async def finish() -> None:
        await trio.sleep(5.0)
        splice.end("")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(finish)
        assert await house.worker.drain(30.0) == 0
    assert trio.current_time() == pytest.approx(5.0)


@interpreted_only
def test_listeners_stop_before_the_drain(make_house: MakeHouse) -> None:
    house = make_house()
    closed: list[str] = []

    class Listener:
        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None:
            closed.append(self.name)

    house.worker.listeners = {name: Listener(name) for name in ("a", "b")}  # type: ignore[dict-item,misc]
    house.worker.stop_accepting()
    assert (closed, house.worker.listeners) == (["a", "b"], {})


def test_a_worker_without_pace_has_no_bucket() -> None:
    poller = Poller()
    assert Worker(poller, Limits(), runtime(), Caps(handshakes_per_second=0.0)).pace is None
    assert Worker(poller, Limits(), runtime(), Caps()).pace is not None
    poller.close()
