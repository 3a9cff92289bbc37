"""An issuer of tokens for tests: its keys, its key set, and tokens good and forged."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

NOW = 1_800_000_000.0
ISSUER = "https://id.example.com"

_CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}


@cache
def private_key(algorithm: str, number: int = 0) -> Any:
    """The same key for the same arguments; RSA algorithms share theirs."""
    if algorithm in _CURVES:
        return ec.generate_private_key(_CURVES[algorithm])
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return _rsa(number)


@cache
def _rsa(number: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def jwk(algorithm: str, kid: str | None = "k", number: int = 0, **more: Any) -> dict[str, Any]:
    """The public key as a JWK."""
    public = private_key(algorithm, number).public_key()
    found: dict[str, Any] = jwt.get_algorithm_by_name(algorithm).to_jwk(public, as_dict=True)
    found = {name: value for name, value in found.items() if name != "key_ops"}
    return {**found, **({"kid": kid} if kid is not None else {}), **more}


def key_set(*keys: Mapping[str, Any]) -> str:
    return json.dumps({"keys": list(keys)})


def token(
    claims: Mapping[str, Any] | None = None,
    *,
    algorithm: str = "ES256",
    kid: str | None = "k",
    number: int = 0,
    header: Mapping[str, Any] | None = None,
    now: float = NOW,
) -> str:
    """A signed token of ISSUER, about ``user``, for an hour, unless ``claims`` says otherwise (None = not there)."""
    whole = {"iss": ISSUER, "sub": "user", "exp": int(now) + 3600, **(claims or {})}
    whole = {name: value for name, value in whole.items() if value is not None}
    return raw_token(
        json.dumps({"alg": algorithm, **({"kid": kid} if kid is not None else {}), **(header or {})}),
        json.dumps(whole),
        algorithm=algorithm,
        number=number,
    )


def raw_token(header: str, payload: str, *, algorithm: str = "ES256", number: int = 0) -> str:
    """What is written, signed with the key of ``algorithm``, whatever the header says."""
    signed = f"{b64(header.encode())}.{b64(payload.encode())}"
    signer = jwt.get_algorithm_by_name(algorithm)
    return f"{signed}.{b64(signer.sign(signed.encode(), private_key(algorithm, number)))}"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
