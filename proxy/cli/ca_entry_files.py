"""Registration entries from files, for ``ca entry apply``: YAML or JSON, each mistake with its place.

A file holds entries one document each, or a list of them, or a list under ``entries`` (what `ca entry list -o json`
and SPIRE's ``entry create -data`` write)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from config.nodes import Node, parse_yaml
from config.problems import ConfigError, Problem, Problems
from identity.entries import FIELDS, EntryError, problems

_NUMBERS = frozenset({"x509SvidTtl", "jwtSvidTtl", "expiresAt", "revisionNumber"})
_FLAGS = frozenset({"admin", "downstream"})
_LISTS = frozenset({"selectors", "dnsNames", "federatesWith"})
_ENDINGS = (".yaml", ".yml", ".json")


def read_entries(paths: list[Path], trust_domain: str) -> list[dict[str, Any]]:
    """All entries of files and folders, checked. Raises ConfigError with everything that is wrong."""
    found, complaints, files = [], Problems(), 0
    for path in _files(paths):
        files += 1
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            complaints.add(Problem("SW0100", f"it cannot be read: {error}", file=str(path)))
            continue
        for document in parse_yaml(text, str(path), complaints):
            if document.root is not None and not document.root.is_null:
                found += [_entry(node, trust_domain) for node in _nodes(document.root)]
    if complaints.errors:
        raise ConfigError(complaints.in_order(), files=files, documents=len(found))
    return [document for _, document in found if document is not None]


def _files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(one for one in path.rglob("*") if one.suffix in _ENDINGS and one.is_file())
        else:
            yield path


def _nodes(root: Node) -> list[Node]:
    if root.kind == "sequence":
        return root.items
    for name in ("entries", "items"):
        if name in root.entries and "spiffeId" not in root.entries:
            return root.entries[name].sequence()
    return [root]


def _entry(node: Node, trust_domain: str) -> tuple[Node, dict[str, Any] | None]:
    document = {name: _value(name, value) for name, value in node.mapping().items() if not value.is_null}
    document.pop("createdAt", None)
    found = problems(document, trust_domain)
    for error in found:
        _report(node, error)
    return node, None if found else document


def _value(name: str, node: Node) -> Any:
    """What the field's kind makes of the text; anything else is left for the check to refuse."""
    if name in _LISTS and node.kind == "sequence":
        return [item.text for item in node.items]
    if node.kind != "scalar":
        return None
    if name in _FLAGS:
        return {"true": True, "false": False}.get(node.text, node.text)
    if name in _NUMBERS:
        try:
            return int(node.text) if node.text.isdigit() else float(node.text)
        except ValueError:
            return node.text
    return node.text


def _report(node: Node, error: EntryError) -> None:
    place = node.entries.get(error.field, node)
    if error.field in node.entries and error.field not in FIELDS:
        place.report_key("SW0101", str(error))
    else:
        place.report("SW0104", str(error))
