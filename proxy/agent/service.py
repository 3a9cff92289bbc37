"""`sidewall agent`: one process for a machine with many workloads.

    the authority  <- CaSource (who we are, entries, bundles, revocations)
                   <- NodeWorkloads (SVIDs of the workloads)      <-  Workload API, Envoy SDS, on one Unix socket

The socket is open to every user of the machine: who calls is seen by the kernel and decides what is given out.
Without an identity of its own, or while nothing is known of entries, the agent answers UNAVAILABLE, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from config.live import Live
from config.model import Authority
from identity.attest.unix import UnixPeer
from identity.ca_api import api
from identity.disk import IdentityFileError
from identity.rpc import Call, Method, Methods
from identity.sds import Sds
from identity.svid import X509Context
from identity.workload_api import WorkloadApi
from proxy.agent.build import from_authority
from proxy.agent.workloads import NodeWorkloads
from proxy.net.listener import Address, bind
from proxy.net.poller import Poller
from proxy.rpc.server import RpcServer

log = logging.getLogger("proxy.agent")

WHY: Final = "/sidewall.agent.v1.Agent/Why"  # unary Empty -> AdminReply: JSON, for `identity why`
_DRAIN: Final = 2.0  # seconds


@dataclass(frozen=True, slots=True)
class Options:
    """``authority``: where it is and how to prove who we are; ``folder``: of a machine that joined; ``account``: path
    of the node's own SPIFFE ID where there is a choice; ``socket``: where workloads ask."""

    authority: Authority
    folder: Path
    account: str
    socket: Path


class Agent:
    """See the module."""

    def __init__(self, options: Options) -> None:
        """Raises IdentityFileError for settings that cannot work."""
        self._options = options
        self._poller = Poller()
        self._stop = trio.Event()
        self.live: Live[X509Context | None] = Live(None)
        self.source = from_authority(
            options.authority, options.folder, options.account, on_event=_tell, changed=self._changed
        )
        self.workloads = NodeWorkloads(self.source)

    def _changed(self) -> None:
        self.workloads.changed()

    def methods(self) -> Methods:
        return {
            **WorkloadApi(self.workloads, self.workloads.validate).methods(),
            **Sds(self.workloads, _tell).methods(),
            WHY: Method("unary", self._why),
        }

    async def _why(self, call: Call, request: bytes) -> bytes:
        selectors, got, near = await self.workloads.explain(call.caller)
        node = self.live.value
        answer = {
            "node": str(node.id) if node is not None else "",
            "selectors": sorted(selectors),
            "identities": [
                {"spiffeId": str(one.spiffe_id), "entry": one.entry.id, "selectors": list(one.entry.selectors)}
                for one in got
            ],
            "near": [
                {"spiffeId": one.entry.spiffe_id, "entry": one.entry.id, "missing": list(one.missing), "why": one.why}
                for one in near
            ],
        }
        reply: bytes = api.AdminReply(json=json.dumps(answer).encode()).SerializeToString()
        return reply

    # -- life -----------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until SIGTERM; the exit code. Raises ListenFailed."""
        path = self._options.socket
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        sock = bind(Address(path=str(path)), mode=0o777)  # who calls is attested
        server = RpcServer(self._poller, self.methods(), local_peer=UnixPeer.of)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._signals)
                await nursery.start(self._poller.serve)
                await nursery.start(server.run)
                server.listen(sock)
                await nursery.start(self.workloads.run)
                nursery.start_soon(self.source.run, self.live)
                nursery.start_soon(self._follow)
                facts = {"event": "started", "socket": str(path), "authority": str(self.source.way)}
                log.info("serving", extra=facts)
                await self._stop.wait()
                await server.drain(_DRAIN)
                nursery.cancel_scope.cancel()
        finally:
            self._poller.close()
            with contextlib.suppress(OSError):
                os.unlink(path)
        log.info("stopped", extra={"event": "stopped"})
        return 0

    async def _follow(self) -> None:
        seen = 0
        while True:
            seen = await self.live.wait_change(seen)
            self.workloads.changed()

    async def _signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async for _ in received:
                self._stop.set()


def _tell(name: str, facts: Mapping[str, object]) -> None:
    level = logging.INFO if name in ("identity_updated", "sds_refused") else logging.WARNING
    log.log(level, name, extra={"event": name, **facts})


def serve(options: Options) -> int:
    """Run an agent; the exit code: 78 for settings that cannot work."""
    try:
        agent = Agent(options)
    except IdentityFileError as error:
        log.error("%s: %s; %s", error.path, error.problem, error.hint)
        return 78
    return trio.run(agent.run)
