"""What the telemetry thread does: write the lines, build spans and hand them on, keep the map.

The thread shares the interpreter with the event loop. Whenever the loop lets go of it (every system call does)
this thread may take it and, being busy, keep it for the switch interval of 5 ms; a request would wait that
long. Writing lines lets go at once. Spans are built a few records at a time, with a real sleep in between: the
loop never waits for more than one portion.

Nothing here may raise: what cannot be written is counted and lost, and the next batch is tried.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from proxy.observe.accesslog import Record, is_denied, is_failed, show_text
from proxy.observe.ledger import Ledger
from proxy.observe.metrics import Counter
from proxy.observe.record import ConnectionRecord, ExchangeRecord
from proxy.observe.sink import Sink
from proxy.observe.spans import Span, build_spans, decision_word, peer_name
from proxy.observe.tracing import Budget, Exporter

if TYPE_CHECKING:
    from proxy.observe.store import Connection, Edge, EdgeKey, TraceStore

log = logging.getLogger(__name__)

_PORTION: Final = 16  # records between two pauses: about 250 us
_PAUSE: Final = 0.00005  # seconds; longer than the loop needs to wake up and take the interpreter
_COMPLAIN_EVERY: Final = 60.0


class Writer:
    """Owns sink, store and exporter. ``consume`` calls must not overlap."""

    def __init__(
        self,
        service: str,
        known_rpc: Mapping[bytes, str],
        dropped: Counter,
        *,
        sink: Sink | None = None,
        store: TraceStore | None = None,
        exporter: Exporter | None = None,
        budget: Budget | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        """``service`` is ours, "ns/name"; ``known_rpc`` is read while its owner adds to it."""
        self.service = service
        self.sink = sink
        self.store = store
        self.exporter = exporter
        self.ledger = ledger
        self._known_rpc = known_rpc
        self._budget = budget or Budget(10.0, 50.0)
        self._lost_lines = dropped.labels("access_log_write")
        self._lost_spans = dropped.labels("trace_store")
        self._lost_flows = dropped.labels("flows")
        self._complained: dict[str, float] = {}

    def wants(self, record: Record) -> bool:
        """Whether ``consume`` has a use for this record: store and ledger map all, the exporter takes the sampled."""
        if self.store is not None or self.ledger is not None:
            return True
        return isinstance(record, ExchangeRecord) and record.trace is not None and record.trace.sampled

    def consume(self, lines: Sequence[bytes], batch: Sequence[Record]) -> None:
        """Write everything. May block on disk or pipe; never raises."""
        self._write_lines(lines)
        self._write_flows(batch)
        if batch and (self.store is not None or self.exporter is not None):
            spans: list[Span] = []
            for at in range(0, len(batch), _PORTION):
                if at:
                    time.sleep(_PAUSE)
                self._add_spans(spans, batch[at : at + _PORTION])
            self._write_spans(spans, batch)

    def _write_lines(self, lines: Sequence[bytes]) -> None:
        if self.sink is None:
            return
        try:
            self.sink.write(lines)  # without lines too: a wanted reopen happens there
        except OSError as error:
            self._lost_lines.value += len(lines)
            self._complain("access log", error)

    def _write_flows(self, batch: Sequence[Record]) -> None:
        if self.ledger is None:
            return
        try:
            for at in range(0, max(len(batch), 1), _PORTION):
                if at:
                    time.sleep(_PAUSE)
                self.ledger.add(batch[at : at + _PORTION], time.monotonic())
        except Exception as error:
            self._complain("flow ledger", error)
        self._lost_flows.value = float(self.ledger.dropped)

    def _add_spans(self, spans: list[Span], portion: Sequence[Record]) -> None:
        for record in portion:
            if not isinstance(record, ExchangeRecord) or record.trace is None:
                continue
            # The flag on the wire stays honest: what fails unsampled is kept here, but not exported.
            if record.trace.sampled or (is_failed(record) and self._budget.take(record.ended_at)):
                try:
                    spans += build_spans(record, self.service, self._known_rpc)
                except Exception as error:
                    self._lost_spans.value += 1
                    self._complain("span", error)

    def _write_spans(self, spans: list[Span], batch: Sequence[Record]) -> None:
        if self.exporter is not None:
            self.exporter.offer([span for span in spans if span.sampled])
        if self.store is None:
            return
        try:
            self.store.write(spans, self._connections(batch), self._edges(batch))
        except Exception as error:  # sqlite3.Error without importing sqlite3 for those who have no store
            self._lost_spans.value += len(spans)
            self._complain("trace file", error)

    def _connections(self, batch: Sequence[Record]) -> list[Connection]:
        from proxy.observe.store import Connection

        found = []
        for record in batch:
            if isinstance(record, ConnectionRecord):
                row = Connection(
                    int(record.started * 1e9),
                    int((record.ended_at - record.started_at) * 1e9),
                    self.service,
                    "" if record.peer is None else peer_name(record.peer),
                    record.peer_address,
                )
                row.kind, row.reason, row.flags = record.kind, record.reason, record.flags
                if record.decision is not None:
                    row.decision = decision_word(record.decision)
                    row.policy = record.decision.policy or ""
                if record.details:
                    row.attributes["details"] = show_text(record.details)
                found.append(row)
        return found

    def _edges(self, batch: Sequence[Record]) -> dict[EdgeKey, Edge]:
        """The batch per minute, source, destination and route; inbound only, so that nothing counts twice."""
        from proxy.observe.store import Edge

        edges: dict[EdgeKey, Edge] = {}
        for record in batch:
            if isinstance(record, ExchangeRecord) and record.direction == "inbound":
                key = (int(record.started) // 60, peer_name(record.peer), self.service, record.route)
                edge = edges.get(key)
                if edge is None:
                    edge = edges[key] = Edge()
                seconds = record.ended_at - record.started_at
                edge.add(seconds, failed=record.status >= 500, denied=is_denied(record))
        return edges

    def _complain(self, what: str, error: Exception) -> None:
        """One log line a minute for each thing that goes wrong."""
        now = time.monotonic()
        if now - self._complained.get(what, -_COMPLAIN_EVERY) >= _COMPLAIN_EVERY:
            self._complained[what] = now
            log.error("%s cannot be written: %s", what, error)

    def close(self, limit: float) -> None:
        """Give the exporter ``limit`` seconds, then close the files. Blocks."""
        if self.exporter is not None:
            self.exporter.close(limit)
        if self.ledger is not None:
            self._close_ledger(self.ledger)
        if self.store is not None:
            self.store.close()
        if self.sink is not None:
            self.sink.close()

    def _close_ledger(self, ledger: Ledger) -> None:
        try:
            ledger.flush()
        except OSError as error:
            self._complain("flow ledger", error)
        ledger.close()
