"""The authority: one object for everything that `sidewall ca serve` and the `ca` commands do.

Synchronous and safe to call from many threads. Each public method is one transaction: what it changes and the
journal records of it are durable, together, when it returns, and nothing of it is when it raises (C-18). Several
replicas open the same database and the same key folder; none of them is special. A method decides by rows that
it reads inside its transaction, so two replicas cannot both consume a token or both rotate.

What is refused by a rule is journaled as well. ``now`` is an aware datetime; ``caller`` goes into the journal.

Errors, all of ``model.CaError``: NotAllowed, NoSuchThing, Conflict, UnsafeStep, StoreUnavailable (also: disk
full, so nothing is issued), StoreCorrupt. IdentityFileError comes from key files that are not closed enough.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from identity.ca import authorities, bundles, creation, journal, registry, revocation
from identity.ca import backup as backups
from identity.ca.issuing import Issuing, X509Request
from identity.ca.keys import KeyFolder
from identity.ca.model import (
    ITSELF,
    AuthorityKind,
    AuthorityView,
    CallerFacts,
    CaSettings,
    CaStatus,
    Federated,
    Issued,
    IssuedView,
    JournalRecord,
    JournalVerdict,
    RootPlace,
    RotationReport,
)
from identity.ca.registration import OPERATOR, Registration
from identity.ca.rotation import Rotation
from identity.ca.status import ca_status
from identity.ca.store import Store
from identity.disk import StrPath
from identity.spiffe import SpiffeId
from identity.x509_rules import PublicKey


class CaService(Registration):
    """See the module. Made by ``create`` or ``open``; ``close`` it, or use it as a context manager."""

    def __init__(self, store: Store, keys: KeyFolder, trust_domain: str, settings: CaSettings) -> None:
        super().__init__(store, trust_domain, settings)
        self._keys = keys
        self._issuing = Issuing(store, keys, trust_domain, settings)
        self._rotation = Rotation(store, keys, trust_domain, settings)

    @classmethod
    def create(
        cls,
        folder: StrPath,
        trust_domain: str,
        *,
        store_url: str | None = None,
        now: datetime,
        settings: CaSettings | None = None,
        root: RootPlace = "here",
        rng: random.Random | None = None,
        caller: CallerFacts = OPERATOR,
    ) -> CaService:
        """Make an authority in ``folder`` (0700; missing, empty, or one made by `ca init`, which is taken over).

        ``store_url``: ``sqlite:///PATH`` (default ``FOLDER/ca.db``) or ``postgresql+psycopg://...``. ``root``:
        "here"; "offline": its key is left in ``FOLDER/offline-root.key`` to be moved away; "company": there is none,
        and nothing is issued before ``csr`` and ``import_issuing``.
        Raises Conflict when there is one already, StoreUnavailable, IdentityFileError, SpiffeIdError."""
        made = creation.create(folder, trust_domain, store_url, now, settings, root, rng, caller)
        return cls(*made)

    @classmethod
    def open(cls, folder: StrPath, store_url: str | None = None, *, now: datetime) -> CaService:
        """Open what ``create`` made, after checking database, journal tail and key files. Migrates an older
        schema. Raises NoSuchThing, StoreCorrupt (damaged, or of a newer version), StoreUnavailable,
        IdentityFileError."""
        return cls(*creation.open_existing(folder, store_url, now))

    def close(self) -> None:
        """Close the connections. The object is of no use afterwards."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    # -- bundle ---------------------------------------------------------------------------------------------

    def bundle(self) -> bundles.OwnBundle:
        """Our own bundle: X.509 roots and JWT keys that are prepared, active or old; sequence; refresh hint."""
        with self._store.read() as tx:
            return bundles.own_bundle(tx, self.trust_domain, self.settings.refresh_hint)

    def set_federated(
        self,
        trust_domain: str,
        document: bytes,
        sequence: int,
        settings: Mapping[str, Any],
        *,
        now: datetime,
        caller: CallerFacts = OPERATOR,
    ) -> None:
        """Keep the bundle of a foreign trust domain (its JWKS document) and how it is fetched. A lower sequence
        than the one we hold is refused (C-16). Raises Conflict, NotAllowed (our own trust domain)."""
        with self._store.write(now) as tx:
            bundles.set_federated(tx, self.trust_domain, trust_domain, document, sequence, settings, caller)

    def delete_federated(self, trust_domain: str, *, now: datetime, caller: CallerFacts = OPERATOR) -> None:
        """Trust it no longer. Raises NoSuchThing."""
        with self._store.write(now) as tx:
            bundles.delete_federated(tx, trust_domain, caller)

    def federated(self) -> dict[str, Federated]:
        """Foreign bundles by trust domain name."""
        with self._store.read() as tx:
            return bundles.federated(tx)

    # -- issuing --------------------------------------------------------------------------------------------

    def issue_x509(
        self,
        spiffe_id: SpiffeId,
        public_key: PublicKey,
        *,
        ttl: float | None = None,
        dns_names: Sequence[str] = (),
        entry_id: str = "",
        caller: CallerFacts,
        now: datetime,
        exclusive: bool = False,
        replaces: str = "",
    ) -> Issued:
        """Issue an X509-SVID. ``ttl``: seconds, the settings' default; above max_ttl it is refused.

        The key must be neither an authority's nor one of another identity's live certificates (C-4); the identity
        neither revoked nor banned. ``exclusive``: for identities that only one machine may hold (agents): no other
        key may hold it now, but for ``replaces``, the key hash the caller has proven to own, which it then replaces.
        A caller that got no answer asks again **with the same key**. Concurrent calls share one durable transaction.
        Raises NotAllowed, StoreUnavailable."""
        request = X509Request(spiffe_id, public_key, ttl, tuple(dns_names), entry_id, caller, exclusive, replaces)
        return self._issuing.x509(request, now)

    def issue_many(self, requests: Sequence[X509Request], now: datetime) -> list[Issued | Exception]:
        """The same for several at once (BatchNewX509SVID), in one transaction; each has its own outcome."""
        return self._issuing.x509_many(requests, now)

    def issue_jwt(
        self,
        spiffe_id: SpiffeId,
        audiences: Sequence[str],
        *,
        ttl: float | None = None,
        caller: CallerFacts,
        now: datetime,
    ) -> str:
        """Issue a JWT-SVID (ES256). Raises NotAllowed, StoreUnavailable."""
        return self._issuing.jwt_svid(spiffe_id, audiences, ttl, caller, now)

    def record_denial(self, subject: str, reason: str, *, caller: CallerFacts, now: datetime) -> None:
        """Journal that somebody was refused outside of here (attestation, authorization, rate)."""
        with self._store.write(now) as tx:
            tx.record("denied", subject, caller, reason=reason)

    def issued(self, *, now: datetime, spiffe_id: str = "", limit: int = 100, after: str = "") -> list[IssuedView]:
        """Certificates that have not expired, ordered by serial; ``after``: the last serial of the page before."""
        with self._store.read() as tx:
            return registry.issued(tx, now.timestamp(), spiffe_id, limit, after)

    # -- rotation -------------------------------------------------------------------------------------------

    def tick(self, now: datetime) -> list[str]:
        """Do what is due: prepare, activate, remove, prune. Sentences for what *this* replica did. Call it each
        few seconds on each replica. Raises StoreUnavailable."""
        return self._rotation.tick(now)

    def rotation_status(self, now: datetime) -> dict[AuthorityKind, RotationReport]:
        """For each kind, what the next step is, when, and who would not trust it yet."""
        return self._rotation.status(now)

    def prepare_authority(
        self,
        kind: AuthorityKind,
        *,
        force: bool = False,
        dry_run: bool = False,
        now: datetime,
        caller: CallerFacts = OPERATOR,
    ) -> RotationReport:
        """Make the next authority and publish it. Raises Conflict when there is one, UnsafeStep."""
        return self._rotation.step("prepare", kind, "", force, dry_run, now, caller)

    def activate_authority(
        self,
        kind: AuthorityKind,
        *,
        force: bool = False,
        dry_run: bool = False,
        now: datetime,
        caller: CallerFacts = OPERATOR,
    ) -> RotationReport:
        """Sign with the prepared one from now on. Unsafe before two refresh intervals have passed, or while a living
        node has not seen it. Raises NoSuchThing, UnsafeStep."""
        return self._rotation.step("activate", kind, "", force, dry_run, now, caller)

    def taint_authority(
        self,
        kind: AuthorityKind,
        *,
        authority_id: str = "",
        force: bool = False,
        dry_run: bool = False,
        now: datetime,
        caller: CallerFacts = OPERATOR,
    ) -> RotationReport:
        """Everything signed by the old authority (newest by default) must be renewed at once. Unsafe while a living
        node does not trust the active one. Raises NoSuchThing, Conflict (it is active), UnsafeStep."""
        return self._rotation.step("taint", kind, authority_id, force, dry_run, now, caller)

    def revoke_authority(
        self,
        kind: AuthorityKind,
        *,
        authority_id: str = "",
        force: bool = False,
        dry_run: bool = False,
        now: datetime,
        caller: CallerFacts = OPERATOR,
    ) -> RotationReport:
        """Take an old authority out of the bundle and destroy its key. Unsafe while anybody presents what it
        signed. Raises NoSuchThing, Conflict (it is active), UnsafeStep."""
        return self._rotation.step("revoke", kind, authority_id, force, dry_run, now, caller)

    def authorities(self) -> list[AuthorityView]:
        """All slots, by kind and age."""
        with self._store.read() as tx:
            return authorities.views(tx, self._keys)

    def csr(self, *, now: datetime, caller: CallerFacts = OPERATOR) -> bytes:
        """PEM of a request for an issuing authority, with a new key that stays here; for an offline or a company
        root. A request that was not answered yet is given again."""
        return self._rotation.csr(now, caller)

    def import_issuing(self, chain_pem: bytes, *, now: datetime, caller: CallerFacts = OPERATOR) -> RotationReport:
        """Take the answer to ``csr``: the issuing certificate, intermediates, and the root last. Key, names,
        constraints and the whole path are checked. It becomes active at once when there is none, else prepared.
        Raises NotAllowed with the reason, NoSuchThing (no request of ours)."""
        return self._rotation.import_issuing(chain_pem, now, caller)

    # -- revocation -----------------------------------------------------------------------------------------

    def revoke(
        self, what: SpiffeId | str, reason: str, *, now: datetime, caller: CallerFacts = OPERATOR
    ) -> revocation.Revocation:
        """Revoke an identity (all it holds, and it gets nothing new) or one certificate (hex serial) until everything
        issued so far has expired. Raises NoSuchThing (unknown serial), NotAllowed (a foreign trust domain)."""
        with self._store.write(now) as tx:
            return revocation.revoke(tx, self.trust_domain, what, reason, self.settings, caller)

    def unrevoke(self, what: SpiffeId | str, *, now: datetime, caller: CallerFacts = OPERATOR) -> None:
        """Take a revocation back. Raises NoSuchThing."""
        with self._store.write(now) as tx:
            revocation.unrevoke(tx, str(what), caller)

    def revocations(self, now: datetime) -> revocation.Revocations:
        """What is revoked now, and which authorities are tainted."""
        with self._store.read() as tx:
            return revocation.current(tx, self.trust_domain, now)

    def signed_revocations(self, now: datetime) -> str:
        """The same as a compact JWS under the issuing authority; ``revocation.verify`` reads it. It is good for
        three refresh intervals. Raises StoreUnavailable when there is no key to sign with."""
        return self._issuing.signed_revocations(now)

    # -- changes, journal, status ---------------------------------------------------------------------------

    def changed(self) -> int:
        """A counter that moves with every change of entries, nodes' bans, authorities, bundles and revocations, on
        any replica; not with each issuance."""
        return self._store.changed()

    def wait_change(self, seen: int, timeout: float) -> int:
        """Wait until the counter is not ``seen``, at most ``timeout`` seconds; gives it. Blocks its thread."""
        return self._store.wait_change(seen, timeout)

    def log(self, *, since: int = 0, limit: int = 1000) -> list[JournalRecord]:
        """Journal records after ``since``, in order. To follow, ask again with the last ``seq``."""
        with self._store.read() as tx:
            return journal.records(tx.connection, since, limit)

    def journal_head(self) -> tuple[int, str]:
        """The last sequence number and hash; keep a copy elsewhere to notice a rewritten journal."""
        with self._store.read() as tx:
            return tx.head.journal_seq, tx.head.journal_hash

    def verify_journal(self) -> JournalVerdict:
        """Recompute the whole chain. Reads in pages: other work goes on."""
        return journal.verify(self._store)

    def record(self, kind: str, subject: str, *, caller: CallerFacts, now: datetime, **facts: Any) -> None:
        """Journal something that only the server knows (admin acts, attestation). No secrets."""
        with self._store.write(now) as tx:
            tx.record(kind, subject, caller, **facts)

    def status(self, now: datetime) -> CaStatus:
        """What `ca status` shows."""
        with self._store.read() as tx:
            return ca_status(tx, self._keys, self.trust_domain, self._store.name, self.settings, now)

    def change_settings(self, settings: CaSettings, *, now: datetime, caller: CallerFacts = OPERATOR) -> None:
        """New lives and thresholds, for what is made from now on. Other replicas take them at their next start."""
        with self._store.write(now) as tx:
            creation.write_settings(tx, settings, caller)
        self.settings = self._issuing.settings = self._rotation.settings = settings

    # -- backup ---------------------------------------------------------------------------------------------

    def backup(
        self, path: StrPath, *, passphrase: str | None = None, now: datetime, caller: CallerFacts = OPERATOR
    ) -> list[str]:
        """Write everything, private keys too, into one file of mode 0600; keys are encrypted when there is a
        passphrase. Gives warnings for the operator. Raises IdentityFileError, StoreUnavailable."""
        with self._store.write(now) as tx:
            tx.record("backup", "", caller, file=Path(path).name, encrypted=passphrase is not None)
        return backups.write(self._store, self._keys, self.trust_domain, Path(path), passphrase, now)

    @classmethod
    def restore(
        cls,
        path: StrPath,
        folder: StrPath,
        *,
        store_url: str | None = None,
        passphrase: str | None = None,
        now: datetime,
        caller: CallerFacts = OPERATOR,
    ) -> CaService:
        """Make an authority from a backup, in an empty folder and database (SQLite or PostgreSQL, whichever it came
        from). The journal is verified. Join tokens are not restored, the bundle sequence jumps ahead of everything
        published since. Raises StoreCorrupt, Conflict, IdentityFileError."""
        backups.restore(Path(path), Path(folder), store_url, passphrase, now, caller)
        return cls.open(folder, store_url, now=now)


__all__ = ["ITSELF", "OPERATOR", "CaService", "CallerFacts"]
