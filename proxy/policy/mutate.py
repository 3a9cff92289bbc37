"""Clauses that no test case would miss.

``mutate`` takes away one thing at a time (a rule, a clause, one value of a clause) and judges the cases again: when
all still pass, nobody would notice that change. A change that changes no verdict at all cannot be noticed by any
test; the exact analysis tells those apart, and they are listed as superfluous and not held against the suites.
Where it gives up, it says so (``undecided``).

A change of one rule leaves all others as they are. So which rules match a case is found out once, and a mutant asks
its one rule anew, and the analysis only about what that rule gains or loses: two thousand mutants of five hundred
rules take seconds. A test compares both shortcuts with ``decide`` and ``find_change``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from config.resources.authorization import Action, AuthorizationPolicy, Condition, Entry, Place, Rule
from proxy.policy.analysis import ROOT_NAMESPACE, Judge, TooComplex, closed_by_istio, uncovered
from proxy.policy.analysis_model import boxes_of, is_enforced, meet_of, new_space, rule_boxes, scopes_of
from proxy.policy.analysis_search import Box
from proxy.policy.compiled import CompiledRule, compile_rules
from proxy.policy.engine import Default
from proxy.policy.facts import HTTP, TCP
from proxy.policy.suite import Case, Suite, run

_EFFORT: Final = 6_000_000  # steps to find out which of the changes that no case misses change anything

Policies = Sequence[AuthorizationPolicy]

Kind = Literal["rule", "clause", "value"]


@dataclass(frozen=True, slots=True)
class Mutant:
    """``policy`` with something less. ``what``: ``to.operation.methods``, ``... value DELETE``, ``rule 3``."""

    policy: AuthorizationPolicy
    mutated: AuthorizationPolicy
    kind: Kind
    rule: int
    what: str
    place: Place

    @property
    def changed(self) -> Rule | None:
        """The rule as it is in ``mutated``; None: it is not there any more."""
        return None if self.kind == "rule" else self.mutated.rules[self.rule]


@dataclass(frozen=True, slots=True)
class Mutation:
    """``survived``: no test misses them. ``superfluous``: no request does. ``undecided``: the analysis gave up."""

    tried: int
    killed: int
    survived: tuple[Mutant, ...]
    superfluous: tuple[Mutant, ...]
    undecided: tuple[Mutant, ...]

    @property
    def score(self) -> float:
        """Killed of those that could be killed, from 0 to 1."""
        able = self.tried - len(self.superfluous)
        return self.killed / able if able else 1.0


def mutants(policies: Policies) -> Iterator[Mutant]:
    """Every way to take away one thing."""
    for policy in policies:
        if policy.action not in (Action.ALLOW, Action.DENY) or not is_enforced(policy):
            continue
        for index, rule in enumerate(policy.rules):
            rest = (*policy.rules[:index], *policy.rules[index + 1 :])
            without = dataclasses.replace(policy, rules=rest)
            yield Mutant(policy, without, "rule", index, f"rule {index}", rule.place)
            for kind, what, place, changed in _lesser(rule):
                rules = (*policy.rules[:index], changed, *policy.rules[index + 1 :])
                yield Mutant(policy, dataclasses.replace(policy, rules=rules), kind, index, what, place)


_Lesser = tuple[Kind, str, Place, Rule]


def _lesser(rule: Rule) -> Iterator[_Lesser]:
    for kind, what, place, entries in _lesser_entries(rule.sources, "from.source"):
        yield kind, what, place, dataclasses.replace(rule, sources=entries)
    for kind, what, place, entries in _lesser_entries(rule.operations, "to.operation"):
        yield kind, what, place, dataclasses.replace(rule, operations=entries)
    for number, condition in enumerate(rule.conditions):
        for kind, what, changed in _lesser_condition(condition):
            kept = (changed,) if changed.values or changed.not_values else ()
            conditions = (*rule.conditions[:number], *kept, *rule.conditions[number + 1 :])
            yield kind, f"when {what}", condition.place, dataclasses.replace(rule, conditions=conditions)


def _lesser_entries(
    entries: tuple[Entry, ...], name: str
) -> Iterator[tuple[Kind, str, Place, tuple[Entry, ...]]]:
    for number, entry in enumerate(entries):
        at = name if len(entries) == 1 else name.replace(".", f"[{number}].", 1)
        for which, clause in enumerate(entry.clauses):
            for kind, suffix, values in _shorter(clause.values):
                kept = (dataclasses.replace(clause, values=values),) if values else ()
                clauses = (*entry.clauses[:which], *kept, *entry.clauses[which + 1 :])
                changed = dataclasses.replace(entry, clauses=clauses)
                new = (*entries[:number], changed, *entries[number + 1 :])
                yield kind, f"{at}.{clause.field}{suffix}", clause.place, new


def _lesser_condition(condition: Condition) -> Iterator[tuple[Kind, str, Condition]]:
    for kind, suffix, values in _shorter(condition.values):
        yield kind, f"{condition.key}{suffix}", dataclasses.replace(condition, values=values)
    for kind, suffix, values in _shorter(condition.not_values):
        yield kind, f"{condition.key} notValues{suffix}", dataclasses.replace(condition, not_values=values)


def _shorter(values: tuple[str, ...]) -> Iterator[tuple[Kind, str, tuple[str, ...]]]:
    """Without the whole clause, and without each of its values if there are others."""
    if values:
        yield "clause", "", ()
    if len(values) > 1:
        for number, value in enumerate(values):
            yield "value", f" value {value}", (*values[:number], *values[number + 1 :])


def mutate(policies: Policies, suites: Sequence[Suite], *, effort: int = _EFFORT) -> Mutation:
    """Try every mutant on ``suites``, which must all pass as things are (ValueError)."""
    if any(result.wrong for suite in suites for result in run(policies, suite)):
        raise ValueError("the suites do not pass")
    cases, ground = _cases(policies, suites), _Ground(policies, suites, effort)
    found: dict[str, list[Mutant]] = {"killed": [], "survived": [], "superfluous": [], "undecided": []}
    for mutant in mutants(policies):
        killed = _is_killed(mutant, cases)
        found["killed" if killed else ground.fate(mutant)].append(mutant)
    return Mutation(
        sum(map(len, found.values())),
        len(found["killed"]),
        tuple(found["survived"]),
        tuple(found["superfluous"]),
        tuple(found["undecided"]),
    )


_Name = tuple[str, int]  # of a rule: its policy and index


@dataclass(frozen=True, slots=True)
class _Judged:
    """A case, and what decides it. ``policies``: the names of those that select its workload."""

    case: Case
    policies: frozenset[str]
    denies: frozenset[_Name]
    allows: frozenset[_Name]
    is_open: bool

    def misses(self, mutant: Mutant, matches: bool) -> bool:
        """Whether the case fails when the rule of ``mutant`` ``matches`` it, or does not."""
        name = (str(mutant.policy), mutant.rule)
        denies, allows = self.denies - {name}, self.allows - {name}
        is_denial = mutant.policy.action == Action.DENY
        denied = bool(denies) or (is_denial and matches)
        allowed = bool(allows) or self.is_open or (not is_denial and matches)
        return (allowed and not denied) is not self.case.allow


def _cases(policies: Policies, suites: Sequence[Suite]) -> list[_Judged]:
    found = []
    for suite in suites:
        judge = Judge(policies, suite.default)
        for case in suite.cases:
            if case.question.refused:
                continue
            compiled, request = judge.compiled(case.workload), case.question.request
            rules = [rule for rule in compiled.tables[request.protocol].rules if rule.matches(request)]
            sides: dict[bool, set[_Name]] = {True: set(), False: set()}
            for rule in rules:
                sides[rule.policy.action == Action.DENY].add((str(rule.policy), rule.index))
            names = frozenset(map(str, compiled.policies))
            is_open = compiled.is_open(request)
            found.append(_Judged(case, names, frozenset(sides[True]), frozenset(sides[False]), is_open))
    return found


def _is_killed(mutant: Mutant, cases: Sequence[_Judged]) -> bool:
    name = (str(mutant.policy), mutant.rule)
    alone: dict[tuple[str, str], CompiledRule | None] = {}
    for judged in cases:
        if name[0] in judged.policies:
            request = judged.case.question.request
            key = (judged.case.workload.name, request.protocol)
            if key not in alone:
                alone[key] = _compiled(mutant, *key)
            rule = alone[key]
            matches = rule is not None and rule.matches(request)
            if matches is not (name in judged.denies or name in judged.allows) and judged.misses(mutant, matches):
                return True
    return False


def _compiled(mutant: Mutant, service: str, protocol: str) -> CompiledRule | None:
    if mutant.changed is None:
        return None
    http, tcp = compile_rules([dataclasses.replace(mutant.policy, rules=(mutant.changed,))], service)
    return next(iter(http if protocol == HTTP else tcp), None)


# -- whether anybody could notice ---------------------------------------------------------------------------


class _Ground:
    """All rules as ways in which they match, on both protocols, for every workload there could be."""

    def __init__(self, policies: Policies, suites: Sequence[Suite], effort: int) -> None:
        self._policies = policies
        self._defaults: list[Default] = list(dict.fromkeys(suite.default for suite in suites)) or ["deny"]
        self._space = new_space(effort)
        self._boxes: dict[tuple[Action, str], list[Box]] = {}

    def fate(self, mutant: Mutant) -> str:
        try:
            noticeable = any(self._is_noticeable(mutant, protocol) for protocol in (HTTP, TCP))
        except TooComplex:
            return "undecided"
        return "survived" if noticeable else "superfluous"

    def _is_noticeable(self, mutant: Mutant, protocol: str) -> bool:
        before = self._own(mutant, mutant.policy.rules[mutant.rule], protocol)
        after = self._own(mutant, mutant.changed, protocol) if mutant.changed is not None else []
        decides = self._lets_in if mutant.policy.action == Action.ALLOW else self._keeps_out
        return decides(mutant, protocol, before, after) or decides(mutant, protocol, after, before)

    def _lets_in(self, mutant: Mutant, protocol: str, more: list[Box], less: list[Box]) -> bool:
        """Whether ``more`` lets in what neither ``less`` nor any other rule does."""
        others = [*less, *self._others(mutant, protocol), *self._of(Action.DENY, protocol)]
        return uncovered(self._space, more, others) is not None

    def _keeps_out(self, mutant: Mutant, protocol: str, more: list[Box], less: list[Box]) -> bool:
        """Whether ``more`` keeps out what neither ``less`` nor any other rule does, and what would get in."""
        others = [*less, *self._others(mutant, protocol)]
        for box in more:
            for opening in self._of(Action.ALLOW, protocol):
                if self._space.may_meet(box, opening) and self._space.outside(meet_of(box, opening), others):
                    return True
            if "istio" in self._defaults:
                closed = closed_by_istio(self._policies, protocol, ROOT_NAMESPACE, None)
                if self._space.outside(box, [*others, *closed]) is not None:
                    return True
        return False

    def _own(self, mutant: Mutant, rule: Rule, protocol: str) -> list[Box]:
        scopes = scopes_of(mutant.policy, protocol, ROOT_NAMESPACE, None)
        return [box for scope in scopes for box in rule_boxes(mutant.policy, mutant.rule, rule, protocol, scope)]

    def _others(self, mutant: Mutant, protocol: str) -> list[Box]:
        """Of the same action, without the rule itself."""
        name = f"{mutant.policy}#{mutant.rule}"
        return [box for box in self._of(mutant.policy.action, protocol) if str(box.mark) != name]

    def _of(self, action: Action, protocol: str) -> list[Box]:
        found = self._boxes.get((action, protocol))
        if found is None:
            found = self._boxes[action, protocol] = boxes_of(self._policies, action, protocol, ROOT_NAMESPACE, None)
        return found
