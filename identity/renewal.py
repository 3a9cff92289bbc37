"""Keeping one ``Live[X509Context]`` fresh: when to renew (plain functions of time), and the tasks that do it.

Two sources, one rule: what is in ``live`` was checked as a peer would check it, and it is only ever replaced
by something that was checked too (all or nothing). A failure is reported through ``on_event`` and leaves the
old identity in place, which is served until its notAfter and then refused by those who use it (C-14).

``FileSource`` reads what somebody else renews: SPIRE's helper, cert-manager, a Kubernetes volume. It
compares contents, not times or inode numbers, because the ``..data`` swap of a volume changes the files
without touching their names. Between two renames key and certificate do not fit; that reads as a failure of
this second and is right in the next one.

``LocalCaSource`` issues from an offline CA's folder: at half life, each time with a new key that exists in
memory only (C-2).

Waiting uses trio's clock, validity the wall clock. The two drift apart when a machine sleeps or its clock is
set, so no wait is longer than ``_TICK`` seconds, and what is due is asked of the wall clock each time (C-17).

Events (name, fields): ``identity_updated`` spiffe_id, serial, not_after; ``identity_refused`` path, problem,
hint, failures (each new problem once); ``identity_expiring`` and ``identity_expired`` spiffe_id, not_after.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

import trio

from identity import authority, files
from identity.authority import IssueError
from identity.disk import IdentityFileError, StrPath
from identity.spiffe import SpiffeId
from identity.svid import X509Context

_POLL: Final = 1.0  # seconds between two looks at files
_TICK: Final = 10.0  # seconds: the longest wait without a look at the wall clock
_BACKOFF_FIRST: Final = 1.0
_BACKOFF_LAST: Final = 60.0
_ALARM: Final = 0.25  # the part of the life that is left when we begin to complain (C-14)

Wall = Callable[[], float]
OnEvent = Callable[[str, Mapping[str, object]], None]


class LiveContext(Protocol):
    """What this module needs of ``config.live.Live[X509Context | None]``."""

    @property
    def value(self) -> X509Context | None: ...

    def set(self, value: X509Context, /) -> object: ...


def renew_at(not_before: float, not_after: float, rng: random.Random) -> float:
    """When to renew, in seconds of the epoch: at half of the life, up to 10 % of it sooner or later (C-14).

    ``not_before``: when the SVID was received. Its own notBefore is backdated, and half of that life may be
    over already when the life is short."""
    return not_before + (not_after - not_before) * 0.5 * rng.uniform(0.9, 1.1)


def backoff(failures: int, rng: random.Random) -> float:
    """Seconds until the next try after ``failures`` failures in a row: 1, 2, 4 ... 60, each +-50 %."""
    step = min(_BACKOFF_LAST, _BACKOFF_FIRST * 2.0 ** min(max(failures, 1) - 1, 16))
    return step * rng.uniform(0.5, 1.5)


def alarm_at(not_before: float, not_after: float) -> float:
    """When a quarter of the life is left: an SVID this old should have been renewed long ago."""
    return not_after - (not_after - not_before) * _ALARM


class _Expiry:
    """Says once for each SVID that it is about to lapse, and once that it has."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._since = 0.0
        self._told: set[str] = set()

    def begin(self, since: float) -> None:
        """A new SVID came into use, whose life counts from ``since``."""
        self._since = since
        self._told.clear()

    def look(self, context: X509Context | None, now: float) -> None:
        if context is None:
            return
        if now > context.not_after:
            self._tell("identity_expired", context)
        elif now >= alarm_at(self._since, context.not_after):
            self._tell("identity_expiring", context)

    def _tell(self, name: str, context: X509Context) -> None:
        if name not in self._told:
            self._told.add(name)
            self._on_event(name, {"spiffe_id": str(context.id), "not_after": context.not_after})


class RenewedSource:
    """What both sources share: the published value, its events, and the waiting."""

    def __init__(self, on_event: OnEvent, wall: Wall, rng: random.Random | None) -> None:
        self._wall = wall
        self._rng = rng or random.SystemRandom()
        self._on_event = on_event
        self._expiry = _Expiry(on_event)
        self._poked = trio.Event()
        self._failures = 0
        self._last_refusal: str | None = None

    def poke(self) -> None:
        """Look now, not only when the wait is over. May be called from any task of trio's thread."""
        self._poked.set()

    async def _wait(self, seconds: float) -> bool:
        """Wait, or until poked. True when poked."""
        with trio.move_on_after(seconds):
            await self._poked.wait()
        was_poked = self._poked.is_set()
        self._poked = trio.Event()
        return was_poked

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._wall(), UTC)

    def _publish(self, live: LiveContext, context: X509Context, since: float) -> None:
        self._failures = 0
        self._last_refusal = None
        self._expiry.begin(since)
        live.set(context)
        serial = f"{context.svid.leaf.serial_number:x}"
        facts = {"spiffe_id": str(context.id), "serial": serial, "not_after": context.not_after}
        self._on_event("identity_updated", facts)

    def _report(self, error: Exception, path: StrPath) -> None:
        """Any failure: an identity that cannot be renewed must not end the proxy that still has one."""
        self._failures += 1
        if isinstance(error, IdentityFileError):
            facts = {"path": error.path, "problem": error.problem, "hint": error.hint}
        else:
            problem = str(error) if isinstance(error, IssueError) else repr(error)
            facts = {"path": os.fspath(path), "problem": problem, "hint": "check the files named here"}
        if repr(error) != self._last_refusal:  # a broken file is one event, not one a second
            self._last_refusal = repr(error)
            self._on_event("identity_refused", {**facts, "failures": self._failures})


class FileSource(RenewedSource):
    """An SVID, its key and bundles in files that others renew."""

    def __init__(
        self,
        cert: StrPath,
        key: StrPath,
        bundle: StrPath,
        *,
        on_event: OnEvent,
        federated: Mapping[str, StrPath] | None = None,
        wall: Wall = time.time,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(on_event, wall, rng)
        self._paths = files.SvidPaths(cert, key, bundle, federated or {})
        self._digest = b""  # of the contents that are in use

    async def run(self, live: LiveContext, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep ``live`` up to date for ever. Started after the first look, successful or not."""
        await self._look(live)
        task_status.started()
        while True:
            await self._wait(_POLL)
            await self._look(live)

    async def _look(self, live: LiveContext) -> None:
        try:
            # In a thread: a network disk that hangs must not stop the proxy.
            contents = await trio.to_thread.run_sync(self._paths.read, abandon_on_cancel=True)
            self._take(live, contents)
        except Exception as error:
            self._report(error, self._paths.cert)
        self._expiry.look(live.value, self._wall())

    def _take(self, live: LiveContext, contents: Mapping[StrPath, bytes]) -> None:
        digest = _digest(contents)
        if digest == self._digest:
            self._failures = 0
            self._last_refusal = None
            return
        context = files.make_x509_context(self._paths, contents, now=self._now())
        self._digest = digest
        self._publish(live, context, context.not_before)


class LocalCaSource(RenewedSource):
    """SVIDs of our own making, from the folder of an offline CA."""

    def __init__(
        self,
        ca_folder: StrPath,
        spiffe_id: SpiffeId,
        ttl: timedelta = authority.DEFAULT_TTL,
        *,
        on_event: OnEvent,
        wall: Wall = time.time,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(on_event, wall, rng)
        self._folder = Path(ca_folder)
        self._spiffe_id = spiffe_id
        self._ttl = ttl

    async def run(self, live: LiveContext, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep ``live`` fresh for ever. Started after the first try, successful or not."""
        due = await self._renew(live)
        task_status.started()
        while True:
            poked = await self._wait(min(_TICK, max(due - self._wall(), 0.1)))
            now = self._wall()
            self._expiry.look(live.value, now)
            if poked or now >= due or self._stepped_back(live.value, now):
                due = await self._renew(live)

    def _stepped_back(self, context: X509Context | None, now: float) -> bool:
        """Whether the clock stands before our own SVID's begin: peers with a right clock may refuse it."""
        return context is not None and now < context.not_before

    async def _renew(self, live: LiveContext) -> float:
        """Issue and publish. Gives when to come again, in seconds of the epoch."""
        started = self._wall()
        try:
            context = await trio.to_thread.run_sync(self._issue, abandon_on_cancel=True)
        except Exception as error:
            self._report(error, self._folder)
            return started + backoff(self._failures, self._rng)
        self._publish(live, context, started)
        return renew_at(started, context.not_after, self._rng)

    def _issue(self) -> X509Context:
        now = self._now()
        ca = files.load_ca(self._folder, now=now)  # each time: a renewed CA is taken up without a restart
        svid = authority.issue(
            ca.authority, ca.bundle, self._spiffe_id, now=now, rng=random.SystemRandom(), ttl=self._ttl
        )
        return X509Context(svid, {ca.trust_domain: ca.bundle})


def _digest(contents: Mapping[StrPath, bytes]) -> bytes:
    whole = hashlib.sha256()
    for path, data in sorted((os.fspath(path), data) for path, data in contents.items()):
        whole.update(f"{path}\0{len(data)}\0".encode())
        whole.update(data)
    return whole.digest()
