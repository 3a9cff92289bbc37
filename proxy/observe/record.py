"""What is known about one exchange or connection when it ends. Written once, read by log, metrics and spans."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from identity.svid import PeerIdentity
    from proxy.observe.propagation import TraceContext
    from proxy.policy.engine import AccessRequest, Decision


class ExchangeRecord:
    """Facts of one exchange. Times ending in ``_at`` are seconds of the monotonic clock, 0.0 = did not happen.

    ``started`` is the wall clock (seconds since the epoch) of ``started_at``.
    """

    __slots__ = (
        "attempts",
        "authority",
        "bytes_received",
        "bytes_sent",
        "connect_seconds",
        "decision",
        "decision_id",
        "details",
        "direction",
        "ended_at",
        "first_byte_at",
        "flags",
        "generation",
        "grpc_status",
        "is_grpc",
        "listener",
        "local_address",
        "method",
        "path",
        "peer",
        "peer_address",
        "port",
        "question",
        "reason",
        "request_id",
        "response_seconds_header",
        "route",
        "sent_at",
        "started",
        "started_at",
        "status",
        "tls_version",
        "trace",
        "upstream_address",
        "upstream_name",
        "upstream_peer",
        "upstream_version",
        "user_agent",
        "version",
        "x_forwarded_for",
    )

    def __init__(self, direction: str, listener: str, started: float, started_at: float) -> None:
        self.direction = direction  # "inbound" | "outbound"
        self.listener = listener
        self.started = started
        self.started_at = started_at
        self.sent_at = 0.0  # request head handed to the upstream
        self.first_byte_at = 0.0  # response head came from the upstream
        self.ended_at = 0.0
        self.connect_seconds = 0.0  # time the exchange waited for a connection
        self.method = b""
        self.path = b""  # canonical, without query
        self.authority = b""
        self.version = 11  # 10, 11, 20
        self.is_grpc = False
        self.status = 0  # what the caller got; 0 = no answer could be sent
        self.grpc_status: int | None = None
        self.flags = ""  # Envoy's letters, comma separated
        self.reason = ""  # word of proxy.errors.REASONS, "" = went well
        self.details = ""  # for operators only
        self.bytes_received = 0  # body bytes from the caller
        self.bytes_sent = 0  # body bytes to the caller
        self.peer: PeerIdentity | None = None  # the caller (inbound)
        self.upstream_peer: PeerIdentity | None = None  # the far side (outbound)
        self.peer_address = ""
        self.local_address = ""
        self.tls_version = ""
        self.upstream_name = ""
        self.upstream_address = ""
        self.upstream_version = 0
        self.attempts = 0
        self.decision: Decision | None = None
        self.decision_id = ""  # what the caller of a denied exchange was told
        self.question: AccessRequest | None = None  # what policy was asked, of what it refused
        self.route = ""
        self.port = 0  # what policies call the port, inbound only
        self.trace: TraceContext | None = None
        self.request_id = b""
        self.user_agent = b""
        self.x_forwarded_for = b""
        self.response_seconds_header = b""
        self.generation = 0


class ConnectionRecord:
    """One connection that carried no HTTP exchange: opaque TCP, or refused before one could begin."""

    __slots__ = (
        "bytes_received",
        "bytes_sent",
        "decision",
        "details",
        "direction",
        "ended_at",
        "flags",
        "generation",
        "kind",
        "listener",
        "local_address",
        "peer",
        "peer_address",
        "reason",
        "started",
        "started_at",
        "tls_version",
        "upstream_address",
        "upstream_name",
        "upstream_peer",
    )

    def __init__(self, direction: str, listener: str, started: float, started_at: float) -> None:
        self.direction = direction
        self.listener = listener
        self.started = started
        self.started_at = started_at
        self.ended_at = 0.0
        self.kind = "tcp"  # "tcp" | "tls" (handshake failed)
        self.bytes_received = 0
        self.bytes_sent = 0
        self.decision: Decision | None = None
        self.reason = ""  # REASONS, or PEER_REASONS for kind "tls"
        self.flags = ""
        self.details = ""
        self.peer: PeerIdentity | None = None
        self.upstream_peer: PeerIdentity | None = None
        self.peer_address = ""
        self.local_address = ""
        self.tls_version = ""
        self.upstream_address = ""
        self.upstream_name = ""
        self.generation = 0
