"""What a worker is made of at one moment, and how it changes: swap, sweep, re-judge, drain.

``Runtime`` is an immutable snapshot compiled from one configuration; a handler reads ``worker.runtime`` once
per exchange, so that a reload never changes the rules in the middle of a request. What outlives a reload
(connections, pools, counts) hangs on the ``Worker``.
"""

from __future__ import annotations

import logging
import random
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

import trio

from identity.revocations import Revocations
from identity.svid import PeerIdentity
from proxy.errors import Overflow
from proxy.http.exchange import Exchange
from proxy.http.facts import Facts, Use
from proxy.http.server import ServerConnection
from proxy.net.listener import Bucket, Listener
from proxy.net.poller import Poller
from proxy.net.splice import Splice
from proxy.net.tls import Credentials
from proxy.observe.telemetry import Telemetry
from proxy.policy.engine import CompiledPolicies, DecisionCache
from proxy.policy.quarantine import Quarantine
from proxy.upstream.cluster import Cluster

if TYPE_CHECKING:
    from proxy.policy.jwt import Tokens

_SWEEP: Final = 0.5  # seconds between two looks at every clock
_SLICE: Final = 500  # connections looked at before other tasks get their turn

log = logging.getLogger("proxy.lifecycle")


class Runtime:
    """One generation: policies and what else a reload replaces whole. Never changed after it was made."""

    __slots__ = ("decisions", "default_deny", "generation", "policies", "tokens")

    def __init__(
        self, generation: int, policies: CompiledPolicies, tokens: Mapping[str, Tokens] | None = None
    ) -> None:
        self.generation = generation
        self.policies = policies
        self.tokens: Mapping[str, Tokens] = tokens or {}  # by listener, of those that look at tokens at all
        self.decisions = DecisionCache(policies)


class Caps:
    """L-20, L-21, L-23: how much of us may be used at a time."""

    __slots__ = (
        "connections",
        "connections_per_peer",
        "handshakes",
        "handshakes_per_second",
        "requests",
        "requests_per_peer",
    )

    def __init__(
        self,
        connections: int = 10_000,
        connections_per_peer: int = 1000,
        handshakes: int = 512,
        handshakes_per_second: float = 200.0,
        requests: int = 4096,
        requests_per_peer: int = 512,
    ) -> None:
        self.connections = connections
        self.connections_per_peer = connections_per_peer
        self.handshakes = handshakes
        self.handshakes_per_second = handshakes_per_second  # L-23
        self.requests = requests
        self.requests_per_peer = requests_per_peer


class Worker:
    """Everything one process serves with. Created by ``app``; its tasks are started there."""

    def __init__(self, poller: Poller, telemetry: Telemetry, runtime: Runtime, caps: Caps) -> None:
        self.poller = poller
        self.telemetry = telemetry
        self.runtime = runtime
        self.caps = caps
        self.credentials: Credentials | None = None
        self.instance = f"sidewall-{uuid.uuid4().hex[:12]}"
        self.via = f"1.1 {self.instance}".encode()
        self.rng = random.Random(random.SystemRandom().getrandbits(256))  # noqa: S311 (ids, not secrets)
        self.connections: set[ServerConnection] = set()
        self.splices: set[Splice] = set()
        self.listeners: dict[str, Listener] = {}
        self.clusters: dict[str, Cluster] = {}
        self.leaving: list[Cluster] = []  # taken out by a reload, with exchanges still open
        self.quarantine: Quarantine | None = None  # None: nobody is in quarantine
        self.handshaking = 0
        self.revocations: Revocations | None = None  # of our trust domain, from a running CA
        rate = caps.handshakes_per_second
        self.pace = Bucket(rate, rate, poller.now) if rate else None
        self.requests = 0
        self.draining = False
        self._uses: dict[str, Use] = {}
        self._empty = trio.Event()

    # -- counting what peers use ----------------------------------------------------------------------------

    @staticmethod
    def key(facts: Facts) -> str:
        """Whose use it is: a SPIFFE ID, the address of a caller that showed none, "" for our own app."""
        if facts.peer is not None:
            return facts.peer.uri
        return facts.peer_host if facts.direction == "inbound" else ""

    def may_accept(self) -> bool:
        """Gate of the listeners (L-20)."""
        full = len(self.connections) + len(self.splices) + self.handshaking >= self.caps.connections
        if full or self.handshaking >= self.caps.handshakes or self.draining:
            self.telemetry.limit("connections" if full else "handshakes")
            return self._make_room() if full and not self.draining else False
        return True

    def _make_room(self) -> bool:
        # The connection that has been idle longest goes first (L-20); one that is going already makes no more room.
        idle = [one for one in self.connections if not one.exchanges and not one.draining]
        if not idle:
            return False
        min(idle, key=lambda connection: connection.last_active).shut("overload")
        return True

    def add(self, connection: ServerConnection) -> bool:
        """Count a connection in; False when its peer holds too many already, or when we are going."""
        if self.draining:
            return False  # its handshake had begun before; nothing was sent yet, so that the caller may go elsewhere
        use = self._uses.setdefault(self.key(connection.facts), Use())
        if use.connections >= self.caps.connections_per_peer:
            self.telemetry.limit("connections_per_peer")
            return False
        use.connections += 1
        connection.use = use
        self.connections.add(connection)
        return True

    def remove(self, connection: ServerConnection) -> None:
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        connection.use.connections -= 1
        if not connection.use.connections:
            del self._uses[self.key(connection.facts)]
        self._check_empty()

    def enter(self, exchange: Exchange) -> None:
        """Count an exchange in (L-21). Always paired with ``leave``, also when it raises Overflow."""
        use = exchange.server.use
        self.requests += 1
        use.requests += 1
        if self.requests > self.caps.requests or use.requests > self.caps.requests_per_peer:
            self.telemetry.limit("requests")
            raise Overflow("too many requests in flight", reason="overflow_requests")

    def leave(self, exchange: Exchange) -> None:
        self.requests -= 1
        exchange.server.use.requests -= 1

    # -- change -------------------------------------------------------------------------------------------

    @property
    def principal(self) -> str | None:
        """Our own SPIFFE ID without its scheme; None before there is one."""
        return self.credentials.context.id.principal if self.credentials is not None else None

    def check_quarantine(self, caller: str | None, callee: str | None) -> None:
        """Raises AccessDenied when one of the two is in quarantine."""
        if self.quarantine is not None:
            self.quarantine.check(caller, callee, self.poller.wall())

    def set_quarantine(self, quarantine: Quarantine) -> None:
        """Refuse these from now on, and end what is open with them."""
        self.quarantine = quarantine if len(quarantine) else None
        self.poller.run(self._judge_again)

    def _refuse_upstreams(self) -> None:
        own, now, quarantine = self.principal, self.poller.wall(), self.quarantine or Quarantine()
        for cluster in self.clusters.values():
            named = {uri: uri.removeprefix("spiffe://") for uri in cluster.settings.expect}
            cluster.refuse(frozenset(uri for uri, far in named.items() if quarantine.hit(own, far, now)))

    def swap(self, runtime: Runtime) -> None:
        """Use ``runtime`` from the next exchange on, and judge again what is open."""
        self.runtime = runtime
        self.judge_again()

    def judge_again(self) -> None:
        """Judge again what is open: the rules, or the keys that tokens are checked with, are others than before."""
        self.poller.run(self._judge_again)

    def _judge_again(self) -> None:
        self._refuse_upstreams()
        for connection in list(self.connections):
            judge = getattr(connection.service, "judge_again", None)
            if judge is not None:
                for exchange in list(connection.exchanges.values()):
                    judge(exchange)
        for splice in list(self.splices):
            splice.judge_again()

    # -- time ---------------------------------------------------------------------------------------------

    async def sweep_forever(self) -> None:
        """Compare every connection with its limits, twice a second, in slices."""
        while True:
            await trio.sleep(_SWEEP)
            await self._in_slices(list(self.connections), lambda c, now: c.sweep(now))
            self.poller.run(self._sweep_splices)
            self._end_quarantines()
            for cluster in [*self.clusters.values(), *self.leaving]:
                self.poller.run(lambda c=cluster: c.sweep(self.poller.now))  # type: ignore[misc]
            self.leaving = [cluster for cluster in self.leaving if cluster.open_connections]

    def is_revoked(self, peer: PeerIdentity | None) -> bool:
        """Whether the authority has taken back what ``peer`` shows."""
        known = self.revocations
        if known is None or peer is None or peer.id.trust_domain != known.trust_domain:
            return False
        return known.reason_for(peer.uri, (peer.serial,), (), self.poller.wall()) is not None

    def set_revocations(self, revocations: Revocations) -> None:
        """A newer list: handshakes from now on are compared with it, and open connections of who is on it end."""
        known, self.revocations = self.revocations, revocations
        if known is None or known.entries != revocations.entries:
            self.poller.run(self._end_revoked)

    def _end_revoked(self) -> None:
        for connection in list(self.connections):
            if self.is_revoked(connection.facts.peer):
                connection.shut("identity_revoked")
        for splice in list(self.splices):
            splice.judge_again()
        for cluster in [*self.clusters.values(), *self.leaving]:
            cluster.cut(self.is_revoked, "identity_revoked")

    def _end_quarantines(self) -> None:
        if self.quarantine is not None:
            live = self.quarantine.live(self.poller.wall())
            if len(live) < len(self.quarantine):
                self.set_quarantine(live)

    def retire(self, name: str) -> None:
        """Take a cluster out of use; it is looked after until its last connection has ended."""
        cluster = self.clusters.pop(name)
        self.leaving.append(cluster)
        self.poller.run(cluster.retire)

    def _sweep_splices(self) -> None:
        for splice in list(self.splices):
            splice.sweep(self.poller.now)

    async def _in_slices(
        self,
        connections: list[ServerConnection],
        look: Callable[[ServerConnection, float], None],
    ) -> None:
        for start in range(0, len(connections), _SLICE):
            some = connections[start : start + _SLICE]
            self.poller.run(lambda some=some: self._look(some, look))  # type: ignore[misc]
            await trio.lowlevel.checkpoint()

    def _look(
        self, connections: Iterable[ServerConnection], look: Callable[[ServerConnection, float], None]
    ) -> None:
        for connection in connections:
            if not connection.closed:
                look(connection, self.poller.now)

    # -- end ----------------------------------------------------------------------------------------------

    def _check_empty(self) -> None:
        if self.draining and not self.connections and not self.splices:
            self._empty.set()

    def spliced(self, splice: Splice) -> None:
        self.splices.add(splice)

    def unspliced(self, splice: Splice) -> None:
        self.splices.discard(splice)
        self._check_empty()

    def stop_accepting(self) -> None:
        for listener in self.listeners.values():
            listener.close()
        self.listeners.clear()

    async def drain(self, seconds: float) -> int:
        """Bring every connection to its end within ``seconds``; returns how many had to be cut (T-8)."""
        self.draining = True
        self.poller.run(self._drain_all)
        self._check_empty()
        with trio.move_on_after(seconds):
            await self._empty.wait()
        left = len(self.connections) + len(self.splices)
        self.poller.run(self._cut_all)
        await trio.sleep(0.05 if left else 0)  # last frames and records
        return left

    def _drain_all(self) -> None:
        for connection in list(self.connections):
            connection.drain()
        for cluster in self.clusters.values():
            if not self.requests:
                cluster.drain()

    def _cut_all(self) -> None:
        for connection in list(self.connections):
            connection.shut("draining")
        for splice in list(self.splices):
            splice.end("draining")
        for cluster in [*self.clusters.values(), *self.leaving]:
            cluster.shut()
