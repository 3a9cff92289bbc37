"""Service-account tokens, the documents of an API server, and an API server that tells them."""

from __future__ import annotations

import copy
import json
from base64 import urlsafe_b64encode
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

NOW = 1_800_000_000.0
OURS = "spiffe://shop.internal"
ISSUER = "https://oidc.cluster.internal"
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
POD_UID = "c15b2d2c-6d5a-4a4b-9d2c-0f8b8b5c1a11"
CONTAINER = "9" * 64


def jwk_of(key: Any, kid: str, **more: Any) -> dict[str, Any]:
    algorithm = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig", **more}


def jwks(*keys: dict[str, Any]) -> str:
    return json.dumps({"keys": list(keys) or [jwk_of(RSA_KEY, "r", alg="RS256"), jwk_of(EC_KEY, "e")]})


def claims(**changes: Any) -> dict[str, Any]:
    """As the API server writes them (1.32). A change to None takes the claim away."""
    full = {
        "aud": [OURS],
        "exp": NOW + 3600,
        "iat": NOW - 10,
        "nbf": NOW - 10,
        "iss": ISSUER,
        "jti": "1",
        "sub": "system:serviceaccount:shop:web",
        "kubernetes.io": {
            "namespace": "shop",
            "node": {"name": "node-1", "uid": "n-1"},
            "pod": {"name": "web-0", "uid": POD_UID},
            "serviceaccount": {"name": "web", "uid": "s-1"},
        },
    }
    return {name: value for name, value in (full | changes).items() if value is not None}


def bound(**changes: Any) -> dict[str, Any]:
    """Claims whose ``kubernetes.io`` is changed."""
    return claims(
        **{"kubernetes.io": {k: v for k, v in (claims()["kubernetes.io"] | changes).items() if v is not None}}
    )


def token(said: dict[str, Any] | None = None, key: Any = RSA_KEY, alg: str = "RS256", **header: Any) -> str:
    return jwt.encode(claims() if said is None else said, key, algorithm=alg, headers={"kid": "r", **header})


def part(said: object) -> str:
    return urlsafe_b64encode(json.dumps(said).encode()).rstrip(b"=").decode()


def pod(**changes: Any) -> dict[str, Any]:
    """``changes``: by "metadata.uid" and so on, with "__" for the dot. None takes away."""
    found: dict[str, Any] = {
        "metadata": {"namespace": "shop", "name": "web-0", "uid": POD_UID, "labels": {"app": "web", "tier": "front"}},
        "spec": {"serviceAccountName": "web", "nodeName": "node-1", "containers": [{"name": "app"}]},
        "status": {
            "phase": "Running",
            "containerStatuses": [
                {
                    "name": "app",
                    "image": "registry.internal/web:1",
                    "imageID": "docker-pullable://registry.internal/web@sha256:" + "1" * 64,
                    "containerID": f"containerd://{CONTAINER}",
                    "state": {"running": {}},
                }
            ],
        },
    }
    found = copy.deepcopy(found)
    for path, value in changes.items():
        outer, inner = path.split("__")
        if value is None:
            del found[outer][inner]
        else:
            found[outer][inner] = value
    return found


def review(**changes: Any) -> dict[str, Any]:
    """The answer of TokenReview; ``changes`` to its status."""
    prefix = "authentication.kubernetes.io/"
    status = {
        "authenticated": True,
        "audiences": [OURS],
        "user": {
            "username": "system:serviceaccount:shop:web",
            "uid": "s-1",
            "groups": ["system:serviceaccounts"],
            "extra": {
                f"{prefix}pod-name": ["web-0"],
                f"{prefix}pod-uid": [POD_UID],
                f"{prefix}node-name": ["node-1"],
                f"{prefix}node-uid": ["n-1"],
            },
        },
    } | changes
    return {"kind": "TokenReview", "status": {name: value for name, value in status.items() if value is not None}}


def user(**changes: Any) -> dict[str, Any]:
    return review(user={**review()["status"]["user"], **changes})


def extra(name: str, value: Any) -> dict[str, Any]:
    changed = {**review()["status"]["user"]["extra"], f"authentication.kubernetes.io/{name}": value}
    return user(extra={k: v for k, v in changed.items() if v is not None})


class ApiServer:
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.review: tuple[int, dict[str, Any]] = (201, review())
        self.pod: tuple[int, dict[str, Any]] = (200, pod())
        self.asked: list[tuple[str, str, bytes]] = []
        self.down: BaseException | None = None

    async def __call__(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        self.asked.append((method, path, body))
        if self.down is not None:
            raise self.down
        return self.review if method == "POST" else self.pod
