"""``identity show`` and ``identity verify``: certificates of files and of peers, rule by rule."""

from __future__ import annotations

import json
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.group import Problem

if TYPE_CHECKING:
    from cryptography import x509

_TIMEOUT = 10.0
_UNREACHABLE = 69


@click.group()
def identity() -> None:
    """Show and verify certificates."""


@identity.command("show")
@click.argument("what")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def show(what: str, output: str) -> None:
    """What stands in a certificate: of a PEM FILE, or of whoever answers on HOST:PORT.

    \b
    sidewall identity show ./api/svid.pem
    sidewall identity show 10.20.0.9:8443
    """
    chain = _chain_of(what)
    rows = [_describe(cert) for cert in chain]
    if output == "json":
        click.echo(json.dumps({"apiVersion": "sidewall.dev/v1", "kind": "CertificateList", "items": rows}, indent=2))
        return
    for number, row in enumerate(rows):
        click.echo(f"{'leaf' if not number else 'issuer'}")
        for key, value in row.items():
            click.echo(f"  {key:12} {value}")


def _chain_of(what: str) -> list[x509.Certificate]:
    from cryptography import x509

    from identity.disk import IdentityFileError
    from identity.files import read_certificates

    if Path(what).exists():
        try:
            return list(read_certificates(what))
        except IdentityFileError as error:
            raise Problem(str(error)) from None
    return [x509.load_der_x509_certificate(der) for der in _presented(*_split(what))]


def _split(where: str) -> tuple[str, int]:
    host, colon, port = where.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise Problem(f"{where!r} is neither a file nor HOST:PORT", "e.g. ./svid.pem or 10.20.0.9:8443", code=2)
    return host.strip("[]") or "127.0.0.1", int(port)


def _connect(host: str, port: int) -> socket.socket:
    try:
        return socket.create_connection((host, port), timeout=_TIMEOUT)
    except OSError as error:
        raise Problem(f"no answer from {host}:{port}: {error}", "does it listen there?", code=_UNREACHABLE) from None


def _presented(host: str, port: int) -> list[bytes]:
    """The chain a server presents to a stranger: it is shown, not believed."""
    from identity.mtls import chain_shown_to_strangers

    with _connect(host, port) as sock:
        chain = chain_shown_to_strangers(sock)
    if not chain:
        raise Problem(f"{host}:{port} presented no certificate", "does it speak TLS?", code=_UNREACHABLE)
    return chain


def _describe(cert: x509.Certificate) -> dict[str, str]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    try:
        sans = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = ", ".join(sans.get_values_for_type(x509.UniformResourceIdentifier))
    except (x509.ExtensionNotFound, ValueError):
        uris = ""
    left = cert.not_valid_after_utc - datetime.now(UTC)
    return {
        "uri": uris or "(none)",
        "subject": cert.subject.rfc4514_string() or "(empty)",
        "issuer": cert.issuer.rfc4514_string(),
        "serial": f"{cert.serial_number:x}",
        "not before": cert.not_valid_before_utc.isoformat(),
        "not after": f"{cert.not_valid_after_utc.isoformat()}  ({'expired' if left.total_seconds() < 0 else left})",
        "sha256": cert.fingerprint(hashes.SHA256()).hex(),
    }


@identity.command("verify")
@click.argument("where")
@click.option("--cert", type=click.Path(path_type=Path, exists=True), help="Our certificate (svid.pem).")
@click.option("--key", type=click.Path(path_type=Path, exists=True), help="Its key (svid_key.pem).")
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), required=True, help="Whom we trust.")
@click.option("--trust-domain", help="Of the bundle, when no --cert is given.")
def verify(where: str, cert: Path | None, key: Path | None, bundle: Path, trust_domain: str | None) -> int:
    """Judge whoever answers on HOST:PORT by the rules of X509-SVIDs, and say which one fails.

    \b
    sidewall identity verify 10.20.0.9:8443 --bundle bundle.pem --trust-domain shop.internal
    sidewall identity verify 10.20.0.9:8443 --bundle bundle.pem --cert svid.pem --key svid_key.pem

    Exit codes: 1 refused, 69 nobody answers. With --cert and --key the handshake is completed as well.
    """
    from identity.disk import IdentityFileError
    from identity.files import load_x509_context, read_bundle
    from identity.svid import SvidError, check_peer_chain

    now = datetime.now(UTC)
    host, port = _split(where)
    try:
        if cert is not None and key is not None:
            context = load_x509_context(cert, key, bundle, now=now)
            bundles: Any = context.bundles
        elif trust_domain:
            bundles = {trust_domain: read_bundle(bundle, trust_domain)}
        else:
            raise click.UsageError("give --cert and --key, or --trust-domain")
    except IdentityFileError as error:
        raise Problem(str(error)) from None
    good, bad = ("√", "×") if "utf" in (sys.stdout.encoding or "").lower() else ("ok", "x ")
    try:
        peer = check_peer_chain(_presented(host, port), bundles, now=now, role="server")
    except SvidError as error:
        click.echo(f"{bad} {error.why}: {error.detail}")
        return 1
    for rule in (
        "chain leads to the bundle of the leaf's own trust domain, and is valid now",
        "exactly one URI SAN, and it is a SPIFFE ID",
        "leaf: no authority, key usage and extended key usage as they must be",
        "key and signatures are strong enough",
    ):
        click.echo(f"{good} {rule}")
    left = datetime.fromtimestamp(peer.not_after, UTC) - now
    click.echo(f"{peer.uri}   expires in {left}   sha256 {peer.sha256}")
    return 0
