"""Private keys of the authorities: one file each, never in the database (C-1).

    FOLDER/keys/<authority id>.key        0600 in 0700, PKCS#8 PEM

Several replicas see the same folder, or the same files as a Secret mounted into each. A key is written before the
row that speaks of it: a crash in between leaves a file that nobody names (removed by ``sweep`` when it is old),
never a row without its key. A replica that does not find the key of a row cannot sign with it and says so.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from cryptography.x509 import SubjectKeyIdentifier

from identity.ca.model import StoreUnavailable
from identity.disk import (
    IdentityFileError,
    check_private_folder,
    make_private_folder,
    read_authority_key,
    write_private,
)
from identity.files import key_pem, parse_private_key
from identity.x509_rules import PrivateKey, PublicKey, public_key_der

_NAME: Final = re.compile(r"([0-9a-f]{32,64})\.key")
_HALF: Final = re.compile(r"\.[0-9a-f]{32,64}\.key\.[0-9a-f]{16}")  # what a crash leaves of ``write_private``
_ORPHAN_AGE: Final = 3600.0  # seconds; a replica that has written a key names it within a minute
_MAX_HELD: Final = 16  # keys in memory


class KeyFolder:
    """The folder ``keys`` of an authority. Keys that were read are held in memory; they never change."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys"
        self._lock = threading.Lock()
        self._held: dict[str, PrivateKey] = {}

    def make(self) -> None:
        """Raises IdentityFileError."""
        make_private_folder(self.path, must_be_empty=False)

    def check(self) -> None:
        """The folder and every key in it must be closed to others. Raises IdentityFileError."""
        check_private_folder(self.path)
        for path in self._files():
            read_authority_key(path)

    def has(self, authority_id: str) -> bool:
        return authority_id in self._held or self._file(authority_id).is_file()

    def get(self, authority_id: str) -> PrivateKey:
        """Raises StoreUnavailable when this replica does not have it, IdentityFileError when it may not be used."""
        with self._lock:
            key = self._held.get(authority_id)
        if key is not None:
            return key
        path = self._file(authority_id)
        if not path.exists():
            raise StoreUnavailable(
                f"the private key of authority {authority_id} is not in {self.path}: "
                "all replicas must share the folder; with an offline root, use `sidewall ca csr`"
            )
        key = parse_private_key(path, read_authority_key(path))
        with self._lock:
            if len(self._held) >= _MAX_HELD:
                self._held.clear()
            self._held[authority_id] = key
        return key

    def put(self, authority_id: str, key: PrivateKey) -> None:
        """Durable when it returns. Raises StoreUnavailable (disk full), IdentityFileError."""
        self._write(self._file(authority_id), key_pem(key))

    def put_pem(self, authority_id: str, pem: bytes) -> None:
        self._write(self._file(authority_id), pem)

    def destroy(self, authority_id: str) -> None:
        """Remove the file. What the disk keeps of it is out of our hands."""
        with self._lock:
            self._held.pop(authority_id, None)
        with contextlib.suppress(FileNotFoundError, PermissionError):
            os.unlink(self._file(authority_id))

    def ids(self) -> list[str]:
        """Of the keys in the folder."""
        return [path.stem for path in self._files()]

    def sweep(self, known: set[str], now: float) -> list[str]:
        """Remove keys that no row speaks of and that are older than an hour. Gives their ids. Half-written ones of
        that age go too, silently: nobody has ever heard of them."""
        for path in self._entries(_HALF):
            with contextlib.suppress(OSError):
                if now - path.stat().st_mtime > _ORPHAN_AGE:
                    path.unlink()
        gone = []
        for path in self._files():
            with contextlib.suppress(OSError):
                if path.stem not in known and now - path.stat().st_mtime > _ORPHAN_AGE:
                    self.destroy(path.stem)
                    gone.append(path.stem)
        return gone

    def _files(self) -> list[Path]:
        return self._entries(_NAME)

    def _entries(self, name: re.Pattern[str]) -> list[Path]:
        try:
            return sorted(path for path in self.path.iterdir() if name.fullmatch(path.name))
        except OSError as error:
            raise StoreUnavailable(f"{self.path}: {error.strerror}: the folder of keys cannot be read") from None

    def _file(self, authority_id: str) -> Path:
        name = f"{authority_id}.key"
        if _NAME.fullmatch(name) is None:
            raise ValueError("not the id of an authority")
        return self.path / name

    def _write(self, path: Path, data: bytes) -> None:
        try:
            write_private(path, data)
        except IdentityFileError as error:
            raise StoreUnavailable(f"a new key cannot be kept: {error}") from None


def authority_id(key: PublicKey) -> str:
    """The subject key identifier (RFC 5280 4.2.1.2, method 1) in hex: SPIRE's authority ID."""
    return SubjectKeyIdentifier.from_public_key(key).digest.hex()


def key_hash(key: Any) -> str:
    """Hex SHA-256 of a public key's DER SubjectPublicKeyInfo: how keys are compared and journaled."""
    return sha256(public_key_der(key)).hexdigest()
