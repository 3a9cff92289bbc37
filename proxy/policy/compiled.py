"""Rules, compiled: documents become tests over an ``AccessRequest`` and tables that find the few rules to try.

A rule matches when one of its sources and one of its operations match; a source or operation matches when all
of its clauses hold; a clause holds when the fact matches one of its values, and a ``not`` clause when it
matches none. A fact the request lacks (no certificate, so no principal) makes the clause false and its ``not``
twin true (AUTHZ 4.2). Each condition of ``when`` is a clause of every source, or of every operation when it is
about the call (4.1). The routes that a policy hangs on are a clause of its every operation.

HTTP and TCP are compiled apart (AUTHZ 7), and no test is ever asked about a fact that its protocol lacks:
on TCP an ALLOW rule with an HTTP-only field disappears, and a DENY rule loses that field and applies with the
rest, to everything if nothing is left. Both close.

A ``RuleTable`` finds rules by facts: first by who calls, then, where more than a few rules are left, by what is
called. A rule is put under keys of which every matching request has one; a rule for which there are none
(only ``not`` clauses, stars in a namespace) is tried always. The tables only choose candidates. Which of the
matching rules is named does not depend on them: it is the first by namespace, policy name and rule index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

from config.resources.authorization import Action, AuthorizationPolicy, Clause, Entry, Rule
from proxy.policy.facts import AccessRequest
from proxy.policy.fields import FIELDS, asked_by, field_named
from proxy.policy.match import Key, PatternIndex

FROM: Final = "from.source"
TO: Final = "to.operation"
WHEN: Final = "when"

_SOURCE_TABLES: Final = ("principals", "serviceAccounts", "namespaces")
_OPERATION_TABLES: Final = ("paths", "hosts", "methods", "targetRefs")

_SMALL: Final = 4  # so many rules are tried one by one rather than looked up
_SCANNED: Final = 8  # rules looked at for each ALLOW rule that is wanted
_WIDEST: Final = 1024  # entries one rule may take in the tables; beyond, it is found by its source alone


class Condition:
    """One compiled test: a field with its values, a field with its ``not`` values, or one of the two lists of a
    condition of ``when``, whose ``key`` is given. ``clause`` is the list as it stands in the document, under its
    name there (``paths``, ``notPaths``; ``values``, ``notValues`` of a condition)."""

    __slots__ = ("_get", "_matches", "_namespace", "clause", "fact", "field", "key", "negative", "side")

    def __init__(self, clause: Clause, side: str, namespace: str = "", key: str = "") -> None:
        self.field = asked_by(key) if key else field_named(clause.fact)
        self.clause = clause
        self.side = side  # FROM, TO or WHEN
        self.key = key
        self.fact = self.field.name
        self.negative = clause.is_negative
        self._get = self.field.fact
        self._namespace = namespace
        # Made when first asked, as most rules never are; before, where making it can fail.
        self._matches: Callable[[Any], bool] | None = None
        if self.field.is_strict(clause.values):
            self._matches = self.pattern().matches

    def holds(self, request: AccessRequest) -> bool:
        value = self._get(request)
        if value is None:
            return self.negative
        matches = self._matches
        if matches is None:
            matches = self._matches = self.pattern().matches
        return matches(value) is not self.negative

    def pattern(self) -> Any:
        """The values as a test of the fact."""
        return self.field.compile(self.clause.values, self._namespace)

    def value(self, request: AccessRequest) -> Any:
        """What the request has for this clause."""
        return self._get(request)

    @property
    def shown(self) -> str:
        """The name of the clause for people: ``paths``, ``request.headers[x-team]``, ``source.ip notValues``."""
        return self.key + " notValues" * self.negative if self.key else self.clause.field


Conditions = tuple[Condition, ...]


class CompiledRule:
    """One rule for one protocol. ``rank`` orders the rules of all policies; ``index`` is the place in its policy."""

    __slots__ = ("index", "operations", "policy", "rank", "sources", "verdict")

    def __init__(
        self,
        policy: AuthorizationPolicy,
        index: int,
        sources: tuple[Conditions, ...],
        operations: tuple[Conditions, ...],
    ) -> None:
        self.policy = policy
        self.index = index
        self.rank = 0
        self.sources = sources
        self.operations = operations
        self.verdict: Any = None  # the Decision of a match (selection.py)

    def matches(self, request: AccessRequest) -> bool:
        # The tables have found the rule by its caller: what is called decides more often.
        return _any_holds(self.operations, request) and _any_holds(self.sources, request)

    def misses(self, request: AccessRequest) -> list[Condition]:
        """The clauses that fail in the source and in the operation that come nearest. Empty: it matches."""
        return _fewest(self.sources, request) + _fewest(self.operations, request)

    def distance(self, request: AccessRequest) -> tuple[bool, int, int]:
        """Orders rules by how near they come. A rule about other callers is farther than any about this one: to
        let one more caller in is the greater change."""
        misses = self.misses(request)
        return any(test.field.is_caller for test in misses), len(misses), self.rank

    @property
    def tests(self) -> Iterator[Condition]:
        return (test for side in (self.sources, self.operations) for tests in side for test in tests)

    def __str__(self) -> str:
        return f"{self.policy}#{self.index}"


def _any_holds(entries: tuple[Conditions, ...], request: AccessRequest) -> bool:
    if not entries:
        return True
    for tests in entries:
        for test in tests:
            if not test.holds(request):
                break
        else:
            return True
    return False


def _fewest(entries: tuple[Conditions, ...], request: AccessRequest) -> list[Condition]:
    failing = ([test for test in tests if not test.holds(request)] for tests in entries)
    return min(failing, key=len, default=[])


# -- compiling ----------------------------------------------------------------------------------------------


def compile_rules(
    policies: Sequence[AuthorizationPolicy], service: str = ""
) -> tuple[list[CompiledRule], list[CompiledRule]]:
    """The rules of ``policies``, ranked in that order, DENY before all others: those that can match on HTTP, and
    those that can on TCP. ``service`` is the workload's name. Raises ValueError for what the parser would refuse."""
    http: list[CompiledRule] = []
    tcp: list[CompiledRule] = []
    for policy in sorted(policies, key=lambda policy: policy.action != Action.DENY):
        routes = routes_of(policy, service)
        for index, rule in enumerate(policy.rules):
            compiled = _compile_rule(policy, index, rule, routes)
            compiled.rank = len(http)
            http.append(compiled)
            on_tcp = _without_http(compiled) if routes is None else None
            if on_tcp is not None:
                tcp.append(on_tcp)
    return http, tcp


def _compile_rule(
    policy: AuthorizationPolicy, index: int, rule: Rule, routes: tuple[str, ...] | None
) -> CompiledRule:
    about_caller, about_call = _compile_whens(policy, rule)
    if routes is not None:
        clause = Clause("targetRefs", routes, policy.place)
        about_call = (Condition(clause, WHEN), *about_call)
    sources = _compile_side(rule.sources, FROM, policy.namespace, about_caller)
    operations = _compile_side(rule.operations, TO, policy.namespace, about_call)
    return CompiledRule(policy, index, sources, operations)


def _without_http(rule: CompiledRule) -> CompiledRule | None:
    """The same rule on TCP (AUTHZ 7). None: it disappears."""
    if not any(test.field.http_only for test in rule.tests):
        return rule
    if rule.policy.action == Action.ALLOW:
        return None
    # An entry that loses all its clauses stays, as one that holds always; conditions that stood alone do not.
    sources = tuple(tuple(test for test in tests if not test.field.http_only) for tests in rule.sources)
    operations = tuple(tuple(test for test in tests if not test.field.http_only) for tests in rule.operations)
    found = CompiledRule(rule.policy, rule.index, sources, operations)
    found.rank = rule.rank
    return found


def _compile_side(
    entries: tuple[Entry, ...], side: str, namespace: str, whens: Conditions
) -> tuple[Conditions, ...]:
    """The entries, each with ``whens``, which stand alone where there are none (AUTHZ 4.1)."""
    if not entries:
        return (whens,) if whens else ()
    return tuple(
        (*(Condition(clause, side, namespace) for clause in entry.clauses), *whens) for entry in entries
    )


def _compile_whens(policy: AuthorizationPolicy, rule: Rule) -> tuple[Conditions, Conditions]:
    """The conditions about the caller and those about the call."""
    about_caller: list[Condition] = []
    about_call: list[Condition] = []
    for when in rule.conditions:
        side = about_call if asked_by(when.key).is_permission else about_caller
        for name, values in (("values", when.values), ("notValues", when.not_values)):
            if values:
                clause = Clause(name, values, when.place)
                side.append(Condition(clause, WHEN, policy.namespace, when.key))
    return tuple(about_caller), tuple(about_call)


def routes_of(policy: AuthorizationPolicy, service: str) -> tuple[str, ...] | None:
    """The routes on which ``policy`` hangs; None when it applies to the whole workload: it has no targets, or one is
    the Service of the workload's name."""
    if not policy.target_refs:
        return None
    if any(target.kind == "Service" and target.name == service for target in policy.target_refs):
        return None
    return tuple(target.name for target in policy.target_refs if target.kind != "Service")


def http_fields(rule: Rule) -> list[str]:
    """The names, as written, of the fields and conditions that exist for HTTP only."""
    clauses = (clause for entry in (*rule.sources, *rule.operations) for clause in entry.clauses)
    found = [clause.field for clause in clauses if field_named(clause.fact).http_only]
    return found + [when.key for when in rule.conditions if asked_by(when.key).http_only]


# -- finding ------------------------------------------------------------------------------------------------


class RuleTable:
    """Finds the first rule, by rank, that matches. See the module's text."""

    __slots__ = ("_denying", "_root", "rules")

    def __init__(self, rules: list[CompiledRule]) -> None:
        self.rules = rules
        self._denying = sum(rule.policy.action == Action.DENY for rule in rules)  # they come first
        self._root = _build(rules, "sources")

    def first_match(self, request: AccessRequest) -> CompiledRule | None:
        best: CompiledRule | None = None
        for rule in self._root.find(request):
            if (best is None or rule.rank < best.rank) and rule.matches(request):
                best = rule
        return best

    def near(self, request: AccessRequest, limit: int) -> list[CompiledRule]:
        """At most ``limit`` ALLOW rules among which to look for a near miss: those about this caller, if any."""
        named = (rule for node in self._root.named(request) for rule in node.rules)
        about_caller = [rule for rule in islice(named, limit * _SCANNED) if rule.policy.action == Action.ALLOW]
        return about_caller[:limit] or self.allowing(limit)

    def allowing(self, limit: int) -> list[CompiledRule]:
        """The first ``limit`` ALLOW rules."""
        return self.rules[self._denying : self._denying + limit]


class _Leaf:
    """A few rules, or such as no table can tell apart: all are candidates."""

    __slots__ = ("rules",)

    def __init__(self, rules: list[CompiledRule]) -> None:
        self.rules = rules

    def find(self, request: AccessRequest) -> list[CompiledRule]:
        return self.rules

    def named(self, request: AccessRequest) -> list[_Node]:
        return []


class _Table:
    """Rules by the values of some facts; ``rest`` are those under no value."""

    __slots__ = ("_exact", "_indexes", "_rest", "rules")

    def __init__(
        self,
        rules: list[CompiledRule],
        indexes: list[tuple[Callable[[AccessRequest], Any], PatternIndex[_Node]]],
        rest: _Node,
    ) -> None:
        self.rules = rules
        self._exact = [(fact, index.exact.get) for fact, index in indexes if index.is_exact]
        self._indexes = [(fact, index) for fact, index in indexes if not index.is_exact]
        self._rest = rest

    def find(self, request: AccessRequest) -> list[CompiledRule]:
        nodes = self.named(request)
        if not nodes:
            return self._rest.find(request)
        if len(nodes) == 1 and not self._rest.rules:
            return nodes[0].find(request)
        found = list(self._rest.find(request))
        for node in nodes:
            found += node.find(request)
        return found

    def named(self, request: AccessRequest) -> list[_Node]:
        found: list[_Node] = []
        for fact, get in self._exact:
            node = get(fact(request))
            if node is not None:
                found.append(node)
        for fact, index in self._indexes:
            value = fact(request)
            if value is not None:
                found += index.find(value)
        return found


_Node = _Leaf | _Table
_Groups = dict[str, dict[Key, list[CompiledRule]]]


def _build(rules: list[CompiledRule], side: str) -> _Node:
    if len(rules) <= _SMALL:
        return _Leaf(rules)
    by_source = side == "sources"
    groups, rest = _group(rules, by_source)
    if not groups:
        return _build(rest, "operations") if by_source else _Leaf(rest)
    indexes = []
    for name, keys in groups.items():
        index: PatternIndex[_Node] = PatternIndex()
        for key, members in keys.items():
            index.put(key, _build(members, "operations") if by_source else _Leaf(members))
        indexes.append((FIELDS[name].fact, index))
    return _Table(rules, indexes, _build(rest, "operations") if by_source else _Leaf(rest))


def _group(rules: list[CompiledRule], by_source: bool) -> tuple[_Groups, list[CompiledRule]]:
    groups: _Groups = {}
    rest = []
    order = _SOURCE_TABLES if by_source else _most_telling(rules)
    for rule in rules:
        keys = _keys(rule.sources, order) if by_source else _operation_keys(rule, order)
        for name, key in keys:
            groups.setdefault(name, {}).setdefault(key, []).append(rule)
        if not keys:
            rest.append(rule)
    return groups, rest


def _most_telling(rules: list[CompiledRule]) -> Sequence[str]:
    """The operation's facts, the one with the most different values first."""
    seen: dict[str, set[str]] = {name: set() for name in _OPERATION_TABLES}
    for rule in rules:
        for tests in rule.operations:
            for test in tests:
                if not test.negative and test.fact in seen:
                    seen[test.fact].update(test.clause.values)
    return sorted(_OPERATION_TABLES, key=lambda name: -len(seen[name]))


def _operation_keys(rule: CompiledRule, order: Sequence[str]) -> set[tuple[str, Key]]:
    keys = _keys(rule.operations, order)
    # A rule of many callers and many paths would take their product in the tables.
    callers = len(_keys(rule.sources, _SOURCE_TABLES)) if len(keys) > 1 else 1
    return keys if len(keys) * callers <= _WIDEST else set()


def _keys(entries: tuple[Conditions, ...], order: Sequence[str]) -> set[tuple[str, Key]]:
    """Keys of which every request that satisfies one of ``entries`` has at least one; empty: there are none."""
    found: set[tuple[str, Key]] = set()
    for tests in entries:
        keys = _entry_keys(tests, order)
        if not keys:
            return set()
        found.update(keys)
    return found


def _entry_keys(tests: Conditions, order: Sequence[str]) -> list[tuple[str, Key]]:
    for name in order:
        for test in tests:
            if test.fact == name and not test.negative and (keys := test.pattern().keys()):
                return [(name, key) for key in keys]
    return []
