"""Which rules of the policies no test case touches. Answered by the compiled rules that decide. Its stricter sister
is ``mutate``: which clauses no case would miss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from config.resources.authorization import Action, AuthorizationPolicy, Place
from proxy.policy.analysis import Judge
from proxy.policy.analysis_model import is_enforced
from proxy.policy.suite import Case, Suite

Policies = Sequence[AuthorizationPolicy]


@dataclass(frozen=True, slots=True)
class Covered:
    """One rule: the number of cases that match it."""

    policy: AuthorizationPolicy
    rule: int
    cases: int

    @property
    def place(self) -> Place:
        return self.policy.rules[self.rule].place


def coverage(policies: Policies, suites: Sequence[Suite]) -> list[Covered]:
    """Every enforced rule, in order of the documents."""
    judge = Judge(policies, "deny")
    counts = Counter(name for suite in suites for case in suite.cases for name in _touched(case, judge))
    return [
        Covered(policy, index, counts[str(policy), index])
        for policy in policies
        if policy.action in (Action.ALLOW, Action.DENY) and is_enforced(policy)
        for index in range(len(policy.rules))
    ]


def _touched(case: Case, judge: Judge) -> list[tuple[str, int]]:
    """The rules that match a case."""
    if case.question.refused:
        return []
    request = case.question.request
    rules = judge.compiled(case.workload).tables[request.protocol].rules
    return [(str(rule.policy), rule.index) for rule in rules if rule.matches(request)]
