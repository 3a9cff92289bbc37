from __future__ import annotations

from typing import Any

import pytest
import yaml

from config.nodes import parse_yaml
from config.problems import Problem, Problems
from config.resources.authorization import (
    Action,
    AuthorizationPolicy,
    Clause,
    Condition,
    Entry,
    Rule,
    TargetRef,
    parse_authorization_policy,
)

HEAD = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: allow-web, namespace: shop}\n"


def read(text: str) -> tuple[AuthorizationPolicy | None, list[Problem]]:
    problems = Problems()
    (document,) = parse_yaml(text, "policy/api.yaml", problems)
    return parse_authorization_policy(document, "default"), list(problems)


def spec(text: str) -> tuple[AuthorizationPolicy | None, list[Problem]]:
    return read(f"{HEAD}spec: {text}\n")


def policy_of(text: str) -> AuthorizationPolicy:
    policy, problems = spec(text)
    assert policy is not None, problems
    assert problems == []
    return policy


def source(text: str) -> str:
    return f"{{rules: [{{from: [{{source: {text}}}]}}]}}"


def when(key: str, values: str) -> str:
    return f"{{rules: [{{when: [{{key: '{key}', values: {values}}}]}}]}}"


def operation(text: str) -> str:
    return f"{{rules: [{{to: [{{operation: {text}}}]}}]}}"


def test_a_policy_is_read_whole() -> None:
    text = """
  selector: {matchLabels: {app: api}}
  action: DENY
  rules:
  - from:
    - source: {principals: [td/ns/shop/sa/web], notNamespaces: [dev]}
    to:
    - operation: {methods: [GET], notPaths: ["/a*"]}
    - operation: {ports: ["80"], hosts: ["*.shop"]}
  - {}"""
    first = Rule(
        (Entry((Clause("principals", ("td/ns/shop/sa/web",)), Clause("notNamespaces", ("dev",)))),),
        (
            Entry((Clause("methods", ("GET",)), Clause("notPaths", ("/a*",)))),
            Entry((Clause("ports", ("80",)), Clause("hosts", ("*.shop",)))),
        ),
    )
    assert policy_of(text) == AuthorizationPolicy(
        "allow-web", "shop", Action.DENY, (("app", "api"),), (first, Rule())
    )


def test_places_are_those_of_the_fields() -> None:
    policy, _ = read(HEAD + "spec:\n  rules:\n  - to:\n    - operation:\n        methods:\n        - GET\n")
    assert policy is not None
    (clause,) = policy.rules[0].operations[0].clauses
    assert str(policy.place) == "policy/api.yaml:1"
    assert (clause.place.file, clause.place.line, clause.place.column) == ("policy/api.yaml", 8, 9)


@pytest.mark.parametrize("version", ["security.istio.io/v1", "security.istio.io/v1beta1"])
def test_both_versions_are_read(version: str) -> None:
    policy, problems = read(HEAD.replace("security.istio.io/v1", version) + "spec: {}")
    assert policy is not None
    assert not problems


def test_another_version_is_refused() -> None:
    policy, problems = read(HEAD.replace("istio.io/v1", "istio.io/v1alpha1") + "spec: {}")
    assert policy is None
    assert [p.code for p in problems] == ["SW0104"]


@pytest.mark.parametrize("text", ["{}", "", "{rules: []}", "{action: ALLOW}"])
def test_an_allow_policy_may_have_no_rules(text: str) -> None:
    assert policy_of(text).rules == ()


def test_a_missing_spec_is_an_empty_one() -> None:
    policy, problems = read(HEAD)
    assert policy is not None
    assert (policy.action, policy.rules, problems) == (Action.ALLOW, (), [])


def test_a_document_without_a_namespace_belongs_to_the_default() -> None:
    policy, _ = read(HEAD.replace(", namespace: shop", "") + "spec: {}")
    assert policy is not None
    assert str(policy) == "default/allow-web"


def test_what_a_cluster_writes_into_a_document_is_let_be() -> None:
    text = HEAD.replace("namespace: shop", "namespace: shop, uid: x, generation: 3, labels: {a: b}")
    policy, problems = read(text + "spec: {}\nstatus: {conditions: []}\n")
    assert policy is not None
    assert problems == []


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        # what Istio has and we do not judge
        ("{action: CUSTOM, provider: {name: x}, rules: [{}]}", "SW0120", "CUSTOM"),
        ("{provider: {name: x}}", "SW0120", "provider"),
        ("{targetRef: {kind: Gateway, name: g}}", "SW0120", "Gateway"),
        ("{targetRefs: [{kind: ServiceEntry, name: g}]}", "SW0120", "ServiceEntry"),
        ("{targetRefs: [{kind: Service, name: g, namespace: x}]}", "SW0120", "namespace"),
        (when("experimental.envoy.filters.a.b[c]", "[x]"), "SW0120", "Envoy"),
        # targets
        ("{targetRefs: [{kind: Service}]}", "SW0106", "name"),
        ("{targetRefs: [{kind: Pod, name: x}]}", "SW0104", "Pod"),
        ("{targetRefs: [{kind: HTTPRoute, group: core, name: x}]}", "SW0105", "group"),
        ("{selector: {matchLabels: {a: b}}, targetRef: {kind: Service, name: x}}", "SW0106", "exclude each other"),
        ("{targetRef: {kind: Service, name: x}, targetRefs: [{kind: Service, name: x}]}", "SW0106", "exclude"),
        (f"{{targetRefs: [{', '.join(['{kind: Service, name: x}'] * 17)}]}}", "SW0110", "16"),
        # conditions
        ("{rules: [{when: [{values: [x]}]}]}", "SW0106", "'key' is missing"),
        ("{rules: [{when: [{key: source.ip}]}]}", "SW0106", "neither values nor notValues"),
        ("{rules: [{when: [{key: source.ip, values: []}]}]}", "SW0106", "neither values nor notValues"),
        (when("source.ip", "[10.0.0.0/33]"), "SW0105", "10.0.0.0/33"),
        (when("destination.ip", "[host]"), "SW0105", "host"),
        (when("destination.port", "[http]"), "SW0105", "http"),
        (when("Source.Ip", "[10.0.0.1]"), "SW0105", "no key"),
        (when("request.headersX[role]", "[a]"), "SW0105", "no key"),
        (when("request.headers", "[a]"), "SW0105", "no key"),
        (when("request.headers[a b]", "[a]"), "SW0105", "no key"),
        (when("request.headers[x", "[a]"), "SW0105", "no key"),
        (when("request.headers[:scheme]", "[a]"), "SW0105", "no key"),
        (when("request.auth.claims", "[a]"), "SW0105", "no key"),
        (when("request.auth.claims[]", "[a]"), "SW0105", "no key"),
        (when("destination.labels[app]", "[a]"), "SW0105", "no key"),
        (when("source.principal", "['']"), "SW0105", "empty value"),
        # unknown words
        ("{rule: []}", "SW0101", "rule"),
        (source("{principal: [x]}"), "SW0101", "principal"),
        (operation("{path: [/x]}"), "SW0101", "path"),
        ("{rules: [{form: []}]}", "SW0101", "form"),
        ("{rules: [{from: [{sources: {}}]}]}", "SW0101", "sources"),
        ("{selector: {matchExpressions: []}}", "SW0101", "matchExpressions"),
        ("{action: ALOW}", "SW0104", "ALOW"),
        ("{action: allow}", "SW0104", "allow"),
        # wrong types
        ("{rules: {}}", "SW0103", "list"),
        ("[]", "SW0103", "mapping"),
        (source("{principals: x}"), "SW0103", "list"),
        (source("{principals: [{a: b}]}"), "SW0103", "single value"),
        (source("{principals: [~]}"), "SW0103", "single value"),
        ("{selector: {matchLabels: [a]}}", "SW0103", "mapping"),
        ("{selector: {matchLabels: {a: [b]}}}", "SW0103", "single value"),
        # what would silently mean "any" or "nothing"
        ("{action: DENY}", "SW0106", "denies nothing"),
        ("{action: DENY, rules: []}", "SW0106", "denies nothing"),
        ("{rules: [~]}", "SW0106", "empty rule"),
        ("{rules: [{from: []}]}", "SW0106", "no source"),
        ("{rules: [{to: []}]}", "SW0106", "no operation"),
        ("{rules: [{from: }]}", "SW0106", "from"),
        ("{rules: [{from: [{}]}]}", "SW0106", "source"),
        ("{rules: [{from: [~]}]}", "SW0106", "source"),
        ("{rules: [{from: [{source: }]}]}", "SW0106", "source"),
        (source("{}"), "SW0106", "says nothing"),
        (source("{principals: []}"), "SW0106", "says nothing"),
        (source("{principals: }"), "SW0106", "principals"),
        (operation("{}"), "SW0106", "says nothing"),
        ("{selector: {matchLabels: }}", "SW0106", "matchLabels"),
        ("{selector: }", "SW0106", "selector"),
        ("{rules: }", "SW0106", "rules"),
        # values
        (source("{principals: ['']}"), "SW0105", "empty value"),
        (operation("{ports: ['http']}"), "SW0105", "http"),
        (operation("{ports: ['65536']}"), "SW0105", "65536"),
        (operation("{ports: ['-1']}"), "SW0105", "-1"),
        (operation("{ports: ['80-90']}"), "SW0105", "80-90"),
        (operation("{ports: ['*']}"), "SW0105", "*"),
        (operation(f"{{ports: ['{'1' * 5000}']}}"), "SW0105", "port"),
        (operation("{paths: ['/{id}']}"), "SW0105", "path template"),
        (operation("{paths: ['/a{*}']}"), "SW0105", "path template"),
        (operation("{paths: ['/{*}/x*']}"), "SW0105", "path template"),
        (operation("{paths: ['{*}']}"), "SW0105", "path template"),
        (operation("{paths: ['/a//{*}']}"), "SW0105", "path template"),
        (operation("{notPaths: ['/{**}/{*}']}"), "SW0105", "last wildcard"),
        (source("{ipBlocks: [a.b.c.d]}"), "SW0105", "neither an address nor a block"),
        (source("{notIpBlocks: ['10.0.0.1/']}"), "SW0105", "neither an address nor a block"),
        (source("{remoteIpBlocks: ['fe80::1%eth0']}"), "SW0105", "zone"),
        (source("{serviceAccounts: ['a/b/c']}"), "SW0105", "service account"),
        (source("{serviceAccounts: ['a*']}"), "SW0105", "service account"),
        (source("{notServiceAccounts: ['/a']}"), "SW0105", "service account"),
        (source(f"{{serviceAccounts: ['{'a' * 321}']}}"), "SW0105", "service account"),
        (source(f"{{serviceAccounts: [{', '.join(['a'] * 17)}]}}"), "SW0110", "16"),
        (source("{serviceAccounts: [a], notNamespaces: [b]}"), "SW0106", "exclude each other"),
        (source("{notServiceAccounts: [a], principals: [b]}"), "SW0106", "exclude each other"),
        (source("{trustDomains: ['a/b']}"), "SW0105", "trust domain"),
        (source("{trustDomains: ['a*b']}"), "SW0105", "trust domain"),
        (source("{notTrustDomains: ['*a*']}"), "SW0105", "trust domain"),
        ("{selector: {matchLabels: {app: 'a*'}}}", "SW0105", "wildcard"),
        ("{selector: {matchLabels: {'a*': b}}}", "SW0105", "wildcard"),
        ("{selector: {matchLabels: {'': b}}}", "SW0105", "name"),
        (f"{{rules: [{', '.join(['{}'] * 513)}]}}", "SW0110", "512"),
    ],
)
def test_what_cannot_be_judged_as_written_is_an_error_and_yields_no_policy(text: str, code: str, words: str) -> None:
    policy, problems = spec(text)
    assert policy is None
    found = [p for p in problems if p.code == code]
    assert found, problems
    assert any(words in p.message for p in found)
    assert {p.severity for p in found} == {"error"}
    assert found[0].subject == "AuthorizationPolicy shop/allow-web"
    assert found[0].line >= 4


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ("{namespace: shop}", "SW0106"),
        ("{name: , namespace: shop}", "SW0106"),
        ("{name: Allow, namespace: shop}", "SW0105"),
        ("{name: a/b, namespace: shop}", "SW0105"),
        ("{name: 'a#0', namespace: shop}", "SW0105"),
        ("{name: a, namespace: 'sh op'}", "SW0105"),
        ("{name: a, namespace: a.b}", "SW0105"),
        ("{name: [a], namespace: shop}", "SW0103"),
        ("{name: a, nmespace: shop}", "SW0101"),
        ("{name: a, annotations: {istio.io/dry-run: x}}", "SW0105"),
        ("{name: a, annotations: {istio.io/dry-run: 'yes'}}", "SW0105"),
    ],
)
def test_metadata_is_checked(metadata: str, code: str) -> None:
    policy, problems = read(HEAD.replace("{name: allow-web, namespace: shop}", metadata) + "spec: {}")
    assert policy is None
    assert code in [p.code for p in problems]


@pytest.mark.parametrize(
    ("text", "dry"),
    [("true", True), ("True", True), ("T", True), ("1", True), ("false", False), ("F", False), ("0", False)],
)
def test_a_dry_run_is_switched_by_any_boolean_of_go(text: str, dry: bool) -> None:
    metadata = f"{{name: a, annotations: {{istio.io/dry-run: '{text}', other: x}}}}"
    policy, problems = read(HEAD.replace("{name: allow-web, namespace: shop}", metadata) + "spec: {}")
    assert policy is not None
    assert policy.dry_run is dry
    assert problems == []


def test_an_audit_policy_has_no_dry_run() -> None:
    metadata = "{name: a, annotations: {istio.io/dry-run: 'true'}}"
    policy, problems = read(HEAD.replace("{name: allow-web, namespace: shop}", metadata) + "spec: {action: AUDIT}")
    assert policy is None
    assert [problem.code for problem in problems] == ["SW0105"]


def test_the_rarer_fields_are_read_as_they_stand() -> None:
    policy = policy_of(
        "{action: AUDIT, targetRefs: [{kind: Service, name: api}, {kind: GRPCRoute, name: r}], rules: [{"
        "from: [{source: {ipBlocks: [10.0.0.1/8], notTrustDomains: ['*.x']}}], "
        "to: [{operation: {paths: ['/a/{*}/{**}']}}], "
        "when: [{key: 'request.headers[X-Team]', values: ['a', 'B*'], notValues: ['c']}]}]}"
    )
    assert policy.action == Action.AUDIT
    assert policy.target_refs == (TargetRef("Service", "api"), TargetRef("GRPCRoute", "r"))
    (rule,) = policy.rules
    assert rule.sources[0].clauses == (Clause("ipBlocks", ("10.0.0.1/8",)), Clause("notTrustDomains", ("*.x",)))
    assert rule.operations[0].clauses == (Clause("paths", ("/a/{*}/{**}",)),)
    assert rule.conditions == (Condition("request.headers[x-team]", ("a", "B*"), ("c",)),)
    assert rule.conditions[0].place.line > 0


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        ("request.auth.claims[a]", ("a",)),
        ("request.auth.claims[a][b.c][d]", ("a", "b.c", "d")),
        ("request.auth.claims[a[b]]", ("a[b]",)),
        ("source.ip", ()),
    ],
)
def test_brackets_that_do_not_part_cleanly_hold_one_name(key: str, arguments: tuple[str, ...]) -> None:
    assert Condition(key).arguments == arguments


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (source("{principals: ['spiffe://td/ns/a/sa/b']}"), "SW0301", "rule can never match: 'spiffe://'"),
        (source("{notPrincipals: ['spiffe://td/ns/a/sa/b']}"), "SW0301", "clause excludes nothing"),
        (source("{principals: ['td/ns/*/sa/b']}"), "SW0301", "a text with a star in it"),
        (operation("{paths: ['*x*']}"), "SW0301", "a text with a star in it"),
        (operation("{methods: [get]}"), "SW0301", "capital letters"),
        (operation("{paths: [orders]}"), "SW0301", "begins with '/'"),
        (operation("{paths: ['/a?b=c']}"), "SW0301", "query"),
        (operation("{ports: [80]}"), "SW0107", "'80' should be in quotes"),
        (operation("{methods: ['GET', on]}"), "SW0107", "'on'"),
        (operation("{methods: ['GET'], notPaths: []}"), "SW0302", "notPaths"),
        ("{selector: {}}", "SW0302", "every workload"),
        ("{selector: {matchLabels: {}}}", "SW0302", "every workload"),
        ("{selector: {matchLabels: {v: 2}}}", "SW0107", "'2'"),
    ],
)
def test_what_istio_accepts_and_people_do_not_mean_is_a_warning(text: str, code: str, words: str) -> None:
    policy, problems = spec(text)
    assert policy is not None
    assert {p.severity for p in problems} == {"warning"}
    assert any(p.code == code and words in p.message for p in problems), problems


@pytest.mark.parametrize(
    "text",
    [
        source("{principals: ['*', 'a*', '*a', td/ns/a/sa/b], namespaces: ['a*b*c']}"),
        operation("{paths: ['/{*}', '/a/{*}/b', '/{*}/{**}', '/{**}/x', '/a%20b/{*}/'], notPaths: ['/{**}']}"),
        operation("{methods: [GET, 'P*', '*', M-SEARCH], paths: ['*', '/a*', '*.js', /], hosts: ['*.x', a, 'a:*']}"),
        operation("{ports: ['0', '65535', '00080']}"),
        "{selector: {matchLabels: {app: '', 'a.b/c': d}}}",
    ],
)
def test_the_usual_forms_pass_without_a_word(text: str) -> None:
    assert policy_of(text)


def test_an_unquoted_port_keeps_its_text() -> None:
    policy, _ = spec(operation("{ports: [0080]}"))
    assert policy is not None
    assert policy.rules[0].operations[0].clauses[0].values == ("0080",)


def test_a_suggestion_is_made_for_a_wrong_field() -> None:
    _, problems = spec(source("{principal: [x]}"))
    (problem,) = [p for p in problems if p.code == "SW0101"]
    assert problem.hint == "did you mean 'principals'?"
    assert problem.path == "spec.rules[0].from[0].source"


def test_every_problem_is_reported_at_once() -> None:
    _, problems = spec("{action: ALOW, rules: [{form: []}, {to: [{operation: {ports: [x], ipBlock: []}}]}]}")
    assert [p.code for p in problems] == ["SW0104", "SW0101", "SW0101", "SW0105"]


@pytest.mark.parametrize("text", ["[]", "x", "{a: b}", "{kind: AuthorizationPolicy}", "{metadata: x, spec: 3}"])
def test_a_document_of_another_shape_is_refused(text: str) -> None:
    policy, problems = read(text)
    assert policy is None
    assert problems


def test_examples_of_the_manual_are_read() -> None:
    example: dict[str, Any] = {
        "selector": {"matchLabels": {"app": "ledger"}},
        "action": "ALLOW",
        "rules": [
            {
                "from": [{"source": {"principals": ["shop.internal/ns/shop/sa/web", "shop.internal/ns/ops/sa/*"]}}],
                "to": [{"operation": {"methods": ["GET"], "paths": ["/v1/accounts/*"]}}],
            }
        ],
    }
    policy = policy_of("\n  " + yaml.safe_dump(example).replace("\n", "\n  "))
    assert len(policy.rules[0].sources[0].clauses[0].values) == 2
