"""``join``, ``leave`` and ``agent``: this machine as a node of an authority."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from proxy.cli.group import Problem

if TYPE_CHECKING:
    from proxy.agent.memory import NodeFolder

T = TypeVar("T")
_FOLDER = click.option(
    "--dir", "folder", type=click.Path(path_type=Path), help="Where it is kept; /var/lib/sidewall/identity for root."
)
_CONFIG = Path("/etc/sidewall/sidewall.yaml")
_UNREACHABLE = 69


@click.command()
@click.argument("token", required=False)
@click.option("--token-file", type=click.Path(path_type=Path), help="Read the token there, and remove the file.")
@click.option("--write-config", type=click.Path(path_type=Path), help="Write a sidewall.yaml, unless there is one.")
@_FOLDER
def join(token: str | None, token_file: Path | None, write_config: Path | None, folder: Path | None) -> None:
    """Enrol this machine with a CA: it gets an identity, and keeps it over reboots.

    TOKEN is the string that `sidewall ca token` prints, good once; - reads it from standard input, which others on
    this machine cannot see in the list of processes.

    \b
    sidewall join swt1_eyJ1Ijo...
    sidewall join - < token.txt
    sidewall join --token-file /run/secrets/join --write-config /etc/sidewall/sidewall.yaml

    Exit codes: 69 nobody answers, 77 refused, 78 what was kept earlier is in the way or damaged.
    """
    from identity.attest.join import JoinStringError, decode
    from proxy.agent import joining

    text = _read(token, token_file)
    try:
        wanted = decode(text)
    except JoinStringError as error:
        raise Problem(str(error), code=2) from None
    kept = _folder(folder)
    joined = _ask(lambda: joining.join(wanted, kept, _tell))
    if token_file is not None:
        token_file.unlink(missing_ok=True)
    if write_config is not None:
        _write_config(write_config, joined.spiffe_id, joined.url, kept.path)
    where = write_config or (_CONFIG if os.geteuid() == 0 else Path("sidewall.yaml"))
    click.echo(f"\nnext:  sidewall run -c {where}     with   identity: {{ca: {joined.url!r}}}")


def _read(token: str | None, token_file: Path | None) -> str:
    if (token is None) == (token_file is None):
        raise click.UsageError("Give the token, - for standard input, or --token-file.")
    try:
        if token_file is not None:
            return token_file.read_text()
        return sys.stdin.read() if token == "-" else str(token)  # noqa: S105 (not one)
    except OSError as error:
        raise Problem(f"{token_file}: {error.strerror}", code=2) from None


def _folder(path: Path | None) -> NodeFolder:
    from config.resolve import Surroundings
    from proxy.agent.memory import NodeFolder

    return NodeFolder(path or Surroundings.here(os.environ, Path()).identity)


def _tell(what: str, where: str) -> None:
    mark = "\u221a" if "utf" in (sys.stdout.encoding or "").lower() else "ok"
    click.echo(f"{mark} {what:<60} {where}")


def _write_config(path: Path, spiffe_id: str, url: str, folder: Path) -> None:
    """A start, with what is known; never over what somebody wrote."""
    if path.exists():
        _tell("there is a configuration already; it was left alone", str(path))
        return
    workload = "/".join(spiffe_id.split("/")[4:7:2]) or "default/app"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"workload: {workload}\n"
        f"identity: {{ca: {url!r}, folder: {str(folder)!r}}}\n"
        "inbound:\n"
        "  - {listen: 8443, app: 8080}      # edit: the port of your app on this machine\n"
        "policy: ./policy.d\n"
    )
    (path.parent / "policy.d").mkdir(exist_ok=True)
    _tell(f"{path} written (edit: which port?)", "app: 8080")


def _ask(action: Callable[[], Awaitable[T]]) -> T:
    """Run it. Raises Problem for whatever is to be expected."""
    import trio

    from identity.disk import IdentityFileError
    from identity.rpc import RpcError, Status
    from proxy.agent.calls import BadAnswer

    try:
        return trio.run(action)
    except IdentityFileError as error:
        raise Problem(f"{error.path}: {error.problem}", error.hint, code=78) from None
    except BadAnswer as error:
        raise Problem(str(error), "compare the clocks of both machines", code=77) from None
    except RpcError as error:
        if error.status in (Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED):
            raise Problem(error.message, "is the CA running, and can it be reached?", code=_UNREACHABLE) from None
        hint = "a token is good once, and not for long: ask for another (sidewall ca token)"
        raise Problem(f"refused: {error.message}", hint, code=77) from None


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--local", is_flag=True, help="Only remove what is kept here; the CA is not asked.")
@_FOLDER
def leave(yes: bool, local: bool, folder: Path | None) -> None:
    """Undo `join`: the CA revokes what this machine holds and forgets it.

    What is kept here is removed.

    \b
    sidewall leave
    sidewall leave --local --yes        the CA is gone, or the identity has expired
    """
    from proxy.agent import joining

    kept = _folder(folder)
    if not kept.is_joined:
        raise Problem(f"no machine has joined in {kept.path}", "name the folder with --dir", code=78)
    who = kept.path if local else _ask(lambda: _who(kept))
    click.echo(f"{who}: its identity is {'removed here' if local else 'revoked and removed'}; proxies with it stop")
    if not yes:
        if not sys.stdin.isatty():
            raise Problem("nobody is there to ask", "say --yes", code=2)
        click.confirm("go on?", abort=True)
    if not local:
        _ask(lambda: joining.leave(kept))
    for path in kept.remove():
        click.echo(f"removed {path}")


async def _who(kept: NodeFolder) -> str:
    return kept.facts().spiffe_id


@click.command()
@click.option("--ca", "url", metavar="URL", help="https://host:port or unix:/path; else as joined, or of here.")
@click.option("--socket", "path", type=click.Path(path_type=Path), help="Where workloads ask; agent.sock by default.")
@click.option("--as", "account", metavar="PATH", default="", help="Path of its own SPIFFE ID, where it has a choice.")
@click.option("--token-file", type=click.Path(path_type=Path), help="Attest with this Kubernetes token.")
@click.option("--bundle-file", type=click.Path(path_type=Path), help="The root by which the CA is recognised, PEM.")
@click.option("--log-format", type=click.Choice(["auto", "json", "text"]), default="auto", show_default=True)
@_FOLDER
def agent(
    url: str | None,
    path: Path | None,
    account: str,
    token_file: Path | None,
    bundle_file: Path | None,
    log_format: str,
    folder: Path | None,
) -> int:
    """Give the workloads of this machine their identities: SPIFFE Workload API and Envoy SDS on one socket.

    \b
    sidewall agent                                        on a machine that has joined
    sidewall agent --socket /run/spire/agent.sock         where SPIFFE clients look for it
    SPIFFE_ENDPOINT_SOCKET=unix:///run/sidewall/agent.sock your-service

    Which identities there are is said by entries at the CA: sidewall ca entry create --help.
    Exit codes: 0 after TERM, 73 the socket is in use, 78 no usable settings.
    """
    from config.model import Authority
    from config.resolve import Surroundings
    from proxy.agent import service
    from proxy.log import set_up
    from proxy.net.listener import ListenFailed

    here, kept = Surroundings.here(os.environ, Path()), _folder(folder)
    if url is None:
        url = _ask(lambda: _url_of(kept)) if kept.is_joined else f"unix:{here.ca}" if here.ca is not None else None
    if url is None:
        raise Problem("no CA is known", "sidewall join TOKEN first, or name it with --ca", code=78)
    set_up("info", log_format)
    account = account or f"/host/{os.uname().nodename.lower()}"
    authority = Authority(url=url, token_file=token_file, bundle_file=bundle_file)
    try:
        return service.serve(service.Options(authority, kept.path, account, path or here.sockets / "agent.sock"))
    except ListenFailed as error:
        raise Problem(str(error), code=error.exit_code) from None


async def _url_of(kept: NodeFolder) -> str:
    return kept.facts().url
