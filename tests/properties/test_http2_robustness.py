"""Whatever a peer sends, an HTTP/2 engine does not raise, and tells each stream's end once."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest

from proxy.wire.events import (
    ConnectionEnded,
    DataReceived,
    Event,
    RequestReceived,
    RequestRefused,
    ResponseReceived,
    StreamReset,
    TrailersReceived,
)
from proxy.wire.http2 import H2Client, H2Server, NgClient, NgServer
from proxy.wire.limits import WireLimits
from tests.support import h2_frames as h2
from tests.support.h2_frames import GET, OK, POST
from tests.support.h2_peer import request_head

_LIMITS = WireLimits(resets_burst=1000, own_resets_burst=1000, glitches=1000, control_burst=1000)


def conversation(rng: random.Random, *, server: bool) -> bytes:
    """Frames of which half of the conversations hold only legal ones, and the others anything."""
    frames = [h2.HELLO if server else h2.SERVER_HELLO, h2.settings(ack=True)]
    pick = rng.choice((tame, wild))
    numbers = itertools.count(1, 2) if server else None
    opened: list[int] = []
    for _ in range(rng.randrange(5, 60)):
        frames.append(pick(rng, opened, numbers))
    data = bytearray(b"".join(frames))
    if pick is wild:
        for _ in range(rng.choice((0, 1, 3))):
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def tame(rng: random.Random, opened: list[int], numbers: Iterator[int] | None) -> bytes:
    """A legal frame. ``opened`` holds streams whose sender may still send, ``numbers`` those a client will open."""
    choice = rng.randrange(10)
    if choice < 4 or not opened:
        return tame_head(rng, opened, numbers)
    stream_id = rng.choice(opened)
    end = choice < 7 and rng.random() < 0.4
    if end or choice == 9:
        opened.remove(stream_id)
    if choice == 8:
        return h2.settings({4: rng.randrange(0, 70_000)}) + h2.ping()
    if choice == 9:
        return h2.reset(stream_id)
    if end and rng.random() < 0.3:
        return h2.headers(stream_id, [(b"x-t", b"1")])
    size = rng.choice((0, 2, 5, 100, 3000))
    return h2.data(stream_id, bytes(size), end=end, padding=rng.choice((None, 0, 20)))


def tame_head(rng: random.Random, opened: list[int], numbers: Iterator[int] | None) -> bytes:
    if numbers is not None:
        stream_id = next(numbers)
    else:
        stream_id = rng.choice((1, 3, 5, 7))
        if stream_id in opened:
            return h2.window(stream_id, 9)
    end = rng.random() < 0.3
    if not end:
        opened.append(stream_id)
    heads = (POST, [*POST, (b"content-length", b"5")], [*POST, (b"te", b"gzip")], [(b":method", b"BREW"), *GET[1:]])
    return h2.headers(stream_id, rng.choice(heads) if numbers else OK, end=end)


def wild(rng: random.Random, opened: list[int], numbers: Iterator[int] | None) -> bytes:
    """Any frame."""
    stream_id = rng.choice((1, 3, 5, 7, 9, 11, rng.randrange(0, 20)))
    fields = rng.choice((GET, POST, [(b"x-t", b"1")]) if numbers else (OK, [(b"x-t", b"1")]))
    end = rng.random() < 0.4
    kinds = (
        lambda: h2.headers(stream_id or 1, fields, end=end, done=rng.random() < 0.95),
        lambda: h2.data(stream_id or 1, rng.randbytes(5), padding=rng.randrange(9), end=end),
        lambda: h2.reset(stream_id, rng.randrange(16)),
        lambda: h2.window(stream_id, rng.randrange(5)),
        lambda: h2.settings({rng.randrange(1, 9): rng.randrange(0, 70000)}),
        lambda: h2.settings(ack=True),
        lambda: h2.ping(ack=end),
        lambda: h2.goaway(stream_id),
        lambda: h2.raw(rng.randrange(16), rng.randrange(64), stream_id, rng.randbytes(rng.randrange(12))),
    )
    return rng.choice(kinds)()


class Ends:
    """Checks the order of events of each stream."""

    def __init__(self) -> None:
        self.over: set[int] = set()
        self.ended: set[int] = set()
        self.closed = False

    def see(self, event: Event) -> None:
        assert not self.closed
        stream_id = event.stream_id
        if isinstance(event, ConnectionEnded):
            self.closed = True
        elif isinstance(event, (StreamReset, RequestRefused)):
            assert stream_id not in self.over
            self.over.add(stream_id)
        elif isinstance(event, (DataReceived, TrailersReceived, RequestReceived, ResponseReceived)):
            assert stream_id not in self.over
            assert stream_id not in self.ended
            if isinstance(event, TrailersReceived) or event.end_stream:
                self.ended.add(stream_id)


def meddle(engine: Any, event: Event, rng: random.Random, *, server: bool) -> None:
    """What an owner may do at any time."""
    stream_id = event.stream_id or 1
    if isinstance(event, DataReceived):
        engine.acknowledge(stream_id, event.size)
    choice = rng.randrange(8)
    if choice == 0:
        engine.reset(stream_id, rng.choice((0, 2, 8)))
    elif choice == 1:
        engine.send_data(stream_id, b"x" * rng.randrange(30_000), rng.random() < 0.5)
    elif choice == 2:
        engine.send_trailers(stream_id, [(b"a", b"b")])
    elif choice == 3:
        engine.ping()
    elif server and choice < 7:
        engine.send_response(stream_id, 200, [], length=None, end_stream=rng.random() < 0.3)
        engine.release(stream_id)
    elif rng.random() < 0.05:
        rng.choice((engine.shut_down, engine.finish, lambda: engine.fail(2, "x")))()


@pytest.mark.parametrize("made", [NgServer, H2Server, NgClient, H2Client])
@pytest.mark.parametrize("seed", range(60))
def test_nothing_a_peer_sends_raises(made: Any, seed: int) -> None:
    rng = random.Random(seed)
    server = made.is_server
    engine = made(_LIMITS)
    engine.start()
    if not server:
        for _ in range(4):
            engine.open_stream(request_head(), [], end_stream=rng.random() < 0.5)
    data = conversation(rng, server=server)
    ends = Ends()
    while data:
        size = rng.choice((1, 9, 30, 1000, 5000))
        piece, data = data[:size], data[size:]
        for event in engine.receive(piece):
            ends.see(event)
            meddle(engine, event, rng, server=server)
        if rng.random() < 0.7:
            engine.take()
        if engine.must_close:
            engine.take()
            assert engine.take() == b""
    for event in engine.receive_eof():
        ends.see(event)
    assert engine.must_close
    assert engine.receive(b"x") == []
