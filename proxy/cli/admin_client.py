"""Talking to running proxies over their administrative sockets, and finding them (the TARGET argument)."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from proxy.cli.group import Problem

_TIMEOUT = 10.0
_UNREACHABLE = 69
_OTHERS = frozenset({"ca.sock", "agent.sock"})  # beside those of proxies, and no administrative ones
_ADMIN_PORT = "15000"  # of admin.listen, when an http:// address names none


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT)
        self.sock.connect(self._path)


class Target:
    """One running proxy: the path of its socket, or an ``http://127.0.0.1:PORT`` address (reads only)."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __str__(self) -> str:
        return self.where

    def _connection(self) -> http.client.HTTPConnection:
        if self.where.startswith("http://"):
            return http.client.HTTPConnection(*_host_and_port(self.where), timeout=_TIMEOUT)
        return _UnixConnection(self.where)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body. Raises Problem (69) when nobody answers."""
        connection = self._connection()
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read()
        except PermissionError:
            hint = "run as the proxy's user, or as root"
            raise Problem(f"not permitted to use {self.where}", hint, code=77) from None
        except (OSError, http.client.HTTPException) as error:
            hint = "is the proxy running? name its socket, or set SIDEWALL_ADMIN"
            raise Problem(f"no answer from {self.where}: {error}", hint, code=_UNREACHABLE) from None
        finally:
            connection.close()

    def facts(self, method: str, path: str, *expected: str, body: bytes | None = None) -> dict[str, Any]:
        """The body: a JSON mapping with the ``expected`` keys. Raises Problem for whatever else answers."""
        status, answer = self.ask(method, path, body)
        try:
            found = json.loads(answer)
        except ValueError:
            found = None
        if isinstance(found, dict) and set(expected) <= set(found):
            return found
        hint = "is that a proxy's administrative socket or port?"
        raise Problem(f"{self.where} answered {status}: {_first_line(answer)}", hint, code=_UNREACHABLE)


def _host_and_port(address: str) -> tuple[str, int]:
    rest = address.removeprefix("http://").rstrip("/")
    host, colon, port = rest.rpartition(":")
    if not colon or rest.endswith("]"):
        host, port = rest, _ADMIN_PORT
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise Problem(f"{address!r} is not an address", "e.g. http://127.0.0.1:15000", code=2)
    return host.strip("[]"), int(port)


def _first_line(body: bytes) -> str:
    line = body.decode(errors="replace").strip().partition("\n")[0]
    return line[:100] or "nothing"


def ask_all(
    target: str | None, method: str, path: str, *expected: str, body: bytes | None = None
) -> tuple[list[tuple[Target, dict[str, Any]]], int]:
    """What the proxies meant by ``target`` answer, and how many did not.

    Where several are meant, one that does not answer (a socket left behind by a crash) is named on stderr and
    left out. Raises Problem when none answers."""
    proxies = find(target)
    found: list[tuple[Target, dict[str, Any]]] = []
    silent: list[Problem] = []
    for proxy in proxies:
        try:
            found.append((proxy, proxy.facts(method, path, *expected, body=body)))
        except Problem as problem:
            silent.append(problem)
    if not found:
        raise silent[0]
    for silence in silent:
        click.echo(f"warning: {silence.message}", err=True)
    return found, len(silent)


def _folders() -> Iterable[Path]:
    """Where proxies put their sockets (config.resolve.Surroundings.sockets)."""
    yield Path("/run/sidewall")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        yield Path(runtime) / "sidewall"
        return
    own = Path("/tmp") / f"sidewall-{os.geteuid()}"  # noqa: S108 (only when it is ours: see below)
    # Anybody may have made a folder of that name, and could listen there in a proxy's place.
    if own.is_dir() and not own.is_symlink() and own.stat().st_uid == os.geteuid():
        yield own


def local_sockets() -> list[str]:
    """The sockets of the proxies of this machine that we can see."""
    found = [path for folder in _folders() for path in sorted(folder.glob("*.sock"))]
    return [str(path) for path in found if path.name not in _OTHERS]


def find(target: str | None) -> list[Target]:
    """The proxies meant by TARGET. Raises Problem when there is none."""
    target = target or os.environ.get("SIDEWALL_ADMIN")
    if target:
        return [_one(target)]
    found = local_sockets()
    if not found:
        folders = " or ".join(map(str, _folders()))
        raise Problem(f"no proxy found in {folders}", "name its socket, or set SIDEWALL_ADMIN", code=_UNREACHABLE)
    return [Target(path) for path in found]


def _one(target: str) -> Target:
    if target.startswith("http://"):
        return Target(target)
    path = target.removeprefix("unix:")
    # A workload's name may hold a slash as well (shop/api): the part behind it is the socket's name.
    if path != target or Path(path).is_socket():
        return Target(path)
    for found in local_sockets():
        if Path(found).stem in (path, path.rpartition("/")[2]):
            return Target(found)
    if path.startswith(("/", ".")) or path.endswith(".sock"):
        return Target(path)
    raise Problem(f"no local proxy is called {target!r}", "name its socket (unix:PATH)", code=_UNREACHABLE)
