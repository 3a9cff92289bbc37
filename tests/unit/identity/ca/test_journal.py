"""The journal: whatever is done to a record that was written is found."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from identity.ca import journal, schema
from identity.ca.model import CallerFacts, StoreCorrupt
from identity.ca.service import CaService
from tests.support.ca import AGENT, NOW, issue, spiffe_id


@pytest.fixture
def told(ca: CaService) -> CaService:
    """One with ten records."""
    for number in range(8):
        ca.record("test", f"record {number}", caller=AGENT, now=NOW, number=number)
    return ca


def run_sql(folder: Path, *statements: str) -> None:
    with closing(sqlite3.connect(folder / "ca.db")) as db, db:
        for statement in statements:
            db.execute(statement)


def test_a_chain_that_nobody_touched_is_whole(told: CaService) -> None:
    verdict = told.verify_journal()
    assert (verdict.ok, verdict.records) == (True, 10)
    assert told.journal_head() == (10, verdict.head) == (10, told.log()[-1].hash)


@pytest.mark.parametrize(
    ("statements", "broken_at", "words"),
    [
        (["UPDATE journal SET body = replace(body, 'record 3', 'record 4') WHERE seq = 6"], 6, "was changed"),
        (["UPDATE journal SET hash = replace(hash, substr(hash, 1, 1), 'x') WHERE seq = 6"], 6, "was changed"),
        (["DELETE FROM journal WHERE seq = 6"], 6, "record 6 is missing"),
        (["DELETE FROM journal WHERE seq = 1"], 1, "record 1 is missing"),
        (["DELETE FROM journal WHERE seq = 10"], 10, "the chain ends at 9, the head says 10"),
        (["DELETE FROM journal"], 1, "the chain ends at 0, the head says 10"),
        (["UPDATE head SET journal_hash = (SELECT hash FROM journal WHERE seq = 9)"], 11, "the chain ends"),
        (
            [
                "DELETE FROM journal WHERE seq = 6",
                "UPDATE journal SET seq = seq - 1 WHERE seq > 6",
                "UPDATE head SET journal_seq = 9",
            ],
            6,
            "was changed",
        ),
        (
            [
                "UPDATE journal SET seq = 99 WHERE seq = 6",
                "UPDATE journal SET seq = 6 WHERE seq = 7",
                "UPDATE journal SET seq = 7 WHERE seq = 99",
            ],
            6,
            "was changed",
        ),
    ],
    ids=["changed", "hash", "removed", "first", "last", "all", "head", "closed up", "reordered"],
)
def test_what_was_done_to_a_record_is_found(
    told: CaService, folder: Path, statements: list[str], broken_at: int, words: str
) -> None:
    run_sql(folder, *statements)
    verdict = told.verify_journal()
    assert (verdict.ok, verdict.broken_at) == (False, broken_at)
    assert words in verdict.problem
    with pytest.raises(StoreCorrupt, match="the journal is not whole"):
        CaService.open(folder, now=NOW)


def test_a_journal_rewritten_whole_is_noticed_by_the_head_kept_elsewhere(told: CaService, folder: Path) -> None:
    kept = told.journal_head()
    with closing(sqlite3.connect(folder / "ca.db")) as db, db:
        before = schema.FIRST_HASH
        for seq, body in db.execute("SELECT seq, body FROM journal ORDER BY seq").fetchall():
            body = body.replace("record 3", "record X")
            before = journal.chain_hash(before, seq, body)
            db.execute("UPDATE journal SET body = ?, hash = ? WHERE seq = ?", [body, before, seq])
        db.execute("UPDATE head SET journal_hash = ?", [before])
    assert told.verify_journal().ok
    assert told.journal_head() != kept


def chain(texts: list[str]) -> list[tuple[int, str, str]]:
    rows, before = [], schema.FIRST_HASH
    for seq, text in enumerate(texts, 1):
        before = journal.chain_hash(before, seq, text)
        rows.append((seq, text, before))
    return rows


def verdict_of(rows: list[tuple[int, str, str]], last: int, head: str, start: int = 0) -> bool:
    found: Iterator[tuple[int, str, str]] = (row for row in rows if row[0] >= start)
    return journal.check_chain(found, last, head, start).ok


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.text(min_size=1), min_size=1, max_size=12), data=st.data())
def test_any_one_changed_character_is_found_wherever_it_stands(texts: list[str], data: st.DataObject) -> None:
    rows = chain(texts)
    last, head = rows[-1][0], rows[-1][2]
    assert verdict_of(rows, last, head)
    at = data.draw(st.integers(0, len(rows) - 1))
    seq, text, digest = rows[at]
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(codec="utf-8").filter(lambda c: c != text[place]))
    rows[at] = (seq, text[:place] + other + text[place + 1 :], digest)
    assert not verdict_of(rows, last, head)
    assert not verdict_of(rows, last, head, start=seq - 1 if seq > 1 else 0)


@pytest.mark.parametrize("start", [0, 1, 5, 9, 10])
def test_the_tail_alone_can_be_verified(start: int) -> None:
    rows = chain([f"text {n}" for n in range(10)])
    assert verdict_of(rows, 10, rows[-1][2], start)
    assert not verdict_of(rows[:-1], 10, rows[-1][2], start)
    assert not verdict_of([row for row in rows if row[0] != max(start, 1)], 10, rows[-1][2], start)


def test_records_are_read_in_pages_of_which_each_goes_on_after_the_last(told: CaService) -> None:
    first = told.log(limit=4)
    rest = told.log(since=first[-1].seq)
    assert [record.seq for record in first + rest] == list(range(1, 11))
    assert told.log(since=10) == []


def test_text_from_outside_is_cut_and_cannot_break_a_line(ca: CaService) -> None:
    caller = CallerFacts("agent", "x" * 5000, "line\nbreak", "\x1b[31m\u2028")
    ca.record_denial("y" * 5000, "z" * 5000, caller=caller, now=NOW)
    record = ca.log()[-1]
    assert max(len(record.subject), len(record.caller["id"]), len(record.facts["reason"])) == 503
    (row,) = [row for row in _bodies(ca) if "line" in row]
    assert "\n" not in row
    assert "\x1b" not in row
    assert "\u2028" not in row


def _bodies(ca: CaService) -> list[str]:
    with ca._store.read() as tx:
        return [body for _, body, _ in journal._rows(tx.connection, 0, 100)]


def test_a_record_that_cannot_be_read_says_so(told: CaService, folder: Path) -> None:
    run_sql(folder, "UPDATE journal SET body = '{' WHERE seq = 3")
    with pytest.raises(StoreCorrupt, match="journal record 3 cannot be read"):
        told.log()


def test_no_record_holds_a_private_key_or_a_secret(ca: CaService) -> None:
    secret = ca.create_token(spiffe_id(), now=NOW)
    issue(ca)
    text = "".join(_bodies(ca))
    assert "PRIVATE" not in text
    assert secret not in text


def test_a_transaction_that_fails_half_way_changes_nothing(told: CaService) -> None:
    before = told.journal_head()
    with contextlib.suppress(ZeroDivisionError), told._store.write(NOW) as tx:
        tx.record("test", "", AGENT)
        raise ZeroDivisionError
    assert told.journal_head() == before
    assert told.verify_journal().ok
