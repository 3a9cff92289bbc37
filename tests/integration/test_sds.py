"""Envoys that get their certificates from our secret discovery service, through rotations of everything.

    client -> Envoy (web) --mTLS--> Envoy (api, RBAC) -> app
    client -> Envoy (web) --mTLS--> our inbound (api) -> app

Envoy makes a new connection for every few requests, so that there are handshakes at each moment of a rotation.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from config.live import Live
from identity.files import CaFolder
from identity.sds import Sds as SdsService
from identity.spiffe import SpiffeId
from identity.svid import X509Context
from identity.workload_api import WorkloadApi
from identity.workload_source import WorkloadSource
from proxy.net.tls import Credentials
from proxy.rpc.endpoint import x509_stream
from tests.support.apps import EchoApp
from tests.support.client import call, open_client
from tests.support.envoy import Sds, client_sidecar, find_envoy, free_port, run_envoy, server_sidecar
from tests.support.issuing import IssuingSource, validate
from tests.support.mesh import TRUST_DOMAIN, Side, close_side, start_api
from tests.support.raw import RawApp, until
from tests.support.rpc import Served, serve

pytestmark = pytest.mark.slow
WEB = f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/web"
API = f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/api"
ID = f"spiffe://{TRUST_DOMAIN}"


@pytest.fixture(autouse=True)
def envoy() -> str:
    return find_envoy()


@pytest.fixture
def source() -> IssuingSource:
    return IssuingSource(TRUST_DOMAIN, "/ns/shop/sa/web", "/ns/shop/sa/api")


class Events:
    """What the service reports."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    def __call__(self, name: str, facts: Any) -> None:
        self.seen.append((name, dict(facts)))


def offer(source: IssuingSource, events: Events) -> Any:
    return serve({**SdsService(source, events).methods(), **WorkloadApi(source, validate).methods()})


class Traffic:
    """Requests, one after the other, until told; each answer is counted."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: dict[object, int] = {}

    async def run(self) -> None:
        while True:
            try:
                async with open_client(self.port) as client:
                    for _ in range(20):
                        response = await client.request("GET", "/ok")
                        self._count(response.status)
                        await trio.sleep(0.002)
            except Exception as error:
                self._count(repr(error))

    def _count(self, answer: object) -> None:
        self.answers[answer] = self.answers.get(answer, 0) + 1

    async def more(self, count: int = 20) -> None:
        """Wait for so many further answers."""
        goal = sum(self.answers.values()) + count
        await until(lambda: sum(self.answers.values()) >= goal, 10.0)


async def certificates(admin: int) -> tuple[str, int]:
    """Envoy's own view: the serial number it presents, and how many authorities it trusts."""
    found = json.loads((await call(admin, "GET", "/certs")).body)["certificates"]
    chains = [chain for one in found for chain in one.get("cert_chain", [])]
    return chains[0]["serial_number"], len([cert for one in found for cert in one.get("ca_cert", [])])


async def taken_up(admin: int, source: IssuingSource, path: str) -> None:
    """Wait until this Envoy presents what the source issues now, and trusts what it publishes."""
    spiffe_id = next(one for one in source.ids if one.path == path)
    with trio.fail_after(10):
        while True:
            serial, _ = await certificates(admin)
            if int(serial, 16) == source.svid(spiffe_id).leaf.serial_number:
                return
            await trio.sleep(0.02)


ROTATIONS = (
    ("leaf", "new_leafs"),
    ("issuing authority", "new_issuing"),
    ("root, prepared", "publish_root"),
    ("root, active", "new_issuing"),
    ("root, the old one gone", "drop_old_roots"),
)


@asynccontextmanager
async def client_envoy(path: str, next_port: int, folder: Path, trust: str, certificate: str) -> AsyncIterator[Any]:
    listen, admin = free_port(), free_port()
    keys = Sds(path, certificate, trust)
    async with run_envoy(client_sidecar(listen, admin, next_port, keys, http2=False, requests=5), folder):
        yield listen, admin


@pytest.mark.parametrize("trust", ["ROOTCA", "ALL", ID])
async def test_two_envoys_talk_through_a_rotation_of_everything(
    nursery: trio.Nursery, tmp_path: Path, source: IssuingSource, trust: str
) -> None:
    app = RawApp()
    await nursery.start(app.run)
    events = Events()
    async with offer(source, events) as served:
        listen, admin = free_port(), free_port()
        more: dict[str, Any] = {"http2": False, "alpn": ["http/1.1"], "allow": WEB, "prefix": "/ok"}
        server = server_sidecar(listen, admin, app.port, Sds(served.path, API, trust), **more)
        async with (
            run_envoy(server, tmp_path / "api"),
            client_envoy(served.path, listen, tmp_path / "web", trust, "default") as (port, web_admin),
            trio.open_nursery() as calling,
        ):
            traffic = Traffic(port)
            calling.start_soon(traffic.run)
            await traffic.more()
            for _, step in ROTATIONS:
                getattr(source, step)()
                await taken_up(admin, source, "/ns/shop/sa/api")
                await taken_up(web_admin, source, "/ns/shop/sa/web")
                await traffic.more()
            calling.cancel_scope.cancel()
    print(f"two Envoys, trust by {trust}: {traffic.answers} through {len(ROTATIONS)} steps of rotation")
    assert set(traffic.answers) == {200}, traffic.answers
    assert events.seen == []


async def test_an_envoy_and_a_sidewall_talk_through_a_rotation_of_everything(
    nursery: trio.Nursery, tmp_path: Path, source: IssuingSource
) -> None:
    app = EchoApp()
    await nursery.start(app.run)
    async with offer(source, Events()) as served, trio.open_nursery() as serving:
        side = await start_sidewall(serving, source, app.port, served)
        async with (
            client_envoy(served.path, side.port, tmp_path / "web", "ALL", WEB) as (port, admin),
            trio.open_nursery() as calling,
        ):
            traffic = Traffic(port)
            calling.start_soon(traffic.run)
            await traffic.more()
            for _, step in ROTATIONS:
                getattr(source, step)()
                await taken_up(admin, source, "/ns/shop/sa/web")
                api = source.svid(source.ids[1])
                await until(lambda api=api: side.worker.credentials.context.svid.chain == api.chain)
                await traffic.more()
            calling.cancel_scope.cancel()
        await close_side(side)
        serving.cancel_scope.cancel()
    side.worker.poller.close()
    print(f"an Envoy and a Sidewall: {traffic.answers} through {len(ROTATIONS)} steps of rotation")
    assert set(traffic.answers) == {200}, traffic.answers
    peers = {record.peer.uri for record in side.records if record.peer}
    assert peers == {WEB}


async def start_sidewall(nursery: trio.Nursery, source: IssuingSource, app_port: int, served: Served) -> Side:
    """An inbound side that takes its identity from the same socket as the Envoy does."""
    ca = CaFolder(Path("/nowhere"), source.authority, source.bundle)
    side = await start_api(nursery, ca, app_port)
    live: Live[X509Context | None] = Live(None)
    connect = x509_stream(served.address, served.poller)
    spiffe_id = SpiffeId.parse(API)
    identity = WorkloadSource(connect, "", on_event=lambda name, facts: None, spiffe_id=spiffe_id)

    async def take_up() -> None:
        async for context in live.changes():
            side.worker.credentials = Credentials(context)

    nursery.start_soon(take_up)
    await nursery.start(identity.run, live)
    return side


async def test_an_envoy_that_asks_for_what_is_not_its_own_starts_without_it_and_is_not_told_more(
    nursery: trio.Nursery, tmp_path: Path, source: IssuingSource
) -> None:
    app = RawApp()
    await nursery.start(app.run)
    async with offer(source, Events()) as served:
        keys = Sds(served.path, f"{ID}/somebody/else", patience="0.3s")
        config = client_sidecar(free_port(), free_port(), app.port, keys, http2=False)
        async with run_envoy(config, tmp_path / "envoy"):
            await trio.sleep(0.2)
        log = (tmp_path / "envoy" / "envoy.log").read_text()
    assert "this workload has no right to" in log
    assert not app.complete
