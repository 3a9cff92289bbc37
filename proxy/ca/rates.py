"""How often callers may ask for what is costly or worth guessing (C-6, C-11). Time is an argument: monotonic.

Each table of buckets is bounded; when it is full, those that are full again are forgotten, and if none is, new
callers are refused: a flood from many addresses must not push out what is known about one of them.
"""

from __future__ import annotations

from typing import Final

from identity.rpc import Status
from proxy.ca.work import Refused
from proxy.net.listener import Bucket

_KEPT: Final = 10_000


class Rate:
    """So many a second for each key, ``burst`` at once."""

    def __init__(self, per_second: float, burst: float, *, what: str, kept: int = _KEPT) -> None:
        self._per_second = per_second
        self._burst = burst
        self._what = what
        self._kept = kept
        self._buckets: dict[str, tuple[Bucket, float]] = {}  # with the time of its last use

    def check(self, key: str, now: float) -> None:
        """Take one. Raises Refused RESOURCE_EXHAUSTED when there is none left."""
        if self._bucket(key, now).take(now):
            raise Refused(f"too many {self._what}: try again later", Status.RESOURCE_EXHAUSTED)

    def give_back(self, key: str) -> None:
        """What was taken last does not count."""
        if key in self._buckets:
            self._buckets[key][0].give_back()

    def _bucket(self, key: str, now: float) -> Bucket:
        found = self._buckets.get(key)
        if found is None:
            if len(self._buckets) >= self._kept:
                self._forget_full(now)
            found = (Bucket(self._per_second, self._burst, now), now)
        self._buckets[key] = (found[0], now)
        return found[0]

    def _forget_full(self, now: float) -> None:
        refilled = self._burst / self._per_second
        for key in [key for key, (_, used) in self._buckets.items() if now - used >= refilled]:
            del self._buckets[key]
        if len(self._buckets) >= self._kept:
            raise Refused(f"too many {self._what}: try again later", Status.RESOURCE_EXHAUSTED)


class Rates:
    """All rates of one process."""

    def __init__(self, *, signings: float = 500.0) -> None:
        self.attestations = Rate(1.0, 5.0, what="attestations from this address")
        self.of_user = Rate(
            20.0, 100.0, what="attestations of this user"
        )  # on our own machine: no network is flooded
        self.token_failures = Rate(5 / 60, 5.0, what="join tokens that were not valid")
        self.of_node = Rate(10.0, 50.0, what="certificates asked for by this node")
        self.of_all = Rate(signings, signings, what="certificates asked for")
        self.denials = Rate(10.0, 100.0, what="refusals")  # that are worth a line of the journal

    def attestation(self, host: str, now: float, *, local: bool) -> None:
        """One attempt of ``host``. Raises Refused RESOURCE_EXHAUSTED."""
        (self.of_user if local else self.attestations).check(host, now)

    def signing(self, node: str, now: float) -> None:
        """One signature for ``node``. Raises Refused RESOURCE_EXHAUSTED."""
        self.of_node.check(node, now)
        self.of_all.check("", now)
