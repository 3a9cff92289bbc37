"""``run``, ``version``, ``completion``."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from proxy.cli.group import Problem, cli


@click.command()
@click.option(
    "-c", "--config", "path", type=click.Path(path_type=Path),
    help="The file; ./sidewall.yaml, then /etc/sidewall/sidewall.yaml by default.",
)  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override one setting, e.g. workers=2.")
@click.option("--workers", metavar="N|auto", help="The same as --set workers=N.")
@click.option("--no-watch", is_flag=True, help="Do not reload when files change.")
@click.option("--check-only", is_flag=True, help="Read everything, say what is wrong, and end.")
def run(path: Path | None, settings: tuple[str, ...], workers: str | None, no_watch: bool, check_only: bool) -> int:
    """Run from a configuration file.

    \b
    sidewall run                          ./sidewall.yaml, or /etc/sidewall/sidewall.yaml
    sidewall run -c api.yaml --workers auto
    sidewall run --check-only

    Signals: TERM drains and ends, HUP reloads, USR1 opens log files anew, QUIT prints the task tree.
    Exit codes: 0 after a clean drain, 73 address in use, 77 not permitted, 78 configuration is wrong.
    """
    from proxy.app import serve

    overrides = parse_settings(settings)
    if workers is not None:
        overrides["workers"] = workers
    return serve(path, overrides=overrides, check_only=check_only, watch=not no_watch)


def parse_settings(settings: tuple[str, ...]) -> dict[str, str]:
    """``KEY=VALUE`` texts as a mapping. Raises click.UsageError."""
    found = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.UsageError(f"--set {text!r}: write KEY=VALUE, e.g. --set workers=2")
        found[key] = value
    return found


@click.command()
@click.option("--short", is_flag=True, help="The number only.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def version(short: bool, output: str) -> None:
    """Versions of Sidewall and of the libraries it stands on.

    \b
    sidewall version
    sidewall version -o json
    """
    from proxy.version import VERSION, is_compiled

    if short:
        click.echo(VERSION)
        return
    found = {"sidewall": VERSION, "build": "compiled" if is_compiled() else "interpreted", **_versions()}
    if output == "json":
        click.echo(json.dumps({"apiVersion": "sidewall.dev/v1", "kind": "Version", "versions": found}, indent=2))
        return
    width = max(map(len, found))
    for name, number in found.items():
        click.echo(f"{name:{width}}  {number}")


def _versions() -> dict[str, str]:
    """nghttp2 is inside ngh2 and llhttp inside httptools; neither wheel tells which one, so the wheels count."""
    from identity.mtls import openssl_version

    wheels = ("pyopenssl", "cryptography", "ngh2", "h2", "httptools", "trio", "opentelemetry-sdk")
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "openssl": openssl_version(),
        **{name: metadata.version(name) for name in wheels},
    }


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """A completion script for your shell.

    \b
    sidewall completion bash > ~/.local/share/bash-completion/completions/sidewall
    """
    found = get_completion_class(shell)
    if found is None:
        raise Problem(f"no completion for {shell}")
    click.echo(found(cli, {}, "sidewall", "_SIDEWALL_COMPLETE").source())
