"""The service Node: what an attested node may ask for itself and for the entries below it, and nothing else (C-7).

Each call begins with ``_known``: the certificate was issued by us to a node as its own, the node is known, neither
banned nor revoked (C-13). What is asked for is then checked against the entry as it stands now, and once more in the
transaction that issues. A workload's certificate admits to nothing here, whatever identity it has.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import trio

from identity import protos
from identity.attest.machine import MachineFacts, judge
from identity.ca.issuing import X509Request
from identity.ca.model import CaError, CallerFacts, Issued, Node, NoSuchThing, NotAllowed
from identity.ca_api import ISSUE, ISSUE_JWT, LEAVE, MAX_BATCH, MAX_REQUEST, RENEW, WATCH, api, own_parent
from identity.disk import IdentityFileError
from identity.rpc import Call, Method, Methods, Status
from identity.spiffe import SpiffeId
from identity.svid import PeerIdentity
from identity.x509_rules import PublicKey
from proxy.ca.csr import proven_key
from proxy.ca.denials import facts_of
from proxy.ca.desk import EXCLUSIVE, Desk, svid_message
from proxy.ca.documents import jwt_end
from proxy.ca.entitled import Entitlement, entitled, entitlement_of
from proxy.ca.holders import Holders, Shown, node_or_none
from proxy.ca.recent import LIFE, Recent
from proxy.ca.watch import Watching
from proxy.ca.work import Refused, as_rpc_error, now

log = logging.getLogger("proxy.ca")
_MAX_CERTIFICATES: Final = 10_000  # of one node that leaves
_LOOK: Final = 1.0  # seconds until a change has surely been looked at


@dataclass(frozen=True, slots=True)
class _Caller:
    """A node that may ask. ``facts``: for what it gets itself."""

    id: SpiffeId
    node: Node
    shown: Shown
    facts: CallerFacts

    def on_behalf(self) -> CallerFacts:
        """For what it gets for its workloads: those certificates do not make a node."""
        return CallerFacts("agent", self.facts.id, self.facts.address, self.facts.detail)


class Nodes:
    """See the module."""

    def __init__(self, desk: Desk, watching: Watching, *, life: float = LIFE) -> None:
        self._desk = desk
        self._watching = watching
        self._holders = Holders(desk.service)
        self._leaving: set[str] = set()  # serials
        self._nodes: Recent[tuple[str, str], tuple[Shown | None, Node | None]]
        self._nodes = Recent(desk.work, lambda: watching.version, life)
        self._documents: Recent[str, dict[str, Any] | None]
        self._documents = Recent(desk.work, lambda: watching.version, life)

    def methods(self) -> Methods:
        guard = self._desk.denials.guard
        return {
            RENEW: Method("unary", guard(self.renew), MAX_REQUEST),
            ISSUE: Method("unary", guard(self.issue), MAX_REQUEST),
            ISSUE_JWT: Method("unary", guard(self.issue_jwt), MAX_REQUEST),
            LEAVE: Method("unary", guard(self.leave), MAX_REQUEST),
            WATCH: Method("stream", self.watch, MAX_REQUEST),
        }

    # -- who calls ------------------------------------------------------------------------------------------

    async def _known(self, call: Call) -> _Caller:
        """Raises Refused."""
        peer = call.caller.peer
        if peer is None or peer.id.trust_domain != self._desk.trust_domain:
            raise Refused("a node shows its own SVID of this trust domain, over TLS", Status.UNAUTHENTICATED)
        shown, node = await self._nodes.get((peer.uri, peer.serial), lambda: self._look_up(peer))
        if shown is None or shown.holder != f"node:{peer.uri}":
            raise Refused("the certificate is not a node's own", subject=peer.uri)
        if node is None:
            raise Refused("the node is not known (any more): it must attest again", subject=peer.uri)
        if node.banned:
            raise Refused(f"the node is banned: {node.banned}", subject=peer.uri)
        reason = self.revoked(peer)
        if reason is not None:
            raise Refused(reason, subject=peer.uri)
        return _Caller(peer.id, node, shown, facts_of(call.caller, "node", peer.uri, f"serial={peer.serial}"))

    def _look_up(self, peer: PeerIdentity) -> tuple[Shown | None, Node | None]:
        return self._holders.of(peer, now()), node_or_none(self._desk.service, peer.id)

    def revoked(self, peer: PeerIdentity) -> str | None:
        """Why the connections of a caller must end, as far as the last snapshot knows."""
        if peer.serial in self._leaving:
            return None
        shown = self._holders.remembered(peer.serial)
        authorities = [shown.authority_id] if shown is not None else []
        revocations = self._watching.snapshot.revocations
        return revocations.reason_for(peer.uri, [peer.serial], authorities, now().timestamp())

    # -- its own SVID ---------------------------------------------------------------------------------------

    async def renew(self, call: Call, data: bytes) -> bytes:
        caller = await self._known(call)
        request = protos.parse(api.RenewRequest, data)
        self._desk.rates.signing(str(caller.id), trio.current_time())
        key = proven_key(request.csr)
        self._check_machine(caller, request.machine_id)
        found = await self._desk.work.ask(lambda: self._own_entitlement(caller))
        issued = await self._desk.batches.one(self._renewal(caller, key, found))
        answer: bytes = svid_message(caller.id, issued).SerializeToString()
        return answer

    def _check_machine(self, caller: _Caller, shown: str) -> None:
        """A copied disk holds a copy of the key; only the machine around it tells. Raises Refused. For identities of
        one machine: the others have many holders."""
        if caller.node.how not in EXCLUSIVE or not caller.node.machine_id:
            return
        try:
            known, seen = MachineFacts.parse(caller.node.machine_id), MachineFacts.parse(shown)
        except ValueError:
            return  # a client of another make: it tells nothing that could be compared
        verdict = judge(known, seen)
        uri, reasons = str(caller.id), "; ".join(verdict.reasons)
        if verdict.kind == "clone":
            raise Refused(f"this is another machine than the one that joined ({reasons}): join again", subject=uri)
        if verdict.kind == "moved":
            facts = {"event": "ca.machine", "node": uri, "reasons": reasons, "address": caller.facts.address}
            log.warning("a node has changed around its key", extra=facts)

    def _renewal(self, caller: _Caller, key: PublicKey, found: Entitlement | None) -> X509Request:
        exclusive = caller.node.how in EXCLUSIVE
        return X509Request(
            caller.id,
            key,
            found.x509_ttl if found else None,
            found.dns_names if found else (),
            found.entry_id if found else "",
            caller.facts,
            exclusive=exclusive,
            replaces=caller.shown.key_hash if exclusive else "",
        )

    def _own_entitlement(self, caller: _Caller) -> Entitlement | None:
        """Who was let in by an entry stays in by an entry: it may have changed, and must still be there."""
        selectors = frozenset(caller.node.selectors)
        if caller.node.how in EXCLUSIVE or not selectors:
            return None
        documents = self._desk.service.entries_under(own_parent(self._desk.trust_domain))
        for found in entitled(documents, selectors, now()):
            if found.spiffe_id == caller.id:
                return found
        raise NotAllowed(f"no entry is left that gives {caller.id} to this node")

    async def leave(self, call: Call, data: bytes) -> bytes:
        """Take back all certificates of the node, its workloads' too, and forget it. The identity itself stays free:
        a new token may give it to another machine."""
        caller = await self._known(call)
        serial = call.caller.peer.serial if call.caller.peer is not None else ""
        self._leaving.add(serial)  # its connection is spared until it has heard the answer
        try:
            await self._desk.work.ask(lambda: self._leave_now(caller))
            self._nodes.forget()
            with trio.move_on_after(_LOOK):
                await self._watching.wait(self._watching.version)  # the look that would end it
            return b""
        finally:
            self._leaving.discard(serial)

    def _leave_now(self, caller: _Caller) -> None:
        service = self._desk.service
        uri = str(caller.id)
        own = service.issued(now=now(), spiffe_id=uri, limit=_MAX_CERTIFICATES)
        given = [
            view
            for document in service.entries_under(uri)
            for view in service.issued(now=now(), spiffe_id=str(document["spiffeId"]), limit=_MAX_CERTIFICATES)
        ]
        for view in own + given:
            if view.holder in (f"node:{uri}", f"agent:{uri}"):
                service.revoke(view.serial, "the node has left", now=now(), caller=caller.facts)
        service.forget_node(caller.id, now=now(), caller=caller.facts)

    # -- SVIDs of workloads ---------------------------------------------------------------------------------

    async def issue(self, call: Call, data: bytes) -> bytes:
        caller = await self._known(call)
        items = list(protos.parse(api.IssueRequest, data).items)
        if not 0 < len(items) <= MAX_BATCH:
            raise Refused(f"1 to {MAX_BATCH} certificates are issued in one call", Status.INVALID_ARGUMENT)
        documents = {item.entry_id: await self._below(caller, item.entry_id) for item in items}
        outcomes: dict[int, Any] = {}
        requests: dict[int, X509Request] = {}
        for number, item in enumerate(items):
            try:
                requests[number] = self._request(caller, item, documents.get(item.entry_id))
            except Refused as refusal:
                await self._desk.denials.note(call.caller, refusal.subject or item.spiffe_id, refusal.message)
                outcomes[number] = api.IssueOutcome(status=refusal.status, message=refusal.message)
        if requests:
            wanted = list(requests.values())
            results = await self._desk.batches.issue(wanted)
            outcomes |= {n: _outcome(requests[n], result) for n, result in zip(requests, results, strict=True)}
        answer: bytes = api.IssueReply(outcomes=[outcomes[n] for n in range(len(items))]).SerializeToString()
        return answer

    async def _below(self, caller: _Caller, entry_id: str) -> dict[str, Any] | None:
        """The entry, if it is one below the caller (C-7)."""
        document = await self._documents.get(entry_id, lambda: self._entry_or_none(entry_id))
        return document if document is not None and document.get("parentId") == str(caller.id) else None

    def _entry_or_none(self, entry_id: str) -> dict[str, Any] | None:
        try:
            return self._desk.service.get_entry(entry_id)
        except NoSuchThing:
            return None

    def _entitlement(self, caller: _Caller, document: dict[str, Any] | None, entry_id: str, wish: str) -> Entitlement:
        """What the node may have for an entry. Raises Refused, alike for entries of others and for none."""
        if document is None:
            raise Refused(f"no entry {entry_id[:100]!a} below {caller.id}", subject=wish)
        found = entitlement_of(document, frozenset(caller.node.selectors), now())
        if found is None:
            raise Refused(f"entry {entry_id} has expired, or its pattern does not fit this node", subject=wish)
        if wish not in ("", str(found.spiffe_id)):
            raise Refused(f"entry {entry_id} is for {found.spiffe_id}", subject=wish)
        self._desk.may_be_issued(found.spiffe_id)
        return found

    def _request(self, caller: _Caller, item: Any, document: dict[str, Any] | None) -> X509Request:
        self._desk.rates.signing(str(caller.id), trio.current_time())
        found = self._entitlement(caller, document, item.entry_id, item.spiffe_id)
        key = proven_key(item.csr)
        return X509Request(found.spiffe_id, key, found.x509_ttl, found.dns_names, found.entry_id, caller.on_behalf())

    async def issue_jwt(self, call: Call, data: bytes) -> bytes:
        caller = await self._known(call)
        request = protos.parse(api.JwtRequest, data)
        self._desk.rates.signing(str(caller.id), trio.current_time())
        document = await self._below(caller, request.entry_id)
        found = self._entitlement(caller, document, request.entry_id, request.spiffe_id)
        token = await self._desk.work.ask(
            lambda: self._desk.service.issue_jwt(
                found.spiffe_id, list(request.audience), ttl=found.jwt_ttl, caller=caller.on_behalf(), now=now()
            )
        )
        answer: bytes = api.JwtReply(token=token, not_after=jwt_end(token)).SerializeToString()
        return answer

    # -- changes --------------------------------------------------------------------------------------------

    async def watch(self, call: Call, data: bytes) -> AsyncIterator[bytes]:
        self._watching.watchers += 1
        try:
            caller = await self._known(call)
            request = protos.parse(api.WatchRequest, data)
            await self._desk.work.ask(
                lambda: self._desk.service.seen_bundle(caller.id, request.seen_sequence, now=now())
            )
            told: tuple[Any, ...] = ()
            while True:
                version, snapshot = self._watching.version, self._watching.snapshot
                entries = await self._entries_below(call)
                if (snapshot, entries) != told:
                    told = (snapshot, entries)
                    message: bytes = snapshot.state(version, entries).SerializeToString()
                    yield message
                await self._watching.wait(version)
        except Refused as refusal:
            await self._desk.denials.note(call.caller, refusal.subject, f"{call.method}: {refusal.message}")
            raise
        finally:
            self._watching.watchers -= 1

    async def _entries_below(self, call: Call) -> list[bytes]:
        caller = await self._known(call)
        documents = await self._desk.work.ask(lambda: self._desk.service.entries_under(str(caller.id)))
        return [json.dumps(document, sort_keys=True, separators=(",", ":")).encode() for document in documents]


def _outcome(request: X509Request, result: Issued | Exception) -> Any:
    if isinstance(result, (CaError, IdentityFileError)):
        error = as_rpc_error(result)
        return api.IssueOutcome(status=error.status, message=error.message)
    if isinstance(result, Exception):
        raise result
    return api.IssueOutcome(svid=svid_message(request.spiffe_id, result))
