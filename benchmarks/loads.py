"""What drives the proxies: h2load for requests, curl for big bodies, a little Python for idle connections.

The drivers speak mutual TLS to the process under test directly. A proxy in between would be a second
bottleneck, would share memory pages with one of the rivals and would add its own time to every latency;
and it would merge the load's connections into its own pool, so that "4 connections x 32 streams" would
not reach the process under test. h2load cannot show a client certificate, so `h2load_mtls.c` is compiled
and preloaded: a C compiler is needed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import pki
from benchmarks.measure import quantile
from benchmarks.process import BenchmarkError

SLACK = 30.0  # seconds a driver may take beyond its own duration


@dataclass(frozen=True)
class Answered:
    """What h2load saw. Latencies in microseconds, None when they were not logged."""

    requests: int
    seconds: float
    p50: float | None
    p99: float | None


class H2load:
    """h2load with a client certificate. ``folder`` takes the compiled shim and the latency log."""

    def __init__(self, folder: Path, keys: pki.Pki) -> None:
        self.folder = folder
        self.shim = folder / "h2load_mtls.so"
        self.environ = {
            **os.environ,
            "LD_PRELOAD": str(self.shim),
            "CLIENT_CERT": str(keys.web.chain),
            "CLIENT_KEY": str(keys.web.key),
        }
        source = Path(__file__).with_name("h2load_mtls.c")
        compiler = _compiler() or "cc"
        _run([compiler, "-O2", "-shared", "-fPIC", "-o", str(self.shim), str(source), "-ldl"], 60.0)

    @staticmethod
    def available() -> str | None:
        if not shutil.which("h2load"):
            return "h2load is not installed (package nghttp2-client)"
        return None if _compiler() else "no C compiler for h2load_mtls.c"

    def run(self, url: str, arguments: Sequence[str], *, seconds: float, body: int, log: bool = True) -> Answered:
        """One load. Every answer must be a 2xx and bring ``body`` bytes: a rival that refuses quickly must
        not look fast (a refused gRPC call is a 200 without body)."""
        latencies = self.folder / "latencies.tsv"
        latencies.unlink(missing_ok=True)
        logging = [f"--log-file={latencies}"] if log else []
        out = _run(["h2load", *logging, *arguments, url], seconds + SLACK, self.environ)
        good, took = _summary(out, body)
        times = _latencies(latencies) if log else []
        return Answered(
            good,
            took,
            quantile(times, 0.5) if times else None,
            quantile(times, 0.99) if times else None,
        )


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def _run(command: Sequence[str], seconds: float, environ: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, env=environ)
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"{command[0]} was not done after {seconds:g} s") from error
    if done.returncode:
        raise BenchmarkError(f"{command[0]} failed ({done.returncode}): {done.stderr[-1500:]}{done.stdout[-500:]}")
    return done.stdout


def _summary(out: str, body: int) -> tuple[int, float]:
    """(2xx answers, seconds) from h2load's last lines."""
    took = re.search(r"finished in ([\d.]+)(us|ms|s)", out)
    counts = re.search(r"(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", out)
    codes = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", out)
    data = re.search(r"\((\d+)\) data", out)
    if not (took and counts and codes and data):
        raise BenchmarkError(f"h2load said nothing we understand: {out[-600:]}")
    done, _, _, errored = (int(n) for n in counts.groups())
    good, *bad = (int(n) for n in codes.groups())
    if not done or errored or any(bad) or good < done or int(data.group(1)) < done * body:
        raise BenchmarkError(
            f"not every request was answered with 2xx and a body: {counts[0]}; {codes[0]}; {data[0]}"
        )
    return good, float(took.group(1)) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[took.group(2)]


def _latencies(path: Path) -> list[float]:
    lines = (line.split("\t") for line in path.read_text().splitlines())
    return [float(words[2]) for words in lines if len(words) >= 3 and words[1] == "200"]


def _curl(keys: pki.Pki, version: str, arguments: Sequence[str], seconds: float) -> dict[str, Any]:
    command = [
        *("curl", "--silent", "--show-error", "--insecure", "--output", "/dev/null"),
        *("--cert", str(keys.web.chain), "--key", str(keys.web.key)),
        "--http2" if version == "http2" else "--http1.1",
        *("--write-out", "%{json}", "--max-time", str(int(seconds))),
        *arguments,
    ]
    facts: dict[str, Any] = json.loads(_run(command, seconds + SLACK))
    if facts["http_code"] != 200 or facts["http_version"] != ("2" if version == "http2" else "1.1"):
        raise BenchmarkError(f"curl got {facts['http_code']} over HTTP/{facts['http_version']}")
    return facts


def download(keys: pki.Pki, version: str, url: str, size: int, *, seconds: float) -> float:
    """Fetch ``url`` and throw it away. Seconds taken; raises when it was not ``size`` bytes."""
    facts = _curl(keys, version, [url], seconds)
    if facts["size_download"] != size:
        raise BenchmarkError(f"{facts['size_download']:.0f} of {size} bytes arrived")
    return float(facts["time_total"])


def upload(keys: pki.Pki, version: str, url: str, file: Path, *, seconds: float) -> float:
    """PUT ``file``. Seconds taken until the app, which had read all of it, answered."""
    facts = _curl(keys, version, ["--header", "expect:", "--upload-file", str(file), url], seconds)
    if facts["size_upload"] != file.stat().st_size:
        raise BenchmarkError(f"{facts['size_upload']:.0f} bytes went up")
    return float(facts["time_total"])


class IdleConnections:
    """Keep-alive connections that were used for one request each and then say nothing."""

    def __init__(self, port: int, context: ssl.SSLContext, path: str) -> None:
        self.port = port
        self.context = context
        self.request = f"GET {path} HTTP/1.1\r\nhost: api.bench\r\n\r\n".encode()
        self._open: list[ssl.SSLSocket] = []

    def open(self, count: int) -> None:
        for _ in range(count):
            raw = socket.create_connection(("127.0.0.1", self.port), timeout=10.0)
            tls = self.context.wrap_socket(raw, server_hostname="api.bench")
            self._open.append(tls)
            tls.sendall(self.request)
            head = tls.recv(65536)
            if b" 200 " not in head[:16]:
                raise BenchmarkError(f"idle connection was answered {head[:60]!r}")

    def close(self) -> None:
        for tls in self._open:
            tls.close()
        self._open.clear()
