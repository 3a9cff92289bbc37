"""Keys that tokens are checked with: a JSON Web Key Set (RFC 7517) read once, and the signature.

The algorithm is the token's word, so it decides nothing about the key: each key belongs to one family, made from its
own members, and only an algorithm of that family and (for EC) of its curve meets it. There is no algorithm for a
shared secret or for no key at all, so that neither "none" nor HS256 with a public key as the secret leads anywhere.
Keys that a token brings along (jwk, jku, x5c, x5u) are never looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import jwt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

MAX_SET: Final = 1024 * 1024  # bytes
MAX_KEYS: Final = 1000
_MAX_TRIES: Final = 16  # keys tried for a token that names none
_MAX_KID: Final = 256
_LEAST_RSA, _MOST_RSA = 2048, 8192  # bits; an RSA check takes time with the cube of them

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

# RFC 7518 3.1, RFC 8037: algorithm -> family, and what marks its key.
_FAMILY: Final = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "RSA"),
    "ES256": "P-256",
    "ES384": "P-384",
    "ES512": "P-521",
    "EdDSA": "Ed25519",
}
ALGORITHMS: Final = frozenset(_FAMILY)
# What makes a key of a family, and nothing private: the reader of PyJWT, and the members that it is given.
_READERS: Final = {
    "RSA": ("RS256", ("kty", "n", "e")),
    "EC": ("ES256", ("kty", "crv", "x", "y")),
    "OKP": ("EdDSA", ("kty", "crv", "x")),
}
_CURVES: Final = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}


class UnusableSet(ValueError):
    """Not a JSON Web Key Set, or one without a key that a token could be checked with."""


@dataclass(frozen=True, slots=True)
class Key:
    """``family``: see ``_FAMILY``; ``algorithm``: the only one it is for, "" = any of its family."""

    kid: str
    family: str
    algorithm: str
    public: PublicKey = field(repr=False)

    def fits(self, algorithm: str) -> bool:
        return _FAMILY.get(algorithm) == self.family and self.algorithm in ("", algorithm)

    def verifies(self, algorithm: str, signed: bytes, signature: bytes) -> bool:
        """Whether the signature is good. ``algorithm`` must fit."""
        if not self.fits(algorithm):
            return False
        try:
            return bool(jwt.get_algorithm_by_name(algorithm).verify(signed, self.public, signature))
        except (jwt.PyJWTError, InvalidSignature, ValueError):
            return False


@dataclass(frozen=True, slots=True)
class KeySet:
    """``digest`` names what it was read from; ``ignored``: how many keys of it no token can be checked with."""

    keys: tuple[Key, ...]
    digest: bytes = field(repr=False)
    ignored: int = 0

    def candidates(self, algorithm: str, kid: str | None) -> Sequence[Key]:
        """The keys that a token may be checked with. With a ``kid`` only keys of that name; without, those of the
        family, the first few of them."""
        if kid is not None:
            return [key for key in self.keys if key.kid == kid and key.fits(algorithm)]
        return [key for key in self.keys if key.fits(algorithm)][:_MAX_TRIES]


def read_keys(text: bytes) -> KeySet:
    """A key set. Keys of other uses and kinds are counted and left out, as RFC 7517 5 asks. Raises UnusableSet."""
    if len(text) > MAX_SET:
        raise UnusableSet(f"the key set is larger than {MAX_SET // 1024} KiB")
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        raise UnusableSet("this is not JSON") from None
    entries = whole.get("keys") if isinstance(whole, dict) else None
    if not isinstance(entries, list):
        raise UnusableSet("this is not a JSON Web Key Set: it has no list of keys")
    if len(entries) > MAX_KEYS:
        raise UnusableSet(f"the key set has more than {MAX_KEYS} keys")
    keys = tuple(key for entry in entries if (key := _read_key(entry)) is not None)
    if not keys:
        raise UnusableSet(f"none of the {len(entries)} keys is a public RSA, EC or Ed25519 key for signatures")
    return KeySet(keys, hashlib.sha256(text).digest(), len(entries) - len(keys))


def _read_key(entry: Any) -> Key | None:
    if not isinstance(entry, dict) or not _is_for_signatures(entry):
        return None
    kid, algorithm = entry.get("kid", ""), entry.get("alg", "")
    if not isinstance(kid, str) or len(kid) > _MAX_KID or not isinstance(algorithm, str):
        return None
    public = _public(entry)
    family = _family_of(public)
    if public is None or family is None or (algorithm and _FAMILY.get(algorithm) != family):
        return None
    return Key(kid, family, algorithm, public)


def _is_for_signatures(entry: Mapping[str, Any]) -> bool:
    operations = entry.get("key_ops")
    if operations is not None and (not isinstance(operations, list) or "verify" not in operations):
        return False
    return entry.get("use", "sig") in ("sig", "jwt-svid")  # the latter in bundles of SPIFFE trust domains


def _public(entry: Mapping[str, Any]) -> PublicKey | None:
    kty = entry.get("kty")
    name, members = _READERS.get(kty if isinstance(kty, str) else "", ("", ()))
    try:
        given = {member: entry[member] for member in members}
        found: object = jwt.get_algorithm_by_name(name).from_jwk(given) if name else None
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if isinstance(found, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        return found
    return None


def _family_of(key: PublicKey | None) -> str | None:
    if isinstance(key, rsa.RSAPublicKey):
        return "RSA" if _LEAST_RSA <= key.key_size <= _MOST_RSA else None
    if isinstance(key, ec.EllipticCurvePublicKey):
        return _CURVES.get(key.curve.name)
    return "Ed25519" if key is not None else None
