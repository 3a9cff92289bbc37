from __future__ import annotations

from contextlib import aclosing

import trio
import trio.testing

from config.live import Live


async def test_setting_counts_and_replaces() -> None:
    live = Live("a")
    assert (live.value, live.generation) == ("a", 0)
    assert live.set("b") == 1
    assert (live.value, live.generation) == ("b", 1)


async def test_a_change_before_the_wait_is_not_lost() -> None:
    live = Live(0)
    live.set(1)
    with trio.testing.assert_checkpoints():
        assert await live.wait_change(0) == 1


async def test_everybody_who_waits_is_woken() -> None:
    live, woken = Live(0), []

    async def reader(number: int) -> None:
        await live.wait_change(0)
        woken.append((number, live.value))

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(reader, number)
        await trio.testing.wait_all_tasks_blocked()
        live.set(7)
    assert sorted(woken) == [(number, 7) for number in range(100)]


async def test_nobody_is_woken_without_a_change() -> None:
    live = Live(0)
    live.set(1)
    with trio.move_on_after(0) as scope:
        await live.wait_change(1)
    assert scope.cancelled_caught


async def test_a_slow_reader_sees_the_latest_value_once(autojump_clock: trio.testing.MockClock) -> None:
    live, seen = Live(0), []

    async def reader() -> None:
        async with aclosing(live.changes()) as changes:
            async for value in changes:
                seen.append(value)
                await trio.sleep(1)
                if value == 5:
                    return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        for value in range(1, 6):
            live.set(value)
            await trio.sleep(0.3)
    assert seen == [1, 4, 5]


async def test_a_reader_that_is_cancelled_leaves_the_others_waiting() -> None:
    live, woken = Live(0), []

    async def reader() -> None:
        woken.append(await live.wait_change(0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        with trio.move_on_after(0):
            await live.wait_change(0)
        live.set(1)
    assert woken == [1]
