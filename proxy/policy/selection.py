"""Which policies apply to a workload (AUTHZ 3), compiled together: one immutable set with tables of rules for HTTP
and for TCP, a digest that names it, and the facts that its decisions can depend on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final, Literal, get_args

from config.resources.authorization import Action, AuthorizationPolicy, Rule
from proxy.policy.compiled import CompiledRule, RuleTable, compile_rules, routes_of
from proxy.policy.decision import DENIED, Decision
from proxy.policy.facts import HTTP, TCP, AccessRequest, WorkloadFacts
from proxy.policy.fields import header_asked_by

Default = Literal["deny", "istio", "audit"]

Tables = dict[str, RuleTable]  # by protocol

# Facts that ``DecisionCache`` knows; all that is in them follows from these few.
_QUICK: Final = frozenset(
    (
        *("principals", "namespaces", "serviceAccounts", "trustDomains"),
        *("methods", "hosts", "authority", "paths", "ports", "targetRefs"),
    )
)


class CompiledPolicies:
    """The policies that apply to one workload, ready to decide. Never changed after it was made.

    ``policies`` are the documents that select the workload, in order of rank. ``digest`` (64 hex digits) names
    them and the default. ``http_facts_used``: the facts of a request that an HTTP decision can depend on;
    ``headers_used``: the headers among them, in lower case; ``needs_more``: some of them are beyond what
    ``DecisionCache`` asks for. The tables hold the rules that are enforced, DENY before ALLOW (one look-up finds what
    counts), those of AUDIT, and in ``shadow`` those under dry run; None without such."""

    __slots__ = (
        "allow_routes",
        "audit",
        "default",
        "digest",
        "has_allow",
        "has_notes",
        "headers_used",
        "http_facts_used",
        "needs_more",
        "open",
        "policies",
        "shadow",
        "tables",
        "workload",
    )

    def __init__(
        self, policies: tuple[AuthorizationPolicy, ...], workload: WorkloadFacts, default: Default
    ) -> None:
        self.policies = policies
        self.workload = workload
        self.default: Default = default
        self.digest = _digest(policies, default)
        enforced = [policy for policy in policies if not policy.dry_run]
        dry = [policy for policy in policies if policy.dry_run]
        audit = [policy for policy in enforced if policy.action == Action.AUDIT]
        enforced = [policy for policy in enforced if policy.action != Action.AUDIT]
        self.tables: Tables = _tables(enforced, workload)
        self.audit: Tables | None = _tables(audit, workload) if audit else None
        self.shadow: Tables | None = _tables(dry, workload) if dry else None
        self.has_notes = bool(dry or audit)
        allowing = [routes_of(policy, workload.name) for policy in enforced if policy.action == Action.ALLOW]
        self.has_allow = None in allowing
        self.allow_routes = frozenset(route for routes in allowing for route in routes or ())
        self._note_facts()
        self.open = Decision(True, digest=self.digest)

    def _note_facts(self) -> None:
        tables = [some[HTTP] for some in (self.tables, self.audit, self.shadow) if some is not None]
        tests = [test for table in tables for rule in table.rules for test in rule.tests]
        used = {test.fact for test in tests}
        if any(policy.target_refs for policy in self.policies):
            used.add("targetRefs")  # also without a rule: an ALLOW policy denies on its routes
        self.http_facts_used = frozenset(used)
        headers = (header_asked_by(test.key) for test in tests if test.fact == "headers")
        self.headers_used = frozenset(name for name in headers if name is not None)
        self.needs_more = not used <= _QUICK

    def verdict(self, rule: CompiledRule) -> Decision:
        """The decision when ``rule`` is the one that matches: made once, when it first does."""
        found: Decision | None = rule.verdict
        if found is None:
            denies = rule.policy.action == Action.DENY
            audited = denies and self.default == "audit"
            found = rule.verdict = Decision(
                not denies or audited,
                DENIED if denies else "",
                policy=str(rule.policy),
                rule=rule.index,
                audited=audited,
                digest=self.digest,
            )
        return found

    def is_open(self, request: AccessRequest) -> bool:
        """Whether what no rule matches is allowed: no ALLOW policy applies to ``request``, and the default lets
        that pass (AUTHZ 2.2)."""
        if self.default != "istio" or self.has_allow:
            return False
        return request.protocol != HTTP or request.route not in self.allow_routes

    def __len__(self) -> int:
        return len(self.policies)


def compile_policies(
    policies: Iterable[AuthorizationPolicy], workload: WorkloadFacts, default: Default = "deny"
) -> CompiledPolicies:
    """Those of ``policies`` that select ``workload`` (AUTHZ 3), compiled. Raises ValueError for a document that the
    parser would have refused: a field, an action or a default that is not known must not be skipped."""
    if default not in get_args(Default):
        raise ValueError(f"{default!r} is not a default")
    selected = sorted((p for p in policies if selects(p, workload)), key=lambda p: (p.namespace, p.name))
    return CompiledPolicies(tuple(selected), workload, default)


def selects(policy: AuthorizationPolicy, workload: WorkloadFacts) -> bool:
    """Whether ``policy`` applies to ``workload``, or to a route of it: its namespace or the root one and every label
    it names, or its own namespace and a target."""
    if policy.target_refs:
        named = any(target.kind != "Service" or target.name == workload.name for target in policy.target_refs)
        return named and policy.namespace == workload.namespace
    if policy.namespace not in (workload.namespace, workload.root_namespace):
        return False
    return all(workload.labels.get(key) == value for key, value in policy.selector)


def applies(policy: AuthorizationPolicy, workload: WorkloadFacts, request: AccessRequest) -> bool:
    """Whether ``policy``, which selects ``workload``, is about the route of ``request``. No route is one of TCP."""
    if not policy.target_refs or (routes := routes_of(policy, workload.name)) is None:
        return True
    return request.protocol == HTTP and request.route in routes


def _tables(policies: list[AuthorizationPolicy], workload: WorkloadFacts) -> Tables:
    http, tcp = compile_rules(policies, workload.name)
    return {HTTP: RuleTable(http), TCP: RuleTable(tcp)}


def _digest(policies: tuple[AuthorizationPolicy, ...], default: str) -> str:
    """Of what the documents say, wherever it stands. In pieces, so that other threads get their turn."""
    found = hashlib.sha256(ascii(("sidewall policies 2", default)).encode())
    for p in policies:
        targets = [(target.kind, target.name) for target in p.target_refs]
        head = (p.namespace, p.name, str(p.action), sorted(p.selector), p.dry_run, targets)
        found.update(ascii((head, [_rule_content(rule) for rule in p.rules])).encode())
    return found.hexdigest()


def _rule_content(rule: Rule) -> object:
    entries = [
        [[(clause.field, clause.values) for clause in entry.clauses] for entry in side]
        for side in (rule.sources, rule.operations)
    ]
    return entries, [(when.key, when.values, when.not_values) for when in rule.conditions]
