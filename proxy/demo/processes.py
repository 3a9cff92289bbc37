"""The demo's six processes: started together, watched, and ended whatever happens."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final

from proxy.demo.folder import NAMES, Folder, Ports

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_PATIENCE: Final = 10.0
_LAST_WORDS: Final = 12


class ProcessProblem(Exception):
    """A process did not start, or ended."""


class Processes:
    """Three services and three sidecars. Use as a context manager: leaving it ends them."""

    def __init__(self, folder: Folder, ports: Ports) -> None:
        self.folder = folder
        self.ports = ports
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start all and wait until all are ready. Raises ProcessProblem."""
        ports = self.ports
        services = {
            "web": (ports.web, ports.web_to_api),
            "api": (ports.api_app, ports.api_to_stock),
            "stock": (ports.stock_app,),
        }
        for name, numbers in services.items():
            self._start(name, "service", "-m", "proxy.demo.services", name, *map(str, numbers))
            self._start(name, "sidecar", "-m", "proxy", "run", "-c", str(self.folder.of(name, "sidewall.yaml")))
        for port in (ports.web, ports.api_app, ports.stock_app):
            self._wait(f"port {port}", lambda port=port: _listens(port))  # type: ignore[misc]
        for name in NAMES:
            admin = str(self.folder.of(name, "admin.sock"))
            self._wait(f"{name}'s sidecar", lambda admin=admin: _ready(admin))  # type: ignore[misc]

    def _start(self, name: str, kind: str, *arguments: str) -> None:
        env = {key: value for key, value in os.environ.items() if not key.startswith(("SIDEWALL_", "OTEL_"))}
        with self.folder.of(name, f"{kind}.log").open("ab") as output:
            self._running[f"{name}/{kind}"] = subprocess.Popen(  # noqa: S603 (our own interpreter and modules)
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                start_new_session=True,  # Ctrl-C comes to us, and we end them in order
            )

    def check(self) -> None:
        """Raises ProcessProblem when one has ended."""
        for name, process in self._running.items():
            if process.poll() is not None:
                raise ProcessProblem(f"{name} ended by itself with exit code {process.returncode}")

    def _wait(self, what: str, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not is_so():
            self.check()
            if time.monotonic() > deadline:
                raise ProcessProblem(f"{what} was not ready after {_PATIENCE:.0f} s")
            time.sleep(0.03)

    def stop(self) -> None:
        """Ask all to end, wait a little, insist."""
        with _undisturbed():
            for process in self._running.values():
                process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 4.0
            for process in self._running.values():
                _bury(process, deadline)

    def last_words(self) -> list[str]:
        """The tail of every log, for when something went wrong."""
        lines = []
        for path in sorted(self.folder.path.glob("*/*.log")):
            tail = _tail(path)
            lines += [f"--- {path.relative_to(self.folder.path)}", *tail] if tail else []
        return lines


def _bury(process: subprocess.Popen[bytes], deadline: float) -> None:
    try:
        process.wait(max(deadline - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """An impatient second Ctrl-C must not leave children behind."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=2)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _ready(admin: str) -> bool:
    connection = _UnixConnection(admin)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _tail(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines()[-_LAST_WORDS:]
