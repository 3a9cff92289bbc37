from __future__ import annotations

import pytest

from config.problems import ConfigError
from proxy.authentication import check_keys, mtls_of, token_rules
from tests.support.tokens import jwk, key_set
from tests.unit.config.loading import load, problems_of

CONFIG = "workload: shop/api\nidentity: {caDir: /ca}\ninbound: [{name: %s, listen: 8443, app: 8080%s}]\n"


def document(kind: str, name: str, spec: str, namespace: str = "shop") -> str:
    head = f"apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n"
    return f"---\n{head}spec: {spec}\n"


def peer(mode: str, more: str = "", namespace: str = "shop") -> str:
    return document("PeerAuthentication", "p", f"{{mtls: {{mode: {mode}}}{more}}}", namespace)


@pytest.mark.parametrize(
    ("setting", "documents", "mode"),
    [
        ("", "", "STRICT"),
        (", mtls: PERMISSIVE", "", "PERMISSIVE"),
        (", mtls: DISABLE", "", "DISABLE"),
        (", mtls: PERMISSIVE", peer("STRICT"), "STRICT"),
        ("", peer("PERMISSIVE", namespace="istio-system"), "PERMISSIVE"),
        (", mtls: DISABLE", peer("UNSET"), "DISABLE"),
        ("", peer("STRICT", ", selector: {matchLabels: {app: api}}, portLevelMtls: {8080: {mode: DISABLE}}"), "DISABLE"),
        ("", peer("STRICT", ", selector: {matchLabels: {app: api}}, portLevelMtls: {8443: {mode: DISABLE}}"), "STRICT"),
    ],
)
def test_the_mode_of_a_listener_is_its_setting_until_a_document_says_more(
    setting: str, documents: str, mode: str
) -> None:
    loaded = load(CONFIG % ("in", setting) + documents)
    assert mtls_of(loaded, loaded.config.inbound[0]) == mode


def test_a_listener_has_the_rules_of_its_workload_and_of_its_route() -> None:
    documents = document("RequestAuthentication", "a", "{jwtRules: [{issuer: 'https://a'}]}") + document(
        "RequestAuthentication",
        "b",
        "{targetRefs: [{kind: HTTPRoute, name: public}], jwtRules: [{issuer: 'https://b'}]}",
    )
    for name, issuers in (("in", ["https://a"]), ("public", ["https://a", "https://b"])):
        found = token_rules(load(CONFIG % (name, "") + documents))
        assert {name: [rule.issuer for rule in rules] for name, rules in found.items()} == {name: issuers}
    assert token_rules(load(CONFIG % ("in", ""))) == {}


def test_keys_in_a_document_must_be_usable() -> None:
    good, bad = key_set(jwk("ES256")), key_set({"kty": "oct", "k": "AAAA", "kid": "x"})
    text = CONFIG % ("in", "")
    rules = f"{{jwtRules: [{{issuer: a, jwks: '{good}'}}, {{issuer: b, jwks: '{bad}'}}]}}"
    loaded = load(text + document("RequestAuthentication", "a", rules))
    with pytest.raises(ConfigError) as caught:
        check_keys(loaded)
    (problem,) = caught.value.problems
    assert (problem.code, problem.line, problem.subject) == ("SW0105", 8, "RequestAuthentication shop/a")
    check_keys(load(text))


@pytest.mark.parametrize(
    ("rule", "codes"),
    [
        ("{issuer: 'http://id.example.com'}", ["SW0203"]),
        ("{issuer: 'https://a', jwksUri: 'http://id.example.com/keys'}", ["SW0203"]),
        ("{issuer: 'http://id.example.com', jwksUri: 'https://id.example.com/keys'}", []),
        ("{issuer: 'https://a', jwksUri: 'http://127.0.0.1/keys'}", []),
    ],
)
def test_keys_travel_protected_unless_it_is_said_that_they_need_not(rule: str, codes: list[str]) -> None:
    text = CONFIG % ("in", "") + document("RequestAuthentication", "a", f"{{jwtRules: [{rule}]}}")
    found = [problem for problem in problems_of(text) if problem.severity == "error"]
    assert [problem.code for problem in found] == codes
    assert all(problem.line == 8 for problem in found)
    assert not [problem for problem in problems_of("policy: {unsafeJwks: true}\n" + text) if problem.severity == "error"]
