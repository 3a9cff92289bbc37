from __future__ import annotations

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from proxy.observe.metrics import DURATION_BOUNDS, Registry, merge_prometheus, render_prometheus


def samples(page: str, *, openmetrics: bool = False) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The page as prometheus-client reads it."""
    families = (parse_openmetrics if openmetrics else parse_text)(page)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def filled() -> Registry:
    registry = Registry()
    requests = registry.counter("sidewall_requests_total", "Exchanges.", "direction", "code")
    requests.labels("inbound", "200").value += 3
    requests.labels("outbound", "503").value += 1
    registry.gauge("sidewall_connections", "Open.", "kind").labels("tcp").value = 2
    registry.gauge("sidewall_svid_expiry_timestamp_seconds", "End.").labels().value = 1795685172.5
    seconds = registry.histogram("http_server_request_duration_seconds", "Duration.", "method")
    for amount in (0.001, 0.005, 0.0051, 0.3, 99.0):
        seconds.labels("GET").observe(amount)
    return registry


@pytest.mark.parametrize("openmetrics", [False, True])
def test_both_pages_are_read_by_the_official_parser(openmetrics: bool) -> None:
    found = samples(render_prometheus(filled(), openmetrics=openmetrics), openmetrics=openmetrics)
    assert found["sidewall_requests_total", (("code", "200"), ("direction", "inbound"))] == 3
    assert found["sidewall_connections", (("kind", "tcp"),)] == 2
    assert found["sidewall_svid_expiry_timestamp_seconds", ()] == 1795685172.5
    bucket = "http_server_request_duration_seconds_bucket"
    assert found[bucket, (("le", "0.005"), ("method", "GET"))] == 2
    assert found[bucket, (("le", "0.01"), ("method", "GET"))] == 3
    assert found[bucket, (("le", "10.0"), ("method", "GET"))] == 4
    assert found[bucket, (("le", "+Inf"), ("method", "GET"))] == 5
    assert found["http_server_request_duration_seconds_count", (("method", "GET"),)] == 5
    total = found["http_server_request_duration_seconds_sum", (("method", "GET"),)]
    assert total == pytest.approx(99.3111)


@pytest.mark.parametrize("openmetrics", [False, True])
@pytest.mark.parametrize("value", ['a"b', "a\\b", "a\nb", 'a\\"\n', "a\\nb", "{}", "a,b=c", "ü # x", "} 1"])
def test_label_values_survive_whatever_they_hold(value: str, openmetrics: bool) -> None:
    registry = Registry()
    registry.counter("x_total", "Help with \\ and \n and \".", "label").labels(value).value = 1
    page = render_prometheus(registry, openmetrics=openmetrics)
    assert samples(page, openmetrics=openmetrics) == {("x_total", (("label", value),)): 1}
    merged = merge_prometheus([page, page])
    assert samples(merged, openmetrics=openmetrics) == {("x_total", (("label", value),)): 2}


def test_an_empty_label_value_is_left_out_as_prometheus_means_it() -> None:
    registry = Registry()
    registry.counter("x_total", "X.", "a", "b").labels("", "1").value = 1
    assert 'x_total{b="1"} 1\n' in render_prometheus(registry)


def test_the_same_labels_are_the_same_series() -> None:
    counter = Registry().counter("x_total", "X.", "a")
    assert counter.labels("1") is counter.labels("1")
    assert counter.labels("1") is not counter.labels("2")


def test_beyond_the_limit_all_new_label_values_share_one_series_and_are_counted() -> None:
    registry = Registry(max_series=3)
    counter = registry.counter("x_total", "X.", "a")
    histogram = registry.histogram("y_seconds", "Y.", "a")
    for i in range(10):
        counter.labels(str(i)).value += 1
        histogram.labels(str(i)).observe(0.1)
    found = samples(render_prometheus(registry))
    assert found["x_total", (("otel_metric_overflow", "true"),)] == 7
    assert found["y_seconds_count", (("otel_metric_overflow", "true"),)] == 7
    assert found["sidewall_metric_overflow_total", (("metric", "x_total"),)] == 7
    assert sum(name == "x_total" for name, _ in found) == 4


def test_a_series_made_before_the_limit_is_still_found_after_it() -> None:
    registry = Registry(max_series=1)
    counter = registry.counter("x_total", "X.", "a")
    first = counter.labels("1")
    counter.labels("2")
    assert counter.labels("1") is first


def test_a_callback_is_asked_at_each_rendering_and_a_broken_one_spoils_only_itself() -> None:
    registry = Registry()
    numbers = iter([1, 2])
    registry.gauge("good", "G.").set_function(lambda: next(numbers))
    registry.gauge("bad", "B.").set_function(lambda: 1 / 0)
    assert "good 1\n" in render_prometheus(registry)
    page = render_prometheus(registry)
    assert "good 2\n" in page
    assert "bad NaN\n" in page


def test_exemplars_stand_beside_their_bucket_in_openmetrics_only() -> None:
    registry = Registry()
    series = registry.histogram("x_seconds", "X.", "a").labels("1")
    series.observe(0.02)
    series.show("4bf92f35", 0.02, 1795685172.24)
    families = list(parse_openmetrics(render_prometheus(registry, openmetrics=True)))  # type: ignore[no-untyped-call]
    exemplars = {s.labels["le"]: s.exemplar for f in families for s in f.samples if s.exemplar}
    assert list(exemplars) == ["0.025"]
    assert exemplars["0.025"].labels == {"trace_id": "4bf92f35"}
    assert "4bf92f35" not in render_prometheus(registry)


def test_a_large_page_comes_in_pieces() -> None:
    registry = Registry()
    histogram = registry.histogram("x_seconds", "X.", "a")
    for i in range(170):
        histogram.labels(str(i)).observe(0.1)
    pieces = list(registry.render())
    assert len(pieces) == 4
    assert sum(piece.count("# TYPE") for piece in pieces) == 1
    assert len(samples("".join(pieces))) == 170 * (len(DURATION_BOUNDS) + 3)


def test_series_made_between_two_pieces_do_not_break_the_page() -> None:
    registry = Registry()
    counter = registry.counter("x_total", "X.", "a")
    for i in range(120):
        counter.labels(str(i)).value += 1
    page = ""
    for piece in registry.render():
        page += piece
        counter.labels(f"new {len(page)}").value += 1
    assert len(samples(page)) == 120


@pytest.mark.parametrize("name", ["", "1x_total", "x-y_total", "x_total\n", "ü_total"])
def test_bad_metric_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        Registry().counter(name, "X.")


def test_two_metrics_of_one_name_are_refused() -> None:
    registry = Registry()
    registry.counter("x_total", "X.")
    with pytest.raises(ValueError, match="two metrics"):
        registry.gauge("x_total", "X.")


# -- several workers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("openmetrics", [False, True])
def test_pages_of_workers_are_added_up(openmetrics: bool) -> None:
    one, two = filled(), filled()
    two._families["sidewall_requests_total"].labels("inbound", "404").value += 5  # type: ignore[union-attr]
    pages = [render_prometheus(registry, openmetrics=openmetrics) for registry in (one, two)]
    found = samples(merge_prometheus(pages), openmetrics=openmetrics)
    assert found["sidewall_requests_total", (("code", "200"), ("direction", "inbound"))] == 6
    assert found["sidewall_requests_total", (("code", "404"), ("direction", "inbound"))] == 5
    assert found["sidewall_connections", (("kind", "tcp"),)] == 4
    assert found["sidewall_svid_expiry_timestamp_seconds", ()] == 1795685172.5
    bucket = "http_server_request_duration_seconds_bucket"
    assert found[bucket, (("le", "0.005"), ("method", "GET"))] == 4
    assert found["http_server_request_duration_seconds_count", (("method", "GET"),)] == 10


@pytest.mark.parametrize(
    ("name", "merged"),
    [
        ("sidewall_svid_expiry_timestamp_seconds", 1),
        ("sidewall_config_generation", 1),
        ("sidewall_config_last_reload_successful", 1),
        ("sidewall_event_loop_lag_seconds", 3),
        ("sidewall_build_info", 3),
        ("process_open_fds", 6),
        ("http_server_active_requests", 6),
    ],
)
def test_a_gauge_is_added_up_only_where_that_is_true(name: str, merged: float) -> None:
    pages = []
    for value in (2, 1, 3):
        registry = Registry()
        registry.gauge(name, "G.").labels().value = value
        pages.append(render_prometheus(registry))
    assert samples(merge_prometheus(pages)) == {(name, ()): merged}


def test_a_worker_that_does_not_know_says_nothing_about_the_others() -> None:
    pages = ["# TYPE x gauge\nx NaN\n", "# TYPE x gauge\nx 2\n", "# TYPE x gauge\nx NaN\n"]
    assert samples(merge_prometheus(pages)) == {("x", ()): 2}


def test_a_page_cut_off_in_the_middle_loses_only_its_last_line() -> None:
    page = render_prometheus(filled())
    cut = page[: page.index('code="503"') + 3]
    found = samples(merge_prometheus([page, cut, ""]))
    assert found["sidewall_requests_total", (("code", "200"), ("direction", "inbound"))] == 6
    assert found["sidewall_requests_total", (("code", "503"), ("direction", "outbound"))] == 1
    assert found["sidewall_connections", (("kind", "tcp"),)] == 2


def test_lines_that_are_no_samples_are_left_out_of_the_sum() -> None:
    page = "# TYPE x_total counter\nx_total 1\n<html>\nx_total one\nx_total{a=\"1} 5\n"
    assert samples(merge_prometheus([page])) == {("x_total", ()): 1}
