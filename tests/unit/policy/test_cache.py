"""``DecisionCache``: the same answers, remembered by no more than the policies look at, in bounded space."""

from __future__ import annotations

import pytest

from proxy.errors import AccessDenied
from proxy.policy import engine
from proxy.policy.engine import CompiledPolicies, Decision, DecisionCache, WorkloadFacts, compile_policies
from tests.unit.policy.documents import policies_of
from tests.unit.policy.questions import ask

WEB_READS = {
    "rules": [
        {
            "from": [{"source": {"principals": ["td/ns/shop/sa/web"]}}],
            "to": [{"operation": {"methods": ["GET"], "paths": ["/orders/*"]}}],
        }
    ]
}


def compiled(**specs: object) -> CompiledPolicies:
    return compile_policies(policies_of(specs), WorkloadFacts("shop"))  # type: ignore[arg-type]


def cache_of(policies: CompiledPolicies, size: int = 64) -> DecisionCache:
    return DecisionCache(policies, size)


def ask_cache(cache: DecisionCache, path: bytes = b"/orders/1", caller: str = "web", port: int = 8080) -> Decision:
    try:
        permit = cache.authorize(
            principal=f"td/ns/shop/sa/{caller}",
            namespace="shop",
            port=port,
            method=b"GET",
            host=b"api.shop",
            path=path,
        )
    except AccessDenied as error:
        return error.decision
    return permit.decision


def test_a_failed_evaluation_is_not_remembered() -> None:
    cache = cache_of(compiled(a=WEB_READS))
    with pytest.raises(AccessDenied) as caught:
        cache.authorize(
            principal=7,  # type: ignore[arg-type]
            namespace=None,
            port=1,
            method=b"GET",
            host=b"h",
            path=b"/orders/1",
        )
    denied = caught.value.decision
    assert denied.reason == "authorization_failed"
    assert len(cache) == 0


def test_a_hit_asks_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(compiled(a=WEB_READS))
    first = ask_cache(cache)
    monkeypatch.setattr(engine, "decide", lambda *args: pytest.fail("asked again"))
    assert ask_cache(cache) is first


def test_denials_are_remembered_too(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(compiled(a=WEB_READS))
    first = ask_cache(cache, caller="cart")
    monkeypatch.setattr(engine, "decide", lambda *args: pytest.fail("asked again"))
    assert not first.allowed
    assert ask_cache(cache, caller="cart") is first


@pytest.mark.parametrize(
    ("source", "operation", "facts"),
    [
        (None, None, frozenset()),
        ({"principals": ["*"]}, None, {"principals"}),
        ({"notNamespaces": ["a"]}, {"methods": ["GET"], "notHosts": ["x"]}, {"namespaces", "methods", "hosts"}),
        (None, {"paths": ["/*"], "notPorts": ["1"]}, {"paths", "ports"}),
    ],
)
def test_the_facts_that_policies_look_at_are_known(
    source: dict[str, list[str]] | None, operation: dict[str, list[str]] | None, facts: frozenset[str]
) -> None:
    rule: dict[str, object] = {}
    if source:
        rule["from"] = [{"source": source}]
    if operation:
        rule["to"] = [{"operation": operation}]
    assert compiled(a={"rules": [rule]}).http_facts_used == facts


def test_paths_that_no_policy_looks_at_share_an_entry() -> None:
    cache = cache_of(compiled(a={"rules": [{"from": [{"source": {"principals": ["*/sa/web"]}}]}]}))
    for n in range(1000):
        assert ask_cache(cache, f"/{n}".encode()).allowed
    assert len(cache) == 1


def test_ports_are_told_apart_where_a_policy_looks_at_them() -> None:
    cache = cache_of(compiled(a={"rules": [{"to": [{"operation": {"ports": ["8080"]}}]}]}))
    assert ask_cache(cache, port=8080).allowed
    assert not ask_cache(cache, port=8081).allowed
    assert ask_cache(cache, port=8080).allowed


@pytest.mark.parametrize(
    ("source", "operation", "allowed", "denied"),
    [
        ({"principals": ["*/sa/web"]}, None, "web GET /", "cart GET /"),
        ({"namespaces": ["shop"]}, None, "web GET /", "td/ns/ops/sa/web GET /"),
        ({"notNamespaces": ["ops"]}, None, "web GET /", "td/ns/ops/sa/web GET /"),
        (None, {"methods": ["GET"]}, "web GET /", "web PUT /"),
        (None, {"notHosts": ["b"]}, "web GET / host=a", "web GET / host=b"),
        (None, {"paths": ["/"]}, "web GET /", "web GET /x"),
        (None, {"notPorts": ["1"]}, "web GET / port=2", "web GET / port=1"),
    ],
)
def test_requests_that_differ_in_a_fact_that_policies_look_at_never_share_an_entry(
    source: object, operation: object, allowed: str, denied: str
) -> None:
    rule = {"from": [{"source": source}]} if source else {"to": [{"operation": operation}]}
    cache = cache_of(compiled(a={"rules": [rule]}))
    for line, expected in [(allowed, True), (denied, False), (allowed, True)]:
        request = ask(line)
        facts = {"principal": request.principal, "namespace": request.namespace, "port": request.port}
        wire = {name: getattr(request, name).encode() for name in ("method", "host", "path")}
        try:
            answer = cache.authorize(**facts, **wire).decision.allowed  # type: ignore[arg-type]
        except AccessDenied:
            answer = False
        assert answer is expected


def test_the_cache_never_grows_beyond_its_bound() -> None:
    cache = cache_of(compiled(a=WEB_READS), 10)
    for n in range(1000):
        ask_cache(cache, f"/orders/{n}".encode())
        assert len(cache) <= 10


def test_what_is_in_use_survives_a_flood_of_made_up_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(compiled(a=WEB_READS), 100)
    kept = ask_cache(cache)
    for n in range(1000):
        ask_cache(cache, f"/flood/{n}".encode())
        if n % 20 == 0:
            with monkeypatch.context() as patch:
                patch.setattr(engine, "decide", lambda *args: pytest.fail("was forgotten"))
                assert ask_cache(cache) is kept


def test_very_long_requests_are_decided_and_not_remembered() -> None:
    cache = cache_of(compiled(a=WEB_READS))
    assert ask_cache(cache, b"/orders/" + b"x" * 2000).allowed
    assert len(cache) == 0


def test_bytes_above_ascii_are_compared_as_bytes() -> None:
    policies = compiled(a={"rules": [{"to": [{"operation": {"paths": ["/é"]}}]}]})
    cache = cache_of(policies)
    assert ask_cache(cache, "/é".encode()).allowed
    assert not ask_cache(cache, "/é".encode("latin-1")).allowed


@pytest.mark.parametrize(
    ("rule", "more"),
    [
        ({"from": [{"source": {"principals": ["*"], "notTrustDomains": ["x"]}}]}, False),
        ({"from": [{"source": {"serviceAccounts": ["web"]}}]}, False),
        ({"when": [{"key": "request.headers[:method]", "values": ["GET"]}]}, False),
        ({"when": [{"key": "request.headers[:authority]", "values": ["x"]}]}, False),
        ({"when": [{"key": "destination.port", "values": ["80"]}]}, False),
        ({"when": [{"key": "request.headers[:path]", "values": ["/a"]}]}, True),
        ({"when": [{"key": "request.headers[x-a]", "values": ["y"]}]}, True),
        ({"when": [{"key": "request.auth.claims[a]", "values": ["y"]}]}, True),
        ({"when": [{"key": "connection.sni", "values": ["y"]}]}, True),
        ({"when": [{"key": "destination.ip", "values": ["::1"]}]}, True),
        ({"from": [{"source": {"notIpBlocks": ["::/0"]}}]}, True),
        ({"from": [{"source": {"remoteIpBlocks": ["::/0"]}}]}, True),
        ({"from": [{"source": {"requestPrincipals": ["*"]}}]}, True),
    ],
)
def test_the_cache_is_used_where_policies_ask_for_no_more_than_it_knows(rule: object, more: bool) -> None:
    assert cache_of(compiled(a={"rules": [rule]})).needs_more is more
    assert cache_of(compiled(a={"action": "AUDIT", "rules": [rule]})).needs_more is more


def test_only_the_headers_that_policies_ask_for_are_named() -> None:
    keys = ["request.headers[X-A]", "request.headers[:method]", "request.headers[host]", "request.headers[b]"]
    policies = compiled(a={"rules": [{"when": [{"key": key, "values": ["x"]} for key in keys]}]})
    assert policies.headers_used == {"x-a", "b"}


def test_routes_are_told_apart_where_a_policy_hangs_on_one() -> None:
    policy = {"targetRefs": [{"kind": "HTTPRoute", "name": "public"}], "rules": [{}]}
    cache = cache_of(compiled(a=policy))
    facts = {"principal": None, "namespace": None, "port": 1, "method": b"GET", "host": b"h", "path": b"/"}
    for route, allowed in (("public", True), ("private", False), ("public", True)):
        try:
            answer = cache.authorize(**facts, route=route).decision.allowed  # type: ignore[arg-type]
        except AccessDenied:
            answer = False
        assert answer is allowed


def test_what_is_noted_is_remembered_with_the_decision() -> None:
    cache = cache_of(compiled(a=WEB_READS, l={"action": "AUDIT", "rules": [{}]}))
    assert [str(note) for note in ask_cache(cache).notes] == ["audit shop/l#0"]
    assert ask_cache(cache) is ask_cache(cache)
