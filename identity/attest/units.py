"""Where the file of a systemd unit lies, in systemd's own order of search (man 5 systemd.unit)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

FOLDERS: Final = (
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/run/systemd/system",
    "/run/systemd/system.attached",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
)


def fragment_paths(unit: str, folders: Sequence[str] = FOLDERS) -> frozenset[str]:
    """The path of the unit's file, as found and with links followed (``/lib`` is ``/usr/lib`` on most systems); a
    template's for an instance that has none of its own. Empty when there is none. Blocks."""
    for name in _names(unit):
        for folder in folders:
            path = f"{folder}/{name}"
            if os.path.isfile(path):
                return frozenset({path, os.path.realpath(path)})
    return frozenset()


def _names(unit: str) -> list[str]:
    """``web@3.service``: itself, then its template ``web@.service``."""
    if "/" in unit or not unit.endswith(".service"):
        return []
    prefix, at, _ = unit.partition("@")
    return [unit, f"{prefix}@.service"] if at and prefix else [unit]
