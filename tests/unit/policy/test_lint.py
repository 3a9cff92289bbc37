"""``policy check``: each finding, its place, and that proper policies get none."""

from __future__ import annotations

from typing import Any

import pytest

from config.codes import PAGES
from config.problems import Problem
from proxy.policy.facts import WorkloadFacts
from proxy.policy.lint import lint
from tests.unit.policy.documents import policies_of, read

WEB = "td/ns/shop/sa/web"
API = WorkloadFacts("shop", {"app": "api"}, name="api")


def rule(principal: str = WEB, **operation: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"from": [{"source": {"principals": [principal]}}]}
    return {**found, "to": [{"operation": operation}]} if operation else found


def found_in(specs: dict[str, dict[str, Any]], **known: Any) -> list[Problem]:
    return lint(policies_of(specs), **known)


def said(specs: dict[str, dict[str, Any]], **known: Any) -> list[tuple[str, str, str]]:
    return [(problem.code, problem.subject.split()[-1], problem.message) for problem in found_in(specs, **known)]


def test_proper_policies_get_no_finding() -> None:
    specs = {
        "allow": {"rules": [rule(paths=["/a/*"], methods=["GET"]), rule(paths=["/b"])]},
        "deny": {"action": "DENY", "rules": [rule(paths=["/a/private/*"])]},
    }
    assert said(specs, workloads=[API], trust_domains=["td"]) == []


@pytest.mark.parametrize(
    "operation",
    [
        {"paths": ["/a/*"], "notPaths": ["/a*"]},
        {"paths": ["/a//b"]},  # never canonical
        {"methods": ["GET"], "notMethods": ["*"]},
        {"ports": ["80"], "notPorts": ["080"]},
        {"hosts": ["API"], "notHosts": ["api"]},
    ],
)
def test_a_rule_that_can_never_match(operation: dict[str, list[str]]) -> None:
    ((code, policy, message),) = said({"allow": {"rules": [rule(**operation)]}})
    assert (code, policy, message) == ("SW0303", "shop/allow", "this rule can never match")


def test_a_deny_rule_that_matches_on_tcp_only_is_told_so() -> None:
    ((code, _, message),) = said(
        {"deny": {"action": "DENY", "rules": [rule(paths=["/a/*"], notPaths=["/a*"])]}}
    )
    assert code == "SW0303"
    assert "on plain TCP" in message


def test_a_shadowed_rule_names_the_one_that_covers_it() -> None:
    specs = {"allow": {"rules": [rule(paths=["/a/b"]), rule(paths=["/a/*"])]}}
    ((code, _, message),) = said(specs)
    assert (code, message) == ("SW0304", "this rule changes nothing: shop/allow#1 allows all that it matches")


def test_of_two_equal_rules_the_later_one_is_shadowed() -> None:
    (problem,) = found_in({"allow": {"rules": [rule(paths=["/a"]), rule(paths=["/a"])]}})
    assert (problem.code, problem.path) == ("SW0304", "spec.rules[1]")


def test_two_rules_together_cover_a_third() -> None:
    specs = {"allow": {"rules": [rule(paths=["/a*"]), rule(notPaths=["/a*"]), rule(paths=["/*"])]}}
    (problem,) = found_in(specs)
    assert problem.path == "spec.rules[2]"
    assert "shop/allow#0, shop/allow#1 together allows" in problem.message


def test_a_deny_that_hides_an_allow_wholly_and_one_that_does_not() -> None:
    allow = {"rules": [rule(paths=["/admin/*"])]}
    specs = {"allow": allow, "deny": {"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/admin*"]}}]}]}}
    ((code, _, message),) = said(specs)
    assert (code, message) == ("SW0305", "this rule allows nothing: shop/deny#0 denies all that it matches")
    specs["deny"]["rules"] = [{"to": [{"operation": {"paths": ["/admin/x*"]}}]}]
    assert said(specs) == []


def test_what_is_in_dry_run_hides_nothing() -> None:
    policies, _ = read(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
        "metadata: {name: d, annotations: {istio.io/dry-run: 'true'}}\n"
        "spec: {action: DENY, rules: [{to: [{operation: {paths: ['/a*']}}]}]}\n---\n"
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\n"
        "spec: {rules: [{to: [{operation: {paths: ['/a*']}}]}]}\n"
    )
    assert lint(policies) == []


def test_another_selector_is_another_matter() -> None:
    specs = {
        "one": {"selector": {"matchLabels": {"app": "api"}}, "rules": [rule(paths=["/a"])]},
        "two": {"selector": {"matchLabels": {"app": "web"}}, "rules": [rule(paths=["/a"])]},
    }
    assert said(specs) == []
    specs["two"]["selector"] = {"matchLabels": {"app": "api", "tier": "x"}}
    assert said(specs) == [("SW0304", "shop/two", "this rule changes nothing: shop/one#0 allows all that it matches")]


def test_selectors_and_targets_that_select_nothing() -> None:
    specs = {
        "good": {"selector": {"matchLabels": {"app": "api"}}, "rules": [rule()]},
        "bad": {"selector": {"matchLabels": {"app": "apy"}}, "rules": [rule()]},
        "other/far": {"action": "DENY", "rules": [rule()]},
        "gone": {"targetRefs": [{"kind": "Service", "name": "stock"}], "rules": [rule()]},
    }
    found = [(code, policy) for code, policy, _ in said(specs, workloads=[API])]
    assert found == [("SW0306", "shop/bad"), ("SW0306", "other/far"), ("SW0306", "shop/gone")]
    assert "SW0306" not in {code for code, _, _ in said(specs)}


def test_principals_of_a_foreign_trust_domain() -> None:
    when = [{"key": "source.trustDomain", "values": ["far"]}, {"key": "source.principal", "notValues": ["far/x"]}]
    specs = {"a": {"rules": [rule("cluster.local/ns/shop/sa/web"), rule("*/ns/b/sa/x"), {"when": when}]}}
    found = [message.partition(",")[0] for _, _, message in said(specs, trust_domains=["td"])]
    assert found == [
        "'cluster.local' is not a trust domain of ours",
        "'far' is not a trust domain of ours",
        "'far' is not a trust domain of ours",
    ]
    assert said(specs) == []


def test_everything_and_nothing_are_said_aloud() -> None:
    specs: dict[str, dict[str, Any]] = {
        "nothing": {},
        "web/everything": {"rules": [{}]},
        "ops/shut": {"action": "DENY", "rules": [{}]},
    }
    found = [(problem.severity, problem.message) for problem in found_in(specs)]
    assert found == [
        ("info", "no rules: all workloads of namespace shop let nothing in but what other ALLOW policies do"),
        (
            "warning",
            "this rule matches everything: all workloads of namespace web let everybody in, also callers without a "
            "certificate",
        ),
        ("info", "this rule matches everything: all workloads of namespace ops deny every request"),
    ]


def test_the_same_policy_under_two_names() -> None:
    spec = {"rules": [rule(paths=["/a"])]}
    codes = [(problem.code, problem.subject) for problem in found_in({"one": spec, "two": spec})]
    assert ("SW0309", "AuthorizationPolicy shop/two") in codes


def test_what_was_not_worked_out_is_said() -> None:
    when = [{"key": "request.headers[:path]", "values": ["/a"]}]
    specs = {"a": {"rules": [{"when": when}, rule(paths=["/a"])]}}
    assert [code for code, _, _ in said(specs)] == ["SW0310"]
    specs = {"a": {"rules": [rule(paths=[f"/{letter}*"]) for letter in "abc"]}}
    (problem,) = found_in(specs, effort=5)
    assert problem.code == "SW0310"
    assert "more than 5 steps" in problem.hint


def test_every_finding_has_a_place_a_remedy_and_a_page() -> None:
    specs = {
        "a": {"rules": [rule(paths=["/a"]), rule(paths=["/a"]), {}, rule(paths=["/x//y"])]},
        "b": {"action": "DENY", "rules": [{}]},
    }
    for problem in found_in(specs, workloads=[WorkloadFacts("far")], trust_domains=["else"]):
        assert problem.file
        assert problem.line
        assert problem.column
        assert problem.hint
        assert problem.code in PAGES
