"""The authorities' slots as values, and what is due with them. A pure function of the slots and of now.

    requested -> prepared -> active -> old -> gone
                    |                   |
                 published           tainted

An authority is *prepared* at half of the active one's life, which for a root and a JWT key means published: it
stands in the bundle. It becomes *active* at five sixths, when it has stood there for two refresh intervals and
every living node is known to hold that bundle; nodes that stay silent can delay this only to eleven twelfths
(C-15, IDENTITY.md 7; the thresholds are SPIRE's). The one before becomes *old*: it signs no more but stays in the
bundle until everything it has signed is expired, plus a grace of a day.

An issuing authority is not in the bundle itself; its root is. It waits like the others, which costs nothing.
When a new root becomes active, a new issuing authority under it does in the same step: peers trust it through
the root, which they have had all the while.

A step by hand is judged by ``unsafe_*``: each gives the sentences for why not, empty when it is safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from identity.ca.model import AuthorityKind, AuthorityState, CaSettings

Action = Literal["prepare", "activate", "remove"]


@dataclass(frozen=True, slots=True)
class Slot:
    """One authority, as far as decisions need it. Times: seconds of the epoch, 0 for "not yet"."""

    id: str
    kind: AuthorityKind
    state: AuthorityState
    tainted: bool
    not_before: float
    not_after: float
    prepared_at: float
    activated_at: float
    retired_at: float
    last_leaf: float
    published_sequence: int
    parent: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """What is due. ``slot``: whom it concerns; for "prepare" the active one, or None when there is none."""

    action: Action
    kind: AuthorityKind
    slot: Slot | None
    why: str


@dataclass(frozen=True, slots=True)
class Audience:
    """Who must trust an authority before it signs: living nodes, and those of them that do not have it yet."""

    living: int
    behind: tuple[str, ...] = ()


def in_state(slots: Sequence[Slot], kind: AuthorityKind, state: AuthorityState) -> Slot | None:
    """The newest slot of a kind in a state."""
    found = [slot for slot in slots if slot.kind == kind and slot.state == state]
    return max(found, key=lambda slot: (slot.retired_at, slot.prepared_at), default=None)


def share(slot: Slot, part: float) -> float:
    """The moment at which ``part`` of its life is over. The life counts from its first second, not from when it
    became active, so that a life is never longer than its certificate."""
    return slot.not_before + (slot.not_after - slot.not_before) * part


def due(
    slots: Sequence[Slot], kind: AuthorityKind, now: float, settings: CaSettings, audience: Audience
) -> list[Step]:
    """What is due with the authorities of one kind, in order. ``audience``: of the prepared one."""
    return [*_due_prepare(slots, kind, now, settings), *_due_activate(slots, kind, now, settings, audience)] + [
        Step("remove", kind, slot, "everything it has signed is over")
        for slot in slots
        if slot.kind == kind and slot.state == "old" and may_remove(slots, slot, now, settings)
    ]


def _due_prepare(slots: Sequence[Slot], kind: AuthorityKind, now: float, settings: CaSettings) -> list[Step]:
    if in_state(slots, kind, "prepared") is not None:
        return []
    active = in_state(slots, kind, "active")
    if active is None:
        return [Step("prepare", kind, None, "there is none")]
    if now < share(active, settings.prepare_at):
        return []
    if kind == "x509-issuing" and _is_root_short(slots, active):
        return []  # a new one under the same root would end with it as well; the next root brings its own
    return [Step("prepare", kind, active, "the active one has reached half of its life")]


def _is_root_short(slots: Sequence[Slot], active: Slot) -> bool:
    """Whether the issuing authority already lives as long as its root does."""
    own = next((root for root in slots if root.id == active.parent), None)
    return own is not None and own.not_after <= active.not_after


def _due_activate(
    slots: Sequence[Slot], kind: AuthorityKind, now: float, settings: CaSettings, audience: Audience
) -> list[Step]:
    prepared, active = in_state(slots, kind, "prepared"), in_state(slots, kind, "active")
    if prepared is None or not may_sign(slots, prepared):
        return []
    if active is None or now >= active.not_after:
        return [Step("activate", kind, prepared, "there is no active one")]
    if now < share(active, settings.activate_at) or now < published_long_enough(prepared, settings):
        return []
    if audience.behind and now < share(active, settings.activate_anyway_at):
        return []
    late = f", {len(audience.behind)} nodes not heard of" if audience.behind else ""
    return [Step("activate", kind, prepared, f"the active one has reached five sixths of its life{late}")]


def may_sign(slots: Sequence[Slot], slot: Slot) -> bool:
    """An issuing authority under a root that is only published must wait for it."""
    return slot.kind != "x509-issuing" or any(root.id == slot.parent and root.state != "prepared" for root in slots)


def published_long_enough(slot: Slot, settings: CaSettings) -> float:
    """From when on whoever refreshes the bundle in time has it."""
    return slot.prepared_at + 2 * settings.refresh_hint


def may_remove(slots: Sequence[Slot], slot: Slot, now: float, settings: CaSettings) -> bool:
    """Whether an old authority has had its last leaf and the grace. A root also waits for those under it."""
    if any(below.parent == slot.id for below in slots):
        return False
    return (
        now >= max(slot.last_leaf, slot.retired_at) + settings.old_grace or now >= slot.not_after + settings.old_grace
    )


def next_moment(slots: Sequence[Slot], kind: AuthorityKind, settings: CaSettings) -> tuple[str, float]:
    """The next step that will be taken by itself, and when: for people."""
    active, prepared = in_state(slots, kind, "active"), in_state(slots, kind, "prepared")
    if active is None:
        return ("activate", 0.0) if prepared is not None else ("prepare", 0.0)
    if prepared is None:
        return "prepare", share(active, settings.prepare_at)
    return "activate", max(share(active, settings.activate_at), published_long_enough(prepared, settings))


# -- steps by hand ------------------------------------------------------------------------------------------


def unsafe_prepare(slots: Sequence[Slot], kind: AuthorityKind) -> list[str]:
    """Preparing harms nobody; a third root beside an old one only makes bundles longer."""
    old = [slot for slot in slots if slot.kind == kind and slot.state == "old"]
    return [f"{len(old)} old ones are still in use"] if len(old) > 3 else []


def unsafe_activate(
    prepared: Slot, active: Slot | None, now: float, settings: CaSettings, audience: Audience
) -> list[str]:
    if active is None:
        return []  # nobody can be cut off
    reasons = []
    wait = published_long_enough(prepared, settings) - now
    if wait > 0:
        reasons.append(
            f"it was published {now - prepared.prepared_at:.0f} s ago: wait {wait:.0f} s, two refresh intervals"
        )
    return reasons + _behind(audience)


def unsafe_taint(audience: Audience) -> list[str]:
    """``audience``: of the active authority, which everybody is sent to."""
    return _behind(audience)


def unsafe_revoke(slot: Slot, presenting: int, audience: Audience) -> list[str]:
    reasons = _behind(audience)
    if presenting:
        reasons.append(
            f"{presenting} holders still present certificates under it: taint it, and wait for their renewal"
        )
    return reasons


def _behind(audience: Audience) -> list[str]:
    if not audience.behind:
        return []
    names = ", ".join(audience.behind[:3]) + (", ..." if len(audience.behind) > 3 else "")
    return [f"{len(audience.behind)} of {audience.living} nodes do not trust the next authority yet: {names}"]
