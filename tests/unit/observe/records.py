"""Makers of finished records for the tests of this folder."""

from __future__ import annotations

import random
from typing import Any

from identity.spiffe import SpiffeId
from identity.svid import PeerIdentity
from proxy.observe.propagation import TraceContext, start_trace
from proxy.observe.record import ConnectionRecord, ExchangeRecord
from proxy.policy.engine import Decision

STARTED = 1_795_685_172.240  # 2026-11-26T09:26:12.240Z


def peer(name: str = "shop/web") -> PeerIdentity:
    namespace, _, account = name.partition("/")
    uri = f"spiffe://shop.internal/ns/{namespace}/sa/{account}"
    return PeerIdentity(
        id=SpiffeId.parse(uri),
        principal=uri.removeprefix("spiffe://"),
        uri=uri,
        not_after=STARTED + 3600,
        sha256="ab" * 32,
        serial="01",
        issuer="CN=shop issuing",
        xfcc=b"",
    )


def decision(allowed: bool = True, **changes: Any) -> Decision:
    """Allowed by shop/allow-web rule 0, or denied because nothing allowed it."""
    reason = "" if allowed else "no_allow_policy_matched"
    named: dict[str, Any] = {"policy": "shop/allow-web", "rule": 0} if allowed else {}
    return Decision(allowed, **{"reason": reason, **named, **changes})


def trace(
    sampled: bool = True, seed: int = 1, parent: TraceContext | None = None, **changes: Any
) -> TraceContext:
    rng = random.Random(seed)
    if parent is None:
        context = start_trace(None, None, trusted=True, ratio=float(sampled), rng=rng)
    else:
        header = b"00-" + parent.trace_id + b"-" + parent.client_span_id + b"-01"
        context = start_trace(header, None, trusted=True, ratio=0.0, rng=rng)
    for name, value in changes.items():
        setattr(context, name, value)
    return context


def exchange(
    direction: str = "inbound", *, at: float = 0.0, seconds: float = 0.0482, **changes: Any
) -> ExchangeRecord:
    """A good ``GET /orders/17``, begun ``at`` seconds after STARTED."""
    record = ExchangeRecord(direction, "main", STARTED + at, 1000.0 + at)
    record.ended_at = record.started_at + seconds
    record.sent_at = record.started_at + 0.001
    record.first_byte_at = record.ended_at - 0.001
    record.method = b"GET"
    record.path = b"/orders/17"
    record.authority = b"api.shop:8443"
    record.version = 20
    record.status = 200
    record.attempts = 1
    record.upstream_version = 11
    record.tls_version = "1.3"
    record.generation = 12
    record.bytes_sent = 167
    if direction == "inbound":
        record.peer = peer()
        record.peer_address = "10.1.4.7:40122"
        record.local_address = "10.1.4.9:8443"
        record.decision = decision()
        record.upstream_name = "app"
        record.upstream_address = "127.0.0.1:8080"
    else:
        record.upstream_peer = peer("shop/api")
        record.peer_address = "127.0.0.1:51000"
        record.upstream_name = "api"
        record.upstream_address = "10.1.4.9:8443"
    record.trace = trace()
    for name, value in changes.items():
        setattr(record, name, value)
    return record


def denied(**changes: Any) -> ExchangeRecord:
    return exchange(
        **{
            "method": b"POST",
            "path": b"/orders",
            "status": 403,
            "reason": "no_allow_policy_matched",
            "flags": "RBAC",
            "seconds": 0.0003,
            "sent_at": 0.0,
            "first_byte_at": 0.0,
            "attempts": 0,
            "decision": decision(False, nearest="shop/allow-web#0:methods"),
            **changes,
        }
    )


def grpc(direction: str = "inbound", **changes: Any) -> ExchangeRecord:
    facts = {"method": b"POST", "path": b"/shop.Stock/Reserve", "is_grpc": True, "grpc_status": 0}
    return exchange(direction, **{**facts, **changes})


def connection(**changes: Any) -> ConnectionRecord:
    record = ConnectionRecord("inbound", "main", STARTED, 1000.0)
    record.ended_at = 1000.004
    record.kind = "tls"
    record.reason = "no_certificate"
    record.flags = "TLS"
    record.peer_address = "10.1.4.7:40123"
    for name, value in changes.items():
        setattr(record, name, value)
    return record
