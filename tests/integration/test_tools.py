"""curl, nghttp and h2load as callers, nginx as the app: two sidecars between them.

Plain calls go to the outbound listener; curl and h2load also speak mTLS to the inbound one themselves.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.support.apps import EchoApp
from tests.support.client import call, open_client
from tests.support.mesh import WEB, Mesh, make_context, open_mesh
from tests.support.raw import write_bundle, write_svid
from tests.support.tools import h2load_counts, run, run_nginx, tool

pytestmark = pytest.mark.slow
VERSIONS = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
BIG = bytes(range(256)) * 4096 * 8  # 8 MiB


async def start_app(nursery: trio.Nursery, http2: bool) -> tuple[EchoApp, dict[str, Any]]:
    """An app and what the inbound side must be told of it."""
    app = EchoApp(http2=http2)
    await nursery.start(app.run)
    return app, {"cluster": {"protocol": "h2" if http2 else "http1"}}


def curl(http2: bool, *more: str) -> list[str]:
    return [tool("curl"), "-sS", "-i", "-m", "30", "--http2-prior-knowledge" if http2 else "--http1.1", *more]


# -- curl -------------------------------------------------------------------------------------------------------


@VERSIONS
async def test_curl_gets_posts_and_heads(nursery: trio.Nursery, tmp_path: Path, http2: bool) -> None:
    app, api = await start_app(nursery, http2)
    async with open_mesh(tmp_path, app.port, api=api) as mesh:
        url = f"http://127.0.0.1:{mesh.port}"
        got = await run(curl(http2, f"{url}/bytes/10"))
        posted = await run(curl(http2, "-d", "hello there", f"{url}/echo"))
        head = await run(curl(http2, "-I", f"{url}/bytes/10"))
        waited = await run(curl(http2, "-H", "Expect: 100-continue", "-d", "x" * 5000, f"{url}/echo"))
    assert got.startswith("HTTP/2 200" if http2 else "HTTP/1.1 200 OK")
    assert got.endswith("\r\n\r\nxxxxxxxxxx")
    assert posted.endswith("\r\n\r\nhello there")
    assert "200" in head.splitlines()[0]
    assert waited.endswith("x" * 5000)


@VERSIONS
async def test_curl_up_and_down_loads_a_file(nursery: trio.Nursery, tmp_path: Path, http2: bool) -> None:
    app, api = await start_app(nursery, http2)
    source, result = tmp_path / "up", tmp_path / "down"
    source.write_bytes(BIG)
    async with open_mesh(tmp_path, app.port, api=api) as mesh:
        url = f"http://127.0.0.1:{mesh.port}/echo"
        await run([*curl(http2), "--no-include", "-T", str(source), "-o", str(result), url])
        await mesh.settled()
        assert [r.reason for r in mesh.web.records + mesh.api.records] == ["", ""]
    assert result.read_bytes() == BIG


@VERSIONS
async def test_curl_with_an_svid_calls_the_inbound_side_itself(
    nursery: trio.Nursery, tmp_path: Path, http2: bool
) -> None:
    app, api = await start_app(nursery, http2)
    async with open_mesh(tmp_path, app.port, api=api) as mesh:
        context = make_context(mesh.ca, WEB)
        chain, key = write_svid(context, tmp_path)
        # No host name stands in a SPIFFE certificate: curl may check the chain only by its pinned bundle.
        tls = ["--cert", str(chain), "--key", str(key), "--cacert", str(write_bundle(context, tmp_path)), "-k"]
        wanted = "--http2" if http2 else "--http1.1"
        command = [tool("curl"), "-sS", "-m", "30", *tls, wanted, "-w", "\n%{http_version} %{http_code}"]
        said = await run([*command, f"https://127.0.0.1:{mesh.api.port}/bytes/5"])
        await mesh.settled()
        (record,) = mesh.api.records
    assert said == f"xxxxx\n{'2' if http2 else '1.1'} 200"
    assert record.peer is not None
    assert record.peer.uri == WEB


# -- nghttp and h2load -------------------------------------------------------------------------------------------


async def test_nghttp_sends_many_streams_and_hears_all(nursery: trio.Nursery, tmp_path: Path) -> None:
    app, api = await start_app(nursery, True)
    body = tmp_path / "body"
    body.write_bytes(BIG[:300_000])
    async with open_mesh(tmp_path, app.port, api=api) as mesh:
        url = f"http://127.0.0.1:{mesh.port}"
        paths = [f"{url}/bytes/{size}" for size in (0, 1, 16384, 100_000)]
        output = await run([tool("nghttp"), "-nv", *paths])
        echoed = await run([tool("nghttp"), "-nv", "-d", str(body), f"{url}/echo"])
        await mesh.settled()
        assert {(r.status, r.reason) for r in mesh.api.records} == {(200, "")}
    assert output.count(":status: 200") == 4
    received = sum(int(size) for size in re.findall(r"recv DATA frame <length=(\d+)", echoed))
    assert received == 300_000


LOADS = {
    "h1 32 connections": ["--h1", "-c", "32"],
    "h2 1x1": ["-c", "1", "-m", "1"],
    "h2 4x32": ["-c", "4", "-m", "32"],
}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
@VERSIONS
async def test_h2load_through_both_sides_loses_nothing(
    nursery: trio.Nursery, tmp_path: Path, load: list[str], http2: bool
) -> None:
    app, api = await start_app(nursery, http2)
    async with open_mesh(tmp_path, app.port, api=api) as mesh:
        url = f"http://127.0.0.1:{mesh.port}/bytes/100"
        output = await run([tool("h2load"), "-n", "1000", "-t", "1", *load, url])
        await mesh.settled()
        assert [(r.reason, r.details) for r in mesh.api.records + mesh.web.records if r.reason][:5] == []
    counts = h2load_counts(output)
    assert (counts["succeeded"], counts["2xx"], counts["failed"]) == (1000, 1000, 0)


# -- nginx ------------------------------------------------------------------------------------------------------


async def test_nginx_as_the_app(tmp_path: Path) -> None:
    async with run_nginx(tmp_path / "nginx") as port, open_mesh(tmp_path, port) as mesh:
        _publish(tmp_path)
        await _visit(mesh, http2=False)
        await _visit(mesh, http2=True)
        head = await run(curl(False, "-I", f"http://127.0.0.1:{mesh.port}/big"))
        assert f"content-length: {len(BIG)}" in head


async def test_nginx_as_an_http2_app(tmp_path: Path) -> None:
    api = {"cluster": {"protocol": "h2"}}
    async with run_nginx(tmp_path / "nginx", http2=True) as port, open_mesh(tmp_path, port, api=api) as mesh:
        _publish(tmp_path)
        await _visit(mesh, http2=False)
        await _visit(mesh, http2=True)


def _publish(tmp_path: Path) -> None:
    (tmp_path / "nginx" / "www" / "big").write_bytes(BIG)
    (tmp_path / "nginx" / "www" / "page.txt").write_bytes(b"a line of text\n" * 1000)


async def _visit(mesh: Mesh, *, http2: bool) -> None:
    """Bodies of every framing, and none, on one connection; the app's connection is used again."""
    async with open_client(mesh.port, http2=http2) as client:
        first = await client.request("GET", "/text")
        empty = await client.request("GET", "/empty")
        head = await client.request("HEAD", "/big")
        big = await client.request("GET", "/big")
        packed = await client.request("GET", "/page.txt", headers=[("accept-encoding", "gzip")])
        part = await client.request("GET", "/big", headers=[("range", "bytes=10-19")])
        same = await client.request("GET", "/big", headers=[("if-none-match", big.header("etag"))])
        missing = await client.request("GET", "/missing")
        moved = await client.request("GET", "/moved")
        last = await client.request("GET", "/text")
    refused = await call(mesh.port, "POST", "/page.txt", http2=http2, body=b"x" * 100_000)
    assert (empty.status, empty.complete, empty.body) == (204, True, b"")
    assert (head.status, head.complete, head.body) == (200, True, b"")
    assert (big.status, big.complete, big.body == BIG) == (200, True, True)
    assert (packed.header("content-encoding"), packed.complete, packed.header("content-length")) == ("gzip", True, "")
    assert (part.status, part.body) == (206, BIG[10:20])
    assert (same.status, same.body, missing.status, refused.status) == (304, b"", 404, 405)
    assert (moved.status, moved.header("location")[-5:]) == (302, "/text")
    assert first.body.startswith(b"connection ")
    assert last.status == 200


async def test_connections_to_nginx_are_kept_and_its_closing_goes_unnoticed(tmp_path: Path) -> None:
    async with run_nginx(tmp_path / "nginx") as port, open_mesh(tmp_path, port) as mesh:
        first = [(await call(mesh.port, "GET", "/text")).body for _ in range(10)]
    async with run_nginx(tmp_path / "again", keep_alive="0") as port, open_mesh(tmp_path / "2", port) as mesh:
        others = [await call(mesh.port, "GET", "/text") for _ in range(10)]
    assert len({bytes(body) for body in first}) == 1
    assert {response.status for response in others} == {200}
    assert len({bytes(response.body) for response in others}) == 10


async def test_an_app_that_closes_idle_connections_costs_no_request(tmp_path: Path) -> None:
    """nginx closes after a second: at the next request we must notice before we write (S-13)."""
    async with run_nginx(tmp_path / "nginx", keep_alive="1s") as port, open_mesh(tmp_path, port) as mesh:
        statuses = []
        for pause in (0.95, 1.0, 1.05):
            statuses.append((await call(mesh.port, "GET", "/text")).status)
            await trio.sleep(pause)
        statuses.append((await call(mesh.port, "GET", "/text")).status)
    assert statuses == [200] * 4
