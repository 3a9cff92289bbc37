from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from proxy.observe.metrics import Value
from proxy.observe.spans import Span, build_spans
from proxy.observe.tracing import (
    Budget,
    Converter,
    Destination,
    Exporter,
    ExportSettings,
    read_export_settings,
    read_resource,
    read_sampler,
)
from tests.unit.observe.records import exchange, trace

# -- the environment ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "kinds"),
    [
        ({}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel:4318"}, ("otlp",)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://otel:4318/v1/traces"}, ("otlp",)),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ("otlp",)),
        ({"OTEL_TRACES_EXPORTER": "console"}, ("console",)),
        ({"OTEL_TRACES_EXPORTER": "otlp, console"}, ("otlp", "console")),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel:4318"}, ()),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel:4318"}, ()),
        ({"OTEL_SDK_DISABLED": "1", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel:4318"}, ("otlp",)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, ()),
    ],
)
def test_the_environment_decides_where_spans_go(env: dict[str, str], kinds: tuple[str, ...]) -> None:
    settings = read_export_settings(env)
    assert settings.kinds == kinds
    assert settings.warnings == []


@pytest.mark.parametrize(
    "env",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"},
    ],
)
def test_what_is_not_supported_is_one_warning_and_no_export(env: dict[str, str]) -> None:
    settings = read_export_settings(env)
    assert settings.kinds == ()
    assert len(settings.warnings) == 1


def test_batch_settings_are_read_and_nonsense_keeps_the_default() -> None:
    settings = read_export_settings(
        {
            "OTEL_BSP_MAX_QUEUE_SIZE": "100",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "ten",
            "OTEL_BSP_SCHEDULE_DELAY": "250",
        }
    )
    assert (settings.queue, settings.batch, settings.delay) == (100, 64, 0.25)
    assert settings.warnings == ["OTEL_BSP_MAX_EXPORT_BATCH_SIZE='ten' is not a positive number: 64 is used"]


@pytest.mark.parametrize("text", ["0", "-1", "1e3", "٣", "9" * 30, "1.5"])
def test_numbers_that_are_none_are_named(text: str) -> None:
    assert read_export_settings({"OTEL_BSP_MAX_QUEUE_SIZE": text}).queue == 2048


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, (0.05, True)),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, (1.0, False)),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, (0.0, False)),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_on"}, (1.0, True)),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}, (0.5, False)),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}, (0.01, True)),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}, (1.0, True)),
    ],
)
def test_the_sampler_of_the_environment_wins(env: dict[str, str], expected: tuple[float, bool]) -> None:
    warnings: list[str] = []
    assert read_sampler(env, 0.05, warnings) == expected
    assert warnings == []


@pytest.mark.parametrize("text", ["2", "-0.1", "nan", "x"])
def test_a_ratio_out_of_range_is_a_warning(text: str) -> None:
    warnings: list[str] = []
    env = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": text}
    assert read_sampler(env, 0.05, warnings) == (1.0, False)
    assert len(warnings) == 1


def test_an_unknown_sampler_keeps_the_configured_ratio() -> None:
    warnings: list[str] = []
    assert read_sampler({"OTEL_TRACES_SAMPLER": "jaeger_remote"}, 0.05, warnings) == (0.05, True)
    assert "jaeger_remote" in warnings[0]


def test_resource_attributes_have_an_order_of_precedence() -> None:
    env = {
        "OTEL_RESOURCE_ATTRIBUTES": "service.name=from-list,k8s.pod.name=api%2D7, broken ,=x,host.name=vm",
        "OTEL_SERVICE_NAME": "from-name",
    }
    found = read_resource(env, service="api", namespace="shop", version="", extra={"host.name": "file"})
    assert found == {
        "service.name": "from-name",
        "service.namespace": "shop",
        "k8s.pod.name": "api-7",
        "host.name": "vm",
    }
    env["OTEL_SDK_DISABLED"] = "true"
    assert read_resource(env, service="api", namespace="", version="1", extra={})["service.name"] == "api"


# -- conversion --------------------------------------------------------------------------------------------


def test_the_sdks_span_says_what_ours_says() -> None:
    parent = trace(seed=9)
    context = trace(seed=2, parent=parent, tracestate=b"vendor=x")
    server, client = build_spans(exchange(trace=context), "shop/api", {})
    converter = Converter({"service.name": "api"}, "0.1.0")
    theirs, below = converter.convert(server), converter.convert(client)
    assert theirs.context is not None
    assert theirs.parent is not None
    assert below.parent is not None
    assert f"{theirs.context.trace_id:032x}" == server.trace_id
    assert f"{theirs.context.span_id:016x}" == server.span_id
    assert f"{theirs.parent.span_id:016x}" == parent.client_span_id.decode()
    assert (theirs.parent.is_remote, below.parent.is_remote) == (True, False)
    assert theirs.context.trace_state.get("vendor") == "x"
    assert theirs.context.trace_flags.sampled
    assert (theirs.start_time, theirs.end_time) == (server.start_ns, server.end_ns)
    assert theirs.attributes == server.attributes
    assert (theirs.kind.name, below.kind.name) == ("SERVER", "CLIENT")
    assert theirs.instrumentation_scope is not None
    assert theirs.instrumentation_scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"
    assert theirs.resource.attributes["service.name"] == "api"
    assert theirs.resource.attributes["telemetry.sdk.language"] == "python"


def test_links_and_errors_survive_the_conversion() -> None:
    record = exchange(status=503, reason="upstream_closed", details="gone", trace=trace(link=(b"a" * 32, b"b" * 16)))
    span = Converter({}, "").convert(build_spans(record, "shop/api", {})[0])
    assert [f"{link.context.trace_id:x}" for link in span.links] == ["a" * 32]
    assert (span.status.status_code.name, span.status.description) == ("ERROR", "gone")
    assert span.parent is None


def test_nothing_of_opentelemetry_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys; from proxy.observe.telemetry import Telemetry; t = Telemetry(env={});"
        "print([m for m in sys.modules if m.startswith(('opentelemetry', 'sqlite3', 'requests', 'google'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# -- the queue ---------------------------------------------------------------------------------------------


class Collector:
    """A destination that remembers, and can be told to fail or to hang."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.answer: Any = None
        self.gate = threading.Event()
        self.gate.set()
        self.closed = False

    def export(self, spans: Sequence[Any]) -> Any:
        from opentelemetry.sdk.trace.export import SpanExportResult

        self.gate.wait(10)
        self.batches.append(len(spans))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer or SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.closed = True
        self.gate.set()


def exporter(collector: Destination, **changes: Any) -> tuple[Exporter, Value, Value]:
    settings = ExportSettings()
    settings.kinds = ("otlp",)
    settings.delay = 0.01
    for name, value in changes.items():
        setattr(settings, name, value)
    overflowed, lost = Value(""), Value("")
    made = Exporter(settings, {}, "", overflowed, lost, open_destinations=lambda _: [collector], clock=lambda: 0.0)
    return made, overflowed, lost


def some(count: int) -> list[Span]:
    return [build_spans(exchange(trace=trace(seed=i)), "shop/api", {})[0] for i in range(count)]


def test_spans_are_sent_in_batches_and_the_rest_at_closing() -> None:
    collector = Collector()
    made, overflowed, lost = exporter(collector, batch=10)
    made.offer(some(25))
    made.start()
    assert made.close(10)
    assert collector.batches == [10, 10, 5]
    assert collector.closed
    assert (overflowed.value, lost.value) == (0, 0)


def test_a_full_queue_forgets_the_oldest_and_counts() -> None:
    collector = Collector()
    made, overflowed, _ = exporter(collector, queue=10)
    spans = some(15)
    made.offer(spans)
    assert overflowed.value == 5
    assert list(made._queue) == spans[5:]


def test_a_collector_that_is_down_costs_one_log_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    collector = Collector()
    collector.answer = ConnectionError("refused")
    made, _, lost = exporter(collector, batch=5)
    with caplog.at_level(logging.WARNING):
        made.offer(some(20))
        made.start()
        assert made.close(10)
    assert lost.value == 20
    assert len(caplog.records) == 1
    assert "5 spans could not be exported (5 lost so far): refused" in caplog.text


def test_a_collector_that_hangs_does_not_hold_up_closing() -> None:
    collector = Collector()
    collector.gate.clear()
    made, _, _ = exporter(collector)
    made.offer(some(1))
    made.start()
    assert not made.close(0.05)
    assert collector.closed


def test_an_exporter_that_cannot_be_opened_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Sequence[str]) -> list[Destination]:
        raise ValueError("no such certificate file")

    settings = ExportSettings()
    made = Exporter(settings, {}, "", Value(""), Value(""), open_destinations=fail)
    made.start()
    assert made.close(10)
    assert "no such certificate file" in caplog.text


def test_spans_reach_a_real_collector_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    bodies: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        settings = read_export_settings({"OTEL_TRACES_EXPORTER": "otlp"})
        made = Exporter(settings, {"service.name": "api"}, "0.1.0", Value(""), Value(""))
        made.offer(build_spans(exchange(), "shop/api", {}))
        made.start()
        assert made.close(10)
        thread.join(10)
    ((path, body),) = bodies
    request = ExportTraceServiceRequest.FromString(body)
    (scope,) = request.resource_spans[0].scope_spans
    assert path == "/v1/traces"
    assert scope.scope.name == "sidewall"
    assert scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"
    assert [span.name for span in scope.spans] == ["GET", "GET"]
    assert [span.kind for span in scope.spans] == [2, 3]


def test_the_budget_refills_with_time_and_never_beyond_its_burst() -> None:
    budget = Budget(10.0, 3.0)
    assert [budget.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert not budget.take(100.05)
    assert budget.take(100.125)
    assert not budget.take(99.0)
    assert [budget.take(200.0) for _ in range(4)] == [True, True, True, False]
