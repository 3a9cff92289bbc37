"""One SQL database, SQLite or PostgreSQL, with two verbs: ``read`` and ``write``.

A write is one transaction. It begins by locking the row ``head`` (SQLite: BEGIN IMMEDIATE), so that all writers
of all replicas stand in one line, and ends by appending the journal records that it collected and moving the
head, in the same commit. So a change without its record, or a record without its change, cannot exist; and what
a transaction has read stays true until it ends.

Durable means: SQLite in WAL mode with synchronous=FULL (the commit waits for fsync), PostgreSQL with
synchronous_commit on whatever the server's default is. When the disk is full the commit fails, and with it
everything that would have followed from it.

Nobody may hold the head for long. A PostgreSQL server ends transactions that idle (a replica that was stopped or
cut off in the middle), queries have a time limit, and ``watchdog`` ends conversations whose other side has gone
silent. One case the server itself does not see: cut off in the middle of a message, a replica is neither idle nor
at work, and keeps its locks. So who waits too long for the head ends the session that sits on it.

Errors of the driver become StoreUnavailable or StoreCorrupt here and nowhere else.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, exc, func, insert, select, text, update
from sqlalchemy.engine import URL, make_url

from identity.ca import engines, journal, schema
from identity.ca.changes import CHANNEL, Changes
from identity.ca.model import CaError, CallerFacts, Conflict, StoreCorrupt, StoreUnavailable
from identity.ca.watchdog import Watchdog

_CONVERSATION: Final = 12.0  # a whole transaction, after that its socket is shut
_BACKUP: Final = 600.0  # a snapshot may take longer
_CORRUPT: Final = ("malformed", "not a database", "database corruption", "no such table", "no such column")


@dataclass(slots=True)
class Head:
    """The row ``head`` as the transaction sees it."""

    journal_seq: int
    journal_hash: str
    change: int
    bundle_sequence: int
    revocation_sequence: int


class Reading:
    """A transaction that only looks."""

    def __init__(self, connection: Connection, head: Head) -> None:
        self.connection = connection
        self.head = head

    def rows(self, statement: Any) -> list[Any]:
        return list(self.connection.execute(statement))

    def one(self, statement: Any) -> Any:
        """The first row, or None."""
        return self.connection.execute(statement).first()

    def count(self, statement: Any) -> int:
        """The number in the first column of the first row."""
        return int(self.connection.execute(statement).scalar_one() or 0)


class Writing(Reading):
    """A transaction that holds the head. ``at``: its time, seconds of the epoch."""

    def __init__(self, connection: Connection, head: Head, now: datetime) -> None:
        super().__init__(connection, head)
        self.now = now
        self.at = now.timestamp()
        self._records: list[dict[str, Any]] = []
        self._before = (head.journal_seq, head.change, head.bundle_sequence, head.revocation_sequence)

    def record(self, kind: str, subject: str, caller: CallerFacts, **facts: Any) -> int:
        """Append to the journal, with this transaction. Gives the record's number."""
        head = self.head
        text = journal.body(self.at, kind, subject, caller, facts)
        head.journal_seq += 1
        head.journal_hash = journal.chain_hash(head.journal_hash, head.journal_seq, text)
        self._records.append({"seq": head.journal_seq, "body": text, "hash": head.journal_hash})
        return head.journal_seq

    def touch(self) -> None:
        """Others must hear of this transaction."""
        self.head.change = self._before[1] + 1

    def bundle_changed(self) -> int:
        """The bundle has another content: gives its new sequence number."""
        self.touch()
        self.head.bundle_sequence = self._before[2] + 1
        return self.head.bundle_sequence

    def revocations_changed(self) -> None:
        self.touch()
        self.head.revocation_sequence = self._before[3] + 1

    def changes(self, statement: Any) -> int:
        """Execute an insert, update or delete. Gives the number of rows it touched."""
        return int(self.connection.execute(statement).rowcount)

    @property
    def is_touched(self) -> bool:
        return self.head.change != self._before[1]

    def finish(self) -> None:
        """Write the journal and the head; the commit follows."""
        head = self.head
        if self._records:
            self.connection.execute(insert(schema.journal), self._records)
        if (head.journal_seq, head.change, head.bundle_sequence, head.revocation_sequence) != self._before:
            values = {name: getattr(head, name) for name in Head.__slots__}
            self.connection.execute(update(schema.head).where(schema.head.c.id == 1).values(values))
        if self.is_touched and self.connection.dialect.name == "postgresql":
            self.connection.execute(select(func.pg_notify(CHANNEL, str(head.change))))


class Store:
    """An open database. ``name``: for people, without passwords. Safe to use from many threads."""

    def __init__(self, url: str | URL) -> None:
        self._url = make_url(url)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        self.name = self._url.render_as_string(hide_password=True)
        self._engine = engines.sqlite(self._url) if self.is_sqlite else engines.postgres(self._url)
        # Writers of this process stand in line here: fair, and cheaper than SQLite's busy waiting.
        self._line = threading.Lock()
        self._watchdog = Watchdog()
        self._changes = Changes(self.changed, None if self.is_sqlite else self._listening)

    # -- transactions ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def read(self, *, snapshot: bool = False) -> Iterator[Reading]:
        """A transaction that looks. With ``snapshot`` everything it sees is of one moment, however long it takes.
        Raises StoreUnavailable, StoreCorrupt."""
        with _errors(self.name), self._connection(write=False, snapshot=snapshot) as connection:
            yield Reading(connection, _head(connection))

    @contextlib.contextmanager
    def write(self, now: datetime, *, dry_run: bool = False) -> Iterator[Writing]:
        """A transaction that holds the head. It is durable after the block, and gone when the block raises or with
        ``dry_run``. Raises StoreUnavailable, StoreCorrupt, Conflict."""
        if not self._line.acquire(timeout=engines.BUSY):
            raise StoreUnavailable(f"{self.name}: other writers did not finish in {engines.BUSY:g} s")
        try:
            with _errors(self.name), self._connection(write=True) as connection:
                tx = Writing(connection, _head(connection) if self.is_sqlite else _locked_head(connection), now)
                yield tx
                if dry_run:
                    connection.rollback()
                    return
                tx.finish()
                connection.commit()
        finally:
            self._line.release()
        if tx.is_touched:
            self._changes.nudge()

    @contextlib.contextmanager
    def restoring(self) -> Iterator[Connection]:
        """A transaction for a backup, which brings its own head and journal."""
        with _errors(self.name), self._connection(write=True, snapshot=True) as connection:
            yield connection
            connection.commit()

    @contextlib.contextmanager
    def _connection(self, *, write: bool, snapshot: bool = False) -> Iterator[Connection]:
        options: dict[str, Any] = {"sidewall_write": write}
        if snapshot and not self.is_sqlite:
            options["isolation_level"] = "REPEATABLE READ"
        with self._engine.connect() as connection:
            connection = connection.execution_options(**options)
            with self._watched(connection, _BACKUP if snapshot else _CONVERSATION):
                if snapshot and not self.is_sqlite:
                    _give_time(connection)
                yield connection

    @contextlib.contextmanager
    def _watched(self, connection: Connection, seconds: float) -> Iterator[None]:
        if self.is_sqlite:
            yield
            return
        driver: Any = connection.connection.driver_connection
        with self._watchdog.watching(driver.pgconn.socket, seconds):
            yield

    def migrate(self) -> None:
        """Make the tables, or bring them to this version; a copy of an older SQLite file is kept beside it.
        Raises StoreCorrupt, StoreUnavailable."""
        self._keep_copy()
        with _errors(self.name), self._connection(write=True) as connection, connection.begin():
            if not self.is_sqlite:  # two replicas that start on an empty database
                connection.execute(text("SELECT pg_advisory_xact_lock(7349281)"))
            schema.migrate(connection)

    def _keep_copy(self) -> None:
        path = self._url.database
        if not self.is_sqlite or path is None:
            return
        with _errors(self.name), self._connection(write=False) as connection:
            found = schema.version_of(connection)
            if found is None or found >= schema.VERSION:
                return
            copy = f"{path}.bak-{found}"
            if not Path(copy).exists():
                engines.private_file(copy)
                driver: Any = connection.connection.driver_connection
                with contextlib.closing(sqlite3.connect(copy)) as target:
                    driver.backup(target)

    def check(self) -> None:
        """Look for damage: SQLite's own check of every page. PostgreSQL does this by checksums as it reads.
        Raises StoreCorrupt, StoreUnavailable."""
        if not self.is_sqlite:
            return
        with _errors(self.name), self._connection(write=False) as connection:
            found = connection.execute(text("PRAGMA quick_check(3)")).scalars().all()
        if list(found) != ["ok"]:
            raise StoreCorrupt(f"{self.name} is damaged ({'; '.join(map(str, found))[:300]}): {_RESTORE}")

    # -- changes --------------------------------------------------------------------------------------------

    def changed(self) -> int:
        """The change counter. Raises StoreUnavailable, StoreCorrupt."""
        with self.read() as tx:
            return tx.head.change

    def wait_change(self, seen: int, timeout: float) -> int:
        return self._changes.wait(seen, timeout)

    def _listening(self) -> Any:
        import psycopg

        arguments = self._engine.dialect.create_connect_args(self._url)[1]
        return psycopg.connect(**{**engines.CONNECT, **arguments}, autocommit=True)

    def close(self) -> None:
        self._changes.close()
        self._engine.dispose()
        self._watchdog.close()


def _head(connection: Connection, *, lock: bool = False) -> Head:
    table = schema.head
    query = select(*(table.c[name] for name in Head.__slots__)).where(table.c.id == 1)
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise StoreCorrupt(f"the database has lost its head row: {_RESTORE}")
    return Head(*row)


def _locked_head(connection: Connection) -> Head:
    """On PostgreSQL: wait for the lock, once more after the session that did not give it back was ended."""
    try:
        return _head(connection, lock=True)
    except exc.OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != _LOCK_TIMEOUT:
            raise
    connection.rollback()
    connection.execute(text(_END_SITTER), {"name": engines.NAME, "seconds": engines.LOCK})
    connection.commit()
    return _head(connection, lock=True)


_LOCK_TIMEOUT: Final = "55P03"
# A session of ours that has locked the head, for long, and does not itself wait for a lock.
_END_SITTER: Final = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity JOIN pg_locks USING (pid)
    WHERE relation = 'head'::regclass AND granted AND pid <> pg_backend_pid() AND application_name = :name
    AND usename = current_user AND wait_event_type IS DISTINCT FROM 'Lock'
    AND xact_start < clock_timestamp() - make_interval(secs => :seconds)
"""


def _give_time(connection: Connection) -> None:
    """A backup reads and packs more between two statements than others may idle; and nobody is to end it."""
    connection.execute(text(f"SET LOCAL application_name = '{engines.NAME}-backup'"))
    for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
        connection.execute(text(f"SET LOCAL {name} = {int(_BACKUP * 1000)}"))


# -- errors -------------------------------------------------------------------------------------------------

_RESTORE: Final = "restore it from a backup with `sidewall ca restore`"


@contextlib.contextmanager
def _errors(name: str) -> Iterator[None]:
    try:
        yield
    except CaError:
        raise
    except exc.IntegrityError as error:
        raise Conflict(f"another change came first ({_reason(error)})") from None
    except exc.DBAPIError as error:
        reason = _reason(error)
        if any(word in reason for word in _CORRUPT) or _is_missing_table(error):
            raise StoreCorrupt(f"{name} is damaged ({reason}): {_RESTORE}") from None
        raise StoreUnavailable(f"{name} does not do its work: {reason}") from None
    except (exc.SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise StoreUnavailable(f"{name} does not do its work: {str(error)[:200]}") from None


def _reason(error: exc.DBAPIError) -> str:
    """The driver's first line. Never the statement and its values."""
    return (str(error.orig).splitlines() or [type(error.orig).__name__])[0][:200]


def _is_missing_table(error: exc.DBAPIError) -> bool:
    return getattr(error.orig, "sqlstate", None) in {"42P01", "42703", "XX001", "XX002"}
