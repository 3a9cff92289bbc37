"""A throw-away SPIFFE authority for a benchmark run: one root, and the X.509-SVIDs of two services.

Made with `cryptography` alone, not with our own `identity` package: the rivals must be able to run, and the
figures must stay comparable, whatever state that package is in.

The subject carries the short name as well (`CN=web`). X509-SVID section 2 allows it, and nginx and
HAProxy 2.6 need it: neither can read a URI subject alternative name, so they authorize by subject, the
nearest they have.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

TRUST_DOMAIN = "bench.local"
NAMESPACE = "bench"


def spiffe_uri(service: str) -> str:
    return f"spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{service}"


def principal(service: str) -> str:
    """The same identity as an AuthorizationPolicy writes it."""
    return f"{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{service}"


@dataclass(frozen=True)
class Svid:
    """Files of one identity. ``both`` is chain and key in one file, as HAProxy wants it."""

    uri: str
    chain: Path
    key: Path
    both: Path


@dataclass(frozen=True)
class Pki:
    bundle: Path
    web: Svid  # the caller
    api: Svid  # the service behind the proxy under test


def make_pki(folder: Path) -> Pki:
    """Write root, `web` and `api` into ``folder`` (created, 0700). Good for two days."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    root_key = ec.generate_private_key(ec.SECP256R1())
    root = _root(root_key)
    bundle = folder / "bundle.pem"
    bundle.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    return Pki(bundle, *(_svid(folder, name, root, root_key) for name in ("web", "api")))


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _san(uri: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])


def _root(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench root")])
    return (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(_san(f"spiffe://{TRUST_DOMAIN}"), critical=False)
        .sign(key, hashes.SHA256())
    )


def _svid(folder: Path, service: str, root: x509.Certificate, root_key: ec.EllipticCurvePrivateKey) -> Svid:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, service)])
    leaf = (
        _builder(subject, root.subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(_san(spiffe_uri(service)), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    chain_pem = leaf.public_bytes(serialization.Encoding.PEM)
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    svid = Svid(
        spiffe_uri(service),
        folder / f"{service}.pem",
        folder / f"{service}.key",
        folder / f"{service}.both.pem",
    )
    for path, content in ((svid.chain, chain_pem), (svid.key, key_pem), (svid.both, chain_pem + key_pem)):
        path.touch(mode=0o600)
        path.write_bytes(content)
    return svid
