"""What each fact can be: the automata inside which the analyses look for words.

A domain may be wider than what callers can really send, never narrower: then an analysis may name a request that
some other check would have refused, but never misses one. The domains follow the parsers: SPIFFE IDs as
``identity.spiffe`` reads them, methods as ``proxy.wire`` knows them, paths in canonical form.
"""

from __future__ import annotations

from typing import Final

from proxy.policy.analysis_words import ANY, Domain, bits
from proxy.wire.validate import METHODS

_LOWER: Final = "abcdefghijklmnopqrstuvwxyz"
_UPPER: Final = _LOWER.upper()
_DIGITS: Final = "0123456789"
_HEX: Final = bits(_DIGITS + "ABCDEF")
_NAME: Final = bits(_LOWER + _DIGITS + "-._")  # of a trust domain
_SEGMENT: Final = bits(_LOWER + _UPPER + _DIGITS + "-._")
_SLASH: Final = bits("/")
_DOT: Final = bits(".")
_VISIBLE: Final = bits(chr(code) for code in range(0x21, 0x7F))


def _always(_: int) -> bool:
    return True


def _stay(state: int, _: str) -> int | None:
    return state


def any_text(name: str, alphabet: int = ANY) -> Domain:
    return Domain(name, alphabet, (), 0, _stay, _always)


def some_text(name: str, alphabet: int) -> Domain:
    return Domain(name, alphabet, (), 0, lambda state, character: 1, lambda state: state == 1)


# -- one of a list ------------------------------------------------------------------------------------------


def listed(name: str, words: frozenset[str]) -> Domain:
    """A trie: states are numbers of beginnings."""
    states = {"": 0}
    for word in sorted(words):
        for end in range(1, len(word) + 1):
            states.setdefault(word[:end], len(states))
    moves = {(states[text[:-1]], text[-1]): number for text, number in states.items() if text}
    ends = frozenset(states[word] for word in words)
    alphabet = bits(character for word in words for character in word)
    masks = tuple(1 << ord(character) for character in sorted({c for word in words for c in word}))
    return Domain(name, alphabet, masks, 0, lambda state, c: moves.get((state, c)), ends.__contains__)


METHOD: Final = listed("method", frozenset(method.decode() for method in METHODS))


# -- SPIFFE IDs without their scheme ------------------------------------------------------------------------

_TRUST_DOMAIN, _AFTER_SLASH, _ONE_DOT, _TWO_DOTS, _IN_SEGMENT, _START = range(6)


def _peer_step(state: int, character: str) -> int | None:
    bit = 1 << ord(character)
    if state in (_START, _TRUST_DOMAIN):
        if bit & _SLASH:
            return _AFTER_SLASH if state == _TRUST_DOMAIN else None
        return _TRUST_DOMAIN if bit & _NAME else None
    return _segment_step(state, bit)


def _segment_step(state: int, bit: int) -> int | None:
    """Segments that are neither empty nor dots."""
    if bit & _SLASH:
        return _AFTER_SLASH if state == _IN_SEGMENT else None
    if bit & _DOT:
        return {_AFTER_SLASH: _ONE_DOT, _ONE_DOT: _TWO_DOTS}.get(state, _IN_SEGMENT)
    return _IN_SEGMENT


PEER: Final = Domain(
    "peer", _SEGMENT | _SLASH, (_NAME, _SLASH, _DOT), _START, _peer_step, {_TRUST_DOMAIN, _IN_SEGMENT}.__contains__
)


# -- canonical paths ----------------------------------------------------------------------------------------

_PATH: Final = _VISIBLE & ~bits('"#<>?\\')
_STAR_FORM, _ESCAPE, _ESCAPE_DIGIT = 6, 7, 8


def _path_step(state: int, character: str) -> int | None:
    bit = 1 << ord(character)
    if state == _START:
        return _AFTER_SLASH if bit & _SLASH else _STAR_FORM if character == "*" else None
    if state == _STAR_FORM:
        return None
    if state in (_ESCAPE, _ESCAPE_DIGIT):
        after = _ESCAPE_DIGIT if state == _ESCAPE else _IN_SEGMENT
        return after if bit & _HEX else None
    if character == "%":
        return _ESCAPE
    if bit & _SLASH and state in (_ONE_DOT, _TWO_DOTS, _AFTER_SLASH):
        return None
    return _segment_step(state, bit)


PATH: Final = Domain(
    "path",
    _PATH,
    (_SLASH, _DOT, bits("*"), bits("%"), _HEX),
    _START,
    _path_step,
    {_AFTER_SLASH, _IN_SEGMENT, _STAR_FORM}.__contains__,
)


def _loose_step(state: int, character: str) -> int | None:
    if state == 0:
        return 1 if character == "/" else 2 if character == "*" else None
    return 1 if state == 1 else None


# For a normalization that leaves slashes and dots as they come.
LOOSE_PATH: Final = Domain("path", ANY & ~bits("#?"), (_SLASH, bits("*")), 0, _loose_step, {1, 2}.__contains__)

# -- others -------------------------------------------------------------------------------------------------

HOST: Final = any_text("host", _VISIBLE & ~bits(_UPPER + '/?#@\\"<>'))
SNI: Final = some_text("sni", bits(_LOWER + _DIGITS + "-._"))
HEADER: Final = any_text("header", ANY & ~bits("\0\r\n"))
CLAIM: Final = any_text("claim")
LABEL: Final = any_text("label", ANY & ~bits(map(chr, range(0x20))))
NAMESPACE: Final = some_text("namespace", bits(_LOWER + _DIGITS + "-."))
NAME: Final = any_text("name", bits(_LOWER + _DIGITS + "-."))  # of a Service; "": the workload has none
