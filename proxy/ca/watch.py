"""What all nodes are told, made once for each change, and who waits for it.

One task waits for the authority's change counter, which any replica's write moves, and reads what is the same for
all nodes: bundle, federated bundles, revocations (signed), tainted authorities. Then it wakes every watcher. A
watcher reads the entries below its own node and says something only when it has something new to say.

The signed list of revocations is good for three refresh intervals and is made anew after each of them, so a node
whose list ends knows that it is cut off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import trio

from identity.ca.model import CaError, StoreUnavailable
from identity.ca.revocation import Revocations
from identity.ca.service import CaService
from identity.ca_api import api
from identity.disk import IdentityFileError
from identity.svid import TrustBundle
from proxy.ca.desk import bundle_message
from proxy.ca.documents import EMPTY_DOCUMENT
from proxy.ca.work import now

log = logging.getLogger("proxy.ca")
_WAIT: Final = 5.0  # seconds in one wait for the counter
_AFTER_TROUBLE: Final = 1.0
_LONGEST_JITTER: Final = 30.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What all nodes are told. ``sequence``: of our bundle; ``made_at``: seconds of trio's clock."""

    sequence: int
    roots: TrustBundle
    bundle: Any
    federated: tuple[Any, ...]
    revocations: Revocations
    signed: str = field(repr=False)
    jitter: float
    made_at: float

    def says_the_same(self, other: Snapshot) -> bool:
        """Apart from when it was signed."""
        return (self.bundle, self.federated, self.revocations) == (other.bundle, other.federated, other.revocations)

    def state(self, version: int, entries: list[bytes]) -> Any:
        """``State`` of ``identity.ca_api``."""
        return api.State(
            version=version,
            entries=entries,
            bundle=self.bundle,
            federated=self.federated,
            revocations=self.signed,
            renew_now=self.revocations.tainted,
            jitter=self.jitter,
        )


class Watching:
    """``changed``: called after each new snapshot. See the module."""

    def __init__(self, service: CaService, changed: Callable[[Snapshot], None] = lambda snapshot: None) -> None:
        self._service = service
        self._changed = changed
        self._limiter = trio.CapacityLimiter(1)
        self._woken = trio.Event()
        self._snapshot: Snapshot | None = None
        self.version = 0
        self.watchers = 0

    @property
    def snapshot(self) -> Snapshot:
        """Only after ``run`` has started."""
        if self._snapshot is None:
            raise RuntimeError("nothing was read yet")
        return self._snapshot

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the authority until cancelled. Raises CaError when the very first look fails."""
        counter = await self._in_thread(self._service.changed)
        await self._look()
        task_status.started()
        while True:
            try:
                found = await self._in_thread(partial(self._service.wait_change, counter, _WAIT))
                if found != counter or self._is_old():
                    await self._look()
                counter = found
            except (CaError, IdentityFileError) as error:
                log.error("changes cannot be followed", extra={"event": "ca.trouble", "problem": str(error)})
                await trio.sleep(_AFTER_TROUBLE)

    async def wait(self, seen: int) -> int:
        """Until ``version`` is not ``seen``; gives it."""
        while self.version == seen:
            await self._woken.wait()
        return self.version

    def wake(self) -> None:
        self.version += 1
        self._woken.set()
        self._woken = trio.Event()

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        return await trio.to_thread.run_sync(function, limiter=self._limiter, abandon_on_cancel=True)

    def _is_old(self) -> bool:
        return trio.current_time() - self.snapshot.made_at >= self._service.settings.refresh_hint

    async def _look(self) -> None:
        at, before = trio.current_time(), self._snapshot
        found: Snapshot = await self._in_thread(lambda: self._read(at))
        if before is None or self._is_old() or not found.says_the_same(before):
            self._snapshot = found
            self._changed(found)
        self.wake()

    def _read(self, at: float) -> Snapshot:
        service, moment = self._service, now()
        bundle = service.bundle()
        try:
            signed = service.signed_revocations(moment)
        except StoreUnavailable:
            signed = ""  # no issuing authority yet: nothing was issued that could be revoked
        federated = tuple(
            api.Bundle(trust_domain=name, document=found.document)
            for name, found in service.federated().items()
            if found.document != EMPTY_DOCUMENT
        )
        return Snapshot(
            sequence=bundle.sequence,
            roots=bundle.trust_bundle,
            bundle=bundle_message(bundle),
            federated=federated,
            revocations=service.revocations(moment),
            signed=signed,
            jitter=min(service.settings.svid_ttl / 4, _LONGEST_JITTER),
            made_at=at,
        )
