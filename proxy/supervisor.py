"""``workers: N``: one supervisor, N serving processes on the same ports (SO_REUSEPORT).

The kernel spreads new connections over the workers; they share nothing, so that a crash costs only the
connections of one (H-6). The supervisor serves no traffic and holds no key. It starts workers, starts a dead
one again (back-off 0.1 s to 30 s), passes signals on, and answers the administrative doors: metrics are the
sum of the workers' pages, readiness is that of all of them, reload and drain go to each.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from urllib.parse import quote

import orjson
import trio

from config.load import Loaded
from proxy import wiring
from proxy.admin import Admin, Handler, Reply, Request, json_reply, text_reply
from proxy.ask import ask
from proxy.observe.metrics import merge_prometheus

_FIRST_BACK_OFF = 0.1
_LONGEST_BACK_OFF = 30.0
_STABLE = 30.0  # seconds after which a worker's crash starts the back-off anew

# Pages that say the same in each worker.
_PAGES = ("/config", "/certs", "/clusters", "/listeners", "/connections", "/policies", "/quarantine", "/version")

log = logging.getLogger("proxy.supervisor")


class WorkerProcess:
    """One child. ``socket`` is its own administrative door."""

    def __init__(self, number: int, socket: str) -> None:
        self.number = number
        self.socket = socket
        self.process: trio.Process | None = None
        self.restarts = 0

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)


class Supervisor:
    """See the module's text."""

    def __init__(self, loaded: Loaded, source: wiring.Source) -> None:
        self._loaded = loaded
        self._source = source
        self._stopping = False
        self._stop = trio.Event()
        self._workers = [
            WorkerProcess(number, wiring.admin_socket(loaded.config, number))
            for number in range(loaded.config.workers)
        ]

    async def run(self) -> int:
        doors = wiring.bind_admin(self._loaded.config, None)
        try:
            async with trio.open_nursery() as nursery:
                admin = Admin(*self._handlers())
                for door, sock in doors:
                    nursery.start_soon(_serve_door, admin, sock, door)
                nursery.start_soon(self._signals)
                async with trio.open_nursery() as workers:
                    for worker in self._workers:
                        workers.start_soon(self._keep, worker)
                nursery.cancel_scope.cancel()
        finally:
            wiring.remove_admin(self._loaded.config, None)
        return 0

    # -- children -----------------------------------------------------------------------------------------

    async def _keep(self, worker: WorkerProcess) -> None:
        """Run one worker, again and again, until we are stopping."""
        back_off = _FIRST_BACK_OFF
        while not self._stopping:
            began = trio.current_time()
            code = await self._run_once(worker)
            if self._is_stopping():
                return
            worker.restarts += 1
            back_off = _FIRST_BACK_OFF if trio.current_time() - began > _STABLE else back_off
            log.error(
                "worker ended; starting it again",
                extra={"event": "worker.ended", "worker": worker.number, "code": code, "after": back_off},
            )
            with trio.move_on_after(back_off):
                await self._stop.wait()
            back_off = min(back_off * 2, _LONGEST_BACK_OFF)

    def _begin_to_stop(self) -> None:
        self._stopping = True
        self._stop.set()

    def _is_stopping(self) -> bool:
        return self._stopping  # a signal may have come while the worker ran

    async def _run_once(self, worker: WorkerProcess) -> int:
        environment = {**os.environ, "SIDEWALL_WORKER_NUMBER": str(worker.number)}
        command = [sys.executable, "-m", "proxy", "run", *self._source.arguments()]
        worker.process = await trio.lowlevel.open_process(command, env=environment, stdin=None)
        if self._is_stopping():
            worker.process.terminate()  # the signal came while it was being started
        try:
            return await worker.process.wait()
        finally:
            if worker.process.returncode is None:
                worker.process.terminate()

    async def _signals(self) -> None:
        wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT)
        with trio.open_signal_receiver(*wanted) as received:
            async for number in received:
                if number in (signal.SIGTERM, signal.SIGINT):
                    self._begin_to_stop()
                self._pass_on(signal.Signals(number))

    def _pass_on(self, number: signal.Signals) -> None:
        # SIGINT reaches children of a terminal by itself; TERM twice does no harm.
        for worker in self._workers:
            worker.signal(signal.SIGTERM if number == signal.SIGINT else number)

    # -- administration -----------------------------------------------------------------------------------

    def _handlers(self) -> tuple[dict[str, Handler], dict[str, Handler]]:
        reads: dict[str, Handler] = {
            "/live": self._live,
            "/ready": self._ready,
            "/startup": self._ready,
            "/metrics": self._metrics,
            "/status": self._status,
            "/decisions": self._decisions,
        }
        for page in _PAGES:
            reads[page] = self._first(page)
        return reads, {"/reload": self._reload, "/drain": self._drain, "/quarantine": self._quarantine}

    async def _ask_all(self, method: str, path: str, body: bytes = b"") -> list[tuple[int, bytes]]:
        replies: list[tuple[int, bytes]] = [(503, b"no answer")] * len(self._workers)

        async def one(index: int) -> None:
            replies[index] = await ask(self._workers[index].socket, method, path, body)

        async with trio.open_nursery() as nursery:
            for index in range(len(self._workers)):
                nursery.start_soon(one, index)
        return replies

    def _first(self, path: str) -> Callable[[Request], Awaitable[Reply]]:
        async def handler(request: Request) -> Reply:
            for status, body in await self._ask_all("GET", path):
                if status == 200:
                    return Reply(200, body, "application/json")
            return text_reply("no worker answers\n", 503)

        return handler

    async def _live(self, request: Request) -> Reply:
        return text_reply("live\n")

    async def _ready(self, request: Request) -> Reply:
        replies = await self._ask_all("GET", "/ready")
        missing = [
            f"worker {number}: {body.decode(errors='replace').strip()}\n"
            for number, (status, body) in enumerate(replies)
            if status != 200
        ]
        return text_reply("ready\n") if not missing else text_reply("".join(missing), 503)

    async def _metrics(self, request: Request) -> Reply:
        pages = [body.decode() for status, body in await self._ask_all("GET", "/metrics") if status == 200]
        restarts = sum(worker.restarts for worker in self._workers)
        own = (
            "# HELP sidewall_worker_restarts_total Workers started again after they ended.\n"
            "# TYPE sidewall_worker_restarts_total counter\n"
            f"sidewall_worker_restarts_total {restarts}\n"
        )
        body = (merge_prometheus(pages) + own).encode()
        return Reply(200, body, "text/plain; version=0.0.4; charset=utf-8")

    async def _status(self, request: Request) -> Reply:
        replies = await self._ask_all("GET", "/status")
        workers = [orjson.loads(body) for status, body in replies if status == 200]
        whole = dict(workers[0]) if workers else {"ready": False}
        whole["ready"] = len(workers) == len(self._workers) and all(w["ready"] for w in workers)
        for key in ("connections", "requests_in_flight", "crashes"):
            whole[key] = sum(w[key] for w in workers)
        whole["pid"] = os.getpid()
        whole["workers"] = workers
        return json_reply(whole)

    async def _decisions(self, request: Request) -> Reply:
        """Of all workers, newest first."""
        if request.uid is None:
            return text_reply("decisions are shown over the Unix socket only\n", 403)
        page = f"/decisions?id={quote(request.query.get('id', ''))}"
        answers = [orjson.loads(body) for status, body in await self._ask_all("GET", page) if status == 200]
        if not answers:
            return text_reply("no worker answers\n", 503)
        items = sorted((item for answer in answers for item in answer["items"]), key=lambda item: -item["at"])
        return json_reply({**answers[0], "items": items[:100]})

    async def _reload(self, request: Request) -> Reply:
        replies = await self._ask_all("POST", "/reload")
        bodies = [orjson.loads(body) for status, body in replies if status in (200, 409)]
        ok = len(bodies) == len(self._workers) and all(body["ok"] for body in bodies)
        refused = next((body for body in bodies if not body["ok"]), None)
        problems = refused["problems"] if refused else [] if ok else ["not every worker answers"]
        generation = min((body["generation"] for body in bodies), default=0)
        return json_reply({"ok": ok, "generation": generation, "problems": problems}, 200 if ok else 409)

    async def _quarantine(self, request: Request) -> Reply:
        """Every worker must have done it: one that has not would let through what the others refuse."""
        replies = await self._ask_all("POST", "/quarantine", request.body)
        failed = next((Reply(status, body) for status, body in replies if status != 200), None)
        if failed is not None:
            return failed
        answers = [orjson.loads(body) for _, body in replies]
        whole = dict(answers[0])
        for key in ("streams", "connections"):
            whole[key] = sum(answer[key] for answer in answers)
        whole["milliseconds"] = max(answer["milliseconds"] for answer in answers)
        return json_reply(whole)

    async def _drain(self, request: Request) -> Reply:
        self._begin_to_stop()
        self._pass_on(signal.SIGTERM)
        return json_reply({"draining": True})


async def _serve_door(admin: Admin, sock: socket.socket, door: str) -> None:
    await admin.serve(sock, door=door)
