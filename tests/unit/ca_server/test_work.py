"""Turns, rates, and what becomes of errors."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest
import trio

from identity.ca.model import (
    CaError,
    Conflict,
    NoSuchThing,
    NotAllowed,
    StoreCorrupt,
    StoreUnavailable,
    UnsafeStep,
)
from identity.rpc import RpcError, Status
from proxy.ca.rates import Rate
from proxy.ca.work import Refused, Work, as_rpc_error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotAllowed("no"), Status.PERMISSION_DENIED),
        (NoSuchThing("no"), Status.NOT_FOUND),
        (Conflict("no"), Status.ALREADY_EXISTS),
        (UnsafeStep(("no",)), Status.FAILED_PRECONDITION),
        (ValueError("no"), Status.INVALID_ARGUMENT),
    ],
)
def test_each_error_has_its_status_and_its_text(error: Exception, status: Status) -> None:
    found = as_rpc_error(error)

    assert (found.status, found.message) == (status, "no")


@pytest.mark.parametrize("error", [StoreUnavailable("/var/x: disk full"), StoreCorrupt("/var/x")])
def test_the_stores_troubles_are_told_to_operators_only(error: CaError) -> None:
    assert "/var/x" not in as_rpc_error(error).message
    assert as_rpc_error(error).status == Status.UNAVAILABLE
    assert "/var/x" in as_rpc_error(error, to_operator=True).message


def test_every_error_of_the_authority_is_mapped() -> None:
    for kind in CaError.__subclasses__():
        assert as_rpc_error(kind(("a",)) if kind is UnsafeStep else kind("a"), to_operator=True)


async def test_a_bug_stays_a_bug() -> None:
    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Work().ask(broken)


async def test_who_waits_too_long_is_sent_away() -> None:
    work, go = Work(threads=1, patience=0.01), threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.ask, go.wait)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RpcError) as caught:
            await work.ask(lambda: 1)
        go.set()
    assert caught.value.status == Status.UNAVAILABLE
    assert await work.ask(lambda: 1) == 1


async def test_a_full_queue_takes_nobody() -> None:
    work, go = Work(threads=1, queue=1, patience=10), threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.ask, go.wait)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(work.ask, lambda: 1)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RpcError) as caught:
            await work.ask(lambda: 1)
        go.set()
    assert caught.value.status == Status.UNAVAILABLE


# -- rates --------------------------------------------------------------------------------------------------


def taken(rate: Rate, key: str, now: float, tries: int) -> int:
    count = 0
    for _ in range(tries):
        with contextlib.suppress(Refused):
            rate.check(key, now)
            count += 1
    return count


def test_too_often_has_its_own_status() -> None:
    rate = Rate(1.0, 1.0, what="things")
    rate.check("a", 100.0)
    with pytest.raises(Refused) as caught:
        rate.check("a", 100.0)
    assert caught.value.status == Status.RESOURCE_EXHAUSTED


def test_a_rate_is_of_each_key() -> None:
    rate = Rate(1.0, 3.0, what="things")

    assert taken(rate, "a", 100.0, 5) == 3
    assert taken(rate, "b", 100.0, 5) == 3
    assert taken(rate, "a", 102.0, 5) == 2


def test_what_does_not_count_is_given_back() -> None:
    rate = Rate(1.0, 1.0, what="things")
    rate.check("a", 100.0)
    rate.give_back("a")

    assert taken(rate, "a", 100.0, 2) == 1


def test_a_flood_of_keys_does_not_push_out_what_is_known() -> None:
    rate = Rate(1.0, 1.0, what="things", kept=2)
    assert taken(rate, "a", 100.0, 1) + taken(rate, "b", 100.0, 1) == 2

    assert taken(rate, "c", 100.5, 1) == 0
    assert taken(rate, "a", 100.5, 1) == 0
    assert taken(rate, "c", 101.6, 1) == 1


def test_nothing_of_this_is_kept_for_ever() -> None:
    rate: Any = Rate(1.0, 1.0, what="things", kept=10)
    for number in range(100):
        rate.check(str(number), number * 2.0)

    assert len(rate._buckets) <= 10
