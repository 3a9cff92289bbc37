"""A node's own identity from the authority: attested once, renewed for ever, followed by what the authority says.

Three tasks over one state:

    keep      no valid SVID: attest; at half of its life, or when its signer is tainted: renew, with a new key (C-14)
    follow    a stream (`Node.Watch`): bundle, federated bundles, revocations, entries, what must be renewed at once
    look      twice a second: alarms before the end of an SVID, and jumps of the clock (C-17)

What holds whatever happens: what is published was checked as a peer would check it; the old SVID is served until its
notAfter and not beyond; a bundle never goes back (C-16); an authority that is away, restarts or errs costs nothing
until the SVID ends, and ``lapse`` says when that would be. Waits after failures are 1 s to 60 s, each +-50 %, so that
a thousand nodes do not come back in one second.

Changes of the bundle reach open connections by the context that is published: handshakes from then on use it. A
revocation list is kept whole, and ``changed`` is called, so that the proxy can end connections of who was revoked.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import trio
from cryptography import x509

from identity import bundle as bundles
from identity.bundle import Bundle, BundleError
from identity.ca_api import WATCH, api
from identity.disk import IdentityFileError
from identity.entries import Entry, EntryError
from identity.protos import parse
from identity.renewal import LiveContext, OnEvent, RenewedSource, Wall, backoff, renew_at
from identity.revocations import RevocationListError, Revocations, verify
from identity.rpc import RpcError, Status
from identity.spiffe import SpiffeIdError
from identity.svid import SvidError, TrustBundle, X509Context, X509Svid, check_own_svid
from proxy.agent import calls
from proxy.agent.calls import Attested, BadAnswer, Proof
from proxy.agent.memory import NodeFolder, is_valid
from proxy.agent.way import Way, as_node, as_stranger, connected
from proxy.net.poller import Poller
from proxy.rpc.client import Channel

_LOOK: Final = 0.5  # seconds
_TICK: Final = 5.0  # the longest wait without a look at the wall clock
_JUMP: Final = 30.0  # seconds by which wall and monotonic clock may part before we look again (C-17)
_LASTED: Final = 60.0  # a stream that lived so long begins with a short back-off again
_MAX_ENTRIES: Final = 10_000

ProofOf = Callable[[], Proof | None]
"""How to attest now: None when there is no way (a join token that was used up). May raise IdentityFileError."""

_HINTS: Final = {
    Status.PERMISSION_DENIED: "the authority refused it: `sidewall ca log` there says why",
    Status.UNAUTHENTICATED: "the authority does not know this certificate: join or attest again",
    Status.UNAVAILABLE: "is the authority running, and is this its address?",
    Status.RESOURCE_EXHAUSTED: "it is asked too often: this goes by itself",
}


class CaSource(RenewedSource):
    """See the module. ``bundle``: by which the authority itself is recognised before there is an SVID; ``folder``: of
    a node that joined; ``changed``: called after each message of the authority; ``revoked``: with each list."""

    def __init__(
        self,
        way: Way,
        proof: ProofOf,
        *,
        on_event: OnEvent,
        bundle: TrustBundle | None = None,
        folder: NodeFolder | None = None,
        machine_id: str = "",
        hostname: str = "",
        poller: Poller | None = None,
        changed: Callable[[], None] = lambda: None,
        revoked: Callable[[Revocations], None] = lambda revocations: None,
        wall: Wall = time.time,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(on_event, wall, rng)
        self.way = way
        self.bundle: Bundle | None = None
        self.federated: dict[str, Bundle] = {}
        self.entries: tuple[Entry, ...] = ()
        self.revocations: Revocations | None = None
        self.svid: X509Svid | None = None
        self._proof = proof
        self._known = bundle
        self._node_way = way  # where Node is served
        self._folder = folder
        self._machine_id = machine_id
        self._hostname = hostname
        self._poller = poller
        self._changed = changed
        self._revoked = revoked
        self._due = 0.0  # when to renew, seconds of the epoch
        self._identified = trio.Event()
        self._clocks = (0.0, 0.0)

    @property
    def lapse(self) -> float:
        """Seconds of the epoch at which this node would be without an identity if nothing came any more; 0: it is."""
        return self.svid.not_after if self.svid is not None else 0.0

    async def run(self, live: LiveContext, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep ``live`` fresh for ever. Started after what was saved has been read and the first try been made."""
        self._recall(live)
        async with trio.open_nursery() as nursery:
            first = trio.Event()
            nursery.start_soon(self._keep, live, first)
            nursery.start_soon(self._follow_for_ever, live)
            nursery.start_soon(self._look_for_ever, live)
            if live.value is None:
                await first.wait()
            task_status.started()

    # -- what was saved -------------------------------------------------------------------------------------

    def _recall(self, live: LiveContext) -> None:
        """A joined machine after a restart. An SVID that has ended meanwhile is kept for what it can still prove."""
        if self._folder is None or not self._folder.is_joined:
            return
        try:
            found = self._folder.load()
        except IdentityFileError as error:
            self._report(error, self._folder.path)
            return
        self.bundle, self._known = found.bundle, found.bundle.trust_bundle
        now = self._now()
        if not is_valid(found.svid, now):
            self.svid = found.svid
            self._due = now.timestamp()
            return
        try:
            check_own_svid(found.svid, found.bundle.trust_bundle, now=now)
        except SvidError as error:
            self._report(IdentityFileError(self._folder.path, str(error), "join again"), self._folder.path)
            return
        self._use(live, found.svid, found.svid.not_before)

    def _save(self) -> None:
        if self._folder is not None and self.svid is not None and self.bundle is not None and self._folder.is_joined:
            try:
                self._folder.save(self.svid, self.bundle)
            except IdentityFileError as error:  # we go on with what is in memory; a reboot would not
                self._report(error, self._folder.path)

    # -- keep -----------------------------------------------------------------------------------------------

    async def _keep(self, live: LiveContext, first: trio.Event) -> None:
        while True:
            now = self._wall()
            if now >= self._due:
                await self._try(live)
                first.set()
            await self._wait(min(_TICK, max(self._due - self._wall(), 0.05)))

    async def _try(self, live: LiveContext) -> None:
        """Renew, or attest when there is nothing to renew with. ``_due`` says when to come again."""
        began = self._wall()
        try:
            svid = await (self._renew() if self._can_renew() else self._attest())
        except Exception as error:
            self._report(self._explained(error), str(self.way))
            self._due = self._wall() + backoff(self._failures, self._rng)
            return
        self._use(live, svid, began)
        await trio.to_thread.run_sync(self._save)

    def _can_renew(self) -> bool:
        return self.svid is not None and self.bundle is not None and is_valid(self.svid, self._now())

    async def _renew(self) -> X509Svid:
        assert self.bundle is not None  # _can_renew
        key = calls.new_key()
        async with self._channel() as channel:
            return await calls.renew(channel, key, self.bundle, now=self._now(), machine_id=self._machine_id)

    async def _attest(self) -> X509Svid:
        proof = self._proof()
        if proof is None and self.svid is not None:
            proof = Proof(expired=self.svid)
        if proof is None:
            raise IdentityFileError(str(self.way), "there is nothing to attest with", "sidewall join, with a token")
        attested = await self._attest_by(proof)
        self._take_bundle(attested.bundle)
        self._node_way = Way.parse(attested.url) if attested.url else self.way
        return attested.svid

    async def _attest_by(self, proof: Proof) -> Attested:
        async with self._channel(stranger=True) as channel:
            return await calls.attest(
                channel,
                proof,
                calls.new_key(),
                now=self._now(),
                machine_id=self._machine_id,
                hostname=self._hostname,
            )

    def channel(self) -> AbstractAsyncContextManager[Channel]:
        """A channel as this node, for its workloads. Raises RpcError, also when it has no valid SVID."""
        if not self._can_renew():
            raise RpcError(Status.UNAVAILABLE, "this node has no valid identity itself")
        return self._channel()

    def _channel(self, *, stranger: bool = False) -> AbstractAsyncContextManager[Channel]:
        if self.way.path and stranger:
            return connected(self.way, None, "", poller=self._poller)
        if not stranger and self.svid is not None and self.bundle is not None:
            context = X509Context(self.svid, {self.bundle.trust_domain: self.bundle.trust_bundle})
            return connected(self._node_way, as_node(context), self.bundle.trust_domain, poller=self._poller)
        known = self._known
        if known is None:
            hint = "name a bundle file, or join with a token"
            raise IdentityFileError(str(self.way), "its root is not known", hint)
        return connected(self.way, as_stranger(known), known.trust_domain, poller=self._poller)

    def _use(self, live: LiveContext, svid: X509Svid, since: float) -> None:
        self.svid = svid
        self._due = renew_at(since, svid.not_after, self._rng)
        self._publish(live, self._context(svid), since)
        self._identified.set()

    def _context(self, svid: X509Svid) -> X509Context:
        own = self.bundle.trust_bundle if self.bundle is not None else TrustBundle(svid.id.trust_domain, ())
        federated = {name: bundle.trust_bundle for name, bundle in self.federated.items()}
        return X509Context(svid, {**federated, own.trust_domain: own})

    # -- follow ---------------------------------------------------------------------------------------------

    async def _follow_for_ever(self, live: LiveContext) -> None:
        failures = 0
        while True:
            await self._identified.wait()
            began = trio.current_time()
            try:
                await self._follow(live)
                failures = 0
            except Exception as error:
                failures = 1 if trio.current_time() - began > _LASTED else failures + 1
                facts = {"authority": str(self.way), "problem": str(self._explained(error)), "failures": failures}
                self._on_event("authority_away", facts)
                await trio.sleep(backoff(failures, self._rng))

    async def _follow(self, live: LiveContext) -> None:
        """One stream. It is opened anew with each new bundle: that tells the authority which one we hold now."""
        held = self.bundle.sequence if self.bundle is not None else 0
        request = api.WatchRequest(seen_sequence=held).SerializeToString()
        async with self._channel() as channel, channel.stream(WATCH, request) as messages:
            async for message in messages:
                self._take(live, parse(api.State, message))
                if self.bundle is not None and self.bundle.sequence != held:
                    return
        raise RpcError(Status.UNAVAILABLE, "the stream has ended")

    def _take(self, live: LiveContext, state: Any) -> None:
        before = (self.bundle, self.federated)
        self._take_offered(state.bundle)
        self.federated = self._federated(state.federated)
        self._take_revocations(state.revocations)
        self.entries = self._entries(state.entries)
        if (self.bundle, self.federated) != before and self.svid is not None and live.value is not None:
            live.set(self._context(self.svid))
        self._heed(state)
        self._changed()

    def _take_offered(self, message: Any) -> None:
        held = self.bundle
        try:
            offered = bundles.accept(held, message.document, message.trust_domain)
        except (BundleError, SpiffeIdError) as error:
            self._on_event("bundle_refused", {"trust_domain": str(message.trust_domain)[:255], "problem": str(error)})
            return
        if held is None or offered.trust_domain == held.trust_domain:
            self._take_bundle(offered)

    def _take_bundle(self, offered: Bundle) -> None:
        held = self.bundle
        if held is not None and offered.sequence == held.sequence and bundles.same(offered, held):
            return
        if held is not None and offered.sequence < held.sequence:
            return
        self.bundle, self._known = offered, offered.trust_bundle
        self._save()

    def _federated(self, messages: Any) -> dict[str, Bundle]:
        """Foreign bundles, each kept apart; one that cannot be read leaves the one we had."""
        found = {}
        for message in messages:
            name = message.trust_domain
            held = self.federated.get(name)
            try:
                found[name] = bundles.accept(held, message.document, name)
            except (BundleError, SpiffeIdError) as error:
                self._on_event("bundle_refused", {"trust_domain": str(name)[:255], "problem": str(error)})
                if held is not None:
                    found[name] = held
        for name, bundle in self.federated.items():
            if name in found and _is_same(found[name], bundle):
                found[name] = bundle  # the same object: nothing has changed
        return found

    def _take_revocations(self, token: str) -> None:
        if not token or self.bundle is None:
            return
        try:
            found = verify(token, self.bundle.trust_bundle, now=self._now())
        except RevocationListError as error:
            self._on_event("revocations_refused", {"problem": str(error)})
            return
        if self.revocations is None or found.sequence >= self.revocations.sequence:
            self.revocations = found
            self._revoked(found)

    def _entries(self, documents: Any) -> tuple[Entry, ...]:
        found = []
        for document in list(documents)[:_MAX_ENTRIES]:
            try:
                found.append(Entry.from_document(json.loads(document)))
            except (EntryError, ValueError, TypeError) as error:
                self._on_event("entry_refused", {"problem": str(error)[:500]})
        return tuple(found)

    def _heed(self, state: Any) -> None:
        """Renew soon when what signed our SVID is tainted; spread over the time that the authority names."""
        if self.svid is not None and signers_of(self.svid.chain) & set(state.renew_now):
            soon = self._wall() + self._rng.uniform(0.0, min(max(float(state.jitter), 0.0), 600.0))
            if soon < self._due:
                self._due = soon
                self.poke()

    # -- look -----------------------------------------------------------------------------------------------

    async def _look_for_ever(self, live: LiveContext) -> None:
        self._clocks = (self._wall(), trio.current_time())
        while True:
            await trio.sleep(_LOOK)
            wall, clock = self._wall(), trio.current_time()
            jumped = (wall - self._clocks[0]) - (clock - self._clocks[1])
            self._clocks = (wall, clock)
            if abs(jumped) > _JUMP:
                self._on_event("clock_jumped", {"seconds": round(jumped, 1)})
                self._after_jump(live.value, wall)
            self._expiry.look(live.value, wall)

    def _after_jump(self, context: X509Context | None, wall: float) -> None:
        """A machine that slept, or whose clock was set: what is due now is done now."""
        if context is None or wall < context.not_before or wall > context.not_after - (_LOOK + 1.0):
            self._due = 0.0
        self.poke()

    def _explained(self, error: Exception) -> Exception:
        while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, RpcError):
            hint = _HINTS.get(error.status, "look at the authority's log")
            return IdentityFileError(str(self.way), f"{error.status.name}: {error.message}", hint)
        if isinstance(error, BadAnswer):
            return IdentityFileError(str(self.way), str(error), "compare the clocks, and look at the authority's log")
        return error


def signers_of(chain: tuple[x509.Certificate, ...]) -> set[str]:
    """The key ids (hex) of the authorities that signed the certificates of a chain."""
    found = set()
    for cert in chain:
        try:
            value = cert.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        except x509.ExtensionNotFound:
            continue
        if value is not None:
            found.add(value.hex())
    return found


def _is_same(one: Bundle, other: Bundle) -> bool:
    return one.sequence == other.sequence and bundles.same(one, other)

