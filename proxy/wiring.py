"""From configuration to objects: the only module that knows both the configuration's names and the runtime's.

Everything here is a plain translation; decisions stand in the modules that are built."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from config import model
from config.load import Loaded, load_all
from identity.renewal import FileSource, LiveContext, LocalCaSource
from identity.spiffe import SpiffeId
from proxy.http.server import Times
from proxy.inbound import Inbound
from proxy.lifecycle import Caps
from proxy.log import set_up
from proxy.net.listener import Address, bind
from proxy.observe.telemetry import Telemetry
from proxy.outbound import Outbound
from proxy.policy.engine import CompiledPolicies, WorkloadFacts, compile_policies
from proxy.service import HttpService, ListenerSettings
from proxy.upstream.cluster import Cluster, ClusterSettings
from proxy.version import VERSION
from proxy.wire.limits import WireLimits

if TYPE_CHECKING:
    from proxy.app import Process

_APP = "app:"  # prefix of the cluster that is an inbound listener's app


class IdentitySource(Protocol):
    """What keeps the SVID fresh."""

    async def run(self, live: LiveContext) -> None: ...


@dataclass(frozen=True, slots=True)
class Source:
    """Where the configuration comes from; ``load`` reads it again with everything it names."""

    path: Path | None
    text: str | None
    overrides: Mapping[str, str]
    env: Mapping[str, str]

    def load(self) -> Loaded:
        """Raises ConfigError with every problem."""
        return load_all(self.path, text=self.text, env=self.env, overrides=self.overrides)

    def arguments(self) -> list[str]:
        """The command line that makes a worker read the same."""
        arguments = ["-c", str(self.path)] if self.path is not None else []
        for key, value in self.overrides.items():
            arguments += ["--set", f"{key}={value}"]
        return arguments


@dataclass(frozen=True, slots=True)
class Listening:
    """One listener of the configuration. ``key`` stays the same across reloads while the address does."""

    key: str
    address: Address
    item: model.Inbound | model.Outbound


def listeners(config: model.Config) -> list[Listening]:
    """Every data listener."""
    items: list[model.Inbound | model.Outbound] = [*config.inbound, *config.outbound]
    found = []
    for item in items:
        address = to_address(item.listen)
        direction = "inbound" if isinstance(item, model.Inbound) else "outbound"
        found.append(Listening(f"{direction} {address}", address, item))
    return found


def to_address(address: model.Address) -> Address:
    return Address(address.host, address.port, address.path)


def set_up_logging(config: model.Config) -> None:
    set_up(config.log.level, config.log.format)


# -- telemetry and limits -----------------------------------------------------------------------------------


def make_telemetry(config: model.Config) -> Telemetry:
    from OpenSSL import SSL

    telemetry = config.telemetry
    access = telemetry.access_log
    return Telemetry(
        service=config.workload.name,
        namespace=config.workload.namespace,
        version=VERSION,
        openssl=SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode("ascii", "replace"),
        access_log="off" if access.format == "off" else str(access.to),
        access_log_format="text" if access.format == "text" else "json",
        access_log_filter=access.filter,
        sample=telemetry.tracing.sample,
        traces_file=str(telemetry.traces.file or ""),
        keep=telemetry.traces.keep,
    )


def make_caps(config: model.Config) -> Caps:
    limits = config.limits
    return Caps(
        connections=limits.connections,
        connections_per_peer=limits.connections_per_peer,
        handshakes=limits.handshakes,
        handshakes_per_second=limits.handshakes_per_second,
        requests=limits.requests,
        requests_per_peer=limits.requests_per_peer,
    )


def wire_limits(config: model.Config, max_header: int) -> WireLimits:
    limits = config.limits
    return WireLimits(
        request_line=limits.request_line,
        head=max_header or limits.head,
        headers=limits.headers,
        header=limits.header,
        stream_window=limits.stream_window,
        connection_window=limits.connection_window,
        streams=limits.streams,
        underscore=limits.underscore,
        escaped_slash=limits.escaped_slash,
    )


# -- policy -------------------------------------------------------------------------------------------------


def compile_runtime(loaded: Loaded) -> CompiledPolicies:
    """The policies that protect this workload."""
    workload = loaded.config.workload
    facts = WorkloadFacts(workload.namespace, workload.labels, name=workload.name)
    return compile_policies(loaded.documents.policies, facts, loaded.config.policy.default)


# -- identity -----------------------------------------------------------------------------------------------


def make_identity(config: model.Config, on_event: Callable[[str, Mapping[str, object]], None]) -> IdentitySource:
    identity = config.identity
    if identity.ca_dir is not None:
        from identity.files import ca_trust_domain

        trust_domain = config.trust_domain or ca_trust_domain(identity.ca_dir)
        spiffe_id = SpiffeId.parse(workload_uri(config, trust_domain))
        return LocalCaSource(identity.ca_dir, spiffe_id, timedelta(seconds=identity.ttl), on_event=on_event)
    return FileSource(identity.cert, identity.key, identity.bundle, on_event=on_event)  # type: ignore[arg-type]


def identity_changed(old: model.Config, new: model.Config) -> bool:
    return (old.identity, old.workload, old.trust_domain) != (new.identity, new.workload, new.trust_domain)


def workload_uri(config: model.Config, trust_domain: str) -> str:
    workload = config.workload
    return f"spiffe://{trust_domain}/ns/{workload.namespace}/sa/{workload.service_account or workload.name}"


# -- clusters -----------------------------------------------------------------------------------------------


def cluster_settings(config: model.Config) -> dict[str, ClusterSettings]:
    """One cluster for each app behind an inbound listener and one for each upstream."""
    found = {}
    for item in config.inbound:
        found[_APP + item.name] = _app_settings(config, item)
    for name, upstream in config.upstreams.items():
        found[name] = _upstream_settings(config, name, upstream)
    return found


def _app_settings(config: model.Config, item: model.Inbound) -> ClusterSettings:
    return ClusterSettings(
        name="app" if len(config.inbound) == 1 else f"app {item.name}",
        addresses=(to_address(item.app),),
        protocol={"http1": "http1", "h2c": "h2"}.get(item.app_protocol, "auto"),
        connect_timeout=config.timeouts.connect_app,
        idle_timeout=config.timeouts.pool_idle,
        write_timeout=config.timeouts.write,
        max_connections=config.limits.app_connections,
        max_pending=config.limits.app_pending,
        max_requests=config.limits.requests,
        http2_engine=config.http2.engine,
    )


def _upstream_settings(config: model.Config, name: str, upstream: model.Upstream) -> ClusterSettings:
    raise NotImplementedError


def make_cluster(process: Process, settings: ClusterSettings) -> Cluster:
    worker = process.worker
    limits = wire_limits(process.loaded.config, 0)
    rng = random.Random(worker.rng.getrandbits(128))  # noqa: S311 (balancing, not secrets)
    return Cluster(worker.poller, settings, lambda: worker.credentials, limits, rng)


# -- services -----------------------------------------------------------------------------------------------


def make_service(process: Process, listening: Listening) -> HttpService:
    settings, cluster, times = _service_parts(process, listening.item)
    kind = Inbound if isinstance(listening.item, model.Inbound) else Outbound
    return kind(process.worker, settings, cluster, times)


def configure_service(process: Process, service: HttpService, listening: Listening) -> None:
    service.configure(*_service_parts(process, listening.item))


def with_identity(settings: ListenerSettings, uri: str) -> ListenerSettings:
    return replace(settings, workload_uri=uri)


def _service_parts(
    process: Process, item: model.Inbound | model.Outbound
) -> tuple[ListenerSettings, Cluster, Times]:
    raise NotImplementedError


# -- administration -----------------------------------------------------------------------------------------


def worker_socket(config: model.Config, number: int) -> str:
    """The administrative socket of one worker of several."""
    return f"{config.admin.socket}.{number}"


def bind_admin(config: model.Config, worker_number: int | None) -> list[tuple[str, socket.socket]]:
    """The doors to listen on, as (door, socket). A worker of several has only its own Unix socket."""
    path = str(config.admin.socket)
    if worker_number is not None:
        path = worker_socket(config, worker_number)
    Path(path).parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    doors = [("unix", bind(Address(path=path)))]
    if worker_number is None:
        if config.admin.listen is not None:
            doors.append(("loopback", bind(to_address(config.admin.listen))))
        if config.admin.probes is not None:
            doors.append(("probes", bind(to_address(config.admin.probes))))
    return doors


def remove_admin(config: model.Config, worker_number: int | None) -> None:
    path = str(config.admin.socket) if worker_number is None else worker_socket(config, worker_number)
    with contextlib.suppress(OSError):
        os.unlink(path)


__all__ = ["Source", "logging", "sys"]
