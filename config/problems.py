"""Problems: what is wrong with a file, said so that it can be mended without asking anybody.

Reading never stops at the first mistake: readers add to one ``Problems`` list and go on, and only the end of a
load asks whether there were errors. A problem knows its place (file, line and column, counted from 1), a code
with a page of its own (``config.codes``), the line it stands in, and what to do about it. ``render`` prints a
list for people, for programs (json) or as annotations of a code review (github).
"""

from __future__ import annotations

import difflib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]
Form = Literal["text", "json", "github"]

_WIDEST = 150  # characters of a line that are shown; a minified file must not fill the terminal


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding. ``line`` 0: it has no place in a file (an environment variable, a flag, a missing file).

    ``path`` is the place in the structure (``spec.rules[0].from``), ``subject`` the document it belongs to
    ("AuthorizationPolicy shop/web"), ``hint`` what to do, ``note`` further facts, ``snippet`` the line itself.
    """

    code: str
    message: str
    severity: Severity = "error"
    file: str = ""
    line: int = 0
    column: int = 0
    end_column: int = 0
    path: str = ""
    hint: str = ""
    note: str = ""
    subject: str = ""
    snippet: str = ""

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file

    def __str__(self) -> str:
        text = f"{self.severity} {self.code}: {_printable(self.message)}"
        return f"{_printable(self.place)}: {text}" if self.place else text

    def as_dict(self) -> dict[str, str | int]:
        """The stable JSON form."""
        return {
            "code": self.code,
            "severity": self.severity,
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "endColumn": self.end_column,
            "path": self.path,
            "message": self.message,
            "hint": self.hint,
        }


class Problems:
    """A growing list that readers share."""

    def __init__(self) -> None:
        self._found: list[Problem] = []

    def add(self, problem: Problem) -> None:
        if problem not in self._found[-8:]:  # an anchored value is read once for each of its aliases
            self._found.append(problem)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    @property
    def errors(self) -> int:
        return sum(problem.severity == "error" for problem in self._found)

    def in_order(self) -> tuple[Problem, ...]:
        """Sorted by place, files in the order in which they were first complained about."""
        order: dict[str, int] = {}
        for problem in self._found:
            order.setdefault(problem.file, len(order))
        return tuple(sorted(self._found, key=lambda p: (order[p.file], p.line, p.column)))

    def raise_errors(self, *, files: int = 0, documents: int = 0) -> None:
        """Raise ConfigError with everything found, warnings included, if there is an error among it."""
        if self.errors:
            raise ConfigError(self.in_order(), files=files, documents=documents)


class ConfigError(Exception):
    """The configuration cannot be used. ``problems``: all of them; ``files``, ``documents``: how much was read."""

    def __init__(self, problems: Sequence[Problem], *, files: int = 0, documents: int = 0) -> None:
        self.problems = tuple(problems)
        self.files = files
        self.documents = documents
        super().__init__("; ".join(str(problem) for problem in self.problems[:5]))


def suggest(word: str, names: Iterable[str]) -> str:
    """``did you mean 'x'?`` for the nearest of ``names``, or an empty string."""
    by_fold = {name.lower(): name for name in sorted(names, reverse=True)}
    near = difflib.get_close_matches(word.lower(), list(by_fold), n=1, cutoff=0.6)
    return f"did you mean '{by_fold[near[0]]}'?" if near else ""


def render(problems: Iterable[Problem], form: Form = "text", *, files: int = 0, documents: int = 0) -> str:
    """Print a list. ``files`` and ``documents`` say how much was read, for the last line of the text form."""
    found = list(problems)
    if form == "json":
        return json.dumps([problem.as_dict() for problem in found], indent=2, ensure_ascii=False)
    if form == "github":
        return "\n".join(_github(problem) for problem in found)
    if not found:
        return ""
    return "\n\n".join([*(_text(problem) for problem in found), _summary(found, files, documents)])


def _summary(found: list[Problem], files: int, documents: int) -> str:
    files = files or len({problem.file for problem in found})
    read = _count(files, "file") + (f", {_count(documents, 'document')}" if documents else "")
    counts = [(severity, sum(p.severity == severity for p in found)) for severity in ("error", "warning", "info")]
    said = ", ".join(_count(n, severity) for severity, n in counts if n)
    return f"{read}: {said}          sidewall explain {found[0].code} for more"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 or word == "info" else f"{number} {word}s"


# -- for people ---------------------------------------------------------------------------------------------


def _text(problem: Problem) -> str:
    lines = [str(problem)]
    hint = _printable(problem.hint)
    margin = " " * (len(str(problem.line)) + 1)
    if problem.line and problem.snippet.strip():
        shown, start, width = _cut(problem)
        lines += [f" {margin}|", f" {problem.line} | {shown}"]
        lines.append(f" {margin}| {' ' * start}{'^' * width} {hint}".rstrip())
    elif hint:
        lines.append(f" {margin}= {hint}")
    for more in (_subject(problem), _printable(problem.note)):
        if more:
            lines.append(f" {margin}= {more}")
    return "\n".join(lines)


def _subject(problem: Problem) -> str:
    return ", ".join(part for part in (_printable(problem.subject), _printable(problem.path)) if part)


def _cut(problem: Problem) -> tuple[str, int, int]:
    """The part of the line to show, and where in it (in terminal cells) the carets begin, and how many."""
    text = "".join(" " if c == "\t" else _visible(c) for c in problem.snippet.rstrip("\r\n"))
    begin = min(max(problem.column - 1, 0), len(text))
    end = min(max(problem.end_column - 1, begin + 1), max(len(text), begin + 1))
    first = max(0, begin - _WIDEST // 2) if len(text) > _WIDEST else 0
    shown = text[first : first + _WIDEST]
    marked = text[begin : min(end, first + _WIDEST)]
    return shown, _cells(text[first:begin]), max(_cells(marked), 1)


def _cells(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _visible(character: str) -> str:
    # One cell for each character, and nothing that drives a terminal (escape sequences, bidirectional marks).
    return character if character.isprintable() else "\N{REPLACEMENT CHARACTER}"


def _printable(text: str) -> str:
    return "".join(map(_visible, text))


# -- for code reviews ---------------------------------------------------------------------------------------


def _github(problem: Problem) -> str:
    """A workflow command of GitHub Actions; its own characters are escaped as it wants them."""
    facts = {"file": problem.file, "line": problem.line, "col": problem.column, "endColumn": problem.end_column}
    place = ",".join(f"{key}={_escape(str(value), ':,')}" for key, value in facts.items() if value)
    kind = {"error": "error", "warning": "warning", "info": "notice"}[problem.severity]
    said = f"{problem.message}. {problem.hint}" if problem.hint else problem.message
    title = f"{place},title={problem.code}" if place else f"title={problem.code}"
    return f"::{kind} {title}::{_escape(said, '')}"


def _escape(text: str, more: str) -> str:
    for character in "%\r\n" + more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text
