from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from proxy.observe.accesslog import JsonLines
from proxy.observe.history import TraceReader
from proxy.observe.metrics import render_prometheus
from proxy.observe.telemetry import Telemetry
from tests.support.build import interpreted_only
from tests.unit.observe.records import connection, decision, denied, exchange, grpc, peer, trace


def telemetry(**changes: Any) -> Telemetry:
    return Telemetry(**{"service": "api", "namespace": "shop", "env": {}, "interval": 0.001, **changes})


def page(made: Telemetry) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(render_prometheus(made.registry)):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.001)


# -- counting ----------------------------------------------------------------------------------------------


def test_a_good_exchange_is_counted_with_its_labels() -> None:
    made = telemetry()
    for _ in range(3):
        made.begin(inbound=True)
        made.finish(exchange(route="orders"))
    found = page(made)
    ((labels, value),) = found["sidewall_requests_total"]
    assert value == 3
    assert labels == {
        "direction": "inbound",
        "source": "shop/web",
        "destination": "shop/api",
        "route": "orders",
        "code": "200",
    }
    assert found["sidewall_authz_decisions_total"] == [
        ({"decision": "allow", "policy": "shop/allow-web", "rule": "0", "source": "shop/web"}, 3)
    ]
    ((labels, value),) = found["http_server_request_duration_seconds_count"]
    assert value == 3
    assert labels == {
        "http_request_method": "GET",
        "http_response_status_code": "200",
        "http_route": "orders",
        "url_scheme": "https",
        "network_protocol_version": "2",
    }
    assert found["http_server_active_requests"] == [({}, 0)]


def test_an_outbound_exchange_names_the_configured_upstream_and_no_host() -> None:
    made = telemetry()
    made.finish(exchange("outbound", authority=b"stranger.example"))
    found = page(made)
    ((labels, _),) = found["http_client_request_duration_seconds_count"]
    assert labels == {
        "http_request_method": "GET",
        "http_response_status_code": "200",
        "server_address": "api",
        "server_port": "8443",
    }
    ((labels, _),) = found["sidewall_requests_total"]
    assert (labels["source"], labels["destination"]) == ("shop/api", "shop/api")
    assert "stranger" not in render_prometheus(made.registry)


def test_a_denied_stranger_is_unknown_and_none_matched() -> None:
    made = telemetry()
    made.finish(denied(peer=None, decision=decision(False)))
    found = page(made)
    assert found["sidewall_authz_decisions_total"] == [
        ({"decision": "deny", "policy": "none", "source": "unknown"}, 1)
    ]
    ((labels, _),) = found["sidewall_requests_total"]
    assert (labels["source"], labels["flags"], labels["code"]) == ("unknown", "RBAC", "403")
    ((labels, _),) = found["http_server_request_duration_seconds_count"]
    assert "error_type" not in labels


def test_failures_carry_their_word() -> None:
    made = telemetry()
    made.finish(exchange(status=503, reason="no_healthy_endpoint", flags="UH"))
    made.finish(exchange(status=502))
    made.finish(exchange(status=200, reason="upstream_reset"))
    errors = [labels["error_type"] for labels, _ in page(made)["http_server_request_duration_seconds_count"]]
    assert errors == ["no_healthy_endpoint", "502", "upstream_reset"]


def test_grpc_has_its_own_histogram_and_unknown_methods_share_a_series() -> None:
    made = telemetry()
    made.finish(grpc(path=b"/guess.A/One", grpc_status=12))
    made.finish(grpc(path=b"/guess.B/Two", grpc_status=7, reason="no_allow_policy_matched", first_byte_at=0.0))
    made.finish(grpc(path=b"/shop.Stock/Reserve"))
    made.finish(grpc(path=b"/shop.Stock/Reserve", grpc_status=14))
    rows = page(made)["rpc_server_call_duration_seconds_count"]
    assert [(r["rpc_method"], r["rpc_response_status_code"], r.get("error_type")) for r, _ in rows] == [
        ("_OTHER", "UNIMPLEMENTED", "UNIMPLEMENTED"),
        ("_OTHER", "PERMISSION_DENIED", None),
        ("shop.Stock/Reserve", "OK", None),
        ("shop.Stock/Reserve", "UNAVAILABLE", "UNAVAILABLE"),
    ]
    assert "http_server_request_duration_seconds_count" not in page(made)


def test_callers_cannot_make_series_with_methods_or_names() -> None:
    made = telemetry()
    for i in range(50):
        made.finish(exchange(method=b"M%d" % i, authority=b"h%d" % i, path=b"/%d" % i, user_agent=b"%d" % i))
    assert len(page(made)["http_server_request_duration_seconds_count"]) == 1
    assert len(made._bound) == 1


def test_the_short_cut_to_the_series_is_bounded_and_forgetting_it_loses_no_count() -> None:
    made = telemetry()
    record = exchange()
    for i in range(9000):
        record.route = f"r{i % 4500}"
        made.finish(record)
    assert len(made._bound) <= 4096
    found = page(made)["sidewall_requests_total"]
    assert sum(value for _, value in found) == 9000
    assert len(found) == 2001


def test_outbound_exchanges_without_context_are_counted() -> None:
    made = telemetry()
    made.finish(exchange("outbound"))
    made.finish(exchange("outbound", trace=trace(seed=2, parent=trace(seed=1))))
    made.finish(exchange())
    assert page(made)["sidewall_outbound_without_context_total"] == [({}, 1)]


def test_sampled_exchanges_leave_exemplars() -> None:
    made = telemetry()
    made.finish(exchange())
    assert trace().trace_id.decode() in render_prometheus(made.registry, openmetrics=True)


def test_what_others_report_is_on_the_page() -> None:
    made = telemetry(version="0.1.0", openssl="3.5")
    made.handshake("server", "ok")
    made.handshake("server", "no_certificate")
    made.malformed("bad_chunk")
    made.limit("L-8")
    made.connection_opened("inbound", "http2")
    made.connection_opened("inbound", "http2")
    made.connection_closed("inbound", "http2")
    made.svid_expiry(1795685172.0)
    made.svid_renewed("ok")
    made.config_reloaded(3, successful=True, now=1795685000.0)
    made.config_reloaded(3, successful=False, now=1795685100.0)
    made.connection(connection(kind="tcp", reason="", bytes_received=10, bytes_sent=20, decision=decision()))
    found = page(made)
    assert ({"role": "server", "result": "no_certificate"}, 1) in found["sidewall_handshakes_total"]
    assert found["sidewall_malformed_total"] == [({"reason": "bad_chunk"}, 1)]
    assert found["sidewall_limits_total"] == [({"limit": "L-8"}, 1)]
    assert found["sidewall_connections"] == [({"direction": "inbound", "kind": "http2"}, 1)]
    assert found["sidewall_connections_total"] == [({"direction": "inbound", "kind": "http2"}, 2)]
    assert found["sidewall_svid_expiry_timestamp_seconds"] == [({}, 1795685172.0)]
    assert found["sidewall_config_generation"] == [({}, 3)]
    assert found["sidewall_config_last_reload_successful"] == [({}, 0)]
    assert found["sidewall_config_last_reload_success_timestamp_seconds"] == [({}, 1795685000.0)]
    assert ({"direction": "inbound", "dir": "sent"}, 20) in found["sidewall_tcp_bytes_total"]
    ((build, _),) = found["sidewall_build_info"]
    assert (build["version"], build["openssl"]) == ("0.1.0", "3.5")


def test_process_metrics_are_read_when_asked() -> None:
    found = {name: rows[0][1] for name, rows in page(telemetry()).items() if name.startswith("process_")}
    assert found["process_resident_memory_bytes"] > 1_000_000
    assert found["process_virtual_memory_bytes"] > found["process_resident_memory_bytes"]
    assert 3 <= found["process_open_fds"] < found["process_max_fds"]
    assert found["process_cpu_seconds_total"] > 0
    assert found["process_start_time_seconds"] > 1_600_000_000


def test_the_name_of_the_environment_wins_over_the_configured_one() -> None:
    assert telemetry(env={"OTEL_SERVICE_NAME": "orders"}).service == "shop/orders"
    assert telemetry(namespace="").service == "api"


def test_a_bad_format_or_filter_is_refused_at_start() -> None:
    for changes in ({"access_log_format": "xml"}, {"access_log_filter": "some"}):
        with pytest.raises(ValueError, match=r"xml|some"):
            telemetry(**changes)


# -- writing -----------------------------------------------------------------------------------------------


async def test_records_become_lines_in_order(tmp_path: Path, nursery: trio.Nursery) -> None:
    path = tmp_path / "access.log"
    made = telemetry(access_log=str(path))
    await nursery.start(made.run)
    for i in range(700):
        made.finish(exchange(path=b"/%d" % i))
    await until(lambda: path.read_bytes().count(b"\n") == 700)
    made.connection(connection())
    await until(lambda: path.read_bytes().count(b"\n") == 701)
    nursery.cancel_scope.cancel()
    await made.close()
    lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    assert [line["path"] for line in lines[:700]] == [f"/{i}" for i in range(700)]
    assert lines[700]["protocol"] == "TLS"


async def test_closing_writes_what_is_queued_even_when_never_run(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    made = telemetry(access_log=str(path))
    made.finish(exchange())
    await made.close()
    assert path.read_bytes().count(b"\n") == 1


async def test_a_batch_is_not_lost_when_run_is_cancelled_at_the_worst_moment(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    for steps in range(12):
        made = telemetry(access_log=str(path), interval=0.0)
        async with trio.open_nursery() as nursery:
            await nursery.start(made.run)
            made.finish(exchange(path=b"/%d" % steps))
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await made.close()
    paths = [orjson.loads(line)["path"] for line in path.read_bytes().splitlines()]
    assert paths == [f"/{steps}" for steps in range(12)]


async def test_a_blocked_sink_never_blocks_the_loop_and_drops_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    made = telemetry(access_log=str(path), capacity=100)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.run)
        for _ in range(400):  # more than pipe and queue hold, while nobody reads
            for _ in range(10):
                made.finish(exchange(user_agent=b"x" * 250))
            await trio.lowlevel.checkpoint()
        await until(lambda: len(made._lines) >= 75)
        for _ in range(200):
            made.finish(exchange())
        assert len(made._lines) == 75
        for _ in range(200):
            made.finish(denied())
        assert len(made._lines) == 100
        dropped = {labels["signal"]: value for labels, value in page(made)["sidewall_telemetry_dropped_total"]}
        assert dropped["access_log"] >= 200 + 175
        nursery.cancel_scope.cancel()
    with trio.fail_after(5):
        await made.close(limit=0.05)
    os.set_blocking(reader, True)
    drain = threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(reader, 65536), b"")], daemon=True)
    drain.start()  # lets the writer thread come to its end


async def test_failing_disks_are_counted_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = telemetry(access_log="/dev/full")
    for _ in range(3):
        made.finish(exchange())
        await made._flush()
    dropped = {labels["signal"]: value for labels, value in page(made)["sidewall_telemetry_dropped_total"]}
    assert dropped["access_log_write"] == 3
    assert len(caplog.records) == 1
    await made.close()


@interpreted_only
async def test_a_record_that_cannot_be_rendered_loses_only_its_own_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "access.log"
    made = telemetry(access_log=str(path))
    made.finish(exchange())
    made.finish(exchange(request_id=object()))
    made.finish(exchange())
    await made.close()
    assert path.read_bytes().count(b"\n") == 2
    assert "access log line cannot be made" in caplog.text


async def test_a_full_queue_of_records_drops_good_ones_first(tmp_path: Path) -> None:
    made = telemetry(traces_file=str(tmp_path / "traces.db"), capacity=8)
    for _ in range(10):
        made.finish(exchange())
    for _ in range(10):
        made.finish(denied())
    dropped = {labels["signal"]: value for labels, value in page(made)["sidewall_telemetry_dropped_total"]}
    assert dropped["traces"] == 4 + 8
    assert [record.status for record in made._records] == [200] * 6 + [403] * 2  # type: ignore[union-attr]
    await made.close()


@pytest.mark.parametrize(
    "record",
    [
        exchange(),
        denied(),
        grpc(grpc_status=5),
        exchange("outbound", status=503, reason="upstream_connect_failed", flags="UF", details="refused\n"),
        exchange(peer=None, tls_version="", decision=None, trace=None, route="r", request_id=b"1", user_agent=b"2"),
        exchange(decision=decision(audited=True), x_forwarded_for=b"10.0.0.1"),
    ],
)
async def test_the_line_made_of_two_halves_says_the_same_as_the_whole(tmp_path: Path, record: Any) -> None:
    path = tmp_path / "access.log"
    made = telemetry(access_log=str(path))
    made.finish(record)
    made.finish(record)
    await made.close()
    whole = orjson.loads(JsonLines().render(record))
    assert [orjson.loads(line) for line in path.read_bytes().splitlines()] == [whole, whole]


async def test_the_constant_half_depends_on_nothing_outside_the_key(tmp_path: Path) -> None:
    """Each change alone, after the unchanged record has left its half: the line must show the change."""
    changes: dict[str, Any] = {
        "direction": "outbound",
        "version": 11,
        "status": 404,
        "reason": "upstream_reset",
        "flags": "UR",
        "peer": peer("shop/cart"),
        "tls_version": "1.2",
        "route": "orders",
        "upstream_name": "other",
        "grpc_status": 3,
        "decision": decision(audited=True),
    }
    path = tmp_path / "access.log"
    made = telemetry(access_log=str(path))
    records = [exchange()]
    for name, value in changes.items():
        records.append(exchange(**{name: value}) if name != "direction" else exchange("outbound"))
    for changed in (decision(False), decision(policy="shop/b"), decision(rule=1)):
        records.append(exchange(decision=changed))
    for record in records:
        made.finish(record)
    await made.close()
    expected = [orjson.loads(JsonLines().render(record)) for record in records]
    assert [orjson.loads(line) for line in path.read_bytes().splitlines()] == expected


async def test_only_wanted_lines_are_made(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    made = telemetry(access_log=str(path), access_log_filter="denied", access_log_format="text")
    for record in (exchange(), denied(), exchange()):
        made.finish(record)
    await made.close()
    assert path.read_bytes().count(b" 403 RBAC ") == path.read_bytes().count(b"\n") == 1


async def test_reopening_happens_without_waiting_for_the_next_request(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    path = tmp_path / "access.log"
    made = telemetry(access_log=str(path))
    await nursery.start(made.run)
    path.rename(tmp_path / "access.log.1")
    made.reopen()
    await until(path.exists)
    nursery.cancel_scope.cancel()
    await made.close()


async def test_spans_of_sampled_and_failed_exchanges_reach_the_file(tmp_path: Path) -> None:
    path = str(tmp_path / "traces.db")
    made = telemetry(traces_file=path)
    made.finish(exchange(trace=trace(seed=1)))
    made.finish(exchange(trace=trace(seed=2, sampled=False)))
    made.finish(denied(trace=trace(seed=3, sampled=False)))
    made.finish(exchange(trace=None))
    made.connection(connection(details="none shown\n"))
    await made.close()
    with TraceReader([path]) as reader:
        kept = {spans[0].trace_id: spans for spans in reader.recent()}
        assert len(reader.denials()) == 2
        ((edge, counts),) = reader.edges().items()
    assert set(kept) == {trace(seed=seed).trace_id.decode() for seed in (1, 3)}
    assert [span.service for span in kept[trace(seed=1).trace_id.decode()]] == ["shop/api", "shop/api"]
    assert edge[1:3] == ("shop/web", "shop/api")
    assert (counts.count, counts.denied) == (4, 1)


async def test_unsampled_failures_are_recorded_within_a_budget(tmp_path: Path) -> None:
    path = str(tmp_path / "traces.db")
    made = telemetry(traces_file=path)
    for i in range(300):
        made.finish(denied(trace=trace(seed=i, sampled=False)))
    await made.close()
    with TraceReader([path]) as reader:
        assert len(reader.recent(1000)) == 50


async def test_the_flag_on_the_wire_stays_honest_unsampled_spans_are_not_exported(tmp_path: Path) -> None:
    made = telemetry(env={"OTEL_TRACES_EXPORTER": "otlp"})
    exporter = made._writer.exporter
    assert exporter is not None
    made.finish(denied(trace=trace(sampled=False)))
    made.finish(exchange(trace=trace(seed=4)))
    await made._flush()
    assert [span.kind for span in exporter._queue] == ["SERVER", "CLIENT"]


async def test_the_last_records_can_be_looked_at(tmp_path: Path) -> None:
    made = telemetry(keep=5)
    for i in range(9):
        made.finish(exchange(path=b"/%d" % i))
    assert [record.path for record in made.recent] == [b"/4", b"/5", b"/6", b"/7", b"/8"]  # type: ignore[union-attr]


def test_waiting_records_hold_a_bounded_amount_of_what_peers_choose() -> None:
    record = exchange(path=b"/" + b"p" * 16_000, user_agent=b"u" * 30_000, x_forwarded_for=b"f" * 30_000)
    telemetry().finish(record)
    assert len(record.path) + len(record.user_agent) + len(record.x_forwarded_for) < 6000


async def test_the_lag_of_the_loop_is_measured(autojump_clock: Any, nursery: trio.Nursery) -> None:
    made = telemetry()
    await nursery.start(made.run)
    await trio.sleep(30)
    assert page(made)["sidewall_event_loop_lag_seconds"] == [({}, 0)]
    made._lags.append(0.25)
    assert page(made)["sidewall_event_loop_lag_seconds"] == [({}, 0.25)]
    nursery.cancel_scope.cancel()


def test_trace_contexts_are_made_with_the_configured_sampler() -> None:
    made = telemetry(sample=0.0, env={"OTEL_TRACES_SAMPLER": "always_on"})
    assert made.start_trace(None, None, True).sampled
    assert not telemetry(sample=0.0).start_trace(None, None, True).sampled
    assert made.start_trace(None, None, True).trace_id != made.start_trace(None, None, True).trace_id


def test_peers_of_other_forms_are_named_by_their_path() -> None:
    from dataclasses import replace

    from identity.spiffe import SpiffeId

    uri = "spiffe://shop.internal/vm/ledger"
    made = telemetry()
    made.finish(exchange(peer=replace(peer(), id=SpiffeId.parse(uri), uri=uri)))
    ((labels, _),) = page(made)["sidewall_requests_total"]
    assert labels["source"] == "vm/ledger"
