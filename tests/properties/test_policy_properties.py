"""``decide`` against an independent reading of the same documents, and what must hold of every decision."""

from __future__ import annotations

import random
from itertools import product
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from config.nodes import parse_yaml
from config.problems import Problems
from config.resources.authorization import parse_authorization_policy
from proxy.errors import AccessDenied
from proxy.policy import compiled
from proxy.policy.engine import AccessRequest, DecisionCache, WorkloadFacts, compile_policies, decide
from proxy.policy.explain import apply_edits, explain, render
from tests.properties.naive_istio import judge
from tests.unit.policy.documents import document, read_data
from tests.unit.policy.questions import namespace_of, told

LABELS = {"app": "api", "tier": "back"}
API = WorkloadFacts("shop", LABELS, "istio-system", "api")

# Few words, so that values and requests meet often; stars wherever they may be written.
PRINCIPALS = ["td/ns/a/sa/x", "td/ns/a/sa/xy", "td/ns/ab/sa/x", "td/ns/b/sa/y", "td/spire/agent", "td", None]
WORDS = {
    "principals": ["*", "td/ns/a/sa/x", "td/ns/a/*", "td/ns/a*", "*/sa/x", "*x", "td*", "td/ns/*/sa/x", "spiffe://td*"],
    "namespaces": ["*", "a", "b", "a*", "*b", "*a*", "a*b", "ab"],
    "methods": ["*", "GET", "PUT", "G*", "*T", "get", "*E*"],
    "paths": ["*", "/", "/a", "/a*", "/a/*", "*b", "*/b", "/a/b", "*a*", "/a*b"],
    "hosts": ["*", "api", "API", "api:80", "api*", "*.shop", "*:80", "b.Shop"],
    "ports": ["80", "080", "81"],
}


CHANCE = random.Random(4)


def some_entries(name: str, facts: list[str]) -> list[dict[str, Any]]:
    return [{name: some_clauses(facts)} for _ in range(CHANCE.randint(1, 3))]


def some_clauses(facts: list[str]) -> dict[str, list[str]]:
    names = [key for fact in facts for key in (fact, f"not{fact.capitalize()}")]
    chosen = CHANCE.sample(names, CHANCE.choice([1, 1, 2, 3]))
    return {key: some_values(WORDS[key.removeprefix("not").lower()]) for key in chosen}


def some_values(words: list[str]) -> list[str]:
    return CHANCE.choices(words, k=CHANCE.choice([1, 1, 2, 3]))


def some_rule() -> dict[str, Any]:
    rule: dict[str, Any] = {}
    if CHANCE.random() < 0.7:
        rule["from"] = some_entries("source", ["principals", "namespaces"])
    if CHANCE.random() < 0.7:
        rule["to"] = some_entries("operation", ["methods", "paths", "hosts", "ports"])
    return rule


# Drawn beforehand: Hypothesis chooses among ready rules, which is a hundred times faster than building each.
RULES = st.sampled_from([{}, *(some_rule() for _ in range(500))])
SELECTORS = st.sampled_from([None, {}, {"app": "api"}, {"app": "api", "tier": "back"}, {"app": "web"}, {"x": ""}])


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    action = draw(st.sampled_from(["ALLOW", "ALLOW", "DENY", None]))
    spec: dict[str, Any] = {"rules": draw(st.lists(RULES, min_size=1 if action == "DENY" else 0, max_size=6))}
    if action:
        spec["action"] = action
    labels = draw(SELECTORS)
    if labels is not None:
        spec["selector"] = {"matchLabels": labels}
    return spec


KEYS = st.sampled_from([f"{ns}/{name}" for ns in ("shop", "istio-system", "other") for name in ("p", "q", "a")])
DOCUMENTS = st.dictionaries(KEYS, specs(), max_size=6).map(
    lambda named: [document(key, spec) for key, spec in named.items()]
)
DEFAULTS = st.sampled_from(["deny", "istio", "audit"])
REQUESTS = st.sampled_from(
    [
        dict(zip(("protocol", "principal", "port", "method", "host", "path"), facts, strict=True))
        for facts in product(
            ["http", "http", "http", "tcp"],
            PRINCIPALS,
            [80, 81, 8080],
            ["GET", "PUT", "get", "G", "E*"],
            ["api", "API", "api:80", "b.shop", "B.SHOP:80", ""],
            ["/", "/a", "/a/", "/a/b", "/ab", "/b", "/xa*"],
        )
    ]
)


def facts_of(raw: dict[str, Any]) -> AccessRequest:
    return AccessRequest(**raw, namespace=namespace_of(raw["principal"]))


@settings(max_examples=200, deadline=None)
@given(DOCUMENTS, st.lists(REQUESTS, min_size=3, max_size=12), DEFAULTS)
def test_decisions_equal_those_of_a_plain_reading_of_the_documents(
    documents: list[dict[str, Any]], requests: list[dict[str, Any]], default: Any
) -> None:
    read = read_data(documents)
    policies = compile_policies(read, API, default)
    with patch.object(compiled, "_SMALL", 0):  # every rule through the tables
        tabled = compile_policies(read, API, default)
    cache = DecisionCache(policies, 16)
    for raw in requests:
        request = {**raw, "namespace": namespace_of(raw["principal"])}
        word, by = judge(documents, request, namespace="shop", labels=LABELS, root="istio-system", default=default)
        expected = f"{word} {by}" if by else word
        assert told(decide(policies, facts_of(raw))) == expected
        assert told(decide(tabled, facts_of(raw))) == expected
        if raw["protocol"] == "http":
            assert told(remembered(cache, facts_of(raw))) == expected


def remembered(cache: DecisionCache, request: AccessRequest) -> Any:
    try:
        return cache.authorize(
            principal=request.principal,
            namespace=request.namespace,
            port=request.port,
            method=request.method.encode(),
            host=request.host.encode(),
            path=request.path.encode(),
        ).decision
    except AccessDenied as error:
        return error.decision


@settings(max_examples=100, deadline=None)
@given(DOCUMENTS, REQUESTS)
def test_a_further_deny_policy_never_allows_and_a_further_allow_rule_never_denies(
    documents: list[dict[str, Any]], raw: dict[str, Any]
) -> None:
    before = decide(compile_policies(read_data(documents), API), facts_of(raw)).allowed
    for action, implied in (("DENY", False), ("ALLOW", True)):
        more = [*documents, document("shop/z", {"action": action, "rules": [{}]})]
        after = decide(compile_policies(read_data(more), API), facts_of(raw))
        assert after.allowed is (implied and (before or after.reason != "deny_policy_matched"))


@settings(max_examples=100, deadline=None)
@given(DOCUMENTS, REQUESTS, DEFAULTS)
def test_the_offered_edits_allow_the_request(
    documents: list[dict[str, Any]], raw: dict[str, Any], default: Any
) -> None:
    policies = compile_policies(read_data(documents), API, default)
    found = explain(policies, facts_of(raw))
    assert found.decision.allowed or found.edits or found.advice
    assert render(found, unicode=False)
    if found.edits:
        edited = compile_policies([apply_edits(policy, found.edits) for policy in policies.policies], API, default)
        after = decide(edited, facts_of(raw))
        assert after.allowed
        assert not after.audited


@settings(max_examples=100, deadline=None)
@given(DOCUMENTS, REQUESTS)
def test_a_nearest_miss_is_named_exactly_when_a_rule_could_have_matched(
    documents: list[dict[str, Any]], raw: dict[str, Any]
) -> None:
    policies = compile_policies(read_data(documents), API)
    decision = decide(policies, facts_of(raw))
    tables = policies.tables[raw["protocol"]]
    could = any(table.rules for action, table in tables.items() if action == "ALLOW")
    assert (decision.nearest is not None) is (decision.reason == "no_allow_policy_matched" and could)


SCALARS = st.sampled_from(["", "~", "a", "'*'", "8080", "[]", "{}", "spiffe://x", "'\u00e9'", "ALLOW", "DENY", "!x"])
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.dictionaries(
            st.sampled_from(
                ["rules", "from", "to", "source", "operation", "paths", "ports", "action", "selector", "matchLabels"]
            ),
            inner,
            max_size=3,
        ).map(lambda fields: "{" + ", ".join(f"{k}: {v}" for k, v in fields.items()) + "}"),
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(TREES)
def test_any_document_gives_a_policy_or_an_error(tree: str) -> None:
    problems = Problems()
    head = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\n"
    for parsed in parse_yaml(f"{head}spec: {tree}\n", "a.yaml", problems):
        before = problems.errors
        policy = parse_authorization_policy(parsed, "shop")
        assert (policy is None) is (problems.errors > before)
        if policy is not None:
            compile_policies([policy], API)
