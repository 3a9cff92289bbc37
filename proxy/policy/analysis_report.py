"""A ``Diff`` in words and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from config.resources.authorization import AuthorizationPolicy
from proxy.policy.analysis import Change, Diff
from proxy.policy.analysis_example import Example
from proxy.policy.analysis_model import Way
from proxy.policy.engine import DENIED, NO_ALLOW, Decision
from proxy.policy.explain import plain, said
from proxy.policy.facts import HTTP, AccessRequest, WorkloadFacts

NOTHING: Final = "no request changes its verdict"

_FACTS: Final = {
    "peer": "principals, namespaces",
    "method": "methods",
    "path": "paths",
    "host": "hosts",
    "port": "ports",
    "source_ip": "ipBlocks",
    "remote_ip": "remoteIpBlocks",
    "destination_ip": "destination.ip",
    "sni": "connection.sni",
    "route": "targetRefs",
    "name": "targetRefs",
    "namespace": "namespace of the policy",
}


def fact_of(axis: str) -> str:
    """What a document calls the fact of an axis."""
    kind, _, name = axis.partition(":")
    if kind == "label":
        return f"selector label {name}"
    if kind == "header":
        return f"request.headers[{name}]"
    if kind == "claim":
        return f"request.auth.claims[{name}]"
    return _FACTS.get(axis, axis)


def request_line(request: AccessRequest, axes: frozenset[str] = frozenset()) -> str:
    """A request in one line: who, what, and those facts that ``axes`` name."""
    words = [plain(request.principal) if request.principal is not None else "(no certificate)"]
    words.append(f"{plain(request.method)} {plain(request.path)}" if request.protocol == HTTP else "TCP")
    for axis in ("host", "port", "source_ip", "remote_ip", "destination_ip", "sni", "route"):
        if axis in axes:
            words.append(f"{axis.replace('_', '-')}={plain(getattr(request, axis) or '(none)')}")
    words += [f"{plain(name)}: {said(request.header(name))}" for name in request.headers]
    if request.claims:
        words.append(f"claims={plain(dict(request.claims))}")
    return "  ".join(words)


def workload_line(workload: WorkloadFacts) -> str:
    labels = ", ".join(f"{plain(key)}={plain(value)}" for key, value in workload.labels.items())
    where = plain(str(workload)) if workload.name else f"a workload of namespace {plain(workload.namespace)}"
    return f"{where} with {labels}" if labels and not workload.name else where


def render_diff(found: Diff, *, limit: int = 50) -> list[str]:
    """Lines without line ends; at most ``limit`` classes of each kind, the rest is counted."""
    if not found:
        return [NOTHING]
    lines: list[str] = []
    for title, changes in (("newly allowed", found.allowed), ("newly denied", found.denied)):
        if changes:
            lines += [*([""] if lines else []), f"{title}: {_count(len(changes))}"]
            for change in changes[:limit]:
                lines += _render_change(change)
            if len(changes) > limit:
                lines.append(f"  and {len(changes) - limit} more")
    if found.unknown:
        lines += [*([""] if lines else []), f"not everything could be compared, there may be more: {found.unknown}"]
    return lines


def _count(number: int) -> str:
    return f"{number} class{'es' if number != 1 else ''} of requests"


def _render_change(change: Change) -> list[str]:
    way = change.closes or change.opens
    head = f"  {_way(way)}" if way is not None else "  where no ALLOW policy selects the workload any more"
    if change.axis:
        head += f"   by {fact_of(change.axis)}"
    example = change.example
    return [
        head,
        f"      e.g.  {request_line(example.request, example.axes)}",
        f"            to {workload_line(example.workload)}",
        f"      old   {verdict(change.old)}",
        f"      new   {verdict(change.new)}",
    ]


def _way(way: Way) -> str:
    place = _place(way.policy, way.rule)
    return f"{way.policy} rule {way.rule}" + (f"   {place}" if place else "")


def _place(policy: AuthorizationPolicy, rule: int) -> str:
    place = policy.rules[rule].place
    return str(place) if place.line else ""


def verdict(decision: Decision) -> str:
    """``denied: no ALLOW policy matched``, ``allowed by shop/a#0``."""
    rule = f"{decision.policy}#{decision.rule}" if decision.policy is not None else ""
    if decision.reason == DENIED:
        return f"denied by {rule}"
    if decision.reason == NO_ALLOW:
        near = f" (nearest {decision.nearest})" if decision.nearest else ""
        return f"denied: no ALLOW policy matched{near}"
    if decision.reason:
        return f"denied: {decision.reason}"
    return f"allowed by {rule}" if rule else "allowed: no ALLOW policy selects the workload"


def diff_data(found: Diff) -> dict[str, Any]:
    """The stable JSON form."""
    return {
        "apiVersion": "sidewall.dev/v1",
        "kind": "PolicyDiff",
        "changed": bool(found.allowed or found.denied),
        "unknown": found.unknown,
        "newlyAllowed": _changes(found.allowed),
        "newlyDenied": _changes(found.denied),
    }


def _changes(changes: Sequence[Change]) -> list[dict[str, Any]]:
    found = []
    for change in changes:
        way = change.closes or change.opens
        found.append(
            {
                "rule": str(way or ""),
                "place": _place(way.policy, way.rule) if way is not None else "",
                "by": fact_of(change.axis) if change.axis else "",
                "example": example_data(change.example),
                "old": decision_data(change.old),
                "new": decision_data(change.new),
            }
        )
    return found


def example_data(example: Example) -> dict[str, Any]:
    to = example.workload
    return {
        "to": {"namespace": to.namespace, "labels": dict(to.labels)},
        "request": example.request.canonical(),
        "facts": sorted(map(fact_of, example.axes)),
    }


def decision_data(decision: Decision) -> dict[str, Any]:
    allowed = decision.allowed and not decision.audited
    return {"allowed": allowed, "reason": decision.reason, "policy": decision.policy, "rule": decision.rule}
