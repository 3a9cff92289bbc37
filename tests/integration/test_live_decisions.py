"""What is open is judged again when the rules change: calls end with status 7, their neighbours go on."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from proxy.lifecycle import Caps
from proxy.policy.quarantine import Block, Quarantine
from tests.support.apps import EchoApp
from tests.support.client import Client, Response, open_client
from tests.support.mesh import WEB, Mesh, Side, close_side, open_mesh, start_web

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

OTHER = WEB.replace("/web", "/other")
FREE = Caps(handshakes_per_second=0, requests=20_000, requests_per_peer=20_000)
GRPC = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]


def allow(*accounts: str) -> str:
    principals = ", ".join(f"mesh.test/ns/shop/sa/{account}" for account in accounts)
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: callers, namespace: shop}}
spec:
  action: ALLOW
  rules: [{{from: [{{source: {{principals: [{principals}]}}}}]}}]
"""


class Calls:
    """Open gRPC calls of one identity: (client, stream id) each, spread over few connections."""

    def __init__(self) -> None:
        self.open: list[tuple[Client, int]] = []

    async def begin(self, stack: AsyncExitStack, port: int, count: int, connections: int) -> None:
        clients = [await stack.enter_async_context(open_client(port, http2=True)) for _ in range(connections)]
        for number in range(count):
            client = clients[number % connections]
            stream_id = await client.begin("POST", "/echo/call", GRPC, length=None, end=False)
            await client.send(stream_id, b"\0\0\0\0\1x", False)
            self.open.append((client, stream_id))
        for client, stream_id in self.open:
            with trio.fail_after(20):
                while len(client.responses[stream_id].body) < 6:
                    await client._changed.wait()

    def ended(self) -> list[Response]:
        found = [client.responses[stream_id] for client, stream_id in self.open]
        return [response for response in found if response.complete or response.reset is not None or response.broken]

    async def still_works(self) -> None:
        """Each of them sends and gets another message."""
        for client, stream_id in self.open:
            await client.send(stream_id, b"\0\0\0\0\1y", False)
        for client, stream_id in self.open:
            with trio.fail_after(20):
                while len(client.responses[stream_id].body) < 12:
                    await client._changed.wait()


async def open_two(stack: AsyncExitStack, folder: Path, nursery: trio.Nursery) -> tuple[Mesh, Side]:
    """A mesh with a second caller's sidecar, which has the identity OTHER."""
    app = EchoApp(http2=True)
    await nursery.start(app.run)
    many: dict[str, Any] = {"caps": FREE}
    wide: dict[str, Any] = {"max_requests": 20_000, "max_pending": 20_000}
    api, web = {**many, "cluster": {**wide, "protocol": "h2"}}, {**many, "cluster": wide}
    mesh = await stack.enter_async_context(open_mesh(folder, app.port, api=api, web=web))
    other = await start_web(mesh.nursery, mesh.ca, mesh.api.port, identity=OTHER, **web)
    stack.push_async_callback(close_side, other)
    mesh.allow(allow("web", "other"))
    return mesh, other


def denied(response: Response) -> bool:
    return dict(response.trailers).get(b"grpc-status") == b"7" or dict(response.headers).get(b"grpc-status") == b"7"


async def test_calls_of_an_identity_that_is_denied_end_with_status_7_and_no_other_does(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        mesh, other = await open_two(stack, tmp_path, nursery)
        theirs, ours = Calls(), Calls()
        await theirs.begin(stack, other.port, 250, 5)
        await ours.begin(stack, mesh.port, 250, 5)
        assert theirs.ended() == ours.ended() == []
        mesh.allow(allow("web"))
        with trio.fail_after(10):
            while len(theirs.ended()) < 250:
                await trio.sleep(0.005)
        assert all(denied(response) for response in theirs.ended())
        assert ours.ended() == []
        await ours.still_works()
        records = [record for record in mesh.api.records if record.reason]
        assert {record.reason for record in records} == {"no_allow_policy_matched"}
        assert len(records) == 250
        assert all(record.decision_id for record in records)


async def test_a_quarantine_cuts_both_ways_and_touches_nobody_else(nursery: trio.Nursery, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        mesh, other = await open_two(stack, tmp_path, nursery)
        theirs, ours = Calls(), Calls()
        await theirs.begin(stack, other.port, 20, 2)
        await ours.begin(stack, mesh.port, 20, 2)
        block = Block(OTHER.removeprefix("spiffe://"), since=0.0)
        mesh.api.worker.set_quarantine(Quarantine([block]))
        with trio.fail_after(10):
            while len(theirs.ended()) < 20:
                await trio.sleep(0.005)
        assert all(denied(response) for response in theirs.ended())
        assert ours.ended() == []
        async with open_client(other.port) as client:
            refused = await client.request("GET", "/bytes/1")
            assert (refused.status, refused.header("x-sidewall-reason")) == (403, "quarantined")
        await ours.still_works()
        mesh.api.worker.set_quarantine(Quarantine())
        async with open_client(other.port) as client:
            assert (await client.request("GET", "/bytes/1")).status == 200


async def test_the_callers_own_proxy_refuses_an_upstream_in_quarantine(nursery: trio.Nursery, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        mesh, other = await open_two(stack, tmp_path, nursery)
        calls = Calls()
        await calls.begin(stack, mesh.port, 10, 1)
        api = "mesh.test/ns/shop/sa/api"
        mesh.web.worker.set_quarantine(Quarantine([Block(api, since=0.0)]))
        with trio.fail_after(10):
            while len(calls.ended()) < 10:
                await trio.sleep(0.005)
        assert all(denied(response) for response in calls.ended())
        async with open_client(mesh.port) as client:
            assert (await client.request("GET", "/bytes/1")).header("x-sidewall-reason") == "quarantined"
        exempt = Block(api, since=0.0, exempt=(WEB.removeprefix("spiffe://"),))
        mesh.web.worker.set_quarantine(Quarantine([exempt]))
        async with open_client(mesh.port) as client:
            assert (await client.request("GET", "/bytes/1")).status == 200


async def test_a_quarantine_that_runs_out_is_lifted(nursery: trio.Nursery, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        mesh, other = await open_two(stack, tmp_path, nursery)
        now = mesh.web.worker.poller.wall()
        mesh.web.worker.set_quarantine(Quarantine([Block("mesh.test/ns/shop/sa/api", now, now + 0.5)]))
        async with open_client(mesh.port) as client:
            assert (await client.request("GET", "/bytes/1")).status == 403
        with trio.fail_after(5):
            while mesh.web.worker.quarantine is not None:
                await trio.sleep(0.05)
        async with open_client(mesh.port) as client:
            assert (await client.request("GET", "/bytes/1")).status == 200




@pytest.mark.long
async def test_what_judging_again_costs(
    nursery: trio.Nursery, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Printed, not judged: how long 500 calls of a denied identity live on, and what 5,000 open calls cost."""
    async with AsyncExitStack() as stack:
        mesh, other = await open_two(stack, tmp_path, nursery)
        theirs, ours = Calls(), Calls()
        await theirs.begin(stack, other.port, 500, 10)
        await ours.begin(stack, mesh.port, 4500, 60)
        began = time.perf_counter()
        mesh.allow(allow("web", "other"))
        judged = time.perf_counter() - began
        assert theirs.ended() == ours.ended() == []
        began = time.perf_counter()
        mesh.allow(allow("web"))
        swapped, times = time.perf_counter() - began, []
        while len(times) < 500:
            await trio.sleep(0.001)
            times += [time.perf_counter() - began] * (len(theirs.ended()) - len(times))
            assert time.perf_counter() - began < 30
        assert all(denied(response) for response in theirs.ended())
        assert ours.ended() == []
    with capsys.disabled():
        print(
            f"\n5,000 open calls judged again in {judged * 1000:.0f} ms; 500 of them denied in {swapped * 1000:.0f} ms, "
            f"their ends seen by the caller after {times[249] * 1000:.0f} ms (p50), {times[494] * 1000:.0f} ms (p99)"
        )
