"""What inbound and outbound have in common: the life of an exchange around the decision.

Subclasses say how a connection begins (``accept``), who may do what (``authorize``), and which fields the next
hop gets on top (``own_headers``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from identity.svid import PeerIdentity
from proxy.errors import SidewallError
from proxy.fields import Sorted, new_request_id, sort_fields
from proxy.http.exchange import Exchange
from proxy.http.facts import Times
from proxy.http.server import ServerConnection
from proxy.lifecycle import Worker
from proxy.net.listener import Accepted
from proxy.net.splice import Splice
from proxy.net.stream import Stream
from proxy.observe.propagation import render_traceparent, start_trace
from proxy.observe.record import ConnectionRecord, ExchangeRecord
from proxy.policy.engine import Permit
from proxy.upstream.cluster import Cluster
from proxy.wire.events import Headers, ResponseHead
from proxy.wire.grpc import parse_grpc_timeout
from proxy.wire.http2 import server_engine
from proxy.wire.limits import WireLimits


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    """One listener as configured. Times in seconds, 0 lifts a limit."""

    name: str
    direction: str  # inbound | outbound
    port: int  # inbound: the app's port, what policies call the workload port
    protocol: str = "auto"  # auto | http1 | h2 | tcp
    handshake_timeout: float = 10.0  # T-1
    request_timeout: float = 15.0  # T-4
    max_age: float = 3600.0  # T-7
    max_requests: int = 100_000  # L-19
    max_body: int = 0  # L-6
    set_client_cert: bool = True  # forwardClientCert: sanitizeSet
    workload_uri: str = ""  # our own SPIFFE ID, for By= of the header
    sample: float = 1.0
    parent_based: bool = True
    trust_incoming: bool = True
    trust_plaintext: bool = True  # of callers without a certificate
    mtls: str = "STRICT"  # inbound: STRICT | PERMISSIVE | DISABLE
    http2_engine: str = "ngh2"
    limits: WireLimits = field(default_factory=WireLimits)


class HttpService:
    """The service of one listener. ``settings``, ``cluster`` and ``times`` are replaced by a reload."""

    def __init__(self, worker: Worker, settings: ListenerSettings, cluster: Cluster, times: Times) -> None:
        self.worker = worker
        self.configure(settings, cluster, times)

    def configure(self, settings: ListenerSettings, cluster: Cluster, times: Times) -> None:
        self.settings = settings
        self.cluster = cluster
        self.times = times
        self.make_h2 = server_engine(settings.http2_engine)

    # -- to be said by the direction ----------------------------------------------------------------------

    def accept(self, accepted: Accepted) -> None:
        raise NotImplementedError

    def authorize(self, exchange: Exchange) -> Permit:
        raise NotImplementedError

    def own_headers(self, exchange: Exchange, fields: Sorted) -> Headers:
        raise NotImplementedError

    def authenticate(self, exchange: Exchange, fields: Sorted) -> Sorted:
        """Look at the caller's tokens before policy does; the fields as policy and the next hop are to see them."""
        return fields

    # -- connections --------------------------------------------------------------------------------------

    def limit(self, connection: ServerConnection, ends: float) -> None:
        """S-4, T-7, L-19. ``ends`` is the wall-clock time of the first certificate to expire, 0 = none.

        Nothing is forwarded after it; the caller is moved by GOAWAY a little before. Jitter keeps callers apart."""
        worker, settings = self.worker, self.settings
        poller, jitter = worker.poller, worker.rng.uniform(0.9, 1.1)
        expires = poller.now + settings.max_age * jitter if settings.max_age else 0.0
        if ends:
            left = max(ends - poller.wall(), 0.0)
            connection.cut_at = poller.now + left
            lead = poller.now + left - min(30.0, left / 10)
            expires = min(expires, lead) if expires else lead
        connection.expires_at = expires
        connection.requests_left = int(settings.max_requests * jitter)

    def closed(self, connection: ServerConnection) -> None:
        self.worker.remove(connection)

    # -- exchanges ----------------------------------------------------------------------------------------

    def handle(self, exchange: Exchange) -> None:
        """Judge and forward one request. Raises SidewallError, which becomes the answer."""
        worker, settings, record, head = self.worker, self.settings, exchange.record, exchange.head
        record.generation = worker.runtime.generation
        record.route = settings.name
        worker.telemetry.begin(settings.direction == "inbound")
        worker.enter(exchange)
        fields = sort_fields(head.headers)
        self._begin_trace(record, fields)
        record.user_agent = fields.user_agent
        record.request_id = fields.request_id or new_request_id(worker.rng)
        if fields.via and worker.via[4:] in fields.via:
            raise SidewallError(reason="loop_detected")
        fields = self.authenticate(exchange, fields)
        permit = self.authorize(exchange)
        if settings.max_body:
            self._limit_body(exchange, settings.max_body)
        exchange.headers = self._request_headers(exchange, fields)
        exchange.total = self._total(exchange, fields)
        self.cluster.forward(exchange, permit)

    def _begin_trace(self, record: ExchangeRecord, fields: Sorted) -> None:
        settings = self.settings
        record.trace = start_trace(
            fields.traceparent,
            fields.tracestate,
            trusted=self._trusts(record),
            ratio=settings.sample,
            rng=self.worker.rng,
            parent_based=settings.parent_based,
        )

    def _trusts(self, record: ExchangeRecord) -> bool:
        """S-11: whether the caller's trace context is continued."""
        settings = self.settings
        return settings.trust_incoming and (settings.trust_plaintext or record.peer is not None)

    def _limit_body(self, exchange: Exchange, most: int) -> None:
        if (exchange.head.length or 0) > most:
            raise SidewallError(reason="body_too_large")
        exchange.most_body = most

    def _request_headers(self, exchange: Exchange, fields: Sorted) -> Headers:
        """The final field list for the next hop: its own fields, then what only we may say."""
        record, trace = exchange.record, exchange.record.trace
        headers = fields.kept
        headers.append((b"x-request-id", record.request_id))
        headers.append((b"via", self._via(fields)))
        if trace is not None:
            headers.append((b"traceparent", render_traceparent(trace, trace.client_span_id)))
            if trace.tracestate:
                headers.append((b"tracestate", trace.tracestate))
        if exchange.head.expects_continue:
            headers.append((b"expect", b"100-continue"))  # end to end: the app decides, its 100 comes back (S-14)
        if fields.baggage and self._trusts(record):
            headers.append((b"baggage", fields.baggage))
        headers += self.own_headers(exchange, fields)
        return headers

    def _via(self, fields: Sorted) -> bytes:
        ours = self.worker.via
        return fields.via + b", " + ours if fields.via else ours

    def _total(self, exchange: Exchange, fields: Sorted) -> float:
        # T-4: gRPC says its own deadline; a stream without one may last. An upgrade lasts by nature.
        head = exchange.head
        if fields.grpc_timeout and head.is_grpc:
            set_deadline(exchange, fields.grpc_timeout)
            return 0.0
        return 0.0 if head.is_grpc or head.upgrade is not None else self.settings.request_timeout

    def response_headers(self, exchange: Exchange, head: ResponseHead) -> Headers:
        headers = head.headers
        for name, _ in headers:
            if name == b"x-request-id":
                return headers
        headers.append((b"x-request-id", exchange.record.request_id))
        return headers

    def done(self, exchange: Exchange) -> None:
        self.worker.leave(exchange)
        self.worker.telemetry.finish(exchange.record)

    def refused(self, connection: ServerConnection, record: ExchangeRecord) -> None:
        record.generation = self.worker.runtime.generation
        record.route = self.settings.name
        self.worker.telemetry.begin(self.settings.direction == "inbound")
        self.worker.telemetry.finish(record)

    def note_malformed(self, reason: str) -> None:
        self.worker.telemetry.malformed(reason)

    def judge_again(self, exchange: Exchange) -> None:
        """The rules changed: what is no longer allowed ends with its reason, its neighbours go on."""
        if exchange.finished:
            return
        try:
            self.authorize(exchange)
        except SidewallError as error:
            exchange.fail(error)

    # -- opaque TCP ---------------------------------------------------------------------------------------

    def connection_record(
        self, accepted: Accepted, peer: PeerIdentity | None, version: str
    ) -> ConnectionRecord:
        poller = self.worker.poller
        record = ConnectionRecord(self.settings.direction, self.settings.name, poller.wall(), poller.now)
        record.peer, record.tls_version = peer, version
        record.peer_address, record.local_address = accepted.peer, accepted.local
        record.upstream_name = self.cluster.name
        record.generation = self.worker.runtime.generation
        return record

    def end(self, record: ConnectionRecord) -> None:
        record.ended_at = self.worker.poller.now
        self.worker.telemetry.connection(record)

    def join(
        self, near: Stream, permit: Permit, record: ConnectionRecord, judge: Callable[[], str] | None = None
    ) -> None:
        """Dial the far side and splice. A server that speaks first is heard at once: nothing is waited for.

        ``judge`` is asked again after a policy change; a reason ends the connection."""
        _Join(self, near, record, judge).start(permit)


class _Join:
    """One opaque connection on its way to being spliced."""

    def __init__(
        self, service: HttpService, near: Stream, record: ConnectionRecord, judge: Callable[[], str] | None
    ) -> None:
        self._service = service
        self._worker = service.worker
        self._near = near
        self._record = record
        self._judge = judge

    def start(self, permit: Permit) -> None:
        self._service.cluster.connect_raw(self._connected, self._failed, permit)

    def _connected(self, far: Stream, peer: PeerIdentity | None, alpn: str) -> None:
        self._record.upstream_peer = peer
        splice = Splice(self._near, far, self._finished)
        splice.idle = self._service.times.idle
        splice.cut_at = self._first_expiry()
        splice.judge = self._judge_again
        self._worker.spliced(splice)
        splice.start()

    def _judge_again(self) -> str:
        near, far = self._record.peer, self._record.upstream_peer
        if self._worker.is_revoked(near) or self._worker.is_revoked(far):
            return "identity_revoked"
        try:
            if far is not None:
                self._worker.check_quarantine(self._worker.principal, far.principal)
        except SidewallError as error:
            return error.reason
        return self._judge() if self._judge is not None else ""

    def _first_expiry(self) -> float:
        # S-4: neither the caller's nor the far side's certificate may end before the connection does.
        record, poller = self._record, self._worker.poller
        ends = [peer.not_after for peer in (record.peer, record.upstream_peer) if peer is not None]
        return poller.now + max(min(ends) - poller.wall(), 0.0) if ends else 0.0

    def _finished(self, splice: Splice, reason: str) -> None:
        record = self._record
        record.bytes_sent, record.bytes_received, record.reason = splice.sent, splice.received, reason
        self._worker.unspliced(splice)
        self._service.end(record)

    def _failed(self, reason: str, detail: str) -> None:
        record = self._record
        record.reason, record.details, record.flags = reason, detail, "UF"
        self._near.abort()
        self._service.end(record)


def set_deadline(exchange: Exchange, value: bytes) -> None:
    """The caller's own deadline (grpc-timeout), to the millisecond."""
    seconds = parse_grpc_timeout(value)
    if seconds is None:
        return  # malformed: the app decides what to think of it
    poller = exchange.server.poller
    exchange.timer = poller.call_at(
        poller.now + seconds, lambda: exchange.fail(SidewallError(reason="deadline_exceeded"))
    )
