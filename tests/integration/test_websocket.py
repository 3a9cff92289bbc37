"""WebSockets with the real library at both ends, two sidecars between them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

from tests.support.client import call
from tests.support.mesh import open_mesh

pytest.importorskip("websockets")

SERVER = """
import asyncio, websockets
async def serve(ws):
    async for message in ws:
        await ws.send(message)
async def main():
    async with websockets.serve(serve, "127.0.0.1", 0, max_size=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()
asyncio.run(main())
"""

CLIENT = """
import sys
from websockets.sync.client import connect
with connect(f"ws://127.0.0.1:{sys.argv[1]}/chat", max_size=None, compression=None) as ws:
    for message in ("hello", "x" * 100_000, bytes(range(256)) * 4096):
        ws.send(message)
        assert ws.recv(timeout=10) == message
    assert ws.ping().wait(10)
print("closed", ws.close_code)
"""


@pytest.mark.slow
async def test_a_websocket_passes_messages_pings_and_the_close(nursery: trio.Nursery, tmp_path: Path) -> None:
    server = await trio.lowlevel.open_process([sys.executable, "-c", SERVER], stdout=-1)
    assert server.stdout is not None
    try:
        port = int(bytes(await server.stdout.receive_some(100)))
        async with open_mesh(tmp_path, port) as mesh:
            with trio.fail_after(30):
                done = await trio.run_process(
                    [sys.executable, "-c", CLIENT, str(mesh.port)],
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                )
            assert done.returncode == 0, done.stderr.decode()
            assert done.stdout.split() == [b"closed", b"1000"]
            await mesh.settled()
            assert [record.status for record in mesh.api.records] == [101]
            assert mesh.api.records[0].bytes_sent > 1_000_000
            # An upgrade that the app did not agree to is an ordinary request.
            plain = await call(mesh.port, "GET", "/chat")
            assert plain.status in (400, 426)
    finally:
        server.kill()
        await server.wait()
