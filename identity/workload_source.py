"""Our own identity from somebody else's Workload API: SPIRE's agent, or one of ours (``identity: {workloadApi: …}``).

The rule of ``renewal`` holds here too: what is published was checked as a peer would check it, and is replaced only
by something that was checked. The far side renews, rotates and pushes; we keep a stream open, take each full set,
and when the stream ends come again after a back-off. Nothing is polled, and nothing is asked to renew: an SVID that
nears its end unrenewed is reported (``identity_expiring``), served until its notAfter, and not beyond.

The transport is an argument (``proxy.rpc`` sends bytes over a Unix socket; this package knows no proxy): a function
that opens FetchX509SVID and gives its messages, with an RpcError for whatever ends them. InvalidArgument is final
for clients of the standard, because it is their own fault; a proxy that must not stop asks again, slowly.

Of several SVIDs the configured ``spiffe_id`` counts, else the one with the configured ``hint``, else the first. A
federated bundle that cannot be read is left out and reported: the own identity does not depend on it.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import trio
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_private_key

from identity.disk import IdentityFileError
from identity.protos import parse, workload
from identity.renewal import LiveContext, OnEvent, RenewedSource, Wall, backoff
from identity.rpc import RpcError, Status
from identity.spiffe import SpiffeId, SpiffeIdError
from identity.svid import PrivateKey, SvidError, TrustBundle, X509Context, X509Svid, check_own_svid, load_certificate

Connect = Callable[[], AbstractAsyncContextManager[AsyncIterator[bytes]]]
"""Opens the stream FetchX509SVID. Raises RpcError then, or while it is iterated over."""

FETCH: Final = "/SpiffeWorkloadAPI/FetchX509SVID"
METADATA: Final = {"workload.spiffe.io": "true"}
_LASTED: Final = 60.0  # seconds: a stream that lived so long begins with a short back-off again
_TICK: Final = 10.0

_HINTS: Final = {
    Status.PERMISSION_DENIED: "register an entry whose selectors fit this process",
    Status.UNAVAILABLE: "is the agent running, and does it have an identity itself?",
    Status.UNIMPLEMENTED: "is this the socket of a Workload API?",
}


class WorkloadSource(RenewedSource):
    """An SVID and bundles from a Workload API. ``endpoint`` is only named in events."""

    def __init__(
        self,
        connect: Connect,
        endpoint: str,
        *,
        on_event: OnEvent,
        spiffe_id: SpiffeId | None = None,
        hint: str = "",
        wall: Wall = time.time,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(on_event, wall, rng)
        self._connect = connect
        self._endpoint = endpoint
        self._spiffe_id = spiffe_id
        self._hint = hint

    async def run(self, live: LiveContext, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep ``live`` up to date for ever. Started after the first set or the first failure."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_expiry, live)
            first = trio.Event()
            nursery.start_soon(self._follow_for_ever, live, first)
            await first.wait()
            task_status.started()

    async def _watch_expiry(self, live: LiveContext) -> None:
        while True:
            self._expiry.look(live.value, self._wall())
            await trio.sleep(_TICK)

    async def _follow_for_ever(self, live: LiveContext, first: trio.Event) -> None:
        while True:
            began = trio.current_time()
            try:
                await self._follow(live, first)
            except Exception as error:
                if trio.current_time() - began > _LASTED:
                    self._failures = 0
                self._report(self._explained(error), self._endpoint)
            first.set()
            await self._wait(backoff(self._failures, self._rng))

    async def _follow(self, live: LiveContext, first: trio.Event) -> None:
        """One stream, to its end."""
        async with self._connect() as messages:
            async for message in messages:
                self._take(live, message)
                first.set()
        raise RpcError(Status.UNAVAILABLE, "the stream has ended")

    def _take(self, live: LiveContext, message: bytes) -> None:
        """Publish a set. One that is not good enough is reported, and the stream goes on."""
        try:
            context = self._context(message)
        except (IdentityFileError, RpcError) as error:
            self._report(self._explained(error), self._endpoint)
            return
        before = live.value
        if before is None or not _is_same(before, context):
            self._publish(live, context, self._wall())

    def _explained(self, error: Exception) -> Exception:
        while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if not isinstance(error, RpcError):
            return error
        hint = _HINTS.get(error.status, "look at the log of what serves this socket")
        return IdentityFileError(self._endpoint, f"{error.status.name}: {error.message}", hint)

    # -- from a message to a context --------------------------------------------------------------------------------

    def _context(self, message: bytes) -> X509Context:
        """The checked identity of a response. Raises IdentityFileError, RpcError."""
        response = parse(workload.X509SVIDResponse, message)
        chosen = self._choose(response.svids)
        try:
            svid, own = read_svid(chosen)
            check_own_svid(svid, own, now=self._now())
        except (SvidError, SpiffeIdError, ValueError, UnsupportedAlgorithm) as error:
            raise self._refusal(f"the SVID cannot be used: {error}", "check the clock and who issued it") from None
        federated = {}
        for name, data in response.federated_bundles.items():
            bundle = self._federated(name, data)
            if bundle is not None:
                federated[bundle.trust_domain] = bundle
        return X509Context(svid, {**federated, own.trust_domain: own})

    def _choose(self, svids: Sequence[Any]) -> Any:
        if self._spiffe_id is not None:
            fitting = [one for one in svids if one.spiffe_id == str(self._spiffe_id)]
            what = str(self._spiffe_id)
        else:
            fitting = [one for one in svids if not self._hint or one.hint == self._hint]
            what = f"with the hint {self._hint!r}" if self._hint else "at all"
        if not fitting:
            offered = ", ".join(_printable(one.spiffe_id) for one in svids) or "none"
            raise self._refusal(f"no SVID {what} is offered", f"offered: {offered}")
        return fitting[0]

    def _federated(self, name: str, data: bytes) -> TrustBundle | None:
        try:
            trust_domain = SpiffeId.parse(name).trust_domain
            return TrustBundle(trust_domain, split_certificates(data))
        except (SvidError, SpiffeIdError, ValueError) as error:
            self._on_event("bundle_refused", {"trust_domain": _printable(name), "problem": str(error)})
            return None

    def _refusal(self, problem: str, hint: str) -> IdentityFileError:
        return IdentityFileError(self._endpoint, problem, hint)


def read_svid(message: Any) -> tuple[X509Svid, TrustBundle]:
    """An ``X509SVID`` message as values, unchecked. Raises SvidError, SpiffeIdError, ValueError and
    UnsupportedAlgorithm."""
    spiffe_id = SpiffeId.parse(message.spiffe_id)
    chain = split_certificates(message.x509_svid)
    key = load_der_private_key(message.x509_svid_key, password=None)
    if not chain:
        raise ValueError("there is no certificate in it")
    if not isinstance(key, PrivateKey):
        raise SvidError("weak_key", f"a key of type {type(key).__name__} is not supported")
    own = TrustBundle(spiffe_id.trust_domain, split_certificates(message.bundle))
    return X509Svid(spiffe_id, chain, key), own


def split_certificates(data: bytes) -> tuple[x509.Certificate, ...]:
    """DER certificates that stand one behind the other. Raises ValueError, SvidError."""
    found = []
    at = 0
    while at < len(data):
        end = at + _der_length(data[at : at + 6])
        if end > len(data):
            raise ValueError("a certificate is cut off")
        found.append(load_certificate(data[at:end]))
        at = end
    return tuple(found)


def _der_length(head: bytes) -> int:
    """The whole length of the DER SEQUENCE that begins with ``head`` (X.690 8.1.3, definite forms)."""
    if len(head) < 2 or head[0] != 0x30:
        raise ValueError("not a DER certificate")
    short = head[1]
    if short < 0x80:
        return 2 + short
    count = short & 0x7F
    if not 1 <= count <= 4 or len(head) < 2 + count:
        raise ValueError("not a DER certificate")
    return 2 + count + int.from_bytes(head[2 : 2 + count], "big")


def _is_same(one: X509Context, other: X509Context) -> bool:
    """Whether nothing has changed: streams begin with what we have already when they are opened again."""
    return (one.id, one.svid.chain, one.bundles) == (other.id, other.svid.chain, other.bundles)


def _printable(text: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in text[:200])
