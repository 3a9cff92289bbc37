"""The rows of authorities: reading them, making them, and the questions that rotation asks about others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from sqlalchemy import func, insert, select

from identity.ca import schema
from identity.ca.keys import KeyFolder, key_hash
from identity.ca.model import AuthorityKind, AuthorityState, AuthorityView, StoreCorrupt
from identity.ca.slots import Audience, Slot
from identity.ca.store import Reading, Writing

_MAX_NAMED: Final = 20


def active(tx: Reading, kind: AuthorityKind) -> Any:
    """The row of the active authority of a kind, or None."""
    table = schema.authorities
    return tx.one(select(table).where(table.c.kind == kind, table.c.state == "active"))


def rows(tx: Reading) -> list[Any]:
    table = schema.authorities
    return tx.rows(select(table).order_by(table.c.kind.desc(), table.c.prepared_at, table.c.id))


def slots(tx: Reading) -> list[Slot]:
    return [slot(row) for row in rows(tx)]


def slot(row: Any) -> Slot:
    return Slot(**{name: getattr(row, name) for name in Slot.__slots__})


def views(tx: Reading, keys: KeyFolder) -> list[AuthorityView]:
    shared = [name for name in AuthorityView.__slots__ if name not in {"has_key", "certificate"}]
    return [
        AuthorityView(
            **{name: getattr(row, name) for name in shared}, has_key=keys.has(row.id), certificate=_der(row)
        )
        for row in rows(tx)
    ]


def _der(row: Any) -> bytes:
    if row.kind == "jwt":
        return public_key(row).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[no-any-return]
    if row.state == "requested":
        return x509.load_pem_x509_csr(row.chain.encode()).public_bytes(Encoding.DER)
    return certificates(row.chain)[0].public_bytes(Encoding.DER)


def certificates(pem: str) -> list[x509.Certificate]:
    """Raises StoreCorrupt: it was good when it was stored."""
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        raise StoreCorrupt("a certificate in the database cannot be read: restore it from a backup") from None


def public_key(row: Any) -> Any:
    """Of a JWT key's row. Raises StoreCorrupt."""
    try:
        return load_pem_public_key(row.chain.encode())
    except ValueError:
        raise StoreCorrupt("a JWT key in the database cannot be read: restore it from a backup") from None


def put(
    tx: Writing,
    authority_id: str,
    kind: AuthorityKind,
    state: AuthorityState,
    key: Any,
    chain: str,
    *,
    not_before: float,
    not_after: float,
    published_sequence: int,
    parent: str = "",
) -> None:
    """Insert an authority as of now. The database refuses a second one in the same state (Conflict)."""
    values = {
        "id": authority_id,
        "kind": kind,
        "state": state,
        "tainted": False,
        "key_hash": key_hash(key),
        "chain": chain,
        "parent": parent,
        "not_before": not_before,
        "not_after": not_after,
        "prepared_at": tx.at,
        "activated_at": tx.at if state == "active" else 0.0,
        "published_sequence": published_sequence,
    }
    tx.changes(insert(schema.authorities).values(values))
    tx.touch()


# -- who trusts, who presents -------------------------------------------------------------------------------


def audience(tx: Reading, sequence: int, now: float) -> Audience:
    """Living nodes (not banned, their SVID not over), and which of them hold a bundle older than ``sequence``."""
    table = schema.nodes
    living = (table.c.banned == "", table.c.expires_at > now)
    count = tx.count(select(func.count()).select_from(table).where(*living))
    late = select(table.c.spiffe_id).where(*living, table.c.seen_sequence < sequence).order_by(table.c.spiffe_id)
    return Audience(count, tuple(row.spiffe_id for row in tx.rows(late)))


def presenting(tx: Reading, authority_ids: Sequence[str], now: float) -> int:
    """Holders whose newest certificate, not yet expired, was signed by one of these."""
    table = schema.issued
    newest = (
        select(table.c.holder, table.c.spiffe_id, func.max(table.c.journal_seq).label("last"))
        .where(table.c.not_after > now)
        .group_by(table.c.holder, table.c.spiffe_id)
        .subquery()
    )
    query = select(func.count()).select_from(table).join(newest, newest.c.last == table.c.journal_seq)
    return tx.count(query.where(table.c.authority_id.in_(authority_ids), table.c.superseded.is_(False)))
