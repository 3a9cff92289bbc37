"""Talking to running proxies over their administrative sockets, and finding them (the TARGET argument)."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from proxy.cli.group import Problem

_TIMEOUT = 10.0
_UNREACHABLE = 69


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
            host, _, port = self.where.removeprefix("http://").rstrip("/").rpartition(":")
            return http.client.HTTPConnection(host, int(port), timeout=_TIMEOUT)
        return _UnixConnection(self.where)

    def ask(self, method: str, path: str) -> tuple[int, bytes]:
        """Status and body. Raises Problem (69) when nobody answers."""
        connection = self._connection()
        try:
            connection.request(method, path)
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

    def json(self, method: str, path: str) -> Any:
        """The body as JSON. Raises Problem."""
        status, body = self.ask(method, path)
        try:
            return json.loads(body)
        except ValueError:
            text = body.decode(errors="replace").strip()
            raise Problem(f"{self.where} answered {status}: {text}", code=_UNREACHABLE) from None


def _folders() -> Iterable[Path]:
    yield Path("/run/sidewall")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        yield Path(runtime) / "sidewall"


def local_sockets() -> list[str]:
    """The sockets of the proxies of this machine that we can see."""
    return [str(path) for folder in _folders() for path in sorted(folder.glob("*.sock"))]


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
    if "/" in path or Path(path).exists():
        return Target(path)
    for found in local_sockets():
        if Path(found).stem in (path, path.rpartition("/")[2]):
            return Target(found)
    raise Problem(f"no local proxy is called {target!r}", "name its socket (unix:PATH)", code=_UNREACHABLE)
