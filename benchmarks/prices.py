"""What the primitives cost that a data path could be built from. ARCHITECTURE.md argues with these figures.

    python -m benchmarks.prices [--rounds N]

Each is repeated until a round takes about 50 ms; the best of the rounds counts, because everything that
disturbs a measurement of this kind makes it longer. The price of the empty loop is taken off.

The last two lines are the reason for the reactor: the same byte through the same kind of socket, once
dispatched from `epoll` to a function, once waking a trio task that waits for it.
"""

from __future__ import annotations

import argparse
import select
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ROUND = 0.05  # seconds

Price = Callable[[int], Awaitable[None]]  # does it n times


class Slots:
    __slots__ = ("a", "b", "c", "d", "e")

    def __init__(self, a: int, b: int, c: int, d: int, e: int) -> None:
        self.a = a
        self.b = b
        self.c = c
        self.d = d
        self.e = e


@dataclass(frozen=True, slots=True)
class Frozen:
    a: int
    b: int
    c: int
    d: int
    e: int


def call() -> None:
    return


async def empty_loop(n: int) -> None:
    for _ in range(n):
        pass


async def function_call(n: int) -> None:
    for _ in range(n):
        call()


async def slots_object(n: int) -> None:
    for _ in range(n):
        Slots(1, 2, 3, 4, 5)


async def frozen_dataclass(n: int) -> None:
    for _ in range(n):
        Frozen(1, 2, 3, 4, 5)


async def checkpoint(n: int) -> None:
    for _ in range(n):
        await trio.lowlevel.checkpoint()


async def long_lived_task(n: int) -> None:
    """Start a task in a nursery that is open anyway, and let it run to its end."""

    async def work() -> None:
        return

    async with trio.open_nursery() as nursery:
        for start in range(0, n, 100):
            for _ in range(min(100, n - start)):
                nursery.start_soon(work)
            await trio.lowlevel.checkpoint()


async def cancel_scope(n: int) -> None:
    for _ in range(n):
        with trio.move_on_after(30):  # noqa: ASYNC100 - its price is the question
            pass


async def lock(n: int) -> None:
    """Nobody else wants it. Includes the checkpoint that every acquire is."""
    mutex = trio.Lock()
    for _ in range(n):
        async with mutex:
            pass


async def channel(n: int) -> None:
    """One value from a task to another one that waits for it."""
    give, take = trio.open_memory_channel[int](0)

    async def reader() -> None:
        async with take:
            async for _ in take:
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        async with give:
            for i in range(n):
                await give.send(i)


async def nursery_with_child(n: int) -> None:
    async def work() -> None:
        return

    for _ in range(n):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)


async def epoll_dispatch(n: int) -> None:
    """send, epoll_wait, look the handler up, call it, it reads."""
    near, far = _pair()
    handlers = {far.fileno(): far.recv}
    with near, far, select.epoll() as poller:
        poller.register(far.fileno(), select.EPOLLIN)
        for _ in range(n):
            near.send(b"x")
            for fd, _events in poller.poll(1.0):
                handlers[fd](100)


async def task_wake(n: int) -> None:
    """send, and the task that waits for the socket wakes and reads."""
    near, far = _pair()
    with near, far:
        for _ in range(n):
            near.send(b"x")
            await trio.lowlevel.wait_readable(far)
            far.recv(100)


def _pair() -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    return near, far


PRICES: tuple[tuple[str, Price], ...] = (
    ("function call", function_call),
    ("object with slots, 5 fields", slots_object),
    ("frozen dataclass, 5 fields", frozen_dataclass),
    ("checkpoint", checkpoint),
    ("task in a long-lived nursery", long_lived_task),
    ("CancelScope with deadline", cancel_scope),
    ("uncontended trio.Lock", lock),
    ("channel hand-over", channel),
    ("nursery with one child", nursery_with_child),
    ("byte over a socket, epoll -> function", epoll_dispatch),
    ("byte over a socket, epoll -> trio task", task_wake),
)


async def microseconds(price: Price, rounds: int) -> float:
    """Best of ``rounds``, for one of it."""
    n = 100
    while (took := await _time(price, n)) < ROUND / 2:
        n = int(n * max(2.0, min(20.0, ROUND / max(took, 1e-6))))
    return min([await _time(price, n) for _ in range(rounds)]) / n * 1e6


async def _time(price: Price, n: int) -> float:
    start = time.perf_counter()
    await price(n)
    return time.perf_counter() - start


async def main(rounds: int) -> None:
    loop = await microseconds(empty_loop, rounds)
    for name, price in PRICES:
        print(f"{name:<42}{await microseconds(price, rounds) - loop:8.2f} µs", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prices", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    trio.run(main, parser.parse_args().rounds)
