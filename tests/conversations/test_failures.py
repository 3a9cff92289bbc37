"""What callers get when something is missing, slow, forbidden or broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from proxy.http.facts import Times
from proxy.lifecycle import Caps
from proxy.net.tls import Credentials
from tests.support.apps import EchoApp, free_socket
from tests.support.client import call, open_client
from tests.support.mesh import TRUST_DOMAIN, WEB, make_context, open_mesh

GRPC = [("content-type", "application/grpc"), ("te", "trailers")]

ALLOW_READS = f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: allow-reads, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: api}}}}
  action: ALLOW
  rules:
  - from: [{{source: {{principals: ["{TRUST_DOMAIN}/ns/shop/sa/web"]}}}}]
    to: [{{operation: {{methods: [GET], paths: [/orders/*]}}}}]
"""


async def start_app(nursery: trio.Nursery, *, http2: bool = False) -> EchoApp:
    app = EchoApp(http2=http2)
    await nursery.start(app.run)
    return app


# -- policy ---------------------------------------------------------------------------------------------------


async def test_what_policy_does_not_allow_never_reaches_the_app(nursery: trio.Nursery, tmp_path: Path) -> None:
    app = await start_app(nursery)
    async with open_mesh(tmp_path, app.port, api={"policy": ALLOW_READS}) as mesh:
        allowed = await call(mesh.port, "GET", "/orders/1")
        denied = await call(mesh.port, "DELETE", "/orders/1")
        other = await call(mesh.port, "GET", "/admin")
    assert (allowed.status, denied.status, other.status) == (200, 403, 403)
    assert denied.header("x-sidewall-reason") == "no_allow_policy_matched"
    assert json.loads(denied.body)["decision"] == denied.header("x-sidewall-decision") != ""
    assert [head.path for head in app.seen] == [b"/orders/1"]


@pytest.mark.parametrize(
    "target", ["/orders/../admin", "/orders/%2e%2e/admin", "//orders/1/../../admin", "/orders/..;/admin"]
)
async def test_a_path_trick_is_judged_as_what_it_would_become(
    nursery: trio.Nursery, tmp_path: Path, target: str
) -> None:
    app = await start_app(nursery)
    async with open_mesh(tmp_path, app.port, api={"policy": ALLOW_READS}) as mesh:
        response = await call(mesh.port, "GET", target)
    assert response.status in (400, 403)
    assert app.seen == []


async def test_a_denied_grpc_call_is_trailers_only_with_status_seven(nursery: trio.Nursery, tmp_path: Path) -> None:
    app = await start_app(nursery, http2=True)
    async with open_mesh(tmp_path, app.port, api={"policy": ALLOW_READS}) as mesh:
        response = await call(mesh.port, "POST", "/shop.Stock/Get", http2=True, headers=GRPC, body=b"\0\0\0\0\0")
    assert response.status == 200
    assert response.header("grpc-status") == "7"
    assert response.complete
    assert app.seen == []


async def test_a_policy_swap_ends_what_it_no_longer_allows(nursery: trio.Nursery, tmp_path: Path) -> None:
    app = await start_app(nursery, http2=True)
    h2 = {"cluster": {"protocol": "h2"}}
    async with open_mesh(tmp_path, app.port, api=h2) as mesh, open_client(mesh.port, http2=True) as client:
        stream_id = await client.begin("POST", "/echo", [(b"content-type", b"application/grpc")], length=None, end=False)
        await client.send(stream_id, b"x", False)
        await client.wait(stream_id, head=True)
        kept = await client.begin("GET", "/slow/0.3", [], length=0, end=True)
        await trio.sleep(0.05)
        mesh.allow(ALLOW_READS.replace("/orders/*", "/slow/*"))
        cut = await client.wait(stream_id)
        still = await client.wait(kept)
    assert dict(cut.trailers)[b"grpc-status"] == b"7"
    assert dict(cut.trailers)[b"x-sidewall-reason"] == b"no_allow_policy_matched"
    assert (still.status, still.complete) == (200, True)
    assert {r.reason for r in mesh.api.records} == {"", "no_allow_policy_matched"}


async def test_without_an_svid_nothing_is_accepted(nursery: trio.Nursery, tmp_path: Path) -> None:
    app = await start_app(nursery)
    async with open_mesh(tmp_path, app.port) as mesh:
        mesh.api.worker.credentials = None
        response = await call(mesh.port, "GET", "/")
        assert response.status == 503
        assert app.seen == []
        mesh.api.worker.credentials = Credentials(make_context(mesh.ca, "spiffe://mesh.test/ns/shop/sa/api"))
        again = await call(mesh.port, "GET", "/")
    assert again.status == 200


async def test_an_upstream_with_another_identity_is_refused(nursery: trio.Nursery, tmp_path: Path) -> None:
    app = await start_app(nursery)
    web: dict[str, Any] = {"cluster": {"expect": frozenset({"spiffe://mesh.test/ns/shop/sa/other"})}}
    async with open_mesh(tmp_path, app.port, web=web) as mesh:
        response = await call(mesh.port, "GET", "/")
    assert response.status == 503
    assert response.header("x-sidewall-reason") == "upstream_identity_mismatch"
    assert app.seen == []


async def test_identity_headers_of_the_caller_never_arrive(nursery: trio.Nursery, tmp_path: Path) -> None:
    listener, port = free_socket()
    async with open_mesh(tmp_path, port) as mesh:
        got: list[bytes] = []

        async def raw_app() -> None:
            server = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
            stream = await server.accept()
            got.append(bytes(await stream.receive_some(65536)))
            await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            await stream.aclose()
            await server.aclose()

        listener.setblocking(False)
        nursery.start_soon(raw_app)
        forged = [("X-Forwarded-Client-Cert".lower(), "URI=spiffe://mesh.test/ns/shop/sa/admin")]
        response = await call(mesh.port, "GET", "/", headers=forged)
    assert response.status == 200
    lines = [line for line in got[0].lower().split(b"\r\n") if line.startswith(b"x-forwarded-client-cert")]
    assert len(lines) == 1
    assert b"uri=" + WEB.encode() in lines[0]
    assert b"admin" not in lines[0]


# -- the app --------------------------------------------------------------------------------------------------


async def test_an_app_that_is_down_is_a_503_and_its_return_is_noticed(nursery: trio.Nursery, tmp_path: Path) -> None:
    sock, port = free_socket()
    sock.close()
    async with open_mesh(tmp_path, port) as mesh:
        down = await call(mesh.port, "GET", "/")
        app = EchoApp.__new__(EchoApp)
        EchoApp.__init__(app)
        app.sock.close()
        app.sock, app.port = _listen_on(port), port
        await nursery.start(app.run)
        up = await call(mesh.port, "GET", "/")
    assert (down.status, up.status) == (503, 200)
    assert down.header("x-sidewall-reason") == "upstream_connect_failed"
    assert down.header("retry-after") == "1"


def _listen_on(port: int) -> Any:
    import socket

    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen(10)
    return sock


@pytest.mark.slow
async def test_a_slow_app_is_a_504_and_its_connection_is_closed(nursery: trio.Nursery, tmp_path: Path) -> None:
    app = await start_app(nursery)
    async with open_mesh(tmp_path, app.port, api={"settings": {"request_timeout": 0.3}}) as mesh:
        response = await call(mesh.port, "GET", "/slow/5")
        await mesh.settled()
        assert mesh.api.worker.clusters["app"].connections == 0
    assert response.status == 504
    assert response.header("x-sidewall-reason") == "upstream_timeout"


@pytest.mark.slow
async def test_a_stream_on_which_nothing_moves_ends(nursery: trio.Nursery, tmp_path: Path) -> None:
    app = await start_app(nursery, http2=True)
    async with open_mesh(tmp_path, app.port, api={"times": Times(stream_idle=0.3)}) as mesh:
        response = await call(mesh.port, "POST", "/slow/5", http2=True, headers=GRPC, body=b"")
    assert response.header("grpc-status") == "4"


async def test_the_callers_own_deadline_is_kept(nursery: trio.Nursery, tmp_path: Path) -> None:
    app = await start_app(nursery, http2=True)
    async with open_mesh(tmp_path, app.port) as mesh:
        headers = [*GRPC, ("grpc-timeout", "50m")]
        response = await call(mesh.port, "POST", "/slow/5", http2=True, headers=headers, body=b"")
        await mesh.settled()
    assert response.header("grpc-status") == "4"
    assert mesh.web.records[0].reason == "deadline_exceeded"
    assert app.resets == 1


# -- limits and loops -----------------------------------------------------------------------------------------


async def test_more_requests_than_a_peer_may_have_in_flight_are_refused(nursery: trio.Nursery, tmp_path: Path) -> None:
    app = await start_app(nursery, http2=True)
    async with (
        open_mesh(tmp_path, app.port, api={"caps": Caps(requests_per_peer=3), "cluster": {"protocol": "h2"}}) as mesh,
        open_client(mesh.port, http2=True) as client,
    ):
        ids = [await client.begin("GET", "/slow/0.3", [], length=0, end=True) for _ in range(5)]
        responses = [await client.wait(stream_id) for stream_id in ids]
        assert sorted(r.status for r in responses) == [200, 200, 200, 503, 503]
        await mesh.settled()
        assert mesh.api.worker.requests == 0


async def test_a_request_that_comes_back_to_us_is_stopped(nursery: trio.Nursery, tmp_path: Path) -> None:
    app = await start_app(nursery)
    async with open_mesh(tmp_path, app.port) as mesh:
        via = f"1.1 {mesh.api.worker.instance}"
        response = await call(mesh.port, "GET", "/", headers=[("via", via)])
    assert response.status == 508
    assert app.seen == []


async def test_a_body_over_the_limit_is_refused(nursery: trio.Nursery, tmp_path: Path) -> None:
    app = await start_app(nursery)
    async with open_mesh(tmp_path, app.port, api={"settings": {"max_body": 1000}}) as mesh:
        small = await call(mesh.port, "POST", "/echo", body=b"x" * 1000)
        large = await call(mesh.port, "POST", "/echo", body=b"x" * 1001)
        unknown = await call(mesh.port, "POST", "/x", body=b"x" * 5000, chunked=True)
    assert (small.status, large.status) == (200, 413)
    assert unknown.status == 413


# -- the end --------------------------------------------------------------------------------------------------


async def test_draining_lets_open_exchanges_finish_and_moves_the_caller(nursery: trio.Nursery, tmp_path: Path) -> None:
    app = await start_app(nursery)
    async with open_mesh(tmp_path, app.port) as mesh, open_client(mesh.port, http2=True) as client:
        stream_id = await client.begin("GET", "/slow/0.2", [], length=0, end=True)
        await trio.sleep(0.05)
        cut = await mesh.web.worker.drain(5.0)
        response = await client.wait(stream_id)
    assert cut == 0
    assert (response.status, response.complete, client.goaway) == (200, True, True)


async def test_a_drain_that_takes_too_long_cuts_and_says_so(nursery: trio.Nursery, tmp_path: Path) -> None:
    app = await start_app(nursery)
    async with open_mesh(tmp_path, app.port) as mesh, open_client(mesh.port) as client:
        stream_id = await client.begin("GET", "/slow/30", [], length=0, end=True)
        await trio.sleep(0.05)
        cut = await mesh.web.worker.drain(0.1)
        response = await client.wait(stream_id)
    assert cut == 1
    assert not response.complete
    assert mesh.web.records[0].reason == "draining"


async def test_a_rotated_svid_is_used_for_new_connections_and_leaves_old_ones_alone(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    app = await start_app(nursery)
    async with open_mesh(tmp_path, app.port) as mesh, open_client(mesh.port, http2=True) as client:
        await client.request("GET", "/1")
        before = set(mesh.api.worker.connections)
        mesh.web.worker.credentials = Credentials(make_context(mesh.ca, WEB))
        mesh.api.worker.credentials = Credentials(make_context(mesh.ca, "spiffe://mesh.test/ns/shop/sa/api"))
        second = await client.request("GET", "/2")
    assert second.status == 200
    assert before == {c for c in before if c.requests == 2}


@pytest.mark.slow
async def test_no_connection_outlives_the_certificate_that_opened_it(nursery: trio.Nursery, tmp_path: Path) -> None:
    app = await start_app(nursery)
    async with open_mesh(tmp_path, app.port) as mesh:
        mesh.web.worker.credentials = Credentials(make_context(mesh.ca, WEB, ttl=60))
        await call(mesh.port, "GET", "/")
        (connection,) = mesh.api.worker.connections
        left = connection.cut_at - mesh.api.worker.poller.now
        assert 0 < left <= 61
        connection.cut_at = mesh.api.worker.poller.now - 1  # as if the minute had passed
        with trio.fail_after(3):
            while mesh.api.worker.connections:
                await trio.sleep(0.05)
