"""``sidewall.yaml``: every setting, its default, and why (in brackets: the requirement it comes from).

Frozen types, made by ``config.load`` and read by the whole program. Durations are seconds, sizes bytes. After a
load nothing is left open: what one section inherits from another (a listener's timeouts, an upstream's pool) is
filled in, ``identity.source`` is no longer ``auto``, ``workers`` is a number. Objects made directly, as in
tests, have the plain defaults.

This module is pure, and it is the table from which ``config show``, ``config explain`` and the JSON Schema are
made: a field without a ``setting`` does not exist for the reader of the file.
"""

# ruff: noqa: RUF009 (a setting is a field: called once, for its metadata)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from config.kinds import (
    INVALID,
    Choice,
    FilePath,
    Flag,
    IntegerOr,
    Invalid,
    Many,
    Named,
    OrOff,
    Output,
    Reading,
    Text,
    Where,
    duration,
    integer,
    number,
    size,
)
from config.limits import Limits, ListenerTimeouts, Timeouts, UpstreamTimeouts
from config.nodes import Node
from config.settings import Section, leaves, section, setting, show
from config.traffic import (
    INBOUND,
    NAME,
    OUTBOUND,
    UPSTREAM,
    ConnectionPool,
    HttpPool,
    Inbound,
    LoadBalancer,
    Outbound,
    TcpPool,
    TrafficPolicy,
    Upstream,
)
from config.values import ALL_INTERFACES, LOOPBACK, Address, parse_workload

__all__ = [
    "CONFIG",
    "AccessLog",
    "Address",
    "Admin",
    "Authority",
    "Config",
    "ConnectionPool",
    "Flows",
    "Http2",
    "HttpPool",
    "Identity",
    "Inbound",
    "Limits",
    "ListenerTimeouts",
    "LoadBalancer",
    "Log",
    "Outbound",
    "Policy",
    "Shutdown",
    "TcpPool",
    "Telemetry",
    "Timeouts",
    "Tls",
    "Traces",
    "Tracing",
    "TrafficPolicy",
    "Upstream",
    "UpstreamTimeouts",
    "Workload",
]

_EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})
_DAY: Final = 86400.0
_K8S_NAME: Final = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"


# -- who we are ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The service this proxy stands beside; its SPIFFE ID is spiffe://<trust domain>/ns/<namespace>/sa/<account>."""

    name: str = setting(Text("a name", _K8S_NAME, "api"), "", "the service; the host's name when not given")
    namespace: str = setting(Text("a namespace", _K8S_NAME, "shop"), "default", "namespace of the service")
    service_account: str = setting(Text("a service account", _K8S_NAME, "api"), "", "name of the identity; as name")
    labels: Mapping[str, str] = setting(
        Named(Text("a label value", r"[^\x00-\x1f\x7f]{0,63}"), "a label", r"[A-Za-z0-9][A-Za-z0-9._/-]{0,316}"),
        _EMPTY,
        "what selectors of policies compare with; app: <name> is always there",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "service_account", self.service_account or self.name)
        object.__setattr__(self, "labels", {"app": self.name, **self.labels} if self.name else dict(self.labels))


def _short_workload(node: Node, reading: Reading) -> Workload | Invalid:
    text = node.string()
    if text is None:
        return INVALID
    try:
        namespace, account = parse_workload(text)
    except ValueError as error:
        node.report("SW0105", f"{node.shown} is not a workload", hint=str(error))
        return INVALID
    return Workload(name=account, namespace=namespace)


_AUTHORITY: Final = r"https://[^\s/?#@]+/?|unix:/[^\s\x00]+"
_SOCKET: Final = r"unix:/[^\s\x00?#]+"


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A running CA. ``url`` empty: none."""

    url: str = setting(
        Text("an authority", _AUTHORITY, "https://ca.shop.internal:15012"), "", "https://host:port, or unix:/path"
    )
    token_file: Path | None = setting(FilePath(), None, "Kubernetes service-account token to attest with; read anew")
    bundle_file: Path | None = setting(
        FilePath(), None, "PEM: the root by which the authority is recognised; a machine that joined needs none"
    )


def _short_authority(node: Node, reading: Reading) -> Authority | Invalid:
    url = Text("an authority", _AUTHORITY, "https://ca.shop.internal:15012").read(node, reading)
    return INVALID if isinstance(url, Invalid) else Authority(url=url)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Where certificate, key and trust bundle come from. After a load ``source`` is files, ca-folder, ca or
    workloadApi."""

    source: str = setting(
        Choice("an identity source", "auto", "files", "ca-folder", "ca", "workloadApi"),
        "auto",
        "auto: what is named below; else a CA that runs on this machine, else the folder of a local CA",
    )
    ca: Authority = setting(
        *section(Authority, shorthand=_short_authority, example={"type": "string"}), "a running CA; issues and renews"
    )
    workload_api: str = setting(
        Text("a Workload API", _SOCKET, "unix:/run/spire/agent.sock"), "", "the socket of SPIRE's agent, or of ours"
    )
    folder: Path | None = setting(
        FilePath(), None, "what a machine that joined keeps; in /var/lib/sidewall, or the user's state folder"
    )
    serve: Path | None = setting(
        FilePath(), None, "socket, mode 0660, where our own app gets this identity: Workload API and Envoy SDS"
    )
    cert: Path | None = setting(FilePath(), None, "PEM: our X509-SVID, leaf first; watched")
    key: Path | None = setting(FilePath(), None, "PEM: its private key, mode 0600; watched")
    bundle: Path | None = setting(FilePath(), None, "PEM: the authorities we trust; watched")
    ca_dir: Path | None = setting(FilePath(), None, "folder of a local CA (sidewall ca init); it issues and renews")
    ttl: float = setting(duration(60.0, _DAY), 3600.0, "life of an SVID from the local CA [C-5: 1 h, 60 s to 24 h]")


_LATER_IDENTITY: Final = {"allowTrustDomains": "peers of foreign trust domains are those that the CA federates with"}


# -- policy, telemetry, administration ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Which documents decide, and what happens where none does."""

    from_: tuple[Path, ...] = setting(
        Many(FilePath(), or_one=True), (), "files or folders of documents, watched; ./policy when it is there"
    )
    default: str = setting(
        Choice("a default", "deny", "istio", "audit"),
        "deny",
        "[S-22] deny; istio: allow until an ALLOW policy selects us; audit: decide as deny, record, let pass",
    )
    path_normalization: str = setting(
        Choice("a normalization", "strict", "NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"),
        "strict",
        "[S-23] strict refuses a path with two readings; the others mend it as Istio's setting of that name",
    )
    unsafe_jwks: bool = setting(
        Flag(), False, "fetch keys of tokens by plain http from other machines: who is on the way can forge tokens"
    )


def _short_policy(node: Node, reading: Reading) -> Policy | Invalid:
    found = Many(FilePath(), or_one=True).read(node, reading)
    if isinstance(found, Invalid):
        return INVALID
    reading.nodes["policy.from"] = node
    return Policy(from_=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessLog:
    format: str = setting(Choice("a format", "json", "text", "off"), "json", "one line for each exchange")
    to: str = setting(Output(), "stdout", "stdout, stderr or a path")
    filter: str = setting(
        Text("a filter", r"all|errors|denied|slow>\d+(\.\d+)?m?s", "all, errors, denied or slow>250ms"),
        "all",
        "which exchanges: all, errors, denied, slow>1s",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    sample: float = setting(
        number(0.0, 1.0), 1.0, "share of new traces that are exported, unless OTEL_TRACES_SAMPLER says otherwise"
    )
    trust_incoming: str = setting(
        Choice("whom to trust", "mesh", "always", "never"), "mesh", "[S-11] whose traceparent is continued"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    file: Path | None = setting(FilePath(), None, "SQLite file that sidewall trace reads; none = memory only")
    keep: int = setting(integer(0, 10**6), 2000, "exchanges kept in memory, about 1 KiB each")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flows:
    to: Path | None = setting(
        FilePath(), None, "folder of the flow ledger that policy replay and learn read; none = nothing is kept"
    )
    keep: int = setting(size(2**20, 2**36), 64 * 2**20, "bytes of all its files; the oldest go first")
    paths: str = setting(
        Choice("a form of paths", "template", "exact"), "template", "template: what looks like an id is replaced"
    )
    sources: bool = setting(Flag(), False, "keep the addresses of callers, for policies with ipBlocks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What is told about traffic, and to whom. OTEL_* variables are read under their own names and win."""

    access_log: AccessLog = setting(*section(AccessLog), "the access log")
    tracing: Tracing = setting(*section(Tracing), "trace contexts and sampling")
    traces: Traces = setting(*section(Traces), "the built-in trace reader")
    flows: Flows = setting(*section(Flows), "the flow ledger: who called what, with which verdict")


@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    """Doors for operators [S-34]. After a load ``socket`` is a path, or None when it is off."""

    socket: Path | None = setting(
        OrOff(FilePath()), None, "Unix socket, mode 0660: everything; in /run/sidewall or XDG_RUNTIME_DIR"
    )
    listen: Address | None = setting(
        OrOff(Where(LOOPBACK)), Address(LOOPBACK, 15000), "loopback address: everything; off = none"
    )
    probes: Address | None = setting(
        OrOff(Where(ALL_INTERFACES)), None, "health and metrics only; 15020 in pods, else off"
    )


# -- the process --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    minimum: str = setting(
        Choice("a TLS version", "1.3", "1.2"), "1.3", "[S-1] 1.2 adds ECDHE with AEAD for peers that lack 1.3"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Http2:
    engine: str = setting(
        Choice("an HTTP/2 engine", "ngh2", "h2"), "ngh2", "libnghttp2; h2 is pure Python: slower, the way out"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    drain: float = setting(duration(0.0, 3600.0), 45.0, "[T-8] from SIGTERM to the end, readinessDelay included")
    readiness_delay: float = setting(
        duration(0.0, 600.0), 5.0, "[T-8] not ready, still accepting: load balancers need to notice"
    )


_WORD: Final = r"(?:[a-z_][a-z0-9_.]{0,100}=)?(?:debug|info|warning|error)"
_LEVEL: Final = Text("a log level", rf"{_WORD}(?:,{_WORD}){{0,50}}", "info or info,proxy.upstream=debug")


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    level: str = setting(_LEVEL, "info", "debug, info, warning, error; by module as in info,proxy.upstream=debug")
    format: str = setting(Choice("a format", "auto", "json", "text"), "auto", "auto: text on a terminal, else json")


def _short_log(node: Node, reading: Reading) -> Log | Invalid:
    level = _LEVEL.read(node, reading)
    if isinstance(level, Invalid):
        return INVALID
    reading.nodes["log.level"] = node
    return Log(level=level)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole file."""

    version: int = setting(integer(1, 1), 1, "of this format; may be left out")
    app: Address | None = setting(
        Where(LOOPBACK, names=True), None, "short for one inbound entry: mTLS on :8443, then this address"
    )
    workload: Workload = setting(
        *section(Workload, shorthand=_short_workload, example={"type": "string"}), "who is protected: ns/name"
    )
    trust_domain: str = setting(
        Text("a trust domain", r"[a-z0-9._-]{1,255}", "shop.internal"), "", "what the SVID says when not given"
    )
    identity: Identity = setting(*section(Identity, later=_LATER_IDENTITY), "where the SVID comes from")
    inbound: tuple[Inbound, ...] = setting(Many(INBOUND), (), "doors for others")
    outbound: tuple[Outbound, ...] = setting(Many(OUTBOUND), (), "doors for our app")
    upstreams: Mapping[str, Upstream] = setting(
        Named(UPSTREAM, "an upstream's name", NAME), _EMPTY, "remote services"
    )
    policy: Policy = setting(
        *section(Policy, shorthand=_short_policy, example={"type": ["string", "array"]}), "who may do what"
    )
    telemetry: Telemetry = setting(
        *section(Telemetry, later={"metrics": "metrics are on; their names are not adjustable yet"}), "what is told"
    )
    admin: Admin = setting(*section(Admin), "doors for operators")
    limits: Limits = setting(*section(Limits), "bytes, counts and rates")
    timeouts: Timeouts = setting(*section(Timeouts), "times")
    tls: Tls = setting(*section(Tls), "TLS")
    http2: Http2 = setting(*section(Http2), "HTTP/2")
    workers: int = setting(
        IntegerOr("auto", integer(1, 64)), 1, "processes on the same ports; auto = one for each CPU. 1 = least memory"
    )
    shutdown: Shutdown = setting(
        *section(Shutdown, later={"waitForApp": "it comes with the injector"}), "what SIGTERM begins"
    )
    log: Log = setting(*section(Log, shorthand=_short_log, example={"type": "string"}), "our own log, on stderr")

    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Where each value came from, by path: ``sidewall.yaml:7``, ``env SIDEWALL_WORKERS``, ``--set``, ``default``."""
    secrets: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    """Paths whose values are not to be shown."""

    def shown(self) -> dict[str, Any]:
        """Every value as one would write it, by YAML name; secrets as ``***``."""
        return show(self)

    def flat(self) -> dict[str, str]:
        """``shown`` by path, for ``config show --origin``; secrets as ``***``."""
        return {path: "***" if path in self.secrets else str(value) for path, value in leaves(self.shown())}


CONFIG: Final = Section(
    Config,
    later={
        "secrets": "certificates for public listeners come with the gateway",
        "control": "the control process comes later: name files or folders under policy",
        "gateway": "Gateway documents come later",
    },
)
