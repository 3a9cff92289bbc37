"""Metrics of the authority's process, and its pages ``/live``, ``/ready`` and ``/metrics``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from identity.ca.model import CaStatus
from identity.rpc import Call, Status
from proxy.admin import Admin, Reply, Request, text_reply
from proxy.ca.work import now
from proxy.observe.metrics import TEXT_TYPE, Registry

_KNOWN_PREFIX: Final = "/sidewall.ca.v1."


class Gauges:
    """Written by the server: calls as they end, and what the authority says of itself from time to time."""

    def __init__(self) -> None:
        self.registry = Registry()
        registry = self.registry
        self._calls = registry.counter("sidewall_ca_calls_total", "Calls that have ended.", "method", "status")
        self._seconds = registry.histogram("sidewall_ca_call_duration_seconds", "Duration of calls.", "method")
        self._first_lapse = registry.gauge(
            "sidewall_ca_first_lapse_seconds",
            "For how long the authority may be away before the first holder has no valid SVID.",
        ).labels()
        self._svids = registry.gauge("sidewall_ca_live_svids", "Certificates that have not expired.").labels()
        self._nodes = registry.gauge("sidewall_ca_nodes", "Nodes that are known.").labels()
        self._entries = registry.gauge("sidewall_ca_entries", "Registration entries.").labels()
        self._revocations = registry.gauge("sidewall_ca_revocations", "Revocations in force.").labels()
        self._problems = registry.gauge("sidewall_ca_problems", "Problems that `ca status` names.").labels()
        self._ends = registry.gauge(
            "sidewall_ca_authority_not_after_seconds", "When the active authority of a kind ends (epoch).", "kind"
        )

    def watch(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """One more gauge, read when the page is made."""
        self.registry.gauge(name, help_text).set_function(read)

    def call_ended(self, call: Call, status: Status, seconds: float) -> None:
        method = call.method.removeprefix(_KNOWN_PREFIX)
        self._calls.labels(method, status.name).value += 1
        if not method.endswith("/Watch"):
            self._seconds.labels(method).observe(seconds)

    def take(self, status: CaStatus) -> None:
        """What the authority said of itself just now."""
        self._first_lapse.value = max(status.first_lapse - now().timestamp(), 0.0) if status.first_lapse else 0.0
        self._svids.value = status.live_svids
        self._nodes.value = status.nodes
        self._entries.value = status.entries
        self._revocations.value = status.revocations
        self._problems.value = len(status.problems)
        for view in status.authorities:
            if view.state == "active":
                self._ends.labels(view.kind).value = view.not_after


def door(gauges: Gauges, not_ready: Callable[[], list[str]]) -> Admin:
    """The pages; there is nothing to change by HTTP."""

    async def live(request: Request) -> Reply:
        return text_reply("live\n")

    async def ready(request: Request) -> Reply:
        missing = not_ready()
        if not missing:
            return text_reply("ready\n")
        return text_reply("not ready\n" + "".join(f"  {reason}\n" for reason in missing), 503)

    async def metrics(request: Request) -> Reply:
        return Reply(200, b"", TEXT_TYPE, [piece.encode() for piece in gauges.registry.render()] or [b"\n"])

    return Admin({"/live": live, "/ready": ready, "/startup": ready, "/metrics": metrics}, {})
