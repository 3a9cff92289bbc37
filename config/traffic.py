"""Where traffic comes in and where it goes: inbound, outbound, upstreams."""

# ruff: noqa: RUF009 (a setting is a field: called once, for its metadata)

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from config.kinds import Choice, Flag, Many, Parsed, Text, Where, duration, integer, size
from config.limits import ListenerTimeouts, UpstreamTimeouts
from config.settings import REQUIRED, Section, section, setting
from config.values import ALL_INTERFACES, LOOPBACK, Address, check_expected, expand_expected

NAME: Final = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_NAMES: Final = Text("a name of letters, digits, '-', '_' and '.'", NAME, "my-name")
_LATER_CAPTURE: Final = "traffic capture comes later: name the address to listen on"


# -- listeners ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbound:
    """One door for other services: mTLS in, checked, then on to the app."""

    name: str = setting(_NAMES, "", "stands in logs and metrics; the address when not given")
    listen: Address = setting(
        Where(ALL_INTERFACES), Address(ALL_INTERFACES, 8443), "where callers connect; a bare port = all interfaces"
    )
    app: Address = setting(
        Where(LOOPBACK, names=True), REQUIRED, "where the service listens; a bare port = loopback; or unix:/path"
    )
    mtls: str = setting(
        Choice("an mTLS mode", "STRICT", "PERMISSIVE", "DISABLE"),
        "STRICT",
        "[S-1] STRICT: a certificate; PERMISSIVE: or plaintext, without identity; DISABLE: plaintext only. What a "
        "PeerAuthentication says comes first",
    )
    protocol: str = setting(
        Choice("a protocol", "auto", "http1", "h2", "tcp"), "auto", "auto: by ALPN; tcp: opaque bytes"
    )
    app_protocol: str = setting(
        Choice("a protocol of apps", "auto", "http1", "h2c", "tcp"),
        "auto",
        "what the app speaks; auto: http1, or tcp when protocol is tcp. gRPC services speak h2c",
    )
    forward_client_cert: str = setting(
        Choice("a way to forward the caller's identity", "sanitizeSet", "sanitize"),
        "sanitizeSet",
        "[S-8] the app sees x-forwarded-client-cert of the verified peer, or none; never a forged one",
    )
    max_body: int = setting(size(), 0, "[L-6] as limits.body when not given; 413")
    max_header: int = setting(size(8192, 2**20), 64 * 1024, "[L-2] as limits.head when not given; 431")
    timeouts: ListenerTimeouts = setting(*section(ListenerTimeouts), "as the top-level timeouts")
    unsafe_app: bool = setting(
        Flag(),
        False,
        "the app may be elsewhere: verified requests then travel unprotected, and callers can go around us",
    )


_LATER_INBOUND: Final = {
    "capture": _LATER_CAPTURE,
    "ports": _LATER_CAPTURE,
    "skipPorts": _LATER_CAPTURE,
    "proxyProtocol": "the PROXY protocol comes later [S-1]: callers connect directly",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbound:
    """One door for our own service: plaintext in on loopback, mTLS out to one upstream."""

    name: str = setting(_NAMES, "", "stands in logs and metrics; the upstream when not given")
    listen: Address = setting(
        Where(LOOPBACK), Address(LOOPBACK, 15001), "where our service connects; a bare port = loopback"
    )
    to: str = setting(_NAMES, REQUIRED, "the upstream it leads to")
    protocol: str = setting(Choice("a protocol", "http", "tcp"), "http", "http: HTTP/1.1, HTTP/2; tcp: opaque bytes")
    timeouts: ListenerTimeouts = setting(*section(ListenerTimeouts), "as the top-level timeouts")
    unsafe_listen: bool = setting(
        Flag(), False, "listen beyond loopback: whoever can connect then speaks with our identity"
    )


_LATER_OUTBOUND: Final = {"capture": _LATER_CAPTURE, "unknown": _LATER_CAPTURE}


# -- upstreams ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancer:
    simple: str = setting(
        Choice("a way to balance", "ROUND_ROBIN", "LEAST_REQUEST"),
        "LEAST_REQUEST",
        "the less busy of two endpoints drawn at random: no herd, and slow ones get less",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpPool:
    max_connections: int = setting(integer(1, 10**5), 256, "[L-22] connections to all endpoints")
    connect_timeout: float = setting(duration(0.05, 600.0), 5.0, "[T-6] Istio's name for timeouts.connect")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpPool:
    http1_max_pending_requests: int = setting(integer(0, 10**6), 1024, "[L-22] requests that wait for a connection")
    http2_max_requests: int = setting(integer(1, 10**6), 4096, "[L-21] requests in flight")
    max_requests_per_connection: int = setting(integer(0), 0, "then a new connection is made; 0 = no limit")
    idle_timeout: float = setting(duration(), 300.0, "[T-5] Istio's name for timeouts.idle")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionPool:
    tcp: TcpPool = setting(*section(TcpPool, later={"tcpKeepalive": "keep-alive probes are not adjustable"}), "TCP")
    http: HttpPool = setting(
        *section(
            HttpPool,
            later={
                "maxRetries": "retries come later",
                "h2UpgradePolicy": "set protocol: h2 or http1",
                "useClientProtocol": "set protocol: h2 or http1",
                "maxConcurrentStreams": "the server announces it",
            },
        ),
        "HTTP",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficPolicy:
    """Field names of Istio's DestinationRule."""

    load_balancer: LoadBalancer = setting(
        *section(
            LoadBalancer,
            later={
                "consistentHash": "set simple",
                "localityLbSetting": "set simple",
                "warmupDurationSecs": "set simple",
                "warmup": "set simple",
            },
        ),
        "how an endpoint is picked",
    )
    connection_pool: ConnectionPool = setting(*section(ConnectionPool), "how much of an upstream is used")


_LATER_TRAFFIC: Final = {
    "outlierDetection": "ejecting bad endpoints comes later; one that refuses connections is passed over",
    "tls": "connections to upstreams are always mTLS; say whom to expect",
    "portLevelSettings": "make one upstream for each port",
    "tunnel": "tunnels are not supported",
    "proxyProtocol": "the PROXY protocol is not supported",
    "retryBudget": "retries come later",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """A remote service. ``expect``: SPIFFE IDs one of which the far side must show [S-7]."""

    endpoints: tuple[Address, ...] = setting(Many(Where(LOOPBACK), most=256), (), "addresses: IP:port or unix:/path")
    dns: Address | None = setting(Where("", names=True), None, "name:port, resolved again and again; last good kept")
    expect: tuple[str, ...] = setting(
        Many(Parsed("an identity to expect", check_expected), or_one=True),
        (),
        "[S-7] who must be at the other end: ns/sa or spiffe://..., one or a list",
    )
    tls: str = setting(
        Choice("a TLS mode", "mtls", later={"off": "plaintext upstreams come later", "simple": "only mtls for now"}),
        "mtls",
        "[S-7] always mutual; there is no fall-back to plaintext",
    )
    protocol: str = setting(
        Choice("a protocol", "auto", "h2", "http1"), "auto", "auto: HTTP/2 when the far side offers it (ALPN)"
    )
    traffic_policy: TrafficPolicy = setting(*section(TrafficPolicy, later=_LATER_TRAFFIC), "as in a DestinationRule")
    timeouts: UpstreamTimeouts = setting(*section(UpstreamTimeouts), "as the top-level timeouts")

    def expected_ids(self, trust_domain: str) -> frozenset[str]:
        """The SPIFFE IDs meant by ``expect``; short ones are of ``trust_domain``."""
        return frozenset(expand_expected(text, trust_domain) for text in self.expect)


_LATER_UPSTREAM: Final = {
    "health": "health checks come later; endpoints that refuse connections are passed over",
    "retry": "retries come later; what was not written is tried again already",
    "outlierDetection": "it belongs under trafficPolicy, and comes later",
}

INBOUND: Final = Section(Inbound, later=_LATER_INBOUND)
OUTBOUND: Final = Section(Outbound, later=_LATER_OUTBOUND)
UPSTREAM: Final = Section(Upstream, later=_LATER_UPSTREAM)
