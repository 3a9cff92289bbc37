"""The part of ``service.CaService`` that keeps who is who: entries, join tokens, nodes. Rules as there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from identity.ca import entry_store, registry, revocation
from identity.ca.entry_store import Document
from identity.ca.model import CallerFacts, CaSettings, Node, TokenView
from identity.ca.store import Store
from identity.spiffe import SpiffeId

OPERATOR: Final = CallerFacts("operator", f"uid:{os.geteuid()}")


class Registration:
    """See the module. Entries are documents with SPIRE's field names (``entry_store``)."""

    def __init__(self, store: Store, trust_domain: str, settings: CaSettings) -> None:
        self.trust_domain = trust_domain
        self.settings = settings
        self._store = store

    # -- entries --------------------------------------------------------------------------------------------

    def create_entry(self, entry: Document, *, now: datetime, caller: CallerFacts = OPERATOR) -> dict[str, Any]:
        """Store a new entry; its id is made when empty. Raises Conflict (same id, or same ID, parent and selectors),
        NotAllowed (a foreign trust domain)."""
        with self._store.write(now) as tx:
            return entry_store.create(tx, self.trust_domain, entry, caller)

    def update_entry(self, entry: Document, *, now: datetime, caller: CallerFacts = OPERATOR) -> dict[str, Any]:
        """Replace the entry of the same id. A ``revision_number`` other than 0 must be the stored one. Gives it with
        the next revision. Raises NoSuchThing, Conflict."""
        with self._store.write(now) as tx:
            return entry_store.change(tx, self.trust_domain, entry, caller)

    def delete_entry(self, entry_id: str, *, now: datetime, caller: CallerFacts = OPERATOR) -> None:
        """Raises NoSuchThing."""
        with self._store.write(now) as tx:
            entry_store.remove(tx, entry_id, caller)

    def get_entry(self, entry_id: str) -> dict[str, Any]:
        """Raises NoSuchThing."""
        with self._store.read() as tx:
            return entry_store.get(tx, entry_id)

    def list_entries(
        self,
        *,
        spiffe_id: str = "",
        parent_id: str = "",
        selectors: Iterable[str] = (),
        limit: int = 100,
        after: str = "",
    ) -> list[dict[str, Any]]:
        """Entries that fit everything given (``selectors``: the entry has all of these), ordered by id; ``after``:
        the last id of the page before."""
        with self._store.read() as tx:
            return entry_store.page(tx, spiffe_id, parent_id, frozenset(selectors), limit, after)

    def entries_under(self, parent_id: str) -> list[dict[str, Any]]:
        """All entries whose parent is ``parent_id``, the expired ones too."""
        with self._store.read() as tx:
            return entry_store.under(tx, parent_id)

    def apply_entries(
        self,
        entries: Sequence[Document],
        *,
        prune: bool = False,
        dry_run: bool = False,
        now: datetime,
        caller: CallerFacts = OPERATOR,
    ) -> list[tuple[str, dict[str, Any]]]:
        """Make the store hold ``entries``, all or nothing: ("create" | "update" | "delete", entry) for each change.
        An entry is the same when its id is, or without id when SPIFFE ID, parent and selectors are. ``prune``
        deletes what is not among them. Raises NotAllowed, Conflict."""
        with self._store.write(now, dry_run=dry_run) as tx:
            return entry_store.apply(tx, self.trust_domain, entries, prune, caller)

    # -- join tokens and nodes ------------------------------------------------------------------------------

    def create_token(
        self, spiffe_id: SpiffeId, *, ttl: float = 600.0, now: datetime, caller: CallerFacts = OPERATOR
    ) -> str:
        """A one-time secret that admits the bearer as ``spiffe_id`` (C-11). Shown once; only its hash is kept."""
        with self._store.write(now) as tx:
            return registry.create_token(tx, self.trust_domain, spiffe_id, ttl, caller)

    def consume_token(self, secret: str, *, source: str, now: datetime) -> SpiffeId:
        """Use the token up: exactly one caller ever gets the answer. ``source``: address, for the journal.
        Raises NotAllowed with the same text for unknown, used and expired ones (the journal tells them apart)."""
        return registry.consume_token(self._store, secret, source, now)

    def tokens(self, *, now: datetime) -> list[TokenView]:
        """Unused tokens that are still good."""
        with self._store.read() as tx:
            return registry.tokens(tx, now.timestamp())

    def delete_token(self, token_id: str, *, now: datetime, caller: CallerFacts = OPERATOR) -> None:
        """Withdraw an unused token by ``TokenView.id``. Raises NoSuchThing."""
        with self._store.write(now) as tx:
            registry.delete_token(tx, token_id, caller)

    def record_node(
        self,
        spiffe_id: SpiffeId,
        how: str,
        selectors: Sequence[str],
        *,
        key_hash: str,
        machine_id: str,
        expires_at: float = 0.0,
        now: datetime,
        caller: CallerFacts,
    ) -> Node:
        """A node has attested: keep what is known about it. Raises NotAllowed when it is banned."""
        with self._store.write(now) as tx:
            return registry.record_node(tx, str(spiffe_id), how, selectors, key_hash, machine_id, expires_at, caller)

    def seen_bundle(self, spiffe_id: SpiffeId, sequence: int, *, now: datetime) -> None:
        """The node has told us (or acknowledged) the bundle it holds: who trusts the next authority is known from
        this. Not journaled. Unknown nodes are ignored."""
        with self._store.read() as look:
            if registry.has_seen(look, str(spiffe_id), sequence):
                return
        with self._store.write(now) as tx:
            registry.seen_bundle(tx, str(spiffe_id), sequence)

    def node(self, spiffe_id: SpiffeId) -> Node:
        """Raises NoSuchThing."""
        with self._store.read() as tx:
            return registry.node(tx, str(spiffe_id))

    def nodes(self, *, limit: int = 1000, after: str = "") -> list[Node]:
        """Ordered by SPIFFE ID; ``after``: the last one of the page before."""
        with self._store.read() as tx:
            return registry.nodes(tx, limit, after)

    def nodes_of_machine(self, machine_id: str) -> list[Node]:
        """For clone detection: who else has shown this machine id."""
        with self._store.read() as tx:
            return registry.nodes_of_machine(tx, machine_id)

    def ban(self, spiffe_id: SpiffeId, reason: str, *, now: datetime, caller: CallerFacts = OPERATOR) -> None:
        """The node gets nothing any more, until ``unban``; its certificates are revoked. Raises NoSuchThing."""
        with self._store.write(now) as tx:
            registry.ban(tx, str(spiffe_id), reason, caller)
            revocation.revoke_id(tx, str(spiffe_id), reason, self.settings, caller)

    def unban(self, spiffe_id: SpiffeId, *, now: datetime, caller: CallerFacts = OPERATOR) -> None:
        """It may attest again. Raises NoSuchThing."""
        with self._store.write(now) as tx:
            registry.unban(tx, str(spiffe_id), caller)

    def is_banned(self, spiffe_id: SpiffeId) -> bool:
        """Checked at each renewal (C-13)."""
        with self._store.read() as tx:
            return registry.is_banned(tx, str(spiffe_id))

    def forget_node(self, spiffe_id: SpiffeId, *, now: datetime, caller: CallerFacts = OPERATOR) -> None:
        """Take a node off the list (`leave`); a ban goes with it. Raises NoSuchThing."""
        with self._store.write(now) as tx:
            registry.forget_node(tx, str(spiffe_id), caller)
