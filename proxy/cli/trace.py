"""``trace list`` and ``trace show``: the traces that proxies keep in files."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from proxy.cli.group import Problem

_FILES = click.option(
    "--file", "files", multiple=True, type=click.Path(path_type=Path),
    help="A trace store (telemetry.traces.file); may be given several times. $SIDEWALL_TRACES (a:b) by default.",
)  # fmt: skip
_OUTPUT = click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)


@click.group()
def trace() -> None:
    """Read the traces that proxies keep."""


def _stores(files: tuple[Path, ...]) -> list[str]:
    named = [str(path) for path in files] or [p for p in os.environ.get("SIDEWALL_TRACES", "").split(":") if p]
    named = named or [str(path) for path in sorted(Path(".sidewall").glob("*/traces.db"))]
    if not named:
        raise Problem("no trace store named", "name one with --file, or set SIDEWALL_TRACES", code=2)
    missing = [path for path in named if not Path(path).exists()]
    if len(missing) == len(named):
        hint = "a proxy makes the file that telemetry.traces.file names when it starts"
        raise Problem(f"there is no trace store {' or '.join(missing)}", hint)
    return named


def _look() -> dict[str, Any]:
    encoding = (sys.stdout.encoding or "").lower()
    wanted = os.environ.get("FORCE_COLOR") or (sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    return {"unicode": "utf" in encoding, "color": bool(wanted), "width": shutil.get_terminal_size((100, 24)).columns}


@trace.command("list")
@_FILES
@_OUTPUT
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
def list_traces(files: tuple[Path, ...], output: str, limit: int) -> None:
    """The latest traces, newest first.

    \b
    sidewall trace list --file /var/lib/sidewall/traces.db
    sidewall trace list --limit 5 -o json
    """
    from proxy.observe.history import TraceReader
    from proxy.observe.listing import render_list

    with _reader(TraceReader, files) as reader:
        found = reader.recent(limit)
    if output == "json":
        _print_json({"kind": "TraceList", "items": _plain(found)})
        return
    click.echo(_joined(render_list(found, **_look())))


@trace.command("show")
@click.argument("which", default="last")
@_FILES
@_OUTPUT
def show_trace(which: str, files: tuple[Path, ...], output: str) -> None:
    """One trace as a waterfall: an id (or its beginning), last, slowest or denied.

    \b
    sidewall trace show last --file /var/lib/sidewall/traces.db
    sidewall trace show 4bf92f35 -o json
    """
    from proxy.observe.history import AmbiguousTrace, TraceNotFound, TraceReader
    from proxy.observe.waterfall import render_trace

    with _reader(TraceReader, files) as reader:
        named = {"last": reader.last, "slowest": reader.slowest, "denied": reader.denied}
        try:
            spans = named[which]() if which in named else reader.trace(which)
        except (TraceNotFound, AmbiguousTrace) as error:
            hint = "sidewall trace list shows what there is" if reader.recent(1) else "call something through a proxy"
            raise Problem(str(error), hint) from None
    if output == "json":
        _print_json({"kind": "Trace", "spans": _plain([spans])[0]})
        return
    click.echo(_joined(render_trace(spans, **_look())))


def _reader(reader: Any, files: tuple[Path, ...]) -> Any:
    import sqlite3

    stores = _stores(files)
    try:
        return reader(stores)
    except (OSError, sqlite3.Error) as error:
        raise Problem(f"cannot read {' '.join(stores)}: {error}", "name the right file with --file") from None


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps({"apiVersion": "sidewall.dev/v1", **value}, indent=2, default=str))


def _joined(text: Any) -> str:
    return text if isinstance(text, str) else "\n".join(text)


def _plain(traces: list[Any]) -> list[Any]:
    return [[{name: _value(getattr(span, name)) for name in _names(span)} for span in spans] for spans in traces]


def _names(span: Any) -> list[str]:
    return [name for kind in type(span).__mro__ for name in getattr(kind, "__slots__", ())] or list(vars(span))


def _value(value: Any) -> Any:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value
