"""Field blocks that were checked before are known; what is known never replaces a rule."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from proxy.errors import MalformedRequest, MalformedResponse
from proxy.wire.http2.known import response_head, trailers
from proxy.wire.limits import WireLimits

LIMITS = WireLimits()
HEAD = ((b":status", b"200"), (b"content-type", b"application/grpc"), (b"content-length", b"5"))
TRAILERS = ((b"grpc-status", b"0"), (b"authorization", b"dropped"))


class NeverIndexed(NamedTuple):
    name: bytes
    value: bytes


def test_a_known_head_is_a_new_object_each_time() -> None:
    first = response_head(HEAD, b"GET", LIMITS)
    first.headers.append((b"x-own", b"1"))
    second = response_head(HEAD, b"GET", LIMITS)
    assert (second.status, second.length, second.headers) == (200, 5, [(b"content-type", b"application/grpc")])


def test_known_trailers_are_a_new_list_each_time() -> None:
    trailers(TRAILERS, LIMITS).append((b"x-own", b"1"))
    assert trailers(list(TRAILERS), LIMITS) == [(b"grpc-status", b"0")]


@pytest.mark.parametrize("_", range(2))
def test_what_is_malformed_stays_so(_: int) -> None:
    with pytest.raises(MalformedResponse):
        response_head(((b":status", b"101"),), b"GET", LIMITS)
    with pytest.raises(MalformedRequest):
        trailers(((b":path", b"/"),), LIMITS)


def test_tight_limits_hold_for_known_blocks() -> None:
    trailers(TRAILERS, LIMITS)
    with pytest.raises(MalformedRequest):
        trailers(TRAILERS, WireLimits(head=64))
    response_head(HEAD, b"GET", LIMITS)
    with pytest.raises(MalformedResponse):
        response_head(HEAD, b"GET", WireLimits(header=8))


def test_a_field_that_must_not_be_indexed_keeps_its_mark() -> None:
    plain = ((b":status", b"200"), (b"x-key", b"secret"))
    response_head(plain, b"GET", LIMITS)
    marked = (plain[0], NeverIndexed(b"x-key", b"secret"))
    assert type(response_head(marked, b"GET", LIMITS).headers[0]) is NeverIndexed
    assert type(response_head(plain, b"GET", LIMITS).headers[0]) is tuple
