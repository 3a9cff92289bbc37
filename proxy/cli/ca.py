"""``ca init`` and ``ca issue``: an authority in a folder, without a server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from proxy.cli.group import Problem


@click.group()
def ca() -> None:
    """A certificate authority in a folder."""


@ca.command("init")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--trust-domain", default="local", show_default=True, help="e.g. shop.internal")
@click.option("--root-curve", type=click.Choice(["P-256", "P-384"]), default="P-256", show_default=True)
def init_ca(folder: Path, trust_domain: str, root_curve: str) -> None:
    """Make a root and an issuing authority.

    \b
    sidewall ca init ./ca --trust-domain shop.internal
    """
    from identity.authority import IssueError
    from identity.disk import IdentityFileError
    from identity.files import create_ca
    from identity.spiffe import SpiffeIdError

    curve = "P-384" if root_curve == "P-384" else "P-256"
    try:
        create_ca(folder, trust_domain, now=datetime.now(UTC), root_curve=curve)  # type: ignore[arg-type]
    except IdentityFileError as error:
        raise Problem(str(error), code=73) from None
    except (SpiffeIdError, IssueError) as error:
        raise Problem(f"{trust_domain!r} cannot be a trust domain: {error}", "e.g. shop.internal", code=2) from None
    click.echo(f"{folder}: authority of {trust_domain}; keep *.key to yourself, give bundle.pem to everybody")


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
