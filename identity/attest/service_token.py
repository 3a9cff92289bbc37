"""Service-account tokens of Kubernetes: what they say, and whether a cluster's key signed it.

A projected token is a JWT that the API server signs for one pod and the audiences that the pod asked for. It admits
whoever bears it wherever one of its audiences is believed. So one is taken only when its audience is ours and nothing
else: a token for several audiences has been shown, or can be shown, to others who could show it to us (C-12).

The rules are narrower than JWT: RS256 or ES256, by the kind of the key and not by the token's wish; a ``kid`` that is
in the key set once; no ``crit``; the claims that are read are of the very text that was verified (C-8).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from identity.jws import Compact, NotAToken, take_apart

MAX_TOKEN: Final = 16 * 1024  # characters
MAX_KEYS: Final = 100
SKEW: Final = 60.0  # seconds that the API server's clock may be ahead
_MIN_RSA: Final = 2048  # bits
_LABEL: Final = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_NAMESPACE: Final = re.compile(_LABEL)
_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_UID: Final = re.compile(r"[0-9A-Za-z-]{1,64}")

Key = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class TokenRefused(Exception):
    """The token admits nobody. The text quotes nothing of it but names of claims."""


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """Who bears the token, as the API server has written it. ``node_*``: empty before Kubernetes 1.30."""

    namespace: str
    service_account: str
    service_account_uid: str
    pod: str
    pod_uid: str
    node: str = ""
    node_uid: str = ""
    expires_at: float = 0.0  # seconds since 1970


class ClusterKeys:
    """The public keys of a cluster's token issuer."""

    def __init__(self, keys: Mapping[str, Key]) -> None:
        self._keys = dict(keys)

    @classmethod
    def parse(cls, document: bytes | str) -> ClusterKeys:
        """From a JWKS (``kubectl get --raw /openid/v1/jwks``). Keys of other kinds are left out. Raises ValueError:
        no document, no usable key, one ``kid`` twice, too many keys."""
        found = json.loads(document)
        listed = found.get("keys") if isinstance(found, dict) else None
        if not isinstance(listed, list) or not 0 < len(listed) <= MAX_KEYS:
            raise ValueError(f'a JWKS has a list "keys" of 1 to {MAX_KEYS} keys')
        keys: dict[str, Key] = {}
        for one in listed:
            kid, key = _usable(one)
            if key is None:
                continue
            if kid in keys:
                raise ValueError(f'two keys have the kid "{kid[:80]}"')
            keys[kid] = key
        if not keys:
            raise ValueError("no key of the JWKS is for RS256 (2048 bits or more) or ES256, with a kid")
        return cls(keys)

    def verify(self, token: str) -> dict[str, Any]:
        """The claims, when one of the keys has signed them. Says nothing about times and audiences. Raises
        TokenRefused."""
        compact = _taken_apart(token)
        _check_header(compact.header)
        key = self._keys.get(compact.header["kid"])
        if key is None:
            raise TokenRefused("it is signed with a key that the cluster does not publish")
        algorithm = "RS256" if isinstance(key, rsa.RSAPublicKey) else "ES256"
        if compact.header["alg"] != algorithm:
            raise TokenRefused(f'its "alg" is not that of its key, which is {algorithm}')
        if not _is_signed(compact, key, algorithm):
            raise TokenRefused("its signature is not good")
        return compact.claims


def _is_signed(compact: Compact, key: Key, algorithm: str) -> bool:
    try:
        return bool(jwt.get_algorithm_by_name(algorithm).verify(compact.signed, key, compact.signature))
    except (jwt.PyJWTError, InvalidSignature, ValueError):
        return False


def unverified_claims(token: str) -> dict[str, Any]:
    """The claims of a token that nobody has verified yet, to refuse without asking what cannot be good. Raises
    TokenRefused."""
    return _taken_apart(token).claims


def read_claims(claims: Mapping[str, Any], *, audience: str, issuer: str = "", now: float) -> TokenFacts:
    """Who bears a token with these claims. ``issuer``: "" does not look. ``now``: seconds since 1970. Raises
    TokenRefused."""
    if issuer and claims.get("iss") != issuer:
        raise TokenRefused("another issuer made it")
    if claims.get("aud") not in (audience, [audience]):
        raise TokenRefused(f'its audience is not "{audience}" alone')
    expires = _check_times(claims, now)
    facts = _bound_to(claims, expires)
    if claims.get("sub") != f"system:serviceaccount:{facts.namespace}:{facts.service_account}":
        raise TokenRefused('its "sub" is not its service account')
    return facts


def _check_times(claims: Mapping[str, Any], now: float) -> float:
    """When it ends."""
    expires = _seconds(claims, "exp")
    if expires is None:
        raise TokenRefused('it has no "exp": it would be good for ever')
    if now >= expires:
        raise TokenRefused("it has expired")
    for name in ("nbf", "iat"):
        begins = _seconds(claims, name)
        if begins is not None and begins > now + SKEW:
            raise TokenRefused("it is not valid yet")
    return expires


def _seconds(claims: Mapping[str, Any], name: str) -> float | None:
    found = claims.get(name)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found < 1e11:
        raise TokenRefused(f'its "{name}" is no time')
    return float(found)


def _bound_to(claims: Mapping[str, Any], expires: float) -> TokenFacts:
    """The claim ``kubernetes.io``: https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/"""
    bound = claims.get("kubernetes.io")
    if not isinstance(bound, dict):
        raise TokenRefused('it has no claim "kubernetes.io"')
    account = _reference(bound, "serviceaccount")
    pod = _reference(bound, "pod")
    node = _reference(bound, "node") if "node" in bound else ("", "")
    return TokenFacts(namespace(bound.get("namespace")), *account, *pod, *node, expires_at=expires)


def _reference(bound: dict[str, Any], kind: str) -> tuple[str, str]:
    """(name, uid)."""
    found = bound.get(kind)
    if not isinstance(found, dict):
        raise TokenRefused(f"it is not bound to a {kind}")
    return object_name(found.get("name"), kind), object_uid(found.get("uid"), kind)


def namespace(found: object) -> str:
    """A namespace's name as Kubernetes allows it, so that it may stand in a path. Raises TokenRefused."""
    if not isinstance(found, str) or not _NAMESPACE.fullmatch(found):
        raise TokenRefused("its namespace is no namespace's name")
    return found


def object_name(found: object, kind: str) -> str:
    """Likewise, of a pod, a node or a service account. Raises TokenRefused."""
    if not isinstance(found, str) or not _NAME.fullmatch(found):
        raise TokenRefused(f"its {kind} has no name")
    return found


def object_uid(found: object, kind: str) -> str:
    """Likewise. Raises TokenRefused."""
    if not isinstance(found, str) or not _UID.fullmatch(found):
        raise TokenRefused(f"its {kind} has no uid")
    return found


# -- the JWT ------------------------------------------------------------------------------------------------


def _taken_apart(token: str) -> Compact:
    try:
        return take_apart(token, MAX_TOKEN)
    except NotAToken as error:
        raise TokenRefused(f"it is no signed JWT: {error}") from None


def _check_header(header: Mapping[str, Any]) -> None:
    if header.get("alg") not in ("RS256", "ES256"):
        raise TokenRefused('its "alg" is neither RS256 nor ES256')
    if not isinstance(header.get("kid"), str):
        raise TokenRefused('it has no "kid"')
    if "crit" in header:
        raise TokenRefused('it has a "crit"')


def _usable(jwk: object) -> tuple[str, Key | None]:
    """A key for signatures that we take, with its kid."""
    if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig":
        return "", None
    kid = jwk.get("kid")
    kind = {"RSA": "RS256", "EC": "ES256"}.get(str(jwk.get("kty")))
    if not isinstance(kid, str) or not kid or kind is None or jwk.get("alg", kind) != kind:
        return "", None
    try:
        key = jwt.PyJWK({**jwk, "alg": kind}).key
    except jwt.PyJWTError:
        return "", None
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _MIN_RSA:
        return kid, key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return kid, key
    return kid, None
