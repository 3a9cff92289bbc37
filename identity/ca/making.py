"""New authorities: key first (durable), then certificate, then the row. Used by rotation and by ``ca init``."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from identity import authority
from identity.ca import authorities
from identity.ca.keys import KeyFolder, authority_id
from identity.ca.model import AuthorityKind, AuthorityState, CaSettings
from identity.ca.store import Writing
from identity.files import certificates_pem


@dataclass(frozen=True, slots=True, eq=False)
class NewAuthority:
    """What will become a row. ``chain``: PEM as the table keeps it; ``published_sequence`` None: when it is put."""

    id: str
    kind: AuthorityKind
    public_key: Any = field(repr=False)
    chain: str = field(repr=False)
    not_before: float
    not_after: float
    parent: str = ""
    published_sequence: int | None = None


def make(
    kind: AuthorityKind,
    trust_domain: str,
    root: Any,
    keys: KeyFolder,
    settings: CaSettings,
    *,
    now: datetime,
    rng: random.Random,
) -> NewAuthority:
    """A new key in ``keys`` and what belongs to it. ``root``: the row of the root above an issuing authority.
    Raises IssueError, StoreUnavailable."""
    key = authority.new_key()
    new_id = authority_id(key.public_key())
    if kind == "jwt":
        pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        at = now.timestamp()
        made = NewAuthority(new_id, kind, key.public_key(), pem, at, at + settings.jwt_life)
    elif kind == "x509-root":
        made = of_root(authority.create_root(trust_domain, key, now=now, rng=rng, life=settings.life(kind)))
    else:
        above = authorities.certificates(root.chain)[0]
        cert = authority.create_issuing(
            above, keys.get(root.id), trust_domain, key.public_key(), now=now, rng=rng, life=settings.life(kind)
        )
        made = of_issuing([cert], root.id, root.published_sequence)
    keys.put(new_id, key)
    return made


def of_root(cert: x509.Certificate) -> NewAuthority:
    key: Any = cert.public_key()
    begin, end = _life(cert)
    return NewAuthority(authority_id(key), "x509-root", key, certificates_pem([cert]).decode(), begin, end)


def of_issuing(chain: list[x509.Certificate], root_id: str, published_sequence: int | None) -> NewAuthority:
    """``chain``: the issuing certificate, then those up to, without, the root."""
    key: Any = chain[0].public_key()
    begin, _ = _life(chain[0])
    end = min(cert.not_valid_after_utc.timestamp() for cert in chain)
    pem = certificates_pem(chain).decode()
    return NewAuthority(authority_id(key), "x509-issuing", key, pem, begin, end, root_id, published_sequence)


def _life(cert: x509.Certificate) -> tuple[float, float]:
    """Without the backdating, which is for others' clocks and not for ours."""
    begin = cert.not_valid_before_utc + authority.BACKDATE
    return begin.timestamp(), cert.not_valid_after_utc.timestamp()


def put(tx: Writing, new: NewAuthority, state: AuthorityState, *, published_sequence: int | None = None) -> None:
    """Make the row. Roots and JWT keys enter the bundle with it. ``published_sequence``: of an issuing authority
    whose root is made in the same transaction."""
    sequence = published_sequence if new.published_sequence is None else new.published_sequence
    if new.kind != "x509-issuing":
        sequence = tx.bundle_changed()
    authorities.put(
        tx,
        new.id,
        new.kind,
        state,
        new.public_key,
        new.chain,
        not_before=new.not_before,
        not_after=new.not_after,
        published_sequence=sequence or 0,
        parent=new.parent,
    )
