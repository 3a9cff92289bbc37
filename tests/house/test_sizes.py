"""Short functions, short files."""

from __future__ import annotations

import ast
import statistics

from tests.house.tree import ROOT, modules

LONGEST_FILE = 460


def lengths() -> list[tuple[int, str]]:
    """(lines from ``def`` to the end, place) of every function, docstrings included."""
    return [
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{name}:{node.lineno} {node.name}")
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_half_of_the_functions_have_nine_lines_or_less() -> None:
    assert statistics.median(length for length, _ in lengths()) <= 9


def test_nine_of_ten_functions_have_35_lines_or_less() -> None:
    found = sorted(lengths())
    assert found[int(len(found) * 0.9)][0] <= 35, found[-20:]


def test_no_file_is_too_long() -> None:
    sizes = {name: len((ROOT / name).read_text().splitlines()) for name in modules()}
    assert {name: size for name, size in sizes.items() if size > LONGEST_FILE} == {}


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert [name for name in modules() if drawers & {part.removesuffix(".py") for part in name.split("/")}] == []
