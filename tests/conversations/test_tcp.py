"""Opaque TCP through two sidecars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from tests.support.apps import free_socket
from tests.support.mesh import TRUST_DOMAIN, open_mesh

TCP: dict[str, Any] = {"settings": {"protocol": "tcp"}}

ONLY_OTHERS = f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: others, namespace: shop}}
spec:
  action: ALLOW
  rules:
  - from: [{{source: {{principals: ["{TRUST_DOMAIN}/ns/shop/sa/other"]}}}}]
"""


async def serve(nursery: trio.Nursery, handler: Any) -> int:
    sock, port = free_socket()
    sock.setblocking(False)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    nursery.start_soon(trio.serve_listeners, handler, [listener])
    return port


async def echo(stream: trio.SocketStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send_all(data)
        await stream.send_eof()


async def read_all(stream: trio.SocketStream) -> bytes:
    return b"".join([bytes(data) async for data in stream])


async def test_a_server_that_speaks_first_is_heard_at_once(nursery: trio.Nursery, tmp_path: Path) -> None:
    async def greet(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"220 ready\r\n")
            assert await stream.receive_some(100) == b"QUIT\r\n"
            await stream.send_all(b"221 bye\r\n")

    port = await serve(nursery, greet)
    async with open_mesh(tmp_path, port, api=TCP, web=TCP) as mesh:
        async with await trio.open_tcp_stream("127.0.0.1", mesh.port) as client:
            with trio.fail_after(5):
                assert await client.receive_some(100) == b"220 ready\r\n"
                await client.send_all(b"QUIT\r\n")
                assert await read_all(client) == b"221 bye\r\n"
        with trio.fail_after(5):
            while not (mesh.api.telemetry.closed and mesh.web.telemetry.closed):
                await trio.sleep(0.01)
    (record,) = mesh.api.telemetry.closed
    assert (record.kind, record.bytes_sent, record.bytes_received, record.reason) == ("tcp", 20, 6, "")
    assert record.peer is not None
    assert record.decision is not None


async def test_half_close_passes_each_way_by_itself(nursery: trio.Nursery, tmp_path: Path) -> None:
    async def after_eof(stream: trio.SocketStream) -> None:
        async with stream:
            whole = await read_all(stream)
            await stream.send_all(b"%d bytes" % len(whole))

    port = await serve(nursery, after_eof)
    async with (
        open_mesh(tmp_path, port, api=TCP, web=TCP) as mesh,
        await trio.open_tcp_stream("127.0.0.1", mesh.port) as client,
    ):
        await client.send_all(b"x" * 100_000)
        await client.send_eof()
        with trio.fail_after(5):
            assert await read_all(client) == b"100000 bytes"


@pytest.mark.slow
async def test_a_slow_reader_holds_the_sender_back(nursery: trio.Nursery, tmp_path: Path) -> None:
    port = await serve(nursery, echo)
    total = 32 * 1024 * 1024
    async with open_mesh(tmp_path, port, api=TCP, web=TCP) as mesh:
        async with await trio.open_tcp_stream("127.0.0.1", mesh.port) as client:
            sent = 0

            async def push() -> None:
                nonlocal sent
                while sent < total:
                    await client.send_all(b"y" * 65536)
                    sent += 65536
                await client.send_eof()

            nursery.start_soon(push)
            await trio.sleep(0.5)
            assert sent < total, "nothing held the sender back"
            splices = [*mesh.web.worker.splices, *mesh.api.worker.splices]
            assert splices
            assert all(s.near.pending < 1_000_000 and s.far.pending < 1_000_000 for s in splices)
            got = 0
            with trio.fail_after(60):
                async for data in client:
                    got += len(data)
        assert got == total


async def test_a_caller_that_policy_does_not_name_gets_no_byte_through(nursery: trio.Nursery, tmp_path: Path) -> None:
    reached: list[bytes] = []

    async def note(stream: trio.SocketStream) -> None:
        reached.append(bytes(await stream.receive_some(100)))

    port = await serve(nursery, note)
    async with open_mesh(tmp_path, port, api={**TCP, "policy": ONLY_OTHERS}, web=TCP) as mesh:
        async with await trio.open_tcp_stream("127.0.0.1", mesh.port) as client:
            with trio.fail_after(5):
                try:
                    await client.send_all(b"secret")
                    assert await read_all(client) == b""
                except trio.BrokenResourceError:
                    pass
        await trio.sleep(0.05)
    assert reached == []
    assert mesh.api.telemetry.closed[0].reason == "no_allow_policy_matched"


async def test_a_far_side_that_is_down_closes_the_caller(nursery: trio.Nursery, tmp_path: Path) -> None:
    sock, port = free_socket()
    sock.close()
    async with (
        open_mesh(tmp_path, port, api=TCP, web=TCP) as mesh,
        await trio.open_tcp_stream("127.0.0.1", mesh.port) as client,
    ):
        with trio.fail_after(5):
            try:
                assert await read_all(client) == b""
            except trio.BrokenResourceError:
                pass
    assert mesh.api.telemetry.closed[0].reason == "upstream_connect_failed"
