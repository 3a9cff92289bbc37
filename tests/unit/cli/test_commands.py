"""The command line: what it prints, what it exits with, what it imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from proxy.cli import admin_client, group
from proxy.cli.group import cli

GOOD = """
workload: shop/api
identity: {caDir: ./ca}
inbound: [{listen: 127.0.0.1:8443, app: 8080}]
policy: ./policy
"""


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), prog_name="sidewall")


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "proxy", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        cwd=Path(__file__).parents[3],
        timeout=60,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "policy").mkdir()
    (tmp_path / "sidewall.yaml").write_text(GOOD)
    return tmp_path


@pytest.mark.parametrize("name", list(group._COMMANDS))
def test_every_command_of_the_overview_exists_and_explains_itself(name: str) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert group._SHORT[name].rstrip(".") in " ".join(result.output.split())


def test_help_needs_none_of_the_heavy_libraries() -> None:
    code = (
        "import sys; sys.argv = ['sidewall', '--help']\n"
        "import proxy.__main__ as m\n"
        "try: m.main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'trio', 'cryptography', 'yaml', 'OpenSSL', 'opentelemetry'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3], check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_wrong_word_gets_a_suggestion_and_exit_code_2() -> None:
    result = invoke("chekc")
    assert result.exit_code == 2
    assert "Did you mean 'check'?" in result.output


def test_check_is_silent_about_nothing_and_exits_0(folder: Path) -> None:
    result = invoke("check", str(folder / "sidewall.yaml"))
    assert result.exit_code == 0, result.output


def test_check_shows_every_problem_with_its_place_and_exits_1(folder: Path) -> None:
    (folder / "sidewall.yaml").write_text(GOOD.replace("inbound:", "inbond:").replace("shop/api", "Shop api"))
    result = invoke("check", str(folder / "sidewall.yaml"))
    assert result.exit_code == 1
    assert "sidewall.yaml:4:1: error SW0101" in result.output
    assert "did you mean 'inbound'?" in result.output
    assert "SW0105" in result.output


def test_check_reads_a_folder_as_policy(folder: Path) -> None:
    (folder / "policy" / "a.yaml").write_text("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nspec: {actoin: DENY}\n")
    result = invoke("check", str(folder / "policy"), "-o", "json")
    assert result.exit_code == 1
    assert "SW0101" in {problem["code"] for problem in json.loads(result.output)}


def test_config_show_names_the_origin_of_each_value(folder: Path) -> None:
    result = invoke("config", "show", "-c", str(folder / "sidewall.yaml"), "--set", "workers=3", "-o", "json")
    values = json.loads(result.output)["values"]
    assert values["workers"]["value"] == "3"
    assert "set" in values["workers"]["origin"]
    assert values["inbound[0].listen"]["origin"].endswith("sidewall.yaml:4")


def test_config_explain_and_schema_and_code_pages() -> None:
    assert "T-2" in invoke("config", "explain", "timeouts.header").output
    assert json.loads(invoke("config", "schema").output)["properties"]["inbound"]
    assert "SW0201" in invoke("explain", "sw0201").output
    assert invoke("explain", "SW9999").exit_code == 1


@pytest.mark.parametrize("kind", ["sidecar", "vm", "gateway"])
def test_init_writes_a_file_that_check_accepts_and_never_overwrites(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "sidewall.yaml"
    env = {"POD_NAMESPACE": "shop", "SERVICE_ACCOUNT": "api"}
    assert invoke("init", kind, "--out", str(out)).exit_code == 0
    checked = CliRunner(env=env).invoke(cli, ["check", str(out)])
    assert checked.exit_code == 0, checked.output
    again = run("init", kind, "--out", str(out))
    assert again.returncode == 73
    assert "exists already" in again.stderr


def test_a_ca_issues_an_identity_that_can_be_shown(tmp_path: Path) -> None:
    assert invoke("ca", "init", str(tmp_path / "ca"), "--trust-domain", "shop.internal").exit_code == 0
    issued = invoke("ca", "issue", "shop/api", "--ca", str(tmp_path / "ca"), "--out", str(tmp_path / "api"), "--ttl", "2h")
    assert issued.exit_code == 0, issued.output
    assert "spiffe://shop.internal/ns/shop/sa/api" in issued.output
    assert (tmp_path / "api" / "svid_key.pem").stat().st_mode & 0o777 == 0o600
    shown = json.loads(invoke("identity", "show", str(tmp_path / "api" / "svid.pem"), "-o", "json").output)
    assert shown["items"][0]["uri"] == "spiffe://shop.internal/ns/shop/sa/api"


def test_a_ca_is_not_made_over_another(tmp_path: Path) -> None:
    invoke("ca", "init", str(tmp_path / "ca"), "--trust-domain", "shop.internal")
    done = run("ca", "init", str(tmp_path / "ca"), "--trust-domain", "shop.internal")
    assert done.returncode == 73
    assert len(done.stderr.splitlines()) <= 4
    assert "Traceback" not in done.stderr


def test_protect_prints_the_file_it_stands_for(tmp_path: Path) -> None:
    result = invoke(
        "protect", "8080", "--as", "shop/api", "--allow", "shop/web", "--ca", str(tmp_path / "ca"), "--print-config"
    )
    config, policy = yaml.safe_load_all(result.output)
    assert config["workload"] == "shop/api"
    assert config["inbound"] == [{"listen": "8443", "app": "8080"}]
    assert policy["spec"]["rules"][0]["from"][0]["source"]["principals"] == ["local/ns/shop/sa/web"]
    out = tmp_path / "sidewall.yaml"
    out.write_text(result.output)
    assert invoke("check", str(out)).exit_code == 0


def test_protect_without_allow_lets_nobody_in(tmp_path: Path) -> None:
    result = invoke("protect", "8080", "--ca", str(tmp_path / "ca"), "--print-config")
    _, policy = yaml.safe_load_all(result.output)
    assert "rules" not in policy["spec"]


def test_reach_prints_the_file_it_stands_for(tmp_path: Path) -> None:
    result = invoke("reach", "shop/api=127.0.0.1:8443", "--ca", str(tmp_path / "ca"), "--print-config")
    config = yaml.safe_load(result.output)
    assert config["upstreams"] == {"api": {"endpoints": ["127.0.0.1:8443"], "expect": ["shop/api"]}}
    assert invoke("reach", "nonsense").exit_code == 2


def test_a_bad_configuration_at_start_exits_78_with_the_problems(folder: Path) -> None:
    (folder / "sidewall.yaml").write_text(GOOD.replace("inbound:", "inbond:"))
    done = run("run", "-c", str(folder / "sidewall.yaml"))
    assert done.returncode == 78
    assert "SW0101" in done.stderr
    assert "Traceback" not in done.stderr


def test_nobody_answering_is_69_and_says_what_to_do(tmp_path: Path) -> None:
    done = run("status", f"unix:{tmp_path}/none.sock")
    assert done.returncode == 69
    assert "is the proxy running?" in done.stderr


def test_no_proxy_on_this_machine_is_69(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SIDEWALL_ADMIN", raising=False)
    monkeypatch.setattr(admin_client, "_folders", lambda: [tmp_path])
    with pytest.raises(group.Problem, match="no proxy found in") as refused:
        admin_client.find(None)
    assert refused.value.code == 69


def test_a_bug_is_70_and_leaves_a_crash_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("SIDEWALL_DEBUG", raising=False)

    def boom(**_: object) -> None:
        raise RuntimeError("oh")

    monkeypatch.setattr(cli, "main", boom)
    monkeypatch.setattr(sys, "argv", ["sidewall"])
    with pytest.raises(SystemExit) as ended:
        group.main()
    assert ended.value.code == 70
    (crash,) = (tmp_path / "sidewall").glob("crash-*.txt")
    assert "RuntimeError: oh" in crash.read_text()


def test_version_short_is_the_number() -> None:
    from proxy.version import VERSION

    assert invoke("version", "--short").output.strip() == VERSION
    assert "openssl" in invoke("version").output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    assert "_SIDEWALL_COMPLETE" in invoke("completion", shell).output
