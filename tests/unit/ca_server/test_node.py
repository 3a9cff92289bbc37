"""What a node may ask for, and for whom."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import Any

import pytest
import trio

from identity.attest.machine import MachineFacts
from identity.ca.revocation import verify
from identity.ca_api import api, own_parent
from identity.rpc import Caller, RpcError, Status
from identity.spiffe import SpiffeId
from identity.svid import check_leaf
from tests.unit.ca_server.authority import NODE, TD, WEB, Held, House, csr, new_key, until

OTHER = f"spiffe://{TD}/other"


async def refused(attempt: Any) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await attempt
    return caught.value


def item(entry_id: str, key: Any = None, **more: Any) -> Any:
    return api.IssueItem(entry_id=entry_id, csr=csr(key or new_key()), **more)


# -- its own SVID -------------------------------------------------------------------------------------------


async def test_a_node_renews_with_a_new_key_and_only_with_the_newest_svid(ca: House) -> None:
    first = await ca.join()

    second = await ca.renew(first)

    assert str(check_leaf(second.leaf)) == NODE
    assert ca.service.node(SpiffeId.parse(NODE)).expires_at == second.svid.not_after
    assert "held with another key" in (await refused(ca.renew(first))).message


async def test_a_lost_answer_is_asked_for_again_with_the_same_key(ca: House) -> None:
    first, key = await ca.join(), new_key()
    await ca.renew(first, key)

    again = await ca.renew(first, key)

    assert again.leaf.public_key() == key.public_key()


def machine(machine_id: str, board: str, *cards: str) -> str:
    return MachineFacts(machine_id, board, "root", "boot", frozenset(cards)).text


async def test_a_copied_disk_is_noticed_when_it_renews(ca: House) -> None:
    secret = ca.service.create_token(SpiffeId.parse(NODE), now=datetime.now(UTC))
    held = await ca.attest(ca.stranger(), join_token=secret, machine_id=machine("m", "board", "card"))

    for machine_id in ("", "m9.x", machine("m", "board", "other"), machine("m", "board", "card")):
        held = await ca.renew(held, machine_id=machine_id)
    error = await refused(ca.renew(held, machine_id=machine("m", "another", "other")))

    assert "another machine than the one that joined" in error.message
    assert "copied" in ca.journal("denied")[-1].facts["reason"] or "UUID" in ca.journal("denied")[-1].facts["reason"]


async def test_without_a_certificate_nothing_is_given(ca: House) -> None:
    for caller in (ca.stranger(), ca.local(os.geteuid())):
        request = api.RenewRequest(csr=csr(new_key()))
        error = await refused(ca.call("/sidewall.ca.v1.Node/Renew", request, caller))
        assert error.status == Status.UNAUTHENTICATED


async def test_a_workloads_certificate_makes_no_node(ca: House) -> None:
    entry = ca.entry(WEB, NODE)
    node, key = await ca.join(), new_key()
    outcome = (await ca.issue(node, item(entry, key)))[0]

    error = await refused(ca.renew(Held(key, outcome.svid)))

    assert "not a node's own" in error.message
    assert ca.journal("denied")[-1].subject == WEB


async def test_a_banned_node_and_a_revoked_one_get_nothing(ca: House) -> None:
    banned, revoked = await ca.join(), await ca.join(OTHER)
    await ca.ask("Ban", spiffe_id=NODE, reason="copied disk")
    await ca.ask("Revoke", what=OTHER)
    await ca.look()

    assert "banned" in (await refused(ca.renew(banned))).message
    assert (await refused(ca.renew(revoked))).status == Status.PERMISSION_DENIED
    assert ca.nodes.revoked(ca.peer(banned).peer) == "id revoked: copied disk"


async def test_who_leaves_is_forgotten_and_its_name_is_free(ca: House) -> None:
    entry = ca.entry(WEB, NODE)
    node = await ca.join()
    outcome = (await ca.issue(node, item(entry)))[0]

    await ca.leave(node)

    revoked = {one.what for one in ca.service.revocations(datetime.now(UTC)).entries}
    assert revoked == {node.svid.serial, outcome.svid.serial}
    assert (await refused(ca.renew(node))).status == Status.PERMISSION_DENIED
    assert await ca.join(address="192.0.2.33")


# -- SVIDs of its workloads ---------------------------------------------------------------------------------


async def test_a_node_gets_what_the_entries_below_it_say(ca: House) -> None:
    entry = ca.entry(WEB, NODE, "unix:uid:7", x509SvidTtl=120, dnsNames=["web.test"])
    node = await ca.join()

    outcome = (await ca.issue(node, item(entry, spiffe_id=WEB)))[0]

    held = Held(new_key(), outcome.svid)
    assert str(check_leaf(held.leaf)) == WEB
    assert outcome.svid.not_after - datetime.now(UTC).timestamp() == pytest.approx(120, abs=5)
    assert ca.journal("x509-svid")[-1].facts["entry_id"] == entry


async def test_each_item_of_a_batch_has_its_own_outcome_in_order(ca: House) -> None:
    mine, others = ca.entry(WEB, NODE), ca.entry(WEB, OTHER)
    expired = ca.entry(f"spiffe://{TD}/old", NODE, expiresAt=1)
    node = await ca.join()

    found = await ca.issue(
        node,
        item(others),
        item(mine),
        item("none"),
        item(expired),
        item(mine, spiffe_id=OTHER),
        api.IssueItem(entry_id=mine, csr=b"x"),
    )

    assert [one.status for one in found] == [7, 0, 7, 7, 7, 3]
    assert [bool(one.svid.chain) for one in found] == [False, True, False, False, False, False]
    assert found[0].message.replace(others, "X") == found[2].message.replace("none", "X")
    assert len(ca.journal("denied")) == 5


async def test_a_batch_has_a_hundred_items_at_most_and_one_at_least(ca: House) -> None:
    node = await ca.join()

    assert (await refused(ca.issue(node))).status == Status.INVALID_ARGUMENT
    attempt = ca.issue(node, *(api.IssueItem(entry_id="x") for _ in range(101)))
    assert (await refused(attempt)).status == Status.INVALID_ARGUMENT


async def test_fifty_certificates_at_once_and_then_ten_a_second(ca: House, autojump_clock: Any) -> None:
    node = await ca.join()  # has taken one
    await trio.sleep(60)

    found = await ca.issue(node, *(api.IssueItem(entry_id="x", csr=b"x") for _ in range(60)))
    assert [one.status for one in found] == [7] * 50 + [8] * 10

    await trio.sleep(1)
    found = await ca.issue(node, *(api.IssueItem(entry_id="x", csr=b"x") for _ in range(20)))
    assert [one.status for one in found] == [7] * 10 + [8] * 10


async def test_a_jwt_svid_is_for_the_identity_of_an_entry(ca: House) -> None:
    entry = ca.entry(WEB, NODE, "unix:uid:7", jwtSvidTtl=60)
    node = await ca.join()

    reply = await ca.issue_jwt(node, entry_id=entry, spiffe_id=WEB, audience=["api"])

    import jwt

    claims = jwt.decode(reply.token, options={"verify_signature": False})
    assert (claims["sub"], claims["aud"], claims["exp"] - claims["iat"]) == (WEB, ["api"], 60)
    assert reply.not_after == claims["exp"]
    assert (await refused(ca.issue_jwt(node, entry_id="x", audience=["a"]))).status == Status.PERMISSION_DENIED
    assert (await refused(ca.issue_jwt(node, entry_id=entry))).status == Status.PERMISSION_DENIED


async def test_an_entry_for_the_authoritys_own_identity_gives_nothing(ca: House) -> None:
    entry = ca.entry(own_parent(TD), NODE)
    node = await ca.join()

    assert "own identity" in (await ca.issue(node, item(entry)))[0].message


# -- watching -----------------------------------------------------------------------------------------------


async def test_a_watcher_is_told_all_at_once_and_each_change_whole(ca: House) -> None:
    first = ca.entry(WEB, NODE)
    ca.entry(WEB, OTHER)
    node = await ca.join()
    async with trio.open_nursery() as nursery:
        await nursery.start(ca.watching.run)
        stream = ca.watch(node)
        state = api.State.FromString(await anext(stream))
        assert [json.loads(entry)["id"] for entry in state.entries] == [first]
        assert state.bundle.trust_domain == TD

        second = ca.entry(f"spiffe://{TD}/second", NODE)
        with trio.fail_after(1):
            state = api.State.FromString(await anext(stream))
        assert {json.loads(entry)["id"] for entry in state.entries} == {first, second}

        ca.service.revoke(WEB, "leaked", now=datetime.now(UTC))
        with trio.fail_after(1):
            state = api.State.FromString(await anext(stream))
        found = verify(state.revocations, ca.service.bundle().trust_bundle, now=datetime.now(UTC))
        assert [one.what for one in found.entries] == [WEB]
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_a_watcher_is_not_told_of_what_concerns_others(ca: House) -> None:
    node = await ca.join()
    async with trio.open_nursery() as nursery:
        await nursery.start(ca.watching.run)
        stream = ca.watch(node)
        await anext(stream)
        before = ca.watching.version
        ca.entry(WEB, OTHER)
        told: list[bytes] = []
        nursery.start_soon(_collect, stream, told)
        await until(lambda: ca.watching.version > before)
        await trio.sleep(0.05)
        assert not told
        nursery.cancel_scope.cancel()


async def _collect(stream: Any, told: list[bytes]) -> None:
    async for message in stream:
        told.append(message)


async def test_a_watch_ends_when_its_node_is_banned(ca: House) -> None:
    node = await ca.join()
    async with trio.open_nursery() as nursery:
        await nursery.start(ca.watching.run)
        stream = ca.watch(node)
        await anext(stream)
        ca.service.ban(SpiffeId.parse(NODE), "copied", now=datetime.now(UTC))
        with trio.fail_after(1):
            assert "banned" in (await refused(anext(stream))).message
        nursery.cancel_scope.cancel()
    assert ca.watching.watchers == 0


async def test_the_bundle_that_a_node_holds_is_noted(ca: House) -> None:
    node = await ca.join()
    stream = ca.watch(node, seen=ca.service.bundle().sequence)
    await anext(stream)
    await stream.aclose()

    assert ca.service.node(SpiffeId.parse(NODE)).seen_sequence == ca.service.bundle().sequence


async def test_a_foreign_identity_is_no_node(ca: House) -> None:
    node = await ca.join()
    peer = ca.peer(node).peer
    assert peer is not None
    from dataclasses import replace

    foreign = Caller(
        peer=replace(peer, id=SpiffeId.parse("spiffe://other.test/node"), uri="spiffe://other.test/node")
    )
    error = await refused(ca.call("/sidewall.ca.v1.Node/Leave", api.Empty(), foreign))
    assert error.status == Status.UNAUTHENTICATED
