"""The family ``ca``: its table of commands, and the two that need no server at all, ``init`` and ``issue``."""

from __future__ import annotations

import importlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from proxy.cli.group import Problem

# name -> (module, attribute, what the overview says)
_LAZY: dict[str, tuple[str, str, str]] = {
    "serve": ("proxy.cli.ca_serve", "serve", "Run the authority as a server."),
    "status": ("proxy.cli.ca_show", "status", "What expires when, who is alive, how long it may be away."),
    "token": ("proxy.cli.ca_token", "token", "Join tokens: make one for a machine, list, revoke."),
    "entry": ("proxy.cli.ca_entry", "entry", "Registration entries: who gets which identity."),
    "nodes": ("proxy.cli.ca_show", "nodes", "Machines and sidecars that have attested."),
    "list": ("proxy.cli.ca_show", "list_issued", "Certificates that have not expired."),
    "revoke": ("proxy.cli.ca_admin", "revoke", "Take an identity, or one certificate, away at once."),
    "unrevoke": ("proxy.cli.ca_admin", "unrevoke", "Take a revocation back."),
    "ban": ("proxy.cli.ca_admin", "ban", "Give a node nothing any more."),
    "unban": ("proxy.cli.ca_admin", "unban", "Let a banned node attest again."),
    "rotate": ("proxy.cli.ca_rotate", "rotate", "Replace root, issuing authority or JWT key by hand."),
    "bundle": ("proxy.cli.ca_federation", "bundle", "Trust bundles: our own, and those of others."),
    "federation": ("proxy.cli.ca_federation", "federation", "Where bundles of other trust domains come from."),
    "log": ("proxy.cli.ca_show", "log", "The journal of everything that was issued, refused or changed."),
    "csr": ("proxy.cli.ca_serve", "csr", "A request for an issuing authority, for an offline or company root."),
    "import": ("proxy.cli.ca_serve", "import_chain", "Take the answer to `ca csr`."),
    "backup": ("proxy.cli.ca_serve", "backup", "Everything, with its keys, into one file."),
    "restore": ("proxy.cli.ca_serve", "restore", "Make an authority from a backup."),
}


class Family(click.Group):
    """Imports a command's module when it is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        return ["init", *(name for name in _LAZY), "issue"]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _LAZY:
            return super().get_command(context, name)
        module, attribute, _ = _LAZY[name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(context):
            known = super().get_command(context, name)
            rows.append((name, _LAZY[name][2] if known is None else known.get_short_help_str(100)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=Family)
def ca() -> None:
    """The certificate authority: attest, issue, rotate, revoke.

    \b
    sidewall ca serve                            a server, made when there is none
    sidewall ca token legacy/ledger              let a machine join
    sidewall ca status                           what expires when, who is alive

    Commands talk to the server on this machine: $SIDEWALL_CA, or ca.sock in /run/sidewall or
    $XDG_RUNTIME_DIR/sidewall. With --dir they open a folder without one.
    """


@ca.command("init")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--trust-domain", default="local", show_default=True, help="e.g. shop.internal")
@click.option("--root-curve", type=click.Choice(["P-256", "P-384"]), default="P-256", show_default=True)
@click.option("--offline-root", is_flag=True, help="Leave the root's key in a file of its own, to be moved away.")
@click.option("--company-root", is_flag=True, help="Make no root: `ca csr` and `ca import` bring one.")
@click.option("--store", metavar="URL", envvar="SIDEWALL_CA_STORE",
              help="postgresql+psycopg://... for several replicas; SQLite by default.")  # fmt: skip
def init_ca(
    folder: Path, trust_domain: str, root_curve: str, offline_root: bool, company_root: bool, store: str | None
) -> None:
    """Make a root and an issuing authority.

    \b
    sidewall ca init ./ca --trust-domain shop.internal
    sidewall ca init ./ca --trust-domain shop.internal --offline-root
    """
    from identity.authority import IssueError
    from identity.ca.model import CaError
    from identity.disk import IdentityFileError
    from identity.spiffe import SpiffeIdError

    if offline_root and company_root:
        raise click.UsageError("--offline-root and --company-root exclude each other")
    try:
        if offline_root or company_root or store:
            _init_service(folder, trust_domain, offline_root, company_root, store)
            return
        _init_folder(folder, trust_domain, root_curve)
    except (IdentityFileError, CaError) as error:
        raise Problem(str(error), code=73) from None
    except (SpiffeIdError, IssueError) as error:
        raise Problem(f"{trust_domain!r} cannot be a trust domain: {error}", "e.g. shop.internal", code=2) from None


def _init_folder(folder: Path, trust_domain: str, root_curve: str) -> None:
    from identity.files import create_ca

    curve = "P-384" if root_curve == "P-384" else "P-256"
    create_ca(folder, trust_domain, now=datetime.now(UTC), root_curve=curve)  # type: ignore[arg-type]
    click.echo(f"{folder}: authority of {trust_domain}; keep *.key to yourself, give bundle.pem to everybody")


def _init_service(folder: Path, trust_domain: str, offline: bool, company: bool, store: str | None) -> None:
    from identity.ca.service import CaService

    place = "offline" if offline else "company" if company else "here"
    now = datetime.now(UTC)
    CaService.create(folder, trust_domain, store_url=store, now=now, root=place).close()  # type: ignore[arg-type]
    click.echo(f"{folder}: authority of {trust_domain}")
    if offline:
        click.echo("move offline-root.key to a safe place now; `sidewall ca csr` asks it for each issuing authority")
    if company:
        click.echo("nothing is issued yet: have the output of `sidewall ca csr` signed, then `sidewall ca import`")


@ca.command("issue")
@click.argument("name")
@click.option("--ca", "folder", type=click.Path(path_type=Path), required=True, help="Folder of sidewall ca init.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the three files.")
@click.option("--ttl", default="1h", show_default=True, help="Life of the certificate, 60s to 24h.")
@click.option("--dns", "names", multiple=True, help="A DNS name to put in as well (never used as identity).")
def issue(name: str, folder: Path, out: Path, ttl: str, names: tuple[str, ...]) -> None:
    """Issue svid.pem, svid_key.pem and bundle.pem for NAME (ns/account or spiffe://...).

    \b
    sidewall ca issue shop/api --ca ./ca --out ./api --ttl 12h
    """
    from config.values import parse_duration
    from identity.authority import MAX_TTL, MIN_TTL, IssueError
    from identity.disk import IdentityFileError
    from identity.files import issue_to_files, load_ca
    from identity.spiffe import SpiffeId, SpiffeIdError

    now = datetime.now(UTC)
    try:
        life = timedelta(seconds=parse_duration(ttl))
        if not MIN_TTL <= life <= MAX_TTL:
            raise ValueError(f"--ttl {ttl}: certificates live from 60s to 24h, and are renewed")
        authority = load_ca(folder, now=now)
        spiffe_id = SpiffeId.parse(full_name(name, authority.trust_domain))
        svid = issue_to_files(authority, spiffe_id, out, life, now=now, dns_names=names)
    except (SpiffeIdError, ValueError) as error:
        raise Problem(str(error), "write NAME as ns/account, e.g. shop/api, and --ttl as 12h", code=2) from None
    except (IssueError, IdentityFileError) as error:
        raise Problem(str(error), code=73) from None
    expires = datetime.fromtimestamp(svid.not_after, UTC)
    click.echo(f"{out}: {spiffe_id}, until {expires:%Y-%m-%d %H:%M:%S} UTC")


def full_name(name: str, trust_domain: str) -> str:
    """``ns/account`` as a SPIFFE ID of ``trust_domain``; a full ID stays as it is. Raises ValueError."""
    from config.values import check_expected, expand_expected

    return expand_expected(check_expected(name), trust_domain)
