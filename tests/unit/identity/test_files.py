"""The CA folder and SVIDs in files, seen by somebody who got something wrong."""

from __future__ import annotations

import json
import os
import random
import stat
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from identity import disk, files
from identity.authority import IssueError
from identity.files import (
    IdentityFileError,
    certificates_pem,
    create_ca,
    issue_to_files,
    key_pem,
    load_ca,
    load_x509_context,
)
from identity.spiffe import SpiffeId, SpiffeIdError
from tests.unit.identity import pki
from tests.unit.identity.pki import HOUR, NOW, issuing, key, leaf, root

WEB = SpiffeId("td", "/ns/a/sa/web")
CA_FILES = {"root.crt", "root.key", "issuing.crt", "issuing.key", "bundle.pem", "ca.json"}


@pytest.fixture
def ca(tmp_path: Path) -> files.CaFolder:
    return create_ca(tmp_path / "ca", "td", now=NOW, rng=random.Random(1))


@pytest.fixture
def svid(tmp_path: Path) -> Path:
    """A folder with svid.pem, svid_key.pem and bundle.pem."""
    folder = tmp_path / "svid"
    folder.mkdir(mode=0o700)
    disk.write_private(folder / "svid.pem", certificates_pem([leaf(), issuing()]))
    disk.write_private(folder / "svid_key.pem", key_pem(key("leaf")))
    disk.write_private(folder / "bundle.pem", certificates_pem([root()]))
    return folder


def load(folder: Path) -> object:
    return load_x509_context(folder / "svid.pem", folder / "svid_key.pem", folder / "bundle.pem", now=NOW)


def refused(act: Callable[[], object]) -> IdentityFileError:
    with pytest.raises(IdentityFileError) as caught:
        act()
    assert caught.value.hint
    assert str(caught.value) == f"{caught.value.path}: {caught.value.problem} ({caught.value.hint})"
    return caught.value


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- the CA folder ------------------------------------------------------------------------------------------


def test_a_new_ca_has_its_files_closed_to_everybody_else(ca: files.CaFolder) -> None:
    assert {path.name for path in ca.path.iterdir()} == CA_FILES
    assert mode(ca.path) == 0o700
    assert {mode(path) for path in ca.path.iterdir()} == {0o600}
    facts = json.loads((ca.path / "ca.json").read_text())
    assert facts == {"trust_domain": "td", "created": "2030-06-01T12:00:00+00:00"}


def test_a_ca_issues_files_that_load(ca: files.CaFolder, tmp_path: Path) -> None:
    made = issue_to_files(ca, WEB, tmp_path / "out", now=NOW, dns_names=["web"])
    assert {mode(path) for path in (tmp_path / "out").iterdir()} == {0o600}
    assert mode(tmp_path / "out") == 0o700
    context = load(tmp_path / "out")
    assert context.id == WEB
    assert [cert.serial_number for cert in context.svid.chain] == [cert.serial_number for cert in made.chain]
    assert len(context.svid.chain) == 2  # never the root
    assert context.not_after == (NOW + HOUR).timestamp()


def test_a_ca_works_without_its_root_key(ca: files.CaFolder) -> None:
    (ca.path / "root.key").unlink()
    assert load_ca(ca.path, now=NOW).trust_domain == "td"


def test_a_ca_is_not_created_over_something(ca: files.CaFolder) -> None:
    before = (ca.path / "root.key").read_bytes()
    assert refused(lambda: create_ca(ca.path, "td", now=NOW)).problem == "the folder is not empty"
    assert (ca.path / "root.key").read_bytes() == before


def test_a_ca_with_a_bad_name_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SpiffeIdError):
        create_ca(tmp_path / "ca", "No Good", now=NOW)
    assert not (tmp_path / "ca").exists()


def test_an_unfinished_ca_is_not_used(ca: files.CaFolder) -> None:
    (ca.path / "ca.json").unlink()
    assert refused(lambda: load_ca(ca.path, now=NOW)).path.endswith("ca.json")


@pytest.mark.parametrize("stop", range(6))
def test_a_crash_while_creating_never_leaves_a_ca_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    written: list[Path] = []
    write = disk.write_private

    def dying(path: Path, data: bytes) -> None:
        if len(written) == stop:
            raise KeyboardInterrupt
        written.append(path)
        write(path, data)

    monkeypatch.setattr(files, "write_private", dying)
    with pytest.raises(KeyboardInterrupt):
        create_ca(tmp_path / "ca", "td", now=NOW)
    refused(lambda: load_ca(tmp_path / "ca", now=NOW))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"trust_domain": 3}', '{"trust_domain": "TD"}', '{"trust', "null", "[" * 9999]
)
def test_a_damaged_ca_json_is_named(ca: files.CaFolder, text: str) -> None:
    (ca.path / "ca.json").write_text(text)
    assert refused(lambda: load_ca(ca.path, now=NOW)).path.endswith("ca.json")


def test_a_folder_that_others_may_enter_is_refused(ca: files.CaFolder) -> None:
    ca.path.chmod(0o750)
    assert refused(lambda: load_ca(ca.path, now=NOW)).hint == f"chmod 700 {ca.path}"


def test_a_link_to_the_folder_is_refused(ca: files.CaFolder, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(ca.path)
    assert "symbolic link" in refused(lambda: load_ca(tmp_path / "link", now=NOW)).problem


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o606, 0o610, 0o700 | 0o001])
def test_a_ca_key_that_others_may_touch_is_refused(ca: files.CaFolder, bits: int) -> None:
    (ca.path / "issuing.key").chmod(bits)
    error = refused(lambda: load_ca(ca.path, now=NOW))
    assert (error.problem, error.hint) == (
        "others may read the key",
        f"chmod 600 {ca.path / 'issuing.key'}",
    )


@pytest.mark.parametrize("bits", [0o600, 0o400])
def test_a_ca_key_for_the_owner_alone_is_taken(ca: files.CaFolder, bits: int) -> None:
    (ca.path / "issuing.key").chmod(bits)
    assert load_ca(ca.path, now=NOW)


def test_a_ca_key_that_is_a_link_is_refused(ca: files.CaFolder) -> None:
    (ca.path / "issuing.key").rename(ca.path / "real.key")
    (ca.path / "issuing.key").symlink_to("real.key")
    assert "symbolic link" in refused(lambda: load_ca(ca.path, now=NOW)).problem


def test_a_ca_key_is_not_taken_out_of_a_kubernetes_volume(ca: files.CaFolder) -> None:
    (ca.path / "..data").mkdir()
    (ca.path / "issuing.key").rename(ca.path / "..data" / "issuing.key")
    (ca.path / "issuing.key").symlink_to("..data/issuing.key")
    assert "symbolic link" in refused(lambda: load_ca(ca.path, now=NOW)).problem


def test_files_of_somebody_else_are_refused(ca: files.CaFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    us = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: us + 1)
    assert refused(lambda: load_ca(ca.path, now=NOW)).problem == f"it belongs to user {us}"
    assert refused(lambda: disk.read_authority_key(ca.path / "issuing.key")).problem.startswith("it belongs")


def test_a_fifo_in_the_place_of_a_key_does_not_block(ca: files.CaFolder) -> None:
    (ca.path / "issuing.key").unlink()
    os.mkfifo(ca.path / "issuing.key", 0o600)
    assert refused(lambda: load_ca(ca.path, now=NOW)).problem == "it is not a file"


@pytest.mark.parametrize("name", ["issuing.crt", "issuing.key", "bundle.pem", "ca.json"])
def test_a_missing_empty_or_foreign_thing_is_named(ca: files.CaFolder, name: str) -> None:
    path = ca.path / name
    path.write_bytes(b"")
    assert refused(lambda: load_ca(ca.path, now=NOW)).problem == "it is empty"
    path.unlink()
    assert refused(lambda: load_ca(ca.path, now=NOW)).problem == "it does not exist"
    path.mkdir()
    assert refused(lambda: load_ca(ca.path, now=NOW)).problem == "it is not a file"
    assert refused(lambda: load_ca(ca.path, now=NOW)).path == str(path)


def test_looking_at_a_folder_as_a_file_loses_no_descriptor(ca: files.CaFolder) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        refused(lambda: disk.read_file(ca.path))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * (disk.MAX_CERTIFICATES + 1))
    assert "longer than" in refused(lambda: disk.read_file(tmp_path / "big")).problem
    assert refused(lambda: disk.read_file(Path("/dev/zero"))).problem == "it is not a file"


def test_a_key_of_another_authority_is_noticed(ca: files.CaFolder) -> None:
    disk.write_private(ca.path / "issuing.key", key_pem(key("other")))
    assert refused(lambda: load_ca(ca.path, now=NOW)).problem == "it does not belong to issuing.crt"


def test_a_bundle_that_does_not_vouch_for_the_authority_is_noticed(ca: files.CaFolder) -> None:
    disk.write_private(ca.path / "bundle.pem", certificates_pem([root()]))
    error = refused(lambda: load_ca(ca.path, now=NOW))
    assert "untrusted_root" in error.problem
    assert error.path.endswith("issuing.crt")


def test_an_expired_authority_is_not_loaded(ca: files.CaFolder) -> None:
    assert "expired" in refused(lambda: load_ca(ca.path, now=NOW + timedelta(days=366))).problem


def test_the_id_of_another_trust_domain_writes_nothing(ca: files.CaFolder, tmp_path: Path) -> None:
    with pytest.raises(IssueError):
        issue_to_files(ca, SpiffeId("other", "/a"), tmp_path / "out", now=NOW)
    assert not (tmp_path / "out").exists()


def test_an_svid_can_be_issued_over_an_older_one(ca: files.CaFolder, tmp_path: Path) -> None:
    for _ in range(2):
        issue_to_files(ca, WEB, tmp_path / "out", now=NOW)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"svid.pem", "svid_key.pem", "bundle.pem"}
    assert load(tmp_path / "out")


# -- writing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_other(
    svid: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    before = (svid / "svid.pem").read_bytes()
    monkeypatch.setattr(os, failing, full)
    error = refused(lambda: disk.write_private(svid / "svid.pem", b"new"))
    assert error.problem == "it cannot be written: No space left on device"
    assert (svid / "svid.pem").read_bytes() == before
    assert len(list(svid.iterdir())) == 3


def test_a_file_is_flushed_before_it_gets_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flushing(fd: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def renaming(old: Path, new: Path) -> None:
        calls.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(os, "replace", renaming)
    disk.write_private(tmp_path / "x", b"data")
    assert calls == ["file", "rename", "folder"]


def test_a_generous_umask_changes_nothing(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        disk.write_private(tmp_path / "x", b"data")
        disk.make_private_folder(tmp_path / "new", must_be_empty=True)
    finally:
        os.umask(old)
    assert (mode(tmp_path / "x"), mode(tmp_path / "new")) == (0o600, 0o700)


# -- an SVID in files ---------------------------------------------------------------------------------------


def test_an_svid_is_loaded_with_its_bundle(svid: Path) -> None:
    context = load(svid)
    assert str(context.id) == "spiffe://td/ns/a/sa/b"
    assert set(context.bundles) == {"td"}


def test_bundles_of_other_trust_domains_come_along(svid: Path) -> None:
    other = pki.signing("other root", "other root")
    disk.write_private(svid / "other.pem", certificates_pem([other]))
    context = load_x509_context(
        svid / "svid.pem",
        svid / "svid_key.pem",
        svid / "bundle.pem",
        now=NOW,
        federated={"other": svid / "other.pem"},
    )
    assert context.bundles["other"].authorities == (other,)
    assert context.bundles["td"].authorities == (root(),)


def test_a_federated_bundle_never_replaces_our_own(svid: Path) -> None:
    disk.write_private(svid / "evil.pem", certificates_pem([pki.signing("evil", "evil")]))
    context = load_x509_context(
        svid / "svid.pem",
        svid / "svid_key.pem",
        svid / "bundle.pem",
        now=NOW,
        federated={"td": svid / "evil.pem"},
    )
    assert context.bundles["td"].authorities == (root(),)


def _encrypted() -> bytes:
    return key("leaf").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))


@pytest.mark.parametrize(
    ("name", "data", "problem", "named"),
    [
        ("svid.pem", b"nonsense", "it cannot be read", "svid.pem"),
        ("svid.pem", certificates_pem([leaf()])[:-60], "it cannot be read", "svid.pem"),
        ("svid.pem", certificates_pem([leaf()]), "no authority", "bundle.pem"),
        ("svid.pem", certificates_pem([issuing(), leaf()]), "not_a_spiffe_id", "svid.pem"),
        ("svid.pem", certificates_pem([leaf(not_after=NOW - HOUR / 2), issuing()]), "expired", "svid.pem"),
        ("svid.pem", certificates_pem([leaf(usage=None), issuing()]), "key_usage", "svid.pem"),
        ("svid_key.pem", b"nonsense", "it cannot be used: ValueError", "svid_key.pem"),
        ("svid_key.pem", key_pem(key("other")), "does not belong", "svid_key.pem"),
        ("svid_key.pem", _encrypted(), "passphrase", "svid_key.pem"),
        (
            "svid_key.pem",
            key_pem(ec.derive_private_key(3, ec.SECP521R1())),
            "it cannot be used: SvidError",
            "svid_key.pem",
        ),
        ("bundle.pem", b"nonsense", "it cannot be read", "bundle.pem"),
        ("bundle.pem", certificates_pem([leaf()]), "an authority cannot be used", "bundle.pem"),
        ("bundle.pem", certificates_pem([pki.signing("x", "x")]), "no authority", "bundle.pem"),
        ("bundle.pem", certificates_pem([root(not_after=NOW - HOUR)]), "expired", "svid.pem"),
    ],
)
def test_what_is_wrong_is_said_of_the_right_file(
    svid: Path, name: str, data: bytes, problem: str, named: str
) -> None:
    disk.write_private(svid / name, data)
    error = refused(lambda: load(svid))
    assert problem in error.problem
    assert Path(error.path).name == named


def test_a_damaged_certificate_among_others_is_not_stepped_over(svid: Path) -> None:
    whole = certificates_pem([root(), root(serial=9)])
    disk.write_private(svid / "bundle.pem", whole.replace(b"-----END CERTIFICATE-----", b"-----END-----", 1))
    assert Path(refused(lambda: load(svid)).path).name == "bundle.pem"


@pytest.mark.parametrize("name", ["svid.pem", "svid_key.pem", "bundle.pem"])
def test_files_cut_off_anywhere_are_refused(svid: Path, name: str) -> None:
    whole = (svid / name).read_bytes()
    for end in range(0, len(whole) - 2, 7):
        (svid / name).write_bytes(whole[:end])
        refused(lambda: load(svid))


def test_no_error_quotes_a_key(svid: Path) -> None:
    pem = key_pem(key("leaf"))
    disk.write_private(svid / "svid_key.pem", pem.replace(b"PRIVATE", b"PRIVATF"))
    assert pem.split(b"\n")[1].decode() not in str(refused(lambda: load(svid)))


@pytest.mark.parametrize("bits", [0o644, 0o640, 0o604])
def test_a_workload_key_that_others_may_read_is_refused(svid: Path, bits: int) -> None:
    (svid / "svid_key.pem").chmod(bits)
    assert refused(lambda: load(svid)).problem == "others may read the key"


def test_a_workload_key_that_is_any_link_is_refused(svid: Path) -> None:
    (svid / "svid_key.pem").rename(svid / "real")
    (svid / "svid_key.pem").symlink_to("real")
    assert "symbolic link" in refused(lambda: load(svid)).problem


def as_volume(svid: Path) -> Path:
    """The three files as kubelet writes them: name -> ..data/name, ..data -> a folder of this generation."""
    generation = svid / "..2030_06_01"
    generation.mkdir()
    for name in ("svid.pem", "svid_key.pem", "bundle.pem"):
        (svid / name).rename(generation / name)
        (svid / name).symlink_to(f"..data/{name}")
    (svid / "..data").symlink_to(generation.name)
    return generation


def test_a_kubernetes_volume_readable_by_our_group_is_taken(svid: Path) -> None:
    generation = as_volume(svid)
    (generation / "svid_key.pem").chmod(0o440)
    assert load(svid)


@pytest.mark.parametrize("bits", [0o444, 0o644, 0o460])
def test_a_kubernetes_volume_open_to_everybody_is_refused(svid: Path, bits: int) -> None:
    generation = as_volume(svid)
    (generation / "svid_key.pem").chmod(bits)
    assert "defaultMode: 0440" in refused(lambda: load(svid)).hint


def test_a_file_that_may_not_be_read_is_said_to_be_so(svid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_args: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    assert refused(lambda: load(svid)).problem == "it may not be read"
