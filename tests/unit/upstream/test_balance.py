"""Choosing an endpoint."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from proxy.upstream.balance import LeastRequest, RoundRobin


@dataclass
class Spot:
    name: str
    active: int = 0


def test_round_robin_gives_each_its_turn() -> None:
    spots = [Spot("a"), Spot("b"), Spot("c")]
    balancer = RoundRobin()
    assert Counter(balancer.pick(spots).name for _ in range(300)) == {"a": 100, "b": 100, "c": 100}


def test_round_robin_survives_a_shrinking_list() -> None:
    balancer = RoundRobin()
    for count in (5, 1, 3, 1, 2):
        assert balancer.pick([Spot(str(n)) for n in range(count)])


def test_least_request_never_picks_the_busiest_of_two() -> None:
    spots = [Spot("busy", 9), Spot("free", 0)]
    balancer = LeastRequest(random.Random(1))
    assert {balancer.pick(spots).name for _ in range(100)} == {"free"}


def test_least_request_spreads_over_equals() -> None:
    spots = [Spot(str(n)) for n in range(4)]
    balancer = LeastRequest(random.Random(1))
    counts = Counter(balancer.pick(spots).name for _ in range(4000))
    assert min(counts.values()) > 800


def test_least_request_with_one_endpoint() -> None:
    only = Spot("only", 100)
    assert LeastRequest(random.Random(1)).pick([only]) is only
