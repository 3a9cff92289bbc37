"""Every OpenTelemetry name we emit, in one place, beside the version of the conventions it comes from.

A rename upstream is then one line here. Stability as of semantic conventions 1.44.0: HTTP, URL, client,
server, network, error and user_agent are stable; RPC is a release candidate; tls, service.peer and
security_rule are in development; ``sidewall.*`` is ours (no convention exists for SPIFFE IDs or policies).

Deprecated names are left out on purpose: rpc.system, rpc.service, rpc.grpc.status_code, net.*, http.method,
peer.service. The conventions' main branch renames rpc.response.status_code to rpc.status_code; that is not
released, so the released name stays until it is.
"""

from __future__ import annotations

from typing import Final

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"
SCOPE: Final = "sidewall"

# HTTP spans
HTTP_REQUEST_METHOD: Final = "http.request.method"
HTTP_REQUEST_METHOD_ORIGINAL: Final = "http.request.method_original"
HTTP_RESPONSE_STATUS_CODE: Final = "http.response.status_code"
HTTP_ROUTE: Final = "http.route"
HTTP_REQUEST_BODY_SIZE: Final = "http.request.body.size"
HTTP_RESPONSE_BODY_SIZE: Final = "http.response.body.size"
HTTP_REQUEST_RESEND_COUNT: Final = "http.request.resend_count"
URL_SCHEME: Final = "url.scheme"
URL_PATH: Final = "url.path"
URL_FULL: Final = "url.full"
ERROR_TYPE: Final = "error.type"
NETWORK_PROTOCOL_VERSION: Final = "network.protocol.version"
NETWORK_PEER_ADDRESS: Final = "network.peer.address"
NETWORK_PEER_PORT: Final = "network.peer.port"
CLIENT_ADDRESS: Final = "client.address"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
USER_AGENT_ORIGINAL: Final = "user_agent.original"

# RPC spans
RPC_SYSTEM_NAME: Final = "rpc.system.name"
RPC_METHOD: Final = "rpc.method"
RPC_METHOD_ORIGINAL: Final = "rpc.method_original"
RPC_RESPONSE_STATUS_CODE: Final = "rpc.response.status_code"

# identity of the mesh side
TLS_ESTABLISHED: Final = "tls.established"
TLS_PROTOCOL_VERSION: Final = "tls.protocol.version"
SERVICE_PEER_NAME: Final = "service.peer.name"
SERVICE_PEER_NAMESPACE: Final = "service.peer.namespace"
SECURITY_RULESET: Final = "security_rule.ruleset.name"
SECURITY_RULE: Final = "security_rule.name"

# ours
PEER_ID: Final = "sidewall.peer.id"
DIRECTION: Final = "sidewall.direction"
DECISION: Final = "sidewall.authz.decision"
DECISION_ID: Final = "sidewall.authz.decision.id"
REASON: Final = "sidewall.authz.reason"
NEAREST: Final = "sidewall.authz.nearest"
FLAGS: Final = "sidewall.response.flags"
UPSTREAM_NAME: Final = "sidewall.upstream.name"
ATTEMPTS: Final = "sidewall.attempts"
TIME_CONNECT: Final = "sidewall.time.connect"
TIME_TLS: Final = "sidewall.time.tls"
TIME_FIRST_BYTE: Final = "sidewall.time.first_byte"
TIME_BODY: Final = "sidewall.time.body"
GENERATION: Final = "sidewall.config.generation"

# resource
SERVICE_NAME: Final = "service.name"
SERVICE_NAMESPACE: Final = "service.namespace"
SERVICE_VERSION: Final = "service.version"
SERVICE_INSTANCE_ID: Final = "service.instance.id"
TELEMETRY_SDK_NAME: Final = "telemetry.sdk.name"
TELEMETRY_SDK_LANGUAGE: Final = "telemetry.sdk.language"
TELEMETRY_SDK_VERSION: Final = "telemetry.sdk.version"

OTHER: Final = "_OTHER"

# RFC 9110 section 9, RFC 5789 (PATCH), QUERY: all others are _OTHER, so that a stranger cannot make series.
METHODS: Final[dict[bytes, str]] = {
    name.encode(): name
    for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "QUERY")
}

# grpc/doc/statuscodes.md
GRPC_CODES: Final = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
# semantic-conventions docs/rpc/grpc.md: the codes that are the server's fault
GRPC_SERVER_ERRORS: Final = frozenset({2, 4, 12, 13, 14, 15})

HTTP_VERSIONS: Final = {10: "1.0", 11: "1.1", 20: "2"}


def grpc_code(status: int) -> str:
    """The name of a gRPC status number; a number outside the list is UNKNOWN, as gRPC libraries treat it."""
    return GRPC_CODES[status] if 0 <= status < len(GRPC_CODES) else "UNKNOWN"


def short_identity(namespace: str | None, service_account: str | None, path: str) -> str:
    """``ns/sa`` of a SPIFFE ID as labels and tables show it, or its path when it does not have that form."""
    if namespace and service_account:
        return f"{namespace}/{service_account}"
    return path.lstrip("/") or "unknown"
