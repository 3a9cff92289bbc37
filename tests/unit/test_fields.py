"""The one pass over a request's fields."""

from __future__ import annotations

import random
import re

from proxy.fields import new_request_id, sort_fields


def test_ordinary_fields_pass_in_order() -> None:
    fields = [(b"accept", b"*/*"), (b"x-a", b"1"), (b"x-a", b"2")]
    assert sort_fields(list(fields)).kept == fields


def test_what_only_this_hop_may_say_is_taken_out() -> None:
    out = sort_fields([(b"x-forwarded-proto", b"http"), (b"forwarded", b"for=1"), (b"x-forwarded-host", b"evil")])
    assert out.kept == []


def test_list_fields_on_several_lines_are_joined() -> None:
    out = sort_fields([(b"x-forwarded-for", b"1.1.1.1"), (b"x-forwarded-for", b"2.2.2.2"), (b"via", b"a"), (b"via", b"b")])
    assert out.forwarded_for == b"1.1.1.1, 2.2.2.2"
    assert out.via == b"a, b"


def test_trace_fields_are_taken_and_absent_ones_are_none() -> None:
    out = sort_fields([(b"traceparent", b"x")])
    assert out.traceparent == b"x"
    assert out.tracestate is None


def test_user_agent_and_grpc_timeout_are_read_and_kept() -> None:
    fields = [(b"user-agent", b"curl"), (b"grpc-timeout", b"1S")]
    out = sort_fields(list(fields))
    assert (out.user_agent, out.grpc_timeout, out.kept) == (b"curl", b"1S", fields)


def test_an_overlong_request_id_is_replaced_and_overlong_baggage_dropped() -> None:
    out = sort_fields([(b"x-request-id", b"x" * 129), (b"baggage", b"k=" + b"v" * 9000)])
    assert (out.request_id, out.baggage) == (b"", b"")


def test_a_new_request_id_is_a_version_4_uuid() -> None:
    made = {new_request_id(random.Random(seed)) for seed in range(200)}
    assert len(made) == 200
    pattern = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
    assert all(pattern.fullmatch(one) for one in made)
