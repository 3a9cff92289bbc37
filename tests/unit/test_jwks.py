from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from config.resources.request_authentication import JwtRule
from proxy.jwks import Jwks, Source
from proxy.net.fetch import FetchFailed
from tests.support.tokens import ISSUER, jwk, key_set

URI = "https://id.example.com/keys"
RULE = JwtRule(ISSUER, jwks_uri=URI)
DISCOVERY = f"{ISSUER}/.well-known/openid-configuration"


class Web:
    """Pages by address; a page that is not there cannot be fetched."""

    def __init__(self, **pages: str) -> None:
        self.pages: dict[str, str] = dict(pages)
        self.asked: list[str] = []
        self.times: list[float] = []

    async def __call__(self, uri: str, *, timeout: float, most: int) -> bytes:
        self.asked.append(uri)
        self.times.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if uri not in self.pages:
            raise FetchFailed("nobody there")
        return self.pages[uri].encode()


class Bench:
    def __init__(self) -> None:
        self.web = Web()
        self.web.pages[URI] = key_set(jwk("ES256"))
        self.changes = 0
        self.jwks = Jwks(random.Random(1), self._changed, fetch=self.web)

    def _changed(self) -> None:
        self.changes += 1

    async def use(self, *rules: JwtRule, **more: Any) -> None:
        self.jwks.use(rules, **more)
        await self.jwks.wait_tried()

    def kids(self, rule: JwtRule = RULE) -> list[str] | None:
        found = self.jwks.keys_of(rule)
        return [key.kid for key in found.keys] if found is not None else None

    def source(self) -> Source:
        (source,) = self.jwks.sources.values()
        return source


@asynccontextmanager
async def running() -> AsyncIterator[Bench]:
    async with trio.open_nursery() as nursery:
        made = Bench()
        await nursery.start(made.jwks.run)
        yield made
        nursery.cancel_scope.cancel()


async def wait_for(condition: Callable[[], bool], seconds: float = 1000.0) -> None:
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.5)


async def test_keys_are_fetched_at_once_and_again_every_five_minutes(autojump_clock: Any) -> None:
    async with running() as bench:
        assert bench.kids() is None
        await bench.use(RULE)
        assert bench.kids() == ["k"]
        await trio.sleep(1000)
        gaps = [b - a for a, b in zip(bench.web.times, bench.web.times[1:], strict=False)]
        assert len(gaps) == 3
        assert all(270 <= gap <= 330 for gap in gaps)
        assert len(set(gaps)) == 3
        assert bench.changes == 1


async def test_the_last_good_keys_stay_while_the_issuer_is_away(autojump_clock: Any) -> None:
    async with running() as bench:
        await bench.use(RULE)
        del bench.web.pages[URI]
        await trio.sleep(80_000)
        assert bench.kids() == ["k"]
        (status,) = bench.jwks.status()
        assert status["problem"] == "nobody there"
        assert isinstance(status["age"], float)
        assert status["age"] > 79_000
        gaps = [b - a for a, b in zip(bench.web.times, bench.web.times[1:], strict=False)]
        assert max(gaps[-20:]) <= 66
        bench.web.pages[URI] = key_set(jwk("ES256", kid="new"))
        await wait_for(lambda: bench.kids() == ["new"], 70)
        assert bench.source().problem == ""
        assert bench.changes == 2


async def test_an_issuer_that_was_never_there_has_no_keys_until_it_comes(autojump_clock: Any) -> None:
    async with running() as bench:
        page = bench.web.pages.pop(URI)
        await bench.use(RULE)
        assert bench.kids() is None
        bench.web.pages[URI] = page
        await wait_for(lambda: bench.kids() == ["k"], 5)


@pytest.mark.parametrize("page", ["", "{}", '{"keys": []}', '{"keys": [{"kty": "oct", "k": "AAAA"}]}', "<html>"])
async def test_an_answer_without_keys_does_not_replace_good_ones(autojump_clock: Any, page: str) -> None:
    async with running() as bench:
        await bench.use(RULE)
        bench.web.pages[URI] = page
        await trio.sleep(400)
        assert bench.kids() == ["k"]
        assert bench.source().problem


async def test_an_unknown_key_is_asked_for_at_most_once_in_ten_seconds(autojump_clock: Any) -> None:
    async with running() as bench:
        await bench.use(RULE)
        await trio.sleep(20)
        bench.web.pages[URI] = key_set(jwk("ES256", kid="new"))
        bench.jwks.missing(RULE)
        await wait_for(lambda: bench.kids() == ["new"], 1)
        for _ in range(200):
            bench.jwks.missing(RULE)
            await trio.sleep(0.1)
        assert len(bench.web.asked) <= 2 + 2
        assert bench.changes == 2


async def test_rules_share_places_and_a_reload_keeps_them(autojump_clock: Any) -> None:
    async with running() as bench:
        other = JwtRule("other", ("a",), jwks_uri=URI)
        await bench.use(RULE, other)
        assert len(bench.web.asked) == 1
        await bench.use(other)
        assert bench.kids(other) == ["k"]
        assert len(bench.web.asked) == 1
        await bench.use()
        assert bench.kids(other) is None
        await trio.sleep(1000)
        assert len(bench.web.asked) == 1


async def test_keys_in_the_document_need_no_fetch(autojump_clock: Any) -> None:
    async with running() as bench:
        rule = JwtRule("me", jwks=key_set(jwk("EdDSA", kid="in")))
        broken = JwtRule("me", jwks='{"keys": [{}]}')
        await bench.use(rule, broken)
        bench.jwks.missing(rule)
        assert bench.kids(rule) == ["in"]
        assert bench.kids(broken) is None
        assert bench.web.asked == []


# -- discovery ------------------------------------------------------------------------------------------------


async def test_an_issuer_alone_is_asked_where_its_keys_are(autojump_clock: Any) -> None:
    async with running() as bench:
        rule = JwtRule(ISSUER)
        bench.web.pages[DISCOVERY] = f'{{"issuer": "{ISSUER}", "jwks_uri": "{URI}"}}'
        await bench.use(rule)
        assert bench.kids(rule) == ["k"]
        assert bench.web.asked == [DISCOVERY, URI]


@pytest.mark.parametrize(
    "page",
    [
        "{",
        "[]",
        f'{{"jwks_uri": "{URI}"}}',
        f'{{"issuer": "https://evil.example", "jwks_uri": "{URI}"}}',
        f'{{"issuer": "{ISSUER}"}}',
        f'{{"issuer": "{ISSUER}", "jwks_uri": 5}}',
        f'{{"issuer": "{ISSUER}", "jwks_uri": "file:///etc/passwd"}}',
        f'{{"issuer": "{ISSUER}", "jwks_uri": "http://id.example.com/keys"}}',
    ],
)
async def test_a_discovery_document_that_cannot_be_trusted_gives_no_keys(autojump_clock: Any, page: str) -> None:
    async with running() as bench:
        rule = JwtRule(ISSUER)
        bench.web.pages |= {DISCOVERY: page, "http://id.example.com/keys": key_set(jwk("ES256"))}
        await bench.use(rule)
        assert bench.kids(rule) is None
        assert bench.web.asked == [DISCOVERY]


async def test_plain_http_is_asked_on_this_machine_only_unless_allowed(autojump_clock: Any) -> None:
    async with running() as bench:
        far, near = (
            JwtRule("", jwks_uri="http://id.example.com/keys"),
            JwtRule("", jwks_uri="http://127.0.0.1:1/keys"),
        )
        bench.web.pages |= {far.jwks_uri: key_set(jwk("ES256")), near.jwks_uri: key_set(jwk("ES256"))}
        await bench.use(far, near)
        assert (bench.kids(far), bench.kids(near)) == (None, ["k"])
        assert bench.web.asked == [near.jwks_uri]
        await bench.use(unprotected=True)
        await bench.use(far, unprotected=True)
        assert bench.kids(far) == ["k"]
