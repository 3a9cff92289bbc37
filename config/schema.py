"""JSON Schema of sidewall.yaml, for editors, and the text of one setting, both from the table of settings."""

from __future__ import annotations

import re
from typing import Any, Final

from config.kinds import Kind, Many, Named, Schema
from config.model import CONFIG
from config.overrides import PREFIX
from config.problems import suggest
from config.settings import Section, Setting, describe, settings_of

_ENTRY: Final = ("0", "NAME")  # how a variable names an entry of a list, and of a mapping
ID: Final = "https://sidewall.dev/schema/v1.json"


def json_schema() -> Schema:
    """The schema of the whole file (draft 2020-12)."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": ID, "title": "sidewall.yaml"}
    return {**head, **CONFIG.schema()}


class NoSuchSetting(LookupError):
    """There is no setting of that path; the text says so, and what may have been meant."""


def explain_setting(path: str) -> str:
    """What one setting is, as ``sidewall config explain inbound.timeouts`` prints it. Raises NoSuchSetting."""
    row, steps = _find(path)
    lines = [path, f"  {row.why}"]
    if not isinstance(row.kind, (Section, Many, Named)):
        lines.append(f"  default  {_default(row)}")
        lines.append(f"  values   {_values(row)}")
    lines.append(f"  env      {PREFIX}{'__'.join(steps)}")
    inner = _inner(row.kind)
    if inner is not None:
        lines.append("  holds")
        width = max(len(name) for name in settings_of(inner.cls))
        lines += [f"    {name:<{width}}  {item.why}" for name, item in settings_of(inner.cls).items()]
    return "\n".join(lines)


def _find(path: str) -> tuple[Setting, list[str]]:
    section: Section[Any] | None = CONFIG
    row, steps = None, []
    for part in re.sub(r"\[(\d+)\]", r".\1", path).split("."):
        table = settings_of(section.cls) if section is not None else {}
        if part not in table and row is not None and steps[-1] in _ENTRY:
            continue  # the name or number of an entry may stand in the path, or be left out
        if part not in table:
            raise NoSuchSetting(f"there is no setting '{path}': {suggest(part, table) or f'{part} is not known'}")
        row = table[part]
        steps.append(_upper(part))
        section = _inner(row.kind)
        if section is not None and section is not row.kind:
            steps.append(_ENTRY[isinstance(row.kind, Named)])
    if row is None:
        raise NoSuchSetting("name a setting, such as inbound.timeouts")
    return row, steps


def _inner(kind: Kind[Any]) -> Section[Any] | None:
    item = kind.item if isinstance(kind, (Many, Named)) else kind
    return item if isinstance(item, Section) else None


def _upper(name: str) -> str:
    return re.sub(r"([A-Z])", r"_\1", name).upper()


def _default(row: Setting) -> str:
    if row.required:
        return "none: it must be given"
    schema = describe(row)
    return str(schema["default"]) if "default" in schema else "none"


def _values(row: Setting) -> str:
    schema = row.kind.schema()
    if "enum" in schema:
        return " | ".join(dict.fromkeys(str(value) for value in schema["enum"]))
    if "minimum" in schema:
        return f"{schema['minimum']} to {schema['maximum']}"
    return str(getattr(row.kind, "what", "")).removeprefix("a ").removeprefix("an ") or "see the text"
