"""The axes of the space of requests: one for each fact that varies by itself, and which values of it are alike.

A condition on one axis is a ``Literals``: predicates that must hold and predicates that must not. Given a base and
others, ``atoms`` gives values that satisfy the base, each with the bit set of the others it satisfies. It gives one
for every bit set that can occur, or for enough of them: one that satisfies less of the others may stand for one
that satisfies more, because the search (``analysis_search``) only ever wants to avoid them.

A text that a request may have several of (values of a header, elements of a claim) is an axis of sets of words.
There more words satisfy more of what is asked for and less of what is forbidden, so a set needs one word for each
thing the base asks for and one for each negation of the others it is to break, and no more.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final, Protocol

from proxy.policy.analysis_words import Domain, Effort, TooComplex, explore

MAX_SETS: Final = 4096

Literal = tuple[Any, bool]  # a predicate (Language, frozenset of ports, Nets), and whether it must hold
Literals = tuple[Literal, ...]
Atom = tuple[int, Any]  # bit set over the others, value (None: the request lacks the fact)


class Axis(Protocol):
    def atoms(self, base: Literals, others: Sequence[Literals], effort: Effort) -> Iterator[Atom]:
        """Values that satisfy ``base``, with the ``others`` each satisfies. Raises TooComplex."""


class _Others:
    """Conditions as bit sets over their distinct predicates."""

    def __init__(self, others: Sequence[Literals]) -> None:
        self.predicates: list[Any] = []
        numbers: dict[Any, int] = {}
        self._tests = []
        for literals in others:
            need = forbid = 0
            for predicate, wanted in literals:
                number = numbers.setdefault(predicate, len(numbers))
                if number == len(self.predicates):
                    self.predicates.append(predicate)
                need |= wanted << number
                forbid |= (not wanted) << number
            self._tests.append((need, forbid))
        self.needed = self._union(0)
        self.forbidden = self._union(1)

    def _union(self, which: int) -> int:
        found = 0
        for test in self._tests:
            found |= test[which]
        return found

    def hits(self, truth: int) -> int:
        found = 0
        for number, (need, forbid) in enumerate(self._tests):
            if truth & need == need and not truth & forbid:
                found |= 1 << number
        return found


def _allows_absence(base: Literals) -> bool:
    return not any(wanted for _, wanted in base)


@dataclass(frozen=True, eq=False)
class TextAxis:
    """One text of ``domain``, or none at all where it is ``optional``."""

    domain: Domain
    optional: bool = False

    def atoms(self, base: Literals, others: Sequence[Literals], effort: Effort) -> Iterator[Atom]:
        asked = _Others(others)
        for truth, word in explore(self.domain, base, asked.predicates, effort):
            yield asked.hits(truth), word
        if self.optional and _allows_absence(base):
            yield asked.hits(0), None


@dataclass(frozen=True, eq=False)
class SetAxis:
    """Any number of texts of ``domain``: a positive predicate holds when one of them is in it. Values are tuples."""

    domain: Domain

    def atoms(self, base: Literals, others: Sequence[Literals], effort: Effort) -> Iterator[Atom]:
        asked = _Others(others)
        never = tuple(literal for literal in base if not literal[1])
        must = [self._words((*never, literal), asked, effort) for literal in base if literal[1]]
        if not all(must):
            return
        breaks = [
            self._words((*never, (predicate, True)), asked, effort)
            for number, predicate in enumerate(asked.predicates)
            if asked.forbidden >> number & 1
        ]
        effort.spend(_bound([*must, *([*choice, None] for choice in breaks)]))
        seen = set()
        for chosen in product(*must, *([None, *choice] for choice in breaks)):
            words = [word for word in chosen if word is not None]
            truth = 0
            for found, _ in words:
                truth |= found
            if truth not in seen:
                seen.add(truth)
                yield asked.hits(truth), tuple(dict.fromkeys(word for _, word in words)) or None

    def _words(self, base: Literals, asked: _Others, effort: Effort) -> list[tuple[int, str]]:
        """Words of ``base``, without those to which another is to be preferred."""
        only_needed = asked.needed & ~asked.forbidden
        mixed = asked.needed & asked.forbidden
        only_forbidden = asked.forbidden & ~asked.needed
        kept: list[tuple[int, str]] = []
        for truth, word in explore(self.domain, base, asked.predicates, effort):

            def better(a: int, b: int) -> bool:
                fewer = a & only_needed & ~b == 0 and b & only_forbidden & ~a == 0
                return fewer and a & mixed == b & mixed

            if not any(better(other, truth) for other, _ in kept):
                kept = [pair for pair in kept if not better(truth, pair[0])] + [(truth, word)]
        return kept


def _bound(choices: Sequence[Sequence[Any]]) -> int:
    size = 1
    for choice in choices:
        size *= max(1, len(choice))
        if size > MAX_SETS:
            raise TooComplex(f"more than {MAX_SETS} sets of values")
    return size


@dataclass(frozen=True, eq=False)
class PortAxis:
    """A port. Predicates are frozensets of numbers."""

    def atoms(self, base: Literals, others: Sequence[Literals], effort: Effort) -> Iterator[Atom]:
        named = {port for literals in (base, *others) for ports, _ in literals for port in ports}
        fresh = next((port for port in (8080, *range(1, 65536)) if port not in named), None)
        candidates = [*([fresh] if fresh is not None else []), *sorted(named)]
        effort.spend(len(candidates) * (1 + len(others)))
        yield from _sift(candidates, base, others, lambda ports, port: port in ports)


Net = tuple[int, int, int]  # version, first and last address as numbers
Nets = frozenset[Net]
EVERY_NET: Final[Nets] = frozenset(((4, 0, (1 << 32) - 1), (6, 0, (1 << 128) - 1)))

# IPv4 addresses in IPv6 clothes are read as IPv4 before policy sees them (AUTHZ 6.2).
_MAPPED_FIRST: Final = 0xFFFF << 32
_MAPPED_LAST: Final = _MAPPED_FIRST + (1 << 32) - 1
_READABLE: Final = ((4, int(ipaddress.IPv4Address("198.51.100.7"))), (6, int(ipaddress.IPv6Address("2001:db8::7"))))


def net(text: str) -> Net:
    """An address or a CIDR; bits beyond the prefix do not count. Raises ValueError."""
    found = ipaddress.ip_network(text, strict=False)
    if found.version == 6 and isinstance(found, ipaddress.IPv6Network):
        mapped = found.network_address.ipv4_mapped
        if mapped is not None and found.prefixlen >= 96:
            found = ipaddress.ip_network((mapped, found.prefixlen - 96), strict=False)
    return found.version, int(found.network_address), int(found.broadcast_address)


@dataclass(frozen=True, eq=False)
class AddressAxis:
    """An address, or none (a Unix socket has none). Predicates are ``Nets``; values are texts."""

    def atoms(self, base: Literals, others: Sequence[Literals], effort: Effort) -> Iterator[Atom]:
        nets = {one for literals in (base, *others) for some, _ in literals for one in some}
        # Where something changes: at the first address of a network and behind its last.
        edges = {(version, edge) for version, first, last in nets for edge in (first, last + 1)}
        edges |= {(4, 0), (6, 0), (6, _MAPPED_LAST + 1)}
        candidates = [*_READABLE, *sorted(edge for edge in edges if _is_address(*edge))]
        effort.spend(len(candidates) * (1 + len(others)))
        for hits, value in _sift([*candidates, None], base, others, _in_nets):
            yield hits, None if value is None else _address(*value)


def _is_address(version: int, number: int) -> bool:
    if version == 4:
        return number < 1 << 32
    return number < 1 << 128 and not _MAPPED_FIRST <= number <= _MAPPED_LAST


def _in_nets(nets: Nets, value: tuple[int, int] | None) -> bool:
    return value is not None and any(
        version == value[0] and first <= value[1] <= last for version, first, last in nets
    )


def _address(version: int, number: int) -> str:
    return str(ipaddress.IPv4Address(number) if version == 4 else ipaddress.IPv6Address(number))


def _sift(
    candidates: Sequence[Any], base: Literals, others: Sequence[Literals], holds: Callable[[Any, Any], bool]
) -> Iterator[Atom]:
    """Those of ``candidates`` that satisfy ``base``, one for each bit set over the others."""
    asked = _Others(others)
    seen = set()
    for value in candidates:
        if any(holds(predicate, value) is not wanted for predicate, wanted in base):
            continue
        truth = sum(1 << n for n, predicate in enumerate(asked.predicates) if holds(predicate, value))
        if truth not in seen:
            seen.add(truth)
            yield asked.hits(truth), value
