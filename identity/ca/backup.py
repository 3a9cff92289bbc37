"""Everything of an authority in one file, and back again.

The file is gzip over lines of JSON: a header, one line for each row of each table, one for each private key, and a
trailer with the number of lines and the SHA-256 of all bytes before it. It names tables and columns, not pages of a
database, so a backup of SQLite can be restored into PostgreSQL. The rows are of one moment (a snapshot), and the
keys of that moment are all there: keys are made before the rows that name them, and what is destroyed meanwhile is
named by no row after it.

Restoring goes back in time, and four things must not go back with it:

- join tokens are left out: one that was used up since would be good again;
- the bundle sequence jumps ahead, or nobody would take our bundles any more (C-16);
- authorities that sign may have signed since: their last leaf is taken to be as far away as possible;
- the journal goes on with a record of the restoration, and what was written since is lost: that is said there.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from sqlalchemy import delete, insert, select, update

from identity.ca import creation, journal, schema
from identity.ca.keys import KeyFolder
from identity.ca.model import CallerFacts, Conflict, StoreCorrupt
from identity.ca.store import Reading, Store
from identity.disk import IdentityFileError, make_private_folder, write_private
from identity.files import key_pem

FORMAT: Final = 1
_LEFT_OUT: Final = {"tokens"}
_JUMP: Final = 1 << 20  # bundle sequences: more than are published in a century
_MAX_LINE: Final = 4 * 1024 * 1024
_BATCH: Final = 1000


def write(
    store: Store, keys: KeyFolder, trust_domain: str, path: Path, passphrase: str | None, now: datetime
) -> list[str]:
    """Gives warnings. Raises IdentityFileError, StoreUnavailable."""
    header = {
        "sidewall_backup": FORMAT,
        "trust_domain": trust_domain,
        "schema": schema.VERSION,
        "at": now.timestamp(),
    }
    packed = io.BytesIO()
    digest, count = hashlib.sha256(), 0
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file, store.read(snapshot=True) as tx:
        for line in _lines(tx, keys, header, passphrase):
            data = json.dumps(line, sort_keys=True, separators=(",", ":")).encode() + b"\n"
            digest.update(data)
            file.write(data)
            count += 1
        file.write(json.dumps({"lines": count, "sha256": digest.hexdigest()}).encode() + b"\n")
    write_private(path, packed.getvalue())
    return _warnings(store, path, passphrase)


def _lines(tx: Reading, keys: KeyFolder, header: dict[str, Any], passphrase: str | None) -> Iterator[dict[str, Any]]:
    yield header
    for table in schema.metadata.sorted_tables:
        if table.name not in _LEFT_OUT:
            rows = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=_BATCH)
            for row in tx.connection.execute(rows):
                yield {"table": table.name, "row": dict(row._mapping)}
    for row in tx.rows(select(schema.authorities.c.id)):
        if keys.has(row.id):
            yield {"key": row.id, "pem": _sealed(keys, row.id, passphrase)}


def _sealed(keys: KeyFolder, authority_id: str, passphrase: str | None) -> str:
    key = keys.get(authority_id)
    if passphrase is None:
        return key_pem(key).decode()
    how = BestAvailableEncryption(passphrase.encode())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how).decode()


def _warnings(store: Store, path: Path, passphrase: str | None) -> list[str]:
    warnings = []
    if passphrase is None:
        warnings.append(f"{path} holds the private keys of the authority in clear: keep it as safe as the CA itself")
    with store.read() as tx:
        roots = [
            row.id for row in tx.rows(select(schema.authorities.c.id).where(schema.authorities.c.kind == "x509-root"))
        ]
    return warnings + [
        f"the key of root {root} is not in it: it is not on this machine" for root in roots if not _has(path, root)
    ]


def _has(path: Path, authority_id: str) -> bool:
    return any(line.get("key") == authority_id for line in _read(path))


# -- reading ------------------------------------------------------------------------------------------------


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a backup, without the trailer, which must fit. Raises StoreCorrupt, IdentityFileError."""
    digest, count = hashlib.sha256(), 0
    try:
        with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) as file:
            for data in _each_line(file):
                line = json.loads(data)
                if "sha256" in line:
                    if line != {"lines": count, "sha256": digest.hexdigest()} or file.read(1):
                        break
                    return
                digest.update(data)
                count += 1
                yield line
    except (EOFError, gzip.BadGzipFile, zlib.error, ValueError, TypeError, RecursionError):
        pass
    except OSError as error:
        raise IdentityFileError(path, error.strerror or "it cannot be read", "name a backup file") from None
    raise StoreCorrupt(f"{path} is no backup, or a damaged one: use another")


def _each_line(file: gzip.GzipFile | BinaryIO) -> Iterator[bytes]:
    while data := file.readline(_MAX_LINE):
        yield data


def check(path: Path) -> dict[str, Any]:
    """Read a backup to its end: the header. Raises StoreCorrupt, IdentityFileError."""
    lines = _read(path)
    header = next(lines, {})
    chain: list[tuple[int, str, str]] = []
    head: dict[str, Any] = {}
    for line in lines:
        if line.get("table") == "journal":
            chain.append((line["row"]["seq"], line["row"]["body"], line["row"]["hash"]))
        elif line.get("table") == "head":
            head = line["row"]
    if header.get("sidewall_backup") != FORMAT or header.get("schema") != schema.VERSION:
        raise StoreCorrupt(f"{path} was made by another version: restore it with that version, then upgrade")
    verdict = journal.check_chain(iter(chain), head.get("journal_seq", -1), head.get("journal_hash", ""))
    if not verdict.ok:
        raise StoreCorrupt(f"the journal in {path} is not whole: {verdict.problem}")
    return header


# -- restoring ----------------------------------------------------------------------------------------------


def restore(
    path: Path, folder: Path, store_url: str | None, passphrase: str | None, now: datetime, caller: CallerFacts
) -> None:
    header = check(path)
    opened = _open_keys(path, passphrase)
    make_private_folder(folder, must_be_empty=True)
    store = Store(store_url or creation.default_url(folder))
    try:
        store.migrate()
        _check_empty(store)
        keys = KeyFolder(folder)
        keys.make()
        for authority_id, key in opened:
            keys.put(authority_id, key)
        _restore_rows(path, store)
        settings = creation.read_settings(store)
        with store.write(now) as tx:
            tx.head.bundle_sequence += _JUMP
            tx.head.revocation_sequence += _JUMP
            tx.touch()
            table = schema.authorities
            tx.changes(update(table).where(table.c.kind != "x509-root").values(last_leaf=tx.at + settings.max_ttl))
            lost = {"backup_at": header["at"], "journal_until": tx.head.journal_seq}
            tx.record("restored", f"spiffe://{header['trust_domain']}", caller, **lost)
        creation.write_facts(folder, header["trust_domain"], store_url)
    finally:
        store.close()


def _open_keys(path: Path, passphrase: str | None) -> list[tuple[str, Any]]:
    """Before anything is written: a wrong passphrase leaves nothing behind. Raises Conflict."""
    password = None if passphrase is None else passphrase.encode()
    opened = []
    for line in _read(path):
        if "key" in line:
            try:
                opened.append((line["key"], load_pem_private_key(line["pem"].encode(), password=password)))
            except TypeError as error:
                wanted = "needs its passphrase" if passphrase is None else "is not protected by a passphrase"
                raise Conflict(f"{path} {wanted}") from error
            except ValueError:
                raise Conflict(f"the passphrase is not that of {path}") from None
    return opened


def _check_empty(store: Store) -> None:
    with store.read() as tx:
        if tx.head.journal_seq > 0:
            raise Conflict(f"{store.name} holds an authority already: name an empty database")


def _restore_rows(path: Path, store: Store) -> None:
    """All or nothing. The head comes from the backup whole, so this is not a write like others."""
    with store.restoring() as connection:
        found = connection.execute(select(schema.journal.c.seq).limit(1)).first()
        if found is not None:
            raise Conflict(f"{store.name} holds an authority already: name an empty database")
        for table in (schema.head, schema.meta):
            connection.execute(delete(table))
        pending: dict[str, list[dict[str, Any]]] = {}
        for line in _read(path):
            if "table" in line:
                rows = pending.setdefault(line["table"], [])
                rows.append(line["row"])
                if len(rows) >= _BATCH:
                    connection.execute(insert(schema.metadata.tables[line["table"]]), pending.pop(line["table"]))
        for name, rows in pending.items():
            connection.execute(insert(schema.metadata.tables[name]), rows)
