"""What one setting says about another: fill in what is inherited, then check the whole.

``resolve`` takes a configuration as read, and gives it complete: nothing is ``auto`` that can be decided, each
listener and upstream has its own times. Whether a value was written is asked of ``reading.nodes``, which also
says where it stands, so that a contradiction is reported at the place to change.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from config.kinds import Reading
from config.limits import ListenerTimeouts, Timeouts, UpstreamTimeouts
from config.model import Admin, Authority, Config, Identity, Inbound, Outbound, Policy, Shutdown, Upstream, Workload
from config.nodes import Node
from config.problems import suggest
from config.settings import camel
from config.values import ALL_INTERFACES, Address, check_socket_path

T = TypeVar("T", ListenerTimeouts, UpstreamTimeouts)

_POOL_NAMES = {"idle": "pool_idle"}  # of UpstreamTimeouts, in Timeouts


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the machine says: environment, host name, where state and sockets may be, how many CPUs."""

    env: Mapping[str, str]
    host: str
    cpus: int
    base: Path

    @classmethod
    def here(cls, env: Mapping[str, str], base: Path) -> Surroundings:
        return cls(env, os.uname().nodename, _cpus(Path("/sys/fs/cgroup/cpu.max")), base)

    @property
    def state(self) -> Path:
        """XDG base directory specification: where a user's programs keep their state."""
        home = self.env.get("XDG_STATE_HOME")
        return (Path(home) if home else Path(self.env.get("HOME", "/")) / ".local" / "state") / "sidewall"

    @property
    def sockets(self) -> Path:
        run = Path("/run/sidewall")
        user = self.env.get("XDG_RUNTIME_DIR")
        if os.access(run, os.W_OK) or (not user and os.geteuid() == 0):
            return run
        return Path(user) / "sidewall" if user else Path("/tmp") / f"sidewall-{os.geteuid()}"  # noqa: S108

    @property
    def ca(self) -> Path | None:
        """The socket of a CA that runs on this machine (`sidewall ca serve`), None when there is none."""
        told = self.env.get("SIDEWALL_CA", "").removeprefix("unix:")
        found = Path(told) if told else self.sockets / "ca.sock"
        return found if found.is_socket() else None

    @property
    def identity(self) -> Path:
        """What a machine that joined keeps."""
        if os.geteuid() == 0 and "XDG_STATE_HOME" not in self.env:
            return Path("/var/lib/sidewall/identity")
        return self.state / "identity"


def _cpus(quota: Path) -> int:
    """How many CPUs we may use: our affinity, or the container's share of them when that is less (cgroup v2)."""
    affinity = len(os.sched_getaffinity(0))
    try:
        most, period = quota.read_text().split()
        return affinity if most == "max" else max(1, min(affinity, -(-int(most) // int(period))))
    except (OSError, ValueError, ZeroDivisionError):
        return affinity


class Resolver:
    """One pass over one configuration. ``inherited``: which path's value stands at which other path."""

    def __init__(self, root: Node, reading: Reading, here: Surroundings) -> None:
        self._root = root
        self._reading = reading
        self._here = here
        self.inherited: dict[str, str] = {}

    def at(self, path: str) -> Node:
        """The node of ``path``, or the nearest one around it."""
        while path and path not in self._reading.nodes:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self._reading.nodes.get(path, self._root)

    def written(self, path: str) -> bool:
        return path in self._reading.nodes

    def paths(self, name: str, items: Sequence[object]) -> list[str]:
        """The path of each item of a list, as written: those that could not be read are not among ``items``."""
        kept = self._reading.kept.get(name, range(len(items)))
        return [f"{name}[{index}]" for index in kept]

    def resolve(self, config: Config) -> Config:
        config = replace(
            config,
            workload=self._workload(config.workload),
            identity=self._identity(config.identity),
            policy=self._policy(config.policy),
            workers=config.workers or min(self._here.cpus, 64),
            inbound=self._inbounds(config),
            outbound=self._outbounds(config),
            upstreams={name: self._upstream(name, item, config) for name, item in config.upstreams.items()},
        )
        config = replace(config, admin=self._admin(config.admin, config.workload))
        self._check(config)
        return config

    # -- filling in ---------------------------------------------------------------------------------------

    def _workload(self, workload: Workload) -> Workload:
        if workload.name:
            return workload
        env = self._here.env
        if not self.written("workload") and env.get("POD_NAMESPACE") and env.get("SERVICE_ACCOUNT"):
            return Workload(name=env["SERVICE_ACCOUNT"], namespace=env["POD_NAMESPACE"])
        name = re.sub(r"[^a-z0-9.-]", "-", self._here.host.lower()).strip("-.") or "sidewall"
        return replace(workload, name=name)

    def _identity(self, identity: Identity) -> Identity:
        files = [name for name in ("cert", "key", "bundle") if getattr(identity, name) is not None]
        source, identity = self._source(identity, files)
        if source in ("ca", "workloadApi"):
            return replace(identity, source=source, ca_dir=None)
        if files and (identity.ca_dir is not None or source == "ca-folder"):
            path = "identity.caDir" if identity.ca_dir is not None else f"identity.{files[0]}"
            hint = "keep the files, or the folder of a CA"
            self.at(path).report_key("SW0206", "certificate files and a CA folder do not go together", hint=hint)
        elif source == "files":
            for name in ("cert", "key", "bundle"):
                if name not in files:
                    why = "certificate, key and trust bundle go together"
                    self.at("identity").report("SW0106", f"'identity.{name}' is missing", hint=why)
        if source == "files":
            return replace(identity, source=source, ca_dir=None)
        return replace(identity, source=source, ca_dir=identity.ca_dir or self._here.state / "ca")

    def _source(self, identity: Identity, files: list[str]) -> tuple[str, Identity]:
        """Which source is meant; two that are named at once do not go together."""
        named = {
            "ca": bool(identity.ca.url),
            "workloadApi": bool(identity.workload_api),
            "files": bool(files),
            "ca-folder": identity.ca_dir is not None,
        }
        chosen = [source for source, is_named in named.items() if is_named]
        if {"ca", "workloadApi"} & set(chosen) and len(chosen) > 1:
            hint = "keep one of them"
            self.at("identity").report("SW0206", f"{' and '.join(chosen)} do not go together", hint=hint)
        source = identity.source
        if source == "auto":
            source = chosen[0] if chosen else "ca" if self._here.ca is not None else "ca-folder"
        if source == "ca" and not identity.ca.url and self._here.ca is not None:
            identity = replace(identity, ca=Authority(url=f"unix:{self._here.ca}"))
        for wanted, field in (("ca", "ca"), ("workloadApi", "workloadApi")):
            if source == wanted and not (identity.ca.url if wanted == "ca" else identity.workload_api):
                self.at("identity").report("SW0106", f"'identity.{field}' is missing", hint="say where it is")
        folder = identity.folder or self._here.identity
        return source, replace(identity, folder=folder if source == "ca" else None)

    def _policy(self, policy: Policy) -> Policy:
        usual = self._here.base / "policy"
        return policy if self.written("policy.from") or not usual.exists() else replace(policy, from_=(usual,))

    def _inbounds(self, config: Config) -> tuple[Inbound, ...]:
        items = config.inbound
        if config.app is not None:
            if self.written("inbound"):
                self.at("app").report_key("SW0206", "'app' is short for an inbound entry: write one of them")
            else:
                items = (Inbound(app=config.app),)
                self.inherited["inbound[0].app"] = "app"
        paths = self.paths("inbound", items)
        return tuple(self._inbound(path, item, items, config) for path, item in zip(paths, items, strict=True))

    def _inbound(self, path: str, item: Inbound, items: Sequence[Inbound], config: Config) -> Inbound:
        limits = {"max_body": ("maxBody", "body"), "max_header": ("maxHeader", "head")}
        inherited = {}
        for attribute, (name, limit) in limits.items():
            if not self.written(f"{path}.{name}"):
                self.inherited[f"{path}.{name}"] = f"limits.{limit}"
                inherited[attribute] = getattr(config.limits, limit)
        protocol, app_protocol = self._protocols(path, item)
        return replace(
            item,
            name=item.name or self._inbound_name(item, items),
            protocol=protocol,
            app_protocol=app_protocol,
            timeouts=self._times(f"{path}.timeouts", item.timeouts, config.timeouts, {}),
            **inherited,
        )

    @staticmethod
    def _inbound_name(item: Inbound, items: Sequence[Inbound]) -> str:
        """``in-8443``, or with the host where several listen on the same port of different addresses."""
        listen = item.listen
        if listen.path:
            return f"in-{Path(listen.path).stem}"
        shared = sum(other.listen.port == listen.port for other in items) > 1
        return f"in-{listen.host}-{listen.port}" if shared else f"in-{listen.port}"

    def _protocols(self, path: str, item: Inbound) -> tuple[str, str]:
        """Opaque bytes on one side are opaque bytes on the other."""
        near, far = item.protocol, item.app_protocol
        if near == "auto" and far == "tcp":
            return "tcp", "tcp"
        if near == "tcp" and far == "auto":
            return "tcp", "tcp"
        if (near == "tcp") != (far == "tcp"):
            hint = "tcp on both sides, or on none"
            message = f"protocol {near} cannot lead to an app that speaks {far}"
            self.at(f"{path}.appProtocol").report("SW0206", message, hint=hint)
        return near, "http1" if far == "auto" else far

    def _outbounds(self, config: Config) -> tuple[Outbound, ...]:
        names = [item.name or item.to for item in config.outbound]
        found = []
        for path, item in zip(self.paths("outbound", config.outbound), config.outbound, strict=True):
            shared = not item.name and names.count(item.to) > 1
            name = f"{item.to}-{item.listen.port}" if shared else item.name or item.to
            times = self._times(f"{path}.timeouts", item.timeouts, config.timeouts, {})
            found.append(replace(item, name=name, timeouts=times))
        return tuple(found)

    def _upstream(self, name: str, item: Upstream, config: Config) -> Upstream:
        path = f"upstreams.{name}"
        pool = item.traffic_policy.connection_pool
        istio = {
            "connect": (f"{path}.trafficPolicy.connectionPool.tcp.connectTimeout", pool.tcp.connect_timeout),
            "idle": (f"{path}.trafficPolicy.connectionPool.http.idleTimeout", pool.http.idle_timeout),
        }
        times = self._times(f"{path}.timeouts", item.timeouts, config.timeouts, _POOL_NAMES)
        for own, (place, value) in istio.items():
            if not self.written(place):
                continue
            if self.written(f"{path}.timeouts.{own}"):
                hint = f"keep one of timeouts.{own} and this"
                self.at(place).report_key("SW0206", "the same time is written twice", hint=hint)
            times = replace(times, **{own: value})
            self.inherited[f"{path}.timeouts.{own}"] = place
        tcp = replace(pool.tcp, connect_timeout=times.connect)
        http = replace(pool.http, idle_timeout=times.idle)
        traffic = replace(item.traffic_policy, connection_pool=replace(pool, tcp=tcp, http=http))
        return replace(item, timeouts=times, traffic_policy=traffic)

    def _times(self, path: str, own: T, general: Timeouts, names: Mapping[str, str]) -> T:
        """``own`` where it was written, otherwise the general value."""
        taken: dict[str, Any] = {}
        for field in fields(own):
            source = names.get(field.name, field.name)
            if not self.written(f"{path}.{camel(field.name)}"):
                taken[field.name] = getattr(general, source)
                self.inherited[f"{path}.{camel(field.name)}"] = f"timeouts.{camel(source)}"
        return replace(own, **taken)

    def _admin(self, admin: Admin, workload: Workload) -> Admin:
        if not self.written("admin.socket"):
            admin = replace(admin, socket=self._here.sockets / f"{workload.name}.sock")
        if not self.written("admin.probes") and "KUBERNETES_SERVICE_HOST" in self._here.env:
            admin = replace(admin, probes=Address(ALL_INTERFACES, 15020))
        return admin

    # -- checking -----------------------------------------------------------------------------------------

    def _check(self, config: Config) -> None:
        for path, item in zip(self.paths("inbound", config.inbound), config.inbound, strict=True):
            self._check_inbound(path, item)
        for path, out in zip(self.paths("outbound", config.outbound), config.outbound, strict=True):
            self._check_outbound(path, out, config)
        for name, upstream in config.upstreams.items():
            self._check_upstream(f"upstreams.{name}", name, upstream, config)
        self._check_admin(config.admin)
        self._check_addresses(config)
        self._check_names("inbound", config.inbound)
        self._check_names("outbound", config.outbound)
        self._check_shutdown(config.shutdown)
        self._check_limits(config)
        if not config.inbound and not config.outbound and self._root.kind == "mapping" and not self._said():
            hint = "add app: 8080, or inbound and outbound entries"
            self._root.warn("SW0208", "nothing to do: no inbound and no outbound listener", hint=hint)

    def _said(self) -> bool:
        """Listeners were written, whether or not they could be read."""
        return any(self.written(name) for name in ("app", "inbound", "outbound"))

    def _check_inbound(self, path: str, item: Inbound) -> None:
        app = self.at("app" if self.inherited.get(f"{path}.app") else f"{path}.app")
        if not item.app.is_local and not item.unsafe_app:
            hint = "write 127.0.0.1 or unix:/path; if you must, unsafeApp: true"
            app.report("SW0203", f"the app {app.shown} is not on this machine", hint=hint)
        if item.app == item.listen or (item.app.is_local and item.app.overlaps(item.listen)):
            app.report("SW0206", "the app's address is the one we listen on: requests would go in circles")

    def _check_outbound(self, path: str, item: Outbound, config: Config) -> None:
        if item.to not in config.upstreams and item.to not in self._broken_upstreams():
            node, known = self.at(f"{path}.to"), sorted(config.upstreams)
            place = self.at("upstreams")
            note = f"known upstreams: {', '.join(known) or 'none'}"
            if known:
                note += f"   ({place.file}:{place.line})"
            node.report("SW0201", f"{node.shown} names no upstream", hint=suggest(item.to, known), note=note)
        if not item.listen.is_local and not item.unsafe_listen:
            node = self.at(f"{path}.listen")
            hint = "write 127.0.0.1; if you must, unsafeListen: true"
            node.report("SW0203", f"others could use our identity through {item.listen}", hint=hint)

    def _broken_upstreams(self) -> set[str]:
        """Upstreams that are there, but could not be read: their own problem is enough."""
        node = self._reading.nodes.get("upstreams")
        return set(node.entries) if node is not None else set()

    def _check_upstream(self, path: str, name: str, item: Upstream, config: Config) -> None:
        where = self.at(path)
        if not item.endpoints and item.dns is None:
            hint = "add endpoints: [..] or dns: name:port"
            where.report_key("SW0106", f"upstream '{name}' has no address", hint=hint)
        if item.endpoints and item.dns is not None:
            self.at(f"{path}.dns").report_key("SW0206", "endpoints and dns do not go together", hint="keep one")
        if item.dns is not None and item.dns.path:
            self.at(f"{path}.dns").report("SW0105", "a socket has no name", hint="write it under endpoints")
        if not item.expect and (not self.written(f"{path}.expect") or self.at(f"{path}.expect").kind == "sequence"):
            hint = "add expect: namespace/service-account"
            where.report_key("SW0204", f"upstream '{name}' does not say whom to expect", hint=hint)
        named = {out.to for out in config.outbound}
        if name not in named and named <= config.upstreams.keys():  # otherwise it may be the one misspelled there
            key = where.key or where
            key.warn("SW0207", f"no outbound listener leads to upstream '{name}'", hint="add one, or remove it")

    def _check_admin(self, admin: Admin) -> None:
        if admin.listen is not None and not admin.listen.is_local:
            hint = "write 127.0.0.1:15000 or off; probes may be reached from outside"
            self.at("admin.listen").report("SW0203", "administration must not be reachable from outside", hint=hint)
        try:
            check_socket_path(str(admin.socket) + ".00")  # workers append their number
        except ValueError as error:
            self.at("admin.socket").report("SW0105", f"{admin.socket} is too long", hint=str(error))
        if admin.probes is not None and admin.probes.path:
            self.at("admin.probes").report("SW0105", "probes need a port")

    def _check_addresses(self, config: Config) -> None:
        seen: list[tuple[str, Address]] = []
        for path, address in self._listening(config):
            for other, taken in seen:
                if address.overlaps(taken):
                    first = self.at(other)
                    note = f"{other} listens on {taken}" + (f" ({first.file}:{first.line})" if first.line else "")
                    self.at(path).report("SW0202", f"{address} is listened on twice", note=note)
                    break
            seen.append((path, address))

    def _check_names(self, kind: str, items: Sequence[Inbound | Outbound]) -> None:
        seen: set[str] = set()
        for path, item in zip(self.paths(kind, items), items, strict=True):
            if item.name in seen and self.written(f"{path}.name"):
                self.at(f"{path}.name").report(
                    "SW0202", f"two {kind} listeners are named '{item.name}'", hint="give them names that differ"
                )
            seen.add(item.name)

    def _check_shutdown(self, shutdown: Shutdown) -> None:
        if shutdown.readiness_delay > shutdown.drain:
            path = "shutdown.drain" if self.written("shutdown.drain") else "shutdown.readinessDelay"
            self.at(path).report("SW0206", "readinessDelay is longer than drain, of which it is a part")

    def _check_limits(self, config: Config) -> None:
        limits = config.limits
        less: list[tuple[str, str, Callable[[], bool]]] = [
            ("header", "head", lambda: limits.header > limits.head),
            ("requestLine", "head", lambda: limits.request_line > limits.head),
            ("streamWindow", "connectionWindow", lambda: limits.stream_window > limits.connection_window),
            ("connectionsPerPeer", "connections", lambda: limits.connections_per_peer > limits.connections),
            ("requestsPerPeer", "requests", lambda: limits.requests_per_peer > limits.requests),
        ]
        for one, other, broken in less:
            if broken():
                path = f"limits.{one}" if self.written(f"limits.{one}") else f"limits.{other}"
                self.at(path).report("SW0206", f"limits.{one} is more than limits.{other}, of which it is a part")

    def _listening(self, config: Config) -> Iterator[tuple[str, Address]]:
        for kind in ("inbound", "outbound"):
            items: Sequence[Inbound | Outbound] = getattr(config, kind)
            for path, item in zip(self.paths(kind, items), items, strict=True):
                yield f"{path}.listen", item.listen
        for name in ("listen", "probes"):
            address = getattr(config.admin, name)
            if address is not None:
                yield f"admin.{name}", address
        if config.admin.socket is not None:
            yield "admin.socket", Address(path=str(config.admin.socket))
