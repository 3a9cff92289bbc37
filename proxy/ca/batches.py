"""Issuing for many callers at once: what was asked while a transaction runs shares the next one.

A durable transaction costs the same for one certificate as for a hundred, and so does handing work to a thread; what
is asked for in the meantime is therefore collected. Two workers take turns, so that one signs while the other waits
for the disk. The queue is bounded, and what has waited too long is not worked on: nobody waits for it any more (C-6).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from identity.ca.issuing import X509Request
from identity.ca.model import CaError, Issued
from identity.ca.service import CaService
from identity.disk import IdentityFileError
from identity.rpc import RpcError, Status
from proxy.ca.work import as_rpc_error, now

_WORKERS: Final = 2
_LARGEST: Final = 200  # certificates in one transaction
_QUEUE: Final = 1000  # C-6
_PATIENCE: Final = 5.0  # seconds, C-6

Outcome = Issued | Exception


@dataclass(eq=False)
class _Asked:
    requests: Sequence[X509Request]
    since: float
    done: trio.Event = field(default_factory=trio.Event)
    outcomes: list[Outcome] = field(default_factory=list)
    problem: RpcError | None = None


class Batches:
    """``run`` does the work; ``issue`` asks for it."""

    def __init__(self, service: CaService, *, queue: int = _QUEUE, patience: float = _PATIENCE) -> None:
        self._service = service
        self._queue = queue
        self._patience = patience
        self._asked: deque[_Asked] = deque()
        self._limiter = trio.CapacityLimiter(_WORKERS)
        self._more = trio.Event()
        self.waiting = 0  # certificates

    async def issue(self, requests: Sequence[X509Request]) -> list[Outcome]:
        """What became of each. Raises RpcError: UNAVAILABLE when there is too much to do, or the authority's."""
        if self.waiting + len(requests) > self._queue:
            raise RpcError(Status.UNAVAILABLE, "the authority has too much to do: try again")
        mine = _Asked(requests, trio.current_time())
        self._asked.append(mine)
        self.waiting += len(requests)
        self._more.set()
        try:
            await mine.done.wait()
        except trio.Cancelled:
            if mine in self._asked:  # not begun: nobody wants it any more
                self._asked.remove(mine)
                self.waiting -= len(requests)
            raise
        if mine.problem is not None:
            raise mine.problem
        return mine.outcomes

    async def one(self, request: X509Request) -> Issued:
        """The same for one. Raises RpcError."""
        outcome = (await self.issue([request]))[0]
        if isinstance(outcome, CaError | IdentityFileError):
            raise as_rpc_error(outcome) from None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def run(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(_WORKERS):
                nursery.start_soon(self._work)

    async def _work(self) -> None:
        while True:
            batch = self._take()
            if not batch:
                self._more = trio.Event()
                await self._more.wait()
                continue
            await self._do(batch)

    def _take(self) -> list[_Asked]:
        """What comes next, without what has waited too long."""
        batch: list[_Asked] = []
        size, too_old = 0, trio.current_time() - self._patience
        while self._asked and (not batch or size + len(self._asked[0].requests) <= _LARGEST):
            asked = self._asked.popleft()
            self.waiting -= len(asked.requests)
            if asked.since < too_old:
                asked.problem = RpcError(Status.UNAVAILABLE, "the authority did not get to it in time: try again")
                asked.done.set()
                continue
            batch.append(asked)
            size += len(asked.requests)
        return batch

    async def _do(self, batch: list[_Asked]) -> None:
        """Raises nothing but what is a bug."""
        requests = [request for asked in batch for request in asked.requests]
        outcomes: list[Outcome] = []
        problem: RpcError | None = RpcError(Status.UNAVAILABLE, "the server has ended")
        try:
            outcomes = await trio.to_thread.run_sync(
                lambda: self._service.issue_many(requests, now()), limiter=self._limiter
            )
            problem = None
        except (CaError, IdentityFileError) as error:
            problem = as_rpc_error(error)
        finally:  # whatever happened, nobody is left waiting
            for asked in batch:
                count = len(asked.requests)
                asked.outcomes, outcomes = outcomes[:count], outcomes[count:]
                asked.problem = problem
                asked.done.set()
