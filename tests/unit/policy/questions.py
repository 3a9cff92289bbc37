"""Requests written on one line, as in ``corpus.yaml``."""

from __future__ import annotations

from proxy.policy.engine import AccessRequest, Decision


def ask(line: str) -> AccessRequest:
    """``CALLER METHOD PATH [host=..] [port=..]`` or ``CALLER TCP [port=..]``."""
    words = line.split()
    options = dict(word.split("=", 1) for word in words if word.startswith(("host=", "port=")))
    caller, method, *rest = [word for word in words if not word.startswith(("host=", "port="))]
    principal = None if caller == "-" else caller if "/" in caller or caller == "td" else f"td/ns/shop/sa/{caller}"
    tcp = method == "TCP"
    return AccessRequest(
        protocol="tcp" if tcp else "http",
        principal=principal,
        namespace=namespace_of(principal),
        port=int(options.get("port", "8080")),
        method="" if tcp else method,
        host="" if tcp else options.get("host", "api.shop"),
        path="" if tcp else rest[0],
    )


def namespace_of(principal: str | None) -> str | None:
    parts = (principal or "").split("/")
    return parts[2] if len(parts) == 5 and (parts[1], parts[3]) == ("ns", "sa") else None


def told(decision: Decision) -> str:
    """``allow shop/a#0``, ``deny``, ``audit shop/d#0``."""
    word = "audit" if decision.audited else "allow" if decision.allowed else "deny"
    return word if decision.policy is None else f"{word} {decision.policy}#{decision.rule}"
