"""Values from outside the file: ``SIDEWALL_*`` variables and ``--set key.path=value``.

They become nodes put into the file's tree, with their own name where others have a file and line, and are then
read and checked like everything else. The order is: command line over environment over file over default.
``__`` in a variable's name steps into a mapping or list; one ``_`` parts words (SIDEWALL_SHUTDOWN__DRAIN,
SIDEWALL_INBOUND__0__APP). A variable that fits no setting is a warning and not an error, because clusters put
variables of their own there for a Service that happens to be named sidewall.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from config.kinds import Kind, Many, Named
from config.nodes import Document, Node, parse_yaml
from config.problems import Problem, Problems, suggest
from config.settings import Section, settings_of

PREFIX: Final = "SIDEWALL_"
# Read elsewhere: whom the command line talks to, which file is read, who is worker of whom.
_NOT_SETTINGS: Final = frozenset({"SIDEWALL_ADMIN", "SIDEWALL_CONFIG", "SIDEWALL_DEBUG", "SIDEWALL_WORKER_NUMBER"})
_SERVICE_LINK: Final = re.compile(r"SIDEWALL_(?:.*_)?(?:SERVICE_HOST|SERVICE_PORT(?:_.*)?|PORT|PORT_\d+_.*)")
_INDEX: Final = re.compile(r"\[(\d+)\]")


class Overrides:
    """Puts values into the tree below ``root``, whose kind is ``whole``."""

    def __init__(self, root: Node, whole: Section[Any], problems: Problems) -> None:
        self._root = root
        self._whole = whole
        self._problems = problems

    def from_environment(self, env: Mapping[str, str]) -> list[str]:
        """Returns the names of the variables that were used."""
        used = []
        for name in sorted(env):
            if not name.startswith(PREFIX) or name in _NOT_SETTINGS or _SERVICE_LINK.fullmatch(name):
                continue
            if env[name] and self._put(f"env {name}", name[len(PREFIX) :].split("__"), env[name], folded=True):
                used.append(name)
        return used

    def from_command_line(self, values: Mapping[str, str]) -> None:
        for key, value in values.items():
            steps = _INDEX.sub(r".\1", key).split(".")
            self._put(f"--set {key}", steps, value, folded=False)

    def _put(self, origin: str, steps: Sequence[str], value: str, *, folded: bool) -> bool:
        node, kind = self._root, self._whole  # type: tuple[Node, Kind[Any]]
        for depth, step in enumerate(steps):
            name = _name(kind, step, node) if folded else step
            child = kind.child(name)
            if child is None:
                self._unknown(origin, kind, step, folded)
                return False
            kind = child
            if depth == len(steps) - 1:
                return self._attach(node, name, self._value(origin, value), origin)
            inner = self._inner(node, name, kind, origin)
            if inner is None:
                return False
            node = inner
        return False

    def _unknown(self, origin: str, kind: Kind[Any], step: str, folded: bool) -> None:
        names = list(settings_of(kind.cls)) if isinstance(kind, Section) else []
        hint = suggest(step.replace("_", ""), names)
        severity = "warning" if folded else "error"
        self._problems.add(Problem("SW0114", f"there is no setting '{step}'", severity, file=origin, hint=hint))  # type: ignore[arg-type]

    def _value(self, origin: str, text: str) -> Node:
        if text[:1] in {"[", "{"}:
            documents = parse_yaml(text, origin, self._problems)
            if documents and documents[0].root is not None:
                documents[0].folder = os.getcwd()
                return documents[0].root
        node = _new(origin, "scalar", self._problems)
        node.text = node.written = text
        return node

    def _inner(self, parent: Node, name: str, kind: Kind[Any], origin: str) -> Node | None:
        """The container under ``name``, made when it is not there."""
        found = _child(parent, name)
        wanted = "sequence" if isinstance(kind, Many) else "mapping"
        if found is None or found.is_null:
            node = _new(origin, wanted, self._problems)
            return node if self._attach(parent, name, node, origin) else None
        if found.kind != wanted:
            message = f"'{found.path}' is written in short form: no part of it can be replaced"
            self._problems.add(Problem("SW0103", message, file=origin, hint=f"replace {found.path} as a whole"))
            return None
        return found

    def _attach(self, parent: Node, name: str, node: Node, origin: str) -> bool:
        if parent.kind == "sequence":
            index = int(name)
            if index > len(parent.items):
                hint = f"the next one is {len(parent.items)}"
                self._problems.add(Problem("SW0121", f"there is no entry {index}", file=origin, hint=hint))
                return False
            _repath(node, f"{parent.path}[{index}]")
            parent.items[index : index + 1] = [node]
            return True
        _repath(node, f"{parent.path}.{name}" if parent.path else name)
        parent.entries[name] = node
        return True


def _child(parent: Node, name: str) -> Node | None:
    if parent.kind == "sequence":
        return parent.items[int(name)] if int(name) < len(parent.items) else None
    return parent.entries.get(name)


def _repath(node: Node, path: str) -> None:
    node.path = path
    for name, child in node.entries.items():
        _repath(child, f"{path}.{name}")
    for index, child in enumerate(node.items):
        _repath(child, f"{path}[{index}]")


def _new(origin: str, kind: Any, problems: Problems) -> Node:
    document = Document(origin, [], problems)
    document.folder = os.getcwd()
    return Node(document, kind, 0, 0, 0)


def _name(kind: Kind[Any], step: str, node: Node) -> str:
    """A step of a variable's name as the key it means."""
    plain = step.replace("_", "").lower()
    if isinstance(kind, Section):
        return next((name for name in settings_of(kind.cls) if name.lower() == plain), step)
    if isinstance(kind, Named):
        same = (name for name in node.entries if re.sub(r"[-_.]", "", name).lower() == plain)
        return next(same, step.lower().replace("_", "-"))
    return step
