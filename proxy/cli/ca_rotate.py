"""``ca rotate``: the authority rotates by itself; these are for those who want to do it by hand, or at once."""

from __future__ import annotations

from typing import Any

import click

from proxy.cli.ca_client import OUTPUT, Authority, confirm, print_json, print_table, with_authority, with_spans

_KIND = click.argument("kind", type=click.Choice(["x509-root", "x509-issuing", "jwt"]))
_FORCE = click.option("--force", is_flag=True, help="Although somebody would be cut off.")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Only say what would happen.")
_YES = click.option("--yes", is_flag=True, help="Do not ask.")
_ID = click.option("--id", "authority_id", default="", help="Which old one; the newest by default.")


@click.group()
def rotate() -> None:
    """Replace root, issuing authority or JWT key: prepare, activate, taint, revoke.

    \b
    sidewall ca rotate status
    sidewall ca rotate prepare x509-issuing       make the next one, and publish it
    sidewall ca rotate activate x509-issuing      sign with it, once all nodes trust it
    sidewall ca rotate taint x509-issuing         everything the old one signed is renewed now
    sidewall ca rotate revoke x509-issuing        the old one is trusted no more

    Each step says who trusts the next one already, and is refused while it would cut somebody off.
    """


@rotate.command()
@OUTPUT
@with_authority
def status(authority: Authority, output: str) -> None:
    """For each kind: the next step, when, and who would not trust it yet."""
    found = authority.ask("Rotation")
    if output == "json":
        print_json("Rotation", **found)
        return
    rows = [
        (kind, with_spans(report["next_step"]), f"{report['trusting']}/{report['living']}", str(report["presenting"]))
        for kind, report in found.items()
    ]
    print_table(("KIND", "NEXT STEP", "NODES THAT TRUST IT", "STILL UNDER THE OLD ONE"), rows)
    for report in found.values():
        _behind(report)


@rotate.command()
@_KIND
@_FORCE
@_DRY_RUN
@with_authority
def prepare(authority: Authority, kind: str, force: bool, dry_run: bool) -> int:
    """Make the next one and publish it in the bundle. It signs nothing yet."""
    return _step(authority, "prepare", kind, force, dry_run)


@rotate.command()
@_KIND
@_FORCE
@_DRY_RUN
@with_authority
def activate(authority: Authority, kind: str, force: bool, dry_run: bool) -> int:
    """Sign with the prepared one from now on."""
    return _step(authority, "activate", kind, force, dry_run)


@rotate.command()
@_KIND
@_ID
@_FORCE
@_DRY_RUN
@_YES
@with_authority
def taint(authority: Authority, kind: str, authority_id: str, force: bool, dry_run: bool, yes: bool) -> int:
    """Have everything that the old one signed renewed now."""
    return _dangerous(authority, "taint", kind, authority_id, force, dry_run, yes)


@rotate.command()
@_KIND
@_ID
@_FORCE
@_DRY_RUN
@_YES
@with_authority
def revoke(authority: Authority, kind: str, authority_id: str, force: bool, dry_run: bool, yes: bool) -> int:
    """Take the old one out of the bundle and destroy its key."""
    return _dangerous(authority, "revoke", kind, authority_id, force, dry_run, yes)


def _dangerous(
    authority: Authority, step: str, kind: str, authority_id: str, force: bool, dry_run: bool, yes: bool
) -> int:
    """Show the plan, then ask."""
    if not dry_run:
        plan = authority.ask("Rotate", step=step, kind=kind, authority_id=authority_id, force=force, dry_run=True)
        if not plan["unsafe"] or force:
            _print(plan)
            confirm(f"{step} the old {kind} authority?", yes=yes)
    return _step(authority, step, kind, force, dry_run, authority_id=authority_id)


def _step(authority: Authority, step: str, kind: str, force: bool, dry_run: bool, **more: Any) -> int:
    report = authority.ask("Rotate", step=step, kind=kind, force=force, dry_run=dry_run, **more)
    _print(report)
    return int(bool(dry_run and report["unsafe"] and not force))


def _print(report: dict[str, Any]) -> None:
    did = report["action"] if report["done"] else f"would {report['action']}"
    click.echo(f"{report['kind']}: {did} {report['authority_id']}".rstrip())
    if report["living"]:
        click.echo(f"  {report['trusting']} of {report['living']} living nodes trust the next one")
    if report["presenting"]:
        click.echo(f"  {report['presenting']} holders present what the old one signed")
    _behind(report)
    for reason in report["unsafe"]:
        click.echo(f"  unsafe: {with_spans(reason)}", err=True)
    if report["next_step"]:
        click.echo(f"  next: {with_spans(report['next_step'])}")


def _behind(report: dict[str, Any]) -> None:
    for spiffe_id in report["behind"]:
        click.echo(f"  does not trust it yet: {spiffe_id}")
