"""Which rules of the policies no test case touches. Answered rule by rule by ``decide``. Its stricter sister is
``mutate``: which clauses no case would miss.
"""

from __future__ import annotations

import dataclasses
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
    cases = [case for suite in suites for case in suite.cases if not case.question.refused]
    return [
        Covered(policy, index, _matches(policy, index, cases))
        for policy in policies
        if policy.action in (Action.ALLOW, Action.DENY) and is_enforced(policy)
        for index in range(len(policy.rules))
    ]


def _matches(policy: AuthorizationPolicy, index: int, cases: Sequence[Case]) -> int:
    alone = dataclasses.replace(policy, rules=(policy.rules[index],))
    judge = Judge([alone], "deny")
    # Alone under default deny an ALLOW rule names itself when it matches, and so does a DENY rule.
    return sum(judge.decide(case.workload, case.question.request).policy is not None for case in cases)
