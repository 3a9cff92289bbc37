"""Authorities come and go: by themselves (``tick``), or step by step by hand.

What is due is ``slots``' decision, a pure function; here it is done. Each act is one transaction that first reads
the slots again, under the head's lock, and does nothing when they have changed: so of several replicas that find
the same thing due at the same time, one does it. Keys are made and written before the transaction (they must be
durable before a row speaks of them) and thrown away by whoever comes second.

A root whose key is not here cannot sign the next issuing authority. Then ``tick`` leaves it at what it can do,
status says what is missing, and ``csr`` and ``import_issuing`` are the way.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime
from typing import Final

from sqlalchemy import update

from identity.authority import IssueError
from identity.ca import authorities, housekeeping, making, schema, slots, transitions, upstream
from identity.ca.keys import KeyFolder
from identity.ca.model import (
    ITSELF,
    KINDS,
    AuthorityKind,
    CallerFacts,
    CaSettings,
    Conflict,
    NoSuchThing,
    RotationReport,
    StoreUnavailable,
    UnsafeStep,
)
from identity.ca.revocation import Revocation
from identity.ca.revocation import add as add_revocation
from identity.ca.slots import Audience, Slot, Step
from identity.ca.store import Reading, Store, Writing

_NAMED: Final = 20  # SPIFFE IDs in a report
_TURNS: Final = 4  # prepare, activate, remove, and one to find that nothing is left


class Rotation:
    """Moves the slots of one store. Safe to use from many threads and replicas."""

    def __init__(self, store: Store, keys: KeyFolder, trust_domain: str, settings: CaSettings) -> None:
        self.settings = settings
        self._store = store
        self._keys = keys
        self._trust_domain = trust_domain
        self._rng = random.SystemRandom()

    # -- by itself ------------------------------------------------------------------------------------------

    def tick(self, now: datetime) -> list[str]:
        done = []
        for kind in KINDS:
            done += self._catch_up(kind, now)
        return done + housekeeping.prune(self._store, self._keys, now)

    def _catch_up(self, kind: AuthorityKind, now: datetime) -> list[str]:
        """Whatever is due with a kind. After an outage one step makes the next one due: none of them waits for the
        next turn, because what stands below (issuing authority under root) waits for it."""
        done: list[str] = []
        for _ in range(_TURNS):
            did = [what for step in self._due(kind, now) for what in self._do(step, now)]
            if not did:
                break
            done += did
        return done

    def _due(self, kind: AuthorityKind, now: datetime) -> list[Step]:
        with self._store.read() as tx:
            return self._due_in(tx, kind, now)

    def _due_in(self, tx: Reading, kind: AuthorityKind, now: datetime) -> list[Step]:
        found, at = authorities.slots(tx), now.timestamp()
        prepared = slots.in_state(found, kind, "prepared")
        audience = authorities.audience(tx, prepared.published_sequence, at) if prepared else Audience(0)
        return slots.due(found, kind, at, self.settings, audience)

    def _do(self, step: Step, now: datetime) -> list[str]:
        if step.action == "prepare":
            made = self._prepare(step.kind, now, ITSELF, step)
            return [f"prepared {step.kind} {made}: {step.why}"] if made else []
        assert step.slot is not None
        if step.action == "activate":
            is_done = self._activate(step.slot, now, ITSELF, step)
        else:
            is_done = self._remove(step.slot, now, step)
        return [f"{step.action}d {step.kind} {step.slot.id}: {step.why}"] if is_done else []

    def _is_due(self, tx: Reading, step: Step, now: datetime) -> bool:
        """Whether it still is, seen from within the transaction that would do it."""
        return any(
            found.action == step.action and (found.slot and found.slot.id) == (step.slot and step.slot.id)
            for found in self._due_in(tx, step.kind, now)
        )

    # -- acts -----------------------------------------------------------------------------------------------

    def _prepare(self, kind: AuthorityKind, now: datetime, caller: CallerFacts, step: Step | None) -> str:
        """Gives the new authority's id, empty when another came first or the root's key is not here."""
        with self._store.read() as tx:
            root = authorities.active(tx, "x509-root")
        if kind != "jwt" and (root is None or not self._keys.has(root.id)):
            if step is None:
                raise StoreUnavailable("the root's key is not here: use `sidewall ca csr` and `sidewall ca import`")
            return ""
        if kind == "x509-issuing" and root.not_after <= now.timestamp():
            if step is None:
                raise Conflict("the root has expired: prepare and activate the next root, it brings its own")
            return ""
        new = making.make(kind, self._trust_domain, root, self._keys, self.settings, now=now, rng=self._rng)

        def put(tx: Writing) -> bool:
            found = authorities.slots(tx)
            if slots.in_state(found, kind, "prepared") or (step and not self._is_due(tx, step, now)):
                return False
            if kind == "x509-issuing" and not any(s.id == new.parent and s.state == "active" for s in found):
                return False
            has_active = slots.in_state(found, kind, "active") is not None
            making.put(tx, new, "prepared" if has_active else "active")
            tx.record(
                "authority_prepared", "", caller, authority=new.id, of=kind, why=step.why if step else "by hand"
            )
            return True

        return new.id if self._keep_if(put, new.id, now) else ""

    def _activate(self, slot: Slot, now: datetime, caller: CallerFacts, step: Step | None) -> bool:
        below = self._next_issuing(slot, now) if slot.kind == "x509-root" else None

        def put(tx: Writing) -> bool:
            if step is not None and not self._is_due(tx, step, now):
                return False
            if not transitions.activate_row(tx, slot):
                return False
            why = step.why if step else "by hand"
            tx.record("authority_activated", "", caller, authority=slot.id, of=slot.kind, why=why)
            if below is not None:
                transitions.replace_issuing(tx, below, caller)
            elif slot.kind == "x509-root":
                transitions.activate_imported(tx, slot, caller)
            return True

        return self._keep_if(put, below.id if below else "", now)

    def _next_issuing(self, root: Slot, now: datetime) -> making.NewAuthority | None:
        """Under the root that is about to become active. None when its key is elsewhere: the issuing authority under
        the one before goes on, until an import replaces it."""
        if not self._keys.has(root.id):
            return None
        with self._store.read() as tx:
            row = next((row for row in authorities.rows(tx) if row.id == root.id), None)
        return making.make("x509-issuing", self._trust_domain, row, self._keys, self.settings, now=now, rng=self._rng)

    def _keep_if(self, put: Callable[[Writing], bool], new_id: str, now: datetime) -> bool:
        """Run ``put`` in a transaction; a key that was made for it goes when it was not needed.

        When the outcome of the commit is unknown the key stays: the row may be there. ``sweep`` finds it."""
        try:
            with self._store.write(now) as tx:
                is_done = put(tx)
        except Conflict:
            is_done = False
        if new_id and not is_done:
            self._keys.destroy(new_id)
        return is_done

    def _remove(self, slot: Slot, now: datetime, step: Step) -> bool:
        with self._store.write(now) as tx:
            if not self._is_due(tx, step, now) or not transitions.delete_row(tx, slot):
                return False
            tx.record("authority_removed", "", ITSELF, authority=slot.id, of=slot.kind, why=step.why)
        self._keys.destroy(slot.id)
        return True

    # -- by hand --------------------------------------------------------------------------------------------

    def step(
        self,
        action: str,
        kind: AuthorityKind,
        authority_id: str,
        force: bool,
        dry_run: bool,
        now: datetime,
        caller: CallerFacts,
    ) -> RotationReport:
        with self._store.read() as tx:
            slot, report = self._judge(tx, action, kind, authority_id, now)
        if dry_run:
            return report
        if report.unsafe and not force:
            with self._store.write(now) as tx:
                tx.record(
                    "step_refused",
                    "",
                    caller,
                    action=action,
                    of=kind,
                    authority=report.authority_id,
                    why=list(report.unsafe),
                )
            raise UnsafeStep(report.unsafe)
        done_id = self._act(action, kind, slot, now, caller)
        return _done(report, done_id)

    def _act(self, action: str, kind: AuthorityKind, slot: Slot | None, now: datetime, caller: CallerFacts) -> str:
        try:
            if action == "prepare":
                made = self._prepare(kind, now, caller, None)
            elif slot is None:
                raise NoSuchThing(f"there is no {kind} authority to {action}")
            elif action == "activate":
                made = slot.id if self._activate(slot, now, caller, None) else ""
            elif action == "taint":
                made = self._taint(slot, now, caller)
            else:
                made = self._revoke(slot, now, caller)
        except IssueError as error:
            raise Conflict(str(error)) from None
        if not made:
            raise Conflict("somebody else has changed the authorities in the meantime: look again")
        return made

    def _taint(self, slot: Slot, now: datetime, caller: CallerFacts) -> str:
        table = schema.authorities
        with self._store.write(now) as tx:
            mine = (table.c.state == "old", table.c.tainted.is_(False))
            whole = (table.c.id == slot.id) | (table.c.parent == slot.id)
            if tx.changes(update(table).where(whole, *mine).values(tainted=True)) == 0:
                return ""
            tx.revocations_changed()
            tx.record("authority_tainted", "", caller, authority=slot.id, of=slot.kind)
        return slot.id

    def _revoke(self, slot: Slot, now: datetime, caller: CallerFacts) -> str:
        with self._store.write(now) as tx:
            found = [s for s in authorities.slots(tx) if s.id == slot.id or s.parent == slot.id]
            if any(s.state == "active" for s in found) or not found:
                return ""
            for gone in sorted(found, key=lambda s: s.id == slot.id):  # those under it first
                transitions.delete_row(tx, gone)
                end = max(gone.last_leaf, tx.at)
                if gone.kind == "x509-issuing" and gone.last_leaf > tx.at:
                    add_revocation(tx, Revocation("authority", gone.id, "authority revoked", tx.at, end), "", caller)
                tx.record("authority_revoked", "", caller, authority=gone.id, of=gone.kind)
        for gone in found:
            self._keys.destroy(gone.id)
        return slot.id

    # -- judging steps --------------------------------------------------------------------------------------

    def _judge(
        self, tx: Reading, action: str, kind: AuthorityKind, authority_id: str, now: datetime
    ) -> tuple[Slot | None, RotationReport]:
        """The slot a step is about and the report of what it would do. Raises NoSuchThing, Conflict."""
        found, at = authorities.slots(tx), now.timestamp()
        slot = _subject(found, action, kind, authority_id)
        following = slots.in_state(found, kind, "prepared" if action in {"prepare", "activate"} else "active")
        audience = authorities.audience(tx, following.published_sequence if following else 0, at)
        under = [s.id for s in found if slot and (s.id == slot.id or s.parent == slot.id)]
        presenting = authorities.presenting(tx, under, at) if under and action in {"taint", "revoke"} else 0
        unsafe = self._unsafe(action, kind, found, slot, at, audience, presenting)
        report = RotationReport(
            kind=kind,
            action=action,
            authority_id=slot.id if slot else "",
            done=False,
            living=audience.living,
            trusting=audience.living - len(audience.behind),
            behind=audience.behind[:_NAMED],
            presenting=presenting,
            unsafe=tuple(unsafe),
            next_step=_NEXT[action],
        )
        return slot, report

    def _unsafe(
        self,
        action: str,
        kind: AuthorityKind,
        found: list[Slot],
        slot: Slot | None,
        at: float,
        audience: Audience,
        presenting: int,
    ) -> list[str]:
        if action == "prepare":
            return slots.unsafe_prepare(found, kind)
        assert slot is not None
        if action == "activate":
            active = slots.in_state(found, kind, "active")
            return slots.unsafe_activate(slot, active, at, self.settings, audience)
        if action == "taint":
            return slots.unsafe_taint(audience)
        return slots.unsafe_revoke(slot, presenting, audience)

    def status(self, now: datetime) -> dict[AuthorityKind, RotationReport]:
        return {kind: self._status_of(kind, now) for kind in KINDS}

    def _status_of(self, kind: AuthorityKind, now: datetime) -> RotationReport:
        with self._store.read() as tx:
            found = authorities.slots(tx)
            action, when = slots.next_moment(found, kind, self.settings)
            if action == "activate":
                _, report = self._judge(tx, action, kind, "", now)
            else:
                report = RotationReport(kind, action, "", False)
        wait = max(0.0, when - now.timestamp())
        return _with(report, next_step=f"{action} by itself in {wait:.0f} s")

    # -- an upstream authority ------------------------------------------------------------------------------

    def csr(self, now: datetime, caller: CallerFacts) -> bytes:
        return upstream.csr(self._store, self._keys, self._trust_domain, now, caller)

    def import_issuing(self, chain_pem: bytes, now: datetime, caller: CallerFacts) -> RotationReport:
        return upstream.import_issuing(self._store, self._trust_domain, chain_pem, now, caller)


_NEXT: Final = {
    "prepare": "activate, when every node trusts it",
    "activate": "taint the old one, so that everything it has signed is renewed at once",
    "taint": "revoke it, when nobody presents its certificates any more",
    "revoke": "nothing: it is gone",
}


def _subject(found: list[Slot], action: str, kind: AuthorityKind, authority_id: str) -> Slot | None:
    """Which slot a step by hand is about. Raises NoSuchThing, Conflict."""
    if action == "prepare":
        if slots.in_state(found, kind, "prepared") is not None:
            raise Conflict(f"a {kind} authority is prepared already: activate it")
        return None
    if not authority_id:
        slot = slots.in_state(found, kind, "prepared" if action == "activate" else "old")
    else:
        slot = next((s for s in found if s.id == authority_id and s.kind == kind), None)
    if slot is None:
        raise NoSuchThing(f"there is no {kind} authority to {action}")
    if action == "activate" and not slots.may_sign(found, slot):
        raise Conflict(f"{slot.id} hangs under a root that is not active yet: activate the root")
    if action in {"taint", "revoke"} and slot.state != "old":
        raise Conflict(f"{slot.id} is {slot.state}: activate the next one first")
    return slot


def _done(report: RotationReport, authority_id: str) -> RotationReport:
    return _with(report, done=True, authority_id=authority_id)


def _with(report: RotationReport, **changes: object) -> RotationReport:
    from dataclasses import replace

    return replace(report, **changes)  # type: ignore[arg-type]
