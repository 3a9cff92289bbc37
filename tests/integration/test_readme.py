"""The README does what it says: its two set-up lines run as written in a fresh copy, and its files load."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from config.documents import parse_documents
from config.load import load_config
from tests.house.tree import ROOT, tracked

README = (ROOT / "README.md").read_text()
INSIDE = "SIDEWALL_INSIDE_README"
FENCED = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
LINES = [line for line in README.splitlines() if line.startswith("python3 -m venv")]


def test_it_is_short_and_has_two_setup_lines() -> None:
    assert len(README.splitlines()) < 200
    assert len(LINES) == 2
    assert LINES[0].endswith("sidewall demo")
    assert LINES[1].endswith("pytest -q")


def test_links_to_files_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        if target != "benchmarks/RESULTS.md":  # made by `make bench`
            assert (ROOT / target).is_file(), target


def test_its_documents_load(tmp_path: Path) -> None:
    configuration, policy = [text for kind, text in FENCED if kind == "yaml"]
    (tmp_path / "ca").mkdir()
    (tmp_path / "policy").mkdir()
    path = tmp_path / "sidewall.yaml"
    path.write_text(configuration)
    assert load_config(path, env={}).workload.service_account == "api"
    assert len(configuration.splitlines()) <= 10
    assert [str(item.name) for item in parse_documents(policy).policies] == ["allow-web"]


def copy_tree(target: Path) -> None:
    """What a commit of everything as it stands would give to somebody who clones it."""
    for path in tracked():
        copy = target / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
        copy.chmod(path.stat().st_mode)
    for arguments in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *arguments], cwd=target, check=True, timeout=60)


def environment(**more: str) -> dict[str, str]:
    """Of somebody who has just cloned: no path to our modules, nothing cached."""
    dropped = ("PYTHON", "PYTEST", "SIDEWALL", "COV", "VIRTUAL_ENV")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    return {**kept, "PIP_NO_CACHE_DIR": "1", **more}


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(bool(os.environ.get(INSIDE)), reason="this is the inner run")
@pytest.mark.parametrize(
    ("number", "env", "expected"),
    [
        (0, {"SIDEWALL_DEMO_ONCE": "1"}, "all as told"),
        (1, {INSIDE: "1", "PYTEST_ADDOPTS": "tests/unit/test_answer.py"}, "[100%]"),
    ],
    ids=["demo", "tests"],
)
def test_a_setup_line_as_written(tmp_path: Path, number: int, env: dict[str, str], expected: str) -> None:
    copy_tree(tmp_path)
    done = subprocess.run(
        ["bash", "-c", LINES[number]],
        cwd=tmp_path,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert expected in done.stdout
