from __future__ import annotations

import pytest

from config.documents import parse_documents
from config.nodes import parse_yaml
from config.problems import ConfigError, Problem, Problems
from config.resources.authorization import TargetRef
from config.resources.request_authentication import (
    ClaimHeader,
    Guarded,
    HeaderPlace,
    JwtRule,
    RequestAuthentication,
    is_protected,
    jwt_rules,
    parse_request_authentication,
)

HEAD = "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: users, namespace: shop}\n"
SET = '{"keys": [{"kty": "RSA"}]}'


def read(text: str) -> tuple[RequestAuthentication | None, list[Problem]]:
    problems = Problems()
    (document,) = parse_yaml(text, "users.yaml", problems)
    return parse_request_authentication(document, "default"), list(problems)


def rule(text: str) -> tuple[RequestAuthentication | None, list[Problem]]:
    return read(f"{HEAD}spec: {{jwtRules: [{text}]}}\n")


def rule_of(text: str) -> JwtRule:
    found, problems = rule(text)
    assert problems == []
    assert found is not None
    return found.rules[0]


# -- reading --------------------------------------------------------------------------------------------------


def test_a_document_is_read_whole() -> None:
    text = HEAD + (
        "spec:\n"
        "  selector: {matchLabels: {app: api}}\n"
        "  jwtRules:\n"
        "  - issuer: https://id.example.com/\n"
        "    audiences: [api, other]\n"
        "    jwksUri: https://id.example.com/keys?v=2\n"
        "    fromHeaders: [{name: X-Token, prefix: 'Token '}, {name: x-raw}]\n"
        "    fromParams: [token]\n"
        "    fromCookies: [session]\n"
        "    outputPayloadToHeader: X-Payload\n"
        "    outputClaimToHeaders: [{header: X-User, claim: sub}, {header: x-team, claim: org.team}]\n"
        "    forwardOriginalToken: true\n"
        "    timeout: 1.5s\n"
        "    spaceDelimitedClaims: [roles]\n"
    )
    found, problems = read(text)
    assert problems == []
    assert found == RequestAuthentication(
        "users",
        "shop",
        (
            JwtRule(
                "https://id.example.com/",
                ("api", "other"),
                "https://id.example.com/keys?v=2",
                "",
                (HeaderPlace("x-token", "Token "), HeaderPlace("x-raw")),
                ("token",),
                ("session",),
                "x-payload",
                (ClaimHeader("x-user", "sub"), ClaimHeader("x-team", "org.team")),
                True,
                1.5,
                ("roles",),
            ),
        ),
        (("app", "api"),),
    )
    assert found.rules[0].outputs == {"x-payload", "x-user", "x-team"}
    assert found.rules[0].place.line == 7


def test_keys_may_stand_in_the_document_or_be_found_by_the_issuer() -> None:
    assert rule_of(f"{{issuer: me, jwks: '{SET}'}}") == JwtRule("me", jwks=SET)
    assert rule_of("{jwks_uri: 'https://a/keys', presence: OPTIONAL}") == JwtRule("", jwks_uri="https://a/keys")
    assert rule_of("{issuer: 'https://id.example.com'}") == JwtRule("https://id.example.com")
    assert rule_of("{jwksUri: 'http://[::1]:8000/keys'}") == JwtRule("", jwks_uri="http://[::1]:8000/keys")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("~", "SW0106"),
        ("{}", "SW0106"),
        ("{audiences: [a]}", "SW0106"),
        (f"{{jwks: '{SET}'}}", "SW0106"),
        ("{issuer: testing@example.com}", "SW0106"),
        ("{issuer: a, jwksUri: 'ftp://x/y'}", "SW0105"),
        ("{issuer: a, jwksUri: '/keys'}", "SW0105"),
        ("{issuer: a, jwksUri: 'https://u:p@x/y'}", "SW0105"),
        ("{issuer: a, jwksUri: 'https://x/y#z'}", "SW0105"),
        ("{issuer: a, jwksUri: 'https://x:99999/y'}", "SW0105"),
        ('{issuer: a, jwksUri: "https://x/\\n"}', "SW0105"),
        (f"{{issuer: a, jwksUri: 'https://x/y', jwks: '{SET}'}}", "SW0106"),
        ("{issuer: a, jwks: '{}'}", "SW0105"),
        ("{issuer: a, jwks: '{\"keys\": []}'}", "SW0105"),
        ("{issuer: a, jwks: 'no'}", "SW0105"),
        ("{issuer: 'https://a', audiences: ['']}", "SW0105"),
        ("{issuer: 'https://a', audiences: a}", "SW0103"),
        ("{issuer: 'https://a', fromHeaders: [{prefix: x}]}", "SW0106"),
        ("{issuer: 'https://a', fromHeaders: [{name: 'a b'}]}", "SW0105"),
        ("{issuer: 'https://a', fromHeaders: [{name: Host}]}", "SW0105"),
        ("{issuer: 'https://a', fromParams: ['']}", "SW0105"),
        ("{issuer: 'https://a', fromCookies: ['']}", "SW0105"),
        ("{issuer: 'https://a', outputPayloadToHeader: 'a:b'}", "SW0105"),
        ("{issuer: 'https://a', outputPayloadToHeader: content_length}", "SW0105"),
        ("{issuer: 'https://a', outputClaimToHeaders: [{header: x}]}", "SW0106"),
        ("{issuer: 'https://a', outputClaimToHeaders: [{header: x-forwarded-client-cert, claim: sub}]}", "SW0105"),
        ("{issuer: 'https://a', outputClaimToHeaders: [{header: X-Sidewall-Peer, claim: sub}]}", "SW0105"),
        ("{issuer: 'https://a', forwardOriginalToken: 1}", "SW0105"),
        ("{issuer: 'https://a', timeout: 5}", "SW0105"),
        ("{issuer: 'https://a', timeout: 5h}", "SW0121"),
        ("{issuer: 'https://a', timeout: 0s}", "SW0121"),
        ("{issuer: 'https://a', jwks_uri: 'https://a', jwksUri: 'https://a'}", "SW0106"),
        ("{issuer: 'https://a', presence: REQUIRED}", "SW0120"),
        ("{issuer: 'https://a', presence: MANDATORY}", "SW0104"),
        ("{issuer: 'https://a', fromHeader: []}", "SW0101"),
    ],
)
def test_what_cannot_be_meant_is_an_error_with_its_place(text: str, code: str) -> None:
    found, problems = rule(text)
    assert found is None
    assert [problem.code for problem in problems] == [code]
    assert (problems[0].line, problems[0].column > 6) == (4, True)


def test_a_private_key_in_the_document_is_worth_a_warning() -> None:
    found, problems = rule('{issuer: a, jwks: \'{"keys": [{"kty": "RSA", "d": "AQAB"}]}\'}')
    assert found is not None
    assert [(problem.code, problem.severity) for problem in problems] == [("SW0302", "warning")]


def test_the_three_kinds_are_loaded_together_and_each_name_once() -> None:
    policy = HEAD.replace("RequestAuthentication", "AuthorizationPolicy") + "spec: {}\n"
    peer = HEAD.replace("RequestAuthentication", "PeerAuthentication") + "spec: {mtls: {mode: STRICT}}\n"
    tokens = HEAD + "spec: {jwtRules: [{issuer: 'https://a'}]}\n"
    found = parse_documents("---\n".join((policy, peer, tokens)))
    assert (len(found.policies), len(found.peers), len(found.requests), found.count) == (1, 1, 1, 3)
    with pytest.raises(ConfigError) as caught:
        parse_documents("---\n".join((tokens, peer, tokens)))
    assert [problem.code for problem in caught.value.problems] == ["SW0202"]


# -- meaning --------------------------------------------------------------------------------------------------


def document(name: str, namespace: str = "shop", **more: object) -> RequestAuthentication:
    return RequestAuthentication(name, namespace, (JwtRule(name),), **more)  # type: ignore[arg-type]


def issuers(*documents: RequestAuthentication, route: str = "") -> list[str]:
    guarded = Guarded("shop", {"app": "api"}, "api", route)
    return [rule.issuer for rule in jwt_rules(documents, guarded)]


def test_the_rules_of_every_document_that_applies_count_together() -> None:
    found = issuers(
        document("whole"),
        document("root", "istio-system"),
        document("elsewhere", "pay"),
        document("ours", selector=(("app", "api"),)),
        document("theirs", selector=(("app", "web"),)),
        document("of-the-root", "istio-system", selector=(("app", "api"),)),
    )
    assert sorted(found) == ["of-the-root", "ours", "root", "whole"]


def test_older_documents_come_first() -> None:
    assert issuers(document("a", created=2.0), document("b", created=1.0), document("c", created=1.0)) == [*"bca"]


def test_a_document_can_hang_on_the_service_or_on_one_route() -> None:
    service = document("service", target_refs=(TargetRef("Service", "api"),))
    other = document("other", target_refs=(TargetRef("Service", "web"),))
    foreign = document("foreign", "istio-system", target_refs=(TargetRef("Service", "api"),))
    route = document("route", target_refs=(TargetRef("HTTPRoute", "public"),))
    assert issuers(service, other, foreign, route) == ["service"]
    assert issuers(service, other, foreign, route, route="public") == ["route", "service"]


@pytest.mark.parametrize(
    ("uri", "good"),
    [
        ("https://id.example.com/keys", True),
        ("http://127.0.0.1:8000/keys", True),
        ("http://localhost/keys", True),
        ("http://[::1]/keys", True),
        ("http://id.example.com/keys", False),
        ("http://127.0.0.1.example.com/keys", False),
        ("file:///etc/passwd", False),
    ],
)
def test_only_https_and_this_machine_are_protected(uri: str, good: bool) -> None:
    assert is_protected(uri) is good
