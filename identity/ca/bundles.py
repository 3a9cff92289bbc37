"""Bundles in the store: our own, made from the slots, and those of foreign trust domains as they were fetched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import delete, insert, select, update

from identity.ca import authorities, schema
from identity.ca.model import CallerFacts, Conflict, Federated, NoSuchThing, NotAllowed
from identity.ca.store import Reading, Writing
from identity.spiffe import check_trust_domain
from identity.svid import TrustBundle

_MAX_DOCUMENT: Final = 1024 * 1024  # bytes
_PUBLISHED: Final = ("prepared", "active", "old")


@dataclass(frozen=True, slots=True)
class OwnBundle:
    """Our trust domain's authorities. ``roots``: X.509, in the order of their making; ``jwt_keys``: by ``kid``;
    ``sequence``: moves with each change and never back; ``refresh_hint``: seconds."""

    trust_domain: str
    roots: tuple[x509.Certificate, ...] = field(repr=False)
    jwt_keys: Mapping[str, ec.EllipticCurvePublicKey] = field(repr=False)
    sequence: int
    refresh_hint: float

    @property
    def trust_bundle(self) -> TrustBundle:
        return TrustBundle(self.trust_domain, self.roots)

    @property
    def roots_der(self) -> tuple[bytes, ...]:
        return tuple(root.public_bytes(Encoding.DER) for root in self.roots)


def own_bundle(tx: Reading, trust_domain: str, refresh_hint: float) -> OwnBundle:
    rows = [row for row in authorities.rows(tx) if row.state in _PUBLISHED]
    roots = tuple(authorities.certificates(row.chain)[0] for row in rows if row.kind == "x509-root")
    keys = {row.id: authorities.public_key(row) for row in rows if row.kind == "jwt"}
    return OwnBundle(trust_domain, roots, keys, tx.head.bundle_sequence, refresh_hint)


# -- foreign trust domains ----------------------------------------------------------------------------------


def set_federated(
    tx: Writing,
    own: str,
    trust_domain: str,
    document: bytes,
    sequence: int,
    settings: Mapping[str, Any],
    caller: CallerFacts,
) -> None:
    if check_trust_domain(trust_domain) == own:
        raise NotAllowed(f"{own} is our own trust domain")
    if len(document) > _MAX_DOCUMENT:
        raise NotAllowed(f"the bundle of {trust_domain} is longer than 1 MiB")
    table = schema.federated
    before = tx.one(select(table.c.sequence).where(table.c.trust_domain == trust_domain))
    if before is not None and sequence < before.sequence:
        raise Conflict(f"the bundle of {trust_domain} would go back from {before.sequence} to {sequence}")
    values = {
        "sequence": sequence,
        "document": document.decode("utf-8"),
        "settings": json.dumps(dict(settings), sort_keys=True),
        "updated_at": tx.at,
    }
    if before is None:
        tx.changes(insert(table).values(trust_domain=trust_domain, **values))
    else:
        tx.changes(update(table).where(table.c.trust_domain == trust_domain).values(values))
    tx.touch()
    tx.record("federated_bundle_set", trust_domain, caller, sequence=sequence)


def delete_federated(tx: Writing, trust_domain: str, caller: CallerFacts) -> None:
    if tx.changes(delete(schema.federated).where(schema.federated.c.trust_domain == trust_domain)) != 1:
        raise NoSuchThing(f"there is no bundle of {trust_domain[:255]}")
    tx.touch()
    tx.record("federated_bundle_deleted", trust_domain, caller)


def federated(tx: Reading) -> dict[str, Federated]:
    return {
        row.trust_domain: Federated(
            row.trust_domain, row.document.encode(), row.sequence, json.loads(row.settings), row.updated_at
        )
        for row in tx.rows(select(schema.federated).order_by(schema.federated.c.trust_domain))
    }
