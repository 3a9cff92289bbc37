"""YAML as a tree of nodes that know where they stand.

PyYAML's events, libyaml's when it is there, become ``Node`` objects in one pass without recursion. Values keep
their text: whether ``no`` is a word or ``080`` a port is said by whoever reads the field, never by YAML. What
YAML would let pass in silence is a problem here: a second key of the same name, a tag, a byte order mark, a
merge key. Size, depth and the number of nodes are bounded, aliases counted with all they stand for.

A file is cut into documents before YAML sees it (``---`` at the start of a line is always a separator, inside
strings too), so that a syntax error hides the rest of one document and not of the file.

A reader asks a node for what it expects and gets it, or None and a problem on the shared list::

    fields = node.fields(("name", "action"))            # unknown keys are reported, with did-you-mean
    name = fields["name"].string() if "name" in fields else None
    action = fields["action"].choice(("ALLOW", "DENY"), "an action")
    for item in fields["rules"].sequence(): ...
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal

import yaml

from config.problems import Problem, Problems, Severity, suggest
from config.syntax import explain_syntax

# libyaml when PyYAML was built with it; the same events, six times slower, when not. Only their events are used.
_Loader: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MAX_TEXT: Final = 1024 * 1024  # characters of one file
MAX_NODES: Final = 100_000  # of one document, aliases counted with what they stand for
MAX_DEPTH: Final = 64

Kind = Literal["mapping", "sequence", "scalar"]

# YAML 1.2 c-printable, less the line breaks nobody sees (CR alone, NEL, LS, PS) and the byte order mark.
_ODD: Final = re.compile("[^\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_SEPARATOR: Final = re.compile(r"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_NUMBER: Final = re.compile(r"[-+]?(0x[0-9a-fA-F]+|0o?[0-7]+|\d+(\.\d*)?([eE][-+]?\d+)?|\.\d+)")
_BOOLEANS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_OLD_BOOLEANS: Final = frozenset({"yes", "no", "on", "off"})
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_KIND_WORDS: Final = {"mapping": "a mapping (key: value)", "sequence": "a list", "scalar": "a single value"}


class Document:
    """One YAML document: its root node, and what its nodes need to report."""

    def __init__(self, file: str, lines: list[str], problems: Problems) -> None:
        self.file = file
        self.lines = lines
        self.problems = problems
        self.title = ""  # "AuthorizationPolicy shop/web", once it is known
        self.folder = ""  # where relative paths begin, when not where those of the file do
        self.root: Node | None = None

    def snippet(self, line: int) -> str:
        return self.lines[line - 1] if 0 < line <= len(self.lines) else ""


class Node:
    """A mapping, a sequence or a scalar, with its place. ``line`` and ``column`` count from 1."""

    __slots__ = (
        "broken",
        "column",
        "document",
        "end_column",
        "entries",
        "items",
        "key",
        "kind",
        "line",
        "path",
        "quoted",
        "secret",
        "size",
        "text",
        "written",
    )

    def __init__(self, document: Document, kind: Kind, line: int, column: int, end_column: int) -> None:
        self.document = document
        self.kind: Kind = kind
        self.line = line
        self.column = column
        self.end_column = end_column
        self.text = ""  # of a scalar, after ${..} was filled in
        self.written = ""  # as it stands in the file
        self.quoted = False
        self.broken = False  # reported already: nobody need complain about its text as well
        self.secret = False  # the text came from ${file:..}: it is never shown
        self.path = ""
        self.key: Node | None = None  # of a value in a mapping
        self.entries: dict[str, Node] = {}
        self.items: list[Node] = []
        self.size = 1

    def __repr__(self) -> str:
        return f"<{self.kind} {self.path or '(root)'} at {self.document.file}:{self.line}:{self.column}>"

    @property
    def file(self) -> str:
        return self.document.file

    @property
    def is_null(self) -> bool:
        """Nothing was written, or ``null``."""
        return self.kind == "scalar" and not self.quoted and self.text in _NULLS

    @property
    def looks_like_other_type(self) -> bool:
        """A plain scalar that Kubernetes would not take for a string (SW0107)."""
        if self.kind != "scalar" or self.quoted:
            return False
        plain = self.text
        return plain in _BOOLEANS or plain.lower() in _OLD_BOOLEANS or _NUMBER.fullmatch(plain) is not None

    @property
    def shown(self) -> str:
        """The text for a message, in quotes and of bearable length."""
        text = self.written if self.secret else self.text
        return f"'{text}'" if len(text) <= 80 else f"'{text[:77]}...'"

    # -- reporting ----------------------------------------------------------------------------------------

    def report(
        self,
        code: str,
        message: str,
        *,
        hint: str = "",
        note: str = "",
        severity: Severity = "error",
        path: str | None = None,
    ) -> None:
        """Add a problem about this node, or, with ``path``, about what it is a part of."""
        document = self.document
        document.problems.add(
            Problem(
                code,
                message,
                severity,
                document.file,
                self.line,
                self.column,
                self.end_column,
                self.path if path is None else path,
                hint,
                note,
                document.title,
                document.snippet(self.line),
            )
        )

    def warn(self, code: str, message: str, *, hint: str = "", note: str = "") -> None:
        self.report(code, message, hint=hint, note=note, severity="warning")

    def report_key(self, code: str, message: str, *, hint: str = "", note: str = "") -> None:
        """Add a problem about the key under which this node stands."""
        (self.key or self).report(code, message, hint=hint, note=note)

    def _wrong_kind(self, kind: Kind, hint: str = "") -> None:
        what = "nothing" if self.is_null else _KIND_WORDS[self.kind]
        self.report("SW0103", f"{_KIND_WORDS[kind]} is expected here, not {what}", hint=hint)

    # -- reading ------------------------------------------------------------------------------------------

    def mapping(self) -> dict[str, Node]:
        """The entries of a mapping, in order; empty, with a problem, when it is none (SW0103)."""
        if self.kind != "mapping":
            self._wrong_kind("mapping")
        return self.entries

    def fields(self, names: Iterable[str], later: Mapping[str, str] | None = None) -> dict[str, Node]:
        """The entries of a mapping whose keys are ``names``. Others are reported: SW0101 with did-you-mean, or
        SW0120 for those of ``later``, which names fields of the format that we know but do not support, and why.
        Entries without a value are left out: they mean the same as no entry."""
        known = frozenset(names)
        found = {}
        for name, value in self.mapping().items():
            if name in known:
                if not value.is_null:
                    found[name] = value
            elif later is not None and name in later:
                value.report_key("SW0120", f"'{name}' is not supported yet", hint=later[name])
            else:
                note = f"known here: {', '.join(sorted(known))}" if 0 < len(known) <= 12 else ""
                where, hint = value.key or value, suggest(name, known)
                where.report("SW0101", f"unknown field '{name[:80]}'", hint=hint, note=note, path=self.path)
        return found

    def sequence(self) -> list[Node]:
        """The items of a list; empty, with a problem, when it is none (SW0103)."""
        if self.kind != "sequence":
            self._wrong_kind("sequence", f"write [{self.text}]" if self.kind == "scalar" and self.text else "")
        return self.items

    def string(self) -> str | None:
        """The text of a scalar that is there (SW0103)."""
        if self.broken:
            return None
        if self.kind != "scalar" or self.is_null:
            self._wrong_kind("scalar")
            return None
        return self.text

    def strings(self) -> list[Node]:
        """The items of a list of texts: those that are one."""
        return [item for item in self.sequence() if item.string() is not None]

    def choice(self, names: Iterable[str], what: str, later: Mapping[str, str] | None = None) -> str | None:
        """One of ``names``; ``what`` ("an action") stands in the problem (SW0104, SW0120 for ``later``)."""
        text = self.string()
        known = list(names)
        if text is None or text in known:
            return text
        if later is not None and text in later:
            self.report("SW0120", f"{self.shown} is not supported yet", hint=later[text])
        else:
            hint = "   ".join(part for part in (suggest(text, known), f"one of {', '.join(known)}") if part)
            self.report("SW0104", f"{self.shown} is not {what}", hint=hint)
        return None

    def boolean(self) -> bool | None:
        """``true`` or ``false`` (SW0105)."""
        text = self.string()
        if text is None:
            return None
        if text not in _BOOLEANS:
            self.report("SW0105", f"{self.shown} is not true or false", hint="write true or false")
        return _BOOLEANS.get(text)

    def scalars(self) -> Iterator[Node]:
        """Every scalar value (not key) below, itself included."""
        stack = [self]
        while stack:
            node = stack.pop()
            if node.kind == "scalar":
                yield node
            stack.extend(reversed(node.items or list(node.entries.values())))


# -- text to nodes ------------------------------------------------------------------------------------------


def parse_yaml(text: str, file: str, problems: Problems) -> list[Document]:
    """Read a file's text. Documents that are empty or could not be read are left out; why is in ``problems``."""
    text = text.replace("\r\n", "\n")
    lines = text[:MAX_TEXT].split("\n")
    whole = Document(file, lines, problems)
    if len(text) > MAX_TEXT:
        Node(whole, "scalar", 0, 0, 0).report("SW0110", f"the file is longer than {MAX_TEXT // 1024} KiB")
        return []
    if _odd_characters(whole, text):
        return []
    documents = []
    for first_line, part in _split(text):
        document = Document(file, lines, problems)
        document.root = _Builder(document, first_line).build(part)
        if document.root is not None and not document.root.is_null:
            documents.append(document)
    return documents


def _odd_characters(whole: Document, text: str) -> bool:
    """Report characters that YAML forbids, or that break a line for YAML and for nobody else."""
    found = 0
    for match in _ODD.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        column = match.start() - text.rfind("\n", 0, match.start())
        where = Node(whole, "scalar", line, column, column + 1)
        if match.start() == 0 and match[0] == "\ufeff":
            where.report("SW0108", "the file begins with a byte order mark", hint="save it as UTF-8 without BOM")
        else:
            where.report("SW0108", f"the character U+{ord(match[0]):04X} is not allowed", hint="remove it")
        found += 1
        if found == 10:
            break
    return found > 0


def _split(text: str) -> Iterator[tuple[int, str]]:
    """The documents of a file, with the number of lines before each. The separator goes with what follows."""
    starts = [match.start() for match in _SEPARATOR.finditer(text)]
    if not starts or text[: starts[0]].strip():
        starts.insert(0, 0)
    elif starts:
        starts[0] = 0  # comments and directives before the first separator
    line = 0
    for begin, end in zip(starts, [*starts[1:], len(text)], strict=True):
        yield line, text[begin:end]
        line += text.count("\n", begin, end)


class _Builder:
    """Events of one document to nodes. ``_open`` is the path from the root to where we are."""

    def __init__(self, document: Document, first_line: int) -> None:
        self._document = document
        self._first_line = first_line
        self._open: list[tuple[Node, str]] = []  # the container, and its anchor
        self._keys: list[Node | None] = []  # for each open mapping: the key that waits for its value
        self._anchors: dict[str, Node] = {}
        self._root: Node | None = None
        self._nodes = 0

    def build(self, text: str) -> Node | None:
        parser = _Loader(text)
        try:
            while parser.check_event():
                self._event(parser.get_event())
        except _TooMuch as error:
            error.node.report("SW0110", str(error))
            return None
        except yaml.YAMLError as error:
            self._syntax(error, text)
            return None
        finally:
            parser.dispose()
        return self._root

    def _event(self, event: Any) -> None:
        if isinstance(event, yaml.ScalarEvent):
            node = self._node("scalar", event)
            node.text = node.written = event.value
            node.quoted = event.style not in (None, "")  # libyaml says "" of a plain scalar, PyYAML None
            self._place(node, event.anchor)
        elif isinstance(event, yaml.CollectionStartEvent):
            kind: Kind = "mapping" if isinstance(event, yaml.MappingStartEvent) else "sequence"
            self._enter(self._node(kind, event), event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._leave()
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)

    def _node(self, kind: Kind, event: Any) -> Node:
        start, end = event.start_mark, event.end_mark
        line = self._first_line + start.line + 1
        same = end.line == start.line and end.column > start.column and kind == "scalar"
        end_column = end.column + 1 if same else max(len(self._document.snippet(line).rstrip()) + 1, start.column + 2)
        node = Node(self._document, kind, line, start.column + 1, end_column)
        self._count(node, 1)
        # A plain or quoted scalar has no tag; "!" alone (a string, whatever it looks like) says nothing new.
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            tag = tag.replace("tag:yaml.org,2002:", "!!")
            node.report("SW0109", f"the tag '{tag}' is not allowed", hint="leave it out; fields know their types")
        return node

    def _count(self, node: Node, size: int) -> None:
        self._nodes += size
        if self._nodes > MAX_NODES:
            raise _TooMuch(node, f"the document has more than {MAX_NODES} values")
        if len(self._open) >= MAX_DEPTH:
            raise _TooMuch(node, f"the document is nested deeper than {MAX_DEPTH} levels")

    def _enter(self, node: Node, anchor: str | None) -> None:
        self._name(node)
        self._open.append((node, anchor or ""))
        self._keys.append(None)

    def _leave(self) -> None:
        node, anchor = self._open.pop()
        self._keys.pop()
        self._attach(node)
        if anchor:
            self._anchors[anchor] = node  # only now: a value cannot contain itself

    def _place(self, node: Node, anchor: str | None) -> None:
        self._name(node)
        self._attach(node)
        if anchor:
            self._anchors[anchor] = node

    def _alias(self, event: Any) -> None:
        node = self._node("scalar", event)
        target = self._anchors.get(event.anchor)
        if target is None:
            node.report("SW0109", f"'*{event.anchor}' stands inside the value it names, or names none")
        else:
            self._count(node, target.size)
            node.kind, node.text, node.quoted, node.size = target.kind, target.text, target.quoted, target.size
            node.entries, node.items = target.entries, target.items
        self._place(node, None)

    def _name(self, node: Node) -> None:
        """Give a value its path before its children ask for it."""
        if not self._open:
            return
        parent, key = self._open[-1][0], self._keys[-1]
        if parent.kind == "sequence":
            node.path = f"{parent.path}[{len(parent.items)}]"
        elif key is not None:
            node.path = f"{parent.path}.{key.text}" if parent.path else key.text

    def _attach(self, node: Node) -> None:
        if not self._open:
            self._root = self._root or node
            return
        parent = self._open[-1][0]
        parent.size += node.size
        if parent.kind == "sequence":
            parent.items.append(node)
        elif self._keys[-1] is None:
            self._key(parent, node)
        else:
            self._entry(parent, self._keys[-1], node)

    def _key(self, parent: Node, node: Node) -> None:
        if node.kind != "scalar":
            node.report("SW0103", "a key must be a single value")
        node.path = f"{parent.path}.{node.text}" if parent.path else node.text
        self._keys[-1] = node

    def _entry(self, parent: Node, key: Node, value: Node) -> None:
        self._keys[-1] = None
        value.key = key
        first = parent.entries.setdefault(key.text, value)
        if key.text == "<<" and not key.quoted:
            key.report("SW0109", "merge keys are not supported", hint="write the fields out")
        if first is not value and first.key is not None:
            note = f"the first one stands in line {first.key.line}; YAML would silently keep the last"
            key.report("SW0102", f"'{key.text}' is there twice", hint="keep one", note=note)

    def _syntax(self, error: yaml.YAMLError, text: str) -> None:
        mark, began = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
        if began is not None and (mark is None or "end of stream" in str(error) or "stream end" in str(error)):
            mark = began  # what was never closed, rather than where the text ran out
        line = self._first_line + mark.line + 1 if mark is not None else self._first_line + 1
        column = mark.column + 1 if mark is not None else 1
        last = self._first_line + text.rstrip().count("\n") + 1
        if line > last:  # it ends too early: the place is where it ends, not the separator after it
            line, column = last, len(self._document.snippet(last).rstrip()) + 1
        line_text = self._document.snippet(line)
        where = Node(self._document, "scalar", line, column, column + 1)
        code, message, hint = explain_syntax(error, line_text, column)
        where.report(code, message, hint=hint)


class _TooMuch(Exception):
    def __init__(self, node: Node, message: str) -> None:
        super().__init__(message)
        self.node = node
