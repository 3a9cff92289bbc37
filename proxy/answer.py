"""The one table from failure to answer. Documentation, metrics and tests are derived from it.

A row says what the caller gets (HTTP status, gRPC status), the flag letters of the access log (Envoy's letters
with Envoy's meaning, our own where Envoy has none), who caused it, in which phase, and whether the caller may
safely send the same request again. ``tests/unit/test_answer.py`` checks that every word of
``proxy.errors.REASONS`` has exactly one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import orjson

from proxy.errors import MALFORMED, SidewallError
from proxy.wire.events import Headers


@dataclass(frozen=True, slots=True)
class Answer:
    """What a failure becomes. ``grpc`` is the gRPC status code; ``retry`` is safe-to-repeat."""

    status: int
    grpc: int
    flag: str
    who: str  # caller | proxy | policy | upstream | authority
    phase: str  # connect | tls | headers | authz | body
    retry: bool
    title: str
    close: bool = False


def _malformed(status: int, title: str, grpc: int = 13) -> Answer:
    return Answer(status, grpc, "DPE", "caller", "headers", False, title, close=True)


# Malformed requests that get another status than 400.
_SPECIAL: Final = {
    "uri_too_long": _malformed(414, "request target too long", 8),
    "head_too_large": _malformed(431, "request header fields too large", 8),
    "too_many_headers": _malformed(431, "too many request header fields", 8),
    "body_too_large": _malformed(413, "request body too large", 8),
    "method_not_allowed": _malformed(405, "method not allowed", 12),
    "method_unknown": _malformed(501, "method not implemented", 12),
    "version_unsupported": _malformed(505, "HTTP version not supported", 12),
    "encoding_unsupported": _malformed(501, "transfer coding not implemented", 12),
    "expectation_failed": _malformed(417, "expectation failed"),
}

_DENIED: Final = Answer(403, 7, "RBAC", "policy", "authz", False, "access denied")

ANSWERS: Final[dict[str, Answer]] = {
    **{word: _SPECIAL.get(word, _malformed(400, "malformed request")) for word in MALFORMED},
    "no_allow_policy_matched": _DENIED,
    "deny_policy_matched": _DENIED,
    "mtls_required": _DENIED,
    "authorization_failed": _DENIED,
    "quarantined": _DENIED,
    "token_invalid": Answer(401, 16, "JWT", "caller", "authz", False, "token not accepted"),
    "token_audience": Answer(403, 7, "JWT", "caller", "authz", False, "token not accepted"),
    "route_not_found": Answer(404, 12, "NR", "proxy", "headers", False, "no route"),
    "upstream_not_configured": Answer(503, 14, "NC", "proxy", "headers", True, "upstream not configured"),
    "no_healthy_endpoint": Answer(503, 14, "UH", "upstream", "connect", True, "no endpoint"),
    "dns_failed": Answer(503, 14, "DF", "upstream", "connect", True, "name not resolved"),
    "loop_detected": Answer(508, 13, "NR", "proxy", "headers", False, "loop detected"),
    "upstream_connect_failed": Answer(503, 14, "UF", "upstream", "connect", True, "upstream unreachable"),
    "upstream_connect_timeout": Answer(503, 14, "UF", "upstream", "connect", True, "upstream unreachable"),
    "upstream_tls_failed": Answer(503, 14, "UF", "upstream", "tls", True, "upstream not trusted"),
    "upstream_identity_mismatch": Answer(503, 14, "UF", "upstream", "tls", True, "upstream not trusted"),
    "no_identity": Answer(503, 14, "UF", "authority", "tls", True, "no identity"),
    "upstream_closed": Answer(503, 14, "UC", "upstream", "headers", False, "upstream closed"),
    "upstream_reset": Answer(503, 14, "UR", "upstream", "headers", False, "upstream reset"),
    "upstream_protocol_error": Answer(502, 13, "UPE", "upstream", "headers", False, "bad upstream answer"),
    "local_reset": Answer(503, 14, "LR", "proxy", "body", False, "reset"),
    "downstream_closed": Answer(499, 1, "DC", "caller", "body", False, "caller went away"),
    "downstream_reset": Answer(499, 1, "DR", "caller", "body", False, "caller reset the stream"),
    "upstream_timeout": Answer(504, 4, "UT", "upstream", "headers", False, "upstream timed out"),
    "deadline_exceeded": Answer(504, 4, "DT", "caller", "headers", False, "deadline exceeded"),
    "idle_timeout": Answer(504, 4, "SI", "upstream", "body", False, "idle for too long"),
    "head_timeout": Answer(408, 4, "DPE", "caller", "headers", True, "request timeout", close=True),
    "write_timeout": Answer(504, 4, "SI", "caller", "body", False, "caller does not read", close=True),
    "retries_exhausted": Answer(503, 14, "URX", "upstream", "connect", True, "retries exhausted"),
    "overflow_connections": Answer(503, 8, "UO", "proxy", "connect", True, "too many connections"),
    "overflow_requests": Answer(503, 8, "UO", "proxy", "headers", True, "too many requests"),
    "overflow_pending": Answer(503, 8, "UO", "proxy", "connect", True, "too many requests waiting"),
    "overload": Answer(503, 8, "OM", "proxy", "headers", True, "overloaded"),
    "draining": Answer(503, 14, "DRN", "proxy", "headers", True, "shutting down", close=True),
    "certificate_expired": Answer(403, 7, "RBAC", "authority", "authz", False, "identity expired", close=True),
    "identity_revoked": Answer(403, 7, "RBAC", "authority", "authz", False, "identity revoked", close=True),
    "internal_error": Answer(500, 13, "BUG", "proxy", "body", False, "internal error", close=True),
}


def answer_to(error: SidewallError) -> Answer:
    """The answer for a failure; an unknown word is our bug and is answered as such."""
    return ANSWERS.get(error.reason, ANSWERS["internal_error"])


def render_http(
    answer: Answer, reason: str, decision_id: str = "", trace_id: bytes = b""
) -> tuple[Headers, bytes]:
    """Headers and body of an answer of ours (RFC 9457). No rule text, no detail: only what the caller may
    know, and the ids an operator needs to look the rest up."""
    problem: dict[str, object] = {"title": answer.title, "status": answer.status, "reason": reason}
    if decision_id:
        problem["decision"] = decision_id
    if trace_id:
        problem["trace_id"] = trace_id.decode("ascii")
    body = orjson.dumps(problem) + b"\n"
    headers: Headers = [(b"content-type", b"application/problem+json"), (b"x-sidewall-reason", reason.encode())]
    if decision_id:
        headers.append((b"x-sidewall-decision", decision_id.encode()))
    if answer.status == 503 and answer.retry:
        headers.append((b"retry-after", b"1"))
    if answer.status == 401:
        headers.append((b"www-authenticate", b'Bearer error="invalid_token"'))  # RFC 6750 3
    if answer.status == 405:
        headers.append((b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"))
    return headers, body


def render_grpc(answer: Answer, reason: str, decision_id: str = "") -> Headers:
    """A trailers-only gRPC answer (gRPC over HTTP/2, Responses): status 200, everything in one block."""
    return [(b"content-type", b"application/grpc"), *render_grpc_end(answer, reason, decision_id)]


def render_grpc_end(answer: Answer, reason: str, decision_id: str = "") -> Headers:
    """The trailers that end a gRPC call of which the caller has seen the beginning."""
    headers: Headers = [
        (b"grpc-status", str(answer.grpc).encode()),
        (b"grpc-message", f"{answer.title}: {reason}".encode()),
        (b"x-sidewall-reason", reason.encode()),
    ]
    if decision_id:
        headers.append((b"x-sidewall-decision", decision_id.encode()))
    return headers
