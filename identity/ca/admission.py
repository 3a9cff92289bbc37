"""Whether a draft may be given out: the questions of one transaction, asked of the database once for all its
drafts, and then of what the drafts before it have changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Double, Select, literal, select, union_all

from identity.ca import schema
from identity.ca.store import Writing

if TYPE_CHECKING:
    from identity.ca.issuing import Draft


class Admission:
    """What a transaction knows about the identities, callers, keys and entries of its drafts."""

    def __init__(self) -> None:
        self.at = 0.0
        self.records: dict[str, int] = {}  # serial -> journal number
        self._barred: dict[str, str] = {}  # SPIFFE ID -> why
        self._authority_keys: set[str] = set()
        self._revoked_keys: set[str] = set()
        self._owners: defaultdict[str, set[str]] = defaultdict(set)  # key hash -> identities that hold it
        self._held: defaultdict[str, set[str]] = defaultdict(set)  # exclusive identity -> key hashes that hold it
        self._entries: dict[str, tuple[str, float]] = {}  # entry id -> SPIFFE ID or pattern, end

    @classmethod
    def of(cls, tx: Writing, drafts: Sequence[Draft]) -> Admission:
        self = cls()
        self.at = tx.at
        for what, name, value, end in tx.rows(union_all(*_questions(drafts, tx.at))):
            self._take(what, name, value, end)
        return self

    def _take(self, what: str, name: str, value: str, end: float) -> None:
        if what == "banned":
            self._barred[name] = f"{name} is banned"
        elif what == "revoked":
            self._barred.setdefault(name, f"{name} is revoked")
        elif what == "owner":
            self._owners[name].add(value)
        elif what == "revoked key":
            self._revoked_keys.add(name)
        elif what == "authority":
            self._authority_keys.add(name)
        elif what == "held":
            self._held[name].add(value)
        else:
            self._entries[name] = (value, end)

    # -- judging --------------------------------------------------------------------------------------------

    def refusal(self, draft: Draft) -> str | None:
        """Why it may not be given out, None when it may."""
        for who in (draft.spiffe_id, draft.caller.id):
            if who in self._barred:
                return self._barred[who]
        return self._entry_refusal(draft) or self._key_refusal(draft) or self._holder_refusal(draft)

    def _entry_refusal(self, draft: Draft) -> str | None:
        if not draft.entry_id:
            return None
        found = self._entries.get(draft.entry_id)
        if found is None:
            return f"entry {draft.entry_id} does not exist any more"
        spiffe_id, end = found
        if 0 < end <= self.at:
            return f"entry {draft.entry_id} has expired"
        if spiffe_id != draft.spiffe_id and "{" not in spiffe_id:
            return f"entry {draft.entry_id} is for {spiffe_id}"
        return None

    def _key_refusal(self, draft: Draft) -> str | None:
        if not draft.key_hash:
            return None
        if draft.key_hash in self._authority_keys:
            return "the requested key is an authority's own (C-4)"
        if draft.key_hash in self._revoked_keys:
            return "a certificate of this key was revoked"
        if self._owners[draft.key_hash] - {draft.spiffe_id}:
            return "another identity holds a certificate of this key (C-4)"
        return None

    def _holder_refusal(self, draft: Draft) -> str | None:
        if draft.exclusive and self._held[draft.spiffe_id] - {draft.key_hash, draft.replaces}:
            return f"{draft.spiffe_id} is held with another key"
        return None

    def admit(self, draft: Draft, journal_seq: int) -> None:
        """It is given out: drafts after it in this transaction are judged by that."""
        if draft.serial:
            self.records[draft.serial] = journal_seq
            self._owners[draft.key_hash].add(draft.spiffe_id)
            if draft.exclusive:
                self._held[draft.spiffe_id] = {draft.key_hash}

    def is_newest(self, draft: Draft) -> bool:
        """Whether no later draft of this transaction has replaced it."""
        return not draft.exclusive or self._held[draft.spiffe_id] == {draft.key_hash}


# -- the question -------------------------------------------------------------------------------------------


def _questions(drafts: Sequence[Draft], at: float) -> list[Select[Any]]:
    """Parts of one question, because each answer is waited for with the head locked. Rows: what is told, of whom,
    a value, an end."""
    return [
        *_of_identities({d.spiffe_id for d in drafts} | {d.caller.id for d in drafts if d.caller.id}, at),
        *_of_keys({d.key_hash for d in drafts if d.key_hash}, at),
        *_of_holders({d.spiffe_id for d in drafts if d.exclusive}, at),
        *_of_entries({d.entry_id for d in drafts if d.entry_id}),
    ]


def _part(what: str, name: Any, value: Any = None, end: Any = None) -> Select[Any]:
    return select(
        literal(what), name, literal("") if value is None else value, literal(0.0, Double) if end is None else end
    )


def _of_identities(ids: set[str], at: float) -> list[Select[Any]]:
    nodes, revoked = schema.nodes, schema.revocations
    in_force = (revoked.c.what.in_(ids), revoked.c.kind == "id", revoked.c.expires_at > at)
    return [
        _part("banned", nodes.c.spiffe_id).where(nodes.c.spiffe_id.in_(ids), nodes.c.banned != ""),
        _part("revoked", revoked.c.what).where(*in_force),
    ]


def _of_keys(hashes: set[str], at: float) -> list[Select[Any]]:
    """Distinct: who asks again with the same key has as many rows as times."""
    if not hashes:
        return []
    issued, revoked, keys = schema.issued, schema.revocations, schema.authorities
    live = (issued.c.key_hash.in_(hashes), issued.c.not_after > at)
    return [
        _part("owner", issued.c.key_hash, issued.c.spiffe_id).where(*live).distinct(),
        _part("revoked key", issued.c.key_hash).where(*live, revoked.c.what == issued.c.serial).distinct(),
        _part("authority", keys.c.key_hash).where(keys.c.key_hash.in_(hashes)),
    ]


def _of_holders(ids: set[str], at: float) -> list[Select[Any]]:
    if not ids:
        return []
    table = schema.issued
    live = (table.c.spiffe_id.in_(ids), table.c.not_after > at, table.c.superseded.is_(False))
    return [_part("held", table.c.spiffe_id, table.c.key_hash).where(*live).distinct()]


def _of_entries(ids: set[str]) -> list[Select[Any]]:
    table = schema.entries
    return (
        [_part("entry", table.c.id, table.c.spiffe_id, table.c.expires_at).where(table.c.id.in_(ids))] if ids else []
    )
