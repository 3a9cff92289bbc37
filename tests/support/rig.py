"""One caller, one cluster, nothing else: real connections, pools and poller over socket pairs, engines by hand.

    rig = Rig(caller=20, upstream=11)
    rig.ask(1)                      # the caller's request arrives; nothing is connected yet
    up = rig.connect()              # the oldest dial succeeds
    up.say(answer(1))               # the upstream answers
    rig.caller.read()               # what the caller got

Nothing waits: ``pump`` dispatches until no socket is ready. Clocks are arguments (``rig.sweep(seconds)``).
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from identity.svid import PeerIdentity
from proxy.errors import SidewallError
from proxy.http.exchange import Exchange
from proxy.http.facts import Facts, Times
from proxy.http.server import ServerConnection
from proxy.net.listener import Address
from proxy.net.poller import Poller
from proxy.net.stream import Stream
from proxy.observe.record import ExchangeRecord
from proxy.policy.engine import permit_configured
from proxy.upstream.cluster import Cluster, ClusterSettings
from proxy.upstream.pool import Pool
from proxy.wire.events import (
    DataReceived,
    Event,
    Headers,
    RequestHead,
    RequestReceived,
    ResponseHead,
    ResponseReceived,
)
from proxy.wire.limits import WireLimits
from tests.support.fake_engines import MARK, FakeClient, FakeEngine, FakeServer

_MOST_ROUNDS = 2000


def head(path: bytes = b"/", *, method: bytes = b"GET", length: int | None = 0, **more: Any) -> RequestHead:
    """A request head as the validator would make it."""
    return RequestHead(
        method=method,
        scheme=b"http",
        authority=b"api.shop",
        host=b"api.shop",
        path=path,
        target=path,
        headers=[],
        version=more.pop("version", 11),
        length=length,
        **more,
    )


def request(stream_id: int = 1, path: bytes = b"/", **more: Any) -> RequestReceived:
    """A request without a body."""
    return RequestReceived(stream_id, head(path, **more), True)


def upload(stream_id: int = 1, path: bytes = b"/", **more: Any) -> RequestReceived:
    """A request whose body follows."""
    return RequestReceived(stream_id, head(path, method=b"POST", length=None, **more), False)


def answer(stream_id: int = 1, status: int = 200, *, end: bool = True, **more: Any) -> ResponseReceived:
    return ResponseReceived(stream_id, ResponseHead(status, [], **more), end)


class Peer:
    """The far end of one connection. ``engine`` is the product's end."""

    def __init__(self, sock: socket.socket, engine: FakeEngine, pump: Callable[[], None]) -> None:
        self.sock = sock
        self.engine = engine
        self.pump = pump
        sock.setblocking(False)

    def tell(self, *events: Event) -> None:
        """Let these events arrive with the next dispatch."""
        self.engine.inbox.append(list(events))
        self.sock.send(MARK)

    def say(self, *events: Event) -> None:
        """Let these events arrive now."""
        self.tell(*events)
        self.pump()

    def read(self, most: int = 1 << 30) -> bytes:
        """What was written to this peer, up to ``most`` bytes."""
        self.pump()
        got = b""
        while len(got) < most:
            try:
                data = self.sock.recv(min(65536, most - len(got)))
            except BlockingIOError:
                if not self._more():
                    break
                continue
            except OSError:
                break
            if not data:
                break
            got += data
        return got

    def _more(self) -> bool:
        self.pump()
        try:
            return bool(self.sock.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def at_eof(self) -> bool:
        """Whether the product closed or half-closed this connection (nothing else may be unread)."""
        self.pump()
        try:
            return self.sock.recv(65536) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def finish(self, *events: Event) -> None:
        """Send FIN; ``events`` are what the engine makes of it."""
        self.engine.at_eof = list(events)
        self.sock.shutdown(socket.SHUT_WR)
        self.pump()

    def vanish(self) -> None:
        """Close, without a word."""
        self.sock.close()
        self.pump()


@dataclass
class Dialled:
    """A dial the product asked for and nobody answered yet."""

    pool: Pool
    done: Callable[[Stream, PeerIdentity | None, str], None]
    failed: Callable[[str, str], None]


class RigCluster(Cluster):
    """The real one; dials are answered by the test."""

    def __init__(self, poller: Poller, settings: ClusterSettings) -> None:
        self.dials: list[Dialled] = []
        self.next_engine: Callable[[], FakeClient] = FakeClient
        self.made: list[FakeClient] = []
        super().__init__(poller, settings, lambda: None, WireLimits(), random.Random(1))

    def dial(self, pool: Pool, done: Any, failed: Any) -> None:
        self.dials.append(Dialled(pool, done, failed))

    def engine_for(self, pool: Pool, alpn: str) -> Any:
        self.made.append(self.next_engine())
        return self.made[-1]


class RigService:
    """Forwards everything, keeps every record. ``refuse`` is raised instead when set."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.times = Times()
        self.exchanges: list[Exchange] = []
        self.records: list[ExchangeRecord] = []
        self.refusals: list[ExchangeRecord] = []
        self.ended: list[ServerConnection] = []
        self.malformed: list[str] = []
        self.refuse: SidewallError | None = None
        self.total = 0.0
        self.most_body = 0

    def handle(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        exchange.total, exchange.most_body = self.total, self.most_body
        if self.refuse is not None:
            raise self.refuse
        self.rig.cluster.forward(exchange, permit_configured("app"))

    def response_headers(self, exchange: Exchange, head: ResponseHead) -> Headers:
        return head.headers

    def done(self, exchange: Exchange) -> None:
        self.records.append(exchange.record)

    def refused(self, connection: ServerConnection, record: ExchangeRecord) -> None:
        self.refusals.append(record)

    def closed(self, connection: ServerConnection) -> None:
        self.ended.append(connection)

    def note_malformed(self, reason: str) -> None:
        self.malformed.append(reason)


_ONE = (Address("10.0.0.1", 80),)


class Rig:
    """See the module's text. ``caller`` and ``upstream`` are HTTP versions (11 or 20)."""

    def __init__(
        self, caller: int = 20, upstream: int = 20, addresses: Sequence[Address] = _ONE, **settings: Any
    ) -> None:
        self.poller = Poller()
        self.socks: list[socket.socket] = []
        self.upstream_version = upstream
        kind = "h2" if upstream == 20 else "http1"
        base = ClusterSettings("app", tuple(addresses), protocol=kind, balance="ROUND_ROBIN")
        self.cluster = RigCluster(self.poller, replace(base, **settings))
        self.cluster.next_engine = lambda: FakeClient(upstream)
        self.service = RigService(self)
        self.upstreams: list[Peer] = []
        self.caller, self.server = self.accept(caller)

    # -- connections

    def pair(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.socks += [ours, theirs]
        return ours, theirs

    def accept(self, version: int) -> tuple[Peer, ServerConnection]:
        """One more caller."""
        ours, theirs = self.pair()
        facts = Facts(
            direction="inbound", listener="in", local="l:1", local_port=1, peer_address="p:1", peer_host="p"
        )
        engine = FakeServer(version)
        connection = ServerConnection(Stream(self.poller, ours), engine, self.service, facts)  # type: ignore[arg-type]
        connection.start()
        self.pump()
        return Peer(theirs, engine, self.pump), connection

    def connect(self, engine: FakeClient | None = None, peer: PeerIdentity | None = None) -> Peer:
        """The oldest dial succeeds."""
        dialled = self.cluster.dials.pop(0)
        ours, theirs = self.pair()
        if engine is not None:
            before, self.cluster.next_engine = self.cluster.next_engine, lambda: engine
        self.poller.run(lambda: dialled.done(Stream(self.poller, ours), peer, ""))
        if engine is not None:
            self.cluster.next_engine = before
        self.upstreams.append(Peer(theirs, self.cluster.made[-1], self.pump))
        self.pump()
        return self.upstreams[-1]

    def refuse_dial(self, reason: str = "upstream_connect_failed") -> None:
        """The oldest dial fails."""
        dialled = self.cluster.dials.pop(0)
        self.poller.run(lambda: dialled.failed(reason, "refused"))
        self.pump()

    # -- time

    def pump(self) -> None:
        """Dispatch until nothing is ready."""
        self.poller.flush()
        for _ in range(_MOST_ROUNDS):
            if not self.poller.dispatch(0):
                return
        raise AssertionError("the poller never comes to rest")

    def sweep(self, seconds: float) -> None:
        """Look at every clock as it will stand in ``seconds``."""
        then = self.poller.now + seconds
        self.poller.run(lambda: None if self.server.closed else self.server.sweep(then))
        self.poller.run(lambda: self.cluster.sweep(then))
        self.pump()

    def pass_time(self, seconds: float) -> None:
        """Fire the timers of the next ``seconds``."""
        self.poller.now += seconds
        self.poller.fire_due()
        self.pump()

    # -- looking

    @property
    def exchange(self) -> Exchange:
        return self.service.exchanges[-1]

    @property
    def record(self) -> ExchangeRecord:
        return self.service.records[-1]

    @property
    def active(self) -> int:
        return sum(endpoint.active for endpoint in self.cluster.endpoints)

    def left(self) -> dict[str, int]:
        """Everything that is counted and not zero, apart from connections that are kept."""
        pools = [pool for endpoint in self.cluster.endpoints for pool in endpoint.pools.values()]
        connections = [connection for pool in pools for connection in pool.all()]
        counts = {
            "exchanges": len(self.server.exchanges),
            "unfinished": sum(not exchange.finished for exchange in self.service.exchanges),
            "unrecorded": len(self.service.exchanges) - len(self.service.records),
            "blocked": len(self.server.blocked) + sum(len(c.blocked) for c in connections),
            "held": self.server.held + sum(c.held for c in connections),
            "upstream exchanges": sum(len(c.exchanges) for c in connections),
            "active": self.active,
            "waiting": self.cluster.waiting + sum(len(pool.waiting) for pool in pools),
            "owed": 0 if self.server.closed or self.caller.engine.version != 20 else self.caller.engine.owed,
            "crashes": self.poller.crashes,
        }
        return {name: count for name, count in counts.items() if count}

    def close(self) -> None:
        """End everything; connections must count down to nothing."""
        self.poller.run(lambda: self.server.shut("draining"))
        self.poller.run(self.cluster.shut)
        self.pump()
        for sock in self.socks:
            sock.close()
        self.poller.close()


def data(stream_id: int, size: int, *, end: bool = False, counted: int | None = None) -> DataReceived:
    """``size`` body bytes."""
    return DataReceived(stream_id, b"x" * size, end, counted)
