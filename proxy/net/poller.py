"""One epoll for all data connections of a worker, drained by one trio task.

Why not one trio task per connection? Measured on a two-core machine, a bare TLS-to-plaintext relay costs
60 us of CPU per HTTP/1.1 request at 32 connections with two tasks per connection, and 28 us when one task
reads all ready connections and calls their owners synchronously: a task switch and two epoll_ctl calls are
saved for each read. trio keeps everything that waits for something else than bytes: accepting, dialling,
timers, configuration, administration.

Theory of operation. The epoll object is itself a file descriptor that trio can wait for, so an idle worker
sleeps in trio. Once something is ready the task stays here: it polls, calls ``on_ready`` of each owner, then
lets everything that was touched flush its output once (``mark_dirty``), and lingers up to a millisecond in
its own poll for the answer to what it has just sent. Lingering avoids two passes through trio's scheduler
for each request of a lone connection; it delays other tasks by a millisecond at most, because ``SPELL``
forces a checkpoint.

Rules for owners: ``on_ready`` never blocks and never awaits; an exception that escapes it is a bug, is
reported once, and costs that connection only (``on_crash``).
"""

from __future__ import annotations

import heapq
import itertools
import logging
import select
import time
from collections.abc import Callable
from typing import Final, Protocol

import trio

READ: Final = select.EPOLLIN | select.EPOLLRDHUP
WRITE: Final = select.EPOLLOUT
_BATCH: Final = 16  # owners called before the flush: larger batches save system calls, smaller ones save latency
_LINGER: Final = 0.001  # seconds
_SPELL: Final = 0.004  # seconds between two checkpoints of a busy worker

log = logging.getLogger("proxy.net")


class Owner(Protocol):
    """What a registered descriptor belongs to."""

    def on_ready(self, mask: int) -> None: ...

    def on_crash(self, error: Exception) -> None: ...

    def release(self) -> None:
        """The poller is going away: close the descriptor, tell nobody."""


class Flushable(Protocol):
    """Something that collected output while events were dispatched."""

    def flush(self) -> None: ...

    def on_crash(self, error: Exception) -> None: ...


class Timer:
    """A callback at a monotonic time; ``cancel`` makes it do nothing."""

    __slots__ = ("action", "when")

    def __init__(self, when: float, action: Callable[[], None]) -> None:
        self.when = when
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self.action = None


class Poller:
    """Readiness, flushing and timers of one worker. ``now`` is the monotonic time of the current dispatch.

    ``linger``: seconds, see the module's text; 0 where several pollers share one thread (tests)."""

    def __init__(self, linger: float = _LINGER) -> None:
        self._linger = linger
        self.now = time.monotonic()
        self.lag = 0.0  # seconds the last round of dispatching took: the event-loop lag gauge reads it
        self.crashes = 0
        self._epoll = select.epoll()
        self._owners: dict[int, Owner] = {}
        self._dirty: list[Flushable] = []
        self._dispatching = False
        self._token: trio.lowlevel.TrioToken | None = None
        self._heap: list[tuple[float, int, Timer]] = []
        self._sequence = itertools.count()
        self._rearm = trio.Event()

    def __len__(self) -> int:
        return len(self._owners)

    def wall(self) -> float:
        """Seconds since the epoch, for records."""
        return time.time()

    # -- readiness ------------------------------------------------------------------------------------

    def register(self, fd: int, owner: Owner, mask: int) -> None:
        self._epoll.register(fd, mask)
        self._owners[fd] = owner

    def modify(self, fd: int, mask: int) -> None:
        self._epoll.modify(fd, mask)

    def unregister(self, fd: int) -> None:
        """Forget a descriptor that is about to be closed; unknown ones are ignored."""
        if self._owners.pop(fd, None) is not None:
            try:
                self._epoll.unregister(fd)
            except OSError:
                pass  # closed already: the kernel has forgotten it

    # -- flushing -------------------------------------------------------------------------------------

    def mark_dirty(self, item: Flushable) -> None:
        """Have ``item.flush()`` called at the end of this dispatch, or soon when called from a trio task."""
        self._dirty.append(item)
        if not self._dispatching and len(self._dirty) == 1 and self._token is not None:
            self._token.run_sync_soon(self.flush, idempotent=True)

    def flush(self) -> None:
        """Flush everything marked dirty, and what that marks in turn."""
        self._dispatching = True
        try:
            while self._dirty:
                items, self._dirty = self._dirty, []
                for item in items:
                    try:
                        item.flush()
                    except Exception as error:
                        self._crash(item, error)
        finally:
            self._dispatching = False

    # -- timers ---------------------------------------------------------------------------------------

    def call_at(self, when: float, action: Callable[[], None]) -> Timer:
        """Call ``action`` in the dispatch context at monotonic time ``when``."""
        timer = Timer(when, action)
        heapq.heappush(self._heap, (when, next(self._sequence), timer))
        if self._heap[0][2] is timer:
            self._rearm.set()
        if len(self._heap) > 4096 and len(self._heap) & (len(self._heap) - 1) == 0:
            self._forget_cancelled()
        return timer

    def _forget_cancelled(self) -> None:
        # Called whenever the heap reaches a power of two, so that cancelled deadlines cannot pile up.
        self._heap = [entry for entry in self._heap if entry[2].action is not None]
        heapq.heapify(self._heap)

    def fire_due(self) -> None:
        """Run the timers that are due."""
        while self._heap and self._heap[0][0] <= self.now:
            timer = heapq.heappop(self._heap)[2]
            if timer.action is not None:
                self.run(timer.action)

    def run(self, action: Callable[[], None]) -> None:
        """Run ``action`` as if an event had called it: output is flushed once, afterwards."""
        self.now = max(self.now, time.monotonic())
        self._dispatching = True
        try:
            action()
        except Exception:
            self.crashes += 1
            log.exception("a timer failed", extra={"event": "bug"})
        finally:
            self._dispatching = False
        self.flush()

    async def _run_timers(self) -> None:
        while True:
            self._rearm = trio.Event()
            self.now = time.monotonic()
            self.fire_due()
            wait = self._heap[0][0] - time.monotonic() if self._heap else 3600.0
            with trio.move_on_after(max(wait, 0.0)):
                await self._rearm.wait()

    # -- the loop -------------------------------------------------------------------------------------

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Dispatch until cancelled."""
        self._token = trio.lowlevel.current_trio_token()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_timers)
                task_status.started()
                await self._read_all()
        finally:
            self._token = None

    async def _read_all(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            began = time.monotonic()
            while self.dispatch(self._linger):
                if self.now - began > _SPELL:
                    await trio.lowlevel.checkpoint()
                    began = time.monotonic()

    def dispatch(self, timeout: float) -> int:
        """Wait up to ``timeout`` seconds, call every ready owner, flush. Returns how many were ready."""
        events = self._epoll.poll(timeout, _BATCH)
        if not events:
            return 0
        self.now = began = time.monotonic()
        self._dispatching = True
        owners = self._owners
        for fd, mask in events:
            owner = owners.get(fd)
            if owner is None:
                continue  # closed by an earlier owner of this batch
            try:
                owner.on_ready(mask)
            except Exception as error:
                self._crash(owner, error)
        self.flush()
        self.lag = time.monotonic() - began
        return len(events)

    def _crash(self, item: Owner | Flushable, error: Exception) -> None:
        self.crashes += 1
        log.error("internal error on a connection", exc_info=error, extra={"event": "bug"})
        try:
            item.on_crash(error)
        except Exception:
            log.exception("closing after an internal error failed", extra={"event": "bug"})

    def close(self) -> None:
        """Close every descriptor that is still watched (lingering connections, unfinished dials), then the epoll."""
        for owner in list(self._owners.values()):
            owner.release()
        self._epoll.close()
