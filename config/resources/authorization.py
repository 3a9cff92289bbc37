"""AuthorizationPolicy as written (Istio, ``security.istio.io/v1`` and ``v1beta1``)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum


class Action(StrEnum):
    ALLOW = "ALLOW"
    DENY = "DENY"


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands: line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


NOWHERE = Place("", 0, 0)


@dataclass(frozen=True, slots=True)
class Clause:
    """One field of a source or an operation, under its name as written (``paths``, ``notPaths``), with its
    values, of which there is at least one. Clauses are equal when they say the same, wherever they stand."""

    field: str
    values: tuple[str, ...]
    place: Place = dataclasses.field(default=NOWHERE, compare=False)

    @property
    def is_negative(self) -> bool:
        return self.field.startswith("not")

    @property
    def fact(self) -> str:
        """The positive name: ``paths`` of ``notPaths``."""
        return self.field[3].lower() + self.field[4:] if self.is_negative else self.field


@dataclass(frozen=True, slots=True)
class Entry:
    """One ``source`` of ``from`` or one ``operation`` of ``to``: clauses, all of which must hold."""

    clauses: tuple[Clause, ...]
    place: Place = dataclasses.field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Rule:
    """Matches when one source and one operation match. No sources: any source; no operations: any."""

    sources: tuple[Entry, ...] = ()
    operations: tuple[Entry, ...] = ()
    place: Place = dataclasses.field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class AuthorizationPolicy:
    """One document. ``selector``: the labels a workload must have, as pairs; empty selects every workload."""

    name: str
    namespace: str
    action: Action = Action.ALLOW
    selector: tuple[tuple[str, str], ...] = ()
    rules: tuple[Rule, ...] = ()
    place: Place = dataclasses.field(default=NOWHERE, compare=False)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"
