"""An RPC server: listeners, connections, and one trio task for each call.

    server = RpcServer(poller, methods, local_peer=UnixPeer.of)
    await nursery.start(server.run)
    server.listen(bind(Address(path=...), mode=0o777))

On a Unix socket the caller is what ``local_peer`` makes of the socket at accept, before anything was read. On TCP
there is TLS, always: ``credentials`` are asked for at each handshake, so that a rotation is taken up; a client
certificate is required, unless ``strangers`` are let in, who are asked for one and may have none (attestation).

A call is a task that runs its handler under a cancel scope. The scope is cancelled when the caller resets the stream
or goes away, when its deadline (grpc-timeout) passes, when it breaks a rule in the middle of its request, and at a
drain when the handler streams: those calls never end by themselves. Nothing of an unforeseen exception is told. See
``server_calls``.

Refused before a task exists: a caller with too many connections, calls or messages (C-10), an unknown method, what
is no gRPC. A bidi call that sends faster than it may is not ended but read later.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Final

import trio

from identity.rpc import Call, Caller, LocalPeer, Methods, Status
from identity.svid import PeerIdentity
from proxy.net.listener import Accepted, Listener
from proxy.net.poller import Poller
from proxy.net.stream import Stream, TlsStream
from proxy.net.tls import Credentials, Handshake
from proxy.rpc.limits import Accounts, RpcLimits, account_key
from proxy.rpc.server_calls import ServerConnection
from proxy.wire.http2 import NgServer
from proxy.wire.limits import WireLimits

log = logging.getLogger("proxy.rpc")

LocalPeerOf = Callable[[socket.socket], LocalPeer]
Observe = Callable[[Call, Status, float], None]  # a call that has ended: how, and after how many seconds
_SWEEP: Final = 1.0  # seconds
# On a Unix socket there is no authority, and each client writes something else: gRPC C-core the percent-encoded
# path, Go "localhost", Envoy the name of its cluster. Nothing here depends on it.
_WIRE: Final = WireLimits(streams=100, body=0, authority="ignore", underscore="drop")


class RpcServer:
    """See the module's text. Belongs to one poller and its trio loop."""

    def __init__(
        self,
        poller: Poller,
        methods: Methods,
        *,
        limits: RpcLimits | None = None,
        local_peer: LocalPeerOf | None = None,
        credentials: Callable[[], Credentials | None] = lambda: None,
        strangers: bool = False,
        observe: Observe = lambda call, status, seconds: None,
        wire: WireLimits = _WIRE,
    ) -> None:
        self.poller = poller
        self.methods = dict(methods)
        self.limits = limits or RpcLimits()
        self.connections: set[ServerConnection] = set()
        self.accounts = Accounts(self.limits)
        self.observe = observe
        self.nursery: trio.Nursery | None = None
        self._local_peer = local_peer
        self._credentials = credentials
        self._strangers = strangers
        self._wire = wire
        self._listeners: list[Listener] = []
        self._handshakes: set[Handshake] = set()
        self._call_ended = trio.Event()

    def listen(self, sock: socket.socket) -> Listener:
        """Accept on a listening socket (``proxy.net.listener.bind``): a Unix socket, or TCP with TLS."""
        take = self._accept_local if sock.family == socket.AF_UNIX else self._accept_tls
        listener = Listener(self.poller, sock, take, self._has_room)
        self._listeners.append(listener)
        listener.start()
        return listener

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; then everything is closed at once. See ``drain`` for a polite end."""
        try:
            async with trio.open_nursery() as nursery:
                self.nursery = nursery
                task_status.started()
                while True:
                    await trio.sleep(_SWEEP)
                    self.poller.run(self._sweep)
        finally:
            self.nursery = None
            self._close_all()

    def _close_all(self) -> None:
        self.stop_accepting()
        for handshake in list(self._handshakes):
            handshake.cancel()
        for connection in list(self.connections):
            connection.close("the server has ended")

    def stop_accepting(self) -> None:
        """Close the listeners."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    async def drain(self, seconds: float) -> None:
        """Take no new call, end those that stream (UNAVAILABLE), wait up to ``seconds`` for the others."""
        self.stop_accepting()
        for connection in list(self.connections):
            connection.drain()
        with trio.move_on_after(seconds):
            while any(connection.calls for connection in self.connections):
                self._call_ended = trio.Event()
                await self._call_ended.wait()
        for connection in list(self.connections):
            connection.shut("the server is shutting down")

    def end_callers(self, unwanted: Callable[[Caller], bool], detail: str) -> int:
        """Close the connections of some callers at once (a revoked identity); how many they were."""
        found = [connection for connection in self.connections if unwanted(connection.caller)]
        for connection in found:
            connection.shut(detail)
        return len(found)

    # -- accepting --------------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        taken = len(self.connections) + len(self._handshakes)
        return self.nursery is not None and taken < self.limits.all_connections

    def _accept_local(self, accepted: Accepted) -> None:
        try:
            local = self._local_peer(accepted.sock) if self._local_peer is not None else None
        except Exception as error:  # it has gone, or is in another process namespace: who it is cannot be said
            log.warning("caller of a Unix socket refused", extra={"event": "rpc_refused", "problem": str(error)})
            accepted.sock.close()
            return
        caller = Caller(local=local, address=accepted.local)
        self.add(Stream(self.poller, accepted.sock), caller, "")

    def _accept_tls(self, accepted: Accepted) -> None:
        credentials = self._credentials()
        if credentials is None or credentials.expired(self.poller.wall()):
            accepted.sock.close()  # fail closed: nobody can be sure that it is us
            return
        _TlsArrival(self, accepted, credentials, self._strangers, self._handshakes).start()

    def add(self, stream: Stream, caller: Caller, host: str) -> None:
        """Serve a connected stream whose caller is known. It is closed when the caller has too many."""
        key = account_key(caller, host)
        account = self.accounts.open(key, self.poller.now) if self.nursery is not None else None
        if account is None:
            stream.abort()
            if caller.local is not None:
                caller.local.close()
            return
        connection = ServerConnection(stream, NgServer(self._wire), self, caller, account, key)
        self.connections.add(connection)
        connection.start()

    def call_ended(self) -> None:
        """One call fewer is open."""
        self._call_ended.set()

    def gone(self, connection: ServerConnection) -> None:
        """A connection has ended."""
        self.connections.discard(connection)
        self.accounts.close(connection.key, self.poller.now)

    def _sweep(self) -> None:
        now = self.poller.now
        for connection in list(self.connections):
            connection.sweep(now)
        self.accounts.forget_old(now)


class _TlsArrival:
    """One handshake of a caller."""

    def __init__(
        self, server: RpcServer, accepted: Accepted, credentials: Credentials, strangers: bool, open_: set[Handshake]
    ) -> None:
        self._server = server
        self._accepted = accepted
        self._open = open_
        self._handshake = Handshake(
            server.poller,
            accepted.sock,
            credentials,
            alpn=(b"h2",),
            server=True,
            deadline=server.poller.now + server.limits.handshake,
            done=self._done,
            failed=self._failed,
            stranger=self._stranger if strangers else None,
        )

    def start(self) -> None:
        self._open.add(self._handshake)
        self._handshake.start()

    def _done(self, stream: TlsStream, peer: PeerIdentity, alpn: str) -> None:
        self._take(stream, Caller(peer=peer, address=self._accepted.peer), alpn)

    def _stranger(self, stream: TlsStream, alpn: str) -> None:
        self._take(stream, Caller(address=self._accepted.peer), alpn)

    def _take(self, stream: TlsStream, caller: Caller, alpn: str) -> None:
        self._open.discard(self._handshake)
        if alpn != "h2":
            stream.abort()
            return
        self._server.add(stream, caller, self._accepted.peer_host)

    def _failed(self, why: str, detail: str) -> None:
        self._open.discard(self._handshake)
        facts = {"event": "rpc_handshake_failed", "why": why, "detail": detail, "address": self._accepted.peer}
        log.info("handshake of an RPC caller failed", extra=facts)
