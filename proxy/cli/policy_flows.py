"""``policy replay`` and ``policy learn``: what the flow ledger says about policies."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from proxy.cli.group import Problem
from proxy.cli.policy_source import DEFAULT, OUTPUT, Default, Source, pairs, read_source, whole_name, workload_named

if TYPE_CHECKING:
    from proxy.observe.flows import Flow
    from proxy.policy.learn import PathStyle
    from proxy.policy.replay import Replay


def ledger_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which records: --ledger, --since, and the sidewall.yaml that names the ledger."""
    for option in (
        click.option("--since", metavar="DURATION", help="Only what happened in the last 24h, 30m, 7h30m ..."),
        click.option(
            "--ledger", "ledgers", multiple=True, type=click.Path(path_type=Path),
            help="A folder of flows; by default telemetry.flows.to of sidewall.yaml.",
        ),
        click.option("-c", "--config", type=click.Path(path_type=Path), help="The sidewall.yaml to read."),
    ):
        command = option(command)
    return command


@click.command()
@click.option(
    "-f", "--file", "files", multiple=True, required=True, type=click.Path(path_type=Path),
    help="The candidate: a file or folder of policies.",
)  # fmt: skip
@click.option(
    "--old", multiple=True, type=click.Path(path_type=Path),
    help="What it is compared with; by default the policies of sidewall.yaml.",
)  # fmt: skip
@click.option("--workload", "workloads", multiple=True, metavar="NS/NAME[,KEY=VALUE..]", help="Labels of a workload.")
@ledger_options
@DEFAULT
@click.option(
    "--fail-on", type=click.Choice(["allowed", "denied", "any", "none"]), default="none", show_default=True,
    help="Exit with 1 when calls would be newly allowed, newly denied, either.",
)  # fmt: skip
@OUTPUT
def replay(
    files: tuple[Path, ...],
    old: tuple[Path, ...],
    workloads: tuple[str, ...],
    config: Path | None,
    ledgers: tuple[Path, ...],
    since: str | None,
    default: Default | None,
    fail_on: str,
    output: str,
) -> int:
    """Judge the calls that were made with other policies: what would be newly denied, what newly allowed.

    It ends with what was not seen, for a ledger holds neither header values nor tokens, and only the past.

    \b
    sidewall policy replay --since 24h -f new/
    sidewall policy replay --ledger /var/lib/sidewall/flows --old policy/ -f new/ --fail-on denied
    """
    from proxy.policy.replay import render_replay, replay_data
    from proxy.policy.replay import replay as judge_again

    before = read_source(old, config if not old else None, default, None)
    after = read_source(files, None, default or before.default, None)
    known = dict(workload_named(text) for text in workloads)
    if before.workload is not None:
        known.setdefault(str(before.workload), before.workload)
    problems: list[str] = []
    flows = _flows(ledgers, before, since, problems)
    found = judge_again(flows, before.policies, after.policies, workloads=known, default=before.default)
    _tell(problems)
    click.echo(json.dumps(replay_data(found), indent=2) if output == "json" else "\n".join(render_replay(found)))
    return int(_fails(found, fail_on))


def _fails(found: Replay, fail_on: str) -> bool:
    allowed = fail_on in ("allowed", "any") and bool(found.allowed)
    return allowed or (fail_on in ("denied", "any") and bool(found.denied))


@click.command()
@click.option("--to", metavar="NS/NAME", help="The workload; by default that of sidewall.yaml.")
@click.option(
    "--paths", type=click.Choice(["exact", "template", "prefix"]), default="template", show_default=True,
    help="exact: /orders/17, template: /orders/{*}, prefix: /orders/*.",
)  # fmt: skip
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="What selects it; app=NAME by default.")
@click.option("--name", default="", help="Of the policy.")
@click.option("--include-denied", is_flag=True, help="Learn from calls that were denied as well.")
@ledger_options
def learn(
    to: str | None,
    paths: str,
    labels: tuple[str, ...],
    name: str,
    include_denied: bool,
    config: Path | None,
    ledgers: tuple[Path, ...],
    since: str | None,
) -> None:
    """Write the policy that allows what was seen, and cite a call for each of its values.

    Nothing can be taken away from it without denying a call that was made; what was not seen in the time of the
    ledger (the end of a month, a restore) is not in it. Read it before it is used.

    \b
    sidewall policy learn --to shop/api > policy/api.yaml
    sidewall policy learn --to shop/api --since 168h --paths prefix --include-denied
    """
    from proxy.policy.learn import CannotLearn
    from proxy.policy.learn import learn as learned

    source = read_source((), config, None, None) if config is not None or not ledgers else None
    if to is None and (source is None or source.workload is None):
        raise Problem("which workload?", "name it with --to, e.g. --to shop/api", code=2)
    whom = whole_name(to, source) if to is not None else str(source.workload if source is not None else "")
    if whom.count("/") != 1:
        raise Problem(f"{whom!r} is no workload", "write namespace/name, e.g. shop/api", code=2)
    selected = pairs(labels, "--label")
    problems: list[str] = []
    flows = _flows(ledgers, source, since, problems)
    style = cast("PathStyle", paths)
    try:
        found = learned(flows, to=whom, paths=style, labels=selected, name=name, include_denied=include_denied)
    except CannotLearn as error:
        _tell(problems)
        raise Problem(str(error), "name another --to, a longer --since, or --include-denied") from None
    _tell(problems)
    click.echo(found.text, nl=False)


def _flows(ledgers: Sequence[Path], source: Source | None, since: str | None, problems: list[str]) -> Iterator[Flow]:
    from proxy.observe.ledger import read

    folders = list(ledgers) or ([source.flows] if source is not None and source.flows is not None else [])
    if not folders:
        raise Problem("no flow ledger named", "name one with --ledger, or set telemetry.flows.to", code=2)
    for folder in folders:
        if not folder.is_dir():
            hint = "a proxy makes the folder that telemetry.flows.to names when it starts"
            raise Problem(f"there is no flow ledger at {folder}", hint, code=69)
    begin = _since(since)
    return (flow for folder in folders for flow in read(folder, begin, problems))


def _since(text: str | None) -> float:
    """Seconds of the epoch. Exits with 2."""
    from config.values import parse_duration

    if text is None:
        return 0.0
    try:
        return time.time() - parse_duration(text)
    except ValueError as error:
        raise Problem(f"--since {text}: {error}", code=2) from None


def _tell(problems: Sequence[str]) -> None:
    """What could not be read."""
    for problem in problems:
        click.echo(f"left out: {problem}", err=True)
