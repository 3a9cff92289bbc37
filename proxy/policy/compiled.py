"""Rules, compiled: documents become tests over an ``AccessRequest`` and tables that find the few rules to try.

A rule matches when one of its sources and one of its operations match; a source or operation matches when all
of its clauses hold; a clause holds when the fact matches one of its values, and a ``not`` clause when it
matches none. A fact the request lacks (no certificate, so no principal) makes the clause false and its ``not``
twin true (AUTHZ 4.2).

HTTP and TCP are compiled apart (AUTHZ 7), and no test is ever asked about a fact that its protocol lacks:
on TCP an ALLOW rule with an HTTP-only field disappears, and a DENY rule loses that field and applies with the
rest, to everything if nothing is left. Both close.

A ``RuleTable`` finds rules by facts: first by who calls, then, where more than a few rules are left, by what is
called. A rule is put under keys of which every matching request has one; a rule for which there are none
(only ``not`` clauses, stars in a namespace) is tried always. The tables only choose candidates. Which of the
matching rules is named does not depend on them: it is the first by namespace, policy name and rule index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple

from config.resources.authorization import Action, AuthorizationPolicy, Clause, Entry, Rule
from proxy.policy.facts import HTTP, AccessRequest, fold, wire_text
from proxy.policy.match import Globs, Key, PatternIndex, Ports, Strings

FROM: Final = "from.source"
TO: Final = "to.operation"

_SMALL: Final = 4  # so many rules are tried one by one rather than looked up
_WIDEST: Final = 1024  # entries one rule may take in the tables; beyond, it is found by its source alone


class _Field(NamedTuple):
    fact: Callable[[AccessRequest], Any]  # None when the request lacks it
    compile: Callable[[Iterable[str]], Any]
    http_only: bool


def _filled(values: Iterable[str]) -> Strings:
    return Strings(map(wire_text, values), presence_is_filled=True)


def _present(values: Iterable[str]) -> Strings:
    return Strings(map(wire_text, values), presence_is_filled=False)


def _folded(values: Iterable[str]) -> Strings:
    return _present(fold(value) for value in values)


# What a policy can ask. A further field is one line here and one in config/resources/authorization.py.
FIELDS: Final = {
    "principals": _Field(attrgetter("principal"), _filled, False),
    "namespaces": _Field(attrgetter("namespace"), Globs, False),
    "hosts": _Field(attrgetter("host"), _folded, True),
    "methods": _Field(attrgetter("method"), _present, True),
    "paths": _Field(attrgetter("path"), _filled, True),
    "ports": _Field(attrgetter("port"), Ports, False),
}
_SOURCE_TABLES: Final = ("principals", "namespaces")
_OPERATION_TABLES: Final = ("paths", "hosts", "methods")


class Condition:
    """One compiled clause."""

    __slots__ = ("_get", "_matches", "clause", "fact", "negative", "patterns", "side")

    def __init__(self, clause: Clause, side: str) -> None:
        kind = FIELDS.get(clause.fact)
        if kind is None:  # the parser refuses it; here it must not become a rule that is wider than written
            raise ValueError(f"{clause.field} is not supported")
        self.clause = clause
        self.side = side  # FROM or TO
        self.fact = clause.fact
        self.negative = clause.is_negative
        self.patterns = kind.compile(clause.values)
        self._get = kind.fact
        self._matches = self.patterns.matches

    def holds(self, request: AccessRequest) -> bool:
        value = self._get(request)
        return (value is not None and self._matches(value)) is not self.negative

    def value(self, request: AccessRequest) -> str | int | None:
        """What the request has for this clause."""
        found: str | int | None = self._get(request)
        return found


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
        self.verdict: Any = None  # the Decision of a match, made once (engine.py)

    def matches(self, request: AccessRequest) -> bool:
        return _any_holds(self.sources, request) and _any_holds(self.operations, request)

    def misses(self, request: AccessRequest) -> list[Condition]:
        """The clauses that fail in the source and in the operation that come nearest. Empty: it matches."""
        return _fewest(self.sources, request) + _fewest(self.operations, request)

    def distance(self, request: AccessRequest) -> tuple[bool, int, int]:
        """Orders rules by how near they come. A rule about other callers is farther than any about this one: to
        let one more caller in is the greater change."""
        misses = self.misses(request)
        return bool(misses) and misses[0].side == FROM, len(misses), self.rank

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


def compile_rules(policies: Sequence[AuthorizationPolicy], protocol: str) -> list[CompiledRule]:
    """The rules of ``policies`` (which stand in order of rank) that can match on ``protocol``."""
    found: list[CompiledRule] = []
    for policy in policies:
        for index, rule in enumerate(policy.rules):
            compiled = _compile_rule(policy, index, rule, protocol)
            if compiled is not None:
                compiled.rank = len(found)
                found.append(compiled)
    return found


def _compile_rule(
    policy: AuthorizationPolicy, index: int, rule: Rule, protocol: str
) -> CompiledRule | None:
    if protocol != HTTP and policy.action == Action.ALLOW and http_fields(rule):
        return None
    sources = _compile_side(rule.sources, FROM, protocol)
    operations = _compile_side(rule.operations, TO, protocol)
    return CompiledRule(policy, index, sources, operations)


def _compile_side(entries: tuple[Entry, ...], side: str, protocol: str) -> tuple[Conditions, ...]:
    # An entry that lost all its clauses to TCP stays, as one that holds always.
    return tuple(
        tuple(
            Condition(clause, side)
            for clause in entry.clauses
            if protocol == HTTP or clause.fact not in FIELDS or not FIELDS[clause.fact].http_only
        )
        for entry in entries
    )


def http_fields(rule: Rule) -> list[str]:
    """The names, as written, of the fields that exist for HTTP only."""
    entries = (*rule.sources, *rule.operations)
    clauses = (clause for entry in entries for clause in entry.clauses)
    return [c.field for c in clauses if c.fact in FIELDS and FIELDS[c.fact].http_only]


# -- finding ------------------------------------------------------------------------------------------------


class RuleTable:
    """Finds the first rule, by rank, that matches. See the module's text."""

    __slots__ = ("_root", "rules")

    def __init__(self, rules: list[CompiledRule]) -> None:
        self.rules = rules
        self._root = _build(rules, "sources")

    def first_match(self, request: AccessRequest) -> CompiledRule | None:
        best: CompiledRule | None = None
        for rule in self._root.find(request):
            if (best is None or rule.rank < best.rank) and rule.matches(request):
                best = rule
        return best

    def near(self, request: AccessRequest, limit: int) -> list[CompiledRule]:
        """At most ``limit`` rules among which to look for a near miss: those about this caller, if any."""
        about_caller = [rule for node in self._root.named(request) for rule in node.rules[:limit]]
        return (about_caller or self.rules)[:limit]


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

    __slots__ = ("_indexes", "_rest", "rules")

    def __init__(
        self,
        rules: list[CompiledRule],
        indexes: list[tuple[Callable[[AccessRequest], Any], PatternIndex[_Node]]],
        rest: _Node,
    ) -> None:
        self.rules = rules
        self._indexes = indexes
        self._rest = rest

    def find(self, request: AccessRequest) -> list[CompiledRule]:
        found = list(self._rest.find(request))
        for node in self.named(request):
            found += node.find(request)
        return found

    def named(self, request: AccessRequest) -> list[_Node]:
        found: list[_Node] = []
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
            if test.fact == name and not test.negative and (keys := test.patterns.keys()):
                return [(name, key) for key in keys]
    return []
