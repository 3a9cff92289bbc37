"""Addresses of Workload APIs, and a source that is fed over a real socket."""

from __future__ import annotations

import pytest
import trio

from config.live import Live
from identity.svid import X509Context
from identity.workload_api import WorkloadApi
from identity.workload_source import WorkloadSource
from proxy.net.listener import Address
from proxy.rpc.endpoint import parse_endpoint, x509_stream
from tests.support.issuing import IssuingSource, validate
from tests.support.rpc import serve, until


@pytest.mark.parametrize("text", ["unix:///run/a.sock", "unix:/run/a.sock"])
def test_both_ways_to_write_a_socket_are_known(text: str) -> None:
    assert parse_endpoint(text) == Address(path="/run/a.sock")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/run/a.sock",
        "unix:",
        "unix://",
        "unix:a.sock",
        "unix://host/a.sock",
        "unix:///a.sock?x",
        "unix:///a.sock#x",
        "tcp://127.0.0.1:1",
        "unix:///" + "a" * 107,
    ],
)
def test_what_is_no_socket_is_refused_with_the_text_and_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"Unix socket|absolute|neither") as caught:
        parse_endpoint(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("own_poller", [True, False])
async def test_a_source_follows_an_agent_over_its_socket_and_comes_back(own_poller: bool) -> None:
    issuing = IssuingSource("mesh.test", "/web")
    live: Live[X509Context | None] = Live(None)
    events: list[str] = []
    async with serve(WorkloadApi(issuing, validate).methods()) as served, trio.open_nursery() as nursery:
        connect = x509_stream(served.address, None if own_poller else served.poller)
        source = WorkloadSource(connect, str(served.address), on_event=lambda name, facts: events.append(name))
        await nursery.start(source.run, live)
        for _ in range(3):
            issuing.new_issuing()
            await until(lambda: live.value and live.value.svid.chain == issuing.svid(issuing.ids[0]).chain)
        assert live.value is not None
        before = live.value
        for connection in list(served.server.connections):
            connection.close("gone", abort=True)
        await until(lambda: "identity_refused" in events)
        issuing.new_leafs()
        source.poke()
        await until(lambda: live.value is not before)
        assert len(issuing.callers) > 0
        nursery.cancel_scope.cancel()
