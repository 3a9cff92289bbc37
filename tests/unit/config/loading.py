"""Loads a text as if it were sidewall.yaml, with nothing of this machine's environment in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from config.load import Loaded, load_all
from config.problems import ConfigError, Problem

NOWHERE = Path("/nonexistent/sidewall")


def load(
    text: str,
    *,
    env: Mapping[str, str] | None = None,
    base: Path = NOWHERE,
    overrides: Mapping[str, str] | None = None,
) -> Loaded:
    return load_all(text=text, base=base, env={"HOME": "/home/me", **(env or {})}, overrides=overrides)


def problems_of(
    text: str,
    *,
    env: Mapping[str, str] | None = None,
    base: Path = NOWHERE,
    overrides: Mapping[str, str] | None = None,
) -> list[Problem]:
    """Every problem, warnings included."""
    try:
        return list(load(text, env=env, base=base, overrides=overrides).warnings)
    except ConfigError as error:
        return list(error.problems)


def codes_of(text: str, *, env: Mapping[str, str] | None = None, base: Path = NOWHERE) -> list[str]:
    return [problem.code for problem in problems_of(text, env=env, base=base)]
