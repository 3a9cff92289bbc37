"""Test suites of policies: what a case can state, how it is judged, and what coverage and mutation find."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from config.problems import Problems
from config.resources.authorization import AuthorizationPolicy
from proxy.policy.analysis import Judge
from proxy.policy.coverage import coverage
from proxy.policy.mutate import mutate
from proxy.policy.suite import Suite, failure_lines, junit, read_suites, run
from proxy.policy.suite_facts import likely_trust_domain
from tests.unit.policy.documents import policies_of

WEB = "td/ns/shop/sa/web"


def suites(text: str) -> tuple[list[Suite], Problems]:
    problems = Problems()
    return read_suites(text, "api.test.yaml", problems, trust_domain="td", default="deny"), problems


def one(*cases: str, head: str = "") -> Suite:
    found, problems = suites(f"suite: s\nto: shop/api\n{head}cases:\n" + "".join(f"- {{{case}}}\n" for case in cases))
    assert not list(problems), list(map(str, problems))
    return found[0]


def wrong(spec: dict[str, Any], case: str, head: str = "") -> str:
    (result,) = run(policies_of({"p": {"rules": [spec]}}), one(case, head=head))
    return result.wrong


def when(key: str, *values: str) -> dict[str, Any]:
    return {"when": [{"key": key, "values": list(values)}]}


def source(**fields: list[str]) -> dict[str, Any]:
    return {"from": [{"source": fields}]}


def operation(**fields: list[str]) -> dict[str, Any]:
    return {"to": [{"operation": fields}]}


@pytest.mark.parametrize(
    ("rule", "stated", "other"),
    [
        (source(principals=[WEB]), "from: shop/web", "from: shop/cart"),
        (source(principals=[WEB]), "from: td/ns/shop/sa/web", "from: other/ns/shop/sa/web"),
        (source(principals=["far/x"]), "from: 'spiffe://far/x'", "from: far/y"),
        (source(namespaces=["shop"]), "from: shop/web", "from: ops/web"),
        (source(serviceAccounts=["web"]), "from: shop/web", "from: ops/web"),
        (source(trustDomains=["far"]), "from: shop/web, trustDomain: far", "from: shop/web"),
        (source(ipBlocks=["10.0.0.0/8"]), "sourceIp: 10.1.1.1", "sourceIp: 192.168.1.1"),
        (source(remoteIpBlocks=["10.0.0.0/8"]), "remoteIp: 10.1.1.1", "remoteIp: 192.168.1.1"),
        (source(requestPrincipals=["i/s"]), "claims: {iss: i, sub: s}", "claims: {iss: i, sub: t}"),
        (operation(methods=["PUT"]), "method: PUT, path: /", "method: GET, path: /"),
        (operation(paths=["/a"]), "path: /a", "path: /b"),
        (operation(paths=["/shop.Stock/Reserve"]), "request: shop.Stock/Reserve", "request: shop.Stock/Free"),
        (operation(hosts=["api:80"]), "host: 'API:80'", "host: api"),
        (operation(ports=["9090"]), "port: 9090", "port: 8080"),
        (operation(ports=["5432"]), "request: TCP, port: 5432", "request: TCP, port: 5433"),
        (when("destination.ip", "10.0.0.1"), "destinationIp: 10.0.0.1", "destinationIp: 10.0.0.2"),
        (when("request.headers[:path]", "/a?*"), "request: GET /a?x=1", "request: GET /a"),
        (when("connection.sni", "api"), "sni: API", "sni: web"),
        (when("request.headers[x-team]", "ops"), "headers: {X-Team: ops}", "headers: {x-team: web}"),
        (when("request.headers[x-team]", "ops"), "headers: {x-team: [web, ops]}", "headers: {x-team: 'web,ops'}"),
        (when("request.auth.claims[groups]", "ops"), "claims: {groups: [web, ops]}", "claims: {groups: [web]}"),
        (when("request.auth.claims[a][b]", "x"), "claims: {a: {b: x}}", "claims: {a: x}"),
        (when("request.auth.audiences", "stock"), "claims: {aud: stock}", "claims: {}"),
    ],
)
def test_a_case_can_state_every_fact_that_a_policy_can_ask_for(
    rule: dict[str, Any], stated: str, other: str
) -> None:
    for line, word in ((stated, "allow"), (other, "deny")):
        facts = line if "from:" in line else f"from: shop/web, {line}"
        facts = facts if any(name in facts for name in ("request:", "path:")) else f"{facts}, request: GET /"
        assert wrong(rule, f"{facts}, expect: {word}") == "", line


def test_a_case_can_state_the_route() -> None:
    spec = {"targetRefs": [{"kind": "HTTPRoute", "name": "main"}], "rules": [{}]}
    suite = one(
        "from: shop/web, request: GET /, route: main, expect: allow",
        "from: shop/web, request: GET /, route: other, expect: deny",
    )
    assert [result.wrong for result in run(policies_of({"p": spec}), suite)] == ["", ""]


def test_labels_and_namespace_of_the_workload_select_policies() -> None:
    policies = policies_of({"p": {"selector": {"matchLabels": {"tier": "back"}}, "rules": [{}]}})
    suite = one("from: shop/web, request: GET /, expect: deny", "from: shop/web, request: GET /, labels: {tier: back}, expect: allow")
    assert [result.wrong for result in run(policies, suite)] == ["", ""]


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("from: none, request: GET /", "mtls_required"),
        ("from: shop/web, request: GET /a/%2e%2e/b", "bad_path"),
        ("from: shop/web, request: get /", "method_unknown"),
    ],
)
def test_what_the_proxy_refuses_before_it_asks(case: str, reason: str) -> None:
    assert wrong({}, f"{case}, expect: deny, reason: {reason}") == ""
    assert wrong({}, f"{case}, expect: allow") == f"expected allow, but it is denied ({reason})"


def test_a_path_is_judged_as_it_would_be_forwarded() -> None:
    assert wrong(operation(paths=["/admin"]), "from: shop/web, request: GET /orders/../admin?x=1, expect: allow") == ""


def test_a_path_is_read_as_the_proxy_is_set_to() -> None:
    rule = operation(paths=["/a//b"])
    assert wrong(rule, "from: shop/web, request: GET /a//b, expect: deny") == ""
    assert wrong(rule, "from: shop/web, request: GET /a//b, pathNormalization: BASE, expect: allow") == ""
    assert wrong(rule, "expect: allow", "from: shop/web\nrequest: GET /a//b\npathNormalization: NONE\n") == ""


def test_a_port_for_callers_without_a_certificate() -> None:
    assert wrong({}, "from: none, request: GET /, mtls: PERMISSIVE, expect: allow") == ""


def test_by_names_a_policy_or_a_rule_of_it() -> None:
    for by in ("p", "shop/p", "p#0", "shop/p#0"):
        assert wrong({}, f"from: shop/web, request: GET /, expect: allow, by: {by}") == ""
    told = "expected by p#1, but it is allowed by shop/p#0"
    assert wrong({}, "from: shop/web, request: GET /, expect: allow, by: p#1") == told


def test_the_suite_states_what_all_its_cases_have() -> None:
    rule = when("request.headers[x-team]", "ops")
    head = "from: shop/web\nheaders: {x-team: ops}\nrequest: GET /\n"
    assert wrong(rule, "expect: allow", head) == ""
    assert wrong(rule, "expect: deny, headers: {}", head) == ""


def test_the_default_can_be_istios() -> None:
    suite = one("from: shop/web, request: GET /, expect: allow", head="default: istio\n")
    assert run([], suite)[0].wrong == ""


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("to: shop/api\n", "SW0106"),
        ("to: shop/api\ncases: [{request: GET /}]\n", "SW0106"),
        ("cases: [{request: GET /, expect: deny}]\n", "SW0106"),
        ("to: api\ncases: [{request: GET /, expect: deny}]\n", "SW0105"),
        ("to: shop/api\ncases: [{expect: deny}]\n", "SW0106"),
        ("to: shop/api\ncases: [{request: GET / HTTP/1.1, expect: deny}]\n", "SW0105"),
        ("to: shop/api\ncases: [{request: GET /, expect: denied}]\n", "SW0104"),
        ("to: shop/api\ncases: [{request: GET /, expect: deny, port: 99999}]\n", "SW0105"),
        ("to: shop/api\ncases: [{request: GET /, expect: deny, fromm: x/y}]\n", "SW0101"),
        ("to: shop/api\ncases: [{request: TCP, expect: deny, headers: {a: b}}]\n", "SW0105"),
        ("to: shop/api\ncases: [{request: GET /, expect: deny, reason: whim}]\n", "SW0104"),
    ],
)
def test_a_wrong_suite_is_told_with_its_place(text: str, code: str) -> None:
    _, problems = suites(text)
    (problem,) = problems
    assert (problem.code, problem.severity, problem.file) == (code, "error", "api.test.yaml")
    assert problem.line


def test_a_failing_case_is_explained() -> None:
    policies = policies_of({"p": {"rules": [{**source(principals=[WEB]), **operation(methods=["GET"])}]}})
    suite = one("name: no, from: shop/web, request: PUT /, expect: allow")
    (result,) = run(policies, suite)
    lines = failure_lines(result, Judge(policies, "deny"))
    assert lines[:2] == ["api.test.yaml:4  no", "    expected allow, but it is denied (no_allow_policy_matched)"]
    assert any("PUT is not in GET" in line for line in lines)


def test_junit_keeps_what_xml_cannot_hold_out_of_it() -> None:
    suite = one('name: "a\\u0001<b>", from: shop/web, request: GET /, expect: allow')
    (case,) = ElementTree.fromstring(junit([(suite, run([], suite))])).iter("testcase")
    assert case.get("name") == "a\N{REPLACEMENT CHARACTER}<b>"
    assert case.find("failure") is not None


# -- what cases leave untested ------------------------------------------------------------------------------

POLICIES = policies_of(
    {
        "allow": {
            "rules": [
                {**source(principals=[WEB, "td/ns/shop/sa/cart"]), **operation(methods=["GET"], paths=["/a/*"])},
                {**operation(paths=["/health"]), **when("request.headers[x-a]", "b")},
            ]
        },
        "deny": {"action": "DENY", "rules": [operation(paths=["/a/x"])]},
    }
)


def covered(policies: list[AuthorizationPolicy], suite: Suite) -> list[tuple[str, int, int]]:
    return [(rule.policy.name, rule.rule, rule.cases) for rule in coverage(policies, [suite])]


def test_coverage_counts_the_cases_that_match_a_rule() -> None:
    suite = one(
        "from: shop/web, request: GET /a/1, expect: allow",
        "from: shop/cart, request: GET /a/x, expect: deny",
        "from: none, request: GET /a/x, expect: deny",
    )
    assert covered(POLICIES, suite) == [("allow", 0, 2), ("allow", 1, 0), ("deny", 0, 1)]


def test_mutants_that_no_case_kills_are_named() -> None:
    suite = one("from: shop/web, request: GET /a/1, expect: allow", "from: shop/web, request: PUT /a/1, expect: deny")
    found = mutate(POLICIES, [suite])
    assert [f"{mutant.policy.name} {mutant.what}" for mutant in found.survived] == [
        "allow from.source.principals",
        "allow from.source.principals value td/ns/shop/sa/cart",
        "allow to.operation.paths",
        "allow rule 1",
        "allow to.operation.paths",
        "allow when request.headers[x-a]",
        "deny rule 0",
    ]
    assert (found.tried, found.killed, found.undecided) == (11, 4, ())


def test_cases_that_miss_every_clause() -> None:
    suite = one(
        "from: shop/web, request: GET /a/1, expect: allow",
        "from: shop/cart, request: GET /a/1, expect: allow",
        "from: shop/api, request: GET /a/1, expect: deny",
        "from: shop/web, request: PUT /a/1, expect: deny",
        "from: shop/web, request: GET /b, expect: deny",
        "from: shop/web, request: GET /a/x, expect: deny",
        "from: shop/web, request: GET /health, headers: {x-a: b}, expect: allow",
        "from: shop/web, request: GET /health, expect: deny",
        "from: shop/web, request: GET /b, headers: {x-a: b}, expect: deny",
    )
    found = mutate(POLICIES, [suite])
    assert [mutant.what for mutant in found.survived] == []
    assert found.score == 1.0


def test_a_change_that_no_request_would_miss_is_not_held_against_the_suite() -> None:
    policies = policies_of({"p": {"rules": [operation(paths=["/a*", "/a/b"])]}})
    suite = one("from: shop/web, request: GET /a, expect: allow", "from: shop/web, request: GET /b, expect: deny")
    found = mutate(policies, [suite])
    assert [mutant.what for mutant in found.superfluous] == ["to.operation.paths value /a/b"]
    assert (found.survived, found.score) == ((), 1.0)


def test_mutation_wants_suites_that_pass() -> None:
    with pytest.raises(ValueError, match="do not pass"):
        mutate(POLICIES, [one("from: shop/web, request: GET /a/1, expect: deny")])


def test_the_trust_domain_that_policies_name_most() -> None:
    assert likely_trust_domain(POLICIES) == "td"
    assert likely_trust_domain([]) == "cluster.local"
