"""What is measured. A case takes a rival, starts it afresh, loads it, and gives back named numbers.

Every figure has its unit in its name: `cpu_us` is CPU microseconds of the process tree per request (per
call, for gRPC), `cpu_ms` CPU milliseconds per GiB, `p50_us` and `p99_us` latencies seen by the driver,
`rps` requests per second, `pss_mib` the peak memory of the tree. `foreign` is not a result but a warning:
the share of the machine used by processes that have nothing to do with the run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import pki
from benchmarks.apps import BIG_PATH, PATH, SMALL, WHOAMI_PATH, Apps
from benchmarks.canned import GRPC_MESSAGE, MESSAGES
from benchmarks.loads import Answered, H2load, IdleConnections, download, upload
from benchmarks.measure import tree_pss, watch
from benchmarks.process import BenchmarkError, Child
from benchmarks.rivals import Rival, Setup, caller_context, get_once, new_setup, start_originator

Numbers = dict[str, float]


@dataclass(frozen=True)
class Scale:
    """How much of everything: full, or `--quick`."""

    seconds: float  # of every request load
    big: int  # bytes of a transfer
    idle: int  # connections
    handshakes: int

    @property
    def warm_up(self) -> float:
        return min(1.5, self.seconds / 2)


FULL = Scale(seconds=5.0, big=1 << 30, idle=1000, handshakes=4000)
QUICK = Scale(seconds=1.5, big=64 << 20, idle=200, handshakes=500)


@dataclass(frozen=True)
class Bench:
    """What all cases of a run share."""

    folder: Path
    keys: pki.Pki
    apps: Apps
    load: H2load
    scale: Scale
    via_envoy: bool = False

    def setup(self, rival: Rival, app_port: int, speaks: str, *, grpc: bool = False) -> Setup:
        return new_setup(self.folder / rival.name, self.keys, app_port, app_speaks=speaks, grpc=grpc)

    @contextmanager
    def running(self, rival: Rival, setup: Setup) -> Iterator[Child]:
        child = rival.start(setup)
        try:
            self._check_duties(rival, setup)
            yield child
        except BenchmarkError as error:
            raise BenchmarkError(f"{rival.name}: {error}\n{child.tail()}") from error
        finally:
            child.stop()

    @contextmanager
    def driven_at(self, setup: Setup, version: str) -> Iterator[str]:
        """Where the load goes: to the process under test, or to an Envoy before it (`--via envoy`)."""
        if not self.via_envoy:
            yield f"https://127.0.0.1:{setup.listen}"
            return
        originator, port = start_originator(self.folder, self.keys, version, setup.listen)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            originator.stop()

    def _check_duties(self, rival: Rival, setup: Setup) -> None:
        """A rival that does less would win unfairly: see that it refuses what it must and says who calls."""
        context = caller_context(self.keys)
        if get_once(setup, "/elsewhere", context)[0] != 403:
            raise BenchmarkError("does not refuse another path")
        if setup.app_port not in (self.apps.ports.http1, self.apps.ports.h2c):
            return  # the other apps tell nothing about what they were told
        status, told = get_once(setup, WHOAMI_PATH, context, "x-forwarded-client-cert: Hash=forged\r\n")
        if status != 200 or "Hash=" not in told or "forged" in told:
            raise BenchmarkError(f"answers {status} and tells the app {told!r} about the caller")

    def check_log(self, rival: Rival, setup: Setup, requests: int) -> None:
        """After the end: every request must stand in the access log (a last buffer may be lost)."""
        with rival.access_log(setup).open("rb") as file:
            lines = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
        if lines < requests - 1000:
            raise BenchmarkError(f"{rival.name}: {lines} access-log lines for {requests} requests")


@dataclass(frozen=True)
class Case:
    name: str
    about: str
    run: Callable[[Bench, Rival], Numbers]
    main: str  # the figure that is compared first
    more: tuple[str, ...] = ()
    better: str = "lower"


# --- requests


def _requests(version: str, connections: int, streams: int) -> Callable[[Bench, Rival], Numbers]:
    shape = ["--h1", f"-c{connections}"] if version == "http1" else [f"-c{connections}", f"-m{streams}"]

    def run(bench: Bench, rival: Rival) -> Numbers:
        setup = bench.setup(rival, *_app_of(bench, rival, version))
        return _load(bench, rival, setup, Load(PATH, version, len(SMALL)), shape)

    return run


def _app_of(bench: Bench, rival: Rival, version: str) -> tuple[int, str]:
    """Port and protocol of the plain app: the caller's version, when the rival can speak it there."""
    if version == "http2" and rival.http2_to_app:
        return bench.apps.ports.h2c, "h2c"
    return bench.apps.ports.http1, "http1"


@dataclass(frozen=True)
class Load:
    path: str
    version: str
    body: int  # bytes of every answer


def _load(bench: Bench, rival: Rival, setup: Setup, load: Load, shape: list[str]) -> Numbers:
    def run(seconds: float, *, log: bool) -> Answered:
        timed = [*shape, "-D", _ms(seconds)]
        return bench.load.run(url + load.path, timed, seconds=seconds, body=load.body, log=log)

    with bench.running(rival, setup) as child, bench.driven_at(setup, load.version) as url:
        run(bench.scale.warm_up, log=False)
        with watch(child.pid) as window:
            answered = run(bench.scale.seconds, log=True)
    bench.check_log(rival, setup, answered.requests)
    return {
        "cpu_us": window.cpu / answered.requests * 1e6,
        "rps": answered.requests / answered.seconds,
        "p50_us": answered.p50 or 0.0,
        "p99_us": answered.p99 or 0.0,
        "pss_mib": window.pss_peak,
        "foreign": window.foreign,
    }


def _ms(seconds: float) -> str:
    """As h2load reads a duration: it knows no fractions."""
    return f"{seconds * 1000:.0f}ms"


# --- gRPC


def _grpc(mode: str) -> Callable[[Bench, Rival], Numbers]:
    def run(bench: Bench, rival: Rival) -> Numbers:
        setup = bench.setup(rival, getattr(bench.apps.ports, mode), "h2c", grpc=True)
        body = bench.folder / "call.bin"
        body.write_bytes(GRPC_MESSAGE)
        shape = ["-c4", "-m32", "-d", str(body), "-H", "content-type: application/grpc", "-H", "te: trailers"]
        messages = 1 if mode == "unary" else MESSAGES
        load = Load("/bench.Stock/Reserve", "http2", len(GRPC_MESSAGE) * messages)
        return _load(bench, rival, setup, load, shape)

    return run


# --- big bodies


def _transfer(direction: str, version: str) -> Callable[[Bench, Rival], Numbers]:
    def run(bench: Bench, rival: Rival) -> Numbers:
        if direction == "download":
            app_port, speaks = _app_of(bench, rival, version)
        else:
            app_port, speaks = (
                bench.apps.ports.sink,
                "h2c" if version == "http2" and rival.http2_to_app else "http1",
            )
        setup = bench.setup(rival, app_port, speaks)
        url = f"https://127.0.0.1:{setup.listen}{BIG_PATH}"
        size, limit = bench.scale.big, 120.0
        with bench.running(rival, setup) as child, watch(child.pid) as window:
            if direction == "download":
                took = download(bench.keys, version, url, size, seconds=limit)
            else:
                took = upload(bench.keys, version, url, bench.apps.big, seconds=limit)
        return {
            "mib_s": size / took / 2**20,
            "cpu_ms": window.cpu * 1e3 * 2**30 / size,
            "pss_mib": window.pss_peak,
            "foreign": window.foreign,
        }

    return run


# --- connections


def _handshakes(bench: Bench, rival: Rival) -> Numbers:
    """A new connection for every request (`connection: close`), sixteen at a time."""
    setup = bench.setup(rival, bench.apps.ports.http1, "http1")
    url = f"https://127.0.0.1:{setup.listen}{PATH}"
    shape = ["--h1", "-c16", "-H", "connection: close"]
    count = bench.scale.handshakes
    with bench.running(rival, setup) as child:
        bench.load.run(url, [*shape, "-n", "200"], seconds=20.0, body=len(SMALL), log=False)
        with watch(child.pid) as window:
            counted = [*shape, "-n", str(count)]
            answered = bench.load.run(url, counted, seconds=60.0, body=len(SMALL), log=False)
    return {
        "per_s": answered.requests / answered.seconds,
        "cpu_us": window.cpu / answered.requests * 1e6,
        "pss_mib": window.pss_peak,
        "foreign": window.foreign,
    }


def _idle(bench: Bench, rival: Rival) -> Numbers:
    setup = bench.setup(rival, bench.apps.ports.http1, "http1")
    idle = IdleConnections(setup.listen, caller_context(bench.keys), PATH)
    with bench.running(rival, setup) as child, watch(child.pid) as window:
        try:
            idle.open(20)  # what the first connections make the proxy allocate once is not theirs
            before = _settled(child)
            idle.open(bench.scale.idle)
            after = _settled(child)
        finally:
            idle.close()
    return {
        "mib_per_1000": (after - before) * 1000 / bench.scale.idle,
        "pss_mib": window.pss_peak,
        "foreign": window.foreign,
    }


def _settled(child: Child) -> float:
    time.sleep(0.7)
    return tree_pss(child.pid)


def _ready(bench: Bench, rival: Rival) -> Numbers:
    """Milliseconds from starting the process to the first 200 through it."""
    setup = bench.setup(rival, bench.apps.ports.http1, "http1")
    context = caller_context(bench.keys)
    start = time.perf_counter()
    child = rival.spawn(setup)
    try:
        with watch(child.pid) as window:
            child.wait_ready(lambda: get_once(setup, PATH, context)[0] == 200, every=0.002)
            took = time.perf_counter() - start
        return {"ready_ms": took * 1e3, "pss_mib": tree_pss(child.pid), "foreign": window.foreign}
    finally:
        child.stop()


REQUEST = ("rps", "p50_us", "p99_us", "pss_mib")

CASES: tuple[Case, ...] = (
    Case("http1-c1", "HTTP/1.1, 1 connection", _requests("http1", 1, 1), "cpu_us", REQUEST),
    Case("http1-c32", "HTTP/1.1, 32 connections", _requests("http1", 32, 1), "cpu_us", REQUEST),
    Case("http2-1x1", "HTTP/2, 1 connection, 1 stream", _requests("http2", 1, 1), "cpu_us", REQUEST),
    Case("http2-4x32", "HTTP/2, 4 connections, 32 streams each", _requests("http2", 4, 32), "cpu_us", REQUEST),
    Case("grpc-unary", "gRPC unary, 4 connections, 32 calls each", _grpc("unary"), "cpu_us", REQUEST),
    Case("grpc-stream", "gRPC server streaming, 20 messages a call, 4x32", _grpc("stream"), "cpu_us", REQUEST),
    *(
        Case(
            f"{direction}-{version}",
            f"{direction} of one big body, {label}",
            _transfer(direction, version),
            "mib_s",
            ("cpu_ms", "pss_mib"),
            "higher",
        )
        for direction in ("download", "upload")
        for version, label in (("http1", "HTTP/1.1"), ("http2", "HTTP/2"))
    ),
    Case(
        "handshakes",
        "new mTLS connections, one request each, 16 at once",
        _handshakes,
        "per_s",
        ("cpu_us", "pss_mib"),
        "higher",
    ),
    Case("idle", "idle mTLS connections", _idle, "mib_per_1000", ("pss_mib",)),
    Case("ready", "from start to the first answer", _ready, "ready_ms", ("pss_mib",)),
)


def make_bench(folder: Path, scale: Scale, *, via_envoy: bool = False) -> Bench:
    keys = pki.make_pki(folder / "keys")
    return Bench(folder, keys, Apps(folder, scale.big), H2load(folder, keys), scale, via_envoy)


def work_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="sidewall-bench-", ignore_cleanup_errors=True)
