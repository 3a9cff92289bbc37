"""Keys, certificates and bundles as PEM files: the offline CA's folder, and SVIDs that others put on disk.
Which files are good enough, and how they are written, is ``disk``'s.

The CA folder:

    root.crt  root.key  issuing.crt  issuing.key  bundle.pem  ca.json

``ca.json`` is written last: a folder without it is an unfinished one and not used. ``root.key`` may be moved
to a safe place afterwards; nothing here needs it again.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from identity import authority
from identity.authority import Authority, Curve
from identity.disk import (
    MAX_KEY,
    IdentityFileError,
    StrPath,
    check_private_folder,
    make_private_folder,
    read_authority_key,
    read_file,
    read_workload_key,
    write_private,
)
from identity.spiffe import SpiffeId, check_trust_domain
from identity.svid import PrivateKey, SvidError, TrustBundle, X509Context, X509Svid, check_own_svid
from identity.x509_rules import check_authority, check_public_key, leaf_id, public_key_der

__all__ = [
    "CaFolder",
    "IdentityFileError",
    "SvidPaths",
    "certificates_pem",
    "create_ca",
    "issue_to_files",
    "key_pem",
    "load_ca",
    "load_x509_context",
    "make_x509_context",
    "parse_bundle",
    "parse_certificates",
    "parse_private_key",
    "read_bundle",
    "read_certificates",
]

_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True, eq=False)
class CaFolder:
    """An opened CA folder: the issuing authority and the bundle that vouches for it."""

    path: Path
    authority: Authority
    bundle: TrustBundle

    @property
    def trust_domain(self) -> str:
        return self.authority.trust_domain


# -- the CA folder ------------------------------------------------------------------------------------------


def create_ca(
    folder: StrPath,
    trust_domain: str,
    *,
    now: datetime,
    rng: random.Random | None = None,
    root_curve: Curve = "P-256",
) -> CaFolder:
    """Make a root and an issuing authority in ``folder``, which must be missing or empty.

    ``rng``: for serial numbers; the system's by default. ``root_curve``: each new peer costs one verification
    with the root's key, six times as dear with P-384. Raises IdentityFileError, SpiffeIdError, IssueError."""
    check_trust_domain(trust_domain)
    rng = rng or random.SystemRandom()
    path = Path(folder)
    make_private_folder(path, must_be_empty=True)
    root_key, issuing_key = authority.new_key(root_curve), authority.new_key()
    root = authority.create_root(trust_domain, root_key, now=now, rng=rng)
    issuing = authority.create_issuing(root, root_key, trust_domain, issuing_key.public_key(), now=now, rng=rng)
    facts = {"trust_domain": trust_domain, "created": now.isoformat(timespec="seconds")}
    for name, data in (
        ("root.key", key_pem(root_key)),
        ("root.crt", certificates_pem([root])),
        ("issuing.key", key_pem(issuing_key)),
        ("issuing.crt", certificates_pem([issuing])),
        ("bundle.pem", certificates_pem([root])),
        ("ca.json", json.dumps(facts, indent=2).encode() + b"\n"),
    ):
        write_private(path / name, data)
    return load_ca(path, now=now)


def load_ca(folder: StrPath, *, now: datetime) -> CaFolder:
    """Open a CA folder and check that everything in it fits together now. Raises IdentityFileError."""
    path = Path(folder)
    check_private_folder(path)
    trust_domain = _ca_trust_domain(path / "ca.json")
    chain = read_certificates(path / "issuing.crt")
    key = parse_private_key(path / "issuing.key", read_authority_key(path / "issuing.key"))
    bundle = read_bundle(path / "bundle.pem", trust_domain)
    if public_key_der(key.public_key()) != public_key_der(chain[0].public_key()):
        raise IdentityFileError(
            path / "issuing.key", "it does not belong to issuing.crt", "restore the two files together"
        )
    signer = Authority(trust_domain, chain, key)
    _check_vouched(path / "issuing.crt", signer, bundle, now)
    return CaFolder(path, signer, bundle)


def issue_to_files(
    ca: CaFolder,
    spiffe_id: SpiffeId,
    out_folder: StrPath,
    ttl: timedelta = authority.DEFAULT_TTL,
    *,
    now: datetime,
    rng: random.Random | None = None,
    dns_names: Sequence[str] = (),
) -> X509Svid:
    """Issue an SVID with a new key into ``svid.pem``, ``svid_key.pem`` and ``bundle.pem`` of ``out_folder``,
    which is made if missing. Raises IssueError, IdentityFileError."""
    svid = authority.issue(
        ca.authority,
        ca.bundle,
        spiffe_id,
        now=now,
        rng=rng or random.SystemRandom(),
        ttl=ttl,
        dns_names=dns_names,
    )
    path = Path(out_folder)
    make_private_folder(path, must_be_empty=False)
    # Three renames are not one: a reader in between sees a key that does not fit, and keeps what it has.
    write_private(path / "bundle.pem", certificates_pem(ca.bundle.authorities))
    write_private(path / "svid_key.pem", key_pem(svid.key))
    write_private(path / "svid.pem", certificates_pem(svid.chain))
    return svid


def _ca_trust_domain(path: Path) -> str:
    hint = "create the CA again in an empty folder, or restore a backup of the whole folder"
    try:
        facts = json.loads(read_file(path, MAX_KEY))
        return check_trust_domain(facts["trust_domain"])
    except (ValueError, TypeError, KeyError, RecursionError):  # SpiffeIdError is a ValueError
        raise IdentityFileError(path, "it names no trust domain", hint) from None


def _check_vouched(path: Path, signer: Authority, bundle: TrustBundle, now: datetime) -> None:
    try:
        check_authority(signer.certificate)
        authority.check_authority_path(signer, bundle, now=now)
    except SvidError as error:
        problem = f"the issuing authority cannot be used: {error}"
        raise IdentityFileError(path, problem, "renew it, or put its root into bundle.pem") from None


# -- an SVID in files ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SvidPaths:
    """Where an SVID lies: PEM of the leaf and its intermediates, PEM of its key (PKCS#8 or SEC1), PEM of the
    authorities of its trust domain; ``federated``: bundle files of other trust domains by their name."""

    cert: StrPath
    key: StrPath
    bundle: StrPath
    federated: Mapping[str, StrPath] = field(default_factory=dict)

    def read(self) -> dict[StrPath, bytes]:
        """The contents of all files, the key's after the checks of its mode. Raises IdentityFileError."""
        contents = {path: read_file(path) for path in (self.cert, self.bundle, *self.federated.values())}
        contents[self.key] = read_workload_key(self.key)
        return contents


def load_x509_context(
    cert: StrPath,
    key: StrPath,
    bundle: StrPath,
    *,
    now: datetime,
    federated: Mapping[str, StrPath] | None = None,
) -> X509Context:
    """Read an SVID, its key and the bundles (see SvidPaths). All must fit together now, as a peer would
    judge. Raises IdentityFileError."""
    paths = SvidPaths(cert, key, bundle, federated or {})
    return make_x509_context(paths, paths.read(), now=now)


def make_x509_context(paths: SvidPaths, contents: Mapping[StrPath, bytes], *, now: datetime) -> X509Context:
    """The same for contents that ``paths.read`` gave. Raises IdentityFileError."""
    chain = parse_certificates(paths.cert, contents[paths.cert])
    key = parse_private_key(paths.key, contents[paths.key])
    spiffe_id = _id_of(paths.cert, chain[0])
    own = parse_bundle(paths.bundle, contents[paths.bundle], spiffe_id.trust_domain)
    svid = X509Svid(spiffe_id, chain, key)
    try:
        check_own_svid(svid, own, now=now)
    except SvidError as error:
        _explain_svid(error, paths)
    others = {name: parse_bundle(path, contents[path], name) for name, path in paths.federated.items()}
    return X509Context(svid, {**others, own.trust_domain: own})


def _id_of(path: StrPath, leaf: x509.Certificate) -> SpiffeId:
    try:
        return leaf_id(leaf)
    except SvidError as error:
        raise IdentityFileError(
            path, str(error), "the first certificate must be an X509-SVID with one spiffe:// URI"
        ) from None


def _explain_svid(error: SvidError, paths: SvidPaths) -> NoReturn:
    cert = os.fspath(paths.cert)
    if error.why == "bad_certificate" and "private key" in error.detail:
        raise IdentityFileError(paths.key, error.detail, f"it must be the key of {cert}") from None
    if error.why == "untrusted_root":
        hint = f"{cert} must hold the intermediates too, and this file the root"
        raise IdentityFileError(paths.bundle, error.detail, hint) from None
    hint = "issue a new one" if error.why == "expired" else "check the clock and who issued it"
    raise IdentityFileError(cert, str(error), hint) from None


# -- reading ------------------------------------------------------------------------------------------------


def read_certificates(path: StrPath) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM file, at least one, in order. Raises IdentityFileError."""
    return parse_certificates(path, read_file(path))


def parse_certificates(path: StrPath, data: bytes) -> tuple[x509.Certificate, ...]:
    """The same for bytes that were read from ``path`` (which is only named in errors)."""
    hint = "expected PEM certificates"
    try:
        certificates = tuple(x509.load_pem_x509_certificates(data))
        for cert in certificates:
            _ = cert.extensions
    except Exception as error:  # the parser raises ValueError and a few of its own
        raise IdentityFileError(path, f"it cannot be read: {str(error)[:200]}", hint) from None
    if len(certificates) != data.count(_BEGIN):  # a block that the parser stepped over
        raise IdentityFileError(path, "a certificate in it is damaged", hint)
    return certificates


def read_bundle(path: StrPath, trust_domain: str) -> TrustBundle:
    """The authorities of a PEM file as the bundle of ``trust_domain``. An authority that no path could use
    is refused rather than carried along. Raises IdentityFileError."""
    return parse_bundle(path, read_file(path), trust_domain)


def parse_bundle(path: StrPath, data: bytes, trust_domain: str) -> TrustBundle:
    """The same for bytes that were read from ``path``."""
    authorities = parse_certificates(path, data)
    for cert in authorities:
        try:
            check_authority(cert)
        except SvidError as error:
            raise IdentityFileError(
                path, f"an authority cannot be used: {error}", "a bundle holds CA certificates only"
            ) from None
    return TrustBundle(trust_domain, authorities)


def parse_private_key(path: StrPath, data: bytes) -> PrivateKey:
    """A PEM private key of an allowed kind, without a passphrase. Raises IdentityFileError."""
    hint = "expected an unencrypted PEM key: P-256, P-384, Ed25519 or RSA of 2048 bits and more"
    try:
        key = load_pem_private_key(data, password=None)
        check_public_key(key.public_key())
    except TypeError:
        raise IdentityFileError(path, "it is protected by a passphrase", hint) from None
    except Exception as error:  # no text of the parser here: it must never quote the key
        raise IdentityFileError(path, f"it cannot be used: {type(error).__name__}", hint) from None
    if not isinstance(key, PrivateKey):
        raise IdentityFileError(path, f"a key of the kind {type(key).__name__}", hint)
    return key


# -- writing ------------------------------------------------------------------------------------------------


def key_pem(key: PrivateKey) -> bytes:
    """PKCS#8 PEM, unencrypted: the file's mode protects it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certificates_pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(cert.public_bytes(Encoding.PEM) for cert in certificates)
