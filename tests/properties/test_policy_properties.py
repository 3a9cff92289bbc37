"""``decide`` against an independent reading of the same documents, and what must hold of every decision."""

from __future__ import annotations

import random
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from config.nodes import parse_yaml
from config.problems import Problems
from config.resources.authorization import Action, parse_authorization_policy
from proxy.errors import AccessDenied
from proxy.policy import compiled
from proxy.policy.engine import AccessRequest, DecisionCache, WorkloadFacts, compile_policies, decide
from proxy.policy.explain import apply_edits, explain, render
from proxy.policy.selection import applies
from tests.properties.naive_istio import audited, judge
from tests.unit.policy.documents import document, read_data
from tests.unit.policy.questions import namespace_of, told

LABELS = {"app": "api", "tier": "back"}
API = WorkloadFacts("shop", LABELS, "istio-system", "api")

# Few words, so that values and requests meet often; stars wherever they may be written.
PRINCIPALS = ["td/ns/a/sa/x", "td/ns/a/sa/xy", "td/ns/ab/sa/x", "td/ns/b/sa/y", "td/spire/agent", "td", "two/ns/shop/sa/x", None]
BLOCKS = ["10.0.0.0/8", "10.1.2.3", "10.1.2.99/24", "0.0.0.0/0", "::/0", "2001:db8::/32", "192.168.0.1/32"]
STRINGS = ["*", "a", "b", "a*", "*b", "ab", "A", "*a*"]
WORDS = {
    "principals": ["*", "td/ns/a/sa/x", "td/ns/a/*", "td/ns/a*", "*/sa/x", "*x", "td*", "td/ns/*/sa/x", "spiffe://td*"],
    "namespaces": ["*", "a", "b", "a*", "*b", "*a*", "a*b", "ab"],
    "serviceAccounts": ["x", "a/x", "ab/x", "shop/x", "b/x"],
    "trustDomains": ["*", "td", "t*", "*d", "two", "*wo"],
    "requestPrincipals": ["*", "i/s", "i/*", "i/s*", "*/s", "*i/s", "*s", "i*", "i", "https://i/s", "https://i*"],
    "ipBlocks": BLOCKS,
    "remoteIpBlocks": BLOCKS,
    "methods": ["*", "GET", "PUT", "G*", "*T", "get", "*E*"],
    "paths": ["*", "/", "/a", "/a*", "/a/*", "*b", "*/b", "/a/b", "*a*", "/a*b", "/{*}", "/a/{**}", "/{*}/b", "/a/{**}/b"],
    "hosts": ["*", "api", "API", "api:80", "api*", "*.shop", "*:80", "b.Shop"],
    "ports": ["80", "080", "81"],
}
SOURCES = ["principals", "namespaces", "trustDomains", "requestPrincipals", "ipBlocks", "remoteIpBlocks"]
KEYS_OF_WHEN = {
    "source.ip": BLOCKS,
    "remote.ip": BLOCKS,
    "destination.ip": BLOCKS,
    "source.namespace": WORDS["namespaces"],
    "source.serviceAccount": WORDS["serviceAccounts"],
    "source.trustDomain": WORDS["trustDomains"],
    "source.principal": WORDS["principals"],
    "request.auth.principal": WORDS["requestPrincipals"],
    "request.auth.audiences": STRINGS,
    "request.auth.presenter": STRINGS,
    "request.auth.claims[scope]": STRINGS,
    "request.auth.claims[a]": STRINGS,
    "request.auth.claims[a][b]": STRINGS,
    "request.headers[x-role]": STRINGS,
    "request.headers[X-Other]": STRINGS,
    "request.headers[:method]": WORDS["methods"],
    "request.headers[:authority]": WORDS["hosts"],
    "request.headers[host]": WORDS["hosts"],
    "request.headers[:path]": ["/a", "/a?*", "*=b", "*"],
    "destination.port": WORDS["ports"],
    "connection.sni": ["*", "api", "a*", "*pi", "API"],
}


CHANCE = random.Random(4)


def some_entries(name: str, facts: list[str]) -> list[dict[str, Any]]:
    return [{name: some_clauses(facts)} for _ in range(CHANCE.randint(1, 3))]


def some_clauses(facts: list[str]) -> dict[str, list[str]]:
    if name := CHANCE.choice([None] * 9 + ["serviceAccounts"]) if "principals" in facts else None:
        return {CHANCE.choice([name, "notServiceAccounts"]): some_values(WORDS[name])}
    names = [(fact, key) for fact in facts for key in (fact, f"not{fact[0].upper()}{fact[1:]}")]
    chosen = CHANCE.sample(names, CHANCE.choice([1, 1, 2, 3]))
    return {key: some_values(WORDS[fact]) for fact, key in chosen}


def some_values(words: list[str]) -> list[str]:
    return CHANCE.choices(words, k=CHANCE.choice([1, 1, 2, 3]))


def some_when() -> dict[str, Any]:
    key = CHANCE.choice(list(KEYS_OF_WHEN))
    lists = CHANCE.choice([["values"], ["values"], ["notValues"], ["values", "notValues"]])
    return {"key": key, **{name: some_values(KEYS_OF_WHEN[key]) for name in lists}}


def some_rule(rare: float = 0.5) -> dict[str, Any]:
    """``rare``: how often it asks for facts beyond the usual ones."""
    rule: dict[str, Any] = {}
    if CHANCE.random() < 0.7:
        rule["from"] = some_entries("source", SOURCES if CHANCE.random() < rare else SOURCES[:3])
    if CHANCE.random() < 0.7:
        rule["to"] = some_entries("operation", ["methods", "paths", "hosts", "ports"])
    if CHANCE.random() < rare:
        rule["when"] = [some_when() for _ in range(CHANCE.choice([1, 1, 2]))]
    return rule


# Drawn beforehand: Hypothesis chooses among ready rules, which is a hundred times faster than building each.
WRITTEN: list[dict[str, Any]] = [{}, *(some_rule(rare) for rare in (0.0, 0.5, 0.5) for _ in range(250))]
RULES = st.sampled_from(WRITTEN)
# Exact analyses refuse these conditions, and say so.
BEYOND = ("request.headers[:path]", "request.headers[:authority]", "request.headers[host]")
ANALYSED_RULES = st.sampled_from([r for r in WRITTEN if all(w["key"] not in BEYOND for w in r.get("when", []))])
SELECTORS = st.sampled_from([None, {}, {"app": "api"}, {"app": "api", "tier": "back"}, {"app": "web"}, {"x": ""}])
TARGETS = st.sampled_from(
    [
        [{"kind": "Service", "name": "api"}],
        [{"kind": "Service", "name": "web"}],
        [{"kind": "HTTPRoute", "name": "main"}],
        [{"kind": "GRPCRoute", "name": "other"}, {"kind": "Service", "name": "web"}],
        [{"kind": "HTTPRoute", "name": "other"}, {"kind": "Service", "name": "api"}],
    ]
)


@st.composite
def specs(draw: st.DrawFn, among: st.SearchStrategy[dict[str, Any]] = RULES, targets: bool = True) -> dict[str, Any]:
    action = draw(st.sampled_from(["ALLOW", "ALLOW", "DENY", "AUDIT", None]))
    spec: dict[str, Any] = {"rules": draw(st.lists(among, min_size=1 if action == "DENY" else 0, max_size=6))}
    if action:
        spec["action"] = action
    if targets and draw(st.integers(0, 4)) == 0:
        spec["targetRefs"] = draw(TARGETS)
    elif (labels := draw(SELECTORS)) is not None:
        spec["selector"] = {"matchLabels": labels}
    if action != "AUDIT" and draw(st.integers(0, 5)) == 0:
        spec["dry-run"] = True
    return spec


def a_document(key: str, spec: dict[str, Any]) -> dict[str, Any]:
    dry = spec.get("dry-run", False)
    made = document(key, {name: value for name, value in spec.items() if name != "dry-run"})
    if dry:
        made["metadata"]["annotations"] = {"istio.io/dry-run": "true"}
    return made


KEYS = st.sampled_from([f"{ns}/{name}" for ns in ("shop", "istio-system", "other") for name in ("p", "q", "a")])


def documents_of(some: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.dictionaries(KEYS, some, max_size=6).map(
        lambda named: [a_document(key, spec) for key, spec in named.items()]
    )


DOCUMENTS = documents_of(specs())
ANALYSED = documents_of(specs(ANALYSED_RULES, False))
DEFAULTS = st.sampled_from(["deny", "istio", "audit"])
CLAIMS: list[dict[str, Any] | None] = [
    None,
    {},
    {"iss": "i", "sub": "s", "aud": "a", "azp": ["a", "b"], "scope": "a b"},
    {"iss": "https://i", "sub": "s", "aud": ["b", 7], "a": {"b": "ab"}, "scope": ["a b"]},
    {"iss": "i", "sub": "", "a": "a", "permission": "b"},
    {"iss": "i", "sub": 7, "a": {"b": ["a", "x"]}, "aud": 5},
    {"iss": "xi", "sub": "ss", "a": {"b": {"c": "a"}}, "scope": "x  a"},
]
ADDRESSES = ["", "10.1.2.3", "10.1.2.4", "::ffff:10.9.9.9", "192.168.0.1", "2001:db8::1", "::1"]
HEADERS: list[dict[str, list[str]]] = [{}, {"x-role": ["a"]}, {"x-role": ["x", "a"]}, {"x-role": [""], "x-other": ["ab"]}]


def some_request() -> dict[str, Any]:
    facts: dict[str, Any] = {
        "protocol": CHANCE.choice(["http", "http", "http", "tcp"]),
        "principal": CHANCE.choice(PRINCIPALS),
        "port": CHANCE.choice([80, 81, 8080]),
        "source_ip": CHANCE.choice(ADDRESSES),
        "remote_ip": CHANCE.choice(ADDRESSES),
        "destination_ip": CHANCE.choice(ADDRESSES),
        "sni": CHANCE.choice(["", "api", "API", "xpi"]),
    }
    if facts["protocol"] == "http":
        path = CHANCE.choice(["/", "/a", "/a/", "/a/b", "/ab", "/b", "/xa*", "/a/c/b", '/a/"'])
        facts |= {
            "method": CHANCE.choice(["GET", "PUT", "get", "G", "E*"]),
            "host": CHANCE.choice(["api", "API", "api:80", "b.shop", "B.SHOP:80", ""]),
            "path": path,
            "target": CHANCE.choice([path, path + "?x=b"]),
            "headers": CHANCE.choice(HEADERS),
            "claims": CHANCE.choice(CLAIMS),
            "route": CHANCE.choice(["main", "other", ""]),
        }
    return facts


REQUESTS = st.sampled_from([some_request() for _ in range(3000)])


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
        scope: dict[str, Any] = {"namespace": "shop", "labels": LABELS, "root": "istio-system", "name": "api"}
        word, by = judge(documents, request, **scope, default=default)
        expected = f"{word} {by}" if by else word
        decision = decide(policies, facts_of(raw))
        assert told(decision) == expected
        assert told(decide(tabled, facts_of(raw))) == expected
        noted = [f"{note.policy}#{note.rule}" for note in decision.notes if note.kind == "audit"]
        assert noted == ([seen] if (seen := audited(documents, request, **scope)) else [])
        assert all(note.kind != "failed" for note in decision.notes)
        if raw["protocol"] == "http" and not policies.needs_more:
            assert told(remembered(cache, facts_of(raw))) == expected


def remembered(cache: DecisionCache, request: AccessRequest) -> Any:
    try:
        return cache.authorize(
            principal=request.principal,
            namespace=request.namespace,
            port=request.port,
            method=request.method.encode(),
            host=request.authority.encode("latin-1"),
            path=request.path.encode(),
            route=request.route,
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
    rules = [rule for rule in policies.tables[raw["protocol"]].rules if rule.policy.action == Action.ALLOW]
    could = any(applies(rule.policy, API, facts_of(raw)) for rule in rules)
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
