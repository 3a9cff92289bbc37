from __future__ import annotations

from proxy.policy.engine import AccessRequest, CompiledPolicies, Default, WorkloadFacts, compile_policies, decide
from proxy.policy.explain import apply_edits, explain, render
from tests.unit.policy.documents import policies_of, read
from tests.unit.policy.questions import ask

SHOP = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: allow-web
  namespace: shop
spec:
  action: ALLOW
  rules:
  - from:
    - source:
        principals: [shop.internal/ns/shop/sa/web]
    to:
    - operation:
        methods: [GET, HEAD]
        paths: [/orders/*]

---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow-ops, namespace: shop}
spec:
  rules:
  - from:
    - source: {principals: [shop.internal/ns/ops/sa/*]}
"""
WEB = "shop.internal/ns/shop/sa/web"
API = WorkloadFacts("shop", {"app": "api"}, name="api")


def shop(default: Default = "deny", *, more: str = "") -> CompiledPolicies:
    policies, problems = read(SHOP + more)
    assert not problems
    return compile_policies(policies, API, default)


def said(policies: CompiledPolicies, line: str, *, unicode: bool = True) -> str:
    return "\n".join(render(explain(policies, ask(line)), unicode=unicode))


def remedy(policies: CompiledPolicies, line: str) -> str:
    return said(policies, line).partition("to allow it   ")[2]


def test_a_denial_is_explained_clause_by_clause_with_the_nearest_miss_and_the_edit() -> None:
    assert said(shop(), f"{WEB} DELETE /orders/17") == """\
DENY   2 ALLOW policies select shop/api, none matches

  AuthorizationPolicy shop/allow-web                policy/api.yaml:1
    rule 0   from.source.principals   √  shop.internal/ns/shop/sa/web
             to.operation.methods     ×  DELETE is not in GET, HEAD        <- nearest miss
             to.operation.paths       √  /orders/*
  AuthorizationPolicy shop/allow-ops                policy/api.yaml:18
    rule 0   from.source.principals   ×  shop.internal/ns/ops/sa/*

to allow it   policy/api.yaml:14   methods: [GET, HEAD, DELETE]"""


def test_marks_are_ascii_where_the_terminal_needs_it() -> None:
    text = said(shop(), f"{WEB} DELETE /orders/17", unicode=False)
    assert text.isascii()
    assert "from.source.principals   ok shop.internal/ns/shop/sa/web" in text
    assert "to.operation.methods     x  DELETE is not in GET, HEAD        <- nearest miss" in text


def test_what_allows_is_shown_alone() -> None:
    assert said(shop(), f"{WEB} GET /orders/17") == """\
ALLOW  rule 0 of ALLOW policy shop/allow-web matches

  AuthorizationPolicy shop/allow-web                policy/api.yaml:1
    rule 0   from.source.principals   √  shop.internal/ns/shop/sa/web
             to.operation.methods     √  GET
             to.operation.paths       √  /orders/*"""


def test_a_deny_rule_that_matches_is_shown() -> None:
    policies = compile_policies(
        policies_of({"no-admin": {"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/admin*"]}}]}]}}), API
    )
    text = said(policies, "web GET /admin/x")
    assert text.startswith("DENY   rule 0 of DENY policy shop/no-admin matches\n")
    assert "AuthorizationPolicy shop/no-admin (DENY)" in text
    assert remedy(policies, "web GET /admin/x") == "narrow or remove rule 0 of shop/no-admin"


def test_without_any_policy_a_least_rule_is_proposed() -> None:
    assert said(compile_policies([], API), "web GET /orders/1") == """\
DENY   no ALLOW policy selects shop/api (policy.default: deny)

to allow it   add a rule to an ALLOW policy that selects shop/api:  {from: [{source: {principals: \
[td/ns/shop/sa/web]}}], to: [{operation: {methods: [GET], paths: [/orders/1]}}]}"""


def test_a_policy_without_rules_says_so() -> None:
    text = said(compile_policies(policies_of({"nothing": {}}), API), "web GET /")
    assert "1 ALLOW policy selects shop/api, it does not match" in text
    assert "    no rules, so it matches nothing" in text


def test_audit_says_that_it_lets_pass_what_would_be_denied() -> None:
    text = said(shop("audit"), f"{WEB} DELETE /orders/17")
    assert text.startswith("ALLOW  2 ALLOW policies select shop/api, none matches; policy.default: audit lets")
    assert "<- nearest miss" in text


def test_a_caller_without_a_certificate_is_told_to_bring_one() -> None:
    assert "(the caller has none)" in said(shop(), "- GET /orders/17")
    assert remedy(shop(), "- GET /orders/17").startswith("call with a client certificate")


def test_on_tcp_a_rule_with_http_fields_does_not_count() -> None:
    text = said(shop(), f"{WEB} TCP")
    assert "rule 0   ×  does not count on TCP: only HTTP has methods, paths" in text
    assert "from.source.principals   ×  shop.internal/ns/ops/sa/*        <- nearest miss" in text


def test_on_tcp_a_deny_rule_says_which_fields_it_lost() -> None:
    policies = compile_policies(
        policies_of({"d": {"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/x"]}}]}]}}), API
    )
    assert "rule 0   √  matches everything, as TCP has no paths" in said(policies, "web TCP")


def test_several_misses_are_several_edits_that_allow_together() -> None:
    policies = shop()
    found = explain(policies, ask(f"{WEB} PUT /carts/1"))
    assert [str(edit) for edit in found.edits] == ["methods: [GET, HEAD, PUT]", "paths: [/orders/*, /carts/1]"]
    edited = compile_policies([apply_edits(policy, found.edits) for policy in policies.policies], API)
    assert decide(edited, ask(f"{WEB} PUT /carts/1")).allowed
    assert not decide(edited, ask(f"{WEB} PATCH /carts/1")).allowed


def test_a_not_clause_loses_the_value_that_excludes() -> None:
    spec = {"rules": [{"to": [{"operation": {"paths": ["/*"], "notPaths": ["/admin*", "/x"]}}]}]}
    policies = compile_policies(policies_of({"a": spec}), API)
    assert "× " in said(policies, "web GET /admin")
    assert "/admin is excluded by /admin*" in said(policies, "web GET /admin")
    assert remedy(policies, "web GET /admin").endswith("notPaths: [/x]")
    assert remedy(policies, "web GET /admin/x").endswith("notPaths: [/x]")


def test_a_not_clause_with_one_value_is_removed() -> None:
    spec = {"rules": [{"to": [{"operation": {"paths": ["/*"], "notMethods": ["PUT"]}}]}]}
    assert remedy(compile_policies(policies_of({"a": spec}), API), "web PUT /").endswith("remove notMethods")


def test_the_entry_that_comes_nearest_is_shown_with_its_number() -> None:
    operations = [{"methods": ["GET"], "paths": ["/a"]}, {"paths": ["/b"], "methods": ["PUT"]}]
    spec = {"rules": [{"to": [{"operation": operation} for operation in operations]}]}
    text = said(compile_policies(policies_of({"a": spec}), API), "web POST /b")
    assert "to[1].operation.methods" in text
    assert "to[0]" not in text


def test_values_are_quoted_where_yaml_needs_it() -> None:
    spec = {"rules": [{"to": [{"operation": {"ports": ["80"]}}]}]}
    assert remedy(compile_policies(policies_of({"a": spec}), API), "web GET / port=8080").endswith(
        'ports: ["80", "8080"]'
    )


def test_a_text_that_cannot_be_written_exactly_is_not_offered_as_an_edit() -> None:
    found = explain(shop(), ask(f"{WEB} GET /x*"))
    assert found.edits == ()
    assert "add a rule" in found.advice


def test_many_policies_are_cut_and_counted() -> None:
    specs = {f"p{n:02}": {"rules": [{"to": [{"operation": {"methods": [f"M{n}"]}}]}]} for n in range(30)}
    text = said(compile_policies(policies_of(specs), API), "web GET /")
    assert text.count("AuthorizationPolicy") == 10
    assert "  and 20 more, none nearer" in text


def test_what_a_caller_sent_cannot_drive_the_terminal() -> None:
    request = ask(f"{WEB} GET /x")
    request.method = "\x1b[31mGET"
    text = "\n".join(render(explain(shop(), request)))
    assert "\x1b" not in text
    assert "\\x1b[31mGET is not in GET, HEAD" in text


# -- the whole language -----------------------------------------------------------------------------------------

TENANTS = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: tenants, namespace: shop}
spec:
  rules:
  - from: [{source: {ipBlocks: [10.0.0.0/8]}}]
    to: [{operation: {paths: ["/orders/{*}"]}}]
    when:
    - key: request.headers[X-Tenant]
      values: [blue, green]
    - key: request.auth.claims[groups]
      notValues: [banned]
"""


def tenants(**facts: object) -> str:
    policies, problems = read(TENANTS)
    assert not problems
    given: dict[str, object] = {"method": "GET", "host": "api", "path": "/orders/1", "source_ip": "10.1.1.1", **facts}
    request = AccessRequest(principal=None, namespace=None, port=8080, **given)  # type: ignore[arg-type]
    return "\n".join(render(explain(compile_policies(policies, API), request)))


def test_conditions_are_shown_beside_the_fields_with_the_edit_of_their_lists() -> None:
    assert tenants(headers={"x-tenant": ["red", "pink"]}, claims={"groups": ["a"]}) == """\
DENY   1 ALLOW policy selects shop/api, it does not match

  AuthorizationPolicy shop/tenants                  policy/api.yaml:1
    rule 0   from.source.ipBlocks                        √  10.0.0.0/8
             when request.headers[x-tenant]              ×  red, pink is not in blue, green        <- nearest miss
             when request.auth.claims[groups] notValues  √  not banned
             to.operation.paths                          √  /orders/{*}

to allow it   policy/api.yaml:9   values of request.headers[x-tenant]: [blue, green, red]"""


def test_a_condition_that_excludes_loses_the_value() -> None:
    found = tenants(headers={"x-tenant": "blue"}, claims={"groups": ["a", "banned"]})
    assert "×  a, banned is excluded by banned" in found
    assert found.endswith("policy/api.yaml:11   remove notValues of request.auth.claims[groups]")


def test_what_the_request_lacks_is_asked_for() -> None:
    found = tenants()
    assert "×  blue, green   (the request has none)" in found
    assert found.endswith("to allow it   call with request.headers[x-tenant]: blue, green")


def test_an_address_outside_the_blocks_is_offered_as_an_edit() -> None:
    found = tenants(source_ip="11.0.0.1", headers={"x-tenant": "blue"})
    assert "×  11.0.0.1 is not in 10.0.0.0/8" in found
    assert found.endswith('policy/api.yaml:6   ipBlocks: ["10.0.0.0/8", "11.0.0.1"]')


def test_what_is_not_enforced_is_said() -> None:
    more = {"l": {"action": "AUDIT", "rules": [{}]}, "a": {"rules": [{}]}}
    lines = render(explain(compile_policies(policies_of(more), API), ask("web GET /")))
    assert "  not enforced: audit shop/l#0" in lines


def test_a_policy_on_another_route_is_not_counted() -> None:
    specs = {"a": {"targetRefs": [{"kind": "HTTPRoute", "name": "admin"}], "rules": [{}]}}
    found = explain(compile_policies(policies_of(specs), API), ask("web GET /"))
    assert found.summary == "no ALLOW policy selects shop/api (policy.default: deny)"
    assert found.policies == ()
