"""Entries, join tokens and nodes in the store. Functions of a transaction; the rules of who may call are elsewhere.

A join token is 256 random bits. What is stored is its hash, so the database never holds anything that admits
somebody, and the look-up by hash takes the same time whatever was sent. It is used up by a DELETE that must find
exactly one row, in a transaction that holds the head: of any number of replicas that try, one succeeds (C-11).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Final

from sqlalchemy import delete, insert, select, update

from identity.ca import schema
from identity.ca.model import (
    CallerFacts,
    IssuedView,
    Node,
    NoSuchThing,
    NotAllowed,
    TokenView,
)
from identity.ca.store import Reading, Store, Writing
from identity.spiffe import SpiffeId

_MAX_PAGE: Final = 10_000
_MAX_TOKEN_LIFE: Final = 7 * 86400.0
_MAX_SECRET: Final = 256  # characters that are worth a hash
_TOKEN_ID: Final = 16  # characters of the hash that name a token


# -- tokens -------------------------------------------------------------------------------------------------


def create_token(tx: Writing, trust_domain: str, spiffe_id: SpiffeId, ttl: float, caller: CallerFacts) -> str:
    if spiffe_id.trust_domain != trust_domain or not spiffe_id.path:
        raise NotAllowed(f"{spiffe_id} is not an identity that {trust_domain} issues")
    if not 1 <= ttl <= _MAX_TOKEN_LIFE:
        raise NotAllowed(f"a token lives between 1 second and 7 days, not {ttl:g} s")
    secret = secrets.token_urlsafe(32)
    digest = _hash(secret)
    tx.changes(
        insert(schema.tokens).values(hash=digest, spiffe_id=str(spiffe_id), created_at=tx.at, expires_at=tx.at + ttl)
    )
    tx.record("token_created", str(spiffe_id), caller, token=digest[:_TOKEN_ID], ttl=ttl)
    return secret


def consume_token(store: Store, secret: str, source: str, now: Any) -> SpiffeId:
    """The refusal is journaled and therefore committed; so the error is raised after the transaction."""
    digest = _hash(secret[:_MAX_SECRET])
    caller = CallerFacts("token", digest[:_TOKEN_ID], source)
    with store.write(now) as tx:
        table = schema.tokens
        row = tx.one(select(table.c.spiffe_id, table.c.expires_at).where(table.c.hash == digest))
        won = tx.changes(delete(table).where(table.c.hash == digest)) == 1
        if row is not None and won and tx.at < row.expires_at:
            tx.record("token_used", row.spiffe_id, caller)
            return SpiffeId.parse(row.spiffe_id)
        reason = "unknown or used" if row is None or not won else "expired"
        tx.record("denied", "" if row is None else row.spiffe_id, caller, reason=f"join token {reason}")
    raise NotAllowed("the join token is not valid: it was used, has expired, or never was one")


def tokens(tx: Reading, now: float) -> list[TokenView]:
    table = schema.tokens
    rows = tx.rows(select(table).where(table.c.expires_at > now).order_by(table.c.created_at, table.c.hash))
    return [TokenView(row.hash[:_TOKEN_ID], row.spiffe_id, row.created_at, row.expires_at) for row in rows]


def delete_token(tx: Writing, token_id: str, caller: CallerFacts) -> None:
    table = schema.tokens
    if len(token_id) != _TOKEN_ID:
        raise NoSuchThing(f"a token is named by the {_TOKEN_ID} characters that the list shows")
    named = [row.hash for row in tx.rows(select(table.c.hash)) if row.hash.startswith(token_id)]
    if len(named) != 1 or tx.changes(delete(table).where(table.c.hash == named[0])) != 1:
        raise NoSuchThing(f"there is no unused token {token_id}")
    tx.record("token_deleted", "", caller, token=token_id)


def _hash(secret: str) -> str:
    return sha256(b"sidewall join token\0" + secret.encode(errors="replace")).hexdigest()


# -- nodes --------------------------------------------------------------------------------------------------


def record_node(
    tx: Writing,
    spiffe_id: str,
    how: str,
    selectors: Sequence[str],
    key_hash: str,
    machine_id: str,
    expires_at: float,
    caller: CallerFacts,
) -> Node:
    table = schema.nodes
    before = tx.one(select(table).where(table.c.spiffe_id == spiffe_id))
    if before is not None and before.banned:
        raise NotAllowed(f"{spiffe_id} is banned: {before.banned}")
    values = {
        "how": how,
        "selectors": json.dumps(sorted(selectors)),
        "key_hash": key_hash,
        "machine_id": machine_id,
        "attested_at": tx.at,
        "seen_at": tx.at,
        "expires_at": expires_at,
        "seen_sequence": before.seen_sequence if before is not None and before.key_hash == key_hash else 0,
        "banned": "",
    }
    if before is None:
        tx.changes(insert(table).values(spiffe_id=spiffe_id, **values))
    else:
        tx.changes(update(table).where(table.c.spiffe_id == spiffe_id).values(values))
    facts = {"how": how, "selectors": sorted(selectors), "key_hash": key_hash, "machine": machine_id}
    tx.record("node_attested", spiffe_id, caller, **facts)
    return node(tx, spiffe_id)


def renewed_node(tx: Writing, spiffe_id: str, key_hash: str, expires_at: float) -> None:
    """Its SVID was renewed: it is alive at least until ``expires_at``."""
    table = schema.nodes
    values = {"key_hash": key_hash, "expires_at": expires_at, "seen_at": tx.at}
    tx.changes(update(table).where(table.c.spiffe_id == spiffe_id).values(values))


def seen_bundle(tx: Writing, spiffe_id: str, sequence: int) -> None:
    table = schema.nodes
    mine = (table.c.spiffe_id == spiffe_id, table.c.seen_sequence < sequence)
    tx.changes(update(table).where(*mine).values(seen_sequence=min(sequence, tx.head.bundle_sequence), seen_at=tx.at))


def has_seen(tx: Reading, spiffe_id: str, sequence: int) -> bool:
    """Whether there is nothing to note (also for a node that is not known)."""
    table = schema.nodes
    row = tx.one(select(table.c.seen_sequence).where(table.c.spiffe_id == spiffe_id))
    return row is None or row.seen_sequence >= min(sequence, tx.head.bundle_sequence)


def node(tx: Reading, spiffe_id: str) -> Node:
    row = tx.one(select(schema.nodes).where(schema.nodes.c.spiffe_id == spiffe_id))
    if row is None:
        raise NoSuchThing(f"{spiffe_id} has not attested")
    return _node(row)


def nodes(tx: Reading, limit: int, after: str) -> list[Node]:
    table = schema.nodes
    query = select(table).where(table.c.spiffe_id > after).order_by(table.c.spiffe_id)
    return [_node(row) for row in tx.rows(query.limit(min(limit, _MAX_PAGE)))]


def nodes_of_machine(tx: Reading, machine_id: str) -> list[Node]:
    table = schema.nodes
    if not machine_id:
        return []
    query = select(table).where(table.c.machine_id == machine_id).order_by(table.c.spiffe_id)
    return [_node(row) for row in tx.rows(query.limit(_MAX_PAGE))]


def _node(row: Any) -> Node:
    values = {**row._mapping, "selectors": tuple(json.loads(row.selectors))}
    return Node(**values)


def ban(tx: Writing, spiffe_id: str, reason: str, caller: CallerFacts) -> None:
    table = schema.nodes
    if tx.changes(update(table).where(table.c.spiffe_id == spiffe_id).values(banned=reason or "by hand")) != 1:
        raise NoSuchThing(f"{spiffe_id} has not attested")
    tx.touch()
    tx.record("node_banned", spiffe_id, caller, reason=reason)


def unban(tx: Writing, spiffe_id: str, caller: CallerFacts) -> None:
    table = schema.nodes
    if tx.changes(update(table).where(table.c.spiffe_id == spiffe_id, table.c.banned != "").values(banned="")) != 1:
        raise NoSuchThing(f"{spiffe_id} is not banned")
    tx.changes(delete(schema.revocations).where(schema.revocations.c.what == spiffe_id))
    tx.revocations_changed()
    tx.record("node_unbanned", spiffe_id, caller)


def is_banned(tx: Reading, spiffe_id: str) -> bool:
    table = schema.nodes
    return tx.one(select(table.c.banned).where(table.c.spiffe_id == spiffe_id, table.c.banned != "")) is not None


def forget_node(tx: Writing, spiffe_id: str, caller: CallerFacts) -> None:
    if tx.changes(delete(schema.nodes).where(schema.nodes.c.spiffe_id == spiffe_id)) != 1:
        raise NoSuchThing(f"{spiffe_id} has not attested")
    tx.touch()
    tx.record("node_forgotten", spiffe_id, caller)


# -- certificates -------------------------------------------------------------------------------------------


def issued(tx: Reading, now: float, spiffe_id: str, limit: int, after: str) -> list[IssuedView]:
    table = schema.issued
    columns = [table.c[name] for name in IssuedView.__slots__]
    query = select(*columns).where(table.c.not_after > now, table.c.serial > after).order_by(table.c.serial)
    if spiffe_id:
        query = query.where(table.c.spiffe_id == spiffe_id)
    return [IssuedView(*row) for row in tx.rows(query.limit(min(limit, _MAX_PAGE)))]
