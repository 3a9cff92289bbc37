"""Who is refused by a quarantine, who is not, and what can be kept of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import AccessDenied
from proxy.policy.quarantine import MAX_BLOCKS, Block, Quarantine, block_from_json

WEB, API, OPS, DB = (f"td.test/ns/shop/sa/{name}" for name in ("web", "api", "ops", "db"))
NAMES = st.sampled_from([WEB, API, OPS, DB, None])
BLOCKS = st.builds(
    Block,
    principal=st.sampled_from([WEB, API, OPS, DB]),
    since=st.just(0.0),
    until=st.sampled_from([0.0, 50.0, 150.0]),
    exempt=st.lists(st.sampled_from([WEB, API, OPS, DB]), max_size=2).map(tuple),
)


@pytest.mark.parametrize(("caller", "callee"), [(WEB, API), (API, WEB), (WEB, None), (None, WEB), (WEB, WEB)])
def test_calls_from_and_to_the_blocked_identity_are_refused(caller: str | None, callee: str | None) -> None:
    quarantine = Quarantine([Block(WEB, 0.0)])
    with pytest.raises(AccessDenied) as refused:
        quarantine.check(caller, callee, 100.0)
    assert refused.value.reason == "quarantined"
    assert refused.value.decision.policy == f"quarantine/{WEB}"


@given(blocks=st.lists(BLOCKS, max_size=4), added=BLOCKS, caller=NAMES, callee=NAMES)
def test_a_quarantine_changes_no_decision_about_others(
    blocks: list[Block], added: Block, caller: str | None, callee: str | None
) -> None:
    before = Quarantine(block for block in blocks if block.principal != added.principal)
    after = before.with_block(added)
    if added.principal not in (caller, callee):
        assert after.hit(caller, callee, 100.0) == before.hit(caller, callee, 100.0)
    elif before.hit(caller, callee, 100.0):
        assert after.hit(caller, callee, 100.0), "a block lets nobody out"


@given(blocks=st.lists(BLOCKS, max_size=4), caller=NAMES, callee=NAMES)
def test_it_says_the_same_as_its_own_words(blocks: list[Block], caller: str | None, callee: str | None) -> None:
    quarantine, now = Quarantine(blocks), 100.0
    last = {block.principal: block for block in blocks}

    def refuses(one: str | None, other: str | None) -> bool:
        block = last.get(one or "")
        return block is not None and (block.until in (0.0, 150.0)) and other not in block.exempt

    assert bool(quarantine.hit(caller, callee, now)) == (refuses(caller, callee) or refuses(callee, caller))
    kept = Quarantine.from_json(json.dumps(quarantine.as_json()))
    assert kept.blocks == quarantine.blocks
    assert quarantine.live(now).hit(caller, callee, now) == quarantine.hit(caller, callee, now)


def test_an_exempt_identity_may_go_on_talking_with_it() -> None:
    quarantine = Quarantine([Block(WEB, 0.0, exempt=(OPS,))])
    assert quarantine.hit(OPS, WEB, 1.0) is None
    assert quarantine.hit(WEB, OPS, 1.0) is None
    assert quarantine.hit(API, WEB, 1.0) is not None


def test_it_ends_at_its_time_and_not_before() -> None:
    quarantine = Quarantine([Block(WEB, 0.0, until=100.0)])
    assert quarantine.hit(WEB, API, 99.999) is not None
    assert quarantine.hit(WEB, API, 100.0) is None
    assert len(quarantine.live(100.0)) == 0


def test_lifting_lets_out_one_and_nobody_else() -> None:
    quarantine = Quarantine([Block(WEB, 0.0), Block(DB, 0.0)]).without(WEB)
    assert quarantine.hit(WEB, API, 1.0) is None
    assert quarantine.hit(DB, API, 1.0) is not None


@pytest.mark.parametrize(
    "item",
    [
        None,
        [],
        {"principal": WEB},
        {"principal": WEB, "since": "now"},
        {"principal": WEB, "since": True},
        {"principal": WEB, "since": -1},
        {"principal": WEB, "since": 1e300},
        {"principal": f"spiffe://{WEB}", "since": 0},
        {"principal": "td.test", "since": 0},
        {"principal": "td.test/a/../b", "since": 0},
        {"principal": "", "since": 0},
        {"principal": 7, "since": 0},
        {"principal": WEB, "since": 0, "exempt": "x"},
        {"principal": WEB, "since": 0, "exempt": ["x y"]},
        {"principal": WEB, "since": 0, "reason": "two\nlines"},
        {"principal": WEB, "since": 0, "reason": "x" * 501},
        {"principal": WEB, "since": 0, "more": 1},
    ],
)
def test_what_is_no_block_is_refused(item: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        block_from_json(item)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "null", '[{"principal"'])
def test_a_damaged_file_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Quarantine.from_json(text)


def test_there_is_an_end_to_how_many_can_be_held() -> None:
    full = Quarantine(Block(f"td.test/n/{number}", 0.0) for number in range(MAX_BLOCKS))
    with pytest.raises(ValueError, match="more than"):
        full.with_block(Block(WEB, 0.0))
