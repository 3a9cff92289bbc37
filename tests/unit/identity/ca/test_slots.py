"""What is due, as a pure function of slots and time."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from identity.ca import slots
from identity.ca.model import CaSettings
from identity.ca.slots import Audience, Slot

SETTINGS = CaSettings(root_life=1200.0, issuing_life=1200.0, jwt_life=1200.0, svid_ttl=60.0, max_ttl=60.0,
                      refresh_hint=10.0, old_grace=50.0)  # fmt: skip
ACTIVE = Slot("one", "jwt", "active", False, 0.0, 1200.0, 0.0, 0.0, 0.0, 0.0, 1)
NEXT = replace(ACTIVE, id="two", state="prepared", not_before=600.0, not_after=1800.0, prepared_at=600.0)
NOBODY = Audience(0)


def acts(found: list[Slot], now: float, audience: Audience = NOBODY) -> list[tuple[str, str]]:
    return [
        (step.action, step.slot.id if step.slot else "") for step in slots.due(found, "jwt", now, SETTINGS, audience)
    ]


def test_the_next_is_prepared_at_half_of_the_life() -> None:
    assert acts([ACTIVE], 599.0) == []
    assert acts([ACTIVE], 600.0) == [("prepare", "one")]


def test_it_is_activated_at_five_sixths() -> None:
    assert acts([ACTIVE, NEXT], 999.0) == []
    assert acts([ACTIVE, NEXT], 1000.0) == [("activate", "two")]


def test_it_waits_until_it_was_published_for_two_refresh_intervals() -> None:
    late = replace(NEXT, prepared_at=1100.0)
    assert acts([ACTIVE, late], 1119.0) == []
    assert acts([ACTIVE, late], 1120.0) == [("activate", "two")]


def test_nodes_that_have_not_seen_it_hold_it_up_until_eleven_twelfths() -> None:
    behind = Audience(3, ("spiffe://td/host/1",))
    assert acts([ACTIVE, NEXT], 1099.0, behind) == []
    assert acts([ACTIVE, NEXT], 1100.0, behind) == [("activate", "two")]


def test_without_an_active_one_there_is_nothing_to_wait_for() -> None:
    assert acts([], 0.0) == [("prepare", "")]
    assert acts([NEXT], 600.0) == [("activate", "two")]
    assert acts([ACTIVE, NEXT], 1200.0, Audience(1, ("a",))) == [("activate", "two")]


def test_an_old_one_goes_after_its_last_leaf_and_the_grace() -> None:
    old = replace(ACTIVE, state="old", retired_at=1000.0, last_leaf=1060.0)
    now = replace(NEXT, state="active")
    assert acts([old, now], 1109.0) == []
    assert acts([old, now], 1110.0) == [("remove", "one")]


def test_a_root_stays_while_an_authority_under_it_does() -> None:
    root = replace(ACTIVE, kind="x509-root", state="old", retired_at=10.0)
    below = replace(ACTIVE, id="below", kind="x509-issuing", state="old", parent="one")
    assert not slots.may_remove([root, below], root, 10_000.0, SETTINGS)
    assert slots.may_remove([root], root, 10_000.0, SETTINGS)


def test_an_issuing_authority_waits_for_its_root() -> None:
    root = replace(NEXT, id="root", kind="x509-root")
    below = replace(NEXT, id="below", kind="x509-issuing", parent="root")
    assert not slots.may_sign([root, below], below)
    assert slots.may_sign([replace(root, state="active"), below], below)


def test_no_issuing_authority_is_prepared_that_would_end_with_the_one_before() -> None:
    root = replace(ACTIVE, id="root", kind="x509-root")
    issuing = replace(ACTIVE, kind="x509-issuing", parent="root")
    assert slots.due([root, issuing], "x509-issuing", 1150.0, SETTINGS, NOBODY) == []


times = st.floats(0, 5000)
states = st.sampled_from(["prepared", "active", "old"])


@settings(max_examples=100, deadline=None)
@given(
    active=st.builds(Slot, id=st.just("one"), kind=st.just("jwt"), state=st.just("active"), tainted=st.booleans(),
                     not_before=times, not_after=times, prepared_at=times, activated_at=times, retired_at=times,
                     last_leaf=times, published_sequence=st.integers(0, 5)),
    prepared_at=times,
    now=times,
)  # fmt: skip
def test_nothing_signs_before_two_refresh_intervals_while_something_else_can(
    active: Slot, prepared_at: float, now: float
) -> None:
    waiting = replace(NEXT, prepared_at=prepared_at)
    steps = slots.due([active, waiting], "jwt", now, SETTINGS, NOBODY)
    if any(step.action == "activate" for step in steps) and now < active.not_after:
        assert now >= prepared_at + 2 * SETTINGS.refresh_hint
