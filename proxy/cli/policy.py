"""``policy``: what policies say, decided by the function that enforces them. ``check`` and ``diff`` are here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from proxy.cli.group import Problem
from proxy.cli.policy_ask import explain, who_can
from proxy.cli.policy_flows import learn, replay
from proxy.cli.policy_graph import graph
from proxy.cli.policy_source import DEFAULT, NORMALIZATION, OUTPUT, Default, load_source, read_source, workload_named
from proxy.cli.policy_test import test

if TYPE_CHECKING:
    from config.problems import Problem as Problem_
    from proxy.policy.analysis import Diff


@click.group()
def policy() -> None:
    """Check, test, compare and explain policies.

    \b
    sidewall policy check policy/
    sidewall policy explain --from shop/web --to shop/api GET /orders/17
    sidewall policy test policy/
    sidewall policy diff policy/ new/
    sidewall policy replay --since 24h -f new/
    """


for _command in (explain, who_can, graph, test, replay, learn):
    policy.add_command(_command)


@policy.command("check")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("-c", "--config", type=click.Path(path_type=Path), help="The sidewall.yaml to read.")
@click.option("--workload", "workloads", multiple=True, metavar="NS/NAME[,KEY=VALUE..]", help="A workload there is.")
@click.option("--trust-domain", "domains", multiple=True, metavar="NAME", help="A trust domain that is not foreign.")
@NORMALIZATION
@click.option("--fail-on", type=click.Choice(["error", "warning", "info"]), default="error", show_default=True)
@click.option("-o", "--output", type=click.Choice(["text", "json", "github"]), default="text", show_default=True)
def check_policies(
    paths: tuple[Path, ...],
    config: Path | None,
    workloads: tuple[str, ...],
    domains: tuple[str, ...],
    normalization: str | None,
    fail_on: str,
    output: str,
) -> int:
    """Say what policies do not do, although they seem to: rules that never match, rules that others make
    superfluous, DENY rules that hide an ALLOW, selectors that select nothing, principals of a foreign trust domain.

    \b
    sidewall policy check policy/
    sidewall policy check policy/ --workload shop/api --workload shop/web,tier=front -o github
    """
    from config.problems import ConfigError, render
    from proxy.policy.lint import lint

    form = cast("Literal['text', 'json', 'github']", output)
    try:
        source = load_source(paths, config, None, None, normalization)
    except ConfigError as error:
        click.echo(render(error.problems, form=form, files=error.files, documents=error.documents))
        return 1
    known = [workload for _, workload in map(workload_named, workloads)]
    if source.workload is not None:
        domains = (*domains, source.trust_domain)
    linted = lint(source.policies, workloads=known, trust_domains=domains, strict_paths=source.strict_paths)
    found = _in_order([*source.warnings, *linted])
    text = render(found, form=form, documents=source.count)
    if text:
        click.echo(text)
    elif output == "text":
        click.echo(f"nothing to say about {len(source.policies)} policies")
    order = ("error", "warning", "info")
    return int(any(order.index(problem.severity) <= order.index(fail_on) for problem in found))


def _in_order(problems: Sequence[Problem_]) -> list[Problem_]:
    """By place, and with the lines they stand in."""
    files = list(dict.fromkeys(problem.file for problem in problems))
    lines = {file: _lines(Path(file)) for file in files if file}
    found = []
    for problem in sorted(problems, key=lambda problem: (files.index(problem.file), problem.line, problem.column)):
        text = lines.get(problem.file, [])[problem.line - 1 : problem.line] if problem.line else []
        if text and not problem.snippet:
            end = len(text[0].partition(" #")[0].rstrip()) + 1
            problem = dataclasses.replace(problem, snippet=text[0], end_column=max(end, problem.column + 1))
        found.append(problem)
    return found


def _lines(path: Path) -> list[str]:
    from config.files import Unreadable, read_bounded

    try:
        return read_bounded(path).decode(errors="replace").split("\n")
    except Unreadable:
        return []


@policy.command("diff")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--to", metavar="NS/NAME", help="One workload only; by default every workload there could be.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label of the workload.")
@DEFAULT
@NORMALIZATION
@click.option(
    "--fail-on", type=click.Choice(["allowed", "denied", "any", "none"]), default="none", show_default=True,
    help="Exit with 1 when requests are newly allowed, newly denied, either.",
)  # fmt: skip
@OUTPUT
def diff_policies(
    old: Path,
    new: Path,
    to: str | None,
    labels: tuple[str, ...],
    default: Default | None,
    normalization: str | None,
    fail_on: str,
    output: str,
) -> int:
    """Which requests change their verdict from OLD to NEW (files or folders): every class of them, with an example.

    Exact: when it says that no request changes its verdict, there is none.

    \b
    sidewall policy diff policy/ new/ --fail-on allowed
    sidewall policy diff main.yaml branch.yaml --to shop/api -o json
    """
    from proxy.cli.policy_source import target
    from proxy.policy.analysis import TooComplex, diff
    from proxy.policy.analysis_report import diff_data, render_diff

    before = read_source((old,), None, default, None)
    after = read_source((new,), None, default, None, normalization)
    if labels and to is None:
        raise click.UsageError("--label says more about the workload of --to")
    workload = target(after, to, labels) if to is not None else None
    settings: Any = {"default": default or "deny", "strict_paths": after.strict_paths}
    try:
        found = diff(before.policies, after.policies, workload=workload, **settings)
    except TooComplex as error:
        hint = "nothing is known about the difference; compare one workload at a time with --to"
        raise Problem(f"these policies cannot be compared exactly: {error}", hint, code=1) from None
    click.echo(json.dumps(diff_data(found), indent=2) if output == "json" else "\n".join(render_diff(found)))
    return int(_fails(found, fail_on))


def _fails(found: Diff, fail_on: str) -> bool:
    allowed = fail_on in ("allowed", "any") and bool(found.allowed)
    denied = fail_on in ("denied", "any") and bool(found.denied)
    return allowed or denied or (fail_on != "none" and bool(found.unknown))
