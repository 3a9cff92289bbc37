"""Every fact that a policy can ask for, as the inbound side finds it in real connections."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from proxy.wire.limits import WireLimits
from tests.conversations.test_tcp import TCP, echo, read_all, serve
from tests.support.apps import EchoApp
from tests.support.client import call
from tests.support.mesh import WEB, Mesh, make_context, open_mesh
from tests.support.raw import tls_client

Pair = tuple[bool, bool]

HEAD = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n"


def policy(rule: str, more: str = "") -> str:
    return f"{HEAD}spec: {{{more}rules: [{rule}]}}\n"


def when(key: str, values: str) -> str:
    return policy(f"{{when: [{{key: '{key}', values: {values}}}]}}")


@pytest.mark.parametrize(
    ("text", "headers", "status"),
    [
        (when("request.headers[X-Role]", "[admin]"), [("x-role", "admin")], 200),
        (when("request.headers[X-Role]", "[admin]"), [("x-role", "guest"), ("x-role", "admin")], 200),
        (when("request.headers[X-Role]", "[admin]"), [("x-role", "guest,admin")], 403),
        (when("request.headers[X-Role]", "[admin]"), [], 403),
        (when("request.headers[:path]", "['/a?x=*']"), [], 200),
        (when("request.headers[:path]", "['/a']"), [], 403),
        (when("request.headers[:authority]", "[api.shop]"), [], 200),
        (when("request.headers[host]", "[web.shop]"), [], 403),
        (when("remote.ip", "[10.1.2.0/24]"), [("x-forwarded-for", "1.1.1.1, 10.1.2.3")], 200),
        (when("remote.ip", "[10.1.2.0/24]"), [], 403),
        (when("remote.ip", "[127.0.0.1]"), [], 200),
        (when("source.ip", "[127.0.0.0/8]"), [("x-forwarded-for", "10.1.2.3")], 200),
        (when("destination.ip", "[127.0.0.1]"), [], 200),
        (when("destination.ip", "[10.0.0.0/8]"), [], 403),
        (when("source.trustDomain", "[mesh.test]"), [], 200),
        (when("source.serviceAccount", "[web]"), [], 200),
        (when("request.auth.claims[a]", "['*']"), [], 403),
        (policy("{from: [{source: {notRequestPrincipals: ['*']}}]}"), [], 200),
        (policy("{to: [{operation: {paths: ['/{*}']}}]}"), [], 200),
        (policy("{}", "targetRefs: [{kind: HTTPRoute, name: in}], "), [], 200),
        (policy("{}", "targetRefs: [{kind: HTTPRoute, name: other}], "), [], 403),
    ],
)
async def test_a_policy_finds_the_facts_it_asks_for(
    mesh: Mesh, pair: Pair, text: str, headers: list[tuple[str, str]], status: int
) -> None:
    mesh.allow(text)
    for _ in range(2):  # also when something was remembered
        response = await call(mesh.port, "GET", "/a?x=1", http2=pair[0], headers=headers)
        assert response.status == status
    await mesh.settled()
    record = mesh.api.records[-1]
    assert record.decision is not None
    assert record.decision.reason != "authorization_failed"
    assert bool(record.decision_id) is (status == 403)


async def test_an_audit_policy_is_noted_in_the_decision_and_changes_nothing(mesh: Mesh, pair: Pair) -> None:
    allow = policy("{}").replace("name: p", "name: allow")
    mesh.allow(f"{allow}---\n{policy('{}', 'action: AUDIT, ')}")
    assert (await call(mesh.port, "GET", "/", http2=pair[0])).status == 200
    await mesh.settled()
    decision = mesh.api.records[-1].decision
    assert decision is not None
    assert [str(note) for note in decision.notes] == ["audit shop/p#0"]


@pytest.mark.parametrize(
    ("normalization", "raw", "target"),
    [
        ("NONE", "/a/b#c?d", "/a/b"),
        ("BASE", "/x/..;p/a\\%62?q=//#f", "/a/b?q=//"),
        ("MERGE_SLASHES", "/x/..//a\\/b?q=//", "/a/b?q=//"),
        ("DECODE_AND_MERGE_SLASHES", "/x/../a//b%2Fc?q=//", "/a/b/c?q=//"),
    ],
)
async def test_the_app_gets_the_path_that_policy_saw(
    tmp_path: Path, app: EchoApp, pair: Pair, normalization: str, raw: str, target: str
) -> None:
    limits = WireLimits(path_normalization=normalization)
    text = policy(f"{{to: [{{operation: {{paths: ['{target.partition('?')[0]}']}}}}]}}")
    api = {"limits": limits, "policy": text, "cluster": {"protocol": "h2" if pair[1] else "http1"}}
    async with open_mesh(tmp_path, app.port, api=api, web={"settings": {"limits": limits}}) as mesh:
        response = await call(mesh.port, "GET", raw, http2=pair[0])
        assert response.status == 200
        assert f'"target": "{target}"'.encode() in response.body


async def ping(port: int) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as client:
        try:
            await client.send_all(b"ping")
            await client.send_eof()
            return await read_all(client)
        except trio.BrokenResourceError:
            return b""


@pytest.mark.parametrize(("values", "status"), [("[api.shop]", b"200"), ("['*']", b"200"), ("[web.shop]", b"403")])
async def test_the_server_name_is_the_one_that_the_caller_asked_for(mesh: Mesh, tmp_path: Path, values: str, status: bytes) -> None:
    mesh.allow(when("connection.sni", values))
    context = tls_client(make_context(mesh.ca, WEB), tmp_path / "web")
    plain = await trio.open_tcp_stream("127.0.0.1", mesh.api.port)
    stream = trio.SSLStream(plain, context, server_hostname="API.shop", https_compatible=True)
    with trio.fail_after(5):
        async with stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: api.shop\r\n\r\n")
            assert (await stream.receive_some(12))[9:] == status


@pytest.mark.parametrize(
    ("text", "admitted"),
    [
        (when("source.ip", "[127.0.0.1]"), True),
        (when("source.ip", "[10.0.0.0/8]"), False),
        (when("destination.ip", "[127.0.0.1]"), True),
        (when("remote.ip", "[127.0.0.1]"), True),
        (when("request.headers[x]", "[y]"), False),
        (policy("{}", "targetRefs: [{kind: HTTPRoute, name: in}], "), False),
    ],
)
async def test_opaque_tcp_has_addresses_and_no_headers(
    nursery: trio.Nursery, tmp_path: Path, text: str, admitted: bool
) -> None:
    port = await serve(nursery, echo)
    async with open_mesh(tmp_path, port, api={**TCP, "policy": text}, web=TCP) as mesh:
        with trio.fail_after(5):
            answer = await ping(mesh.port)
    nursery.cancel_scope.cancel()
    assert answer == (b"ping" if admitted else b"")
