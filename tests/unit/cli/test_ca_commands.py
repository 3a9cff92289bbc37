"""The family ``ca``: help as in the golden texts, errors with their codes, and commands on a folder without a server.

SIDEWALL_GOLDEN=write writes the golden texts anew: look at them when they change."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from identity.attest.join import decode
from identity.ca.service import CaService
from proxy.cli.ca import _LAZY, ca
from proxy.cli.group import Problem, cli

GOLDEN = Path(__file__).parents[2] / "golden"
TD = "shop.internal"


def invoke(*arguments: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(cli, ["ca", *arguments], prog_name="sidewall", input=answer)


@pytest.fixture(autouse=True)
def _codes_as_main_gives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Problem, "exit_code", property(lambda problem: problem.code))


def golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("SIDEWALL_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIDEWALL_CA", str(tmp_path / "none.sock"))
    CaService.create(tmp_path / "ca", TD, now=datetime.now(UTC)).close()
    return tmp_path / "ca"


# -- help and errors ----------------------------------------------------------------------------------------


def _commands(group: click.Group, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    context = click.Context(group)
    found = [path]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        nested = isinstance(command, click.Group)
        found += _commands(command, (*path, name)) if nested else [(*path, name)]  # type: ignore[arg-type]
    return found


def test_the_help_of_every_command_is_as_in_the_golden_text() -> None:
    pages = []
    for path in _commands(ca, ()):
        result = invoke(*path, "--help")
        assert result.exit_code == 0, path
        pages.append(f"$ sidewall {' '.join(('ca', *path))} --help\n{result.output}")
    golden("ca_help.txt", "\n".join(pages))


@pytest.mark.parametrize("name", sorted(_LAZY))
def test_the_overview_says_of_each_command_what_the_command_says_of_itself(name: str) -> None:
    command = ca.get_command(click.Context(ca), name)

    assert command is not None
    first = (command.help or "").split("\n")[0].rstrip(".:")
    assert first.split()[0] in _LAZY[name][2] or first[:12] in _LAZY[name][2]


MISTAKES: list[tuple[tuple[str, ...], int]] = [
    (("status",), 69),
    (("status", "--socket", "unix:/nowhere/ca.sock"), 69),
    (("status", "--dir", "/nowhere"), 78),
    (("token",), 2),
    (("token", "Not A Name"), 69),
    (("entry", "update", "x"), 2),
    (("entry", "apply"), 2),
    (("rotate", "prepare", "x509"), 2),
    (("revoke",), 2),
    (("bundle", "delete", "far.example"), 2),
    (("federation", "follow", "far.example", "--url", "https://a/"), 2),
    (("init", "/tmp/x", "--offline-root", "--company-root"), 2),
    (("serve", "--listen", "nonsense"), 2),
    (("serve", "--listen", "unix:/x"), 2),
    (("serve", "--bundle-cert", "/x"), 2),
    (("serve", "--k8s", "prod"), 78),
    (("nonsense",), 2),
]


def test_mistakes_are_said_as_in_the_golden_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDEWALL_CA", "/nowhere/ca.sock")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    said = []
    for arguments, code in MISTAKES:
        result = invoke(*arguments)
        assert result.exit_code == code, (arguments, result.output)
        said.append(f"$ sidewall ca {' '.join(arguments)}\n{result.output}[{code}]\n")
    golden("ca_errors.txt", "\n".join(said))


# -- a folder without a server ------------------------------------------------------------------------------


def test_a_folder_is_opened_and_that_is_said(folder: Path) -> None:
    result = invoke("status", "--dir", str(folder), "-o", "json")

    assert result.exit_code == 0
    assert "opening the folder itself" in result.stderr
    assert json.loads(result.stdout)["trust_domain"] == TD


def test_a_token_is_a_join_string(folder: Path) -> None:
    result = invoke("token", "legacy/ledger", "--dir", str(folder), "--url", "https://ca.shop.internal", "-o", "json")

    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    found = decode(made["token"])
    assert (found.addresses, found.trust_domain) == ((("ca.shop.internal", 15012),), TD)
    assert made["spiffeId"] == f"spiffe://{TD}/ns/legacy/sa/ledger"
    with CaService.open(folder, now=datetime.now(UTC)) as service:
        assert found.admits(service.bundle().roots_der[0])
        assert str(service.consume_token(found.secret, source="", now=datetime.now(UTC))) == made["spiffeId"]


def test_a_token_is_printed_as_a_command_listed_and_withdrawn(folder: Path) -> None:
    where = ("--dir", str(folder))
    made = invoke("token", "a/b", "--selector", "unix:user:b", "--url", "https://ca:1", "--print-command", *where)
    assert made.stdout.startswith("  sudo sidewall join swt1_")
    assert "get spiffe://shop.internal/ns/a/sa/b" in made.stderr

    (listed,) = json.loads(invoke("token", "list", "-o", "json", *where).stdout)["items"]
    assert invoke("token", "revoke", listed["id"], *where).exit_code == 0
    assert json.loads(invoke("token", "list", "-o", "json", *where).stdout)["items"] == []


def test_a_token_that_nobody_could_use_is_not_made(folder: Path) -> None:
    result = invoke("token", "a/b", "--url", "http://ca", "--dir", str(folder))

    assert result.exit_code == 2
    assert json.loads(invoke("token", "list", "-o", "json", "--dir", str(folder)).stdout)["items"] == []


def test_entries_are_made_listed_changed_applied_and_deleted(folder: Path, tmp_path: Path) -> None:
    where = ("--dir", str(folder))
    made = invoke("entry", "create", "shop/api", "--selector", "unix:uid:1", "--ttl", "30m", *where)
    assert made.exit_code == 0, made.output
    entry = made.stdout.strip()
    assert invoke("entry", "update", entry, "--ttl", "10m", "--hint", "internal", *where).exit_code == 0
    shown = json.loads(invoke("entry", "show", entry, *where).stdout)
    assert (shown["x509SvidTtl"], shown["hint"], shown["revisionNumber"]) == (600, "internal", 2)

    saved = tmp_path / "entries.json"
    saved.write_text(invoke("entry", "list", "-o", "json", *where).stdout)
    again = invoke("entry", "apply", "-f", str(saved), "--prune", *where)
    assert "0 changes made" in again.stderr

    assert invoke("entry", "delete", entry, *where).exit_code == 0
    assert invoke("entry", "show", entry, *where).exit_code == 1


def test_mistakes_in_files_of_entries_have_their_places(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "spiffeId: spiffe://shop.internal/a\nparentID: spiffe://shop.internal/n\nselectors: [unix:uid:1, uid]\n"
    )

    result = invoke("entry", "apply", "-f", str(tmp_path / "a.yaml"), "--dir", str(folder))

    assert result.exit_code == 78
    assert "a.yaml:2:1: error SW0101: parentID: unknown field; did you mean parentId?" in result.stderr
    assert "a.yaml:3:12: error SW0104: selectors: 'uid' is not TYPE:VALUE" in result.stderr


def test_rotation_by_hand_says_what_it_did_and_asks_before_it_destroys(folder: Path) -> None:
    where = ("--dir", str(folder))
    assert "prepare" in invoke("rotate", "prepare", "jwt", *where).stdout
    refused = invoke("rotate", "activate", "jwt", *where)
    assert (refused.exit_code, "two refresh intervals" in refused.stderr) == (1, True)
    assert invoke("rotate", "activate", "jwt", "--dry-run", *where).exit_code == 1
    assert invoke("rotate", "activate", "jwt", "--force", *where).exit_code == 0
    asked = invoke("rotate", "revoke", "jwt", "--force", *where)
    assert asked.exit_code == 2
    assert "add --yes" in asked.stderr
    assert invoke("rotate", "revoke", "jwt", "--force", "--yes", *where).exit_code == 0
    assert invoke("rotate", "status", *where).exit_code == 0


def test_the_journal_is_shown_since_a_time_and_verified(folder: Path) -> None:
    where = ("--dir", str(folder))
    invoke("entry", "create", "shop/api", "--selector", "unix:uid:1", *where)

    lines = [json.loads(line) for line in invoke("log", "-o", "json", *where).stdout.splitlines()]
    assert [line["kind"] for line in lines][-1] == "entry_created"
    assert invoke("log", "--since", "1h", *where).stdout.count("\n") == len(lines)
    verdict = invoke("log", "--verify", *where)
    assert verdict.exit_code == 0
    assert verdict.stdout.startswith(f"whole: {len(lines)} records")


def test_backup_and_restore_with_a_passphrase(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "pass"
    secret.write_text("correct horse battery\n")
    file, to = str(tmp_path / "ca.swb"), str(tmp_path / "restored")

    made = invoke("backup", file, "--passphrase-file", str(secret), "--dir", str(folder))
    assert made.exit_code == 0, made.output
    assert invoke("restore", file, "--to", to).exit_code != 0
    restored = invoke("restore", file, "--to", to, "--passphrase-file", str(secret))
    assert restored.exit_code == 0, restored.output
    assert json.loads(invoke("status", "--dir", to, "-o", "json").stdout)["trust_domain"] == TD


def test_an_offline_root_is_left_to_be_moved_and_a_company_root_is_awaited(tmp_path: Path) -> None:
    offline, company = tmp_path / "offline", tmp_path / "company"
    made = invoke("init", str(offline), "--trust-domain", TD, "--offline-root")
    assert made.exit_code == 0, made.output
    assert (offline / "offline-root.key").stat().st_mode & 0o777 == 0o600

    assert invoke("init", str(company), "--trust-domain", TD, "--company-root").exit_code == 0
    request = invoke("csr", "--dir", str(company))
    assert "BEGIN CERTIFICATE REQUEST" in request.stdout
    status = invoke("status", "--dir", str(company))
    assert status.exit_code == 1
    assert "no active x509-issuing" in status.stderr


def test_a_company_root_signs_and_the_answer_is_imported(tmp_path: Path) -> None:
    import random

    from cryptography import x509

    from identity.authority import create_issuing, create_root, new_key
    from identity.files import certificates_pem

    folder = tmp_path / "company"
    invoke("init", str(folder), "--trust-domain", TD, "--company-root")
    request = x509.load_pem_x509_csr(invoke("csr", "--dir", str(folder)).stdout.encode())
    key, now, rng = new_key(), datetime.now(UTC), random.SystemRandom()
    root = create_root(TD, key, now=now, rng=rng)
    issuing = create_issuing(root, key, TD, request.public_key(), now=now, rng=rng)  # type: ignore[arg-type]
    chain = tmp_path / "chain.pem"
    chain.write_bytes(certificates_pem([issuing, root]))

    result = invoke("import", str(chain), "--dir", str(folder))

    assert result.exit_code == 0, result.output
    assert invoke("status", "--dir", str(folder)).exit_code == 0


def test_bundles_are_shown_set_followed_and_deleted(folder: Path, tmp_path: Path) -> None:
    where = ("--dir", str(folder))
    CaService.create(tmp_path / "far", "far.example", now=datetime.now(UTC)).close()
    far = tmp_path / "far.json"
    far.write_text(invoke("bundle", "show", "--dir", str(tmp_path / "far")).stdout)

    assert invoke("bundle", "set", "far.example", str(far), *where).exit_code == 0
    follow = ("federation", "follow", "far.example", "--url", "https://ca.far.example/")
    assert invoke(*follow, "--spiffe-id", "spiffe://far.example/sidewall/ca", *where).exit_code == 0
    (listed,) = json.loads(invoke("bundle", "list", "-o", "json", *where).stdout)["items"]
    assert listed["settings"]["profile"] == "https_spiffe"
    assert invoke("federation", "unfollow", "far.example", *where).exit_code == 0
    assert "by hand" in invoke("federation", "list", *where).stdout
    assert "BEGIN CERTIFICATE" in invoke("bundle", "show", "--pem", *where).stdout
    assert invoke("bundle", "delete", "far.example", "--yes", *where).exit_code == 0


def test_identities_are_revoked_and_nodes_banned_by_name(folder: Path) -> None:
    where = ("--dir", str(folder))

    assert "revoked" in invoke("revoke", "shop/api", "--reason", "leaked", *where).stdout
    assert invoke("unrevoke", "shop/api", *where).exit_code == 0
    assert invoke("ban", "shop/api", *where).exit_code == 1
    assert invoke("unban", "shop/api", *where).exit_code == 1
    assert invoke("nodes", *where).stdout.startswith("NODE")
    assert invoke("list", "shop/api", *where).stdout.startswith("SERIAL")
