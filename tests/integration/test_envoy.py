"""Envoy on one side, us on the other, mTLS between: whoever mixes meshes must notice nothing.

client -> Envoy (SVID web) --mTLS--> our inbound (api) -> app
client -> our outbound (web) --mTLS--> Envoy (SVID api, RBAC) -> app
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.support.apps import EchoApp
from tests.support.client import Response, call, open_client
from tests.support.envoy import Keys, client_sidecar, find_envoy, free_port, run_envoy, server_sidecar
from tests.support.mesh import API, TRUST_DOMAIN, WEB, Mesh, Side, close_side, make_context, open_mesh, start_web
from tests.support.raw import RawApp, until

pytestmark = pytest.mark.slow
VERSIONS = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
BODY = bytes(range(256)) * 1000

ONLY_WEB = f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: only-web, namespace: shop}}
spec:
  action: ALLOW
  rules:
  - from: [{{source: {{principals: ["{TRUST_DOMAIN}/ns/shop/sa/web"]}}}}]
    to: [{{operation: {{paths: [/bytes/*, /echo, /ok]}}}}]
"""


@pytest.fixture(autouse=True)
def envoy() -> str:
    return find_envoy()


@asynccontextmanager
async def envoy_calls(mesh: Mesh, folder: Path, *, http2: bool, identity: str = WEB) -> AsyncIterator[int]:
    """Envoy in front of our inbound; the port to call."""
    keys = Keys.write(make_context(mesh.ca, identity), folder / "keys")
    listen = free_port()
    config = client_sidecar(listen, free_port(), mesh.api.port, keys, http2=http2)
    async with run_envoy(config, folder / "envoy"):
        yield listen


@asynccontextmanager
async def envoy_answers(
    mesh: Mesh, folder: Path, app_port: int, *, http2: bool, alpn: list[str], identity: str = WEB
) -> AsyncIterator[Side]:
    """Our outbound in front of Envoy in front of the app."""
    keys = Keys.write(make_context(mesh.ca, API), folder / "keys")
    listen = free_port()
    config = server_sidecar(listen, free_port(), app_port, keys, http2=http2, alpn=alpn, allow=WEB, prefix="/ok")
    async with run_envoy(config, folder / "envoy"):
        async with trio.open_nursery() as nursery:
            side = await start_web(nursery, mesh.ca, listen, identity=identity)
            yield side
            await close_side(side)
            await until(lambda: not len(side.worker.poller))  # connections say goodbye for up to a second
            nursery.cancel_scope.cancel()
        side.worker.poller.close()


async def hundred(port: int, http2: bool, target: str) -> list[Response]:
    """100 requests: ten at a time, over ten connections or as streams of one."""
    responses: list[Response] = []

    async def some(client: Any) -> None:
        for number in range(10):
            if number % 2:
                responses.append(
                    await client.request("POST", target, body=BODY[: number * 1000], chunked=number % 4 == 1)
                )
            else:
                responses.append(await client.request("GET", target))

    async def connect(tasks: int) -> None:
        async with open_client(port, http2=http2) as client, trio.open_nursery() as inner:
            for _ in range(tasks):
                inner.start_soon(some, client)

    async with trio.open_nursery() as nursery:
        for _ in range(1 if http2 else 10):
            nursery.start_soon(connect, 10 if http2 else 1)
    return responses


async def started(app: Any, nursery: trio.Nursery) -> Any:
    await nursery.start(app.run)
    return app


# -- Envoy is the caller's sidecar ------------------------------------------------------------------------------


@VERSIONS
async def test_a_hundred_requests_come_through_from_envoy(nursery: trio.Nursery, tmp_path: Path, http2: bool) -> None:
    app = await started(EchoApp(http2=http2), nursery)
    api = {"policy": ONLY_WEB, "cluster": {"protocol": "h2" if http2 else "http1"}}
    async with open_mesh(tmp_path, app.port, api=api) as mesh, envoy_calls(mesh, tmp_path, http2=http2) as port:
        responses = await hundred(port, http2, "/ok")
        assert [(r.status, r.complete) for r in responses] == [(200, True)] * 100
        uploaded = await call(port, "POST", "/echo", http2=http2, body=BODY)
        assert (uploaded.status, uploaded.complete, uploaded.body) == (200, True, BODY)
        await mesh.settled()
        assert {(r.peer.uri if r.peer else "", r.reason, r.tls_version) for r in mesh.api.records} == {
            (WEB, "", "1.3")
        }
        assert {r.version for r in mesh.api.records} == {20 if http2 else 11}


@VERSIONS
async def test_the_app_hears_that_envoy_was_web(nursery: trio.Nursery, tmp_path: Path, http2: bool) -> None:
    app = await started(RawApp(), nursery)
    async with open_mesh(tmp_path, app.port) as mesh, envoy_calls(mesh, tmp_path, http2=http2) as port:
        forged = [("x-forwarded-client-cert", "By=spiffe://mesh.test/x;URI=spiffe://mesh.test/ns/shop/sa/admin")]
        response = await call(port, "GET", "/", http2=http2, headers=forged)
        assert response.status == 200
    (request,) = app.complete
    lines = [
        line for line in request.decode("latin-1").split("\r\n") if line.lower().startswith("x-forwarded-client-cert")
    ]
    assert len(lines) == 1
    assert f"By={API};" in lines[0]
    assert f"URI={WEB}" in lines[0].replace('"', "")
    assert "admin" not in lines[0]


@VERSIONS
async def test_what_we_deny_envoy_gets_as_a_403(nursery: trio.Nursery, tmp_path: Path, http2: bool) -> None:
    app = await started(EchoApp(http2=http2), nursery)
    api = {"policy": ONLY_WEB, "cluster": {"protocol": "h2" if http2 else "http1"}}
    async with open_mesh(tmp_path, app.port, api=api) as mesh:
        async with envoy_calls(mesh, tmp_path / "web", http2=http2) as port:
            by_path = await call(port, "GET", "/admin", http2=http2)
            allowed = await call(port, "GET", "/bytes/1", http2=http2)
        other = f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/other"
        async with envoy_calls(mesh, tmp_path / "other", http2=http2, identity=other) as port:
            by_identity = await call(port, "GET", "/bytes/1", http2=http2)
    assert (by_path.status, allowed.status, by_identity.status) == (403, 200, 403)
    assert by_identity.header("x-sidewall-reason") == "no_allow_policy_matched"
    assert len(app.seen) == 1


# -- Envoy is the app's sidecar ---------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("alpn", [["h2", "http/1.1"], ["http/1.1"]], ids=["h2 offered", "http/1.1 only"])
async def test_a_hundred_requests_come_through_to_envoy(
    nursery: trio.Nursery, tmp_path: Path, http2: bool, alpn: list[str]
) -> None:
    app = await started(RawApp(), nursery)
    async with (
        open_mesh(tmp_path, app.port) as mesh,
        envoy_answers(mesh, tmp_path, app.port, http2=False, alpn=alpn) as side,
    ):
        responses = await hundred(side.port, http2, "/ok")
        assert [(r.status, r.complete, bytes(r.body)) for r in responses] == [(200, True, b"ok")] * 100
        records = side.records
        assert {(r.upstream_peer.uri if r.upstream_peer else "", r.reason) for r in records} == {(API, "")}
        assert {r.upstream_version for r in records} == {20 if "h2" in alpn else 11}
    callers = {
        line for request in app.complete for line in request.decode("latin-1").split("\r\n") if "client-cert" in line
    }
    assert len(app.complete) == 100
    assert all(f"URI={WEB}" in line for line in callers)


@VERSIONS
async def test_what_envoy_denies_arrives_as_its_403(nursery: trio.Nursery, tmp_path: Path, http2: bool) -> None:
    app = await started(RawApp(), nursery)
    more: dict[str, Any] = {"http2": False, "alpn": ["h2" if http2 else "http/1.1"]}
    async with open_mesh(tmp_path, app.port) as mesh:
        async with envoy_answers(mesh, tmp_path / "web", app.port, **more) as side:
            by_path = await call(side.port, "GET", "/admin", http2=http2)
            allowed = await call(side.port, "GET", "/ok", http2=http2)
        other = f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/other"
        async with envoy_answers(mesh, tmp_path / "other", app.port, identity=other, **more) as side:
            by_identity = await call(side.port, "GET", "/ok", http2=http2)
    assert (by_path.status, allowed.status, by_identity.status) == (403, 200, 403)
    assert b"RBAC" in by_path.body
    assert len(app.complete) == 1
