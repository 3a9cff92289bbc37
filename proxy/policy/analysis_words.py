"""Sets of words, exactly: can a text match these patterns and none of those, and if so, which?

Every pattern of the policy language is a line of items, each a set of characters taken once or any number of times:
``/a*`` is ``/``, ``a``, anything*. There are no alternatives inside a pattern and no groups that repeat, so a
pattern is a row of positions, and the positions at which all patterns of a question stand after some text fit
into one integer. Reading a character moves all of them at once (Shift-And of Baeza-Yates and Gonnet, 1992, with
the loops of Navarro and Raffinot, 2001). That integer is the state of a deterministic automaton which is never
built: ``explore`` walks it breadth first, so that every combination of patterns that some text can match is met,
and is met first with one of its shortest texts.

Characters that no pattern tells apart are tried once, by a readable one of them. A ``Domain`` says which texts
the fact can be at all (a SPIFFE ID, a canonical path); it is an ordinary automaton, because "segments without
dots" is no line of items. Where a base pattern can no longer match, the walk turns back; so a question about the
paths below ``/orders/`` never leaves them.

The walk ends because states are finite. Their number is a product only of patterns that can go on together, which
for the policies people write is about the length of all texts. ``MAX_STATES`` bounds the rest: beyond it
``TooComplex`` is raised, for an answer that was not worked out must not look like one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

MAX_STATES: Final = 200_000

Item = tuple[int, bool]  # characters as a bit set, and whether any number of them may stand here
Pattern = tuple[Item, ...]


class TooComplex(Exception):
    """The question has more combinations than may be tried; it stays without an answer."""


class Exhausted(TooComplex):
    """All that may be spent is spent: further questions get no answer either."""


class Effort:
    """How many steps an analysis may still take, all its questions together. Counted and not timed, so that the same
    question has the same answer on every machine; a step is about two microseconds."""

    def __init__(self, steps: int) -> None:
        self._steps = self._left = steps

    def spend(self, steps: int) -> None:
        """Raises Exhausted when there is nothing left."""
        self._left -= steps
        if self._left < 0:
            raise Exhausted(f"more than {self._steps} steps")


def bits(characters: Iterable[str]) -> int:
    found = 0
    for character in characters:
        found |= 1 << ord(character)
    return found


ANY: Final = (1 << 256) - 1
# Which character stands for those that nothing tells apart: plain words, and not those that templates are made of.
_READABLE: Final = "xyzwvutsrqponmlkjihgfedcba0123456789XYZWVUTSRQPONMLKJIHGFEDCBA-_.~/:"


def literal(text: str) -> Pattern:
    return tuple((1 << ord(character), False) for character in text)


STAR: Final[Pattern] = ((ANY, True),)
SOME: Final[Pattern] = ((ANY, False), (ANY, True))


@lru_cache(maxsize=65536)
def language(patterns: tuple[Pattern, ...]) -> Language:
    """The texts that match at least one of ``patterns``; the same object for the same patterns."""
    return Language(tuple(dict.fromkeys(patterns)))


class Language:
    """Made by ``language``. Compared by identity, which is quick, and which is equality as ``language`` remembers."""

    def __init__(self, patterns: tuple[Pattern, ...]) -> None:
        self.patterns = patterns

    @cached_property
    def words(self) -> frozenset[str] | None:
        """All of them when they can be listed, else None."""
        if any(loop or not _single(mask) for pattern in self.patterns for mask, loop in pattern):
            return None
        return frozenset(_run(pattern) for pattern in self.patterns)

    @cached_property
    def ends(self) -> tuple[tuple[str, str], ...]:
        """How words begin and how they end, as far as that is fixed, pattern by pattern."""
        return tuple((_run(pattern), _run(pattern[::-1])[::-1]) for pattern in self.patterns)

    @cached_property
    def _machine(self) -> _Machine:
        return _Machine((self,), ())

    def __contains__(self, word: str) -> bool:
        if self.words is not None:
            return word in self.words
        if not any(word.startswith(head) and word.endswith(tail) for head, tail in self.ends):
            return False
        machine = self._machine
        state = machine.start
        for character in word:
            if not state or ord(character) > 255:
                return False
            state = machine.step(state, machine.column(character))
        return bool(state & machine.ends[0])

    def may_meet(self, other: Language) -> bool:
        """False only if no word is in both."""
        if self.words is not None:
            if other.words is not None:
                return not self.words.isdisjoint(other.words)
            return any(
                word.startswith(head) and word.endswith(tail) for word in self.words for head, tail in other.ends
            )
        if other.words is not None:
            return other.may_meet(self)
        return any(
            (a.startswith(c) or c.startswith(a)) and (b.endswith(d) or d.endswith(b))
            for a, b in self.ends
            for c, d in other.ends
        )


def _run(pattern: Pattern) -> str:
    """The characters that stand at the beginning of every word of the pattern."""
    letters = []
    for mask, loop in pattern:
        if loop or not _single(mask):
            break
        letters.append(chr(mask.bit_length() - 1))
    return "".join(letters)


@dataclass(frozen=True, eq=False)
class Domain:
    """What the fact can be. ``step`` gives the next state or None; ``masks`` are the sets of characters that ``step``
    tells apart; characters outside ``alphabet`` never occur."""

    name: str
    alphabet: int
    masks: tuple[int, ...]
    start: int
    step: Callable[[int, str], int | None]
    accepts: Callable[[int], bool]

    def __contains__(self, word: str) -> bool:
        state: int | None = self.start
        for character in word:
            if ord(character) > 255 or not self.alphabet >> ord(character) & 1:
                return False
            state = self.step(state or 0, character)
            if state is None:
                return False
        return self.accepts(state or 0)


def explore(
    domain: Domain, base: Sequence[tuple[Language, bool]], others: Sequence[Language], effort: Effort
) -> Iterator[tuple[int, str]]:
    """Which of ``others`` a word of ``domain`` can be in, given that it is in each language of ``base`` that stands
    with True and in none that stands with False: pairs of a bit set over ``others`` and a word, each bit set once.

    Raises TooComplex."""
    listed: frozenset[str] | None = None
    for words in (language.words for language, wanted in base if wanted):
        if words is not None and (listed is None or len(words) < len(listed)):
            listed = words
    if listed is None:
        yield from _walk(domain, base, others, effort)
    else:
        effort.spend(len(listed) * (1 + len(others)))
        yield from _try(listed, domain, base, others)


def _try(
    words: Iterable[str], domain: Domain, base: Sequence[tuple[Language, bool]], others: Sequence[Language]
) -> Iterator[tuple[int, str]]:
    seen = set()
    for word in sorted(words):
        if word not in domain or any((word in language) is not wanted for language, wanted in base):
            continue
        found = sum(1 << number for number, language in enumerate(others) if word in language)
        if found not in seen:
            seen.add(found)
            yield found, word


def _walk(
    domain: Domain, base: Sequence[tuple[Language, bool]], others: Sequence[Language], effort: Effort
) -> Iterator[tuple[int, str]]:
    machine = _Machine([*(language for language, _ in base), *others], domain.masks, domain.alphabet)
    wanted = [(machine.spans[number], machine.ends[number]) for number, (_, is_in) in enumerate(base) if is_in]
    unwanted = [
        (machine.sinks[number], machine.ends[number]) for number, (_, is_in) in enumerate(base) if not is_in
    ]
    ends = machine.ends[len(base) :]
    columns = machine.columns
    start = (machine.start, domain.start)
    came: dict[tuple[int, int], tuple[tuple[int, int], str] | None] = {start: None}
    queue = deque([start])
    seen: set[int] = set()
    while queue:
        here = queue.popleft()
        effort.spend(len(columns))
        state, place = here
        fits = all(state & end for _, end in wanted) and not any(state & end for _, end in unwanted)
        if fits and domain.accepts(place):
            found = _truth(state, ends)
            if found not in seen:
                seen.add(found)
                yield found, _spell(came, here)
        for column, character in columns:
            after = domain.step(place, character)
            if after is None:
                continue
            moved = machine.step(state, column)
            if any(not moved & span for span, _ in wanted) or any(moved & sink for sink, _ in unwanted):
                continue
            there = (moved, after)
            if there not in came:
                if len(came) >= MAX_STATES:
                    raise TooComplex(f"more than {MAX_STATES} combinations of patterns")
                came[there] = (here, character)
                queue.append(there)


def _truth(state: int, ends: Sequence[int]) -> int:
    found = 0
    for number, end in enumerate(ends):
        if state & end:
            found |= 1 << number
    return found


def _spell(came: dict[tuple[int, int], tuple[tuple[int, int], str] | None], here: tuple[int, int]) -> str:
    letters = []
    step = came[here]
    while step is not None:
        here, letter = step
        letters.append(letter)
        step = came[here]
    return "".join(reversed(letters))


class _Machine:
    """All positions of all patterns of some languages in one integer. For each language: ``spans``, its bits;
    ``ends``, those that accept; ``sinks``, those from which it accepts whatever follows."""

    __slots__ = (
        *("_closure", "_column_of", "_loop", "_masks", "_once", "_settled", "_span_of"),
        *("columns", "ends", "sinks", "spans", "start"),
    )

    def __init__(self, languages: Sequence[Language], masks: Sequence[int], alphabet: int = ANY) -> None:
        self.spans: list[int] = []
        self.ends: list[int] = []
        self.sinks: list[int] = []
        every = {mask & alphabet for language in languages for pattern in language.patterns for mask, _ in pattern}
        self._column_of: dict[int, int] = {}
        self._span_of: dict[int, int] = {}
        self._masks = classes = _classes(every | {mask & alphabet for mask in masks}, alphabet)
        self.columns = [(number, _readable(mask)) for number, mask in enumerate(classes)]
        self.columns.sort(key=lambda column: _rank(column[1]))
        self._once = [0] * len(classes)
        self._loop = [0] * len(classes)
        self._closure = 0
        self._settled = 0
        self.start = 0
        columns_of = {mask: [n for n, part in enumerate(classes) if part & mask] for mask in every}
        position = 0
        for language in languages:
            position = self._add(language, position, columns_of, alphabet)
        self.start = self._close(self.start)

    def _add(self, language: Language, position: int, columns_of: dict[int, list[int]], alphabet: int) -> int:
        first, ends, sinks = position, 0, 0
        for pattern in language.patterns:
            self.start |= 1 << position
            for mask, loop in pattern:
                table = self._loop if loop else self._once
                for column in columns_of[mask & alphabet]:
                    table[column] |= 1 << position
                if loop:
                    self._closure |= 1 << position
                position += 1
            if pattern and pattern[-1][1] and pattern[-1][0] & alphabet == alphabet:
                sinks |= 1 << position - 1
            ends |= 1 << position
            position += 1
        self.spans.append((1 << position) - (1 << first))
        self.ends.append(ends)
        self.sinks.append(sinks)
        self._settled |= sinks
        self._span_of.update((1 << number, self.spans[-1]) for number in _numbers(sinks))
        return position

    def column(self, character: str) -> int:
        """The column of any character of the alphabet."""
        if not self._column_of:
            for number, mask in enumerate(self._masks):
                self._column_of.update((position, number) for position in _numbers(mask))
        return self._column_of[ord(character)]

    def step(self, state: int, column: int) -> int:
        moved = (state & self._once[column]) << 1 | state & self._loop[column]
        return self._close(moved)

    def _close(self, state: int) -> int:
        while True:
            wider = state | (state & self._closure) << 1
            if wider == state:
                break
            state = wider
        if state & self._settled:
            state = self._settle(state)
        return state

    def _settle(self, state: int) -> int:
        """Where a language accepts whatever follows, its other positions tell nothing any more."""
        sure = state & self._settled
        while sure:
            lowest = sure & -sure
            span = self._span_of[lowest]
            state = state & ~span | lowest | lowest << 1
            sure &= ~span
        return state


def _classes(masks: Iterable[int], alphabet: int) -> list[int]:
    """The parts of ``alphabet`` that ``masks`` do not tell apart."""
    single = 0
    wide = []
    for mask in masks:
        if _single(mask):
            single |= mask
        elif mask:
            wide.append(mask)
    parts = [alphabet & ~single]
    for mask in wide:
        parts = [piece for part in parts for piece in (part & mask, part & ~mask) if piece]
    return [part for part in parts if part] + [1 << number for number in _numbers(single)]


def _single(mask: int) -> bool:
    return mask != 0 and mask & (mask - 1) == 0


def _numbers(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


_READABLE_BITS: Final = [1 << ord(character) for character in _READABLE]
_RANK: Final = {character: number for number, character in enumerate(_READABLE)}


def _readable(mask: int) -> str:
    for bit in _READABLE_BITS:
        if mask & bit:
            return chr(bit.bit_length() - 1)
    return chr(mask.bit_length() - 1)


def _rank(character: str) -> int:
    return _RANK.get(character, 1000 + ord(character))
