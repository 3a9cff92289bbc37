"""``policy test``: suites beside the rules."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.group import Problem
from proxy.cli.policy_source import FOLDER, OUTPUT, Default, Source, read_source, refuse

if TYPE_CHECKING:
    from proxy.policy.coverage import Covered
    from proxy.policy.mutate import Mutation
    from proxy.policy.suite import Result, Suite

_ENDINGS = (".test.yaml", ".test.yml")


@click.command("test")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "-f", "--file", "files", multiple=True, type=click.Path(path_type=Path),
    help="The policies to test; by default those in the same folder.",
)  # fmt: skip
@click.option("--default", type=click.Choice(["deny", "istio", "audit"]), default="deny", show_default=True)
@click.option("--trust-domain", metavar="NAME", help="Of callers written as namespace/account.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write a JUnit report to this file.")
@click.option("--coverage", "with_coverage", is_flag=True, help="List the rules that no case touches.")
@click.option("--mutate", "with_mutants", is_flag=True, help="List the clauses that no case would miss.")
@OUTPUT
def test(
    paths: tuple[Path, ...],
    files: tuple[Path, ...],
    default: Default,
    trust_domain: str | None,
    junit: Path | None,
    with_coverage: bool,
    with_mutants: bool,
    output: str,
) -> int:
    """Run the test suites (*.test.yaml) that stand beside policies; PATHS are suites or folders, ./policy by default.

    Exit code 1 when a case fails, or, with --mutate, when a clause would not be missed.

    \b
    sidewall policy test policy/ --coverage
    sidewall policy test policy/ --junit report.xml
    sidewall policy test policy/api.test.yaml -f candidate/ --mutate
    """
    from proxy.policy.coverage import coverage
    from proxy.policy.mutate import mutate

    runs = [_run(folder, tests, files, default, trust_domain) for folder, tests in _suites(paths).items()]
    failed = [result for one in runs for _, results in one.results for result in results if result.wrong]
    covered = [rule for one in runs for rule in coverage(one.source.policies, one.suites)] if with_coverage else None
    mutations = None
    if with_mutants and not failed:
        mutations = [mutate(one.source.policies, one.suites) for one in runs]
    if junit is not None:
        _write_junit(junit, runs)
    if output == "json":
        click.echo(json.dumps(_data(runs, covered, mutations), indent=2))
    else:
        _show(runs, failed, covered, mutations)
    return int(bool(failed) or any(found.survived for found in mutations or ()))


class _Run:
    """The suites of one folder and the policies they are about."""

    def __init__(self, source: Source, suites: list[Suite]) -> None:
        from proxy.policy.analysis import Judge
        from proxy.policy.suite import run

        self.source = source
        self.suites = suites
        self.judges = [Judge(source.policies, suite.default) for suite in suites]
        self.results = [
            (suite, run(source.policies, suite, judge)) for suite, judge in zip(suites, self.judges, strict=True)
        ]


def _suites(paths: Sequence[Path]) -> dict[Path, list[Path]]:
    """Test files by the folder whose policies they test."""
    found: dict[Path, list[Path]] = {}
    for path in paths or (FOLDER,):
        if path.is_dir():
            tests = sorted(file for ending in _ENDINGS for file in path.rglob(f"*{ending}"))
            found.setdefault(path, []).extend(tests)
        elif path.name.endswith(_ENDINGS):
            found.setdefault(path.parent, []).append(path)
        else:
            raise Problem(f"{path} is no test suite", "suites end in .test.yaml", code=2)
    if not any(found.values()):
        named = ", ".join(map(str, paths or (FOLDER,)))
        raise Problem(f"no test suites in {named}", "write one: sidewall policy test --help", code=2)
    return {folder: tests for folder, tests in found.items() if tests}


def _run(
    folder: Path, tests: Iterable[Path], files: tuple[Path, ...], default: Default, trust_domain: str | None
) -> _Run:
    from config.files import Unreadable, read_bounded
    from config.problems import ConfigError, Problems
    from config.problems import Problem as Problem_
    from proxy.policy.suite import read_suites

    source = read_source(files or (folder,), None, default, trust_domain)
    problems = Problems()
    suites = []
    for path in tests:
        try:
            text = read_bounded(path).decode()
        except (Unreadable, UnicodeDecodeError) as error:
            problems.add(Problem_("SW0113", f"the suite cannot be read: {error}", file=str(path)))
            continue
        suites += read_suites(text, str(path), problems, trust_domain=source.trust_domain, default=default)
    try:
        problems.raise_errors(files=len(suites))
    except ConfigError as error:
        refuse(error)
    return _Run(source, suites)


def _write_junit(path: Path, runs: list[_Run]) -> None:
    from proxy.policy.suite import junit

    try:
        path.write_text(junit(pair for one in runs for pair in one.results) + "\n")
    except OSError as error:
        raise Problem(f"cannot write {path}: {error.strerror}", code=73) from None


# -- telling ------------------------------------------------------------------------------------------------


def _show(
    runs: list[_Run], failed: list[Result], covered: list[Covered] | None, mutations: list[Mutation] | None
) -> None:
    from proxy.policy.suite import failure_lines

    unicode = "utf" in (sys.stdout.encoding or "").lower()
    for one in runs:
        for (suite, results), judge in zip(one.results, one.judges, strict=True):
            marks = "".join("F" if result.wrong else "." for result in results)
            click.echo(f"{suite.file} {suite.name}  {marks if len(marks) <= 72 else _sum(results)}")
            for result in results:
                if result.wrong:
                    click.echo("\n" + "\n".join(failure_lines(result, judge, unicode=unicode)) + "\n")
    for line in [*_coverage_lines(covered), *_mutation_lines(mutations)]:
        click.echo(line)
    total = sum(len(results) for one in runs for _, results in one.results)
    click.echo(f"{total - len(failed)} passed" + (f", {len(failed)} failed" if failed else ""))


def _sum(results: Sequence[Result]) -> str:
    wrong = sum(bool(result.wrong) for result in results)
    return f"{len(results)} cases" + (f", {wrong} F" if wrong else "")


def _coverage_lines(covered: list[Covered] | None) -> list[str]:
    if covered is None:
        return []
    missed = [rule for rule in covered if not rule.cases]
    lines = [f"rules that a case touches: {len(covered) - len(missed)} of {len(covered)}"]
    return lines + [f"  {rule.place}  {rule.policy} rule {rule.rule} is touched by no case" for rule in missed]


def _mutation_lines(mutations: list[Mutation] | None) -> list[str]:
    lines = []
    for found in mutations or ():
        able = found.tried - len(found.superfluous)
        lines.append(f"changes that a case notices: {found.killed} of {able} ({found.score:.0%})")
        for title, some in (
            ("no case would miss", found.survived),
            ("no request would miss", found.superfluous),
            ("cannot be told", found.undecided),
        ):
            lines += [f"  {m.place}  {m.policy} rule {m.rule}: {title}  {m.what}" for m in some]
    return lines


def _data(runs: list[_Run], covered: list[Covered] | None, mutations: list[Mutation] | None) -> dict[str, Any]:
    items = [
        {
            "suite": suite.name,
            "case": result.case.name,
            "place": str(result.case.place),
            "passed": not result.wrong,
            "message": result.wrong,
        }
        for one in runs
        for suite, results in one.results
        for result in results
    ]
    data: dict[str, Any] = {"apiVersion": "sidewall.dev/v1", "kind": "PolicyTestResult", "items": items}
    if covered is not None:
        data["coverage"] = [
            {"policy": str(rule.policy), "rule": rule.rule, "place": str(rule.place), "cases": rule.cases}
            for rule in covered
        ]
    if mutations is not None:
        data["mutation"] = [
            {
                "score": round(found.score, 4),
                "tried": found.tried,
                "killed": found.killed,
                **{
                    name: [f"{m.policy}#{m.rule}: {m.what}" for m in getattr(found, name)]
                    for name in ("survived", "superfluous", "undecided")
                },
            }
            for found in mutations
        ]
    return data
