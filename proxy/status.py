"""What the administrative doors show: tables of the live process, made when asked."""

from __future__ import annotations

import inspect
import os
import time
from typing import TYPE_CHECKING, Any

import trio

from proxy.admin import Handler, Reply, Request, json_reply, text_reply
from proxy.observe.record import ExchangeRecord
from proxy.policy.facts import AccessRequest
from proxy.version import VERSION

if TYPE_CHECKING:
    from proxy.app import Process

_OPENMETRICS = "application/openmetrics-text"
_DECISIONS = 100
_SECRET = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key"})


def handlers(process: Process) -> tuple[dict[str, Handler], dict[str, Handler]]:
    """The pages (reads) and the verbs (changes) of one process."""
    pages = Pages(process)
    quarantining = process.quarantining
    reads: dict[str, Handler] = {
        "/": pages.index,
        "/live": pages.live,
        "/ready": pages.ready,
        "/startup": pages.ready,
        "/metrics": pages.metrics,
        "/version": pages.version,
        "/status": pages.status,
        "/config": pages.config,
        "/certs": pages.certs,
        "/clusters": pages.clusters,
        "/listeners": pages.listeners,
        "/connections": pages.connections,
        "/policies": pages.policies,
        "/decisions": pages.decisions,
        "/quarantine": quarantining.show,
        "/debug/tasks": pages.tasks,
    }
    changes: dict[str, Handler] = {
        "/reload": pages.reload,
        "/drain": pages.drain,
        "/quarantine": quarantining.change,
    }
    return reads, changes


class Pages:
    """One method per page."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def index(self, request: Request) -> Reply:
        reads, changes = handlers(self._process)
        lines = [f"GET  {path}" for path in reads] + [f"POST {path}" for path in changes]
        return text_reply("\n".join(lines) + "\n")

    async def live(self, request: Request) -> Reply:
        return text_reply("live\n")

    async def ready(self, request: Request) -> Reply:
        missing = self._process.not_ready()
        if not missing:
            return text_reply("ready\n")
        return text_reply("not ready\n" + "".join(f"  {reason}\n" for reason in missing), 503)

    async def metrics(self, request: Request) -> Reply:
        openmetrics = _OPENMETRICS in request.accept
        telemetry = self._process.telemetry
        pieces = []
        for piece in telemetry.registry.render(openmetrics=openmetrics):
            pieces.append(piece.encode())
            await trio.lowlevel.checkpoint()  # a long page must not stall traffic
        kind = f"{_OPENMETRICS}; version=1.0.0" if openmetrics else "text/plain; version=0.0.4"
        return Reply(200, b"", f"{kind}; charset=utf-8", pieces or [b"\n"])

    async def version(self, request: Request) -> Reply:
        return json_reply({"version": VERSION})

    async def status(self, request: Request) -> Reply:
        process = self._process
        worker, config = process.worker, process.loaded.config
        missing = process.not_ready()
        return json_reply(
            {
                "workload": f"{config.workload.namespace}/{config.workload.name}",
                "version": VERSION,
                "pid": os.getpid(),
                "started": process.started,
                "ready": not missing,
                "not_ready": missing,
                "generation": worker.runtime.generation,
                "config_digest": process.loaded.digest,
                "last_reload_ok": process.last_reload_ok,
                "last_reload_at": process.last_reload_at,
                "problems": [str(problem) for problem in process.problems],
                "svid": self._svid(),
                "token_keys": process.jwks.status(),
                "connections": len(worker.connections) + len(worker.splices),
                "requests_in_flight": worker.requests,
                "crashes": process.poller.crashes,
                "draining": worker.draining,
            }
        )

    def _svid(self) -> dict[str, Any] | None:
        credentials = self._process.worker.credentials
        if credentials is None:
            return None
        context = credentials.context
        return {
            "id": str(context.id),
            "not_before": context.not_before,
            "not_after": context.not_after,
            "seconds_left": round(context.not_after - time.time(), 1),
            "trust_domains": sorted(context.bundles),
        }

    async def config(self, request: Request) -> Reply:
        loaded = self._process.loaded
        return json_reply(
            {
                "generation": self._process.worker.runtime.generation,
                "values": loaded.config.flat(),
                "origins": dict(loaded.config.origins),
                "files": [str(path) for path in loaded.files],
                "problems": [str(problem) for problem in self._process.problems],
            }
        )

    async def certs(self, request: Request) -> Reply:
        credentials = self._process.worker.credentials
        if credentials is None:
            return json_reply({"svid": None, "problem": self._process.identity_problem}, 503)
        chain = [_certificate(cert) for cert in credentials.context.svid.chain]
        bundles = {
            name: [_certificate(cert) for cert in bundle.authorities]
            for name, bundle in credentials.context.bundles.items()
        }
        return json_reply({"svid": self._svid(), "chain": chain, "bundles": bundles})

    async def clusters(self, request: Request) -> Reply:
        return json_reply([_cluster(cluster) for cluster in self._process.worker.clusters.values()])

    async def listeners(self, request: Request) -> Reply:
        services = self._process.services
        return json_reply(
            [
                {
                    "name": services[key].settings.name,
                    "direction": services[key].settings.direction,
                    "listen": key,
                    "cluster": services[key].cluster.name,
                    "accepted": listener.accepted,
                }
                for key, listener in self._process.worker.listeners.items()
            ]
        )

    async def connections(self, request: Request) -> Reply:
        now = self._process.poller.now
        some = list(self._process.worker.connections)[:1000]
        return json_reply(
            [
                {
                    "direction": c.facts.direction,
                    "listener": c.facts.listener,
                    "peer": c.facts.peer.uri if c.facts.peer else None,
                    "peer_address": c.facts.peer_address,
                    "protocol": "HTTP/2" if c.engine.version == 20 else "HTTP/1.1",
                    "open_exchanges": len(c.exchanges),
                    "requests": c.requests,
                    "age_seconds": round(now - c.opened_at, 3),
                    "idle_seconds": round(now - c.last_active, 3),
                }
                for c in some
            ]
        )

    async def policies(self, request: Request) -> Reply:
        runtime = self._process.worker.runtime
        return json_reply(
            {
                "generation": runtime.generation,
                "default_deny": True,
                "documents": [
                    {"name": policy.name, "namespace": policy.namespace, "action": str(policy.action)}
                    for policy in self._process.loaded.documents.policies
                ],
            }
        )

    async def decisions(self, request: Request) -> Reply:
        """What was refused lately, newest first; ``?id=`` only that decision. Over the Unix socket alone: the facts
        may name persons."""
        if request.uid is None:
            return text_reply("decisions are shown over the Unix socket only\n", 403)
        wanted, process = request.query.get("id", ""), self._process
        recent = [r for r in reversed(process.telemetry.recent) if isinstance(r, ExchangeRecord) and r.decision_id]
        found = [_decision(record) for record in recent if wanted in ("", record.decision_id)][:_DECISIONS]
        workload = process.loaded.config.workload
        return json_reply(
            {
                "workload": {
                    "namespace": workload.namespace,
                    "name": workload.name,
                    "labels": dict(workload.labels),
                },
                "default": process.loaded.config.policy.default,
                "policy": [str(path) for path in process.loaded.config.policy.from_],
                "generation": process.worker.runtime.generation,
                "items": found,
            }
        )

    async def tasks(self, request: Request) -> Reply:
        return text_reply(task_tree() + "\n")

    async def reload(self, request: Request) -> Reply:
        problems = await self._process.reload()
        generation = self._process.worker.runtime.generation
        body = {"ok": not problems, "generation": generation, "problems": [str(p) for p in problems]}
        return json_reply(body, 409 if problems else 200)

    async def drain(self, request: Request) -> Reply:
        self._process.stop()
        return json_reply({"draining": True})


def _decision(record: ExchangeRecord) -> dict[str, Any]:
    decision, question, trace = record.decision, record.question, record.trace
    return {
        "id": record.decision_id,
        "at": record.started,
        "generation": record.generation,
        "allowed": decision.allowed if decision is not None else False,
        "reason": record.reason,
        "policy": decision.policy if decision is not None else None,
        "rule": decision.rule if decision is not None else None,
        "facts": _shown(question) if question is not None else None,
        "caller_address": record.peer_address,
        "trace_id": trace.trace_id.decode("ascii") if trace is not None else None,
    }


def _shown(question: AccessRequest) -> dict[str, Any]:
    """The facts, but for headers that carry secrets: who needs them has the request."""
    facts = question.canonical()
    for name in _SECRET & facts.get("headers", {}).keys():
        facts["headers"][name] = ["(not shown)"]
    return facts


def _certificate(cert: Any) -> dict[str, Any]:
    return {
        "subject": cert.subject.rfc4514_string(),
        "issuer": cert.issuer.rfc4514_string(),
        "serial": f"{cert.serial_number:x}",
        "not_before": cert.not_valid_before_utc.isoformat(),
        "not_after": cert.not_valid_after_utc.isoformat(),
    }


def _cluster(cluster: Any) -> dict[str, Any]:
    return {
        "name": cluster.name,
        "tls": cluster.settings.tls,
        "expect": sorted(cluster.settings.expect),
        "connections": cluster.connections,
        "waiting": cluster.waiting,
        "dns": cluster.settings.dns or None,
        "resolve_error": cluster.resolve_error or None,
        "endpoints": [
            {
                "address": endpoint.text,
                "active": endpoint.active,
                "connections": endpoint.open_connections,
                "failures": endpoint.failures,
                "healthy": endpoint.failing_until <= cluster.poller.now,
            }
            for endpoint in cluster.endpoints
        ],
    }


def task_tree() -> str:
    """The tree of trio tasks, for SIGQUIT and ``/debug/tasks``."""
    root = trio.lowlevel.current_root_task()
    lines: list[str] = []
    if root is not None:
        _describe(root, 0, lines)
    return "\n".join(lines)


def _describe(task: trio.lowlevel.Task, depth: int, lines: list[str]) -> None:
    where = ""
    frame = getattr(task.coro, "cr_frame", None)
    if frame is not None and inspect.isframe(frame):
        where = f"  line {frame.f_lineno}"
    lines.append("  " * depth + task.name + where)
    for nursery in task.child_nurseries:
        for child in sorted(nursery.child_tasks, key=lambda child: child.name):
            _describe(child, depth + 1, lines)


