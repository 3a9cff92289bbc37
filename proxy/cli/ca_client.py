"""How the ``ca`` commands reach an authority: through the server's Unix socket, or by opening its folder.

Both ways perform the same acts (``proxy.ca.admin``), so a command does not know which it is, but says so on stderr
when it is the folder. A folder may be opened beside a running server: they are two replicas of one authority then.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click

from proxy.cli.group import Problem

_TIMEOUT = 30.0
_SECONDS = re.compile(r"\b(\d{3,}) s\b")
_F = TypeVar("_F", bound=Callable[..., Any])
_CODES = {"PERMISSION_DENIED": 77, "UNAVAILABLE": 69, "DEADLINE_EXCEEDED": 69, "INVALID_ARGUMENT": 2, "DATA_LOSS": 78}

OUTPUT = click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)


class Authority(Protocol):
    """An authority that can be asked."""

    def ask(self, act: str, **facts: Any) -> Any:
        """What the act gives (``proxy.ca.admin.ACTS``). Raises Problem."""
        ...


def with_authority(command: _F) -> _F:
    """The options that say which authority is meant; the command gets ``authority``."""
    import functools

    @click.option("--socket", "socket_path", metavar="PATH", help="The server's socket.")
    @click.option("--dir", "folder", type=click.Path(path_type=Path), help="An authority's folder.")
    @click.option("--store", metavar="URL", envvar="SIDEWALL_CA_STORE", help="With --dir: its database.")
    @functools.wraps(command)
    def wrapped(*args: Any, socket_path: str | None, folder: Path | None, store: str | None, **more: Any) -> Any:
        with reach(socket_path, folder, store) as authority:
            return command(*args, authority=authority, **more)

    return wrapped  # type: ignore[return-value]


@contextmanager
def reach(socket_path: str | None, folder: Path | None, store: str | None = None) -> Iterator[Authority]:
    """The authority that is meant: of the socket when one is named, of the folder when that is named and no server
    on the usual socket has it, else of the usual socket. Raises Problem."""
    from proxy.ca.places import default_socket, is_strangers

    path = Path(socket_path.removeprefix("unix:")) if socket_path else default_socket(os.environ)
    if is_strangers(path.parent):
        raise Problem(
            f"{path.parent} belongs to somebody else, who could listen there in the server's place", code=77
        )
    server = _Server(path)
    if folder is None or socket_path is not None:
        yield server
        return
    if path.is_socket() and server.serves(folder):
        yield server
        return
    click.echo(f"no server of {folder} on {path}: opening the folder itself", err=True)
    with _opened(folder, store) as authority:
        yield authority


class _Server:
    """A running server."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def ask(self, act: str, **facts: Any) -> Any:
        import trio

        from identity.rpc import RpcError

        try:
            return trio.run(self._call, act, facts)
        except RpcError as error:
            raise self._problem(error) from None

    def serves(self, folder: Path) -> bool:
        """Whether it runs and has this folder."""
        try:
            return bool(self.ask("Status")["server"].get("folder") == str(folder.absolute()))
        except Problem:
            return False

    async def _call(self, act: str, facts: dict[str, Any]) -> Any:
        from identity.ca_api import ADMIN, MAX_ADMIN, api
        from proxy.net.listener import Address
        from proxy.rpc.client import open_channel

        request = api.AdminRequest(json=json.dumps(facts).encode())
        async with open_channel(Address(path=str(self._path)), max_reply=MAX_ADMIN) as channel:
            answer = await channel.unary(ADMIN + act, request.SerializeToString(), timeout=_TIMEOUT)
        return json.loads(api.AdminReply.FromString(answer).json)

    def _problem(self, error: Any) -> Problem:
        code = _CODES.get(error.status.name, 1)
        hint = ""
        if code == 69:
            hint = "is `sidewall ca serve` running? name its --socket, or a folder with --dir"
        elif code == 77:
            hint = "run as root, or as the user of the authority"
        return Problem(with_spans(error.message), hint, code=code)


class _Folder:
    """An authority without a server."""

    def __init__(self, service: Any) -> None:
        self._service = service

    def ask(self, act: str, **facts: Any) -> Any:
        from identity.ca.model import CaError
        from identity.ca.service import OPERATOR
        from identity.disk import IdentityFileError
        from proxy.ca.admin import Context, perform, to_json
        from proxy.ca.work import as_rpc_error, now

        context = Context(OPERATOR, now(), local=True, server={})
        try:
            return json.loads(to_json(perform(self._service, act, facts, context)))
        except (CaError, IdentityFileError, ValueError) as error:
            found = as_rpc_error(error, to_operator=True)
            raise Problem(with_spans(found.message), code=_CODES.get(found.status.name, 1)) from None


@contextmanager
def _opened(folder: Path, store: str | None) -> Iterator[Authority]:
    from datetime import UTC, datetime

    from identity.ca.model import CaError, StoreUnavailable
    from identity.ca.service import CaService
    from identity.disk import IdentityFileError

    try:
        service = CaService.open(folder, store, now=datetime.now(UTC))
    except StoreUnavailable as error:
        raise Problem(str(error), code=69) from None
    except IdentityFileError as error:
        raise Problem(str(error), code=73) from None
    except CaError as error:
        raise Problem(str(error), code=78) from None
    with service:
        yield _Folder(service)


def id_of(authority: Authority, name: str) -> str:
    """``ns/account`` as a SPIFFE ID of the authority; a full one stays as it is. Raises Problem."""
    from proxy.cli.ca import full_name

    if name.startswith("spiffe://"):
        return name
    try:
        return full_name(name, authority.ask("Bundle")["trust_domain"])
    except ValueError as error:
        raise Problem(str(error), "write it as ns/account, e.g. shop/api, or spiffe://...", code=2) from None


def print_json(kind: str, **facts: Any) -> None:
    """The stable form for programs."""
    click.echo(json.dumps({"apiVersion": "sidewall.dev/v1", "kind": kind, **facts}, indent=2))


def print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Aligned columns, the last one as long as it is. Values may come from strangers."""
    lines = [head, *(tuple(map(printable, row)) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def printable(text: str) -> str:
    """``text`` without what could move a terminal's cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)


def in_time(seconds: float) -> str:
    """A span for people, from now."""
    if seconds <= 0:
        return "past"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"in {int(seconds // size)} {unit}"
    return f"in {int(seconds)} s"


def with_spans(text: str) -> str:
    """Seconds in a sentence of the authority, as people say them: "wait 600 s" becomes "wait 10 min"."""
    return _SECONDS.sub(lambda found: in_time(float(found[1])).removeprefix("in "), text)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before what is hard to take back. Raises Problem (2) when nobody can be asked, Abort for a no."""
    import sys

    if yes:
        return
    if not sys.stdin.isatty():
        raise Problem(f"{question} nobody is here to say yes", "add --yes", code=2)
    click.confirm(question, abort=True, err=True)
