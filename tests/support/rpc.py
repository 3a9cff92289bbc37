"""An RPC server of ours on a Unix socket in a short folder, and a caller whose process can be said to have gone."""

from __future__ import annotations

import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from identity.rpc import Methods
from proxy.net.listener import Address, bind
from proxy.net.poller import Poller
from proxy.rpc.client import Channel, open_channel
from proxy.rpc.server import RpcServer


@dataclass
class Process:
    """The process that connected; ``gone`` says that it has ended."""

    pid: int
    uid: int
    gid: int
    gone: bool = False
    closed: bool = False

    def still_there(self) -> bool:
        return not self.gone and not self.closed

    def close(self) -> None:
        self.closed = True


class Processes:
    """Makes a ``Process`` of each accepted socket, and keeps them."""

    def __init__(self) -> None:
        self.seen: list[Process] = []

    def __call__(self, sock: socket.socket) -> Process:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.seen.append(Process(*struct.unpack("3i", credentials)))
        return self.seen[-1]


@dataclass
class Served:
    """A running server."""

    server: RpcServer
    poller: Poller
    path: str
    processes: Processes
    nursery: trio.Nursery

    @property
    def address(self) -> Address:
        return Address(path=self.path)

    @asynccontextmanager
    async def channel(self, **more: Any) -> AsyncIterator[Channel]:
        async with open_channel(self.address, poller=self.poller, **more) as channel:
            yield channel


@asynccontextmanager
async def serve(methods: Methods, **more: Any) -> AsyncIterator[Served]:
    """``methods`` on a Unix socket. ``more``: arguments of ``RpcServer``."""
    processes = Processes()
    poller = Poller(linger=0.0)
    with tempfile.TemporaryDirectory(prefix="sw") as folder:
        path = str(Path(folder) / "s")
        async with trio.open_nursery() as nursery:
            await nursery.start(poller.serve)
            server = RpcServer(poller, methods, **{"local_peer": processes, **more})
            await nursery.start(server.run)
            server.listen(bind(Address(path=path), mode=0o777))
            try:
                yield Served(server, poller, path, processes, nursery)
            finally:
                nursery.cancel_scope.cancel()
        poller.close()
    assert not poller.crashes, "internal errors, see the log"
    assert not server.connections
    assert all(process.closed for process in processes.seen)


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait for ``condition`` to be true."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.002)
