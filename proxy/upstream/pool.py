"""The connections to one endpoint, and the exchanges that wait for one.

Two pools hang on an endpoint: ``any`` (HTTP/2 where the far side speaks it) and ``http1`` (HTTP/1.1 only:
upgrades, and apps that were declared so). A connection of the ``any`` pool may turn out to be HTTP/1.1; the
pool learns that from the first handshake and then dials one connection per waiting exchange instead of one
for all.
"""

from __future__ import annotations

from typing import Final, Protocol

from identity.svid import PeerIdentity
from proxy.errors import ConnectFailed, NoHealthyEndpoint, Overflow, SidewallError
from proxy.http.client import ClientConnection, ClientEngine
from proxy.http.exchange import Exchange
from proxy.net.dial import Connected, Refused
from proxy.net.listener import Address
from proxy.net.stream import Stream

_ATTEMPTS: Final = 3  # connection attempts per exchange, over all endpoints


class Dialling(Protocol):
    """What a pool needs of its cluster."""

    @property
    def max_connections(self) -> int: ...
    @property
    def max_pending(self) -> int: ...
    @property
    def max_requests_per_connection(self) -> int: ...

    connections: int
    waiting: int

    def dial(self, pool: Pool, done: Connected, failed: Refused) -> None: ...
    def engine_for(self, pool: Pool, alpn: str) -> ClientEngine: ...
    def reassign(self, exchange: Exchange, error: SidewallError) -> None: ...


class Holder(Protocol):
    """The endpoint: counts what is open there and hears of failures."""

    active: int
    text: str
    gone: bool
    address: Address

    def failed(self) -> None: ...
    def succeeded(self) -> None: ...


class Pool:
    """Connections of one kind to one endpoint."""

    def __init__(self, cluster: Dialling, endpoint: Holder, kind: str) -> None:
        self.cluster = cluster
        self.endpoint = endpoint
        self.kind = kind  # "any" | "http1" | "h2"
        self.shared: list[ClientConnection] = []  # HTTP/2
        self.idle: list[ClientConnection] = []  # HTTP/1.1, last used first
        self.busy: set[ClientConnection] = set()  # HTTP/1.1
        self.waiting: dict[Exchange, None] = {}
        self.dialling = 0
        self._speaks_http1 = kind == "http1"

    def all(self) -> list[ClientConnection]:
        return [*self.shared, *self.idle, *self.busy]

    # -- giving out ---------------------------------------------------------------------------------------

    def acquire(self, exchange: Exchange) -> None:
        """Open ``exchange`` on a connection now, or park it and dial. Raises Overflow."""
        connection = self._checkout()
        if connection is not None:
            self._open(connection, exchange)
            return
        if self.cluster.waiting >= self.cluster.max_pending:
            raise Overflow(f"{self.cluster.waiting} exchanges wait already", reason="overflow_pending")
        self.waiting[exchange] = None
        self.cluster.waiting += 1
        exchange.parking = self
        self._dial_if_needed()
        if not self.dialling and not self.all() and exchange in self.waiting:
            self._unpark(exchange)
            raise Overflow(f"{self.cluster.connections} connections open", reason="overflow_connections")

    def _checkout(self) -> ClientConnection | None:
        for connection in self.shared:
            if connection.usable:
                return connection
        while self.idle:
            connection = self.idle.pop()
            # S-13: nothing may wait in the socket of a connection that is about to carry another request.
            if connection.usable and connection.stream.peek_idle():
                self.busy.add(connection)
                return connection
            self.busy.add(connection)  # until it has closed
            connection.drain()
        return None

    def _open(self, connection: ClientConnection, exchange: Exchange) -> None:
        self.endpoint.active += 1
        try:
            exchange.opened(connection)
        except (SidewallError, ValueError) as error:
            if exchange.client is not None:
                raise
            self.endpoint.active -= 1
            connection.drain()  # an engine that will not open although it said so is not asked again
            exchange.fail(error if isinstance(error, SidewallError) else SidewallError(str(error)))
            return
        most = self.cluster.max_requests_per_connection
        if most and connection.opened >= most:
            connection.drain()

    def _unpark(self, exchange: Exchange) -> None:
        if exchange in self.waiting:
            del self.waiting[exchange]
            self.cluster.waiting -= 1
            exchange.parking = None

    def leave(self, exchange: Exchange) -> None:
        """The exchange needs no connection any more."""
        self._unpark(exchange)

    def _serve_waiting(self) -> None:
        while self.waiting:
            connection = self._checkout()
            if connection is None:
                break
            exchange = next(iter(self.waiting))
            self._unpark(exchange)
            self._open(connection, exchange)
        self._dial_if_needed()

    # -- dialling -----------------------------------------------------------------------------------------

    def _dial_if_needed(self) -> None:
        wanted = len(self.waiting) if self._speaks_http1 else min(1, len(self.waiting))
        while self.dialling < wanted and self.cluster.connections < self.cluster.max_connections:
            if self.endpoint.gone:
                return
            self.dialling += 1
            self.cluster.connections += 1
            self.cluster.dial(self, self._connected, self._refused)

    def _connected(self, stream: Stream, peer: PeerIdentity | None, alpn: str) -> None:
        self.dialling -= 1
        self.endpoint.succeeded()
        engine = self.cluster.engine_for(self, alpn)
        connection = ClientConnection(stream, engine, self, self.endpoint.text, peer)
        if engine.version == 20:
            self._speaks_http1 = False
            self.shared.append(connection)
        else:
            self._speaks_http1 = True
            self.idle.append(connection)
        connection.start()
        self._serve_waiting()
        if self.endpoint.gone:
            connection.drain()

    def _refused(self, reason: str, detail: str) -> None:
        self.dialling -= 1
        self.cluster.connections -= 1
        self.endpoint.failed()
        if self.shared or self.busy:
            return  # who waits will get one of those
        error = ConnectFailed(f"{self.endpoint.text}: {detail}", reason=reason)
        for exchange in list(self.waiting):
            self._unpark(exchange)
            exchange.tried += 1
            exchange.record.attempts = exchange.tried
            self._reassign(exchange, error)

    def _reassign(self, exchange: Exchange, error: SidewallError) -> None:
        if exchange.tried >= _ATTEMPTS:
            exchange.fail(error)
        else:
            self.cluster.reassign(exchange, error)

    def move_waiting(self) -> None:
        """The endpoint went away: who waits for it goes to another."""
        error = NoHealthyEndpoint(f"{self.endpoint.text} went away")
        for exchange in list(self.waiting):
            self._unpark(exchange)
            self.cluster.reassign(exchange, error)

    # -- told by connections ------------------------------------------------------------------------------

    def released(self, connection: ClientConnection, exchange: Exchange) -> None:
        self.endpoint.active -= 1
        if connection.closed:
            return
        if connection in self.busy:
            self.busy.discard(connection)
            if getattr(connection.engine, "reusable", False) and not connection.draining:
                self.idle.append(connection)
            else:
                connection.drain()
                self.busy.add(connection)  # until it has closed
        if self.waiting:
            self._serve_waiting()

    def has_room(self) -> None:
        if self.waiting:
            self._serve_waiting()

    def retire(self, connection: ClientConnection) -> None:
        if connection in self.shared:
            self.shared.remove(connection)
            self.busy.add(connection)
        elif connection in self.idle:
            self.idle.remove(connection)
            self.busy.add(connection)

    def lost(self, connection: ClientConnection) -> None:
        self.busy.discard(connection)
        if connection in self.shared:
            self.shared.remove(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        self.cluster.connections -= 1
        self._dial_if_needed()

    def again(self, connection: ClientConnection, exchange: Exchange, error: SidewallError) -> None:
        self.endpoint.active -= 1
        self._reassign(exchange, error)

    # -- ending -------------------------------------------------------------------------------------------

    def sweep(self, now: float, idle: float, write: float) -> None:
        for connection in self.all():
            connection.sweep(now, idle, write)

    def drain(self) -> None:
        for connection in self.all():
            connection.drain()

