"""`sidewall ca serve`: one replica of an authority.

    the authority (identity.ca)  <- threads -  Enrol, Node, Admin  <-  TLS listener, Unix socket
                                 <- one task that rotates, one that follows changes, one that counts

Start: harden the process (no core dumps, no ptrace: it holds the keys), open or make the authority, bind everything,
get our own SVID, then accept. End: at SIGTERM no new call is taken, streams end, the others have ``_DRAIN`` seconds.
Nothing is lost by a sudden end: what was answered was durable before (C-18).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from identity.ca.model import CaError, NoSuchThing
from identity.ca.service import CaService
from identity.disk import IdentityFileError
from identity.rpc import Caller
from identity.spiffe import SpiffeIdError
from proxy.ca.admin import Administration
from proxy.ca.bundle_endpoint import BundleEndpoint, WebFiles
from proxy.ca.desk import Desk
from proxy.ca.enrol import Enrol
from proxy.ca.federation import Federation
from proxy.ca.gauges import Gauges, door
from proxy.ca.node import Nodes
from proxy.ca.own import OwnIdentity
from proxy.ca.peers import UnixPeer
from proxy.ca.places import is_strangers
from proxy.ca.proofs import TokenVerifier
from proxy.ca.rates import Rates
from proxy.ca.watch import Snapshot, Watching
from proxy.ca.work import now
from proxy.net.listener import Address, ListenFailed, bind
from proxy.net.poller import Poller
from proxy.net.tls import Credentials
from proxy.rpc.limits import RpcLimits
from proxy.rpc.server import RpcServer

log = logging.getLogger("proxy.ca")

_DRAIN: Final = 5.0  # seconds
_TICK: Final = 2.0  # between looks at what rotation is due
_COUNT: Final = 5.0  # between counts for the metrics
_PR_SET_DUMPABLE: Final = 4  # prctl(2)
_LIMITS: Final = RpcLimits(
    streams=64, messages_per_second=100.0, messages_burst=400.0, connections=64, all_connections=8192
)


@dataclass(frozen=True)
class Options:
    """``trust_domain``: of an authority that is to be made when there is none; "" means there must be one.
    ``url``: what join strings name. ``http``: address for /live, /ready, /metrics. ``bundle``: where the bundle
    is served by HTTPS, with ``web`` certificate files or our own SVID. Times are seconds."""

    folder: Path
    socket: Path
    listen: Address
    url: str
    store: str | None = None
    trust_domain: str = ""
    http: Address | None = None
    bundle: Address | None = None
    web: WebFiles | None = None
    allow_expired: float = 0.0
    signings: float = 500.0
    kubernetes: TokenVerifier | None = None


def _local_url(listen: Address) -> str:
    """Where a process on this machine finds what listens on ``listen``."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(listen.host, listen.host)  # noqa: S104
    return f"https://{Address(host, listen.port)}"


class CaServer:
    """One running replica. ``service`` is open, and closed by who opened it."""

    def __init__(self, service: CaService, options: Options) -> None:
        self._service = service
        self._options = options
        self._poller = Poller()
        self._stop = trio.Event()
        self._stopping = False
        self.desk = Desk(
            service,
            options.allow_expired,
            local_url=_local_url(options.listen),
            rates=Rates(signings=options.signings),
        )
        self.own = OwnIdentity(service)
        self.watching = Watching(service, self._changed)
        self.nodes = Nodes(self.desk, self.watching)
        self.gauges = Gauges()
        self.federation = Federation(service, self._poller)
        self.endpoint = BundleEndpoint(self._poller, self._document, self._credentials, options.web, self.own.id)
        self.rpc = self._make_rpc()

    def _make_rpc(self) -> RpcServer:
        methods = {
            **Enrol(self.desk, self._options.kubernetes).methods(),
            **self.nodes.methods(),
            **Administration(self.desk, self.facts).methods(),
        }
        return RpcServer(
            self._poller,
            methods,
            limits=_LIMITS,
            local_peer=UnixPeer.of,
            credentials=self._credentials,
            strangers=True,
            observe=self.gauges.call_ended,
        )

    def _credentials(self) -> Credentials | None:
        return self.own.credentials

    def _document(self) -> bytes:
        document: bytes = self.watching.snapshot.bundle.document
        return document

    def facts(self) -> Mapping[str, Any]:
        """For `ca status` and join strings."""
        options = self._options
        return {
            "pid": os.getpid(),
            "url": options.url,
            "fingerprint": self.own.fingerprint,
            "listen": str(options.listen),
            "folder": str(options.folder.absolute()),
            "not_ready": self.not_ready(),
            "watchers": self.watching.watchers,
            "denied": self.desk.denials.total,
            "federation": self.federation.problems,
        }

    def not_ready(self) -> list[str]:
        """Why not, as sentences."""
        reasons = []
        credentials = self.own.credentials
        if credentials is None or credentials.expired(now().timestamp()):
            reasons.append(f"identity: {self.own.problem or 'the SVID has expired'}")
        if self._stopping:
            reasons.append("draining")
        return reasons

    # -- life -----------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until SIGTERM; the exit code. Raises ListenFailed, CaError, IdentityFileError."""
        options = self._options
        self.endpoint.check()
        _make_socket_folder(options.socket.parent)
        local = bind(Address(path=str(options.socket)), mode=0o777)  # who calls is seen by SO_PEERCRED
        remote = bind(options.listen)
        doors = [(door_socket, bind(address)) for door_socket, address in self._addresses()]
        try:
            async with trio.open_nursery() as nursery:
                await self._start(nursery, doors)
                self.rpc.listen(local)
                self.rpc.listen(remote)
                self._log_started()
                await self._stop.wait()
                await self.rpc.drain(_DRAIN)
                nursery.cancel_scope.cancel()
        finally:
            self._poller.close()
            with contextlib.suppress(OSError):
                os.unlink(options.socket)
        log.info("stopped", extra={"event": "stopped"})
        return 0

    def _addresses(self) -> list[tuple[str, Address]]:
        options = self._options
        wanted = (("http", options.http), ("bundle", options.bundle))
        return [(name, address) for name, address in wanted if address is not None]

    async def _start(self, nursery: trio.Nursery, doors: list[tuple[str, socket.socket]]) -> None:
        await nursery.start(self._poller.serve)
        nursery.start_soon(self._signals)
        await nursery.start(self.watching.run)
        await nursery.start(self.own.run)
        nursery.start_soon(self.desk.batches.run)
        await nursery.start(self.rpc.run)
        nursery.start_soon(self._rotate)
        nursery.start_soon(self._count)
        nursery.start_soon(self.federation.run)
        for name, sock in doors:
            if name == "bundle":
                nursery.start_soon(self.endpoint.serve, sock)
            else:
                self._watch_gauges()
                nursery.start_soon(self._serve_pages, sock)

    def _watch_gauges(self) -> None:
        self.gauges.watch("sidewall_ca_watchers", "Nodes that follow changes.", lambda: self.watching.watchers)
        self.gauges.watch("sidewall_ca_denied", "Calls refused by a rule.", lambda: self.desk.denials.total)
        self.gauges.watch("sidewall_ca_queue", "Calls that wait for their turn.", self._waiting)

    def _waiting(self) -> int:
        return self.desk.work.waiting + self.desk.batches.waiting

    async def _serve_pages(self, sock: socket.socket) -> None:
        await door(self.gauges, self.not_ready).serve(sock, door="probes")

    def _log_started(self) -> None:
        options = self._options
        facts = {"trust_domain": self._service.trust_domain, "listen": str(options.listen)}
        log.info(
            "serving",
            extra={"event": "started", **facts, "socket": str(options.socket), "not_ready": self.not_ready()},
        )

    def stop(self) -> None:
        self._stopping = True
        self._stop.set()

    async def _signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async for _ in received:
                self.stop()

    # -- tasks ----------------------------------------------------------------------------------------------

    def _changed(self, snapshot: Snapshot) -> None:
        """Something was changed, here or by another replica."""
        self.own.follow(snapshot.roots, snapshot.revocations.tainted)
        self._poller.run(self._end_revoked)

    def _end_revoked(self) -> None:
        ended = self.rpc.end_callers(self._is_revoked, "the caller's identity was revoked")
        if ended:
            log.info("connections of revoked callers ended", extra={"event": "ca.ended", "count": ended})

    def _is_revoked(self, caller: Caller) -> bool:
        return caller.peer is not None and self.nodes.revoked(caller.peer) is not None

    async def _rotate(self) -> None:
        limiter = trio.CapacityLimiter(1)
        while True:
            try:
                for done in await trio.to_thread.run_sync(lambda: self._service.tick(now()), limiter=limiter):
                    log.info("rotation", extra={"event": "ca.rotation", "done": done})
            except (CaError, IdentityFileError) as error:
                log.error("rotation has failed", extra={"event": "ca.trouble", "problem": str(error)})
            await trio.sleep(_TICK)

    async def _count(self) -> None:
        limiter = trio.CapacityLimiter(1)
        while True:
            try:
                status = await trio.to_thread.run_sync(lambda: self._service.status(now()), limiter=limiter)
                self.gauges.take(status)
            except (CaError, IdentityFileError) as error:
                log.error("the authority cannot be counted", extra={"event": "ca.trouble", "problem": str(error)})
            await trio.sleep(_COUNT)


def _make_socket_folder(folder: Path) -> None:
    """Raises IdentityFileError."""
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise IdentityFileError(folder, f"{error.strerror}", "choose another place with --socket") from None
    if is_strangers(folder):
        problem = "it belongs to somebody else, who could put another socket there"
        raise IdentityFileError(folder, problem, "choose another place with --socket")


# -- the process --------------------------------------------------------------------------------------------


def harden() -> None:
    """No core dumps and no debugger: this process holds the keys (C-1)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        log.warning("the process stays dumpable", extra={"event": "ca.hardening", "errno": ctypes.get_errno()})


def open_or_create(options: Options) -> CaService:
    """The authority of the folder, made when there is none and ``trust_domain`` says of what. Raises CaError,
    IdentityFileError, SpiffeIdError."""
    try:
        return CaService.open(options.folder, options.store, now=now())
    except NoSuchThing:
        if not options.trust_domain:
            raise
    return CaService.create(options.folder, options.trust_domain, store_url=options.store, now=now())


def serve(options: Options) -> int:
    """Run until SIGTERM; the exit code: 0 after a clean end, 73 or 77 for an address or a folder that cannot be
    used, 69 when the database is away, 78 when the authority is not one."""
    harden()
    try:
        service = open_or_create(options)
    except IdentityFileError as error:
        return _failed(str(error), 73)
    except CaError as error:
        return _failed(str(error), exit_code(error))
    except SpiffeIdError as error:
        return _failed(f"{options.trust_domain!r} cannot be a trust domain: {error}", 78)
    with service:
        try:
            return trio.run(CaServer(service, options).run)
        except ListenFailed as error:
            return _failed(str(error), error.exit_code)
        except IdentityFileError as error:
            return _failed(str(error), 78)
        except BaseExceptionGroup as group:
            matching, rest = group.split((CaError, IdentityFileError))
            if rest is not None or matching is None:
                raise
            return _failed(str(_first(matching)), 69)


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def exit_code(error: CaError) -> int:
    """sysexits of what the authority says about itself."""
    from identity.ca.model import StoreUnavailable

    return 69 if isinstance(error, StoreUnavailable) else 78


def _failed(problem: str, code: int) -> int:
    sys.stderr.write(f"error: {problem}\n")
    return code
