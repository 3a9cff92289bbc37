"""A PostgreSQL cluster of one's own: in a temporary folder, on a Unix socket, gone afterwards."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path


class PostgresMissing(Exception):
    """There is no PostgreSQL server to start; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """``folder``: holds the socket; ``url``: of its first database."""

    folder: Path
    socket: Path  # .s.PGSQL.5432
    user: str

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://{self.user}@/postgres?host={self.folder}"

    def tcp_url(self, port: int) -> str:
        """Through something on this port of the loopback that leads to the socket."""
        return f"postgresql+psycopg://{self.user}@127.0.0.1:{port}/postgres"


def postgres_cluster(folder: Path) -> AbstractContextManager[Cluster]:
    """Start one below ``folder`` (made if missing; others must be able to reach it). Raises PostgresMissing."""
    programs = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb")) or [shutil.which("initdb") or ""]
    if not programs[-1]:
        raise PostgresMissing("the server's programs (initdb) are not installed")
    user = _user()
    if os.geteuid() == 0 and user is None:
        raise PostgresMissing("it does not run as root, and there is neither a user postgres nor nobody")
    return _running(Path(programs[-1]).parent, folder, user)


def _user() -> str | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None


@contextlib.contextmanager
def _running(programs: Path, folder: Path, user: str | None) -> Iterator[Cluster]:
    folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    data = folder / "data"
    if user is not None:
        shutil.chown(folder, user)
    _run(programs / "initdb", user, "-D", data, "-U", "ca", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
    settings = {"listen_addresses": "", "unix_socket_directories": folder, "max_connections": 60, "shared_buffers": "32MB"}
    with (data / "postgresql.conf").open("a") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
    log = folder / "log"
    try:
        _run(programs / "pg_ctl", user, "-D", data, "-l", log, "-w", "-t", "30", "start")
        yield Cluster(folder, folder / ".s.PGSQL.5432", "ca")
    finally:
        _run(programs / "pg_ctl", user, "-D", data, "-m", "immediate", "-w", "stop", check=False)


def _run(program: Path, user: str | None, *arguments: object, check: bool = True) -> None:
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(
        command, user=user, group=_group(user), extra_groups=[] if user else None, cwd="/", stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=60,
        env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    if check and done.returncode != 0:
        raise PostgresMissing(f"{program.name} failed: {done.stdout.decode(errors='replace')[-500:]}")


def _group(user: str | None) -> int | None:
    return None if user is None else pwd.getpwnam(user).pw_gid
