"""Is there a request in this box and in none of those? The one question behind every exact analysis.

A ``Box`` is a condition on some axes, all of which must hold: one way in which one rule can match. Whatever is
asked of policies comes down to boxes: does the new ALLOW rule let in what no old rule did, does anything get past
these DENY rules, is a rule of any use beside the others.

``outside(base, avoid)`` picks a value on each axis. A box to avoid is left behind as soon as one axis is outside of
it; boxes are bits of an integer, and a value leaves the bits of those it is still inside. What is wanted is a
choice that leaves none. It is found, or shown not to exist, in three steps:

1. boxes that have nothing in common with ``base`` are put aside, which in real policies leaves a handful;
2. each axis offers its values; one that is inside of fewer boxes makes all that are inside of more superfluous;
3. the rest is tried axis by axis, with a memory of what was tried, until nothing is left to avoid.

There is no sampling anywhere. In the worst case step 3 is exponential, as the problem is NP-hard (it contains
satisfiability: axes are variables); ``MAX_STEPS`` ends it with TooComplex and never with a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from proxy.policy.analysis_axes import EVERY_NET, Atom, Axis, Literals
from proxy.policy.analysis_words import Effort, Language, TooComplex

MAX_STEPS: Final = 200_000  # of one question
MAX_EFFORT: Final = 2_000_000  # of all questions to one space: some seconds
_REMEMBERED: Final = 200_000


@dataclass(frozen=True, eq=False)
class Box:
    """``parts``: for each axis that matters its literals. ``mark``: what it stands for, of no meaning here."""

    parts: Mapping[str, Literals]
    mark: Any = None

    @cached_property
    def key(self) -> frozenset[tuple[str, frozenset[Any]]]:
        """Equal for boxes that say the same."""
        return frozenset((axis, frozenset(literals)) for axis, literals in self.parts.items() if literals)


class Space:
    """The axes, made when first asked for, and what was found out about them."""

    def __init__(self, axis_of: Any, effort: int = MAX_EFFORT) -> None:
        self._axis_of = axis_of
        self.effort = Effort(effort)
        self._axes: dict[str, Axis] = {}
        self._meets: dict[tuple[Literals, Literals], bool] = {}
        self._possible: dict[tuple[str, Literals], bool] = {}

    def axis(self, name: str) -> Axis:
        found = self._axes.get(name)
        if found is None:
            found = self._axes[name] = self._axis_of(name)
        return found

    def may_meet(self, a: Box, b: Box) -> bool:
        """False only if no request is in both: a quick look before the exact one."""
        small, large = (a.parts, b.parts) if len(a.parts) <= len(b.parts) else (b.parts, a.parts)
        return all(self._look(literals, large[axis]) for axis, literals in small.items() if axis in large)

    def _look(self, a: Literals, b: Literals) -> bool:
        key = (a, b)
        found = self._meets.get(key)
        if found is None:
            if len(self._meets) >= _REMEMBERED:
                self._meets.clear()
            found = self._meets[key] = all(
                _may_meet(p, q) for p, first in a if first for q, second in b if second
            )
        return found

    def possible(self, box: Box) -> bool:
        """Whether any request is in ``box``."""
        return all(self._holds(axis, literals) for axis, literals in box.parts.items())

    def _holds(self, name: str, literals: Literals) -> bool:
        key = (name, literals)
        found = self._possible.get(key)
        if found is None:
            if len(self._possible) >= _REMEMBERED:
                self._possible.clear()
            found = self._possible[key] = any(True for _ in self.axis(name).atoms(literals, (), self.effort))
        return found

    # -- searching ----------------------------------------------------------------------------------------

    def outside(self, base: Box, avoid: Sequence[Box]) -> dict[str, Any] | None:
        """A value for each axis that matters such that the request is in ``base`` and in none of ``avoid``; None when
        there is none. Axes that are not named may have any value. Raises TooComplex."""
        found = self._outside(base, avoid)
        if found is None or found.get("source_ip") is None or found.get("remote_ip", "") is not None:
            return found
        # The one pair of axes that depend on each other: who has a peer's address has a client's, at least that one.
        for axis, is_there in (("remote_ip", True), ("source_ip", False)):
            literals = (*base.parts.get(axis, ()), (EVERY_NET, is_there))
            found = self._outside(Box({**base.parts, axis: literals}), avoid)
            if found is not None:
                return found
        return None

    def _outside(self, base: Box, avoid: Sequence[Box]) -> dict[str, Any] | None:
        if not self.possible(base):
            return None
        near: dict[Any, Box] = {}
        for box in avoid:
            if box.key <= base.key:
                return None  # base says all that box says
            if box.key not in near and self.may_meet(base, box):
                near[box.key] = box
        return _Choice(self, base, list(near.values())).find()


def _may_meet(a: Any, b: Any) -> bool:
    if isinstance(a, Language):
        return a.may_meet(b)
    return not isinstance(next(iter(a), None), int) or not a.isdisjoint(b)  # ports; networks are left to the axis


class _Choice:
    def __init__(self, space: Space, base: Box, avoid: list[Box]) -> None:
        self._all = (1 << len(avoid)) - 1
        names = {*base.parts, *(axis for box in avoid for axis in box.parts)}
        space.effort.spend(len(names) * len(avoid))
        offers = [(name, _offers(space, name, base, avoid)) for name in sorted(names)]
        _refuse_entangled(names)
        # Axes on which one value is best come first: they cost nothing and leave less to the others.
        self._offers = sorted(offers, key=lambda offer: len(offer[1]))
        self._hopeless: set[tuple[int, int]] = set()
        self._steps = 0
        self._effort = space.effort
        # What the axes from here on can still leave behind, at best.
        self._floor = [self._all] * (len(offers) + 1)
        for number in range(len(offers) - 1, -1, -1):
            least = self._all
            for hits, _ in self._offers[number][1]:
                least &= hits
            self._floor[number] = self._floor[number + 1] & least

    def find(self) -> dict[str, Any] | None:
        chosen: dict[str, Any] = {}
        return chosen if self._descend(0, self._all, chosen) else None

    def _descend(self, number: int, left: int, chosen: dict[str, Any]) -> bool:
        if number == len(self._offers):
            return left == 0
        if left & self._floor[number] or (number, left) in self._hopeless:
            return False
        name, offers = self._offers[number]
        tried = set()
        for hits, value in sorted(offers, key=lambda offer: (left & offer[0]).bit_count()):
            after = left & hits
            if after in tried:
                continue
            tried.add(after)
            self._steps += 1
            self._effort.spend(1)
            if self._steps > MAX_STEPS:
                raise TooComplex(f"more than {MAX_STEPS} combinations of conditions")
            if self._descend(number + 1, after, chosen):
                chosen[name] = value
                return True
        self._hopeless.add((number, left))
        return False


def _offers(space: Space, name: str, base: Box, avoid: list[Box]) -> list[Atom]:
    """The values worth trying, fewest hits first. Boxes that do not mention the axis are hit by every value."""
    asked = [(number, box.parts[name]) for number, box in enumerate(avoid) if name in box.parts]
    distinct: dict[Literals, int] = {}
    for number, literals in asked:
        distinct[literals] = distinct.get(literals, 0) | 1 << number
    always = (1 << len(avoid)) - 1 & ~sum(distinct.values())
    have = set(base.parts.get(name, ()))
    sure = always
    for literals, members in distinct.items():
        if have.issuperset(literals):
            sure |= members
    found: list[Atom] = []
    for hits, value in space.axis(name).atoms(base.parts.get(name, ()), list(distinct), space.effort):
        wide = always
        for number, members in enumerate(distinct.values()):
            if hits >> number & 1:
                wide |= members
        if wide == sure:
            return [(wide, value)]
        found = _with(found, (wide, value))
    return sorted(found, key=lambda atom: atom[0].bit_count())


def _with(found: list[Atom], atom: Atom) -> list[Atom]:
    hits = atom[0]
    for other, _ in found:
        if other & ~hits == 0:
            return found
    return [*(pair for pair in found if hits & ~pair[0]), atom]


def _refuse_entangled(names: set[str]) -> None:
    """A claim is either an object with claims inside or a text: such two are no axes of their own."""
    claims = [name for name in names if name.startswith("claim:")]
    for outer in claims:
        for inner in claims:
            if inner.startswith(f"{outer}]["):
                raise TooComplex(f"{outer} and {inner} are asked for together, one inside the other")


__all__ = ["Box", "Space", "TooComplex"]
