"""Three servers that share one authority on PostgreSQL: none is special, one may go at any time."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import trio

from identity.ca_api import ATTEST, WATCH, api
from identity.rpc import RpcError, Status
from tests.support.authority import TD, RunningCa, csr, new_key
from tests.support.postgres import Cluster, PostgresMissing, postgres_cluster

pytestmark = pytest.mark.slow

NODE = f"spiffe://{TD}/vm7"
WEB = f"spiffe://{TD}/ns/shop/sa/web"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        Path(name).chmod(0o711)  # the database's own user must get through
        try:
            running = postgres_cluster(Path(name) / "pg")
        except PostgresMissing as missing:
            pytest.skip(f"no PostgreSQL: {missing}")
        with running as found:
            yield found


@pytest.fixture
def replicas(cluster: Cluster) -> Iterator[list[RunningCa]]:
    with psycopg.connect(f"host={cluster.folder} user={cluster.user} dbname=postgres", autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS mesh WITH (FORCE)")
        admin.execute("CREATE DATABASE mesh")
    store = ("--store", cluster.url.replace("/postgres?", "/mesh?"))
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        started = []
        try:
            for number in "abc":
                own = Path(name) / number
                own.mkdir()
                started.append(RunningCa(own, more=store, authority=Path(name) / "ca").start())
            yield started
        finally:
            print(*(one.log() for one in started))  # shown when a test fails
            for one in started:
                if one.process is not None:
                    one.stop(signal.SIGKILL)


async def test_what_one_is_told_the_others_know_within_a_second(replicas: list[RunningCa]) -> None:
    a, b, c = replicas
    node, roots = await a.join(NODE)
    async with b.node(node, roots) as channel, channel.stream(WATCH, b"") as replies:
        await anext(replies)
        with trio.fail_after(1):
            entry = await c.ask("CreateEntry", entry={"spiffeId": WEB, "parentId": NODE, "selectors": ["unix:uid:7"]})
            state = api.State.FromString(await anext(replies))
        assert [json.loads(one)["id"] for one in state.entries] == [entry["id"]]
        with trio.fail_after(1):
            await c.ask("Ban", spiffe_id=NODE, reason="copied disk")
            with pytest.raises(RpcError):
                async for _ in replies:
                    pass


async def test_one_token_is_won_once_whichever_replica_is_asked(replicas: list[RunningCa]) -> None:
    token = await replicas[0].ask("CreateToken", spiffe_id=NODE)
    won: list[bytes] = []
    lost: list[Status] = []

    async def attempt(ca: RunningCa) -> None:
        request = api.AttestRequest(csr=csr(new_key()), join_token=token["secret"]).SerializeToString()
        async with ca.stranger(ca.pinned(token["fingerprint"])) as channel:
            try:
                won.append(await channel.unary(ATTEST, request))
            except RpcError as error:
                lost.append(error.status)

    async with trio.open_nursery() as nursery:
        for ca in replicas:
            nursery.start_soon(attempt, ca)
    assert (len(won), lost) == (1, [Status.PERMISSION_DENIED] * 2)


async def test_a_replica_that_is_killed_is_not_missed(replicas: list[RunningCa]) -> None:
    a, b, c = replicas
    node, roots = await a.join(NODE)
    entry = await a.ask("CreateEntry", entry={"spiffeId": WEB, "parentId": NODE, "selectors": ["unix:uid:7"]})
    async with a.node(node, roots) as channel:
        renewed = await a.renew(channel)
        a.stop(signal.SIGKILL)
        with pytest.raises(RpcError):
            await a.renew(channel)
    async with b.node(renewed, roots) as channel:
        web = await b.issue(channel, entry["id"])
        newest = await b.renew(channel)
    async with c.node(newest, roots) as channel:
        assert await c.renew(channel)

    listed = await c.ask("Issued", spiffe_id=WEB)
    assert [one["serial"] for one in listed] == [web.svid.serial]
    assert (await c.ask("VerifyLog"))["ok"]


async def test_rotation_is_decided_once(replicas: list[RunningCa]) -> None:
    a, b, c = replicas
    reports: list[str] = []

    async def prepare(ca: RunningCa) -> None:
        try:
            reports.append((await ca.ask("Rotate", step="prepare", kind="x509-issuing"))["authority_id"])
        except RpcError as error:
            reports.append(error.status.name)

    async with trio.open_nursery() as nursery:
        for ca in (a, b, c):
            nursery.start_soon(prepare, ca)
    assert (reports.count("ALREADY_EXISTS"), len(reports)) == (2, 3)
    states = [view["state"] for view in (await c.ask("Status"))["authorities"] if view["kind"] == "x509-issuing"]
    assert sorted(states) == ["active", "prepared"]
