"""Quarantine of a running proxy: the administrative page, the file that survives a restart, and what was cut.

The blocks are kept beside the administrative socket (``api.sock`` -> ``api.quarantine.json``, mode 0600), where the
workers of one proxy share them. A file that cannot be read is a reason to serve nobody: whom it held is not known.
Without an administrative socket there is nothing that could set a quarantine, and nothing is kept.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import trio

from identity.disk import IdentityFileError, write_private
from proxy.admin import Reply, Request, json_reply, text_reply
from proxy.http.exchange import Exchange
from proxy.lifecycle import Worker
from proxy.net.splice import Splice
from proxy.policy.quarantine import MAX_BLOCKS, Block, Quarantine, block_from_json

_LARGEST: Final = MAX_BLOCKS * 64 * 1024  # bytes of the file

log = logging.getLogger("proxy.quarantining")


class QuarantineUnreadable(Exception):
    """The file is damaged. The text names it and says what to do."""


def file_for(socket: str) -> Path | None:
    """Where the blocks of the proxy behind the administrative ``socket`` are kept."""
    return Path(socket).with_suffix(".quarantine.json") if socket else None


def load(path: Path | None, now: float) -> Quarantine:
    """The blocks that still hold at ``now``. Raises QuarantineUnreadable."""
    try:
        if path is None or not path.exists():
            return Quarantine()
        with path.open("rb") as file:
            return Quarantine.from_json(file.read(_LARGEST)).live(now)
    except (OSError, ValueError) as error:
        hint = "put it right, or remove it to let everybody out"
        raise QuarantineUnreadable(f"{path} cannot be read: {error}; {hint}") from None


class Quarantining:
    """The page of one worker."""

    def __init__(self, worker: Worker, path: Path | None) -> None:
        self._worker = worker
        self._path = path
        self._lock = trio.Lock()

    async def show(self, request: Request) -> Reply:
        """GET: who is in quarantine."""
        return json_reply({"items": self._current().as_json()})

    async def change(self, request: Request) -> Reply:
        """POST ``{"block": {...}, "rehearse": bool}`` or ``{"lift": PRINCIPAL}``. Answers what was (or would be) cut:
        ``streams``, ``connections``, and in how many ``milliseconds``."""
        try:
            wish = json.loads(request.body)
            block = block_from_json(wish["block"]) if "block" in wish else None
            lift = "" if block is not None else str(wish["lift"])
        except (ValueError, KeyError, TypeError) as error:
            return text_reply(f"not a quarantine: {error}\n", 400)
        async with self._lock:
            if block is None:
                return await self._lift(lift)
            return await self._block(block, rehearse=bool(wish.get("rehearse")))

    def _current(self) -> Quarantine:
        return (self._worker.quarantine or Quarantine()).live(time.time())

    async def _block(self, block: Block, *, rehearse: bool) -> Reply:
        try:
            wanted = self._current().with_block(block)
        except ValueError as error:
            return text_reply(f"{error}\n", 409)
        if rehearse:
            streams, splices = list(self._hit(Quarantine([block]))), list(self._spliced(Quarantine([block])))
            return self._answer(block.principal, len(streams), len(splices), 0.0, "would be cut")
        began = time.perf_counter()
        streams, splices = list(self._open()), list(self._worker.splices)
        self._worker.set_quarantine(wanted)
        took = time.perf_counter() - began
        cut = sum(exchange.finished for exchange in streams), sum(one not in self._worker.splices for one in splices)
        facts = {"event": "quarantine.begun", "principal": block.principal, "streams": cut[0], "connections": cut[1]}
        log.warning("identity in quarantine", extra=facts)
        if (problem := await self._keep(wanted)) is not None:
            return problem
        return self._answer(block.principal, *cut, took, "cut")

    async def _lift(self, principal: str) -> Reply:
        current = self._current()
        if principal not in current.blocks:
            return text_reply(f"{principal} is not in quarantine\n", 404)
        wanted = current.without(principal)
        if (problem := await self._keep(wanted)) is not None:
            return problem
        self._worker.set_quarantine(wanted)
        log.warning("quarantine lifted", extra={"event": "quarantine.lifted", "principal": principal})
        return self._answer(principal, 0, 0, 0.0, "lifted")

    async def _keep(self, wanted: Quarantine) -> Reply | None:
        """On disk, or the answer that says why it is not; what is refused is refused in either case."""
        if self._path is None:
            return None
        data = json.dumps(wanted.as_json()).encode()
        try:
            await trio.to_thread.run_sync(write_private, self._path, data)
        except (OSError, IdentityFileError) as error:
            return text_reply(f"in force, but not kept for the next start: {error}\n", 500)
        return None

    def _answer(self, principal: str, streams: int, connections: int, took: float, what: str) -> Reply:
        facts: dict[str, Any] = {"principal": principal, "what": what, "workload": self._worker.principal}
        facts |= {"streams": streams, "connections": connections, "milliseconds": round(took * 1000, 3)}
        return json_reply(facts)

    # -- what is open ---------------------------------------------------------------------------------------

    def _open(self) -> Iterator[Exchange]:
        for connection in self._worker.connections:
            yield from connection.exchanges.values()

    def _hit(self, quarantine: Quarantine) -> Iterator[Exchange]:
        own, now = self._worker.principal, time.time()
        for exchange in self._open():
            peer, far = exchange.record.peer, exchange.record.upstream_peer
            inward = peer is not None and quarantine.hit(peer.principal, own, now)
            if inward or (far is not None and quarantine.hit(own, far.principal, now)):
                yield exchange

    def _spliced(self, quarantine: Quarantine) -> Iterator[Splice]:
        # What a splice carries is known to its judge alone: ask it as if the quarantine were in force.
        before, worker = self._worker.quarantine, self._worker
        worker.quarantine = quarantine
        try:
            yield from [splice for splice in worker.splices if splice.judge is not None and splice.judge()]
        finally:
            worker.quarantine = before

