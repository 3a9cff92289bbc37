"""``ca entry``: registration entries, one at a time or as files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from proxy.cli.ca_client import OUTPUT, Authority, id_of, in_time, print_json, print_table, with_authority
from proxy.cli.group import Problem
from proxy.cli.live import Seconds

_PAGE = 1000


@click.group()
def entry() -> None:
    """Registration entries: which callers get which identity.

    \b
    sidewall ca entry create shop/api --selector unix:user:api
    sidewall ca entry create shop/api --parent spiffe://shop.internal/vm7 --selector unix:uid:1001
    sidewall ca entry apply -f entries/ --prune --dry-run

    An entry gives its identity to every caller below its parent that has all of its selectors. Without --parent
    it is for those that attest to the authority itself: pods, and processes on its machine.
    """


def _fields(command: Any) -> Any:
    """The options that are fields of an entry."""
    for option in reversed(
        (
            click.option("--parent", metavar="ID", help="The node below which it is."),
            click.option("--selector", "selectors", multiple=True, metavar="TYPE:VALUE", help="All must fit."),
            click.option("--ttl", type=Seconds(), metavar="DURATION", help="Life of X.509-SVIDs."),
            click.option("--jwt-ttl", type=Seconds(), metavar="DURATION", help="Life of JWT-SVIDs."),
            click.option("--dns", "dns_names", multiple=True, metavar="NAME", help="Put into the certificate."),
            click.option("--federates-with", multiple=True, metavar="DOMAIN", help="Gets that bundle too."),
            click.option("--hint", metavar="TEXT", help="For workloads with several identities."),
            click.option("--admin/--no-admin", default=None, help="May administer the authority."),
            click.option("--downstream/--no-downstream", default=None, help="May have an authority below it."),
            click.option("--expires", type=Seconds(), metavar="DURATION", help="Ends in so long; 0s: never."),
        )
    ):
        command = option(command)
    return command


def _document(authority: Authority, given: dict[str, Any]) -> dict[str, Any]:
    """What was said of the fields."""
    found: dict[str, Any] = {
        "parentId": id_of(authority, given["parent"]) if given["parent"] else None,
        "selectors": list(given["selectors"]) or None,
        "x509SvidTtl": given["ttl"],
        "jwtSvidTtl": given["jwt_ttl"],
        "dnsNames": list(given["dns_names"]) or None,
        "federatesWith": list(given["federates_with"]) or None,
        "hint": given["hint"],
        "admin": given["admin"],
        "downstream": given["downstream"],
    }
    if given["expires"] is not None:
        found["expiresAt"] = int(time.time() + given["expires"]) if given["expires"] else 0
    return {name: value for name, value in found.items() if value is not None}


@entry.command()
@click.argument("name")
@_fields
@OUTPUT
@with_authority
def create(authority: Authority, name: str, output: str, **given: Any) -> None:
    """Make an entry that gives NAME (ns/account, spiffe://..., or a pattern with {ns} and {sa}).

    \b
    sidewall ca entry create shop/api --selector unix:user:api --ttl 30m
    sidewall ca entry create 'spiffe://shop.internal/ns/{ns}/sa/{sa}' --selector k8s:ns:shop
    """
    from identity.ca_api import own_parent

    document = {"spiffeId": id_of(authority, name), **_document(authority, given)}
    if "parentId" not in document:
        document["parentId"] = own_parent(authority.ask("Bundle")["trust_domain"])
    made = authority.ask("CreateEntry", entry=document)
    if output == "json":
        print_json("Entry", **made)
        return
    click.echo(made["id"])


@entry.command()
@click.argument("entry_id", metavar="ENTRY")
@with_authority
def show(authority: Authority, entry_id: str) -> None:
    """One entry as JSON."""
    click.echo(json.dumps(authority.ask("GetEntry", id=entry_id), indent=2))


@entry.command("list")
@click.argument("name", required=False, default="")
@click.option("--parent", default="", metavar="ID")
@click.option("--selector", "selectors", multiple=True, metavar="TYPE:VALUE", help="Those that have all of these.")
@OUTPUT
@with_authority
def list_entries(authority: Authority, name: str, parent: str, selectors: tuple[str, ...], output: str) -> None:
    """Entries of NAME, below a parent, with selectors; or all.

    \b
    sidewall ca entry list shop/api -o json
    """
    wanted = {
        "spiffe_id": id_of(authority, name) if name else "",
        "parent_id": id_of(authority, parent) if parent else "",
        "selectors": list(selectors),
    }
    found: list[dict[str, Any]] = []
    while page := authority.ask("ListEntries", **wanted, limit=_PAGE, after=found[-1]["id"] if found else ""):
        found += page
    if output == "json":
        print_json("EntryList", entries=found)
        return
    print_table(("ENTRY", "SPIFFE ID", "PARENT", "ENDS", "SELECTORS"), [_row(one) for one in found])


def _row(found: dict[str, Any]) -> tuple[str, ...]:
    end = found.get("expiresAt") or 0
    ends = in_time(end - time.time()) if end else "-"
    return found["id"], found["spiffeId"], found.get("parentId", ""), ends, " ".join(found.get("selectors", ()))


@entry.command()
@click.argument("entry_id", metavar="ENTRY")
@click.option("--name", metavar="NAME", help="Another identity.")
@_fields
@with_authority
def update(authority: Authority, entry_id: str, name: str | None, **given: Any) -> None:
    """Change the fields that are given; the others stay.

    \b
    sidewall ca entry update 4f1c... --ttl 15m
    """
    change = _document(authority, given)
    if name:
        change["spiffeId"] = id_of(authority, name)
    if not change:
        raise click.UsageError("say what to change, e.g. --ttl 15m")
    made = authority.ask("UpdateEntry", id=entry_id, change=change)
    click.echo(f"{entry_id}: revision {made['revisionNumber']}")


@entry.command()
@click.argument("entry_ids", metavar="ENTRY...", nargs=-1, required=True)
@with_authority
def delete(authority: Authority, entry_ids: tuple[str, ...]) -> None:
    """Delete entries. What they gave is not renewed; `ca revoke` takes it away at once."""
    for entry_id in entry_ids:
        authority.ask("DeleteEntry", id=entry_id)
        click.echo(f"{entry_id}: deleted")


@entry.command()
@click.option("-f", "--file", "paths", type=click.Path(path_type=Path, exists=True), multiple=True, required=True,
              help="A file, or a folder of *.yaml and *.json.")  # fmt: skip
@click.option("--prune", is_flag=True, help="Delete the entries that are not in the files.")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@OUTPUT
@with_authority
def apply(authority: Authority, paths: tuple[Path, ...], prune: bool, dry_run: bool, output: str) -> None:
    """Make the authority hold what the files say: all of it, or nothing.

    \b
    sidewall ca entry apply -f entries/ --prune --dry-run
    sidewall ca entry apply -f entries/ --prune
    """
    from config.problems import ConfigError, render
    from proxy.cli.ca_entry_files import read_entries

    trust_domain = authority.ask("Bundle")["trust_domain"]
    try:
        documents = read_entries(list(paths), trust_domain)
    except ConfigError as error:
        click.echo(render(error.problems, files=error.files, documents=error.documents), err=True)
        raise Problem("nothing was changed", code=78) from None
    done = authority.ask("ApplyEntries", entries=documents, prune=prune, dry_run=dry_run)
    if output == "json":
        print_json("EntryChanges", dryRun=dry_run, items=done)
        return
    for change in done:
        made = change["entry"]
        click.echo(f"{change['action']:7} {made['spiffeId']}  {' '.join(made.get('selectors', ()))}")
    verb = "would be made" if dry_run else "made"
    click.echo(f"{len(documents)} entries in the files, {len(done)} changes {verb}", err=True)
