"""Spans in a SQLite file, so that traces can be read with nothing installed.

Writing happens in the telemetry writer thread, one transaction a batch. Several sidecars may write one file:
WAL, a busy timeout, and every writer trims the whole table. Reading is in ``history.py``.

Bounds: rows and bytes. The oldest rows go first, a tenth at a time, and freed pages go back to the file
system (auto_vacuum=incremental). The file is 0600: it says who called what.

    spans        one row per span; attrs_json holds everything that has no column
    connections  what never became an exchange: refused handshakes, opaque TCP
    edges_1m     per minute, source, destination and route: counts, errors, denials, seconds, latency buckets
"""

from __future__ import annotations

import os
import sqlite3
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from proxy.observe.metrics import DURATION_BOUNDS
from proxy.observe.spans import Span

_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS spans (
  trace_id TEXT NOT NULL, span_id TEXT NOT NULL, parent_id TEXT NOT NULL, service TEXT NOT NULL,
  peer TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL, start_ns INTEGER NOT NULL,
  dur_ns INTEGER NOT NULL, status TEXT NOT NULL, code TEXT NOT NULL, flags TEXT NOT NULL,
  decision TEXT NOT NULL, policy TEXT NOT NULL, attrs_json BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS spans_trace ON spans (trace_id);
CREATE INDEX IF NOT EXISTS spans_start ON spans (start_ns);
CREATE TABLE IF NOT EXISTS connections (
  start_ns INTEGER NOT NULL, dur_ns INTEGER NOT NULL, service TEXT NOT NULL, peer TEXT NOT NULL,
  address TEXT NOT NULL, kind TEXT NOT NULL, reason TEXT NOT NULL, flags TEXT NOT NULL,
  decision TEXT NOT NULL, policy TEXT NOT NULL, attrs_json BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS connections_start ON connections (start_ns);
CREATE TABLE IF NOT EXISTS edges_1m (
  minute INTEGER NOT NULL, source TEXT NOT NULL, destination TEXT NOT NULL, route TEXT NOT NULL,
  n INTEGER NOT NULL, err INTEGER NOT NULL, denied INTEGER NOT NULL, sum REAL NOT NULL,
  buckets TEXT NOT NULL, PRIMARY KEY (minute, source, destination, route)) WITHOUT ROWID;
"""
_INSERT_SPAN: Final = "INSERT INTO spans VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_INSERT_CONNECTION: Final = "INSERT INTO connections VALUES (?,?,?,?,?,?,?,?,?,?,?)"
_READ_EDGE: Final = (
    "SELECT n, err, denied, sum, buckets FROM edges_1m "
    "WHERE minute=? AND source=? AND destination=? AND route=?"
)
_WRITE_EDGE: Final = "INSERT OR REPLACE INTO edges_1m VALUES (?,?,?,?,?,?,?,?,?)"
_COUNT: Final = {
    "spans": "SELECT count(*) FROM spans",
    "connections": "SELECT count(*) FROM connections",
}
_DELETE: Final = {
    "spans": "DELETE FROM spans WHERE rowid IN (SELECT rowid FROM spans ORDER BY start_ns LIMIT ?)",
    "connections": (
        "DELETE FROM connections WHERE rowid IN (SELECT rowid FROM connections ORDER BY start_ns LIMIT ?)"
    ),
}
_TRIM_EDGES: Final = (
    "DELETE FROM edges_1m WHERE minute <= (SELECT minute FROM edges_1m ORDER BY minute DESC LIMIT 1 OFFSET ?)"
)
_EDGE_ROWS: Final = 100_000
_TRIM_EVERY: Final = 500  # spans between two looks at the bounds


class Connection:
    """A connection row: what ``denied`` shows beside spans."""

    __slots__ = (
        "address",
        "attributes",
        "decision",
        "duration_ns",
        "flags",
        "kind",
        "peer",
        "policy",
        "reason",
        "service",
        "start_ns",
    )

    def __init__(self, start_ns: int, duration_ns: int, service: str, peer: str, address: str) -> None:
        self.start_ns = start_ns
        self.duration_ns = duration_ns
        self.service = service
        self.peer = peer  # "ns/sa", "" = did not prove who he is
        self.address = address
        self.kind = "tcp"
        self.reason = ""
        self.flags = ""
        self.decision = ""
        self.policy = ""
        self.attributes: dict[str, Any] = {}


class Edge:
    """What was seen between two services on one route in one minute; added to the row of that minute."""

    __slots__ = ("buckets", "count", "denied", "errors", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.errors = 0
        self.denied = 0
        self.seconds = 0.0
        self.buckets = [0] * (len(DURATION_BOUNDS) + 1)

    def add(self, seconds: float, *, failed: bool, denied: bool) -> None:
        self.count += 1
        self.errors += failed
        self.denied += denied
        self.seconds += seconds
        self.buckets[bisect_left(DURATION_BOUNDS, seconds)] += 1


EdgeKey = tuple[int, str, str, str]  # minute since the epoch, source, destination, route


class TraceStore:
    """The writing side. Calls must not overlap (one writer thread at a time); each may block on the disk."""

    def __init__(self, path: str, *, max_spans: int = 20_000, max_bytes: int = 64 * 1024 * 1024) -> None:
        """Opens or makes the file. Raises OSError or sqlite3.Error; a file of a newer version is refused."""
        self.path = path
        self.max_spans = max_spans
        self.max_bytes = max_bytes
        self._since_trim = 0
        _make_private(path)
        # Batches come from whichever pool thread is free, never from two at once.
        self._db = sqlite3.connect(path, timeout=2.0, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > _VERSION:
            raise sqlite3.DatabaseError(f"{self.path} was written by a newer version ({version})")
        self._db.execute("PRAGMA auto_vacuum=incremental")  # only before the first table
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")  # a power cut may lose the last batches, never the file
        self._db.execute("PRAGMA journal_size_limit=4194304")
        self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")

    def write(
        self,
        spans: Sequence[Span],
        connections: Sequence[Connection] = (),
        edges: Mapping[EdgeKey, Edge] | None = None,
    ) -> None:
        """Add one batch in one transaction, all or nothing. Raises sqlite3.Error (locked, full, corrupt)."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(_INSERT_SPAN, map(_span_row, spans))
            self._db.executemany(_INSERT_CONNECTION, map(_connection_row, connections))
            for key, edge in (edges or {}).items():
                self._add_edge(key, edge)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._since_trim += len(spans) + len(connections)
        if self._since_trim >= _TRIM_EVERY:
            self.trim()

    def _add_edge(self, key: EdgeKey, edge: Edge) -> None:
        row = self._db.execute(_READ_EDGE, key).fetchone() or (0, 0, 0, 0.0, "[]")
        old = orjson.loads(row[4]) or [0] * len(edge.buckets)
        buckets = orjson.dumps([a + b for a, b in zip(old, edge.buckets, strict=True)]).decode()
        numbers = (row[0] + edge.count, row[1] + edge.errors, row[2] + edge.denied, row[3] + edge.seconds)
        self._db.execute(_WRITE_EDGE, (*key, *numbers, buckets))

    def trim(self) -> None:
        """Bring the file back within its bounds. Raises sqlite3.Error."""
        self._since_trim = 0
        for table, sql in _COUNT.items():
            count = self._db.execute(sql).fetchone()[0]
            if count > self.max_spans:
                self._db.execute(_DELETE[table], (count - self.max_spans + self.max_spans // 10,))
        self._db.execute(_TRIM_EDGES, (_EDGE_ROWS,))
        while self.size() > self.max_bytes and self._drop_tenth():
            pass
        self._db.executescript("PRAGMA incremental_vacuum")  # execute() would step once: one page

    def _drop_tenth(self) -> bool:
        before = self._db.total_changes
        for table, sql in _COUNT.items():
            count = self._db.execute(sql).fetchone()[0]
            self._db.execute(_DELETE[table], (count // 10 + 1,))
        self._db.execute("DELETE FROM edges_1m WHERE minute = (SELECT min(minute) FROM edges_1m)")
        return self._db.total_changes > before

    def size(self) -> int:
        """Bytes of pages in use (free pages do not count; they are given back by ``trim``)."""
        pages = self._db.execute("PRAGMA page_count").fetchone()[0]
        free = self._db.execute("PRAGMA freelist_count").fetchone()[0]
        used: int = (pages - free) * self._db.execute("PRAGMA page_size").fetchone()[0]
        return used

    def close(self) -> None:
        self._db.close()


def _make_private(path: str) -> None:
    """Create the file 0600 before SQLite does it with the umask; SQLite gives -wal and -shm the same mode."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.fstat(fd).st_mode & 0o077:
            os.fchmod(fd, 0o600)
    finally:
        os.close(fd)


def _span_row(span: Span) -> tuple[Any, ...]:
    extra: dict[str, Any] = dict(span.attributes)
    if span.description:
        extra["status.description"] = span.description
    if span.link is not None:
        extra["link"] = list(span.link)
    if not span.sampled:
        extra["sampled"] = False
    return (
        span.trace_id,
        span.span_id,
        span.parent_id,
        span.service,
        span.peer,
        span.name,
        span.kind,
        span.start_ns,
        span.duration_ns,
        span.status,
        span.code,
        span.flags,
        span.decision,
        span.policy,
        orjson.dumps(extra),
    )


def _connection_row(row: Connection) -> tuple[Any, ...]:
    return (
        row.start_ns,
        row.duration_ns,
        row.service,
        row.peer,
        row.address,
        row.kind,
        row.reason,
        row.flags,
        row.decision,
        row.policy,
        orjson.dumps(row.attributes),
    )
