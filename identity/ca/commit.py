"""Group commit: many callers, one durable transaction.

A commit waits for the disk, and all writers stand in one line anyway. So whoever comes while a transaction is on
its way puts his job into a queue. The first in the queue becomes the leader as soon as the one before has finished:
he takes everything that has gathered, commits it, and wakes the others of his batch with their answers. One fsync
then serves as many callers as there are; under no load a caller leads himself at once, without a thread in between.

A leader waits a moment for those who are just making their work. Otherwise he would take the first one of many, and
then hold the database's lock for as long as the others keep the interpreter busy with theirs.

The queue is bounded, and nobody waits in it for longer than the limit (C-6: 1 000, five seconds).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from identity.ca.model import StoreUnavailable

_T = TypeVar("_T")
_R = TypeVar("_R")

MAX_QUEUE: Final = 1000  # works
MAX_WAIT: Final = 5.0  # seconds in the queue
MAX_BATCH: Final = 256  # works; a transaction stays under a tenth of a second
_GATHER: Final = 0.005  # seconds to wait for work that is being made


class _Job(Generic[_T, _R]):
    """The works of one caller. ``woken`` is free when they are done, or when it is his turn to lead."""

    __slots__ = ("answers", "error", "leads", "woken", "works")

    def __init__(self, works: Sequence[_T]) -> None:
        self.works = works
        self.answers: Sequence[_R] = ()
        self.error: Exception | None = None
        self.leads = False
        self.woken = threading.Lock()
        self.woken.acquire()


class GroupCommit(Generic[_T, _R]):
    """``commit``: does a batch in one transaction; one answer for each, in order; raises when nothing was done."""

    def __init__(
        self,
        commit: Callable[[Sequence[_T]], Sequence[_R]],
        *,
        max_queue: int = MAX_QUEUE,
        max_wait: float = MAX_WAIT,
    ) -> None:
        self._commit = commit
        self._max_queue = max_queue
        self._max_wait = max_wait
        self._lock = threading.Condition()
        self._queue: deque[_Job[_T, _R]] = deque()
        self._waiting = 0  # works in the queue
        self._making = 0  # callers whose work is not in the queue yet
        self._is_led = False  # somebody is committing, or has been woken to

    def run(self, make: Callable[[], Sequence[_T]]) -> list[_R]:
        """The answers to the works that ``make`` gives. Raises what it or ``commit`` raised, StoreUnavailable when it
        took too long."""
        job = self._enter(make)
        if not job.works:
            return []
        if not job.leads and not job.woken.acquire(timeout=self._max_wait):
            self._leave(job)
        if job.leads:
            self._lead(job)
        if job.error is not None:
            raise job.error
        return list(job.answers)

    def _enter(self, make: Callable[[], Sequence[_T]]) -> _Job[_T, _R]:
        works: Sequence[_T] = ()
        with self._lock:
            self._making += 1
        try:
            works = make()
        finally:
            with self._lock:  # in one step, so that no leader goes between the making and the queue
                self._making -= 1
                job = self._put(works)
                self._lock.notify_all()
        return job

    def _put(self, works: Sequence[_T]) -> _Job[_T, _R]:
        job: _Job[_T, _R] = _Job(works)
        if works:
            if self._waiting + len(works) > self._max_queue:
                raise StoreUnavailable(f"{self._waiting} requests are waiting already")
            self._queue.append(job)
            self._waiting += len(works)
            job.leads, self._is_led = not self._is_led, True
        return job

    def _leave(self, job: _Job[_T, _R]) -> None:
        """The time is over. Raises StoreUnavailable, unless the answer or his turn to lead has just come."""
        with self._lock:
            if job.leads or job.answers or job.error is not None:
                return
            self._drop(job)
        raise StoreUnavailable(f"no transaction was finished within {self._max_wait:g} s")

    def _drop(self, job: _Job[_T, _R]) -> None:
        if job in self._queue:
            self._queue.remove(job)
            self._waiting -= len(job.works)

    def _lead(self, own: _Job[_T, _R]) -> None:
        batch: list[_Job[_T, _R]] = []
        try:
            batch = self._take()
            self._do(batch)
        finally:
            with self._lock:
                self._drop(own)  # only when it was broken off before it began
                self._is_led = bool(self._queue)
                if self._queue:
                    self._queue[0].leads = True
                    self._queue[0].woken.release()
            for job in batch:
                job.woken.release()

    def _take(self) -> list[_Job[_T, _R]]:
        """The first job of the queue, which is the leader's own, and as many after it as fit."""
        with self._lock:
            self._lock.wait_for(lambda: not self._making or self._waiting >= MAX_BATCH, _GATHER)
            batch: list[_Job[_T, _R]] = []
            size = 0
            while self._queue and (not batch or size + len(self._queue[0].works) <= MAX_BATCH):
                batch.append(self._queue.popleft())
                size += len(batch[-1].works)
            self._waiting -= size
        return batch

    def _do(self, batch: Sequence[_Job[_T, _R]]) -> None:
        try:
            answers = list(self._commit([work for job in batch for work in job.works]))
            for job in batch:
                job.answers, answers = answers[: len(job.works)], answers[len(job.works) :]
        except Exception as error:
            for job in batch:
                job.error = error
        except BaseException:  # of the leader alone: an interrupt from the keyboard
            for job in batch:
                job.error = StoreUnavailable("the transaction was broken off: try again")
            raise
