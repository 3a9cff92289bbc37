"""What a caller may ask for (C-10), who it is, and when it is shown the door."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

from identity.rpc import Call, Caller, Method, RpcError, Status
from proxy.net.listener import Address, bind
from proxy.net.poller import Poller
from proxy.net.tls import Credentials, StrangerCredentials
from proxy.rpc.client import Channel, open_channel
from proxy.rpc.connection import Inbox
from proxy.rpc.limits import Accounts, RpcLimits, account_key
from proxy.rpc.server import RpcServer
from tests.support.mtls import API, WEB, ca_of, credentials
from tests.support.rpc import Process, serve, until
from tests.unit.rpc.test_calls import refusal


async def forever(call: Call, request: bytes) -> AsyncIterator[bytes]:
    yield b"first"
    await trio.sleep_forever()


async def echo(call: Call, request: bytes) -> bytes:
    return request


async def echo_all(call: Call, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


METHODS = {
    "/t/Forever": Method("stream", forever),
    "/t/Echo": Method("unary", echo),
    "/t/All": Method("bidi", echo_all),
}


# -- counts and rates -----------------------------------------------------------------------------------------------


async def test_one_call_too_many_is_refused_and_its_neighbours_live() -> None:
    limits = RpcLimits(streams=3, messages_burst=100)
    async with serve(METHODS, limits=limits) as served, served.channel() as channel, trio.open_nursery() as nursery:
        opened = 0

        async def hold() -> None:
            nonlocal opened
            async with channel.stream("/t/Forever", b"") as call:
                await anext(call)
                opened += 1
                await refusal(anext(call))

        for _ in range(3):
            nursery.start_soon(hold)
        await until(lambda: opened == 3)
        assert (await refusal(channel.unary("/t/Echo", b""))).status is Status.RESOURCE_EXHAUSTED
        async with served.channel() as other:  # the limit is the process's, not the connection's
            assert (await refusal(other.unary("/t/Echo", b""))).status is Status.RESOURCE_EXHAUSTED
        channel.shut()
        await until(lambda: len(served.server.connections) == 0)
        async with served.channel() as again:
            assert await again.unary("/t/Echo", b"x") == b"x"


async def test_calls_beyond_the_rate_are_refused_also_on_a_new_connection() -> None:
    limits = RpcLimits(messages_per_second=0.01, messages_burst=3)
    async with serve(METHODS, limits=limits) as served:
        async with served.channel() as channel:
            for _ in range(3):
                await channel.unary("/t/Echo", b"")
            assert (await refusal(channel.unary("/t/Echo", b""))).status is Status.RESOURCE_EXHAUSTED
        async with served.channel() as channel:
            error = await refusal(channel.unary("/t/Echo", b""))
            assert (error.status, error.message) == (Status.RESOURCE_EXHAUSTED, "more than 0.01 messages a second")


@pytest.mark.parametrize(("rate", "answered"), [(1000.0, 6), (0.001, 2)])
async def test_a_bidi_call_that_sends_too_fast_is_read_later_not_ended(rate: float, answered: int) -> None:
    limits = RpcLimits(messages_per_second=rate, messages_burst=2)
    async with serve(METHODS, limits=limits) as served, served.channel() as channel, channel.bidi("/t/All") as call:
        for number in range(6):
            await call.send(b"%d" % number)
        call.end()
        found: list[bytes] = []
        with trio.move_on_after(0.05 if answered < 6 else 5.0) as waiting:
            async for reply in call:
                found.append(reply)
        assert found == [b"%d" % number for number in range(answered)]
        assert waiting.cancelled_caught == (answered < 6)


async def test_a_process_has_a_bounded_number_of_connections() -> None:
    async with (
        serve(METHODS, limits=RpcLimits(connections=2)) as served,
        served.channel() as first,
        served.channel() as second,
        served.channel() as third,
    ):
        await first.unary("/t/Echo", b"")
        await second.unary("/t/Echo", b"")
        assert (await refusal(third.unary("/t/Echo", b""))).status is Status.UNAVAILABLE


async def test_a_server_has_a_bounded_number_of_connections() -> None:
    async with (
        serve(METHODS, limits=RpcLimits(all_connections=1)) as served,
        served.channel() as first,
        served.channel() as second,
    ):
        await first.unary("/t/Echo", b"")
        assert (await refusal(second.unary("/t/Echo", b""))).status is Status.UNAVAILABLE


def test_an_account_is_kept_until_its_bucket_would_be_full_again() -> None:
    accounts = Accounts(RpcLimits(messages_per_second=4.0, messages_burst=8.0))
    accounts.open("pid:1", 0.0)
    accounts.close("pid:1", 10.0)
    accounts.forget_old(11.9)
    assert len(accounts) == 1
    accounts.forget_old(12.1)
    assert len(accounts) == 0


def test_accounts_are_bounded_even_when_every_caller_is_new() -> None:
    accounts = Accounts(RpcLimits())
    opened = [accounts.open(f"host:{number}", 0.0) for number in range(5000)]
    assert sum(account is not None for account in opened) == len(accounts) == 4096


def test_callers_are_counted_by_process_identity_or_address() -> None:
    assert account_key(Caller(local=Process(7, 0, 0)), "") == "pid:7"
    assert account_key(Caller(), "10.0.0.1") == "host:10.0.0.1"


# -- time -----------------------------------------------------------------------------------------------------------


async def test_a_request_that_does_not_come_ends_the_call() -> None:
    async with (
        serve(METHODS, limits=RpcLimits(request=0.05)) as served,
        served.channel() as channel,
        channel.bidi("/t/Echo") as call,
    ):
        assert (await refusal(anext(call))).status is Status.DEADLINE_EXCEEDED


async def test_a_unary_handler_does_not_run_for_ever() -> None:
    async def stuck(call: Call, request: bytes) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    methods = {"/t/Stuck": Method("unary", stuck)}
    async with serve(methods, limits=RpcLimits(longest_unary=0.05)) as served, served.channel() as channel:
        assert (await refusal(channel.unary("/t/Stuck", b""))).status is Status.DEADLINE_EXCEEDED


async def sweep_later(server: RpcServer, seconds: float) -> None:
    """As if ``seconds`` had passed without anything happening."""
    for connection in list(server.connections):
        connection.sweep(server.poller.now + seconds)
    await trio.sleep(0.01)


async def test_an_idle_connection_is_closed_and_one_with_a_call_is_not() -> None:
    async with serve(METHODS) as served, served.channel() as idle, served.channel() as busy:
        await idle.unary("/t/Echo", b"")
        async with busy.stream("/t/Forever", b"") as call:
            await anext(call)
            await sweep_later(served.server, 1000.0)
            await until(lambda: len(served.server.connections) == 1)
            assert (await refusal(idle.unary("/t/Echo", b""))).status is Status.UNAVAILABLE
            assert await busy.unary("/t/Echo", b"x") == b"x"


async def test_half_a_head_is_not_waited_for_for_ever() -> None:
    async with serve(METHODS) as served:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(served.path)
            # A HEADERS frame without END_HEADERS: the rest never comes.
            sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + b"\0\0\1\1\0\0\0\0\1\x83")
            await until(lambda: any(connection.engine.mid_head for connection in served.server.connections))
            await sweep_later(served.server, 0.0)
            await sweep_later(served.server, 11.0)
            await until(lambda: not served.server.connections)


async def test_what_is_no_grpc_is_answered_in_http() -> None:
    async with serve(METHODS) as served, served.channel() as channel:
        for header in (b"application/json", b"text/plain"):
            call = channel.bidi("/t/Echo")
            stream_id = channel.open(call, "/t/Echo", [(b"content-type", header)])
            call._inbox = Inbox(channel, stream_id, 100)
            channel.touch()
            assert (await refusal(anext(call))).message == "the server answered HTTP 415"


# -- who calls ------------------------------------------------------------------------------------------------------


async def test_a_caller_that_cannot_be_told_is_not_served() -> None:
    def nobody(sock: socket.socket) -> Process:
        raise ProcessLookupError("it has gone")

    async with serve(METHODS, local_peer=nobody) as served, served.channel() as channel:
        assert (await refusal(channel.unary("/t/Echo", b""))).status is Status.UNAVAILABLE
        assert not served.server.connections


async def test_the_end_of_the_process_ends_a_connection_that_another_has_inherited() -> None:
    async with serve(METHODS) as served, served.channel() as channel, channel.stream("/t/Forever", b"") as call:
        await anext(call)
        await sweep_later(served.server, 0.0)
        assert len(served.server.connections) == 1
        served.processes.seen[0].gone = True
        await sweep_later(served.server, 0.0)
        assert (await refusal(anext(call))).status is Status.UNAVAILABLE
        assert not served.server.connections


async def test_some_callers_can_be_shown_the_door() -> None:
    async with serve(METHODS) as served, served.channel() as channel, channel.stream("/t/Forever", b"") as call:
        await anext(call)
        assert served.server.end_callers(lambda caller: caller.peer is not None, "revoked") == 0
        assert served.server.end_callers(lambda caller: caller.local is not None, "revoked") == 1
        assert (await refusal(anext(call))).status is Status.UNAVAILABLE


async def test_every_call_that_has_ended_is_observed_once() -> None:
    seen: list[tuple[str, Status]] = []
    async with (
        serve(METHODS, observe=lambda call, status, seconds: seen.append((call.method, status))) as served,
        served.channel() as channel,
    ):
        await channel.unary("/t/Echo", b"")
        await refusal(channel.unary("/t/Echo", bytes(5000)))
        async with channel.stream("/t/Forever", b"") as call:
            await anext(call)
        await until(lambda: len(seen) == 3)
    echo, forever = "/t/Echo", "/t/Forever"
    assert seen == [(echo, Status.OK), (echo, Status.RESOURCE_EXHAUSTED), (forever, Status.CANCELLED)]


class TlsServer:
    """A server of ours on loopback TCP."""

    def __init__(self, nursery: trio.Nursery, **more: Any) -> None:
        self.callers: list[Caller] = []
        self.nursery = nursery
        self.more = more
        self.poller = Poller(linger=0.0)
        self.port = 0

    async def whoami(self, call: Call, request: bytes) -> bytes:
        self.callers.append(call.caller)
        return call.caller.peer.uri.encode() if call.caller.peer else b"stranger"

    async def start(self) -> TlsServer:
        await self.nursery.start(self.poller.serve)
        methods = {**METHODS, "/t/Who": Method("unary", self.whoami)}
        self.server = RpcServer(self.poller, methods, **{"credentials": lambda: credentials(API), **self.more})
        await self.nursery.start(self.server.run)
        sock = bind(Address("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        self.server.listen(sock)
        return self

    def open(self, own: Credentials | None, expect: str = API) -> Any:
        address = Address("127.0.0.1", self.port)
        return open_channel(address, poller=self.poller, credentials=own, expect=frozenset({expect}))


@asynccontextmanager
async def tls_server(**more: Any) -> AsyncIterator[TlsServer]:
    async with trio.open_nursery() as nursery:
        made = await TlsServer(nursery, **more).start()
        yield made
        nursery.cancel_scope.cancel()
    made.poller.close()


@pytest.fixture
async def tls() -> AsyncIterator[TlsServer]:
    async with tls_server() as made:
        yield made


@pytest.fixture
async def open_tls() -> AsyncIterator[TlsServer]:
    async with tls_server(strangers=True) as made:
        yield made


def stranger(trust: str = "mesh.test") -> StrangerCredentials:
    folder = ca_of(trust)
    return StrangerCredentials({folder.trust_domain: folder.bundle})


async def ask_who(server: TlsServer, own: Credentials | None, expect: str = API) -> bytes:
    async with server.open(own, expect) as channel:
        reply: bytes = await channel.unary("/t/Who", b"")
        assert isinstance(channel, Channel)
        assert channel.peer is None or channel.peer.uri == API
        return reply


async def test_an_mtls_caller_is_its_identity(tls: TlsServer) -> None:
    assert await ask_who(tls, credentials(WEB)) == WEB.encode()
    assert tls.callers[0].local is None
    assert tls.callers[0].address.startswith("127.0.0.1:")


async def test_a_stranger_comes_in_only_where_strangers_are_let_in(tls: TlsServer, open_tls: TlsServer) -> None:
    assert (await refusal(ask_who(tls, stranger()))).status is Status.UNAVAILABLE
    assert await ask_who(open_tls, stranger()) == b"stranger"
    assert await ask_who(open_tls, credentials(WEB)) == WEB.encode()


async def test_a_bad_certificate_is_refused_even_where_none_would_be_let_in(open_tls: TlsServer) -> None:
    foreign = credentials("spiffe://other.test/ns/a/sa/b", "other.test")
    # It trusts our bundle, so that the refusal can only be the server's.
    foreign = Credentials(type(foreign.context)(foreign.context.svid, credentials(API).context.bundles))
    assert (await refusal(ask_who(open_tls, foreign))).status is Status.UNAVAILABLE
    assert not open_tls.callers


async def test_a_stranger_judges_the_server_all_the_same(open_tls: TlsServer) -> None:
    assert (await refusal(ask_who(open_tls, stranger("other.test")))).status is Status.UNAVAILABLE
    error = await refusal(ask_who(open_tls, stranger(), expect=WEB))
    assert f"expected {WEB}" in error.message
    assert not open_tls.callers


async def test_a_server_without_an_identity_answers_nobody() -> None:
    async with tls_server(credentials=lambda: None) as server:
        assert (await refusal(ask_who(server, credentials(WEB)))).status is Status.UNAVAILABLE


async def test_the_end_of_the_callers_certificate_ends_its_connection(tls: TlsServer) -> None:
    async with tls.open(credentials(WEB)) as channel, channel.stream("/t/Forever", b"") as call:
        await anext(call)
        (connection,) = tls.server.connections
        assert connection.caller.peer is not None
        connection.caller = replace(connection.caller, peer=replace(connection.caller.peer, not_after=1.0))
        await sweep_later(tls.server, 0.0)
        assert isinstance(await refusal(anext(call)), RpcError)
        assert not tls.server.connections
