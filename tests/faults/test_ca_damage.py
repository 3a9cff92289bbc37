"""Disks that lie, fill up, or lose a part of a file: the authority stops with a clear message, and gives out nothing
that it could not write down."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from identity.ca.model import CallerFacts, StoreCorrupt, StoreUnavailable
from identity.ca.service import CaService
from tests.support.ca import AGENT, NOW, entry, issue, kinds, new_ca, spiffe_id

PAGE = 4096
RESTORE = "sidewall ca restore"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ca"


def copy(folder: Path, target: Path) -> Path:
    """Database and keys as a crash would leave them; without what lives in memory."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*-shm"))
    return target


def served(ca: CaService) -> None:
    for number in range(12):
        ca.create_entry(entry(f"/w/{number}"), now=NOW)
        issue(ca, f"/w/{number}")


# -- a torn tail --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_torn_tail_is_cut_at_the_border_of_a_transaction(folder: Path, tmp_path: Path) -> None:
    """What was written last and did not reach the disk whole: the log ends in the middle, or with nonsense."""
    with new_ca(folder) as ca:
        created = ca.journal_head()[0]
        ca.backup(tmp_path / "backup", now=NOW)  # and everything so far into the database itself
        with ca._store.read() as tx:
            tx.connection.exec_driver_sql("ROLLBACK")
            tx.connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        served(ca)
        told = kinds(ca)
        left = copy(folder, tmp_path / "left")
    log, rng = (left / "ca.db-wal").read_bytes(), random.Random(1)
    seen = set()
    for size in sorted(rng.sample(range(len(log)), 30)):
        torn = copy(left, tmp_path / "torn")
        tail = rng.randbytes(min(500, len(log) - size)) if size % 2 else b""
        (torn / "ca.db-wal").write_bytes(log[:size] + tail)
        with CaService.open(torn, now=NOW) as ca:
            assert ca.verify_journal().ok
            assert kinds(ca) == told[: len(kinds(ca))]
            assert len(ca.issued(now=NOW)) == kinds(ca).count("x509-svid")
            assert len(ca.list_entries()) == kinds(ca).count("entry_created")
            seen.add(len(kinds(ca)))
            issue(ca, "/after")
    assert len(seen) > 5
    assert min(seen) > created


# -- damage -------------------------------------------------------------------------------------------------


@pytest.fixture
def closed(folder: Path, tmp_path: Path) -> Path:
    """The folder of an authority that was closed in order, with a backup beside it."""
    with new_ca(folder) as ca:
        served(ca)
        ca.backup(tmp_path / "backup", now=NOW)
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(StoreCorrupt) as caught:
        CaService.open(folder, now=NOW)
    return str(caught.value)


def check_restored(tmp_path: Path) -> None:
    with CaService.restore(tmp_path / "backup", tmp_path / "restored", now=NOW) as ca:
        assert len(ca.list_entries()) == 12
        assert issue(ca, "/after").serial
        assert ca.verify_journal().ok


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9, 0.99])
def test_a_truncated_database_is_refused_and_restored(closed: Path, tmp_path: Path, share: float) -> None:
    size = (closed / "ca.db").stat().st_size
    os.truncate(closed / "ca.db", int(size * share))
    message = refused(closed)
    assert "restore" in message
    assert "ca.db" in message
    check_restored(tmp_path)


@pytest.mark.slow
def test_a_database_of_which_any_page_was_overwritten_is_refused(closed: Path, tmp_path: Path) -> None:
    rng, pages = random.Random(2), (closed / "ca.db").stat().st_size // PAGE
    for page in rng.sample(range(pages), min(pages, 20)):
        damaged = copy(closed, tmp_path / "damaged")
        with (damaged / "ca.db").open("r+b") as db:
            db.seek(page * PAGE)
            db.write(rng.randbytes(PAGE))
        assert RESTORE in refused(damaged) or "restore" in refused(damaged), page
    check_restored(tmp_path)


def test_something_else_in_the_place_of_the_database_is_refused(closed: Path) -> None:
    (closed / "ca.db").write_bytes(b"this is not a database at all\n" * 500)
    assert "damaged" in refused(closed)


def test_damage_while_it_runs_stops_issuing(folder: Path) -> None:
    """The pages are read anew: what was whole at the start is found damaged in the middle of work."""
    with new_ca(folder) as ca:
        served(ca)
        with ca._store.read() as tx:
            tx.connection.exec_driver_sql("ROLLBACK")
            tx.connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        ca._store._engine.dispose()
        size = (folder / "ca.db").stat().st_size
        (folder / "ca.db").write_bytes(b"\xff" * size)
        with pytest.raises(StoreCorrupt, match=RESTORE):
            issue(ca)


# -- a full disk --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """For this process (Python ignores the signal, so writes fail with EFBIG)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def check_nothing_is_given_out(ca: CaService) -> None:
    before = ca.journal_head(), len(ca.issued(now=NOW)), ca.authorities(), ca.list_entries()
    for _ in range(5):
        with pytest.raises(StoreUnavailable):
            issue(ca, "/late")
        with pytest.raises(StoreUnavailable):
            ca.issue_jwt(spiffe_id(), ["db"], caller=AGENT, now=NOW)
        with pytest.raises(StoreUnavailable):
            ca.prepare_authority("jwt", now=NOW)
        with pytest.raises(StoreUnavailable):
            ca.create_entry(entry("/late"), now=NOW)
        with pytest.raises(StoreUnavailable):
            ca.record_denial("x", "y", caller=CallerFacts("agent"), now=NOW)
    assert (ca.journal_head(), len(ca.issued(now=NOW)), ca.authorities(), ca.list_entries()) == before


def until_unavailable(ca: CaService) -> list[str]:
    """Serials of what was given out until nothing was any more."""
    given: list[str] = []
    with contextlib.suppress(StoreUnavailable):
        while len(given) < 2000:
            given.append(issue(ca, f"/w/{len(given)}").serial)
        raise AssertionError("the disk is not full")
    return given


def check_it_goes_on(ca: CaService, folder: Path) -> None:
    assert issue(ca, "/later").serial
    assert ca.verify_journal().ok
    with CaService.open(folder, now=NOW) as again:
        assert again.verify_journal().ok
        assert again.issued(now=NOW) == ca.issued(now=NOW)


def test_when_nothing_more_can_be_written_nothing_is_issued_and_afterwards_it_goes_on(folder: Path) -> None:
    with new_ca(folder) as ca:
        issue(ca)
        with no_file_longer_than(100):
            check_nothing_is_given_out(ca)
        check_it_goes_on(ca, folder)


def test_when_the_disk_fills_up_in_the_middle_everything_that_was_given_out_is_written_down(folder: Path) -> None:
    with new_ca(folder) as ca:
        with no_file_longer_than((folder / "ca.db-wal").stat().st_size + 30 * PAGE):
            given = until_unavailable(ca)
        assert given
        assert {view.serial for view in ca.issued(now=NOW)} == set(given)
        check_it_goes_on(ca, folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1536k,mode=0700", "tmpfs", str(mount)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no small disk here: {done.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


def test_on_a_full_disk_nothing_is_issued_and_with_room_it_goes_on(small_disk: Path) -> None:
    folder = small_disk / "ca"
    with new_ca(folder) as ca:
        issue(ca)
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(PAGE))
        # The room that the database's log has already is still good: until it is used up, issuing is right.
        until_unavailable(ca)
        check_nothing_is_given_out(ca)
        ballast.unlink()
        check_it_goes_on(ca, folder)
