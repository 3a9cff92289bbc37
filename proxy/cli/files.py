"""Commands that read files only: ``init``, ``check``, ``config``, ``explain``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import click

from proxy.cli.group import Problem
from proxy.cli.run import parse_settings

if TYPE_CHECKING:
    from config.problems import Problem as Problem_


@click.command()
@click.argument("kind", type=click.Choice(["sidecar", "vm", "gateway"]))
@click.option("--out", type=click.Path(path_type=Path), default="sidewall.yaml", show_default=True, help="- = stdout")
def init(kind: str, out: Path) -> None:
    """Write a commented sidewall.yaml.

    \b
    sidewall init sidecar
    sidewall init vm --out /etc/sidewall/sidewall.yaml
    """
    from config.templates import FIRST_POLICY, POLICY_FOLDERS, template

    text = template(kind)
    if str(out) == "-":
        click.echo(text, nl=False)
        return
    _write_new(out, text)
    click.echo(f"{out} is written; read it, then: sidewall check {out}", err=True)
    if kind in POLICY_FOLDERS:
        folder = out.parent / POLICY_FOLDERS[kind]
        folder.mkdir(exist_ok=True)
        first = folder / "first.yaml"
        if not any(folder.iterdir()):
            _write_new(first, FIRST_POLICY)
            click.echo(f"{first} is written: nobody may call until a policy says so", err=True)


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise Problem(f"{path} exists already", "remove it, or name another file with --out", code=73) from None
    except OSError as error:
        raise Problem(f"cannot write {path}: {error.strerror}", "name another file with --out", code=73) from None


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Choice(["text", "json", "github"]), default="text", show_default=True)
def check(files: tuple[Path, ...], output: str) -> int:
    """Say what is wrong with configuration and policy files.

    A FILE with apiVersion and kind, or a folder, is read as policy; anything else as sidewall.yaml.

    \b
    sidewall check
    sidewall check sidewall.yaml policy/ -o github

    Exit code 1 when there is an error; warnings alone are 0.
    """
    from config.problems import render

    problems: list[Problem_] = []
    documents = 0
    for path in files or (None,):
        found, count = _check_one(path)
        problems += found
        documents += count
    form = cast("Literal['text', 'json', 'github']", output)
    text = render(problems, form=form, files=max(len(files), 1), documents=documents)
    if text:
        click.echo(text)
    elif output == "text":
        click.echo(f"nothing wrong in {max(len(files), 1)} file(s), {documents} document(s)")
    return int(any(problem.severity == "error" for problem in problems))


def _check_one(path: Path | None) -> tuple[list[Problem_], int]:
    from config.documents import load_documents
    from config.load import load_all
    from config.problems import ConfigError

    try:
        if path is not None and (path.is_dir() or _is_policy(path)):
            documents, warnings = load_documents([path])
            return list(warnings), documents.count
        loaded = load_all(path)
        return list(loaded.warnings), loaded.documents.count + 1
    except ConfigError as error:
        return list(error.problems), error.documents


def _is_policy(path: Path) -> bool:
    # By the first document: sidewall.yaml may carry policy documents after its own.
    try:
        text = path.read_text(errors="replace").removeprefix("---\n")
    except OSError:
        return False
    return any(line.startswith("apiVersion:") for line in text.partition("\n---")[0].splitlines())


@click.group()
def config() -> None:
    """Show and explain the configuration."""


@config.command("show")
@click.argument("target", required=False)
@click.option("-c", "--config", "path", type=click.Path(path_type=Path), help="The file to read.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override one setting.")
@click.option("--origin", is_flag=True, help="Say where each value came from.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def show_config(
    target: str | None, path: Path | None, settings: tuple[str, ...], origin: bool, output: str
) -> None:
    """Every value that would be used, defaults included; secrets are hidden.

    With TARGET (a socket or a workload's name) what that running proxy uses; else what the file says.

    \b
    sidewall config show --origin
    sidewall config show -c api.yaml -o json
    sidewall config show shop/api --origin
    """
    if target is not None and (path is not None or settings):
        raise click.UsageError("TARGET asks a running proxy, -c and --set a file: give one of them")
    values, origins = _running_values(target) if target is not None else _file_values(path, settings)
    rows = {key: {"value": value, "origin": origins.get(key, "default")} for key, value in values.items()}
    if output == "json":
        click.echo(json.dumps({"apiVersion": "sidewall.dev/v1", "kind": "Config", "values": rows}, indent=2))
        return
    width = max(map(len, rows))
    for key, row in rows.items():
        where = f"   # {row['origin']}" if origin else ""
        click.echo(f"{key:{width}}  {row['value']}{where}")


def _running_values(target: str) -> tuple[dict[str, str], dict[str, str]]:
    from proxy.cli.admin_client import find

    found = find(target)[0].facts("GET", "/config", "values", "origins")
    return found["values"], found["origins"]


def _file_values(path: Path | None, settings: tuple[str, ...]) -> tuple[dict[str, str], dict[str, str]]:
    from config.load import load_config
    from config.problems import ConfigError, render

    try:
        loaded = load_config(path, overrides=parse_settings(settings))
    except ConfigError as error:
        click.echo(render(error.problems, files=error.files, documents=error.documents), err=True)
        raise click.exceptions.Exit(78) from None
    return loaded.flat(), dict(loaded.origins)


@config.command("explain")
@click.argument("key")
def explain_key(key: str) -> None:
    """Type, default and reason of a setting.

    \b
    sidewall config explain inbound.timeouts
    """
    from config.schema import NoSuchSetting, explain_setting

    try:
        click.echo(explain_setting(key))
    except NoSuchSetting as error:
        raise Problem(str(error)) from None


@config.command("schema")
def schema() -> None:
    """The JSON Schema of sidewall.yaml, for editors.

    \b
    sidewall config schema > sidewall.schema.json
    """
    from config.schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@click.command()
@click.argument("code")
@click.option("--at", "target", metavar="TARGET", help="A decision: ask this proxy. Default: every local one.")
@click.option("--verify", is_flag=True, help="A decision: derive it again from the policy files, and compare.")
@click.option("-f", "--file", "files", multiple=True, type=click.Path(path_type=Path), help="Other policy files.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def explain(code: str, target: str | None, verify: bool, files: tuple[Path, ...], output: str) -> int:
    """The manual page of a problem's code, or why a request was refused.

    CODE is a code of a message (SW0201), or the id of a decision: x-sidewall-decision of a refused answer,
    decision_id in the access log. Proxies remember the last of them (telemetry.traces.keep).

    \b
    sidewall explain SW0201
    sidewall explain f3kq2vjz5ryt4c7mabxw6h2nde
    sidewall explain f3kq2vjz5ryt4c7mabxw6h2nde --verify

    Exit code 1: --verify found another verdict, 69: no proxy remembers the decision.
    """
    from config.codes import NoSuchCode
    from config.codes import explain as page

    if re.fullmatch(r"[a-z2-7]{26}", code):
        from proxy.cli.decision import explain_decision

        return explain_decision(code, target, files, verify=verify, output=output)
    try:
        click.echo(page(code.upper()))
    except NoSuchCode as error:
        raise Problem(str(error), "codes stand in the messages of sidewall check") from None
    return 0
