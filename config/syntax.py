"""What the YAML parser stumbled over, in words for the person who wrote it."""

from __future__ import annotations

import re

import yaml

_GO_ADDRESS = re.compile(r"[{,]\s*(listen|app|probes)\s*:\s*:(\d+)")


def explain_syntax(error: yaml.YAMLError, line: str, column: int) -> tuple[str, str, str]:
    """Code, message and hint for what the parser stumbled over: the usual mistakes in our words."""
    before = line[: column - 1]
    if "\t" in line[: len(line) - len(line.lstrip())] or line[column - 1 : column] == "\t":
        return "SW0108", "a tab cannot indent YAML", "use spaces"
    go = _GO_ADDRESS.search(line)
    if go is not None:
        return "SW0100", "inside {..} a value cannot begin with a colon", f"write {go[2]}"
    problem = getattr(error, "problem", None) or "not YAML"
    if "mapping values are not allowed" in problem and ": " in before + " ":
        return "SW0100", "a second ': ' in one line", "put the value in quotes"
    if line[column - 1 : column] in {"@", "`", "%"}:
        return "SW0100", f"a value cannot begin with {line[column - 1]!r}", "put it in quotes"
    context = getattr(error, "context", None)
    return "SW0100", f"{problem} {context}" if context else str(problem), ""
