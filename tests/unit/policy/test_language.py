"""The whole language of AuthorizationPolicy, stated case by case in ``corpus/*.yaml``.

Each group has a name, ``from`` (sections of Istio's semantics), policies ("namespace/name": spec; no namespace means
shop; ``dry-run`` in a spec is the annotation) and cases: facts of the request, the answer, and why. Facts that are
not given: td/ns/shop/sa/web calls GET / on port 8080 of host api.shop. The workload is api in shop with the labels
app: api, tier: back, and ``policy.default`` is deny, unless the group says otherwise. The answer is the verdict,
the rule that gives it, and in brackets what is noted of policies that are not enforced.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.policy.engine import (
    AccessRequest,
    CompiledPolicies,
    DecisionCache,
    WorkloadFacts,
    compile_policies,
    decide,
)
from proxy.policy.explain import explain, render
from tests.unit.policy.documents import document, read_data
from tests.unit.policy.questions import namespace_of, told
from tests.unit.policy.test_corpus import ask_cache, outcome

FILES = sorted((Path(__file__).parent / "corpus").glob("*.yaml"))
GROUPS = [group for file in FILES for group in yaml.safe_load(file.read_text(encoding="utf-8"))]
CASES = [
    pytest.param(group, *case, id=f"{group['name']}: {case[2]} [{number}]")
    for group in GROUPS
    for number, case in enumerate(group["cases"])
]
USUAL = {"principal": "td/ns/shop/sa/web", "port": 8080}
USUAL_HTTP = {"method": "GET", "host": "api.shop", "path": "/"}


def compiled(group: dict[str, Any]) -> CompiledPolicies:
    documents = []
    for key, spec in group["policies"].items():
        made = document(key, {name: value for name, value in spec.items() if name != "dry-run"})
        if "dry-run" in spec:
            made["metadata"]["annotations"] = {"istio.io/dry-run": str(spec["dry-run"])}
        documents.append(made)
    workload = {"namespace": "shop", "labels": {"app": "api", "tier": "back"}, **group.get("workload", {})}
    facts = WorkloadFacts(**workload, root_namespace="istio-system", name="api")
    return compile_policies(read_data(documents), facts, group.get("default", "deny"))


def request_of(facts: dict[str, Any]) -> AccessRequest:
    whole = {**USUAL, **({} if facts.get("protocol") == "tcp" else USUAL_HTTP), **facts}
    return AccessRequest(**whole, namespace=namespace_of(whole["principal"]))


@pytest.mark.parametrize(("group", "facts", "answer", "why"), CASES)
def test_the_language_is_decided_as_stated(group: dict[str, Any], facts: dict[str, Any], answer: str, why: str) -> None:
    policies, request = compiled(group), request_of(facts)
    decision = decide(policies, request)
    notes = "; ".join(map(str, decision.notes))
    assert told(decision) + (f" ({notes})" if notes else "") == answer, why
    assert decision.reason != "authorization_failed"
    if request.protocol == "http" and not policies.needs_more:
        cache = DecisionCache(policies)
        for _ in range(2):
            assert told(outcome(lambda: ask_cache(cache, request))) == told(decision)


@pytest.mark.parametrize(("group", "facts", "answer", "why"), CASES)
def test_every_case_can_be_explained(group: dict[str, Any], facts: dict[str, Any], answer: str, why: str) -> None:
    policies, request = compiled(group), request_of(facts)
    found = explain(policies, request)
    lines = render(found)
    assert lines[0].split()[0] == ("ALLOW" if found.decision.allowed else "DENY")
    assert found.decision.allowed or found.edits or found.advice


def test_the_corpus_has_the_promised_size() -> None:
    assert len(CASES) >= 200
