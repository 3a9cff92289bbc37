"""The supervisor: children are kept alive, told what we are told, and asked together."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import trio
import trio.testing

from proxy import supervisor as module
from proxy.admin import Request
from proxy.supervisor import Supervisor

ASKED = Request("GET", "/", {}, "", None)


class Child:
    """A process that ends when the test says so, or at SIGTERM unless it is stubborn."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.signals: list[int] = []
        self.returncode: int | None = None
        self._stubborn = stubborn
        self._ended = trio.Event()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def end(self, code: int = 1) -> None:
        self.returncode = code
        self._ended.set()

    def send_signal(self, number: int) -> None:
        self.signals.append(number)
        if number == signal.SIGTERM and not self._stubborn:
            self.end(0)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Nest:
    """A supervisor of two, whose children are made up."""

    def __init__(self) -> None:
        loaded: Any = SimpleNamespace(config=SimpleNamespace(workers=2))
        source: Any = SimpleNamespace(arguments=lambda: ["sidewall.yaml"])
        self.supervisor = Supervisor(loaded, source)
        self.started: list[tuple[str, list[str], Child]] = []
        self.replies: dict[str, list[tuple[int, bytes]]] = {}
        self.asked: list[tuple[str, str, str]] = []

    async def open_process(self, command: list[str], *, env: dict[str, str], stdin: Any) -> Child:
        await trio.lowlevel.checkpoint()
        child = Child()
        self.started.append((env["SIDEWALL_WORKER_NUMBER"], command, child))
        return child

    async def ask(self, path: str, method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
        self.asked.append((path, method, target))
        return self.replies[target][int(path[-1])]

    @property
    def children(self) -> list[Child]:
        return [child for _, _, child in self.started]


@pytest.fixture
def nest(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nest]:
    monkeypatch.setattr(module.wiring, "admin_socket", lambda config, number: f"/run/worker{number}", raising=False)
    monkeypatch.setattr(module.wiring, "bind_admin", lambda config, number: [])
    monkeypatch.setattr(module.wiring, "remove_admin", lambda config, number: None)
    made = Nest()
    monkeypatch.setattr(module.trio.lowlevel, "open_process", made.open_process)
    monkeypatch.setattr(module, "ask", made.ask)
    return made


async def test_every_worker_is_started_with_its_number(nest: Nest, autojump_clock: Any) -> None:
    with trio.move_on_after(1.0):
        await nest.supervisor.run()
    assert sorted(number for number, _, _ in nest.started) == ["0", "1"]
    assert all(command[1:] == ["-m", "proxy", "run", "sidewall.yaml"] for _, command, _ in nest.started)


async def test_a_dead_worker_is_started_again_later_each_time(nest: Nest, autojump_clock: Any) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(nest.supervisor._keep, nest.supervisor._workers[0])
        starts = []
        for _ in range(11):
            count = len(nest.started)
            while len(nest.started) == count:
                await trio.sleep(0.01)
            starts.append(trio.current_time())
            nest.children[-1].end()
        nursery.cancel_scope.cancel()
    waits = [round(b - a, 1) for a, b in pairwise(starts)]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0]
    assert nest.supervisor._workers[0].restarts == 11


async def test_a_worker_that_ran_for_long_is_started_again_soon(nest: Nest, autojump_clock: Any) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(nest.supervisor._keep, nest.supervisor._workers[0])
        for lasted in (0.0, 0.0, 31.0):
            count = len(nest.started)
            while len(nest.started) == count:
                await trio.sleep(0.01)
            await trio.sleep(lasted)
            nest.children[-1].end()
        ended = trio.current_time()
        while len(nest.started) == 3:
            await trio.sleep(0.01)
        assert trio.current_time() - ended == pytest.approx(0.1, abs=0.05)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("got", "passed", "stops"),
    [
        (signal.SIGTERM, signal.SIGTERM, True),
        (signal.SIGINT, signal.SIGTERM, True),
        (signal.SIGHUP, signal.SIGHUP, False),
        (signal.SIGUSR1, signal.SIGUSR1, False),
    ],
)
async def test_signals_are_passed_on(
    nest: Nest, autojump_clock: Any, got: signal.Signals, passed: signal.Signals, stops: bool
) -> None:
    with trio.move_on_after(5.0) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nest.supervisor.run)
            await trio.sleep(1.0)
            signal.raise_signal(got)
    assert [child.signals[0] for child in nest.children] == [passed, passed]
    assert scope.cancelled_caught is not stops
    assert len(nest.started) == 2


async def test_a_stop_does_not_wait_for_a_back_off(nest: Nest, autojump_clock: Any) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(nest.supervisor.run)
        await trio.sleep(0.01)
        for _ in range(9):
            nest.children[-1].end()
            await trio.sleep(14.0)
        nest.children[-1].end()
        await trio.sleep(0.5)
        began = trio.current_time()
        signal.raise_signal(signal.SIGTERM)
        while nest.supervisor._stopping is False:
            await trio.sleep(0.01)
    assert trio.current_time() - began < 1.0


async def test_a_worker_that_is_being_started_when_we_stop_is_stopped_too(
    nest: Nest, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = nest.open_process

    async def slow(*args: Any, **more: Any) -> Child:
        await trio.sleep(1.0)
        return await opened(*args, **more)

    monkeypatch.setattr(module.trio.lowlevel, "open_process", slow)
    with trio.move_on_after(60.0) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nest.supervisor.run)
            await trio.sleep(0.5)
            signal.raise_signal(signal.SIGTERM)
    assert not scope.cancelled_caught


def test_a_dead_process_is_not_signalled(nest: Nest) -> None:
    worker = nest.supervisor._workers[0]
    worker.signal(signal.SIGTERM)
    child = Child.__new__(Child)
    child.signals, child.returncode = [], 0
    worker.process = child  # type: ignore[assignment]
    worker.signal(signal.SIGTERM)
    assert child.signals == []


# -- pages ----------------------------------------------------------------------------------------------------

Page = Callable[[Request], Any]


def pages(nest: Nest) -> tuple[dict[str, Any], dict[str, Any]]:
    return nest.supervisor._handlers()


async def test_ready_when_all_are_ready(nest: Nest) -> None:
    ready = pages(nest)[0]["/ready"]
    nest.replies["/ready"] = [(200, b"ready\n"), (200, b"ready\n")]
    assert (await ready(ASKED)).status == 200
    nest.replies["/ready"][1] = (503, b"no identity\n")
    reply = await ready(ASKED)
    assert (reply.status, reply.body) == (503, b"worker 1: no identity\n")


async def test_alive_whatever_the_workers_are(nest: Nest) -> None:
    assert (await pages(nest)[0]["/live"](ASKED)).status == 200
    assert nest.asked == []


async def test_metrics_are_the_sum_and_the_restarts(nest: Nest) -> None:
    text = b"# HELP a_total A.\n# TYPE a_total counter\na_total 2\n"
    nest.replies["/metrics"] = [(200, text), (200, text)]
    nest.supervisor._workers[1].restarts = 3
    body = (await pages(nest)[0]["/metrics"](ASKED)).body.decode()
    assert "a_total 4" in body
    assert "sidewall_worker_restarts_total 3" in body


async def test_status_adds_up_and_is_ready_only_when_all_are(nest: Nest) -> None:
    one = {"ready": True, "connections": 2, "requests_in_flight": 1, "crashes": 0, "pid": 7}
    nest.replies["/status"] = [(200, orjson.dumps(one)), (200, orjson.dumps(one))]
    whole = orjson.loads((await pages(nest)[0]["/status"](ASKED)).body)
    assert (whole["ready"], whole["connections"], whole["requests_in_flight"]) == (True, 4, 2)
    assert whole["pid"] == os.getpid()
    nest.replies["/status"][0] = (503, b"no answer")
    whole = orjson.loads((await pages(nest)[0]["/status"](ASKED)).body)
    assert (whole["ready"], whole["connections"]) == (False, 2)


async def test_status_when_nobody_answers(nest: Nest) -> None:
    nest.replies["/status"] = [(503, b""), (503, b"")]
    whole = orjson.loads((await pages(nest)[0]["/status"](ASKED)).body)
    assert (whole["ready"], whole["connections"]) == (False, 0)


async def test_a_table_comes_from_the_first_worker_that_answers(nest: Nest) -> None:
    nest.replies["/config"] = [(503, b""), (200, b"{}")]
    assert (await pages(nest)[0]["/config"](ASKED)).body == b"{}"
    nest.replies["/config"] = [(503, b""), (503, b"")]
    assert (await pages(nest)[0]["/config"](ASKED)).status == 503


async def test_a_reload_is_good_only_when_all_took_it(nest: Nest) -> None:
    reload = pages(nest)[1]["/reload"]
    good = orjson.dumps({"ok": True, "generation": 4, "problems": []})
    bad = orjson.dumps({"ok": False, "generation": 3, "problems": ["line 7"]})
    nest.replies["/reload"] = [(200, good), (200, good)]
    reply = await reload(ASKED)
    assert (reply.status, orjson.loads(reply.body)) == (200, {"ok": True, "generation": 4, "problems": []})
    nest.replies["/reload"] = [(409, bad), (409, bad)]
    reply = await reload(ASKED)
    assert (reply.status, orjson.loads(reply.body)["problems"]) == (409, ["line 7"])
    nest.replies["/reload"] = [(200, good), (503, b"no answer")]
    reply = await reload(ASKED)
    assert (reply.status, orjson.loads(reply.body)["ok"]) == (409, False)


async def test_a_reload_one_worker_refused_says_why(nest: Nest) -> None:
    good = orjson.dumps({"ok": True, "generation": 4, "problems": []})
    bad = orjson.dumps({"ok": False, "generation": 3, "problems": ["line 7"]})
    nest.replies["/reload"] = [(200, good), (409, bad)]
    reply = await pages(nest)[1]["/reload"](ASKED)
    assert orjson.loads(reply.body) == {"ok": False, "generation": 3, "problems": ["line 7"]}


async def test_drain_stops_every_worker_for_good(nest: Nest, autojump_clock: Any) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(nest.supervisor.run)
        await trio.sleep(1.0)
        reply = await pages(nest)[1]["/drain"](ASKED)
        assert orjson.loads(reply.body) == {"draining": True}
    assert len(nest.started) == 2
    assert [child.signals for child in nest.children] == [[signal.SIGTERM]] * 2
