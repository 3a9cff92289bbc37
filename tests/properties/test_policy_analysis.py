"""The exact analyses against sampled requests: what they call empty is empty, what they show is there."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from config.resources.authorization import AuthorizationPolicy
from proxy.policy.analysis import Diff, TooComplex, diff, is_let_in
from proxy.policy.analysis_domains import METHOD, PATH
from proxy.policy.engine import compile_policies, decide
from proxy.policy.facts import WorkloadFacts
from tests.properties.test_policy_properties import (
    ANALYSED_RULES,
    API,
    documents_of,
    facts_of,
    some_request,
    specs,
)
from tests.unit.policy.documents import read_data

WORKLOADS = [
    API,
    WorkloadFacts("shop", {"app": "web"}),
    WorkloadFacts("shop", {}),
    WorkloadFacts("other", {"app": "api"}),
    WorkloadFacts("third", {"x": ""}),
    WorkloadFacts("other", {}, name="web"),
]
DOCUMENTS = documents_of(specs(ANALYSED_RULES))
PAIRS = st.tuples(DOCUMENTS, DOCUMENTS, st.integers(0, 3), st.integers(0, 1 << 30).map(random.Random))
DEFAULTS = st.sampled_from(["deny", "istio", "audit"])


def can_be_asked(raw: dict[str, Any]) -> bool:
    """Known methods, canonical paths, tokens whose issuer and subject are texts: what the proxy would ask about."""
    if raw["protocol"] == "tcp":
        return True
    claims = raw["claims"] or {}
    are_texts = all(isinstance(claims.get(name, ""), str) for name in ("iss", "sub"))
    return are_texts and raw["method"] in METHOD and raw["path"] in PATH


ASKED = [raw for raw in (some_request() for _ in range(4000)) if can_be_asked(raw)]


def some_requests(chance: random.Random, count: int) -> list[dict[str, Any]]:
    return chance.sample(ASKED, count)


def edited(
    old: list[AuthorizationPolicy], other: list[AuthorizationPolicy], edits: int, chance: random.Random
) -> list[AuthorizationPolicy]:
    """``old`` with a few rules changed: most differences in real life are small."""
    new = {str(policy): policy for policy in old}
    for policy in chance.sample(other, min(edits, len(other))):
        before = new.get(str(policy))
        if before is None or not before.rules or not policy.rules or before.action != policy.action:
            new[str(policy)] = policy
            continue
        rules = list(before.rules)
        rules[chance.randrange(len(rules))] = chance.choice(policy.rules)
        new[str(policy)] = dataclasses.replace(before, rules=tuple(rules))
    return list(new.values())


def check(
    old: list[AuthorizationPolicy],
    new: list[AuthorizationPolicy],
    workload: WorkloadFacts | None,
    default: Any,
    chance: random.Random,
    count: int = 40,
) -> Diff:
    try:
        found = diff(old, new, workload=workload, default=default)
    except TooComplex:
        reject()
    if found.unknown:  # a claim as a text and as an object: it says so
        reject()
    for changes, let_in in ((found.allowed, True), (found.denied, False)):
        for change in changes:
            before, after = (
                decide(compile_policies(policies, change.workload, default), change.request) for policies in (old, new)
            )
            assert is_let_in(after) is let_in
            assert is_let_in(before) is not let_in
    for to in WORKLOADS if workload is None else [workload]:
        both = [compile_policies(policies, to, default) for policies in (old, new)]
        for raw in some_requests(chance, count):
            before, after = (is_let_in(decide(policies, facts_of(raw))) for policies in both)
            if after and not before:
                assert found.allowed, (raw, to)
            if before and not after:
                assert found.denied, (raw, to)
    return found


@settings(max_examples=100, deadline=None)
@given(PAIRS, DEFAULTS)
def test_a_diff_is_empty_exactly_when_no_request_differs(pair: Any, default: Any) -> None:
    first, second, edits, chance = pair
    old, other = read_data(first), read_data(second)
    check(old, edited(old, other, edits, chance), API, default, chance)


@settings(max_examples=60, deadline=None)
@given(PAIRS, DEFAULTS)
def test_a_diff_for_every_workload_there_can_be(pair: Any, default: Any) -> None:
    first, second, edits, chance = pair
    old, other = read_data(first), read_data(second)
    check(old, edited(old, other, edits, chance), None, default, chance, 20)


@pytest.mark.long
@settings(max_examples=1000, deadline=None)
@given(PAIRS, DEFAULTS)
def test_a_diff_of_unrelated_documents(pair: Any, default: Any) -> None:
    first, second, _, chance = pair
    check(read_data(first), read_data(second), API, default, chance, 100)


@settings(max_examples=60, deadline=None)
@given(DOCUMENTS, DEFAULTS)
def test_nothing_differs_from_itself_in_another_order(documents: Any, default: Any) -> None:
    policies = read_data(documents)
    turned = [dataclasses.replace(policy, rules=policy.rules[::-1]) for policy in reversed(policies)]
    assert not diff(policies, turned, default=default)
