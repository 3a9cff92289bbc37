from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.observe.propagation import (
    TraceContext,
    check_baggage,
    check_tracestate_untrusted,
    is_sampled,
    parse_traceparent_untrusted,
    render_traceparent,
    start_trace,
)

TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = b"00f067aa0ba902b7"
GOOD = b"00-" + TRACE + b"-" + SPAN + b"-01"


def start(traceparent: bytes | None, tracestate: bytes | None = None, **changes: object) -> TraceContext:
    options: dict[str, object] = {"trusted": True, "ratio": 0.0, "rng": random.Random(7)}
    return start_trace(traceparent, tracestate, **{**options, **changes})  # type: ignore[arg-type]


def test_a_good_traceparent_is_continued_with_two_new_spans() -> None:
    context = start(GOOD)
    assert (context.trace_id, context.parent_id, context.sampled, context.remote) == (TRACE, SPAN, True, True)
    assert len({context.span_id, context.client_span_id, SPAN}) == 3


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00",
        GOOD[:-1],
        GOOD + b"0",
        GOOD + b"-",
        GOOD + b"-00",
        GOOD + b",00",
        GOOD + b"\n",
        b" " + GOOD,
        GOOD.upper(),
        GOOD.replace(b"f", b"g"),
        GOOD.replace(b"-", b"_"),
        b"ff" + GOOD[2:],
        b"0f"[::-1] + GOOD[2:-1],
        b"00-" + b"0" * 32 + b"-" + SPAN + b"-01",
        b"00-" + TRACE + b"-" + b"0" * 16 + b"-01",
        GOOD + b", " + GOOD,
        "00-٤bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01".encode(),
    ],
)
def test_a_malformed_traceparent_restarts_the_trace(value: bytes) -> None:
    assert parse_traceparent_untrusted(value) is None
    context = start(value)
    assert context.parent_id is None
    assert context.trace_id != TRACE
    assert not context.remote


@pytest.mark.parametrize(
    "value", [b"cc" + GOOD[2:], b"01" + GOOD[2:] + b"-what-comes-later", b"fe" + GOOD[2:] + b"-"]
)
def test_a_future_version_is_read_as_if_it_were_ours(value: bytes) -> None:
    assert parse_traceparent_untrusted(value) == (TRACE, SPAN, 1)
    assert render_traceparent(start(value), b"1" * 16).startswith(b"00-" + TRACE)


def test_a_future_version_with_trailing_bytes_but_no_dash_is_malformed() -> None:
    assert parse_traceparent_untrusted(b"01" + GOOD[2:] + b"x") is None


def test_a_stranger_gets_a_new_trace_and_his_own_is_kept_as_a_link() -> None:
    context = start(GOOD, b"a=b", trusted=False)
    assert context.trace_id != TRACE
    assert (context.parent_id, context.tracestate, context.sampled) == (None, None, False)
    assert context.link == (TRACE, SPAN)


def test_a_stranger_cannot_switch_sampling_on() -> None:
    assert not start(GOOD, trusted=False, ratio=0.0).sampled


def test_the_parents_decision_wins_over_the_ratio() -> None:
    assert start(GOOD, ratio=0.0).sampled
    assert not start(GOOD[:-2] + b"00", ratio=1.0).sampled


def test_the_ratio_wins_when_the_sampler_is_not_parent_based() -> None:
    assert not start(GOOD, ratio=0.0, parent_based=False).sampled
    assert start(GOOD[:-2] + b"00", ratio=1.0, parent_based=False).sampled


def test_what_goes_out_names_the_given_span_and_keeps_the_flags_we_know() -> None:
    for flags, expected in ((b"00", b"00"), (b"01", b"01"), (b"03", b"03"), (b"02", b"02"), (b"ff", b"03")):
        context = start(GOOD[:-2] + flags)
        sent = render_traceparent(context, context.client_span_id)
        assert sent == b"00-" + TRACE + b"-" + context.client_span_id + b"-" + expected


def test_a_new_trace_says_that_its_id_is_random() -> None:
    assert render_traceparent(start(None, ratio=1.0), SPAN).endswith(b"-03")
    assert render_traceparent(start(None, ratio=0.0), SPAN).endswith(b"-02")


def test_what_goes_out_can_be_read_again() -> None:
    context = start(None, ratio=1.0)
    parsed = parse_traceparent_untrusted(render_traceparent(context, context.client_span_id))
    assert parsed == (context.trace_id, context.client_span_id, 3)


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.25, 0.5, 1.0])
def test_sampling_agrees_with_the_opentelemetry_sdk(ratio: float) -> None:
    from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

    sampler = TraceIdRatioBased(ratio)
    rng = random.Random(3)
    for _ in range(300):
        context = start_trace(None, None, trusted=True, ratio=ratio, rng=rng)
        theirs = sampler.should_sample(None, int(context.trace_id, 16), "").decision
        assert context.sampled == (theirs is Decision.RECORD_AND_SAMPLE)
        assert is_sampled(context.trace_id, ratio) == context.sampled


def test_about_the_wanted_share_of_new_traces_is_sampled() -> None:
    rng = random.Random(11)
    sampled = sum(start_trace(None, None, trusted=True, ratio=0.1, rng=rng).sampled for _ in range(5000))
    assert 400 < sampled < 600


def test_ids_are_hex_of_the_right_length_and_do_not_repeat() -> None:
    rng = random.Random(5)
    contexts = [start_trace(None, None, trusted=True, ratio=0.0, rng=rng) for _ in range(500)]
    ids = [i for c in contexts for i in (c.span_id, c.client_span_id)]
    assert len(set(ids)) == 1000
    assert all(len(i) == 16 and set(i) <= set(b"0123456789abcdef") for i in ids)
    assert all(len(c.trace_id) == 32 for c in contexts)


# -- tracestate and baggage --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        b"a=1",
        b"congo=t61rcWkgMzE,rojo=00f067aa0ba902b7",
        b"fw529a3039@dt=FfffffF3;x",
        b"a=1 , b=2\t,c= leading",
        b"0key/_-*=~!",
    ],
)
def test_a_good_tracestate_is_passed_on_unchanged(value: bytes) -> None:
    assert check_tracestate_untrusted(value) == value
    assert start(GOOD, value).tracestate == value


@pytest.mark.parametrize(
    "value",
    [
        b"a",
        b"=1",
        b"A=1",
        b"a=1=2",
        b"a=1;b\x00=2",
        b"a=1\r\nx: y",
        b"a=\xff",
        b"a=" + b"v" * 257,
        b"k" * 257 + b"=v",
        b",".join(b"k%d=v" % i for i in range(33)),
    ],
)
def test_a_malformed_tracestate_is_dropped_alone(value: bytes) -> None:
    context = start(GOOD, value)
    assert context.tracestate is None
    assert context.trace_id == TRACE


def test_empty_members_are_left_out() -> None:
    assert check_tracestate_untrusted(b"a=1,, ,b=2") == b"a=1,b=2"
    assert check_tracestate_untrusted(b" , ,") is None


def test_a_long_tracestate_loses_its_long_members_first_then_the_last() -> None:
    short = [b"k%d=%s" % (i, b"v" * 60) for i in range(9)]
    long = b"long=" + b"v" * 200
    kept = check_tracestate_untrusted(b",".join([long, *short]))
    assert kept == b",".join(short[:8])
    assert len(kept) <= 512


def test_tracestate_without_traceparent_is_not_looked_at() -> None:
    assert start(None, b"a=1").tracestate is None


def test_baggage_is_judged_by_size_only() -> None:
    assert check_baggage(b"user=alice,tier=gold;x=y")
    assert check_baggage(b",".join(b"k=v" for _ in range(64)))
    assert not check_baggage(b",".join(b"k=v" for _ in range(65)))
    assert check_baggage(b"k=" + b"v" * 8190)
    assert not check_baggage(b"k=" + b"v" * 8191)
    assert not check_baggage(b"k=\xc3\xa9")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.binary(max_size=700), st.booleans())
def test_no_bytes_whatever_raise(traceparent: bytes, tracestate: bytes, trusted: bool) -> None:
    context = start(traceparent, tracestate, trusted=trusted)
    assert parse_traceparent_untrusted(render_traceparent(context, context.client_span_id)) is not None


@settings(max_examples=200, deadline=None)
@given(st.text("ab=,; \t*@0", max_size=700))
def test_what_is_passed_on_of_a_tracestate_is_itself_good_and_short(text: str) -> None:
    kept = check_tracestate_untrusted(text.encode())
    if kept is not None:
        assert len(kept) <= 512
        assert check_tracestate_untrusted(kept) == kept
