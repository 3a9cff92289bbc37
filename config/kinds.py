"""What a setting can be: one object for each kind of value, which reads it, shows it and describes it.

``read`` takes a node and gives the value, or INVALID after it has reported why. ``show`` is the value as one
would write it. ``schema`` is its JSON Schema, for editors. The three stand together so that they cannot drift.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from config import values
from config.nodes import Node
from config.values import Address

T = TypeVar("T")
Schema = dict[str, Any]


class Invalid(Enum):
    """The value was reported and is not there."""

    INVALID = "invalid"


INVALID: Final = Invalid.INVALID


class Reading:
    """What readers share: where relative paths begin, and the node of each path that was written."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.nodes: dict[str, Node] = {}
        self.kept: dict[str, list[int]] = {}  # by path of a list: which of its items could be read

    def path(self, node: Node, text: str) -> Path:
        """The path that ``text`` means where ``node`` stands."""
        return Path(node.document.folder or self.base) / Path(text).expanduser()


class Kind(Generic[T]):
    """A kind of value."""

    def read(self, node: Node, reading: Reading) -> T | Invalid:
        raise NotImplementedError

    def show(self, value: T) -> Any:
        return value

    def schema(self) -> Schema:
        raise NotImplementedError

    def child(self, name: str) -> Kind[Any] | None:
        """The kind of what stands under ``name`` (or at an index), for overrides by path."""
        return None


class Text(Kind[str]):
    """A text that a pattern describes; ``what`` ("a name") stands in the problem."""

    def __init__(self, what: str, pattern: str = r"[^\x00-\x1f\x7f]{1,1024}", example: str = "") -> None:
        self.what, self.pattern, self.example = what, pattern, example

    def read(self, node: Node, reading: Reading) -> str | Invalid:
        text = node.string()
        if text is None:
            return INVALID
        if re.fullmatch(self.pattern, text, re.ASCII) is None:
            node.report("SW0105", f"{node.shown} is not {self.what}", hint=self.example and f"write {self.example}")
            return INVALID
        return text

    def schema(self) -> Schema:
        return {"type": ["string", "number", "boolean"]}


class Parsed(Kind[T]):
    """A text read by a ``parse_x`` of ``config.values`` that raises ValueError with a sentence."""

    def __init__(
        self, what: str, parse: Callable[[str], T], show: Callable[[T], Any] = str, schema: Schema | None = None
    ) -> None:
        self.what, self._parse, self._show = what, parse, show
        self._schema = schema or {"type": ["string", "integer"]}

    def read(self, node: Node, reading: Reading) -> T | Invalid:
        text = node.string()
        if text is None:
            return INVALID
        try:
            return self._parse(text)
        except ValueError as error:
            node.report("SW0105", f"{node.shown} is not {self.what}", hint=str(error))
            return INVALID

    def show(self, value: T) -> Any:
        return self._show(value)

    def schema(self) -> Schema:
        return dict(self._schema)


class Between(Parsed[T]):
    """A parsed value with bounds, both included (SW0121)."""

    def __init__(self, inner: Parsed[T], least: float, most: float) -> None:
        super().__init__(inner.what, inner._parse, inner._show, inner._schema)
        self.least, self.most = least, most

    def read(self, node: Node, reading: Reading) -> T | Invalid:
        value = super().read(node, reading)
        if value is INVALID or self.least <= value <= self.most:  # type: ignore[operator]
            return value
        bounds = f"from {self._show(self.least)} to {self._show(self.most)}"  # type: ignore[arg-type]
        node.report("SW0121", f"{node.shown} is out of range", hint=f"allowed: {bounds}")
        return INVALID


def _integer(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,15}", text, re.ASCII) is None:
        raise ValueError("write a whole number")
    return int(text)


def _number(text: str) -> float:
    if re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,15})?", text, re.ASCII) is None:
        raise ValueError("write a number such as 0.05")
    return float(text)


def _plain(value: float) -> float:
    return int(value) if value == int(value) else value


def duration(least: float = 0.0, most: float = 366 * 86400.0) -> Between[float]:
    """Seconds. 0 means "no limit" wherever ``least`` allows it."""
    schema = {"type": "string", "pattern": r"^(0|([0-9.]+(h|m|s|ms))+)$"}
    return Between(Parsed("a duration", values.parse_duration, values.render_duration, schema), least, most)


def size(least: int = 0, most: int = 2**40) -> Between[int]:
    """Bytes."""
    return Between(Parsed("a size", values.parse_size, values.render_size), least, most)


def integer(least: int = 0, most: int = 2**31) -> Between[int]:
    schema = {"type": "integer", "minimum": least, "maximum": most}
    return Between(Parsed("a number", _integer, int, schema), least, most)


def number(least: float = 0.0, most: float = 1e9) -> Between[float]:
    schema = {"type": "number", "minimum": least, "maximum": most}
    return Between(Parsed("a number", _number, _plain, schema), least, most)


class IntegerOr(Kind[int]):
    """A number, or a word that stands for the number 0, which the loader replaces."""

    def __init__(self, word: str, inner: Between[int]) -> None:
        self._word, self._inner = word, inner

    def read(self, node: Node, reading: Reading) -> int | Invalid:
        return 0 if node.kind == "scalar" and node.text == self._word else self._inner.read(node, reading)

    def schema(self) -> Schema:
        return {"anyOf": [{"const": self._word}, self._inner.schema()]}


class Flag(Kind[bool]):
    """true or false."""

    def read(self, node: Node, reading: Reading) -> bool | Invalid:
        value = node.boolean()
        return INVALID if value is None else value

    def schema(self) -> Schema:
        return {"type": "boolean"}


class Choice(Kind[str]):
    """One of a few words. ``later`` names words of the format that we do not support, and what to do."""

    def __init__(self, what: str, *names: str, later: Mapping[str, str] | None = None) -> None:
        self._what, self._names, self._later = what, names, later

    def read(self, node: Node, reading: Reading) -> str | Invalid:
        text = node.choice(self._names, self._what, self._later)
        return INVALID if text is None else text

    def schema(self) -> Schema:
        return {"enum": [*self._names, *(float(name) for name in self._names if name.replace(".", "").isdigit())]}


class FilePath(Kind[Path]):
    """A path, relative to the file it stands in."""

    def read(self, node: Node, reading: Reading) -> Path | Invalid:
        text = node.string()
        if text is None:
            return INVALID
        if "\0" in text or not text:
            node.report("SW0105", f"{node.shown} is not a path")
            return INVALID
        return reading.path(node, text)

    def show(self, value: Path) -> Any:
        return str(value)

    def schema(self) -> Schema:
        return {"type": "string"}


class Output(Kind[str]):
    """``stdout``, ``stderr``, or a path relative to the file it stands in."""

    _streams = ("stdout", "stderr")

    def read(self, node: Node, reading: Reading) -> str | Invalid:
        if node.kind == "scalar" and node.text in self._streams:
            return node.text
        path = FilePath().read(node, reading)
        return path if isinstance(path, Invalid) else str(path)

    def show(self, value: str) -> Any:
        return value

    def schema(self) -> Schema:
        return {"type": "string", "examples": list(self._streams)}


class Where(Kind[Address]):
    """An address. ``bare``: the host of a bare port."""

    def __init__(self, bare: str, *, names: bool = False) -> None:
        self._bare, self._names = bare, names

    def read(self, node: Node, reading: Reading) -> Address | Invalid:
        text = node.string()
        if text is None:
            return INVALID
        try:
            found = values.parse_address(text, bare=self._bare, names=self._names)
            if found.path:
                found = Address(path=values.check_socket_path(str(reading.path(node, found.path))))
        except ValueError as error:
            code = "SW0120" if text.startswith("systemd:") else "SW0105"
            node.report(code, f"{node.shown} is not an address that can be used here", hint=str(error))
            return INVALID
        return found

    def show(self, value: Address) -> Any:
        return str(value)

    def schema(self) -> Schema:
        return {"type": ["string", "integer"]}


class OrOff(Kind["T | None"]):
    """What ``inner`` reads, or None, written ``off``."""

    def __init__(self, inner: Kind[T]) -> None:
        self._inner = inner

    def read(self, node: Node, reading: Reading) -> T | Invalid | None:
        return None if node.kind == "scalar" and node.text == "off" else self._inner.read(node, reading)

    def show(self, value: T | None) -> Any:
        return "off" if value is None else self._inner.show(value)

    def schema(self) -> Schema:
        return {"anyOf": [{"const": "off"}, self._inner.schema()]}


class Many(Kind["tuple[T, ...]"]):
    """A list. With ``or_one``, a single item may stand without brackets."""

    def __init__(self, item: Kind[T], *, or_one: bool = False, most: int = 1000) -> None:
        self.item, self._or_one, self._most = item, or_one, most

    def read(self, node: Node, reading: Reading) -> tuple[T, ...] | Invalid:
        if self._or_one and node.kind != "sequence":
            one = self.item.read(node, reading)
            return INVALID if isinstance(one, Invalid) else (one,)
        nodes: Sequence[Node] = node.sequence()
        if node.kind != "sequence":
            return INVALID
        if len(nodes) > self._most:
            node.report("SW0121", f"{len(nodes)} items are too many", hint=f"allowed: up to {self._most}")
            return INVALID
        for item in nodes:
            reading.nodes[item.path] = item
        read = [(index, self.item.read(item, reading)) for index, item in enumerate(nodes)]
        reading.kept[node.path] = [index for index, item in read if not isinstance(item, Invalid)]
        return tuple(item for _, item in read if not isinstance(item, Invalid))

    def show(self, value: tuple[T, ...]) -> Any:
        return [self.item.show(item) for item in value]

    def schema(self) -> Schema:
        many = {"type": "array", "items": self.item.schema()}
        return {"anyOf": [self.item.schema(), many]} if self._or_one else many

    def child(self, name: str) -> Kind[Any] | None:
        return self.item if name.isdigit() else None


class Named(Kind["Mapping[str, T]"]):
    """A mapping from free names to items of one kind."""

    def __init__(self, item: Kind[T], what: str, pattern: str) -> None:
        self.item, self._what, self._pattern = item, what, pattern

    def read(self, node: Node, reading: Reading) -> Mapping[str, T] | Invalid:
        found: dict[str, T] = {}
        for name, child in node.mapping().items():
            reading.nodes[child.path] = child
            if re.fullmatch(self._pattern, name, re.ASCII) is None:
                child.report_key("SW0105", f"'{name[:80]}' is not {self._what}")
            item = self.item.read(child, reading)
            if not isinstance(item, Invalid):
                found[name] = item
        return found

    def show(self, value: Mapping[str, T]) -> Any:
        return {name: self.item.show(item) for name, item in value.items()}

    def schema(self) -> Schema:
        return {"type": "object", "additionalProperties": self.item.schema()}

    def child(self, name: str) -> Kind[Any] | None:
        return self.item
