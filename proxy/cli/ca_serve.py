"""``ca serve``, and what is done with the authority as a whole: ``csr``, ``import``, ``backup``, ``restore``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.ca_client import Authority, in_time, with_authority
from proxy.cli.group import Problem
from proxy.cli.live import Seconds

if TYPE_CHECKING:
    from proxy.ca.proofs import TokenVerifier
    from proxy.ca.server import Options
    from proxy.net.listener import Address

_FOLDER = click.Path(path_type=Path)


@click.command()
@click.option("--dir", "folder", type=_FOLDER, help="Keys and database; made when it is not there.")
@click.option("--trust-domain", default="local", show_default=True, help="Of an authority that is made now.")
@click.option("--store", metavar="URL", envvar="SIDEWALL_CA_STORE",
              help="postgresql+psycopg://... for several replicas; SQLite by default.")  # fmt: skip
@click.option("--listen", default="[::]:15012", show_default=True, metavar="ADDRESS", help="For nodes, over TLS.")
@click.option("--socket", "socket_path", type=_FOLDER, help="For commands and processes of this machine.")
@click.option("--url", metavar="URL", help="What join strings name; https://<this host>:<port> by default.")
@click.option("--http", metavar="ADDRESS", help="Serve /live, /ready and /metrics there, e.g. 127.0.0.1:15014.")
@click.option("--bundle", metavar="ADDRESS", help="Serve our bundle there by HTTPS, for other trust domains.")
@click.option("--bundle-cert", type=_FOLDER, help="With --bundle: a web certificate (https_web), PEM.")
@click.option("--bundle-key", type=_FOLDER, help="And its key. Without them our SVID is shown (https_spiffe).")
@click.option("--allow-expired", type=Seconds(), default=0.0, metavar="DURATION",
              help="Let nodes renew so long after their SVID's end, by its key.")  # fmt: skip
@click.option("--signings", type=click.FloatRange(1, 100_000), default=500.0, show_default=True,
              help="Most certificates a second.")  # fmt: skip
@click.option("--k8s", metavar="NAME", help="Let pods of this Kubernetes cluster attest; NAME is ours for it.")
@click.option("--k8s-audience", default="sidewall-ca", show_default=True, help="Of the tokens that pods show.")
@click.option("--k8s-allow", multiple=True, metavar="NAMESPACE:ACCOUNT", help="Only these.")
@click.option("--k8s-jwks", type=_FOLDER, help="Judge by the cluster's keys, without its API server.")
@click.option("--k8s-issuer", default="", metavar="URL", help="With --k8s-jwks: the issuer of its tokens.")
@click.option("--log-format", type=click.Choice(["auto", "json", "text"]), default="auto", show_default=True)
def serve(**given: Any) -> int:
    """Run the authority as a server.

    \b
    sidewall ca serve                                          a laptop: SQLite in your state folder
    sidewall ca serve --trust-domain shop.internal --dir /var/lib/sidewall/ca
    sidewall ca serve --dir ./ca                               takes over a folder of `ca init`

    Signals: TERM finishes what was asked and ends.
    Exit codes: 0 after TERM, 69 database away, 73 address in use, 77 not permitted, 78 no usable authority.
    """
    from proxy.ca.server import serve as run
    from proxy.log import set_up

    options = _options(given)
    set_up("info", given["log_format"])
    return run(options)


def _options(given: dict[str, Any]) -> Options:
    import socket

    from proxy.ca.bundle_endpoint import WebFiles
    from proxy.ca.places import default_folder, default_socket
    from proxy.ca.server import Options

    listen = _address(given["listen"], "--listen")
    if bool(given["bundle_cert"]) != bool(given["bundle_key"]) or (given["bundle_cert"] and not given["bundle"]):
        raise click.UsageError("--bundle-cert and --bundle-key go together, with --bundle")
    folder = given["folder"] or default_folder(os.environ)
    return Options(
        folder=folder,
        socket=given["socket_path"] or default_socket(os.environ),
        listen=listen,
        url=given["url"] or f"https://{_public(listen.host) or socket.gethostname()}:{listen.port}",
        store=given["store"],
        trust_domain=_trust_domain(folder, given["trust_domain"]),
        http=_address(given["http"], "--http") if given["http"] else None,
        bundle=_address(given["bundle"], "--bundle") if given["bundle"] else None,
        web=WebFiles(given["bundle_cert"], given["bundle_key"]) if given["bundle_cert"] else None,
        allow_expired=given["allow_expired"],
        signings=given["signings"],
        kubernetes=_verifier(given),
    )


def _verifier(given: dict[str, Any]) -> TokenVerifier | None:
    from identity.disk import IdentityFileError
    from proxy.ca.cluster import Cluster

    if not given["k8s"]:
        return None
    cluster = Cluster(given["k8s"], given["k8s_audience"], given["k8s_allow"], given["k8s_jwks"], given["k8s_issuer"])
    try:
        return cluster.verifier()
    except OSError as error:
        raise Problem(f"--k8s: {error.strerror}", code=78) from None
    except (ValueError, IdentityFileError) as error:
        raise Problem(f"--k8s: {error}", code=78) from None


def _public(host: str) -> str:
    """The address that others may use, empty for "all of this machine's"."""
    return "" if host in ("::", "0.0.0.0", "") else f"[{host}]" if ":" in host else host  # noqa: S104


def _trust_domain(folder: Path, wanted: str) -> str:
    """A folder of `ca init` says itself of what it is."""
    import json

    try:
        facts = json.loads((folder / "ca.json").read_bytes())
    except (OSError, ValueError):
        return wanted
    return str(facts.get("trust_domain") or wanted)


def _address(text: str, option: str) -> Address:
    from config.values import parse_address
    from proxy.net.listener import Address

    try:
        found = parse_address(text, bare="::")
    except ValueError as error:
        raise Problem(f"{option} {text!r}: {error}", "e.g. [::]:15012 or 127.0.0.1:15012", code=2) from None
    if found.path:
        raise Problem(f"{option} {text!r}: a host and a port are expected", "e.g. 127.0.0.1:15012", code=2)
    return Address(found.host, found.port)


# -- a root elsewhere ---------------------------------------------------------------------------------------


@click.command()
@click.option("--out", type=_FOLDER, help="Write it there; stdout by default.")
@with_authority
def csr(authority: Authority, out: Path | None) -> None:
    """A request for an issuing authority, for an offline or company root.

    The key is made here and stays here. The same request is given again until it was answered.

    \b
    sidewall ca csr > issuing.csr
    sidewall ca import issuing-chain.pem
    """
    pem = authority.ask("Csr")["pem"]
    if out is None:
        click.echo(pem, nl=False)
        return
    try:
        out.write_text(pem)
    except OSError as error:
        raise Problem(f"{out}: {error.strerror}", code=73) from None
    click.echo(f"{out}: have it signed as an authority below the root (CA, path length 0)", err=True)


@click.command("import")
@click.argument("chain", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@with_authority
def import_chain(authority: Authority, chain: Path) -> None:
    """Take the answer to `ca csr`: the issuing certificate, intermediates, and the root last, in one PEM file.

    Key, names, constraints and the whole path are checked before anything changes.

    \b
    sidewall ca import issuing-chain.pem
    """
    try:
        pem = chain.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"{chain}: it cannot be read as PEM: {error}", code=78) from None
    report = authority.ask("Import", pem=pem)
    click.echo(f"{report['authority_id']}: imported; {report['next_step'] or report['action']}")


# -- backup -------------------------------------------------------------------------------------------------


@click.command()
@click.argument("file", type=_FOLDER)
@click.option("--passphrase-file", type=click.Path(path_type=Path, exists=True), help="Encrypts the keys.")
@with_authority
def backup(authority: Authority, file: Path, passphrase_file: Path | None) -> None:
    """Everything, with its keys, into one new file of mode 0600.

    \b
    sidewall ca backup /backup/ca-2026-11-23.swb --passphrase-file /etc/ca.pass
    """
    passphrase = _passphrase(passphrase_file)
    answer = authority.ask("Backup", path=str(file.absolute()), passphrase=passphrase)
    for warning in answer["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{file}: written; restore it with `sidewall ca restore {file} --to FOLDER`")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@click.option("--to", "folder", type=_FOLDER, required=True, help="A missing or empty folder.")
@click.option("--store", metavar="URL", envvar="SIDEWALL_CA_STORE", help="The database to fill; SQLite by default.")
@click.option("--passphrase-file", type=click.Path(path_type=Path, exists=True))
def restore(file: Path, folder: Path, store: str | None, passphrase_file: Path | None) -> None:
    """Make an authority from a backup. The journal in it is verified; join tokens are not restored.

    \b
    sidewall ca restore /backup/ca-2026-11-23.swb --to /var/lib/sidewall/ca
    """
    from datetime import UTC, datetime

    from identity.ca.model import CaError, StoreCorrupt
    from identity.ca.service import CaService
    from identity.disk import IdentityFileError

    now, passphrase = datetime.now(UTC), _passphrase(passphrase_file) or None
    try:
        with CaService.restore(file, folder, store_url=store, passphrase=passphrase, now=now) as service:
            status = service.status(now)
    except StoreCorrupt as error:
        raise Problem(str(error), code=78) from None
    except (CaError, IdentityFileError) as error:
        raise Problem(str(error), code=73) from None
    lapse = f"; first SVID ends {in_time(status.first_lapse - now.timestamp())}" if status.first_lapse else ""
    click.echo(f"{folder}: authority of {status.trust_domain}, {status.entries} entries, {status.nodes} nodes{lapse}")


def _passphrase(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text().rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"{path}: {error}", code=78) from None
