"""Two sidecars and an app in one trio loop, over real loopback sockets, with a real CA.

    client --plain--> outbound(web) --mTLS--> inbound(api) --plain--> app

Everything between the client and the app is the product; only the process boundaries are missing, so that a
test can look inside (``worker.connections``, ``poller.crashes``) and a failure has one traceback.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trio

from identity import authority
from identity.files import CaFolder, create_ca
from identity.spiffe import SpiffeId
from identity.svid import X509Context
from proxy.http.facts import Times
from proxy.inbound import Inbound
from proxy.lifecycle import Caps, Runtime, Worker
from proxy.net.listener import Address, Listener, bind
from proxy.net.poller import Poller
from proxy.net.tls import Credentials
from proxy.observe.record import ConnectionRecord, ExchangeRecord
from proxy.observe.telemetry import Telemetry
from proxy.outbound import Outbound
from proxy.service import HttpService, ListenerSettings
from proxy.upstream.cluster import Cluster, ClusterSettings
from proxy.wire.limits import WireLimits
from tests.support.policies import allow_all, compile_text

TRUST_DOMAIN = "mesh.test"
WEB = f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/web"
API = f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/api"


def make_context(ca: CaFolder, spiffe_id: str, ttl: float = 3600.0) -> X509Context:
    """A fresh SVID for ``spiffe_id``; ``ttl`` in seconds."""
    svid = authority.issue(
        ca.authority,
        ca.bundle,
        SpiffeId.parse(spiffe_id),
        now=datetime.now(UTC),
        rng=random.SystemRandom(),
        ttl=timedelta(seconds=ttl),
    )
    return X509Context(svid, {ca.trust_domain: ca.bundle})


class RecordingTelemetry(Telemetry):
    """The real one, which also keeps every record."""

    def __init__(self, **more: Any) -> None:
        super().__init__(env={}, **more)
        self.records: list[ExchangeRecord] = []
        self.closed: list[ConnectionRecord] = []

    def finish(self, record: ExchangeRecord) -> None:
        self.records.append(record)
        super().finish(record)

    def connection(self, record: ConnectionRecord) -> None:
        self.closed.append(record)
        super().connection(record)


@dataclass
class Side:
    """One sidecar."""

    worker: Worker
    telemetry: RecordingTelemetry
    service: HttpService
    port: int

    @property
    def records(self) -> list[ExchangeRecord]:
        return self.telemetry.records


@dataclass
class Mesh:
    """What a test asked for; ``port`` is where the client calls."""

    ca: CaFolder
    api: Side
    web: Side
    nursery: trio.Nursery
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def port(self) -> int:
        return self.web.port

    def allow(self, text: str) -> None:
        """Replace the policies of the inbound side."""
        generation = self.api.worker.runtime.generation + 1
        self.api.worker.swap(Runtime(generation, compile_text(text)))

    async def settled(self, seconds: float = 5.0) -> None:
        """Wait until no exchange is open anywhere."""
        with trio.fail_after(seconds):
            while self.api.worker.requests or self.web.worker.requests:
                await trio.sleep(0.01)


async def _start(nursery: trio.Nursery, worker: Worker, telemetry: Telemetry) -> None:
    await nursery.start(worker.poller.serve)
    await nursery.start(telemetry.run)
    nursery.start_soon(worker.sweep_forever)


def _listen(worker: Worker, service: HttpService) -> int:
    sock = bind(Address("127.0.0.1", 0))
    listener = Listener(worker.poller, sock, service.accept, worker.may_accept)
    worker.listeners[service.settings.name] = listener
    listener.start()
    return int(sock.getsockname()[1])


def _worker(context: X509Context, runtime: Runtime, caps: Caps | None) -> tuple[Worker, RecordingTelemetry]:
    telemetry = RecordingTelemetry(service="test")
    worker = Worker(Poller(linger=0.0), telemetry, runtime, caps or Caps())
    worker.credentials = Credentials(context)
    return worker, telemetry


async def start_api(
    nursery: trio.Nursery,
    ca: CaFolder,
    app_port: int,
    *,
    policy: str = "",
    settings: dict[str, Any] | None = None,
    cluster: dict[str, Any] | None = None,
    times: Times | None = None,
    caps: Caps | None = None,
    limits: WireLimits | None = None,
) -> Side:
    """An inbound sidecar in front of ``app_port``."""
    compiled = compile_text(policy) if policy else allow_all()
    worker, telemetry = _worker(make_context(ca, API), Runtime(1, compiled), caps)
    limits = limits or WireLimits()
    target = ClusterSettings("app", (Address("127.0.0.1", app_port),), connect_timeout=1.0)
    target = replace(target, **(cluster or {}))
    app = Cluster(worker.poller, target, lambda: worker.credentials, limits, worker.rng)
    worker.clusters["app"] = app
    base = ListenerSettings("in", "inbound", app_port, workload_uri=API, limits=limits)
    service = Inbound(worker, replace(base, **(settings or {})), app, times or Times())
    await _start(nursery, worker, telemetry)
    return Side(worker, telemetry, service, _listen(worker, service))


async def start_web(
    nursery: trio.Nursery,
    ca: CaFolder,
    api_port: int,
    *,
    settings: dict[str, Any] | None = None,
    cluster: dict[str, Any] | None = None,
    times: Times | None = None,
    caps: Caps | None = None,
    identity: str = WEB,
) -> Side:
    """An outbound sidecar that leads to ``api_port``."""
    worker, telemetry = _worker(make_context(ca, identity), Runtime(1, allow_all()), caps)
    target = ClusterSettings(
        "api", (Address("127.0.0.1", api_port),), tls=True, expect=frozenset({API}), connect_timeout=2.0
    )
    target = replace(target, **(cluster or {}))
    upstream = Cluster(
        worker.poller, target, lambda: worker.credentials, WireLimits(), worker.rng, telemetry.handshake
    )
    worker.clusters["api"] = upstream
    base = ListenerSettings("out", "outbound", api_port)
    service = Outbound(worker, replace(base, **(settings or {})), upstream, times or Times())
    await _start(nursery, worker, telemetry)
    return Side(worker, telemetry, service, _listen(worker, service))


@contextlib.asynccontextmanager
async def open_mesh(
    folder: Path,
    app_port: int,
    *,
    api: dict[str, Any] | None = None,
    web: dict[str, Any] | None = None,
) -> AsyncIterator[Mesh]:
    """See the module's text. ``api`` and ``web`` are keyword arguments of ``start_api`` and ``start_web``."""
    ca = create_ca(folder / "ca", TRUST_DOMAIN, now=datetime.now(UTC))
    async with trio.open_nursery() as nursery:
        inbound = await start_api(nursery, ca, app_port, **(api or {}))
        outbound = await start_web(nursery, ca, inbound.port, **(web or {}))
        mesh = Mesh(ca, inbound, outbound, nursery)
        try:
            yield mesh
        finally:
            with trio.CancelScope(shield=True):
                await close_side(outbound)
                await close_side(inbound)
            nursery.cancel_scope.cancel()
            for side in (inbound, outbound):
                side.worker.poller.close()
    for side in (inbound, outbound):
        if side.worker.poller.crashes:
            raise AssertionError(f"{side.worker.poller.crashes} internal errors, see the log")


async def close_side(side: Side) -> None:
    """Drain at once, and let the telemetry write."""
    side.worker.stop_accepting()
    await side.worker.drain(0.0)
    await side.telemetry.close()
