"""``policy learn``: the document as printed, and what it is learned from."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from proxy.policy.flows import FlowRecord
from proxy.policy.learn import CannotLearn, learn, pattern_of

WEB, CART = "td/ns/shop/sa/web", "td/ns/shop/sa/cart"


def flow(caller: str | None, line: str, **facts: Any) -> FlowRecord:
    method, path = line.split()
    return FlowRecord("shop/api", caller, "http", method, "api", path, **{"port": 8080, **facts})


LEARNED = """\
# Learned from 1037 calls, paths as template. What was not seen is not allowed.
# Irreducible, which is not the same as smallest: without any one of these values the call that is
# cited beside it would be denied.
# Left out: 4 calls that had been denied.
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: api-learned
  namespace: shop
spec:
  selector:
    matchLabels:
      app: api
  action: ALLOW
  rules:
  - from:
    - source:
        notPrincipals:
        - "*"  # callers without a certificate: 5 calls, e.g. GET /health
    to:
    - operation:
        methods:
        - GET  # 5 calls, e.g. GET /health
        paths:
        - /health  # 5 calls, e.g. GET /health
  - from:
    - source:
        principals:
        - td/ns/shop/sa/cart  # 29 calls, e.g. GET /orders/9
        - td/ns/shop/sa/web  # 1003 calls, e.g. GET /orders/18 on 2023-11-14 22:13, trace 4bf9
    to:
    - operation:
        methods:
        - GET  # 1032 calls, e.g. GET /orders/18 on 2023-11-14 22:13, trace 4bf9
        paths:
        - "/orders/{*}"  # 1032 calls, e.g. GET /orders/18 on 2023-11-14 22:13, trace 4bf9
"""


def test_the_document_cites_a_call_beside_every_value() -> None:
    flows = [
        flow(WEB, "GET /orders/17", count=1000, last=1.6e9),
        flow(WEB, "GET /orders/18", count=3, last=1.7e9, trace_id="4bf9"),
        flow(CART, "GET /orders/9", count=29),
        flow(None, "GET /health", count=5),
        flow(CART, "DELETE /orders/9", count=4, verdict="denied"),
        dataclasses.replace(flow(CART, "GET /x"), workload="shop/other"),
    ]
    found = learn(flows, to="shop/api")
    assert found.text == LEARNED
    assert (found.calls, found.left_out) == (1037, 4)


def test_what_was_denied_can_be_learned_as_well() -> None:
    flows = [flow(CART, "DELETE /orders/9", verdict="denied")]
    with pytest.raises(CannotLearn, match="nobody was seen calling shop/api, but 1 call that had been denied"):
        learn(flows, to="shop/api")
    assert "- DELETE" in learn(flows, to="shop/api", include_denied=True).text


def test_what_an_audit_lets_pass_is_learned() -> None:
    assert "- DELETE" in learn([flow(CART, "DELETE /orders/9", verdict="audited")], to="shop/api").text


def test_ports_are_named_when_there_are_several() -> None:
    flows = [flow(WEB, "GET /a"), flow(WEB, "GET /metrics", port=9090), flow(CART, "GET /a", port=9090)]
    operations = learn(flows, to="shop/api").policy.rules[1].operations
    assert [[(c.field, c.values) for c in entry.clauses] for entry in operations] == [
        [("methods", ("GET",)), ("paths", ("/a",)), ("ports", ("8080",))],
        [("methods", ("GET",)), ("paths", ("/metrics",)), ("ports", ("9090",))],
    ]


def test_bytes_open_a_port_which_the_document_says() -> None:
    tcp = FlowRecord("shop/api", WEB, "tcp", port=5432)
    found = learn([tcp, flow(WEB, "GET /a", port=5432), flow(CART, "GET /a")], to="shop/api")
    assert "# A port where bytes were seen is open to its callers for HTTP as well." in found.text
    assert '- "5432"  # 2 calls' in found.text


def test_bytes_have_a_rule_of_their_own_as_methods_do_not_count_there() -> None:
    flows = [FlowRecord("shop/api", WEB, "tcp", port=5432), flow(WEB, "GET /a")]
    assert len(learn(flows, to="shop/api").policy.rules) == 2


@pytest.mark.parametrize(
    ("path", "exact", "template", "prefix"),
    [
        ("/", "/", "/", "/"),
        ("/health", "/health", "/health", "/health"),
        ("/orders/17", "/orders/17", "/orders/{*}", "/orders/*"),
        ("/orders/17/items", "/orders/17/items", "/orders/{*}/items", "/orders/*"),
        ("/v1/users/a@b.c", "/v1/users/a@b.c", "/v1/users/{*}", "/v1/users/*"),
        ("/17", "/17", "/{*}", "/*"),
        ("/a/b/", "/a/b/", "/a/b/", "/a/b/*"),
        ("/shop.Stock/Reserve", "/shop.Stock/Reserve", "/shop.Stock/Reserve", "/shop.Stock/*"),
        ("/a/x", "/a/x", "/a/x", "/a/*"),  # x is what shapes say for something long: in a path it is a name
        # What cannot be written as it is
        ("/a/b*", "/a/{*}", "/a/{*}", "/a/*"),
        ("/a/{b}", "/a/*", "/a/*", "/a/*"),
        ("/a{b", "/*", "/*", "/*"),
        ("*", "**", "**", "**"),
    ],
)
def test_the_value_that_stands_for_a_path(path: str, exact: str, template: str, prefix: str) -> None:
    assert [pattern_of(path, "exact"), pattern_of(path, "template"), pattern_of(path, "prefix")] == [
        exact,
        template,
        prefix,
    ]


def test_of_a_shape_placeholders_stay_open_whatever_the_style() -> None:
    assert pattern_of("/orders/0/x", "exact", shaped=True) == "/orders/{*}/{*}"
    assert pattern_of("/orders/0/x", "template", shaped=True) == "/orders/{*}/{*}"
    found = learn([flow(WEB, "GET /orders/0", template=True)], to="shop/api", paths="exact")
    assert "Of some paths only the shape was recorded" in found.text


def test_values_that_yaml_would_read_as_something_else_are_quoted() -> None:
    found = learn([dataclasses.replace(flow("1.2", "GET /a"), workload="on/no")], to="on/no", labels={"y": "1e3"})
    assert '  name: no-learned\n  namespace: "on"\n' in found.text
    assert '      "y": "1e3"\n' in found.text
    assert found.policy.selector == (("y", "1e3"),)
    assert found.policy.rules[0].sources[0].clauses[0].values == ("1.2",)


def test_a_workload_must_be_named_whole() -> None:
    with pytest.raises(ValueError, match="namespace/name"):
        learn([], to="api")


def test_too_much_for_one_document() -> None:
    flows = [flow(WEB, f"GET /{number:x}-{'y' * 400}") for number in range(2000)]
    with pytest.raises(CannotLearn, match="too much for one document"):
        learn(flows, to="shop/api", paths="exact")
    assert learn(flows, to="shop/api", paths="template")


def test_too_many_kinds_of_callers_for_one_policy() -> None:
    flows = [flow(f"td/ns/a/sa/s{number}", f"GET /p{number}") for number in range(513)]
    with pytest.raises(CannotLearn, match="513 kinds of callers"):
        learn(flows, to="shop/api", paths="exact")
