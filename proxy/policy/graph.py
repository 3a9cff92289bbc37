"""Who may call whom, drawn: Graphviz DOT, and an SVG that needs no program to be made.

The SVG stands in columns: a node is as far to the right as it is hops from where the question began (or, without a
start, from those whom nobody calls). Within a column nodes are ordered by the middle of their callers, once from
left to right, which keeps most lines short. That is no layout engine, and for graphs of more than some dozens
of nodes DOT and a real one are the better choice.
"""

from __future__ import annotations

import html
from collections import deque
from collections.abc import Sequence
from typing import Final

from proxy.policy.reach import Edge, Node

_WIDTH, _HEIGHT = 190, 30  # of a box
_ACROSS, _DOWN = 270, 54  # from box to box
_MARGIN: Final = 20


def dot(nodes: Sequence[Node], edges: Sequence[Edge]) -> str:
    """Text for ``dot -Tsvg``."""
    lines = ["digraph reach {", "  rankdir=LR; node [shape=box, fontname=monospace];"]
    lines += [f"  {_quoted(node.name)};" for node in nodes]
    for edge in edges:
        lines.append(f"  {_quoted(edge.caller.name)} -> {_quoted(edge.callee.name)} [label={_quoted(edge.rule)}];")
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def svg(nodes: Sequence[Node], edges: Sequence[Edge], start: Node | None = None) -> str:
    """A picture of its own: no script, no font, no reference to anything outside."""
    places = _places(nodes, edges, start)
    width = max((x for x, _ in places.values()), default=0) + _WIDTH + _MARGIN
    height = max((y for _, y in places.values()), default=0) + _HEIGHT + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="monospace" font-size="12">',
        "<title>Who may call whom</title>",
        '<defs><marker id="a" markerWidth="8" markerHeight="8" refX="8" refY="4" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#555"/></marker></defs>',
    ]
    parts += [_line(edge, places) for edge in edges]
    parts += [_box(node, places[node.name], node == start) for node in nodes]
    return "\n".join([*parts, "</svg>"])


def _line(edge: Edge, places: dict[str, tuple[int, int]]) -> str:
    (x1, y1), (x2, y2) = places[edge.caller.name], places[edge.callee.name]
    y1, y2 = y1 + _HEIGHT // 2, y2 + _HEIGHT // 2
    if x2 > x1:
        path = f"M{x1 + _WIDTH},{y1} C{x1 + _WIDTH + 40},{y1} {x2 - 40},{y2} {x2},{y2}"
    else:  # backwards or in the same column: around the right side
        bend = max(x1, x2) + _WIDTH + 45
        path = f"M{x1 + _WIDTH},{y1} C{bend},{y1} {bend},{y2} {x2 + _WIDTH},{y2}"
    label = html.escape(f"{edge.caller.name} may call {edge.callee.name}: {edge.rule}")
    return (
        f'<path d="{path}" fill="none" stroke="#555" marker-end="url(#a)"><title>{label}</title></path>'
    )


def _box(node: Node, place: tuple[int, int], is_start: bool) -> str:
    x, y = place
    fill = "#fde2c8" if is_start else "#e8f0fe" if node.workload is not None else "#eee"
    name = html.escape(node.name if len(node.name) <= 25 else f"{node.name[:12]}…{node.name[-12:]}")
    return (
        f'<g><title>{html.escape(node.name)}</title><rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'rx="4" fill="{fill}" stroke="#555"/><text x="{x + 8}" y="{y + 19}">{name}</text></g>'
    )


def _places(nodes: Sequence[Node], edges: Sequence[Edge], start: Node | None) -> dict[str, tuple[int, int]]:
    columns: dict[int, list[str]] = {}
    for name, column in _columns(nodes, edges, start).items():
        columns.setdefault(column, []).append(name)
    rows: dict[str, int] = {}
    for column in sorted(columns):

        def middle(name: str) -> tuple[float, str]:
            callers = [edge.caller.name for edge in edges if edge.callee.name == name]
            above = [rows[caller] for caller in callers if caller in rows]
            return (sum(above) / len(above) if above else 0.0, name)

        for row, name in enumerate(sorted(columns[column], key=middle)):
            rows[name] = row
    return {
        name: (_MARGIN + column * _ACROSS, _MARGIN + rows[name] * _DOWN)
        for column, names in columns.items()
        for name in names
    }


def _columns(nodes: Sequence[Node], edges: Sequence[Edge], start: Node | None) -> dict[str, int]:
    called = {edge.callee.name for edge in edges}
    first = [start.name] if start is not None else [node.name for node in nodes if node.name not in called]
    found = dict.fromkeys(first, 0)
    queue = deque(first)
    while queue:
        name = queue.popleft()
        for edge in edges:
            if edge.caller.name == name and edge.callee.name not in found:
                found[edge.callee.name] = found[name] + 1
                queue.append(edge.callee.name)
    for node in nodes:  # circles that nobody outside calls
        found.setdefault(node.name, 0)
    return {name: column for name, column in found.items() if any(node.name == name for node in nodes)}
