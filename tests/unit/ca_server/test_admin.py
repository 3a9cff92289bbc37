"""Who may administer, and that each act does what its name says."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from identity.ca_api import own_parent
from identity.rpc import RpcError, Status
from identity.spiffe import SpiffeId
from proxy.ca.admin import ACTS
from tests.unit.ca_server.authority import NODE, TD, WEB, House

ENTRY = {"spiffeId": WEB, "parentId": NODE, "selectors": ["unix:uid:7"]}


async def refused(attempt: Any) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await attempt
    return caught.value


# -- who ----------------------------------------------------------------------------------------------------


async def test_the_owner_and_root_administer_and_nobody_else(ca: House) -> None:
    assert await ca.ask("Status", ca.local(os.geteuid()))
    assert await ca.ask("Status", ca.local(0))
    for caller in (ca.local(os.geteuid() + 1), ca.stranger(), ca.peer(await ca.join())):
        assert (await refused(ca.ask("Status", caller))).status == Status.PERMISSION_DENIED


async def test_a_process_that_has_gone_administers_nothing(ca: House) -> None:
    caller = ca.local(os.geteuid())
    assert caller.local is not None
    caller.local.close()

    assert (await refused(ca.ask("Status", caller))).status == Status.PERMISSION_DENIED


async def test_an_admin_entry_in_force_makes_an_operator(ca: House) -> None:
    node = await ca.join(WEB)
    entry = ca.entry(WEB, NODE, "unix:uid:1", admin=True)

    assert await ca.ask("Status", ca.peer(node))
    assert ca.journal("denied") == []

    past = {"admin": True, "expiresAt": 1}
    await ca.ask("UpdateEntry", id=entry, change=past)
    assert (await refused(ca.ask("Status", ca.peer(node)))).status == Status.PERMISSION_DENIED


async def test_a_revoked_operator_is_none(ca: House) -> None:
    node = await ca.join(WEB)
    ca.entry(WEB, NODE, "unix:uid:1", admin=True)
    ca.service.revoke(WEB, "leaked", now=datetime.now(UTC))

    assert (await refused(ca.ask("Status", ca.peer(node)))).status == Status.PERMISSION_DENIED


async def test_acts_are_journaled_with_the_operator(ca: House) -> None:
    await ca.ask("CreateEntry", entry=ENTRY)

    caller = ca.journal("entry_created")[-1].caller
    assert (caller["kind"], caller["id"]) == ("operator", f"uid:{os.geteuid()}")


# -- what they are given ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "facts"),
    [
        ("CreateEntry", {}),
        ("CreateEntry", {"entry": []}),
        ("CreateEntry", {"entry": {**ENTRY, "selectors": []}}),
        ("CreateEntry", {"entry": {**ENTRY, "spiffeId": "spiffe://other.test/a"}}),
        ("CreateEntry", {"entry": {**ENTRY, "spiffeId": own_parent(TD)}}),
        ("ApplyEntries", {"entries": {}}),
        ("ApplyEntries", {"entries": [ENTRY, {**ENTRY, "typo": 1}]}),
        ("ListEntries", {"limit": -1}),
        ("ListEntries", {"limit": "many"}),
        ("ListEntries", {"selectors": [1]}),
        ("CreateToken", {"spiffe_id": "shop/web"}),
        ("CreateToken", {"spiffe_id": own_parent(TD)}),
        ("CreateToken", {"spiffe_id": NODE, "ttl": "long"}),
        ("Rotate", {"step": "prepare", "kind": "x509"}),
        ("Rotate", {"step": "jump", "kind": "jwt"}),
        ("Rotate", {"step": "prepare", "kind": "jwt", "force": "yes"}),
        ("Backup", {"path": "relative.swb"}),
        ("Ban", {"spiffe_id": "x"}),
        ("Ban", {}),
    ],
)
async def test_nonsense_is_refused_and_changes_nothing(ca: House, act: str, facts: dict[str, Any]) -> None:
    before = ca.service.journal_head()

    assert (await refused(ca.ask(act, **facts))).status == Status.INVALID_ARGUMENT
    assert ca.service.journal_head() == before


@pytest.mark.parametrize("act", sorted(ACTS))
async def test_no_act_fails_in_an_unforeseen_way_when_nothing_is_said(ca: House, act: str) -> None:
    status = Status.OK
    try:
        await ca.ask(act)
    except RpcError as error:
        status = error.status
    assert status in (Status.OK, Status.INVALID_ARGUMENT, Status.NOT_FOUND, Status.PERMISSION_DENIED)


# -- acts ---------------------------------------------------------------------------------------------------


async def test_entries_are_created_shown_changed_listed_and_deleted(ca: House) -> None:
    made = await ca.ask("CreateEntry", entry=ENTRY)
    changed = await ca.ask("UpdateEntry", id=made["id"], change={"x509SvidTtl": 120})

    assert (changed["revisionNumber"], changed["x509SvidTtl"], changed["selectors"]) == (2, 120, ["unix:uid:7"])
    assert await ca.ask("GetEntry", id=made["id"]) == changed
    assert await ca.ask("ListEntries", parent_id=NODE) == [changed]
    await ca.ask("DeleteEntry", id=made["id"])
    assert await ca.ask("ListEntries") == []
    assert (await refused(ca.ask("GetEntry", id=made["id"]))).status == Status.NOT_FOUND


async def test_a_dry_run_of_entries_says_and_does_not(ca: House) -> None:
    ca.entry(f"spiffe://{TD}/old", NODE)

    done = await ca.ask("ApplyEntries", entries=[ENTRY], prune=True, dry_run=True)

    assert [one["action"] for one in done] == ["create", "delete"]
    assert [one["spiffeId"] for one in await ca.ask("ListEntries")] == [f"spiffe://{TD}/old"]


async def test_a_token_says_where_to_join_and_whom_to_believe(ca: House) -> None:
    import hashlib

    made = await ca.ask("CreateToken", spiffe_id=NODE, ttl=60)

    (root,) = ca.service.bundle().roots_der
    assert made["fingerprint"] == f"sha256:{hashlib.sha256(root).hexdigest()}"
    assert made["url"] == "https://ca.test:15012"
    (listed,) = await ca.ask("Tokens")
    assert listed["spiffe_id"] == NODE
    await ca.ask("DeleteToken", id=listed["id"])
    attempt = ca.attest(ca.stranger(), join_token=made["secret"])
    assert (await refused(attempt)).status == Status.PERMISSION_DENIED


async def test_a_token_with_selectors_is_for_the_machine_and_its_processes_get_the_name(ca: House) -> None:
    made = await ca.ask("CreateToken", spiffe_id=WEB, selectors=["unix:user:web"])
    again = await ca.ask("CreateToken", spiffe_id=WEB, selectors=["unix:user:web"])

    assert made["spiffe_id"] == f"spiffe://{TD}/sidewall/node/ns/shop/sa/web"
    assert made["entry"]["spiffeId"] == WEB
    assert made["entry"]["parentId"] == made["spiffe_id"]
    assert again["entry"]["id"] == made["entry"]["id"]


async def test_the_secret_of_a_token_is_nowhere_in_the_journal(ca: House) -> None:
    made = await ca.ask("CreateToken", spiffe_id=NODE)
    await ca.attest(ca.stranger(), join_token=made["secret"])

    assert all(made["secret"] not in repr(record) for record in ca.service.log())


async def test_a_node_that_loses_its_identity_is_forgotten_and_a_serial_is_only_a_serial(ca: House) -> None:
    first = await ca.join()
    await ca.ask("Revoke", what=first.svid.serial, reason="old disk")
    assert ca.service.node(SpiffeId.parse(NODE))

    await ca.ask("Revoke", what=NODE)

    assert await ca.ask("Nodes") == []
    revoked = await ca.ask("Revocations")
    assert {one["what"] for one in revoked["entries"]} == {NODE, first.svid.serial}
    await ca.ask("Unrevoke", what=NODE)
    assert await ca.join()


async def test_ban_and_unban(ca: House) -> None:
    await ca.join()
    await ca.ask("Ban", spiffe_id=NODE, reason="copied")
    assert (await ca.ask("Nodes"))[0]["banned"] == "copied"
    await ca.ask("Unban", spiffe_id=NODE)
    assert (await ca.ask("Nodes"))[0]["banned"] == ""
    await ca.ask("Forget", spiffe_id=NODE)
    assert await ca.ask("Nodes") == []


async def test_rotation_is_refused_while_it_would_cut_somebody_off(ca: House) -> None:
    await ca.join()
    prepared = await ca.ask("Rotate", step="prepare", kind="x509-issuing")
    assert prepared["done"]

    plan = await ca.ask("Rotate", step="activate", kind="x509-issuing", dry_run=True)
    assert plan["unsafe"]
    assert (
        await refused(ca.ask("Rotate", step="activate", kind="x509-issuing"))
    ).status == Status.FAILED_PRECONDITION

    assert (await ca.ask("Rotate", step="activate", kind="x509-issuing", force=True))["done"]
    assert (await ca.ask("Rotate", step="taint", kind="x509-issuing", force=True))["done"]
    assert (await ca.ask("Rotate", step="revoke", kind="x509-issuing", force=True))["done"]


async def test_status_log_and_bundle(ca: House) -> None:
    await ca.join()

    status = await ca.ask("Status")
    assert (status["trust_domain"], status["nodes"]) == (TD, 1)
    assert set(status["rotation"]) == {"x509-root", "x509-issuing", "jwt"}
    assert all("certificate" not in view for view in status["authorities"])
    records = await ca.ask("Log", since=1, limit=2)
    assert [record["seq"] for record in records] == [2, 3]
    assert (await ca.ask("VerifyLog"))["ok"]
    assert (await ca.ask("JournalHead"))["seq"] == ca.service.journal_head()[0]
    assert "BEGIN CERTIFICATE" in (await ca.ask("Bundle"))["pem"]
    assert len(await ca.ask("Issued", spiffe_id=NODE)) == 1


async def test_a_backup_is_made_for_who_is_on_the_machine(ca: House, tmp_path: Path) -> None:
    path = str(tmp_path / "ca.swb")
    node = await ca.join(WEB)
    ca.entry(WEB, NODE, "unix:uid:1", admin=True)

    assert (await refused(ca.ask("Backup", ca.peer(node), path=path))).status == Status.PERMISSION_DENIED
    await ca.ask("Backup", path=path, passphrase="long enough to be one")
    assert os.stat(path).st_mode & 0o777 == 0o600
