"""Policies as boxes: each way in which a rule can match becomes a condition on the axes of a request, and values on
the axes become a request again.

The workload is an axis like any other (its namespace, each label), unless the question is about one workload. So
policies of a whole folder are compared at once, for every workload there could be.

This is a second reading of the documents beside ``proxy.policy.compiled``, made for proofs and not for speed. It
decides nothing: whatever is said on its ground is said after ``decide`` gave the same answer about the example.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, Final

from config.resources.authorization import Action, AuthorizationPolicy, Rule
from proxy.policy import analysis_domains as domains
from proxy.policy.analysis_axes import AddressAxis, Axis, Literal, Literals, PortAxis, SetAxis, TextAxis, net
from proxy.policy.analysis_search import MAX_EFFORT, Box, Space
from proxy.policy.analysis_words import ANY, SOME, STAR, Language, Pattern, TooComplex, bits, language, literal
from proxy.policy.compiled import routes_of
from proxy.policy.facts import HTTP, WorkloadFacts, fold, wire_text
from proxy.policy.match import parse_port

MAX_ALTERNATIVES: Final = 4096  # ways in which one rule may match

_NOT_SLASH: Final = ANY & ~bits("/")
_WITHIN: Final[Pattern] = ((_NOT_SLASH, True),)  # a star inside a segment
_SEGMENT: Final[Pattern] = ((_NOT_SLASH, False), (_NOT_SLASH, True))
# What {*} stands for (AUTHZ 6.6); {**} also takes slashes.
_TEMPLATE: Final = bits("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%!$&'()+,;:@=*")

_FIXED: Final[Mapping[str, Axis]] = {
    "peer": TextAxis(domains.PEER, optional=True),
    "method": TextAxis(domains.METHOD),
    "path": TextAxis(domains.PATH),
    "host": TextAxis(domains.HOST),
    "port": PortAxis(),
    "source_ip": AddressAxis(),
    "remote_ip": AddressAxis(),
    "destination_ip": AddressAxis(),
    "sni": TextAxis(domains.SNI, optional=True),
    "route": TextAxis(domains.any_text("route")),
    "namespace": TextAxis(domains.NAMESPACE),
    "name": TextAxis(domains.NAME),
    # Of a verified token these two are texts and never lists.
    "claim:iss": TextAxis(domains.CLAIM, optional=True),
    "claim:sub": TextAxis(domains.CLAIM, optional=True),
}


def _axis(name: str) -> Axis:
    found = _FIXED.get(name)
    if found is not None:
        return found
    if name.startswith("label:"):
        return TextAxis(domains.LABEL, optional=True)
    if name.startswith("header:"):
        return SetAxis(domains.HEADER)
    return SetAxis(domains.CLAIM)


_LOOSE: Final = TextAxis(domains.LOOSE_PATH)


def _axis_of_loose_paths(name: str) -> Axis:
    return _LOOSE if name == "path" else _axis(name)


def new_space(effort: int = MAX_EFFORT, *, strict_paths: bool = True) -> Space:
    """``effort``: steps that all questions to it may take together. ``strict_paths``: only canonical paths get as far
    as policy; not so with one of Istio's normalizations."""
    return Space(_axis if strict_paths else _axis_of_loose_paths, effort)


# -- patterns -----------------------------------------------------------------------------------------------


def _strings(values: Iterable[str], presence: Pattern) -> Language:
    return language(tuple(_string(value, presence) for value in values))


def _string(value: str, presence: Pattern) -> Pattern:
    if value == "*":
        return presence
    if value.startswith("*"):
        return STAR + literal(value[1:])
    if value.endswith("*"):
        return literal(value[:-1]) + STAR
    return literal(value)


@lru_cache(maxsize=16384)
def _language(fact: str, values: tuple[str, ...]) -> Language:
    """The texts that ``values`` of a field match, on the axis of that field, in whatever order they stand."""
    values = tuple(sorted(set(values)))
    if fact == "paths":
        return language(tuple(_path(wire_text(value)) for value in values))
    if fact == "hosts":
        return _strings((fold(wire_text(value)) for value in values), STAR)
    if fact == "namespaces":
        return language(tuple(pattern for value in values for pattern in _namespace(value)))
    if fact == "serviceAccounts":
        return language(tuple(_service_account(value) for value in values))
    if fact == "trustDomains":
        return language(tuple(pattern for value in values for pattern in _trust_domain(value)))
    return _strings(map(wire_text, values), STAR if fact in ("methods", "headers") else SOME)


def _path(value: str) -> Pattern:
    if "{*}" not in value and "{**}" not in value:
        return _string(value, SOME)
    pattern: Pattern = ()
    for piece in value.replace("{**}", "\0D\0").replace("{*}", "\0S\0").split("\0"):
        if piece == "S":
            pattern += ((_TEMPLATE, False), (_TEMPLATE, True))
        elif piece == "D":
            pattern += ((_TEMPLATE | bits("/"), True),)
        else:
            pattern += literal(piece)
    return pattern


def _in_segments(value: str) -> Pattern:
    pattern: Pattern = ()
    for number, piece in enumerate(wire_text(value).split("*")):
        pattern += (*(_WITHIN if number else ()), *literal(piece))
    return pattern


def _namespace(value: str) -> list[Pattern]:
    if "/" in value:
        return []  # no namespace has a slash
    return [_SEGMENT + literal("/ns/") + _in_segments(value) + literal("/sa/") + _SEGMENT]


def _service_account(value: str) -> Pattern:
    namespace, _, name = value.partition("/")
    return _SEGMENT + literal(f"/ns/{namespace}/sa/{name}")


def _trust_domain(value: str) -> list[Pattern]:
    if "/" in value:
        return []
    inside = _in_segments(value)
    return [inside + literal("/") + STAR, inside]


# -- clauses ------------------------------------------------------------------------------------------------

_AXES: Final = {
    "principals": "peer",
    "namespaces": "peer",
    "serviceAccounts": "peer",
    "trustDomains": "peer",
    "ipBlocks": "source_ip",
    "remoteIpBlocks": "remote_ip",
    "hosts": "host",
    "methods": "method",
    "paths": "path",
    "ports": "port",
}
_KEYS: Final = {
    "source.ip": "ipBlocks",
    "remote.ip": "remoteIpBlocks",
    "source.namespace": "namespaces",
    "source.serviceAccount": "serviceAccounts",
    "source.trustDomain": "trustDomains",
    "source.principal": "principals",
    "request.auth.principal": "requestPrincipals",
    "destination.port": "ports",
}
_NAMED: Final = {"request.auth.audiences": "claim:aud", "request.auth.presenter": "claim:azp"}
_HTTP_ONLY: Final = ("method", "path", "host", "header:", "claim:")

Parts = dict[str, Literals]


def is_http_only(axis: str) -> bool:
    return axis.startswith(_HTTP_ONLY)


def _alternatives(fact: str, values: tuple[str, ...], wanted: bool, policy: AuthorizationPolicy) -> list[Parts]:
    """The ways in which a field (``principals``) with ``values`` holds, or, with ``wanted`` False, does not."""
    if fact == "requestPrincipals":
        return _token_principals(values, wanted)
    if fact == "ports":
        return [{"port": ((frozenset(map(parse_port, values)), wanted),)}]
    if fact in ("ipBlocks", "remoteIpBlocks"):
        return [{_AXES[fact]: ((frozenset(map(net, values)), wanted),)}]
    if fact == "serviceAccounts":
        values = tuple(value if "/" in value else f"{policy.namespace}/{value}" for value in values)
    if fact not in _AXES:
        raise ValueError(f"{fact} cannot be analysed")
    return [{_AXES[fact]: ((_language(fact, values), wanted),)}]


def _condition(key: str, values: tuple[str, ...], wanted: bool, policy: AuthorizationPolicy) -> list[Parts]:
    """The same for a condition of ``when``."""
    if key in _KEYS:
        return _alternatives(_KEYS[key], values, wanted, policy)
    if key == "destination.ip":
        return [{"destination_ip": ((frozenset(map(net, values)), wanted),)}]
    if key == "connection.sni":
        return [{"sni": ((_language("sni", values), wanted),)}]
    if key in _NAMED:
        return [{_NAMED[key]: ((_language("claims", values), wanted),)}]
    name, _, rest = key.partition("[")
    if name == "request.headers":
        return _header(rest[:-1].lower(), values, wanted)
    if name == "request.auth.claims":
        return [{f"claim:{rest[:-1]}": ((_language("claims", values), wanted),)}]
    raise ValueError(f"{key} cannot be analysed")


def _header(name: str, values: tuple[str, ...], wanted: bool) -> list[Parts]:
    if name == ":method":
        return [{"method": ((_language("methods", values), wanted),)}]
    if name.startswith(":") or name == "host":
        raise TooComplex(f"request.headers[{name}] is not analysed")
    return [{f"header:{name}": ((_language("headers", values), wanted),)}]


def _token_principals(values: tuple[str, ...], wanted: bool) -> list[Parts]:
    """``iss`` and ``sub`` apart (AUTHZ 6.9)."""
    pairs = [tuple(map(_one, _issuer_and_subject(value))) for value in values]
    if wanted:
        return [{"claim:iss": ((issuer, True),), "claim:sub": ((subject, True),)} for issuer, subject in pairs]
    if 2 ** len(pairs) > MAX_ALTERNATIVES:
        raise TooComplex(f"notRequestPrincipals has {len(pairs)} values")
    ways = []
    for choice in product(("claim:iss", "claim:sub"), repeat=len(pairs)):
        parts: Parts = {}
        for axis, (issuer, subject) in zip(choice, pairs, strict=True):
            predicate = issuer if axis == "claim:iss" else subject
            parts[axis] = (*parts.get(axis, ()), (predicate, False))
        ways.append(parts)
    return ways


def _one(pattern: Pattern) -> Language:
    return language((pattern,))


def _issuer_and_subject(value: str) -> tuple[Pattern, Pattern]:
    value = wire_text(value)
    issuer, slash, subject = value.rpartition("/")
    if value == "*":
        return SOME, SOME
    if value.startswith("*"):
        if not slash:
            return SOME, _string(value, SOME)
        return _string(issuer, SOME), literal(subject)
    if value.endswith("*"):
        if not slash:
            return _string(value, SOME), SOME
        return literal(issuer), _string(subject, SOME)
    return (literal(issuer), literal(subject)) if slash else (literal(value), literal(""))


# -- rules --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Way:
    """One way in which a rule matches: by its ``source``-th and ``operation``-th entry (None: there are none)."""

    policy: AuthorizationPolicy
    rule: int
    source: int | None
    operation: int | None

    def __str__(self) -> str:
        return f"{self.policy}#{self.rule}"


def boxes_of(
    policies: Iterable[AuthorizationPolicy],
    action: Action,
    protocol: str,
    root: str,
    workload: WorkloadFacts | None,
) -> list[Box]:
    """Every way in which rules of ``action`` match on ``protocol``. Without a ``workload`` its namespace, name and
    labels are asked for as well; with one, ``policies`` must be those that select it. Raises TooComplex."""
    found = []
    for policy in policies:
        if policy.action != action or not is_enforced(policy):
            continue
        for scope, (index, rule) in product(scopes_of(policy, protocol, root, workload), enumerate(policy.rules)):
            found += rule_boxes(policy, index, rule, protocol, scope)
    return found


def is_enforced(policy: AuthorizationPolicy) -> bool:
    return not policy.dry_run


def scopes_of(
    policy: AuthorizationPolicy, protocol: str, root: str, workload: WorkloadFacts | None
) -> list[Parts]:
    """Where ``policy`` applies: to workloads (AUTHZ 3), or on routes, of which there are none on TCP. Without a
    ``workload``, for any; with one, which ``policy`` must select, only the routes are left to ask for."""
    if workload is not None:
        routes = routes_of(policy, workload.name)
        return [{}] if routes is None else _on_routes(routes, protocol, {})
    if policy.target_refs:
        inside: Parts = {"namespace": _is_one_of((policy.namespace,))}
        services = tuple(target.name for target in policy.target_refs if target.kind == "Service")
        found: list[Parts] = [{**inside, "name": _is_one_of(services)}] if services else []
        return found + _on_routes(tuple(t.name for t in policy.target_refs if t.kind != "Service"), protocol, inside)
    parts: Parts = {} if policy.namespace == root else {"namespace": _is_one_of((policy.namespace,))}
    for key, value in policy.selector:
        parts[f"label:{key}"] = _is_one_of((wire_text(value),))
    return [parts]


def _on_routes(routes: tuple[str, ...], protocol: str, inside: Parts) -> list[Parts]:
    return [{**inside, "route": _is_one_of(routes)}] if routes and protocol == HTTP else []


def _is_one_of(words: tuple[str, ...]) -> Literals:
    return ((language(tuple(map(literal, sorted(words)))), True),)


def rule_boxes(policy: AuthorizationPolicy, index: int, rule: Rule, protocol: str, scope: Parts) -> list[Box]:
    whens = list(_whens(policy, rule))
    sources = [_clauses(policy, entry) for entry in rule.sources] or [[]]
    operations = [_clauses(policy, entry) for entry in rule.operations] or [[]]
    if protocol != HTTP and policy.action == Action.ALLOW and _has_http(whens, *sources, *operations):
        return []
    found = []
    for s, source in enumerate(sources):
        for o, operation in enumerate(operations):
            way = Way(policy, index, s if rule.sources else None, o if rule.operations else None)
            for parts in _join([*source, *operation, *whens], scope, protocol):
                found.append(Box(parts, way))
            if len(found) > MAX_ALTERNATIVES:
                raise TooComplex(f"{way} can match in more than {MAX_ALTERNATIVES} ways")
    return found


def _clauses(policy: AuthorizationPolicy, entry: Any) -> list[list[Parts]]:
    return [_alternatives(c.fact, c.values, not c.is_negative, policy) for c in entry.clauses]


def _whens(policy: AuthorizationPolicy, rule: Rule) -> Iterator[list[Parts]]:
    for condition in rule.conditions:
        for values, wanted in ((condition.values, True), (condition.not_values, False)):
            if values:
                yield _condition(condition.key, values, wanted, policy)


def _has_http(*clauses: list[list[Parts]]) -> bool:
    return any(is_http_only(axis) for some in clauses for ways in some for parts in ways for axis in parts)


def _join(clauses: list[list[Parts]], scope: Parts, protocol: str) -> Iterator[Parts]:
    if protocol != HTTP:
        clauses = [ways for ways in clauses if not _has_http([ways])]
    for choice in product(*clauses):
        joined: dict[str, dict[Literal, None]] = {axis: dict.fromkeys(literals) for axis, literals in scope.items()}
        for parts in choice:
            for axis, literals in parts.items():
                joined.setdefault(axis, {}).update(dict.fromkeys(literals))
        yield {axis: tuple(literals) for axis, literals in joined.items()}


def meet_of(a: Box, b: Box) -> Box:
    """What is in both."""
    parts = dict(a.parts)
    for axis, literals in b.parts.items():
        parts[axis] = tuple(dict.fromkeys((*parts.get(axis, ()), *literals)))
    return Box(parts, (a.mark, b.mark))


def exactly(values: Mapping[str, Any]) -> Box:
    """The requests that have ``values`` on the axes; None: that lack the fact."""
    parts: Parts = {}
    for axis, value in values.items():
        if axis == "port":
            parts[axis] = ((frozenset((value,)), True),)
        elif axis.endswith("_ip"):
            parts[axis] = ((frozenset((net(value),)), True),)
        elif value is None:
            parts[axis] = ((language((STAR,)), False),)
        else:
            parts[axis] = ((_one(literal(value)), True),)
    return Box(parts)
