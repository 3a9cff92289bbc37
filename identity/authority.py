"""The mini-CA: a root, an issuing authority under it, and SVIDs under that. No files, no clock, no network.

Building, signing and checking are three functions that know nothing of each other (C-4, C-5). ``build_svid``
writes down what we mean; ``sign`` turns it into a certificate; ``check_issued`` then reads that certificate
like a stranger's: by the rules that every peer applies, and against the request, not against the builder.
A mistake in one of them is found by another before the certificate leaves this module. Of what a requester
sends, only the public key is used; the ID comes from the caller, who attested it.

Profiles: X509-SVID 2 to 4 and RFC 5280 4.2. The root lives ten years and may be kept offline, the issuing
authority a year. Random serial numbers have 128 bits; they come from the ``rng`` argument, which outside
tests must be a ``random.SystemRandom``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from identity.spiffe import SpiffeId, check_trust_domain
from identity.svid import PrivateKey, SvidError, TrustBundle, X509Svid, check_leaf, check_own_svid
from identity.x509_rules import PublicKey, build_path, check_authority, check_public_key, public_key_der

ROOT_LIFE: Final = timedelta(days=3650)
ISSUING_LIFE: Final = timedelta(days=365)
DEFAULT_TTL: Final = timedelta(hours=1)
MIN_TTL: Final = timedelta(seconds=60)
MAX_TTL: Final = timedelta(hours=24)
# A verifier's clock may be behind ours by this much (C-5; SPIRE 10 s, Istio 2 min).
BACKDATE: Final = timedelta(seconds=60)
_MAX_DNS_NAMES: Final = 32

Curve = Literal["P-256", "P-384"]
_CURVES: Final = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1}


class IssueError(Exception):
    """A certificate was not issued; the text says why, for the operator."""


@dataclass(frozen=True, slots=True, eq=False)
class Authority:
    """A key that may sign SVIDs of one trust domain. ``chain``: its own certificate, then those up to, but
    without, the root; empty of intermediates for an authority right under the root."""

    trust_domain: str
    chain: tuple[x509.Certificate, ...] = field(repr=False)
    key: PrivateKey = field(repr=False)

    @property
    def certificate(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def not_after(self) -> datetime:
        return min(cert.not_valid_after_utc for cert in self.chain)


def new_key(curve: Curve = "P-256") -> ec.EllipticCurvePrivateKey:
    """A fresh private key, from the random numbers of the operating system (C-2)."""
    return ec.generate_private_key(_CURVES[curve]())


# -- authorities --------------------------------------------------------------------------------------------


def create_root(
    trust_domain: str,
    key: ec.EllipticCurvePrivateKey,
    *,
    now: datetime,
    rng: random.Random,
    life: timedelta = ROOT_LIFE,
) -> x509.Certificate:
    """A self-signed root: pathLen 1, URI SAN the trust domain's own ID (X509-SVID 2).

    Raises SpiffeIdError for a bad trust domain, IssueError."""
    check_trust_domain(trust_domain)
    serial = _serial(rng)
    name = _authority_name("root", serial)
    builder = _authority_builder(trust_domain, name, name, key.public_key(), key.public_key(), path_length=1)
    builder = _dated(builder.serial_number(serial), now - BACKDATE, now + life)
    root = sign(builder, key)
    _check_created(root, root, trust_domain, now)
    return root


def create_issuing(
    root: x509.Certificate,
    root_key: PrivateKey,
    trust_domain: str,
    public_key: PublicKey,
    *,
    now: datetime,
    rng: random.Random,
    life: timedelta = ISSUING_LIFE,
) -> x509.Certificate:
    """An authority under ``root`` that signs leafs only (pathLen 0) and never outlives it.

    Raises IssueError."""
    if public_key_der(public_key) == public_key_der(root.public_key()):
        raise IssueError("the issuing authority must not use the root's key")
    serial = _serial(rng)
    name = _authority_name("issuing", serial)
    root_public = check_public_key(root.public_key())
    builder = _authority_builder(trust_domain, name, root.subject, public_key, root_public, path_length=0)
    builder = builder.serial_number(serial)
    not_before = max(now - BACKDATE, root.not_valid_before_utc)
    issuing = sign(_dated(builder, not_before, min(now + life, root.not_valid_after_utc)), root_key)
    _check_created(issuing, root, trust_domain, now)
    return issuing


def _authority_name(kind: str, serial: int) -> x509.Name:
    """Unique through its serial, so that paths found by name are right when authorities are renewed."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Sidewall"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Sidewall {kind} CA"),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, f"{serial:x}"),
        ]
    )


def _authority_builder(
    trust_domain: str,
    subject: x509.Name,
    issuer: x509.Name,
    public_key: PublicKey,
    issuer_key: PublicKey,
    *,
    path_length: int,
) -> x509.CertificateBuilder:
    uri = x509.UniformResourceIdentifier(str(SpiffeId.of(trust_domain)))
    return (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=public_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def check_authority_path(authority: Authority, bundle: TrustBundle, *, now: datetime) -> None:
    """Whether ``bundle`` vouches for ``authority`` now. Raises SvidError."""
    own, *above = authority.chain
    build_path(own, above, bundle.authorities, trust_domain=authority.trust_domain, now=now)


def _check_created(cert: x509.Certificate, root: x509.Certificate, trust_domain: str, now: datetime) -> None:
    try:
        check_authority(cert)
        build_path(cert, (), (root,), trust_domain=trust_domain, now=now)
    except SvidError as error:
        raise IssueError(f"the new authority does not pass its own check: {error}") from None


# -- SVIDs --------------------------------------------------------------------------------------------------


def sign_svid(
    authority: Authority,
    spiffe_id: SpiffeId,
    public_key: PublicKey,
    *,
    now: datetime,
    rng: random.Random,
    ttl: timedelta = DEFAULT_TTL,
    dns_names: Sequence[str] = (),
    min_ttl: timedelta = MIN_TTL,
) -> tuple[x509.Certificate, ...]:
    """Issue an X509-SVID: build, sign, check. Gives the chain as it is presented: leaf, then intermediates.

    ``now``: aware. ``ttl`` from ``min_ttl`` (less than a minute is for drills) to MAX_TTL, cut at the authority's
    end. Raises IssueError."""
    builder = build_svid(
        authority, spiffe_id, public_key, now=now, rng=rng, ttl=ttl, dns_names=dns_names, min_ttl=min_ttl
    )
    leaf = sign(builder, authority.key)
    check_issued(leaf, authority, spiffe_id, public_key, now=now, ttl=ttl)
    return (leaf, *authority.chain)


def build_svid(
    authority: Authority,
    spiffe_id: SpiffeId,
    public_key: PublicKey,
    *,
    now: datetime,
    rng: random.Random,
    ttl: timedelta = DEFAULT_TTL,
    dns_names: Sequence[str] = (),
    min_ttl: timedelta = MIN_TTL,
) -> x509.CertificateBuilder:
    """The profile of C-5, unsigned. Raises IssueError when the request itself is not acceptable."""
    _check_request(authority, spiffe_id, public_key, ttl, dns_names, min_ttl)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(spiffe_id))]
    names += [x509.DNSName(name) for name in dns_names]
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Sidewall")])
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    signer = authority.certificate
    signer_key = check_public_key(signer.public_key())
    builder = (
        x509.CertificateBuilder(subject_name=subject, issuer_name=signer.subject, public_key=public_key)
        .serial_number(_serial(rng))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer_key), critical=False)
    )
    not_before = max(now - BACKDATE, signer.not_valid_before_utc)
    return _dated(builder, not_before, min(now + ttl, authority.not_after))


def _check_request(
    authority: Authority,
    spiffe_id: SpiffeId,
    public_key: PublicKey,
    ttl: timedelta,
    dns_names: Sequence[str],
    min_ttl: timedelta,
) -> None:
    if spiffe_id.trust_domain != authority.trust_domain:
        raise IssueError(f"{spiffe_id} is not of the trust domain {authority.trust_domain}")
    if not spiffe_id.path:
        raise IssueError("the ID of the trust domain itself is not given to workloads")
    if not min_ttl <= ttl <= MAX_TTL:
        raise IssueError(f"a life of {ttl} is not between {min_ttl} and {MAX_TTL}")
    if len(dns_names) > _MAX_DNS_NAMES:
        raise IssueError(f"more than {_MAX_DNS_NAMES} DNS names")
    try:
        check_public_key(public_key)
    except SvidError as error:
        raise IssueError(str(error)) from None
    if any(public_key_der(public_key) == public_key_der(cert.public_key()) for cert in authority.chain):
        raise IssueError("the requested key is the authority's own (C-4)")


def sign(builder: x509.CertificateBuilder, key: PrivateKey) -> x509.Certificate:
    """Sign what was built, with the digest that fits the key. Raises IssueError when the library refuses."""
    try:
        return builder.sign(key, _digest_for(key))
    except (ValueError, TypeError) as error:
        raise IssueError(f"not signed: {error}") from None


def _digest_for(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384 | None:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return None
    is_p384 = isinstance(key, ec.EllipticCurvePrivateKey) and key.key_size > 256
    return hashes.SHA384() if is_p384 else hashes.SHA256()


def check_issued(
    leaf: x509.Certificate,
    authority: Authority,
    spiffe_id: SpiffeId,
    public_key: PublicKey,
    *,
    now: datetime,
    ttl: timedelta,
) -> None:
    """Read a new certificate as a peer would and compare it with the request. Raises IssueError."""
    problem = _issued_problem(leaf, authority, spiffe_id, public_key, now, ttl)
    if problem is not None:
        raise IssueError(f"the new certificate does not pass its own check: {problem}")


def _issued_problem(
    leaf: x509.Certificate,
    authority: Authority,
    spiffe_id: SpiffeId,
    public_key: PublicKey,
    now: datetime,
    ttl: timedelta,
) -> str | None:
    try:
        found = check_leaf(leaf)
        # The authority's own certificate stands for the bundle here: what it signs must hang under it.
        build_path(leaf, (), authority.chain[:1], trust_domain=authority.trust_domain, now=now)
    except SvidError as error:
        return str(error)
    if found != spiffe_id:
        return f"it is for {found}"
    if public_key_der(leaf.public_key()) != public_key_der(public_key):
        return "it has another public key"
    if leaf.not_valid_after_utc > min(now + ttl, authority.not_after):
        return f"it lives until {leaf.not_valid_after_utc}"
    if leaf.serial_number.bit_length() < 64:  # RFC 5280 4.1.2.2 and the CA/Browser Forum's 64 bits
        return "its serial number is too short"
    return None


def issue(
    authority: Authority,
    bundle: TrustBundle,
    spiffe_id: SpiffeId,
    *,
    now: datetime,
    rng: random.Random,
    ttl: timedelta = DEFAULT_TTL,
    dns_names: Sequence[str] = (),
) -> X509Svid:
    """A new key with its SVID, checked against the bundle that peers hold. Raises IssueError."""
    key = new_key()
    chain = sign_svid(authority, spiffe_id, key.public_key(), now=now, rng=rng, ttl=ttl, dns_names=dns_names)
    svid = X509Svid(spiffe_id, chain, key)
    try:
        check_own_svid(svid, bundle, now=now)
    except SvidError as error:
        raise IssueError(f"no peer would accept the new SVID: {error}") from None
    return svid


# -- parts --------------------------------------------------------------------------------------------------


def _dated(builder: x509.CertificateBuilder, not_before: datetime, not_after: datetime) -> x509.CertificateBuilder:
    """Certificates count whole seconds: both ends are rounded so that neither is later than asked."""
    if not_after.replace(microsecond=0) <= not_before:
        raise IssueError(f"the authority ends at {not_after}")
    builder = builder.not_valid_before(not_before.replace(microsecond=0))
    return builder.not_valid_after(not_after.replace(microsecond=0))


def _serial(rng: random.Random) -> int:
    """128 random bits (C-5), drawn again in the one case in 2**64 where they make a short number."""
    while True:
        serial = rng.getrandbits(128)
        if serial >> 63:
            return serial


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
