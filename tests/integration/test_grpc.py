"""grpcio on both ends, two sidecars between them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.support.mesh import open_mesh

pytest.importorskip("grpc")
PEERS = Path(__file__).parent / "peers"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ngh2", "h2"])
async def test_every_kind_of_call_through_two_sidecars(nursery: trio.Nursery, tmp_path: Path, engine: str) -> None:
    server = await trio.lowlevel.open_process([sys.executable, PEERS / "grpc_server.py"], stdout=-1)
    assert server.stdout is not None
    try:
        port = int(bytes(await server.stdout.receive_some(100)))
        h2: dict[str, Any] = {"settings": {"http2_engine": engine}, "cluster": {"http2_engine": engine}}
        async with open_mesh(tmp_path, port, api=h2, web=h2) as mesh:
            with trio.fail_after(60):
                done = await trio.run_process(
                    [sys.executable, PEERS / "grpc_client.py", str(mesh.port)],
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                )
            assert done.returncode == 0, done.stderr.decode()
            await mesh.settled()
            assert {record.grpc_status for record in mesh.api.records} >= {0, 9, 12}
    finally:
        server.kill()
        await server.wait()
    assert json.loads(done.stdout) == {
        "unary": "hello",
        "initial": "value",
        "trailing": "yes",
        "four_mebibytes": True,
        "download": 500_000,
        "upload": 3_000_000,
        "chat": True,
        "failed": {
            "code": "FAILED_PRECONDITION",
            "details": "as asked: 100 % ü",
            "status_details": b"\x08\x05details".hex(),
        },
        "deadline": "DEADLINE_EXCEEDED",
        "deadline_kept": True,
        "cancel": "CANCELLED",
        "ended_at_the_server": 2,
        "unknown": "UNIMPLEMENTED",
    }
