"""Least privilege from what was seen: ``sidewall policy learn``.

    learn(flows, to="shop/api") -> Learned          an ALLOW policy as text, and as the reader reads it

What was seen becomes grants: who may do what to which path (on which port, where the workload was called on several).
Grants that others make superfluous go, so that each of those left has a witness of its own: a call that no other
grant covers. Then grants are put together to rules only where their product is exactly what it was before: paths of
the same methods, callers of the same operations. So the document is irreducible: take away any value of it, and
a witness, which stands beside the value, is denied. That is a weaker claim than "the smallest possible".

It allows more than was seen where values of the policy language do: a path template or prefix stands for many
paths, and a port on which bytes were seen is open for HTTP as well. A path that cannot be written exactly (it ends
with a star) becomes the narrowest pattern that can, and ``wider`` says so.

The text is read again and every witness decided with it before it is returned: ``Contradiction`` would be our bug.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import Final, Literal, NamedTuple

from config.nodes import parse_yaml
from config.problems import Problems
from config.resources.authorization import MAX_RULES, AuthorizationPolicy, parse_authorization_policy
from proxy.observe.flows import is_made
from proxy.policy.analysis import Contradiction
from proxy.policy.engine import compile_policies, decide
from proxy.policy.facts import HTTP, WorkloadFacts
from proxy.policy.flows import FlowRecord, request_of_flow
from proxy.policy.learned_text import Operation, RuleText, Witness, calls_text, render
from proxy.policy.match import Key, Paths, PatternIndex, Template

PathStyle = Literal["exact", "template", "prefix"]

# A template: its last segment may be empty (AUTHZ 6.6).
_SEGMENT: Final = r"/(?:\{\*\}|[A-Za-z0-9\-._~%!$&'()+,;:@=]+)"
_TEMPLATE: Final = re.compile(f"(?:{_SEGMENT})*(?:/|{_SEGMENT})")


class CannotLearn(ValueError):
    """There is no call to learn from, or too much of it for one policy."""


class Grant(NamedTuple):
    """One thing that one caller may do. ``port`` 0: on any; ``method`` "": bytes."""

    caller: str | None
    port: int
    method: str
    pattern: str


@dataclass(slots=True)
class Seen:
    """The calls behind a grant. ``paths``: each with a call that had it."""

    count: int = 0
    paths: dict[str, FlowRecord] = field(default_factory=dict)

    def add(self, flow: FlowRecord) -> None:
        self.count += flow.count
        before = self.paths.get(flow.path)
        if before is None or (flow.last, flow.trace_id) > (before.last, before.trace_id):
            self.paths[flow.path] = flow


@dataclass(frozen=True, slots=True)
class Learned:
    """``text``: the document. ``witnesses``: calls that together need every value of it. ``calls``: how many calls it
    was learned from; ``left_out``: how many there were that had been denied. ``wider``: paths that could not be
    written as they were, with what was written instead."""

    text: str
    policy: AuthorizationPolicy
    workload: WorkloadFacts
    witnesses: tuple[FlowRecord, ...]
    calls: int
    left_out: int
    wider: tuple[tuple[str, str], ...]


def learn(
    flows: Iterable[FlowRecord],
    *,
    to: str,
    paths: PathStyle = "template",
    labels: Mapping[str, str] | None = None,
    name: str = "",
    include_denied: bool = False,
) -> Learned:
    """The policy for the workload ``to`` ("namespace/name"), selected by ``labels`` (label app by default). Calls
    that were denied are left out unless ``include_denied``. Raises CannotLearn, ValueError for another ``to``."""
    namespace, slash, short = to.partition("/")
    if not slash or not namespace or not short or "/" in short:
        raise ValueError(f"{to!r} is no workload: write namespace/name")
    workload = WorkloadFacts(namespace, dict(labels or {"app": short}), name=short)
    mine, left_out = _mine(flows, to, include_denied)
    if not mine:
        denied = f", but {calls_text(left_out)} that had been denied" if left_out else ""
        raise CannotLearn(f"nobody was seen calling {to}{denied}")
    grants = _irreducible(_grants(mine, paths))
    rules = _rules(grants)
    if len(rules) > MAX_RULES:
        raise CannotLearn(f"{to} has {len(rules)} kinds of callers, a policy at most {MAX_RULES} rules")
    wider = _wider(grants)
    text = render(
        name or f"{short}-learned", workload, rules, [*_said(mine, left_out, paths), *map(_said_wider, wider)]
    )
    policy = _read(text)
    witnesses = tuple(dict.fromkeys(flow for seen in grants.values() for flow in seen.paths.values()))
    _check(policy, workload, mine)
    return Learned(text, policy, workload, witnesses, sum(flow.count for flow in mine), left_out, wider)


def _mine(flows: Iterable[FlowRecord], to: str, include_denied: bool) -> tuple[list[FlowRecord], int]:
    """The calls to learn from, one for each kind, and how many others there were."""
    found: dict[tuple[object, ...], FlowRecord] = {}
    left_out = 0
    for flow in flows:
        if flow.workload != to:
            continue
        if flow.verdict == "denied" and not include_denied:
            left_out += flow.count
            continue
        key = (flow.caller, flow.protocol, flow.port, flow.method, flow.path, flow.template)
        before = found.get(key)
        found[key] = flow if before is None else before.and_(flow)
    return list(found.values()), left_out


# -- what was seen, as grants -------------------------------------------------------------------------------


def _grants(flows: list[FlowRecord], style: PathStyle) -> dict[Grant, Seen]:
    many = len({flow.port for flow in flows}) > 1
    raw = {(flow.caller, flow.port) for flow in flows if flow.protocol != HTTP}
    found: dict[Grant, Seen] = {}
    for flow in flows:
        port = flow.port if many or flow.protocol != HTTP else 0
        if (flow.caller, flow.port) in raw:
            grant = Grant(flow.caller, flow.port, "", "")  # a port is open for bytes and HTTP alike
        else:
            grant = Grant(flow.caller, port, flow.method, pattern_of(flow.path, style, shaped=flow.template))
        found.setdefault(grant, Seen()).add(flow)
    return found


@lru_cache(maxsize=4096)
def pattern_of(path: str, style: PathStyle, *, shaped: bool = False) -> str:
    """The value of ``paths`` that stands for ``path``. ``shaped``: the path is only known by its shape, so that what
    looks made in it must stay open whatever the style."""
    segments = path.split("/")
    made = [style != "exact" or shaped for _ in segments]
    made = [open_ and is_made(segment, shaped=shaped) for open_, segment in zip(made, segments, strict=True)]
    template = "/".join("{*}" if one else segment for one, segment in zip(made, segments, strict=True))
    odd = "/".join(segment if _is_plain(segment) else "{*}" for segment in template.split("/"))
    prefix = _prefix(path, made)
    cut = re.split("[{}]", path, maxsplit=1)[0] + "*"
    candidates = [prefix, template, odd, cut] if style == "prefix" else [template, odd, prefix, cut]
    return next((one for one in candidates if _says(one, path)), "*")


def _prefix(path: str, made: list[bool]) -> str:
    """Everything in the folder of the path, above the first segment that looks made."""
    segments = path.split("/")
    keep = segments[: made.index(True) if True in made else -1]
    return f"{'/'.join(keep)}/*" if len(keep) > 1 or True in made or not _is_plain(path) else path


def _is_plain(segment: str) -> bool:
    return segment == "{*}" or not ("*" in (segment[:1], segment[-1:]) or "{" in segment or "}" in segment)


def _says(pattern: str, path: str) -> bool:
    """Whether ``pattern`` means what it looks like, and matches ``path``."""
    if pattern == path:
        return _is_plain(path)
    if "{" not in pattern and "}" not in pattern:
        return Paths([pattern]).matches(path)
    return _TEMPLATE.fullmatch(pattern) is not None and Template(pattern).matches(path)


def _irreducible(grants: dict[Grant, Seen]) -> dict[Grant, Seen]:
    """Without the grants whose every call another one covers; of the others only the calls that no other covers.
    Narrow patterns are tried first, so that what is left are few wide ones."""
    sides: dict[tuple[str | None, int, str], dict[str, Seen]] = {}
    for grant, seen in grants.items():
        sides.setdefault(grant[:3], {})[grant.pattern] = seen
    found = {}
    for side, patterns in sides.items():
        for pattern, seen in _needed(patterns).items():
            found[Grant(*side, pattern)] = seen
    return found


def _needed(patterns: dict[str, Seen]) -> dict[str, Seen]:
    wild = _Wild(pattern for pattern in patterns if "*" in pattern)
    kept = dict(patterns)
    for pattern in sorted(patterns, key=lambda text: ("*" in text, -len(text), text)):
        seen = kept[pattern]
        own = {
            path: flow
            for path, flow in seen.paths.items()
            if not any(other != pattern and other in kept for other in wild.matching(path))
        }
        if own:
            kept[pattern] = Seen(seen.count, own)
        else:
            del kept[pattern]
    return kept


class _Wild:
    """Patterns with wildcards, found by how the path begins or ends."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._paths = {pattern: Paths([pattern]) for pattern in patterns}
        found: dict[Key, list[str]] = {}
        for pattern, compiled in self._paths.items():
            for key in compiled.keys() or ():
                found.setdefault(key, []).append(pattern)
        self._index: PatternIndex[list[str]] = PatternIndex()
        for key, some in found.items():
            self._index.put(key, some)

    def matching(self, path: str) -> list[str]:
        near = chain.from_iterable(self._index.find(path))
        return [pattern for pattern in near if self._paths[pattern].matches(path)]


def _wider(grants: dict[Grant, Seen]) -> tuple[tuple[str, str], ...]:
    odd = {
        (path, grant.pattern)
        for grant, seen in grants.items()
        for path in seen.paths
        if grant.pattern and not all(map(_is_plain, path.split("/")))
    }
    return tuple(sorted(odd))


# -- grants, put together -----------------------------------------------------------------------------------


def _rules(grants: dict[Grant, Seen]) -> list[RuleText]:
    """Callers of the same operations share a rule; nobody without a certificate shares one. Bytes have rules of
    their own, as a rule with methods does not count on TCP (AUTHZ 7)."""
    callers: dict[tuple[str | None, bool], dict[Grant, Seen]] = {}
    for grant, seen in sorted(grants.items(), key=lambda pair: (pair[0].caller or "", *pair[0][1:])):
        callers.setdefault((grant.caller, grant.method == ""), {})[grant] = seen
    shared: dict[object, dict[str | None, dict[Grant, Seen]]] = {}
    for (caller, _), own in callers.items():
        what = frozenset(grant[1:] for grant in own)
        shared.setdefault((caller is None, what), {})[caller] = own
    return [_rule(list(some.items())) for some in shared.values()]


def _rule(callers: list[tuple[str | None, dict[Grant, Seen]]]) -> RuleText:
    who = {caller: _witness(own.values()) for caller, own in callers}
    every: dict[Grant, Seen] = {}
    for _, own in callers:
        for grant, seen in own.items():
            key = Grant(None, *grant[1:])
            before = every.setdefault(key, Seen())
            before.count += seen.count
            before.paths.update(seen.paths)
    return RuleText(who, _operations(every))


_What = tuple[tuple[str, ...], tuple[str, ...]]  # methods, paths


def _operations(grants: dict[Grant, Seen]) -> list[Operation]:
    """Paths of the same methods share an operation, and so do ports of the same methods and paths."""
    ports: dict[int, dict[str, set[str]]] = {}
    for grant in grants:
        ports.setdefault(grant.port, {}).setdefault(grant.pattern, set()).add(grant.method)
    products: dict[_What, list[int]] = {}
    for port, patterns in ports.items():
        by_methods: dict[tuple[str, ...], list[str]] = {}
        for pattern, methods in patterns.items():
            by_methods.setdefault(tuple(sorted(methods)), []).append(pattern)
        for methods_, some in by_methods.items():
            products.setdefault((methods_, tuple(sorted(some))), []).append(port)
    return [_operation(what, some, grants) for what, some in sorted(products.items())]


def _operation(what: _What, ports: list[int], grants: dict[Grant, Seen]) -> Operation:
    def witness(port: int | None = None, method: str | None = None, pattern: str | None = None) -> Witness:
        return _witness(
            grants[Grant(None, p, m, t)]
            for p in (ports if port is None else [port])
            for m in (what[0] if method is None else [method])
            for t in (what[1] if pattern is None else [pattern])
        )

    return Operation(
        {method: witness(method=method) for method in what[0] if method},
        {pattern: witness(pattern=pattern) for pattern in what[1] if pattern},
        {port: witness(port=port) for port in sorted(ports) if port},
    )


def _witness(some: Iterable[Seen]) -> Witness:
    """How many calls, and the latest that no other grant covers."""
    seen = list(some)
    calls = [flow for one in seen for flow in one.paths.values()]
    return sum(one.count for one in seen), max(calls, key=lambda flow: (flow.last, flow.trace_id, flow.path))


# -- telling and checking -----------------------------------------------------------------------------------


def _said(flows: list[FlowRecord], left_out: int, style: PathStyle) -> list[str]:
    count = sum(flow.count for flow in flows)
    lines = [f"Learned from {calls_text(count)}, paths as {style}. What was not seen is not allowed."]
    lines.append("Irreducible, which is not the same as smallest: without any one of these values the call that is")
    lines.append("cited beside it would be denied.")
    if left_out:
        lines.append(f"Left out: {calls_text(left_out)} that had been denied.")
    if any(flow.protocol != HTTP for flow in flows):
        lines.append("A port where bytes were seen is open to its callers for HTTP as well.")
    if style == "exact" and any(flow.template for flow in flows):
        lines.append("Of some paths only the shape was recorded: {*} stands for what looked like an id.")
    return lines


def _said_wider(pair: tuple[str, str]) -> str:
    return f"{pair[0]} cannot be written exactly, {pair[1]} is wider."


def _read(text: str) -> AuthorizationPolicy:
    problems = Problems()
    found = [parse_authorization_policy(document, "default") for document in parse_yaml(text, "learned", problems)]
    if any(problem.code == "SW0110" for problem in problems):
        raise CannotLearn("what was seen is too much for one document: take wider paths, or a shorter time")
    if problems.errors or len(found) != 1 or found[0] is None:
        raise Contradiction(f"the learned policy cannot be read: {[str(problem) for problem in problems]}")
    return found[0]


def _check(policy: AuthorizationPolicy, workload: WorkloadFacts, flows: list[FlowRecord]) -> None:
    compiled = compile_policies([policy], workload)
    for flow in flows:
        if not decide(compiled, request_of_flow(flow)).allowed:
            raise Contradiction(f"the learned policy denies what was seen: {flow}")
