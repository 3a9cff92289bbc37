"""Where an authority keeps its things and where it is found, when nobody says otherwise."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from config.resolve import Surroundings

PORT: Final = 15012
SOCKET: Final = "ca.sock"


def default_folder(env: Mapping[str, str]) -> Path:
    """``/var/lib/sidewall/ca`` for root, else the user's state folder."""
    if os.geteuid() == 0 and "XDG_STATE_HOME" not in env:
        return Path("/var/lib/sidewall/ca")
    return Surroundings.here(env, Path()).state / "ca"


def default_socket(env: Mapping[str, str]) -> Path:
    """``$SIDEWALL_CA``, else ``ca.sock`` beside the sockets of the proxies."""
    told = env.get("SIDEWALL_CA", "").removeprefix("unix:")
    return Path(told) if told else Surroundings.here(env, Path()).sockets / SOCKET


def is_strangers(folder: Path) -> bool:
    """Whether somebody who is neither root nor we could put a socket of his own into ``folder``. /run is root's to
    give away: a service's folder there belongs to the service's user."""
    try:
        found = folder.lstat()
    except OSError:
        return False  # nobody's yet
    if folder.is_relative_to("/run"):
        return False
    open_to_all = bool(found.st_mode & stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX
    return open_to_all or stat.S_ISLNK(found.st_mode) or found.st_uid not in (0, os.geteuid())
