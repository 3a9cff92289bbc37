"""Issuing SVIDs: sign, then make the issuance durable, then give it out. In this order, always.

Signing needs no database and happens in the caller's thread. The signed certificate is a draft: it leaves this
module only after a transaction has found that every reason for it still holds and has written it down (C-18).
Drafts of concurrent callers share that transaction (``commit``). It checks, under the head's lock:

- the authority that signed is still the active one. Else the draft is thrown away and signed anew;
- neither the identity nor the caller is revoked or banned (C-13), the entry still says the same;
- the key is not an authority's, not another identity's, and not one whose certificate was revoked (C-4);
- an identity that one machine holds alone is not held with another key.

A draft that is refused is journaled as denied; the others of its transaction are not affected.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import Certificate
from sqlalchemy import case, insert, update

from identity import jwt_svid
from identity.authority import Authority, IssueError, sign_svid
from identity.ca import authorities, registry, revocation, schema
from identity.ca.admission import Admission
from identity.ca.commit import GroupCommit
from identity.ca.keys import KeyFolder, key_hash
from identity.ca.model import CallerFacts, CaSettings, Issued, NotAllowed, StoreUnavailable
from identity.ca.store import Store, Writing
from identity.spiffe import SpiffeId
from identity.x509_rules import PublicKey, SvidError

_MAX_AUDIENCES: Final = 32
_ATTEMPTS: Final = 3  # an authority is not replaced three times within one request


@dataclass(frozen=True, slots=True)
class X509Request:
    """See ``CaService.issue_x509``."""

    spiffe_id: SpiffeId
    public_key: PublicKey = field(repr=False)
    ttl: float | None
    dns_names: tuple[str, ...]
    entry_id: str
    caller: CallerFacts
    exclusive: bool = False
    replaces: str = ""


@dataclass(frozen=True, slots=True)
class Draft:
    """Something signed that nobody has seen yet. ``serial`` and ``key_hash`` are empty for a JWT."""

    kind: str
    spiffe_id: str
    caller: CallerFacts
    authority_id: str
    at: datetime
    not_after: float
    serial: str = ""
    key_hash: str = ""
    entry_id: str = ""
    exclusive: bool = False
    replaces: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class Stale(Exception):
    """The authority of a draft is no longer the active one."""


@dataclass(frozen=True, slots=True, eq=False)
class _Signer:
    id: str
    authority: Authority


class Issuing:
    """Signs with the active authorities of a store. Safe to use from many threads."""

    def __init__(self, store: Store, keys: KeyFolder, trust_domain: str, settings: CaSettings) -> None:
        self.settings = settings
        self._store = store
        self._keys = keys
        self._trust_domain = trust_domain
        self._rng = random.SystemRandom()
        self._commits: GroupCommit[Draft, Exception | None] = GroupCommit(self._commit)
        self._signer: _Signer | None = None  # as long as transactions find it active
        self._jwt_key_id = ""

    # -- X.509 ----------------------------------------------------------------------------------------------

    def x509(self, request: X509Request, now: datetime) -> Issued:
        outcome = self.x509_many([request], now)[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def x509_many(self, requests: Sequence[X509Request], now: datetime) -> list[Issued | Exception]:
        outcomes: dict[int, Issued | Exception] = {}
        for _ in range(_ATTEMPTS):
            self._attempt({n: r for n, r in enumerate(requests) if n not in outcomes}, now, outcomes)
            if len(outcomes) == len(requests):
                return [outcomes[number] for number in range(len(requests))]
        raise StoreUnavailable("the issuing authority is being replaced: try again")

    def _attempt(
        self, requests: dict[int, X509Request], now: datetime, outcomes: dict[int, Issued | Exception]
    ) -> None:
        """Fills ``outcomes``; what was signed by an authority that is no longer the active one is left out."""
        drafts: dict[int, tuple[Draft, tuple[Certificate, ...]]] = {}

        def make() -> list[Draft]:
            drafts.update(self._drafts(requests, now, outcomes))
            return [draft for draft, _ in drafts.values()]

        answers = self._commits.run(make)
        for (number, (draft, chain)), answer in zip(drafts.items(), answers, strict=True):
            if isinstance(answer, Stale):
                self._signer = None
            else:
                outcomes[number] = answer or Issued(chain, draft.not_after, draft.serial, draft.authority_id)

    def _drafts(
        self, requests: dict[int, X509Request], now: datetime, outcomes: dict[int, Issued | Exception]
    ) -> dict[int, tuple[Draft, tuple[Certificate, ...]]]:
        signer = self._active_signer()
        drafts = {}
        for number, request in requests.items():
            try:
                drafts[number] = self._draft(signer, request, now)
            except (IssueError, SvidError) as error:
                outcomes[number] = self._denied(request.spiffe_id, request.caller, str(error), now)
        return drafts

    def _denied(self, spiffe_id: SpiffeId, caller: CallerFacts, reason: str, now: datetime) -> NotAllowed:
        with self._store.write(now) as tx:
            tx.record("denied", str(spiffe_id), caller, reason=reason)
        return NotAllowed(reason)

    def _draft(self, signer: _Signer, request: X509Request, now: datetime) -> tuple[Draft, tuple[Certificate, ...]]:
        settings = self.settings
        ttl = settings.svid_ttl if request.ttl is None else request.ttl
        if not settings.min_ttl <= ttl <= settings.max_ttl:
            raise IssueError(f"a life of {ttl:g} s is not between {settings.min_ttl:g} and {settings.max_ttl:g} s")
        chain = sign_svid(
            signer.authority,
            request.spiffe_id,
            request.public_key,
            now=now,
            rng=self._rng,
            ttl=timedelta(seconds=ttl),
            dns_names=request.dns_names,
            min_ttl=timedelta(seconds=settings.min_ttl),
        )
        not_after = chain[0].not_valid_after_utc.timestamp()
        facts = {"ttl": ttl, **({"dns_names": request.dns_names} if request.dns_names else {})}
        draft = Draft(
            kind="x509-svid",
            spiffe_id=str(request.spiffe_id),
            caller=request.caller,
            authority_id=signer.id,
            at=now,
            not_after=not_after,
            serial=f"{chain[0].serial_number:x}",
            key_hash=key_hash(request.public_key),
            entry_id=request.entry_id,
            exclusive=request.exclusive,
            replaces=request.replaces,
            facts=facts,
        )
        return draft, chain

    def _active_signer(self) -> _Signer:
        signer = self._signer
        if signer is None:
            with self._store.read() as tx:
                row = authorities.active(tx, "x509-issuing")
            if row is None:
                raise StoreUnavailable("there is no issuing authority: import the answer to `sidewall ca csr` first")
            chain = tuple(authorities.certificates(row.chain))
            signer = _Signer(row.id, Authority(self._trust_domain, chain, self._keys.get(row.id)))
            self._signer = signer
        return signer

    # -- JWT ------------------------------------------------------------------------------------------------

    def jwt_svid(
        self, spiffe_id: SpiffeId, audiences: Sequence[str], ttl: float | None, caller: CallerFacts, now: datetime
    ) -> str:
        ttl = self.settings.jwt_ttl if ttl is None else ttl
        problem = self._jwt_problem(spiffe_id, audiences, ttl)
        if problem is not None:
            raise self._denied(spiffe_id, caller, problem, now)
        for _ in range(_ATTEMPTS):
            token, draft = self._jwt_draft(spiffe_id, audiences, ttl, caller, now)
            answer = self._commits.run(lambda draft=draft: [draft])[0]  # type: ignore[misc]
            if answer is None:
                return token
            if not isinstance(answer, Stale):
                raise answer
        raise StoreUnavailable("the JWT key is being replaced: try again")

    def _jwt_draft(
        self, spiffe_id: SpiffeId, audiences: Sequence[str], ttl: float, caller: CallerFacts, now: datetime
    ) -> tuple[str, Draft]:
        key_id, key, left = self._jwt_key(now)
        life = min(ttl, left)
        token, not_after = jwt_svid.sign(spiffe_id, audiences, key, key_id, now=now.timestamp(), ttl=life)
        facts: dict[str, Any] = {"audiences": list(audiences), "ttl": ttl}
        return token, Draft("jwt-svid", str(spiffe_id), caller, key_id, now, not_after, facts=facts)

    def _jwt_problem(self, spiffe_id: SpiffeId, audiences: Sequence[str], ttl: float) -> str | None:
        longest = self.settings.max_jwt_ttl
        if spiffe_id.trust_domain != self._trust_domain or not spiffe_id.path:
            return f"{spiffe_id} is not a workload of {self._trust_domain}"
        if not audiences or len(audiences) > _MAX_AUDIENCES or not all(audiences):
            return f"a JWT-SVID is for 1 to {_MAX_AUDIENCES} audiences"
        if not 1 <= ttl <= longest:
            return f"a life of {ttl:g} s is not between 1 and {longest:g} s"
        return None

    def _jwt_key(self, now: datetime) -> tuple[str, ec.EllipticCurvePrivateKey, float]:
        """The active key, its id, and the seconds that are left of its life."""
        with self._store.read() as tx:
            row = authorities.active(tx, "jwt")
        left = 0.0 if row is None else row.not_after - now.timestamp()
        if left < 1:
            raise StoreUnavailable("there is no JWT key that signs now: it is made at the next turn of rotation")
        key = self._keys.get(row.id)
        assert isinstance(key, ec.EllipticCurvePrivateKey)  # we made it
        return row.id, key, left

    def signed_revocations(self, now: datetime) -> str:
        signer = self._active_signer()
        with self._store.read() as tx:
            row = authorities.active(tx, "x509-issuing")
            if row is not None and row.id != signer.id:
                self._signer = None
            current = revocation.current(tx, self._trust_domain, now)
        signer = self._active_signer()
        return revocation.sign(current, signer.authority, now=now, ttl=3 * self.settings.refresh_hint)

    # -- the transaction ------------------------------------------------------------------------------------

    def _commit(self, drafts: Sequence[Draft]) -> list[Exception | None]:
        with self._store.write(max(draft.at for draft in drafts)) as tx:
            stale = _extend_authorities(tx, drafts)
            admission = Admission.of(tx, drafts)
            answers = [Stale() if d.authority_id in stale else self._judge(tx, admission, d) for d in drafts]
            _write_issued(tx, [d for d, answer in zip(drafts, answers, strict=True) if answer is None], admission)
        return answers

    def _judge(self, tx: Writing, admission: Admission, draft: Draft) -> Exception | None:
        reason = admission.refusal(draft)
        if reason is not None:
            tx.record("denied", draft.spiffe_id, draft.caller, reason=reason, key=draft.key_hash)
            return NotAllowed(reason)
        facts = {name: getattr(draft, name) for name in ("serial", "key_hash", "entry_id") if getattr(draft, name)}
        facts |= {"not_after": draft.not_after, "authority": draft.authority_id, **draft.facts}
        admission.admit(draft, tx.record(draft.kind, draft.spiffe_id, draft.caller, **facts))
        return None


def _extend_authorities(tx: Writing, drafts: Sequence[Draft]) -> set[str]:
    """Note until when each authority's signatures are in use. Gives those that may not sign any more."""
    table = schema.authorities
    stale = set()
    for authority_id in {draft.authority_id for draft in drafts}:
        end = max(draft.not_after for draft in drafts if draft.authority_id == authority_id)
        extend = update(table).where(table.c.id == authority_id, table.c.state == "active")
        last = case((table.c.last_leaf < end, end), else_=table.c.last_leaf)
        if tx.changes(extend.values(last_leaf=last)) != 1:
            stale.add(authority_id)
    return stale


def _write_issued(tx: Writing, drafts: Sequence[Draft], admission: Admission) -> None:
    rows = [
        {
            "serial": draft.serial,
            "spiffe_id": draft.spiffe_id,
            "authority_id": draft.authority_id,
            "holder": draft.caller.holder,
            "key_hash": draft.key_hash,
            "entry_id": draft.entry_id,
            "issued_at": draft.at.timestamp(),
            "not_after": draft.not_after,
            "superseded": not admission.is_newest(draft),
            "journal_seq": admission.records[draft.serial],
        }
        for draft in drafts
        if draft.serial
    ]
    table = schema.issued
    for draft in drafts:
        if draft.exclusive:
            others = (table.c.spiffe_id == draft.spiffe_id, table.c.key_hash != draft.key_hash)
            tx.changes(update(table).where(*others).values(superseded=True))
        if draft.serial and draft.caller.holder == f"node:{draft.spiffe_id}":  # its own: it lives so much longer
            registry.renewed_node(tx, draft.spiffe_id, draft.key_hash, draft.not_after)
    if rows:
        tx.connection.execute(insert(table), rows)
