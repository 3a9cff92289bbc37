"""Files with private keys in them: which are good enough to read, and how they are written.

Private keys are the reason for the care (C-1). Those of the CA must be plain files of mode 0600 or stricter
in a folder of mode 0700 or stricter, owned by who runs us, and no symbolic links. What is checked is the
opened file (fstat), so that it cannot be changed between the look and the use. Everything is written to a
temporary name, flushed to the disk, renamed, and the folder flushed: after a crash there is the old file or
the new one, never a half.

A workload's key may also come out of a Kubernetes volume. There each name is a link through ``..data`` to a
folder of the current generation, root owns the files, and ``fsGroup`` gives our group the right to read. So
exactly that is accepted for workload keys: a link that begins with ``..data/``, an owner that is root or we
ourselves, and reading by the group. Readable by everybody is refused also there (``defaultMode: 0440``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

StrPath = str | os.PathLike[str]

MAX_KEY: Final = 64 * 1024  # bytes
MAX_CERTIFICATES: Final = 1024 * 1024  # bytes; a bundle of hundreds of authorities
_GROUP_OR_WORLD: Final = 0o077


class IdentityFileError(Exception):
    """A file or folder cannot be used. ``problem`` says what is wrong, ``hint`` what to do about it."""

    def __init__(self, path: StrPath, problem: str, hint: str) -> None:
        super().__init__(f"{os.fspath(path)}: {problem} ({hint})")
        self.path = os.fspath(path)
        self.problem = problem
        self.hint = hint


def read_file(path: StrPath, limit: int = MAX_CERTIFICATES) -> bytes:
    """The bytes of a file without secrets, at most ``limit``. Raises IdentityFileError."""
    return _read(path, limit)


def read_authority_key(path: StrPath) -> bytes:
    """The bytes of a key of the CA (C-1): a plain file, ours, closed to everybody else. Raises
    IdentityFileError."""
    return _read(path, MAX_KEY, check=_check_own_key, follow=False)


def read_workload_key(path: StrPath) -> bytes:
    """The bytes of a workload's key: as strict, or in a Kubernetes volume. Raises IdentityFileError."""
    if _is_volume_link(path):
        return _read(path, MAX_KEY, check=_check_volume_key)
    return _read(path, MAX_KEY, check=_check_own_key, follow=False)


def check_private_folder(path: Path) -> None:
    """A folder for keys: a real folder, ours, closed to everybody else (C-1). Raises IdentityFileError."""
    try:
        found = os.lstat(path)
    except OSError as error:
        raise _os_error(path, error) from None
    if not stat.S_ISDIR(found.st_mode):
        raise IdentityFileError(path, "it is not a folder, or a symbolic link", "name the folder itself")
    _check_owner(path, found)
    if found.st_mode & _GROUP_OR_WORLD:
        raise IdentityFileError(path, "others may enter the folder", f"chmod 700 {path}")


_Check = Callable[[StrPath, os.stat_result], None]


def _read(path: StrPath, limit: int, *, check: _Check | None = None, follow: bool = True) -> bytes:
    # O_NONBLOCK: a FIFO in the place of a file must not make us wait for its writer.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise IdentityFileError(path, "it is not a file", "name a file")
            if check is not None:
                check(path, found)
            data = _read_fd(fd, limit + 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise _os_error(path, error) from None
    if len(data) > limit:
        raise IdentityFileError(path, f"it is longer than {limit} bytes", "is it the right file?")
    if not data:
        raise IdentityFileError(path, "it is empty", "write it again")
    return data


def _read_fd(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := os.read(fd, size - len(data))):
        data += more
    return data


def _os_error(path: StrPath, error: OSError) -> IdentityFileError:
    if isinstance(error, FileNotFoundError):
        return IdentityFileError(path, "it does not exist", "check the path")
    if isinstance(error, PermissionError):
        return IdentityFileError(path, "it may not be read", f"give user {os.geteuid()} access")
    if error.errno == errno.ELOOP:  # what O_NOFOLLOW says about a link
        return IdentityFileError(path, "it is a symbolic link", "name the key file itself")
    return IdentityFileError(path, error.strerror or str(error), "check the path and the disk")


def _is_volume_link(path: StrPath) -> bool:
    try:
        return os.readlink(path).startswith("..data/")
    except OSError:
        return False


def _check_own_key(path: StrPath, found: os.stat_result) -> None:
    _check_owner(path, found)
    if found.st_mode & _GROUP_OR_WORLD:
        raise IdentityFileError(path, "others may read the key", f"chmod 600 {os.fspath(path)}")


def _check_volume_key(path: StrPath, found: os.stat_result) -> None:
    if found.st_uid != 0:
        _check_owner(path, found)
    if found.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise IdentityFileError(
            path, "everybody in the pod may read the key", "set defaultMode: 0440 and fsGroup on the volume"
        )


def _check_owner(path: StrPath, found: os.stat_result) -> None:
    us = os.geteuid()
    if found.st_uid != us:
        raise IdentityFileError(
            path, f"it belongs to user {found.st_uid}", f"it must belong to user {us}, who runs this"
        )


def write_private(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``, mode 0600, so that a crash leaves the old or the new. Raises
    IdentityFileError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write_new(temporary, data)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise _write_error(path, error) from None


def _write_new(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_private_folder(path: Path, *, must_be_empty: bool) -> None:
    """Make ``path`` with mode 0700, or take it as it is when it is as closed. Raises IdentityFileError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_empty = not any(path.iterdir())
    except OSError as error:
        raise _write_error(path, error) from None
    check_private_folder(path)
    if must_be_empty and not is_empty:
        raise IdentityFileError(path, "the folder is not empty", "choose a new folder for the CA")


def _write_error(path: Path, error: OSError) -> IdentityFileError:
    return IdentityFileError(path, f"it cannot be written: {error.strerror}", "check the disk and the access")
