"""``${VAR}``, ``${VAR:-default}`` and ``${file:/path}`` in the values of sidewall.yaml.

Filled in after YAML was read, so that a value can never change the structure of the file. What is missing is an
error and not an empty text. ``$${`` stands for ``${`` itself. What comes from a file, or from a variable with a
telling name, is never shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from config.files import Files, Unreadable
from config.nodes import Node

_MOST: Final = 64 * 1024  # bytes of one ${file:..}
_REFERENCE: Final = re.compile(r"\$(\$\{)|\$\{([^}]*)(\}?)")
_VARIABLE: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL | re.ASCII)
_SECRET: Final = re.compile(r"SECRET|TOKEN|PASS|KEY|CREDENTIAL", re.IGNORECASE)


class Expander:
    """Fills in references. ``env``: the variables; ``base``: where relative paths begin."""

    def __init__(self, env: Mapping[str, str], base: Path, files: Files) -> None:
        self._env = env
        self._base = base
        self._files = files

    def expand(self, root: Node) -> None:
        """Change every scalar below ``root`` that has a reference; report those that cannot be filled in."""
        for node in root.scalars():
            if "${" in node.text and node.text == node.written:
                node.text = _REFERENCE.sub(lambda match, node=node: self._value(match, node), node.text)  # type: ignore[misc]
                node.quoted = True  # an empty value is an empty text, not "nothing was written"

    def _value(self, match: re.Match[str], node: Node) -> str:
        if match[1]:
            return match[1]
        if not match[3]:
            return self._broken(node, f"'{match[0][:40]}' has no end", "write ${NAME}, or $${ for a plain ${")
        if match[2].startswith("file:"):
            return self._file(match[2][5:], node)
        found = _VARIABLE.fullmatch(match[2])
        if found is None:
            return self._broken(node, f"'{match[0][:40]}' is not a reference", "write ${NAME} or ${NAME:-default}")
        return self._variable(found[1], found[2], node)

    def _variable(self, name: str, default: str | None, node: Node) -> str:
        value = self._env.get(name)
        self._files.note("env", name, (value or "").encode(errors="surrogateescape"))
        node.secret = node.secret or _SECRET.search(name) is not None
        if default is not None and not value:
            return default
        if value is None:
            return self._broken(node, f"the variable {name} is not set", f"set it, or write ${{{name}:-default}}")
        return value

    def _file(self, name: str, node: Node) -> str:
        node.secret = True
        path = self._base / name
        self._files.watch(path)
        try:
            return self._files.text(path, _MOST).removesuffix("\n")
        except Unreadable as error:
            return self._broken(node, f"the file {path}: {error}")

    @staticmethod
    def _broken(node: Node, message: str, hint: str = "") -> str:
        node.report("SW0111", message, hint=hint)
        node.broken = True
        return ""
