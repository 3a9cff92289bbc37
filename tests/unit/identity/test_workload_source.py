"""Our identity from another's Workload API: what is taken up, what is refused, and how it comes back."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding

from config.live import Live
from identity.protos import workload
from identity.rpc import Call, Caller, RpcError, Status
from identity.spiffe import SpiffeId
from identity.svid import X509Context
from identity.workload_api import SERVICE, WorkloadApi, WorkloadBundle
from identity.workload_source import WorkloadSource, split_certificates
from tests.support.issuing import IssuingSource, validate
from tests.unit.identity.test_workload_api import Process

WEB, API = "spiffe://mesh.test/web", "spiffe://mesh.test/api"


class Agent:
    """A Workload API in the same process. ``refuse``: raised at the next connects; ``change``: what it says instead."""

    def __init__(self, source: IssuingSource) -> None:
        self.source = source
        self.refuse: list[Exception] = []
        self.change: Callable[[Any], None] = lambda response: None
        self.connects = 0
        self.scope = trio.CancelScope()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AsyncIterator[bytes]]:
        self.connects += 1
        await trio.lowlevel.checkpoint()
        if self.refuse:
            raise self.refuse.pop(0)
        yield self._messages()

    async def _messages(self) -> AsyncIterator[bytes]:
        handler: Any = WorkloadApi(self.source, validate).methods()[SERVICE + "FetchX509SVID"].handler
        call = Call("", Caller(local=Process()), {"workload.spiffe.io": "true"})
        replies = handler(call, b"")
        try:
            with trio.CancelScope() as self.scope:
                while True:
                    response = workload.X509SVIDResponse.FromString(await anext(replies))
                    self.change(response)
                    yield response.SerializeToString()
            raise RpcError(Status.UNAVAILABLE, "connection lost")
        finally:
            await replies.aclose()


class Following:
    """A source that runs."""

    def __init__(self, agent: Agent, **more: Any) -> None:
        self.live: Live[X509Context | None] = Live(None)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.wall = datetime.now(UTC).timestamp()
        self.source = WorkloadSource(
            agent.connect,
            "unix:/agent.sock",
            on_event=lambda name, facts: self.events.append((name, dict(facts))),
            wall=lambda: self.wall,
            rng=random.Random(1),
            **more,
        )

    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    async def next(self, seen: int) -> X509Context:
        with trio.fail_after(100):
            await self.live.wait_change(seen)
        assert self.live.value is not None
        return self.live.value


@pytest.fixture
def issuing() -> IssuingSource:
    return IssuingSource("mesh.test", "/web", "/api")


@pytest.fixture
def agent(issuing: IssuingSource) -> Agent:
    return Agent(issuing)


@asynccontextmanager
async def follow(agent: Agent, **more: Any) -> AsyncIterator[Following]:
    following = Following(agent, **more)
    async with trio.open_nursery() as nursery:
        await nursery.start(following.source.run, following.live)
        yield following
        nursery.cancel_scope.cancel()


async def test_the_default_svid_is_taken_with_every_bundle(
    issuing: IssuingSource, agent: Agent, autojump_clock: trio.testing.MockClock
) -> None:
    other = IssuingSource("other.test", "/x")
    issuing.federated["other.test"] = WorkloadBundle(other.bundle.authorities)
    async with follow(agent) as following:
        context = following.live.value
        assert context is not None
        assert str(context.id) == WEB
        assert context.svid.chain == issuing.svid(issuing.ids[0]).chain
        assert dict(context.bundles) == {"mesh.test": issuing.bundle, "other.test": other.bundle}
        assert following.names() == ["identity_updated"]


@pytest.mark.parametrize(("more", "expected"), [({"spiffe_id": SpiffeId.parse(API)}, API), ({"hint": "x"}, API)])
async def test_another_svid_is_taken_when_it_is_configured(
    issuing: IssuingSource, agent: Agent, more: dict[str, Any], expected: str, autojump_clock: trio.testing.MockClock
) -> None:
    issuing.hints["/api"] = "x"
    async with follow(agent, **more) as following:
        assert following.live.value is not None
        assert str(following.live.value.id) == expected


async def test_every_rotation_is_followed_without_a_new_stream(
    issuing: IssuingSource, agent: Agent, autojump_clock: trio.testing.MockClock
) -> None:
    async with follow(agent) as following:
        for rotate in (issuing.new_leafs, issuing.new_issuing, issuing.new_root, issuing.drop_old_roots):
            seen = following.live.generation
            rotate()
            context = await following.next(seen)
            assert context.svid.chain == issuing.svid(issuing.ids[0]).chain
            assert context.bundle == issuing.bundle
        assert agent.connects == 1


async def test_a_lost_stream_is_opened_again_and_what_is_the_same_is_not_published(
    issuing: IssuingSource, agent: Agent, autojump_clock: trio.testing.MockClock
) -> None:
    async with follow(agent) as following:
        agent.scope.cancel()
        await trio.sleep(5)
        assert agent.connects == 2
        assert following.live.generation == 1
        assert following.names() == ["identity_updated", "identity_refused"]
        issuing.new_leafs()
        await following.next(1)


async def test_an_agent_that_is_away_is_asked_again_with_back_off_and_told_of_once(
    issuing: IssuingSource, agent: Agent, autojump_clock: trio.testing.MockClock
) -> None:
    away = [RpcError(Status.UNAVAILABLE, "no such file") for _ in range(6)]
    agent.refuse = list(away)
    began = trio.current_time()
    async with follow(agent) as following:
        assert following.live.value is None
        await following.next(0)
        assert 1 + 2 + 4 + 8 + 16 < 2 * (trio.current_time() - began) < 4 * (1 + 2 + 4 + 8 + 16 + 32)
        assert following.names() == ["identity_refused", "identity_updated"]
        facts = following.events[0][1]
        assert facts["path"] == "unix:/agent.sock"
        assert facts["problem"] == "UNAVAILABLE: no such file"
        assert "agent" in facts["hint"]


async def test_an_unforeseen_error_of_the_transport_is_survived(
    issuing: IssuingSource, agent: Agent, autojump_clock: trio.testing.MockClock
) -> None:
    agent.refuse = [
        OSError("strange"),
        ExceptionGroup("", [RpcError(Status.PERMISSION_DENIED, "no identity issued")]),
    ]
    async with follow(agent) as following:
        await following.next(0)
        assert [facts["problem"] for name, facts in following.events if name == "identity_refused"] == [
            "OSError('strange')",
            "PERMISSION_DENIED: no identity issued",
        ]


def _cut(response: Any) -> None:
    response.svids[0].x509_svid = response.svids[0].x509_svid[:-1]


def _foreign_key(response: Any) -> None:
    response.svids[0].x509_svid_key = response.svids[1].x509_svid_key


def _foreign_bundle(response: Any) -> None:
    response.svids[0].bundle = IssuingSource("mesh.test", "/x").bundle.authorities[0].public_bytes(Encoding.DER)


def _other_id(response: Any) -> None:
    response.svids[0].spiffe_id = API


def _bad_id(response: Any) -> None:
    response.svids[0].spiffe_id = "https://mesh.test/web"


def _no_chain(response: Any) -> None:
    response.svids[0].x509_svid = b""


def _no_key(response: Any) -> None:
    response.svids[0].x509_svid_key = b"no key"


def _nothing(response: Any) -> None:
    del response.svids[:]


def _garbage(response: Any) -> None:
    response.svids[0].x509_svid = b"\x04\x02ab"


@pytest.mark.parametrize(
    "change", [_cut, _foreign_key, _foreign_bundle, _other_id, _bad_id, _no_chain, _no_key, _nothing, _garbage]
)
async def test_what_no_peer_would_accept_is_refused_and_the_old_identity_stays(
    issuing: IssuingSource, agent: Agent, change: Callable[[Any], None], autojump_clock: trio.testing.MockClock
) -> None:
    async with follow(agent) as following:
        good = following.live.value
        agent.change = change
        issuing.new_leafs()
        await trio.sleep(1)
        assert following.live.value is good
        assert following.names() == ["identity_updated", "identity_refused"]
        assert agent.connects == 1
        agent.change = lambda response: None
        issuing.new_leafs()
        await following.next(1)


async def test_a_bad_bundle_of_others_does_not_cost_the_own_identity(
    issuing: IssuingSource, agent: Agent, autojump_clock: trio.testing.MockClock
) -> None:
    def change(response: Any) -> None:
        response.federated_bundles["spiffe://other.test"] = b"\x30\x05abc"
        response.federated_bundles["no id\n"] = b""

    agent.change = change
    async with follow(agent) as following:
        assert following.live.value is not None
        assert list(following.live.value.bundles) == ["mesh.test"]
        refused = [facts["trust_domain"] for name, facts in following.events if name == "bundle_refused"]
        assert sorted(refused) == ["no id?", "spiffe://other.test"]


async def test_an_svid_that_is_not_renewed_is_told_of_before_it_lapses(
    issuing: IssuingSource, agent: Agent, autojump_clock: trio.testing.MockClock
) -> None:
    async with follow(agent) as following:
        following.wall += 3600 * 0.8
        await trio.sleep(11)
        assert following.names() == ["identity_updated", "identity_expiring"]
        following.wall += 3600
        await trio.sleep(11)
        assert following.names()[-1] == "identity_expired"


def test_certificates_are_split_at_their_own_lengths(issuing: IssuingSource) -> None:
    chain = issuing.svid(issuing.ids[0]).chain
    data = b"".join(cert.public_bytes(Encoding.DER) for cert in chain)
    assert split_certificates(data) == chain
    assert split_certificates(b"") == ()
    for bad in (
        data[:-1],
        data + b"0",
        b"\x30",
        b"\x30\x80",
        b"\x30\x85" + bytes(9),
        b"\x30\x82\xff",
        b"\x31" + data,
    ):
        with pytest.raises(ValueError, match=r"certificate|parse|ASN"):
            split_certificates(bad)
