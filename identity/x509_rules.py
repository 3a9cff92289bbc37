"""The X509-SVID rules, used alike to accept a peer's certificate and to re-check one that we issued.

Two questions, asked apart:

*May this certificate be a leaf, and whose?* ``check_leaf``: X509-SVID 2, 4 and 5.2 and requirement S-2.2 to
S-2.5. One URI SAN, a SPIFFE ID with a path, not a CA, a key usage for signing handshakes and nothing else,
a sound key and signature. Subject, DNS names, e-mail and other names are never looked at (S-2.6).

*Do authorities vouch for it?* ``build_path``: RFC 5280 6.1 in its strictest small form. From the leaf over
presented intermediates to an authority of the given bundle, at most five steps. What RFC 5280 makes optional
or complicated is refused instead of interpreted: name constraints, policy constraints, any critical
extension outside the four we read, pathLen counted over every intermediate (also self-issued ones).
``cryptography.x509.verification`` builds paths too and takes SPIFFE leafs with a permissive extension
policy, but it knows no Ed25519 authorities, does not ask for keyCertSign, and says why in prose only; the
tests use it as the oracle: what is accepted here, it accepts as well.

A path is first found by names, then its certificates are checked without any arithmetic, and signatures
come last, from the authority downwards. So no key is used before the one above has vouched for it: a
stranger cannot make us compute with an RSA key of his own making. Search and signatures are counted.

Every refusal is an ``SvidError`` with one word of ``PEER_REASONS``. Whatever else a hostile certificate makes
the parser raise becomes ``bad_certificate``: an exception never counts as success (SECURITY.md section 6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from typing import Final, Literal, ParamSpec, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, SignatureAlgorithmOID

from identity.spiffe import SpiffeId, SpiffeIdError

Role = Literal["client", "server"]
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey

# Equal to proxy.errors.PEER_REASONS (identity must not import proxy; a test compares the two).
PEER_REASONS: Final = frozenset(
    {
        "no_certificate",
        "untrusted_root",
        "expired",
        "not_yet_valid",
        "not_a_spiffe_id",
        "several_uri_sans",
        "trust_domain",
        "id_mismatch",
        "leaf_is_ca",
        "key_usage",
        "extended_key_usage",
        "weak_key",
        "weak_signature",
        "chain_too_long",
        "bad_certificate",
        "alpn",
        "protocol",
        "timeout",
        "closed",
        "no_identity",
        "revoked",
    }
)

MAX_DEPTH: Final = 5  # the authority's distance from the leaf (S-2.1)
_MAX_STEPS: Final = 64  # certificates visited while searching; an honest chain needs as many as it is long
_MAX_CANDIDATES: Final = 8  # paths whose signatures are tried: the same names with renewed keys
_MIN_RSA: Final = 2048
_MAX_RSA: Final = 8192  # a verification of 16384 bits costs about a millisecond
_CURVES: Final = frozenset({"secp256r1", "secp384r1"})
_DIGESTS: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_UNDERSTOOD: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)
_STAMP: Final = "%Y-%m-%dT%H:%M:%SZ"
_PURPOSE: Final = {"client": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Ext = TypeVar("_Ext", bound=x509.ExtensionType)


class SvidError(Exception):
    """A certificate or chain is refused. ``why``: a word of ``PEER_REASONS``. ``detail``: for operators."""

    def __init__(self, why: str, detail: str = "") -> None:
        super().__init__(f"{why}: {detail}" if detail else why)
        self.why = why
        self.detail = detail


def fail_closed(check: Callable[_P, _T]) -> Callable[_P, _T]:
    """Turn every exception but SvidError into ``bad_certificate``. The parser is lazy and raises ValueError,
    UnsupportedAlgorithm, DuplicateExtension, UnicodeDecodeError... at the first look at a field."""

    @wraps(check)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return check(*args, **kwargs)
        except SvidError:
            raise
        except Exception as error:
            raise SvidError("bad_certificate", f"{type(error).__name__}: {str(error)[:200]}") from None

    return checked


@fail_closed
def load_certificate(der: bytes) -> x509.Certificate:
    """Parse one DER certificate completely, extensions too. Raises SvidError("bad_certificate")."""
    cert = x509.load_der_x509_certificate(der)
    if cert.serial_number <= 0:
        raise SvidError("bad_certificate", "the serial number is not positive")  # RFC 5280 4.1.2.2
    _ = cert.extensions  # raises on duplicates and on broken ones
    if der[-len(cert.signature) - 1] != 0:
        # The last BIT STRING with "unused" bits that happen to be zero: the one part of a certificate that
        # could be changed without spoiling the signature. One certificate, one spelling.
        raise SvidError("bad_certificate", "the signature is not a whole number of bytes")
    return cert


# -- the leaf -----------------------------------------------------------------------------------------------


@fail_closed
def check_leaf(cert: x509.Certificate, *, role: Role | None = None) -> SpiffeId:
    """The SPIFFE ID of a leaf that keeps every rule of X509-SVID for leafs, in the order of S-2.

    ``role`` is what the holder of the certificate plays in the handshake; an extended key usage must then
    allow it. Without a role (when issuing) it must allow both. Time and signatures are not looked at.
    Raises SvidError."""
    spiffe_id = leaf_id(cert)
    _check_extensions(cert)
    basic = _extension(cert, x509.BasicConstraints)
    if basic is not None and basic.value.ca:
        raise SvidError("leaf_is_ca", "basicConstraints has cA true")
    _check_leaf_key_usage(cert)
    _check_leaf_purpose(cert, role)
    check_public_key(cert.public_key())
    check_signature_algorithm(cert)
    return spiffe_id


@fail_closed
def leaf_id(cert: x509.Certificate) -> SpiffeId:
    """The one URI SAN of a leaf as a SPIFFE ID with a path (X509-SVID 2). Raises SvidError."""
    uris = _uri_sans(cert)
    if not uris:
        raise SvidError("not_a_spiffe_id", "there is no URI SAN")
    if len(uris) > 1:
        raise SvidError("several_uri_sans", f"{len(uris)} URI SANs")
    try:
        spiffe_id = SpiffeId.parse(uris[0])
    except SpiffeIdError as error:
        raise SvidError("not_a_spiffe_id", str(error)) from None
    if not spiffe_id.path:
        raise SvidError("not_a_spiffe_id", "the ID of a trust domain is a signer's, not a workload's")
    return spiffe_id


def trust_domains_of(cert: x509.Certificate) -> frozenset[str]:
    """The trust domains that the URI SANs of any certificate name. For messages, never for trust."""
    found = set()
    for uri in _uri_sans(cert):
        try:
            found.add(SpiffeId.parse(uri).trust_domain)
        except SpiffeIdError:
            continue
    return frozenset(found)


def _uri_sans(cert: x509.Certificate) -> list[str]:
    # The library hands an IA5String on as it stands: NUL and line ends inside, and UTF-8 decoded (measured
    # with cryptography 50). SpiffeId.parse refuses all of that; other 8-bit bytes raise here already.
    names = _extension(cert, x509.SubjectAlternativeName)
    return [] if names is None else names.value.get_values_for_type(x509.UniformResourceIdentifier)


def _check_leaf_key_usage(cert: x509.Certificate) -> None:
    usage = _extension(cert, x509.KeyUsage)
    if usage is None or not usage.critical:
        raise SvidError("key_usage", "keyUsage must be present and critical")
    if not usage.value.digital_signature:
        raise SvidError("key_usage", "keyUsage lacks digitalSignature")
    if usage.value.key_cert_sign or usage.value.crl_sign:
        raise SvidError("key_usage", "keyUsage has keyCertSign or cRLSign")


def _check_leaf_purpose(cert: x509.Certificate, role: Role | None) -> None:
    purposes = _extension(cert, x509.ExtendedKeyUsage)
    if purposes is None:
        return
    for name, oid in _PURPOSE.items():
        if role in {None, name} and oid not in purposes.value:
            raise SvidError("extended_key_usage", f"extendedKeyUsage lacks {name}Auth")


@fail_closed
def check_public_key(key: object) -> PublicKey:
    """``key`` itself when it is of an allowed kind and size (S-2.5, C-4). Raises SvidError("weak_key")."""
    if isinstance(key, rsa.RSAPublicKey) and not _MIN_RSA <= key.key_size <= _MAX_RSA:
        raise SvidError("weak_key", f"RSA with {key.key_size} bits")
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name not in _CURVES:
        raise SvidError("weak_key", f"the curve {key.curve.name}")
    if not isinstance(key, PublicKey):
        raise SvidError("weak_key", f"a key of the kind {type(key).__name__}")
    return key


def public_key_der(key: PublicKeyTypes) -> bytes:
    """The SubjectPublicKeyInfo of a key: equal for equal keys."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def check_signature_algorithm(cert: x509.Certificate) -> None:
    """SHA-256, SHA-384 or SHA-512, or Ed25519. Raises SvidError("weak_signature")."""
    try:
        digest = cert.signature_hash_algorithm
    except UnsupportedAlgorithm:
        raise SvidError("weak_signature", cert.signature_algorithm_oid.dotted_string) from None
    if digest is None and cert.signature_algorithm_oid == SignatureAlgorithmOID.ED25519:
        return
    if not isinstance(digest, _DIGESTS):
        raise SvidError("weak_signature", digest.name if digest else "no digest")


# -- the path -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Path:
    """A verified path, leaf first, authority last, and the time all of it is valid (both ends included)."""

    certificates: tuple[x509.Certificate, ...]
    not_before: float  # seconds of the epoch: the latest notBefore
    not_after: float  # the earliest notAfter


@fail_closed
def build_path(
    leaf: x509.Certificate,
    presented: Sequence[x509.Certificate],
    authorities: Sequence[x509.Certificate],
    *,
    trust_domain: str,
    now: datetime,
) -> Path:
    """A path from ``leaf`` over ``presented`` certificates to one of ``authorities`` (RFC 5280 6.1).

    The authorities are those of ``trust_domain``, which is the leaf's. The rules of the leaf itself are
    ``check_leaf``'s. ``now`` is aware. Raises SvidError: that of the first path found by names, or
    ``untrusted_root`` when there is none."""
    search = _Search(presented, authorities)
    refusal: SvidError | None = None
    for number, path in enumerate(search.paths((leaf,)), 1):
        try:
            _check_path(path, trust_domain, now)
        except SvidError as error:
            if refusal is None or refusal.why == "untrusted_root":
                refusal = error
        else:
            return _timed(path)
        if number == _MAX_CANDIDATES:
            break
    if refusal is not None:
        raise refusal
    if search.too_deep:
        raise SvidError("chain_too_long", f"no authority within {MAX_DEPTH} steps")
    raise SvidError("untrusted_root", f"no authority of {trust_domain} issued this chain")


class _Search:
    """Depth first over issuer names, authorities before presented certificates.

    Where both sides tell a key identifier (RFC 5280 4.2.1.1) it must agree, as OpenSSL has it too: bundles may
    hold many authorities of one name, which SPIRE's servers used to make."""

    def __init__(self, presented: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]) -> None:
        self.too_deep = False
        self._presented = [_Signer(cert) for cert in presented]
        self._authorities = [_Signer(cert) for cert in authorities]
        self._steps = 0

    def paths(self, path: tuple[x509.Certificate, ...]) -> Iterator[tuple[x509.Certificate, ...]]:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise SvidError("chain_too_long", "too many certificates of the same name")
        issuer, key_id = path[-1].issuer, _authority_key_id(path[-1])
        for authority in self._authorities:
            if authority.may_be(issuer, key_id):
                yield (*path, authority.cert)
        for signer in self._presented:
            if not signer.may_be(issuer, key_id) or signer.cert in path:
                continue
            if len(path) == MAX_DEPTH:
                self.too_deep = True
                return
            yield from self.paths((*path, signer.cert))


class _Signer:
    """A certificate that may have signed others, with what it is found by."""

    __slots__ = ("_key_id", "_subject", "cert")

    def __init__(self, cert: x509.Certificate) -> None:
        self.cert = cert
        self._subject = cert.subject
        own = _extension(cert, x509.SubjectKeyIdentifier)
        self._key_id = own.value.digest if own is not None else None

    def may_be(self, issuer: x509.Name, key_id: bytes | None) -> bool:
        if self._subject != issuer:
            return False
        return key_id is None or self._key_id is None or key_id == self._key_id


def _authority_key_id(cert: x509.Certificate) -> bytes | None:
    found = _extension(cert, x509.AuthorityKeyIdentifier)
    return found.value.key_identifier if found is not None else None


def _timed(path: tuple[x509.Certificate, ...]) -> Path:
    return Path(
        path,
        max(cert.not_valid_before_utc for cert in path).timestamp(),
        min(cert.not_valid_after_utc for cert in path).timestamp(),
    )


def _check_path(path: tuple[x509.Certificate, ...], trust_domain: str, now: datetime) -> None:
    for cert in path:
        _check_time(cert, now)
        _check_extensions(cert)
    for below, signer in enumerate(path[1:]):
        _check_signer(signer, below)
    for intermediate in path[1:-1]:
        check_signature_algorithm(intermediate)
        _check_signer_id(intermediate, trust_domain)
    for index in range(len(path) - 2, -1, -1):
        _check_signature(path[index], path[index + 1])


def _check_time(cert: x509.Certificate, now: datetime) -> None:
    if now > cert.not_valid_after_utc:
        raise SvidError("expired", f"{_name(cert)}: notAfter was {cert.not_valid_after_utc:{_STAMP}}")
    if now < cert.not_valid_before_utc:
        raise SvidError("not_yet_valid", f"{_name(cert)}: notBefore is {cert.not_valid_before_utc:{_STAMP}}")


def _check_extensions(cert: x509.Certificate) -> None:
    for extension in cert.extensions:
        if extension.oid == ExtensionOID.NAME_CONSTRAINTS:
            raise SvidError("bad_certificate", f"{_name(cert)}: name constraints are not supported")
        if extension.critical and extension.oid not in _UNDERSTOOD:
            oid = extension.oid.dotted_string
            raise SvidError("bad_certificate", f"{_name(cert)}: unknown critical extension {oid}")


@fail_closed
def check_authority(cert: x509.Certificate) -> None:
    """The rules of a certificate that signs others: cA, keyCertSign, a sound key (X509-SVID 4, RFC 5280
    4.2.1.3 and 4.2.1.9). Raises SvidError."""
    _check_extensions(cert)
    _check_signer(cert, below=0)


def _check_signer(cert: x509.Certificate, below: int) -> None:
    """``below``: how many intermediates stand between this one and the leaf."""
    basic = _extension(cert, x509.BasicConstraints)
    if basic is None or not basic.value.ca:
        raise SvidError("bad_certificate", f"{_name(cert)} signs, but is not a CA")
    if basic.value.path_length is not None and below > basic.value.path_length:
        raise SvidError("chain_too_long", f"{_name(cert)} allows {basic.value.path_length} intermediates")
    usage = _extension(cert, x509.KeyUsage)
    if usage is None or not usage.value.key_cert_sign:
        raise SvidError("key_usage", f"{_name(cert)} signs without keyCertSign")
    check_public_key(cert.public_key())


def _check_signer_id(cert: x509.Certificate, trust_domain: str) -> None:
    """An intermediate need not have a URI SAN; one that has is the trust domain's own (X509-SVID 2)."""
    for uri in _uri_sans(cert):
        if uri != f"spiffe://{trust_domain}":
            raise SvidError("trust_domain", f"an intermediate of {uri[:200]!a} signs for {trust_domain}")


def _check_signature(cert: x509.Certificate, issuer: x509.Certificate) -> None:
    try:
        cert.verify_directly_issued_by(issuer)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        check_signature_algorithm(cert)  # one the library cannot verify any more, as SHA-1
        raise SvidError("untrusted_root", f"{_name(issuer)} did not sign {_name(cert)}") from None


def _extension(cert: x509.Certificate, kind: type[_Ext]) -> x509.Extension[_Ext] | None:
    try:
        return cert.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def _name(cert: x509.Certificate) -> str:
    """A short name for messages; never used for a decision."""
    return ascii(cert.subject.rfc4514_string()[:100])
