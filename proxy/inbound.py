"""mTLS in, the app out. Reads as the path of a request:

    accept -> handshake (who is it?) -> serve -> authorize (may it?) -> forward to the app -> record

and for opaque TCP: accept -> handshake -> authorize -> join.

The app sees what we verified and nothing the caller made up: identity headers are removed by the validator in
every spelling, and set here as the very last step (S-8).
"""

from __future__ import annotations

from typing import Final

from identity.svid import PeerIdentity
from proxy.errors import AccessDenied
from proxy.fields import Sorted
from proxy.http.exchange import Exchange
from proxy.http.facts import Facts
from proxy.http.server import ServerConnection, ServerEngine
from proxy.net.listener import Accepted
from proxy.net.stream import Stream, TlsStream
from proxy.net.tls import Credentials, Handshake
from proxy.policy.engine import AccessRequest, Permit, authorize, decide
from proxy.service import HttpService
from proxy.wire.events import Headers
from proxy.wire.http1 import Http1Server

_OFFERED: Final = {"http1": (b"http/1.1",), "h2": (b"h2",), "tcp": ()}
_H2_AND_HTTP1: Final = (b"h2", b"http/1.1")


class Inbound(HttpService):
    """The service of one inbound listener."""

    # -- connections --------------------------------------------------------------------------------------

    def accept(self, accepted: Accepted) -> None:
        """A TCP connection came in; nothing of it is believed before the handshake (S-1)."""
        worker, settings = self.worker, self.settings
        credentials = worker.credentials
        if credentials is None or credentials.expired(worker.poller.wall()):
            accepted.sock.close()
            worker.telemetry.handshake("server", "no_identity")
            return
        worker.handshaking += 1
        Handshake(
            worker.poller,
            accepted.sock,
            credentials,
            alpn=_OFFERED.get(settings.protocol, _H2_AND_HTTP1),
            server=True,
            deadline=worker.poller.now + settings.handshake_timeout,
            done=lambda stream, peer, alpn: self._secured(accepted, credentials, stream, peer, alpn),
            failed=lambda why, detail: self._refused(accepted, why, detail),
        ).start()

    def _refused(self, accepted: Accepted, why: str, detail: str) -> None:
        worker = self.worker
        worker.handshaking -= 1
        worker.telemetry.handshake("server", why)
        record = self.connection_record(accepted, None, "")
        record.kind, record.reason, record.details = "tls", why, detail
        self.end(record)

    def _secured(
        self, accepted: Accepted, credentials: Credentials, stream: TlsStream, peer: PeerIdentity, alpn: str
    ) -> None:
        self.worker.handshaking -= 1
        self.worker.telemetry.handshake("server", "ok")
        version = stream.tls.get_protocol_version_name().removeprefix("TLSv")
        if self.settings.protocol == "tcp":
            self._admit(accepted, stream, peer, version)
            return
        connection = self._connection(accepted, stream, peer, alpn, version)
        if not self.worker.add(connection):
            stream.abort()
            return
        self.limit(connection, min(peer.not_after, credentials.context.not_after))
        connection.start()

    def _connection(
        self, accepted: Accepted, stream: TlsStream, peer: PeerIdentity, alpn: str, version: str
    ) -> ServerConnection:
        settings = self.settings
        facts = Facts(
            direction="inbound",
            listener=settings.name,
            local=accepted.local,
            local_port=settings.port,
            peer_address=accepted.peer,
            peer_host=accepted.peer_host,
            peer=peer,
            tls_version=version,
        )
        if alpn == "h2" or (settings.protocol == "h2" and not alpn):
            engine: ServerEngine = self.make_h2(settings.limits)
        else:
            engine = Http1Server(settings.limits, scheme=b"https")
        return ServerConnection(stream, engine, self, facts)

    # -- the decision -------------------------------------------------------------------------------------

    def authorize(self, exchange: Exchange) -> Permit:
        record, head = exchange.record, exchange.head
        peer = record.peer
        runtime = self.worker.runtime
        record.generation = runtime.generation  # of the decision: it may be asked again after a swap
        try:
            if self.worker.quarantine is not None:
                self.worker.check_quarantine(peer.principal if peer is not None else None, self.worker.principal)
            permit = runtime.decisions.authorize(
                principal=peer.principal if peer is not None else None,
                namespace=peer.id.namespace if peer is not None else None,
                port=self.settings.port,
                method=head.method,
                host=head.authority,
                path=head.path,
            )
        except AccessDenied as error:
            record.decision = error.decision
            error.decision_id = record.decision_id = error.decision.id(self._facts(exchange))
            raise
        record.decision = permit.decision
        return permit

    def _facts(self, exchange: Exchange) -> AccessRequest:
        record, head = exchange.record, exchange.head
        peer = record.peer
        return AccessRequest(
            protocol="http",
            principal=peer.principal if peer is not None else None,
            namespace=peer.id.namespace if peer is not None else None,
            port=self.settings.port,
            method=head.method.decode("latin-1"),
            host=head.authority.decode("latin-1").lower(),
            path=head.path.decode("latin-1"),
            source_ip=exchange.server.facts.peer_host,
        )

    def _admit(self, accepted: Accepted, stream: Stream, peer: PeerIdentity, version: str) -> None:
        """Opaque TCP: identity and port are judged before the first byte goes to the app (S-27)."""
        record = self.connection_record(accepted, peer, version)
        request = AccessRequest(
            protocol="tcp",
            principal=peer.principal,
            namespace=peer.id.namespace,
            port=self.settings.port,
            method="",
            host="",
            path="",
            source_ip=accepted.peer_host,
        )
        try:
            self.worker.check_quarantine(request.principal, self.worker.principal)
            permit = authorize(self.worker.runtime.policies, request)
        except AccessDenied as error:
            record.decision, record.reason, record.flags = error.decision, error.reason, "RBAC"
            stream.abort()
            self.end(record)
            return
        record.decision = permit.decision
        self.join(stream, permit, record, lambda: self._judge_tcp(request))

    def _judge_tcp(self, request: AccessRequest) -> str:
        try:
            self.worker.check_quarantine(request.principal, self.worker.principal)
        except AccessDenied as error:
            return error.reason
        return "" if (found := decide(self.worker.runtime.policies, request)).allowed else found.reason

    # -- what the app is told -----------------------------------------------------------------------------

    def own_headers(self, exchange: Exchange, fields: Sorted) -> Headers:
        """S-8, S-10: computed by us from what was verified."""
        facts = exchange.server.facts
        forwarded = facts.peer_host.encode()
        if fields.forwarded_for:
            forwarded = fields.forwarded_for + b", " + forwarded
        exchange.record.x_forwarded_for = forwarded
        headers: Headers = [(b"x-forwarded-for", forwarded), (b"x-forwarded-proto", b"https")]
        if self.settings.set_client_cert and facts.peer is not None:
            headers.append((b"x-forwarded-client-cert", self._client_cert(facts.peer)))
        return headers

    def _client_cert(self, peer: PeerIdentity) -> bytes:
        by = self.settings.workload_uri
        return b"By=" + by.encode() + b";" + peer.xfcc if by else peer.xfcc
