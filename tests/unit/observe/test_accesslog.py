from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy.observe.accesslog import JsonLines, Record, TextLines, parse_filter
from proxy.observe.sink import Sink
from tests.unit.observe.records import connection, decision, denied, exchange, grpc, trace


def fields(record: Record) -> dict[str, Any]:
    line = JsonLines().render(record)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    read: dict[str, Any] = orjson.loads(line)
    return read


def test_a_good_exchange_has_istios_keys_and_no_nulls() -> None:
    record = exchange(
        route="orders", request_id=b"1d0c", user_agent=b"python-httpx/0.28", x_forwarded_for=b"10.1.4.7"
    )
    assert record.trace is not None
    assert fields(record) == {
        "start_time": "2026-11-26T09:26:12.240Z",
        "method": "GET",
        "path": "/orders/17",
        "protocol": "HTTP/2",
        "response_code": 200,
        "response_code_details": "via_upstream",
        "bytes_received": 0,
        "bytes_sent": 167,
        "duration": 48.2,
        "upstream_service_time": 46.2,
        "x_forwarded_for": "10.1.4.7",
        "user_agent": "python-httpx/0.28",
        "request_id": "1d0c",
        "authority": "api.shop:8443",
        "upstream_host": "127.0.0.1:8080",
        "upstream_cluster": "app",
        "downstream_local_address": "10.1.4.9:8443",
        "downstream_remote_address": "10.1.4.7:40122",
        "route_name": "orders",
        "trace_id": record.trace.trace_id.decode(),
        "span_id": record.trace.span_id.decode(),
        "sampled": True,
        "direction": "inbound",
        "peer": "spiffe://shop.internal/ns/shop/sa/web",
        "tls_version": "1.3",
        "mtls": True,
        "decision": "allow",
        "policy": "shop/allow-web",
        "rule": 0,
        "attempts": 1,
        "generation": 12,
    }


def test_a_denied_exchange_says_why_and_what_came_nearest() -> None:
    line = fields(denied())
    assert line["response_code"] == 403
    assert line["response_flags"] == "RBAC"
    assert line["response_code_details"] == "rbac_access_denied_matched_policy[none]"
    assert line["decision"] == "deny"
    assert line["reason"] == "no_allow_policy_matched"
    assert line["nearest"] == "shop/allow-web#0:methods"
    assert line["duration"] == 0.3
    assert not {"policy", "rule", "upstream_service_time"} & set(line)


def test_a_deny_policy_is_named() -> None:
    word = "deny_policy_matched"
    record = denied(reason=word, decision=decision(False, policy="shop/no-admin", reason=word))
    assert fields(record)["response_code_details"] == "rbac_access_denied_matched_policy[shop/no-admin]"


def test_a_dry_run_is_told_apart_from_an_allowed_exchange() -> None:
    assert fields(exchange(decision=decision(audited=True)))["decision"] == "audit_deny"


def test_a_failed_connect_carries_the_transports_words() -> None:
    line = fields(
        exchange(
            "outbound",
            status=503,
            flags="UF",
            reason="upstream_connect_failed",
            details="10.1.4.9:8443: connection refused",
            first_byte_at=0.0,
        )
    )
    assert line["upstream_transport_failure_reason"] == "10.1.4.9:8443: connection refused"
    assert line["response_code_details"] == "upstream_reset_before_response_started{connection_failure}"


def test_a_response_that_broke_off_is_not_said_to_have_broken_before_it_started() -> None:
    line = fields(exchange(reason="upstream_reset", flags="UR", details="stream reset"))
    assert line["response_code_details"] == "upstream_reset"
    assert line["connection_termination_details"] == "stream reset"


def test_a_grpc_status_is_a_number() -> None:
    assert fields(grpc(grpc_status=14))["grpc_status"] == 14
    assert "grpc_status" not in fields(exchange())


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("path", b'/a"},{"decision":"allow', '/a"},{"decision":"allow'),
        ("path", b"/\xc3\xbc\xff", "/\\xc3\\xbc\\xff"),
        ("user_agent", b"x\r\n{}\x1b[2J\x00", "x\r\n{}\x1b[2J\x00"),
        ("request_id", b"\x7f", "\x7f"),
        ("authority", b"\x80", "\\x80"),
        ("method", b"BREW", "BREW"),
    ],
)
def test_wire_bytes_cannot_forge_a_line(name: str, value: bytes, shown: str) -> None:
    changes: dict[str, Any] = {name: value}
    raw = JsonLines().render(exchange(**changes))
    assert all(32 <= byte < 128 for byte in raw[:-1])
    assert orjson.loads(raw)[name] == shown


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31m", "\x9b2J", "a\u2028b", "\u202eevil", "\ud800"])
def test_text_from_outside_cannot_move_the_cursor(text: str) -> None:
    line = fields(exchange(reason="upstream_reset", details=text))["connection_termination_details"]
    assert line.isprintable()
    assert line.isascii()


def test_a_refused_handshake_is_a_line_of_its_own_kind() -> None:
    line = fields(connection(details="no certificate"))
    assert line["protocol"] == "TLS"
    assert line["reason"] == "no_certificate"
    assert line["duration"] == 4.0
    assert line["mtls"] is False
    assert "response_code" not in line


def test_times_are_cached_per_second_and_stay_right() -> None:
    lines = JsonLines()
    assert lines.time(0.0) == "1970-01-01T00:00:00.000Z"
    assert lines.time(1.999) == "1970-01-01T00:00:01.999Z"
    assert lines.time(0.5) == "1970-01-01T00:00:00.500Z"
    for second in range(500):
        lines.time(float(second))
    assert len(lines._seconds) <= 101


def test_the_text_format_is_envoys_default_line() -> None:
    record = exchange(request_id=b"1d0c", user_agent=b'x" 500 "')
    assert TextLines().render(record) == (
        b'[2026-11-26T09:26:12.240Z] "GET /orders/17 HTTP/2" 200 - 0 167 48.2 46.2 '
        b'"-" "x\\" 500 \\"" "1d0c" "api.shop:8443" "127.0.0.1:8080"\n'
    )


def test_filters_choose_records() -> None:
    good, slow, bad = exchange(), exchange(seconds=1.5), exchange(status=502)
    assert parse_filter("all") is None
    errors, denials, late = parse_filter("errors"), parse_filter("denied"), parse_filter("slow>250ms")
    assert errors is not None
    assert denials is not None
    assert late is not None
    assert [errors(r) for r in (good, slow)] == [False, False]
    assert [errors(r) for r in (bad, denied(), grpc(grpc_status=5))] == [True, True, True]
    assert [denials(r) for r in (good, bad, denied())] == [False, False, True]
    assert [late(r) for r in (good, slow)] == [False, True]


@pytest.mark.parametrize("text", ["", "slow", "slow>1", "slow>-1s", "denied ", "ALL"])
def test_an_unknown_filter_is_refused_with_the_choices(text: str) -> None:
    with pytest.raises(ValueError, match="none of: all, errors, denied"):
        parse_filter(text)


# -- sinks -------------------------------------------------------------------------------------------------


def test_a_file_is_appended_to_and_not_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_bytes(b"old\n")
    path.unlink()
    old = os.umask(0)
    try:
        sink = Sink(str(path))
    finally:
        os.umask(old)
    sink.write([b"one\n", b"two\n"])
    sink.close()
    again = Sink(str(path))
    again.write([b"three\n"])
    again.close()
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    assert path.stat().st_mode & 0o777 == 0o640


def test_after_rotation_lines_go_to_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    sink = Sink(str(path))
    sink.write([b"old\n"])
    path.rename(tmp_path / "access.log.1")
    sink.write([b"still old\n"])
    sink.reopen()
    sink.write([b"new\n"])
    sink.close()
    assert (tmp_path / "access.log.1").read_bytes() == b"old\nstill old\n"
    assert path.read_bytes() == b"new\n"


def test_a_rotation_that_cannot_open_the_new_file_keeps_the_old(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    sink = Sink(str(folder / "access.log"))
    folder.rename(tmp_path / "moved")
    sink.reopen()
    with pytest.raises(OSError, match="No such file"):
        sink.write([b"lost\n"])
    sink.write([b"kept\n"])
    sink.close()
    assert (tmp_path / "moved" / "access.log").read_bytes() == b"kept\n"


def test_a_file_that_cannot_be_opened_is_an_error_at_start(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Sink(str(tmp_path / "missing" / "access.log"))


def test_a_pipe_gets_whole_lines_in_pieces_of_the_atomic_size(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    sink = Sink(str(path))
    lines = [b"%03d %s\n" % (i, b"x" * 195) for i in range(100)] + [b"y" * 5000 + b"\n"]
    read: list[bytes] = []

    def drain() -> None:
        fd = os.open(path, os.O_RDONLY)
        while sum(map(len, read)) < sum(map(len, lines)):
            read.append(os.read(fd, 4096))
        os.close(fd)

    thread = threading.Thread(target=drain)
    thread.start()
    sink.write(lines)
    thread.join(10)
    sink.close()
    assert b"".join(read) == b"".join(lines)


def test_a_pipe_somebody_made_non_blocking_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    sink = Sink("stderr")
    os.dup2(writer, sink._fd)
    sink._is_pipe = sink._look()
    lines = [b"%06d\n" % i for i in range(40_000)]  # more than a pipe holds
    thread = threading.Thread(target=sink.write, args=(lines,))
    thread.start()
    read = b""
    while len(read) < 7 * len(lines):
        read += os.read(reader, 65536)
    thread.join(10)
    sink.close()
    os.close(reader)
    os.close(writer)
    assert read == b"".join(lines)


def test_an_unsampled_trace_is_said_to_be_so() -> None:
    assert fields(exchange(trace=trace(sampled=False)))["sampled"] is False
    assert "trace_id" not in fields(exchange(trace=None))
