"""``policy replay``: what changes for calls that were seen, and what was not seen."""

from __future__ import annotations

from typing import Any

from proxy.policy.facts import WorkloadFacts
from proxy.policy.flows import FlowRecord
from proxy.policy.replay import render_replay, replay, replay_data
from tests.unit.policy.documents import policies_of

WEB, CART = "td/ns/shop/sa/web", "td/ns/shop/sa/cart"


def flow(caller: str | None, line: str, **facts: Any) -> FlowRecord:
    method, path = line.split()
    return FlowRecord("shop/api", caller, "http", method, "api", path, **{"port": 8080, **facts})


def allow(principal: str, *paths: str, **more: Any) -> dict[str, Any]:
    return {
        "from": [{"source": {"principals": [principal]}}],
        "to": [{"operation": {"paths": list(paths)}}],
        **more,
    }


OLD = policies_of({"allow": {"rules": [allow(WEB, "/orders/*"), allow(CART, "/cart")]}})
NEW = policies_of({"allow": {"rules": [allow(WEB, "/orders/{*}"), allow(CART, "*"), allow(CART, "/never")]}})

TOLD = """\
newly denied: 7 calls
  7  td/ns/shop/sa/web  shop/api  GET /orders/0/items
      old   allowed by shop/allow#0
      new   denied: no ALLOW policy matched (nearest shop/allow#0:paths)
      e.g.  t2, t1

newly allowed: 4 calls
  4  td/ns/shop/sa/cart  shop/api  GET /other
      old   denied: no ALLOW policy matched (nearest shop/allow#1:paths)
      new   allowed by shop/allow#1

judged: 21 calls in 5 records
not seen: a call that rule 2 of shop/allow decides   policy/api.yaml:1
not seen: any call to shop/stock"""


def flows() -> list[FlowRecord]:
    return [
        flow(WEB, "GET /orders/17/items", count=3, trace_id="t1", first=1.0, last=5.0),
        flow(WEB, "GET /orders/18/items", count=4, trace_id="t2", first=2.0, last=9.0),
        flow(WEB, "GET /orders/17", count=5),
        flow(CART, "GET /other", count=4, verdict="denied"),
        flow(CART, "GET /cart", count=5),
    ]


def test_changes_by_caller_and_route_with_examples_and_what_was_not_seen() -> None:
    known = {name: WorkloadFacts("shop", {"app": name}, name=name) for name in ("api", "stock")}
    workloads = {str(workload): workload for workload in known.values()}
    found = replay(flows(), OLD, NEW, workloads=workloads)
    assert "\n".join(render_replay(found)) == TOLD


def test_the_stable_json_form() -> None:
    data = replay_data(replay(flows(), OLD, NEW))
    assert data["newlyDenied"][0]["count"] == 7
    assert data["newlyDenied"][0]["traces"] == ["t2", "t1"]
    assert data["newlyDenied"][0]["old"]["policy"] == "shop/allow"
    assert (data["newlyAllowed"][0]["caller"], data["newlyAllowed"][0]["route"]) == (CART, "GET /other")
    assert data["notSeen"]["rules"] == ["shop/allow#2"]


def test_no_change_is_said_of_the_calls_that_were_judged() -> None:
    assert render_replay(replay(flows(), OLD, OLD))[0] == "no verdict changes: 21 calls judged"


def test_facts_that_no_record_has_are_named() -> None:
    when = [{"key": "request.headers[x-team]", "values": ["ops"]}]
    source = [{"source": {"requestPrincipals": ["i/s"]}}]
    new = policies_of({"allow": {"rules": [allow(WEB, "/orders/*", when=when), {"from": source}]}})
    found = replay([flow(WEB, "GET /orders/17")], OLD, new)
    assert found.unseen.facts == ("request.headers[x-team]", "requestPrincipals")
    assert [group.count for group in found.denied] == [1]


def test_shapes_and_drift_are_counted() -> None:
    some = [flow(WEB, "GET /orders/0", template=True, count=6), flow(WEB, "GET /orders/1", verdict="denied", count=2)]
    unseen = replay(some, OLD, OLD).unseen
    assert (unseen.shapes, unseen.drifted) == (6, 2)


def test_bytes_and_callers_without_certificate() -> None:
    tcp = FlowRecord("shop/api", None, "tcp", port=5432, count=2)
    new = policies_of({"allow": {"rules": [{"to": [{"operation": {"ports": ["5432"]}}]}]}})
    (group,) = replay([tcp], OLD, new).allowed
    assert (group.caller, group.route, group.count) == (None, "TCP 5432", 2)


def test_labels_of_workloads_count() -> None:
    spec = {"selector": {"matchLabels": {"tier": "back"}}, "rules": [allow(WEB, "*")]}
    new = policies_of({"allow": spec})
    back = WorkloadFacts("shop", {"tier": "back"}, name="api")
    one = [flow(WEB, "GET /x")]
    assert replay(one, OLD, new).allowed == ()
    assert len(replay(one, OLD, new, workloads={"shop/api": back}).allowed) == 1
