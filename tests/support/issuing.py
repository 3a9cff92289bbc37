"""A source of identities that issues in memory, with a real authority: leaf, issuing CA and root can be rotated."""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from config.live import Live
from identity import authority
from identity.authority import Authority
from identity.rpc import Caller, RpcError, Status
from identity.spiffe import SpiffeId
from identity.svid import TrustBundle, X509Context, X509Svid
from identity.workload_api import WorkloadBundle, WorkloadJwt, WorkloadSvid

_RNG = random.SystemRandom()


def _now() -> datetime:
    return datetime.now(UTC)


def _number(value: int) -> str:
    return base64.urlsafe_b64encode(value.to_bytes(32, "big")).rstrip(b"=").decode()


class IssuingSource:
    """An ``IdentitySource``. ``ids``: what every caller gets; ``refusal``: raised instead when set."""

    def __init__(self, trust_domain: str, *ids: str) -> None:
        self.trust_domain = trust_domain
        self.ids = [SpiffeId.parse(f"spiffe://{trust_domain}{path}") for path in ids]
        self.hints: dict[str, str] = {}
        self.federated: dict[str, WorkloadBundle] = {}
        self.refusal: RpcError | None = None
        self.callers: list[Caller] = []
        self._live: Live[int] = Live(0)
        self._roots: list[x509.Certificate] = []
        self._jwt_key = authority.new_key()
        self.kid = "first"
        self.new_root()

    # -- rotation ---------------------------------------------------------------------------------------------------

    def add_root(self) -> None:
        """Prepare the next root: published, signs nothing yet."""
        self._root_key = authority.new_key()
        self._roots.append(authority.create_root(self.trust_domain, self._root_key, now=_now(), rng=_RNG))

    def new_root(self) -> None:
        """A new root, and everything under it."""
        self.add_root()
        self.new_issuing()

    def publish_root(self) -> None:
        """Prepare the next root and tell everybody."""
        self.add_root()
        self.new_leafs()

    def drop_old_roots(self) -> None:
        del self._roots[:-1]
        self._svids = {}
        self.changed()

    def new_issuing(self) -> None:
        """A new issuing authority under the newest root, and new leafs under that."""
        key = authority.new_key()
        public = key.public_key()
        cert = authority.create_issuing(
            self._roots[-1], self._root_key, self.trust_domain, public, now=_now(), rng=_RNG
        )
        self.authority = Authority(self.trust_domain, (cert,), key)
        self.new_leafs()

    def new_leafs(self) -> None:
        self._svids: dict[SpiffeId, X509Svid] = {}
        self.changed()

    def changed(self) -> None:
        self._live.set(self.version + 1)

    # -- what tests compare with ------------------------------------------------------------------------------------

    @property
    def bundle(self) -> TrustBundle:
        return TrustBundle(self.trust_domain, tuple(self._roots))

    def svid(self, spiffe_id: SpiffeId) -> X509Svid:
        made = self._svids.get(spiffe_id)
        if made is None:
            ttl = timedelta(hours=1)
            made = authority.issue(self.authority, self.bundle, spiffe_id, now=_now(), rng=_RNG, ttl=ttl)
            self._svids[spiffe_id] = made
        return made

    def context(self, path: str) -> X509Context:
        """A fresh SVID of this authority outside the API."""
        spiffe_id = SpiffeId.parse(f"spiffe://{self.trust_domain}{path}")
        return X509Context(self.svid(spiffe_id), {self.trust_domain: self.bundle})

    # -- IdentitySource ---------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        return self._live.value

    async def wait_change(self, seen: int) -> int:
        while self.version == seen:
            await self._live.wait_change(self._live.generation)
        return self.version

    def _ask(self, caller: Caller) -> None:
        self.callers.append(caller)
        if self.refusal is not None:
            raise self.refusal

    async def svids_for(self, caller: Caller) -> Sequence[WorkloadSvid]:
        self._ask(caller)
        return [WorkloadSvid(self.svid(one), self.hints.get(one.path, "")) for one in self.ids]

    async def bundles_for(self, caller: Caller) -> Mapping[str, WorkloadBundle]:
        self._ask(caller)
        own = WorkloadBundle(self.bundle.authorities, json.dumps({"keys": [self._jwk()]}).encode())
        return {self.trust_domain: own, **self.federated}

    def _jwk(self) -> dict[str, str]:
        numbers = self._jwt_key.public_key().public_numbers()
        assert isinstance(self._jwt_key, ec.EllipticCurvePrivateKey)
        point = {"x": _number(numbers.x), "y": _number(numbers.y)}
        return {"kty": "EC", "crv": "P-256", "kid": self.kid, "use": "jwt-svid", **point}

    async def jwt_svids(
        self, caller: Caller, spiffe_id: SpiffeId | None, audiences: Sequence[str]
    ) -> Sequence[WorkloadJwt]:
        self._ask(caller)
        if spiffe_id is not None and spiffe_id not in self.ids:
            raise RpcError(Status.PERMISSION_DENIED, "no identity issued")
        wanted = [spiffe_id] if spiffe_id is not None else self.ids
        return [WorkloadJwt(str(one), self._token(one, audiences), self.hints.get(one.path, "")) for one in wanted]

    def _token(self, subject: SpiffeId, audiences: Sequence[str]) -> str:
        now = int(time.time())
        claims = {"sub": str(subject), "aud": list(audiences), "iat": now, "exp": now + 300}
        return jwt.encode(claims, self._jwt_key, algorithm="ES256", headers={"kid": self.kid, "typ": "JWT"})


async def validate(token: str, audience: str, bundles: Mapping[str, WorkloadBundle]) -> tuple[str, Mapping[str, Any]]:
    """A ``JwtValidator`` by PyJWT alone."""
    subject = jwt.decode(token, options={"verify_signature": False}).get("sub", "")
    document = json.loads(bundles[SpiffeId.parse(subject).trust_domain].jwks)
    keys = {key["kid"]: jwt.PyJWK(key) for key in document["keys"]}
    try:
        kid = jwt.get_unverified_header(token)["kid"]
        claims = jwt.decode(token, keys[kid], algorithms=["ES256"], audience=audience)
    except (jwt.PyJWTError, KeyError) as error:
        raise ValueError(str(error)) from None
    return subject, claims
