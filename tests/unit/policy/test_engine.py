from __future__ import annotations

import dataclasses
import random

import pytest

from config.resources.authorization import Action, AuthorizationPolicy, Clause, Entry, Rule
from proxy.errors import REASONS, AccessDenied
from proxy.policy import engine
from proxy.policy.engine import (
    AccessRequest,
    CompiledPolicies,
    Decision,
    Permit,
    WorkloadFacts,
    authorize,
    compile_policies,
    decide,
    permit_configured,
)
from tests.unit.policy.documents import policies_of
from tests.unit.policy.questions import ask, told

API = WorkloadFacts("shop", {"app": "api"}, name="api")
WEB_READS = {
    "rules": [
        {
            "from": [{"source": {"principals": ["td/ns/shop/sa/web"]}}],
            "to": [{"operation": {"methods": ["GET"], "paths": ["/orders/*"]}}],
        }
    ]
}


def compiled(default: engine.Default = "deny", **specs: object) -> CompiledPolicies:
    return compile_policies(policies_of(specs), API, default)  # type: ignore[arg-type]


# -- total and closed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("default", ["deny", "istio", "audit"])
def test_an_exception_while_deciding_denies_under_every_default(default: engine.Default) -> None:
    policies = compiled(default, a=WEB_READS)
    broken = ask("web GET /orders/1")
    broken.path = None  # type: ignore[assignment]
    broken.method = 7  # type: ignore[assignment]
    decision = decide(policies, broken)
    assert (decision.allowed, decision.audited, decision.reason) == (False, False, "authorization_failed")


def test_a_protocol_that_is_neither_http_nor_tcp_is_denied() -> None:
    request = ask("web GET /orders/1")
    request.protocol = "udp"
    assert decide(compiled("istio"), request).reason == "authorization_failed"


def test_a_field_that_the_engine_does_not_know_is_refused_when_compiling() -> None:
    rule = Rule(sources=(Entry((Clause("colours", ("red",)),)),))
    policy = AuthorizationPolicy("a", "shop", Action.ALLOW, (), (rule,))
    with pytest.raises(ValueError, match="colours"):
        compile_policies([policy], API)


def test_an_unknown_default_is_refused_when_compiling() -> None:
    with pytest.raises(ValueError, match="allow"):
        compile_policies([], API, "allow")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "-1", "65536", "8o", "٣", "1" * 5000, "80 "])
def test_a_port_that_is_none_is_refused_when_compiling(text: str) -> None:
    rule = Rule(operations=(Entry((Clause("ports", (text,)),)),))
    with pytest.raises(ValueError):
        compile_policies([AuthorizationPolicy("a", "shop", Action.ALLOW, (), (rule,))], API)


def test_every_reason_is_a_word_of_the_closed_list() -> None:
    assert {engine.NO_ALLOW, engine.DENIED, engine.FAILED} <= REASONS


# -- permits ------------------------------------------------------------------------------------------------


def test_a_permit_carries_the_decision_that_made_it() -> None:
    permit = authorize(compiled(a=WEB_READS), ask("web GET /orders/1"))
    assert told(permit.decision) == "allow shop/a#0"


def test_a_denial_carries_its_decision_and_reason() -> None:
    with pytest.raises(AccessDenied) as caught:
        authorize(compiled(a=WEB_READS), ask("cart GET /orders/1"))
    assert caught.value.reason == "no_allow_policy_matched"
    assert caught.value.decision.nearest == "shop/a#0:principals"


@pytest.mark.parametrize("proof", [None, object(), True])
def test_nobody_else_can_make_a_permit(proof: object) -> None:
    with pytest.raises(TypeError):
        Permit(Decision(True), proof)


def test_not_even_authorization_makes_a_permit_of_a_denial() -> None:
    with pytest.raises(TypeError):
        Permit(Decision(False, "no_allow_policy_matched"), engine._AUTHORIZED)


def test_an_outbound_call_is_permitted_without_a_policy() -> None:
    decision = permit_configured("api").decision
    assert (decision.allowed, decision.policy, decision.reason) == (True, None, "")


# -- what is decided does not depend on how it is written ---------------------------------------------------


def test_the_order_of_documents_changes_neither_verdict_nor_digest() -> None:
    specs = {
        f"p{n}": {
            "action": "DENY" if n % 5 == 0 else "ALLOW",
            "rules": [{"to": [{"operation": {"paths": [f"/{n % 7}*"], "methods": ["GET"] * (n % 3 or 1)}}]}],
        }
        for n in range(40)
    }
    documents = policies_of(specs)
    first = compile_policies(documents, API)
    shuffled = list(documents)
    random.Random(7).shuffle(shuffled)
    second = compile_policies(shuffled, API)
    assert first.digest == second.digest
    for line in (f"web GET /{n}" for n in range(9)):
        assert told(decide(first, ask(line))) == told(decide(second, ask(line)))


def test_the_digest_tells_policies_and_defaults_apart() -> None:
    digests = {
        compiled().digest,
        compiled("istio").digest,
        compiled(a=WEB_READS).digest,
        compiled(b=WEB_READS).digest,
        compiled(a={**WEB_READS, "action": "DENY"}).digest,
    }
    assert len(digests) == 5


def test_policies_that_do_not_select_the_workload_leave_no_trace() -> None:
    other = {**WEB_READS, "selector": {"matchLabels": {"app": "web"}}}
    assert compiled(a=WEB_READS).digest == compiled(a=WEB_READS, b=other).digest
    assert len(compiled(a=WEB_READS, b=other)) == 1


# -- ids ----------------------------------------------------------------------------------------------------


def test_a_decision_id_is_short_and_can_be_derived_again() -> None:
    request = ask("cart GET /orders/1")
    first = decide(compiled(a=WEB_READS), request).id(request)
    again = decide(compiled(a=WEB_READS), ask("cart GET /orders/1")).id(ask("cart GET /orders/1"))
    assert first == again
    assert len(first) == 26
    assert first.isalnum()
    assert first == first.lower()


def test_a_decision_id_commits_to_policies_facts_verdict_and_rule() -> None:
    request = ask("web GET /orders/1")
    allowed = decide(compiled(a=WEB_READS), request)
    other_rule = {"rules": [{"to": [{"operation": {"methods": ["PUT"]}}]}, *WEB_READS["rules"]]}
    ids = {
        allowed.id(request),
        allowed.id(ask("web GET /orders/2")),
        allowed.id(ask("web PUT /orders/1")),
        allowed.id(ask("web GET /orders/1 port=8081")),
        allowed.id(ask("web GET /orders/1 host=other")),
        allowed.id(ask("cart GET /orders/1")),
        decide(compiled(a=other_rule), request).id(request),
        decide(compiled(), request).id(request),
        decide(compiled("audit"), request).id(request),
        decide(compiled("istio"), request).id(request),
    }
    assert len(ids) == 10


# -- nearest ------------------------------------------------------------------------------------------------


def test_nearest_is_looked_for_once_and_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = engine._nearest
    monkeypatch.setattr(engine, "_nearest", lambda *args: asked.append(args) or original(*args))
    decision = decide(compiled(a=WEB_READS), ask("cart GET /orders/1"))
    assert asked == []
    assert decision.nearest == decision.nearest == "shop/a#0:principals"
    assert len(asked) == 1


def test_a_failure_to_find_the_nearest_is_no_failure_of_the_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(engine, "_nearest", fail)
    assert decide(compiled(a=WEB_READS), ask("cart GET /orders/1")).nearest is None


def test_nearest_looks_at_a_bounded_number_of_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = {
        f"p{n:03}": {"rules": [{"from": [{"source": {"principals": [f"td/ns/shop/sa/s{n}"]}}]}]} for n in range(200)
    }
    policies = compile_policies(policies_of(specs), API)
    looked = []
    original = engine.CompiledRule.distance
    monkeypatch.setattr(
        engine.CompiledRule, "distance", lambda self, request: looked.append(1) or original(self, request)
    )
    assert decide(policies, ask("unknown GET /")).nearest == "shop/p000#0:principals"
    assert len(looked) <= 32


def test_among_many_policies_the_nearest_is_still_the_one_about_the_caller() -> None:
    specs: dict[str, dict[str, object]] = {
        f"p{n:03}": {"rules": [{"from": [{"source": {"principals": [f"td/ns/shop/sa/s{n}"]}}]}]} for n in range(200)
    }
    specs["z"] = WEB_READS
    policies = compile_policies(policies_of(specs), API)
    assert decide(policies, ask("web PUT /orders/1")).nearest == "shop/z#0:methods"


# -- many rules: the tables find what trying each would find ------------------------------------------------


@pytest.mark.parametrize(
    ("source", "operation", "line"),
    [
        ({"principals": ["td/ns/shop/sa/s{n}"]}, {}, "s{n} GET /"),
        ({"principals": ["td/ns/s{n}/*"]}, {}, "td/ns/s{n}/sa/x GET /"),
        ({"principals": ["*/sa/s{n}"]}, {}, "td/ns/q/sa/s{n} GET /"),
        ({"namespaces": ["n{n}"]}, {}, "td/ns/n{n}/sa/x GET /"),
        ({"namespaces": ["n{n}-*"]}, {}, "td/ns/n{n}-x/sa/x GET /"),
        ({}, {"paths": ["/{n}"]}, "web GET /{n}"),
        ({}, {"paths": ["/{n}/*"]}, "web GET /{n}/x"),
        ({}, {"paths": ["*.{n}"]}, "web GET /x.{n}"),
        ({}, {"hosts": ["H{n}.shop"]}, "web GET / host=h{n}.SHOP"),
        ({}, {"methods": ["M{n}"]}, "web M{n} /"),
        ({}, {"ports": ["{n}"]}, "web GET / port={n}"),
        ({"principals": ["td/ns/shop/sa/web"]}, {"paths": ["/{n}"]}, "web GET /{n}"),
        ({"principals": ["td/ns/shop/sa/web"]}, {"hosts": ["h{n}"], "paths": ["/"]}, "web GET / host=h{n}"),
    ],
)
def test_each_of_many_rules_is_found(
    source: dict[str, list[str]], operation: dict[str, list[str]], line: str
) -> None:
    def filled(fields: dict[str, list[str]], n: int) -> dict[str, list[str]]:
        return {name: [value.replace("{n}", str(n)) for value in values] for name, values in fields.items()}

    specs = {}
    for n in range(100, 160):
        rule: dict[str, object] = {}
        if source:
            rule["from"] = [{"source": filled(source, n)}]
        if operation:
            rule["to"] = [{"operation": filled(operation, n)}]
        specs[f"p{n}"] = {"rules": [rule]}
    policies = compile_policies(policies_of(specs), API)
    for n in range(100, 160):
        assert told(decide(policies, ask(line.replace("{n}", str(n))))) == f"allow shop/p{n}#0"
    assert told(decide(policies, ask(line.replace("{n}", "99")))) == "deny"


def test_a_rule_of_many_callers_and_many_paths_does_not_take_their_product() -> None:
    rule = {
        "from": [{"source": {"principals": [f"td/ns/shop/sa/s{n}" for n in range(200)]}}],
        "to": [{"operation": {"paths": [f"/{n}" for n in range(200)]}}],
    }
    policies = compile_policies(policies_of({f"p{n}": {"rules": [rule]} for n in range(6)}), API)
    assert told(decide(policies, ask("s77 GET /123"))) == "allow shop/p0#0"
    assert told(decide(policies, ask("s77 GET /200"))) == "deny"
    root = policies.tables["http"]._root
    assert all(not hasattr(node, "_indexes") for node in root.named(ask("s77 GET /123")))


def test_only_ascii_letters_of_a_host_are_folded() -> None:
    request = AccessRequest(principal=None, namespace=None, port=1, host="\xc9X.\u0130Y")
    assert request.host == "\xc9x.\u0130y"


# -- policies that are not enforced ---------------------------------------------------------------------------


def test_a_policy_that_is_not_enforced_cannot_fail_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    policies = compile_policies(policies_of({"a": {"rules": [{}]}, "l": {"action": "AUDIT", "rules": [{}]}}), API)
    monkeypatch.setattr(engine, "_dry_run", lambda *args: 1 / 0)
    assert policies.audit is not None
    policies.audit["http"].rules[0].operations = 7  # type: ignore[assignment]
    decision = decide(policies, ask("web GET /"))
    assert decision.allowed
    assert [str(note) for note in decision.notes] == ["failed"]


def test_the_digest_changes_with_everything_that_a_document_says() -> None:
    rule: dict[str, object] = {"when": [{"key": "source.ip", "values": ["::1"]}]}
    variants: list[dict[str, object]] = [
        {"rules": [rule]},
        {"rules": [{"when": [{"key": "source.ip", "notValues": ["::1"]}]}]},
        {"rules": [{"when": [{"key": "remote.ip", "values": ["::1"]}]}]},
        {"rules": [{"when": [{"key": "source.ip", "values": ["::2"]}]}]},
        {"rules": [rule], "action": "AUDIT"},
        {"rules": [rule], "targetRefs": [{"kind": "HTTPRoute", "name": "r"}]},
        {"rules": [rule], "targetRefs": [{"kind": "GRPCRoute", "name": "r"}]},
        {"rules": [rule, rule]},
    ]
    read = [policies_of({"a": spec}) for spec in variants]
    read.append([dataclasses.replace(read[0][0], dry_run=True)])
    digests = {compile_policies(one, API).digest for one in read}
    assert len(digests) == len(variants) + 1


def test_an_id_commits_to_the_facts_beyond_the_usual_ones() -> None:
    policies = compile_policies(policies_of({"a": {"rules": [{"when": [{"key": "request.headers[x]", "values": ["y"]}]}]}}), API)
    ids = {
        decide(policies, request).id(request)
        for headers in ({"x": "y"}, {"x": "z"}, {"x": ["z", "z"]}, {})
        for request in [AccessRequest(principal=None, namespace=None, port=1, headers=headers)]
    }
    assert len(ids) == 4
