"""``ca bundle`` and ``ca federation``: what we trust and are trusted by, and where it comes from."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from proxy.cli.ca_client import OUTPUT, Authority, confirm, print_json, print_table, with_authority
from proxy.cli.group import Problem

_DOMAIN = click.argument("trust_domain", metavar="DOMAIN")


@click.group()
def bundle() -> None:
    """Trust bundles: our own, and those of other trust domains.

    \b
    sidewall ca bundle show > bundle.json            give it to the other side
    sidewall ca bundle show --pem
    sidewall ca bundle set far.example far.json      trust the other side
    """


@bundle.command()
@click.argument("trust_domain", metavar="[DOMAIN]", required=False)
@click.option("--pem", is_flag=True, help="Our X.509 roots only, as PEM.")
@with_authority
def show(authority: Authority, trust_domain: str | None, pem: bool) -> None:
    """Our bundle as JWKS, or that of another trust domain."""
    if trust_domain:
        if pem:
            raise click.UsageError("--pem is for our own bundle")
        click.echo(authority.ask("GetFederated", trust_domain=trust_domain)["jwks"])
        return
    found = authority.ask("Bundle")
    click.echo(found["pem"] if pem else found["jwks"], nl=not pem)


@bundle.command("set")
@_DOMAIN
@click.argument("file", type=click.Path(path_type=Path, exists=True, allow_dash=True))
@with_authority
def set_bundle(authority: Authority, trust_domain: str, file: Path) -> None:
    """Trust another trust domain by its bundle (JWKS), from a file or from stdin (-).

    \b
    sidewall ca bundle set far.example far.json
    """
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"{file}: {error}", code=78) from None
    made = authority.ask("SetFederated", trust_domain=trust_domain, jwks=text)
    click.echo(f"{made['trust_domain']}: {made['roots']} authorities, sequence {made['sequence']}")


@bundle.command("list")
@OUTPUT
@with_authority
def list_bundles(authority: Authority, output: str) -> None:
    """Bundles of other trust domains."""
    _print(authority.ask("Federated"), output)


@bundle.command()
@_DOMAIN
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_authority
def delete(authority: Authority, trust_domain: str, yes: bool) -> None:
    """Trust it no longer, and stop following it."""
    confirm(f"trust {trust_domain} no longer?", yes=yes)
    authority.ask("DeleteFederated", trust_domain=trust_domain)
    click.echo(f"{trust_domain}: no longer trusted")


@click.group()
def federation() -> None:
    """Where bundles of other trust domains come from.

    \b
    sidewall ca federation follow far.example --url https://ca.far.example:8443/ \\
        --spiffe-id spiffe://far.example/sidewall/ca
    sidewall ca federation follow web.example --url https://web.example/bundle --profile https_web
    sidewall ca federation list

    The server asks there as often as the bundle says. Which identities get a foreign bundle is said by their
    entries (`ca entry create --federates-with`).
    """


@federation.command()
@_DOMAIN
@click.option("--url", required=True, help="Its bundle endpoint.")
@click.option(
    "--profile", type=click.Choice(["https_spiffe", "https_web"]), default="https_spiffe", show_default=True
)
@click.option("--spiffe-id", default="", metavar="ID", help="With https_spiffe: who the server must be.")
@with_authority
def follow(authority: Authority, trust_domain: str, url: str, profile: str, spiffe_id: str) -> None:
    """Fetch newer bundles of DOMAIN from URL.

    With https_spiffe set a first bundle with `ca bundle set`: it vouches for the server.
    """
    if (profile == "https_spiffe") != bool(spiffe_id):
        raise click.UsageError("--spiffe-id says who the server of https_spiffe is, and is for nothing else")
    facts: dict[str, Any] = {"trust_domain": trust_domain, "url": url, "profile": profile}
    authority.ask("Follow", **facts, endpoint_spiffe_id=spiffe_id)
    click.echo(f"{trust_domain}: followed at {url}")


@federation.command()
@_DOMAIN
@with_authority
def unfollow(authority: Authority, trust_domain: str) -> None:
    """Keep the bundle as it is, and fetch no newer ones."""
    authority.ask("Unfollow", trust_domain=trust_domain)
    click.echo(f"{trust_domain}: no longer followed")


@federation.command("list")
@OUTPUT
@with_authority
def list_followed(authority: Authority, output: str) -> None:
    """Other trust domains: what we hold of them and where it comes from."""
    _print(authority.ask("Federated"), output)


def _print(found: list[dict[str, Any]], output: str) -> None:
    if output == "json":
        print_json("FederatedBundleList", items=found)
        return
    now = time.time()
    rows = []
    for one in found:
        settings = one["settings"]
        origin = f"{settings['url']} ({settings['profile']})" if settings else "by hand"
        age = f"{int((now - one['updated_at']) // 60)} min ago"
        rows.append((one["trust_domain"], str(one["roots"]), str(one["sequence"]), age, origin))
    print_table(("DOMAIN", "AUTHORITIES", "SEQUENCE", "CHANGED", "FROM"), rows)
