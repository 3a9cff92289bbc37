from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.errors import AccessDenied
from proxy.policy.engine import CompiledPolicies, DecisionCache, WorkloadFacts, authorize, compile_policies, decide
from tests.unit.policy.documents import policies_of
from tests.unit.policy.questions import ask, told

GROUPS = yaml.safe_load(Path(__file__).with_name("corpus.yaml").read_text())
CASES = [pytest.param(group, case, id=f"{group['name']}: {case}") for group in GROUPS for case in group["cases"]]


def compiled(group: dict[str, Any]) -> CompiledPolicies:
    workload = group.get("workload", {"namespace": "shop", "labels": {"app": "api", "tier": "back"}})
    facts = WorkloadFacts(root_namespace=group.get("root", "istio-system"), **workload)
    return compile_policies(policies_of(group["policies"]), facts, group.get("default", "deny"))


@pytest.mark.parametrize(("group", "case"), CASES)
def test_the_corpus_is_decided_as_stated(group: dict[str, Any], case: str) -> None:
    question, expected = case.split(" -> ")
    verdict, _, near = expected.partition(" near=")
    decision = decide(compiled(group), ask(question))
    assert told(decision) == verdict
    if near:
        assert decision.nearest == near
    assert bool(decision.reason) is not verdict.startswith("allow")


@pytest.mark.parametrize(("group", "case"), CASES)
def test_the_cache_and_authorize_say_the_same_and_say_it_twice(group: dict[str, Any], case: str) -> None:
    request = ask(case.split(" -> ")[0])
    policies = compiled(group)
    expected = told(decide(policies, request))
    assert told(outcome(lambda: authorize(policies, request))) == expected
    if request.protocol == "http":
        cache = DecisionCache(policies)
        for _ in range(2):
            assert told(outcome(lambda: ask_cache(cache, request))) == expected


def ask_cache(cache: DecisionCache, request: Any) -> Any:
    return cache.authorize(
        principal=request.principal,
        namespace=request.namespace,
        port=request.port,
        method=request.method.encode(),
        host=request.authority.encode("latin-1"),
        path=request.path.encode("latin-1"),
        route=request.route,
    )


def outcome(call: Any) -> Any:
    try:
        return call().decision
    except AccessDenied as error:
        return error.decision


def test_the_corpus_has_the_promised_size() -> None:
    assert len(CASES) >= 150
