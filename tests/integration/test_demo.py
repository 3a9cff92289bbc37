"""``sidewall demo``, as a user runs it: in a process of its own, six children below it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from proxy.demo.command import demo; demo()", "--dir"]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}

pytestmark = pytest.mark.slow


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, str(folder), *arguments], env=ENV, capture_output=True, text=True, timeout=60)


def children_of(folder: Path) -> list[int]:
    """Processes that have one of the folder's files open as their output."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.readlink(entry / "fd" / "2").startswith(str(folder)):
                found.append(int(entry.name))
    return found


def _heed_signals() -> None:
    # Who runs the tests in the background has them ignore SIGINT, and what is ignored is inherited.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The interactive demo, and the address it says to call."""
    process = subprocess.Popen(
        [*COMMAND, str(folder)],
        env=ENV,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_signals,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"curl -i (\S+)", line):
                yield process, found[1]
                break
        else:
            raise AssertionError("the demo ended before it said what to try")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def test_once_tells_the_whole_story_and_leaves_nothing_running(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    began = time.monotonic()
    done = run(folder, "--once", "--grpc")
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - began < 15
    for expected in (
        "x-sidewall-reason: no_allow_policy_matched",
        "no ALLOW policy selects demo/api",
        "it applies after",
        '"reserved": true',
        "every hop mTLS",
        "grpc-status 7",
        "server streaming",
        "all as told",
    ):
        assert expected in done.stdout
    assert not done.stderr
    assert not children_of(folder)


def test_it_can_be_played_again_and_cleaned_away(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    for _ in range(2):
        done = run(folder, "--once")
        assert done.returncode == 0, done.stdout + done.stderr
    assert run(folder, "--clean").returncode == 0
    assert not folder.exists()
    assert "there is no" in run(folder, "--clean").stdout


@pytest.mark.parametrize("arguments", [["--once"], ["--clean"]])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    done = run(tmp_path, *arguments)
    assert done.returncode == 1
    assert "was not made by the demo" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("numbers", [(signal.SIGINT,) * 3, (signal.SIGTERM,), (signal.SIGHUP,)], ids=str)
def test_the_children_end_with_it(tmp_path: Path, numbers: tuple[signal.Signals, ...]) -> None:
    """Also when somebody presses Ctrl-C again and again."""
    folder = tmp_path / "demo"
    with running(folder) as (process, _):
        assert len(children_of(folder)) == 6
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.05)
        process.wait(20)
        assert not children_of(folder)


def test_what_it_says_to_try_works(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with running(folder) as (_, url):
        document = (folder / "allow-web.yaml").read_text()
        (folder / "policy" / "allow-web.yaml").write_text(document)
        deadline = time.monotonic() + 5
        while _status(url) != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (folder / "policy" / "allow-web.yaml").unlink()
        while _status(url) != 403:
            assert time.monotonic() < deadline + 5
            time.sleep(0.05)


def _status(url: str) -> int:
    try:
        with urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except OSError as error:
        with contextlib.closing(error) if hasattr(error, "close") else contextlib.nullcontext():
            return int(getattr(error, "code", 0))


def test_a_dead_child_is_told_with_its_last_words(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    command, pipe = [*COMMAND, str(folder)], subprocess.PIPE
    process = subprocess.Popen(command, env=ENV, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "Ctrl-C" in line:
            break
    victim = min(children_of(folder))
    os.kill(victim, signal.SIGKILL)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "ended by itself with exit code -9" in errors
    assert "--- web/sidecar.log" in errors
    assert not children_of(folder)


def test_a_folder_too_deep_for_sockets_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path / ("d" * 120), "--once")
    assert done.returncode == 1
    assert "too long for a socket" in done.stderr


def test_two_demos_at_once_do_not_meet(tmp_path: Path) -> None:
    with running(tmp_path / "one"), running(tmp_path / "two") as (_, url):
        assert _status(url) == 403
        port = int(url.split(":")[2].split("/")[0])
        with pytest.raises(OSError), socket.create_server(("127.0.0.1", port)):
            pass
