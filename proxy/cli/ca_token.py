"""``ca token NAME``, ``ca token list``, ``ca token revoke``: one-time secrets with which machines join."""

from __future__ import annotations

import time
from typing import Any

import click

from proxy.cli.ca_client import OUTPUT, Authority, id_of, in_time, print_json, print_table, with_authority
from proxy.cli.group import Problem
from proxy.cli.live import Seconds


class _OrName(click.Group):
    """``ca token shop/api`` means ``ca token create shop/api``."""

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if arguments and arguments[0] not in self.commands:
            return super().resolve_command(context, ["create", *arguments])
        return super().resolve_command(context, arguments)

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        if arguments and arguments[0] not in self.commands and arguments[0] not in ("-h", "--help"):
            arguments = ["create", *arguments]
        return super().parse_args(context, arguments)


@click.group(cls=_OrName)
def token() -> None:
    """Join tokens: make one for NAME, list, revoke.

    \b
    sidewall ca token legacy/ledger                      for the machine that is legacy/ledger
    sidewall ca token legacy/ledger --selector unix:user:ledger --print-command
    sidewall ca token list

    A token is good once, for one identity, for ten minutes. It is shown once and kept as a hash.
    """


@token.command()
@click.argument("name")
@click.option("--ttl", type=Seconds(), default=600.0, metavar="DURATION", help="How long it is good; 10m.")
@click.option("--selector", "selectors", multiple=True, metavar="TYPE:VALUE",
              help="Only processes that fit get NAME, e.g. unix:user:ledger.")  # fmt: skip
@click.option("--url", "urls", multiple=True, metavar="URL", help="How the machine reaches the authority.")
@click.option("--print-command", is_flag=True, help="Print what to type on the machine.")
@OUTPUT
@with_authority
def create(
    authority: Authority,
    name: str,
    ttl: float,
    selectors: tuple[str, ...],
    urls: tuple[str, ...],
    print_command: bool,
    output: str,
) -> None:
    """Make a token for NAME (ns/account or spiffe://...).

    \b
    sidewall ca token legacy/ledger --ttl 15m --print-command
    """
    addresses = _addresses(urls)  # before a token is made for nothing
    made = authority.ask("CreateToken", spiffe_id=id_of(authority, name), ttl=ttl, selectors=list(selectors))
    addresses = addresses or _addresses((made["url"],) if made["url"] else ())
    if not addresses or not made["fingerprint"]:
        missing = "where it is" if not addresses else "its root"
        raise Problem(f"the token was made, but the authority has not said {missing}", "add --url", code=78)
    text = _join_string(addresses, made)
    if output == "json":
        print_json("JoinToken", spiffeId=made["spiffe_id"], expiresAt=made["expires_at"], token=text)
        return
    until = in_time(made["expires_at"] - time.time()).removeprefix("in ")
    click.echo(f"for {made['spiffe_id']}, good once, within {until}", err=True)
    if made["entry"]:
        entry = made["entry"]
        click.echo(f"its processes with {' '.join(entry['selectors'])} get {entry['spiffeId']}", err=True)
    click.echo(f"  sudo sidewall join {text}" if print_command else text)


def _addresses(urls: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    """Host and port of each. Raises Problem."""
    from urllib.parse import urlsplit

    from identity.attest.join import DEFAULT_PORT

    found = []
    for url in urls:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or DEFAULT_PORT
        except ValueError:
            host, port = None, 0
        if parts.scheme != "https" or not host:
            raise Problem(f"{url!r} is no address", "e.g. --url https://ca.shop.internal:15012", code=2)
        found.append((host, port))
    return tuple(found)


def _join_string(addresses: tuple[tuple[str, int], ...], made: dict[str, Any]) -> str:
    from identity.attest.join import JoinString, JoinStringError

    try:
        return JoinString(addresses, made["trust_domain"], made["fingerprint"], made["secret"]).encode()
    except JoinStringError as error:
        raise Problem(str(error), "e.g. --url https://ca.shop.internal:15012", code=2) from None


@token.command("list")
@OUTPUT
@with_authority
def list_tokens(authority: Authority, output: str) -> None:
    """Tokens that were not used and are still good."""
    found = authority.ask("Tokens")
    if output == "json":
        print_json("JoinTokenList", items=found)
        return
    now = time.time()
    print_table(
        ("TOKEN", "FOR", "ENDS"), [(one["id"], one["spiffe_id"], in_time(one["expires_at"] - now)) for one in found]
    )


@token.command()
@click.argument("token_id", metavar="TOKEN")
@with_authority
def revoke(authority: Authority, token_id: str) -> None:
    """Withdraw an unused token, by the id that the list shows."""
    authority.ask("DeleteToken", id=token_id)
    click.echo(f"{token_id}: withdrawn")
