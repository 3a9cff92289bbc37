"""Flows: who called what, how often and with which verdict, without what is private about each call.

A ``Flow`` is the canonical facts of many exchanges that policy could not tell apart but by what is left out here:
query strings, header values, tokens, bodies and user agents are never in it, and by default a path is kept as its
shape (``template``): segments that look like ids of things or persons are replaced by a placeholder of the same kind,
so that a policy can still be asked about it.

One flow is one line of JSON. Unknown members of a line are ignored, so that an older reader reads a newer ledger.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Final

VERSION: Final = 1
_LONGEST: Final = 64 * 1024  # characters of a line
_MAX_PATH: Final = 1024

# Segments that look made, not named, and the placeholder that stands for them. The first that fits counts.
_MADE: Final = (
    (re.compile(r"[0-9]+"), "0"),
    (re.compile(r"[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}"), "00000000-0000-0000-0000-000000000000"),
    (re.compile(r"[0-9A-Fa-f]{8,}"), "0a0a0a0a"),
    (re.compile(r"[^@]+@[^@]+"), "x@x"),
    (re.compile(r"(?=[^0-9]*[0-9])[A-Za-z0-9_~.-]{16,}={0,2}"), "x0"),
    (re.compile(r".{64,}"), "x"),
)


@dataclass(frozen=True, slots=True)
class Flow:
    """``caller``: SPIFFE ID without its scheme, None without one. ``workload``: "ns/name" that was called, and
    ``callee`` its principal. ``port``: the workload's. ``path``: canonical, or its template when ``template`` is set.
    ``route``: the listener. ``source``: address of the caller, "" unless policies ask for it. ``verdict``: allowed,
    denied or audited; ``policy`` ("ns/name") and ``rule`` decided. ``first``, ``last``: seconds of the epoch.
    ``decision_id``, ``trace_id``: of the last exchange that had one."""

    workload: str
    caller: str | None
    protocol: str = "http"
    method: str = ""
    host: str = ""
    path: str = ""
    template: bool = False
    port: int = 0
    route: str = ""
    callee: str = ""
    source: str = ""
    verdict: str = "allowed"
    reason: str = ""
    policy: str = ""
    rule: int = -1
    status: int = 0
    count: int = 1
    first: float = 0.0
    last: float = 0.0
    decision_id: str = ""
    trace_id: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for flows that are counted as one."""
        return (
            *(self.workload, self.caller, self.protocol, self.method, self.host, self.path, self.template, self.port),
            *(self.route, self.callee, self.source, self.verdict, self.reason, self.policy, self.rule, self.status),
        )

    def and_(self, later: Flow) -> Flow:
        """Both together; they have the same key."""
        return replace(
            self,
            count=self.count + later.count,
            first=min(self.first, later.first),
            last=max(self.last, later.last),
            decision_id=later.decision_id or self.decision_id,
            trace_id=later.trace_id or self.trace_id,
        )

    def line(self) -> bytes:
        """One line of JSON. Members that have their default are left out."""
        found = {name: value for name, value in asdict(self).items() if value != _DEFAULTS.get(name, _ABSENT)}
        return json.dumps({"v": VERSION, **found}, separators=(",", ":")).encode() + b"\n"


_ABSENT: Final = object()
_DEFAULTS: Final[dict[str, Any]] = {
    name: value for name, value in asdict(Flow("", None)).items() if name not in ("workload", "caller")
}
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    **{name: (type(value),) for name, value in asdict(Flow("", "")).items()},
    "caller": (str, type(None)),
    "first": (float, int),
    "last": (float, int),
}


def read_line(line: bytes | str) -> Flow:
    """The flow of one line. Raises ValueError, which says what is wrong."""
    if len(line) > _LONGEST:
        raise ValueError("a line is too long")
    found = json.loads(line)
    if not isinstance(found, dict) or found.get("v") != VERSION:
        raise ValueError(f"not a flow of version {VERSION}")
    known = {name: value for name, value in found.items() if name in _TYPES}
    for name, value in known.items():
        if not isinstance(value, _TYPES[name]) or (isinstance(value, bool) and name != "template"):
            raise ValueError(f"{name} has a wrong type")
    try:
        return Flow(**known)
    except TypeError:
        raise ValueError("workload or caller is missing") from None


def merge(flows: Iterable[Flow]) -> Iterator[Flow]:
    """Flows of the same key counted as one, in the order of their first appearance."""
    found: dict[tuple[object, ...], Flow] = {}
    for flow in flows:
        before = found.get(flow.key)
        found[flow.key] = flow if before is None else before.and_(flow)
    yield from found.values()


@lru_cache(maxsize=4096)
def shape(path: str) -> str:
    """``path`` with a placeholder for each segment that looks like the id of something."""
    return "/".join(map(_placeholder, path[:_MAX_PATH].split("/")))


def is_made(segment: str, *, shaped: bool = False) -> bool:
    """Whether a segment looks like the id of something. ``shaped``: it is one of a path's shape, where a placeholder
    that could also be a name counts as what it stands for."""
    return any(segment == instead if shaped else pattern.fullmatch(segment) for pattern, instead in _MADE)


def _placeholder(segment: str) -> str:
    for pattern, instead in _MADE:
        if pattern.fullmatch(segment):
            return instead
    return segment
