"""SIGKILL at every point at which the authority writes; see ``tests.support.ca_crash`` for what must be true after."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.house.tree import ROOT
from tests.support.ca import in_memory

SHIM = ROOT / "tests" / "support" / "kill_at_write.c"


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the library that kills at system calls")
    made = tmp_path_factory.mktemp("shim") / "kill_at_write.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", made, SHIM, "-ldl"], check=True)
    return str(made)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as path:
        yield path


def crash(folder: Path, how: str, *arguments: object, preload: str = "") -> dict[str, Any]:
    command = [sys.executable, "-W", "error", "-m", "tests.support.ca_crash", folder, how, *arguments]
    preloaded = {"LD_PRELOAD": preload} if preload else {}
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **preloaded},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    print(f"authority killed at {found['killed']} of {found['points'] or 'any'} {how}: {found}")
    return found


@pytest.mark.slow
def test_killed_at_any_statement_or_commit_the_store_is_the_old_or_the_new(tmp_path: Path) -> None:
    found = crash(tmp_path, "statements", "--every", 43)
    assert found["points"] > 500
    assert found["opened"] > 10
    assert found["created again"] > 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["writes", "torn"])
def test_killed_at_any_system_call_that_writes_the_store_is_the_old_or_the_new(
    tmp_path: Path, shim: str, how: str
) -> None:
    found = crash(tmp_path, how, "--every", 53, "--offset", 7, preload=shim)
    assert found["points"] > 300
    assert found["opened"] > 5


@pytest.mark.slow
def test_killed_at_any_moment_the_store_is_the_old_or_the_new(tmp_path: Path) -> None:
    assert crash(tmp_path, "moments", "--rounds", 12)["killed"] == 12


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("how", ["statements", "writes", "torn"])
def test_killed_at_every_single_point(tmp_path: Path, shim: str, how: str) -> None:
    found = crash(tmp_path, how, preload=shim)
    assert found["killed"] == found["points"]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_killed_at_hundreds_of_moments(tmp_path: Path) -> None:
    assert crash(tmp_path, "moments", "--rounds", 400)["killed"] == 400
