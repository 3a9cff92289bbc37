"""Rotation: by itself over whole lives, by hand step by step, and over two replicas of one store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from identity.authority import new_key
from identity.ca import making
from identity.ca.keys import KeyFolder
from identity.ca.model import KINDS, AuthorityKind, Conflict, NoSuchThing, UnsafeStep
from identity.ca.service import CaService
from identity.svid import SvidError, X509Svid, check_own_svid
from tests.support.ca import AGENT, DAY, HOUR, MINUTE, NOW, SHORT, attest, issue, kinds, of_kind, spiffe_id

SECOND = timedelta(seconds=1)
REFRESH = timedelta(seconds=SHORT.refresh_hint)


def run(ca: CaService, begin: datetime, end: datetime, step: timedelta = MINUTE) -> list[tuple[datetime, str]]:
    """Tick from ``begin`` to ``end``: what was done, and when."""
    done, at = [], begin
    while at < end:
        done += [(at, what) for what in ca.tick(at)]
        at += step
    return done


def accepted(ca: CaService, now: datetime) -> str:
    """Issue one now and check it like a peer with the bundle of now; the id of who signed."""
    key = new_key()
    made = issue(ca, "/w/1", key, now=now)
    check_own_svid(X509Svid(spiffe_id("/w/1"), made.chain, key), ca.bundle().trust_bundle, now=now)
    return made.authority_id


def prepared(ca: CaService, kind: AuthorityKind, now: datetime = NOW) -> str:
    return ca.prepare_authority(kind, now=now).authority_id


# -- by itself ----------------------------------------------------------------------------------------------


def test_a_young_authority_has_nothing_due(brief: CaService) -> None:
    assert run(brief, NOW, NOW + 29 * MINUTE) == []


def test_an_issuing_authority_and_a_jwt_key_are_prepared_at_half_and_active_at_five_sixths(brief: CaService) -> None:
    first = of_kind(brief, "x509-issuing", "active")
    done = run(brief, NOW, NOW + 55 * MINUTE)
    at = {" ".join(what.split()[:2]): when - NOW for when, what in done}
    assert at["prepared x509-issuing"] == at["prepared jwt"] == 30 * MINUTE
    assert at["activated x509-issuing"] == at["activated jwt"] == 50 * MINUTE
    assert of_kind(brief, "x509-issuing", "old") == []  # its last leaf and the grace are over: it is gone
    assert of_kind(brief, "x509-issuing", "active") != first


def test_a_prepared_jwt_key_is_published_and_signs_nothing(brief: CaService) -> None:
    before = brief.bundle()
    run(brief, NOW, NOW + 31 * MINUTE)
    after = brief.bundle()
    assert len(after.jwt_keys) == 2
    assert after.sequence > before.sequence
    assert of_kind(brief, "jwt", "active") == list(before.jwt_keys)


@pytest.mark.slow
def test_through_two_changes_of_the_root_every_certificate_is_good_when_issued_and_until_it_ends(
    brief: CaService,
) -> None:
    end, at = NOW + 6 * HOUR, NOW
    roots: set[bytes] = set()
    alive: list[tuple[datetime, X509Svid]] = []
    published: dict[bytes, datetime] = {}
    while at < end:
        brief.tick(at)
        bundle = brief.bundle()
        for der in bundle.roots_der:
            published.setdefault(der, at)
        key = new_key()
        made = issue(brief, f"/w/{len(alive)}", key, now=at)
        svid = X509Svid(spiffe_id(f"/w/{len(alive)}"), made.chain, key)
        check_own_svid(svid, bundle.trust_bundle, now=at)
        alive = [(until, other) for until, other in alive if until > at]
        for _, other in alive:
            check_own_svid(other, bundle.trust_bundle, now=at)
        alive.append((made.chain[0].not_valid_after_utc, svid))
        # C-15: the root above has been published for two refresh intervals, or it was the first.
        root = next(cert for cert in bundle.roots if cert.subject == made.chain[-1].issuer)
        since = published[bundle.roots_der[bundle.roots.index(root)]]
        assert since == NOW or at - since >= 2 * REFRESH
        roots.add(bundle.roots_der[bundle.roots.index(root)])
        at += 4 * MINUTE
    assert len(roots) == 3
    assert brief.verify_journal().ok


def test_after_a_long_outage_the_authority_comes_back_by_itself(brief: CaService) -> None:
    later = NOW + 30 * DAY
    for _ in range(4):
        brief.tick(later)
    assert accepted(brief, later)
    assert brief.status(later).problems == ()


def test_keys_of_removed_authorities_are_destroyed(brief: CaService, folder: Path) -> None:
    run(brief, NOW, NOW + 70 * MINUTE)
    assert sorted(KeyFolder(folder).ids()) == sorted(view.id for view in brief.authorities())


def test_a_key_that_no_row_speaks_of_is_swept_when_it_is_old(brief: CaService, folder: Path) -> None:
    KeyFolder(folder).put("ab" * 20, new_key())
    assert brief.tick(NOW) == [f"removed the key {'ab' * 20}, which no authority has"]  # NOW is years after its file
    assert "ab" * 20 not in KeyFolder(folder).ids()


def test_nodes_that_have_not_seen_the_next_key_hold_it_up(brief: CaService) -> None:
    attest(brief, "/host/1")
    done = run(brief, NOW, NOW + 54 * MINUTE)
    assert [what.split()[:2] for _, what in done if what.startswith("activated")] == []
    brief.seen_bundle(spiffe_id("/host/1"), brief.bundle().sequence, now=NOW + 54 * MINUTE)
    assert any(what.startswith("activated jwt") for what in brief.tick(NOW + 54 * MINUTE))


def test_nodes_that_stay_silent_do_not_hold_it_up_for_ever(brief: CaService) -> None:
    attest(brief, "/host/1")
    done = run(brief, NOW, NOW + 56 * MINUTE)
    assert any("1 nodes not heard of" in what for _, what in done if what.startswith("activated jwt"))


# -- two replicas -------------------------------------------------------------------------------------------


@pytest.fixture
def second(brief: CaService, folder: Path) -> Iterator[CaService]:
    with CaService.open(folder, now=NOW) as replica:
        yield replica


def test_of_two_replicas_one_rotates(brief: CaService, second: CaService) -> None:
    at, told = NOW, []
    while at < NOW + 55 * MINUTE:
        told += brief.tick(at) + second.tick(at)
        at += MINUTE
    acts = [what.split()[0] for what in told]
    assert (acts.count("prepared"), acts.count("activated")) == (2, 2)
    assert kinds(brief).count("authority_prepared") == kinds(brief).count("authority_activated") == 2
    assert brief.tick(at) == second.tick(at) == []


def test_a_step_that_another_replica_took_first_is_not_taken_again(
    brief: CaService, second: CaService, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second replica has found the same thing due and made its key, and then comes second to the lock."""
    late: list[str] = []
    real, later = making.make, NOW + 31 * MINUTE

    def make_while_the_other_is_faster(*arguments: Any, **more: Any) -> Any:
        new = real(*arguments, **more)
        if not late:
            late.append(new.id)
            os.utime(folder / "keys" / f"{new.id}.key", (later.timestamp(), later.timestamp()))
            assert len(brief.tick(later)) == 2
        return new

    monkeypatch.setattr(making, "make", make_while_the_other_is_faster)
    assert second.tick(later) == []
    assert late[0] not in KeyFolder(folder).ids()  # and what it had made for it is gone
    assert len(of_kind(brief, "x509-issuing", "prepared")) == len(of_kind(brief, "jwt", "prepared")) == 1


def test_a_replica_notices_at_its_next_issue_that_another_has_activated(brief: CaService, second: CaService) -> None:
    before = accepted(second, NOW)
    prepared(brief, "x509-issuing")
    brief.activate_authority("x509-issuing", force=True, now=NOW)
    after = accepted(second, NOW)
    assert after != before
    assert after == of_kind(brief, "x509-issuing", "active")[0]


# -- by hand ------------------------------------------------------------------------------------------------


def test_a_whole_rotation_of_the_root_by_hand(brief: CaService) -> None:
    old_root, at = of_kind(brief, "x509-root", "active"), NOW
    old_leaf = issue(brief, "/w/9", now=at, ttl=120.0)
    new_root = prepared(brief, "x509-root")
    assert len(brief.bundle().roots) == 2
    at += 2 * REFRESH
    report = brief.activate_authority("x509-root", now=at)
    assert (report.done, report.authority_id) == (True, new_root)
    assert accepted(brief, at) != old_leaf.authority_id
    brief.taint_authority("x509-root", now=at)
    assert set(brief.revocations(at).tainted) == {*old_root, old_leaf.authority_id}
    with pytest.raises(UnsafeStep, match="1 holders still present"):
        brief.revoke_authority("x509-root", now=at)
    issue(brief, "/w/9", now=at)  # it renews
    brief.revoke_authority("x509-root", now=at)
    assert len(brief.bundle().roots) == 1
    with pytest.raises(SvidError):
        check_own_svid(X509Svid(spiffe_id("/w/9"), old_leaf.chain, new_key()), brief.bundle().trust_bundle, now=at)
    acts = [kind for kind in kinds(brief) if kind.startswith(("authority_", "step_"))]
    assert acts == [
        "authority_prepared", "authority_activated", "authority_activated", "authority_tainted", "step_refused",
        "authority_revoked", "authority_revoked",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_activating_before_two_refresh_intervals_is_refused_and_the_refusal_journaled(
    brief: CaService, kind: AuthorityKind
) -> None:
    prepared(brief, kind)
    with pytest.raises(UnsafeStep, match="published 59 s ago: wait 1 s"):
        brief.activate_authority(kind, now=NOW + 59 * SECOND)
    assert kinds(brief)[-1] == "step_refused"
    assert brief.activate_authority(kind, now=NOW + 60 * SECOND).done


def test_activating_while_a_living_node_does_not_trust_it_is_refused(brief: CaService) -> None:
    attest(brief, "/host/1")
    attest(brief, "/host/2")
    attest(brief, "/host/dead", life=SECOND)
    prepared(brief, "x509-root")
    at = NOW + HOUR
    brief.seen_bundle(spiffe_id("/host/2"), brief.bundle().sequence, now=at)
    report = brief.activate_authority("x509-root", dry_run=True, now=at)
    assert (report.living, report.trusting, report.behind) == (2, 1, ("spiffe://td/host/1",))
    with pytest.raises(UnsafeStep, match="1 of 2 nodes do not trust the next authority yet: spiffe://td/host/1"):
        brief.activate_authority("x509-root", now=at)
    brief.seen_bundle(spiffe_id("/host/1"), brief.bundle().sequence, now=at)
    assert brief.activate_authority("x509-root", now=at).done


def test_a_forced_step_is_taken_and_its_report_still_says_why_not(brief: CaService) -> None:
    prepared(brief, "jwt")
    report = brief.activate_authority("jwt", force=True, now=NOW)
    assert report.done
    assert report.unsafe


def test_a_dry_run_changes_nothing(brief: CaService) -> None:
    prepared(brief, "x509-root")
    before = brief.authorities(), brief.journal_head(), brief.changed()
    assert not brief.prepare_authority("jwt", dry_run=True, now=NOW).done
    report = brief.activate_authority("x509-root", dry_run=True, now=NOW)
    assert not report.done
    assert "two refresh intervals" in report.unsafe[0]
    assert (brief.authorities(), brief.journal_head(), brief.changed()) == before


@pytest.mark.parametrize("kind", KINDS)
def test_steps_out_of_order_are_refused(brief: CaService, kind: AuthorityKind) -> None:
    (active,) = of_kind(brief, kind, "active")
    for act in (brief.activate_authority, brief.taint_authority, brief.revoke_authority):
        with pytest.raises(NoSuchThing):
            act(kind, now=NOW)
    for act in (brief.taint_authority, brief.revoke_authority):
        with pytest.raises(Conflict, match="is active: activate the next one first"):
            act(kind, authority_id=active, now=NOW)
    prepared(brief, kind)
    with pytest.raises(Conflict, match="prepared already"):
        brief.prepare_authority(kind, now=NOW)


def test_a_forced_revocation_tells_everybody_to_cut_off_what_hangs_under_it(brief: CaService) -> None:
    leaf = issue(brief, now=NOW)
    prepared(brief, "x509-issuing")
    brief.activate_authority("x509-issuing", force=True, now=NOW)
    brief.revoke_authority("x509-issuing", authority_id=leaf.authority_id, force=True, now=NOW)
    told = brief.revocations(NOW)
    assert told.reason_for(str(spiffe_id()), [leaf.serial], [leaf.authority_id], NOW.timestamp()) is not None
    assert told.reason_for(str(spiffe_id()), [leaf.serial], ["another"], NOW.timestamp()) is None


def test_a_tainted_authority_leaves_the_list_with_its_removal(brief: CaService) -> None:
    prepared(brief, "x509-issuing")
    brief.activate_authority("x509-issuing", force=True, now=NOW)
    brief.taint_authority("x509-issuing", now=NOW)
    before = brief.revocations(NOW)
    with pytest.raises(Conflict, match="in the meantime"):
        brief.taint_authority("x509-issuing", now=NOW)
    run(brief, NOW, NOW + 5 * MINUTE)
    after = brief.revocations(NOW + 5 * MINUTE)
    assert before.tainted
    assert not after.tainted
    assert after.sequence > before.sequence


def test_an_issuing_authority_prepared_under_the_old_root_is_dropped_with_it(brief: CaService) -> None:
    dropped = prepared(brief, "x509-issuing")
    prepared(brief, "x509-root")
    brief.activate_authority("x509-root", force=True, now=NOW)
    assert dropped not in {view.id for view in brief.authorities()}
    assert accepted(brief, NOW)


# -- what people see ----------------------------------------------------------------------------------------


def test_status_names_the_next_step_and_when(brief: CaService) -> None:
    told = brief.rotation_status(NOW)
    assert told["jwt"].next_step == "prepare by itself in 1800 s"
    assert told["x509-root"].next_step == "prepare by itself in 7200 s"
    brief.tick(NOW + 30 * MINUTE)
    assert brief.rotation_status(NOW + 30 * MINUTE)["jwt"].next_step == "activate by itself in 1200 s"


def test_status_counts_everything_and_names_what_is_wrong(brief: CaService) -> None:
    attest(brief, "/host/1")
    attest(brief, "/host/2")
    brief.ban(spiffe_id("/host/2"), "", now=NOW)
    brief.create_token(spiffe_id("/host/3"), now=NOW)
    first = issue(brief, caller=AGENT)
    issue(brief, "/w/2", ttl=120.0)
    status = brief.status(NOW)
    assert (status.nodes, status.banned, status.tokens, status.live_svids, status.revocations) == (2, 1, 1, 2, 1)
    assert status.first_lapse == first.not_after
    assert status.problems == ()
    assert "issuing authority ends at 2030-06-01T13:00:00Z" in brief.status(NOW + 51 * MINUTE).problems[0]
    assert "has expired" in brief.status(NOW + HOUR).problems[0]


def test_the_first_lapse_is_of_the_newest_certificate_of_each_holder(brief: CaService) -> None:
    issue(brief, now=NOW)
    renewed = issue(brief, now=NOW + 30 * SECOND)
    assert brief.status(NOW + 40 * SECOND).first_lapse == renewed.not_after
    assert brief.status(NOW + HOUR).first_lapse == 0.0
