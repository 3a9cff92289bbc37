"""The tables, and how a database gets from an older version of them to this one.

A new database is made whole from the tables below and stamped with ``VERSION``. An existing one is taken up step
by step through ``MIGRATIONS``, in one transaction with the stamp. One of a newer version is refused: an older
program would not know what it must keep true. Both databases run the same statements, so there is no SQL here
that only one of them understands.

``head`` has one row. Every write begins by locking it, so writers of all replicas stand in one line; that is what
makes the journal a chain and the checks of a transaction safe, without any stronger isolation level.

Times are seconds of the epoch, ids and hashes lower-case hex. Nothing here is secret: tokens are hashed and
private keys are files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    inspect,
    select,
    text,
)

from identity.ca.model import StoreCorrupt

VERSION: Final = 1

metadata: Final = MetaData()

meta: Final = Table("meta", metadata, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))

head: Final = Table(
    "head",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("journal_seq", BigInteger, nullable=False),
    Column("journal_hash", Text, nullable=False),
    Column("change", BigInteger, nullable=False),  # moves with whatever others must hear of
    Column("bundle_sequence", BigInteger, nullable=False),
    Column("revocation_sequence", BigInteger, nullable=False),
)

journal: Final = Table(
    "journal",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("body", Text, nullable=False),  # JSON, as it was hashed
    Column("hash", Text, nullable=False),
)

authorities: Final = Table(
    "authorities",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),  # requested, prepared, active, old
    Column("tainted", Boolean, nullable=False, default=False),
    Column("key_hash", Text, nullable=False, index=True),
    Column("chain", Text, nullable=False),  # PEM: certificate, then intermediates; a JWT key's public PEM; a CSR
    Column("parent", Text, nullable=False, default=""),  # of an issuing authority: its root
    Column("not_before", Double, nullable=False),
    Column("not_after", Double, nullable=False),
    Column("prepared_at", Double, nullable=False),
    Column("activated_at", Double, nullable=False, default=0.0),
    Column("retired_at", Double, nullable=False, default=0.0),
    Column("last_leaf", Double, nullable=False, default=0.0),
    Column("published_sequence", BigInteger, nullable=False),
    # At most one of each: the database itself refuses a second rotation, whoever attempts it.
    Index(
        "one_prepared",
        "kind",
        unique=True,
        sqlite_where=text("state = 'prepared'"),
        postgresql_where=text("state = 'prepared'"),
    ),
    Index(
        "one_active",
        "kind",
        unique=True,
        sqlite_where=text("state = 'active'"),
        postgresql_where=text("state = 'active'"),
    ),
    Index(
        "one_requested",
        "kind",
        unique=True,
        sqlite_where=text("state = 'requested'"),
        postgresql_where=text("state = 'requested'"),
    ),
)

issued: Final = Table(
    "issued",
    metadata,
    Column("serial", Text, primary_key=True),
    Column("spiffe_id", Text, nullable=False, index=True),
    Column("authority_id", Text, nullable=False, index=True),
    Column("holder", Text, nullable=False),
    Column("key_hash", Text, nullable=False, index=True),
    Column("entry_id", Text, nullable=False),
    Column("issued_at", Double, nullable=False),
    Column("not_after", Double, nullable=False, index=True),
    Column("superseded", Boolean, nullable=False, default=False),  # only of exclusive identities
    Column("journal_seq", BigInteger, nullable=False),
)

entries: Final = Table(
    "entries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("spiffe_id", Text, nullable=False, index=True),
    Column("parent_id", Text, nullable=False, index=True),
    Column("fingerprint", Text, nullable=False, unique=True),  # of SPIFFE ID, parent and selectors
    Column("expires_at", Double, nullable=False),  # 0: never
    Column("revision", BigInteger, nullable=False),
    Column("body", Text, nullable=False),  # the entry's JSON
)

nodes: Final = Table(
    "nodes",
    metadata,
    Column("spiffe_id", Text, primary_key=True),
    Column("how", Text, nullable=False),
    Column("selectors", Text, nullable=False),  # JSON array
    Column("key_hash", Text, nullable=False),
    Column("machine_id", Text, nullable=False, index=True),
    Column("attested_at", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("seen_sequence", BigInteger, nullable=False),
    Column("banned", Text, nullable=False, default=""),
)

tokens: Final = Table(
    "tokens",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("spiffe_id", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
)

revocations: Final = Table(
    "revocations",
    metadata,
    Column("what", Text, primary_key=True),  # a SPIFFE ID, a serial, an authority id
    Column("kind", Text, nullable=False),  # id, serial, authority
    Column("reason", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
)

federated: Final = Table(
    "federated",
    metadata,
    Column("trust_domain", Text, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("document", Text, nullable=False),
    Column("settings", Text, nullable=False),
    Column("updated_at", Double, nullable=False),
)

# Version it leads to -> what it takes to get there from the one before.
MIGRATIONS: Final[Mapping[int, Callable[[Connection], None]]] = {}

FIRST_HASH: Final = "0" * 64


def version_of(connection: Connection) -> int | None:
    """The schema version of a database, None for an empty one. Raises StoreCorrupt when it is not ours."""
    names = set(inspect(connection).get_table_names())
    if not names & set(metadata.tables):
        return None
    if "meta" not in names:
        raise StoreCorrupt("the database has no table of versions: it is damaged, or not of an authority")
    found = connection.execute(select(meta.c.value).where(meta.c.name == "schema")).scalar()
    if found is None or not found.isascii() or not found.isdecimal():
        raise StoreCorrupt("the database does not say its version: restore it from a backup")
    return int(found)


def migrate(
    connection: Connection, *, version: int = VERSION, steps: Mapping[int, Callable[[Connection], None]] = MIGRATIONS
) -> int | None:
    """Make or upgrade the tables within the transaction of ``connection``. Gives the version found (None: new).

    Raises StoreCorrupt for a newer version than ``version``, and when the tables are not those of the stamp."""
    found = version_of(connection)
    if found is None:
        _create(connection, version)
    elif found > version:
        raise StoreCorrupt(
            f"the database has schema {found}, this program knows {version}: "
            "start the newer program again, or restore the backup made before the upgrade"
        )
    else:
        for step in range(found + 1, version + 1):
            steps[step](connection)
        if found < version:
            connection.execute(meta.update().where(meta.c.name == "schema").values(value=str(version)))
    _check_tables(connection)
    return found


def _create(connection: Connection, version: int) -> None:
    metadata.create_all(connection)
    connection.execute(meta.insert().values(name="schema", value=str(version)))
    connection.execute(
        head.insert().values(
            id=1, journal_seq=0, journal_hash=FIRST_HASH, change=1, bundle_sequence=0, revocation_sequence=0
        )
    )


def _check_tables(connection: Connection) -> None:
    missing = set(metadata.tables) - set(inspect(connection).get_table_names())
    if missing:
        raise StoreCorrupt(f"tables are missing: {', '.join(sorted(missing))}: restore the database from a backup")
