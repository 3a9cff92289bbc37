"""From configuration to objects: the only module that knows both the configuration's names and the runtime's.

Everything here is a plain translation; decisions stand in the modules that are built."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from config import model
from config.load import Loaded, load_all
from identity.disk import IdentityFileError
from identity.files import load_ca, read_certificates
from identity.mtls import openssl_version
from identity.renewal import FileSource, LiveContext, LocalCaSource
from identity.revocations import Revocations
from identity.spiffe import SpiffeId
from identity.svid import SvidError
from identity.workload_source import WorkloadSource
from identity.x509_rules import leaf_id
from proxy import authentication
from proxy.agent.build import from_authority
from proxy.agent.memory import NodeFolder
from proxy.http.facts import Times
from proxy.inbound import Inbound
from proxy.lifecycle import Caps
from proxy.log import set_up
from proxy.net.listener import Address, bind
from proxy.observe.ledger import Ledger
from proxy.observe.telemetry import Telemetry
from proxy.outbound import Outbound
from proxy.policy.engine import CompiledPolicies, Default, WorkloadFacts, compile_policies
from proxy.rpc.endpoint import parse_endpoint, x509_stream
from proxy.service import HttpService, ListenerSettings
from proxy.upstream.cluster import Cluster, ClusterSettings
from proxy.version import VERSION
from proxy.wire.limits import WireLimits

if TYPE_CHECKING:
    from proxy.app import Process

_DEFAULTS: dict[str, Default] = {"deny": "deny", "istio": "istio", "audit": "audit"}
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
        loaded = load_all(self.path, text=self.text, env=self.env, overrides=self.overrides)
        authentication.check_keys(loaded)
        return loaded

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


def make_telemetry(config: model.Config, worker: int | None = None) -> Telemetry:
    telemetry = config.telemetry
    access = telemetry.access_log
    return Telemetry(
        service=config.workload.name,
        namespace=config.workload.namespace,
        version=VERSION,
        openssl=openssl_version(),
        access_log="off" if access.format == "off" else str(access.to),
        access_log_format="text" if access.format == "text" else "json",
        access_log_filter=access.filter,
        sample=telemetry.tracing.sample,
        traces_file=str(telemetry.traces.file or ""),
        keep=telemetry.traces.keep,
        ledger=_make_ledger(config, worker),
    )


def _make_ledger(config: model.Config, worker: int | None) -> Ledger | None:
    flows, workload = config.telemetry.flows, config.workload
    if flows.to is None:
        return None
    return Ledger(
        flows.to,
        f"{workload.namespace}/{workload.name}",
        cap=flows.keep,
        worker=worker,
        exact=flows.paths == "exact",
        sources=flows.sources,
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


def wire_limits(config: model.Config, max_header: int = 0) -> WireLimits:
    """The limits of the engines: the fields of ``WireLimits`` are settings of the same names, all but ``authority``,
    which is not for a person to set, and what belongs to policy."""
    names = (name.name for name in fields(WireLimits) if name.name not in ("authority", "path_normalization"))
    values = {name: getattr(config.limits, name) for name in names}
    values["path_normalization"] = config.policy.path_normalization
    if max_header:
        values["head"] = max_header
    return WireLimits(**values)


# -- policy -------------------------------------------------------------------------------------------------


def compile_runtime(loaded: Loaded) -> CompiledPolicies:
    """The policies that protect this workload. Called in a thread: a collection of all that is being made would keep
    the interpreter, and with it every request, for a tenth of a second. What stays is not looked at again."""
    gc.disable()
    try:
        found = _compiled(loaded)
        gc.freeze()
        return found
    finally:
        gc.enable()


def _compiled(loaded: Loaded) -> CompiledPolicies:
    workload = loaded.config.workload
    facts = WorkloadFacts(workload.namespace, workload.labels, name=workload.name)
    default = _DEFAULTS[loaded.config.policy.default]
    return compile_policies(loaded.documents.policies, facts, default)


# -- identity -----------------------------------------------------------------------------------------------


def make_identity(
    config: model.Config,
    on_event: Callable[[str, Mapping[str, object]], None],
    revoked: Callable[[Revocations], None] = lambda revocations: None,
) -> IdentitySource:
    """The source of our SVID. ``config.load`` has checked that what it needs is named. ``revoked``: told each list of
    a running CA."""
    identity = config.identity
    if identity.source == "ca":
        account = f"/ns/{config.workload.namespace}/sa/{config.workload.service_account}"
        return from_authority(identity.ca, identity.folder, account, on_event=on_event, revoked=revoked)
    if identity.source == "workloadApi":
        wanted = SpiffeId.parse(workload_uri(config, config.trust_domain)) if config.trust_domain else None
        address = parse_endpoint(identity.workload_api)
        return WorkloadSource(x509_stream(address), identity.workload_api, on_event=on_event, spiffe_id=wanted)
    if identity.ca_dir is not None and identity.source == "ca-folder":
        spiffe_id = SpiffeId.parse(workload_uri(config, find_trust_domain(config)))
        return LocalCaSource(identity.ca_dir, spiffe_id, timedelta(seconds=identity.ttl), on_event=on_event)
    if identity.cert is None or identity.key is None or identity.bundle is None:
        raise IdentityFileError("identity", "cert, key and bundle are needed", "name the three files")
    return FileSource(identity.cert, identity.key, identity.bundle, on_event=on_event)


def find_trust_domain(config: model.Config) -> str:
    """The trust domain we are of: as configured, else what the local CA or the certificate says, else ""."""
    identity = config.identity
    if config.trust_domain:
        return config.trust_domain
    try:
        if identity.source == "ca" and identity.folder is not None and NodeFolder(identity.folder).is_joined:
            return NodeFolder(identity.folder).facts().trust_domain
        if identity.source == "ca-folder" and identity.ca_dir is not None:
            return load_ca(identity.ca_dir, now=datetime.now(UTC)).trust_domain
        if identity.cert is not None:
            return leaf_id(read_certificates(identity.cert)[0]).trust_domain
    except (IdentityFileError, SvidError):
        pass  # the identity source reports it, with the file and the remedy
    return ""


def identity_changed(old: model.Config, new: model.Config) -> bool:
    return (old.identity, old.workload, old.trust_domain) != (new.identity, new.workload, new.trust_domain)


def workload_uri(config: model.Config, trust_domain: str) -> str:
    workload = config.workload
    return f"spiffe://{trust_domain}/ns/{workload.namespace}/sa/{workload.service_account or workload.name}"


# -- clusters -----------------------------------------------------------------------------------------------


def cluster_settings(config: model.Config, trust_domain: str) -> dict[str, ClusterSettings]:
    """One cluster for each app behind an inbound listener and one for each upstream."""
    found = {}
    for item in config.inbound:
        found[_APP + item.name] = _app_settings(config, item)
    for name, upstream in config.upstreams.items():
        found[name] = _upstream_settings(config, name, upstream, trust_domain)
    return found


def _app_settings(config: model.Config, item: model.Inbound) -> ClusterSettings:
    app = item.app
    named = not app.path and not app.is_ip
    return ClusterSettings(
        name="app" if len(config.inbound) == 1 else f"app-{item.name}",
        addresses=() if named else (to_address(app),),
        dns=app.host if named else "",
        dns_port=app.port if named else 0,
        protocol={"http1": "http1", "h2c": "h2"}.get(item.app_protocol, "auto"),
        connect_timeout=config.timeouts.connect_app,
        idle_timeout=config.timeouts.pool_idle,
        write_timeout=config.timeouts.write,
        max_connections=config.limits.app_connections,
        max_pending=config.limits.app_pending,
        max_requests=config.limits.requests,
        http2_engine=config.http2.engine,
    )


def _upstream_settings(
    config: model.Config, name: str, upstream: model.Upstream, trust_domain: str
) -> ClusterSettings:
    pool = upstream.traffic_policy.connection_pool
    return ClusterSettings(
        name=name,
        addresses=tuple(to_address(endpoint) for endpoint in upstream.endpoints),
        dns=upstream.dns.host if upstream.dns is not None else "",
        dns_port=upstream.dns.port if upstream.dns is not None else 0,
        protocol=upstream.protocol,
        tls=True,
        # Without a trust domain a short name means nobody: refused, not guessed.
        expect=upstream.expected_ids(trust_domain) if trust_domain else frozenset(),
        balance=upstream.traffic_policy.load_balancer.simple,
        connect_timeout=upstream.timeouts.connect,
        idle_timeout=upstream.timeouts.idle,
        write_timeout=upstream.timeouts.write,
        max_connections=pool.tcp.max_connections,
        max_pending=pool.http.http1_max_pending_requests,
        max_requests=pool.http.http2_max_requests,
        max_requests_per_connection=pool.http.max_requests_per_connection,
        http2_engine=config.http2.engine,
    )


def make_cluster(process: Process, settings: ClusterSettings) -> Cluster:
    worker = process.worker
    limits = wire_limits(process.loaded.config)
    rng = random.Random(worker.rng.getrandbits(128))  # noqa: S311 (balancing, not secrets)
    return Cluster(
        worker.poller,
        settings,
        lambda: worker.credentials,
        limits,
        rng,
        process.telemetry.handshake,
        worker.is_revoked,
    )


# -- services -----------------------------------------------------------------------------------------------


def make_service(process: Process, listening: Listening) -> HttpService:
    settings, cluster, times = _service_parts(process, listening.item)
    kind = Inbound if isinstance(listening.item, model.Inbound) else Outbound
    return kind(process.worker, settings, cluster, times)


def configure_service(process: Process, service: HttpService, listening: Listening) -> None:
    service.configure(*_service_parts(process, listening.item))


def with_identity(settings: ListenerSettings, uri: str) -> ListenerSettings:
    """``settings`` after a new SVID: what the app is told about us."""
    return replace(settings, workload_uri=uri)


def _service_parts(
    process: Process, item: model.Inbound | model.Outbound
) -> tuple[ListenerSettings, Cluster, Times]:
    if isinstance(item, model.Inbound):
        settings, cluster = _inbound_settings(process, item), process.worker.clusters[_APP + item.name]
    else:
        settings, cluster = _outbound_settings(process, item), process.worker.clusters[item.to]
    return settings, cluster, _times(item.timeouts)


def _times(timeouts: model.ListenerTimeouts) -> Times:
    return Times(
        head=timeouts.header,
        stream_idle=timeouts.stream,
        idle=timeouts.idle,
        age=timeouts.max_age,
        write=timeouts.write,
    )


def _common_settings(process: Process, item: model.Inbound | model.Outbound) -> dict[str, Any]:
    config, telemetry = process.loaded.config, process.telemetry
    credentials = process.worker.credentials
    return {
        "name": item.name,
        "handshake_timeout": item.timeouts.handshake,
        "request_timeout": item.timeouts.request,
        "max_age": item.timeouts.max_age,
        "max_requests": config.limits.requests_per_connection,
        "workload_uri": str(credentials.context.id) if credentials is not None else "",
        "sample": telemetry.ratio,
        "parent_based": telemetry.parent_based,
        "http2_engine": config.http2.engine,
    }


def _inbound_settings(process: Process, item: model.Inbound) -> ListenerSettings:
    config = process.loaded.config
    return ListenerSettings(
        direction="inbound",
        port=authentication.workload_port(item),
        mtls=str(authentication.mtls_of(process.loaded, item)),
        protocol=item.protocol,
        max_body=item.max_body,
        set_client_cert=item.forward_client_cert == "sanitizeSet",
        trust_incoming=config.telemetry.tracing.trust_incoming != "never",
        trust_plaintext=config.telemetry.tracing.trust_incoming == "always",
        limits=wire_limits(config, item.max_header),
        **_common_settings(process, item),
    )


def _outbound_settings(process: Process, item: model.Outbound) -> ListenerSettings:
    # The app is ours, so its trace context is continued (3.3: "mesh" means authenticated peers and ourselves).
    config = process.loaded.config
    return ListenerSettings(
        direction="outbound",
        port=item.listen.port,
        protocol="tcp" if item.protocol == "tcp" else "auto",
        trust_incoming=config.telemetry.tracing.trust_incoming != "never",
        limits=wire_limits(config),
        **_common_settings(process, item),
    )


# -- administration -----------------------------------------------------------------------------------------


def admin_socket(config: model.Config, worker_number: int | None) -> str:
    """The path of the Unix socket, "" when it is off. A worker of several has one of its own."""
    socket_path = str(config.admin.socket or "")
    if worker_number is None or not socket_path:
        return socket_path
    return f"{socket_path}.{worker_number}"


def bind_admin(config: model.Config, worker_number: int | None) -> list[tuple[str, socket.socket]]:
    """The doors to listen on, as (door, socket). A worker of several has only its own Unix socket."""
    doors = []
    path = admin_socket(config, worker_number)
    if path:
        Path(path).parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        doors.append(("unix", bind(Address(path=path))))
    if worker_number is None:
        if config.admin.listen is not None:
            doors.append(("loopback", bind(to_address(config.admin.listen))))
        if config.admin.probes is not None:
            doors.append(("probes", bind(to_address(config.admin.probes))))
    return doors


def remove_admin(config: model.Config, worker_number: int | None) -> None:
    path = admin_socket(config, worker_number)
    if path:
        with contextlib.suppress(OSError):
            os.unlink(path)
