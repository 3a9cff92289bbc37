"""From a finished record to the series it counts in: the labels of the metrics page, made once per combination.

``Telemetry.finish`` keeps a ``Bound`` for every tuple of facts it has seen; only a new tuple comes here. What a
``Bound`` is made of must therefore be part of that tuple, or the second record would count under the labels of
the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.observe import names as n
from proxy.observe.instruments import Instruments
from proxy.observe.metrics import Histogram, Value
from proxy.observe.record import ExchangeRecord
from proxy.observe.spans import decision_word, peer_name, split_address

if TYPE_CHECKING:
    from proxy.policy.engine import Decision

_KNOWN_RPC: Final = 1000
_LONGEST_RPC: Final = 256  # bytes
_UNIMPLEMENTED: Final = 12


class Bound:
    """The series one combination of labels counts in."""

    __slots__ = ("counters", "duration", "tail")

    def __init__(self, counters: tuple[Value, ...], duration: Histogram, tail: bytes | None) -> None:
        self.counters = counters
        self.duration = duration
        self.tail = tail  # the constant half of its log lines


class KnownMethods(dict[bytes, str]):
    """gRPC paths that somebody has answered, and the method each names: callers must not invent series."""

    def name(self, record: ExchangeRecord) -> str:
        """``pkg.Service/Method``, or ``_OTHER`` while nobody has answered it with more than UNIMPLEMENTED."""
        path = record.path
        known = self.get(path)
        if known is not None:
            return known
        answered = record.grpc_status is not None and record.first_byte_at and not record.reason
        exists = answered and record.grpc_status != _UNIMPLEMENTED
        if not exists or len(self) >= _KNOWN_RPC or len(path) > _LONGEST_RPC:
            return n.OTHER
        method = self[path] = path[1:].decode("ascii", "backslashreplace")
        return method


def bind(
    instruments: Instruments, service: str, record: ExchangeRecord, rpc: str | None, tail: bytes | None
) -> Bound:
    """``service`` is ours, "ns/name"; ``rpc`` is the method's name of a gRPC exchange, None for others."""
    inbound = record.direction == "inbound"
    peer = record.peer if inbound else record.upstream_peer
    other = peer_name(peer) if inbound or peer is not None else record.upstream_name or "unknown"
    source, destination = (other, service) if inbound else (service, other)
    grpc_status = "" if record.grpc_status is None else str(record.grpc_status)
    requests = instruments.requests.labels(
        record.direction, source, destination, record.route, str(record.status), record.flags, grpc_status
    )
    counters = [requests]
    if record.decision is not None:
        counters.append(bind_decision(instruments, record.decision, source))
    if not inbound and record.trace is not None and not record.trace.remote:
        counters.append(instruments.without_context.labels())
    duration = _bind_http(instruments, record) if rpc is None else _bind_rpc(instruments, rpc, record)
    return Bound(tuple(counters), duration, tail)


def bind_decision(instruments: Instruments, decision: Decision, source: str) -> Value:
    rule = "" if decision.rule is None else str(decision.rule)
    return instruments.decisions.labels(decision_word(decision), decision.policy or "none", rule, source)


def _bind_http(instruments: Instruments, record: ExchangeRecord) -> Histogram:
    method = n.METHODS.get(record.method, n.OTHER)
    status = str(record.status) if record.status else ""
    failed = record.status >= 500 or record.status == 0 or (record.reason and record.status < 400)
    error = (record.reason or status) if failed else ""
    if record.direction == "inbound":
        scheme = "https" if record.tls_version else "http"
        version = n.HTTP_VERSIONS.get(record.version, "")
        return instruments.http_server.labels(method, status, record.route, scheme, version, error)
    port = split_address(record.upstream_address)[1]
    return instruments.http_client.labels(method, status, record.upstream_name, str(port or ""), error)


def _bind_rpc(instruments: Instruments, rpc: str, record: ExchangeRecord) -> Histogram:
    code = "" if record.grpc_status is None else n.grpc_code(record.grpc_status)
    if record.direction == "inbound":
        failed = record.grpc_status is None or record.grpc_status in n.GRPC_SERVER_ERRORS
        error = (record.reason or code) if failed else ""
        return instruments.rpc_server.labels("grpc", rpc, code, error)
    error = (record.reason or code) if record.grpc_status != 0 else ""
    return instruments.rpc_client.labels("grpc", rpc, code, error, record.upstream_name)
