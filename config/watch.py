"""Notices that the content of files and folders has changed.

A look is a ``stat`` of each file, twice a second, in a thread (a dead network file system must not stop the
loop); content is read and hashed only when a stat differs, and only another hash is a change. That survives what
inotify makes hard: the ``..data`` swap of a Kubernetes volume, editors that replace files, files that do not
exist yet, network file systems and overlays. Two looks a second at a few files cost less than 0.1 % of a CPU.

A change is reported when the files have been quiet for a moment, so that a policy is not read half written.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from pathlib import Path
from typing import Final

import trio

from config.files import MAX_TOTAL, Unreadable, read_bounded, yaml_files

INTERVAL: Final = 0.5  # seconds between two looks
_QUIET: Final = 0.1  # seconds without a further change
_LOOKS: Final = 4  # for quiet, at most: somebody who writes without end must not silence us
_RECENT: Final = 10.0  # seconds: what is younger may have changed since it was read

Stat = tuple[int, int, int, int, int] | None
Stats = dict[str, Stat]


async def watch(files: Callable[[], Iterable[Path]], *, interval: float = INTERVAL) -> AsyncGenerator[None, None]:
    """Yield after each change of what ``files()`` names now: files, and folders of policy documents.

    Yields once at the beginning when something is so young that it may have changed after it was read."""
    stats = await _look(files)
    seen = await _read(stats)
    if _is_recent(stats):
        yield
    while True:
        await trio.sleep(interval)
        fresh = await _look(files)
        if fresh == stats:
            continue
        stats = await _quiet(files, fresh)
        digest = await _read(stats)
        if digest != seen:
            seen = digest
            yield


async def _look(files: Callable[[], Iterable[Path]]) -> Stats:
    return await trio.to_thread.run_sync(_stats, list(files()), abandon_on_cancel=True)


async def _read(stats: Stats) -> bytes:
    return await trio.to_thread.run_sync(_digest, stats, abandon_on_cancel=True)


async def _quiet(files: Callable[[], Iterable[Path]], stats: Stats) -> Stats:
    for _ in range(_LOOKS):
        await trio.sleep(_QUIET)
        fresh = await _look(files)
        if fresh == stats:
            break
        stats = fresh
    return stats


def _is_recent(stats: Stats) -> bool:
    now = time.time()
    return any(stat is not None and abs(now - stat[4] / 1e9) < _RECENT for stat in stats.values())


def _stats(paths: Iterable[Path]) -> Stats:
    """What the file system says of every file, folders opened up. Links are followed: a swapped link is a change."""
    found: Stats = {}
    for path in paths:
        found[str(path)] = _stat(path)
        if path.is_dir():
            for file in yaml_files(path, lambda _: None):
                found[str(file)] = _stat(file)
    return found


def _stat(path: Path) -> Stat:
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _digest(stats: Stats) -> bytes:
    """A hash over the names and contents of all files."""
    whole, left = hashlib.sha256(), MAX_TOTAL
    for name in sorted(stats):
        content = b"-"
        if stats[name] is not None and not os.path.isdir(name):
            try:
                data = read_bounded(Path(name), left)
            except Unreadable as error:
                content = b"!" + str(error).encode()
            else:
                left -= len(data)
                content = b"=" + hashlib.sha256(data).digest()
        elif stats[name] is not None:
            content = b"/"
        for part in (os.fsencode(name), content):
            whole.update(len(part).to_bytes(8, "big") + part)
    return whole.digest()
