"""Who may call this, and whom can that one reach: questions with the caller left open.

    who_can(policies, workload, asked) -> [Caller]       every way into one request
    Reach(policies, workloads).edges()                   who may call whom at all
    Reach(...).blast_radius(start) -> [Hop]              what one identity reaches, over others as well

An edge is there when at least one request by that caller is allowed, whatever its path or port; the example that
comes with it was judged by ``decide``. Hops compose: whoever takes over a workload may call as it does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from config.resources.authorization import Action, AuthorizationPolicy, Clause
from proxy.policy.analysis import Contradiction, Judge, closed_by_istio, is_let_in
from proxy.policy.analysis_example import Example, example_of
from proxy.policy.analysis_model import Way, boxes_of, exactly, meet_of, new_space, rule_boxes
from proxy.policy.analysis_search import Box, Space
from proxy.policy.engine import Default, selects
from proxy.policy.facts import HTTP, TCP, AccessRequest, WorkloadFacts
from proxy.policy.suite_facts import likely_trust_domain

ANYONE: Final = "any caller"
NO_CERTIFICATE: Final = "callers without a certificate"


@dataclass(frozen=True, slots=True)
class Caller:
    """One way in. ``who``: principals or namespaces as written; ``needs``: what else must hold; ``unless``: DENY
    rules that take something away from it."""

    who: str
    way: Way | None
    needs: tuple[str, ...]
    unless: tuple[str, ...]
    example: Example


def who_can(
    policies: Sequence[AuthorizationPolicy],
    workload: WorkloadFacts,
    asked: AccessRequest,
    *,
    default: Default = "deny",
    stated: Iterable[str] = ("method", "path"),
    strict_paths: bool = True,
) -> list[Caller]:
    """Everybody who may make the request that ``asked`` has in the facts ``stated``. ``strict_paths``: as for
    ``new_space``. Raises TooComplex."""
    ground = _Ground(policies, workload, asked.protocol, default, new_space(strict_paths=strict_paths))
    names = tuple(stated) if asked.protocol == HTTP else tuple(set(stated) & {"port"})
    fixed = exactly({name: getattr(asked, name) for name in names})
    found = []
    for way, box in ground.ways():
        for who, part in _callers(way, box):
            caller = ground.caller(who, way, meet_of(part, fixed), frozenset(names))
            if caller is not None:
                found.append(caller)
    return found


class _Ground:
    """The policies of one workload as boxes."""

    def __init__(
        self,
        policies: Sequence[AuthorizationPolicy],
        workload: WorkloadFacts,
        protocol: str,
        default: Default,
        space: Space,
    ) -> None:
        mine = [policy for policy in policies if selects(policy, workload)]
        self.workload = workload
        self.protocol = protocol
        self.space = space
        root = workload.root_namespace
        self.allow = boxes_of(mine, Action.ALLOW, protocol, root, workload)
        self.deny = boxes_of(mine, Action.DENY, protocol, root, workload)
        self.closed = [Box({})] if default != "istio" else closed_by_istio(mine, protocol, root, workload)
        self.judge = Judge(policies, default)

    def ways(self) -> Iterator[tuple[Way | None, Box]]:
        yield None, Box({})
        for box in self.allow:
            yield box.mark, box

    def example(self, way: Way | None, box: Box) -> Example | None:
        """A request of ``box`` that ``way`` lets in, None being the default. None: there is no such request. Raises
        TooComplex, Contradiction."""
        values = self.space.outside(box, self.deny if way is not None else [*self.deny, *self.closed])
        if values is None:
            return None
        found = example_of(values, self.protocol, self.workload, self.workload.root_namespace)
        if not is_let_in(self.judge(found)):
            raise Contradiction(f"{found.request!r} to {found.workload}")
        return found

    def caller(self, who: str, way: Way | None, box: Box, fixed: frozenset[str]) -> Caller | None:
        example = self.example(way, box)
        if example is None:
            return None
        unless = {str(deny.mark): None for deny in self.deny if self.space.possible(meet_of(box, deny))}
        needs = tuple(_needs(way, fixed)) if way is not None else ()
        return Caller(who, way, needs, tuple(unless), example)


def _callers(way: Way | None, box: Box) -> Iterator[tuple[str, Box]]:
    """``box`` for each principal that its source names, or whole."""
    if way is None or way.source is None:
        yield ANYONE, box
        return
    rule = way.policy.rules[way.rule]
    clauses = rule.sources[way.source].clauses
    listed = next((c for c in clauses if c.fact == "principals" and not c.is_negative), None)
    if listed is None:
        about = [clause_text(c) for c in clauses if c.fact in _CALLER]
        yield "; ".join(about) or ANYONE, box
        return
    for value in listed.values:
        one = Clause("principals", (value,))
        yield value, meet_of(box, exactly_clause(way.policy, one))


_CALLER: Final = ("principals", "namespaces", "serviceAccounts", "trustDomains")
_AXIS: Final = {"methods": "method", "paths": "path", "hosts": "host", "ports": "port"}


def exactly_clause(policy: AuthorizationPolicy, clause: Clause) -> Box:
    from config.resources.authorization import Entry, Rule

    rule = Rule(sources=(Entry((clause,)),))
    return rule_boxes(policy, 0, rule, HTTP, {})[0]


def clause_text(clause: Clause) -> str:
    return f"{clause.field}: {', '.join(clause.values)}"


def _needs(way: Way, fixed: frozenset[str]) -> Iterator[str]:
    rule = way.policy.rules[way.rule]
    source = rule.sources[way.source].clauses if way.source is not None else ()
    operation = rule.operations[way.operation].clauses if way.operation is not None else ()
    for clause in (*source, *operation):
        named = clause.fact in _CALLER and not (clause.is_negative or clause.fact != "principals")
        if not named and _AXIS.get(clause.fact) not in fixed:
            yield clause_text(clause)
    for condition in rule.conditions:
        for word, values in (("", condition.values), ("not ", condition.not_values)):
            if values:
                yield f"{condition.key}: {word}{', '.join(values)}"


# -- who reaches whom ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Node:
    """A workload and the identity under which it calls. ``principal`` None: callers without a certificate."""

    name: str
    principal: str | None
    workload: WorkloadFacts | None


@dataclass(frozen=True, slots=True)
class Edge:
    caller: Node
    callee: Node
    rule: str
    example: Example


@dataclass(frozen=True, slots=True)
class Hop:
    """``node`` is reached in ``distance`` steps, the last of them ``edge``."""

    node: Node
    distance: int
    edge: Edge


class Reach:
    """Edges between workloads, found when first asked for."""

    def __init__(
        self,
        policies: Sequence[AuthorizationPolicy],
        nodes: Sequence[Node],
        *,
        default: Default = "deny",
        strict_paths: bool = True,
    ) -> None:
        """``strict_paths``: as for ``new_space``."""
        space = new_space(strict_paths=strict_paths)
        self.nodes = tuple(nodes)
        self._grounds = {
            node.name: [_Ground(policies, node.workload, protocol, default, space) for protocol in (HTTP, TCP)]
            for node in nodes
            if node.workload is not None
        }
        self._known: dict[str, list[Edge]] = {}

    def edges(self) -> list[Edge]:
        return [edge for node in self.nodes for edge in self.edges_of(node)]

    def edges_of(self, caller: Node) -> list[Edge]:
        """Whom ``caller`` may call. Raises TooComplex."""
        found = self._known.get(caller.name)
        if found is None:
            callees = [node for node in self.nodes if node.workload is not None and node != caller]
            edges = (self._edge(caller, callee) for callee in callees)
            found = self._known[caller.name] = [edge for edge in edges if edge is not None]
        return found

    def _edge(self, caller: Node, callee: Node) -> Edge | None:
        fixed = exactly({"peer": caller.principal})
        for ground in self._grounds[callee.name]:
            for way, box in ground.ways():
                if ground.space.may_meet(box, fixed):
                    example = ground.example(way, meet_of(box, fixed))
                    if example is not None:
                        return Edge(caller, callee, str(way) if way is not None else "no ALLOW policy", example)
        return None

    def blast_radius(self, start: Node) -> list[Hop]:
        """All that ``start`` reaches, nearest first, each by a shortest way."""
        found: dict[str, Hop] = {}
        queue = deque([(start, 0)])
        while queue:
            node, distance = queue.popleft()
            for edge in self.edges_of(node):
                if edge.callee.name not in found and edge.callee != start:
                    found[edge.callee.name] = Hop(edge.callee, distance + 1, edge)
                    queue.append((edge.callee, distance + 1))
        return list(found.values())


def nodes_of(
    policies: Sequence[AuthorizationPolicy], known: Mapping[str, WorkloadFacts], trust_domain: str = ""
) -> list[Node]:
    """The workloads that ``known`` names, and those that the policies speak of: by a selector with ``app``, or by a
    principal of the form ``td/ns/NAMESPACE/sa/NAME``. A workload NAMESPACE/NAME calls under that identity."""
    domain = trust_domain or likely_trust_domain(policies)
    nodes: dict[str, Node] = {}

    def add(namespace: str, name: str, labels: Mapping[str, str], principal: str = "") -> None:
        key = f"{namespace}/{name}"
        before = nodes.get(key)
        if before is not None and before.workload is not None:
            labels = {**before.workload.labels, **labels}
        facts = known.get(key) or WorkloadFacts(namespace, {"app": name, **labels}, name=name)
        nodes[key] = Node(key, principal or f"{domain}/ns/{namespace}/sa/{name}", facts)

    for facts in known.values():
        add(facts.namespace, facts.name, facts.labels)
    for policy in policies:
        labels = dict(policy.selector)
        if "app" in labels:
            add(policy.namespace, labels["app"], labels)
    for principal in sorted(_principals(policies)):
        parts = principal.split("/")
        if len(parts) == 5 and (parts[1], parts[3], parts[0]) == ("ns", "sa", domain):
            add(parts[2], parts[4], {}, principal)
        else:
            nodes.setdefault(principal, Node(principal, principal, None))
    return sorted(nodes.values(), key=lambda node: node.name)


def _principals(policies: Sequence[AuthorizationPolicy]) -> set[str]:
    return {
        value
        for policy in policies
        for rule in policy.rules
        for entry in rule.sources
        for clause in entry.clauses
        if clause.fact == "principals" and not clause.is_negative
        for value in clause.values
        if "*" not in value and not value.startswith("spiffe://")
    }


def anyone(trust_domain: str) -> list[Node]:
    """Those whom no policy names: a caller without certificate, and one nobody has heard of."""
    stranger = f"{trust_domain}/ns/stranger-zz/sa/stranger-zz"
    return [Node(NO_CERTIFICATE, None, None), Node(ANYONE, stranger, None)]


def edge_data(edge: Edge) -> dict[str, Any]:
    return {"from": edge.caller.name, "to": edge.callee.name, "rule": edge.rule}
