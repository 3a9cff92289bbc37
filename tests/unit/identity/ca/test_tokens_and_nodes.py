"""Join tokens admit once; nodes are known, banned, forgotten."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from identity.ca.model import NoSuchThing, NotAllowed
from identity.ca.service import CaService
from identity.spiffe import SpiffeId
from tests.support.ca import AGENT, DAY, HOUR, NOW, attest, issue, kinds, spiffe_id

HOST = spiffe_id("/host/1")
USED = "it was used, has expired, or never was one"


def token(ca: CaService, ttl: float = 600.0) -> str:
    return ca.create_token(HOST, ttl=ttl, now=NOW)


def why(ca: CaService) -> str:
    record = ca.log()[-1]
    assert record.kind == "denied"
    assert record.caller["address"] == "192.0.2.9"
    return str(record.facts["reason"])


def use(ca: CaService, secret: str, after: timedelta = timedelta(0)) -> SpiffeId:
    return ca.consume_token(secret, source="192.0.2.9", now=NOW + after)


# -- tokens -------------------------------------------------------------------------------------------------


def test_a_token_admits_as_the_identity_it_was_made_for(ca: CaService) -> None:
    assert use(ca, token(ca)) == HOST
    assert kinds(ca)[-2:] == ["token_created", "token_used"]


def test_a_token_has_256_random_bits_and_no_two_are_alike(ca: CaService) -> None:
    secrets = {token(ca) for _ in range(20)}
    assert len(secrets) == 20
    assert {len(secret) for secret in secrets} == {43}


def test_the_secret_is_neither_in_the_database_nor_in_the_journal(ca: CaService, folder: Path) -> None:
    secret = token(ca)
    use(ca, secret)
    stored = b"".join(path.read_bytes() for path in folder.glob("ca.db*"))
    assert secret.encode() not in stored
    assert b"token_used" in stored


def test_a_used_token_is_refused_and_the_replay_is_journaled(ca: CaService) -> None:
    secret = token(ca)
    use(ca, secret)
    with pytest.raises(NotAllowed, match=USED):
        use(ca, secret)
    assert why(ca) == "join token unknown or used"


@pytest.mark.parametrize("secret", ["", "x", "x" * 100_000, "\0", "\ud800", "' OR 1=1 --"])
def test_what_never_was_a_token_is_refused_in_the_same_words(ca: CaService, secret: str) -> None:
    with pytest.raises(NotAllowed, match=USED):
        use(ca, secret)
    assert why(ca) == "join token unknown or used"


def test_an_expired_token_is_refused_and_used_up(ca: CaService) -> None:
    secret = token(ca, ttl=60.0)
    with pytest.raises(NotAllowed, match=USED):
        use(ca, secret, timedelta(seconds=60))
    assert why(ca) == "join token expired"
    with pytest.raises(NotAllowed):
        use(ca, secret)


def test_a_token_is_good_until_its_last_second(ca: CaService) -> None:
    assert use(ca, token(ca, ttl=60.0), timedelta(seconds=59)) == HOST


def test_nothing_is_ever_compared_with_the_secret_itself(ca: CaService) -> None:
    """Constant time by construction (C-11): the database sees a SHA-256 of what was sent and nothing of it."""
    secret = token(ca)
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        seen.append(f"{statement} {parameters}")

    event.listen(Engine, "before_cursor_execute", note)
    try:
        use(ca, secret)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert any("tokens.hash = ?" in statement for statement in seen)
    assert not any(secret[:8] in statement for statement in seen)


@pytest.mark.parametrize("ttl", [0.0, -1.0, 8 * 86400.0, float("nan")])
def test_the_life_of_a_token_has_bounds(ca: CaService, ttl: float) -> None:
    with pytest.raises(NotAllowed, match="between 1 second and 7 days"):
        token(ca, ttl=ttl)


@pytest.mark.parametrize("wanted", [SpiffeId("other", "/a"), SpiffeId("td", "")])
def test_tokens_are_only_for_our_own_identities(ca: CaService, wanted: SpiffeId) -> None:
    with pytest.raises(NotAllowed):
        ca.create_token(wanted, now=NOW)


def test_unused_tokens_are_listed_without_their_secret_and_can_be_withdrawn(ca: CaService) -> None:
    secret = token(ca)
    (view,) = ca.tokens(now=NOW)
    assert (view.spiffe_id, view.expires_at) == (str(HOST), NOW.timestamp() + 600)
    assert view.id not in secret
    ca.delete_token(view.id, now=NOW)
    with pytest.raises(NotAllowed):
        use(ca, secret)
    assert ca.tokens(now=NOW) == []


@pytest.mark.parametrize("wanted", ["", "0", "0" * 16, "%" * 16])
def test_a_token_is_withdrawn_by_its_whole_name_only(ca: CaService, wanted: str) -> None:
    token(ca)
    with pytest.raises(NoSuchThing):
        ca.delete_token(wanted, now=NOW)
    assert len(ca.tokens(now=NOW)) == 1


def test_expired_tokens_are_neither_listed_nor_kept(ca: CaService, folder: Path) -> None:
    token(ca)
    assert ca.tokens(now=NOW + HOUR) == []
    ca.tick(NOW + HOUR)
    with closing(sqlite3.connect(folder / "ca.db")) as db:
        assert db.execute("SELECT count(*) FROM tokens").fetchone() == (0,)


# -- the race (C-11) ----------------------------------------------------------------------------------------


def race(replicas: list[CaService], rounds: int) -> list[int]:
    """For each round the number of winners among as many threads as there are replicas."""
    start = threading.Barrier(len(replicas))
    secrets = [token(replicas[0], ttl=DAY.total_seconds()) for _ in range(rounds)]
    wins: list[list[int]] = [[] for _ in replicas]

    def attestor(number: int) -> None:
        for turn, secret in enumerate(secrets):
            start.wait(30)
            try:
                use(replicas[number], secret)
            except NotAllowed:
                continue
            wins[number].append(turn)

    threads = [threading.Thread(target=attestor, args=(number,)) for number in range(len(replicas))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [sum(turn in won for won in wins) for turn in range(rounds)]


def check_race(folder: Path, first: CaService, rounds: int) -> None:
    with CaService.open(folder, now=NOW) as second:
        before = len(kinds(first))
        winners = race([first, second], rounds)
        assert winners == [1] * rounds
        print(f"one join token, two attestations at once: exactly one won in {winners.count(1)} of {rounds} rounds")
    told = [record.kind for record in first.log(since=before, limit=10 * rounds)]
    assert {kind: told.count(kind) for kind in set(told)} == {
        "token_created": rounds,
        "token_used": rounds,
        "denied": rounds,
    }
    assert first.verify_journal().ok


@pytest.mark.slow
def test_of_two_attestations_with_one_token_exactly_one_wins(ca: CaService, folder: Path) -> None:
    check_race(folder, ca, 200)


@pytest.mark.long
def test_of_two_attestations_with_one_token_exactly_one_wins_a_thousand_times(ca: CaService, folder: Path) -> None:
    check_race(folder, ca, 1000)


# -- nodes --------------------------------------------------------------------------------------------------


def test_a_node_is_known_by_what_it_attested_with(ca: CaService) -> None:
    attest(ca, "/host/1", machine="m-1")
    node = ca.node(HOST)
    assert (node.how, node.selectors, node.machine_id, node.banned) == ("join-token", ("machine:a",), "m-1", "")
    assert node.expires_at == (NOW + DAY).timestamp()
    assert kinds(ca)[-1] == "node_attested"


def test_nodes_are_listed_in_pages_and_by_machine(ca: CaService) -> None:
    for number in range(3):
        attest(ca, f"/host/{number}", machine="m-1" if number else "m-0")
    assert [node.spiffe_id[-1] for node in ca.nodes(limit=2)] == ["0", "1"]
    assert [node.spiffe_id[-1] for node in ca.nodes(after="spiffe://td/host/1")] == ["2"]
    assert [node.spiffe_id[-1] for node in ca.nodes_of_machine("m-1")] == ["1", "2"]
    assert ca.nodes_of_machine("") == []


def test_a_banned_node_gets_nothing_attests_no_more_and_its_identity_is_revoked(ca: CaService) -> None:
    attest(ca, "/host/1")
    ca.ban(HOST, "stolen", now=NOW)
    assert ca.is_banned(HOST)
    with pytest.raises(NotAllowed, match="host/1 is banned"):
        issue(ca, "/host/1")
    with pytest.raises(NotAllowed, match="host/1 is banned"):
        issue(ca, "/ns/a/sa/web")  # the agent host/1 asks for it
    with pytest.raises(NotAllowed, match="is banned: stolen"):
        attest(ca, "/host/1")
    assert [entry.what for entry in ca.revocations(NOW).entries] == [str(HOST)]


def test_a_ban_outlives_the_revocation_that_came_with_it(ca: CaService) -> None:
    attest(ca, "/host/1")
    ca.ban(HOST, "stolen", now=NOW)
    ca.tick(NOW + 30 * DAY)
    assert ca.revocations(NOW + 30 * DAY).entries == ()
    with pytest.raises(NotAllowed, match="is banned"):
        issue(ca, "/host/1", now=NOW + 30 * DAY)


def test_after_unban_it_may_attest_and_ask_again(ca: CaService) -> None:
    attest(ca, "/host/1")
    ca.ban(HOST, "by mistake", now=NOW)
    ca.unban(HOST, now=NOW)
    attest(ca, "/host/1")
    assert issue(ca, "/host/1").serial
    assert ca.revocations(NOW).entries == ()
    with pytest.raises(NoSuchThing, match="is not banned"):
        ca.unban(HOST, now=NOW)


def test_a_forgotten_node_is_off_the_list(ca: CaService) -> None:
    attest(ca, "/host/1")
    ca.forget_node(HOST, now=NOW)
    assert ca.nodes() == []
    for act in (ca.forget_node, ca.unban):
        with pytest.raises(NoSuchThing):
            act(HOST, now=NOW)
    with pytest.raises(NoSuchThing):
        ca.ban(HOST, "", now=NOW)
    with pytest.raises(NoSuchThing):
        ca.node(HOST)


def test_a_nodes_own_renewal_moves_its_end(ca: CaService) -> None:
    attest(ca, "/host/1", life=HOUR)
    itself = replace(AGENT, kind="node", id=str(HOST))
    made = issue(ca, "/host/1", now=NOW + HOUR / 2, caller=itself)
    assert ca.node(HOST).expires_at == made.not_after > (NOW + HOUR).timestamp()


def test_the_bundle_a_node_has_seen_never_goes_back_nor_beyond_ours(ca: CaService) -> None:
    attest(ca, "/host/1")
    ours = ca.bundle().sequence
    ca.seen_bundle(HOST, ours, now=NOW)
    ca.seen_bundle(HOST, ours - 1, now=NOW)
    assert ca.node(HOST).seen_sequence == ours
    ca.seen_bundle(HOST, ours + 1000, now=NOW)
    assert ca.node(HOST).seen_sequence == ours
    ca.seen_bundle(spiffe_id("/nobody"), ours, now=NOW)  # of no consequence


def test_with_a_new_key_a_node_has_seen_nothing_yet(ca: CaService) -> None:
    attest(ca, "/host/1")
    ca.seen_bundle(HOST, 1, now=NOW)
    ca.record_node(HOST, "join-token", (), key_hash="cd" * 32, machine_id="", now=NOW, caller=AGENT)
    assert ca.node(HOST).seen_sequence == 0
