"""RequestAuthentication: whose tokens are believed, where they stand in a request, and what the app is told of them.

A document only says how a token is judged. That there must be one is said by an AuthorizationPolicy
(``requestPrincipals``): a request without a token passes this step, without claims (AUTHZ 12). The rules of all
documents that apply to a workload count together.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from config.nodes import Document, Node
from config.resources.authorization_model import NOWHERE, Place, TargetRef
from config.resources.scope import (
    ROOT_NAMESPACE,
    Labels,
    filled,
    place_of,
    read_envelope,
    read_selector,
    read_targets,
    refuse_dry_run,
)

KIND: Final = "RequestAuthentication"
MAX_RULES: Final = 4096  # Istio's CRD schema
DEFAULT_TIMEOUT: Final = 5.0  # seconds, Istio's
_LONGEST_TIMEOUT: Final = 60.0

# -- the document ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HeaderPlace:
    """A token stands in the header ``name`` (lower case) after ``prefix``, which includes its own space."""

    name: str
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class ClaimHeader:
    """The app is told ``claim`` in the header ``header`` (lower case)."""

    header: str
    claim: str


@dataclass(frozen=True, slots=True)
class JwtRule:
    """One entry of ``jwtRules``. ``issuer`` "": not compared. Keys: ``jwks`` (the text of a set), else ``jwks_uri``,
    else what the issuer's discovery document names. ``timeout``: seconds, of a fetch. No places at all: the usual
    ones (``Authorization: Bearer``, and the query parameter ``access_token``)."""

    issuer: str
    audiences: tuple[str, ...] = ()
    jwks_uri: str = ""
    jwks: str = ""
    from_headers: tuple[HeaderPlace, ...] = ()
    from_params: tuple[str, ...] = ()
    from_cookies: tuple[str, ...] = ()
    payload_header: str = ""
    claim_headers: tuple[ClaimHeader, ...] = ()
    forward_token: bool = False
    timeout: float = DEFAULT_TIMEOUT
    split_claims: tuple[str, ...] = ()
    place: Place = dataclasses.field(default=NOWHERE, compare=False)

    @property
    def outputs(self) -> frozenset[str]:
        """The headers that only this rule may fill."""
        payload = {self.payload_header} if self.payload_header else set()
        return frozenset(payload | {output.header for output in self.claim_headers})


@dataclass(frozen=True, slots=True)
class RequestAuthentication:
    name: str
    namespace: str
    rules: tuple[JwtRule, ...] = ()
    selector: Labels = ()
    target_refs: tuple[TargetRef, ...] = ()
    created: float = 0.0
    place: Place = dataclasses.field(default=NOWHERE, compare=False)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Guarded:
    """Who is called. ``service``: the workload's name; ``route``: the name of the route taken to it."""

    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    service: str = ""
    route: str = ""
    root_namespace: str = ROOT_NAMESPACE


def jwt_rules(documents: Iterable[RequestAuthentication], guarded: Guarded) -> tuple[JwtRule, ...]:
    """The rules for a workload and route, those of the oldest document first (AUTHZ 3, 12)."""
    found = [document for document in documents if _applies(document, guarded)]
    found.sort(key=lambda document: (document.created, document.name, document.namespace))
    return tuple(rule for document in found for rule in document.rules)


def _applies(document: RequestAuthentication, guarded: Guarded) -> bool:
    if document.target_refs:
        names = {True: guarded.service, False: guarded.route}
        named = any(ref.name == names[ref.kind == "Service"] for ref in document.target_refs)
        return named and document.namespace == guarded.namespace
    if document.namespace not in (guarded.namespace, guarded.root_namespace):
        return False
    return all(guarded.labels.get(key) == value for key, value in document.selector)


# -- reading --------------------------------------------------------------------------------------------------

_RULE_FIELDS: Final = (
    *("issuer", "audiences", "jwksUri", "jwks_uri", "jwks", "fromHeaders", "fromParams", "fromCookies"),
    *("outputPayloadToHeader", "outputClaimToHeaders", "forwardOriginalToken", "timeout", "spaceDelimitedClaims"),
    "presence",
)
# In the newest schema only; Istio does not act on it yet.
_LATER_PRESENCE: Final = {"REQUIRED": "write an AuthorizationPolicy: DENY with notRequestPrincipals: ['*']"}
_HEADER: Final = re.compile(r"[!#$%&'*+.^`|~0-9A-Za-z_-]{1,256}")
# What frames, routes or vouches for a request: a token must not be able to write it.
_NOT_OUTPUTS: Final = frozenset(
    (
        *("connection", "content-length", "cookie", "expect", "forwarded", "host", "http2-settings", "keep-alive"),
        *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "via", "traceparent", "tracestate"),
        *("x-forwarded-client-cert", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-request-id"),
        *("baggage", "grpc-timeout", "x-real-ip", "content-type", "content-encoding"),
    )
)
# Where a token may not stand: these are gone, or mean something else, when it is looked for.
_NOT_PLACES: Final = frozenset(
    ("connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "cookie")
)
_DURATION: Final = re.compile(r"(?:\d{1,6}(?:\.\d{1,9})?(?:ms|s|m|h))+")
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PRIVATE: Final = ("d", "p", "q", "dp", "dq", "qi", "k")
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


def parse_request_authentication(document: Document, default_namespace: str) -> RequestAuthentication | None:
    """The document's meaning; None when anything in it is an error (``document.problems`` says what)."""
    root = document.root
    if root is None:
        return None
    errors = document.problems.errors
    metadata, spec = read_envelope(document, root, KIND, default_namespace)
    refuse_dry_run(metadata, KIND)
    fields = filled(spec, ("selector", "targetRef", "targetRefs", "jwtRules")) if spec is not None else {}
    rules = fields["jwtRules"].sequence() if "jwtRules" in fields else []
    if len(rules) > MAX_RULES:
        rules[MAX_RULES].report("SW0110", f"a document has at most {MAX_RULES} rules")
    found = RequestAuthentication(
        name=metadata.name,
        namespace=metadata.namespace,
        rules=tuple(_rule(rule) for rule in rules[:MAX_RULES]),
        selector=read_selector(fields["selector"]) if "selector" in fields else (),
        target_refs=read_targets(fields),
        created=metadata.created,
        place=place_of(root),
    )
    return found if document.problems.errors == errors else None


def _rule(node: Node) -> JwtRule:
    if node.is_null:
        node.report("SW0106", "an empty rule", hint="name at least an issuer")
        return JwtRule("")
    fields = filled(node, _RULE_FIELDS)
    if "jwks_uri" in fields and "jwksUri" not in fields:  # its older name
        fields["jwksUri"] = fields.pop("jwks_uri")
    if "presence" in fields:
        fields["presence"].choice(("OPTIONAL",), "a presence", _LATER_PRESENCE)
    told = ("issuer", "jwksUri", "jwks")
    texts: dict[str, str] = {name: fields[name].string() or "" for name in told if name in fields}
    _check_keys(node, fields, texts)
    return JwtRule(
        issuer=texts.get("issuer", ""),
        audiences=_texts(fields.get("audiences"), "audience"),
        jwks_uri=texts.get("jwksUri", ""),
        jwks=texts.get("jwks", ""),
        from_headers=_header_places(fields.get("fromHeaders")),
        from_params=_texts(fields.get("fromParams"), "query parameter"),
        from_cookies=_texts(fields.get("fromCookies"), "cookie"),
        payload_header=_output(fields["outputPayloadToHeader"]) if "outputPayloadToHeader" in fields else "",
        claim_headers=_claim_headers(fields.get("outputClaimToHeaders")),
        forward_token=("forwardOriginalToken" in fields and fields["forwardOriginalToken"].boolean()) or False,
        timeout=_timeout(fields["timeout"]) if "timeout" in fields else DEFAULT_TIMEOUT,
        split_claims=_texts(fields.get("spaceDelimitedClaims"), "claim"),
        place=place_of(node),
    )


def _check_keys(node: Node, fields: Mapping[str, Node], texts: Mapping[str, str]) -> None:
    """AUTHZ 13: an issuer or a place of keys; and keys from one place only."""
    if not texts.get("issuer") and not texts.get("jwksUri"):
        node.report("SW0106", "neither issuer nor jwksUri", hint="whoever signs anything would be believed")
    named = [name for name in ("jwksUri", "jwks_uri", "jwks") if name in fields]
    if len(named) > 1:
        fields[named[1]].report_key("SW0106", f"'{named[0]}' and '{named[1]}' exclude each other", hint="keep one")
    if "jwksUri" in fields:
        _check_uri(fields["jwksUri"])
    elif "jwks" not in fields and texts.get("issuer") and split_uri(texts["issuer"]) is None:
        hint = "an issuer that is no https URL cannot be asked where its keys are: add jwksUri or jwks"
        fields["issuer"].report("SW0106", "where are the keys of this issuer?", hint=hint)
    if "jwks" in fields:
        _check_set(fields["jwks"])


def split_uri(text: str) -> SplitResult | None:
    """The parts of an absolute http(s) URL without user, fragment or odd characters; None for anything else."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    odd = not text.isascii() or any(c <= " " or c == "\x7f" for c in text) or "\\" in text
    if odd or parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment or "@" in parts.netloc:
        return None
    return parts if port is None or port > 0 else None


def is_protected(uri: str) -> bool:
    """Whether what is fetched there cannot be changed on its way: https, or this machine."""
    parts = split_uri(uri)
    return parts is not None and (parts.scheme == "https" or parts.hostname in _LOOPBACK)


def _check_uri(node: Node) -> None:
    text = node.string()
    if text is not None and split_uri(text) is None:
        node.report("SW0105", f"{node.shown} is not an http(s) URL", hint="e.g. https://id.example.com/jwks.json")


def _check_set(node: Node) -> None:
    """A set that is written in the document. Which of its keys can be used is said when it is loaded."""
    try:
        found: Any = json.loads(node.string() or "")
    except (ValueError, RecursionError):
        found = None
    keys = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(keys, list) or not keys or not all(isinstance(key, dict) for key in keys):
        node.report("SW0105", "this is not a JSON Web Key Set", hint='write {"keys": [...]}, with at least one key')
    elif any(name in key for key in keys for name in _PRIVATE):
        hint = "whoever can read this file can sign: take a new key, and write only its public part"
        node.warn("SW0302", "a private or shared key in jwks", hint=hint)


def _texts(node: Node | None, what: str) -> tuple[str, ...]:
    found = []
    for item in node.sequence() if node is not None else ():
        text = item.string()
        if text == "":
            item.report("SW0105", f"an empty {what}", hint="remove it")
        elif text is not None:
            found.append(text)
    return tuple(found)


def _header_places(node: Node | None) -> tuple[HeaderPlace, ...]:
    found = []
    for item in node.sequence() if node is not None else ():
        fields = filled(item, ("name", "prefix"))
        if "name" not in fields:
            item.report("SW0106", "'name' is missing here", hint="e.g. {name: x-token, prefix: 'Bearer '}")
            continue
        prefix = fields["prefix"].string() or "" if "prefix" in fields else ""
        found.append(HeaderPlace(_header(fields["name"], _NOT_PLACES, "a token cannot stand there"), prefix))
    return tuple(found)


def _claim_headers(node: Node | None) -> tuple[ClaimHeader, ...]:
    found = []
    for item in node.sequence() if node is not None else ():
        fields = filled(item, ("header", "claim"))
        if "header" not in fields or "claim" not in fields or not fields["claim"].string():
            item.report("SW0106", "header and claim are both needed", hint="e.g. {header: x-user, claim: sub}")
            continue
        found.append(ClaimHeader(_output(fields["header"]), fields["claim"].text))
    return tuple(found)


def _output(node: Node) -> str:
    name = _header(node, _NOT_OUTPUTS, "a token must not write it")
    if name.startswith("x-sidewall-"):
        node.report("SW0105", f"{node.shown} is ours", hint="take another name")
    return name


def _header(node: Node, refused: frozenset[str], why: str) -> str:
    text = (node.string() or "").lower()
    if not _HEADER.fullmatch(text):
        node.report("SW0105", f"{node.shown} is not the name of a header", hint="letters, digits, '-'")
    elif text.replace("_", "-") in refused:
        node.report("SW0105", f"{node.shown}: {why}", hint="take another header")
    return text


def _timeout(node: Node) -> float:
    text = node.string() or ""
    if not _DURATION.fullmatch(text):
        node.report("SW0105", f"{node.shown} is not a duration", hint="e.g. 5s")
        return DEFAULT_TIMEOUT
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    if not 0.001 <= seconds <= _LONGEST_TIMEOUT:
        node.report("SW0121", f"{node.shown} is out of range", hint="allowed: from 1ms to 60s")
    return seconds
