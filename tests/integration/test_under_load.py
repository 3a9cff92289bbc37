"""Change and endings while requests flow: policies, certificates, drains. And what is left when all is over.

Each story has a short form in the default run and the full count of repetitions marked ``long``.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import trio

from proxy.lifecycle import Caps, Runtime
from proxy.net.listener import Address
from proxy.net.tls import Credentials
from tests.conversations.conftest import NAMES, PAIRS
from tests.conversations.test_pairs import many
from tests.support.apps import EchoApp
from tests.support.load import constant_load, forget_peak, living_tasks, open_files, resident, some_more
from tests.support.mesh import API, WEB, Mesh, Side, close_side, make_context, open_mesh, start_api, start_web
from tests.support.policies import compile_text
from tests.support.raw import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
BOTH = pytest.mark.parametrize("pair", PAIRS, ids=NAMES)
VERSIONS = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
FREE = Caps(handshakes_per_second=0)


def counts(short: int, full: int) -> Any:
    """The short form always, the full one marked ``long``."""
    return pytest.mark.parametrize("count", [short, pytest.param(full, marks=pytest.mark.long)])


def only(generation: int) -> str:
    """What generation N says: everything the load asks for is allowed, by a rule that bears its number."""
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: g{generation}, namespace: shop}}
spec:
  action: ALLOW
  rules:
  - to: [{{operation: {{paths: [/bytes/*, /ok, /only/{generation % 2}]}}}}]
"""


async def started(nursery: trio.Nursery, http2: bool) -> tuple[EchoApp, dict[str, Any]]:
    app = EchoApp(http2=http2)
    await nursery.start(app.run)
    return app, {"cluster": {"protocol": "h2" if http2 else "http1"}, "caps": FREE}


# -- change -----------------------------------------------------------------------------------------------------


@counts(10, 100)
@BOTH
async def test_policies_change_under_load_and_no_decision_is_torn(
    nursery: trio.Nursery, tmp_path: Path, pair: tuple[bool, bool], count: int
) -> None:
    app, api = await started(nursery, pair[1])
    async with open_mesh(tmp_path, app.port, api=api) as mesh:
        mesh.api.worker.swap(Runtime(2, compile_text(only(2))))
        async with constant_load(lambda: mesh.port, http2=pair[0]) as tally:
            for _ in range(count):
                mesh.allow(only(mesh.api.worker.runtime.generation + 1))
                await some_more(tally, 30)
        await mesh.settled()
        records = [r for r in mesh.api.records if r.reason not in ("downstream_closed", "downstream_reset")]
    assert tally.failures == []
    assert tally.again == 0
    torn = {
        (r.generation, r.decision.policy if r.decision else None)
        for r in records
        if r.decision is None or r.decision.policy != f"shop/g{r.generation}"
    }
    assert torn == set()
    assert len({r.generation for r in records}) > count


@counts(3, 20)
@BOTH
async def test_certificates_change_under_load(
    nursery: trio.Nursery, tmp_path: Path, pair: tuple[bool, bool], count: int
) -> None:
    app, api = await started(nursery, pair[1])
    web = {"cluster": {"max_requests_per_connection": 15}, "caps": FREE}
    async with open_mesh(tmp_path, app.port, api=api, web=web) as mesh:
        async with constant_load(lambda: mesh.port, http2=pair[0]) as tally:
            for number in range(count):
                side, name = (mesh.web, WEB) if number % 2 else (mesh.api, API)
                side.worker.credentials = Credentials(make_context(mesh.ca, name))
                await some_more(tally, 60)
        await mesh.settled()
        serials = {r.peer.serial for r in mesh.api.records if r.peer is not None}
    assert tally.failures == []
    assert tally.again == 0
    assert len(serials) == 1 + count // 2, "the new certificate was shown by new connections"


# -- endings ----------------------------------------------------------------------------------------------------


async def retire(side: Side) -> int:
    """What SIGTERM does to a sidecar whose readiness was withdrawn before. How many connections were cut."""
    side.worker.stop_accepting()
    cut = await side.worker.drain(10.0)
    await side.telemetry.close()
    await until(lambda: not len(side.worker.poller))
    return cut


@counts(3, 20)
@VERSIONS
async def test_an_outbound_side_drains_while_another_takes_over(
    nursery: trio.Nursery, tmp_path: Path, http2: bool, count: int
) -> None:
    app, api = await started(nursery, True)
    async with open_mesh(tmp_path, app.port, api=api) as mesh:
        current, old = mesh.web, []
        async with constant_load(lambda: current.port, http2=http2) as tally:
            for _ in range(count):
                leaving = current
                old.append(leaving)
                current = await start_web(mesh.nursery, mesh.ca, mesh.api.port, caps=FREE)
                await some_more(tally, 20)  # connections on their way have arrived
                assert await retire(leaving) == 0
                await some_more(tally, 50)
        await close_side(current)
        print(f"outbound, {'HTTP/2' if http2 else 'HTTP/1.1'}: {count} drains, {tally}")
    assert tally.failures == []
    # nghttp2 takes back what it had not sent when GOAWAY came: the caller sends it on its next connection.
    assert tally.again == 0 or http2
    assert {r.reason for side in old for r in side.records} == {""}
    assert all(side.records for side in old)


class Pair:
    """Two inbound sides behind one outbound side; one at a time is replaced."""

    def __init__(self, mesh: Mesh, app_port: int, api: dict[str, Any]) -> None:
        self.mesh = mesh
        self.app_port = app_port
        self.api = api
        self.sides = [mesh.api]
        self.retired: list[Side] = []

    async def grow(self) -> None:
        self.sides.append(await start_api(self.mesh.nursery, self.mesh.ca, self.app_port, **self.api))
        cluster = self.mesh.web.worker.clusters["api"]
        cluster.set_addresses([Address("127.0.0.1", side.port) for side in self.sides])

    async def replace(self) -> int:
        """Drain the older one, still listed; only afterwards its successor is announced."""
        side = self.sides.pop(0)
        self.retired.append(side)
        cut = await retire(side)
        await self.grow()
        return cut


@counts(3, 20)
@VERSIONS
async def test_an_inbound_side_drains_while_its_twin_serves(
    nursery: trio.Nursery, tmp_path: Path, http2: bool, count: int
) -> None:
    app, api = await started(nursery, True)
    async with open_mesh(tmp_path, app.port, api=api) as mesh:
        pair = Pair(mesh, app.port, api)
        await pair.grow()
        async with constant_load(lambda: mesh.port, http2=http2) as tally:
            for _ in range(count):
                assert await pair.replace() == 0
                await some_more(tally, 50)
        await mesh.settled()
        for side in pair.sides:
            await close_side(side)
        print(f"inbound, {'HTTP/2' if http2 else 'HTTP/1.1'}: {count} drains, {tally}")
        assert {r.reason for r in mesh.web.records} <= {"", "downstream_closed", "downstream_reset"}
    assert tally.failures == []
    assert tally.again == 0
    assert all(side.records for side in pair.retired)


# -- what is left -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "big", [False, pytest.param(True, marks=pytest.mark.long)], ids=["2000 exchanges", "50 x 1 MiB"]
)
@BOTH
async def test_nothing_is_left_of_many_exchanges(
    nursery: trio.Nursery, tmp_path: Path, pair: tuple[bool, bool], big: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    await _exchange(nursery, tmp_path / "warm", pair, 20, big)  # what is loaded and cached once
    await trio.sleep(0.1)
    gc.collect()
    files, tasks = open_files(), living_tasks()
    forget_peak()
    before = resident("VmRSS")
    await _exchange(nursery, tmp_path / "full", pair, 50 if big else 2000, big)
    gc.collect()
    peak = resident()
    with capsys.disabled():
        print(
            f"\n{NAMES[PAIRS.index(pair)]}, {'big' if big else 'small'}: {before:.0f} MiB before, peak {peak:.0f} MiB"
        )
    await until(lambda: open_files() <= files and living_tasks() <= tasks)
    assert (open_files(), living_tasks()) == (files, tasks)
    assert peak - before < (160 if big else 60)


async def _exchange(nursery: trio.Nursery, folder: Path, pair: tuple[bool, bool], count: int, big: bool) -> None:
    body = bytes(range(256)) * 4096 if big else None
    async with trio.open_nursery() as inner:
        app, api = await started(inner, pair[1])
        async with open_mesh(folder, app.port, api=api, web={"caps": FREE}) as mesh:
            target = "/echo" if big else "/bytes/100"
            responses = await many(mesh.port, count, 20 if big else 50, pair[0], target, body)
            assert [r.status for r in responses] == [200] * count
            assert all(r.complete for r in responses)
            assert all(r.body == body for r in responses) or not big
            await mesh.settled()
            assert not any(r.reason for r in mesh.api.records + mesh.web.records)
            assert not mesh.api.worker.requests
        inner.cancel_scope.cancel()
