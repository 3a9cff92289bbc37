"""The app in, mTLS out to an upstream whose SPIFFE IDs are stated. Reads as the path of a request:

    accept -> sniff (HTTP/1.1 or HTTP/2 with prior knowledge) -> serve -> permit -> forward over mTLS -> record

The listener is for the local app only: it is plaintext, on loopback or a Unix socket, and leads to exactly one
configured upstream (S-33). Istio's rule holds: outbound traffic is not judged by policy here, the far side's
inbound proxy judges it by the identity we show.
"""

from __future__ import annotations

from proxy.errors import AccessDenied
from proxy.fields import Sorted
from proxy.http.beginning import Preface
from proxy.http.exchange import Exchange
from proxy.http.facts import Facts
from proxy.http.server import ServerConnection
from proxy.net.listener import Accepted
from proxy.net.stream import Stream
from proxy.policy.engine import Permit, permit_configured
from proxy.service import HttpService
from proxy.wire.events import Headers
from proxy.wire.http1 import Http1Server


class Outbound(HttpService):
    """The service of one outbound listener."""

    def accept(self, accepted: Accepted) -> None:
        stream = Stream(self.worker.poller, accepted.sock)
        if self.settings.protocol == "tcp":
            self._join_app(accepted, stream)
        elif self.settings.protocol == "auto":
            poller = self.worker.poller
            sniffer = Preface(stream, lambda early, http2: self.serve(accepted, stream, early, http2=http2))
            sniffer.start(poller, poller.now + self.times.head)
        else:
            self.serve(accepted, stream, b"", http2=self.settings.protocol == "h2")

    def _join_app(self, accepted: Accepted, stream: Stream) -> None:
        record = self.connection_record(accepted, None, "")
        reason = self._judge_upstream()
        if reason:
            record.reason, record.flags = reason, "RBAC"
            stream.abort()
            self.end(record)
            return
        self.join(stream, permit_configured(self.cluster.name), record, self._judge_upstream)

    def serve(self, accepted: Accepted, stream: Stream, early: bytes, *, http2: bool) -> None:
        """Make a connection of ``stream``; ``early`` bytes were read while sniffing."""
        settings = self.settings
        facts = Facts(
            direction="outbound",
            listener=settings.name,
            local=accepted.local,
            local_port=settings.port,
            peer_address=accepted.peer,
            peer_host=accepted.peer_host,
        )
        engine = self.make_h2(settings.limits) if http2 else Http1Server(settings.limits, scheme=b"http")
        connection = ServerConnection(stream, engine, self, facts)
        if not self.worker.add(connection):
            stream.abort()
            return
        self.limit(connection, 0.0)
        connection.start(watched=bool(early))
        if early:
            connection.on_data(early)

    def authorize(self, exchange: Exchange) -> Permit:
        if self.worker.quarantine is not None:
            self._check_quarantine()
        return permit_configured(self.cluster.name)

    def _check_quarantine(self) -> None:
        """Raises AccessDenied when we are in quarantine, or all that the upstream could be."""
        expected, refused = self.cluster.settings.expect, self.cluster.refused
        if not expected:
            self.worker.check_quarantine(self.worker.principal, None)
        elif expected <= refused:
            self.worker.check_quarantine(self.worker.principal, min(refused).removeprefix("spiffe://"))

    def _judge_upstream(self) -> str:
        try:
            self._check_quarantine()
        except AccessDenied as error:
            return error.reason
        return ""

    def own_headers(self, exchange: Exchange, fields: Sorted) -> Headers:
        # What the app says about earlier hops passes on; the far side appends what it sees itself.
        if not fields.forwarded_for:
            return []
        exchange.record.x_forwarded_for = fields.forwarded_for
        return [(b"x-forwarded-for", fields.forwarded_for)]
