"""The service Enrol: how a caller without an SVID gets its first one. Anybody may call, and every call is paid for
by its address before anything of it is looked at (C-6). A request is checked before a token is used up for it."""

from __future__ import annotations

from typing import Any, Final

import trio

from identity import protos
from identity.ca.keys import key_hash
from identity.ca.model import CallerFacts, Issued
from identity.ca_api import ATTEST, CHALLENGE, MAX_REQUEST, api
from identity.rpc import Call, Method, Methods, Status
from identity.x509_rules import PublicKey
from proxy.ca import proofs
from proxy.ca.csr import proven_key
from proxy.ca.denials import facts_of, host_of
from proxy.ca.desk import Desk, bundle_message, svid_message
from proxy.ca.proofs import Attested, Nonces, TokenVerifier
from proxy.ca.work import Refused, now

_LONGEST_NAME: Final = 200  # characters of a machine id or host name


class Enrol:
    """See the module."""

    def __init__(self, desk: Desk, kubernetes: TokenVerifier | None = None) -> None:
        self._desk = desk
        self._kubernetes = kubernetes
        self._nonces = Nonces()

    def methods(self) -> Methods:
        guard = self._desk.denials.guard
        return {
            ATTEST: Method("unary", guard(self.attest), MAX_REQUEST),
            CHALLENGE: Method("unary", guard(self.challenge), MAX_REQUEST),
        }

    async def challenge(self, call: Call, data: bytes) -> bytes:
        self._pay(call)
        if not self._desk.allow_expired:
            raise Refused("this authority takes no expired certificates: join again", Status.FAILED_PRECONDITION)
        nonce = self._nonces.give(trio.current_time())
        answer: bytes = api.ChallengeReply(nonce=nonce).SerializeToString()
        return answer

    async def attest(self, call: Call, data: bytes) -> bytes:
        desk = self._desk
        self._pay(call)
        request = protos.parse(api.AttestRequest, data)
        for name in (request.machine_id, request.hostname):
            if len(name) > _LONGEST_NAME or not name.isascii() or not name.isprintable():
                raise Refused(f"names have at most {_LONGEST_NAME} printable characters", Status.INVALID_ARGUMENT)
        key = proven_key(request.csr)
        attested = await self._proven(call, request, key)
        desk.rates.signing(str(attested.spiffe_id), trio.current_time())
        issued = await self._issue(call, request, attested, key)
        bundle = await desk.work.ask(desk.service.bundle)
        at = now().timestamp()
        reply = api.AttestReply(
            svid=svid_message(attested.spiffe_id, issued),
            bundle=bundle_message(bundle),
            renew_at=at + (issued.not_after - at) / 2,
            url=desk.local_url if call.caller.local is not None else "",
        )
        answer: bytes = reply.SerializeToString()
        return answer

    def _pay(self, call: Call) -> None:
        caller = call.caller
        self._desk.rates.attestation(host_of(caller), trio.current_time(), local=caller.local is not None)

    async def _proven(self, call: Call, request: Any, key: PublicKey) -> Attested:
        kind = request.WhichOneof("proof")
        if kind == "join_token":
            return await proofs.by_join_token(self._desk, call.caller, request.join_token)
        if kind == "k8s_token":
            wish = self._in_full(request.spiffe_id)
            return await proofs.by_k8s_token(self._desk, self._kubernetes, request.k8s_token, wish)
        if kind == "unix_peer" and request.unix_peer:
            return await proofs.by_unix_peer(self._desk, call.caller, self._in_full(request.spiffe_id))
        if kind == "expired_svid":
            return await proofs.by_expired_svid(self._desk, self._nonces, request.expired_svid, key)
        raise Refused("the request has no proof of a kind that is known here", Status.INVALID_ARGUMENT)

    def _in_full(self, wish: str) -> str:
        """A wish may be a path alone, of who does not know our name yet."""
        return f"spiffe://{self._desk.trust_domain}{wish}" if wish.startswith("/") else wish

    async def _issue(self, call: Call, request: Any, attested: Attested, key: PublicKey) -> Issued:
        uri = str(attested.spiffe_id)
        detail = " ".join(filter(None, [attested.detail, request.hostname]))
        caller = facts_of(call.caller, "node", uri, detail)
        return await self._desk.work.ask(lambda: self._issue_now(attested, key, request.machine_id, caller))

    def _issue_now(self, attested: Attested, key: PublicKey, machine_id: str, caller: CallerFacts) -> Issued:
        """In a thread: the certificate, then the node, so that a refused certificate leaves no trace of a node."""
        service, entitlement, at = self._desk.service, attested.entitlement, now()
        issued = service.issue_x509(
            attested.spiffe_id,
            key,
            ttl=entitlement.x509_ttl if entitlement else None,
            dns_names=entitlement.dns_names if entitlement else (),
            entry_id=entitlement.entry_id if entitlement else "",
            caller=caller,
            now=at,
            exclusive=attested.is_exclusive,
            replaces=attested.replaces,
        )
        service.record_node(
            attested.spiffe_id,
            attested.how,
            attested.selectors,
            key_hash=key_hash(key),
            machine_id=machine_id,
            expires_at=issued.not_after,
            now=at,
            caller=caller,
        )
        return issued
