"""An upstream: its endpoints, how one is chosen, and the connections to them.

A cluster is where exchanges go once they carry a ``Permit``: ``forward`` cannot be called without one, and
only the policy engine makes them. Endpoints are static addresses, or what a name resolved to
(``resolve_forever``): it is asked again at most once a second, on a thread, and the last good answer is kept
for ten minutes when the name server fails (F-15).
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio
from mypy_extensions import mypyc_attr

from identity.svid import PeerIdentity
from proxy.errors import NoHealthyEndpoint, Overflow, SidewallError
from proxy.http.client import ClientEngine
from proxy.http.exchange import Exchange
from proxy.net.dial import Connected, Dial, Refused
from proxy.net.listener import Address
from proxy.net.poller import Poller
from proxy.net.stream import Stream
from proxy.net.tls import Credentials
from proxy.policy.engine import Permit
from proxy.upstream.balance import LeastRequest, RoundRobin
from proxy.upstream.pool import Pool
from proxy.wire.http1 import Http1Client
from proxy.wire.http2 import client_engine
from proxy.wire.limits import WireLimits

_FAILING: Final = 1.0  # seconds an endpoint is passed over after a failed connect, while others are healthy
_KEEP_NAMES: Final = 600.0  # F-15: how long the last good addresses are used when the name server fails
_RESOLVE_EVERY: Final = 5.0
_MOST_ENDPOINTS: Final = 256

_H2_FIRST: Final = (b"h2", b"http/1.1")
_HTTP1_ONLY: Final = (b"http/1.1",)
_H2_ONLY: Final = (b"h2",)


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """What the configuration says about one upstream. Times in seconds."""

    name: str
    addresses: tuple[Address, ...] = ()
    dns: str = ""
    dns_port: int = 0
    protocol: str = "auto"  # auto | http1 | h2
    tls: bool = False
    expect: frozenset[str] = frozenset()  # SPIFFE IDs (S-7)
    balance: str = "LEAST_REQUEST"
    connect_timeout: float = 5.0  # T-6
    idle_timeout: float = 300.0  # T-5
    write_timeout: float = 30.0  # T-10
    max_connections: int = 256  # L-22
    max_pending: int = 1024  # L-22
    max_requests: int = 4096
    max_requests_per_connection: int = 0
    http2_engine: str = "ngh2"


class Endpoint:
    """One address of a cluster. ``active`` counts exchanges open there."""

    def __init__(self, cluster: Cluster, address: Address) -> None:
        self.address = address
        self.text = str(address)
        self.active = 0
        self.gone = False  # no longer among the addresses: takes no new exchange
        self.failing_until = 0.0
        self.failures = 0
        self._cluster = cluster
        self.pools: dict[str, Pool] = {}

    def pool(self, kind: str) -> Pool:
        found = self.pools.get(kind)
        if found is None:
            found = self.pools[kind] = Pool(self._cluster, self, kind)
        return found

    def failed(self) -> None:
        self.failures += 1
        self.failing_until = self._cluster.poller.now + _FAILING

    def succeeded(self) -> None:
        self.failing_until = 0.0

    @property
    def open_connections(self) -> int:
        return sum(len(pool.all()) for pool in self.pools.values())


@mypyc_attr(allow_interpreted_subclasses=True)
class Cluster:
    """See the module's text. ``credentials`` gives the current ones, or None when there is no valid SVID."""

    def __init__(
        self,
        poller: Poller,
        settings: ClusterSettings,
        credentials: Callable[[], Credentials | None],
        limits: WireLimits,
        rng: random.Random,
        handshake: Callable[[str, str], None] = lambda role, result: None,
        revoked: Callable[[PeerIdentity | None], bool] = lambda peer: False,
    ) -> None:
        self._revoked = revoked
        self._noted: Callable[[str], None] = lambda result: handshake("client", result)
        self.poller = poller
        self.settings = settings
        self.name = settings.name
        self.limits = limits
        self.connections = 0
        self.waiting = 0
        self._credentials = credentials
        self._balancer = RoundRobin() if settings.balance == "ROUND_ROBIN" else LeastRequest(rng)
        self._endpoints: dict[Address, Endpoint] = {}
        self._live: list[Endpoint] = []
        self._leaving: list[Endpoint] = []
        self._resolved_at = 0.0
        self._retired = False
        self.resolve_error = ""
        self.refused: frozenset[str] = frozenset()  # of ``expect``: those in quarantine
        self.set_addresses(settings.addresses)

    @property
    def max_connections(self) -> int:
        return self.settings.max_connections

    @property
    def max_pending(self) -> int:
        return self.settings.max_pending

    @property
    def max_requests_per_connection(self) -> int:
        return self.settings.max_requests_per_connection

    @property
    def endpoints(self) -> list[Endpoint]:
        return self._live

    # -- exchanges ----------------------------------------------------------------------------------------

    def forward(self, exchange: Exchange, permit: Permit) -> None:
        """Send ``exchange`` to an endpoint. Raises SidewallError when that cannot even begin."""
        if not isinstance(permit, Permit):
            raise SidewallError("forwarding without a permit")
        exchange.record.upstream_name = self.name
        if self._active() >= self.settings.max_requests:
            raise Overflow(f"{self.settings.max_requests} exchanges open", reason="overflow_requests")
        self._pick().pool(self._kind(exchange)).acquire(exchange)

    def _active(self) -> int:
        live = self._live
        return live[0].active + self.waiting if len(live) == 1 else sum(e.active for e in live) + self.waiting

    def _pick(self) -> Endpoint:
        live = self._live
        if len(live) == 1:
            return live[0]
        if not live:
            reason = "dns_failed" if self.settings.dns else "no_healthy_endpoint"
            raise NoHealthyEndpoint(self.resolve_error or "no endpoint", reason=reason)
        now = self.poller.now
        healthy = [endpoint for endpoint in live if endpoint.failing_until <= now]
        return self._balancer.pick(healthy or live)

    def _kind(self, exchange: Exchange) -> str:
        head = exchange.head
        if head.upgrade is not None:
            return "http1"  # an upgrade is a feature of HTTP/1.1 (RFC 9110, 7.8)
        protocol = self.settings.protocol
        if protocol != "auto":
            return protocol
        if self.settings.tls:
            return "any"
        return "h2" if head.is_grpc else "http1"  # gRPC apps speak HTTP/2 with prior knowledge, others seldom do

    def reassign(self, exchange: Exchange, error: SidewallError) -> None:
        """Try another endpoint after ``error``, or the same one when there is no other."""
        others = [e for e in self._live if e.failing_until <= self.poller.now]
        if not others:
            exchange.fail(error)
            return
        try:
            self._balancer.pick(others).pool(self._kind(exchange)).acquire(exchange)
        except SidewallError as second:
            exchange.fail(second)

    # -- connections --------------------------------------------------------------------------------------

    def dial(self, pool: Pool, done: Connected, failed: Refused) -> None:
        endpoint = pool.endpoint
        credentials = None
        if self.settings.tls:
            credentials = self._credentials()
            if credentials is None:
                # Later, not now: the pool must not hear of a failure while it is still asking for the dial.
                self.poller.call_at(self.poller.now, lambda: failed("no_identity", "no valid SVID"))
                return
        Dial(
            self.poller,
            endpoint.address,
            deadline=self.poller.now + self.settings.connect_timeout,
            done=self._unless_revoked(done, failed),
            failed=failed,
            credentials=credentials,
            alpn=_HTTP1_ONLY if pool.kind == "http1" else _H2_ONLY if pool.kind == "h2" else _H2_FIRST,
            expect=self.settings.expect - self.refused,
            server_name=self.settings.dns,
            noted=self._noted,
        ).start()

    def _unless_revoked(self, done: Connected, failed: Refused) -> Connected:
        if not self.settings.tls:
            return done

        def look(stream: Stream, peer: PeerIdentity | None, alpn: str) -> None:
            if self._revoked(peer):
                stream.abort()
                failed("upstream_identity_mismatch", f"{peer.uri if peer is not None else 'the peer'} is revoked")
            else:
                done(stream, peer, alpn)

        return look

    def engine_for(self, pool: Pool, alpn: str) -> ClientEngine:
        if alpn == "h2" or (not self.settings.tls and pool.kind == "h2"):
            return client_engine(self.settings.http2_engine)(self.limits)
        return Http1Client(self.limits)

    def connect_raw(self, done: Connected, failed: Refused, permit: Permit) -> None:
        """A connection for opaque TCP: no HTTP engine, no pool."""
        if not isinstance(permit, Permit):
            raise SidewallError("forwarding without a permit")
        credentials = self._credentials() if self.settings.tls else None
        if self.settings.tls and credentials is None:
            failed("no_identity", "no valid SVID")
            return
        try:
            endpoint = self._pick()
        except SidewallError as error:
            failed(error.reason, error.detail)
            return
        Dial(
            self.poller,
            endpoint.address,
            deadline=self.poller.now + self.settings.connect_timeout,
            done=self._unless_revoked(done, failed),
            failed=failed,
            credentials=credentials,
            expect=self.settings.expect - self.refused,
            server_name=self.settings.dns,
            noted=self._noted,
        ).start()

    # -- endpoints ----------------------------------------------------------------------------------------

    def set_addresses(self, addresses: Sequence[Address]) -> None:
        """Use these endpoints from now on; those that went away finish what they carry."""
        wanted = dict.fromkeys(addresses[:_MOST_ENDPOINTS])
        gone = [self._endpoints.pop(address) for address in list(self._endpoints) if address not in wanted]
        for address in wanted:
            if address not in self._endpoints:
                self._endpoints[address] = Endpoint(self, address)
        self._live = list(self._endpoints.values())
        for endpoint in gone:
            self._retire(endpoint)

    def _retire(self, endpoint: Endpoint) -> None:
        endpoint.gone = True
        self._leaving.append(endpoint)
        for pool in endpoint.pools.values():
            pool.drain()
            pool.move_waiting()

    async def resolve_forever(self) -> None:
        """Keep the addresses of ``dns`` fresh until cancelled; returns at once for static endpoints."""
        while self.settings.dns and not self._retired:
            await self.resolve_once()
            await trio.sleep(_RESOLVE_EVERY if self._live else 1.0)

    async def resolve_once(self) -> None:
        name, port = self.settings.dns, self.settings.dns_port
        try:
            with trio.fail_after(5.0):
                found = await trio.socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        except (OSError, trio.TooSlowError) as error:
            self._resolve_failed(f"{name}: {error or 'name server timed out'}")
            return
        self.resolve_error = ""
        self._resolved_at = trio.current_time()
        self.set_addresses([Address(str(item[4][0]), int(item[4][1])) for item in found])

    def _resolve_failed(self, words: str) -> None:
        self.resolve_error = words
        if trio.current_time() - self._resolved_at > _KEEP_NAMES:
            self.set_addresses(())

    # -- time and end -------------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        settings = self.settings
        for endpoint in [*self._live, *self._leaving]:
            for pool in endpoint.pools.values():
                pool.sweep(now, settings.idle_timeout, settings.write_timeout)
        self._leaving = [endpoint for endpoint in self._leaving if endpoint.open_connections]

    def retire(self) -> None:
        """The configuration names it no more: finish what it carries."""
        self._retired = True
        self.drain()

    def refuse(self, ids: frozenset[str]) -> None:
        """Of ``expect``, these SPIFFE IDs are not to be talked to; open connections to them are cut."""
        self.refused = ids
        if ids:
            self.cut(lambda peer: peer is not None and peer.uri in ids, "quarantined")

    def cut(self, unwanted: Callable[[PeerIdentity | None], bool], reason: str) -> None:
        """End at once the connections to some peers; what is open on them fails with ``reason``."""
        for endpoint in [*self._live, *self._leaving]:
            for pool in endpoint.pools.values():
                for connection in pool.all():
                    if unwanted(connection.peer):
                        connection.shut(reason)

    @property
    def open_connections(self) -> int:
        return sum(endpoint.open_connections for endpoint in [*self._live, *self._leaving])

    def drain(self) -> None:
        for endpoint in [*self._live, *self._leaving]:
            for pool in endpoint.pools.values():
                pool.drain()

    def shut(self) -> None:
        for endpoint in [*self._live, *self._leaving]:
            for pool in endpoint.pools.values():
                for connection in pool.all():
                    connection.shut()
