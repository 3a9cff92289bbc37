"""What an authority is doing: ``ca status``, ``ca nodes``, ``ca list``, ``ca log``."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from proxy.cli.ca_client import (
    OUTPUT,
    Authority,
    id_of,
    in_time,
    print_json,
    print_table,
    printable,
    with_authority,
    with_spans,
)
from proxy.cli.live import Seconds

_PAGE = 1000
_FOLLOW = 0.5  # seconds between two looks


@click.command()
@OUTPUT
@with_authority
def status(authority: Authority, output: str) -> int:
    """What expires when, who is alive, and how long the authority may be away.

    \b
    sidewall ca status
    sidewall ca status -o json

    Exit code 1 when something is wrong.
    """
    found = authority.ask("Status")
    bad = list(found["problems"]) + list(found["server"].get("not_ready", ()))
    bad += [f"bundle of {name}: {problem}" for name, problem in found["server"].get("federation", {}).items()]
    if output == "json":
        print_json("CaStatus", **found)
        return int(bool(bad))
    click.echo(f"{found['trust_domain']}  {found['store']}")
    click.echo(_counts(found))
    click.echo(_lapse(found) + "\n")
    print_table(("AUTHORITY", "STATE", "ENDS", "LAST SIGNATURE ENDS", "ID"), _ladder(found))
    click.echo("")
    for kind, report in found["rotation"].items():
        click.echo(f"{kind:12}  {with_spans(report['next_step'])}{_trust(report)}")
    for problem in bad:
        click.echo(f"problem: {problem}", err=True)
    return int(bool(bad))


def _counts(found: dict[str, Any]) -> str:
    living = max((report["living"] for report in found["rotation"].values()), default=0)
    return (
        f"{found['live_svids']} SVIDs in use, {found['nodes']} nodes ({living} alive, {found['banned']} banned), "
        f"{found['entries']} entries, {found['tokens']} open tokens, {found['revocations']} revocations, "
        f"journal at {found['journal_seq']}, bundle {found['bundle_sequence']}"
    )


def _lapse(found: dict[str, Any]) -> str:
    if not found["first_lapse"]:
        return "nobody holds an SVID"
    return f"the authority may be away: the first SVID lapses {in_time(found['first_lapse'] - found['at'])}"


def _ladder(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """What ends first stands first."""
    rows: list[tuple[str, ...]] = []
    for view in sorted(found["authorities"], key=lambda view: float(view["not_after"])):
        marks = (", tainted" if view["tainted"] else "") + ("" if view["has_key"] else ", key elsewhere")
        state = view["state"] + marks
        last = in_time(view["last_leaf"] - found["at"]) if view["last_leaf"] else "-"
        rows.append((view["kind"], state, in_time(view["not_after"] - found["at"]), last, view["id"]))
    return rows


def _trust(report: dict[str, Any]) -> str:
    """Who has the next one already, once there is one."""
    if report["action"] == "prepare" or not report["living"]:
        return ""
    return f"; {report['trusting']} of {report['living']} living nodes trust the next one"


@click.command()
@OUTPUT
@with_authority
def nodes(authority: Authority, output: str) -> None:
    """Machines and sidecars that have attested.

    \b
    sidewall ca nodes
    """
    found: list[dict[str, Any]] = []
    while page := authority.ask("Nodes", limit=_PAGE, after=found[-1]["spiffe_id"] if found else ""):
        found += page
    if output == "json":
        print_json("NodeList", items=found)
        return
    now = time.time()
    rows = []
    for node in found:
        state = f"banned: {node['banned']}" if node["banned"] else "alive" if node["expires_at"] > now else "expired"
        ends = in_time(node["expires_at"] - now)
        rows.append((node["spiffe_id"], node["how"], state, ends, node["machine_id"] or "-"))
    print_table(("NODE", "ATTESTED BY", "STATE", "SVID ENDS", "MACHINE"), rows)


@click.command("list")
@click.argument("name", required=False, default="")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@OUTPUT
@with_authority
def list_issued(authority: Authority, name: str, limit: int, output: str) -> None:
    """Certificates that have not expired, of NAME (ns/account or spiffe://...) or of all.

    \b
    sidewall ca list shop/api
    """
    found = authority.ask("Issued", spiffe_id=id_of(authority, name) if name else "", limit=limit)
    if output == "json":
        print_json("IssuedList", items=found)
        return
    now = time.time()
    rows = [(one["serial"], one["spiffe_id"], in_time(one["not_after"] - now), one["holder"]) for one in found]
    print_table(("SERIAL", "SPIFFE ID", "ENDS", "HOLDER"), rows)
    if len(found) == limit:
        click.echo(f"the first {limit}; there may be more: --limit", err=True)


# -- the journal --------------------------------------------------------------------------------------------


@click.command()
@click.option("--since", "span", type=Seconds(), metavar="DURATION", help="Only the last so long, e.g. 1h.")
@click.option("--follow", is_flag=True, help="Go on with what comes.")
@click.option("--verify", is_flag=True, help="Recompute the chain of hashes, and say whether it is whole.")
@OUTPUT
@with_authority
def log(authority: Authority, span: float | None, follow: bool, verify: bool, output: str) -> int:
    """The journal: everything that was issued, refused or changed, each record chained to the one before.

    \b
    sidewall ca log --since 1h
    sidewall ca log --follow
    sidewall ca log --verify          keep what it prints elsewhere: it shows later rewriting

    Exit code 1 when the chain is broken.
    """
    if verify:
        return _verify(authority, output)
    head = authority.ask("JournalHead")["seq"]
    seq = 0 if span is None else _seq_at(authority, time.time() - span, head)
    while True:
        page = authority.ask("Log", since=seq, limit=_PAGE)
        for record in page:
            click.echo(json.dumps(record) if output == "json" else _line(record))
            seq = record["seq"]
        if not page:
            if not follow:
                return 0
            time.sleep(_FOLLOW)


def _verify(authority: Authority, output: str) -> int:
    verdict = authority.ask("VerifyLog")
    if output == "json":
        print_json("JournalVerdict", **verdict)
    elif verdict["ok"]:
        click.echo(f"whole: {verdict['records']} records, the last hash is {verdict['head']}")
    else:
        click.echo(f"broken at record {verdict['broken_at']}: {verdict['problem']}", err=True)
    return int(not verdict["ok"])


def _seq_at(authority: Authority, at: float, head: int) -> int:
    """The last record before ``at``: they are in order of time, near enough."""
    low, high = 0, head
    while low < high:
        middle = (low + high) // 2
        page = authority.ask("Log", since=middle, limit=1)
        if page and page[0]["at"] < at:
            low = middle + 1
        else:
            high = middle
    return low


def _line(record: dict[str, Any]) -> str:
    clock = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record["at"]))
    caller = record["caller"]
    who = caller.get("id") or caller.get("kind") or "-"
    facts = " ".join(f"{name}={_short(value)}" for name, value in record["facts"].items())
    line = f"{record['seq']:>6} {clock} {record['kind']:20} {record['subject'] or '-'}  by {who}  {facts}"
    return printable(line.rstrip())


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
