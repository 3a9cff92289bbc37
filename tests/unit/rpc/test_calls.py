"""Our client against our server over a Unix socket: kinds of calls, their ends, and what is told about it."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from identity.rpc import Call, Caller, Method, RpcError, Status
from proxy.net.stream import Stream
from proxy.rpc.client import Channel
from proxy.rpc.server import RpcServer
from tests.support.rpc import serve, until


class Echo:
    """Handlers that do what their request says, and remember how they ended."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.cancelled = 0
        self.sent = 0
        self.received: list[bytes] = []
        self.more = trio.Event()

    async def unary(self, call: Call, request: bytes) -> bytes:
        self.calls.append(call)
        if request == b"refuse":
            raise RpcError(Status.PERMISSION_DENIED, "not für you: 100 %")
        if request == b"crash":
            raise ValueError("a secret path /etc/key")
        if request == b"wait":
            await self._wait()
        return request[::-1]

    async def _wait(self) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self.cancelled += 1
            raise

    async def stream(self, call: Call, request: bytes) -> AsyncIterator[bytes]:
        self.calls.append(call)
        for part in request.split(b","):
            if part == b"refuse":
                raise RpcError(Status.UNAVAILABLE, "later")
            yield part
        if request.endswith(b"wait"):
            await self._wait()

    async def flood(self, call: Call, request: bytes) -> AsyncIterator[bytes]:
        while True:
            self.sent += 1
            yield bytes(100_000)

    async def bidi(self, call: Call, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for request in requests:
            self.received.append(request)
            if request == b"refuse":
                raise RpcError(Status.ABORTED, "enough")
            yield b"<" + request + b">"

    def methods(self) -> dict[str, Method]:
        return {
            "/t.S/Unary": Method("unary", self.unary),
            "/t.S/Stream": Method("stream", self.stream),
            "/t.S/Flood": Method("stream", self.flood),
            "/t.S/Bidi": Method("bidi", self.bidi),
            "/t.S/Big": Method("unary", self.unary, max_request=1_000_000),
        }


@pytest.fixture
def echo() -> Echo:
    return Echo()


async def replies(channel: Any, method: str, request: bytes, **more: Any) -> list[bytes]:
    async with channel.stream(method, request, **more) as call:
        return [reply async for reply in call]


# -- the kinds ------------------------------------------------------------------------------------------------------


async def test_a_unary_call_gets_its_reply_and_the_handler_knows_caller_and_metadata(echo: Echo) -> None:
    async with serve(echo.methods()) as served, served.channel() as channel:
        assert (
            await channel.unary("/t.S/Unary", b"abc", metadata={"x-what": "a", "workload.spiffe.io": "true"})
            == b"cba"
        )
    (call,) = echo.calls
    assert call.method == "/t.S/Unary"
    assert call.metadata["x-what"] == "a"
    assert call.metadata["workload.spiffe.io"] == "true"
    assert call.caller.local is served.processes.seen[0]
    assert call.caller.peer is None


async def test_an_empty_message_is_a_message(echo: Echo) -> None:
    async with serve(echo.methods()) as served, served.channel() as channel:
        assert await channel.unary("/t.S/Unary", b"") == b""
        assert await replies(channel, "/t.S/Stream", b"") == [b""]


async def test_a_stream_gives_its_replies_in_order_and_ends(echo: Echo) -> None:
    async with serve(echo.methods()) as served, served.channel() as channel:
        assert await replies(channel, "/t.S/Stream", b"a,b,c") == [b"a", b"b", b"c"]


async def test_a_stream_without_replies_ends_well(echo: Echo) -> None:
    async def nothing(call: Call, request: bytes) -> AsyncIterator[bytes]:
        return
        yield b""

    async with serve({"/t.S/None": Method("stream", nothing)}) as served, served.channel() as channel:
        assert await replies(channel, "/t.S/None", b"") == []


async def test_a_bidi_call_answers_while_it_is_still_being_sent_to(echo: Echo) -> None:
    async with serve(echo.methods()) as served, served.channel() as channel, channel.bidi("/t.S/Bidi") as call:
        await call.send(b"1")
        assert await anext(call) == b"<1>"
        await call.send(b"2")
        assert await anext(call) == b"<2>"
        call.end()
        assert [reply async for reply in call] == []


async def test_a_message_larger_than_every_window_comes_through(echo: Echo) -> None:
    big = bytes(range(256)) * 3900
    async with serve(echo.methods()) as served, served.channel() as channel:
        assert await channel.unary("/t.S/Big", big) == big[::-1]


async def test_many_calls_share_a_connection(echo: Echo) -> None:
    got: list[bytes] = []

    async def one(channel: Any, number: int) -> None:
        got.append(await channel.unary("/t.S/Unary", b"%d" % number))

    async with serve(echo.methods()) as served, served.channel() as channel:
        async with trio.open_nursery() as nursery:
            for number in range(10, 26):
                nursery.start_soon(one, channel, number)
        assert len(served.server.connections) == 1
    assert sorted(reply[::-1] for reply in got) == [b"%d" % number for number in range(10, 26)]


# -- errors ---------------------------------------------------------------------------------------------------------


async def refusal(awaitable: Any) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await awaitable
    return caught.value


async def test_what_a_handler_raises_is_the_callers_status_and_message(echo: Echo) -> None:
    async with serve(echo.methods()) as served, served.channel() as channel:
        error = await refusal(channel.unary("/t.S/Unary", b"refuse"))
        assert (error.status, error.message) == (Status.PERMISSION_DENIED, "not für you: 100 %")
        error = await refusal(replies(channel, "/t.S/Stream", b"refuse"))
        assert (error.status, error.message) == (Status.UNAVAILABLE, "later")


async def test_replies_before_an_error_are_read_first(echo: Echo) -> None:
    async with (
        serve(echo.methods()) as served,
        served.channel() as channel,
        channel.stream("/t.S/Stream", b"a,b,refuse") as call,
    ):
        assert [await anext(call), await anext(call)] == [b"a", b"b"]
        assert (await refusal(anext(call))).status is Status.UNAVAILABLE


async def test_a_bidi_handler_may_end_the_call_while_its_caller_still_sends(echo: Echo) -> None:
    async with serve(echo.methods()) as served, served.channel() as channel:
        async with channel.bidi("/t.S/Bidi") as call:
            await call.send(b"refuse")
            assert (await refusal(anext(call))).status is Status.ABORTED
        assert await channel.unary("/t.S/Unary", b"ab") == b"ba"


async def test_nothing_of_an_unforeseen_error_is_told(echo: Echo, caplog: pytest.LogCaptureFixture) -> None:
    async with serve(echo.methods()) as served, served.channel() as channel:
        error = await refusal(channel.unary("/t.S/Unary", b"crash"))
    assert (error.status, error.message) == (Status.INTERNAL, "internal error")
    assert [record.levelno for record in caplog.records if record.name == "proxy.rpc"] == [logging.ERROR]


async def test_an_unknown_method_is_unimplemented(echo: Echo) -> None:
    async with serve(echo.methods()) as served, served.channel() as channel:
        assert (await refusal(channel.unary("/t.S/Other", b""))).status is Status.UNIMPLEMENTED
        assert (await refusal(channel.unary("/other", b""))).status is Status.UNIMPLEMENTED


@pytest.mark.parametrize("count", [0, 2])
async def test_a_unary_call_has_exactly_one_request(echo: Echo, count: int) -> None:
    async with serve(echo.methods()) as served, served.channel() as channel, channel.bidi("/t.S/Unary") as call:
        for _ in range(count):
            await call.send(b"x")
        call.end()
        assert (await refusal(anext(call))).status is Status.UNIMPLEMENTED


async def test_a_message_over_the_limit_is_refused_at_its_prefix(echo: Echo) -> None:
    async with serve(echo.methods()) as served, served.channel() as channel:
        assert await channel.unary("/t.S/Unary", bytes(4096)) == bytes(4096)
        error = await refusal(channel.unary("/t.S/Unary", bytes(4097)))
        assert error.status is Status.RESOURCE_EXHAUSTED
        assert "4096" in error.message


async def test_a_reply_over_the_clients_limit_ends_the_call(echo: Echo) -> None:
    async with serve(echo.methods()) as served, served.channel(max_reply=10) as channel:
        assert (await refusal(channel.unary("/t.S/Unary", bytes(11)))).status is Status.RESOURCE_EXHAUSTED
        assert await channel.unary("/t.S/Unary", bytes(10)) == bytes(10)


# -- deadlines and cancellation -------------------------------------------------------------------------------------


async def test_a_deadline_passes_on_both_sides(echo: Echo) -> None:
    async with serve(echo.methods()) as served, served.channel() as channel:
        error = await refusal(channel.unary("/t.S/Unary", b"wait", timeout=0.05))
        assert error.status is Status.DEADLINE_EXCEEDED
        await until(lambda: echo.cancelled == 1)
        assert await channel.unary("/t.S/Unary", b"ab") == b"ba"


async def test_leaving_a_stream_cancels_its_handler(echo: Echo) -> None:
    async with serve(echo.methods()) as served, served.channel() as channel:
        async with channel.stream("/t.S/Stream", b"a,wait") as call:
            assert await anext(call) == b"a"
        await until(lambda: echo.cancelled == 1)
        (connection,) = served.server.connections
        await until(lambda: not connection.calls)
        assert connection.account.streams == 0


async def test_closing_the_channel_cancels_every_handler(echo: Echo) -> None:
    async with serve(echo.methods()) as served:
        async with served.channel() as channel, trio.open_nursery() as nursery:
            nursery.start_soon(refusal, channel.unary("/t.S/Unary", b"wait"))
            nursery.start_soon(refusal, channel.unary("/t.S/Unary", b"wait"))
            await until(lambda: len(echo.calls) == 2)
            channel.shut()
        await until(lambda: echo.cancelled == 2 and not served.server.connections)


async def test_a_cancelled_caller_cancels_its_handler(echo: Echo) -> None:
    async with serve(echo.methods()) as served, served.channel() as channel:
        with trio.move_on_after(0.05):
            await channel.unary("/t.S/Unary", b"wait")
        await until(lambda: echo.cancelled == 1)


async def test_a_reader_who_does_not_read_stops_its_own_stream_only(echo: Echo) -> None:
    async with serve(echo.methods()) as served, served.channel() as channel:
        async with channel.stream("/t.S/Flood", b"") as call:
            await anext(call)
            before = -1
            while echo.sent != before:  # until it stands still
                before = echo.sent
                await trio.sleep(0.02)
            assert echo.sent < 100
            assert await channel.unary("/t.S/Unary", b"ab") == b"ba"
            for _ in range(200):
                await anext(call)
        assert echo.sent > 190


async def test_a_sender_waits_while_its_handler_does_not_read() -> None:
    async def deaf(call: Call, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield b"hello"
        await trio.sleep_forever()

    methods = {"/t.S/Deaf": Method("bidi", deaf, max_request=50_000)}
    async with serve(methods) as served, served.channel() as channel, channel.bidi("/t.S/Deaf") as call:
        sent = 0
        with trio.move_on_after(0.15):
            while True:
                await call.send(bytes(50_000))
                sent += 1
        assert 5 < sent < 40


# -- the end of a server --------------------------------------------------------------------------------------------


async def test_a_drain_ends_streams_at_once_and_lets_unary_calls_finish(echo: Echo) -> None:
    release = trio.Event()

    async def slow(call: Call, request: bytes) -> bytes:
        echo.calls.append(call)
        await release.wait()
        return b"done"

    answers: list[bytes] = []
    async with serve({**echo.methods(), "/t.S/Slow": Method("unary", slow)}) as served, served.channel() as channel:
        async with channel.stream("/t.S/Stream", b"a,wait") as call, trio.open_nursery() as nursery:
            assert [await anext(call), await anext(call)] == [b"a", b"wait"]

            async def ask() -> None:
                answers.append(await channel.unary("/t.S/Slow", b""))

            nursery.start_soon(ask)
            await until(lambda: len(echo.calls) == 2)
            nursery.start_soon(served.server.drain, 5.0)
            error = await refusal(anext(call))
            assert (error.status, error.message) == (Status.UNAVAILABLE, "the server is shutting down")
            release.set()
        assert answers == [b"done"]
        await until(lambda: not served.server.connections)
        assert (await refusal(channel.unary("/t.S/Unary", b""))).status is Status.UNAVAILABLE


async def test_a_call_that_a_server_could_not_finish_is_never_ok(echo: Echo) -> None:
    async with serve(echo.methods()) as served:
        async with trio.open_nursery() as nursery:
            server = RpcServer(served.poller, echo.methods())
            await nursery.start(server.run)
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            theirs.setblocking(False)
            server.add(Stream(served.poller, theirs), Caller(), "")
            channel = Channel(Stream(served.poller, ours), served.address, None, 1000)
            async with channel.stream("/t.S/Stream", b"wait") as call:
                assert await anext(call) == b"wait"
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    assert (await refusal(anext(call))).status is Status.UNAVAILABLE
        channel.shut()


async def test_no_server_is_unavailable(echo: Echo) -> None:
    async with serve(echo.methods()) as served:
        served.server.stop_accepting()
        error = await refusal(aclosing_enter(served.channel()))
        assert error.status is Status.UNAVAILABLE
        assert served.path in error.message


async def aclosing_enter(manager: Any) -> None:
    async with manager:
        pass


async def test_a_channel_can_run_its_own_poller_and_raises_what_its_block_raises(echo: Echo) -> None:
    from proxy.rpc.client import open_channel

    async with serve(echo.methods()) as served:
        async with open_channel(served.address) as channel:
            assert await channel.unary("/t.S/Unary", b"ab") == b"ba"
        with pytest.raises(RpcError) as caught:
            async with open_channel(served.address) as channel:
                await channel.unary("/t.S/Unary", b"refuse")
        assert caught.value.status is Status.PERMISSION_DENIED
