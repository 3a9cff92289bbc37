from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from proxy.observe.history import AmbiguousTrace, TraceNotFound, TraceReader
from proxy.observe.record import ExchangeRecord
from proxy.observe.spans import Span, build_spans
from proxy.observe.store import Connection, Edge, TraceStore
from tests.unit.observe.records import denied, exchange, trace


def spans(record: ExchangeRecord, service: str = "shop/api") -> list[Span]:
    return build_spans(record, service, {})


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "traces.db")


def write(path: str, *records: ExchangeRecord, service: str = "shop/api") -> None:
    store = TraceStore(path)
    store.write([span for record in records for span in spans(record, service)])
    store.close()


def test_what_was_written_is_read_again(path: str) -> None:
    record = exchange(route="/orders/*", flags="UR", reason="upstream_reset", details="broke off")
    record.trace = trace(link=(b"1" * 32, b"2" * 16))
    write(path, record)
    with TraceReader([path]) as reader:
        read = reader.last()
    for ours, theirs in zip(spans(record), read, strict=True):
        for name in Span.__slots__:
            if name not in ("tracestate", "remote_parent"):
                assert getattr(ours, name) == getattr(theirs, name), name


def test_the_file_is_private_whatever_the_umask(path: str) -> None:
    Path(path).touch(mode=0o666)
    store = TraceStore(path)
    store.write(spans(exchange()))
    files = [file for file in Path(path).parent.iterdir() if file.name.startswith("traces.db")]
    assert len(files) == 3
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    store.close()


def test_a_symbolic_link_is_not_followed(path: str, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    Path(path).symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic"):
        TraceStore(path)


def test_a_file_of_a_newer_version_is_refused(path: str) -> None:
    TraceStore(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(sqlite3.DatabaseError, match="newer version"):
        TraceStore(path)


def test_a_file_that_is_no_database_is_refused(path: str) -> None:
    Path(path).write_bytes(b"hello" * 1000)
    with pytest.raises(sqlite3.DatabaseError):
        TraceStore(path)
    with pytest.raises(sqlite3.DatabaseError):
        TraceReader([path])


def test_a_trace_is_found_by_the_beginning_of_its_id(path: str) -> None:
    first, second = exchange(trace=trace(seed=1)), exchange(trace=trace(seed=2), at=1.0)
    write(path, first, second)
    assert first.trace is not None
    wanted = first.trace.trace_id.decode()
    with TraceReader([path]) as reader:
        assert {span.trace_id for span in reader.trace(wanted[:6])} == {wanted}
        assert len(reader.trace(wanted)) == 2


def test_an_ambiguous_beginning_names_the_candidates(path: str) -> None:
    records = [exchange(trace=trace(seed=i, trace_id=b"abc%d" % i + b"0" * 28)) for i in (1, 2)]
    write(path, *records)
    with TraceReader([path]) as reader, pytest.raises(AmbiguousTrace) as error:
        reader.trace("abc")
    assert [found[:4] for found in error.value.ids] == ["abc1", "abc2"]


@pytest.mark.parametrize("prefix", ["", "XYZ", "ab%", "g", "a" * 33, "' OR 1=1 --"])
def test_what_is_no_trace_id_finds_nothing(path: str, prefix: str) -> None:
    write(path, exchange())
    with TraceReader([path]) as reader, pytest.raises(TraceNotFound):
        reader.trace(prefix)


def test_an_empty_or_missing_file_has_no_traces(path: str) -> None:
    TraceStore(path).close()
    with TraceReader([path, path + ".missing"]) as reader:
        assert reader.recent() == []
        for find in (reader.last, reader.slowest, reader.denied):
            with pytest.raises(TraceNotFound):
                find()


def test_last_slowest_and_denied_find_their_trace(path: str) -> None:
    write(
        path,
        exchange(trace=trace(seed=1), at=0.0, seconds=3.0),
        denied(trace=trace(seed=2), at=1.0),
        exchange(trace=trace(seed=3), at=2.0, seconds=0.01),
    )
    with TraceReader([path]) as reader:
        found = [reader.slowest(), reader.denied(), reader.last()]
        recent = reader.recent(2)
    ids = [trace(seed=seed).trace_id.decode() for seed in (1, 2, 3)]
    assert [spans[0].trace_id for spans in found] == ids
    assert [spans[0].trace_id for spans in recent] == [ids[2], ids[1]]


def test_several_files_are_read_as_one(tmp_path: Path) -> None:
    web, api = str(tmp_path / "web.db"), str(tmp_path / "api.db")
    outer = exchange("outbound", trace=trace(seed=1))
    assert outer.trace is not None
    inner = exchange(at=0.01, seconds=0.02, trace=trace(seed=2, parent=outer.trace))
    later = exchange(at=5.0, trace=trace(seed=3))
    write(web, outer, later, service="shop/web")
    write(api, inner)
    with TraceReader([web, api, web]) as reader:
        whole = reader.trace(outer.trace.trace_id.decode())
        assert [span.service for span in whole] == ["shop/web", "shop/web", "shop/api", "shop/api"]
        assert [found[0].start_ns for found in reader.recent()] == sorted(
            (found[0].start_ns for found in reader.recent()), reverse=True
        )
        assert len(reader.recent()) == 2


def test_two_writers_share_one_file(path: str) -> None:
    one, two = TraceStore(path), TraceStore(path)
    for i in range(20):
        one.write(spans(exchange(trace=trace(seed=2 * i)), "shop/web"))
        two.write(spans(exchange(trace=trace(seed=2 * i + 1))))
    one.close()
    two.close()
    with TraceReader([path]) as reader:
        assert len(reader.recent(100)) == 40


def test_a_batch_is_written_whole_or_not_at_all(path: str) -> None:
    store = TraceStore(path)
    bad = spans(exchange(trace=trace(seed=2)))[0]
    bad.name = None  # type: ignore[assignment]
    with pytest.raises(sqlite3.IntegrityError):
        store.write([*spans(exchange()), bad])
    store.write(spans(exchange(trace=trace(seed=3))))
    store.close()
    with TraceReader([path]) as reader:
        assert len(reader.recent()) == 1


def test_the_oldest_go_when_there_are_too_many(path: str) -> None:
    store = TraceStore(path, max_spans=100)
    store.write([span for i in range(100) for span in spans(exchange(at=float(i), trace=trace(seed=i)))])
    store.trim()
    store.close()
    with TraceReader([path]) as reader:
        kept = reader.recent(1000)
    assert len(kept) == 45
    assert kept[0][0].trace_id == trace(seed=99).trace_id.decode()


def test_the_file_stays_within_its_size_and_gives_space_back(path: str) -> None:
    store = TraceStore(path, max_bytes=300_000)
    for i in range(40):
        batch = spans(exchange(at=float(i), trace=trace(seed=i)))
        for span in batch:
            span.attributes["x"] = "y" * 20_000
        store.write(batch)
    store.trim()
    assert store.size() <= 300_000
    store.close()
    assert Path(path).stat().st_size <= 400_000
    with TraceReader([path]) as reader:
        assert reader.last()[0].trace_id == trace(seed=39).trace_id.decode()


def test_trimming_happens_by_itself(path: str) -> None:
    store = TraceStore(path, max_spans=50)
    for i in range(20):
        seeds = range(i * 30, i * 30 + 30)
        store.write([s for seed in seeds for s in spans(exchange(at=float(seed), trace=trace(seed=seed)))])
    store.close()
    with TraceReader([path]) as reader:
        assert len(reader.recent(10_000)) < 300


def test_denials_are_exchanges_and_refused_connections_together(path: str) -> None:
    store = TraceStore(path)
    refused = Connection(2 * 10**18, 4_000_000, "shop/api", "", "10.1.4.7:40123")
    refused.kind, refused.reason, refused.flags = "tls", "no_certificate", "TLS"
    refused.attributes["details"] = "x"
    store.write([*spans(exchange(trace=trace(seed=5))), *spans(denied())], [refused])
    store.close()
    with TraceReader([path]) as reader:
        newest, oldest = reader.denials()
        assert reader.denials(since_ns=2 * 10**18 + 1) == []
    assert isinstance(newest, Connection)
    assert (newest.reason, newest.address) == ("no_certificate", "10.1.4.7:40123")
    assert newest.attributes == {"details": "x"}
    assert isinstance(oldest, Span)
    assert oldest.decision == "deny"


def test_edges_of_one_minute_add_up_over_batches_and_files(tmp_path: Path) -> None:
    key = (29928086, "shop/web", "shop/api", "/orders/*")
    paths = [str(tmp_path / name) for name in ("a.db", "b.db")]
    for path in paths:
        store = TraceStore(path)
        for _ in range(2):
            edge = Edge()
            edge.add(0.003, failed=False, denied=False)
            edge.add(0.3, failed=True, denied=True)
            store.write([], edges={key: edge})
        store.close()
    with TraceReader(paths) as reader:
        total = reader.edges()[key]
        assert reader.edges(since_minute=key[0] + 1) == {}
    assert (total.count, total.errors, total.denied) == (8, 4, 4)
    assert total.seconds == pytest.approx(1.212)
    assert total.buckets[0] == 4
    assert sum(total.buckets) == 8
