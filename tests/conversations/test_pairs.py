"""One story a test, through two sidecars, for every pair of versions."""

from __future__ import annotations

import json

import pytest
import trio

from tests.support.apps import EchoApp
from tests.support.client import Response, call, open_client
from tests.support.mesh import API, WEB, Mesh

Pair = tuple[bool, bool]


async def test_a_get_reaches_the_app_with_our_headers_and_comes_back(mesh: Mesh, app: EchoApp, pair: Pair) -> None:
    response = await call(mesh.port, "GET", "/hello?a=b", http2=pair[0], headers=[("x-own", "1")])
    assert response.status == 200
    seen = json.loads(response.body)
    assert seen["target"] == "/hello?a=b"
    assert seen["authority"] == "api.shop"
    names = dict(seen["headers"])
    assert names["x-own"] == "1"
    assert names["x-forwarded-proto"] == "https"
    assert names["traceparent"].startswith("00-")
    assert response.header("x-request-id") == names["x-request-id"]


async def test_one_trace_goes_through_both_sidecars(mesh: Mesh, pair: Pair) -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    await call(mesh.port, "GET", "/", http2=pair[0], headers=[("traceparent", parent)])
    await mesh.settled()
    (out,), (into,) = mesh.web.records, mesh.api.records
    assert out.trace is not None
    assert into.trace is not None
    assert out.trace.trace_id == into.trace.trace_id == b"4bf92f3577b34da6a3ce929d0e0e4736"
    assert into.trace.parent_id == out.trace.client_span_id


async def test_the_record_says_who_called_and_who_answered(mesh: Mesh, pair: Pair) -> None:
    await call(mesh.port, "GET", "/x", http2=pair[0])
    await mesh.settled()
    (out,), (into,) = mesh.web.records, mesh.api.records
    assert into.peer is not None
    assert into.peer.uri == WEB
    assert out.upstream_peer is not None
    assert out.upstream_peer.uri == API
    assert (into.status, into.reason, into.tls_version) == (200, "", "1.3")
    assert into.decision is not None
    assert into.decision.policy == "shop/allow-all"


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_is_echoed_byte_for_byte(mesh: Mesh, pair: Pair, chunked: bool) -> None:
    body = bytes(range(256)) * 1000
    response = await call(mesh.port, "POST", "/echo", http2=pair[0], body=body, chunked=chunked)
    assert response.status == 200
    assert response.complete
    assert response.body == body


async def test_an_empty_body_of_unknown_length(mesh: Mesh, pair: Pair) -> None:
    response = await call(mesh.port, "POST", "/echo", http2=pair[0], body=b"", chunked=True)
    assert (response.status, response.complete, response.body) == (200, True, b"")


async def test_head_has_no_body_and_the_connection_goes_on(mesh: Mesh, pair: Pair) -> None:
    async with open_client(mesh.port, http2=pair[0]) as client:
        first = await client.request("HEAD", "/hello")
        second = await client.request("GET", "/bytes/10")
    assert (first.status, first.body) == (200, b"")
    assert second.body == b"x" * 10


@pytest.mark.parametrize("status", [204, 304, 404, 500])
async def test_a_status_without_body_passes(mesh: Mesh, pair: Pair, status: int) -> None:
    async with open_client(mesh.port, http2=pair[0]) as client:
        first = await client.request("GET", f"/status/{status}")
        second = await client.request("GET", "/bytes/3")
    assert (first.status, first.complete, first.body) == (status, True, b"")
    assert second.body == b"xxx"


async def test_trailers_pass_to_the_caller(mesh: Mesh, pair: Pair) -> None:
    response = await call(mesh.port, "GET", "/trailers", http2=pair[0], headers=[("te", "trailers")])
    assert response.body == b"counted"
    assert (b"x-sum", b"7") in response.trailers


async def test_an_app_that_closes_without_an_answer_is_a_503(mesh: Mesh, pair: Pair) -> None:
    response = await call(mesh.port, "GET", "/close", http2=pair[0])
    assert response.status == 503
    await mesh.settled()
    assert mesh.api.records[0].reason in ("upstream_closed", "upstream_reset")
    assert response.header("x-sidewall-reason") == mesh.api.records[0].reason


async def test_a_truncated_answer_never_looks_complete(mesh: Mesh, pair: Pair) -> None:
    response = await call(mesh.port, "GET", "/half", http2=pair[0])
    assert response.status == 200
    assert not response.complete


async def test_an_early_answer_is_delivered(mesh: Mesh, pair: Pair) -> None:
    async with open_client(mesh.port, http2=pair[0]) as client:
        stream_id = await client.begin("POST", "/early", [], length=1_000_000, end=False)
        response = await client.wait(stream_id)
    assert (response.status, bytes(response.body)) == (200, b"early")
    await mesh.settled()


async def test_a_caller_that_leaves_ends_the_exchange_at_the_app(mesh: Mesh, app: EchoApp, pair: Pair) -> None:
    async with open_client(mesh.port, http2=pair[0]) as client:
        stream_id = await client.begin("POST", "/echo", [], length=None, end=False)
        await client.send(stream_id, b"some", False)
        await client.wait(stream_id, head=True)
    await mesh.settled()
    with trio.fail_after(5):
        while not (app.aborted or app.resets):
            await trio.sleep(0.01)
    assert mesh.web.records[0].reason in ("downstream_closed", "downstream_reset")


async def many(port: int, count: int, at_once: int, http2: bool, target: str, body: bytes | None) -> list[Response]:
    """``count`` exchanges over ``at_once`` workers; HTTP/1.1 on as many connections, HTTP/2 on two."""
    responses: list[Response] = []
    numbers = iter(range(count))

    async def work(client: object) -> None:
        for _ in numbers:
            method = "GET" if body is None else "POST"
            responses.append(await client.request(method, target, body=body))  # type: ignore[attr-defined]

    async def reconnect() -> None:
        # An answer that begins before its request has ended makes HTTP/1.1 connections end (S-13).
        for _ in numbers:
            responses.append(await call(port, "POST", target, body=body))

    async def connect(workers: int) -> None:
        if body is not None and not http2:
            await reconnect()
            return
        async with open_client(port, http2=http2) as client, trio.open_nursery() as inner:
            for _ in range(workers):
                inner.start_soon(work, client)

    async with trio.open_nursery() as nursery:
        for _ in range(2 if http2 else at_once):
            nursery.start_soon(connect, at_once // 2 if http2 else 1)
    return responses


@pytest.mark.slow
async def test_two_thousand_exchanges_at_fifty_at_once_lose_nothing(mesh: Mesh, pair: Pair) -> None:
    responses = await many(mesh.port, 2000, 50, pair[0], "/bytes/100", None)
    assert len(responses) == 2000
    assert all(r.status == 200 and r.complete and r.body == b"x" * 100 for r in responses)
    await mesh.settled()
    assert len(mesh.web.records) == len(mesh.api.records) == 2000
    assert not any(r.reason for r in mesh.api.records)


@pytest.mark.slow
async def test_fifty_mebibytes_both_ways_at_twenty_at_once(mesh: Mesh, pair: Pair) -> None:
    body = bytes(range(256)) * 4096
    responses = await many(mesh.port, 50, 20, pair[0], "/echo", body)
    assert len(responses) == 50
    assert all(r.status == 200 and r.complete and r.body == body for r in responses)
    await mesh.settled()
    assert not any(r.reason for r in mesh.api.records + mesh.web.records)
