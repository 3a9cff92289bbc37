"""The identities of the workloads behind a node: the ``IdentitySource`` of the Workload API and of SDS.

Who calls is seen by the kernel (``identity.attest.unix``); which entries fit is decided here, from what the authority
has told (``CaSource.entries``); each identity has one SVID that all its callers share, made when it is first asked
for, renewed at half of its life as long as anybody has asked for it within the last hour, and given out until it
ends, however long the authority is away (C-14). What lost its entry, or was revoked, is given out no more at once.

Keys are made here, one for each identity and rotation (C-2), and never leave memory but through the socket.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Final

import trio

from identity import jwt_svid
from identity.attest.unix import AttestationError, UnixPeer
from identity.bundle import Bundle
from identity.entries import Entry, Identity, NearMiss, explain_miss, matching
from identity.jwt_svid import JwtSvidError
from identity.renewal import backoff, renew_at
from identity.rpc import Caller, RpcError, Status
from identity.spiffe import SpiffeId
from identity.svid import X509Svid
from identity.workload_api import WorkloadBundle, WorkloadJwt, WorkloadSvid
from proxy.agent import calls
from proxy.agent.calls import BadAnswer
from proxy.agent.source import CaSource

_IDLE: Final = 3600.0  # seconds since it was last asked for, after which an SVID is not renewed any more
_LOOK: Final = 1.0
_BATCH: Final = 50
_MOST: Final = 10_000  # identities
_MOST_TOKENS: Final = 10_000

log = logging.getLogger("proxy.agent")


@dataclass(slots=True)
class _Held:
    """The SVID of one identity of one entry. Times in seconds of the epoch."""

    entry: Entry
    spiffe_id: SpiffeId
    asked_at: float
    svid: X509Svid | None = None
    due: float = 0.0
    failures: int = 0
    problem: RpcError | None = None
    waiting: trio.Event = field(default_factory=trio.Event)


class NodeWorkloads:
    """See the module. ``run`` renews; without it nothing is."""

    def __init__(self, source: CaSource, *, rng: random.Random | None = None) -> None:
        self._source = source
        self._rng = rng or random.SystemRandom()
        self._held: dict[tuple[str, str], _Held] = {}
        self._tokens: dict[tuple[str, ...], tuple[str, float, float]] = {}  # token, half of its life, end
        self._version = 1
        self._moved = trio.Event()
        self._wanted = trio.Event()

    # -- what the services ask ------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        return self._version

    async def wait_change(self, seen: int) -> int:
        while self._version == seen:
            await self._moved.wait()
        return self._version

    def changed(self) -> None:
        """Entries, bundles or SVIDs are others than before: every open stream looks again."""
        self._version += 1
        self._moved.set()
        self._moved = trio.Event()
        self._wanted.set()

    async def svids_for(self, caller: Caller) -> Sequence[WorkloadSvid]:
        identities = await self._identities(caller)
        held = [self._hold(identity) for identity in identities]
        found = []
        for one in held:
            svid = await self._svid(one)
            found.append(WorkloadSvid(svid, one.entry.hint))
        return found

    async def bundles_for(self, caller: Caller) -> Mapping[str, WorkloadBundle]:
        own = self._own_bundle()
        wanted = {name for identity in await self._identities(caller) for name in identity.entry.federates_with}
        foreign = {name: bundle for name, bundle in self._source.federated.items() if name in wanted}
        return {name: _as_workload(bundle) for name, bundle in {**foreign, own.trust_domain: own}.items()}

    async def jwt_svids(
        self, caller: Caller, spiffe_id: SpiffeId | None, audiences: Sequence[str]
    ) -> Sequence[WorkloadJwt]:
        identities = await self._identities(caller)
        if spiffe_id is not None:
            identities = [identity for identity in identities if identity.spiffe_id == spiffe_id]
            if not identities:
                raise RpcError(Status.PERMISSION_DENIED, f"{spiffe_id} is not an identity of the caller")
        return [await self._token(identity, tuple(audiences)) for identity in identities]

    async def validate(
        self, token: str, audience: str, bundles: Mapping[str, WorkloadBundle]
    ) -> tuple[str, dict[str, object]]:
        """``JwtValidator`` of the Workload API: by our own bundle and the federated ones that the caller may see."""
        own = self._own_bundle()
        known = {name: bundle for name, bundle in self._source.federated.items() if name in bundles}
        try:
            subject, claims = jwt_svid.validate(token, audience, {**known, own.trust_domain: own}, now=time.time())
        except JwtSvidError as error:
            raise ValueError(f"{error.reason}: {error}") from None
        return str(subject), claims

    # -- who calls ------------------------------------------------------------------------------------------

    async def _identities(self, caller: Caller) -> list[Identity]:
        selectors = await self.selectors_of(caller)
        found = [one for one in matching(self._source.entries, selectors, time.time()) if not self._is_revoked(one)]
        if not found:
            near = explain_miss(self._source.entries, selectors, time.time(), 1)
            facts = {"event": "no_identity", "nearest": _miss(near), "selectors": sorted(selectors)}
            log.info("no identity for a caller", extra=facts)
            raise RpcError(Status.PERMISSION_DENIED, "no identity issued")
        return found

    async def selectors_of(self, caller: Caller) -> frozenset[str]:
        """What the kernel says of the caller. Raises RpcError."""
        if self._source.svid is None or self._source.bundle is None:
            raise RpcError(Status.UNAVAILABLE, "this node has no identity itself yet")
        if not isinstance(caller.local, UnixPeer):
            raise RpcError(Status.PERMISSION_DENIED, "callers are known by their Unix socket only")
        hashed = any(one.startswith("unix:sha256:") for entry in self._source.entries for one in entry.selectors)
        try:
            return await trio.to_thread.run_sync(partial(caller.local.selectors, hash_exe=hashed))
        except AttestationError as error:
            raise RpcError(Status.PERMISSION_DENIED, f"the caller cannot be looked at: {error}") from None

    async def explain(self, caller: Caller) -> tuple[frozenset[str], list[Identity], list[NearMiss]]:
        """For `identity why`: the caller's selectors, what it gets, and the entries that came near."""
        selectors, now, entries = await self.selectors_of(caller), time.time(), self._source.entries
        return selectors, matching(entries, selectors, now), explain_miss(entries, selectors, now)

    def _is_revoked(self, identity: Identity) -> bool:
        known, uri = self._source.revocations, str(identity.spiffe_id)
        return known is not None and known.reason_for(uri, (), (), time.time()) is not None

    def _own_bundle(self) -> Bundle:
        if self._source.bundle is None:
            raise RpcError(Status.UNAVAILABLE, "the trust bundle has not arrived yet")
        return self._source.bundle

    # -- X.509 ----------------------------------------------------------------------------------------------

    def _hold(self, identity: Identity) -> _Held:
        key = (identity.entry.id, str(identity.spiffe_id))
        held = self._held.get(key)
        if held is None:
            if len(self._held) >= _MOST:
                raise RpcError(Status.RESOURCE_EXHAUSTED, "this node holds too many identities")
            held = self._held[key] = _Held(identity.entry, identity.spiffe_id, time.time())
            self._wanted.set()
        held.asked_at = time.time()
        if held.entry.revision_number != identity.entry.revision_number:
            held.entry, held.due = identity.entry, 0.0  # other names or another life: make it anew
            self._wanted.set()
        return held

    async def _svid(self, held: _Held) -> X509Svid:
        """The SVID, waited for when it is the first one. Raises RpcError."""
        if held.svid is None or held.svid.not_after <= time.time():
            self._wanted.set()
            with trio.move_on_after(10.0):
                await held.waiting.wait()
        if held.svid is not None and held.svid.not_after > time.time():
            return held.svid
        raise held.problem or RpcError(Status.UNAVAILABLE, "the authority cannot be reached, and nothing is cached")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Make and renew SVIDs until cancelled."""
        task_status.started()
        while True:
            with trio.move_on_after(_LOOK):
                await self._wanted.wait()
            self._wanted = trio.Event()
            self._forget()
            due = self._due(time.time())
            if due and self._source.svid is not None:
                await self._make(due)

    def _due(self, now: float) -> list[_Held]:
        due = [one for one in self._held.values() if now >= one.due and now - one.asked_at < _IDLE]
        due.sort(key=lambda one: one.due)
        return due[:_BATCH]

    def _forget(self) -> None:
        """What no entry gives any more, and what nobody has asked for until it ended."""
        now, known = time.time(), {entry.id for entry in self._source.entries}
        for key, held in list(self._held.items()):
            ended = held.svid is None or held.svid.not_after <= now
            if held.entry.id not in known or (ended and now - held.asked_at > _IDLE):
                del self._held[key]

    async def _make(self, due: list[_Held]) -> None:
        """One batch. An authority that is away fails all of them for the time being."""
        keys = {one.entry.id: calls.new_key() for one in due}
        chosen = {one.entry.id: one for one in due}  # of several identities of a pattern one at a time
        wishes = {entry_id: str(one.spiffe_id) for entry_id, one in chosen.items()}
        bundle = self._own_bundle()
        try:
            async with self._source.channel() as channel:
                found = await calls.issue(channel, keys, bundle, now=datetime.now(UTC), wishes=wishes)
        except (RpcError, BadAnswer) as error:
            problem = error if isinstance(error, RpcError) else RpcError(Status.UNAVAILABLE, str(error))
            found = dict.fromkeys(chosen, problem)
        for entry_id, outcome in found.items():
            self._take(chosen[entry_id], outcome)
        self.changed()

    def _take(self, held: _Held, outcome: X509Svid | RpcError) -> None:
        now = time.time()
        if isinstance(outcome, RpcError):
            held.failures += 1
            held.problem = outcome
            held.due = now + backoff(held.failures, self._rng)
            facts = {"event": "svid_refused", "spiffe_id": str(held.spiffe_id), "problem": str(outcome)}
            log.warning("no SVID for a workload", extra=facts)
        else:
            held.svid, held.problem, held.failures = outcome, None, 0
            held.due = renew_at(now, outcome.not_after, self._rng)
        held.waiting.set()
        held.waiting = trio.Event()

    # -- tokens ---------------------------------------------------------------------------------------------

    async def _token(self, identity: Identity, audiences: tuple[str, ...]) -> WorkloadJwt:
        """From the cache until half of its life is over; later only while the authority is away."""
        key = (identity.entry.id, str(identity.spiffe_id), *audiences)
        now = time.time()
        token, half, end = self._tokens.get(key, ("", 0.0, 0.0))
        if now >= half:
            try:
                async with self._source.channel() as channel:
                    token, end = await calls.issue_jwt(channel, identity.entry.id, str(identity.spiffe_id), audiences)
            except RpcError:
                if now >= end:
                    raise
            else:
                if len(self._tokens) >= _MOST_TOKENS:
                    self._tokens.clear()
                self._tokens[key] = (token, now + (end - now) / 2, end)
        return WorkloadJwt(str(identity.spiffe_id), token, identity.entry.hint)


def _as_workload(bundle: Bundle) -> WorkloadBundle:
    return WorkloadBundle(bundle.roots, bundle.jwt_document())


def _miss(near: list[NearMiss]) -> str:
    if not near:
        return ""
    miss = near[0]
    lacking = f"lacks {', '.join(miss.missing)}" if miss.missing else miss.why
    return f"{miss.entry.id} ({miss.entry.spiffe_id}) {lacking}"
