"""The composition root: builds one process out of a configuration, runs it in one nursery, and ends it well.

What happens when, top to bottom: bind every listener (so that a taken port fails before anything else starts)
-> compile policies -> start the poller, the telemetry, the identity source and the administrative doors ->
accept. Readiness is a conjunction of named guards (``Process.not_ready``), so that "not ready" always says why.

A reload builds everything it can before it changes anything: a file with a problem leaves the old generation
in charge, and says so in the log, in ``/status``, in the metric and to whoever asked.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import trio

from config.live import Live
from config.load import Loaded
from config.problems import ConfigError, render
from config.watch import watch
from identity.svid import X509Context
from proxy import authentication, quarantining, status, wiring
from proxy.admin import Admin
from proxy.agent import own as own_identity
from proxy.lifecycle import Runtime, Worker
from proxy.net.listener import Address, Bucket, Listener, ListenFailed, bind
from proxy.net.poller import Poller
from proxy.net.tls import Credentials
from proxy.policy.engine import CompiledPolicies
from proxy.service import HttpService

_CONFIG_EXIT = 78
_PARENT_EVERY = 0.5  # seconds between two looks whether the supervisor lives
_FIRST_KEYS = 5.0  # seconds to wait for the keys of tokens before serving anyway (tokens are refused)
_FIRST_SVID = 10.0  # seconds to wait for an identity before serving anyway (not ready, everything refused)

log = logging.getLogger("proxy.app")


class Process:
    """One serving process. ``loaded`` is what it runs with now; ``problems`` what the last reload refused."""

    def __init__(self, loaded: Loaded, reload_from: wiring.Source, *, worker_number: int | None = None) -> None:
        self.loaded = loaded
        self.source = reload_from
        self.worker_number = worker_number
        self.started = time.time()
        self.poller = Poller()
        self.telemetry = wiring.make_telemetry(loaded.config, worker_number)
        for warning in self.telemetry.warnings:
            log.warning(warning, extra={"event": "telemetry.warning"})
        self.jwks = authentication.make_jwks(self)
        runtime = Runtime(1, wiring.compile_runtime(loaded), authentication.make_tokens(loaded, self.jwks))
        self.worker = Worker(self.poller, self.telemetry, runtime, wiring.make_caps(loaded.config))
        kept = quarantining.file_for(wiring.admin_socket(loaded.config, None))
        self.quarantining = quarantining.Quarantining(self.worker, kept)
        self.worker.set_quarantine(quarantining.load(kept, self.started))
        self.trust_domain = wiring.find_trust_domain(loaded.config)
        self.live: Live[X509Context | None] | None = None
        self.services: dict[str, HttpService] = {}
        self.problems: list[object] = []
        self.last_reload_ok = True
        self.last_reload_at = self.started
        self.identity_problem = "no SVID yet"
        self._identity_scope: trio.CancelScope | None = None
        self._serving_scope: trio.CancelScope | None = None
        self._own = own_identity.OwnIdentity()
        self._identified = trio.Event()
        self._stop = trio.Event()
        self._stop_at_once = False
        self._nursery: trio.Nursery | None = None
        self._reloading = trio.Lock()

    # -- readiness ----------------------------------------------------------------------------------------

    def not_ready(self) -> list[str]:
        """The names of the guards that are not satisfied; empty = ready."""
        reasons = []
        credentials = self.worker.credentials
        if credentials is None:
            reasons.append(f"identity: {self.identity_problem}")
        elif credentials.expired(time.time()):
            reasons.append("identity: the SVID has expired")
        if self.loaded.config.inbound and not self.loaded.has_policy:
            reasons.append("policy: none loaded, everything is denied")
        for cluster in self.worker.clusters.values():
            if cluster.settings.dns and not cluster.endpoints:
                reasons.append(f"upstream {cluster.name}: {cluster.resolve_error or 'not resolved yet'}")
        if self.worker.draining or self._stop.is_set():
            reasons.append("draining")
        return reasons

    # -- life ---------------------------------------------------------------------------------------------

    async def run(self, *, watch_files: bool = True) -> int:
        """Serve until SIGTERM; returns the exit code."""
        sockets = self._bind_all()
        doors = wiring.bind_admin(self.loaded.config, self.worker_number)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self.poller.serve)
                await nursery.start(self.telemetry.run)
                await nursery.start(self.jwks.run)
                nursery.start_soon(self.worker.sweep_forever)
                nursery.start_soon(self._signals)
                if self.worker_number is not None:
                    nursery.start_soon(self._end_with_supervisor, os.getppid())
                self._start_identity()
                self._make_clusters()
                admin = Admin(*status.handlers(self))
                for door, sock in doors:
                    nursery.start_soon(_serve_door, admin, sock, door)
                with trio.move_on_after(_FIRST_SVID):
                    await self._identified.wait()
                with trio.move_on_after(_FIRST_KEYS):
                    await self.jwks.wait_tried()
                self._listen(sockets)
                if watch_files:
                    nursery.start_soon(self._watch)
                self._log_started()
                await self._stop.wait()
                await self._shut_down()
                nursery.cancel_scope.cancel()
        finally:
            await self._end()
        return 0

    def _log_started(self) -> None:
        config = self.loaded.config
        log.info(
            "serving",
            extra={
                "event": "started",
                "inbound": [str(item.listen) for item in config.inbound],
                "outbound": [str(item.listen) for item in config.outbound],
                "not_ready": self.not_ready(),
            },
        )
        self._warn_of_plaintext()

    def _warn_of_plaintext(self) -> None:
        for item in self.loaded.config.inbound:
            mode = authentication.mtls_of(self.loaded, item)
            if mode != "STRICT":
                extra = {"event": "inbound.plaintext", "listener": item.name, "mtls": str(mode)}
                log.warning("a listener takes callers without a certificate", extra=extra)

    async def _shut_down(self) -> None:
        config = self.loaded.config
        if not self._stop_at_once:
            await trio.sleep(config.shutdown.readiness_delay)
        self.worker.stop_accepting()
        shutdown = config.shutdown
        seconds = 0.0 if self._stop_at_once else max(shutdown.drain - shutdown.readiness_delay, 0.0)
        left = await self.worker.drain(seconds)
        log.info("stopped", extra={"event": "stopped", "connections_cut": left})

    async def _end(self) -> None:
        self.worker.stop_accepting()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 2.0):
            await self.telemetry.close()
        self.poller.close()
        wiring.remove_admin(self.loaded.config, self.worker_number)

    def stop(self, *, at_once: bool = False) -> None:
        """Begin to drain; a second call with ``at_once`` cuts it short."""
        self._stop_at_once = self._stop_at_once or at_once
        self._stop.set()

    async def _end_with_supervisor(self, supervisor: int) -> None:
        """A supervisor that was killed reloads nothing and passes nothing on: its workers must not go on serving,
        with rules that nobody can change, beside those of the next one."""
        while os.getppid() == supervisor:  # noqa: ASYNC110 (no event tells it)
            await trio.sleep(_PARENT_EVERY)
        log.error("the supervisor has ended", extra={"event": "worker.orphaned"})
        self.stop()

    async def _signals(self) -> None:
        wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT)
        with trio.open_signal_receiver(*wanted) as received:
            async for number in received:
                if number in (signal.SIGTERM, signal.SIGINT):
                    if self._stop.is_set() and number == signal.SIGINT and self._nursery is not None:
                        self._nursery.cancel_scope.cancel()
                    self.stop()
                elif number == signal.SIGHUP:
                    await self.reload()
                elif number == signal.SIGUSR1:
                    self.telemetry.reopen()
                else:
                    sys.stderr.write(status.task_tree() + "\n")

    # -- identity -----------------------------------------------------------------------------------------

    def _start_identity(self) -> None:
        if self._nursery is not None:
            self._identity_scope = trio.CancelScope()
            self.live = Live[X509Context | None](None)
            self._nursery.start_soon(self._run_identity, self.live, self._identity_scope)
            self._nursery.start_soon(self._follow_identity, self.live, self._identity_scope)
            if self.loaded.config.identity.serve is not None and self.worker_number in (None, 0):
                self._nursery.start_soon(self._serve_identity, self.live, self._identity_scope)

    async def _run_identity(self, live: Live[X509Context | None], scope: trio.CancelScope) -> None:
        source = wiring.make_identity(self.loaded.config, self._identity_event, self.worker.set_revocations)
        with scope:
            await source.run(live)

    async def _serve_identity(self, live: Live[X509Context | None], scope: trio.CancelScope) -> None:
        """For our own app, as long as these settings hold."""
        with trio.CancelScope() as own:
            self._serving_scope = own
            try:
                await own_identity.serve(self.poller, str(self.loaded.config.identity.serve), live, self._own)
            except ListenFailed as error:
                facts = {"event": "identity.serve", "problem": str(error)}
                log.error("the identity is not served to the app", extra=facts)

    def _identity_event(self, name: str, fields: Mapping[str, object]) -> None:
        problem = fields.get("problem")
        if problem:
            self.identity_problem = str(problem)
        level = logging.WARNING if problem else logging.INFO
        log.log(level, name, extra={"event": name, **fields})

    async def _follow_identity(self, live: Live[X509Context | None], scope: trio.CancelScope) -> None:
        generation = 0
        while not scope.cancel_called:
            generation = await live.wait_change(generation)
            context = live.value
            if context is not None:
                self._use(context)

    def _use(self, context: X509Context) -> None:
        """A new SVID or bundle: for handshakes from now on; open connections keep theirs."""
        self.worker.credentials = Credentials(context, self.loaded.config.tls.minimum)
        self.telemetry.svid_expiry(context.not_after)
        self.telemetry.set_principal(context.id.principal)
        self._identified.set()
        if context.id.trust_domain != self.trust_domain:
            self.trust_domain = context.id.trust_domain
            self._make_clusters()
            self._configure_services()
        for service in self.services.values():
            service.settings = wiring.with_identity(service.settings, str(context.id))

    # -- listeners and clusters ---------------------------------------------------------------------------

    def _bind_all(self) -> dict[str, tuple[Address, socket.socket]]:
        shared = self.worker_number is not None
        sockets = {}
        for item in wiring.listeners(self.loaded.config):
            sockets[item.key] = (item.address, bind(item.address, shared=shared))
        return sockets

    def _make_clusters(self) -> None:
        """Clusters of the current configuration; those that did not change keep their connections."""
        wanted = wiring.cluster_settings(self.loaded.config, self.trust_domain)
        worker = self.worker
        for name, cluster in list(worker.clusters.items()):
            if wanted.get(name) != cluster.settings:
                worker.retire(name)
        for name, settings in wanted.items():
            if name not in worker.clusters:
                cluster = wiring.make_cluster(self, settings)
                worker.clusters[name] = cluster
                if self._nursery is not None:
                    self._nursery.start_soon(cluster.resolve_forever)

    def _gates(self, service: HttpService) -> tuple[Callable[[], bool], Bucket | None]:
        """L-20 for every listener, L-23 for those that make handshakes."""
        inbound = service.settings.direction == "inbound"
        return self.worker.may_accept, self.worker.pace if inbound else None

    def _listen(self, sockets: Mapping[str, tuple[Address, socket.socket]]) -> None:
        for item in wiring.listeners(self.loaded.config):
            service = wiring.make_service(self, item)
            self.services[item.key] = service
            sock = sockets[item.key][1]
            listener = Listener(self.poller, sock, service.accept, *self._gates(service))
            self.worker.listeners[item.key] = listener
            listener.start()

    def _configure_services(self) -> None:
        for item in wiring.listeners(self.loaded.config):
            if item.key in self.services:
                wiring.configure_service(self, self.services[item.key], item)

    # -- reload -------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        async for _ in watch(lambda: self.loaded.files):
            await self.reload()

    async def reload(self) -> list[object]:
        """Read everything again. Returns the problems; when there are any, nothing has changed."""
        async with self._reloading:
            try:
                loaded = await trio.to_thread.run_sync(self.source.load)
                if loaded.digest == self.loaded.digest:
                    self._note_reload([])
                    return []
                policies = await trio.to_thread.run_sync(wiring.compile_runtime, loaded)
                sockets = self._bind_new(loaded)
            except ConfigError as error:
                self._note_reload(list(error.problems))
                text = render(error.problems, files=error.files, documents=error.documents)
                log.error("configuration rejected\n%s", text, extra={"event": "config.rejected"})
                return self.problems
            except ListenFailed as error:
                self._note_reload([str(error)])
                log.error("configuration rejected: %s", error, extra={"event": "config.rejected"})
                return self.problems
            with trio.move_on_after(_FIRST_KEYS):
                await authentication.prepare_keys(self.jwks, loaded)
            self._apply(loaded, policies, sockets)
            self._note_reload([])
            return []

    def _note_reload(self, problems: list[object]) -> None:
        self.problems = problems
        self.last_reload_ok = not problems
        self.last_reload_at = time.time()
        self.telemetry.config_reloaded(
            self.worker.runtime.generation, successful=not problems, now=self.last_reload_at
        )

    def _bind_new(self, loaded: Loaded) -> dict[str, tuple[Address, socket.socket]]:
        shared = self.worker_number is not None
        fresh: dict[str, tuple[Address, socket.socket]] = {}
        try:
            for item in wiring.listeners(loaded.config):
                if item.key not in self.worker.listeners:
                    fresh[item.key] = (item.address, bind(item.address, shared=shared))
        except ListenFailed:
            for _, sock in fresh.values():
                sock.close()
            raise
        return fresh

    def _apply(
        self, loaded: Loaded, policies: CompiledPolicies, sockets: Mapping[str, tuple[Address, socket.socket]]
    ) -> None:
        old, self.loaded = self.loaded, loaded
        self.trust_domain = wiring.find_trust_domain(loaded.config) or self.trust_domain
        generation = self.worker.runtime.generation + 1
        self._make_clusters()
        wanted = {item.key: item for item in wiring.listeners(loaded.config)}
        for key in [key for key in self.worker.listeners if key not in wanted]:
            self.worker.listeners.pop(key).close()
            self.poller.run(lambda key=key: self._drain_service(key))  # type: ignore[misc]
        self._configure_services()
        for key in sockets:
            item = wanted[key]
            service = self.services[key] = wiring.make_service(self, item)
            listener = Listener(self.poller, sockets[key][1], service.accept, *self._gates(service))
            self.worker.listeners[key] = listener
            listener.start()
        authentication.use_keys(self.jwks, loaded)
        self.worker.swap(Runtime(generation, policies, authentication.make_tokens(loaded, self.jwks)))
        if wiring.identity_changed(old.config, loaded.config):
            if self._identity_scope is not None:
                self._identity_scope.cancel()
            if self._serving_scope is not None:
                self._serving_scope.cancel()
            self._start_identity()
        log.info("configuration applied", extra={"event": "config.applied", "generation": generation})
        self._warn_of_plaintext()

    def _drain_service(self, key: str) -> None:
        service = self.services.pop(key)
        for connection in list(self.worker.connections):
            if connection.service is service:
                connection.drain()


async def _serve_door(admin: Admin, sock: socket.socket, door: str) -> None:
    await admin.serve(sock, door=door)


def serve(
    config_path: Path | None = None,
    *,
    overrides: Mapping[str, str] | None = None,
    check_only: bool = False,
    watch: bool = True,
    text: str | None = None,
) -> int:
    """Run from a file (or from ``text``). Returns the exit code: 0 after a clean drain, 78 for a bad
    configuration, 73 or 77 when an address cannot be listened on."""
    source = wiring.Source(config_path, text, dict(overrides or {}), dict(os.environ))
    try:
        loaded = source.load()
    except ConfigError as error:
        sys.stderr.write(render(error.problems, files=error.files, documents=error.documents) + "\n")
        return _CONFIG_EXIT
    if check_only:
        return 0
    wiring.set_up_logging(loaded.config)
    try:
        return _run(loaded, source, watch)
    except ListenFailed as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except quarantining.QuarantineUnreadable as error:
        sys.stderr.write(f"error: {error}\n")
        return _CONFIG_EXIT


def _calm_collector() -> None:
    """What start-up made stays: do not look at it again and again. Exchanges form no cycles, so the collector
    is left with little to find, and looks after 20,000 new objects instead of 700 (measured: 6 % of CPU)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


def _run(loaded: Loaded, source: wiring.Source, watch_files: bool) -> int:
    _calm_collector()
    number = os.environ.get("SIDEWALL_WORKER_NUMBER")
    if loaded.config.workers > 1 and number is None:
        from proxy.supervisor import Supervisor

        return trio.run(Supervisor(loaded, source).run)
    process = Process(loaded, source, worker_number=int(number) if number else None)
    return trio.run(lambda: process.run(watch_files=watch_files))
