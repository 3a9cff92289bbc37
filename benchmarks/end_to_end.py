"""Sidewall and its rivals, one at a time, under the same loads.

    python -m benchmarks.end_to_end [--quick] [--only CASE,...] [--rivals sidewall,envoy] [--rounds N]
                                    [--via envoy] [-o FILE]

Needs h2load, curl, nginx (it plays the app) and a C compiler; measures the rivals it finds. Prints a
table per case; a full run also writes `benchmarks/RESULTS.md`. Exit code 1 when a measurement failed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also works as a plain script

from benchmarks import cases, report, rivals
from benchmarks.apps import Apps
from benchmarks.loads import H2load
from benchmarks.process import BenchmarkError

RESULTS = Path(__file__).with_name("RESULTS.md")


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    known = ", ".join(case.name for case in cases.CASES)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="short loads, small bodies, one round: does it work?")
    parser.add_argument("--only", type=_names, default=[], metavar="CASE,...", help=f"of: {known}")
    parser.add_argument("--rivals", type=_names, default=[], metavar="NAME,...")
    parser.add_argument("--rounds", type=int, default=None, metavar="N", help="default 3; 1 with --quick")
    parser.add_argument(
        "--via",
        choices=["envoy"],
        help="send request loads through an Envoy that originates the mTLS, as between two sidecars",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="all samples as JSON")
    parser.add_argument("--results", type=Path, metavar="FILE", help="Markdown; default RESULTS.md of a full run")
    options = parser.parse_args(arguments)
    for given, names in ((options.only, known.split(", ")), (options.rivals, [r.name for r in rivals.ALL])):
        for name in given:
            if name not in names:
                parser.error(f"{name!r} is none of {', '.join(names)}")
    return options


def choose_rivals(names: Sequence[str], run: report.Run) -> list[rivals.Rival]:
    """Those asked for that can run here; the others are named with the reason."""
    chosen = []
    for rival in rivals.ALL:
        if names and rival.name not in names:
            continue
        reason = rival.available()
        if reason is None:
            chosen.append(rival)
            continue
        run.skipped.append(f"{rival.name}: {reason}")
        print(f"skipped {rival.name}: {reason}")
    return chosen


def calm(bench: cases.Bench, case: cases.Case, rival: rivals.Rival) -> cases.Numbers:
    """One measurement; again, twice at most, when strangers used the machine. The calmest counts."""
    tries: list[cases.Numbers] = []
    for _ in range(3):
        tries.append(case.run(bench, rival))
        if tries[-1]["foreign"] <= report.NOISY:
            break
    return min(tries, key=lambda numbers: numbers["foreign"])


def measure(
    bench: cases.Bench, case: cases.Case, chosen: Sequence[rivals.Rival], rounds: int, run: report.Run
) -> None:
    """All rounds of one case: A B C, A B C, ..."""
    for _ in range(rounds):
        for rival in chosen:
            try:
                run.add(case.name, rival.name, calm(bench, case, rival))
            except BenchmarkError as error:
                run.failures.append(f"{case.name}: {error}")
                print(f"FAILED {case.name}: {error}", file=sys.stderr)
    if case.name in run.samples:
        print(f"\n{case.name}: {case.about}; {case.better} is better")
        print("\n".join(report.table(case, run.samples[case.name])), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    missing = [reason for reason in (Apps.available(), H2load.available()) if reason]
    missing += [] if shutil.which("curl") else ["curl is not installed"]
    if missing:
        print("cannot run: " + "; ".join(missing), file=sys.stderr)
        return 1
    run = report.Run()
    chosen = choose_rivals(options.rivals, run)
    versions = {rival.name: rival.version() for rival in chosen}
    print("; ".join(f"{name} {version}" for name, version in versions.items()))
    picked = [case for case in cases.CASES if not options.only or case.name in options.only]
    rounds = options.rounds or (1 if options.quick else 3)
    with cases.work_folder() as folder:
        bench = cases.make_bench(
            Path(folder), cases.QUICK if options.quick else cases.FULL, via_envoy=options.via == "envoy"
        )
        try:
            bench.apps.start()
            for case in picked:
                measure(bench, case, chosen, rounds, run)
        finally:
            bench.apps.stop()
    _write(run, picked, versions, {r.name: r.note for r in chosen}, options)
    return 1 if run.failures else 0


def _write(
    run: report.Run,
    picked: Sequence[cases.Case],
    versions: dict[str, str],
    notes: dict[str, str],
    options: argparse.Namespace,
) -> None:
    if options.output:
        options.output.write_text(json.dumps({"versions": versions, **run.as_json()}, indent=1))
    full = not (options.quick or options.only or options.rivals or options.via)
    target = options.results or (RESULTS if full else None)
    if target:
        target.write_text(report.markdown(run, picked, versions, notes))
        print(f"\nwritten: {target}")


if __name__ == "__main__":
    sys.exit(main())
