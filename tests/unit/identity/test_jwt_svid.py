"""JWT-SVIDs: a good one is believed, everything else is refused for its own reason."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from identity import jwt_svid
from identity.bundle import Bundle
from identity.jwt_svid import JWT_REASONS, JwtSvidError, sign, validate
from identity.spiffe import SpiffeId

TD, NOW = "shop.internal", 1_800_000_000.0
WEB = SpiffeId.parse(f"spiffe://{TD}/ns/shop/sa/web")
KEYS: dict[str, Any] = {
    "p256": ec.generate_private_key(ec.SECP256R1()),
    "p384": ec.generate_private_key(ec.SECP384R1()),
    "p521": ec.generate_private_key(ec.SECP521R1()),
    "rsa": rsa.generate_private_key(65537, 2048),
}
OTHER = ec.generate_private_key(ec.SECP256R1())
BUNDLES = {TD: Bundle(TD, jwt_keys={kid: key.public_key() for kid, key in KEYS.items()}), "empty.test": Bundle("empty.test")}
CLAIMS: dict[str, Any] = {"sub": str(WEB), "aud": ["api"], "exp": NOW + 300, "iat": NOW}
HEAD: dict[str, Any] = {"alg": "ES256", "kid": "p256", "typ": "JWT"}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(head: Any = None, claims: Any = None, *, key: Any = None, algorithm: str = "ES256", raw: bytes | None = None) -> str:
    """A token as anybody could make one; by default a good one."""
    head = HEAD if head is None else head
    payload = raw if raw is not None else json.dumps(CLAIMS if claims is None else claims).encode()
    signed = f"{b64(json.dumps(head).encode())}.{b64(payload)}"
    signature = jwt.get_algorithm_by_name(algorithm).sign(signed.encode(), key or KEYS["p256"])
    return f"{signed}.{b64(signature)}"


def refused(text: str, audience: str = "api", now: float = NOW) -> str:
    with pytest.raises(JwtSvidError) as error:
        validate(text, audience, BUNDLES, now=now)
    for part in text.split("."):
        assert len(part) < 8 or part not in str(error.value), "no part of a token is told"
    return error.value.reason


@pytest.mark.parametrize("kid", KEYS)
def test_what_is_signed_is_believed(kid: str) -> None:
    made, end = sign(WEB, ["api", "db"], KEYS[kid], kid, now=NOW, ttl=300)
    subject, claims = validate(made, "db", BUNDLES, now=NOW + 299)
    assert (subject, claims["exp"], end) == (WEB, NOW + 300, NOW + 300)
    assert jwt.get_unverified_header(made) == {"alg": jwt_svid.algorithm_of(KEYS[kid]), "kid": kid, "typ": "JWT"}


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"])
def test_the_algorithms_of_an_rsa_key(algorithm: str) -> None:
    made = token({"alg": algorithm, "kid": "rsa"}, key=KEYS["rsa"], algorithm=algorithm)
    assert validate(made, "api", BUNDLES, now=NOW)[0] == WEB


PEM = KEYS["rsa"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def hmac_token(secret: bytes, kid: str) -> str:
    signed = f"{b64(json.dumps({'alg': 'HS256', 'kid': kid}).encode())}.{b64(json.dumps(CLAIMS).encode())}"
    return f"{signed}.{b64(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


def none_token(name: str) -> str:
    return f"{b64(json.dumps({'alg': name, 'kid': 'p256'}).encode())}.{b64(json.dumps(CLAIMS).encode())}."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "malformed"),
        ("a.b", "malformed"),
        ("a.b.c.d", "malformed"),
        ("..", "malformed"),
        (token() + "=", "malformed"),
        (token().replace(".", ". "), "malformed"),
        (token().replace("e", "é", 1), "malformed"),
        ("x" * 8193, "too_long"),
        (token(claims={**CLAIMS, "fill": "x" * 9000}), "too_long"),
        (token(raw=b"[]"), "malformed"),
        (token(raw=b"\xff"), "malformed"),
        (token(raw=b"[" * 3000), "malformed"),
        (token(raw=json.dumps(CLAIMS).encode()[:-1] + b',"sub":"spiffe://x/y"}'), "malformed"),
        (token(raw=b'{"sub":"' + str(WEB).encode() + b'","aud":"api","exp":NaN}'), "malformed"),
        (none_token("none"), "algorithm"),
        (none_token("None"), "algorithm"),
        (none_token(""), "algorithm"),
        (hmac_token(PEM, "rsa"), "algorithm"),
        (hmac_token(b"", "p256"), "algorithm"),
        (token({**HEAD, "alg": ["ES256"]}), "algorithm"),
        (token({**HEAD, "alg": "EdDSA"}), "algorithm"),
        (token({**HEAD, "typ": "at+jwt"}), "type"),
        (token({**HEAD, "crit": ["x"]}), "critical"),
        (token({**HEAD, "crit": []}), "critical"),
        (token({"alg": "ES256"}), "key_id"),
        (token({**HEAD, "kid": 1}), "key_id"),
        (token({**HEAD, "kid": "nobody"}), "unknown_key"),
        (token({**HEAD, "kid": "nobody", "jwk": {"kty": "EC"}, "jku": "https://evil"}), "unknown_key"),
        (token({**HEAD, "kid": "rsa"}), "key_kind"),
        (token({**HEAD, "kid": "p384"}), "key_kind"),
        (token({"alg": "RS256", "kid": "p256"}), "key_kind"),
        (token(key=OTHER), "signature"),
        (token()[:-4] + "AAAA", "signature"),
        (token().rpartition(".")[0] + ".", "signature"),
        (token({**HEAD, "jwk": {"kty": "EC"}}, key=OTHER), "signature"),
        (token(claims={**CLAIMS, "sub": None}), "subject"),
        (token(claims={**CLAIMS, "sub": "web"}), "subject"),
        (token(claims={**CLAIMS, "sub": f"spiffe://{TD}"}), "subject"),
        (token(claims={**CLAIMS, "sub": f"SPIFFE://{TD}/a"}), "subject"),
        (token(claims={**CLAIMS, "sub": ["spiffe://a/b"]}), "subject"),
        (token(claims={**CLAIMS, "sub": "spiffe://other.test/a"}), "trust_domain"),
        (token(claims={**CLAIMS, "sub": "spiffe://empty.test/a"}), "unknown_key"),
        (token(claims={**CLAIMS, "aud": ["db"]}), "audience"),
        (token(claims={**CLAIMS, "aud": []}), "audience"),
        (token(claims={**CLAIMS, "aud": None}), "audience"),
        (token(claims={**CLAIMS, "aud": {"api": 1}}), "audience"),
        (token(claims={**CLAIMS, "exp": None}), "times"),
        (token(claims={**CLAIMS, "exp": "tomorrow"}), "times"),
        (token(claims={**CLAIMS, "exp": True}), "times"),
        (token(claims={**CLAIMS, "exp": 1e300}), "times"),
        (token(claims={**CLAIMS, "nbf": "now"}), "times"),
        (token(claims={**CLAIMS, "exp": NOW - 31}), "expired"),
        (token(claims={**CLAIMS, "nbf": NOW + 31}), "not_yet_valid"),
        (token(claims={**CLAIMS, "iat": NOW + 31}), "issued_in_future"),
    ],
)
def test_everything_else_is_refused_for_its_own_reason(text: str, reason: str) -> None:
    assert refused(text) == reason
    assert reason in JWT_REASONS


def test_an_audience_must_be_asked_for() -> None:
    assert refused(token(claims={**CLAIMS, "aud": [""]}), audience="") == "audience"
    assert refused(token(), audience="other") == "audience"


@pytest.mark.parametrize(("leeway", "late"), [(0, 0), (30, 30), (3600, 60), (-5, 0)])
def test_leeway_is_a_minute_at_most(leeway: float, late: float) -> None:
    validate(token(), "api", BUNDLES, now=NOW + 300 + late - 0.001, leeway=leeway)
    with pytest.raises(JwtSvidError, match="expired"):
        validate(token(), "api", BUNDLES, now=NOW + 300 + late, leeway=leeway)


@pytest.mark.parametrize("audiences", [[], [""], ["a"] * 33])
def test_a_token_for_nobody_is_not_made(audiences: list[str]) -> None:
    with pytest.raises(ValueError, match="audiences"):
        sign(WEB, audiences, KEYS["p256"], "p256", now=NOW, ttl=60)
    with pytest.raises(ValueError, match="itself"):
        sign(SpiffeId.parse(f"spiffe://{TD}"), ["a"], KEYS["p256"], "p256", now=NOW, ttl=60)


GOOD = token()


@settings(max_examples=200)
@given(st.integers(0, len(GOOD) - 1), st.characters(max_codepoint=127))
def test_no_changed_character_is_believed(place: int, character: str) -> None:
    changed = GOOD[:place] + character + GOOD[place + 1 :]
    if changed != GOOD:
        assert refused(changed) in JWT_REASONS
