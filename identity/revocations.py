"""Lists of what an authority has revoked, as all others see them: values, and how a signed list is read.

How lists are made and signed stands in ``identity.ca.revocation``. Who verifies builds the path to the bundle with
the rules of peers, so that only an authority of the trust domain can have signed; a workload's certificate cannot, it
is no authority. A list of a lower sequence than the one held is to be ignored (C-16).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from identity.spiffe import SpiffeId
from identity.svid import SvidError, TrustBundle, load_certificate
from identity.x509_rules import build_path, check_authority

TYPE: Final = "sidewall-revocations"
ALGORITHMS: Final = {256: "ES256", 384: "ES384"}
_MAX_LIST: Final = 1024 * 1024  # bytes of a signed list
_SKEW: Final = 60.0  # seconds that a verifier's clock may be behind or ahead


@dataclass(frozen=True, slots=True)
class Revocation:
    """``kind``: "id", "serial" or "authority"; ``what`` in that form; times in seconds of the epoch."""

    kind: str
    what: str
    reason: str
    at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class Revocations:
    """All that is revoked at one moment. ``tainted``: ids of authorities whose signatures are to be renewed."""

    trust_domain: str
    sequence: int
    entries: tuple[Revocation, ...] = ()
    tainted: tuple[str, ...] = ()
    expires_at: float = 0.0  # of the signed list, 0 when it was not signed

    def reason_for(self, spiffe_id: str, serials: Iterable[str], authorities: Iterable[str], at: float) -> str | None:
        """Why a peer must be cut off: its ID, the serials of its chain, the key ids (AKI, hex) of its signers. None
        when it is fine. Compares at ``at``, seconds of the epoch."""
        told = {"id": {spiffe_id}, "serial": set(serials), "authority": set(authorities)}
        for entry in self.entries:
            if entry.expires_at > at and entry.what in told[entry.kind]:
                return f"{entry.kind} revoked: {entry.reason}"
        return None


class RevocationListError(Exception):
    """A signed list is not to be used; the text says why."""


def verify(token: str, bundle: TrustBundle, *, now: datetime) -> Revocations:
    """Read a signed list of the bundle's trust domain. Raises RevocationListError and nothing else."""
    if len(token) > _MAX_LIST:
        raise RevocationListError("the list is longer than 1 MiB")
    try:
        header = jwt.get_unverified_header(token)
        signer = _signer(header, bundle, now)
        size = signer.public_key().key_size  # type: ignore[union-attr]
        claims = jwt.decode(
            token,
            signer.public_key(),  # type: ignore[arg-type]
            algorithms=[ALGORITHMS[size]],
            options={"verify_exp": False, "verify_iat": False, "verify_nbf": False, "verify_aud": False},
        )
        return _read(claims, bundle.trust_domain, now.timestamp())
    except RevocationListError:
        raise
    except Exception as error:  # bytes from the network: whatever is wrong with them, they are not a list
        raise RevocationListError(f"not a revocation list of {bundle.trust_domain}: {str(error)[:200]}") from None


def _signer(header: dict[str, Any], bundle: TrustBundle, now: datetime) -> x509.Certificate:
    if header.get("typ") != TYPE:
        raise RevocationListError("it is another kind of token")
    own, *above = (load_certificate(base64.b64decode(text, validate=True)) for text in header["x5c"])
    try:
        check_authority(own)
        build_path(own, above, bundle.authorities, trust_domain=bundle.trust_domain, now=now)
    except SvidError as error:
        raise RevocationListError(f"its signer is no authority of {bundle.trust_domain}: {error}") from None
    if not isinstance(own.public_key(), ec.EllipticCurvePublicKey):
        raise RevocationListError("its signer's key is of another kind")
    return own


def _read(claims: dict[str, Any], trust_domain: str, now: float) -> Revocations:
    if claims["iss"] != str(SpiffeId.of(trust_domain)):
        raise RevocationListError("it is of another trust domain")
    if not claims["iat"] - _SKEW <= now <= claims["exp"] + _SKEW:
        raise RevocationListError("it is too old, or of the future")
    entries = tuple(Revocation(str(k), str(w), str(r), float(a), float(e)) for k, w, r, a, e in claims["entries"])
    if any(entry.kind not in {"id", "serial", "authority"} for entry in entries):
        raise RevocationListError("it has an entry of an unknown kind")
    return Revocations(
        trust_domain, int(claims["seq"]), entries, tuple(map(str, claims["tainted"])), float(claims["exp"])
    )
