"""The little languages that policy values are written in, each compiled once to a test of one string.

Istio's string language, tried in this order:

    *       presence        hosts and methods: the field is there; principals and paths: it is not empty
    *x      suffix          the rest is literal, further stars included
    x*      prefix
    x       exact

There is no escape, no regular expression and no notion of segments: ``/admin*`` matches ``/administrator``.
Four facts have languages of their own: ``namespaces`` (any number of stars, anywhere), addresses and blocks
(``Blocks``), ports, and the issuer and subject of a token (``Tokens``, AUTHZ 6.9). A path with ``{*}`` or ``{**}``
is a template (``Paths``, 6.6). No test here takes more than text times pattern steps, whatever the policy says, and
none can raise on a text from the wire.

``keys`` tells by which values of the fact a pattern can be found (``PatternIndex``): every text that matches
is found under at least one of the keys, and texts that do not match may be found as well. So an index only
ever saves work; the verdict is always that of ``matches``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final, Generic, TypeVar

EXACT, PREFIX, SUFFIX = "exact", "prefix", "suffix"
Key = tuple[str, str]  # kind, text

T = TypeVar("T")


class Strings:
    """A list of values in Istio's string language, ORed."""

    __slots__ = ("_exact", "_filled", "_prefixes", "_suffixes")

    def __init__(self, values: Iterable[str], *, presence_is_filled: bool) -> None:
        exact, prefixes, suffixes = set(), [], []
        self._filled = False
        for value in values:
            if value == "*":
                if presence_is_filled:
                    self._filled = True
                else:
                    prefixes.append("")
            elif value.startswith("*"):
                suffixes.append(value[1:])
            elif value.endswith("*"):
                prefixes.append(value[:-1])
            else:
                exact.add(value)
        self._exact = frozenset(exact)
        self._prefixes = tuple(prefixes)
        self._suffixes = tuple(suffixes)

    def matches(self, text: str) -> bool:
        return (
            text in self._exact
            or text.startswith(self._prefixes)
            or text.endswith(self._suffixes)
            or (self._filled and text != "")
        )

    def keys(self) -> list[Key] | None:
        found = [(EXACT, text) for text in self._exact]
        found += [(PREFIX, text) for text in self._prefixes]
        found += [(SUFFIX, text) for text in self._suffixes]
        if self._filled:
            found.append((PREFIX, ""))
        return found


class Globs:
    """A list of namespaces, ORed: stars stand for any text, also for none."""

    __slots__ = ("_exact", "_globs")

    def __init__(self, values: Iterable[str]) -> None:
        written = list(values)
        self._exact = frozenset(value for value in written if "*" not in value)
        self._globs = tuple(tuple(value.split("*")) for value in written if "*" in value)

    def matches(self, text: str) -> bool:
        return text in self._exact or any(_fits(parts, text) for parts in self._globs)

    def keys(self) -> list[Key] | None:
        if self._globs:
            return None
        return [(EXACT, text) for text in self._exact]


class Ports:
    """A list of ports, ORed. Decimal, leading zeros allowed (AUTHZ 6.3)."""

    __slots__ = ("_ports",)

    def __init__(self, values: Iterable[str]) -> None:
        self._ports = frozenset(map(parse_port, values))

    def matches(self, port: int) -> bool:
        return port in self._ports

    def keys(self) -> list[Key] | None:
        return None  # a workload has a handful of ports: an index would save nothing


class Paths:
    """A list of paths, ORed: Istio's strings, and templates (AUTHZ 6.6)."""

    __slots__ = ("_plain", "_templates")

    def __init__(self, values: Iterable[str]) -> None:
        written = list(values)
        self._plain = Strings((v for v in written if not is_template(v)), presence_is_filled=True)
        self._templates = tuple(Template(value) for value in written if is_template(value))

    def matches(self, text: str) -> bool:
        return self._plain.matches(text) or any(template.matches(text) for template in self._templates)

    def keys(self) -> list[Key] | None:
        return (self._plain.keys() or []) + [(PREFIX, template.beginning) for template in self._templates]


def is_template(value: str) -> bool:
    return "{*}" in value or "{**}" in value


_SET: Final = r"A-Za-z0-9\-._~%!$&'()+,;:@=*"
_ONE_SEGMENT: Final = re.compile(f"[{_SET}]+").fullmatch
_ANY_SEGMENTS: Final = re.compile(f"[{_SET}/]*").fullmatch


class Template:
    """A path with ``{*}``, one or more characters of one segment, and ``{**}``, any number of them and of slashes.
    Characters outside the set of AUTHZ 6.6 match neither; other text is literal.

    Wildcards are whole segments and ``{**}`` is the last of them; raises ValueError for what the parser refuses."""

    __slots__ = ("_begin", "_end", "_open", "beginning")

    def __init__(self, value: str) -> None:
        before, self._open, self._end = value.partition("{**}")
        self.beginning = value[: value.index("{")]
        self._begin = tuple(None if part == "{*}" else part for part in before.split("/"))
        literal = "".join(part for part in self._begin if part) + self._end
        if "{" in literal or "}" in literal or (self._open and not before.endswith("/")):
            raise ValueError(f"{value!r} is not a path template")

    def matches(self, text: str) -> bool:
        parts = text.split("/", len(self._begin) - 1) if self._open else text.split("/")
        if len(parts) != len(self._begin):
            return False
        rest = parts.pop() if self._open else ""  # where {**} begins
        for wanted, part in zip(self._begin, parts, strict=False):
            if part != wanted if wanted is not None else not _ONE_SEGMENT(part):
                return False
        if not rest.endswith(self._end):
            return False
        return not self._open or _ANY_SEGMENTS(rest[: len(rest) - len(self._end)]) is not None


class Blocks:
    """A list of addresses and CIDR blocks, ORed (AUTHZ 6.2). An IPv6 address that stands for an IPv4 one is that
    one; otherwise the two never meet. ``matches`` raises ValueError for a text that is no address."""

    __slots__ = ("_nets",)

    def __init__(self, values: Iterable[str]) -> None:
        self._nets = frozenset(map(_parse_block, values))

    def matches(self, text: str) -> bool:
        version, number = _parse_address(text)
        return any(found == version and number >> bits == start for found, start, bits in self._nets)

    def keys(self) -> list[Key] | None:
        return None


def _parse_block(text: str) -> tuple[int, int, int]:
    """Version, address without the bits beyond the prefix, number of those."""
    net = ipaddress.ip_network(text, strict=False)
    bits = net.max_prefixlen - net.prefixlen
    if isinstance(net, ipaddress.IPv6Network) and net.network_address.ipv4_mapped is not None and bits <= 32:
        return 4, int(net.network_address.ipv4_mapped) >> bits, bits
    return net.version, int(net.network_address) >> bits, bits


@lru_cache(maxsize=4096)
def _parse_address(text: str) -> tuple[int, int]:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return 4, int(address.ipv4_mapped)
    return address.version, int(address)


class Tokens:
    """A list of request principals, ORed, each a test of issuer and subject apart (the table of AUTHZ 6.9)."""

    __slots__ = ("_pairs",)

    def __init__(self, values: Iterable[str]) -> None:
        self._pairs = tuple((_filled(issuer), _filled(subject)) for issuer, subject in map(_token, values))

    def matches(self, token: tuple[str, str]) -> bool:
        return any(issuer.matches(token[0]) and subject.matches(token[1]) for issuer, subject in self._pairs)

    def keys(self) -> list[Key] | None:
        return None


def _filled(pattern: Pattern) -> Strings | Literal:
    kind, text = pattern
    return Literal(text) if kind == EXACT else Strings((text,), presence_is_filled=True)


class Literal:
    """One text, stars included."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def matches(self, text: str) -> bool:
        return text == self._text


Pattern = tuple[str, str]  # EXACT: the text is literal; "": Istio's string language
_ANY: Final[Pattern] = ("", "*")


def _token(value: str) -> tuple[Pattern, Pattern]:
    """Issuer and subject of a written request principal. The split is at the last slash: issuers are URLs."""
    issuer, slash, subject = value.rpartition("/")
    if value == "*":
        return _ANY, _ANY
    if value.startswith("*"):
        return (("", issuer), (EXACT, subject)) if slash else (_ANY, ("", value))
    if value.endswith("*"):
        return ((EXACT, issuer), ("", subject)) if slash else (("", value), _ANY)
    return ((EXACT, issuer), (EXACT, subject)) if slash else ((EXACT, value), (EXACT, ""))


class Names:
    """A list of names, ORed: as they are, without wildcards."""

    __slots__ = ("_names",)

    def __init__(self, values: Iterable[str]) -> None:
        self._names = frozenset(values)

    def matches(self, text: str) -> bool:
        return text in self._names

    def keys(self) -> list[Key] | None:
        return [(EXACT, name) for name in self._names]


class Several:
    """Values of which one must match: of a header that came more than once, of a claim that is a list. What is no
    text never matches (AUTHZ 6.7, 6.9)."""

    __slots__ = ("_strings",)

    def __init__(self, strings: Strings) -> None:
        self._strings = strings

    def matches(self, value: Any) -> bool:
        if isinstance(value, str):
            return self._strings.matches(value)
        if not isinstance(value, list | tuple):
            return False
        return any(isinstance(one, str) and self._strings.matches(one) for one in value)

    def keys(self) -> list[Key] | None:
        return None


def parse_port(text: str) -> int:
    """A port of 0 to 65535. Raises ValueError."""
    if not (text.isascii() and text.isdigit()) or len(text) > 32 or int(text) > 65535:
        raise ValueError(f"{text!r} is not a port")
    return int(text)


def _fits(parts: tuple[str, ...], text: str) -> bool:
    """Whether ``text`` is the parts in order with anything between them. Leftmost finds suffice, as in fnmatch:
    taking a middle part as early as possible leaves the most room for what follows."""
    first, last = parts[0], parts[-1]
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    position, end = len(first), len(text) - len(last)
    for part in parts[1:-1]:
        position = text.find(part, position, end)
        if position < 0:
            return False
        position += len(part)
    return True


class PatternIndex(Generic[T]):
    """Things found by a text: under the text itself, under its beginnings and under its ends.

    Beginnings and ends are tried once for each length that occurs, so a look-up costs as much as there are
    different lengths, not as there are patterns."""

    __slots__ = ("_prefixes", "_suffixes", "exact")

    def __init__(self) -> None:
        self.exact: dict[str, T] = {}
        self._prefixes: dict[int, dict[str, T]] = {}
        self._suffixes: dict[int, dict[str, T]] = {}

    @property
    def is_exact(self) -> bool:
        """Whether all is found in ``exact``, under the text itself."""
        return not self._prefixes and not self._suffixes

    def put(self, key: Key, thing: T) -> None:
        kind, text = key
        if kind == EXACT:
            self.exact[text] = thing
            return
        tables = self._prefixes if kind == PREFIX else self._suffixes
        tables.setdefault(len(text), {})[text] = thing

    def find(self, text: str) -> list[T]:
        found = []
        if (thing := self.exact.get(text)) is not None:
            found.append(thing)
        size = len(text)
        for length, table in self._prefixes.items():
            if length <= size and (thing := table.get(text[:length])) is not None:
                found.append(thing)
        for length, table in self._suffixes.items():
            if length <= size and (thing := table.get(text[size - length :])) is not None:
                found.append(thing)
        return found
