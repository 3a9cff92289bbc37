"""The facade: what the rest of the proxy tells about itself, and the price it pays for that.

``finish`` is called once per exchange by the event loop, so it does three things only: look up the counters
that belong to this combination of labels, add to them, and put the log line (and, when spans are wanted, the
record) into a bounded queue. The lookup is one dict access with a tuple of what the labels are made of; label
texts, series and the constant half of the log line are made once per combination (``_bind``).

``run`` sleeps until the first line comes, waits a moment for company, and hands the batch to one thread
(``writer.py``). If the thread is stuck, because a disk or pipe is, the queues fill up and what comes is dropped
and counted; traffic never notices. The last quarter of a queue is for what was refused or failed, so that a
flood of good requests cannot hide an attack from the log.
"""

from __future__ import annotations

import logging
import os
import random
import sys
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import trio
from mypy_extensions import mypyc_attr

from proxy.observe import names as n
from proxy.observe.accesslog import Filter, JsonLines, Record, TextLines, is_failed, parse_filter
from proxy.observe.bindings import Bound, KnownMethods, bind, bind_decision
from proxy.observe.instruments import Instruments
from proxy.observe.ledger import Ledger
from proxy.observe.metrics import Registry
from proxy.observe.process import add_process_metrics
from proxy.observe.propagation import TraceContext, start_trace
from proxy.observe.record import ConnectionRecord, ExchangeRecord
from proxy.observe.sink import Sink
from proxy.observe.spans import peer_name
from proxy.observe.tracing import Exporter, read_export_settings, read_resource, read_sampler
from proxy.observe.writer import Writer

if TYPE_CHECKING:
    from proxy.observe.store import TraceStore

log = logging.getLogger(__name__)

_BINDINGS: Final = 4096  # combinations remembered; when more come, all are looked up anew
_LONG: Final = 4096  # bytes of peer-chosen text a queued record may hold
_LAG_EVERY: Final = 1.0
_LEDGER_EVERY: Final = 5.0


@mypyc_attr(allow_interpreted_subclasses=True)
class Telemetry:
    """Everything observable about one proxy process. All methods belong to the event loop's thread."""

    def __init__(
        self,
        *,
        service: str = "sidewall",
        namespace: str = "",
        version: str = "",
        openssl: str = "",
        access_log: str = "off",
        access_log_format: str = "json",
        access_log_filter: str = "all",
        sample: float = 1.0,
        traces_file: str = "",
        resource: Mapping[str, str] | None = None,
        registry: Registry | None = None,
        env: Mapping[str, str] | None = None,
        rng: random.Random | None = None,
        capacity: int = 8192,
        interval: float = 0.05,
        keep: int = 2000,
        ledger: Ledger | None = None,
    ) -> None:
        """``access_log``: off, stdout, stderr or a path. ``sample``: 0..1, for traces begun here, unless
        OTEL_TRACES_SAMPLER says otherwise. ``traces_file``: SQLite, "" = none. ``keep``: size of ``recent``.
        ``env``: where OTEL_* are read, ``os.environ`` by default. Starts nothing.

        Raises OSError when a file cannot be opened, sqlite3.Error for a bad traces file, ValueError for a bad
        format or filter.
        """
        env = os.environ if env is None else env
        self.registry = registry or Registry()
        self.instruments = Instruments(self.registry)
        self.warnings: list[str] = []  # about OTEL_* variables; the caller logs them once
        self.ratio, self.parent_based = read_sampler(env, sample, self.warnings)
        self.rng = rng or random.Random(random.SystemRandom().getrandbits(256))  # noqa: S311 (ids, not secrets)
        self.resource = read_resource(
            env, service=service, namespace=namespace, version=version, extra=resource or {}
        )
        name, space = self.resource.get(n.SERVICE_NAME, service), self.resource.get(n.SERVICE_NAMESPACE, "")
        self.service = f"{space}/{name}" if space else name
        self.recent: deque[Record] = deque(maxlen=keep)
        self._known_rpc = KnownMethods()
        self._bound: dict[tuple[object, ...], Bound] = {}
        self._add_facts(version, openssl)
        self._set_up_queues(capacity, interval)
        self._set_up_format(access_log_format, access_log_filter)
        self._writer = Writer(
            self.service,
            self._known_rpc,
            self.instruments.dropped,
            exporter=self._make_exporter(env, version),
            store=_open_store(traces_file),
            sink=None if access_log == "off" else Sink(access_log),
            ledger=ledger,
        )
        self._logs = self._writer.sink is not None
        self._traces = any((self._writer.store, self._writer.exporter, ledger))

    def _set_up_queues(self, capacity: int, interval: float) -> None:
        self._lines: list[bytes] = []
        self._records: list[Record] = []
        self._capacity = capacity  # of each
        self._ordinary = capacity - capacity // 4
        self._high_water = capacity // 8
        self._interval = interval
        self._dropped_lines = self.instruments.dropped.labels("access_log")
        self._dropped_records = self.instruments.dropped.labels("traces")
        self._wake = trio.Event()  # something is queued
        self._hurry = trio.Event()  # a lot is queued
        self._one_thread = trio.CapacityLimiter(1)

    def _set_up_format(self, name: str, choice: str) -> None:
        if name not in ("json", "text"):
            raise ValueError(f"access log format {name!r} is neither json nor text")
        self._format = JsonLines() if name == "json" else TextLines()
        self._keep: Filter | None = parse_filter(choice)

    def _make_exporter(self, env: Mapping[str, str], version: str) -> Exporter | None:
        settings = read_export_settings(env)
        self.warnings += settings.warnings
        if not settings.kinds:
            return None
        dropped = self.instruments.dropped
        return Exporter(
            settings, self.resource, version, dropped.labels("span_queue"), dropped.labels("span_export")
        )

    def _add_facts(self, version: str, openssl: str) -> None:
        self._active_server = self.instruments.active_server.labels()
        self._active_client = self.instruments.active_client.labels()
        self._lags: deque[float] = deque([0.0], maxlen=15)
        add_process_metrics(self.registry)
        python = ".".join(map(str, sys.version_info[:3]))
        self.instruments.build.labels(version, python, openssl).value = 1.0
        self.instruments.loop_lag.set_function(lambda: max(self._lags))

    # -- the hot path ------------------------------------------------------------------------------------

    def start_trace(self, traceparent: bytes | None, tracestate: bytes | None, trusted: bool) -> TraceContext:
        """``propagation.start_trace`` with this proxy's ratio and random numbers."""
        return start_trace(
            traceparent,
            tracestate,
            trusted=trusted,
            ratio=self.ratio,
            rng=self.rng,
            parent_based=self.parent_based,
        )

    def begin(self, inbound: bool) -> None:
        """An exchange was opened; exactly one ``finish`` must follow."""
        active = self._active_server if inbound else self._active_client
        active.value += 1

    def finish(self, record: ExchangeRecord) -> None:
        """Count one finished exchange and queue its record. The record must not be changed afterwards."""
        inbound = record.direction == "inbound"
        if inbound:
            peer = record.peer
            self._active_server.value -= 1
        else:
            peer = record.upstream_peer
            self._active_client.value -= 1
        decision = record.decision
        trace = record.trace
        rpc = self._known_rpc.name(record) if record.is_grpc else None
        key = (
            record.direction,
            n.METHODS.get(record.method),
            record.status,
            record.route,
            record.reason,
            record.flags,
            None if peer is None else peer.uri,
            None if decision is None else (decision.allowed, decision.audited, decision.policy, decision.rule),
            record.version,
            record.upstream_name,
            None if inbound else record.upstream_address,
            record.tls_version,
            rpc,
            record.grpc_status,
            trace is None or trace.remote,
        )
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bind(key, record, rpc)
        for counter in bound.counters:
            counter.value += 1
        seconds = record.ended_at - record.started_at
        bound.duration.observe(seconds)
        if trace is not None and trace.sampled:
            bound.duration.show(trace.trace_id.decode(), seconds, record.started)
        if len(record.path) + len(record.user_agent) + len(record.x_forwarded_for) > _LONG:
            _shorten(record)
        self.recent.append(record)
        if self._logs:
            self._put_line(record, bound.tail)
        if self._traces:
            self._put_record(record)

    def _put_line(self, record: Record, tail: bytes | None) -> None:
        if self._keep is not None and not self._keep(record):
            return
        size = len(self._lines)
        if size >= self._ordinary and (size >= self._capacity or not is_failed(record)):
            self._dropped_lines.value += 1
            return
        try:
            if tail is not None and isinstance(record, ExchangeRecord):
                line = self._format.render_with(tail, record)
            else:
                line = self._format.render(record)
        except Exception:  # our own mistake in a record; it must not cost a connection
            self._dropped_lines.value += 1
            log.exception("an access log line cannot be made")
            return
        self._lines.append(line)
        self._wake_up(size)

    def _put_record(self, record: Record) -> None:
        if not self._writer.wants(record):
            return
        size = len(self._records)
        if size >= self._ordinary and (size >= self._capacity or not is_failed(record)):
            self._dropped_records.value += 1
            return
        self._records.append(record)
        self._wake_up(size)

    def _wake_up(self, size: int) -> None:
        """``size`` is what waited before."""
        if size == 0:
            self._wake.set()
        elif size == self._high_water:
            self._hurry.set()

    def _bind(self, key: tuple[object, ...], record: ExchangeRecord, rpc: str | None) -> Bound:
        if len(self._bound) >= _BINDINGS:
            self._bound.clear()  # the series stay; only the short cut to them is made anew
        tail = self._format.tail(record) if self._logs else None
        bound = self._bound[key] = bind(self.instruments, self.service, record, rpc, tail)
        return bound

    # -- what others count --------------------------------------------------------------------------------

    def connection(self, record: ConnectionRecord) -> None:
        """A connection without exchanges ended: opaque TCP, or refused before one could begin."""
        if record.kind == "tcp":
            bytes_total = self.instruments.tcp_bytes
            bytes_total.labels(record.direction, "received").value += record.bytes_received
            bytes_total.labels(record.direction, "sent").value += record.bytes_sent
        if record.decision is not None:
            source = peer_name(record.peer) if record.direction == "inbound" else self.service
            bind_decision(self.instruments, record.decision, source).value += 1
        self.recent.append(record)
        if self._logs:
            self._put_line(record, None)
        if self._traces:
            self._put_record(record)

    def connection_opened(self, direction: str, kind: str) -> None:
        """``kind``: http1, http2, tcp."""
        self.instruments.connections.labels(direction, kind).value += 1
        self.instruments.connections_total.labels(direction, kind).value += 1

    def connection_closed(self, direction: str, kind: str) -> None:
        self.instruments.connections.labels(direction, kind).value -= 1

    def handshake(self, role: str, result: str) -> None:
        """``role``: client or server. ``result``: ok or a word of ``proxy.errors.PEER_REASONS``."""
        self.instruments.handshakes.labels(role, result).value += 1

    def malformed(self, reason: str) -> None:
        """``reason``: a word of ``proxy.errors.MALFORMED``."""
        self.instruments.malformed.labels(reason).value += 1

    def limit(self, name: str) -> None:
        """A limit was hit: its id or name."""
        self.instruments.limits.labels(name).value += 1

    def set_principal(self, principal: str) -> None:
        """Who we are, for the flow ledger."""
        if self._writer.ledger is not None:
            self._writer.ledger.callee = principal

    def svid_expiry(self, timestamp: float) -> None:
        self.instruments.svid_expiry.labels().value = timestamp

    def svid_renewed(self, result: str) -> None:
        self.instruments.svid_renewals.labels(result).value += 1

    def config_reloaded(self, generation: int, *, successful: bool, now: float) -> None:
        """``generation`` is the one in use after the attempt; ``now`` is the wall clock."""
        self.instruments.generation.labels().value = float(generation)
        self.instruments.reload_ok.labels().value = float(successful)
        if successful:
            self.instruments.reload_time.labels().value = now

    # -- off the hot path ---------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hand what is queued to the writer thread until cancelled. Then call ``close``."""
        if self._writer.exporter is not None:
            self._writer.exporter.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._measure_lag)
            nursery.start_soon(self._keep_ledger)
            task_status.started()
            while True:
                await self._wake.wait()  # an idle proxy costs nothing
                with trio.move_on_after(self._interval):
                    await self._hurry.wait()
                await self._flush()

    async def _flush(self) -> None:
        self._wake, self._hurry = trio.Event(), trio.Event()
        await trio.lowlevel.checkpoint_if_cancelled()  # before the batch is taken, or it would be lost
        lines, self._lines = self._lines, []
        records, self._records = self._records, []
        # Abandoned on cancel: a blocked sink must not hold up the shutdown. The limiter's token stays with
        # the thread until it is really done, so two batches never overlap.
        await trio.to_thread.run_sync(
            self._writer.consume, lines, records, abandon_on_cancel=True, limiter=self._one_thread
        )

    async def _keep_ledger(self) -> None:
        """What came last must be written although nothing comes after it."""
        while self._writer.ledger is not None:
            await trio.sleep(_LEDGER_EVERY)
            self._wake.set()

    async def _measure_lag(self) -> None:
        while True:
            due = trio.current_time() + _LAG_EVERY
            await trio.sleep_until(due)
            self._lags.append(trio.current_time() - due)

    def reopen(self) -> None:
        """Open the access log file anew (USR1, after rotation); the next line goes to the new file."""
        if self._writer.sink is not None:
            self._writer.sink.reopen()
            self._wake.set()  # so that it happens now, not with the next request

    async def close(self, limit: float = 2.0) -> None:
        """Write what is queued, close files and exporter; ``limit`` seconds at most, cancelled or not."""
        with trio.move_on_after(limit, shield=True):
            await self._flush()
            await trio.to_thread.run_sync(
                self._writer.close, limit / 2, abandon_on_cancel=True, limiter=self._one_thread
            )


def _shorten(record: ExchangeRecord) -> None:
    """Bound what a waiting record holds: a full queue of the longest heads would be half a gigabyte."""
    record.path = record.path[:_LONG]
    record.user_agent = record.user_agent[:256]
    record.x_forwarded_for = record.x_forwarded_for[:1024]


def _open_store(path: str) -> TraceStore | None:
    if not path:
        return None
    from proxy.observe.store import TraceStore  # sqlite3 costs memory only where it is used

    return TraceStore(path)
