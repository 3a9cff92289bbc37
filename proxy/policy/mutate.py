"""Clauses that no test case would miss.

``mutate`` takes away one thing at a time (a rule, a clause, one value of a clause) and runs the suites again: when
all still pass, nobody would notice that change. A change that changes no verdict at all cannot be noticed by any
test; ``analysis`` tells those apart exactly, and they are listed as superfluous and not held against the suites.
Where it gives up, it says so (``undecided``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from config.resources.authorization import Action, AuthorizationPolicy, Condition, Entry, Place, Rule
from proxy.policy.analysis import TooComplex, find_change, is_let_in
from proxy.policy.analysis_model import is_enforced
from proxy.policy.engine import Default, compile_policies, decide
from proxy.policy.facts import AccessRequest
from proxy.policy.suite import Case, Suite, run

_EFFORT: Final = 200_000  # steps to find out whether a change that no case misses changes anything

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


def mutate(policies: Policies, suites: Sequence[Suite]) -> Mutation:
    """Try every mutant on ``suites``, which must all pass as things are (ValueError)."""
    if any(result.wrong for suite in suites for result in run(policies, suite)):
        raise ValueError("the suites do not pass")
    trial = _Trial(policies, suites)
    found: dict[str, list[Mutant]] = {"killed": [], "survived": [], "superfluous": [], "undecided": []}
    for mutant in mutants(policies):
        found[trial.fate(mutant)].append(mutant)
    return Mutation(
        sum(map(len, found.values())),
        len(found["killed"]),
        tuple(found["survived"]),
        tuple(found["superfluous"]),
        tuple(found["undecided"]),
    )


class _Trial:
    def __init__(self, policies: Policies, suites: Sequence[Suite]) -> None:
        self._policies = policies
        self._groups = _grouped(suites)
        self._defaults: list[Default] = list(dict.fromkeys(suite.default for suite in suites)) or ["deny"]

    def fate(self, mutant: Mutant) -> str:
        changed = [mutant.mutated if policy is mutant.policy else policy for policy in self._policies]
        for (default, _), cases in self._groups.items():
            compiled = compile_policies(changed, cases[0].workload, default)
            if mutant.mutated in compiled.policies and any(_misses(compiled, case) for case in cases):
                return "killed"
        others = [policy for policy in self._policies if policy is not mutant.policy]
        before, after = [mutant.policy, *others], [mutant.mutated, *others]
        try:
            found = [find_change(before, after, default=name, effort=_EFFORT) for name in self._defaults]
        except TooComplex:
            return "undecided"
        return "survived" if any(change is not None for change in found) else "superfluous"


def _grouped(suites: Sequence[Suite]) -> dict[tuple[Default, Any], list[Case]]:
    groups: dict[tuple[Default, Any], list[Case]] = {}
    for suite in suites:
        for case in suite.cases:
            if not case.question.refused:
                to = case.workload
                key = (to.namespace, to.name, to.root_namespace, tuple(sorted(to.labels.items())))
                groups.setdefault((suite.default, key), []).append(case)
    return groups


def _misses(compiled: Any, case: Case) -> bool:
    request: AccessRequest = case.question.request
    return is_let_in(decide(compiled, request)) is not case.allow
