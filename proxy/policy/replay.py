"""What other policies would have done to calls that were seen: ``sidewall policy replay``.

    replay(flows, old, new) -> Replay       newly denied and newly allowed calls, by caller, workload and route

Both answers come from ``decide``. What it is asked is what was recorded, and not all is: header values, tokens, the
client behind a proxy and the like are not in a ledger, and of most paths only the shape. So a replay tells what it
could not know as well: facts that the policies ask for and no record has (they count as absent), calls about which
the old policies say something else now than was recorded then, and rules of the new policies that no call came to.
A replay is about the past: "nothing would be denied" is said of the calls that were made, and ``diff`` of all that
could be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from config.resources.authorization import Action, AuthorizationPolicy
from proxy.observe.flows import shape
from proxy.policy.analysis import Judge, is_let_in
from proxy.policy.analysis_model import is_enforced
from proxy.policy.analysis_report import decision_data, verdict
from proxy.policy.engine import CompiledPolicies, Decision, Default, decide
from proxy.policy.explain import plain
from proxy.policy.facts import HTTP, TCP, WorkloadFacts
from proxy.policy.flows import NOT_RECORDED, FlowRecord, request_of_flow
from proxy.policy.learned_text import calls_text

_EXAMPLES: Final = 3  # trace ids of a group
_REMEMBERED: Final = 1 << 16  # verdicts

Policies = Sequence[AuthorizationPolicy]


@dataclass(slots=True)
class Group:
    """Calls of one caller to one route of one workload whose verdict changes in the same way. ``route``:
    ``GET /orders/{*}`` by the shape of the path, or ``TCP 5432``. ``traces``: the latest few trace ids."""

    caller: str | None
    workload: str
    route: str
    old: Decision
    new: Decision
    count: int = 0
    first: float = 0.0
    last: float = 0.0
    traces: tuple[str, ...] = ()

    def add(self, flow: FlowRecord) -> None:
        self.first = min(self.first or flow.first, flow.first)
        self.last = max(self.last, flow.last)
        self.count += flow.count
        if flow.trace_id and flow.trace_id not in self.traces:
            self.traces = (flow.trace_id, *self.traces)[:_EXAMPLES]


@dataclass(slots=True)
class Unseen:
    """What the replay could not know. ``facts``: asked for by the policies and in no record. ``shapes``: calls whose
    path is known by its shape only. ``drifted``: calls that the old policies judge otherwise than was recorded.
    ``rules``: ALLOW and DENY rules of the new policies that decided no call. ``workloads``: protected by the new
    policies by name, and never called."""

    facts: tuple[str, ...] = ()
    shapes: int = 0
    drifted: int = 0
    rules: tuple[tuple[AuthorizationPolicy, int], ...] = ()
    workloads: tuple[str, ...] = ()


@dataclass(slots=True)
class Replay:
    """``denied`` and ``allowed``: the groups whose verdict changes, most calls first. ``calls``, ``records``: how
    many were judged; ``first``, ``last``: when, in seconds of the epoch."""

    denied: tuple[Group, ...] = ()
    allowed: tuple[Group, ...] = ()
    calls: int = 0
    records: int = 0
    first: float = 0.0
    last: float = 0.0
    unseen: Unseen = field(default_factory=Unseen)


def replay(
    flows: Iterable[FlowRecord],
    old: Policies,
    new: Policies,
    *,
    workloads: Mapping[str, WorkloadFacts] | None = None,
    default: Default = "deny",
    root_namespace: str = "istio-system",
) -> Replay:
    """Judge every flow with ``old`` and with ``new``. ``workloads``: by "namespace/name", those whose labels are
    known; of others the label app is taken to be the name. ``default`` is that of both."""
    player = _Player(old, new, dict(workloads or {}), default, root_namespace)
    for flow in flows:
        player.add(flow)
    return player.result()


class _Player:
    def __init__(
        self, old: Policies, new: Policies, workloads: dict[str, WorkloadFacts], default: Default, root: str
    ) -> None:
        self._judges = Judge(old, default), Judge(new, default)
        self._new = new
        self._workloads = workloads
        self._root = root
        self._seen: dict[str, tuple[CompiledPolicies, CompiledPolicies]] = {}
        self._verdicts: dict[tuple[object, ...], tuple[Decision, Decision]] = {}
        self._groups: dict[tuple[object, ...], Group] = {}
        self._decided: set[tuple[str | None, int | None]] = set()
        self._found = Replay()

    def add(self, flow: FlowRecord) -> None:
        key = (
            *(flow.workload, flow.caller, flow.protocol, flow.port),
            *(flow.method, flow.host, flow.path, flow.source, flow.route),
        )
        pair = self._verdicts.get(key)
        if pair is None:
            if len(self._verdicts) >= _REMEMBERED:
                self._verdicts.clear()
            pair = self._verdicts[key] = self._judge(flow)
        self._count(flow, pair)

    def _judge(self, flow: FlowRecord) -> tuple[Decision, Decision]:
        before, after = self._seen.get(flow.workload) or self._compile(flow.workload)
        request = request_of_flow(flow)
        old, new = decide(before, request), decide(after, request)
        self._decided.add((new.policy, new.rule))
        return old, new

    def _compile(self, name: str) -> tuple[CompiledPolicies, CompiledPolicies]:
        namespace, _, short = name.partition("/")
        workload = self._workloads.get(name) or WorkloadFacts(namespace, {"app": short}, self._root, short)
        old, new = (judge.compiled(workload) for judge in self._judges)
        self._seen[name] = old, new
        return old, new

    def _count(self, flow: FlowRecord, pair: tuple[Decision, Decision]) -> None:
        found, (old, new) = self._found, pair
        found.records += 1
        found.calls += flow.count
        found.first = min(found.first or flow.first, flow.first)
        found.last = max(found.last, flow.last)
        before, after = is_let_in(old), is_let_in(new)
        if flow.template:
            found.unseen.shapes += flow.count
        if before is not (flow.verdict == "allowed"):
            found.unseen.drifted += flow.count
        if before is not after:
            route = route_of(flow)
            ways = (before, old.policy, old.rule, new.policy, new.rule)
            key = (flow.caller, flow.workload, route, *ways)
            group = self._groups.get(key)
            if group is None:
                group = self._groups[key] = Group(flow.caller, flow.workload, route, old, new)
            group.add(flow)

    def result(self) -> Replay:
        groups = sorted(
            self._groups.values(), key=lambda group: (-group.count, group.workload, group.caller or "", group.route)
        )
        found = self._found
        found.denied = tuple(group for group in groups if not is_let_in(group.new))
        found.allowed = tuple(group for group in groups if is_let_in(group.new))
        found.unseen.facts = self._not_recorded()
        found.unseen.rules = tuple(self._rules_withoutcalls_text())
        found.unseen.workloads = tuple(sorted(set(self._workloads) - set(self._seen)))
        return found

    def _not_recorded(self) -> tuple[str, ...]:
        """As the documents call them."""
        rules = [rule for pair in self._seen.values() for policies in pair for rule in policies.tables[HTTP].rules]
        asked = {test.key or test.fact for rule in rules for test in rule.tests if test.fact in NOT_RECORDED}
        return tuple(sorted(asked))

    def _rules_withoutcalls_text(self) -> list[tuple[AuthorizationPolicy, int]]:
        return [
            (policy, index)
            for policy in self._new
            if policy.action in (Action.ALLOW, Action.DENY) and is_enforced(policy)
            for index in range(len(policy.rules))
            if (str(policy), index) not in self._decided
        ]


def route_of(flow: FlowRecord) -> str:
    """``GET /orders/0`` by the shape of the path, ``TCP 5432``."""
    if flow.protocol == TCP:
        return f"TCP {flow.port}"
    return f"{flow.method} {flow.path if flow.template else shape(flow.path)}"


# -- telling ------------------------------------------------------------------------------------------------


def render_replay(found: Replay, *, limit: int = 50) -> list[str]:
    """Lines without line ends; at most ``limit`` groups of each kind, the rest is counted."""
    lines: list[str] = []
    for title, groups in (("newly denied", found.denied), ("newly allowed", found.allowed)):
        calls = sum(group.count for group in groups)
        if groups:
            lines += [f"{title}: {calls_text(calls)}", *_table(groups[:limit])]
            if len(groups) > limit:
                rest = sum(group.count for group in groups[limit:])
                lines.append(f"  and {len(groups) - limit} more groups, {calls_text(rest)}")
            lines.append("")
    if not found.denied and not found.allowed:
        lines += [f"no verdict changes: {calls_text(found.calls)} judged", ""]
    return lines + _unseen_lines(found)


def _table(groups: Sequence[Group]) -> list[str]:
    rows = [
        (str(group.count), plain(group.caller or "(no certificate)"), plain(group.workload), plain(group.route))
        for group in groups
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for (count, *words), group in zip(rows, groups, strict=True):
        cells = [word.ljust(width) for word, width in zip(words, widths[1:], strict=True)]
        lines.append(f"  {count:>{widths[0]}}  {'  '.join(cells)}".rstrip())
        lines.append(f"      old   {verdict(group.old)}")
        lines.append(f"      new   {verdict(group.new)}")
        if group.traces:
            lines.append(f"      e.g.  {', '.join(map(plain, group.traces))}")
    return lines


def _unseen_lines(found: Replay) -> list[str]:
    unseen = found.unseen
    lines = [f"judged: {calls_text(found.calls)} in {found.records} records"]
    if unseen.facts:
        lines.append(f"not recorded, so taken to be absent: {', '.join(unseen.facts)}")
    if unseen.shapes:
        lines.append(f"of {calls_text(unseen.shapes)} only the shape of the path was recorded")
    if unseen.drifted:
        lines.append(f"{calls_text(unseen.drifted)} the old policies judge otherwise than was recorded then")
    for policy, rule in unseen.rules:
        place = policy.rules[rule].place
        where = f"   {place}" if place.line else ""
        lines.append(f"not seen: a call that rule {rule} of {policy} decides{where}")
    lines += [f"not seen: any call to {plain(name)}" for name in unseen.workloads]
    return lines


def replay_data(found: Replay) -> dict[str, Any]:
    """The stable JSON form."""
    unseen = found.unseen
    return {
        "apiVersion": "sidewall.dev/v1",
        "kind": "PolicyReplay",
        "calls": found.calls,
        "records": found.records,
        "first": found.first,
        "last": found.last,
        "newlyDenied": [_group_data(group) for group in found.denied],
        "newlyAllowed": [_group_data(group) for group in found.allowed],
        "notSeen": {
            "facts": list(unseen.facts),
            "shapes": unseen.shapes,
            "drifted": unseen.drifted,
            "rules": [f"{policy}#{rule}" for policy, rule in unseen.rules],
            "workloads": list(unseen.workloads),
        },
    }


def _group_data(group: Group) -> dict[str, Any]:
    return {
        "caller": group.caller,
        "workload": group.workload,
        "route": group.route,
        "count": group.count,
        "first": group.first,
        "last": group.last,
        "traces": list(group.traces),
        "old": decision_data(group.old),
        "new": decision_data(group.new),
    }
