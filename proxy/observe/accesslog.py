"""The access log: one line per exchange (``sink.py`` is the place the lines go to).

Lines are made by the event loop's thread when the exchange ends and written by another one, many at a time. To
make them in that thread too was tried: the interpreter lock's hand-overs and the cold caches made a line three
times as dear (10 instead of 3 us), and the loop's 99th percentile ten times as long. So a line must be cheap: one
small dict, one ``orjson.dumps``, the text of the second cached, the constant half cached by the caller. Keys are
Istio's where Istio has one; absent means null.

No log forging: wire bytes are ASCII or written as ``\\xNN``; orjson escapes control characters and quotes;
other text that came from outside (certificate errors, parser words) is escaped unless all of it is printable.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import orjson

from proxy.observe.record import ConnectionRecord, ExchangeRecord
from proxy.observe.spans import decision_word

if TYPE_CHECKING:
    from proxy.policy.engine import Decision

Record = ExchangeRecord | ConnectionRecord
Filter = Callable[[Record], bool]

PROTOCOLS: Final = {10: "HTTP/1.0", 11: "HTTP/1.1", 20: "HTTP/2"}
_MILLIS: Final = tuple(f"{n:03d}Z" for n in range(1000))
_NEWLINE: Final = orjson.OPT_APPEND_NEWLINE

# Envoy's response_code_details for what Envoy has a word for (source/common/stream_info/utility.h).
_DETAILS: Final = {
    "": "via_upstream",
    "route_not_found": "route_not_found",
    "upstream_not_configured": "cluster_not_found",
    "no_healthy_endpoint": "no_healthy_upstream",
    "upstream_connect_failed": "upstream_reset_before_response_started{connection_failure}",
    "upstream_connect_timeout": "upstream_reset_before_response_started{connection_timeout}",
    "upstream_tls_failed": "upstream_reset_before_response_started{connection_failure}",
    "upstream_identity_mismatch": "upstream_reset_before_response_started{connection_failure}",
    "upstream_closed": "upstream_reset_before_response_started{connection_termination}",
    "upstream_reset": "upstream_reset_before_response_started{remote_reset}",
    "overflow_requests": "upstream_reset_before_response_started{overflow}",
    "upstream_timeout": "response_timeout",
    "idle_timeout": "stream_idle_timeout",
    "downstream_closed": "downstream_remote_disconnect",
    "downstream_reset": "downstream_remote_reset",
    "overload": "overload",
}
_DENIALS: Final = frozenset({"no_allow_policy_matched", "deny_policy_matched", "mtls_required"})


def show_text(text: str) -> str:
    """Text that may come from outside, without characters that could move a terminal's cursor."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


class JsonLines:
    """Records -> JSON lines. Not thread-safe: one thread owns it.

    A line is made of what differs from exchange to exchange and of what does not: peer, decision, route, code...
    The second half (``tail``) is made once for each combination and kept by the caller.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, str] = {}

    def render(self, record: Record) -> bytes:
        """One line with its line end. Raises TypeError only for a record with wrong types in it."""
        return orjson.dumps(self.fields(record), option=_NEWLINE)

    def fields(self, record: Record) -> dict[str, Any]:
        """The line as a dict (also for ``/tap``)."""
        if isinstance(record, ExchangeRecord):
            return {**self._varying(record), **_constant(record)}
        return self._connection(record)

    def tail(self, record: ExchangeRecord) -> bytes | None:
        """The constant half of the line, to be given to ``render_with`` for all records like this one."""
        return b"," + orjson.dumps(_constant(record), option=_NEWLINE)[1:]

    def render_with(self, tail: bytes, record: ExchangeRecord) -> bytes:
        """``render`` at two thirds of the price."""
        return orjson.dumps(self._varying(record))[:-1] + tail

    def time(self, when: float) -> str:
        """Seconds since the epoch -> RFC 3339 in UTC with milliseconds."""
        second = int(when)
        prefix = self._seconds.get(second)
        if prefix is None:
            if len(self._seconds) > 100:  # exchanges that end together began at different times
                self._seconds.clear()
            prefix = self._seconds[second] = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
        return prefix + _MILLIS[int((when - second) * 1000)]

    def _varying(self, record: ExchangeRecord) -> dict[str, Any]:
        line: dict[str, Any] = {
            "start_time": self.time(record.started),
            "method": record.method.decode("ascii", "backslashreplace"),
            "path": record.path.decode("ascii", "backslashreplace"),
            "bytes_received": record.bytes_received,
            "bytes_sent": record.bytes_sent,
            "duration": _millis(record.ended_at - record.started_at),
            "authority": record.authority.decode("ascii", "backslashreplace"),
            "downstream_remote_address": record.peer_address,
            "downstream_local_address": record.local_address,
            "attempts": record.attempts,
            "generation": record.generation,
        }
        if record.first_byte_at and record.sent_at:
            line["upstream_service_time"] = _millis(record.first_byte_at - record.sent_at)
        if record.upstream_address:
            line["upstream_host"] = record.upstream_address
        if record.request_id:
            line["request_id"] = record.request_id.decode("ascii", "backslashreplace")
        if record.user_agent:
            line["user_agent"] = record.user_agent.decode("ascii", "backslashreplace")
        if record.x_forwarded_for:
            line["x_forwarded_for"] = record.x_forwarded_for.decode("ascii", "backslashreplace")
        if record.reason:
            _add_details(line, record)
        if record.decision_id:
            line["decision_id"] = record.decision_id
        trace = record.trace
        if trace is not None:
            line["trace_id"] = trace.trace_id.decode()
            line["span_id"] = trace.span_id.decode()
            line["sampled"] = trace.sampled
        return line

    def _connection(self, record: ConnectionRecord) -> dict[str, Any]:
        peer = record.peer if record.direction == "inbound" else record.upstream_peer
        line: dict[str, Any] = {
            "start_time": self.time(record.started),
            "protocol": "TLS" if record.kind == "tls" else "TCP",
            "bytes_received": record.bytes_received,
            "bytes_sent": record.bytes_sent,
            "duration": _millis(record.ended_at - record.started_at),
            "direction": record.direction,
            "downstream_remote_address": record.peer_address,
            "downstream_local_address": record.local_address,
            "mtls": peer is not None,
            "generation": record.generation,
        }
        optional = {
            "response_flags": record.flags,
            "reason": record.reason,
            "connection_termination_details": show_text(record.details),
            "upstream_host": record.upstream_address,
            "upstream_cluster": record.upstream_name,
            "tls_version": record.tls_version,
            "peer": peer.uri if peer is not None else "",
        }
        line.update((key, value) for key, value in optional.items() if value)
        if record.decision is not None:
            _add_decision(line, record.decision)
        return line


def _millis(seconds: float) -> float:
    """Milliseconds with three decimals; a third of the price of round()."""
    return int(seconds * 1e6 + 0.5) / 1000


def _response_code_details(record: ExchangeRecord) -> str:
    reason = record.reason
    if reason in _DENIALS:
        policy = record.decision.policy if record.decision is not None else None
        return f"rbac_access_denied_matched_policy[{policy or 'none'}]"
    if reason.startswith("upstream_") and record.status < 500:
        return reason  # Envoy's words say "before response started", which would be false here
    return _DETAILS.get(reason, reason)


def _add_details(line: dict[str, Any], record: ExchangeRecord) -> None:
    """The words for this one failure; ``reason`` itself is part of the constant half."""
    if record.details:
        is_connecting = record.flags.startswith("UF") or record.reason == "dns_failed"
        key = "upstream_transport_failure_reason" if is_connecting else "connection_termination_details"
        line[key] = show_text(record.details)
    if record.decision is not None and record.decision.nearest is not None:
        line["nearest"] = record.decision.nearest


def _constant(record: ExchangeRecord) -> dict[str, Any]:
    """Nothing here may depend on more of the record than ``Telemetry.finish`` puts into its key."""
    peer = record.peer if record.direction == "inbound" else record.upstream_peer
    line: dict[str, Any] = {
        "direction": record.direction,
        "protocol": PROTOCOLS.get(record.version),
        "response_code": record.status,
        "response_code_details": _response_code_details(record),
        "mtls": peer is not None,
    }
    optional = {
        "peer": peer.uri if peer is not None else "",
        "tls_version": record.tls_version,
        "response_flags": record.flags,
        "reason": record.reason,
        "route_name": record.route,
        "upstream_cluster": record.upstream_name,
    }
    line.update((key, value) for key, value in optional.items() if value)
    if record.grpc_status is not None:
        line["grpc_status"] = record.grpc_status
    if record.decision is not None:
        _add_decision(line, record.decision)
    return line


def _add_decision(line: dict[str, Any], decision: Decision) -> None:
    line["decision"] = decision_word(decision)
    if decision.policy is not None:
        line["policy"] = decision.policy
    if decision.rule is not None:
        line["rule"] = decision.rule


class TextLines(JsonLines):
    """Envoy's default line (docs: access log usage, "Default Format String")."""

    def tail(self, record: ExchangeRecord) -> bytes | None:
        return None

    def render(self, record: Record) -> bytes:
        line = self.fields(record)

        def bare(key: str) -> str:
            return str(line.get(key, "-"))

        def quoted(key: str) -> str:
            return orjson.dumps(line.get(key, "-")).decode()  # JSON's escapes keep quotes and line ends in

        request = f"{bare('method')} {bare('path')} {bare('protocol')}"
        numbers = ("response_code", "response_flags", "bytes_received", "bytes_sent", "duration")
        texts = ("x_forwarded_for", "user_agent", "request_id", "authority", "upstream_host")
        words = [f"[{line['start_time']}]", orjson.dumps(request).decode(), *map(bare, numbers)]
        words += [bare("upstream_service_time"), *map(quoted, texts)]
        return (" ".join(words) + "\n").encode()


# -- which records are written ----------------------------------------------------------------------------

_SLOW: Final = re.compile(r"slow>([0-9]+(?:\.[0-9]+)?)(ms|s)")


def is_denied(record: Record) -> bool:
    return record.decision is not None and not record.decision.allowed


def is_failed(record: Record) -> bool:
    """Something went wrong or was refused: what an operator looks for first."""
    if record.reason:
        return True
    if isinstance(record, ConnectionRecord):
        return False
    return record.status >= 500 or (record.grpc_status or 0) != 0


def parse_filter(text: str) -> Filter | None:
    """``all`` (None), ``errors``, ``denied`` or ``slow>250ms``. Raises ValueError naming the choices."""
    if text == "all":
        return None
    if text == "errors":
        return is_failed
    if text == "denied":
        return is_denied
    match = _SLOW.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is none of: all, errors, denied, slow>1s, slow>250ms")
    limit = float(match[1]) / (1000 if match[2] == "ms" else 1)
    return lambda record: record.ended_at - record.started_at > limit
