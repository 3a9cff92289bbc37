"""``sidewall quarantine``: cut one identity off at every local proxy, see who is, and let it out again."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from proxy.cli.admin_client import Target, ask_all
from proxy.cli.group import Problem
from proxy.cli.live import Seconds

_CUT = ("principal", "what", "streams", "connections", "milliseconds")


@click.command()
@click.argument("identity", required=False)
@click.option("--at", "target", metavar="TARGET", help="One proxy: its socket or workload. Default: every local one.")
@click.option("--ttl", metavar="DURATION", type=Seconds(), default=0.0, help="End it after so long by itself.")
@click.option("--except", "exempt", metavar="WHO", multiple=True, help="Who may go on talking with it (repeatable).")
@click.option("--reason", default="", help="A line for those who find it in the list.")
@click.option("--rehearse", is_flag=True, help="Say what would be cut, and change nothing.")
@click.option("--lift", is_flag=True, help="Let it out again.")
@click.option("--list", "show", is_flag=True, help="Who is in quarantine.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def quarantine(
    identity: str | None,
    target: str | None,
    ttl: float,
    exempt: tuple[str, ...],
    reason: str,
    rehearse: bool,
    lift: bool,
    show: bool,
    output: str,
) -> int:
    """Cut one identity off, both ways, at every local proxy.

    IDENTITY and WHO: a SPIFFE ID, or namespace/account of the proxy's own trust domain. No policy can allow what a
    quarantine refuses. It survives a restart of the proxy. To find every proxy it must be run on every machine.

    \b
    sidewall quarantine shop/web --ttl 2h --reason "token found in a paste"
    sidewall quarantine shop/web --rehearse
    sidewall quarantine spiffe://shop.internal/ns/shop/sa/web --except ops/forensics
    sidewall quarantine --list
    sidewall quarantine shop/web --lift

    Exit codes: 1 when a proxy refused, 69 when one did not answer.
    """
    if show:
        return _list(target, output)
    if identity is None:
        raise click.UsageError("Missing argument 'IDENTITY' (or --list).")
    proxies, silent = ask_all(target, "GET", "/status", "workload")
    wish = _wish(identity, ttl, exempt, reason, rehearse, lift)
    answers = [(proxy, _ask(proxy, facts, wish)) for proxy, facts in proxies]
    refused = sum("problem" in answer for _, answer in answers)
    _tell(answers, output)
    return 1 if refused else 69 if silent else 0


def _wish(
    identity: str, ttl: float, exempt: tuple[str, ...], reason: str, rehearse: bool, lift: bool
) -> dict[str, Any]:
    if lift:
        return {"lift": identity}
    now = time.time()
    until = now + ttl if ttl else 0.0
    block = {"principal": identity, "since": now, "until": until, "exempt": list(exempt), "reason": reason}
    return {"block": block, "rehearse": rehearse}


def _ask(proxy: Target, facts: dict[str, Any], wish: dict[str, Any]) -> dict[str, Any]:
    svid = facts.get("svid") or {}
    domain = str(svid.get("id", "")).removeprefix("spiffe://").partition("/")[0]
    wish = json.loads(json.dumps(wish))
    if "lift" in wish:
        wish["lift"] = _principal(wish["lift"], domain)
    else:
        block = wish["block"]
        block["principal"] = _principal(block["principal"], domain)
        block["exempt"] = [_principal(name, domain) for name in block["exempt"]]
    status, body = proxy.ask("POST", "/quarantine", json.dumps(wish).encode())
    if status != 200:
        return {"workload": facts["workload"], "problem": body.decode(errors="replace").strip()[:500]}
    return {**json.loads(body), "workload": facts["workload"]}


def _principal(name: str, domain: str) -> str:
    """What the proxies compare: a SPIFFE ID without its scheme. Raises Problem."""
    from identity.spiffe import SpiffeId, SpiffeIdError

    if name.startswith("spiffe://"):
        text = name
    elif name.count("/") == 1 and domain:
        namespace, account = name.split("/")
        text = f"spiffe://{domain}/ns/{namespace}/sa/{account}"
    else:
        text = f"spiffe://{name}"
    try:
        found = SpiffeId.parse(text)
    except SpiffeIdError as error:
        hint = "e.g. shop/web, or a whole SPIFFE ID"
        raise Problem(f"{name!r} is not an identity: {error}", hint, code=2) from None
    if not found.path:
        hint = "e.g. shop/web (once the proxy has an identity of its own), or a whole SPIFFE ID"
        raise Problem(f"{name!r} is not an identity", hint, code=2)
    return found.principal


def _tell(answers: list[tuple[Target, dict[str, Any]]], output: str) -> None:
    if output == "json":
        click.echo(_json("QuarantineReport", [answer for _, answer in answers]))
        return
    for proxy, answer in answers:
        if "problem" in answer:
            click.echo(f"{answer['workload']} ({proxy}): {answer['problem']}", err=True)
        elif answer["what"] == "lifted":
            click.echo(f"{answer['workload']}: {answer['principal']} is let out")
        else:
            took = f" in {answer['milliseconds']:.1f} ms" if answer["what"] == "cut" else ""
            counts = f"{answer['streams']} streams and {answer['connections']} TCP connections"
            click.echo(f"{answer['workload']}: {answer['principal']}: {counts} {answer['what']}{took}")


def _list(target: str | None, output: str) -> int:
    answers, silent = ask_all(target, "GET", "/quarantine", "items")
    if output == "json":
        items = [{"proxy": str(proxy), "blocks": answer["items"]} for proxy, answer in answers]
        click.echo(_json("QuarantineList", items))
        return 69 if silent else 0
    for proxy, answer in answers:
        click.echo(f"{proxy}: {len(answer['items']) or 'nobody'} in quarantine")
        for block in answer["items"]:
            click.echo(f"  {block['principal']}  {_until(block['until'])}  {block['reason']}".rstrip())
    return 69 if silent else 0


def _json(kind: str, items: list[dict[str, Any]]) -> str:
    return json.dumps({"apiVersion": "sidewall.dev/v1", "kind": kind, "items": items}, indent=2)


def _until(until: float) -> str:
    if not until:
        return "until it is lifted"
    left = max(until - time.time(), 0.0)
    return f"for another {left / 60:.0f} min" if left >= 120 else f"for another {left:.0f} s"
