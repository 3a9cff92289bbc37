"""gRPC's length-prefixed messages: any cut of the bytes gives the same messages."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from identity.rpc import RpcError, Status
from proxy.rpc.frames import MessageReader, frame


@settings(max_examples=80)
@given(st.lists(st.binary(max_size=50), max_size=8), st.lists(st.integers(0, 500), max_size=10))
def test_messages_come_out_as_they_went_in_wherever_the_bytes_are_cut(messages: list[bytes], cuts: list[int]) -> None:
    data = b"".join(map(frame, messages))
    reader = MessageReader(50)
    found: list[bytes] = []
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for begin, end in zip(places, places[1:], strict=False):
        found.extend(reader.feed(data[begin:end]))
    assert found == messages
    assert reader.is_between


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\0\0\0\0\x0b", Status.RESOURCE_EXHAUSTED),
        (b"\0\xff\xff\xff\xff", Status.RESOURCE_EXHAUSTED),
        (b"\1\0\0\0\1x", Status.UNIMPLEMENTED),
        (b"\2\0\0\0\1x", Status.INTERNAL),
        (b"\x80\0\0\0\1x", Status.INTERNAL),
    ],
)
def test_what_cannot_be_taken_is_refused_at_its_prefix(data: bytes, status: Status) -> None:
    reader = MessageReader(10)
    assert list(reader.feed(frame(b"good"))) == [b"good"]
    with pytest.raises(RpcError) as caught:
        list(reader.feed(data))
    assert caught.value.status is status


def test_messages_before_a_bad_one_are_given() -> None:
    found: deque[bytes] = deque()
    with pytest.raises(RpcError):
        found.extend(MessageReader(4).feed(frame(b"a") + frame(b"b") + frame(b"too long")))
    assert list(found) == [b"a", b"b"]


def test_half_a_message_is_seen() -> None:
    reader = MessageReader(10)
    assert list(reader.feed(frame(b"abc")[:-1])) == []
    assert not reader.is_between
