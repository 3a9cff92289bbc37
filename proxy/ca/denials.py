"""Refusals go into the journal (C-18), but a flood of them must not: each is a durable transaction.

So many a second are written; those in between are counted, and the next one that is written says how many."""

from __future__ import annotations

import logging
from typing import Final

import trio

from identity.ca.model import CaError, CallerFacts
from identity.ca.service import CaService
from identity.disk import IdentityFileError
from identity.rpc import Call, Caller, Unary
from proxy.ca.rates import Rate
from proxy.ca.work import Refused, now

log = logging.getLogger("proxy.ca")
_LONGEST: Final = 200  # characters of anything that a caller chose


def host_of(caller: Caller) -> str:
    """Whose attempts are counted together: an address without its port, or a user of this machine."""
    if caller.local is not None:
        return f"uid:{caller.local.uid}"
    return caller.address.rpartition(":")[0].strip("[]")


def facts_of(caller: Caller, kind: str = "", name: str = "", detail: str = "") -> CallerFacts:
    """Who called, for the journal. On a Unix socket with pid and uid."""
    local = caller.local
    if local is not None:
        detail = f"pid={local.pid} uid={local.uid} {detail}".rstrip()
        return CallerFacts(kind or "local", name or f"uid:{local.uid}", caller.address, detail[:_LONGEST])
    uri = caller.peer.uri if caller.peer is not None else ""
    kind = kind or ("node" if uri else "stranger")
    return CallerFacts(kind, name or uri, caller.address, detail[:_LONGEST])


class Denials:
    """Writes refusals down, at a bounded rate."""

    def __init__(self, service: CaService, rate: Rate) -> None:
        self._service = service
        self._rate = rate
        self._limiter = trio.CapacityLimiter(1)
        self.total = 0
        self._untold = 0

    def guard(self, handler: Unary) -> Unary:
        """``handler``, whose refusals are written down."""

        async def guarded(call: Call, request: bytes) -> bytes:
            try:
                return await handler(call, request)
            except Refused as refusal:
                await self.note(call.caller, refusal.subject, f"{call.method}: {refusal.message}")
                raise

        return guarded

    async def note(self, caller: Caller, subject: str, reason: str) -> None:
        """Somebody was refused ``subject``. Does not fail: the refusal stands, whatever happens to its record."""
        self.total += 1
        facts = facts_of(caller)
        extra = {"event": "ca.denied", "subject": subject[:_LONGEST], "reason": reason, "address": facts.address}
        try:
            self._rate.check("", trio.current_time())
        except Refused:
            self._untold += 1
            return
        log.warning("refused", extra=extra)
        if self._untold:
            reason, self._untold = f"{reason} ({self._untold} more were not written down)", 0
        await trio.to_thread.run_sync(self._write, subject[:_LONGEST], reason, facts, limiter=self._limiter)

    def _write(self, subject: str, reason: str, facts: CallerFacts) -> None:
        try:
            self._service.record_denial(subject, reason, caller=facts, now=now())
        except (CaError, IdentityFileError) as error:
            log.error("a refusal is not in the journal", extra={"event": "ca.trouble", "problem": str(error)})
