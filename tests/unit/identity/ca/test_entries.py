"""Registration entries: no two say the same, and nobody overwrites what he has not seen."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, event

from identity.ca import entry_store
from identity.ca.model import Conflict, NoSuchThing, NotAllowed
from identity.ca.service import CaService
from tests.support.ca import NOW, entry, kinds

WEB, DB, CACHE = "/ns/a/sa/web", "/ns/a/sa/db", "/ns/a/sa/cache"


def add(ca: CaService, *entries: dict[str, Any]) -> list[dict[str, Any]]:
    return [ca.create_entry(each, now=NOW) for each in entries]


def paths(found: list[dict[str, Any]]) -> list[str]:
    return sorted(each["spiffeId"].removeprefix("spiffe://td") for each in found)


def test_a_new_entry_gets_an_id_and_its_first_revision(ca: CaService) -> None:
    (made,) = add(ca, entry(WEB, hint="internal"))
    assert made["id"]
    assert made["revisionNumber"] == 1
    assert ca.get_entry(made["id"]) == made == {**entry(WEB, hint="internal"), "id": made["id"], "revisionNumber": 1}
    assert ca.log()[-1].facts == {
        "entry": made["id"],
        "parent": "spiffe://td/host/1",
        "selectors": ["unix:uid:1000"],
        "revision": 1,
    }


def test_an_id_of_ones_own_is_kept(ca: CaService) -> None:
    assert add(ca, entry(WEB, id="mine"))[0]["id"] == "mine"


def test_the_same_id_parent_and_selectors_again_are_a_conflict_in_whatever_order(ca: CaService) -> None:
    (made,) = add(ca, entry(WEB, "unix:uid:1", "unix:gid:2"))
    with pytest.raises(Conflict, match=made["id"]):
        add(ca, entry(WEB, "unix:gid:2", "unix:uid:1", hint="other"))
    assert len(add(ca, entry(WEB, "unix:uid:1"), entry(WEB, "unix:uid:1", "unix:gid:2", parent="/host/2"))) == 2


def test_a_taken_id_is_a_conflict(ca: CaService) -> None:
    add(ca, entry(WEB, id="mine"))
    with pytest.raises(Conflict):
        add(ca, entry(DB, id="mine"))


@pytest.mark.parametrize("wanted", ["spiffe://other/a", "spiffe://td", "spiffe://td.evil/a", "td/a", ""])
def test_an_identity_of_a_foreign_trust_domain_is_refused(ca: CaService, wanted: str) -> None:
    with pytest.raises(NotAllowed, match="is not an identity that td issues"):
        add(ca, {**entry(WEB), "spiffeId": wanted})


def test_an_entry_too_long_is_refused(ca: CaService) -> None:
    with pytest.raises(NotAllowed, match="64 kB"):
        add(ca, entry(WEB, hint="x" * 70_000))


def test_an_update_moves_the_revision_and_keeps_fields_that_this_version_does_not_know(ca: CaService) -> None:
    (made,) = add(ca, entry(WEB, ofTheFuture={"a": 1}))
    changed = ca.update_entry({**made, "hint": "new"}, now=NOW)
    assert changed == {**made, "hint": "new", "revisionNumber": 2} == ca.get_entry(made["id"])
    assert kinds(ca)[-1] == "entry_updated"


def test_an_update_of_a_revision_that_is_no_longer_is_a_conflict(ca: CaService) -> None:
    (seen,) = add(ca, entry(WEB))
    ca.update_entry({**seen, "hint": "first"}, now=NOW)
    with pytest.raises(Conflict, match="at revision 2, not 1: read it again"):
        ca.update_entry({**seen, "hint": "second"}, now=NOW)
    assert ca.get_entry(seen["id"])["hint"] == "first"


def test_an_update_to_what_another_entry_says_is_a_conflict(ca: CaService) -> None:
    web, db = add(ca, entry(WEB), entry(DB))
    with pytest.raises(Conflict, match=web["id"]):
        ca.update_entry({**db, "spiffeId": web["spiffeId"]}, now=NOW)


@pytest.mark.parametrize("wanted", ["", "nobody", "x" * 10_000])
def test_what_does_not_exist_is_neither_changed_nor_deleted(ca: CaService, wanted: str) -> None:
    with pytest.raises(NoSuchThing):
        ca.update_entry({**entry(WEB), "id": wanted}, now=NOW)
    with pytest.raises(NoSuchThing):
        ca.delete_entry(wanted, now=NOW)


def test_a_deleted_entry_is_gone_and_may_come_again(ca: CaService) -> None:
    (made,) = add(ca, entry(WEB))
    ca.delete_entry(made["id"], now=NOW)
    with pytest.raises(NoSuchThing):
        ca.get_entry(made["id"])
    assert add(ca, entry(WEB))[0]["id"] != made["id"]


# -- looking ------------------------------------------------------------------------------------------------


def test_lists_are_filtered_by_everything_given(ca: CaService) -> None:
    add(ca, entry(WEB, "a:1", "b:2"), entry(DB, "a:1"), entry(CACHE, "c:3", parent="/host/2"))
    assert paths(ca.list_entries()) == sorted([WEB, DB, CACHE])
    assert paths(ca.list_entries(spiffe_id=f"spiffe://td{WEB}")) == [WEB]
    assert paths(ca.list_entries(parent_id="spiffe://td/host/2")) == [CACHE]
    assert paths(ca.list_entries(selectors=["a:1"])) == sorted([WEB, DB])
    assert paths(ca.list_entries(selectors=["a:1", "b:2"])) == [WEB]
    assert paths(ca.list_entries(selectors=["a:1"], parent_id="spiffe://td/host/2")) == []
    assert paths(ca.entries_under("spiffe://td/host/1")) == sorted([WEB, DB])


def test_pages_together_are_the_whole_and_nothing_stands_in_two(ca: CaService) -> None:
    ca.apply_entries([entry(f"/w/{n}") for n in range(7)], now=NOW)
    found, after = [], ""
    while page := ca.list_entries(limit=3, after=after):
        found += page
        after = page[-1]["id"]
    assert len(found) == 7
    assert found == ca.list_entries()


def test_a_filter_by_selectors_fills_its_page_from_beyond_one_query(
    ca: CaService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry_store, "_IN_ONE_QUERY", 5)
    rare = [entry(f"/rare/{n}", "rare:1", id=f"{99 - n}") for n in range(2)]
    ca.apply_entries([entry(f"/w/{n}", id=f"{n:02}") for n in range(17)] + rare, now=NOW)
    assert len(ca.list_entries(selectors=["rare:1"], limit=2)) == 2


# -- apply --------------------------------------------------------------------------------------------------


def acts(done: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, str]]:
    return [(act, each["spiffeId"].removeprefix("spiffe://td")) for act, each in done]


def test_applying_creates_updates_and_leaves_alone_what_is_the_same(ca: CaService) -> None:
    add(ca, entry(WEB), entry(DB))
    done = ca.apply_entries([entry(WEB), entry(DB, hint="new"), entry(CACHE)], now=NOW)
    assert acts(done) == [("update", DB), ("create", CACHE)]
    assert ca.apply_entries([entry(WEB), entry(DB, hint="new"), entry(CACHE)], now=NOW) == []


def test_the_order_of_selectors_and_empty_fields_are_no_difference(ca: CaService) -> None:
    add(ca, entry(WEB, "a:1", "b:2"))
    assert ca.apply_entries([entry(WEB, "b:2", "a:1", hint="", admin=False, dnsNames=[])], now=NOW) == []


def test_applying_deletes_only_when_told_to_prune(ca: CaService) -> None:
    add(ca, entry(WEB), entry(DB))
    assert ca.apply_entries([entry(WEB)], now=NOW) == []
    assert acts(ca.apply_entries([entry(WEB)], prune=True, now=NOW)) == [("delete", DB)]
    assert paths(ca.list_entries()) == [WEB]


def test_by_its_id_an_entry_may_get_other_selectors(ca: CaService) -> None:
    (made,) = add(ca, entry(WEB, id="web"))
    done = ca.apply_entries([entry(WEB, "k8s:sa:web", id="web")], prune=True, now=NOW)
    assert acts(done) == [("update", WEB)]
    assert ca.get_entry("web")["selectors"] == ["k8s:sa:web"] != made["selectors"]


def test_a_dry_run_says_the_same_and_changes_nothing(ca: CaService) -> None:
    add(ca, entry(WEB))
    before = ca.journal_head(), ca.changed(), ca.list_entries()
    wanted = [entry(DB, id="db")]
    planned = ca.apply_entries(wanted, prune=True, dry_run=True, now=NOW)
    assert (ca.journal_head(), ca.changed(), ca.list_entries()) == before
    assert acts(planned) == acts(ca.apply_entries(wanted, prune=True, now=NOW)) == [("create", DB), ("delete", WEB)]


@pytest.mark.parametrize(
    "wrong",
    [entry(WEB), entry(WEB, id="other"), {**entry(DB), "spiffeId": "spiffe://other/a"}, entry(DB, hint="x" * 70_000)],
)
def test_one_that_is_wrong_and_none_is_applied(ca: CaService, wrong: dict[str, Any]) -> None:
    before = ca.journal_head(), ca.changed()
    with pytest.raises((Conflict, NotAllowed)):
        ca.apply_entries([entry(WEB), wrong], now=NOW)
    assert (ca.journal_head(), ca.changed(), ca.list_entries()) == (*before, [])


def test_thousands_are_applied_and_pruned_in_a_few_statements(ca: CaService) -> None:
    wanted = [entry(f"/w/{n}") for n in range(1200)]
    statements = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        assert len(ca.apply_entries(wanted, now=NOW)) == 1200
        assert len(ca.apply_entries(wanted[:1], prune=True, now=NOW)) == 1199
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert len(statements) < 30
    assert ca.journal_head()[0] == 2 + 1200 + 1199
