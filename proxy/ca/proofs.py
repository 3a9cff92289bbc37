"""Who somebody is who has no valid SVID of ours: one function for each kind of proof (``identity.ca_api``).

Each gives an ``Attested`` or raises Refused. What differs between them is who may hold the identity at one time:

    join_token    one machine; nobody else until its SVID has ended, or was revoked by serial, or it has left
    expired_svid  the machine that held it, because it has the key
    unix_peer     whoever has the rights on this machine; several processes may hold the same identity
    k8s_token     every pod of the service account

An identity that a machine holds by a token is not given to others by a weaker proof while it is in use.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final, Protocol

import trio
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from identity.attest.proc import AttestationError
from identity.ca.keys import key_hash
from identity.ca_api import own_parent
from identity.rpc import Caller, RpcError, Status
from identity.spiffe import SpiffeId, SpiffeIdError
from identity.svid import SvidError
from identity.x509_rules import PublicKey, build_path, check_leaf, public_key_der
from proxy.ca.denials import host_of
from proxy.ca.desk import EXCLUSIVE, Desk
from proxy.ca.documents import certificates_of
from proxy.ca.entitled import Entitlement, entitled
from proxy.ca.holders import node_or_none
from proxy.ca.peers import selectors_of
from proxy.ca.work import Refused, now

_NONCE: Final = 32  # bytes
_NONCE_LIFE: Final = 60.0  # seconds
_NONCES: Final = 1000


@dataclass(frozen=True, slots=True)
class Attested:
    """Who it is, how that was shown, and what else is known. ``replaces``: hash of the key it has proven to own."""

    spiffe_id: SpiffeId
    how: str
    selectors: tuple[str, ...] = ()
    replaces: str = ""
    entitlement: Entitlement | None = None
    detail: str = ""

    @property
    def is_exclusive(self) -> bool:
        return self.how in EXCLUSIVE


class PodFacts(Protocol):
    """What a Kubernetes token has told (``identity.attest.kubernetes``)."""

    def selectors(self) -> Iterable[str]: ...


class TokenVerifier(Protocol):
    """Judges Kubernetes tokens: by the cluster's API server, or by its keys."""

    async def verify(self, token: str) -> PodFacts:
        """Raises RpcError: PERMISSION_DENIED for a token that is not good, UNAVAILABLE when it cannot be told."""
        ...


# -- join token ---------------------------------------------------------------------------------------------


async def by_join_token(desk: Desk, caller: Caller, secret: str) -> Attested:
    """C-11. What was wrong is not told; five wrong ones a minute from one address."""
    host = host_of(caller)
    desk.rates.token_failures.check(host, trio.current_time())
    spiffe_id = await desk.work.ask(lambda: desk.service.consume_token(secret, source=caller.address, now=now()))
    desk.rates.token_failures.give_back(host)
    return Attested(desk.may_be_issued(spiffe_id), "join_token")


# -- Unix peer ----------------------------------------------------------------------------------------------


async def by_unix_peer(desk: Desk, caller: Caller, wish: str) -> Attested:
    """The user that owns the authority's keys may be anybody; others what the entries say."""
    local = caller.local
    if local is None:
        raise Refused("unix_peer is for callers on the authority's Unix socket", Status.INVALID_ARGUMENT)
    if local.uid == os.geteuid() and wish:
        spiffe_id = desk.may_be_issued(_parsed(wish))
        await _check_free(desk, spiffe_id, "unix_peer")
        return Attested(spiffe_id, "unix_peer", detail=f"uid={local.uid}")
    documents = await _own_entries(desk)
    hash_exe = any(one.startswith("unix:sha256:") for document in documents for one in document["selectors"])
    try:
        selectors = await trio.to_thread.run_sync(partial(selectors_of, local, hash_exe=hash_exe))
    except AttestationError as error:
        raise Refused(f"the calling process cannot be looked at: {error}") from None
    return await _by_entry(desk, "unix_peer", documents, selectors, wish)


# -- Kubernetes ---------------------------------------------------------------------------------------------


async def by_k8s_token(desk: Desk, verifier: TokenVerifier | None, token: str, wish: str) -> Attested:
    """C-12."""
    if verifier is None:
        raise Refused("this authority takes no Kubernetes tokens", Status.FAILED_PRECONDITION)
    try:
        facts = await verifier.verify(token)
    except RpcError as error:
        raise Refused(error.message, error.status) from None
    return await _by_entry(desk, "k8s_token", await _own_entries(desk), frozenset(facts.selectors()), wish)


async def _own_entries(desk: Desk) -> list[dict[str, Any]]:
    parent = own_parent(desk.trust_domain)
    return await desk.work.ask(lambda: desk.service.entries_under(parent))


async def _by_entry(
    desk: Desk, how: str, documents: list[dict[str, Any]], selectors: frozenset[str], wish: str
) -> Attested:
    """The identity of the entry below ``own_parent`` that fits; of several the one that is wished for."""
    fitting = [one for one in entitled(documents, selectors, now()) if wish in ("", str(one.spiffe_id))]
    if not fitting:
        for_whom = f"{wish} " if wish else ""
        parent = own_parent(desk.trust_domain)
        raise Refused(f"no entry below {parent} {for_whom}fits the caller's selectors", subject=wish)
    if len({one.spiffe_id for one in fitting}) > 1:
        raise Refused(f"{len(fitting)} entries fit the caller: say which identity", Status.INVALID_ARGUMENT)
    chosen = fitting[0]
    desk.may_be_issued(chosen.spiffe_id)
    await _check_free(desk, chosen.spiffe_id, how)
    return Attested(chosen.spiffe_id, how, tuple(sorted(selectors)), entitlement=chosen)


async def _check_free(desk: Desk, spiffe_id: SpiffeId, how: str) -> None:
    node = await desk.work.ask(lambda: node_or_none(desk.service, spiffe_id))
    if node is not None and node.how in EXCLUSIVE and node.how != how and node.expires_at > now().timestamp():
        raise Refused(f"{spiffe_id} is held by a machine that joined by {node.how}", subject=str(spiffe_id))


# -- an SVID that has ended ---------------------------------------------------------------------------------


class Nonces:
    """Numbers given to callers, each good once and for a minute."""

    def __init__(self) -> None:
        self._given: dict[bytes, float] = {}  # -> until when

    def give(self, at: float) -> bytes:
        """Raises RpcError RESOURCE_EXHAUSTED."""
        for nonce in [nonce for nonce, until in self._given.items() if until <= at]:
            del self._given[nonce]
        if len(self._given) >= _NONCES:
            raise RpcError(Status.RESOURCE_EXHAUSTED, "too many challenges are open: try again in a minute")
        nonce = secrets.token_bytes(_NONCE)
        self._given[nonce] = at + _NONCE_LIFE
        return nonce

    def take(self, nonce: bytes, at: float) -> bool:
        """Whether it was given and is still good. It is not afterwards."""
        return self._given.pop(nonce, 0.0) > at


async def by_expired_svid(desk: Desk, nonces: Nonces, proof: Any, new_key: PublicKey) -> Attested:
    """The holder of an SVID of ours that has ended: shown by its key, over a number of ours and the new key. Only the
    key that the node had last counts, so whoever was revoked, has left or has joined anew cannot come back so."""
    if not desk.allow_expired:
        raise Refused("this authority takes no expired certificates: join again", Status.FAILED_PRECONDITION)
    if not nonces.take(proof.nonce, trio.current_time()):
        raise Refused("the challenge is unknown or older than a minute", Status.INVALID_ARGUMENT)
    moment = now()
    bundle = await desk.work.ask(desk.service.bundle)
    try:
        leaf, *above = certificates_of(proof.chain)
        spiffe_id = check_leaf(leaf)
        ended = leaf.not_valid_after_utc
        build_path(leaf, above, bundle.roots, trust_domain=desk.trust_domain, now=min(ended, moment))
    except (SvidError, ValueError) as error:
        raise Refused(f"the expired certificate is refused: {error}") from None
    subject = str(spiffe_id)
    if (moment - ended).total_seconds() > desk.allow_expired:
        raise Refused("the certificate has ended too long ago: join again", subject=subject)
    old_key = leaf.public_key()
    if not _signed_by(old_key, proof.signature, proof.nonce + public_key_der(new_key)):
        raise Refused("the proof is not signed by the key of the expired certificate", subject=subject)
    old_hash = key_hash(old_key)
    node = await desk.work.ask(lambda: node_or_none(desk.service, spiffe_id))
    if node is None or node.key_hash != old_hash:
        raise Refused("this is not the key that the node had last: join again", subject=subject)
    desk.may_be_issued(spiffe_id)
    await _check_not_revoked(desk, spiffe_id, f"{leaf.serial_number:x}", moment)
    return Attested(spiffe_id, node.how, node.selectors, old_hash, detail="expired_svid")


def _signed_by(key: object, signature: bytes, message: bytes) -> bool:
    """ECDSA with SHA-256 (DER), or Ed25519: what nodes' keys are."""
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
            return True
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
            return True
    except InvalidSignature:
        pass
    return False


async def _check_not_revoked(desk: Desk, spiffe_id: SpiffeId, serial: str, moment: datetime) -> None:
    revocations = await desk.work.ask(lambda: desk.service.revocations(moment))
    reason = revocations.reason_for(str(spiffe_id), [serial], [], moment.timestamp())
    if reason is not None:
        raise Refused(reason, subject=str(spiffe_id))


def _parsed(text: str) -> SpiffeId:
    try:
        return SpiffeId.parse(text)
    except SpiffeIdError as error:
        raise Refused(str(error), Status.INVALID_ARGUMENT) from None
