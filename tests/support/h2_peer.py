"""An engine of HTTP/2 and what it writes, for tests that play its peer by hand."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.wire.events import (
    Event,
    RequestHead,
)
from proxy.wire.http2 import H2Client, H2Server, NgClient, NgServer
from proxy.wire.limits import WireLimits
from tests.support import h2_frames as h2
from tests.support.h2_frames import Reader

SERVERS = [NgServer, H2Server]
CLIENTS = [NgClient, H2Client]
TAIL = h2.raw(6, 0, 0, b"1234")[:11]  # the beginning of a PING


class Peer:
    """An engine and the reader of what it writes."""

    def __init__(self, made: Any, *, hello: bytes, **limits: Any) -> None:
        self.engine = made(WireLimits(**limits))
        self.reader = Reader()
        self.engine.start()
        self.engine.receive(hello)
        self.written()

    def written(self) -> list[Any]:
        return self.reader.feed(self.engine.take())

    def __call__(self, *frames: bytes) -> list[Event]:
        """Feed, then write."""
        events: list[Event] = self.engine.receive(b"".join(frames))
        self.written()
        return events


def served(made: Any, **limits: Any) -> Peer:
    return Peer(made, hello=h2.HELLO + h2.settings(ack=True), **limits)


def asking(made: Any, **limits: Any) -> Peer:
    return Peer(made, hello=h2.SERVER_HELLO + h2.settings(ack=True), **limits)


def request_head(method: bytes = b"POST", *, length: int | None = None, **more: Any) -> RequestHead:
    return RequestHead(
        method=method,
        scheme=b"https",
        authority=b"api.shop",
        host=b"api.shop",
        path=b"/a",
        target=b"/a?b=c",
        headers=[],
        version=20,
        length=length,
        **more,
    )


def asked(peer: Peer, method: bytes = b"GET", *, end: bool = True, **more: Any) -> int:
    stream_id: int = peer.engine.open_stream(request_head(method, **more), [], end_stream=end)
    peer.written()
    return stream_id


def kinds(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


servers = pytest.mark.parametrize("made", SERVERS)
clients = pytest.mark.parametrize("made", CLIENTS)
