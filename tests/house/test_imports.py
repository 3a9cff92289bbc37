"""Who may import what: pure modules, library types in one place, permits in one place, rows."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.house.tree import ROOT, imported, modules

IMPURE = {"trio", "socket", "ssl", "select", "time"}
PURE = (
    "proxy/wire/",
    "proxy/policy/",
    "proxy/answer.py",
    "proxy/fields.py",
    "proxy/upstream/balance.py",
    "identity/spiffe.py",
    "identity/svid.py",
    "config/model.py",
    "config/problems.py",
)
# Library -> the only modules that may know it.
HOMES = {
    "httptools": ("proxy/wire/http1_heads.py", "proxy/wire/http1_server.py", "proxy/wire/http1_client.py"),
    "ngh2": ("proxy/wire/http2/",),
    "h2": ("proxy/wire/http2/", "proxy/demo/"),
    "OpenSSL": ("identity/mtls.py", "proxy/net/"),
}


def importers(library: str) -> list[str]:
    return [name for name, tree in modules().items() if library in _roots(imported(tree))]


def _roots(names: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_pure_modules_import_nothing_that_waits_or_tells_the_time() -> None:
    pure = {name: tree for name, tree in modules().items() if name.startswith(PURE)}
    assert {prefix for prefix in PURE if not any(name.startswith(prefix) for name in pure)} == set()
    assert {name: found for name, tree in pure.items() if (found := _roots(imported(tree)) & IMPURE)} == {}


@pytest.mark.parametrize(("library", "homes"), HOMES.items(), ids=list(HOMES))
def test_a_library_is_known_in_one_place(library: str, homes: tuple[str, ...]) -> None:
    found = importers(library)
    assert found
    assert [name for name in found if not name.startswith(homes)] == []


def test_only_outbound_hands_out_a_permit_without_a_decision() -> None:
    users = [name for name, tree in modules().items() if _uses(tree, "permit_configured")]
    assert users == ["proxy/outbound.py"]


def _uses(tree: ast.Module, name: str) -> bool:
    return any(
        (isinstance(node, ast.Name) and node.id == name) or (isinstance(node, ast.Attribute) and node.attr == name)
        for node in ast.walk(tree)
    )


def test_the_rows_hold() -> None:
    beside = Path(sys.executable).with_name("lint-imports")
    command = str(beside) if beside.exists() else shutil.which("lint-imports")
    if command is None:
        pytest.skip("import-linter is not installed")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
