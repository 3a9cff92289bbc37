"""``identity show`` and ``identity verify``: certificates of files and of peers, rule by rule."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.cli.group import Problem
from proxy.cli.identity_fetch import fetch, why

if TYPE_CHECKING:
    from cryptography import x509

    from identity.svid import TrustBundle, X509Context
    from proxy.cli.handshake import Outcome
    from proxy.cli.svid_rules import Judgement

_TIMEOUT = 10.0
_UNREACHABLE = 69


@click.group()
def identity() -> None:
    """Show, verify and fetch certificates."""


identity.add_command(fetch)
identity.add_command(why)


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
    left = (cert.not_valid_after_utc - datetime.now(UTC)).total_seconds()
    return {
        "uri": uris or "(none)",
        "subject": cert.subject.rfc4514_string() or "(empty)",
        "issuer": cert.issuer.rfc4514_string(),
        "serial": f"{cert.serial_number:x}",
        "not before": cert.not_valid_before_utc.isoformat(),
        "not after": f"{cert.not_valid_after_utc.isoformat()}  ({_left(left)})",
        "sha256": cert.fingerprint(hashes.SHA256()).hex(),
    }


def _left(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds))) if seconds >= 0 else "expired"


@identity.command("verify")
@click.argument("where")
@click.option("--cert", type=click.Path(path_type=Path, exists=True), help="Our certificate (svid.pem).")
@click.option("--key", type=click.Path(path_type=Path, exists=True), help="Its key (svid_key.pem).")
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), required=True, help="Whom we trust.")
@click.option("--trust-domain", help="Of the bundle, when no --cert is given.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def verify(
    where: str, cert: Path | None, key: Path | None, bundle: Path, trust_domain: str | None, output: str
) -> int:
    """Judge whoever answers on HOST:PORT by each rule of X509-SVIDs.

    With --cert and --key the mutual handshake is made too, which shows whether the far side takes us.

    \b
    sidewall identity verify 10.20.0.9:8443 --bundle bundle.pem --trust-domain shop.internal
    sidewall identity verify 10.20.0.9:8443 --bundle bundle.pem --cert svid.pem --key svid_key.pem

    Exit codes: 1 refused, 69 nobody answers.
    """
    from proxy.cli.svid_rules import judge

    now = datetime.now(UTC)
    address = _split(where)
    bundles, own = _trusted(cert, key, bundle, trust_domain, now)
    judged = judge(_presented(*address), bundles, now=now)
    handshake = _shaken(address, own) if own is not None else None
    accepted = judged.peer is not None and (handshake is None or handshake.ok)
    if output == "json":
        _print_json(judged, handshake, accepted=accepted)
    else:
        _print_verdicts(judged, handshake, now)
    return int(not accepted)


def _trusted(
    cert: Path | None, key: Path | None, bundle: Path, trust_domain: str | None, now: datetime
) -> tuple[Mapping[str, TrustBundle], X509Context | None]:
    """Whom we trust, and who we are when we are somebody."""
    from identity.disk import IdentityFileError
    from identity.files import load_x509_context, read_bundle

    try:
        if cert is not None and key is not None:
            own = load_x509_context(cert, key, bundle, now=now)
            return own.bundles, own
        if cert is None and key is None and trust_domain:
            return {trust_domain: read_bundle(bundle, trust_domain)}, None
    except IdentityFileError as error:
        raise Problem(str(error)) from None
    raise click.UsageError("give --cert and --key, or --trust-domain")


def _shaken(address: tuple[str, int], own: X509Context) -> Outcome:
    from proxy.cli.handshake import shake_hands

    return shake_hands(_connect(*address), own, patience=_TIMEOUT)


def _print_verdicts(judged: Judgement, handshake: Outcome | None, now: datetime) -> None:
    utf8 = "utf" in (sys.stdout.encoding or "").lower()
    marks = {True: "√", False: "×", None: "·"} if utf8 else {True: "ok", False: "x ", None: "- "}
    for verdict in judged.verdicts:
        unasked = "   (not looked at)" if verdict.ok is None else ""
        click.echo(f"{marks[verdict.ok]} {verdict.rule}{unasked}")
        if verdict.detail:
            click.echo(f"    {verdict.detail}")
    if handshake is not None:
        click.echo(f"{marks[handshake.ok]} handshake with our certificate")
        click.echo(f"    {handshake.text}")
    if judged.peer is None:
        click.echo(f"refused: {judged.refusal}")
        return
    peer = judged.peer
    click.echo(f"{peer.uri}   expires in {_left(peer.not_after - now.timestamp())}   sha256 {peer.sha256}")


def _print_json(judged: Judgement, handshake: Outcome | None, *, accepted: bool) -> None:
    peer = judged.peer
    value = {
        "apiVersion": "sidewall.dev/v1",
        "kind": "Verification",
        "accepted": accepted,
        "peer": {"uri": peer.uri, "notAfter": peer.not_after, "sha256": peer.sha256} if peer else None,
        "refusal": judged.refusal or None,
        "rules": [asdict(verdict) for verdict in judged.verdicts],
        "handshake": asdict(handshake) if handshake else None,
    }
    click.echo(json.dumps(value, indent=2))
