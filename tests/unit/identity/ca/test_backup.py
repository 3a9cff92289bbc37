"""Backup and restore: what comes back, what must not come back, and which files are refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from identity.authority import new_key
from identity.ca import backup as backups
from identity.ca.keys import KeyFolder
from identity.ca.model import CallerFacts, Conflict, NotAllowed, StoreCorrupt
from identity.ca.service import CaService
from identity.disk import IdentityFileError
from identity.svid import X509Svid, check_own_svid
from tests.support.ca import DAY, HOUR, NOW, attest, entry, issue, kinds, new_ca, of_kind, spiffe_id

PASSPHRASE = "correct horse"
HOST_2 = CallerFacts("agent", "spiffe://td/host/2")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ca.backup"


@pytest.fixture
def again(tmp_path: Path) -> Path:
    """The folder to restore into."""
    return tmp_path / "again"


def restore(file: Path, folder: Path, **arguments: Any) -> CaService:
    return CaService.restore(file, folder, now=NOW + HOUR, **arguments)


def fill(ca: CaService) -> None:
    ca.create_entry(entry(id="web"), now=NOW)
    attest(ca, "/host/1")
    issue(ca, "/ns/a/sa/web")
    ca.ban(spiffe_id("/host/1"), "stolen", now=NOW)
    ca.set_federated("other", b'{"keys": []}', 7, {"profile": "https_web"}, now=NOW)


def test_what_comes_back_is_what_was_there(ca: CaService, file: Path, again: Path) -> None:
    fill(ca)
    ca.backup(file, now=NOW)
    with restore(file, again) as back:
        for ask in (CaService.list_entries, CaService.nodes, CaService.federated):
            assert ask(back) == ask(ca)
        assert back.issued(now=NOW) == ca.issued(now=NOW)
        assert back.revocations(NOW).entries == ca.revocations(NOW).entries
        assert back.settings == ca.settings
        assert back.bundle().roots == ca.bundle().roots
        assert sorted(KeyFolder(again).ids()) == sorted(view.id for view in ca.authorities())
        assert back.verify_journal().ok
        assert kinds(back) == [*kinds(ca), "restored"]


def test_a_restored_authority_issues_what_peers_accept_and_keeps_its_bans(
    ca: CaService, file: Path, again: Path
) -> None:
    fill(ca)
    ca.backup(file, now=NOW)
    with restore(file, again) as back:
        key = new_key()
        made = issue(back, "/w", key, caller=HOST_2, now=NOW + HOUR)
        check_own_svid(X509Svid(spiffe_id("/w"), made.chain, key), ca.bundle().trust_bundle, now=NOW + HOUR)
        with pytest.raises(NotAllowed, match="is banned"):
            issue(back, "/host/1", now=NOW + HOUR)


def test_join_tokens_do_not_come_back(ca: CaService, file: Path, again: Path) -> None:
    secret = ca.create_token(spiffe_id("/host/2"), ttl=DAY.total_seconds(), now=NOW)
    ca.backup(file, now=NOW)
    with restore(file, again) as back:
        assert back.tokens(now=NOW) == []
        with pytest.raises(NotAllowed):
            back.consume_token(secret, source="", now=NOW)


def test_sequences_jump_ahead_of_everything_published_since(ca: CaService, file: Path, again: Path) -> None:
    ca.backup(file, now=NOW)
    for _ in range(3):  # published after the backup, and lost with the database
        ca.prepare_authority("jwt", now=NOW)
        ca.activate_authority("jwt", force=True, now=NOW)
    with restore(file, again) as back:
        assert back.bundle().sequence > ca.bundle().sequence
        assert back.revocations(NOW).sequence > ca.revocations(NOW).sequence


def test_authorities_may_have_signed_since_so_they_stay_for_a_whole_life(
    ca: CaService, file: Path, again: Path
) -> None:
    ca.backup(file, now=NOW)
    with restore(file, again) as back:
        ends = {view.last_leaf for view in back.authorities() if view.kind != "x509-root"}
        assert ends == {(NOW + HOUR).timestamp() + ca.settings.max_ttl}


# -- keys in it ---------------------------------------------------------------------------------------------


def test_a_backup_is_closed_to_others_and_warns_of_keys_in_clear(ca: CaService, file: Path) -> None:
    (warning,) = ca.backup(file, now=NOW)
    assert "private keys of the authority in clear" in warning
    assert file.stat().st_mode & 0o777 == 0o600


def test_with_a_passphrase_keys_are_encrypted(ca: CaService, file: Path, again: Path) -> None:
    assert ca.backup(file, passphrase=PASSPHRASE, now=NOW) == []
    text = gzip.decompress(file.read_bytes()).decode()
    assert text.count("BEGIN ENCRYPTED PRIVATE KEY") == 3
    assert "BEGIN PRIVATE KEY" not in text
    with restore(file, again, passphrase=PASSPHRASE) as back:
        assert issue(back, now=NOW + HOUR).serial


@pytest.mark.parametrize(
    ("made_with", "given", "words"),
    [
        (PASSPHRASE, None, "needs its passphrase"),
        (PASSPHRASE, "wrong", "the passphrase is not that of"),
        (None, PASSPHRASE, "is not protected by a passphrase"),
    ],
)
def test_a_wrong_passphrase_is_told_and_nothing_is_restored(
    ca: CaService, file: Path, again: Path, made_with: str | None, given: str | None, words: str
) -> None:
    ca.backup(file, passphrase=made_with, now=NOW)
    with pytest.raises(Conflict, match=words):
        restore(file, again, passphrase=given)
    assert not again.exists()


def test_a_key_that_is_not_on_this_machine_is_missing_in_it_with_a_warning(folder: Path, file: Path) -> None:
    with new_ca(folder, root="offline") as ca:
        (root,) = of_kind(ca, "x509-root", "active")
        assert any(f"key of root {root} is not in it" in warning for warning in ca.backup(file, now=NOW))


# -- refused ------------------------------------------------------------------------------------------------


def test_nothing_is_restored_over_an_authority(ca: CaService, folder: Path, file: Path) -> None:
    ca.backup(file, now=NOW)
    with pytest.raises(IdentityFileError, match="not empty"):
        restore(file, folder)


def test_nothing_is_restored_into_a_database_that_holds_an_authority(
    ca: CaService, folder: Path, file: Path, again: Path
) -> None:
    ca.backup(file, now=NOW)
    before = ca.journal_head()
    with pytest.raises(Conflict, match="holds an authority already"):
        restore(file, again, store_url=f"sqlite:///{folder / 'ca.db'}")
    assert ca.journal_head() == before
    assert list(again.iterdir()) == []


def rewritten(file: Path, change: Callable[[list[bytes]], None]) -> None:
    lines = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
    change(lines)
    file.write_bytes(gzip.compress(b"".join(lines)))


def test_every_damage_of_the_file_is_noticed_before_anything_is_written(
    ca: CaService, file: Path, again: Path
) -> None:
    fill(ca)
    ca.backup(file, now=NOW)
    whole = file.read_bytes()
    step = max(1, len(whole) // 40)
    for at in range(0, len(whole), step):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]):
            file.write_bytes(damaged)
            try:
                backups.check(file)
            except StoreCorrupt:
                continue
            assert gzip.decompress(damaged) == gzip.decompress(whole)  # a byte of gzip's header that means nothing
    assert not again.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines.pop(),
        lambda lines: lines.pop(3),
        lambda lines: lines.append(b"{}\n"),
        lambda lines: lines.insert(2, lines[1]),
        lambda lines: lines.__setitem__(2, lines[2].replace(b'"row"', b'"raw"')),
        lambda lines: lines.clear(),
    ],
)
def test_a_line_more_less_or_other_is_noticed(
    ca: CaService, file: Path, again: Path, change: Callable[[list[bytes]], None]
) -> None:
    ca.backup(file, now=NOW)
    rewritten(file, change)
    with pytest.raises(StoreCorrupt, match="no backup, or a damaged one"):
        restore(file, again)
    assert not again.exists()


def test_what_is_no_backup_is_refused(tmp_path: Path, file: Path, again: Path) -> None:
    file.write_bytes(os.urandom(200))
    with pytest.raises(StoreCorrupt, match="no backup"):
        restore(file, again)
    with pytest.raises(IdentityFileError):
        restore(tmp_path / "nowhere", again)


def resealed(lines: list[bytes]) -> None:
    """Give it the trailer that fits its lines, as somebody does who changes a backup on purpose."""
    body = b"".join(lines[:-1])
    lines[-1] = json.dumps({"lines": len(lines) - 1, "sha256": hashlib.sha256(body).hexdigest()}).encode() + b"\n"


def test_a_backup_of_a_newer_program_is_refused(ca: CaService, file: Path, again: Path) -> None:
    ca.backup(file, now=NOW)

    def newer(lines: list[bytes]) -> None:
        lines[0] = lines[0].replace(b'"schema":1', b'"schema":99')
        resealed(lines)

    rewritten(file, newer)
    with pytest.raises(StoreCorrupt, match="made by another version"):
        restore(file, again)


def test_a_changed_journal_in_a_backup_is_found(ca: CaService, file: Path, again: Path) -> None:
    ca.record_denial("spiffe://td/evil", "truth", caller=HOST_2, now=NOW)
    ca.backup(file, now=NOW)

    def lie(lines: list[bytes]) -> None:
        lines[:] = [line.replace(b"truth", b"lies!") for line in lines]
        resealed(lines)

    rewritten(file, lie)
    with pytest.raises(StoreCorrupt, match=r"the journal in .* is not whole"):
        restore(file, again)
    assert not again.exists()


# -- what it is for -----------------------------------------------------------------------------------------


def test_a_corrupted_database_is_refused_and_the_backup_brings_the_authority_back(
    folder: Path, file: Path, again: Path
) -> None:
    with new_ca(folder) as ca:
        fill(ca)
        ca.backup(file, now=NOW)
        root = ca.bundle().roots
    for path in folder.glob("ca.db-*"):
        path.unlink()
    with (folder / "ca.db").open("r+b") as db:
        db.seek(8192)
        db.write(os.urandom(8192))
    with pytest.raises(StoreCorrupt, match="restore it from a backup with `sidewall ca restore`"):
        CaService.open(folder, now=NOW)
    with restore(file, again) as back:
        assert back.bundle().roots == root
        assert issue(back, "/w", caller=HOST_2, now=NOW + HOUR).serial
