"""Taking identities away: ``ca revoke``, ``ca unrevoke``, ``ca ban``, ``ca unban``."""

from __future__ import annotations

import re
import time

import click

from proxy.cli.ca_client import Authority, id_of, in_time, with_authority

_SERIAL = re.compile(r"[0-9A-Fa-f:]{8,64}")
_REASON = click.option("--reason", default="", metavar="TEXT", help="Goes into the journal and the list.")


def _what(authority: Authority, text: str) -> str:
    """A serial as it is, everything else as a SPIFFE ID."""
    return text if _SERIAL.fullmatch(text) else id_of(authority, text)


@click.command()
@click.argument("what", metavar="ID|SERIAL")
@_REASON
@with_authority
def revoke(authority: Authority, what: str, reason: str) -> None:
    """Take an identity, or one certificate, away at once.

    It is renewed no more, proxies are told within a second and end its connections. A revocation ends when
    everything issued before has expired. A node that loses its identity must attest again.

    \b
    sidewall ca revoke shop/api --reason "key leaked"
    sidewall ca revoke 3f2a90c1d4e5f607
    """
    made = authority.ask("Revoke", what=_what(authority, what), reason=reason)
    click.echo(f"{made['what']}: revoked; the revocation ends {in_time(made['expires_at'] - time.time())}")


@click.command()
@click.argument("what", metavar="ID|SERIAL")
@with_authority
def unrevoke(authority: Authority, what: str) -> None:
    """Take a revocation back.

    \b
    sidewall ca unrevoke shop/api
    """
    found = _what(authority, what)
    authority.ask("Unrevoke", what=found)
    click.echo(f"{found}: no longer revoked")


@click.command()
@click.argument("name")
@_REASON
@with_authority
def ban(authority: Authority, name: str, reason: str) -> None:
    """Give a node nothing any more, until `ca unban`; its certificates are revoked.

    \b
    sidewall ca ban legacy/ledger --reason "copied disk"
    """
    spiffe_id = id_of(authority, name)
    authority.ask("Ban", spiffe_id=spiffe_id, reason=reason)
    click.echo(f"{spiffe_id}: banned")


@click.command()
@click.argument("name")
@with_authority
def unban(authority: Authority, name: str) -> None:
    """Let a banned node attest again.

    \b
    sidewall ca unban legacy/ledger
    """
    spiffe_id = id_of(authority, name)
    authority.ask("Unban", spiffe_id=spiffe_id)
    click.echo(f"{spiffe_id}: no longer banned")
