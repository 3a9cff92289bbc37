"""Certificates for the tests, right by default and wrong where a test asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from identity.spiffe import SpiffeId
from identity.svid import TrustBundle, X509Context, X509Svid

NOW = datetime(2030, 6, 1, 12, 0, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
EKU = ExtendedKeyUsageOID

_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@cache
def key(name: str = "leaf") -> ec.EllipticCurvePrivateKey:
    """One key a name, the same in every run: with deterministic signatures so is every certificate."""
    return ec.derive_private_key(int.from_bytes(sha256(name.encode()).digest()[1:]), ec.SECP256R1())


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def usage(*names: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in names for usage in _USAGES})


def uris(*values: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(value) for value in values])


def raw_uri_san(value: bytes) -> x509.UnrecognizedExtension:
    """A subjectAltName with one URI of any bytes, which the library would not write itself."""
    name = bytes([0x86, len(value)]) + value
    return x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, bytes([0x30, len(name)]) + name)


def der(cert: x509.Certificate) -> bytes:
    return cert.public_bytes(Encoding.DER)


@dataclass
class Spec:
    """A certificate to be. ``None`` leaves an extension out."""

    subject: str = "leaf"
    issuer: str = "issuing"
    signer: object = None  # private key; None: that of ``issuer`` by name
    public_key: object = None  # None: the key named after ``subject``
    not_before: datetime = NOW - HOUR
    not_after: datetime = NOW + HOUR
    serial: int = 0x1234_5678_9ABC_DEF0_1234
    san: x509.ExtensionType | None = field(default_factory=lambda: uris("spiffe://td/ns/a/sa/b"))
    basic: x509.BasicConstraints | None = field(default_factory=lambda: x509.BasicConstraints(False, None))
    usage: x509.KeyUsage | None = field(default_factory=lambda: usage("digital_signature"))
    usage_critical: bool = True
    purposes: Sequence[x509.ObjectIdentifier] | None = (EKU.SERVER_AUTH, EKU.CLIENT_AUTH)
    more: Sequence[tuple[x509.ExtensionType, bool]] = ()

    def build(self, issuer_name: x509.Name | None = None) -> x509.Certificate:
        public = self.public_key or key(self.subject).public_key()
        builder = (
            x509.CertificateBuilder(issuer_name or named(self.issuer), named(self.subject), public, self.serial)
            .not_valid_before(self.not_before)
            .not_valid_after(self.not_after)
        )
        for extension, critical in self._extensions():
            builder = builder.add_extension(extension, critical)
        signer = self.signer or key(self.issuer)
        digest = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        deterministic = True if isinstance(signer, ec.EllipticCurvePrivateKey) else None
        return builder.sign(signer, digest, ecdsa_deterministic=deterministic)

    def _extensions(self) -> list[tuple[x509.ExtensionType, bool]]:
        purposes = None if self.purposes is None else x509.ExtendedKeyUsage(self.purposes)
        usual = [(self.basic, True), (self.usage, self.usage_critical), (self.san, False), (purposes, False)]
        return [(extension, critical) for extension, critical in usual if extension] + list(self.more)


def leaf(**changes: object) -> x509.Certificate:
    return Spec(**changes).build()


def signing(subject: str, issuer: str, **changes: object) -> x509.Certificate:
    """An authority: cA, keyCertSign."""
    defaults: dict[str, object] = {
        "basic": x509.BasicConstraints(True, None),
        "usage": usage("key_cert_sign"),
        "purposes": None,
        "san": None,
        "not_before": NOW - DAY,
        "not_after": NOW + DAY,
    }
    return Spec(subject=subject, issuer=issuer, **{**defaults, **changes}).build()


def root(**changes: object) -> x509.Certificate:
    return signing("root", "root", **changes)


def issuing(**changes: object) -> x509.Certificate:
    return signing("issuing", "root", **changes)


def bundles(*authorities: x509.Certificate, trust_domain: str = "td") -> dict[str, TrustBundle]:
    return {trust_domain: TrustBundle(trust_domain, authorities or (root(),))}


def chain(*certs: x509.Certificate) -> list[bytes]:
    return [der(cert) for cert in certs]


def context(
    leaf_cert: x509.Certificate | None = None,
    *intermediates: x509.Certificate,
    spiffe_id: str = "spiffe://td/ns/a/sa/b",
    trust: dict[str, TrustBundle] | None = None,
    leaf_key: ec.EllipticCurvePrivateKey | None = None,
) -> X509Context:
    """An SVID with its bundles, valid around NOW."""
    certs = (leaf_cert or leaf(), *(intermediates or (issuing(),)))
    svid = X509Svid(SpiffeId.parse(spiffe_id), certs, leaf_key or key("leaf"))
    return X509Context(svid, bundles() if trust is None else trust)


# -- what the library would not sign ------------------------------------------------------------------------


@cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@cache
def ed_key(name: str) -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.from_private_bytes(sha256(name.encode()).digest())


def rsa_public(bits: int) -> rsa.RSAPublicKey:
    """An RSA public key of any size, without the search for primes."""
    return rsa.RSAPublicNumbers(65537, (1 << (bits - 1)) | 1).public_key()


def tlv(tag: int, content: bytes) -> bytes:
    """One DER element."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


_RSA_SHA256 = bytes.fromhex("06092a864886f70d01010b0500")
WEAK = {
    "sha1": (bytes.fromhex("06092a864886f70d0101050500"), hashes.SHA1()),
    "md2": (bytes.fromhex("06092a864886f70d0101020500"), hashes.SHA1()),  # unknown to the library
    "md5": (bytes.fromhex("06092a864886f70d0101040500"), hashes.MD5()),
    "sha224": (bytes.fromhex("06092a864886f70d01010e0500"), hashes.SHA224()),
}


def weakly_signed(cert: x509.Certificate, signer: rsa.RSAPrivateKey, weakness: str) -> x509.Certificate:
    """``cert``, which ``signer`` signed with SHA-256, signed again and correctly with a weaker digest."""
    algorithm, digest = WEAK[weakness]
    tbs = cert.tbs_certificate_bytes
    assert _RSA_SHA256 in tbs
    tbs = tbs.replace(_RSA_SHA256, algorithm)
    signature = signer.sign(tbs, padding.PKCS1v15(), digest)
    whole = tlv(0x30, tbs + tlv(0x30, algorithm) + tlv(0x03, b"\0" + signature))
    return x509.load_der_x509_certificate(whole)


def with_extensions(*extensions: tuple[x509.ExtensionType, bool]) -> x509.Certificate:
    """A leaf with exactly these extensions, also the same one twice."""
    builder = x509.CertificateBuilder(
        named("issuing"),
        named("leaf"),
        key("leaf").public_key(),
        77,
        NOW - HOUR,
        NOW + HOUR,
        [x509.Extension(value.oid, critical, value) for value, critical in extensions],
    )
    return builder.sign(key("issuing"), hashes.SHA256(), ecdsa_deterministic=True)
