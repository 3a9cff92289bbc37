"""The pictures are golden texts: look at them when they change. SIDEWALL_GOLDEN=write writes them anew."""

from __future__ import annotations

import os
from datetime import timedelta, timezone
from pathlib import Path

import pytest

from proxy.observe.accesslog import JsonLines
from proxy.observe.listing import render_list, render_tap
from proxy.observe.spans import Span, build_spans
from proxy.observe.waterfall import hops, render_trace
from tests.unit.observe.records import decision, denied, exchange, grpc, peer, trace

GOLDEN = Path(__file__).parents[2] / "golden"
KNOWN = {b"/shop.Stock/Reserve": "shop.Stock/Reserve"}


def golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("SIDEWALL_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def orders() -> list[Span]:
    """web -> api -> stock, as three sidecars recorded it: four exchanges, eight spans."""
    first = trace(seed=1)
    web = exchange("outbound", seconds=0.0482, trace=first, route="/orders/{id}")
    api_trace = trace(seed=2, parent=first)
    api = exchange(at=0.0009, seconds=0.0469, trace=api_trace, route="/orders/{id}")
    out_trace = trace(seed=3, parent=api_trace)
    out = grpc(
        "outbound",
        at=0.013,
        seconds=0.0314,
        trace=out_trace,
        connect_seconds=0.0071,
        upstream_name="stock",
        upstream_peer=peer("shop/stock"),
    )
    out.sent_at = out.started_at + 0.0072
    stock = grpc(
        at=0.0208,
        seconds=0.0228,
        trace=trace(seed=4, parent=out_trace),
        peer=peer("shop/api"),
        decision=decision(policy="shop/allow-api"),
    )
    spans = []
    for record, service in ((web, "shop/web"), (api, "shop/api"), (out, "shop/api"), (stock, "shop/stock")):
        spans += build_spans(record, service, KNOWN)
    for span in spans:  # what a record with tls_seconds would give
        if "sidewall.time.connect" in span.attributes:
            span.attributes["sidewall.time.tls"] = 0.004
    return spans


def refused() -> list[Span]:
    first = trace(seed=5)
    web = exchange("outbound", method=b"DELETE", seconds=0.0031, trace=first, status=403)
    inner = trace(seed=6, parent=first)
    api = denied(method=b"DELETE", path=b"/orders/17", at=0.001, seconds=0.0004, trace=inner)
    return build_spans(web, "shop/web", KNOWN) + build_spans(api, "shop/api", KNOWN)


def broken() -> list[Span]:
    record = exchange(
        "outbound",
        seconds=2.004,
        status=503,
        reason="upstream_connect_failed",
        flags="UF,URX",
        attempts=3,
        first_byte_at=0.0,
        sent_at=0.0,
        upstream_peer=None,
        trace=trace(seed=7),
    )
    return build_spans(record, "shop/web", KNOWN)


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("charset", ["utf8", "ascii"])
@pytest.mark.parametrize("name", ["orders", "refused", "broken"])
def test_a_trace_looks_as_in_the_golden_text(name: str, charset: str, width: int) -> None:
    spans = {"orders": orders, "refused": refused, "broken": broken}[name]()
    text = render_trace(spans, width=width, unicode=charset == "utf8")
    golden(f"trace_show_{name}_{charset}_{width}.txt", text)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert charset == "utf8" or text.isascii()


def test_colour_adds_only_colour() -> None:
    for spans in (orders(), refused(), broken()):
        coloured = render_trace(spans, width=120, color=True)
        plain = render_trace(spans, width=120, color=False)
        for code in ("31", "32", "2", "0"):
            coloured = coloured.replace(f"\x1b[{code}m", "")
        assert [line.rstrip() for line in coloured.splitlines()] == plain.splitlines()


def test_errors_are_red_and_good_hops_are_not() -> None:
    lines = render_trace(refused(), width=140, color=True).splitlines()
    assert "\x1b[31m" in lines[3]
    assert "\x1b[31m" not in render_trace(orders(), width=140, color=True)


def test_times_are_shown_in_the_zone_of_the_reader() -> None:
    text = render_trace(orders(), width=140, zone=timezone(timedelta(hours=2)))
    assert "26 Nov 11:26:12" in text


def test_hops_come_in_calling_order_whatever_the_order_of_the_spans() -> None:
    for spans in (orders(), orders()[::-1]):
        assert [(h.span.service, h.direction) for h in hops(spans)] == [
            ("shop/web", "out"),
            ("shop/api", "in"),
            ("shop/api", "out"),
            ("shop/stock", "in"),
        ]


def test_every_span_is_shown_even_when_its_parent_is_missing() -> None:
    spans = [span for span in orders() if span.service != "shop/api"]
    rows = hops(spans)
    assert len(rows) == 2
    assert "2 hops, 2 proxies" in render_trace(spans, width=140)


def test_spans_that_are_each_others_parents_are_still_shown() -> None:
    one, two = (Span("1" * 32, str(i) * 16, str(3 - i) * 16, "SERVER", 1000, 10) for i in (1, 2))
    assert len(hops([one, two])) == 2
    own = Span("1" * 32, "4" * 16, "4" * 16, "SERVER", 1000, 0)
    assert len(hops([own])) == 1
    assert render_trace([own])


def test_spans_of_apps_have_rows_of_their_own() -> None:
    spans = orders()
    below = spans[3]
    app = Span(below.trace_id, "f" * 16, below.span_id, "INTERNAL", below.start_ns + 10**6, 5 * 10**6)
    app.service, app.name = "shop/api", "load cart"
    text = render_trace([*spans, app], width=140)
    assert "load cart" in text
    assert "5 hops, 3 proxies" in text


def test_strangers_cannot_draw_on_the_terminal() -> None:
    spans = build_spans(exchange(method=b"GET", path=b"/\x1b[2J\r\n\x00evil"), "shop/api", {})
    spans[0].service = "shop/\x9b31m"
    spans[0].policy = "x\x1b]0;title\x07"
    text = render_trace(spans, width=140)
    assert all(char == "\n" or char.isprintable() for char in text)


def test_plain_text_hops_are_named() -> None:
    record = exchange(peer=None, tls_version="", decision=None)
    assert "without mTLS: shop/api in" in render_trace(build_spans(record, "shop/api", {}), width=140)


def test_the_list_of_traces_has_one_line_each() -> None:
    golden("trace_list_utf8_100.txt", render_list([orders(), refused(), broken()], width=100))
    golden("trace_list_ascii_80.txt", render_list([orders(), refused(), broken()], width=80, unicode=False))


def test_tap_lines_have_fixed_columns() -> None:
    fields = JsonLines().fields
    records = [
        exchange(seconds=0.0124),
        denied(peer=peer("shop/cart")),
        grpc("outbound", grpc_status=14, reason="dns_failed", flags="DF", upstream_peer=None, seconds=2.0),
    ]
    text = "\n".join(render_tap(fields(record), "shop/api") for record in records) + "\n"
    golden("tap_utf8.txt", text)
    assert "\x1b[31m" in render_tap(fields(records[1]), "shop/api", color=True)
