"""Coming back after a break, with patience that grows."""

from __future__ import annotations

import random

import pytest
import trio

from identity.rpc import RpcError, Status
from proxy.rpc.reconnect import with_reconnect


class Flaky:
    """Connects that fail, or last for some seconds and then fail."""

    def __init__(self, *lasting: float, status: Status = Status.UNAVAILABLE) -> None:
        self.lasting = list(lasting)
        self.status = status
        self.waits: list[float] = []

    async def connect(self) -> None:
        if self.lasting:
            await trio.sleep(self.lasting.pop(0))
            raise RpcError(self.status, "gone")

    def report(self, error: RpcError, wait: float) -> None:
        self.waits.append(wait)


async def test_waits_double_and_begin_again_after_a_minute_of_service(
    autojump_clock: trio.testing.MockClock,
) -> None:
    flaky = Flaky(0, 0, 0, 0, 61, 0)
    await with_reconnect(flaky.connect, report=flaky.report, rng=random.Random(1))
    middles = [1, 2, 4, 8, 1, 2]
    assert all(middle / 2 <= wait <= middle * 1.5 for middle, wait in zip(middles, flaky.waits, strict=True))
    assert trio.current_time() == pytest.approx(sum(flaky.waits) + 61)


async def test_what_is_final_is_not_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    flaky = Flaky(0, 0, status=Status.INVALID_ARGUMENT)
    with pytest.raises(RpcError):
        await with_reconnect(flaky.connect, report=flaky.report)
    assert flaky.waits == []
