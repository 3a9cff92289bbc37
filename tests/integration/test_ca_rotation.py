"""A node that renews all the time, through rotations of the issuing authority and of the root: nothing fails."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio

from identity import bundle as bundles
from identity.ca.model import CaSettings
from identity.ca.service import CaService
from identity.ca_api import WATCH, api
from identity.rpc import RpcError, Status
from identity.spiffe import SpiffeId
from identity.svid import X509Svid, check_own_svid
from tests.support.authority import TD, Held, RunningCa

pytestmark = pytest.mark.long

NODE = f"spiffe://{TD}/vm7"
SECONDS = 75.0
SETTINGS = CaSettings(
    svid_ttl=4.0,
    min_ttl=1.0,
    max_ttl=4.0,
    issuing_life=20.0,
    root_life=60.0,
    jwt_life=30.0,
    refresh_hint=1.0,
    old_grace=2.0,
)


@pytest.fixture
def ca() -> Iterator[RunningCa]:
    with tempfile.TemporaryDirectory(prefix="sw") as folder:
        CaService.create(Path(folder) / "ca", TD, now=datetime.now(UTC), settings=SETTINGS).close()
        running = RunningCa(Path(folder)).start()
        try:
            yield running
        finally:
            if running.process is not None:
                running.stop(signal.SIGKILL)


async def test_a_node_renews_through_every_rotation_without_one_failure(ca: RunningCa) -> None:
    held, roots = await ca.join(NODE)
    state: dict[str, Any] = {"held": held, "roots": roots, "sequence": 0, "renewals": 0}
    signers: set[str] = set()

    async def follow_once(seen: int) -> None:
        async with ca.node(state["held"], state["roots"]) as channel:
            request = api.WatchRequest(seen_sequence=seen).SerializeToString()
            async with channel.stream(WATCH, request) as replies:
                async for reply in replies:
                    found = bundles.parse(api.State.FromString(reply).bundle.document, TD)
                    state["roots"], state["sequence"] = found.trust_bundle, found.sequence
                    if found.sequence != seen:
                        return

    async def follow() -> None:
        while True:
            try:
                await follow_once(state["sequence"])
            except RpcError as error:
                # It outlived the certificate that it was opened with, as it must not (S-4).
                if error.status != Status.UNAVAILABLE:
                    raise

    async def renew() -> None:
        while True:
            async with ca.node(state["held"], state["roots"]) as channel:
                new: Held = await ca.renew(channel)
            svid = X509Svid(SpiffeId.parse(NODE), new.chain, new.key)
            check_own_svid(svid, state["roots"], now=datetime.now(UTC))  # as every peer with our bundle does
            state["held"] = new
            state["renewals"] += 1
            signers.add(new.svid.authority_id)
            await trio.sleep(0.5)

    with trio.move_on_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            nursery.start_soon(renew)
    log = await ca.ask("Log", limit=10_000)
    done = [(one["kind"], one["facts"].get("of")) for one in log if one["kind"].startswith("authority_")]
    print(f"{state['renewals']} renewals, no failure, {len(signers)} issuing authorities; {done}")
    assert state["renewals"] > SECONDS
    assert len(signers) >= 3
    assert ("authority_activated", "x509-root") in done
    assert (await ca.ask("VerifyLog"))["ok"]
    assert ca.stop() == 0
