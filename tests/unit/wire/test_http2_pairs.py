"""HTTP/2 clients against servers in memory, all four combinations of libraries."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.wire.events import (
    DataReceived,
    Event,
    PingAcknowledged,
    RequestReceived,
    StreamReset,
)
from proxy.wire.limits import WireLimits
from tests.support.h2_peer import (
    CLIENTS,
    SERVERS,
    kinds,
    request_head,
)

# -- client and server ------------------------------------------------------------------------------------------------


class Pair:
    """Both ends, joined in memory."""

    def __init__(self, client: Any, server: Any, **limits: Any) -> None:
        self.client = client(WireLimits(**limits))
        self.server = server(WireLimits(**limits))
        self.client.start()
        self.server.start()
        assert self.pump() == ([], [])

    def pump(self) -> tuple[list[Event], list[Event]]:
        """-> events of the client, events of the server, when nothing moves any more."""
        at_client: list[Event] = []
        at_server: list[Event] = []
        for _ in range(100):
            out, back = self.client.take(), self.server.take()
            if not out and not back:
                return at_client, at_server
            at_server += self.server.receive(out)
            at_client += self.client.receive(back)
        raise AssertionError("it never ends")


@pytest.fixture(params=[(c, s) for c in CLIENTS for s in SERVERS], ids=lambda p: f"{p[0].__name__}-{p[1].__name__}")
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(*request.param)


def test_one_exchange(pair: Pair) -> None:
    stream_id = pair.client.open_stream(request_head(length=4), [(b"a", b"b")], end_stream=False)
    pair.client.send_data(stream_id, b"ping", True)
    _, events = pair.pump()
    assert kinds(events) == ["RequestReceived", "DataReceived"]
    head = events[0].head  # type: ignore[attr-defined]
    assert (head.method, head.target, head.authority, head.length) == (b"POST", b"/a?b=c", b"api.shop", 4)
    pair.server.send_response(stream_id, 200, [(b"c", b"d")], length=None, end_stream=False)
    pair.server.send_data(stream_id, b"pong", False)
    pair.server.send_trailers(stream_id, [(b"grpc-status", b"0")])
    answer, _ = pair.pump()
    assert kinds(answer) == ["ResponseReceived", "DataReceived", "TrailersReceived"]
    assert pair.client.is_idle
    assert pair.server.is_idle


def test_large_bodies_both_ways(pair: Pair) -> None:
    body = bytes(range(256)) * 4000
    stream_id = pair.client.open_stream(request_head(length=len(body)), [], end_stream=False)
    pair.client.send_data(stream_id, body, True)
    there, back = b"", b""
    for _ in range(200):
        at_client, at_server = pair.pump()
        for event in at_server:
            if isinstance(event, RequestReceived):
                pair.server.send_response(stream_id, 200, [], length=None, end_stream=False)
            elif isinstance(event, DataReceived):
                there += event.data
                pair.server.acknowledge(stream_id, event.size)
                pair.server.send_data(stream_id, event.data, event.end_stream)
        for event in at_client:
            if isinstance(event, DataReceived):
                back += event.data
                pair.client.acknowledge(stream_id, event.size)
        if not at_client and not at_server:
            break
    assert there == back == body
    assert pair.client.is_idle
    assert pair.server.is_idle


def test_a_thousand_streams_on_one_connection(pair: Pair) -> None:
    for number in range(1000):
        assert pair.client.can_open
        stream_id = pair.client.open_stream(request_head(b"GET"), [], end_stream=True)
        pair.pump()
        pair.server.send_response(stream_id, 200, [], length=0, end_stream=True)
        pair.server.release(stream_id)
        answer, _ = pair.pump()
        assert kinds(answer) == ["ResponseReceived"], number


def test_resets_reach_the_other_side_once(pair: Pair) -> None:
    first = pair.client.open_stream(request_head(), [], end_stream=False)
    second = pair.client.open_stream(request_head(), [], end_stream=False)
    pair.pump()
    pair.client.reset(first)
    pair.server.reset(second, 2)
    at_client, at_server = pair.pump()
    assert at_server == [StreamReset(first, 8, reason="downstream_reset")]
    assert at_client == [StreamReset(second, 2, reason="upstream_reset")]
    assert pair.client.is_idle
    assert pair.server.is_idle


def test_pings_are_answered(pair: Pair) -> None:
    pair.client.ping()
    pair.server.ping()
    assert pair.pump() == ([PingAcknowledged()], [PingAcknowledged()])


def test_the_connection_ends_gracefully_on_both_sides(pair: Pair) -> None:
    stream_id = pair.client.open_stream(request_head(), [], end_stream=False)
    pair.pump()
    pair.server.shut_down()
    assert kinds(pair.pump()[0]) == ["GoAwayReceived"]
    assert not pair.client.can_open
    pair.server.finish()
    pair.pump()
    pair.client.send_data(stream_id, b"x", True)
    pair.pump()
    pair.server.send_response(stream_id, 200, [], length=0, end_stream=True)
    assert kinds(pair.pump()[0]) == ["ResponseReceived"]
    assert pair.server.must_close
    assert pair.client.must_close
