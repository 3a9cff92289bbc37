"""Callers who speak HTTP/2 to do harm: the server and its other callers do not notice."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest
import trio

from identity.rpc import Call, Method
from proxy.rpc.limits import RpcLimits
from proxy.wire.events import RequestHead
from proxy.wire.http2 import NgClient
from proxy.wire.limits import WireLimits
from tests.support.rpc import Served, serve, until


class Counting:
    """A handler that counts how many run at once."""

    def __init__(self) -> None:
        self.now = self.most = self.begun = 0

    async def handle(self, call: Call, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        self.now += 1
        self.begun += 1
        self.most = max(self.most, self.now)
        try:
            async for request in requests:
                yield request
        finally:
            self.now -= 1

    def methods(self) -> dict[str, Method]:
        return {"/t/All": Method("bidi", self.handle)}


class Hand:
    """An HTTP/2 client whose every step is its own."""

    def __init__(self, served: Served) -> None:
        self.sock = trio.socket.socket(socket.AF_UNIX)
        self.path = served.path
        self.engine = NgClient(WireLimits())

    async def connect(self) -> None:
        await self.sock.connect(self.path)
        self.engine.start()
        await self.flush()

    async def flush(self) -> None:
        data = self.engine.take()
        while data:
            data = data[await self.sock.send(data) :]

    def open(
        self, target: bytes = b"/t/All", content_type: bytes = b"application/grpc", authority: bytes = b"x"
    ) -> int:
        head = RequestHead(
            method=b"POST",
            scheme=b"http",
            authority=authority,
            host=authority,
            path=target,
            target=target,
            headers=[],
            version=20,
            length=None,
            te_trailers=True,
        )
        return self.engine.open_stream(head, [(b"content-type", content_type)], end_stream=False)

    async def is_ended(self) -> bool:
        """Whether the server ends the connection, with or without a word."""
        with trio.fail_after(3):
            try:
                while data := await self.sock.recv(65536):
                    self.engine.receive(data)
            except ConnectionError:
                pass
        return True


GENEROUS = RpcLimits(messages_burst=10_000)


async def test_a_flood_of_resets_ends_the_connection_and_its_handlers() -> None:
    counting = Counting()
    async with serve(counting.methods(), limits=GENEROUS) as served, served.channel() as good:
        hand = Hand(served)
        await hand.connect()
        try:
            for _ in range(300):
                stream_id = hand.open()
                await hand.flush()
                hand.engine.reset(stream_id)
                await hand.flush()
        except OSError:
            pass  # ended already
        assert await hand.is_ended()
        await until(lambda: counting.now == 0)
        assert counting.most <= GENEROUS.streams
        async with good.bidi("/t/All") as call:
            await call.send(b"x")
            assert await anext(call) == b"x"
        hand.sock.close()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01" + bytes(100),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64,
    ],
    ids=["http1", "tls", "no frame"],
)
async def test_what_is_no_http2_is_hung_up_on(data: bytes) -> None:
    async with serve(Counting().methods()) as served:
        hand = Hand(served)
        await hand.sock.connect(served.path)
        await hand.sock.send(data)
        assert await hand.is_ended()
        hand.sock.close()
        assert not served.server.connections


async def test_who_connects_and_says_nothing_is_hung_up_on() -> None:
    async with serve(Counting().methods()) as served:
        hand = Hand(served)
        await hand.sock.connect(served.path)
        await until(lambda: served.server.connections)
        for connection in list(served.server.connections):
            connection.sweep(served.poller.now + 11.0)
        assert await hand.is_ended()
        hand.sock.close()


@pytest.mark.parametrize("authority", [b"tmp%2Fsw%2Fs", b"localhost", b"[::]:50051", b"a_b"])
async def test_any_authority_will_do_on_a_unix_socket(authority: bytes) -> None:
    counting = Counting()
    async with serve(counting.methods()) as served:
        hand = Hand(served)
        await hand.connect()
        hand.open(authority=authority)
        await hand.flush()
        await until(lambda: counting.begun == 1)
        hand.sock.close()
        await until(lambda: counting.now == 0 and not served.server.connections)


async def test_a_half_sent_message_is_dropped_with_its_connection() -> None:
    counting = Counting()
    async with serve(counting.methods()) as served:
        hand = Hand(served)
        await hand.connect()
        stream_id = hand.open()
        hand.engine.send_data(stream_id, b"\0\0\0\0\x09half", False)
        await hand.flush()
        await until(lambda: counting.now == 1)
        hand.sock.close()
        await until(lambda: counting.now == 0 and not served.server.connections)
