"""The rows of authorities move from state to state: the statements of rotation, each within its transaction."""

from __future__ import annotations

from sqlalchemy import delete, update

from identity.ca import authorities, making, schema, slots
from identity.ca.model import CallerFacts, Conflict
from identity.ca.slots import Slot
from identity.ca.store import Writing


def activate_row(tx: Writing, slot: Slot) -> bool:
    """prepared -> active, and the active one of its kind -> old. False when it is not prepared any more."""
    table = schema.authorities
    retire = update(table).where(table.c.kind == slot.kind, table.c.state == "active")
    tx.changes(retire.values(state="old", retired_at=tx.at))
    mine = update(table).where(table.c.id == slot.id, table.c.state == "prepared")
    if tx.changes(mine.values(state="active", activated_at=tx.at)) != 1:
        raise Conflict("it is not prepared any more")
    tx.touch()
    return True


def replace_issuing(tx: Writing, new: making.NewAuthority, caller: CallerFacts) -> None:
    """Under a new root: one that was prepared under the old root is dropped, the active one becomes old."""
    table = schema.authorities
    of_kind = table.c.kind == "x509-issuing"
    tx.changes(delete(table).where(of_kind, table.c.state == "prepared"))
    tx.changes(update(table).where(of_kind, table.c.state == "active").values(state="old", retired_at=tx.at))
    making.put(tx, new, "active")
    tx.record("authority_activated", "", caller, authority=new.id, of="x509-issuing", why="its root became active")


def activate_imported(tx: Writing, root: Slot, caller: CallerFacts) -> None:
    """Under a new root whose key is elsewhere: the issuing authority that was imported with it, if any. Without one
    the issuing authority under the root before goes on; that root stays in the bundle for as long."""
    prepared = slots.in_state(authorities.slots(tx), "x509-issuing", "prepared")
    if prepared is not None and prepared.parent == root.id:
        activate_row(tx, prepared)
        why = "its root became active"
        tx.record("authority_activated", "", caller, authority=prepared.id, of=prepared.kind, why=why)


def delete_row(tx: Writing, slot: Slot) -> bool:
    table = schema.authorities
    if tx.changes(delete(table).where(table.c.id == slot.id, table.c.state == slot.state)) != 1:
        return False
    if slot.kind == "x509-issuing":
        tx.touch()  # it never stood in the bundle
    else:
        tx.bundle_changed()
    if slot.tainted:
        tx.revocations_changed()
    return True
