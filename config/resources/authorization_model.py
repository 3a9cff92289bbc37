"""AuthorizationPolicy as frozen types that know where they stand. Read by ``authorization.py``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum


class Action(StrEnum):
    ALLOW = "ALLOW"
    DENY = "DENY"
    AUDIT = "AUDIT"


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
class Condition:
    """One entry of ``when``: ``key`` as written (``request.headers[x-team]``, ``source.ip``). At least one of the two
    lists has a value; both must hold. Header names are in lower case."""

    key: str
    values: tuple[str, ...] = ()
    not_values: tuple[str, ...] = ()
    place: Place = dataclasses.field(default=NOWHERE, compare=False)

    @property
    def name(self) -> str:
        """``request.headers`` of ``request.headers[x-team]``."""
        return self.key.partition("[")[0]

    @property
    def arguments(self) -> tuple[str, ...]:
        """What stands in the brackets: ``("a", "b")`` of ``request.auth.claims[a][b]``. Brackets that do not part
        cleanly hold one name (AUTHZ 4.4)."""
        inside = self.key.partition("[")[2].removesuffix("]")
        if not inside:
            return ()
        parts = tuple(inside.split("]["))
        clean = not any("[" in part or "]" in part or not part for part in parts)
        return parts if clean else (inside,)


@dataclass(frozen=True, slots=True)
class TargetRef:
    """What a policy hangs on instead of labels: a Service, or one HTTPRoute or GRPCRoute (Gateway API)."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One ``source`` of ``from`` or one ``operation`` of ``to``: clauses, all of which must hold."""

    clauses: tuple[Clause, ...]
    place: Place = dataclasses.field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Rule:
    """Matches when one source and one operation match, and all conditions hold. No sources: any source; no
    operations: any."""

    sources: tuple[Entry, ...] = ()
    operations: tuple[Entry, ...] = ()
    conditions: tuple[Condition, ...] = ()
    place: Place = dataclasses.field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class AuthorizationPolicy:
    """One document. ``selector``: the labels a workload must have, as pairs; empty selects every workload.
    ``dry_run``: evaluated and reported, never enforced (annotation istio.io/dry-run)."""

    name: str
    namespace: str
    action: Action = Action.ALLOW
    selector: tuple[tuple[str, str], ...] = ()
    rules: tuple[Rule, ...] = ()
    target_refs: tuple[TargetRef, ...] = ()
    dry_run: bool = False
    place: Place = dataclasses.field(default=NOWHERE, compare=False)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"
