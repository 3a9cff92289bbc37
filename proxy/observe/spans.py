"""One finished exchange -> its spans, as plain data: what the SQLite store keeps and the exporter converts.

An exchange has two spans, whichever way it goes:

    SERVER  span_id          child of the caller's span  head in .. answer out
    CLIENT  client_span_id   child of the SERVER span    try's start .. end of the response, if one was made

The CLIENT span's id went to the upstream in traceparent, so what happens there hangs below it. Names,
attributes and status follow the HTTP and RPC semantic conventions (``names.py``); a gRPC exchange has RPC
spans *instead of* HTTP spans. Nothing here runs while the exchange is open.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from proxy.observe import names as n
from proxy.observe.record import ExchangeRecord

if TYPE_CHECKING:
    from identity.svid import PeerIdentity
    from proxy.policy.engine import Decision

AttributeValue = str | int | float | bool | list[str]
Attributes = dict[str, AttributeValue]

_ADDRESS: Final = re.compile(r"(?:\[([^\]]*)\]|([^:]*))(?::([0-9]{1,5}))?")


class Span:
    """One span. Ids are hex text, times are nanoseconds since the epoch."""

    __slots__ = (
        "attributes",
        "code",
        "decision",
        "description",
        "duration_ns",
        "flags",
        "kind",
        "link",
        "name",
        "parent_id",
        "peer",
        "policy",
        "remote_parent",
        "sampled",
        "service",
        "span_id",
        "start_ns",
        "status",
        "trace_id",
        "tracestate",
    )

    def __init__(
        self, trace_id: str, span_id: str, parent_id: str, kind: str, start_ns: int, duration_ns: int
    ) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent_id = parent_id  # "" for a root
        self.kind = kind  # "SERVER" | "CLIENT"; others only in spans of apps
        self.start_ns = start_ns
        self.duration_ns = duration_ns
        self.name = ""
        self.service = ""  # who measured: "ns/name"
        self.peer = ""  # the other side, "ns/sa", "" = unknown
        self.status = "UNSET"  # "UNSET" | "OK" | "ERROR"
        self.description = ""
        self.code = ""  # HTTP status or gRPC code name, "" = no answer
        self.flags = ""
        self.decision = ""
        self.policy = ""
        self.sampled = True
        self.remote_parent = False
        self.tracestate = ""
        self.link: tuple[str, str] | None = None
        self.attributes: Attributes = {}

    @property
    def end_ns(self) -> int:
        return self.start_ns + self.duration_ns

    def __repr__(self) -> str:
        return f"<Span {self.kind} {self.service} {self.name!r} {self.span_id}>"


def peer_name(peer: PeerIdentity | None) -> str:
    """``ns/sa`` of an authenticated peer, "unknown" for a stranger: strangers choose no label values."""
    if peer is None:
        return "unknown"
    return n.short_identity(peer.id.namespace, peer.id.service_account, peer.id.path)


def build_spans(record: ExchangeRecord, service: str, known_rpc: Mapping[bytes, str]) -> list[Span]:
    """SERVER span, then the CLIENT span if the exchange was tried upstream. ``[]`` without a trace context.

    ``service`` is ours, "ns/name"; ``known_rpc`` maps a gRPC path to its method name once it is known.
    """
    if record.trace is None:
        return []
    shared = _shared(record)
    spans = [_server_span(record, shared, known_rpc)]
    if record.attempts:
        spans.append(_client_span(record, shared, known_rpc))
    peer = record.peer if record.direction == "inbound" else record.upstream_peer
    for span in spans:
        span.service = service
        span.peer = "" if peer is None else peer_name(peer)
        span.flags = record.flags
        span.sampled = record.trace.sampled
        span.tracestate = (record.trace.tracestate or b"").decode("ascii", "replace")
        if record.decision is not None:
            span.decision = str(shared[n.DECISION])
            span.policy = record.decision.policy or ""
    return spans


def decision_word(decision: Decision) -> str:
    """``allow``, ``deny``, or ``audit_deny``: let through although no policy allows it (dry run)."""
    if not decision.allowed:
        return "deny"
    return "audit_deny" if decision.audited else "allow"


def _wall_ns(record: ExchangeRecord, at: float) -> int:
    return int(record.started * 1e9) + int((at - record.started_at) * 1e9)


# -- times and ids ----------------------------------------------------------------------------------------


def _server_span(record: ExchangeRecord, shared: Attributes, known_rpc: Mapping[bytes, str]) -> Span:
    trace = record.trace
    if trace is None:
        raise ValueError("a record without a trace context has no spans")
    span = Span(
        trace.trace_id.decode(),
        trace.span_id.decode(),
        (trace.parent_id or b"").decode(),
        "SERVER",
        _wall_ns(record, record.started_at),
        int((record.ended_at - record.started_at) * 1e9),
    )
    span.remote_parent = trace.parent_id is not None
    if trace.link is not None:
        span.link = (trace.link[0].decode(), trace.link[1].decode())
    span.attributes = dict(shared)
    _add_server_peer(span.attributes, record)
    if record.is_grpc:
        _describe_rpc(span, record, known_rpc, record.status)
    else:
        _describe_http_server(span, record)
    return span


def _client_span(record: ExchangeRecord, shared: Attributes, known_rpc: Mapping[bytes, str]) -> Span:
    trace = record.trace
    if trace is None:
        raise ValueError("a record without a trace context has no spans")
    # The last try. Waiting for a connection is part of it; without a try's head sent, all of it was waiting.
    tried_at = record.sent_at - record.connect_seconds if record.sent_at else record.started_at
    tried_at = max(tried_at, record.started_at)
    span = Span(
        trace.trace_id.decode(),
        trace.client_span_id.decode(),
        trace.span_id.decode(),
        "CLIENT",
        _wall_ns(record, tried_at),
        int((record.ended_at - tried_at) * 1e9),
    )
    span.attributes = dict(shared)
    _add_timings(span.attributes, record)
    _add_address(span.attributes, n.NETWORK_PEER_ADDRESS, n.NETWORK_PEER_PORT, record.upstream_address)
    if record.upstream_version:
        span.attributes[n.NETWORK_PROTOCOL_VERSION] = n.HTTP_VERSIONS.get(record.upstream_version, "1.1")
    if record.attempts > 1:
        span.attributes[n.HTTP_REQUEST_RESEND_COUNT] = record.attempts - 1
    if record.is_grpc:
        _describe_rpc(span, record, known_rpc, _upstream_status(record))
    else:
        _describe_http_client(span, record)
    return span


def _add_timings(attributes: Attributes, record: ExchangeRecord) -> None:
    if record.connect_seconds:
        attributes[n.TIME_CONNECT] = round(record.connect_seconds, 6)
    tls = getattr(record, "tls_seconds", 0.0)  # a record that can tell the handshake apart from the dial
    if tls:
        attributes[n.TIME_TLS] = round(tls, 6)
    if record.sent_at and record.first_byte_at:
        attributes[n.TIME_FIRST_BYTE] = round(record.first_byte_at - record.sent_at, 6)
        attributes[n.TIME_BODY] = round(record.ended_at - record.first_byte_at, 6)


# -- names and status -------------------------------------------------------------------------------------


def _incomplete(record: ExchangeRecord) -> bool:
    """No answer could be sent, or a good one broke off in the middle."""
    return record.status == 0 or (bool(record.reason) and record.status < 400)


def _upstream_status(record: ExchangeRecord) -> int:
    """What the upstream answered; 0 when it did not, or when our own answer took the place of its own."""
    if not record.first_byte_at or (record.reason and record.status >= 400):
        return 0
    return record.status


def _describe_http_server(span: Span, record: ExchangeRecord) -> None:
    attributes = span.attributes
    method = n.METHODS.get(record.method, n.OTHER)
    shown = "HTTP" if method == n.OTHER else method
    span.name = f"{shown} {record.route}" if record.route else shown
    _add_method(attributes, record, method)
    scheme = _scheme(record)
    attributes[n.URL_SCHEME] = scheme
    attributes[n.URL_PATH] = _text(record.path)
    if record.route:
        attributes[n.HTTP_ROUTE] = record.route
    if record.status:
        attributes[n.HTTP_RESPONSE_STATUS_CODE] = record.status
        span.code = str(record.status)
    _add_authority(attributes, record, scheme)
    if record.user_agent:
        attributes[n.USER_AGENT_ORIGINAL] = _text(record.user_agent[:256])
    attributes[n.HTTP_REQUEST_BODY_SIZE] = record.bytes_received
    attributes[n.HTTP_RESPONSE_BODY_SIZE] = record.bytes_sent
    # A denied request is not the server's error: unset, with sidewall.authz.decision = deny.
    _set_status(span, record, record.status, record.status >= 500 or _incomplete(record))


def _describe_http_client(span: Span, record: ExchangeRecord) -> None:
    attributes = span.attributes
    method = n.METHODS.get(record.method, n.OTHER)
    span.name = "HTTP" if method == n.OTHER else method
    _add_method(attributes, record, method)
    scheme = "https" if record.direction == "outbound" else "http"
    authority = _text(record.authority).rpartition("@")[2]  # credentials never leave (semconv: url.full)
    attributes[n.URL_FULL] = f"{scheme}://{authority}{_text(record.path)}"
    _add_authority(attributes, record, scheme)
    status = _upstream_status(record)
    if status:
        attributes[n.HTTP_RESPONSE_STATUS_CODE] = status
        span.code = str(status)
    _set_status(span, record, status, status >= 400 or status == 0 or _incomplete(record))


def _describe_rpc(span: Span, record: ExchangeRecord, known_rpc: Mapping[bytes, str], status: int) -> None:
    attributes = span.attributes
    attributes[n.RPC_SYSTEM_NAME] = "grpc"
    method = known_rpc.get(record.path)
    span.name = method or "grpc"
    attributes[n.RPC_METHOD] = method or n.OTHER
    if method is None:
        attributes[n.RPC_METHOD_ORIGINAL] = _text(record.path[1:])
    _add_authority(attributes, record, _scheme(record))
    if status not in (0, 200):
        attributes[n.HTTP_RESPONSE_STATUS_CODE] = status
    code = record.grpc_status
    if code is not None:
        span.code = attributes[n.RPC_RESPONSE_STATUS_CODE] = n.grpc_code(code)
    if span.kind == "CLIENT":
        failed = code != 0
    else:
        failed = code in n.GRPC_SERVER_ERRORS or (code is None and (status != 200 or bool(record.reason)))
    _set_status(span, record, status, failed)


def _set_status(span: Span, record: ExchangeRecord, status: int, failed: bool) -> None:
    """``error.type`` is our own word when we have one, else the code; a description only if it says more."""
    if not failed:
        return
    span.status = "ERROR"
    span.description = record.details if record.details != record.reason else ""
    what = record.reason or (span.code if record.is_grpc else str(status or ""))
    if what:
        span.attributes[n.ERROR_TYPE] = what


# -- attributes -------------------------------------------------------------------------------------------


def _shared(record: ExchangeRecord) -> Attributes:
    """What both spans say: the mesh side's identity, the decision, how it went."""
    inbound = record.direction == "inbound"
    peer = record.peer if inbound else record.upstream_peer
    attributes: Attributes = {n.DIRECTION: record.direction, n.GENERATION: record.generation}
    attributes[n.TLS_ESTABLISHED] = peer is not None
    if record.tls_version:
        attributes[n.TLS_PROTOCOL_VERSION] = record.tls_version
    if peer is not None:
        _add_peer(attributes, peer, "client" if inbound else "server")
    _add_decision(attributes, record)
    if record.flags:
        attributes[n.FLAGS] = record.flags.split(",")
    if record.upstream_name:
        attributes[n.UPSTREAM_NAME] = record.upstream_name
    attributes[n.ATTEMPTS] = record.attempts
    return attributes


def _add_peer(attributes: Attributes, peer: PeerIdentity, role: str) -> None:
    attributes[n.PEER_ID] = peer.uri
    attributes[n.SERVICE_PEER_NAME] = peer.id.service_account or peer.id.path.lstrip("/")
    if peer.id.namespace:
        attributes[n.SERVICE_PEER_NAMESPACE] = peer.id.namespace
    attributes[f"tls.{role}.hash.sha256"] = peer.sha256
    attributes[f"tls.{role}.issuer"] = peer.issuer
    not_after = datetime.fromtimestamp(peer.not_after, UTC)
    attributes[f"tls.{role}.not_after"] = not_after.strftime("%Y-%m-%dT%H:%M:%SZ")


def _add_decision(attributes: Attributes, record: ExchangeRecord) -> None:
    decision = record.decision
    if decision is None:
        return
    attributes[n.DECISION] = decision_word(decision)
    if record.decision_id:
        attributes[n.DECISION_ID] = record.decision_id
    if decision.policy is not None:
        attributes[n.SECURITY_RULESET] = decision.policy
    if decision.rule is not None:
        attributes[n.SECURITY_RULE] = str(decision.rule)
    if not decision.allowed:
        attributes[n.REASON] = decision.reason
    if decision.nearest is not None:
        attributes[n.NEAREST] = decision.nearest


def _add_method(attributes: Attributes, record: ExchangeRecord, method: str) -> None:
    attributes[n.HTTP_REQUEST_METHOD] = method
    if method == n.OTHER:
        attributes[n.HTTP_REQUEST_METHOD_ORIGINAL] = _text(record.method)


def _add_server_peer(attributes: Attributes, record: ExchangeRecord) -> None:
    attributes[n.NETWORK_PROTOCOL_VERSION] = n.HTTP_VERSIONS.get(record.version, "1.1")
    _add_address(attributes, n.NETWORK_PEER_ADDRESS, n.NETWORK_PEER_PORT, record.peer_address)
    if n.NETWORK_PEER_ADDRESS in attributes:
        attributes[n.CLIENT_ADDRESS] = attributes[n.NETWORK_PEER_ADDRESS]


def _add_authority(attributes: Attributes, record: ExchangeRecord, scheme: str) -> None:
    host, port = split_address(_text(record.authority).rpartition("@")[2])
    if host:
        attributes[n.SERVER_ADDRESS] = host
        attributes[n.SERVER_PORT] = port or (443 if scheme == "https" else 80)


def _add_address(attributes: Attributes, address_key: str, port_key: str, address: str) -> None:
    host, port = split_address(address)
    if host:
        attributes[address_key] = host
    if port:
        attributes[port_key] = port


def split_address(address: str) -> tuple[str, int]:
    """``host:port``, ``[v6]:port``, ``host``, ``unix:/path`` -> (host, port); port 0 when there is none."""
    match = _ADDRESS.fullmatch(address)
    if match is None:  # a path, or IPv6 without brackets
        return address, 0
    return match[1] or match[2] or "", int(match[3] or 0)


def _scheme(record: ExchangeRecord) -> str:
    return "https" if record.direction == "inbound" and record.tls_version else "http"


def _text(data: bytes) -> str:
    return data.decode("ascii", "backslashreplace")
