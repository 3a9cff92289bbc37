"""Certificates for many callers in one transaction, and answers that are still fresh."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import trio

from identity.ca.issuing import X509Request
from identity.ca.model import CallerFacts, Issued, StoreUnavailable
from identity.rpc import RpcError, Status
from identity.spiffe import SpiffeId
from proxy.ca.batches import Batches
from proxy.ca.recent import Recent
from proxy.ca.work import Work
from tests.unit.ca_server.authority import WEB, House, new_key


def request(spiffe_id: str = WEB) -> X509Request:
    return X509Request(SpiffeId.parse(spiffe_id), new_key().public_key(), None, (), "", CallerFacts("agent"))


class Slow:
    """An authority whose transactions end when they are told to."""

    def __init__(self, problem: Exception | None = None) -> None:
        self.go = threading.Semaphore(0)
        self.sizes: list[int] = []
        self.problem = problem

    def issue_many(self, requests: list[Any], now: Any) -> list[Any]:
        self.sizes.append(len(requests))
        assert self.go.acquire(timeout=5)
        if self.problem is not None:
            raise self.problem
        return list(requests)


async def settle() -> None:
    """Until the workers sit in their threads."""
    for _ in range(20):
        await trio.sleep(0.001)


async def test_each_gets_its_own_certificate(ca: House) -> None:
    found: dict[int, Issued] = {}
    wanted = [request(f"{WEB}{number}") for number in range(20)]

    async def ask(number: int) -> None:
        found[number] = await ca.desk.batches.one(wanted[number])

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(ask, number)

    for number, issued in found.items():
        assert issued.chain[0].public_key() == wanted[number].public_key
    assert len({issued.serial for issued in found.values()}) == 20


async def test_what_is_asked_for_meanwhile_shares_the_next_transaction() -> None:
    slow: Any = Slow()
    batches = Batches(slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run)
        for _ in range(2):
            nursery.start_soon(batches.one, request())
            await settle()
        for _ in range(10):
            nursery.start_soon(batches.one, request())
        await settle()
        assert (slow.sizes, batches.waiting) == ([1, 1], 10)
        slow.go.release(20)
        await settle()
        while batches.waiting:
            await trio.sleep(0.001)
        await settle()
        nursery.cancel_scope.cancel()
    assert slow.sizes == [1, 1, 10]


async def test_a_full_queue_and_old_requests_are_told_so() -> None:
    slow: Any = Slow()
    batches = Batches(slow, queue=3, patience=0.0)
    seen: list[Status] = []

    async def ask(count: int) -> None:
        try:
            await batches.issue([request()] * count)
        except RpcError as error:
            seen.append(error.status)

    async with trio.open_nursery() as nursery:
        await ask(4)
        assert seen == [Status.UNAVAILABLE]
        nursery.start_soon(ask, 3)
        await settle()
        nursery.start_soon(batches.run)  # comes too late for them
        await settle()
        nursery.cancel_scope.cancel()
    assert seen == [Status.UNAVAILABLE] * 2
    assert slow.sizes == []


async def test_a_failed_transaction_is_everybodys_failure_and_the_next_one_works() -> None:
    slow: Any = Slow(StoreUnavailable("disk full"))
    batches = Batches(slow)
    slow.go.release(10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run)
        with pytest.raises(RpcError) as caught:
            await batches.one(request())
        assert caught.value.status == Status.UNAVAILABLE
        slow.problem = None
        assert await batches.issue([request()])
        nursery.cancel_scope.cancel()


async def test_who_goes_away_before_the_turn_leaves_no_trace() -> None:
    slow: Any = Slow()
    batches = Batches(slow)
    with trio.move_on_after(0.01):
        await batches.one(request())
    assert batches.waiting == 0


# -- recent answers -----------------------------------------------------------------------------------------


async def test_an_answer_counts_until_something_changes_or_a_second_has_passed(autojump_clock: Any) -> None:
    version, reads = [1], [0]

    def read() -> int:
        reads[0] += 1
        return reads[0]

    recent: Recent[str, int] = Recent(Work(), lambda: version[0])
    assert [await recent.get("a", read) for _ in range(3)] == [1, 1, 1]
    assert await recent.get("b", read) == 2
    version[0] += 1
    assert await recent.get("a", read) == 3
    await trio.sleep(1.1)
    assert await recent.get("a", read) == 4
    recent.forget()
    assert await recent.get("a", read) == 5


async def test_a_change_during_the_question_makes_its_answer_old() -> None:
    version = [1]

    def read() -> int:
        version[0] += 1  # somebody wrote while we read
        return version[0]

    recent: Recent[str, int] = Recent(Work(), lambda: version[0])
    assert await recent.get("a", read) == 2
    assert await recent.get("a", read) == 3
