"""The sidecar's own identity for its own app: Workload API and Envoy SDS on a socket (``identity.serve``).

There is one identity here, and who can open the socket may have it: it is made with mode 0660, so the file system
says who that is. In a pod it lies in a volume that only the app's containers mount; their processes may be in another
pid namespace, where the kernel shows no pid of theirs, so the callers are not looked at more closely than that. A
machine with several workloads runs `sidewall agent` instead, which attests every caller.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio

from config.live import Live
from identity.bundle import Bundle
from identity.rpc import Caller, Methods, RpcError, Status
from identity.sds import Sds
from identity.spiffe import SpiffeId
from identity.svid import X509Context
from identity.workload_api import WorkloadApi, WorkloadBundle, WorkloadJwt, WorkloadSvid
from proxy.net.listener import Address as SocketAddress
from proxy.net.listener import bind
from proxy.net.poller import Poller
from proxy.rpc.server import RpcServer


class Guest:
    """A process that could open the socket. ``pid`` is 0 when it is in another pid namespace."""

    def __init__(self, pid: int, uid: int, gid: int) -> None:
        self.pid, self.uid, self.gid = pid, uid, gid
        self._here = True

    @classmethod
    def of(cls, sock: socket.socket) -> Guest:
        """By SO_PEERCRED."""
        size = struct.calcsize("3i")
        return cls(*struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)))

    def still_there(self) -> bool:
        return self._here

    def close(self) -> None:
        self._here = False


class OwnIdentity:
    """An ``IdentitySource`` of one identity. ``bundles``: with the JWT authorities, where they are known."""

    def __init__(self, bundles: Callable[[], Mapping[str, Bundle]] = dict) -> None:
        self._bundles = bundles
        self._context: X509Context | None = None
        self._version = 0
        self._moved = trio.Event()

    def use(self, context: X509Context) -> None:
        """A new SVID or bundle."""
        self._context = context
        self._version += 1
        self._moved.set()
        self._moved = trio.Event()

    @property
    def version(self) -> int:
        return self._version

    async def wait_change(self, seen: int) -> int:
        while self._version == seen:
            await self._moved.wait()
        return self._version

    def _known(self) -> X509Context:
        if self._context is None:
            raise RpcError(Status.UNAVAILABLE, "the sidecar has no identity yet")
        return self._context

    async def svids_for(self, caller: Caller) -> Sequence[WorkloadSvid]:
        return [WorkloadSvid(self._known().svid)]

    async def bundles_for(self, caller: Caller) -> Mapping[str, WorkloadBundle]:
        documents = self._bundles()
        return {
            name: WorkloadBundle(bundle.authorities, documents[name].jwt_document())
            if name in documents
            else WorkloadBundle(bundle.authorities)
            for name, bundle in self._known().bundles.items()
        }

    async def jwt_svids(
        self, caller: Caller, spiffe_id: SpiffeId | None, audiences: Sequence[str]
    ) -> Sequence[WorkloadJwt]:
        raise RpcError(Status.PERMISSION_DENIED, "a sidecar has no JWT-SVIDs; `sidewall agent` gives them")

    async def validate(self, token: str, audience: str, bundles: Mapping[str, WorkloadBundle]) -> tuple[str, Any]:
        raise ValueError("a sidecar does not judge JWT-SVIDs; `sidewall agent` does")


def methods(source: OwnIdentity) -> Methods:
    return {**WorkloadApi(source, source.validate).methods(), **Sds(source).methods()}


async def serve(poller: Poller, path: str, live: Live[X509Context | None], source: OwnIdentity) -> None:
    """Serve until cancelled. Raises ListenFailed."""
    server = RpcServer(poller, methods(source), local_peer=Guest.of)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        server.listen(bind(SocketAddress(path=path), mode=0o660))
        seen = -1
        while True:
            if live.value is not None:
                source.use(live.value)
            seen = await live.wait_change(live.generation if seen < 0 else seen)
