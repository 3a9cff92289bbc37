"""From samples to tables: medians, the span of the rounds, the ratio to Envoy; and `RESULTS.md`."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cases import Case, Numbers
from benchmarks.measure import median

YARDSTICK = "envoy"
NOISY = 0.10  # share of the machine used by strangers above which a figure is marked, and tried again

LABELS = {
    "cpu_us": "CPU µs per request",
    "rps": "requests/s",
    "p50_us": "p50 µs",
    "p99_us": "p99 µs",
    "pss_mib": "peak PSS MiB",
    "mib_s": "MiB/s",
    "cpu_ms": "CPU ms per GiB",
    "per_s": "connections/s",
    "mib_per_1000": "MiB per 1 000",
    "ready_ms": "ms",
}


@dataclass
class Run:
    """Everything a run found: samples by case, then by rival, one entry per round."""

    samples: dict[str, dict[str, list[Numbers]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def add(self, case: str, rival: str, numbers: Numbers) -> None:
        self.samples.setdefault(case, {}).setdefault(rival, []).append(numbers)

    def as_json(self) -> dict[str, object]:
        return {
            "machine": machine(),
            "samples": self.samples,
            "failures": self.failures,
            "skipped": self.skipped,
        }


def machine() -> dict[str, str]:
    """What the figures were made on."""
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{os.cpu_count()} x {cpu.group(1) if cpu else platform.machine()}",
        "memory": f"{int(memory.group(1)) / 2**20:.0f} GiB" if memory else "?",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load average": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    }


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _column(rounds: Sequence[Numbers], name: str) -> list[float]:
    return [numbers[name] for numbers in rounds if name in numbers]


def ratio(samples: Mapping[str, Sequence[Numbers]], rival: str, name: str) -> float | None:
    """Median of ``rival`` over the median of Envoy; None without Envoy."""
    if YARDSTICK not in samples:
        return None
    theirs = _column(samples[YARDSTICK], name)
    ours = _column(samples[rival], name)
    return median(ours) / median(theirs) if ours and theirs and median(theirs) else None


def _row(case: Case, samples: Mapping[str, Sequence[Numbers]], rival: str) -> list[str]:
    rounds = samples[rival]
    values = _column(rounds, case.main)
    share = ratio(samples, rival, case.main)
    cells = [
        rival,
        _number(median(values)),
        f"{share:.2f}" if share is not None else "-",
        f"{_number(min(values))}..{_number(max(values))}",
    ]
    for name in case.more:
        share = ratio(samples, rival, name)
        extra = f" ({share:.2f})" if share is not None and rival != YARDSTICK else ""
        cells.append(_number(median(_column(rounds, name))) + extra)
    noise = max(_column(rounds, "foreign"), default=0.0)
    cells.append(f"{noise:.0%}" + (" !" if noise > NOISY else ""))
    return cells


def _header(case: Case) -> list[str]:
    more = [LABELS[name] for name in case.more]
    return ["", LABELS[case.main], "/ Envoy", "min..max", *more, "strangers' CPU"]


def table(case: Case, samples: Mapping[str, Sequence[Numbers]]) -> list[str]:
    """The lines of one case, as a Markdown table with aligned columns."""
    rows = [_header(case), *(_row(case, samples, rival) for rival in samples)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(pairs)) + " |"
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return [lines[0], rule, *lines[1:]]


INTRODUCTION = """# Benchmark results

Written by `python -m benchmarks.end_to_end`; run it again rather than believe it.

One proxy at a time terminates mutual TLS 1.3 for a plaintext app: driver (mTLS) -> proxy -> app, all on
loopback. Each does the same duties with one worker: client certificate from the run's root, an
authorization rule (caller `web`, methods, path prefixes), `x-forwarded-client-cert`, a JSON access-log
line per request to a file, statistics. Sidewall also samples 1 % of requests into traces. Figures are
medians of the rounds, which go round the proxies in turn (a measurement disturbed by strangers is
repeated, twice at most); brackets hold the ratio to Envoy. CPU is user + system time of the proxy's whole
process tree; memory is its peak PSS. *Strangers' CPU* is the largest share of the machine that other
processes used during a measurement: above 10 % (`!`) the figures are worth less.
"""


def markdown(run: Run, cases: Sequence[Case], versions: Mapping[str, str], notes: Mapping[str, str]) -> str:
    """RESULTS.md: the machine, the versions, then a table per case."""
    lines = [INTRODUCTION, "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in machine().items()]
    for name, version in versions.items():
        note = f" ({notes[name]})" if notes.get(name) else ""
        lines.append(f"| {name} | {version}{note} |")
    for case in cases:
        if case.name in run.samples:
            lines += ["", f"## {case.name}", "", f"{case.about}. {case.better.capitalize()} is better.", ""]
            lines += table(case, run.samples[case.name])
    for title, entries in (("Skipped", run.skipped), ("Failed", run.failures)):
        if entries:
            lines += ["", f"## {title}", "", *(f"- {entry.splitlines()[0]}" for entry in entries)]
    return "\n".join(lines) + "\n"
