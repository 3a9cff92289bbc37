"""Settings: fields of frozen dataclasses that know how they are written, and why their default is what it is.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Shutdown:
        drain: float = setting(duration(), 45.0, "T-8: ...")

One table, made from these fields, drives reading, ``config show``, ``config explain`` and the JSON Schema. It is
ours, and not a validation library's, because every message needs the place in the file and did-you-mean, because
scalars are typed by field and not by YAML, and because a worker pays for it in memory (pydantic: 9 MiB, 100 ms).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast, overload

from config.kinds import INVALID, Invalid, Kind, OrOff, Reading, Schema
from config.nodes import Node

T = TypeVar("T")
Shorthand = Callable[[Node, Reading], Any]


class _Required:
    def __repr__(self) -> str:
        return "(must be given)"


REQUIRED: Final[Any] = _Required()


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table. ``attribute`` is the name in Python, ``name`` the name in YAML."""

    attribute: str
    name: str
    kind: Kind[Any]
    default: Any
    why: str

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


@overload
def setting(kind: Kind[T], default: T, why: str) -> T: ...
@overload
def setting(kind: Kind[T], default: None, why: str) -> T | None: ...
def setting(kind: Kind[T], default: T | None, why: str) -> T | None:
    """A dataclass field. ``why``: what it is for, in a sentence, with the reason of the default.

    A mapping as default is shared by all instances: nobody changes it."""
    metadata = {"kind": kind, "default": default, "why": why}
    if default is REQUIRED:
        return cast(T, dataclasses.field(metadata=metadata))
    return dataclasses.field(default_factory=lambda: default, metadata=metadata)


def camel(attribute: str) -> str:
    """``max_body`` -> ``maxBody``; ``from_`` -> ``from``."""
    return re.sub(r"_([a-z0-9])", lambda match: match[1].upper(), attribute.rstrip("_"))


_TABLES: Final[dict[type, Mapping[str, Setting]]] = {}


def settings_of(cls: type) -> Mapping[str, Setting]:
    """The table of a class, by YAML name."""
    if cls not in _TABLES:
        rows = (_row(field) for field in dataclasses.fields(cls) if "kind" in field.metadata)
        _TABLES[cls] = {row.name: row for row in rows}
    return _TABLES[cls]


def _row(field: dataclasses.Field[Any]) -> Setting:
    facts = field.metadata
    return Setting(field.name, camel(field.name), facts["kind"], facts["default"], facts["why"])


class Section(Kind[T]):
    """A mapping with the settings of a class. ``later``: fields we know and do not support yet, with the reason
    or the remedy (SW0120). ``shorthand`` reads what is no mapping, ``example`` its form in the schema."""

    def __init__(
        self,
        cls: type[T],
        *,
        later: Mapping[str, str] | None = None,
        shorthand: Shorthand | None = None,
        example: Schema | None = None,
    ) -> None:
        self.cls = cls
        self.later = later or {}
        self._shorthand = shorthand
        self._example = example

    def read(self, node: Node, reading: Reading) -> T | Invalid:
        if self._shorthand is not None and node.kind != "mapping":
            return cast("T | Invalid", self._shorthand(node, reading))
        table = settings_of(self.cls)
        found = {}
        complete = node.kind == "mapping"
        for name, child in node.fields(table, self.later).items():
            reading.nodes[child.path] = child
            value = table[name].kind.read(child, reading)
            found[table[name].attribute] = value
            # What was reported keeps its default, so that reading can go on; there is no default for the required.
            complete = complete and not (table[name].required and value is INVALID)
        for row in table.values():
            if row.required and row.attribute not in found and node.kind == "mapping":
                node.report("SW0106", f"'{row.name}' is missing", hint=f"add {row.name}: ...", note=row.why)
                complete = False
        given = {name: value for name, value in found.items() if value is not INVALID}
        return self.cls(**given) if complete else INVALID

    def show(self, value: T) -> Any:
        return show(value)

    def schema(self) -> Schema:
        table = settings_of(self.cls)
        whole: Schema = {"type": "object", "additionalProperties": False, "properties": {}}
        for row in table.values():
            whole["properties"][row.name] = describe(row)
        required = [row.name for row in table.values() if row.required]
        if required:
            whole["required"] = required
        return {"anyOf": [self._example, whole]} if self._example else whole

    def child(self, name: str) -> Kind[Any] | None:
        row = settings_of(self.cls).get(name)
        return row.kind if row is not None else None


def section(cls: type[T], **options: Any) -> tuple[Kind[T], T]:
    """Kind and default of a section that may be left out: ``setting(*section(Tls), "...")``."""
    return Section(cls, **options), cls()


def describe(row: Setting) -> Schema:
    """The JSON Schema of one setting, with its text and its default."""
    schema = {**row.kind.schema(), "description": row.why}
    if not row.required and (row.default is not None or isinstance(row.kind, OrOff)):
        shown = row.kind.show(row.default)
        if shown not in ({}, [], "", None):
            schema["default"] = shown
    return schema


def show(value: Any) -> dict[str, Any]:
    """A section as the mapping one would write, all defaults included, empty values left out."""
    shown = {}
    for row in settings_of(type(value)).values():
        item = getattr(value, row.attribute)
        text = None if item is None and not isinstance(row.kind, OrOff) else row.kind.show(item)
        if text is not None and text != "" and text != [] and text != {}:
            shown[row.name] = text
    return shown


def leaves(shown: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The single values of ``show``'s result, by path (``inbound[0].listen``)."""
    if isinstance(shown, dict):
        for name, item in shown.items():
            yield from leaves(item, f"{path}.{name}" if path else name)
    elif isinstance(shown, list):
        for index, item in enumerate(shown):
            yield from leaves(item, f"{path}[{index}]")
    else:
        yield path, shown
