"""The store itself: who hears of a write, who waits for whom, how a schema is taken up, and what errors become."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Dialect, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from identity.ca import schema
from identity.ca.changes import Changes
from identity.ca.commit import GroupCommit
from identity.ca.model import ITSELF, StoreCorrupt, StoreUnavailable
from identity.ca.service import CaService
from identity.ca.store import Store
from tests.support.ca import NOW, attest, entry, issue, spiffe_id


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(f"sqlite:///{tmp_path / 'ca.db'}")
    made.migrate()
    yield made
    made.close()


# -- changes ------------------------------------------------------------------------------------------------


def test_the_counter_moves_with_what_others_must_hear_of_and_not_with_each_issuance(ca: CaService) -> None:
    def moves(act: Callable[[], object]) -> bool:
        before = ca.changed()
        act()
        return ca.changed() != before

    attest(ca, "/host/1")
    assert moves(lambda: ca.create_entry(entry(id="a"), now=NOW))
    assert moves(lambda: ca.delete_entry("a", now=NOW))
    assert moves(lambda: ca.prepare_authority("x509-issuing", now=NOW))
    assert moves(lambda: ca.revoke(spiffe_id("/x"), "", now=NOW))
    assert moves(lambda: ca.ban(spiffe_id("/host/1"), "", now=NOW))
    assert moves(lambda: ca.unban(spiffe_id("/host/1"), now=NOW))
    assert not moves(lambda: issue(ca))
    assert not moves(lambda: ca.create_token(spiffe_id("/x"), now=NOW))
    assert not moves(lambda: ca.record_denial("x", "y", caller=ITSELF, now=NOW))


def test_a_waiting_thread_is_woken_by_a_write_of_the_same_process_at_once(ca: CaService) -> None:
    seen, found = ca.changed(), []
    waiter = threading.Thread(target=lambda: found.append(ca.wait_change(seen, 30.0)))
    waiter.start()
    ca.create_entry(entry(), now=NOW)
    waiter.join(10)
    assert found == [ca.changed()]
    assert found != [seen]


def test_a_write_of_another_replica_is_heard_of(ca: CaService, folder: Path) -> None:
    with CaService.open(folder, now=NOW) as other:
        seen = ca.changed()
        other.create_entry(entry(), now=NOW)
        assert ca.wait_change(seen, 30.0) == other.changed() != seen


def test_waiting_ends_without_a_change_too(ca: CaService) -> None:
    seen = ca.changed()
    assert ca.wait_change(seen, 0.0) == seen


def test_who_waits_is_let_go_when_the_store_is_closed() -> None:
    changes, found = Changes(lambda: 1, None), []
    waiter = threading.Thread(target=lambda: found.append(changes.wait(1, 30.0)))
    waiter.start()
    changes.close()
    waiter.join(10)
    assert found == [1]


# -- group commit -------------------------------------------------------------------------------------------


Answers = dict[int, object]


class Disk:
    """A commit that is held up until it is let go; remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered, self.go = threading.Event(), threading.Event()

    def __call__(self, works: Sequence[int]) -> list[int]:
        self.batches.append(list(works))
        self.entered.set()
        assert self.go.wait(10)
        if 13 in works:
            raise StoreUnavailable("no luck")
        return [work * 10 for work in works]


def ask(group: GroupCommit[int, int], works: list[int], answers: Answers) -> threading.Thread:
    def run() -> None:
        try:
            answers[works[0]] = group.run(lambda: works)
        except StoreUnavailable as error:
            answers[works[0]] = str(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_what_comes_while_the_disk_is_busy_shares_the_next_commit() -> None:
    disk, answers = Disk(), Answers()
    group: GroupCommit[int, int] = GroupCommit(disk)
    threads = [ask(group, [1], answers)]
    disk.entered.wait(10)
    threads += [ask(group, [2, 3], answers), ask(group, [4], answers)]
    wait_until(lambda: group._waiting == 3)
    disk.go.set()
    for thread in threads:
        thread.join(10)
    assert answers == {1: [10], 2: [20, 30], 4: [40]}
    assert disk.batches[0] == [1]
    assert sorted(disk.batches[1]) == [2, 3, 4]
    assert len(disk.batches) == 2
    assert not group._is_led


def test_whoever_commits_waits_for_those_who_are_just_making_their_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("identity.ca.commit._GATHER", 10.0)
    disk, answers, made = Disk(), Answers(), threading.Event()
    disk.go.set()
    group: GroupCommit[int, int] = GroupCommit(disk)

    def slow() -> None:
        def make() -> list[int]:
            assert made.wait(10)
            return [1]

        answers[1] = group.run(make)

    late = threading.Thread(target=slow)
    late.start()
    wait_until(lambda: group._making == 1)
    early = ask(group, [2], answers)
    wait_until(lambda: len(group._queue) == 1)
    made.set()
    late.join(10)
    early.join(10)
    assert answers == {1: [10], 2: [20]}
    assert [sorted(batch) for batch in disk.batches] == [[1, 2]]


def test_work_that_cannot_be_made_holds_nobody_up() -> None:
    disk, answers = Disk(), Answers()
    disk.go.set()
    group: GroupCommit[int, int] = GroupCommit(disk)
    with pytest.raises(ZeroDivisionError):
        group.run(lambda: [1 // 0])
    assert group._making == 0
    ask(group, [5], answers).join(10)
    assert answers == {5: [50]}


def test_a_commit_that_fails_fails_for_everybody_in_it_and_for_nobody_else() -> None:
    disk, answers = Disk(), Answers()
    disk.go.set()
    group: GroupCommit[int, int] = GroupCommit(disk)
    ask(group, [13], answers).join(10)
    ask(group, [5], answers).join(10)
    assert answers == {13: "no luck", 5: [50]}


@pytest.mark.parametrize("where", ["wait_for", "_commit"])
def test_a_leader_who_is_interrupted_leaves_the_lead_to_others(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    disk, answers = Disk(), Answers()
    group: GroupCommit[int, int] = GroupCommit(disk)

    def interrupt(*_: object) -> list[int]:
        raise KeyboardInterrupt

    owner: Any = group._lock if where == "wait_for" else group
    with monkeypatch.context() as patch:
        patch.setattr(owner, where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            group.run(lambda: [1])
    disk.go.set()
    ask(group, [5], answers).join(10)
    assert answers == {5: [50]}
    assert disk.batches == [[5]]


def test_the_queue_is_bounded_and_nobody_waits_in_it_for_long() -> None:
    disk, answers = Disk(), Answers()
    group: GroupCommit[int, int] = GroupCommit(disk, max_queue=2, max_wait=0.05)
    first = ask(group, [1], answers)
    disk.entered.wait(10)
    late = ask(group, [2], answers)
    wait_until(lambda: len(group._queue) == 1)
    with pytest.raises(StoreUnavailable, match="1 requests are waiting already"):
        group.run(lambda: [3, 4])
    late.join(10)
    disk.go.set()
    first.join(10)
    assert answers == {1: [10], 2: "no transaction was finished within 0.05 s"}
    assert group.run(lambda: [6]) == [60]
    assert disk.batches == [[1], [6]]


def test_a_batch_is_bounded_and_the_next_in_the_queue_leads_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("identity.ca.commit.MAX_BATCH", 3)
    disk, answers = Disk(), Answers()
    group: GroupCommit[int, int] = GroupCommit(disk)
    threads = [ask(group, [1], answers)]
    disk.entered.wait(10)
    for number, works in enumerate([[20, 21], [30], [40, 41], [50, 51, 52, 53]], 1):
        threads.append(ask(group, works, answers))
        wait_until(partial(_has, group, number))
    disk.go.set()
    for thread in threads:
        thread.join(10)
    assert disk.batches == [[1], [20, 21, 30], [40, 41], [50, 51, 52, 53]]
    assert answers[40] == [400, 410]
    assert answers[50] == [500, 510, 520, 530]


def _has(group: GroupCommit[int, int], jobs: int) -> bool:
    return len(group._queue) == jobs


def test_many_threads_all_get_their_own_answers_and_nothing_is_left_behind() -> None:
    group: GroupCommit[int, int] = GroupCommit(lambda works: [work * 10 for work in works])
    wrong: list[int] = []

    def run(base: int) -> None:
        for work in range(base, base + 50):
            pair = [work, -work]
            if group.run(pair.copy) != [work * 10, -work * 10]:
                wrong.append(work)

    threads = [threading.Thread(target=run, args=(1000 * number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    assert (group._waiting, group._making, group._is_led, len(group._queue)) == (0, 0, False, 0)


# -- schema -------------------------------------------------------------------------------------------------


def version(path: Path) -> str:
    with closing(sqlite3.connect(path)) as db:
        return str(db.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()[0])


def test_an_older_database_is_taken_up_step_by_step_and_a_copy_is_kept(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    steps = {2: lambda connection: taken.append(2), 3: lambda connection: taken.append(3)}
    monkeypatch.setattr(schema, "VERSION", 3)
    monkeypatch.setattr(schema.migrate, "__kwdefaults__", {"version": 3, "steps": steps})
    store.migrate()
    store.migrate()
    assert taken == [2, 3]
    assert version(tmp_path / "ca.db") == "3"
    copy = tmp_path / "ca.db.bak-1"
    assert version(copy) == "1"
    assert copy.stat().st_mode & 0o777 == 0o600


def test_a_step_that_fails_leaves_the_database_as_it_was(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(connection: Connection) -> None:
        connection.execute(text("ALTER TABLE nodes ADD COLUMN more TEXT"))
        connection.execute(text("ALTER TABLE nowhere ADD COLUMN more TEXT"))

    monkeypatch.setattr(schema.migrate, "__kwdefaults__", {"version": 2, "steps": {2: half}})
    with pytest.raises(StoreCorrupt, match="nowhere"):
        store.migrate()
    assert version(tmp_path / "ca.db") == "1"
    with closing(sqlite3.connect(tmp_path / "ca.db")) as db:
        assert "more" not in {row[1] for row in db.execute("PRAGMA table_info(nodes)")}


def test_both_databases_know_every_statement_that_makes_the_tables() -> None:
    for table in schema.metadata.sorted_tables:
        dialects: list[Dialect] = [postgresql.dialect(), sqlite.dialect()]  # type: ignore[no-untyped-call]
        for dialect in dialects:
            assert str(CreateTable(table).compile(dialect=dialect))
            assert all(str(CreateIndex(index).compile(dialect=dialect)) for index in table.indexes)


# -- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "mysql://host/db", "sqlite:////nowhere/at/all/ca.db"]
)
def test_a_store_that_cannot_be_one_is_refused(url: str) -> None:
    with pytest.raises(StoreUnavailable):
        Store(url)


def test_the_name_of_a_store_does_not_show_its_password() -> None:
    store = Store("postgresql+psycopg://ca:secret@nowhere/db")
    assert store.name == "postgresql+psycopg://ca:***@nowhere/db"
    store.close()


def test_a_writer_that_holds_the_line_too_long_makes_others_give_up(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("identity.ca.engines.BUSY", 0.02)
    with store.write(NOW):
        found: list[str] = []

        def other() -> None:
            with pytest.raises(StoreUnavailable) as caught, store.write(NOW):
                pass
            found.append(str(caught.value))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(10)
    assert "other writers did not finish in 0.02 s" in found[0]


def test_a_database_that_somebody_else_holds_is_unavailable_and_not_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("identity.ca.engines.BUSY", 0.02)
    store = Store(f"sqlite:///{tmp_path / 'ca.db'}")
    store.migrate()
    with closing(sqlite3.connect(tmp_path / "ca.db", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="database is locked"), store.write(NOW):
            pass
        db.execute("ROLLBACK")
    with store.write(NOW) as tx:
        tx.touch()
    store.close()


def test_a_commit_waits_for_the_disk(store: Store) -> None:
    with store.read() as tx:
        pragmas = [tx.connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous")]
    assert pragmas == ["wal", 2]  # FULL
