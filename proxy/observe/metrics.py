"""Counters, gauges and histograms as plain slots, and the two text pages that show them.

Why not prometheus-client or the OpenTelemetry metrics API: one bound ``observe`` costs 1.4 and 13 us there,
0.25 us here, and rendering 300 histogram series takes 89 ms there, during which a worker would serve nobody.

How it is used on the hot path: ``family.labels(...)`` once for each new combination of labels (its owner
keeps the result), then ``value.value += 1`` or ``histogram.observe(seconds)``. No lock: everything is written
by the event loop's thread, except values that only one other thread writes.

Cardinality: a family makes at most ``max_series`` series. What comes later shares one series whose only label
is ``otel_metric_overflow="true"`` (OpenTelemetry metrics SDK, "cardinality limits"), and is counted.

Pages: Prometheus text 0.0.4 and OpenMetrics 1.0, rendered in pieces so that the caller can let the loop run
between two pieces. ``merge_prometheus`` adds up the pages of several workers of one proxy: counters and
histograms are summed, gauges too unless the family says that the largest or smallest is the truth.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

# Advice of the semantic conventions for the durations of both HTTP and RPC, in seconds.
DURATION_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
MAX_SERIES: Final = 2000
TEXT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_SERIES_PER_PIECE: Final = 50  # about 0.3 ms of rendering for histograms
_OVERFLOW: Final = 'otel_metric_overflow="true"'


def escape_label(value: str) -> str:
    """A label value as both formats want it, without the quotes around it."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _render_labels(names: Sequence[str], values: Sequence[str]) -> str:
    return ",".join(
        f'{name}="{escape_label(value)}"' for name, value in zip(names, values, strict=True) if value
    )


def _braced(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def _render_number(value: float) -> str:
    if value != value or value in (float("inf"), float("-inf")):
        return {"inf": "+Inf", "-inf": "-Inf"}.get(str(value), "NaN")
    return str(int(value)) if float(value).is_integer() and abs(value) < _EXACT else repr(value)


_EXACT: Final = 2.0**53  # integers below it are exact as floats


class Value:
    """One series of a counter or gauge. Write ``value`` directly."""

    __slots__ = ("labels", "value")

    def __init__(self, labels: str) -> None:
        self.labels = labels  # as rendered: a="b",c="d"
        self.value: float = 0.0


class Histogram:
    """One series of a histogram family."""

    __slots__ = ("bounds", "counts", "exemplars", "labels", "sum")

    def __init__(self, labels: str, bounds: tuple[float, ...]) -> None:
        self.labels = labels
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # not cumulative; the last is +Inf
        self.sum = 0.0
        self.exemplars: dict[int, tuple[str, float, float]] | None = None

    def observe(self, amount: float) -> None:
        self.counts[bisect_left(self.bounds, amount)] += 1
        self.sum += amount

    def show(self, trace_id: str, amount: float, now: float) -> None:
        """Keep a sampled exchange as the example of its bucket (OpenMetrics exemplars)."""
        if self.exemplars is None:
            self.exemplars = {}
        self.exemplars[bisect_left(self.bounds, amount)] = (trace_id, amount, now)


class _Family:
    """What counters, gauges and histograms share: a name, label names, bounded series."""

    kind = "untyped"

    def __init__(self, registry: Registry, name: str, help_text: str, labels: Sequence[str]) -> None:
        if not _NAME.fullmatch(name) or not all(map(_LABEL.fullmatch, labels)):
            raise ValueError(f"not a metric name or label name: {name} {list(labels)}")
        self.registry = registry
        self.name = name
        self.help_text = help_text
        self.label_names = tuple(labels)

    def head(self, openmetrics: bool) -> str:
        name = self.name.removesuffix("_total") if openmetrics and self.kind == "counter" else self.name
        text = self.help_text.replace("\\", "\\\\").replace("\n", "\\n")
        if openmetrics:
            text = text.replace('"', '\\"')  # OpenMetrics escapes quotes in HELP too; 0.0.4 does not
        return f"# HELP {name} {text}\n# TYPE {name} {self.kind}\n"

    def pieces(self, openmetrics: bool) -> Iterator[str]:
        raise NotImplementedError

    def _overflowed(self) -> None:
        if self is not self.registry.overflows:
            self.registry.overflows.labels(self.name).value += 1


class Counter(_Family):
    """A family of ``Value`` series that only grow. Its name ends in ``_total``."""

    kind = "counter"

    def __init__(
        self, registry: Registry, name: str, help_text: str, labels: Sequence[str], max_series: int
    ) -> None:
        super().__init__(registry, name, help_text, labels)
        self.max_series = max_series
        self.series: dict[tuple[str, ...], Value] = {}
        self._overflow: Value | None = None
        self._functions: dict[str, Callable[[], float]] = {}

    def labels(self, *values: str) -> Value:
        """The series with these label values, made when new. An empty value leaves its label out."""
        found = self.series.get(values)
        if found is not None:
            return found
        if len(self.series) >= self.max_series:
            self._overflowed()
            if self._overflow is None:
                self._overflow = Value(_OVERFLOW)
            return self._overflow
        made = self.series[values] = Value(_render_labels(self.label_names, values))
        return made

    def set_function(self, function: Callable[[], float], *values: str) -> None:
        """Ask ``function`` at each rendering instead of keeping a value. If it raises, NaN is shown."""
        self._functions[_render_labels(self.label_names, values)] = function

    def _now(self) -> list[tuple[str, float]]:
        rows = [(series.labels, series.value) for series in self.series.values()]
        if self._overflow is not None:
            rows.append((_OVERFLOW, self._overflow.value))
        return rows + [(labels, _ask(function)) for labels, function in self._functions.items()]

    def pieces(self, openmetrics: bool) -> Iterator[str]:
        name, rows = self.name, self._now()
        for at in range(0, len(rows), _SERIES_PER_PIECE):
            yield "".join(
                f"{name}{_braced(labels)} {_render_number(value)}\n"
                for labels, value in rows[at : at + _SERIES_PER_PIECE]
            )


class Gauge(Counter):
    """Like ``Counter``, but goes both ways. What several workers make of it: see ``_gauge_rule``."""

    kind = "gauge"


def _ask(function: Callable[[], float]) -> float:
    try:
        return function()
    except Exception:  # one broken callback must not take the page away
        return float("nan")


class Histograms(_Family):
    """A family of ``Histogram`` series over the same bounds."""

    kind = "histogram"

    def __init__(
        self,
        registry: Registry,
        name: str,
        help_text: str,
        labels: Sequence[str],
        max_series: int,
        bounds: tuple[float, ...],
    ) -> None:
        super().__init__(registry, name, help_text, labels)
        self.max_series = max_series
        self.bounds = bounds
        self.series: dict[tuple[str, ...], Histogram] = {}
        self._overflow: Histogram | None = None
        self._les = [*(f'le="{bound!r}"' for bound in bounds), 'le="+Inf"']

    def labels(self, *values: str) -> Histogram:
        """The series with these label values, made when new. An empty value leaves its label out."""
        found = self.series.get(values)
        if found is not None:
            return found
        if len(self.series) >= self.max_series:
            self._overflowed()
            if self._overflow is None:
                self._overflow = Histogram(_OVERFLOW, self.bounds)
            return self._overflow
        made = self.series[values] = Histogram(_render_labels(self.label_names, values), self.bounds)
        return made

    def pieces(self, openmetrics: bool) -> Iterator[str]:
        rows = list(self.series.values())
        if self._overflow is not None:
            rows.append(self._overflow)
        for at in range(0, len(rows), _SERIES_PER_PIECE):
            yield "".join(self._render(series, openmetrics) for series in rows[at : at + _SERIES_PER_PIECE])

    def _render(self, series: Histogram, openmetrics: bool) -> str:
        prefix = f"{self.name}_bucket{{{series.labels}," if series.labels else f"{self.name}_bucket{{"
        lines, total = [], 0
        for le, count in zip(self._les, series.counts, strict=True):
            total += count
            lines.append(f"{prefix}{le}}} {total}\n")
        if openmetrics and series.exemplars is not None:
            for at, (trace_id, amount, when) in series.exemplars.items():
                lines[at] = f'{lines[at][:-1]} # {{trace_id="{trace_id}"}} {amount!r} {when:.3f}\n'
        labels = _braced(series.labels)
        lines.append(f"{self.name}_sum{labels} {_render_number(series.sum)}\n")
        lines.append(f"{self.name}_count{labels} {total}\n")
        return "".join(lines)


_F = TypeVar("_F", Counter, Gauge, Histograms)


class Registry:
    """All families of one process, in the order they were made."""

    def __init__(self, max_series: int = MAX_SERIES) -> None:
        self.max_series = max_series
        self._families: dict[str, Counter | Histograms] = {}
        self.overflows = self.counter(
            "sidewall_metric_overflow_total", "Label combinations refused by the cardinality limit.", "metric"
        )

    def counter(self, name: str, help_text: str, *labels: str) -> Counter:
        if not name.endswith("_total"):
            raise ValueError(f"a counter's name ends in _total: {name}")
        return self._add(Counter(self, name, help_text, labels, self.max_series))

    def gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return self._add(Gauge(self, name, help_text, labels, self.max_series))

    def histogram(
        self, name: str, help_text: str, *labels: str, bounds: tuple[float, ...] | None = None
    ) -> Histograms:
        """``bounds``: DURATION_BOUNDS where not given."""
        return self._add(Histograms(self, name, help_text, labels, self.max_series, bounds or DURATION_BOUNDS))

    def _add(self, family: _F) -> _F:
        if family.name in self._families:
            raise ValueError(f"two metrics named {family.name}")
        self._families[family.name] = family
        return family

    def render(self, *, openmetrics: bool = False) -> Iterator[str]:
        """The page in pieces of at most some 50 series. Families without a series are left out."""
        for family in list(self._families.values()):
            head = family.head(openmetrics)
            for piece in family.pieces(openmetrics):
                yield head + piece
                head = ""
        if openmetrics:
            yield "# EOF\n"


def render_prometheus(registry: Registry, *, openmetrics: bool = False) -> str:
    """The whole page at once, for tests and small registries."""
    return "".join(registry.render(openmetrics=openmetrics))


# -- several workers, one page ---------------------------------------------------------------------------

_SAMPLE: Final = re.compile(r'([a-zA-Z_:][\w:]*)(\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\})? (\S+)(.*)')
# Where adding up would lie, the truth is the worker that is furthest behind, or the busiest one.
_SMALLEST: Final = (
    "_timestamp_seconds",
    "process_start_time_seconds",
    "process_max_fds",
    "sidewall_config_generation",
    "sidewall_config_last_reload_successful",
)
_LARGEST: Final = ("sidewall_event_loop_lag_seconds", "_info")


def _gauge_rule(name: str) -> Callable[[float, float], float]:
    if name.endswith(_SMALLEST):
        return min
    if name.endswith(_LARGEST):
        return max
    return lambda one, other: one + other


def _read_number(text: str) -> float:
    """A number as ``_render_number`` writes it; NaN for anything else."""
    try:
        return int(text) if text.isascii() and text.removeprefix("-").isdigit() else float(text)
    except ValueError:
        return float("nan")


class _Merged:
    """One family while pages are being added up: head lines, then sample -> number in order of arrival."""

    def __init__(self, name: str, head: list[str]) -> None:
        self.head = head
        is_gauge = any(line.startswith("# TYPE ") and line.endswith(" gauge") for line in head)
        self.rule = _gauge_rule(name) if is_gauge else _gauge_rule("")
        self.samples: dict[str, float] = {}
        self.tails: dict[str, str] = {}  # exemplars: the last one wins

    def add(self, sample: str, number: float, tail: str) -> None:
        if number != number:  # NaN from a worker that does not know says nothing about the others
            self.samples.setdefault(sample, number)
            return
        old = self.samples.get(sample)
        self.samples[sample] = number if old is None or old != old else self.rule(old, number)
        if tail:
            self.tails[sample] = tail


def merge_prometheus(pages: Sequence[str]) -> str:
    """Add up pages that ``Registry.render`` made in several workers, all in the same format, into one page.

    Lines that are not of that format are left out: a worker that was cut off in the middle of its page must
    not spoil the numbers of the others. The pages come from our own processes, over our own pipe.
    """
    families: dict[str, _Merged] = {}
    for page in pages:
        _add_page(families, page)
    lines: list[str] = []
    for family in families.values():
        lines += family.head
        for sample, number in family.samples.items():
            lines.append(f"{sample} {_render_number(number)}{family.tails.get(sample, '')}")
    if any(page.endswith("# EOF\n") for page in pages):
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def _add_page(families: dict[str, _Merged], page: str) -> None:
    head: list[str] = []
    family: _Merged | None = None
    for line in page.split("\n")[:-1]:  # what follows the last line end is empty, or a line cut off
        if line.startswith("# HELP "):
            head = [line]
        elif line.startswith("# TYPE "):
            name = line.split(" ")[2]
            family = families.setdefault(name, _Merged(name, [*head, line]))
        elif family is not None and (match := _SAMPLE.fullmatch(line)) is not None:
            family.add(match[1] + (match[2] or ""), _read_number(match[3]), match[4])
