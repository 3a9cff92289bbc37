"""Three replicas of one authority on a real PostgreSQL: under load, one killed, one cut off, a rotation in between."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest

from identity.ca import backup
from identity.ca.changes import CHANNEL
from identity.ca.model import CaSettings, Conflict, JournalRecord, NotAllowed, StoreCorrupt, StoreUnavailable
from identity.ca.service import CaService
from tests.house.tree import ROOT
from tests.support.ca import NOW, entry, issue, kinds, new_ca, of_kind, spiffe_id
from tests.support.postgres import Cluster, PostgresMissing, postgres_cluster

CLIENTS = 50  # of all replicas together


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        Path(name).chmod(0o711)  # the database's own user must get through
        try:
            running = postgres_cluster(Path(name) / "pg")
        except PostgresMissing as missing:
            pytest.skip(f"no PostgreSQL: {missing}")
        with running as found:
            yield found


@pytest.fixture
def url(cluster: Cluster) -> str:
    """Of an empty database."""
    with psycopg.connect(f"host={cluster.folder} user={cluster.user} dbname=postgres", autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS mesh WITH (FORCE)")
        admin.execute("CREATE DATABASE mesh")
    return cluster.url.replace("/postgres?", "/mesh?")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ca"


@pytest.fixture
def two(folder: Path, url: str) -> Iterator[tuple[CaService, CaService]]:
    """Two replicas in this process."""
    with new_ca(folder, store_url=url) as first, CaService.open(folder, url, now=NOW) as second:
        yield first, second


# -- what is particular to PostgreSQL -----------------------------------------------------------------------


def test_a_second_replica_that_creates_finds_the_authority_made(folder: Path, url: str, tmp_path: Path) -> None:
    with new_ca(folder, store_url=url) as first, new_ca(tmp_path / "second", store_url=url) as second:
        assert second.bundle() == first.bundle()
        assert kinds(second) == ["settings", "created"]
        with pytest.raises(StoreUnavailable, match="all replicas must share the folder"):
            issue(second)


def test_replicas_that_create_at_the_same_time_make_one_authority(folder: Path, url: str, tmp_path: Path) -> None:
    found: list[Any] = []

    def create(number: int) -> None:
        with new_ca(tmp_path / f"replica-{number}", store_url=url) as ca:
            found.append(ca.bundle().roots)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_a_change_is_heard_by_notify_without_any_polling(two: tuple[CaService, CaService]) -> None:
    first, second = two
    second._store._changes._poll = 600.0  # seconds: whoever hears within this test has been told
    for number in range(3):
        seen = second.changed()
        begin = time.monotonic()
        threading.Timer(0.1, lambda n=number: first.create_entry(entry(f"/w/{n}"), now=NOW)).start()
        assert second.wait_change(seen, 60.0) != seen
        print(f"a change was heard by another replica after {time.monotonic() - begin - 0.1:.3f} s")


def ended(admin: psycopg.Connection[Any], which: LiteralString) -> bool:
    """Whether there were such sessions; they are no more."""
    return bool(admin.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {which}").fetchall())


@pytest.mark.slow
def test_a_lost_listener_is_made_again(two: tuple[CaService, CaService], url: str) -> None:
    first, second = two
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as admin:
        for number in range(2):
            seen = second.changed()
            waiter = threading.Thread(target=second.wait_change, args=(seen, 60.0))
            waiter.start()
            wait_until(partial(ended, admin, f"query = 'LISTEN {CHANNEL}'"))
            first.create_entry(entry(f"/w/{number}"), now=NOW)
            waiter.join(60)
            assert not waiter.is_alive()


def test_a_connection_that_was_ended_in_the_pool_costs_one_answer_at_most(
    two: tuple[CaService, CaService], url: str
) -> None:
    first, _ = two
    issue(first)
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as admin:
        assert ended(admin, "application_name = 'sidewall-ca'")
    outcomes = []
    for _ in range(20):
        try:
            outcomes.append(issue(first).serial)
        except StoreUnavailable:
            outcomes.append("")
    assert outcomes.count("") <= 8
    assert all(outcomes[-5:])
    assert {view.serial for view in first.issued(now=NOW)} >= set(filter(None, outcomes))


@pytest.mark.slow
def test_one_of_two_replicas_wins_the_token_and_the_exclusive_identity(two: tuple[CaService, CaService]) -> None:
    for turn in range(20):
        secret = two[0].create_token(spiffe_id("/host/1"), now=NOW)
        won: list[str] = []

        def attempt(ca: CaService, secret: str = secret, turn: int = turn, won: list[str] = won) -> None:
            with contextlib.suppress(NotAllowed):
                ca.consume_token(secret, source="", now=NOW)
                won.append("token")
            with contextlib.suppress(NotAllowed):
                issue(ca, f"/exclusive/{turn}", exclusive=True)
                won.append("identity")

        threads = [threading.Thread(target=attempt, args=(ca,)) for ca in two]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(won) == ["identity", "token"]
    assert two[0].verify_journal().ok


def test_a_damaged_table_is_a_damaged_store(two: tuple[CaService, CaService], url: str, folder: Path) -> None:
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as admin:
        admin.execute("DROP TABLE issued")
    with pytest.raises(StoreCorrupt, match="restore"):
        issue(two[0])
    with pytest.raises(StoreCorrupt, match="tables are missing: issued"):
        CaService.open(folder, url, now=NOW)


def test_a_backup_of_sqlite_is_restored_into_postgresql(tmp_path: Path, url: str) -> None:
    with new_ca(tmp_path / "small") as ca:
        ca.create_entry(entry(id="web"), now=NOW)
        issue(ca)
        ca.backup(tmp_path / "backup", now=NOW)
        root = ca.bundle().roots
    with CaService.restore(tmp_path / "backup", tmp_path / "large", store_url=url, now=NOW) as back:
        assert back.bundle().roots == root
        assert back.get_entry("web")["id"] == "web"
        assert issue(back).serial
        assert back.verify_journal().ok
    with pytest.raises(Conflict, match="holds an authority already"):
        CaService.restore(tmp_path / "backup", tmp_path / "third", store_url=url, now=NOW)


@contextlib.contextmanager
def sitting_on_the_head(url: str, application: str) -> Iterator[psycopg.Connection[Any]]:
    """A session that has locked the head and says nothing more, with no time limit of its own."""
    address = url.replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(address, application_name=application) as sitter:
        sitter.execute("SELECT * FROM head FOR UPDATE")
        yield sitter


@pytest.mark.slow
def test_who_sits_on_the_head_is_ended_by_who_waits_for_it(two: tuple[CaService, CaService], url: str) -> None:
    with sitting_on_the_head(url, "sidewall-ca") as sitter:
        assert issue(two[0]).serial
        with pytest.raises(psycopg.OperationalError):
            sitter.execute("SELECT 1")


@pytest.mark.slow
def test_a_session_of_somebody_else_is_left_alone(two: tuple[CaService, CaService], url: str) -> None:
    with sitting_on_the_head(url, "psql") as sitter:
        with pytest.raises(StoreUnavailable, match="lock timeout"):
            issue(two[0])
        sitter.execute("SELECT 1")
        sitter.rollback()
        assert issue(two[0]).serial


@pytest.mark.slow
def test_a_backup_of_a_long_journal_may_take_longer_than_others_may_idle(
    two: tuple[CaService, CaService], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("identity.ca.backup._sealed", slowly(backup._sealed))
    two[0].backup(tmp_path / "backup", now=NOW)
    assert backup.check(tmp_path / "backup")["trust_domain"] == "td"


def slowly(real: Any) -> Any:
    def wait(*arguments: Any) -> Any:
        time.sleep(1.2)  # the server ends transactions that idle for a second
        return real(*arguments)

    return wait


# -- under load ---------------------------------------------------------------------------------------------


class Forwarder:
    """A TCP relay to the server's socket, which can be cut: everything stays open, nothing moves any more."""

    def __init__(self, target: Path) -> None:
        self._target = str(target)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._flows = threading.Event()
        self._flows.set()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._flows.clear()

    def heal(self) -> None:
        """Connections from before are gone, as after a reboot of the router."""
        broken, self._open = self._open, []
        for sock in broken:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._flows.set()

    def close(self) -> None:
        self._listener.close()
        self.heal()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(self._target)
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError), source:
            while data := source.recv(65536):
                self._flows.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)


@dataclass
class Process:
    """A replica and what it has told so far: (when, fact)."""

    number: int
    process: subprocess.Popen[bytes]
    told: list[tuple[float, list[Any]]] = field(default_factory=list)
    reader: threading.Thread | None = None

    @classmethod
    def start(cls, folder: Path, url: str, number: int, clients: int) -> Process:
        command = [sys.executable, "-m", "tests.support.ca_replica", str(folder), url, str(number), str(clients)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self = cls(number, subprocess.Popen(command, cwd=ROOT, **pipes))  # type: ignore[call-overload]
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        return self

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):  # half of a line, of who was killed
                self.told.append((time.monotonic(), json.loads(line)))

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.reader is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait()
        self.reader.join(10)
        self.process.stdout.close()

    def facts(self, kind: str, since: float = 0.0, until: float = 1e18) -> list[list[Any]]:
        return [fact for at, fact in list(self.told) if fact[0] == kind and since <= at < until]


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@dataclass
class Course:
    """A run: three replicas for ``seconds``; one is killed at 0.3, one cut off from 0.4 to 0.7 of it."""

    seconds: float
    replicas: list[Process]
    begin: float = 0.0
    killed: float = 0.0
    cut: float = 0.0
    healed: float = 0.0

    def run(self, forwarder: Forwarder) -> None:
        for replica in self.replicas:
            wait_until(lambda r=replica: r.facts("ready"))
        self.begin = time.monotonic()
        for replica in self.replicas:
            replica.go()
        self.killed = self._at(0.3)
        self.replicas[1].kill()
        self.cut = self._at(0.4)
        forwarder.cut()
        self.healed = self._at(0.7)
        forwarder.heal()
        self._at(1.0)
        for replica in self.replicas:
            replica.end()

    def _at(self, share: float) -> float:
        time.sleep(max(0.0, self.begin + self.seconds * share - time.monotonic()))
        return time.monotonic()

    def issued(self, since: float = 0.0, until: float = 1e18) -> list[list[Any]]:
        return [fact for replica in self.replicas for fact in replica.facts("issued", since, until)]

    def longest_pause(self) -> float:
        """Seconds without a certificate from the replica that nothing happens to."""
        at = [moment for moment, fact in self.replicas[0].told if fact[0] == "issued"]
        return max(b - a for a, b in pairwise(at))


def settings(life: float) -> CaSettings:
    """Certificates of seconds; the issuing authority and the JWT key change once within ``life``."""
    return CaSettings(
        min_ttl=1.0, svid_ttl=3.0, max_ttl=4.0, jwt_ttl=3.0, max_jwt_ttl=4.0, root_life=86400.0, issuing_life=life,
        jwt_life=life, refresh_hint=0.5, old_grace=0.5, prepare_at=0.4, activate_at=0.75,
    )  # fmt: skip


def run_course(cluster: Cluster, folder: Path, url: str, seconds: float) -> tuple[Course, CaService]:
    made = datetime.now(UTC)
    ca = new_ca(folder, store_url=url, now=made, settings=settings(seconds + 1))
    forwarder = Forwarder(cluster.socket)
    through = cluster.tcp_url(forwarder.port).replace("/postgres", "/mesh")
    shares = [CLIENTS // 3 + (1 if n < CLIENTS % 3 else 0) for n in range(3)]
    course = Course(seconds, [])
    try:
        for number, address in enumerate([url, url, through]):
            course.replicas.append(Process.start(folder, address, number, shares[number]))
        course.run(forwarder)
    finally:
        for replica in course.replicas:
            replica.end()
        forwarder.close()
    return course, ca


def overlaps(records: list[JournalRecord], by: str, other: str) -> list[tuple[str, str]]:
    """Pairs of certificates with the same ``by`` and another ``other`` that were good at the same time."""
    last: dict[str, list[tuple[float, str, str]]] = {}
    found = []
    for record in records:
        values = {"id": record.subject, "key": record.facts["key_hash"]}
        live = [row for row in last.get(values[by], []) if row[0] > record.at]
        found += [(serial, record.facts["serial"]) for _, value, serial in live if value != values[other]]
        last[values[by]] = [*live, (record.facts["not_after"], values[other], record.facts["serial"])]
    return found


def every_record(ca: CaService) -> list[JournalRecord]:
    records: list[JournalRecord] = []
    while more := ca.log(since=records[-1].seq if records else 0, limit=5000):
        records += more
    return records


def check_course(course: Course, ca: CaService) -> None:
    records = every_record(ca)
    svids = {record.facts["serial"]: record for record in records if record.kind == "x509-svid"}
    given = course.issued()
    assert ca.verify_journal().ok
    missing = [fact for fact in given if fact[1] not in svids]
    assert missing == [], "handed out, and not in the journal"
    for _, serial, wanted, key in given:
        assert (svids[serial].subject, svids[serial].facts["key_hash"]) == (wanted, key)
    assert len({fact[1] for fact in given}) == len(given)
    contested = [record for record in svids.values() if "/contested/" in record.subject]
    shared = [record for record in svids.values() if "/shared/" in record.subject]
    assert contested
    assert overlaps(contested, "id", "key") == []
    assert shared
    assert overlaps(shared, "key", "id") == []
    check_rotation(records, ca)
    report(course, records, given)


def check_rotation(records: list[JournalRecord], ca: CaService) -> None:
    for kind in ("x509-issuing", "jwt"):
        acts = [(r.kind, r.facts["authority"]) for r in records if r.facts.get("of") == kind]
        assert [count for count in Counter(acts).values() if count != 1] == [], "done twice"
        order = [act for act, _ in acts if act != "authority_removed"]
        assert order[:2] == ["authority_prepared", "authority_activated"]
        assert len(of_kind(ca, kind, "active")) == 1
    signers = [r.facts["authority"] for r in records if r.kind == "x509-svid"]
    assert sum(a != b for a, b in zip(signers, signers[1:], strict=False)) == len(set(signers)) - 1 >= 1


def report(course: Course, records: list[JournalRecord], given: list[list[Any]]) -> None:
    quiet = len(course.issued(course.begin + 1, course.killed)) / (course.killed - course.begin - 1)
    cut = len(course.issued(course.cut, course.healed)) / (course.healed - course.cut)
    after = len(course.replicas[2].facts("issued", course.healed))
    away = sum(len(replica.facts("away")) for replica in course.replicas)
    refused = sum(len(replica.facts("refused")) for replica in course.replicas)
    print(
        f"3 replicas, {CLIENTS} clients, {course.seconds:g} s: {len(given)} SVIDs handed out, all in the journal of "
        f"{len(records)} records, which verifies; {quiet:.0f} a second before the faults, {cut:.0f} while one was dead "
        f"and one cut off; {away} answers 'unavailable', {refused} refused by policy; the one that was cut off handed "
        f"out {after} afterwards; the longest pause of the third was {course.longest_pause():.1f} s"
    )
    assert after > 0
    assert cut > 0


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_under_load_with_one_killed_and_one_cut_off_nothing_is_lost(cluster: Cluster, folder: Path, url: str) -> None:
    course, ca = run_course(cluster, folder, url, 9.0)
    with ca:
        check_course(course, ca)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_for_a_minute_with_one_killed_and_one_cut_off_nothing_is_lost(
    cluster: Cluster, folder: Path, url: str
) -> None:
    course, ca = run_course(cluster, folder, url, 60.0)
    with ca:
        check_course(course, ca)
