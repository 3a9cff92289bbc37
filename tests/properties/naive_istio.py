"""A second reading of Istio's semantics, straight from the documents: slow, plain, sharing no code with the engine.

It works on the YAML as Python data, translates each value to a regular expression as Istio does for Envoy, and tries
every rule of every policy in turn.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

Document = dict[str, Any]
Request = dict[str, Any]

HTTP_ONLY = {"methods", "paths", "hosts", "requestPrincipals"}
PERMISSION_KEYS = {"destination.ip", "destination.port", "connection.sni"}
FIELD_OF_KEY = {
    "source.ip": "ipBlocks",
    "remote.ip": "remoteIpBlocks",
    "source.namespace": "namespaces",
    "source.serviceAccount": "serviceAccounts",
    "source.trustDomain": "trustDomains",
    "source.principal": "principals",
    "request.auth.principal": "requestPrincipals",
    "destination.port": "ports",
}
SEGMENT = r"[A-Za-z0-9\-._~%!$&'()+,;:@=*]"


def judge(
    documents: list[Document],
    request: Request,
    *,
    namespace: str,
    labels: dict[str, str],
    root: str,
    default: str,
    name: str = "",
) -> tuple[str, str | None]:
    """("allow" | "deny" | "audit", "namespace/name#rule" or None)."""
    selected = [d for d in documents if applies(d, request, namespace, labels, root, name) and not is_dry(d)]
    for action in ("DENY", "ALLOW"):
        if first := first_match(selected, action, request):
            return ("allow" if action == "ALLOW" else "audit" if default == "audit" else "deny"), first
    any_allow = any(d["spec"].get("action", "ALLOW") == "ALLOW" for d in selected)
    if default == "istio" and not any_allow:
        return "allow", None
    return ("audit" if default == "audit" else "deny"), None


def audited(
    documents: list[Document], request: Request, *, namespace: str, labels: dict[str, str], root: str, name: str = ""
) -> str | None:
    """The AUDIT rule that matches."""
    selected = [d for d in documents if applies(d, request, namespace, labels, root, name)]
    return first_match(selected, "AUDIT", request)


def first_match(documents: list[Document], action: str, request: Request) -> str | None:
    matching = sorted(
        (d["metadata"]["namespace"], d["metadata"]["name"], index)
        for d in documents
        if d["spec"].get("action", "ALLOW") == action
        for index, rule in enumerate(d["spec"].get("rules") or [])
        if rule_matches(rule, action, request, d["metadata"]["namespace"])
    )
    return "{}/{}#{}".format(*matching[0]) if matching else None


def is_dry(document: Document) -> bool:
    return document["metadata"].get("annotations", {}).get("istio.io/dry-run") == "true"


def applies(
    document: Document, request: Request, namespace: str, labels: dict[str, str], root: str, name: str
) -> bool:
    home, spec = document["metadata"]["namespace"], document["spec"]
    if targets := spec.get("targetRefs"):
        service = any(t["kind"] == "Service" and t["name"] == name for t in targets)
        routes = {t["name"] for t in targets if t["kind"] != "Service"}
        on_route = request["protocol"] == "http" and request.get("route") in routes
        return bool(home == namespace and (service or on_route))
    if home not in {namespace, root}:
        return False
    wanted = spec.get("selector", {}).get("matchLabels", {})
    return all(key in labels and labels[key] == value for key, value in wanted.items())


def rule_matches(rule: Document, action: str, request: Request, home: str) -> bool:
    """AUTHZ 4.1: any permission and any principal; each when belongs to all of its side."""
    principals = [tests_of(entry["source"]) for entry in rule.get("from", [])] or [[]]
    permissions = [tests_of(entry["operation"]) for entry in rule.get("to", [])] or [[]]
    for when in rule.get("when", []):
        side = permissions if when["key"] in PERMISSION_KEYS else principals
        for tests in side:
            tests += [(when["key"], when.get("values") or [], True), (when["key"], when.get("notValues") or [], False)]
    if request["protocol"] == "tcp":
        asked = {fact for tests in principals + permissions for fact, values, _ in tests if values}
        if action == "ALLOW" and any(map(is_http_only, asked)):
            return False
        principals, permissions = (
            [[test for test in tests if not is_http_only(test[0])] for tests in side]
            for side in (principals, permissions)
        )
    return all(any(all(holds(*test, request, home) for test in tests) for tests in side) for side in (principals, permissions))


def tests_of(fields: Document) -> list[tuple[str, list[str], bool]]:
    return [(positive(name), values, not name.startswith("not")) for name, values in fields.items()]


def is_http_only(fact: str) -> bool:
    return fact in HTTP_ONLY or fact.startswith("request.")


def positive(name: str) -> str:
    return name[3].lower() + name[4:] if name.startswith("not") else name


def holds(fact: str, values: list[str], wanted: bool, request: Request, home: str) -> bool:
    if not values:
        return True
    return any(value_matches(FIELD_OF_KEY.get(fact, fact), value, request, home) for value in values) is wanted


def value_matches(field: str, value: str, request: Request, home: str) -> bool:
    if field == "ports":
        return int(value) == request["port"]
    if field in ("ipBlocks", "remoteIpBlocks", "destination.ip"):
        return address_matches(field, value, request)
    if field in ("principals", "namespaces", "serviceAccounts", "trustDomains"):
        return request["principal"] is not None and peer_matches(field, value, request, home)
    if field == "requestPrincipals":
        return token_matches(value, request.get("claims") or {})
    if field.startswith("request.auth."):
        return claim_matches(field, value, request.get("claims") or {})
    if field.startswith("request.headers["):
        return header_matches(field[16:-1].lower(), value, request)
    if field == "connection.sni":
        return full(pattern_of(value, ".+"), request.get("sni", "").lower()) and request.get("sni", "") != ""
    if field == "paths" and ("{*}" in value or "{**}" in value):
        return full(template_of(value), request["path"])
    text = request[{"methods": "method", "paths": "path", "hosts": "host"}[field]]
    if field == "hosts":
        value, text = value.lower(), text.lower()
    return full(pattern_of(value, ".+" if field == "paths" else ".*"), text)


def address_matches(field: str, value: str, request: Request) -> bool:
    name = {"ipBlocks": "source_ip", "remoteIpBlocks": "remote_ip", "destination.ip": "destination_ip"}[field]
    text = request.get(name, "") or (request.get("source_ip", "") if name == "remote_ip" else "")
    if not text:
        return False
    address = ipaddress.ip_address(text)
    address = getattr(address, "ipv4_mapped", None) or address
    net = ipaddress.ip_network(value, strict=False)
    return address.version == net.version and address in net


def peer_matches(field: str, value: str, request: Request, home: str) -> bool:
    uri = "spiffe://" + request["principal"]
    if field == "principals":
        if value == "*":
            return full(".+", uri)
        if value.startswith("*"):
            return full("spiffe://.*" + re.escape(value[1:]), uri)
        return full(pattern_of("spiffe://" + value, ".+"), uri)
    if field == "trustDomains":
        domain = "[^/]*".join(re.escape(part) for part in value.split("*"))
        return full(f"spiffe://{domain}(/.*)?", uri)
    # By structure, where Istio goes by text: the two agree on IDs of this form.
    parts = request["principal"].split("/")
    if len(parts) != 5 or parts[1] != "ns" or parts[3] != "sa":
        return False
    if field == "namespaces":
        return full(".*".join(re.escape(part) for part in value.split("*")), parts[2])
    return f"{parts[2]}/{parts[4]}" == (value if "/" in value else f"{home}/{value}")


def token_matches(value: str, claims: Document) -> bool:
    """The table of AUTHZ 6.9, row by row."""
    issuer, subject = claims.get("iss"), claims.get("sub")
    if not isinstance(issuer, str) or not isinstance(subject, str):
        return False
    head, slash, tail = value.rpartition("/")
    if value == "*":
        return bool(issuer and subject)
    if value.startswith("*"):
        if not slash:
            return bool(issuer) and subject.endswith(value[1:])
        return (bool(issuer) if head == "*" else issuer.endswith(head[1:])) and subject == tail
    if value.endswith("*"):
        if not slash:
            return issuer.startswith(value[:-1]) and bool(subject)
        return issuer == head and (bool(subject) if tail == "*" else subject.startswith(tail[:-1]))
    return (issuer, subject) == ((head, tail) if slash else (value, ""))


def claim_matches(field: str, value: str, claims: Document) -> bool:
    names = {"request.auth.audiences": ["aud"], "request.auth.presenter": ["azp"]}.get(field)
    if names is None:
        names = re.findall(r"\[([^\[\]]*)\]", field)
    found: Any = claims
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    if isinstance(found, str) and names in (["scope"], ["permission"]):
        found = found.split()
    texts = found if isinstance(found, list) else [found]
    return any(isinstance(text, str) and full(pattern_of(value, ".+"), text) for text in texts)


def header_matches(name: str, value: str, request: Request) -> bool:
    special = {":method": "method", ":authority": "host", "host": "host"}.get(name)
    if special:
        lines = [request[special]]
    elif name == ":path":
        lines = [request.get("target") or request["path"]]
    else:
        lines = request.get("headers", {}).get(name, [])
    return any(full(pattern_of(value, ".*"), line) for line in lines)


def template_of(value: str) -> str:
    parts = re.split(r"(\{\*\*?\})", value)
    words = {"{*}": SEGMENT + "+", "{**}": f"(?:{SEGMENT}|/)*"}
    return "".join(words.get(part) or re.escape(part) for part in parts)


def pattern_of(value: str, presence: str) -> str:
    if value == "*":
        return presence
    if value.startswith("*"):
        return ".*" + re.escape(value[1:])
    if value.endswith("*"):
        return re.escape(value[:-1]) + ".*"
    return re.escape(value)


def full(pattern: str, text: str) -> bool:
    return re.fullmatch(pattern, text, re.DOTALL) is not None
