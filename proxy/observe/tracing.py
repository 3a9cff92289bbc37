"""Spans -> OpenTelemetry: the OTEL_* variables, the conversion, and a queue with one exporting thread.

A ``ReadableSpan`` is built directly from our plain span, with explicit ids and times: a sixth of the price of
``start_span`` and off the hot path. opentelemetry is imported by the exporting thread when it starts, and it
starts only when the environment asks for an export: without one neither memory nor start-up pays for it.

The collector's trouble is not ours: the queue is bounded and forgets the oldest, what is lost is counted, and
the log gets one line a minute at most. Nothing here is called by the event loop's thread except ``close``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import unquote

from proxy.observe import names as n
from proxy.observe.metrics import Value
from proxy.observe.spans import Span

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

log = logging.getLogger(__name__)

_EXPORTER_LOGGER: Final = "opentelemetry.exporter"
_COMPLAIN_EVERY: Final = 60.0  # seconds between two log lines about the collector
# Encoding holds the interpreter for about 40 us a span: this many at once cost the loop 2.5 ms at worst.
_BATCH: Final = 64


# -- what the environment asks for ------------------------------------------------------------------------


class ExportSettings:
    """How spans leave the process. ``kinds`` is empty when nothing is exported."""

    __slots__ = ("batch", "delay", "kinds", "queue", "warnings")

    def __init__(self) -> None:
        self.kinds: tuple[str, ...] = ()  # of "otlp", "console"
        self.queue = 2048
        self.batch = _BATCH
        self.delay = 5.0  # seconds a span may wait for company
        self.warnings: list[str] = []


def read_export_settings(env: Mapping[str, str]) -> ExportSettings:
    """OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER, OTEL_EXPORTER_OTLP_*, OTEL_BSP_*. Never raises: what cannot be
    understood is left at its default and named in ``warnings`` (the specification asks for just that).

    Unlike there, nothing set means no export: a sidecar must not knock at localhost:4318 for ever.
    """
    settings = ExportSettings()
    wanted = env.get("OTEL_TRACES_EXPORTER", "").strip()
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or wanted == "none":
        return settings
    if not wanted:
        has_endpoint = env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        wanted = "otlp" if has_endpoint else ""
    kinds = [kind.strip() for kind in wanted.split(",") if kind.strip()]
    settings.kinds = tuple(kind for kind in kinds if _is_exportable(kind, env, settings.warnings))
    settings.queue = _read_int(env, "OTEL_BSP_MAX_QUEUE_SIZE", settings.queue, settings.warnings)
    settings.batch = _read_int(env, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", settings.batch, settings.warnings)
    delay = _read_int(env, "OTEL_BSP_SCHEDULE_DELAY", int(settings.delay * 1000), settings.warnings)
    settings.delay = delay / 1000
    return settings


def _is_exportable(kind: str, env: Mapping[str, str], warnings: list[str]) -> bool:
    if kind == "console":
        return True
    if kind != "otlp":
        warnings.append(f"OTEL_TRACES_EXPORTER={kind} is none of otlp, console, none: it is left out")
        return False
    protocol = env.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or env.get("OTEL_EXPORTER_OTLP_PROTOCOL") or ""
    if protocol not in ("", "http/protobuf"):
        warnings.append(f"OTLP protocol {protocol} is not supported (http/protobuf): nothing is exported")
        return False
    return True


def _read_int(env: Mapping[str, str], name: str, default: int, warnings: list[str]) -> int:
    text = env.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit()) or not 0 < int(text[:9]) < 10**8:
        warnings.append(f"{name}={text!r} is not a positive number: {default} is used")
        return default
    return int(text)


def read_sampler(env: Mapping[str, str], ratio: float, warnings: list[str]) -> tuple[float, bool]:
    """OTEL_TRACES_SAMPLER(_ARG) over the configured ratio -> (ratio, whether the parent decides first)."""
    name = env.get("OTEL_TRACES_SAMPLER", "").strip()
    if not name:
        return ratio, True
    parent_based = name.startswith("parentbased_")
    kind = name.removeprefix("parentbased_")
    if kind == "always_on":
        return 1.0, parent_based
    if kind == "always_off":
        return 0.0, parent_based
    if kind == "traceidratio":
        return _read_ratio(env.get("OTEL_TRACES_SAMPLER_ARG", ""), warnings), parent_based
    warnings.append(f"OTEL_TRACES_SAMPLER={name} is not supported: parentbased_traceidratio {ratio} is used")
    return ratio, True


def _read_ratio(text: str, warnings: list[str]) -> float:
    try:
        ratio = float(text or "1.0")
    except ValueError:
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        warnings.append(f"OTEL_TRACES_SAMPLER_ARG={text!r} is not a number from 0 to 1: 1.0 is used")
        return 1.0
    return ratio


def read_resource(
    env: Mapping[str, str], *, service: str, namespace: str, version: str, extra: Mapping[str, str]
) -> dict[str, str]:
    """Resource attributes: the configured, over them OTEL_RESOURCE_ATTRIBUTES, over all OTEL_SERVICE_NAME."""
    attributes = {n.SERVICE_NAME: service, n.SERVICE_NAMESPACE: namespace, n.SERVICE_VERSION: version}
    attributes.update(extra)
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() != "true":
        for pair in env.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
            key, equals, value = pair.partition("=")
            if equals and key.strip():
                attributes[unquote(key.strip())] = unquote(value.strip())
        if env.get("OTEL_SERVICE_NAME"):
            attributes[n.SERVICE_NAME] = env["OTEL_SERVICE_NAME"]
    return {key: value for key, value in attributes.items() if value}


# -- conversion -------------------------------------------------------------------------------------------


class Converter:
    """Our span -> the SDK's. Making one imports opentelemetry."""

    def __init__(self, resource: Mapping[str, str], version: str) -> None:
        from opentelemetry import trace as api
        from opentelemetry.sdk import trace as sdk
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.sdk.version import __version__ as sdk_version

        about_sdk = {
            n.TELEMETRY_SDK_NAME: "opentelemetry",
            n.TELEMETRY_SDK_LANGUAGE: "python",
            n.TELEMETRY_SDK_VERSION: sdk_version,
        }
        self._api = api
        self._sdk = sdk
        self._resource = Resource({**about_sdk, **resource}, n.SCHEMA_URL)
        self._scope = InstrumentationScope(n.SCOPE, version, n.SCHEMA_URL)

    def convert(self, span: Span) -> ReadableSpan:
        api = self._api
        state = api.TraceState.from_header([span.tracestate]) if span.tracestate else api.TraceState()
        parent = self._context(span.trace_id, span.parent_id, span, state) if span.parent_id else None
        links: tuple[Any, ...] = ()
        if span.link is not None:
            links = (api.Link(self._context(*span.link, span, api.TraceState(), remote=True)),)
        return self._sdk.ReadableSpan(
            name=span.name,
            context=self._context(span.trace_id, span.span_id, span, state, remote=False),
            parent=parent,
            resource=self._resource,
            attributes=span.attributes,
            links=links,
            kind=api.SpanKind[span.kind],
            status=api.Status(api.StatusCode[span.status], span.description or None),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=self._scope,
        )

    def _context(
        self, trace_id: str, span_id: str, span: Span, state: Any, *, remote: bool | None = None
    ) -> Any:
        is_remote = span.remote_parent if remote is None else remote
        flags = self._api.TraceFlags(int(span.sampled))
        return self._api.SpanContext(int(trace_id, 16), int(span_id, 16), is_remote, flags, state)


class Destination(Protocol):
    """What we need of an OpenTelemetry span exporter."""

    def export(self, spans: Sequence[ReadableSpan], /) -> Any: ...

    def shutdown(self) -> None: ...


def open_destinations(kinds: Sequence[str]) -> list[Destination]:
    """The SDK's exporters; they read their own OTEL_EXPORTER_OTLP_* variables. Imports opentelemetry."""
    found: list[Destination] = []
    for kind in kinds:
        if kind == "console":
            from opentelemetry.sdk.trace.export import ConsoleSpanExporter

            found.append(ConsoleSpanExporter())
        else:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            found.append(OTLPSpanExporter())
    return found


# -- the queue and its thread -----------------------------------------------------------------------------


class _LastWords(logging.Handler):
    """Keeps the exporter's last complaint for our one line a minute, instead of a line per attempt."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


class Exporter:
    """A bounded queue of spans and the thread that sends them away."""

    def __init__(
        self,
        settings: ExportSettings,
        resource: Mapping[str, str],
        version: str,
        overflowed: Value,
        lost: Value,
        *,
        open_destinations: Callable[[Sequence[str]], list[Destination]] = open_destinations,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._resource = resource
        self._version = version
        self._overflowed = overflowed  # two counters, because two threads write them
        self._lost = lost
        self._open = open_destinations
        self._clock = clock
        self._queue: deque[Span] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._destinations: list[Destination] = []
        self._words = _LastWords()
        self._complained_at = -_COMPLAIN_EVERY

    def start(self) -> None:
        """Start the thread; once."""
        if self._thread is None:
            # A daemon: a collector that hangs must not keep the process from ending.
            self._thread = threading.Thread(target=self._run, name="sidewall-export", daemon=True)
            self._thread.start()

    def offer(self, spans: Sequence[Span]) -> None:
        """Queue spans; never blocks. A full queue forgets its oldest."""
        queue = self._queue
        queue.extend(spans)
        while len(queue) > self._settings.queue:
            try:
                queue.popleft()
            except IndexError:  # the thread took them meanwhile
                break
            self._overflowed.value += 1
        if len(queue) >= self._settings.batch:
            self._wake.set()

    def close(self, limit: float) -> bool:
        """Send what is queued, for at most ``limit`` seconds, then give up. Blocks. True = all was sent."""
        self._closing = True
        self._wake.set()
        if self._thread is None:
            return not self._queue
        self._thread.join(limit)
        if not self._thread.is_alive():
            return True
        for destination in self._destinations:  # ends an export that waits for its next attempt
            destination.shutdown()
        return False

    def _run(self) -> None:
        logger = logging.getLogger(_EXPORTER_LOGGER)
        logger.addHandler(self._words)
        logger.propagate = False
        try:
            converter = Converter(self._resource, self._version)
            self._destinations = self._open(self._settings.kinds)
        except Exception as error:  # a bad certificate path or endpoint: said once, traffic goes on
            log.error("traces are not exported: %s", error)
            return
        while not self._closing:
            self._wake.wait(self._settings.delay)
            self._wake.clear()
            self._drain(converter)
        self._drain(converter)
        for destination in self._destinations:
            destination.shutdown()

    def _drain(self, converter: Converter) -> None:
        while self._queue:
            batch: list[Span] = []
            while self._queue and len(batch) < self._settings.batch:
                batch.append(self._queue.popleft())
            self._export(converter, batch)

    def _export(self, converter: Converter, batch: list[Span]) -> None:
        try:
            spans = [converter.convert(span) for span in batch]
            results = [destination.export(spans) for destination in self._destinations]
        except Exception as error:
            self._count_lost(len(batch), str(error))
            return
        if any(result.name != "SUCCESS" for result in results):
            self._count_lost(len(batch), self._words.text or "the collector did not take them")

    def _count_lost(self, count: int, why: str) -> None:
        self._lost.value += count
        now = self._clock()
        if now - self._complained_at >= _COMPLAIN_EVERY:
            self._complained_at = now
            log.warning("%d spans could not be exported (%d lost so far): %s", count, self._lost.value, why)


class Budget:
    """A token bucket: how many unsampled exchanges that failed are recorded all the same."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._rate = per_second
        self._burst = burst
        self._tokens = burst
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Whether one more is within the budget at ``now`` (monotonic seconds)."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = max(self._at, now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
