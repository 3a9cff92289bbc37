"""The journal: append-only, hash-chained, and written in the transaction of what it tells about (C-18).

    hash(n) = SHA-256( hash(n-1) || n as 8 bytes || body(n) )

The body is JSON text and kept exactly as it was hashed. The row ``head`` holds the last number and hash, under
the lock that every writer takes first; so there is one chain, without gaps, whichever replica writes. Who can
write to the database can also forge a whole new chain: ``CaService.journal_head`` gives the two values to keep
elsewhere for that.

Records hold no secrets: keys appear as hashes of the public part, tokens as the first characters of their hash.
Text from outside is cut, and control characters are escaped by JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, func, select

from identity.ca import schema
from identity.ca.model import CallerFacts, JournalRecord, JournalVerdict, StoreCorrupt

if TYPE_CHECKING:
    from identity.ca.store import Store

_MAX_TEXT: Final = 500  # characters of one value that came from outside
_MAX_ITEMS: Final = 64
_PAGE: Final = 2000


def body(at: float, kind: str, subject: str, caller: CallerFacts, facts: Mapping[str, Any]) -> str:
    """The JSON text of a record. Always the same for the same values."""
    who = {"kind": caller.kind, "id": caller.id, "address": caller.address, "detail": caller.detail}
    record = {
        "at": at,
        "kind": kind,
        "subject": _cut(subject),
        "caller": {name: _cut(value) for name, value in who.items() if value},
        "facts": {name: _cut(value) for name, value in facts.items()},
    }
    return json.dumps(record, sort_keys=True, separators=(",", ":"))


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= _MAX_TEXT else value[:_MAX_TEXT] + "..."
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [_cut(item) for item in list(items)[:_MAX_ITEMS]]
    return value


def chain_hash(before: str, seq: int, text: str) -> str:
    return hashlib.sha256(bytes.fromhex(before) + seq.to_bytes(8, "big") + text.encode()).hexdigest()


def records(connection: Connection, since: int, limit: int) -> list[JournalRecord]:
    """Records after ``since``, in order, at most ``limit``. Raises StoreCorrupt when one cannot be read."""
    return [_record(seq, text, digest) for seq, text, digest in _rows(connection, since, limit)]


def _rows(connection: Connection, since: int, limit: int) -> list[tuple[int, str, str]]:
    table = schema.journal
    query = select(table.c.seq, table.c.body, table.c.hash).where(table.c.seq > since).order_by(table.c.seq)
    return [(seq, text, digest) for seq, text, digest in connection.execute(query.limit(limit))]


def _record(seq: int, text: str, digest: str) -> JournalRecord:
    try:
        found = json.loads(text)
        return JournalRecord(
            seq, found["at"], found["kind"], found["subject"], found["caller"], found["facts"], digest
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        raise StoreCorrupt(f"journal record {seq} cannot be read: restore the database from a backup") from None


def verify(store: Store, *, tail: int | None = None) -> JournalVerdict:
    """Recompute the chain, from its start or only the last ``tail`` records, and compare it with the head.

    What is appended meanwhile is left for the next time. Raises StoreUnavailable."""
    with store.read() as tx:
        last, last_hash = tx.head.journal_seq, tx.head.journal_hash
        count = tx.connection.execute(select(func.count()).select_from(schema.journal)).scalar_one()
    start = 0 if tail is None else max(0, last - tail)
    return check_chain(_pages(store, start), last, last_hash, start, count >= last)


def _pages(store: Store, start: int) -> Iterator[tuple[int, str, str]]:
    """From the record ``start`` on (the first one only lends its hash)."""
    since = start - 1
    while True:
        with store.read() as tx:
            rows = _rows(tx.connection, since, _PAGE)
        if not rows:
            return
        yield from rows
        since = rows[-1][0]


def check_chain(
    rows: Iterator[tuple[int, str, str]], last: int, last_hash: str, start: int = 0, count_fits: bool = True
) -> JournalVerdict:
    """The verdict on ``rows`` (number, body, hash), which should run from ``start`` to ``last``."""
    before, at = schema.FIRST_HASH, start
    if start > 0:
        first = next(rows, None)
        if first is None or first[0] != start:
            return JournalVerdict(False, 0, last_hash, start, f"record {start} is missing")
        before = first[2]
    for seq, text, digest in rows:
        if seq > last:
            break
        if seq != at + 1:
            return JournalVerdict(False, at, last_hash, at + 1, f"record {at + 1} is missing")
        if not _fits(before, seq, text, digest):
            return JournalVerdict(False, at, last_hash, seq, f"record {seq} was changed after it was written")
        before, at = digest, seq
    if at != last or before != last_hash or not count_fits:
        return JournalVerdict(False, at, last_hash, at + 1, f"the chain ends at {at}, the head says {last}")
    return JournalVerdict(True, at, last_hash)


def _fits(before: str, seq: int, text: str, digest: str) -> bool:
    return chain_hash(before, seq, text) == digest
