"""X.509 identities as values: our own SVID, trust bundles, and the identity of a verified peer.

``check_peer_chain`` is the one way from a presented chain to a ``PeerIdentity``. Its order is S-2: sizes, the
leaf's trust domain, the path to the bundle **of that trust domain and no other** (SPIFFE Trust Domain and
Bundle 4), then the rules of the leaf. The rules themselves are in ``x509_rules``; the ID match of S-7 is the
caller's, who knows whom it dialled.

Checking costs two signature verifications and some parsing, and the same peers connect again and again. A
verdict is therefore remembered for (role, hash of the whole chain as presented), together with the digest of
the bundle that gave it and the time in which every certificate of the path is valid. Each use compares both
again, so an expiry, a step of the clock or a changed bundle ends it. Only acceptance is remembered: nobody
without a certificate that we trust can fill the memory, and it is emptied when full.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from identity.spiffe import SpiffeId
from identity.x509_rules import (
    PEER_REASONS,
    Path,
    PrivateKey,
    Role,
    SvidError,
    build_path,
    check_authority,
    check_leaf,
    fail_closed,
    leaf_id,
    load_certificate,
    public_key_der,
)

__all__ = [
    "MAX_CHAIN_BYTES",
    "MAX_CHAIN_CERTIFICATES",
    "PEER_REASONS",
    "PeerIdentity",
    "PrivateKey",
    "Role",
    "SvidError",
    "TrustBundle",
    "X509Context",
    "X509Svid",
    "check_authority",
    "check_leaf",
    "check_own_svid",
    "check_peer_chain",
    "load_certificate",
]

MAX_CHAIN_CERTIFICATES: Final = 10  # S-2.1
MAX_CHAIN_BYTES: Final = 32 * 1024  # S-2.1
_MAX_REMEMBERED: Final = 4096  # verdicts; about 1 kB each


@dataclass(frozen=True, slots=True, eq=False)
class X509Svid:
    """One X509-SVID with its private key. ``chain``: leaf first, then intermediates, without the root."""

    id: SpiffeId
    chain: tuple[x509.Certificate, ...] = field(repr=False)
    key: PrivateKey = field(repr=False)  # never in a log, a dump or a traceback (C-1)

    @property
    def leaf(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def not_before(self) -> float:
        """Seconds of the epoch: the latest notBefore of the chain."""
        return max(cert.not_valid_before_utc.timestamp() for cert in self.chain)

    @property
    def not_after(self) -> float:
        """Seconds of the epoch: the earliest notAfter of the chain."""
        return min(cert.not_valid_after_utc.timestamp() for cert in self.chain)


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """The X.509 authorities of one trust domain. They vouch for IDs of this trust domain only.

    An empty bundle is allowed and trusts nothing (SPIFFE Trust Domain and Bundle 4.1.3)."""

    trust_domain: str
    authorities: tuple[x509.Certificate, ...] = field(repr=False)
    digest: bytes = field(init=False, repr=False)  # of name and authorities: two equal bundles trust the same

    def __post_init__(self) -> None:
        ders = (cert.public_bytes(Encoding.DER) for cert in self.authorities)
        object.__setattr__(self, "digest", _digest(self.trust_domain.encode(), *ders))


@dataclass(frozen=True, slots=True, eq=False)
class X509Context:
    """All that is needed to prove who we are and to judge who others are: what Live[...] holds, replaced
    whole at every rotation. ``bundles``: trust domain name to its bundle, our own among them."""

    svid: X509Svid
    bundles: Mapping[str, TrustBundle]

    @property
    def id(self) -> SpiffeId:
        return self.svid.id

    @property
    def bundle(self) -> TrustBundle | None:
        """The bundle of our own trust domain."""
        return self.bundles.get(self.svid.id.trust_domain)

    @property
    def not_before(self) -> float:
        return self.svid.not_before

    @property
    def not_after(self) -> float:
        return self.svid.not_after


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who a peer is, from a verified chain. Never made from anything else."""

    id: SpiffeId
    principal: str  # "td/ns/a/sa/b"
    uri: str  # "spiffe://td/ns/a/sa/b"
    not_after: float  # seconds of the epoch: the earliest notAfter of the verified path (S-4)
    sha256: str  # of the leaf's DER, hex
    serial: str  # of the leaf, hex
    issuer: str  # of the leaf, RFC 4514, printable ASCII; for people only
    xfcc: bytes  # an x-forwarded-client-cert element without By=


# -- judging a peer -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Verdict:
    identity: PeerIdentity
    bundle_digest: bytes
    not_before: float
    not_after: float


_verdicts: dict[tuple[Role, bytes], _Verdict] = {}


def check_peer_chain(
    chain_der: Sequence[bytes], bundles: Mapping[str, TrustBundle], *, now: datetime, role: Role
) -> PeerIdentity:
    """Judge the chain that a peer presented: DER certificates, leaf first (S-2, X509-SVID 5).

    ``now`` is an aware datetime. ``role`` is the part the *peer* plays: "client" when it dialled us.
    Raises SvidError with a word of PEER_REASONS, and nothing else."""
    _check_sizes(chain_der)
    key = role, _digest(*chain_der)
    verdict = _verdicts.get(key)
    if verdict is not None and _still_true(verdict, bundles, now):
        return verdict.identity
    verdict = _judge(chain_der, bundles, now, role)
    if len(_verdicts) >= _MAX_REMEMBERED:
        _verdicts.clear()  # one step under the GIL, whichever threads look
    _verdicts[key] = verdict
    return verdict.identity


def _check_sizes(chain_der: Sequence[bytes]) -> None:
    if not chain_der:
        raise SvidError("no_certificate", "the peer presented no certificate")
    if len(chain_der) > MAX_CHAIN_CERTIFICATES:
        raise SvidError("chain_too_long", f"{len(chain_der)} certificates")
    if sum(map(len, chain_der)) > MAX_CHAIN_BYTES:
        raise SvidError("chain_too_long", f"more than {MAX_CHAIN_BYTES} bytes of certificates")


def _still_true(verdict: _Verdict, bundles: Mapping[str, TrustBundle], now: datetime) -> bool:
    bundle = bundles.get(verdict.identity.id.trust_domain)
    if bundle is None or bundle.digest != verdict.bundle_digest:
        return False
    return verdict.not_before <= now.timestamp() <= verdict.not_after


@fail_closed
def _judge(chain_der: Sequence[bytes], bundles: Mapping[str, TrustBundle], now: datetime, role: Role) -> _Verdict:
    leaf, *intermediates = map(load_certificate, chain_der)
    trust_domain = leaf_id(leaf).trust_domain
    bundle = bundles.get(trust_domain)
    if bundle is None:
        raise SvidError("trust_domain", f"there is no bundle for {trust_domain}")
    path = build_path(leaf, intermediates, bundle.authorities, trust_domain=trust_domain, now=now)
    spiffe_id = check_leaf(leaf, role=role)
    identity = _identity(leaf, spiffe_id, path)
    return _Verdict(identity, bundle.digest, path.not_before, path.not_after)


def _identity(leaf: x509.Certificate, spiffe_id: SpiffeId, path: Path) -> PeerIdentity:
    uri = str(spiffe_id)
    sha256 = hashlib.sha256(leaf.public_bytes(Encoding.DER)).hexdigest()
    return PeerIdentity(
        id=spiffe_id,
        principal=spiffe_id.principal,
        uri=uri,
        not_after=path.not_after,
        sha256=sha256,
        serial=f"{leaf.serial_number:x}",
        issuer=_printable(leaf.issuer.rfc4514_string()),
        # No quotes: neither value can hold one of the characters that need them ("," ";" "=" and quotes).
        xfcc=f"Hash={sha256};URI={uri}".encode("ascii"),
    )


def _printable(text: str) -> str:
    """A name chosen by an authority, fit for a log line: at most 200 characters of printable ASCII."""
    return "".join(c if " " <= c <= "~" else "?" for c in text[:200])


def _digest(*parts: bytes) -> bytes:
    """SHA-256 over the parts with their lengths, so that no two lists of parts read alike."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(4, "big"))
        whole.update(part)
    return whole.digest()


# -- judging ourselves --------------------------------------------------------------------------------------


@fail_closed
def check_own_svid(svid: X509Svid, bundle: TrustBundle, *, now: datetime) -> None:
    """Whether peers that hold ``bundle`` will accept ``svid`` now, and whether its key is its own.

    The same rules as for peers, for both roles; all-or-nothing rotation rests on it. Raises SvidError."""
    if public_key_der(svid.key.public_key()) != public_key_der(svid.leaf.public_key()):
        raise SvidError("bad_certificate", "the private key does not belong to the certificate")
    spiffe_id = check_leaf(svid.leaf)
    if spiffe_id != svid.id:
        raise SvidError("id_mismatch", f"the certificate is for {spiffe_id}, not for {svid.id}")
    if spiffe_id.trust_domain != bundle.trust_domain:
        raise SvidError("trust_domain", f"{spiffe_id} is not of {bundle.trust_domain}")
    build_path(svid.leaf, svid.chain[1:], bundle.authorities, trust_domain=bundle.trust_domain, now=now)
