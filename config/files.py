"""Reading files: regular, bounded, UTF-8, each remembered for the digest and for the watch."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

MAX_FILE: Final = 4 * 1024 * 1024  # bytes
MAX_TOTAL: Final = 64 * 1024 * 1024  # bytes, of everything one configuration reads
MAX_FILES: Final = 10_000
MAX_FOLDERS: Final = 16  # levels of folders within folders

Complain = Callable[[str], None]


class Unreadable(Exception):
    """A file cannot be read; the text says why, without naming it."""


def read_bounded(path: Path, most: int = MAX_FILE) -> bytes:
    """The content of a regular file. A FIFO or device is refused: it could block, or never end.

    Raises Unreadable."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise Unreadable(_reason(error)) from None
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Unreadable("it is a folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "it is not a regular file")
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise Unreadable(_reason(error)) from None
    if len(data) > most:
        raise Unreadable(f"it is larger than {most // 1024} KiB")
    return data


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or "cannot be read").lower() if isinstance(error, OSError) else "its name is impossible"


class Files:
    """Everything one load has read."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._left = MAX_TOTAL
        self.watched: list[Path] = []  # files and folders whose change means another load
        self.read = 0

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def note(self, kind: str, name: str, content: bytes) -> None:
        """Something that decides the result: into the digest."""
        for part in (kind.encode(), os.fsencode(name), content):
            self._hash.update(len(part).to_bytes(8, "big") + part)

    def watch(self, path: Path) -> None:
        if path not in self.watched:
            self.watched.append(path)

    def text(self, path: Path, most: int = MAX_FILE) -> str:
        """The text of a file. Raises Unreadable."""
        data = read_bounded(path, min(most, self._left))
        self._left -= len(data)
        self.read += 1
        self.note("file", str(path), data)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Unreadable(f"it is not UTF-8 (byte {error.start + 1})") from None


def yaml_files(folder: Path, complain: Complain) -> list[Path]:
    """The *.yaml and *.yml below a folder, in order of name, without *.test.yaml and what begins with a dot.

    A ConfigMap's volume has its files as links through ``..data``: links to files are followed, to folders not."""
    found: list[Path] = []
    for path in _walk(folder, 0, complain):
        if len(found) == MAX_FILES:
            complain(f"it has more than {MAX_FILES} files")
            break
        found.append(path)
    return sorted(found)


def _walk(folder: Path, depth: int, complain: Complain) -> Iterator[Path]:
    if depth > MAX_FOLDERS:
        complain(f"it has folders nested deeper than {MAX_FOLDERS} levels")
        return
    try:
        entries: Iterable[os.DirEntry[str]] = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        complain(_reason(error) if depth == 0 else f"{folder}: {_reason(error)}")
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), depth + 1, complain)
        elif is_policy_file(entry.name):
            yield Path(entry.path)


def is_policy_file(name: str) -> bool:
    stem, dot, ending = name.rpartition(".")
    return bool(dot) and ending in {"yaml", "yml"} and not stem.endswith(".test")
