"""The command tree, loaded lazily, and what becomes of errors: exit codes and at most four lines."""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

# name -> (module, attribute, group shown in the help)
_COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("proxy.demo.command", "demo", "Start"),
    "protect": ("proxy.cli.quick", "protect", "Start"),
    "reach": ("proxy.cli.quick", "reach", "Start"),
    "run": ("proxy.cli.run", "run", "Start"),
    "init": ("proxy.cli.files", "init", "Start"),
    "check": ("proxy.cli.files", "check", "Configure"),
    "config": ("proxy.cli.files", "config", "Configure"),
    "policy": ("proxy.cli.policy", "policy", "Configure"),
    "reload": ("proxy.cli.live", "reload", "Configure"),
    "drain": ("proxy.cli.live", "drain", "Configure"),
    "ready": ("proxy.cli.live", "ready", "Configure"),
    "quarantine": ("proxy.cli.quarantine", "quarantine", "Configure"),
    "status": ("proxy.cli.live", "status", "See"),
    "trace": ("proxy.cli.trace", "trace", "See"),
    "join": ("proxy.cli.join", "join", "Identity"),
    "leave": ("proxy.cli.join", "leave", "Identity"),
    "agent": ("proxy.cli.join", "agent", "Identity"),
    "identity": ("proxy.cli.identity", "identity", "Identity"),
    "ca": ("proxy.cli.ca", "ca", "Identity"),
    "explain": ("proxy.cli.files", "explain", "Help"),
    "completion": ("proxy.cli.run", "completion", "Help"),
    "version": ("proxy.cli.run", "version", "Help"),
}
# One line each, here so that the overview needs no import of the commands; a test compares them.
_SHORT: Mapping[str, str] = {
    "demo": "Three services, each behind its own sidecar: denied, allowed by a policy, traced.",
    "protect": "Put a mutual-TLS front on one local app.",
    "reach": "Open a local port that leads to a remote service over mutual TLS.",
    "run": "Run from a configuration file.",
    "init": "Write a commented sidewall.yaml.",
    "check": "Say what is wrong with configuration and policy files.",
    "config": "Show and explain the configuration.",
    "policy": "Check, test, compare and explain policies.",
    "reload": "Have a running proxy read its files again.",
    "drain": "Have a running proxy finish what it carries, and end.",
    "ready": "Exit 0 when the proxy is ready; otherwise say why not.",
    "quarantine": "Cut one identity off, both ways, at every local proxy.",
    "status": "What local proxies are doing.",
    "trace": "Read the traces that proxies keep.",
    "join": "Enrol this machine with a CA: it gets an identity, and keeps it over reboots.",
    "leave": "Undo `join`: the CA revokes what this machine holds and forgets it.",
    "agent": "Give the workloads of this machine their identities.",
    "identity": "Show, verify and fetch certificates.",
    "ca": "The certificate authority: attest, issue, rotate, revoke.",
    "explain": "The manual page of a problem's code.",
    "completion": "A completion script for your shell.",
    "version": "Versions of Sidewall and of the libraries it stands on.",
}


class Problem(click.ClickException):
    """An expected failure: what, where and what to do, with an exit code of its own."""

    def __init__(self, message: str, hint: str = "", *, code: int = 1) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {self.message}", err=True)
        if self.hint:
            click.echo(f"  {self.hint}", err=True)


class LazyGroup(click.Group):
    """Imports a command's module when it is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[name]
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{attribute} is not a command")
        return command

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if arguments and arguments[0] not in _COMMANDS and not arguments[0].startswith("-"):
            _refuse_unknown(context, arguments[0])
        return super().resolve_command(context, arguments)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for section in dict.fromkeys(group for _, _, group in _COMMANDS.values()):
            rows = [(name, _SHORT[name]) for name, (_, _, group) in _COMMANDS.items() if group == section]
            with formatter.section(section):
                formatter.write_dl(rows)


def _refuse_unknown(context: click.Context, word: str) -> None:
    import difflib

    near = difflib.get_close_matches(word, _COMMANDS, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    context.fail(f"No such command {word!r}.{hint}")


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def cli(debug: bool) -> None:
    """Mutual-TLS access proxy with per-route policy and traces.

    \b
    sidewall demo                              see it work on this machine
    sidewall protect 8080 --allow shop/web     put a front on one local app
    sidewall run -c sidewall.yaml              run from a file
    """


@cli.result_callback()
def _exit_with(code: object, **_: object) -> None:
    # What a command returns is its exit code.
    if isinstance(code, int) and code:
        click.get_current_context().exit(code)


def main() -> None:
    """Run the command line and exit with one of the documented codes."""
    debug = "--debug" in sys.argv or bool(os.environ.get("SIDEWALL_DEBUG"))
    try:
        code = cli.main(prog_name="sidewall", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.code if isinstance(error, Problem) else error.exit_code)
    except click.Abort:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        sys.exit(_crashed(error))
    sys.exit(code if isinstance(code, int) else 0)


def _crashed(error: Exception) -> int:
    """Our bug: keep the traceback where it can be sent from, and say so in two lines."""
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "sidewall"
    path = folder / f"crash-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.txt"
    text = "".join(traceback.format_exception(error))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(text)
        where = f"  details: {path}"
    except OSError:
        where = "  run again with --debug for the details"
    click.echo(f"error: this is a bug in sidewall: {type(error).__name__}: {error}\n{where}", err=True)
    return 70
