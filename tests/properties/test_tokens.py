"""Whatever a caller sends as a token: believed only when it is the issuer's, byte for byte, and never a crash."""

from __future__ import annotations

import contextlib
import json
from string import ascii_letters, digits

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.resources.request_authentication import ClaimHeader, HeaderPlace, JwtRule
from proxy.policy.jwt import TokenRefused, Tokens
from proxy.policy.jwt_keys import KeySet, UnusableSet, read_keys
from proxy.wire.events import Headers
from tests.support.tokens import ISSUER, NOW, jwk, key_set, raw_token, token

GOOD = {name: token(algorithm=name) for name in ("ES256", "RS256", "EdDSA")}
RULE = JwtRule(
    ISSUER,
    from_headers=(HeaderPlace("x-t"), HeaderPlace("authorization", "Bearer ")),
    from_params=("t",),
    from_cookies=("t",),
    claim_headers=(ClaimHeader("x-user-id", "sub"), ClaimHeader("x-deep", "a.b")),
    payload_header="x-payload",
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


class Keys:
    found = read_keys(key_set(*(jwk(name, kid=None) for name in GOOD), jwk("ES256")).encode())

    def keys_of(self, rule: JwtRule) -> KeySet | None:
        return self.found

    def missing(self, rule: JwtRule) -> None:
        pass


TOKENS = Tokens((RULE,), Keys())


@given(st.sampled_from(sorted(GOOD)), st.integers(0, 10_000), st.sampled_from(ascii_letters + digits + "-_.=,"))
def test_a_token_with_one_character_changed_is_refused(name: str, place: int, character: str) -> None:
    text = GOOD[name]
    place %= len(text)
    changed = text[:place] + character + text[place + 1 :]
    if changed != text:
        with pytest.raises(TokenRefused):
            TOKENS.judge(b"GET", [(b"x-t", changed.encode())], b"/", NOW)


@given(st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=60))
def test_any_bytes_are_refused_or_no_token_at_all(value: bytes, query: bytes, cookie: bytes) -> None:
    headers: Headers = [(b"x-t", value), (b"authorization", b"Bearer " + query), (b"cookie", b"t=" + cookie)]
    with pytest.raises(TokenRefused):
        TOKENS.judge(b"GET", headers, b"/?" + query + b"&t=" + query, NOW)


@given(
    st.dictionaries(st.sampled_from(["iss", "sub", "exp", "nbf", "aud", "jti", "iat", "a", "x"]), JSON, max_size=6)
)
def test_any_claims_of_the_issuer_give_claims_and_sound_headers_or_are_refused(claims: dict[str, object]) -> None:
    try:
        text = raw_token('{"alg": "ES256", "kid": "k"}', json.dumps({"iss": ISSUER, **claims}))
        found = TOKENS.judge(b"GET", [(b"x-t", text.encode())], b"/", NOW)
    except TokenRefused:
        return
    for name, value in found.headers:
        assert name in (b"x-user-id", b"x-deep", b"x-payload")
        assert value
        assert not set(value) & {0, 10, 13}
        assert value == value.strip()


@given(
    st.lists(
        st.tuples(st.sampled_from(["x-user-id", "x_user_id", "x-user_id", "x-payload", "x_deep", "a"]), st.binary())
    )
)
def test_what_only_a_token_may_say_is_never_the_callers(fields: list[tuple[str, bytes]]) -> None:
    headers: Headers = [(name.encode(), value) for name, value in fields]
    found = TOKENS.judge(b"GET", headers, b"/", NOW)
    assert found.headers == [field for field in headers if field[0] == b"a"]


@given(st.lists(st.sampled_from(["t=x", "a", "", "tt=1", "=t", "t%20=1", "b=t=1", "%74=y", "t", "+t=1", "T=1"])))
def test_the_rest_of_a_query_stays_as_it_was(pairs: list[str]) -> None:
    places = TOKENS._rules[0].places
    target = ("/p?" + "&".join(pairs)).encode()
    kept = [pair for pair in pairs if pair not in ("t=x", "%74=y", "t")]
    _, found = places.without_tokens([], target)
    if kept == pairs:
        assert found == target
    else:
        assert found == (("/p?" + "&".join(kept)).encode() if kept else b"/p")


@given(JSON)
def test_any_json_is_a_key_set_or_is_refused(value: object) -> None:
    for text in (
        json.dumps(value),
        json.dumps({"keys": value}),
        json.dumps({"keys": [{**jwk("ES256"), "kty": value}]}),
    ):
        with contextlib.suppress(UnusableSet):
            assert read_keys(text.encode()).keys
