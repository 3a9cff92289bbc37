"""A second reading of Istio's semantics, straight from the documents: slow, plain, sharing no code with the engine.

It works on the YAML as Python data, translates each value to a regular expression as Istio does for Envoy, and tries
every rule of every policy in turn.
"""

from __future__ import annotations

import re
from typing import Any

Document = dict[str, Any]
Request = dict[str, Any]

HTTP_ONLY = {"methods", "paths", "hosts"}


def judge(
    documents: list[Document], request: Request, *, namespace: str, labels: dict[str, str], root: str, default: str
) -> tuple[str, str | None]:
    """("allow" | "deny" | "audit", "namespace/name#rule" or None)."""
    selected = [d for d in documents if applies(d, namespace, labels, root)]
    for action in ("DENY", "ALLOW"):
        matching = sorted(
            (d["metadata"]["namespace"], d["metadata"]["name"], index)
            for d in selected
            if d["spec"].get("action", "ALLOW") == action
            for index, rule in enumerate(d["spec"].get("rules") or [])
            if rule_matches(rule, action, request)
        )
        if matching:
            verdict = "allow" if action == "ALLOW" else "audit" if default == "audit" else "deny"
            return verdict, "{}/{}#{}".format(*matching[0])
    any_allow = any(d["spec"].get("action", "ALLOW") == "ALLOW" for d in selected)
    if default == "istio" and not any_allow:
        return "allow", None
    return ("audit" if default == "audit" else "deny"), None


def applies(document: Document, namespace: str, labels: dict[str, str], root: str) -> bool:
    if document["metadata"]["namespace"] not in {namespace, root}:
        return False
    wanted = document["spec"].get("selector", {}).get("matchLabels", {})
    return all(key in labels and labels[key] == value for key, value in wanted.items())


def rule_matches(rule: Document, action: str, request: Request) -> bool:
    sources = [entry["source"] for entry in rule.get("from", [])]
    operations = [entry["operation"] for entry in rule.get("to", [])]
    if request["protocol"] == "tcp":
        used = {positive(name) for part in sources + operations for name in part if part[name]}
        if action == "ALLOW" and used & HTTP_ONLY:
            return False
        operations = [{k: v for k, v in part.items() if positive(k) not in HTTP_ONLY} for part in operations]
    return all(
        not parts or any(all(holds(name, part[name], request) for name in part) for part in parts)
        for parts in (sources, operations)
    )


def positive(name: str) -> str:
    return name[3].lower() + name[4:] if name.startswith("not") else name


def holds(name: str, values: list[str], request: Request) -> bool:
    if not values:
        return True
    field = positive(name)
    found = any(value_matches(field, value, request) for value in values)
    return not found if name.startswith("not") else found


def value_matches(field: str, value: str, request: Request) -> bool:
    if field == "ports":
        return int(value) == request["port"]
    if field == "namespaces":
        pattern = ".*".join(re.escape(part) for part in value.split("*"))
        return request["namespace"] is not None and full(pattern, request["namespace"])
    if field == "principals":
        if request["principal"] is None:
            return False
        uri = "spiffe://" + request["principal"]
        if value == "*":
            return full(".+", uri)
        if value.startswith("*"):
            return full("spiffe://.*" + re.escape(value[1:]), uri)
        return full(pattern_of("spiffe://" + value, ".+"), uri)
    text = request[{"methods": "method", "paths": "path", "hosts": "host"}[field]]
    if field == "hosts":
        value, text = value.lower(), text.lower()
    return full(pattern_of(value, ".+" if field == "paths" else ".*"), text)


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
