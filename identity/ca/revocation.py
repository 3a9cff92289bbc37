"""Taking an identity away before its certificate ends, and telling every proxy in a form it can check alone.

SVIDs are short, so a revocation needs no life beyond theirs: it is in force until everything issued so far has
expired, and renewal is refused for as long. ``what`` is a SPIFFE ID (all it holds), a serial, or the id of an
authority that was revoked by force (everything under it). Tainted authorities ride along: what they signed is
still good, but is to be renewed at once.

The list is signed by the issuing authority as a compact JWS with its chain in ``x5c``, and has an end: a proxy that
gets no newer list knows that it is cut off. Who verifies builds the path to the bundle with the rules of peers, so
only an authority of the trust domain can have signed; a workload's certificate cannot, it is no authority. A list
of a lower sequence than the one held is to be ignored (C-16).
"""

from __future__ import annotations

import base64
from datetime import datetime
from typing import TYPE_CHECKING

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import delete, func, insert, select, update

from identity.authority import Authority
from identity.ca import schema
from identity.ca.model import CallerFacts, CaSettings, NoSuchThing, NotAllowed, StoreUnavailable
from identity.revocations import ALGORITHMS, TYPE, Revocation, RevocationListError, Revocations, verify
from identity.spiffe import SpiffeId

if TYPE_CHECKING:
    from identity.ca.store import Reading, Writing

__all__ = ["Revocation", "RevocationListError", "Revocations", "sign", "verify"]


# -- the signed form ----------------------------------------------------------------------------------------


def sign(revocations: Revocations, authority: Authority, *, now: datetime, ttl: float) -> str:
    """The list as a compact JWS, good for ``ttl`` seconds. Raises StoreUnavailable for a key it cannot sign with."""
    key = authority.key
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StoreUnavailable("revocation lists are signed with P-256 or P-384 keys only")
    at = now.timestamp()
    claims = {
        "iss": str(SpiffeId.of(revocations.trust_domain)),
        "iat": int(at),
        "exp": int(min(at + ttl, authority.not_after.timestamp())),
        "seq": revocations.sequence,
        "entries": [[e.kind, e.what, e.reason, e.at, e.expires_at] for e in revocations.entries],
        "tainted": list(revocations.tainted),
    }
    x5c = [base64.b64encode(cert.public_bytes(Encoding.DER)).decode() for cert in authority.chain]
    return jwt.encode(claims, key, algorithm=ALGORITHMS[key.key_size], headers={"typ": TYPE, "x5c": x5c})


# -- in the store -------------------------------------------------------------------------------------------


def revoke(
    tx: Writing, trust_domain: str, what: SpiffeId | str, reason: str, settings: CaSettings, caller: CallerFacts
) -> Revocation:
    if isinstance(what, SpiffeId) or what.startswith("spiffe://"):
        spiffe_id = what if isinstance(what, SpiffeId) else SpiffeId.parse(what)
        if spiffe_id.trust_domain != trust_domain or not spiffe_id.path:
            raise NotAllowed(f"{spiffe_id} is not an identity that {trust_domain} issues")
        return revoke_id(tx, str(spiffe_id), reason, settings, caller)
    serial = what.lower().replace(":", "").lstrip("0")
    table = schema.issued
    row = tx.one(select(table.c.spiffe_id, table.c.not_after).where(table.c.serial == serial))
    if row is None or row.not_after <= tx.at:
        raise NoSuchThing(f"no certificate with serial {serial[:64]} is in use")
    return add(tx, Revocation("serial", serial, reason, tx.at, row.not_after), row.spiffe_id, caller)


def revoke_id(tx: Writing, spiffe_id: str, reason: str, settings: CaSettings, caller: CallerFacts) -> Revocation:
    table = schema.issued
    last = tx.connection.execute(select(func.max(table.c.not_after)).where(table.c.spiffe_id == spiffe_id)).scalar()
    end = max(last or 0.0, tx.at + settings.max_ttl)
    return add(tx, Revocation("id", spiffe_id, reason, tx.at, end), spiffe_id, caller)


def add(tx: Writing, revocation: Revocation, subject: str, caller: CallerFacts) -> Revocation:
    """Put it into force, in the place of an older one of the same thing."""
    table = schema.revocations
    tx.changes(delete(table).where(table.c.what == revocation.what))
    values = {name: getattr(revocation, name) for name in Revocation.__slots__}
    tx.changes(insert(table).values(values))
    # Who has lost his certificate holds the identity no longer: an exclusive one is free for its rightful machine.
    issued = schema.issued
    column = issued.c.spiffe_id if revocation.kind == "id" else issued.c.serial
    tx.changes(update(issued).where(column == revocation.what).values(superseded=True))
    tx.revocations_changed()
    facts = {"what": revocation.what, "of": revocation.kind, "until": revocation.expires_at}
    tx.record("revoked", subject, caller, reason=revocation.reason, **facts)
    return revocation


def unrevoke(tx: Writing, what: str, caller: CallerFacts) -> None:
    table = schema.revocations
    if tx.changes(delete(table).where(table.c.what == what)) == 0:
        raise NoSuchThing(f"{what[:200]} is not revoked")
    tx.revocations_changed()
    tx.record("unrevoked", what, caller)


def current(tx: Reading, trust_domain: str, now: datetime) -> Revocations:
    table, authorities = schema.revocations, schema.authorities
    rows = tx.rows(select(table).where(table.c.expires_at > now.timestamp()).order_by(table.c.at, table.c.what))
    entries = tuple(Revocation(row.kind, row.what, row.reason, row.at, row.expires_at) for row in rows)
    tainted = tx.rows(select(authorities.c.id).where(authorities.c.tainted.is_(True)).order_by(authorities.c.id))
    return Revocations(trust_domain, tx.head.revocation_sequence, entries, tuple(row.id for row in tainted))
