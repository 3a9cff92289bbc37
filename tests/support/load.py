"""Constant load from well-behaved callers, and what a process holds.

A caller sends one request after another, opens a new connection when the old one said that it ends, and does
what RFC 9110 9.2.2 and RFC 9113 8.7 let every caller do with a GET: send it again when the connection ended, or
GOAWAY or REFUSED_STREAM came, before any part of an answer. Those are counted apart (``again``), the rest is failures.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
import trio.lowlevel

from tests.support.client import Client, Response

_REFUSED_STREAM = 0x7
_TARGETS = ("/bytes/100", "/bytes/3000", "/ok")


@dataclass
class Tally:
    """What the callers saw."""

    answers: dict[int, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    again: int = 0
    connections: int = 0

    @property
    def total(self) -> int:
        return sum(self.answers.values())

    def __str__(self) -> str:
        return f"{self.answers} on {self.connections} connections, {self.again} sent again, {self.failures[:5]}"


class Caller:
    """One connection at a time to wherever ``port`` says."""

    def __init__(self, port: Callable[[], int], tally: Tally, *, http2: bool, streams: int) -> None:
        self.port = port
        self.tally = tally
        self.http2 = http2
        self.streams = streams
        self.number = 0

    async def run(self) -> None:
        while True:
            self.tally.connections += 1
            async with await trio.open_tcp_stream("127.0.0.1", self.port()) as stream:
                client = Client(stream, http2=self.http2)
                client.engine.start()
                await self.drive(client)

    async def drive(self, client: Client) -> None:
        """Use the connection until it takes no more."""
        async with trio.open_nursery() as reading:
            reading.start_soon(client.read_forever)
            async with trio.open_nursery() as nursery:
                for _ in range(self.streams):
                    nursery.start_soon(self.use, client)
            reading.cancel_scope.cancel()

    async def use(self, client: Client) -> None:
        while client.engine.can_open and not client.goaway and not client.ended:
            self.number += 1
            target = _TARGETS[self.number % len(_TARGETS)]
            try:
                response = await client.request("GET", target)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self.tally.again += 1
                return
            self.note(target, response)
            await trio.lowlevel.checkpoint()

    def note(self, target: str, response: Response) -> None:
        tally = self.tally
        if response.complete:
            tally.answers[response.status] = tally.answers.get(response.status, 0) + 1
            if response.status != 200:
                tally.failures.append(f"{target}: {response.status} {response.header('x-sidewall-reason')}")
        elif not response.status and (not self.http2 or response.reset in (None, _REFUSED_STREAM)):
            tally.again += 1
        else:
            tally.failures.append(f"{target}: {response.status} then reset {response.reset}")


@asynccontextmanager
async def constant_load(
    port: Callable[[], int], *, http2: bool, connections: int = 4, streams: int = 4
) -> AsyncIterator[Tally]:
    """Callers at work until the block is left; HTTP/1.1 has ``connections * streams`` connections."""
    tally = Tally()
    count, each = (connections, streams) if http2 else (connections * streams, 1)
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(Caller(port, tally, http2=http2, streams=each).run)
        with trio.fail_after(10):
            while not tally.total:
                await trio.sleep(0.005)
        yield tally
        nursery.cancel_scope.cancel()


async def some_more(tally: Tally, count: int, seconds: float = 20.0) -> None:
    """Wait until ``count`` more answers have come."""
    wanted = tally.total + count
    with trio.fail_after(seconds):
        while tally.total < wanted:
            await trio.sleep(0.002)


# -- what a process holds --------------------------------------------------------------------------------------


def open_files() -> int:
    """Descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def living_tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


def resident(word: str = "VmHWM") -> float:
    """MiB of memory: VmRSS is now, VmHWM the peak since ``forget_peak``."""
    match = re.search(rf"^{word}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(match[1]) / 1024 if match else 0.0


def forget_peak() -> None:
    """Begin to measure VmHWM anew (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")
