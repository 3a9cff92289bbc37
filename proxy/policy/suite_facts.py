"""Requests as people state them: "shop/web", "GET /orders/1?x=y", a header, a claim. Used by test suites and by every
command that asks about one request.

What a request line says is read as the proxy reads it: the path becomes canonical by the same function, so that a
case can state ``GET /orders/../admin`` and learn what would really be judged, and what the proxy would refuse
before any policy is refused here with the same word.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from config.resources.authorization import AuthorizationPolicy
from identity.spiffe import SpiffeId, SpiffeIdError
from proxy.errors import MalformedRequest
from proxy.policy.facts import HTTP, TCP, AccessRequest, Values, WorkloadFacts, wire_text
from proxy.wire.path import canonical_path, istio_target
from proxy.wire.validate import METHODS

DEFAULT_PORT: Final = 8080
STRICT: Final = "strict"
NO_CERTIFICATE: Final = "mtls_required"


class BadFact(ValueError):
    """What is stated cannot be a fact of a request; the text says why and what to write."""


@dataclass(frozen=True, slots=True)
class Stated:
    """Facts as written. ``caller``: namespace/account, a SPIFFE ID with or without its scheme, or ``none``.
    ``request``: ``METHOD PATH``, ``package.Service/Method`` or ``TCP``. Empty or None: not stated."""

    caller: str = "none"
    request: str = ""
    method: str = ""
    path: str = ""
    host: str = ""
    port: int = DEFAULT_PORT
    protocol: str = ""
    source_ip: str = ""
    remote_ip: str = ""
    destination_ip: str = ""
    sni: str = ""
    route: str = ""
    headers: Mapping[str, Values] = field(default_factory=dict)
    claims: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """``refused``: the word with which the proxy refuses such a request before it asks policy; "" if it asks."""

    request: AccessRequest
    refused: str = ""


def request_of(
    stated: Stated,
    *,
    trust_domain: str,
    workload: WorkloadFacts,
    permissive: bool = False,
    normalization: str = STRICT,
) -> Question:
    """The facts that policy would be asked about. ``permissive``: the port accepts callers without certificate;
    ``normalization``: policy.pathNormalization. Raises BadFact."""
    method, raw = _line(stated)
    protocol = stated.protocol.lower() or (HTTP if method else TCP)
    if protocol not in (HTTP, TCP):
        raise BadFact(f"{stated.protocol!r} is no protocol: write http or tcp")
    principal, namespace = caller_of(stated.caller, trust_domain)
    facts: dict[str, Any] = {"principal": principal, "namespace": namespace, "port": stated.port}
    refused = NO_CERTIFICATE if principal is None and not permissive else ""
    if protocol == HTTP:
        path, query, why = _canonical(raw, normalization)
        refused = why or refused
        host = wire_text(stated.host or workload.name or "localhost")
        facts |= {"method": method, "path": path, "target": path + query, "host": host, "route": stated.route}
        if method.encode() not in METHODS:
            refused = "method_unknown"
        if stated.headers:
            facts["headers"] = {name.lower(): _on_wire(value) for name, value in stated.headers.items()}
        if stated.claims is not None:
            facts["claims"] = stated.claims
    elif stated.headers or stated.claims is not None or stated.path:
        raise BadFact("a TCP connection has no path, headers or claims")
    facts |= {name: _address(getattr(stated, name)) for name in ("source_ip", "remote_ip", "destination_ip")}
    facts["sni"] = stated.sni
    return Question(AccessRequest(protocol=protocol, **facts), refused)


def _line(stated: Stated) -> tuple[str, str]:
    """Method and raw path."""
    words = stated.request.split()
    if len(words) > 2:
        raise BadFact(f"{stated.request!r} is no request: write METHOD PATH, package.Service/Method or TCP")
    method, path = stated.method, stated.path
    if len(words) == 2:
        method, path = words
    elif words and words[0].upper() != "TCP":
        text = words[0]
        if text.startswith("/"):
            method, path = method or "GET", text
        elif "/" in text:
            method, path = "POST", f"/{text}"  # a gRPC method
        else:
            raise BadFact(f"{text!r} is no request: write METHOD PATH, package.Service/Method or TCP")
    if path and not method:
        method = "GET"
    if method and not path:
        path = "/"
    return wire_text(method), wire_text(path)


def _canonical(raw: str, normalization: str) -> tuple[str, str, str]:
    """The path, the query with its question mark, and the word with which the proxy refuses such a path."""
    path, mark, query = raw.partition("?")
    if path == "*":
        return path, "", ""
    try:
        if normalization != STRICT:
            return istio_target(path.encode("latin-1"), normalization)[0].decode("latin-1"), mark + query, ""
        path = canonical_path(path.encode("latin-1"), escaped_slash="reject").decode("latin-1")
    except MalformedRequest as error:
        return path, mark + query, error.reason
    return path, mark + query, ""


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text)) if text else ""
    except ValueError:
        raise BadFact(f"{text!r} is no address") from None


def _on_wire(value: Values) -> Values:
    return wire_text(value) if isinstance(value, str) else tuple(map(wire_text, value))


def caller_of(text: str, trust_domain: str) -> tuple[str | None, str | None]:
    """Principal and namespace of a caller: ``shop/web``, ``td/ns/shop/sa/web`` or ``spiffe://...``; ``none`` has no
    certificate. Raises BadFact."""
    if text in ("none", ""):
        return None, None
    if text.count("/") == 1 and "://" not in text:
        namespace, _, account = text.partition("/")
        text = f"{trust_domain}/ns/{namespace}/sa/{account}"
    elif "/" not in text:
        raise BadFact(f"{text!r} is no caller: write namespace/account, a SPIFFE ID or none")
    try:
        found = SpiffeId.parse(text if "://" in text else f"spiffe://{text}")
    except SpiffeIdError as error:
        raise BadFact(str(error)) from None
    return str(found).removeprefix("spiffe://"), found.namespace


def workload_of(text: str, labels: Mapping[str, str], root_namespace: str = "istio-system") -> WorkloadFacts:
    """``shop/api``: the workload of that name, with the label ``app`` of that name unless ``labels`` say otherwise.
    Raises BadFact."""
    namespace, slash, name = text.partition("/")
    if not slash or not namespace or not name or "/" in name:
        raise BadFact(f"{text!r} is no workload: write namespace/name, e.g. shop/api")
    return WorkloadFacts(namespace, {"app": name, **labels}, root_namespace, name)


def likely_trust_domain(policies: Sequence[AuthorizationPolicy]) -> str:
    """The trust domain that the policies' principals name most often; cluster.local when they name none."""
    counts: dict[str, int] = {}
    for policy in policies:
        for rule in policy.rules:
            for entry in rule.sources:
                for clause in entry.clauses:
                    if clause.fact == "principals":
                        for value in clause.values:
                            first = value.removeprefix("spiffe://").partition("/")[0]
                            if first and "*" not in first:
                                counts[first] = counts.get(first, 0) + 1
    return max(counts, key=lambda name: counts[name], default="cluster.local")
