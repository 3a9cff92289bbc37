"""One class per way to fail. Facts only: which answer a failure gets is decided in ``proxy/answer.py``.

Every error carries ``reason``, a word of the closed list ``REASONS``. The same word stands in the access
log, the span, the metric and the ``x-sidewall-reason`` response header, so that it can be searched for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from proxy.policy.engine import Decision

# What a peer's bytes can be refused for (flag DPE towards the caller, UPE when the app sent them).
MALFORMED: Final = frozenset(
    {
        "bad_request_line",
        "bad_target",
        "bad_path",
        "bad_host",
        "bad_header_name",
        "bad_header_value",
        "bad_pseudo_header",
        "bad_scheme",
        "underscore_header",
        "duplicate_header",
        "connection_header",
        "bad_content_length",
        "bad_transfer_encoding",
        "bad_chunk",
        "bad_trailer",
        "bad_upgrade",
        "bad_status_line",
        "body_length_mismatch",
        "uri_too_long",
        "head_too_large",
        "too_many_headers",
        "body_too_large",
        "method_not_allowed",
        "method_unknown",
        "version_unsupported",
        "encoding_unsupported",
        "expectation_failed",
        "too_many_interim_answers",
        "frame_error",
        "flood",
        "truncated",
    }
)

REASONS: Final = MALFORMED | frozenset(
    {
        # policy
        "no_allow_policy_matched",
        "deny_policy_matched",
        "mtls_required",
        "authorization_failed",
        "quarantined",
        "token_invalid",
        "token_audience",
        # routing and endpoints
        "route_not_found",
        "upstream_not_configured",
        "no_healthy_endpoint",
        "dns_failed",
        "loop_detected",
        # connecting
        "upstream_connect_failed",
        "upstream_connect_timeout",
        "upstream_tls_failed",
        "upstream_identity_mismatch",
        "no_identity",
        # exchange
        "upstream_closed",
        "upstream_reset",
        "upstream_protocol_error",
        "local_reset",
        "downstream_closed",
        "downstream_reset",
        "upstream_timeout",
        "deadline_exceeded",
        "idle_timeout",
        "head_timeout",
        "write_timeout",
        "retries_exhausted",
        # limits and life cycle
        "overflow_connections",
        "overflow_requests",
        "overflow_pending",
        "overload",
        "draining",
        "certificate_expired",
        "identity_revoked",
        "internal_error",
    }
)

# Why a TLS peer was not accepted (connection records; no exchange exists yet).
PEER_REASONS: Final = frozenset(
    {
        "no_certificate",
        "untrusted_root",
        "expired",
        "not_yet_valid",
        "not_a_spiffe_id",
        "several_uri_sans",
        "trust_domain",
        "id_mismatch",
        "leaf_is_ca",
        "key_usage",
        "extended_key_usage",
        "weak_key",
        "weak_signature",
        "chain_too_long",
        "bad_certificate",
        "alpn",
        "protocol",
        "timeout",
        "closed",
        "no_identity",
        "revoked",
    }
)


class SidewallError(Exception):
    """Base of every expected failure. ``reason`` is a word of ``REASONS``; ``detail`` is for operators only."""

    reason: str = "internal_error"

    def __init__(self, detail: str = "", *, reason: str | None = None) -> None:
        super().__init__(detail or reason or self.reason)
        self.detail = detail
        if reason is not None:
            self.reason = reason


class MalformedRequest(SidewallError):
    """The caller's bytes are not one unambiguous request. ``reason`` is a word of ``MALFORMED``."""

    reason = "bad_request_line"


class MalformedResponse(SidewallError):
    """The app's bytes are not one unambiguous response (S-31). ``reason`` is a word of ``MALFORMED``."""

    reason = "upstream_protocol_error"


class AccessDenied(SidewallError):
    """Policy refused the exchange. ``decision`` says how; ``decision_id`` is what the caller may be told."""

    reason = "no_allow_policy_matched"

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.reason, reason=decision.reason)
        self.decision = decision
        self.decision_id = ""


class RouteNotFound(SidewallError):
    reason = "route_not_found"


class NoHealthyEndpoint(SidewallError):
    reason = "no_healthy_endpoint"


class Overflow(SidewallError):
    reason = "overflow_requests"


class ConnectFailed(SidewallError):
    reason = "upstream_connect_failed"


class PeerUntrusted(SidewallError):
    """A TLS peer was refused. ``why`` is a word of ``PEER_REASONS``."""

    reason = "upstream_tls_failed"

    def __init__(self, why: str, detail: str = "") -> None:
        super().__init__(detail or why)
        self.why = why


class UpstreamGone(SidewallError):
    """The upstream connection or stream ended before the response did. ``wrote`` says whether any byte of
    the request may have reached it: only when it is False may the exchange be tried again (S-32)."""

    reason = "upstream_closed"

    def __init__(self, detail: str = "", *, reason: str | None = None, wrote: bool = True) -> None:
        super().__init__(detail, reason=reason)
        self.wrote = wrote


class TimedOut(SidewallError):
    reason = "upstream_timeout"


class DownstreamGone(SidewallError):
    reason = "downstream_closed"


class Draining(SidewallError):
    reason = "draining"
