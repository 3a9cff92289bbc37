"""The benchmarks must go on working: each part once, as small as it gets. No figure is judged here."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import canned, compiled, policy, policy_tools, rivals
from benchmarks.apps import Apps
from benchmarks.canned import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GRPC_MESSAGE,
    HEADERS,
    MESSAGES,
    PREFACE,
    SETTINGS,
    WINDOW_UPDATE,
    Http1Sink,
    Http2,
    frame,
)
from benchmarks.cases import CASES
from benchmarks.loads import H2load
from benchmarks.report import Run, ratio, table

ROOT = Path(__file__).resolve().parents[2]
MISSING = Apps.available() or H2load.available()


def frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """(type, flags, stream, payload) of each frame."""
    found = []
    while data:
        size = int.from_bytes(data[:3], "big")
        found.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]))
        data = data[9 + size :]
    return found


def answers(app: Http2) -> list[tuple[int, int, int, bytes]]:
    while app.can_send:
        app.send_owed()
    written = b"".join(app.out)
    app.out.clear()
    return [each for each in frames(written) if each[2]]


CALL = frame(HEADERS, END_HEADERS, 1, b"\x82") + frame(DATA, END_STREAM, 1, GRPC_MESSAGE)


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_a_canned_call_is_answered_with_head_message_and_trailers(step: int) -> None:
    app, sent = Http2("unary"), PREFACE + frame(SETTINGS, 0, 0, b"") + CALL
    for at in range(0, len(sent), step):
        app.receive(sent[at : at + step])
    assert [(kind, flags & END_STREAM) for kind, flags, _, _ in answers(app)] == [
        (HEADERS, 0),
        (DATA, 0),
        (HEADERS, END_STREAM),
    ]


def test_a_canned_stream_waits_for_the_window_of_the_peer() -> None:
    app = Http2("stream")
    first = len(GRPC_MESSAGE) * 2
    app.receive(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, first)) + CALL)
    assert sum(kind == DATA for kind, *_ in answers(app)) == 2
    app.receive(frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", 65535)))
    assert sum(kind == DATA for kind, *_ in answers(app)) == MESSAGES - 2


@pytest.mark.parametrize(
    "body",
    [b"content-length: 8\r\n\r\n" + bytes(8), b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"],
)
def test_the_sink_answers_when_the_body_is_complete_and_not_before(body: bytes) -> None:
    sink, sent = Http1Sink(), b"PUT / HTTP/1.1\r\n" + body
    for byte in sent[:-1]:
        sink.receive(bytes([byte]))
    assert sink.out == []
    sink.receive(sent[-1:])
    assert sink.out == [canned.PLAIN_ANSWER]


def test_the_table_shows_the_ratio_of_medians_to_envoy() -> None:
    run = Run()
    case = next(case for case in CASES if case.name == "ready")
    for value in (10.0, 30.0, 20.0):
        run.add(case.name, "envoy", {"ready_ms": value, "pss_mib": 5.0, "foreign": 0.0})
        run.add(case.name, "sidewall", {"ready_ms": 2 * value, "pss_mib": 5.0, "foreign": 0.5})
    samples = run.samples[case.name]
    assert ratio(samples, "sidewall", "ready_ms") == 2.0
    assert any("sidewall" in line and "2.00" in line and "50% !" in line for line in table(case, samples))


def _unbuilt(rival: rivals.Rival) -> str | None:
    # Building takes both cores for minutes: `make test-compiled` and a benchmark run do it, a default test run does not.
    wants = rival.name == "sidewall" and not compiled.is_built()
    return "no compiled build of these sources yet (python -m benchmarks.compiled makes it)" if wants else None


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=MISSING or "")
@pytest.mark.parametrize(
    "rival",
    # The others only show that their own configuration still works, half a minute each.
    [r if "sidewall" in r.name else pytest.param(r, marks=pytest.mark.long) for r in rivals.ALL],
    ids=lambda rival: rival.name,
)
def test_a_quick_run_measures_every_proxy_that_is_here(rival: rivals.Rival, tmp_path: Path) -> None:
    if reason := rival.available() or _unbuilt(rival):
        pytest.skip(reason)
    output = tmp_path / "samples.json"
    command = [sys.executable, "-m", "benchmarks.end_to_end", "--quick", "--rivals", rival.name]
    only = ["--only", "http1-c1,grpc-unary,upload-http2", "-o", str(output)]
    done = subprocess.run(
        [*command, *only], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    samples = json.loads(output.read_text())["samples"]
    assert samples["http1-c1"][rival.name][0]["cpu_us"] > 0
    assert samples["grpc-unary"][rival.name][0]["rps"] > 0
    assert samples["upload-http2"][rival.name][0]["mib_s"] > 0


@pytest.mark.slow
def test_the_cost_of_policies_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    policy.compare(policy.one_policy, 2, 40, True)
    policy.compare(policy.with_condition, 2, 40, False)
    assert capsys.readouterr().out.count("ratio") == 5


@pytest.mark.slow
def test_the_policy_tools_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    policy_tools.main(20, 10, 100)
    assert len(capsys.readouterr().out.splitlines()) == 10
