"""Registration entries in the store, as documents with SPIRE's field names.

    {"id", "spiffeId", "parentId", "selectors": ["type:value", ...], "expiresAt", "revisionNumber", ...}

What the fields mean and whether they are well formed is the entries' own module's; here is what needs the other
entries to be decided: ids, revisions, and that no two entries say the same (SPIRE: same SPIFFE ID, parent and
selectors). The document is kept whole, so a field that this version does not know survives an update by id.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

from sqlalchemy import delete, insert, select, update

from identity.ca import schema
from identity.ca.model import CallerFacts, Conflict, NoSuchThing, NotAllowed
from identity.ca.store import Reading, Writing

Document = Mapping[str, Any]

_MAX_PAGE: Final = 10_000
_MAX_BODY: Final = 64 * 1024  # bytes of one entry
_MAX_ENTRIES: Final = 100_000
_IN_ONE_QUERY: Final = 500


def create(tx: Writing, trust_domain: str, entry: Document, caller: CallerFacts) -> dict[str, Any]:
    table = schema.entries
    made = {**entry, "id": entry.get("id") or secrets.token_hex(16), "revisionNumber": 1}
    print_ = _fingerprint(made, trust_domain)
    query = select(table.c.id).where((table.c.id == made["id"]) | (table.c.fingerprint == print_))
    if (found := tx.one(query)) is not None:
        raise Conflict(f"entry {found.id} says the same already, or has the same id")
    tx.changes(insert(table).values(_row(made, print_)))
    _tell(tx, "entry_created", made, caller)
    return made


def change(tx: Writing, trust_domain: str, entry: Document, caller: CallerFacts) -> dict[str, Any]:
    before = get(tx, str(entry.get("id") or ""))
    revision = entry.get("revisionNumber") or 0
    if revision and revision != before["revisionNumber"]:
        raise Conflict(
            f"entry {entry['id']} is at revision {before['revisionNumber']}, not {revision}: read it again"
        )
    made = {**entry, "revisionNumber": before["revisionNumber"] + 1}
    table = schema.entries
    print_ = _fingerprint(made, trust_domain)
    other = tx.one(select(table.c.id).where(table.c.fingerprint == print_, table.c.id != made["id"]))
    if other is not None:
        raise Conflict(f"entry {other.id} says the same already")
    tx.changes(update(table).where(table.c.id == made["id"]).values(_row(made, print_)))
    _tell(tx, "entry_updated", made, caller)
    return made


def remove(tx: Writing, entry_id: str, caller: CallerFacts) -> None:
    found = get(tx, entry_id)
    tx.changes(delete(schema.entries).where(schema.entries.c.id == entry_id))
    _tell(tx, "entry_deleted", found, caller)


def get(tx: Reading, entry_id: str) -> dict[str, Any]:
    row = tx.one(select(schema.entries.c.body).where(schema.entries.c.id == entry_id))
    if row is None:
        raise NoSuchThing(f"there is no entry {entry_id[:200]!a}")
    return _document(row)


def page(
    tx: Reading, spiffe_id: str, parent_id: str, selectors: frozenset[str], limit: int, after: str
) -> list[dict[str, Any]]:
    """Selectors are compared here and not by the database: pages are filled from as many rows as it takes."""
    table = schema.entries
    query = select(table.c.id, table.c.body).order_by(table.c.id).limit(_IN_ONE_QUERY)
    for column, value in ((table.c.spiffe_id, spiffe_id), (table.c.parent_id, parent_id)):
        query = query.where(column == value) if value else query
    found: list[dict[str, Any]] = []
    while len(found) < (limit := min(limit, _MAX_PAGE)):
        rows = tx.rows(query.where(table.c.id > after))
        documents = map(_document, rows)
        found += [entry for entry in documents if selectors <= frozenset(entry.get("selectors", ()))]
        if len(rows) < _IN_ONE_QUERY:
            break
        after = rows[-1].id
    return found[:limit]


def under(tx: Reading, parent_id: str) -> list[dict[str, Any]]:
    table = schema.entries
    return [
        _document(row)
        for row in tx.rows(select(table.c.body).where(table.c.parent_id == parent_id).order_by(table.c.id))
    ]


def apply(
    tx: Writing, trust_domain: str, entries: Sequence[Document], prune: bool, caller: CallerFacts
) -> list[tuple[str, dict[str, Any]]]:
    if len(entries) > _MAX_ENTRIES:
        raise NotAllowed(f"more than {_MAX_ENTRIES} entries")
    stored = {row.id: _document(row) for row in tx.rows(select(schema.entries.c.id, schema.entries.c.body))}
    by_print = {_fingerprint(entry, trust_domain): entry_id for entry_id, entry in stored.items()}
    done: list[tuple[str, dict[str, Any]]] = []
    kept: set[str] = set()
    new: list[dict[str, Any]] = []  # rows, inserted together: a round trip for each would take minutes
    for entry in entries:
        print_ = _fingerprint(entry, trust_domain)
        known = str(entry.get("id") or "") or by_print.get(print_, "")
        if known in kept:
            raise Conflict(f"two of the entries are the same one: {entry.get('spiffeId')}")
        if known not in stored:
            if print_ in by_print:
                raise Conflict(f"entry {by_print[print_]} says the same already")
            made = {**entry, "id": known or secrets.token_hex(16), "revisionNumber": 1}
            new.append(_row(made, print_))
            _tell(tx, "entry_created", made, caller)
            done.append(("create", made))
            known = by_print[print_] = made["id"]
        elif _differs(stored[known], entry):
            done.append(("update", change(tx, trust_domain, {**entry, "id": known, "revisionNumber": 0}, caller)))
        kept.add(known)
    if new:
        tx.connection.execute(insert(schema.entries), new)
    return done + (_prune(tx, stored, kept, caller) if prune else [])


def _prune(
    tx: Writing, stored: Mapping[str, dict[str, Any]], kept: set[str], caller: CallerFacts
) -> list[tuple[str, dict[str, Any]]]:
    gone = [entry_id for entry_id in stored if entry_id not in kept]
    for begin in range(0, len(gone), _IN_ONE_QUERY):
        tx.changes(delete(schema.entries).where(schema.entries.c.id.in_(gone[begin : begin + _IN_ONE_QUERY])))
    for entry_id in gone:
        _tell(tx, "entry_deleted", stored[entry_id], caller)
    return [("delete", stored[entry_id]) for entry_id in gone]


def _differs(stored: Document, wanted: Document) -> bool:
    """Apart from what the store itself gives."""
    own = {"id", "revisionNumber", "createdAt"}
    return _meaning(stored, own) != _meaning(wanted, own)


def _meaning(entry: Document, without: set[str]) -> dict[str, Any]:
    sets = {"selectors", "federatesWith"}
    return {
        name: sorted(value) if name in sets else value
        for name, value in entry.items()
        if name not in without and value not in (None, "", [], (), 0, False)
    }


def _fingerprint(entry: Document, trust_domain: str) -> str:
    """Of what makes two entries the same. Raises NotAllowed for an ID of a foreign trust domain."""
    spiffe_id, parent_id = str(entry.get("spiffeId", "")), str(entry.get("parentId", ""))
    if not spiffe_id.startswith(f"spiffe://{trust_domain}/"):
        raise NotAllowed(f"{spiffe_id[:200]!a} is not an identity that {trust_domain} issues")
    selectors: Iterable[str] = entry.get("selectors", ())
    text = json.dumps([spiffe_id, parent_id, sorted(set(selectors))])
    return sha256(text.encode()).hexdigest()


def _row(entry: Mapping[str, Any], print_: str) -> dict[str, Any]:
    body = json.dumps(dict(entry), sort_keys=True)
    if len(body) > _MAX_BODY:
        raise NotAllowed("an entry is longer than 64 kB")
    return {
        "id": entry["id"],
        "spiffe_id": entry["spiffeId"],
        "parent_id": entry.get("parentId", ""),
        "fingerprint": print_,
        "expires_at": float(entry.get("expiresAt") or 0.0),
        "revision": entry["revisionNumber"],
        "body": body,
    }


def _document(row: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(row.body)
    return found


def _tell(tx: Writing, kind: str, entry: Document, caller: CallerFacts) -> None:
    tx.touch()
    facts = {"entry": entry["id"], "parent": entry.get("parentId", ""), "selectors": list(entry.get("selectors", ()))}
    tx.record(kind, str(entry["spiffeId"]), caller, revision=entry["revisionNumber"], **facts)
