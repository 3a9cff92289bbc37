from __future__ import annotations

import pytest

from proxy.policy.facts import AccessRequest, forwarded_client, host_of


def request(**facts: object) -> AccessRequest:
    return AccessRequest(principal="td/ns/a/sa/b", namespace="a", port=80, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("header", "client"),
    [
        ("", "9.9.9.9"),
        ("10.0.0.1", "10.0.0.1"),
        ("1.1.1.1, 10.0.0.1", "10.0.0.1"),
        ("1.1.1.1,2001:db8::1", "2001:db8::1"),
        ("10.0.0.1,\t2.2.2.2 ", "2.2.2.2"),
        ("10.0.0.1, junk", "9.9.9.9"),
        ("10.0.0.1,", "9.9.9.9"),
        ("10.0.0.1:80", "9.9.9.9"),
        ("[::1]", "9.9.9.9"),
    ],
)
def test_the_client_is_the_last_address_that_is_told_or_the_peer(header: str, client: str) -> None:
    assert forwarded_client(header, "9.9.9.9") == client


@pytest.mark.parametrize(
    ("address", "host"), [("10.0.0.1:80", "10.0.0.1"), ("[::1]:80", "::1"), ("unix:/tmp/a:b", ""), ("", "")]
)
def test_the_host_of_an_address(address: str, host: str) -> None:
    assert host_of(address) == host


def test_a_remote_address_that_is_not_told_is_that_of_the_peer() -> None:
    assert request(source_ip="10.0.0.1").remote_ip == "10.0.0.1"
    assert request(source_ip="10.0.0.1", remote_ip="1.1.1.1").remote_ip == "1.1.1.1"


def test_what_a_header_or_a_token_holds_is_not_in_the_repr() -> None:
    text = repr(request(headers={"authorization": "s3cret"}, claims={"email": "who@where"}))
    assert "authorization" in text
    assert "email" in text
    assert "s3cret" not in text
    assert "who@where" not in text


def test_canonical_facts_name_the_rarer_ones_only_when_they_are_there() -> None:
    assert request().canonical() == {
        "host": "",
        "method": "",
        "namespace": "a",
        "path": "",
        "port": 80,
        "principal": "td/ns/a/sa/b",
        "protocol": "http",
        "source_ip": "",
    }
    more = request(path="/a", target="/a?b", host="A", headers={"x": "1", "a": ["2", "3"]}, sni="S", route="r").canonical()
    assert (more["target"], more["authority"], more["sni"], more["route"]) == ("/a?b", "A", "s", "r")
    assert more["headers"] == {"a": ["2", "3"], "x": ["1"]}


def test_facts_that_follow_from_the_principal() -> None:
    assert (request().service_account, request().trust_domain) == ("a/b", "td")
    other = AccessRequest(principal="td/agent", namespace=None, port=1)
    assert (other.service_account, other.trust_domain) == (None, "td")
    none = AccessRequest(principal=None, namespace=None, port=1)
    assert (none.service_account, none.trust_domain) == (None, None)


def test_facts_that_follow_from_the_claims() -> None:
    token = request(claims={"iss": "i", "sub": "s", "aud": ["x"], "azp": "y", "scope": "a  b", "n": {"scope": "a b"}})
    assert token.request_principal == ("i", "s")
    assert (token.audiences, token.presenter) == (["x"], "y")
    assert token.claim("scope") == ["a", "b"]
    assert token.claim("n", "scope") == "a b"
    assert token.claim("n", "x", "y") is None
    assert request().request_principal is None
    assert request(claims={"iss": "i", "sub": 7}).request_principal is None
