"""The flow ledger: what is added up, what is left out, how much is kept, and what a reader makes of damage."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.observe import ledger
from proxy.observe.flows import Flow, merge, read_line, shape
from proxy.observe.ledger import Ledger
from proxy.observe.record import ExchangeRecord
from proxy.policy.engine import Decision
from tests.unit.observe.records import peer

ALLOWED = Decision(True, policy="shop/allow", rule=1)
REFUSED = Decision(False, "no_allow_policy_matched")


def record(path: bytes = b"/orders/17", decision: Decision | None = ALLOWED, at: float = 100.0) -> ExchangeRecord:
    made = ExchangeRecord("inbound", "in", at, 1.0)
    made.method, made.path, made.authority, made.port, made.status = b"GET", path, b"api", 8080, 200
    made.peer, made.decision, made.route = peer("shop/web"), decision, "in"
    made.peer_address = "10.0.0.9:4711"
    return made


def open_ledger(folder: Path, **more: object) -> Ledger:
    return Ledger(folder / "flows", "shop/api", **{"cap": 2**20, **more})  # type: ignore[arg-type]


def test_exchanges_that_differ_in_nothing_are_one_line(tmp_path: Path) -> None:
    made = open_ledger(tmp_path)
    made.add([record(b"/orders/%d" % number, at=100.0 + number) for number in range(50)], 1.0)
    made.flush()
    (flow,) = ledger.read(tmp_path / "flows")
    assert (flow.count, flow.first, flow.last, flow.path, flow.template) == (50, 100.0, 149.0, "/orders/0", True)
    assert (flow.caller, flow.policy, flow.rule, flow.verdict) == (peer("shop/web").principal, "shop/allow", 1, "allowed")


def test_each_denial_is_written_at_once_and_can_be_found_by_its_id(tmp_path: Path) -> None:
    made = open_ledger(tmp_path)
    for number in range(3):
        refused = record(decision=REFUSED)
        refused.decision_id = f"id{number}"
        made.add([refused], 0.1)
    found = list(ledger.read(tmp_path / "flows"))
    assert [flow.decision_id for flow in found] == ["id0", "id1", "id2"]
    assert {flow.verdict for flow in found} == {"denied"}


def test_what_is_private_is_not_in_it(tmp_path: Path) -> None:
    made = open_ledger(tmp_path)
    secret = record(b"/users/jane.doe@example.org/9f86d081884c7d659a2feaa0c55ad015/card")
    secret.user_agent, secret.x_forwarded_for, secret.details = b"marked-agent", b"10.9.8.7", "marked-detail"
    made.add([secret], 1.0)
    made.flush()
    (path,) = ledger.segments(tmp_path / "flows")
    text = path.read_text()
    for word in ("jane", "9f86", "marked", "10.9.8.7", "10.0.0.9"):
        assert word not in text
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_exact_paths_and_addresses_are_kept_when_wanted(tmp_path: Path) -> None:
    made = open_ledger(tmp_path, exact=True, sources=True)
    made.add([record()], 1.0)
    made.flush()
    (flow,) = ledger.read(tmp_path / "flows")
    assert (flow.path, flow.template, flow.source) == ("/orders/17", False, "10.0.0.9")


def test_the_folder_never_outgrows_its_cap_and_the_newest_stays(tmp_path: Path) -> None:
    made = open_ledger(tmp_path, cap=256 * 1024)
    for number in range(4000):
        made.add([record(b"/p/%x" % number + b"z" * 200, decision=REFUSED, at=float(number))], 1.0)
    size = sum(path.stat().st_size for path in ledger.segments(tmp_path / "flows"))
    assert size <= 256 * 1024
    found = list(ledger.read(tmp_path / "flows"))
    assert found[-1].last == 3999.0
    assert len(found) > 100


def test_more_kinds_than_are_held_are_counted_as_dropped(tmp_path: Path) -> None:
    made = open_ledger(tmp_path, exact=True)
    made._written_at = 1.0
    made.add([record(b"/p/%d" % number) for number in range(5000)], 1.0)
    made.flush()
    kept = sum(flow.count for flow in ledger.read(tmp_path / "flows"))
    assert made.dropped > 0
    assert kept + made.dropped == 5000


def test_a_full_disk_is_counted_and_the_next_write_works(tmp_path: Path) -> None:
    made = open_ledger(tmp_path)
    made._fd = os.open("/dev/full", os.O_WRONLY)
    made._written_at = 1.0
    made.add([record()] * 7, 1.0)
    with pytest.raises(OSError, match="space"):
        made.flush()
    assert made.dropped == 7
    made.close()
    made.add([record()], 100.0)
    made.flush()
    assert [flow.count for flow in ledger.read(tmp_path / "flows")] == [1]


def test_workers_share_a_folder(tmp_path: Path) -> None:
    for worker in range(3):
        made = open_ledger(tmp_path, worker=worker)
        made.add([record()], 1.0)
        made.flush()
        made.close()
    assert [flow.count for flow in merge(ledger.read(tmp_path / "flows"))] == [3]
    assert len(ledger.segments(tmp_path / "flows")) == 3


def test_a_folder_that_others_can_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "flows").mkdir(mode=0o755)
    with pytest.raises(PermissionError, match="0700"):
        open_ledger(tmp_path)


def test_damaged_lines_are_told_and_the_rest_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "flows"
    folder.mkdir()
    good = Flow("shop/api", None, last=5.0).line()
    (folder / "flows-0000000001.jsonl").write_bytes(good + b"{\n" + b'{"v":9}\n' + good + good[:-9])
    problems: list[str] = []
    assert len(list(ledger.read(folder, problems=problems))) == 2
    assert [problem.split(":")[1] for problem in problems] == ["2", "3"]
    assert list(ledger.read(folder, since=6.0)) == []
    with pytest.raises(FileNotFoundError, match="no flow ledger"):
        list(ledger.read(tmp_path / "nowhere"))


FLOWS = st.builds(
    Flow,
    workload=st.sampled_from(["shop/api", "shop/db"]),
    caller=st.sampled_from([None, "td/ns/shop/sa/web"]),
    method=st.sampled_from(["GET", "POST"]),
    path=st.text(st.characters(max_codepoint=255), max_size=10),
    port=st.integers(0, 65535),
    count=st.integers(1, 1000),
    first=st.floats(0, 1e9),
    last=st.floats(0, 1e9),
    decision_id=st.sampled_from(["", "abc"]),
)


@given(FLOWS)
def test_a_line_says_all_of_a_flow(flow: Flow) -> None:
    assert read_line(flow.line()) == flow


@given(st.lists(FLOWS, max_size=20))
def test_merging_loses_no_exchange_and_mixes_no_verdicts(flows: list[Flow]) -> None:
    merged = list(merge(flows))
    assert sum(flow.count for flow in merged) == sum(flow.count for flow in flows)
    assert {flow.key for flow in merged} == {flow.key for flow in flows}
    assert len({flow.key for flow in merged}) == len(merged)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        '{"v":2,"workload":"a","caller":null}',
        '{"v":1}',
        '{"v":1,"workload":1,"caller":null}',
        '{"v":1,"workload":"a","caller":null,"count":true}',
        '{"v":1,"workload":"a","caller":null,"template":1}',
        json.dumps({"v": 1, "workload": "x" * 70_000, "caller": None}),
    ],
)
def test_what_is_no_flow_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_line(line)


def test_members_of_a_newer_version_are_ignored() -> None:
    text = json.dumps({"v": 1, "workload": "a", "caller": None, "new": [1]})
    assert read_line(text) == Flow("a", None)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("/orders", "/orders"),
        ("/orders/17/lines/3", "/orders/0/lines/0"),
        ("/o/6F9619FF-8B86-D011-B42D-00C04FC964FF", "/o/00000000-0000-0000-0000-000000000000"),
        ("/blob/deadbeef01", "/blob/0a0a0a0a"),
        ("/u/jane@example.org/", "/u/x@x/"),
        ("/t/eyJhbGciOiJIUzI1NiJ9.e30.abc", "/t/x0"),
        ("/v1/accounts", "/v1/accounts"),
        ("/pkg.Service/Method", "/pkg.Service/Method"),
        ("/very-long-but-plain-word-of-people", "/very-long-but-plain-word-of-people"),
        ("/" + "w" * 80, "/x"),
    ],
)
def test_the_shape_of_a_path(path: str, expected: str) -> None:
    assert shape(path) == expected
    assert shape(shape(path)) == shape(path)


def test_flows_of_different_verdicts_stay_apart() -> None:
    one = Flow("a", None)
    assert len(list(merge([one, replace(one, verdict="denied"), one]))) == 2
