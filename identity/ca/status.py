"""What `ca status` shows: how much there is of everything, what ends when, and what is wrong."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Table, func, select

from identity.ca import authorities, schema, slots
from identity.ca.keys import KeyFolder
from identity.ca.model import KINDS, AuthorityView, CaSettings, CaStatus
from identity.ca.slots import Slot
from identity.ca.store import Reading


def ca_status(
    tx: Reading, keys: KeyFolder, trust_domain: str, store: str, settings: CaSettings, now: datetime
) -> CaStatus:
    at = now.timestamp()
    views = tuple(authorities.views(tx, keys))
    return CaStatus(
        trust_domain=trust_domain,
        store=store,
        authorities=views,
        bundle_sequence=tx.head.bundle_sequence,
        journal_seq=tx.head.journal_seq,
        entries=_count(tx, schema.entries),
        nodes=_count(tx, schema.nodes),
        banned=_count(tx, schema.nodes, schema.nodes.c.banned != ""),
        tokens=_count(tx, schema.tokens, schema.tokens.c.expires_at > at),
        live_svids=_count(tx, schema.issued, schema.issued.c.not_after > at),
        revocations=_count(tx, schema.revocations, schema.revocations.c.expires_at > at),
        first_lapse=_first_lapse(tx, at),
        problems=tuple(_problems(views, authorities.slots(tx), settings, at)),
    )


def _count(tx: Reading, table: Table, *where: object) -> int:
    return tx.count(select(func.count()).select_from(table).where(*where))  # type: ignore[arg-type]


def _first_lapse(tx: Reading, at: float) -> float:
    """The end of the newest certificate of each holder, and of these the first."""
    table = schema.issued
    newest = (
        select(func.max(table.c.not_after).label("end"))
        .where(table.c.not_after > at)
        .group_by(table.c.holder, table.c.spiffe_id)
        .subquery()
    )
    return float(tx.connection.execute(select(func.min(newest.c.end))).scalar() or 0.0)


def _problems(views: tuple[AuthorityView, ...], found: list[Slot], settings: CaSettings, at: float) -> list[str]:
    problems = []
    for kind in KINDS:
        view = next((view for view in views if view.kind == kind and view.state == "active"), None)
        if view is None:
            problems.append(f"there is no active {kind} authority: nothing of its kind can be issued")
        elif at >= view.not_after:
            problems.append(f"the active {kind} authority has expired")
        elif not view.has_key and kind != "x509-root":
            problems.append(f"the key of the active {kind} authority {view.id} is not on this replica")
        else:
            problems += _late(view, found, settings, at)
    return problems


def _late(view: AuthorityView, found: list[Slot], settings: CaSettings, at: float) -> list[str]:
    """An authority in the last sixth of its life without a successor that signs."""
    slot = next(slot for slot in found if slot.id == view.id)
    if at < slots.share(slot, settings.activate_at):
        return []
    end = datetime.fromtimestamp(view.not_after, UTC)
    waiting = slots.in_state(found, slot.kind, "prepared")
    how = f"{waiting.id} waits to be activated" if waiting else "none is prepared (an offline root needs `ca csr`)"
    return [f"the active {view.kind} authority ends at {end:%Y-%m-%dT%H:%M:%SZ} and {how}"]
