"""Lists for the terminal: recent traces as a table, and access-log lines as they come (``sidewall tap``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any

from proxy.observe import names as n
from proxy.observe.spans import Span
from proxy.observe.waterfall import Style, clean, cut, format_duration, hops


def render_list(
    traces: Iterable[Sequence[Span]],
    *,
    width: int = 80,
    unicode: bool = True,
    color: bool = False,
    zone: tzinfo = UTC,
) -> str:
    """One line a trace: time, duration, id, root, services in calling order, outcome, flags."""
    style = Style(unicode=unicode, color=color)
    rows = [_list_row(spans, style, zone) for spans in traces if spans]
    table = [("TIME", "DURATION", "TRACE", "ROOT", "SERVICES", "STATUS", "FLAGS"), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(7)]
    spare = sum(widths) + 12 - width
    if spare > 0:  # long routes give way first
        widths[3] = max(12, widths[3] - spare)
    lines = []
    for row in table:
        cells = [f"{cut(cell, size):<{size}}" for cell, size in zip(row, widths, strict=True)]
        if color and row[5].startswith("5"):
            cells[5] = style.paint(cells[5], "31")
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def _list_row(spans: Sequence[Span], style: Style, zone: tzinfo) -> tuple[str, ...]:
    rows = hops(spans)
    first = rows[0].span
    total = max(span.end_ns for span in spans) - min(span.start_ns for span in spans)
    services = dict.fromkeys(hop.span.service.rpartition("/")[2] for hop in rows)
    flags = dict.fromkeys(flag for hop in rows for flag in hop.span.flags.split(",") if flag)
    when = datetime.fromtimestamp(first.start_ns / 1e9, zone)
    return (
        f"{when:%H:%M:%S}",
        format_duration(total),
        first.trace_id[:8],
        rows[0].what,
        clean(style.arrow.join(services)),
        first.code or "-",
        clean(",".join(flags)),
    )


_PROTOCOLS = {"HTTP/2": "h2", "HTTP/1.1": "h1", "HTTP/1.0": "h1.0"}


def render_tap(line: Mapping[str, Any], service: str, *, unicode: bool = True, color: bool = False) -> str:
    """One access-log line (as JSON object) of the proxy of ``service`` in fixed columns, without line end."""
    style = Style(unicode=unicode, color=color)
    here = service.rpartition("/")[2]
    there = str(line.get("peer", "")).rpartition("/")[2] or "?"
    if line.get("direction") != "inbound":
        there, here = here, (there if there != "?" else str(line.get("upstream_cluster", "?")))
    duration = format_duration(int(float(line.get("duration", 0)) * 1e6)).replace(" ", "")
    status = line.get("grpc_status")
    code = str(line.get("response_code", "-")) if status is None else n.grpc_code(int(status))
    columns = (
        str(line.get("start_time", ""))[11:23],
        f"{there} -> {here}".ljust(14),
        f"{line.get('method', '')} {line.get('path', '')}".ljust(28),
        code.ljust(4),
        duration.rjust(8),
        _PROTOCOLS.get(str(line.get("protocol")), "tcp").ljust(4),
        _tap_outcome(line, style).ljust(28),
        str(line.get("trace_id", ""))[:8],
    )
    text = clean("  ".join(columns).rstrip())
    return style.paint(text, "31") if line.get("reason") else text


def _tap_outcome(line: Mapping[str, Any], style: Style) -> str:
    if line.get("reason"):
        return f"{style.bad} {line.get('response_flags', '')} {str(line['reason']).replace('_', ' ')}"
    if line.get("policy"):
        return f"{style.good} {str(line['policy']).rpartition('/')[2]}#{line.get('rule', 0)}"
    return ""
