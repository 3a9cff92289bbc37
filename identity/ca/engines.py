"""How each database is spoken to: connections, their time limits, and what makes a commit durable."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL

from identity.ca.model import StoreUnavailable

BUSY: Final = 5.0  # seconds that a writer stands in line (of this process, and SQLite's)
LOCK: Final = 2.0  # and in that of PostgreSQL, before it ends the session of who sits there
STATEMENT: Final = 8.0  # one statement on PostgreSQL
IDLE: Final = 1.0  # between two statements of a transaction; a replica stopped or cut off for longer loses it
POOL: Final = 8  # connections
NAME: Final = "sidewall-ca"  # of our sessions


def sqlite(url: URL) -> Engine:
    if not url.database or url.database == ":memory:":
        raise StoreUnavailable("the store must be a file: sqlite:////path/to/ca.db")
    private_file(url.database)
    engine = create_engine(
        url.set(drivername="sqlite+pysqlite"),
        pool_size=POOL,
        pool_timeout=BUSY,
        connect_args={"timeout": BUSY, "isolation_level": None, "check_same_thread": False},
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def private_file(path: str) -> None:
    """Make the file with mode 0600 (its journals get the same), or check that it has it (C-1, C-3)."""
    # An existing one is not opened to look at it: closing it would drop the locks that SQLite holds on it elsewhere
    # in this process. The folder is closed to others, so nobody changes it between the look and the use.
    try:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        found = os.lstat(path)
    except OSError as error:
        raise StoreUnavailable(f"{path}: {error.strerror}: check the path and the access") from None
    if not stat.S_ISREG(found.st_mode):
        raise StoreUnavailable(f"{path}: it is a symbolic link or no file at all: name the database itself")
    if found.st_mode & 0o077:
        raise StoreUnavailable(f"{path}: others may read the database: chmod 600 {path}")
    if found.st_uid != os.geteuid():
        raise StoreUnavailable(f"{path}: it belongs to user {found.st_uid}, not to user {os.geteuid()} who runs this")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "trusted_schema=OFF"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    """The driver does not begin by itself (isolation_level None): a writer takes its place before it reads."""
    write = connection.get_execution_options().get("sidewall_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


CONNECT: Final[dict[str, Any]] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 8000,
    "application_name": NAME,
}


def postgres(url: URL) -> Engine:
    if url.get_backend_name() != "postgresql":
        raise StoreUnavailable("the store is sqlite:///PATH or postgresql+psycopg://USER@HOST/DATABASE")
    try:
        engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_size=POOL,
            pool_timeout=BUSY,
            pool_pre_ping=False,
            connect_args={name: value for name, value in CONNECT.items() if name not in url.query},
        )
    except ImportError:
        raise StoreUnavailable("PostgreSQL needs its driver: pip install 'sidewall[postgres]'") from None
    event.listen(engine, "connect", _prepare_postgres)
    return engine


def _prepare_postgres(connection: Any, _record: Any) -> None:
    limits = {"statement_timeout": STATEMENT, "lock_timeout": LOCK, "idle_in_transaction_session_timeout": IDLE}
    settings = [f"SET {name} = {int(seconds * 1000)}" for name, seconds in limits.items()]
    with connection.cursor() as cursor:
        cursor.execute("; ".join(["SET synchronous_commit = on", *settings]))
    connection.commit()
