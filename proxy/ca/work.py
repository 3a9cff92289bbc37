"""Asking the authority from trio: its methods block, so they run in threads; and its errors become statuses.

There is room for so many at once; others wait their turn, at most ``_QUEUE`` of them and none longer than
``_PATIENCE`` seconds. Who would wait longer is told UNAVAILABLE and comes back (C-6): an answer that nobody waits
for any more is work taken from those who still do. Work that has begun is never abandoned, because it may be in the
middle of a transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TypeVar

import trio

from identity.ca.model import (
    CaError,
    Conflict,
    NoSuchThing,
    NotAllowed,
    StoreCorrupt,
    StoreUnavailable,
    UnsafeStep,
)
from identity.disk import IdentityFileError
from identity.rpc import RpcError, Status

_THREADS: Final = 16  # of issuing, which share one durable transaction (identity.ca.commit)
_QUEUE: Final = 1000  # C-6
_PATIENCE: Final = 5.0  # seconds, C-6

T = TypeVar("T")
log = logging.getLogger("proxy.ca")

_STATUSES: Final[tuple[tuple[type[Exception], Status], ...]] = (
    (NotAllowed, Status.PERMISSION_DENIED),
    (NoSuchThing, Status.NOT_FOUND),
    (Conflict, Status.ALREADY_EXISTS),
    (UnsafeStep, Status.FAILED_PRECONDITION),
    (StoreUnavailable, Status.UNAVAILABLE),
    (StoreCorrupt, Status.DATA_LOSS),
    (IdentityFileError, Status.INTERNAL),
    (ValueError, Status.INVALID_ARGUMENT),
)


def now() -> datetime:
    """The wall clock, for certificates and the journal."""
    return datetime.now(UTC)


def as_rpc_error(error: Exception, *, to_operator: bool = False) -> RpcError:
    """What a caller is told. The store's own troubles are for the operator; others hear only that there are some."""
    status = next((status for kind, status in _STATUSES if isinstance(error, kind)), None)
    if status is None:
        raise error
    if status in (Status.UNAVAILABLE, Status.DATA_LOSS, Status.INTERNAL) and not to_operator:
        log.error("the authority cannot do its work", extra={"event": "ca.trouble", "problem": str(error)})
        return RpcError(Status.UNAVAILABLE, "the authority cannot do this now; its log says why")
    return RpcError(status, str(error))


class Refused(RpcError):
    """We said no, by a rule of the server's own: it is to be journaled (``denials``). What the authority refuses in
    its transactions it journals itself, and that is a plain RpcError."""

    def __init__(self, message: str, status: Status = Status.PERMISSION_DENIED, *, subject: str = "") -> None:
        super().__init__(status, message)
        self.subject = subject


class Work:
    """Threads for the calls of one process."""

    def __init__(self, threads: int = _THREADS, queue: int = _QUEUE, patience: float = _PATIENCE) -> None:
        self._turns = trio.Semaphore(threads)
        self._limiter = trio.CapacityLimiter(threads)
        self._queue = queue
        self._patience = patience
        self.waiting = 0

    async def ask(self, function: Callable[[], T], *, to_operator: bool = False) -> T:
        """What ``function`` gives, run in a thread. Raises RpcError; UNAVAILABLE when its turn does not come."""
        await self._turn()
        try:
            return await trio.to_thread.run_sync(function, limiter=self._limiter)
        except (CaError, IdentityFileError, ValueError) as error:
            raise as_rpc_error(error, to_operator=to_operator) from None
        finally:
            self._turns.release()

    async def _turn(self) -> None:
        if self.waiting >= self._queue:
            raise RpcError(Status.UNAVAILABLE, "the authority has too much to do: try again")
        self.waiting += 1
        try:
            with trio.move_on_after(self._patience) as patience:
                await self._turns.acquire()
        finally:
            self.waiting -= 1
        if patience.cancelled_caught:
            raise RpcError(Status.UNAVAILABLE, "the authority did not get to it in time: try again")
