"""How many SVIDs the authority issues: per second, per second of CPU, and how long a caller waits.

    python -m benchmarks.ca [--clients N] [--seconds S] [--postgres URL]

Clients are threads that ask for one X509-SVID after the other, each for a key made beforehand, as agents do. Every
answer is durable when it comes (fsync or PostgreSQL's commit), and its journal record with it. Without ``--postgres``
a cluster of its own is started where the server's programs are installed, and its CPU is counted with ours. Prints
Markdown. SPIRE stands beside it where
``spire-server`` is found: its ``x509 mint`` through the local socket, which is a process each; so the figure is a
floor for SPIRE, not its speed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from identity.authority import new_key
from identity.ca.service import CallerFacts, CaService
from identity.spiffe import SpiffeId
from tests.support.postgres import Cluster, PostgresMissing, postgres_cluster

_KEYS = 64  # a client; made before the clock starts


@dataclass(frozen=True, slots=True)
class Result:
    """``waits``: seconds that callers waited, sorted."""

    name: str
    clients: int
    issued: int
    seconds: float
    cpu: float
    waits: list[float]

    def row(self) -> str:
        wait = [self.waits[int(len(self.waits) * part)] * 1000 for part in (0.5, 0.99)]
        rate, per_core = self.issued / self.seconds, self.issued / self.cpu
        return f"| {self.name} | {self.clients} | {rate:.0f} | {per_core:.0f} | {wait[0]:.1f} | {wait[1]:.1f} |"


HEAD = """\
| store | clients | SVIDs/s | SVIDs per second of CPU | p50 ms | p99 ms |
|---|---:|---:|---:|---:|---:|"""


def server_cpu(cluster: Cluster | None) -> float:
    """Seconds of CPU that the database server's processes have used; 0 when it is not ours."""
    if cluster is None:
        return 0.0
    leader = (cluster.folder / "data" / "postmaster.pid").read_text().split()[0]
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            facts = path.read_text().rpartition(")")[2].split()
            if leader in (path.parent.name, facts[1]):
                ticks += int(facts[11]) + int(facts[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(name: str, ca: CaService, clients: int, seconds: float, cluster: Cluster | None) -> Result:
    """Ask with ``clients`` threads for ``seconds``."""
    waits: list[list[float]] = [[] for _ in range(clients)]
    keys = [[new_key().public_key() for _ in range(_KEYS)] for _ in range(clients)]
    stop = threading.Event()

    def client(number: int) -> None:
        spiffe_id = SpiffeId.of(ca.trust_domain, f"/ns/bench/sa/client-{number}")
        caller = CallerFacts("agent", f"spiffe://{ca.trust_domain}/host/{number}")
        while not stop.is_set():
            key = keys[number][len(waits[number]) % _KEYS]
            before = time.perf_counter()
            ca.issue_x509(spiffe_id, key, caller=caller, now=datetime.now(UTC))
            waits[number].append(time.perf_counter() - before)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    cpu, begin = time.process_time() + server_cpu(cluster), time.perf_counter()
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    took, used = time.perf_counter() - begin, time.process_time() + server_cpu(cluster) - cpu
    every = sorted(wait for of_client in waits for wait in of_client)
    return Result(name, clients, len(every), took, used, every)


Place = tuple[str, str | None, Cluster | None]


@contextlib.contextmanager
def _stores(folder: Path, url: str | None) -> Iterator[list[Place]]:
    stores: list[Place] = [("SQLite", None, None)]
    if url is not None:
        yield [*stores, ("PostgreSQL (its CPU not counted)", url, None)]
        return
    try:
        cluster = postgres_cluster(folder / "pg")
    except PostgresMissing as missing:
        print(f"PostgreSQL: not measured, {missing}", file=sys.stderr)
        yield stores
        return
    with cluster as found:
        yield [*stores, ("PostgreSQL", found.url, found)]


def spire(seconds: float) -> str:
    """`spire-server x509 mint` for ``seconds``, one after the other, against a server that runs already."""
    program = shutil.which("spire-server")
    if program is None:
        return "SPIRE: not measured, spire-server is not on PATH"
    command = [program, "x509", "mint", "-spiffeID", "spiffe://example.org/bench"]
    waits: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        before = time.perf_counter()
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            return "SPIRE: not measured, no server answers (start it, then run this again)"
        waits.append(time.perf_counter() - before)
    return f"SPIRE x509 mint, a process each: {1 / statistics.mean(waits):.0f} a second"


def main() -> None:
    parser = argparse.ArgumentParser(description="How many SVIDs the authority issues.")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 50])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--postgres", help="postgresql+psycopg://USER@HOST/DATABASE, an empty one")
    options = parser.parse_args()
    print(HEAD)
    verdicts = []
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o711)  # the database's own user must get through
        with _stores(Path(name), options.postgres) as stores:
            for store, url, cluster in stores:
                with CaService.create(Path(name, store), "bench", store_url=url, now=datetime.now(UTC)) as ca:
                    for clients in options.clients:
                        print(measure(store, ca, clients, options.seconds, cluster).row(), flush=True)
                    verdict = ca.verify_journal()
                    verdicts.append(f"{store}: {verdict.records} journal records, {verdict.problem or 'whole'}")
    print("", *verdicts, spire(options.seconds), f"{os.cpu_count()} cores", sep="\n")


if __name__ == "__main__":
    main()
