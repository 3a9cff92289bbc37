"""JWT-SVIDs: making and judging them (JWT-SVID.md; IDENTITY 3).

A token is believed only when every line below holds. The signature is the library's work, all else is ours, in this
order, so that nothing costly is done for what is malformed, and no claim is looked at before the signature:

    size, three parts, JSON objects without a member said twice
    header      ``alg`` of the list, ``typ`` absent, JWT or JOSE, no ``crit``; keys that it brings along are ignored
    key         of the bundle of the trust domain that ``sub`` names, by ``kid``; the key's kind fits ``alg``
    signature
    claims      ``sub`` the ID of a workload; ``aud`` holds the audience asked for; ``exp`` required; ``nbf``, ``iat``

Times have a leeway of a minute at most. A reason is one word of ``JWT_REASONS`` and never quotes the token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import jwt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from identity.bundle import Bundle, JwtKey
from identity.jws import Compact, NotAToken, take_apart
from identity.spiffe import SpiffeId, SpiffeIdError

MAX_TOKEN: Final = 8 * 1024  # characters
MAX_LEEWAY: Final = 60.0  # seconds
_MAX_AUDIENCES: Final = 32

# JWT-SVID 2.1. ECDSA with its curve; RSA keys fit RS and PS.
_CURVE_OF: Final = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}
ALGORITHMS: Final = (*_CURVE_OF, "RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_TYPES: Final = (None, "JWT", "JOSE")

JWT_REASONS: Final = frozenset(
    {
        "too_long",
        "malformed",
        "algorithm",
        "type",
        "critical",
        "key_id",
        "subject",
        "trust_domain",
        "unknown_key",
        "key_kind",
        "signature",
        "audience",
        "expired",
        "not_yet_valid",
        "issued_in_future",
        "times",
    }
)

_WHAT: Final = {
    "too_long": f"the token is longer than {MAX_TOKEN} characters",
    "malformed": "the token is not a signed JWT in compact form",
    "algorithm": "the algorithm is not one that SPIFFE allows",
    "type": "typ must be absent, JWT or JOSE",
    "critical": "the header asks for extensions that are not known here",
    "key_id": "the header names no key (kid)",
    "subject": "sub is not the SPIFFE ID of a workload",
    "trust_domain": "there is no bundle of the subject's trust domain",
    "unknown_key": "the bundle has no key of that id",
    "key_kind": "the key is not one for this algorithm",
    "signature": "the signature is wrong",
    "audience": "the token is for another audience",
    "expired": "the token has expired",
    "not_yet_valid": "the token is not valid yet",
    "issued_in_future": "the token was issued in the future: compare the clocks",
    "times": "exp is missing, or a time is not a number",
}


class JwtSvidError(ValueError):
    """A token that is not believed. ``reason``: a word of JWT_REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(_WHAT[reason])
        self.reason = reason


def sign(
    spiffe_id: SpiffeId,
    audiences: Sequence[str],
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    kid: str,
    *,
    now: float,
    ttl: float,
) -> tuple[str, float]:
    """A token and its ``exp``. ``now``: seconds of the epoch; ``ttl``: seconds. Raises ValueError for no or too many
    audiences, and for an ID without a path."""
    if not spiffe_id.path:
        raise ValueError("the ID of the trust domain itself is not given to workloads")
    if not 0 < len(audiences) <= _MAX_AUDIENCES or not all(audiences):
        raise ValueError(f"a JWT-SVID is for 1 to {_MAX_AUDIENCES} audiences")
    at = int(now)
    end = at + int(ttl)
    claims = {"sub": str(spiffe_id), "aud": list(audiences), "iat": at, "exp": end}
    return jwt.encode(claims, key, algorithm=algorithm_of(key), headers={"kid": kid, "typ": "JWT"}), float(end)


def algorithm_of(key: object) -> str:
    """With what a key of this kind signs. Raises ValueError."""
    if isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey):
        return "RS256"
    if isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        for name, curve in _CURVE_OF.items():
            if key.curve.name == curve:
                return name
    raise ValueError("not a key for JWT-SVIDs")


def validate(
    token: str, audience: str, bundles: Mapping[str, Bundle], *, now: float, leeway: float = 30.0
) -> tuple[SpiffeId, dict[str, Any]]:
    """The subject and all claims. ``bundles`` by trust domain; ``now``: seconds of the epoch. Raises JwtSvidError."""
    leeway = min(max(leeway, 0.0), MAX_LEEWAY)
    parts = _parts(token)
    claims = parts.claims
    algorithm, kid = _check_header(parts.header)
    subject = _subject(claims)
    bundle = bundles.get(subject.trust_domain)
    if bundle is None:
        raise JwtSvidError("trust_domain")
    key = bundle.jwt_keys.get(kid)
    if key is None:
        raise JwtSvidError("unknown_key")
    _check_signature(key, algorithm, parts.signed, parts.signature)
    _check_audience(claims, audience)
    _check_times(claims, now, leeway)
    return subject, claims


def _parts(token: str) -> Compact:
    if len(token) > MAX_TOKEN:
        raise JwtSvidError("too_long")
    try:
        return take_apart(token, MAX_TOKEN)
    except NotAToken:
        raise JwtSvidError("malformed") from None


def _check_header(header: Mapping[str, Any]) -> tuple[str, str]:
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise JwtSvidError("algorithm")
    if header.get("typ") not in _TYPES:
        raise JwtSvidError("type")
    if "crit" in header:
        raise JwtSvidError("critical")
    kid = header.get("kid")
    if not isinstance(kid, str) or not kid:
        raise JwtSvidError("key_id")
    return algorithm, kid


def _subject(claims: Mapping[str, Any]) -> SpiffeId:
    """Read before the signature is checked, because it says whose keys to look at; believed only after."""
    subject = claims.get("sub")
    try:
        found = SpiffeId.parse(subject if isinstance(subject, str) else "")
    except SpiffeIdError:
        raise JwtSvidError("subject") from None
    if not found.path:
        raise JwtSvidError("subject")
    return found


def _check_signature(key: JwtKey, algorithm: str, signed: bytes, signature: bytes) -> None:
    is_ec = isinstance(key, ec.EllipticCurvePublicKey)
    if is_ec != (algorithm in _CURVE_OF):
        raise JwtSvidError("key_kind")
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name != _CURVE_OF[algorithm]:
        raise JwtSvidError("key_kind")
    try:
        good = jwt.get_algorithm_by_name(algorithm).verify(signed, key, signature)
    except (jwt.PyJWTError, InvalidSignature, ValueError):
        good = False
    if not good:
        raise JwtSvidError("signature")


def _check_audience(claims: Mapping[str, Any], audience: str) -> None:
    found = claims.get("aud")
    values = [found] if isinstance(found, str) else found
    if not isinstance(values, list) or not audience or audience not in values:
        raise JwtSvidError("audience")


def _check_times(claims: Mapping[str, Any], now: float, leeway: float) -> None:
    times = {name: claims.get(name) for name in ("exp", "nbf", "iat")}
    for name, value in times.items():
        if value is None and name != "exp":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
            raise JwtSvidError("times")
    if now >= float(times["exp"] or 0.0) + leeway:
        raise JwtSvidError("expired")
    if times["nbf"] is not None and now < times["nbf"] - leeway:
        raise JwtSvidError("not_yet_valid")
    if times["iat"] is not None and now < times["iat"] - leeway:
        raise JwtSvidError("issued_in_future")
