"""Start a child process with its output in a file, wait until it answers, end it by its own process id."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class BenchmarkError(Exception):
    """A measurement could not be made; the text says which process and shows the end of its output."""


def free_port() -> int:
    """A port nobody listens on now. Somebody may take it before we do: then the start fails, visibly."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Child:
    """One started process. ``stop`` is safe to call twice."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        *,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.output = folder / f"{name}.out"
        self.error = folder / f"{name}.err"
        with self.output.open("wb") as out, self.error.open("wb") as err:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=folder,
                env={**os.environ, **(environ or {})},
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_ready(self, answers: Callable[[], bool], *, seconds: float = 20.0, every: float = 0.02) -> None:
        """Poll ``answers`` until it is true. Raises when the process ends or the time is up."""
        end = time.monotonic() + seconds
        while not answers():
            if self.process.poll() is not None:
                raise BenchmarkError(f"{self.name} ended with {self.process.returncode}\n{self.tail()}")
            if time.monotonic() > end:
                raise BenchmarkError(f"{self.name} did not answer within {seconds:g} s\n{self.tail()}")
            time.sleep(every)

    def tail(self) -> str:
        return "\n".join(
            path.read_text(errors="replace")[-600:] for path in (self.output, self.error) if path.exists()
        )

    def stop(self) -> None:
        """SIGTERM, three seconds, SIGKILL."""
        if self.process.poll() is not None:
            return
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(3.0)
            return
        self.process.kill()
        self.process.wait(5.0)


def port_open(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.5):
            return True
    except OSError:
        return False
