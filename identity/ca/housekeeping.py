"""What nobody needs any more is taken out of the store: expired certificates' rows, tokens, revocations, keys
without a row. Not journaled one by one; the journal itself is never pruned."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import Table, delete, func, select

from identity.ca import schema
from identity.ca.keys import KeyFolder
from identity.ca.store import Reading, Store

_KEEP: Final = 60.0  # seconds after the end: clocks of replicas differ
_TABLES: Final = ((schema.issued, "not_after"), (schema.tokens, "expires_at"), (schema.revocations, "expires_at"))


def prune(store: Store, keys: KeyFolder, now: datetime) -> list[str]:
    """Remove what is over. Gives a sentence for orphaned keys only."""
    before = now.timestamp() - _KEEP
    with store.read() as tx:
        has_work = any(_over(tx, table, column, before) for table, column in _TABLES)
        known = {row.id for row in tx.rows(select(schema.authorities.c.id))}
    if has_work:
        with store.write(now) as writing:
            for table, column in _TABLES:
                writing.changes(delete(table).where(table.c[column] < before))
            # The list of revocations has its own ends in it: nobody needs to hear that one is over.
    return [f"removed the key {gone}, which no authority has" for gone in keys.sweep(known, now.timestamp())]


def _over(tx: Reading, table: Table, column: str, before: float) -> bool:
    return tx.count(select(func.count()).select_from(table).where(table.c[column] < before)) > 0
