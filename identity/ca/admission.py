"""Whether a draft may be given out: the questions of one transaction, asked of the database once for all its
drafts, and then of what the drafts before it have changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import select

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
        self._ask_identities(tx, {d.spiffe_id for d in drafts} | {d.caller.id for d in drafts if d.caller.id})
        self._ask_keys(tx, {d.key_hash for d in drafts if d.key_hash})
        self._ask_holders(tx, {d.spiffe_id for d in drafts if d.exclusive})
        self._ask_entries(tx, {d.entry_id for d in drafts if d.entry_id})
        return self

    def _ask_identities(self, tx: Writing, ids: set[str]) -> None:
        table = schema.nodes
        for row in tx.rows(select(table.c.spiffe_id).where(table.c.spiffe_id.in_(ids), table.c.banned != "")):
            self._barred[row.spiffe_id] = f"{row.spiffe_id} is banned"
        revoked = schema.revocations
        in_force = (revoked.c.what.in_(ids), revoked.c.kind == "id", revoked.c.expires_at > self.at)
        for row in tx.rows(select(revoked.c.what).where(*in_force)):
            self._barred.setdefault(row.what, f"{row.what} is revoked")

    def _ask_keys(self, tx: Writing, hashes: set[str]) -> None:
        if not hashes:
            return
        table, revoked, keys = schema.issued, schema.revocations, schema.authorities
        # Distinct: who asks again with the same key has as many rows as times.
        query = select(table.c.key_hash, table.c.spiffe_id, revoked.c.what).distinct()
        query = query.join(revoked, revoked.c.what == table.c.serial, isouter=True)
        for row in tx.rows(query.where(table.c.key_hash.in_(hashes), table.c.not_after > self.at)):
            self._owners[row.key_hash].add(row.spiffe_id)
            if row.what is not None:
                self._revoked_keys.add(row.key_hash)
        rows = tx.rows(select(keys.c.key_hash).where(keys.c.key_hash.in_(hashes)))
        self._authority_keys = {row.key_hash for row in rows}

    def _ask_holders(self, tx: Writing, ids: set[str]) -> None:
        if not ids:
            return
        table = schema.issued
        live = (table.c.spiffe_id.in_(ids), table.c.not_after > self.at, table.c.superseded.is_(False))
        for row in tx.rows(select(table.c.spiffe_id, table.c.key_hash).where(*live)):
            self._held[row.spiffe_id].add(row.key_hash)

    def _ask_entries(self, tx: Writing, ids: set[str]) -> None:
        if not ids:
            return
        table = schema.entries
        for row in tx.rows(select(table.c.id, table.c.spiffe_id, table.c.expires_at).where(table.c.id.in_(ids))):
            self._entries[row.id] = (row.spiffe_id, row.expires_at)

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
