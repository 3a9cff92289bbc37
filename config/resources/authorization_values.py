"""What a value of a policy may be, and which values can never match: Istio's validation (AUTHZ 13), with places."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Final

from config.nodes import Node

MAX_ACCOUNTS: Final = 16
_LONGEST_ACCOUNT: Final = 320
_WITHOUT_STARS: Final = frozenset(
    {"namespaces", "serviceAccounts", "trustDomains", "ports", "ipBlocks", "remoteIpBlocks", "destination.ip"}
)
_PORT: Final = re.compile(r"0{0,26}[0-9]{1,5}")
_SEGMENT: Final = re.compile(r"\{\*\*?\}|[A-Za-z0-9\-._~%!$&'()+,;:@=]+")
_LAST: Final = re.compile(r"\{\*\*?\}|[A-Za-z0-9\-._~%!$&'()+,;:@=]*")


def check_value(fact: str, name: str, node: Node, text: str) -> None:
    if not text:
        node.report("SW0105", f"an empty value in '{name}'", hint="remove it")
        return
    note_unquoted(node)
    check = _CHECKS.get(fact)
    if check is not None and not check(node, text):
        return
    if fact not in _WITHOUT_STARS and _has_literal_star(text):
        hint = "one * at the beginning or at the end is a wildcard, no other"
        node.warn("SW0301", f"{node.shown} matches a text with a star in it only", hint=hint)
    why = _never_matches(fact, text)
    if why is not None:
        said = "clause excludes nothing" if name.startswith("not") else "rule can never match"
        node.warn("SW0301", f"{said}: {why[0]}", hint=why[1])


def _check_port(node: Node, text: str) -> bool:
    if not _PORT.fullmatch(text) or int(text) > 65535:
        node.report("SW0105", f"{node.shown} is not a port", hint="a number from 0 to 65535, no ranges")
    return False


def _check_block(node: Node, text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)  # bits beyond the prefix are ignored, as in Istio (AUTHZ 6.2)
    except ValueError:
        hint = "e.g. 10.20.0.0/16 or 2001:db8::/32"
        node.report("SW0105", f"{node.shown} is neither an address nor a block", hint=hint)
    if "%" in text:
        node.report("SW0105", f"{node.shown} has a zone: addresses of peers have none")
    return False


def _check_account(node: Node, text: str) -> bool:
    if "*" in text or text.count("/") > 1 or "" in text.split("/") or len(text) > _LONGEST_ACCOUNT:
        hint = "name, or namespace/name; no wildcards"
        node.report("SW0105", f"{node.shown} is not a service account", hint=hint)
    return False


def _check_trust_domain(node: Node, text: str) -> bool:
    if "/" in text or text.count("*") > 1 or "*" in text[1:-1]:
        node.report("SW0105", f"{node.shown} is not a trust domain", hint="one * at its beginning or end, no '/'")
    return False


def _check_path(node: Node, text: str) -> bool:
    """A plain path, or a template: whole segments {*} and, at the end only, {**} (AUTHZ 6.6, 13)."""
    if "{" not in text and "}" not in text:
        return True
    segments = text.split("/")
    inner, last = segments[1:-1], segments[-1]
    if not text.startswith("/") or any(not _SEGMENT.fullmatch(s) for s in inner) or not _LAST.fullmatch(last):
        hint = "whole segments {*} (one) and {**} (any number), beside letters, digits and -._~%!$&'()+,;:@="
        node.report("SW0105", f"{node.shown} is not a path template", hint=hint)
    elif "{**}" in segments and {"{*}", "{**}"} & set(segments[segments.index("{**}") + 1 :]):
        node.report("SW0105", f"{node.shown}: {{**}} must be the last wildcard")
    return False


_CHECKS: Final[Mapping[str, Callable[[Node, str], bool]]] = {
    "ports": _check_port,
    "ipBlocks": _check_block,
    "remoteIpBlocks": _check_block,
    "destination.ip": _check_block,
    "serviceAccounts": _check_account,
    "trustDomains": _check_trust_domain,
    "paths": _check_path,
}

# -- keys of when ---------------------------------------------------------------------------------------------

# Keys that ask for what a field asks for too, under the field's name.
_SAME: Final[Mapping[str, str]] = {
    "source.ip": "ipBlocks",
    "remote.ip": "remoteIpBlocks",
    "source.namespace": "namespaces",
    "source.serviceAccount": "serviceAccounts",
    "source.trustDomain": "trustDomains",
    "source.principal": "principals",
    "request.auth.principal": "requestPrincipals",
    "destination.port": "ports",
}
_PLAIN: Final = ("request.auth.audiences", "request.auth.presenter", "destination.ip", "connection.sni")
_HEADER: Final = re.compile(r":(method|path|authority)|[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")


def fact_of(key: str) -> str:
    """The fact that a key of ``when`` asks for: the field of the same meaning, or the key without brackets."""
    return _SAME.get(key) or key.partition("[")[0]


def check_key(node: Node) -> str | None:
    """A key of ``when`` as it is used, header names in lower case; None, with a problem, when it is none."""
    text = node.string() or ""
    if text in _SAME or text in _PLAIN:
        return text
    name, bracket, rest = text.partition("[")
    if bracket and rest.endswith("]") and name == "request.headers" and _HEADER.fullmatch(rest[:-1]):
        return text.lower()
    if bracket and rest.endswith("]") and name == "request.auth.claims" and rest[:-1].strip("[]"):
        return text
    if name == "experimental.envoy.filters." or text.startswith("experimental."):
        node.report("SW0120", f"{node.shown} is about Envoy's own filters", hint="no other proxy can know it")
        return None
    hint = "request.headers[NAME], request.auth.claims[NAME] and " + ", ".join([*_SAME, *_PLAIN])
    node.report("SW0105", f"{node.shown} is no key of a condition", hint=f"known: {hint}")
    return None


# -- what never matches ---------------------------------------------------------------------------------------


def _has_literal_star(text: str) -> bool:
    if text.startswith("*"):
        return "*" in text[1:]
    return "*" in text.removesuffix("*")


def _never_matches(fact: str, text: str) -> tuple[str, str] | None:
    """Why no request can match ``text``, and what to do; None when one can."""
    if fact == "principals" and text.startswith("spiffe://"):
        return "'spiffe://' does not belong in a principal", "drop the scheme, as in Istio"
    if fact == "methods" and text != text.upper():
        return "methods are in capital letters", f"write {text.upper()}"
    if fact == "paths":
        return _never_matches_path(text)
    return None


def _never_matches_path(text: str) -> tuple[str, str] | None:
    if text[0] not in "/*":
        return "a path begins with '/'", f"write /{text}"
    if "?" in text or "#" in text:
        return "the query is not part of the path", "end it before the '?' or '#'"
    return None


def note_unquoted(node: Node) -> None:
    if node.looks_like_other_type:
        node.warn("SW0107", f"{node.shown} should be in quotes", hint=f'quote it: "{node.text}"')


