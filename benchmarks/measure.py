"""What a process tree costs: CPU seconds and proportional memory, read from /proc.

CPU is user + system time of every process of the tree, plus what its members have already reaped
(``cutime``, ``cstime``), so that a supervisor with workers is charged like a single process. The kernel
keeps these sums from the scheduler's nanosecond clock and shows them in ticks of 10 ms: a measurement
should last a second of CPU.

Memory is PSS (``smaps_rollup``): pages shared between processes of the tree are counted once, and those
shared with strangers in proportion. The peak is sampled, four times a second: the walk itself costs a
millisecond.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
SAMPLE_EVERY = 0.25  # seconds
SHORT = 0.5  # seconds: below that the ticks are too coarse to say who used the machine


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(word) for word in task.read_text().split()]
        except OSError:
            continue  # the thread ended meanwhile
    return found


def tree(root: int) -> list[int]:
    """Ids of ``root`` and all that descend from it now."""
    pids, todo = [], [root]
    while todo:
        pid = todo.pop()
        pids.append(pid)
        todo += _children(pid)
    return pids


def cpu_of(pid: int) -> float:
    """CPU seconds of one process and of the children it has reaped; 0.0 when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    fields = stat[stat.rindex(")") + 2 :].split()  # the command may contain blanks and brackets
    return sum(int(word) for word in fields[11:15]) / TICK


def tree_cpu(root: int) -> float:
    return sum(cpu_of(pid) for pid in tree(root))


def tree_pss(root: int) -> float:
    """MiB of proportional set size of the whole tree."""
    kib = 0
    for pid in tree(root):
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        kib += next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return kib / 1024


def machine_busy() -> float:
    """CPU seconds that all processors together have spent on anything, since boot."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(word) for word in words[:8])
    return (user + nice + system + irq + softirq + steal) / TICK


@dataclass
class Window:
    """What happened between the two ends of ``watch``. CPU in seconds, memory in MiB."""

    cpu: float = 0.0
    wall: float = 0.0
    pss_peak: float = 0.0
    foreign: float = 0.0  # share of the machine (0..1) that neither we nor anything we started has used
    _samples: list[float] = field(default_factory=list)


@contextmanager
def watch(root: int) -> Iterator[Window]:
    """Measure the tree under ``root`` while the body runs."""
    window = Window()
    done = threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_EVERY):
            window._samples.append(tree_pss(root))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    ours, busy = tree_cpu(os.getpid()), machine_busy()
    cpu, start = tree_cpu(root), time.perf_counter()
    try:
        yield window
    finally:
        window.cpu = tree_cpu(root) - cpu
        window.wall = time.perf_counter() - start
        others = machine_busy() - busy - (tree_cpu(os.getpid()) - ours)
        if window.wall > SHORT:
            window.foreign = max(0.0, others / window.wall / (os.cpu_count() or 1))
        done.set()
        sampler.join()
        window.pss_peak = max([*window._samples, tree_pss(root)])


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0..1) of ``values`` lies; nearest rank, no interpolation."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
