"""What the exact difference says about classes, facts and workloads, and when it gives up."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.policy.analysis import TooComplex, diff
from proxy.policy.analysis_report import NOTHING, diff_data, render_diff
from proxy.policy.facts import WorkloadFacts
from tests.unit.policy.documents import policies_of

API = WorkloadFacts("shop", {"app": "api"}, name="api")


def rule(*principals: str, when: list[dict[str, Any]] | None = None, **operation: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"from": [{"source": {"principals": list(principals or ["td/ns/shop/sa/web"])}}]}
    if operation:
        found["to"] = [{"operation": operation}]
    return {**found, "when": when} if when else found


def changes(old: dict[str, Any], new: dict[str, Any], **settings: Any) -> tuple[list[str], list[str]]:
    """The requests that are newly allowed, and those newly denied, one word for each class."""
    found = diff(policies_of(old), policies_of(new), **settings)
    assert not found.unknown
    return [c.request.path or "TCP" for c in found.allowed], [c.request.path or "TCP" for c in found.denied]


def test_the_same_written_otherwise_is_no_change() -> None:
    old = {"a": {"rules": [rule(paths=["/a", "/b*"], methods=["GET"])]}}
    new = {
        "a": {"rules": [rule(paths=["/b*"], methods=["GET"])]},
        "b": {"rules": [rule(paths=["/a", "/b/c"], methods=["GET"])]},
    }
    assert changes(old, new) == ([], [])


def test_a_wider_and_a_narrower_path() -> None:
    old, new = {"a": {"rules": [rule(paths=["/a/{*}"])]}}, {"a": {"rules": [rule(paths=["/a/*"])]}}
    ((path,), denied) = changes(old, new)
    assert path.startswith("/a/")
    assert denied == []
    assert changes(new, old) == ([], [path])


def test_a_deny_that_takes_a_part_away() -> None:
    old = {"a": {"rules": [rule(paths=["/a*"])]}}
    new = {**old, "d": {"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/a/x"]}}]}]}}
    assert changes(old, new) == ([], ["/a/x"])


def test_the_first_allow_policy_of_a_workload_denies_the_rest_under_istios_default() -> None:
    new = {"a": {"selector": {"matchLabels": {"app": "api"}}, "rules": [rule(paths=["/a"])]}}
    found = diff([], policies_of(new), default="istio")
    assert {change.request.protocol for change in found.denied} == {"http", "tcp"}
    assert all(change.workload.labels == {"app": "api"} for change in found.denied)
    assert diff([], policies_of(new)).denied == ()


def test_policies_on_routes_and_services() -> None:
    def spec(kind: str, name: str) -> dict[str, Any]:
        return {"targetRefs": [{"kind": kind, "name": name}], "rules": [rule(paths=["/a"])]}

    found = diff([], policies_of({"a": spec("HTTPRoute", "main")}))
    assert [change.request.route for change in found.allowed] == ["main"]
    found = diff([], policies_of({"a": spec("Service", "api")}))
    assert [(change.workload.namespace, change.workload.name) for change in found.allowed] == [("shop", "api")]
    assert diff([], policies_of({"a": spec("Service", "web")}), workload=API).allowed == ()


def test_paths_that_only_a_normalization_of_istios_lets_through() -> None:
    old = policies_of({"a": {"rules": [rule(paths=["/a"])]}})
    new = policies_of({"a": {"rules": [rule(paths=["/a", "/a//b"])]}})
    assert not diff(old, new)
    assert [change.request.path for change in diff(old, new, strict_paths=False).allowed] == ["/a//b"]


def test_audit_and_dry_run_change_nothing() -> None:
    assert changes({}, {"a": {"action": "AUDIT", "rules": [{}]}}) == ([], [])


def test_who_has_a_peer_has_a_client_address() -> None:
    def spec(**source: list[str]) -> dict[str, Any]:
        return {"a": {"rules": [{"from": [{"source": source}]}]}}

    some = {"ipBlocks": ["10.0.0.0/8"], "notRemoteIpBlocks": ["0.0.0.0/0", "::/0"]}
    assert changes(spec(ipBlocks=["10.0.0.1"]), {"a": {"rules": [*spec(ipBlocks=["10.0.0.1"])["a"]["rules"], {"from": [{"source": some}]}]}}) == ([], [])


def test_several_values_of_a_header_and_of_a_claim() -> None:
    def when(key: str) -> dict[str, Any]:
        both = [{"key": key, "values": ["a"]}, {"key": key, "values": ["b"]}]
        return {"p": {"rules": [rule(when=both)]}}

    (change,) = diff([], policies_of(when("request.headers[x-a]"))).allowed
    assert sorted(change.request.header("x-a") or ()) == ["a", "b"]
    (change,) = diff([], policies_of(when("request.auth.claims[groups]"))).allowed
    assert sorted(change.request.claim("groups")) == ["a", "b"]


def test_the_report_names_place_fact_example_and_both_verdicts() -> None:
    old = policies_of({"a": {"rules": [rule(methods=["GET"])]}})
    new = policies_of({"a": {"rules": [rule(methods=["GET", "PUT"])]}})
    assert render_diff(diff(old, new, workload=API)) == [
        "newly allowed: 1 class of requests",
        "  shop/a rule 0   policy/api.yaml:1   by methods",
        "      e.g.  td/ns/shop/sa/web  PUT /",
        "            to shop/api",
        "      old   denied: no ALLOW policy matched (nearest shop/a#0:methods)",
        "      new   allowed by shop/a#0",
    ]
    assert render_diff(diff(old, old)) == [NOTHING]


def test_many_classes_are_counted() -> None:
    new = policies_of({"a": {"rules": [rule(paths=[f"/p{number}"]) for number in range(5)]}})
    assert render_diff(diff([], new), limit=2)[-1] == "  and 3 more"


def test_it_says_when_it_gave_up_and_then_is_never_empty() -> None:
    new = policies_of({"a": {"rules": [rule(paths=[f"*{letter}"], notPaths=["*y"]) for letter in "abc"]}})
    found = diff([], new, effort=40)
    assert found
    assert found.unknown == "more than 40 steps"
    assert render_diff(found)[-1] == "not everything could be compared, there may be more: more than 40 steps"
    assert diff_data(found)["unknown"] == "more than 40 steps"


@pytest.mark.parametrize("name", [":path", ":authority", "host"])
def test_conditions_that_are_beyond_analysis_are_refused(name: str) -> None:
    new = policies_of({"a": {"rules": [rule(when=[{"key": f"request.headers[{name}]", "values": ["a"]}])]}})
    with pytest.raises(TooComplex, match="is not analysed"):
        diff([], new)
