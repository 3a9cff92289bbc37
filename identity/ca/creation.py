"""Making an authority and opening one. The folder:

    ca.db  keys/<authority id>.key  store.json  [offline-root.key offline-root.crt]

``store.json`` is written last and names the trust domain; a folder without it is an unfinished one, and ``create``
goes on where the last attempt ended: with the same key files where a row speaks of them, with new ones where not.
With PostgreSQL the first replica creates; the others find the database made and only open it.
"""

from __future__ import annotations

import json
import random
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import delete, insert, select

from identity import authority, files
from identity.ca import authorities, journal, making, schema
from identity.ca.keys import KeyFolder, authority_id
from identity.ca.model import (
    CallerFacts,
    CaSettings,
    Conflict,
    NoSuchThing,
    RootPlace,
    StoreCorrupt,
)
from identity.ca.store import Store, Writing
from identity.disk import (
    StrPath,
    check_private_folder,
    make_private_folder,
    read_authority_key,
    write_private,
)
from identity.files import certificates_pem, key_pem
from identity.spiffe import check_trust_domain
from identity.svid import TrustBundle
from identity.x509_rules import SvidError

_FACTS: Final = "store.json"
_TAIL: Final = 1000  # journal records that are verified at each start

Made = tuple[Store, KeyFolder, str, CaSettings]


def default_url(folder: Path) -> str:
    return f"sqlite:///{folder.absolute() / 'ca.db'}"


def create(
    folder: StrPath,
    trust_domain: str,
    store_url: str | None,
    now: datetime,
    settings: CaSettings | None,
    root: RootPlace,
    rng: random.Random | None,
    caller: CallerFacts,
) -> Made:
    check_trust_domain(trust_domain)
    path = Path(folder)
    make_private_folder(path, must_be_empty=False)
    if (path / _FACTS).exists():
        raise Conflict(f"there is an authority in {path} already")
    store = Store(store_url or default_url(path))
    try:
        store.migrate()
        keys = KeyFolder(path)
        keys.make()
        _fill(
            store, keys, path, trust_domain, settings or CaSettings(), root, rng or random.SystemRandom(), now, caller
        )
        write_facts(path, trust_domain, store_url)
        return store, keys, trust_domain, read_settings(store)
    except BaseException:
        store.close()
        raise


def write_facts(path: Path, trust_domain: str, store_url: str | None) -> None:
    facts = {"trust_domain": trust_domain, "is_default_store": store_url is None}
    write_private(path / _FACTS, json.dumps(facts, indent=2).encode() + b"\n")


def _fill(
    store: Store,
    keys: KeyFolder,
    path: Path,
    trust_domain: str,
    settings: CaSettings,
    root: RootPlace,
    rng: random.Random,
    now: datetime,
    caller: CallerFacts,
) -> None:
    """The first authorities, and the settings, in one transaction. A database that has them is another replica's, or
    our own of an attempt that ended before its end."""
    if (found := _trust_domain(store)) is not None:
        _check_same(found, trust_domain)
        return
    chain = _first_chain(path, keys, trust_domain, settings, root, rng, now)
    jwt = making.make("jwt", trust_domain, None, keys, settings, now=now, rng=rng)
    with store.write(now) as tx:
        if tx.one(select(schema.meta.c.value).where(schema.meta.c.name == "trust_domain")) is not None:
            return
        tx.changes(insert(schema.meta).values(name="trust_domain", value=trust_domain))
        write_settings(tx, settings, caller)
        for new in [*chain, jwt]:
            sequence = tx.head.bundle_sequence
            making.put(tx, new, "active", published_sequence=sequence)
        made = {new.kind: new.id for new in [*chain, jwt]}
        tx.record("created", f"spiffe://{trust_domain}", caller, root=root, authorities=sorted(made.values()))


def _check_same(found: str, trust_domain: str) -> None:
    if found != trust_domain:
        raise Conflict(f"the database is of the trust domain {found}, not {trust_domain}")


def _trust_domain(store: Store) -> str | None:
    with store.read() as tx:
        row = tx.one(select(schema.meta.c.value).where(schema.meta.c.name == "trust_domain"))
    return None if row is None else str(row.value)


def _first_chain(
    path: Path,
    keys: KeyFolder,
    trust_domain: str,
    settings: CaSettings,
    root: RootPlace,
    rng: random.Random,
    now: datetime,
) -> list[making.NewAuthority]:
    if (path / "ca.json").exists():
        return _take_over(path, keys, trust_domain, now)
    if root == "company":
        return []
    root_key, issuing_key = authority.new_key(), authority.new_key()
    cert = authority.create_root(trust_domain, root_key, now=now, rng=rng, life=settings.life("x509-root"))
    issuing = authority.create_issuing(
        cert, root_key, trust_domain, issuing_key.public_key(), now=now, rng=rng, life=settings.life("x509-issuing")
    )
    if root == "offline":
        write_private(path / "offline-root.key", key_pem(root_key))
        write_private(path / "offline-root.crt", certificates_pem([cert]))
    else:
        keys.put(authority_id(root_key.public_key()), root_key)
    keys.put(authority_id(issuing_key.public_key()), issuing_key)
    above = making.of_root(cert)
    return [above, making.of_issuing([issuing], above.id, None)]


def _take_over(path: Path, keys: KeyFolder, trust_domain: str, now: datetime) -> list[making.NewAuthority]:
    """The folder of an offline CA: its root, issuing authority and keys are taken as they are."""
    found = files.load_ca(path, now=now)
    _check_same(found.trust_domain, trust_domain)
    root = found.bundle.authorities[0]
    if (path / "root.key").exists():
        key = files.parse_private_key(path / "root.key", read_authority_key(path / "root.key"))
        keys.put(authority_id(key.public_key()), key)
    keys.put(authority_id(found.authority.key.public_key()), found.authority.key)
    above = making.of_root(root)
    return [above, making.of_issuing(list(found.authority.chain), above.id, None)]


# -- opening ------------------------------------------------------------------------------------------------


def open_existing(folder: StrPath, store_url: str | None, now: datetime) -> Made:
    path = Path(folder)
    if not (path / _FACTS).exists():
        raise NoSuchThing(f"there is no authority in {path}: make one with `sidewall ca init`")
    check_private_folder(path)
    keys = KeyFolder(path)
    keys.check()
    if store_url is None:
        _check_default_store(path)
    store = Store(store_url or default_url(path))
    try:
        store.check()
        store.migrate()
        _check_journal(store)
        trust_domain = _trust_domain(store)
        if trust_domain is None:
            raise StoreCorrupt(f"{store.name} holds no authority: restore it from a backup")
        _check_authorities(store, keys, trust_domain, now)
        return store, keys, trust_domain, read_settings(store)
    except BaseException:
        store.close()
        raise


def _check_default_store(path: Path) -> None:
    """That the database is where it is looked for: a missing one must not be made anew, and empty."""
    try:
        is_default = json.loads((path / _FACTS).read_bytes())["is_default_store"]
    except (OSError, ValueError, TypeError, KeyError):
        raise StoreCorrupt(f"{path / _FACTS} cannot be read: restore the folder from a backup") from None
    if not is_default:
        raise NoSuchThing(f"the database of the authority in {path} is not in the folder: name it with --store")
    if not (path / "ca.db").exists():
        raise StoreCorrupt(f"{path / 'ca.db'} is missing: restore it from a backup with `sidewall ca restore`")


def _check_journal(store: Store) -> None:
    verdict = journal.verify(store, tail=_TAIL)
    if not verdict.ok:
        raise StoreCorrupt(f"the journal is not whole ({verdict.problem}): restore the database from a backup")


def _check_authorities(store: Store, keys: KeyFolder, trust_domain: str, now: datetime) -> None:
    """Keys belong to their rows, and the active issuing authority is vouched for. Raises StoreCorrupt."""
    with store.read() as tx:
        rows = authorities.rows(tx)
    roots = tuple(authorities.certificates(row.chain)[0] for row in rows if row.kind == "x509-root")
    for row in rows:
        if keys.has(row.id) and authority_id(keys.get(row.id).public_key()) != row.id:
            raise StoreCorrupt(
                f"{keys.path}/{row.id}.key is another authority's key: restore the folder from a backup"
            )
        if row.kind == "x509-issuing" and row.state == "active" and row.not_after > now.timestamp() >= row.not_before:
            _check_vouched(row, keys, TrustBundle(trust_domain, roots), now)


def _check_vouched(row: Any, keys: KeyFolder, bundle: TrustBundle, now: datetime) -> None:
    chain = tuple(authorities.certificates(row.chain))
    if not keys.has(row.id):
        return  # this replica cannot sign; it says so when asked to
    signer = authority.Authority(bundle.trust_domain, chain, keys.get(row.id))
    try:
        authority.check_authority_path(signer, bundle, now=now)
    except SvidError as error:
        raise StoreCorrupt(f"the issuing authority does not fit the bundle ({error}): restore a backup") from None


# -- settings -----------------------------------------------------------------------------------------------


def read_settings(store: Store) -> CaSettings:
    with store.read() as tx:
        row = tx.one(select(schema.meta.c.value).where(schema.meta.c.name == "settings"))
    try:
        return CaSettings(**json.loads(row.value))
    except (AttributeError, TypeError, ValueError) as error:
        raise StoreCorrupt(f"the settings in the database cannot be used: {error}") from None


def write_settings(tx: Writing, settings: CaSettings, caller: CallerFacts) -> None:
    tx.changes(delete(schema.meta).where(schema.meta.c.name == "settings"))
    tx.changes(insert(schema.meta).values(name="settings", value=json.dumps(settings.as_json())))
    tx.touch()
    tx.record("settings", "", caller, **settings.as_json())
