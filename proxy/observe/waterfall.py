"""Draws one trace for a terminal: a row per hop, bars on a common time axis, and what to conclude from it.

A hop is one exchange in one proxy: its SERVER span together with its CLIENT span (``spans.py``). So four
sidecars' worth of spans reads as four rows, not eight. Spans of apps have rows of their own.

    hops(spans)      spans -> rows in calling order
    render_trace     header, axis, rows, verdict

Shades of a bar: connecting, TLS, waiting for the first byte (outbound rows, UTF-8 only), the rest. All text
in a trace may come from strangers or other people's apps: what is not printable becomes "?".
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from typing import Final

from proxy.observe import names as n
from proxy.observe.spans import Span

_RED: Final = "31"
_GREEN: Final = "32"
_DIM: Final = "2"
_NARROW: Final = 110  # below this, notes stand under their row and only when something is wrong


class Style:
    """Which marks and colours the terminal can show."""

    __slots__ = ("arrow", "bad", "bar", "color", "connect", "dot", "good", "tls", "wait")

    def __init__(self, *, unicode: bool, color: bool) -> None:
        self.color = color
        marks = ("√", "×", "·", "→") if unicode else ("ok", "x", "-", "->")
        # Waiting is not told apart in ASCII: "#" with gaps would look like several calls.
        shades = ("█", "░", "▒", "▓") if unicode else ("#", "-", "~", "#")
        self.good, self.bad, self.dot, self.arrow = marks
        self.bar, self.connect, self.tls, self.wait = shades

    def paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.color and text.strip() else text


class Hop:
    """One row: the exchange as its proxy saw it."""

    __slots__ = ("children", "client", "span")

    def __init__(self, span: Span, client: Span | None = None) -> None:
        self.span = span
        self.client = client
        self.children: list[Hop] = []

    @property
    def direction(self) -> str:
        return {"inbound": "in", "outbound": "out"}.get(str(self.span.attributes.get(n.DIRECTION)), "")

    @property
    def failed(self) -> bool:
        return self.span.status == "ERROR" or (self.client is not None and self.client.status == "ERROR")

    @property
    def what(self) -> str:
        """The span's name if it says more than the method, else method and path."""
        path = self.span.attributes.get(n.URL_PATH)
        if n.HTTP_ROUTE in self.span.attributes or path is None:
            original = self.span.attributes.get(n.RPC_METHOD_ORIGINAL)
            return clean(str(original or self.span.name))
        return clean(f"{self.span.name} {path}")


def clean(text: str) -> str:
    """Text of others, safe to print."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def cut(text: str, width: int, mark: str = "~") -> str:
    """At most ``width`` characters; the last one tells that something is missing."""
    return text if len(text) <= width else text[: width - 1] + mark


# -- structure --------------------------------------------------------------------------------------------


def hops(spans: Sequence[Span]) -> list[Hop]:
    """Rows in calling order: a hop, then what it called, in order of time. Every span is in exactly one."""
    ours = {s.span_id: Hop(s) for s in spans if s.kind == "SERVER" or n.DIRECTION not in s.attributes}
    rows = dict(ours)
    for span in spans:
        if span.span_id in ours:
            continue
        server = ours.get(span.parent_id)
        if server is not None and server.client is None and server.span.service == span.service:
            server.client = span
            rows[span.span_id] = server
        else:
            rows[span.span_id] = Hop(span)
    unique = list(dict.fromkeys(rows.values()))
    roots: list[Hop] = []
    for hop in unique:
        parent = rows.get(hop.span.parent_id)
        (roots if parent is None or parent is hop else parent.children).append(hop)
    return _in_calling_order(roots, unique)


def _in_calling_order(roots: list[Hop], everyone: list[Hop]) -> list[Hop]:
    ordered: list[Hop] = []
    seen: set[int] = set()
    # Hops that call each other in a circle have no root: forged or broken, but they must be shown too.
    stack = [*_by_time(everyone), *_by_time(roots)]
    while stack:
        hop = stack.pop()
        if id(hop) not in seen:
            seen.add(id(hop))
            ordered.append(hop)
            stack += _by_time(hop.children)
    return ordered


def _by_time(found: list[Hop]) -> list[Hop]:
    """Latest first, as a stack wants them."""
    return sorted(found, key=lambda hop: (-hop.span.start_ns, hop.span.duration_ns))


def _gaps(hop: Hop) -> list[tuple[int, int]]:
    """The parts of a hop in which nothing it called was running: (from, to) in ns since the epoch."""
    at, gaps = hop.span.start_ns, []
    for child in sorted(hop.children, key=lambda child: child.span.start_ns):
        start, end = child.span.start_ns, min(child.span.end_ns, hop.span.end_ns)
        if start > at:
            gaps.append((at, min(start, hop.span.end_ns)))
        at = max(at, end)
    if hop.span.end_ns > at:
        gaps.append((at, hop.span.end_ns))
    return gaps


# -- the picture ------------------------------------------------------------------------------------------


class _Columns:
    """Widths of one picture."""

    def __init__(self, rows: Sequence[Hop], notes: Sequence[str], width: int) -> None:
        narrow = width < _NARROW
        self.service = min(max(len(hop.span.service) for hop in rows), 14 if narrow else 24)
        self.what = min(max(len(hop.what) for hop in rows), 20 if narrow else 36)
        self.code = min(max(3, *(len(hop.span.code) for hop in rows)), 11 if narrow else 17)
        self.ms = max(5, *(len(_ms(hop.span.duration_ns)) for hop in rows))
        self.before = self.service + 7 + self.what + 2 + self.code + 2 + self.ms + 3
        rest = width - self.before
        longest = max((len(note) for note in notes), default=0)
        self.note = 0 if narrow else max(0, min(longest, rest - 32))  # the bars are the point: they come first
        self.bar = max(12, min(rest - (self.note + 2 if self.note else 0), 80))
        self.width = width


def render_trace(
    spans: Sequence[Span], *, width: int = 80, unicode: bool = True, color: bool = False, zone: tzinfo = UTC
) -> str:
    """The picture of ``sidewall trace show``. ``spans`` must not be empty; ``width`` in columns, from 80."""
    style = Style(unicode=unicode, color=color)
    rows = hops(spans)
    start = min(span.start_ns for span in spans)
    total = max(max(span.end_ns for span in spans) - start, 1)
    notes = [_note(hop, style) for hop in rows]
    columns = _Columns(rows, notes, width)
    lines = [*_header(rows, spans, total, width, zone), _axis(total, columns, style)]
    for hop, note in zip(rows, notes, strict=True):
        lines += _row(hop, note, columns, style, start, total)
    lines += _verdict(rows, total, style, width)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _header(rows: Sequence[Hop], spans: Sequence[Span], total: int, width: int, zone: tzinfo) -> list[str]:
    first = rows[0]
    proxies = len({hop.span.service for hop in rows if hop.direction})
    when = datetime.fromtimestamp(first.span.start_ns / 1e9, zone)
    parts = [
        first.span.trace_id,
        f"{first.what}   {first.span.code or '-'}   {format_duration(total)}",
        f"{_count(len(rows), 'hop')}, {_count(proxies, 'prox', 'y', 'ies')}   {when:%d %b %H:%M:%S}",
    ]
    line = "   ".join(parts)
    if len(line) <= width:
        return [line]
    return [parts[0], *(cut(part, width) for part in parts[1:])]


def _count(number: int, word: str, one: str = "", many: str = "s") -> str:
    return f"{number} {word}{one if number == 1 else many}"


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.1f}"


def format_duration(ns: int) -> str:
    """Nanoseconds for people."""
    return f"{ns / 1e9:.2f} s" if ns >= 10**9 else f"{ns / 1e6:.1f} ms"


def _axis(total: int, columns: _Columns, style: Style) -> str:
    cells = [" "] * columns.bar
    steps = 4 if columns.bar >= 36 else 2
    end = f"{_tick(total)} ms"
    for step in range(steps):
        label = _tick(total * step // steps)
        at = columns.bar * step // steps
        if at + len(label) < columns.bar - len(end):
            cells[at : at + len(label)] = label
    cells[columns.bar - len(end) :] = end
    return " " * columns.before + style.paint("".join(cells), _DIM)


def _tick(ns: int) -> str:
    ms = ns / 1e6
    return f"{ms:.0f}" if ms >= 10 or ms == 0 else f"{ms:.1f}" if ms >= 1 else f"{ms:.2f}"


def _row(hop: Hop, note: str, columns: _Columns, style: Style, start: int, total: int) -> list[str]:
    span = hop.span
    denied = span.decision == "deny"
    bad = hop.failed or denied
    texts = (
        f"{cut(clean(span.service), columns.service):<{columns.service}} {hop.direction:>4}  "
        f"{cut(hop.what, columns.what):<{columns.what}}  "
    )
    code = f"{cut(span.code or '-', columns.code):<{columns.code}}"
    if bad:
        code = style.paint(code, _RED)
    bar = _bar(hop, columns.bar, style, start, total)
    line = f"{texts}{code}  {_ms(span.duration_ns):>{columns.ms}}   {bar}"
    if columns.note:
        return [f"{line}  {_paint_note(cut(note, columns.note), bad, style)}" if note else line]
    indent = columns.service + 7
    note = cut(note, columns.width - indent)
    return [line, " " * indent + _paint_note(note, bad, style)] if note and bad else [line]


def _paint_note(note: str, bad: bool, style: Style) -> str:
    if bad:
        return style.paint(note, _RED)
    return note.replace(style.good, style.paint(style.good, _GREEN), 1)


def _bar(hop: Hop, width: int, style: Style, start: int, total: int) -> str:
    first = min((hop.span.start_ns - start) * width // total, width - 1)
    last = max(first + 1, min(width, -(-(hop.span.end_ns - start) * width // total)))
    phases = _phases(hop, style)
    cells = []
    for column in range(first, last):
        middle = start + (2 * column + 1) * total // (2 * width)
        cells.append(next((shade for until, shade in phases if middle < until), style.bar))
    bar = "".join(cells)
    if hop.failed or hop.span.decision == "deny":
        bar = style.paint(bar, _RED)
    return " " * first + bar + " " * (width - last)


def _phases(hop: Hop, style: Style) -> list[tuple[int, str]]:
    """(until, shade) in order of time; after the last, the plain bar. Only our own spans have phases."""
    client = hop.client
    if client is None:
        return []
    connect, tls, wait = (
        _seconds(client, key) for key in (n.TIME_CONNECT, n.TIME_TLS, n.TIME_FIRST_BYTE)
    )
    connected = client.start_ns + int(max(connect - tls, 0.0) * 1e9)
    secured = connected + int(tls * 1e9)
    phases = [(client.start_ns, style.bar), (connected, style.connect), (secured, style.tls)]
    if hop.direction == "out":
        phases.append((secured + int(wait * 1e9), style.wait))
    return phases


def _seconds(span: Span, key: str) -> float:
    value = span.attributes.get(key, 0.0)
    return float(value) if isinstance(value, int | float) else 0.0


# -- words ------------------------------------------------------------------------------------------------


def _note(hop: Hop, style: Style) -> str:
    span = hop.span
    if span.decision == "deny":
        return f"{style.bad} {_why_denied(span)}"
    if hop.failed:
        source = span if n.ERROR_TYPE in span.attributes or hop.client is None else hop.client
        words = [str(source.attributes.get(n.ERROR_TYPE, "failed")).replace("_", " ")]
        if span.flags:
            words.append(f"({span.flags})")
        words += _tries(hop)
        # A bare code says nothing that its column does not say.
        return "" if words in ([span.code], ["failed"]) else clean(" ".join([style.bad, *words]))
    words = [*_waits(hop), *_tries(hop)]
    if span.policy:
        words.insert(0, f"{style.good} {_rule(span)}")
    return clean("  ".join(words))


def _rule(span: Span) -> str:
    rule = span.attributes.get(n.SECURITY_RULE)
    return span.policy.rpartition("/")[2] + (f" #{rule}" if rule is not None else "")


def _why_denied(span: Span) -> str:
    if span.policy:
        return clean(f"denied by {_rule(span)}")
    nearest = span.attributes.get(n.NEAREST)
    reason = str(span.attributes.get(n.REASON, "denied")).replace("_", " ")
    return clean(f"{reason} (nearest {nearest})" if nearest else reason)


def _waits(hop: Hop) -> list[str]:
    """Connecting is worth a word from a tenth of a millisecond on."""
    if hop.client is None:
        return []
    times = (("connect", _seconds(hop.client, n.TIME_CONNECT)), ("tls", _seconds(hop.client, n.TIME_TLS)))
    return [f"{word} {seconds * 1000:.1f}" for word, seconds in times if seconds >= 0.0001]


def _tries(hop: Hop) -> list[str]:
    tries = hop.span.attributes.get(n.ATTEMPTS, 0)
    return [f"{tries} tries"] if isinstance(tries, int) and tries > 1 else []


def _verdict(rows: Sequence[Hop], total: int, style: Style, width: int) -> list[str]:
    parts = [part for part in (_mtls(rows), _slowest(rows), _own_code(rows, total)) if part]
    line = f" {style.dot} ".join(parts)
    return [line] if len(line) <= width else parts


def _mtls(rows: Sequence[Hop]) -> str:
    ours = [hop for hop in rows if hop.direction and (hop.direction == "in" or hop.client is not None)]
    plain = [hop for hop in ours if hop.span.attributes.get(n.TLS_ESTABLISHED) is not True]
    if plain:
        return "without mTLS: " + ", ".join(f"{clean(hop.span.service)} {hop.direction}" for hop in plain)
    versions = sorted({str(hop.span.attributes.get(n.TLS_PROTOCOL_VERSION, "")) for hop in ours} - {""})
    return f"every hop mTLS, TLS {' and '.join(versions)}" if ours and versions else ""


def _slowest(rows: Sequence[Hop]) -> str:
    if len(rows) < 2:
        return ""
    own = {id(hop): sum(end - start for start, end in _gaps(hop)) for hop in rows}
    hop = max(rows, key=lambda hop: own[id(hop)])
    return f"slowest own time: {clean(hop.span.service)} {format_duration(own[id(hop)])}"


def _own_code(rows: Sequence[Hop], total: int) -> str:
    """The longest stretch in which a service had a request in hand and called nobody: its own code."""
    found = [
        (end - start, hop, start)
        for hop in rows
        if hop.direction == "in" and hop.children
        for start, end in _gaps(hop)
    ]
    if not found:
        return ""
    length, hop, start = max(found, key=lambda gap: gap[0])
    if length * 10 < total:
        return ""
    since = start - hop.span.start_ns
    return f"gap in {clean(hop.span.service)} {_ms(since)}-{_ms(since + length)} ms is its own code"
