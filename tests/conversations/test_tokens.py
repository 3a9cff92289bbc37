"""Tokens through two sidecars: what policy sees, what the app sees, and what ends when keys or rules change."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import trio

from config.resources.request_authentication import ClaimHeader, HeaderPlace, JwtRule
from proxy.lifecycle import Runtime
from proxy.policy.jwt import Tokens
from proxy.policy.jwt_keys import KeySet, read_keys
from proxy.wire.events import Headers
from tests.support.apps import EchoApp
from tests.support.client import Response, call, open_client
from tests.support.mesh import Mesh
from tests.support.policies import ALLOW_ALL, compile_text
from tests.support.tokens import ISSUER, jwk, key_set, token

Pair = tuple[bool, bool]

HEAD = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n"
NEEDS_TOKEN = f"{HEAD}spec: {{rules: [{{from: [{{source: {{requestPrincipals: ['{ISSUER}/user']}}}}]}}]}}\n"


class Keys:
    def __init__(self) -> None:
        self.set = read_keys(key_set(jwk("ES256")).encode())

    def keys_of(self, rule: JwtRule) -> KeySet | None:
        return self.set

    def missing(self, rule: JwtRule) -> None:
        pass


def use(mesh: Mesh, policy: str, *rules: JwtRule, keys: Keys | None = None) -> Keys:
    keys = keys or Keys()
    generation = mesh.api.worker.runtime.generation + 1
    mesh.api.worker.swap(Runtime(generation, compile_text(policy), {"in": Tokens(rules, keys)} if rules else {}))
    return keys


def good(**claims: Any) -> str:
    return token(claims, now=time.time())


def bearer(text: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {text}")]


def seen(response: Response) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(response.body)
    return found


RULE = JwtRule(ISSUER)


async def test_policy_asks_for_the_claims_of_an_accepted_token(mesh: Mesh, pair: Pair) -> None:
    use(mesh, NEEDS_TOKEN, RULE)
    for headers, status in (
        (bearer(good()), 200),
        (bearer(good(sub="other")), 403),
        ([], 403),
        (bearer("junk"), 401),
        (bearer(token(now=1000.0)), 401),
    ):
        assert (await call(mesh.port, "GET", "/a", http2=pair[0], headers=headers)).status == status


async def test_without_rules_no_token_is_looked_at(mesh: Mesh, pair: Pair) -> None:
    use(mesh, ALLOW_ALL)
    response = await call(mesh.port, "GET", "/a", http2=pair[0], headers=bearer("junk"))
    assert ["authorization", "Bearer junk"] in seen(response)["headers"]
    use(mesh, NEEDS_TOKEN)
    assert (await call(mesh.port, "GET", "/a", http2=pair[0], headers=bearer(good()))).status == 403


async def test_a_bad_token_is_answered_with_a_challenge_and_nothing_else(mesh: Mesh, pair: Pair) -> None:
    use(mesh, ALLOW_ALL, RULE)
    response = await call(mesh.port, "GET", "/a", http2=pair[0], headers=bearer(good(exp=5)))
    assert response.status == 401
    assert response.header("www-authenticate") == 'Bearer error="invalid_token"'
    assert response.header("x-sidewall-reason") == "token_invalid"
    assert b"expired" not in response.body
    await mesh.settled()
    record = mesh.api.records[-1]
    assert (record.status, record.reason, record.details, record.flags) == (401, "token_invalid", "token: expired", "JWT")


async def test_a_grpc_call_with_a_bad_token_ends_with_status_16(mesh: Mesh, pair: Pair) -> None:
    if not pair[0]:
        pytest.skip("gRPC is HTTP/2")
    use(mesh, ALLOW_ALL, RULE)
    fields = [("content-type", "application/grpc"), ("te", "trailers"), *bearer("junk")]
    response = await call(mesh.port, "POST", "/s/m", http2=True, headers=fields)
    assert response.header("grpc-status") == "16"


async def test_the_app_gets_neither_the_token_nor_what_the_caller_made_up(mesh: Mesh, pair: Pair) -> None:
    rule = JwtRule(ISSUER, claim_headers=(ClaimHeader("x-user", "sub"),), payload_header="x-payload")
    use(mesh, ALLOW_ALL, rule)
    text = good()
    forged = [("x-user", "root"), ("x-payload", "e30")]
    target = f"/a?x=1&access_token={text}&y=2"
    found = seen(await call(mesh.port, "GET", target, http2=pair[0], headers=[*forged, *bearer(text)]))
    assert found["target"] == "/a?x=1&y=2"
    headers = [(name, value) for name, value in found["headers"] if name in ("x-user", "x-payload", "authorization")]
    assert sorted(headers) == [("x-payload", text.split(".")[1]), ("x-user", "user")]
    found = seen(await call(mesh.port, "GET", "/a", http2=pair[0], headers=forged))
    assert not {"x-user", "x-payload"} & {name for name, _ in found["headers"]}


async def test_no_trailer_says_what_only_a_token_may_say(mesh: Mesh, app: EchoApp, pair: Pair) -> None:
    use(mesh, ALLOW_ALL, JwtRule(ISSUER, claim_headers=(ClaimHeader("x-user", "sub"),)))
    async with open_client(mesh.port, http2=pair[0]) as client:
        trailers: Headers = [(b"x-user", b"root"), (b"x-user-2", b"b")]
        response = await client.request("POST", "/a", body=b"x", chunked=True, trailers=trailers)
    assert response.status == 200
    assert app.request_trailers == [(b"x-user-2", b"b")]


async def test_policy_sees_the_headers_that_claims_became_and_no_token(mesh: Mesh, pair: Pair) -> None:
    rule = JwtRule(ISSUER, claim_headers=(ClaimHeader("x-user", "sub"),))
    when = "{key: 'request.headers[x-user]', values: [user]}, {key: 'request.headers[:path]', values: ['/a?x=1']}"
    hidden = "{key: 'request.headers[authorization]', notValues: ['*']}"
    use(mesh, f"{HEAD}spec: {{rules: [{{when: [{when}, {hidden}]}}]}}\n", rule)
    target = f"/a?x=1&access_token={good()}"
    assert (await call(mesh.port, "GET", target, http2=pair[0], headers=bearer(good()))).status == 200
    assert (await call(mesh.port, "GET", "/a?x=1", http2=pair[0], headers=[("x-user", "user")])).status == 403


async def test_the_token_stays_where_the_app_is_to_have_it(mesh: Mesh, pair: Pair) -> None:
    use(mesh, ALLOW_ALL, JwtRule(ISSUER, forward_token=True, from_headers=(HeaderPlace("x-jwt"),)))
    text = good()
    found = seen(await call(mesh.port, "GET", "/a", http2=pair[0], headers=[("x-jwt", text)]))
    assert ["x-jwt", text] in found["headers"]


async def test_a_key_that_is_taken_back_ends_what_its_tokens_began(mesh: Mesh, pair: Pair) -> None:
    keys = use(mesh, NEEDS_TOKEN, RULE)
    async with open_client(mesh.port, http2=pair[0]) as client:
        fields: Headers = [(name.encode(), value.encode()) for name, value in bearer(good())]
        stream = await client.begin("POST", "/echo", fields, length=None, end=False)
        await client.send(stream, b"x", False)
        with trio.fail_after(5):
            await client.wait(stream, head=True)
        keys.set = read_keys(key_set(jwk("ES256"), jwk("EdDSA", kid="new")).encode())
        mesh.api.worker.judge_again()
        await client.send(stream, b"y", False)
        with trio.fail_after(5):
            while len(client.responses[stream].body) < 2:
                await client._changed.wait()
        keys.set = read_keys(key_set(jwk("ES256", number=1)).encode())
        mesh.api.worker.judge_again()
        with trio.fail_after(5):
            response = await client.wait(stream)
        assert not response.complete
    await mesh.settled()
    assert mesh.api.records[-1].reason == "token_invalid"


async def test_rules_that_come_later_judge_what_is_open_by_what_it_came_with(mesh: Mesh, pair: Pair) -> None:
    for text, ends in ((good(), False), ("junk", True)):
        async with open_client(mesh.port, http2=pair[0]) as client:
            use(mesh, ALLOW_ALL)
            fields: Headers = [(name.encode(), value.encode()) for name, value in bearer(text)]
            stream = await client.begin("POST", "/echo", fields, length=None, end=False)
            await client.send(stream, b"x", False)
            with trio.fail_after(5):
                await client.wait(stream, head=True)
            use(mesh, NEEDS_TOKEN, RULE)
            if not ends:
                await client.send(stream, b"y", True)
            with trio.fail_after(5):
                assert (await client.wait(stream)).complete is not ends


async def test_no_token_is_in_any_record(mesh: Mesh, pair: Pair) -> None:
    use(mesh, NEEDS_TOKEN, RULE)
    texts = [good(), good(sub="other"), good() + "x"]
    for text in texts:
        await call(mesh.port, "GET", f"/a?access_token={text}", http2=pair[0])
        await call(mesh.port, "GET", "/a", http2=pair[0], headers=bearer(text))
    await mesh.settled()
    for record in mesh.api.records:
        names = [name for name in dir(record) if not name.startswith("_")]  # compiled classes have no __slots__
        shown = " ".join(repr(getattr(record, name)) for name in names)
        assert not any(part in shown for text in texts for part in text.split(".") if len(part) > 20)
