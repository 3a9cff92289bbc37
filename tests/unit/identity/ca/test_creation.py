"""What ``create`` leaves behind, and what ``open`` refuses to start with."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from identity.ca.keys import authority_id
from identity.ca.model import KINDS, CaSettings, Conflict, NoSuchThing, StoreCorrupt, StoreUnavailable
from identity.ca.service import CaService
from identity.disk import IdentityFileError
from identity.files import create_ca
from identity.spiffe import SpiffeIdError
from tests.support.ca import DAY, HOUR, NOW, issue, kinds, new_ca, of_kind


def reopen(folder: Path) -> CaService:
    return CaService.open(folder, now=NOW)


def key_file(folder: Path) -> Path:
    return sorted((folder / "keys").iterdir())[0]


def run_sql(folder: Path, *statements: str) -> None:
    with closing(sqlite3.connect(folder / "ca.db")) as db, db:
        for statement in statements:
            db.execute(statement)


def test_a_new_authority_has_one_active_authority_of_each_kind(ca: CaService) -> None:
    assert [len(of_kind(ca, kind, "active")) for kind in KINDS] == [1, 1, 1]
    assert ca.status(NOW).problems == ()
    assert kinds(ca) == ["settings", "created"]


def test_every_key_is_a_file_of_its_own_closed_to_others_and_none_is_in_the_database(
    ca: CaService, folder: Path
) -> None:
    files = sorted((folder / "keys").iterdir())
    assert [path.stem for path in files] == sorted(view.id for view in ca.authorities())
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert (folder / "keys").stat().st_mode & 0o777 == 0o700
    stored = b"".join(path.read_bytes() for path in folder.glob("ca.db*"))
    assert b"PRIVATE KEY" not in stored


def test_the_database_and_its_journals_are_closed_to_others(ca: CaService, folder: Path) -> None:
    issue(ca)
    assert {path.stat().st_mode & 0o777 for path in folder.glob("ca.db*")} == {0o600}


def test_what_was_made_is_found_again_when_opened(ca: CaService, folder: Path) -> None:
    before = issue(ca)
    with reopen(folder) as again:
        assert again.trust_domain == ca.trust_domain
        assert again.authorities() == ca.authorities()
        assert [view.serial for view in again.issued(now=NOW)] == [before.serial]


def test_a_second_create_in_the_same_folder_is_a_conflict(ca: CaService, folder: Path) -> None:
    with pytest.raises(Conflict, match="already"):
        new_ca(folder)


def test_create_goes_on_where_an_attempt_ended_before_its_end(folder: Path) -> None:
    with new_ca(folder) as first:
        before = first.authorities()
    (folder / "store.json").unlink()
    with new_ca(folder) as again:
        assert again.authorities() == before


def test_create_refuses_a_database_of_another_trust_domain(ca: CaService, folder: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{folder / 'ca.db'}"
    with pytest.raises(Conflict, match="trust domain td, not other"):
        CaService.create(tmp_path / "second", "other", store_url=url, now=NOW)


def test_create_refuses_a_bad_trust_domain(folder: Path) -> None:
    with pytest.raises(SpiffeIdError):
        CaService.create(folder, "Not A Domain", now=NOW)


def test_create_refuses_a_folder_that_others_may_enter(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    with pytest.raises(IdentityFileError, match="others may enter"):
        new_ca(folder)


def test_the_folder_of_an_offline_ca_is_taken_over_with_its_root_and_keys(folder: Path) -> None:
    made = create_ca(folder, "td", now=NOW)
    with new_ca(folder) as ca:
        assert ca.bundle().roots == made.bundle.authorities
        assert of_kind(ca, "x509-issuing", "active") == [authority_id(made.authority.key.public_key())]
        assert issue(ca).chain[1:] == made.authority.chain


# -- opening ------------------------------------------------------------------------------------------------


def test_opening_a_folder_without_an_authority_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NoSuchThing, match="sidewall ca init"):
        reopen(tmp_path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_may_read_is_refused(ca: CaService, folder: Path, mode: int) -> None:
    key_file(folder).chmod(mode)
    with pytest.raises(IdentityFileError, match="others may read the key"):
        reopen(folder)


def test_a_key_that_is_a_symbolic_link_is_refused(ca: CaService, folder: Path, tmp_path: Path) -> None:
    path = key_file(folder)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IdentityFileError, match="symbolic link"):
        reopen(folder)


def test_a_key_of_another_user_is_refused(ca: CaService, folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(key_file(folder), 12345, -1)
    with pytest.raises(IdentityFileError, match="belongs to user 12345"):
        reopen(folder)


def test_a_folder_of_keys_that_others_may_enter_is_refused(ca: CaService, folder: Path) -> None:
    (folder / "keys").chmod(0o750)
    with pytest.raises(IdentityFileError, match="others may enter"):
        reopen(folder)


def test_a_database_that_others_may_read_is_refused(ca: CaService, folder: Path) -> None:
    (folder / "ca.db").chmod(0o640)
    with pytest.raises(StoreUnavailable, match="chmod 600"):
        reopen(folder)


def test_a_database_that_is_a_symbolic_link_is_refused(folder: Path, tmp_path: Path) -> None:
    new_ca(folder).close()
    (folder / "ca.db").rename(tmp_path / "elsewhere")
    (folder / "ca.db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreUnavailable, match="symbolic link"):
        reopen(folder)


def test_a_missing_database_is_not_made_anew(folder: Path) -> None:
    new_ca(folder).close()
    for path in folder.glob("ca.db*"):
        path.unlink()
    with pytest.raises(StoreCorrupt, match="restore"):
        reopen(folder)
    assert not (folder / "ca.db").exists()


def test_a_database_elsewhere_must_be_named(folder: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    new_ca(folder, store_url=url).close()
    with pytest.raises(NoSuchThing, match="--store"):
        reopen(folder)
    assert not (folder / "ca.db").exists()
    with CaService.open(folder, url, now=NOW) as ca:
        assert ca.trust_domain == "td"


def test_a_damaged_file_of_facts_is_refused(ca: CaService, folder: Path) -> None:
    (folder / "store.json").write_bytes(b"{")
    with pytest.raises(StoreCorrupt, match=r"store.json cannot be read"):
        reopen(folder)


def test_a_key_in_the_place_of_another_is_refused(ca: CaService, folder: Path) -> None:
    first, second, *_ = sorted((folder / "keys").iterdir())
    shutil.copyfile(first, second)
    with pytest.raises(StoreCorrupt, match="another authority's key"):
        reopen(folder)


def test_an_issuing_authority_that_the_bundle_does_not_vouch_for_is_refused(folder: Path, tmp_path: Path) -> None:
    new_ca(folder).close()
    with new_ca(tmp_path / "other") as other:
        foreign = next(view for view in other.authorities() if view.kind == "x509-root")
    with closing(sqlite3.connect(tmp_path / "other" / "ca.db")) as db:
        chain = db.execute("SELECT chain FROM authorities WHERE id = ?", [foreign.id]).fetchone()[0]
    with closing(sqlite3.connect(folder / "ca.db")) as db, db:
        db.execute("UPDATE authorities SET chain = ? WHERE kind = 'x509-root'", [chain])
    with pytest.raises(StoreCorrupt, match="does not fit the bundle"):
        reopen(folder)


def test_a_replica_without_the_issuing_key_opens_but_says_that_it_cannot_sign(folder: Path) -> None:
    with new_ca(folder) as ca:
        (signer,) = of_kind(ca, "x509-issuing", "active")
    (folder / "keys" / f"{signer}.key").unlink()
    with reopen(folder) as again:
        assert any("not on this replica" in problem for problem in again.status(NOW).problems)
        with pytest.raises(StoreUnavailable, match="all replicas must share the folder"):
            issue(again)


# -- versions -----------------------------------------------------------------------------------------------


def test_a_database_of_a_newer_program_is_refused_with_what_to_do(folder: Path) -> None:
    new_ca(folder).close()
    run_sql(folder, "UPDATE meta SET value = '99' WHERE name = 'schema'")
    with pytest.raises(StoreCorrupt, match="schema 99, this program knows 1: start the newer program"):
        reopen(folder)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE meta SET value = 'one' WHERE name = 'schema'", "does not say its version"),
        ("DELETE FROM meta WHERE name = 'schema'", "does not say its version"),
        ("DROP TABLE meta", "no table of versions"),
        ("DROP TABLE issued", "tables are missing: issued"),
        ("DELETE FROM head", "lost its head row"),
        ("DELETE FROM meta WHERE name = 'trust_domain'", "holds no authority"),
        ("DELETE FROM meta WHERE name = 'settings'", "settings in the database"),
        ("UPDATE meta SET value = '{\"svid_ttl\": 0}' WHERE name = 'settings'", "settings in the database"),
        ("UPDATE authorities SET chain = 'nonsense' WHERE kind = 'x509-root'", "cannot be read"),
        ("DELETE FROM journal WHERE seq = 2", "the journal is not whole"),
    ],
)
def test_a_database_in_which_something_is_missing_is_refused(folder: Path, statement: str, words: str) -> None:
    new_ca(folder).close()
    run_sql(folder, statement)
    with pytest.raises(StoreCorrupt, match=words):
        reopen(folder)


# -- settings -----------------------------------------------------------------------------------------------


def test_settings_are_kept_and_found_by_the_next_start(ca: CaService, folder: Path) -> None:
    ca.change_settings(CaSettings(svid_ttl=900.0, max_ttl=1800.0), now=NOW)
    assert issue(ca).not_after == (NOW + HOUR / 4).timestamp()
    with reopen(folder) as again:
        assert again.settings.svid_ttl == 900.0
    assert kinds(ca)[-2:] == ["settings", "x509-svid"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"svid_ttl": 30.0},
        {"max_ttl": 2 * DAY.total_seconds()},
        {"jwt_ttl": 0.0},
        {"prepare_at": 0.9},
        {"activate_anyway_at": 1.0},
        {"refresh_hint": 0.0},
        {"old_grace": -1.0},
        {"issuing_life": 10.0},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"hold|must"):
        CaSettings(**wrong)


def test_the_facts_name_the_trust_domain_for_people(ca: CaService, folder: Path) -> None:
    assert json.loads((folder / "store.json").read_bytes())["is_default_store"] is True
