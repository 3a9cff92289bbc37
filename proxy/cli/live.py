"""Commands to running proxies: ``reload``, ``drain``, ``ready``, ``status``."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from proxy.cli.admin_client import Target, ask_all, find
from proxy.cli.group import Problem

_TARGET = click.argument("target", required=False)
_OUTPUT = click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
_UNREACHABLE = 69


class Seconds(click.ParamType[float]):
    """A duration as in the configuration (``60s``, ``1m30s``), or plain seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        from config.values import parse_duration

        text = str(value)
        try:
            return parse_duration(text if text[-1:].isalpha() else f"{text}s")
        except ValueError as error:
            self.fail(f"{text!r}: {error}", param, context)


@click.command()
@_TARGET
def reload(target: str | None) -> int:
    """Have a running proxy read its files again.

    TARGET: a socket, a workload's name, or nothing for every local proxy.

    \b
    sidewall reload
    sidewall reload shop/api

    Exit code 1 when it found a problem; it then goes on with what it had.
    """
    answers, silent = ask_all(target, "POST", "/reload", "ok", "generation", "problems")
    refused = 0
    for proxy, answer in answers:
        if answer["ok"]:
            click.echo(f"{proxy}: generation {answer['generation']}")
            continue
        refused = 1
        click.echo(f"{proxy}: rejected, still generation {answer['generation']}", err=True)
        for problem in answer["problems"]:
            click.echo(f"  {problem}", err=True)
    return refused or (_UNREACHABLE if silent else 0)


@click.command()
@_TARGET
def drain(target: str | None) -> int:
    """Have a running proxy finish what it carries, and end.

    TARGET: a socket, a workload's name, or nothing for every local proxy.

    \b
    sidewall drain unix:/run/sidewall/api.sock
    """
    answers, silent = ask_all(target, "POST", "/drain", "draining")
    for proxy, _ in answers:
        click.echo(f"{proxy}: draining")
    return _UNREACHABLE if silent else 0


@click.command()
@_TARGET
@click.option("--wait", "seconds", metavar="DURATION", type=Seconds(), default=0.0, help="Wait so long for it.")
def ready(target: str | None, seconds: float) -> int:
    """Exit 0 when the proxy is ready; otherwise say why not.

    \b
    sidewall ready
    sidewall ready shop/api --wait 60s

    Exit codes: 1 not ready, 69 nobody answers, 75 --wait ran out.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            missing = _missing(find(target))
        except Problem as problem:
            if not seconds:
                raise
            missing = [problem.message]
        if not missing:
            click.echo("ready")
            return 0
        if time.monotonic() >= deadline:
            click.echo("\n".join(missing), err=True)
            return 75 if seconds else 1
        time.sleep(0.1)


def _missing(proxies: list[Target]) -> list[str]:
    found = []
    for proxy in proxies:
        status, body = proxy.ask("GET", "/ready")
        if status != 200:
            found.append(f"{proxy}: {body.decode(errors='replace').strip()}")
    return found


@click.command()
@_TARGET
@_OUTPUT
def status(target: str | None, output: str) -> int:
    """What local proxies are doing.

    \b
    sidewall status
    sidewall status unix:/run/sidewall/api.sock -o json

    Exit code 1 when one of them is not ready or does not answer.
    """
    answers, silent = ask_all(target, "GET", "/status", *_SHOWN)
    found = [answer for _, answer in answers]
    if output == "json":
        click.echo(json.dumps({"apiVersion": "sidewall.dev/v1", "kind": "StatusList", "items": found}, indent=2))
    else:
        click.echo(_table(found))
    return int(bool(silent) or not all(item["ready"] for item in found))


_SHOWN = ("workload", "version", "ready", "generation", "connections", "requests_in_flight")


def _table(found: list[dict[str, Any]]) -> str:
    head: tuple[str, ...] = ("WORKLOAD", "VERSION", "READY", "CONFIG", "SVID EXPIRES", "CONNECTIONS", "IN FLIGHT")
    rows = [head, *map(_row, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    svid = item.get("svid")
    reasons = item.get("not_ready") or []
    generation = f"gen {item['generation']}" + ("" if item.get("last_reload_ok", True) else ", last reload rejected")
    return (
        str(item["workload"]),
        str(item["version"]),
        "yes" if item["ready"] else f"no: {'; '.join(reasons)}",
        generation,
        _left(svid["seconds_left"]) if svid else "none",
        str(item["connections"]),
        str(item["requests_in_flight"]),
    )


def _left(seconds: float) -> str:
    if seconds <= 0:
        return "expired"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"in {int(seconds // size)} {unit}"
    return f"in {int(seconds)} s"
