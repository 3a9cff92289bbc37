"""The shortcuts of mutation against the long way: ``decide`` with the changed documents, and ``find_change``."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.policy.analysis import Judge, TooComplex, find_change, is_let_in
from proxy.policy.coverage import coverage
from proxy.policy.mutate import mutants, mutate
from proxy.policy.suite import Case, Suite
from proxy.policy.suite_facts import Question
from tests.properties.test_policy_analysis import ASKED, WORKLOADS
from tests.properties.test_policy_properties import ANALYSED_RULES, API, documents_of, facts_of, specs
from tests.unit.policy.documents import read_data

DOCUMENTS = documents_of(specs(ANALYSED_RULES)).filter(lambda documents: len(documents) <= 3)
NEAR = [API, API, *WORKLOADS]
CASES = st.integers(0, 1 << 30).map(
    lambda seed: [(raw, random.Random(seed).choice(NEAR)) for raw in random.Random(seed).sample(ASKED, 60)]
)
DEFAULTS = st.sampled_from(["deny", "istio"])


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(DOCUMENTS, CASES, DEFAULTS)
def test_a_mutant_has_the_fate_that_the_long_way_gives_it(documents: Any, cases: Any, default: Any) -> None:
    policies = read_data(documents)
    judge = Judge(policies, default)
    some = [
        Case("", Question(facts_of(raw)), workload, is_let_in(judge.decide(workload, facts_of(raw))))
        for raw, workload in cases
    ]
    suite = Suite("", tuple(some), default, "")
    found = mutate(policies, [suite], effort=50_000)
    fates = {"survived": found.survived, "superfluous": found.superfluous, "undecided": found.undecided}
    for mutant in mutants(policies):
        changed = [mutant.mutated if policy is mutant.policy else policy for policy in policies]
        after = Judge(changed, default)
        killed = any(is_let_in(after.decide(case.workload, case.question.request)) is not case.allow for case in some)
        fate = next((name for name, those in fates.items() if mutant in those), "killed")
        try:
            changes = find_change(policies, changed, default=default, effort=10_000) is not None
        except TooComplex:
            changes = None
        if fate != "undecided" and changes is not None:
            assert fate == ("killed" if killed else "survived" if changes else "superfluous"), mutant.what


@settings(max_examples=40, deadline=None)
@given(DOCUMENTS, CASES)
def test_a_rule_that_decides_a_case_is_covered(documents: Any, cases: Any) -> None:
    policies = read_data(documents)
    judge = Judge(policies, "deny")
    some = [Case("", Question(facts_of(raw)), workload, True) for raw, workload in cases]
    counted = {(str(one.policy), one.rule): one.cases for one in coverage(policies, [Suite("", tuple(some), "deny", "")])}
    for case in some:
        decision = judge.decide(case.workload, case.question.request)
        if decision.policy is not None:
            assert counted[decision.policy, decision.rule]
