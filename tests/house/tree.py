"""What the house tests look at: the files of the project, and their syntax trees."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("proxy", "identity", "config")


@cache
def tracked() -> tuple[Path, ...]:
    """Every file that is or would be committed; without git, all sources."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:
        return tuple(path for path in ROOT.rglob("*") if path.is_file() and not _is_made(path))
    return tuple(path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file())


def _is_made(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(ROOT).parts)


@cache
def modules() -> dict[str, ast.Module]:
    """The product's modules by their path below the root."""
    names = (path.relative_to(ROOT) for path in tracked())
    return {
        str(name): ast.parse((ROOT / name).read_text(), str(name))
        for name in sorted(names)
        if name.suffix == ".py" and name.parts[0] in PACKAGES
    }


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of what a module imports, also inside functions; imports for types only are left out."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        pending += ast.iter_child_nodes(node)
