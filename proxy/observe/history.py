"""Reads the SQLite files of ``store.py``: one or several as if they were one.

A demo of three sidecars has three files or one; a trace is whole either way. Files are opened read-only and
may be written by running proxies at the same time.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import orjson

from proxy.observe.spans import Span
from proxy.observe.store import Connection, Edge, EdgeKey

_RECENT: Final = (
    "SELECT trace_id, min(start_ns) AS rank FROM spans GROUP BY trace_id ORDER BY rank DESC LIMIT ?"
)
_SLOWEST: Final = (
    "SELECT trace_id, max(dur_ns) AS rank FROM spans GROUP BY trace_id ORDER BY rank DESC LIMIT ?"
)
_DENIED: Final = (
    "SELECT trace_id, max(start_ns) AS rank FROM spans WHERE decision = 'deny' "
    "GROUP BY trace_id ORDER BY rank DESC LIMIT ?"
)
_BY_PREFIX: Final = "SELECT DISTINCT trace_id FROM spans WHERE trace_id >= ? AND trace_id < ? LIMIT 20"
_DENIED_SPANS: Final = (
    "SELECT * FROM spans WHERE decision = 'deny' AND kind = 'SERVER' AND start_ns >= ? "
    "ORDER BY start_ns DESC LIMIT ?"
)
_REFUSED: Final = (
    "SELECT * FROM connections WHERE reason <> '' AND start_ns >= ? ORDER BY start_ns DESC LIMIT ?"
)
_EMPTY: Final = "no trace has been recorded yet"


class TraceNotFound(Exception):
    """No stored trace answers to that name."""


class AmbiguousTrace(Exception):
    """Several traces begin with the given prefix: ``ids``."""

    def __init__(self, prefix: str, ids: list[str]) -> None:
        super().__init__(f"{prefix} could be any of {', '.join(ids[:5])}")
        self.ids = ids


class TraceReader:
    """Reads one or more stores. A file that is missing is left out; one that exists must open."""

    def __init__(self, paths: Iterable[str]) -> None:
        """Raises sqlite3.Error for a file that is not a store of ours."""
        self._dbs: list[sqlite3.Connection] = []
        try:
            for path in dict.fromkeys(map(os.path.realpath, paths)):
                if os.path.exists(path):
                    self._dbs.append(_open(path))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> TraceReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        for db in self._dbs:
            db.close()

    def _query(self, sql: str, *arguments: object) -> list[Any]:
        return [row for db in self._dbs for row in db.execute(sql, arguments).fetchall()]

    def trace(self, prefix: str) -> list[Span]:
        """All spans of the trace whose id begins so, oldest first. Raises TraceNotFound or AmbiguousTrace."""
        if not prefix or len(prefix) > 32 or not set(prefix) <= set("0123456789abcdef"):
            raise TraceNotFound(f"{prefix!r} is not the beginning of a trace id (lower-case hex)")
        ids = sorted({row[0] for row in self._query(_BY_PREFIX, prefix, prefix + "g")})
        if not ids:
            raise TraceNotFound(f"no trace begins with {prefix}")
        if len(ids) > 1:
            raise AmbiguousTrace(prefix, ids)
        return self._whole(ids[0])

    def _whole(self, trace_id: str) -> list[Span]:
        rows = self._query("SELECT * FROM spans WHERE trace_id = ?", trace_id)
        spans = {span.span_id: span for span in map(_read_span, rows)}
        return sorted(spans.values(), key=lambda span: (span.start_ns, -span.duration_ns))

    def _top(self, sql: str, limit: int, rank: Callable[[list[Span]], int]) -> list[list[Span]]:
        """Each file names its candidates; the merged traces are ranked anew. Highest first."""
        ids = dict.fromkeys(row[0] for row in self._query(sql, limit))
        traces = [spans for spans in map(self._whole, ids) if spans]
        return sorted(traces, key=rank, reverse=True)[:limit]

    def recent(self, limit: int = 20) -> list[list[Span]]:
        """The traces that began last, newest first, each with all its spans."""
        return self._top(_RECENT, limit, lambda spans: spans[0].start_ns)

    def last(self) -> list[Span]:
        """The trace that began last. Raises TraceNotFound, as the next two do."""
        return _first(self.recent(1), _EMPTY)

    def slowest(self) -> list[Span]:
        return _first(self._top(_SLOWEST, 1, lambda spans: max(span.duration_ns for span in spans)), _EMPTY)

    def denied(self) -> list[Span]:
        """The last trace in which somebody was denied."""
        found = self._top(_DENIED, 1, _last_denial)
        return _first(found, "no denied exchange has been recorded")

    def denials(self, since_ns: int = 0, limit: int = 1000) -> list[Span | Connection]:
        """Every denied exchange (its SERVER span) and refused connection since then, newest first."""
        found: list[Span | Connection] = [
            *map(_read_span, self._query(_DENIED_SPANS, since_ns, limit)),
            *map(_read_connection, self._query(_REFUSED, since_ns, limit)),
        ]
        return sorted(found, key=lambda row: -row.start_ns)[:limit]

    def edges(self, since_minute: int = 0) -> dict[EdgeKey, Edge]:
        """The per-minute map of who called whom, summed over all files."""
        edges: dict[EdgeKey, Edge] = {}
        for row in self._query("SELECT * FROM edges_1m WHERE minute >= ?", since_minute):
            edge = edges.setdefault((row[0], row[1], row[2], row[3]), Edge())
            edge.count += row[4]
            edge.errors += row[5]
            edge.denied += row[6]
            edge.seconds += row[7]
            edge.buckets = [a + b for a, b in zip(edge.buckets, orjson.loads(row[8]), strict=True)]
        return edges


def _first(found: list[list[Span]], otherwise: str) -> list[Span]:
    if not found:
        raise TraceNotFound(otherwise)
    return found[0]


def _last_denial(spans: list[Span]) -> int:
    return max((span.start_ns for span in spans if span.decision == "deny"), default=0)


def _open(path: str) -> sqlite3.Connection:
    # Through a URI, with the characters that mean something in one escaped (sqlite.org/uri.html).
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    db = sqlite3.connect(f"file:{quoted}?mode=ro", uri=True, timeout=2.0, isolation_level=None)
    try:
        db.execute("SELECT 1 FROM spans LIMIT 1")
    except BaseException:
        db.close()
        raise
    return db


def _read_span(row: Sequence[Any]) -> Span:
    span = Span(row[0], row[1], row[2], row[6], row[7], row[8])
    span.service, span.peer, span.name = row[3], row[4], row[5]
    span.status, span.code, span.flags, span.decision, span.policy = row[9:14]
    extra = orjson.loads(row[14])
    span.description = extra.pop("status.description", "")
    span.sampled = extra.pop("sampled", True)
    link = extra.pop("link", None)
    span.link = None if link is None else (link[0], link[1])
    span.attributes = extra
    span.remote_parent = bool(span.parent_id) and span.kind == "SERVER"
    return span


def _read_connection(row: Sequence[Any]) -> Connection:
    connection = Connection(row[0], row[1], row[2], row[3], row[4])
    connection.kind, connection.reason, connection.flags, connection.decision, connection.policy = row[5:10]
    connection.attributes = orjson.loads(row[10])
    return connection
