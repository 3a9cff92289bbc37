"""Callers without a certificate: PERMISSIVE and DISABLE listeners, and what a change of the mode does."""

from __future__ import annotations

import json
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from proxy.lifecycle import Caps
from tests.conversations.test_tcp import echo, read_all, serve
from tests.support.apps import EchoApp
from tests.support.client import call, open_client
from tests.support.mesh import Mesh, open_mesh
from tests.support.policies import ALLOW_ALL

Pair = tuple[bool, bool]

HEAD = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n"
NEEDS_CALLER = f"{HEAD}spec: {{rules: [{{from: [{{source: {{principals: ['*']}}}}]}}]}}\n"


def set_mode(mesh: Mesh, mode: str) -> None:
    """As a reload does it."""
    service = mesh.api.service
    service.configure(replace(service.settings, mtls=mode), service.cluster, service.times)
    mesh.api.worker.judge_again()


async def test_permissive_takes_both_and_only_one_of_them_has_a_name(mesh: Mesh, pair: Pair) -> None:
    set_mode(mesh, "PERMISSIVE")
    plain = await call(mesh.api.port, "GET", "/a", http2=pair[0])
    assert plain.status == 200
    headers = dict(json.loads(plain.body)["headers"])
    assert headers["x-forwarded-proto"] == "http"
    secured = await call(mesh.port, "GET", "/a", http2=pair[0])
    headers = dict(json.loads(secured.body)["headers"])
    assert headers["x-forwarded-proto"] == "https"
    await mesh.settled()
    assert [record.peer is None for record in mesh.api.records] == [True, False]
    mesh.allow(NEEDS_CALLER)
    assert (await call(mesh.api.port, "GET", "/a", http2=pair[0])).status == 403
    assert (await call(mesh.port, "GET", "/a", http2=pair[0])).status == 200


async def test_disable_takes_plaintext_only(mesh: Mesh, pair: Pair) -> None:
    set_mode(mesh, "DISABLE")
    assert (await call(mesh.api.port, "GET", "/a", http2=pair[0])).status == 200
    assert (await call(mesh.port, "GET", "/a", http2=pair[0])).status == 503


async def test_strict_takes_no_plaintext(mesh: Mesh, pair: Pair) -> None:
    assert await is_refused(mesh, pair)


async def is_refused(mesh: Mesh, pair: Pair) -> bool:
    """Whether a plaintext caller gets no answer at all."""
    try:
        async with open_client(mesh.api.port, http2=pair[0]) as client:
            return (await client.request("GET", "/a")).broken
    except* trio.BrokenResourceError:
        pass
    return True


async def test_going_back_to_strict_ends_what_came_in_plain(mesh: Mesh, pair: Pair) -> None:
    set_mode(mesh, "PERMISSIVE")
    async with open_client(mesh.api.port, http2=pair[0]) as client:
        stream = await client.begin("POST", "/echo", [], length=None, end=False)
        await client.send(stream, b"x", False)
        with trio.fail_after(5):
            await client.wait(stream, head=True)
        set_mode(mesh, "STRICT")
        with trio.fail_after(5):
            assert not (await client.wait(stream)).complete
    await mesh.settled()
    assert mesh.api.records[-1].reason == "mtls_required"


async def test_a_connection_that_was_open_gets_no_further_request_through(mesh: Mesh, pair: Pair) -> None:
    set_mode(mesh, "PERMISSIVE")
    async with open_client(mesh.api.port, http2=pair[0]) as client:
        assert (await client.request("GET", "/a")).status == 200
        set_mode(mesh, "STRICT")
        response = await client.request("GET", "/a")
        assert response.status in (0, 403)  # 0: the client had heard in time that the connection ends


async def test_a_traceparent_of_nobody_is_not_continued(tmp_path: Path, app: EchoApp, pair: Pair) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    settings: dict[str, Any] = {"mtls": "PERMISSIVE", "trust_plaintext": False}
    more = {"cluster": {"protocol": "h2" if pair[1] else "http1"}, "settings": settings}
    async with open_mesh(tmp_path, app.port, api=more) as mesh:
        headers = [("traceparent", parent), ("baggage", "a=b")]
        plain = await call(mesh.api.port, "GET", "/a", http2=pair[0], headers=headers)
        secured = await call(mesh.port, "GET", "/a", http2=pair[0], headers=headers)
        found = [dict(json.loads(response.body)["headers"]) for response in (plain, secured)]
        assert [one["traceparent"][3:35] == parent[3:35] for one in found] == [False, True]
        assert ["baggage" in one for one in found] == [False, True]


async def test_one_address_without_a_name_may_have_so_many_connections(tmp_path: Path, app: EchoApp, pair: Pair) -> None:
    more = {
        "cluster": {"protocol": "h2" if pair[1] else "http1"},
        "settings": {"mtls": "DISABLE"},
        "caps": Caps(connections_per_peer=1),
    }
    async with open_mesh(tmp_path, app.port, api=more) as mesh, open_client(mesh.api.port, http2=pair[0]) as first:
        assert (await first.request("GET", "/a")).status == 200
        assert await is_refused(mesh, pair)


# -- what says nothing, or something else ---------------------------------------------------------------------


@pytest.fixture
async def one(nursery: trio.Nursery) -> EchoApp:
    made = EchoApp()
    await nursery.start(made.run)
    return made


@pytest.mark.parametrize("mode", ["PERMISSIVE", "DISABLE"])
@pytest.mark.parametrize("said", [b"", b"P", b"PRI * HT"])
async def test_whoever_says_too_little_is_let_go_and_counted_until_then(
    tmp_path: Path, one: EchoApp, mode: str, said: bytes
) -> None:
    more = {"settings": {"mtls": mode, "handshake_timeout": 0.1}}
    async with open_mesh(tmp_path, one.port, api=more) as mesh:
        worker = mesh.api.worker
        async with await trio.open_tcp_stream("127.0.0.1", mesh.api.port) as stream:
            await stream.send_all(said) if said else None
            with trio.fail_after(5):
                while not worker.handshaking:
                    await trio.sleep(0.001)
                assert await stream.receive_some() == b""
        assert worker.handshaking == 0
        async with await trio.open_tcp_stream("127.0.0.1", mesh.api.port) as stream:
            await stream.send_all(said) if said else None
        with trio.fail_after(5):
            while worker.handshaking or len(mesh.api.telemetry.closed) < 2:
                await trio.sleep(0.01)
        assert not worker.connections


async def test_a_tls_caller_without_a_certificate_is_not_taken_for_plaintext(tmp_path: Path, one: EchoApp) -> None:
    async with open_mesh(tmp_path, one.port, api={"settings": {"mtls": "PERMISSIVE"}}) as mesh:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        tcp = await trio.open_tcp_stream("127.0.0.1", mesh.api.port)
        stream = trio.SSLStream(tcp, context, https_compatible=True)
        with pytest.raises(trio.BrokenResourceError):  # noqa: PT012 (TLS 1.3 says no after the handshake)
            await stream.send_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            await stream.receive_some()
        await trio.aclose_forcefully(stream)


# -- opaque TCP -----------------------------------------------------------------------------------------------


async def end_of(stream: trio.SocketStream) -> bytes:
    try:
        return await read_all(stream)
    except trio.BrokenResourceError:
        return b""


@pytest.mark.parametrize("mode", ["PERMISSIVE", "DISABLE"])
async def test_opaque_plaintext_is_judged_without_a_principal(nursery: trio.Nursery, tmp_path: Path, mode: str) -> None:
    port = await serve(nursery, echo)
    more = {"settings": {"protocol": "tcp", "mtls": mode}, "policy": ALLOW_ALL}
    async with open_mesh(tmp_path, port, api=more) as mesh:
        async with await trio.open_tcp_stream("127.0.0.1", mesh.api.port) as client:
            await client.send_all(b"hello")
            with trio.fail_after(5):
                assert await client.receive_some() == b"hello"
                set_mode(mesh, "STRICT")
                assert await client.receive_some() == b""
        set_mode(mesh, mode)
        mesh.allow(NEEDS_CALLER)
        async with await trio.open_tcp_stream("127.0.0.1", mesh.api.port) as client:
            await client.send_all(b"hello")
            with trio.fail_after(5):
                assert await end_of(client) == b""
