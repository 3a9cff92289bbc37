"""Facts that stand in two places agree, and nothing of one machine stands in the project."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from proxy.answer import ANSWERS
from proxy.errors import REASONS
from proxy.version import VERSION
from tests.house.tree import ROOT, tracked

BINARY = {".png", ".ico", ".gz", ".whl", ".db", ".woff2", ".pem", ".der"}
# Written in halves, so that this file does not contain what it forbids. A made-up user "me" is fine.
_PLACES = (
    "/wo" + r"rk/(?:main|shared|scratch|\.)",
    "/ho" + r"me/(?!me\b)[a-z]",
    "/Us" + r"ers/[A-Za-z]",
    "/ro" + r"ot/",
    r"/tm" + r"p/[a-z]\w?/",
    r"(?i:\bclau" + r"de\b|anth" + r"ropic|\bchat" + "gpt|co-" + "authored-by)",
    r"\.\./sha" + "red/",
)
FORBIDDEN = re.compile("|".join(_PLACES))
UNFINISHED = re.compile(r"\b(?:" + "|".join(("PRO" + "TO", "FIX" + "ME", "XX" + "X", "TO" + "DO")) + r")\b")


def text_files() -> dict[Path, str]:
    found = {}
    for path in tracked():
        if path.suffix not in BINARY:
            found[path.relative_to(ROOT)] = path.read_text(errors="replace")
    return found


def places(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path}:{number}: {line.strip()[:80]}"
        for path, text in text_files().items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_path_of_one_machine() -> None:
    assert places(FORBIDDEN) == []


def test_nothing_is_left_for_later_in_the_text() -> None:
    assert places(UNFINISHED) == []


def test_the_version_is_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


def test_every_reason_has_its_answer() -> None:
    assert set(ANSWERS) == set(REASONS)
