"""mTLS in, the app out. Reads as the path of a request:

    accept -> handshake (who is it?) -> serve -> authorize (may it?) -> forward to the app -> record

and for opaque TCP: accept -> handshake -> authorize -> join.

The app sees what we verified and nothing the caller made up: identity headers are removed by the validator in
every spelling, and set here as the very last step (S-8).
"""

from __future__ import annotations

from typing import Final

from identity.svid import PeerIdentity
from proxy.errors import AccessDenied, SidewallError
from proxy.fields import Sorted, sort_fields
from proxy.http.beginning import FirstByte, Preface
from proxy.http.exchange import Exchange
from proxy.http.facts import Facts, Shown, Times
from proxy.http.server import ServerConnection, ServerEngine
from proxy.net.listener import Accepted
from proxy.net.stream import Stream, TlsStream
from proxy.net.tls import Credentials, Handshake
from proxy.policy.engine import AccessRequest, CompiledPolicies, Permit, authorize, decide
from proxy.policy.facts import forwarded_client, host_of
from proxy.service import HttpService, ListenerSettings
from proxy.upstream.cluster import Cluster
from proxy.wire.events import Headers, RequestHead
from proxy.wire.http1 import Http1Server

_OFFERED: Final = {"http1": (b"http/1.1",), "h2": (b"h2",), "tcp": ()}
_H2_AND_HTTP1: Final = (b"h2", b"http/1.1")


class Inbound(HttpService):
    """The service of one inbound listener."""

    # -- connections --------------------------------------------------------------------------------------

    def accept(self, accepted: Accepted) -> None:
        """A TCP connection came in; nothing of it is believed before the handshake (S-1)."""
        worker, mode = self.worker, self.settings.mtls
        if mode == "DISABLE":
            self._serve_plaintext(accepted)
        elif mode == "PERMISSIVE":
            worker.handshaking += 1
            deadline = worker.poller.now + self.settings.handshake_timeout
            FirstByte(
                worker.poller,
                accepted.sock,
                deadline,
                lambda tls: self._begun(accepted, tls),
                lambda why: self._refused(accepted, why, "before the first byte"),
            ).start()
        else:
            self._shake_hands(accepted)

    def _shake_hands(self, accepted: Accepted) -> None:
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
        if self.worker.is_revoked(peer):
            stream.abort()
            self._refused(accepted, "revoked", f"{peer.uri} was revoked by the authority")
            return
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

    def _begun(self, accepted: Accepted, tls: bool) -> None:
        self.worker.handshaking -= 1
        if tls:
            self._shake_hands(accepted)
        else:
            self._serve_plaintext(accepted)

    # -- callers without a certificate (PeerAuthentication) -----------------------------------------------

    def configure(self, settings: ListenerSettings, cluster: Cluster, times: Times) -> None:
        super().configure(settings, cluster, times)
        self.worker.poller.run(self._drain_others)

    def _drain_others(self) -> None:
        """Move on who came in by a way that is shut now; what of it must not go on is judged by itself."""
        shut = {"STRICT": (True,), "DISABLE": (False,)}.get(self.settings.mtls, ())
        for connection in list(self.worker.connections) if shut else ():
            if connection.service is self and (connection.facts.peer is None) in shut:
                connection.drain()

    def _serve_plaintext(self, accepted: Accepted) -> None:
        """Policy sees no principal. What needs one is denied by policy; nothing else protects the app here."""
        poller, protocol = self.worker.poller, self.settings.protocol
        stream = Stream(poller, accepted.sock)
        if protocol == "tcp":
            self._admit(accepted, stream, None, "")
        elif protocol == "auto":
            self.worker.handshaking += 1  # L-20 counts it, whether or not it ever says a word
            sniffer = Preface(
                stream,
                lambda early, http2: self._decided(accepted, stream, early, http2),
                lambda why: self._refused(accepted, why, "before the first request"),
            )
            sniffer.start(poller, poller.now + self.settings.handshake_timeout)
        else:
            self._begin_plaintext(accepted, stream, b"", protocol == "h2")

    def _decided(self, accepted: Accepted, stream: Stream, early: bytes, http2: bool) -> None:
        self.worker.handshaking -= 1
        self._begin_plaintext(accepted, stream, early, http2)

    def _begin_plaintext(self, accepted: Accepted, stream: Stream, early: bytes, http2: bool) -> None:
        connection = self._connection(accepted, stream, None, "h2" if http2 else "http/1.1", "")
        if not self.worker.add(connection):
            stream.abort()
            return
        self.limit(connection, 0.0)
        connection.start(watched=bool(early))
        if early:
            connection.on_data(early)

    def _connection(
        self, accepted: Accepted, stream: Stream, peer: PeerIdentity | None, alpn: str, version: str
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
            server_name=_server_name(stream),
        )
        if alpn == "h2" or (settings.protocol == "h2" and not alpn):
            engine: ServerEngine = self.make_h2(settings.limits)
        else:
            engine = Http1Server(settings.limits, scheme=b"https" if version else b"http")
        return ServerConnection(stream, engine, self, facts)

    # -- tokens (RequestAuthentication) -------------------------------------------------------------------

    def authenticate(self, exchange: Exchange, fields: Sorted) -> Sorted:
        """What follows sees the head without what only a verified token may say, and without the token."""
        tokens = self.worker.runtime.tokens.get(self.settings.name)
        if tokens is None:
            return fields
        head = exchange.head
        shown = exchange.token = Shown(
            head.headers, head.target, self.worker.poller.wall(), tokens.outputs
        )
        found = tokens.judge(head.method, head.headers, head.target, shown.at)
        shown.claims = found.claims
        head.target = found.target
        if found.headers is head.headers:
            return fields
        head.headers = found.headers
        return sort_fields(found.headers)

    def judge_again(self, exchange: Exchange) -> None:
        if exchange.finished:
            return
        try:
            self._authenticate_again(exchange)
        except SidewallError as error:
            exchange.fail(error)
            return
        super().judge_again(exchange)

    def _authenticate_again(self, exchange: Exchange) -> None:
        """By the rules and keys of now, at the time of the request: a token that was good then does not end what it
        began by running out."""
        tokens = self.worker.runtime.tokens.get(self.settings.name)
        shown, head = exchange.token, exchange.head
        if tokens is None:
            exchange.token = None
            return
        if shown is None:
            shown = exchange.token = Shown(
                head.headers, head.target, exchange.record.started, tokens.outputs
            )
        shown.claims = tokens.judge(head.method, shown.headers, shown.target, shown.at).claims

    # -- the decision -------------------------------------------------------------------------------------

    def authorize(self, exchange: Exchange) -> Permit:
        record, head = exchange.record, exchange.head
        peer = record.peer
        runtime = self.worker.runtime
        record.generation = runtime.generation  # of the decision: it may be asked again after a swap
        record.port = self.settings.port
        if peer is None and self.settings.mtls == "STRICT":
            raise SidewallError(reason="mtls_required")  # accepted before the mode was changed
        try:
            if self.worker.quarantine is not None:
                self.worker.check_quarantine(peer.principal if peer is not None else None, self.worker.principal)
            if runtime.decisions.needs_more:
                permit = authorize(runtime.policies, self._facts(exchange, runtime.policies))
            else:
                permit = runtime.decisions.authorize(
                    principal=peer.principal if peer is not None else None,
                    namespace=peer.id.namespace if peer is not None else None,
                    port=self.settings.port,
                    method=head.method,
                    host=head.authority,
                    path=head.path,
                    route=self.settings.name,
                )
        except AccessDenied as error:
            record.decision = error.decision
            request = record.question = self._facts(exchange, runtime.policies)
            error.decision_id = record.decision_id = error.decision.id(request)
            raise
        record.decision = permit.decision
        return permit

    def _facts(self, exchange: Exchange, policies: CompiledPolicies) -> AccessRequest:
        """The facts of a request, the rarer of them only where some policy asks for them. Claims are those of a
        token that a RequestAuthentication accepted (AUTHZ 6.9)."""
        record, head, facts, used = exchange.record, exchange.head, exchange.server.facts, policies.http_facts_used
        peer, client = record.peer, ""
        if "remoteIpBlocks" in used:
            client = forwarded_client(_last_value(head, b"x-forwarded-for"), facts.peer_host)
        return AccessRequest(
            protocol="http",
            principal=peer.principal if peer is not None else None,
            namespace=peer.id.namespace if peer is not None else None,
            port=self.settings.port,
            method=head.method.decode("latin-1"),
            host=head.authority.decode("latin-1"),
            path=head.path.decode("latin-1"),
            target=head.target.decode("latin-1") if "target" in used else "",
            source_ip=facts.peer_host,
            remote_ip=client,
            destination_ip=host_of(facts.local) if "destination.ip" in used else "",
            sni=facts.server_name if "connection.sni" in used else "",
            headers=_asked_headers(head, policies.headers_used),
            claims=exchange.token.claims if exchange.token is not None else None,
            route=self.settings.name if "targetRefs" in used else "",
        )

    def _admit(self, accepted: Accepted, stream: Stream, peer: PeerIdentity | None, version: str) -> None:
        """Opaque TCP: identity and port are judged before the first byte goes to the app (S-27)."""
        record = self.connection_record(accepted, peer, version)
        request = AccessRequest(
            protocol="tcp",
            principal=peer.principal if peer is not None else None,
            namespace=peer.id.namespace if peer is not None else None,
            port=self.settings.port,
            source_ip=accepted.peer_host,
            destination_ip=host_of(accepted.local),
            sni=_server_name(stream),
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
        if request.principal is None and self.settings.mtls == "STRICT":
            return "mtls_required"
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
        scheme = b"https" if facts.tls_version else b"http"
        headers: Headers = [(b"x-forwarded-for", forwarded), (b"x-forwarded-proto", scheme)]
        if self.settings.set_client_cert and facts.peer is not None:
            headers.append((b"x-forwarded-client-cert", self._client_cert(facts.peer)))
        return headers

    def _client_cert(self, peer: PeerIdentity) -> bytes:
        by = self.settings.workload_uri
        return b"By=" + by.encode() + b";" + peer.xfcc if by else peer.xfcc


def _server_name(stream: Stream) -> str:
    name = stream.tls.get_servername() if isinstance(stream, TlsStream) else None
    return name.decode("latin-1") if name is not None else ""


def _last_value(head: RequestHead, name: bytes) -> str:
    found = b""
    for field in head.headers:
        if field[0] == name:
            found = field[1]
    return found.decode("latin-1")


def _asked_headers(head: RequestHead, asked: frozenset[str]) -> dict[str, list[str]]:
    """The headers that policies ask for, each line's value by itself. Those that end at each hop are not kept by the
    validator: of them the ones that say something to the app are told as the app will be told."""
    found: dict[str, list[str]] = {}
    if not asked:
        return found
    for field in head.headers:
        name = field[0].decode("latin-1")
        if name in asked:
            found.setdefault(name, []).append(field[1].decode("latin-1"))
    if head.length is not None and "content-length" in asked:
        found["content-length"] = [str(head.length)]
    if head.upgrade is not None and "upgrade" in asked:
        found["upgrade"] = [head.upgrade.decode("latin-1")]
    if head.te_trailers and "te" in asked:
        found["te"] = ["trailers"]
    if head.expects_continue and "expect" in asked:
        found["expect"] = ["100-continue"]
    return found
