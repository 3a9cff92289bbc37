"""``sidewall demo``."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import click

from proxy.demo.folder import TRUST_DOMAIN, Folder, FolderProblem, Ports, free_ports
from proxy.demo.processes import Processes, ProcessProblem
from proxy.demo.story import PATH, StepFailed, Story

_TRY = """\

Now you, in another terminal (Ctrl-C here ends everything):
  curl -i {url}
      denied, and told why
  cp {dir}/allow-web.yaml {dir}/policy/
      one policy; it applies at once, and the call is allowed; rm it, and it is denied again
  {show}
      the last call, hop by hop
  {sidewall} status {dir}/api/admin.sock
      what api's sidecar is doing
  tail -n 1 {dir}/api/access.log
      what it wrote down
It can play the whole story by itself: {sidewall} demo --once
"""


@click.command()
@click.option("--once", is_flag=True, envvar="SIDEWALL_DEMO_ONCE", help="Play the story, check every step, and end.")
@click.option("--grpc", "with_grpc", is_flag=True, help="Show gRPC calls too.")
@click.option("--clean", is_flag=True, help="Remove the folder and end.")
@click.option(
    "--dir", "path", type=click.Path(path_type=Path, file_okay=False), default=".sidewall", show_default=True,
    help="Where the CA, the policies and the logs are kept.",
)  # fmt: skip
def demo(once: bool, with_grpc: bool, clean: bool, path: Path) -> None:
    """Three services, each behind its own sidecar: denied, allowed by a policy, traced.

    Everything runs on loopback, on free ports, and in one folder.

    \b
    sidewall demo                 runs until Ctrl-C, and says what to try
    sidewall demo --once --grpc   plays the story, checks every step, and ends
    """
    folder = Folder(path)
    try:
        if clean:
            found = folder.remove()
            click.echo(f"{path} is removed" if found else f"there is no {path}")
            return
        _run(folder, once=once, with_grpc=with_grpc)
    except FolderProblem as problem:
        raise click.ClickException(str(problem)) from None


def _run(folder: Folder, *, once: bool, with_grpc: bool) -> None:
    _end_on(signal.SIGTERM, signal.SIGHUP)
    ports = free_ports()
    folder.make(ports)
    with Processes(folder, ports) as processes:
        try:
            processes.start()
            _introduce(folder, ports)
            if once:
                _story(folder, ports).tell(with_grpc=with_grpc)
            else:
                _interact(folder, ports, processes, with_grpc=with_grpc)
        except (StepFailed, ProcessProblem) as problem:
            click.echo("\n".join(processes.last_words()), err=True)
            click.echo(f"error: {problem}\n  logs: {folder.path}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("\nended", err=True)
            sys.exit(130 if once else 0)
    if once:
        click.echo(f"\nall as told. Try it by hand: {_program()} demo")


def _program() -> str:
    """What to type for ``sidewall`` in another terminal, where our environment may not be active."""
    called = Path(sys.argv[0]).absolute()
    if called.name != "sidewall" or called == Path(shutil.which("sidewall") or "."):
        return "sidewall"
    return os.path.relpath(called) if called.is_relative_to(Path.cwd()) else str(called)


def _show_command(folder: Folder) -> str:
    """``trace show last``, with the stores named where it would not find them by itself."""
    command = f"{_program()} trace show last"
    if folder.path == Path(".sidewall").absolute():
        return command
    return " ".join([command, *(f"--file {os.path.relpath(store)}" for store in folder.stores())])


def _end_on(*signals: signal.Signals) -> None:
    """End as for any other reason, so that the children are ended too."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in signals:
        signal.signal(number, leave)


def _introduce(folder: Folder, ports: Ports) -> None:
    click.echo(f"everything is in {folder.path.name}/ - to start over: {_program()} demo --clean")
    for name, text in (
        ("CA", f"trust domain {TRUST_DOMAIN}, folder {folder.path.name}/ca"),
        ("web", f"http://127.0.0.1:{ports.web}   calls api by its sidecar at :{ports.web_to_api}"),
        ("api", f"mTLS at :{ports.api_in}   calls stock by its sidecar at :{ports.api_to_stock}"),
        ("stock", f"mTLS at :{ports.stock_in}   gRPC"),
        ("policy", "one document lets api call stock; nobody may call api"),
    ):
        click.echo(f"  {name:<7}{text}")


def _story(folder: Folder, ports: Ports) -> Story:
    unicode = "utf" in (sys.stdout.encoding or "").lower()
    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return Story(folder, ports, click.echo, show=_show_command(folder), unicode=unicode, color=color)


def _interact(folder: Folder, ports: Ports, processes: Processes, *, with_grpc: bool) -> None:
    offered = folder.offer("allow-web")
    url, where = f"http://127.0.0.1:{ports.web}{PATH}", os.path.relpath(offered.parent)
    click.echo(_TRY.format(url=url, dir=where, show=_show_command(folder), sidewall=_program()))
    if with_grpc:
        _story(folder, ports).grpc_denied()
    while True:
        processes.check()
        time.sleep(0.5)
