"""Fetching a document by HTTPS from a bundle endpoint: the transport for ``identity.federation``.

https_spiffe goes over our own stack: the server must have the SPIFFE ID that was configured, by a bundle that we
hold; names of hosts do not count. https_web is the Web's PKI, the only place where that is used, and is done by the
standard library in a thread. Both: one GET, no redirects (one could lead to where nobody agreed to trust), a size
and a time that are bounded.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping
from typing import Final
from urllib.parse import SplitResult, urlsplit

import trio

from identity.bundle import MAX_DOCUMENT
from identity.svid import PeerIdentity, TrustBundle
from proxy.net.dial import Dial
from proxy.net.listener import Address
from proxy.net.poller import Poller
from proxy.net.stream import Stream
from proxy.net.tls import StrangerCredentials
from proxy.wire.events import (
    ConnectionEnded,
    DataReceived,
    Event,
    RequestHead,
    ResponseReceived,
    StreamReset,
)
from proxy.wire.http1 import Http1Client
from proxy.wire.limits import WireLimits

TIMEOUT: Final = 10.0  # seconds for everything
_LIMITS: Final = WireLimits(head=16 * 1024, body=MAX_DOCUMENT)


class FetchFailed(Exception):
    """There is no document; the text says why."""


def check_url(url: str) -> SplitResult:
    """An endpoint's address (SPIFFE Federation 5.2): https, a host, no user, query or fragment. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise ValueError(f"{url[:200]!a}: a bundle endpoint is https://HOST[:PORT]/PATH")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"{url[:200]!a}: no user, query or fragment belongs into it")
    _ = parts.port  # ValueError for what is none
    return parts


async def fetch_spiffe(
    poller: Poller, url: str, spiffe_id: str, bundles: Mapping[str, TrustBundle], *, timeout: float = TIMEOUT
) -> bytes:
    """The document at ``url`` from a server that has ``spiffe_id`` by one of ``bundles``. Raises FetchFailed."""
    parts = check_url(url)
    with trio.move_on_after(timeout):
        address = await _resolved(parts)
        attempt = _Attempt(poller, parts)
        dial = Dial(
            poller,
            address,
            deadline=poller.now + timeout,
            done=attempt.connected,
            failed=attempt.failed,
            credentials=StrangerCredentials(bundles),
            alpn=(b"http/1.1",),
            expect=frozenset({spiffe_id}),
        )
        dial.start()
        try:
            await attempt.over.wait()
        finally:
            dial.cancel()
            attempt.close()
        return attempt.document()
    raise FetchFailed(f"{url}: no answer in {timeout:g} s")


async def _resolved(parts: SplitResult) -> Address:
    port = parts.port or 443
    try:
        found = await trio.socket.getaddrinfo(parts.hostname, port, type=trio.socket.SOCK_STREAM)
    except OSError as error:
        raise FetchFailed(f"{parts.hostname} cannot be resolved: {error.strerror or error}") from None
    return Address(str(found[0][4][0]), port)


class _Attempt:
    """One connection with one request, driven by the poller."""

    def __init__(self, poller: Poller, parts: SplitResult) -> None:
        self.over = trio.Event()
        self._poller = poller
        self._parts = parts
        self._stream: Stream | None = None
        self._engine = Http1Client(_LIMITS)
        self._body = bytearray()
        self._status = 0
        self._problem = "the connection ended before the answer did"
        self._complete = False

    def connected(self, stream: Stream, peer: PeerIdentity | None, alpn: str) -> None:
        self._stream = stream
        stream.owner = self
        stream.start()
        authority = self._parts.netloc.encode("ascii", "replace")
        path = (self._parts.path or "/").encode("ascii", "replace")
        head = RequestHead(
            method=b"GET",
            scheme=b"https",
            authority=authority,
            host=authority,
            path=path,
            target=path,
            headers=[],
            version=11,
            length=0,
        )
        self._engine.open_stream(head, [(b"accept", b"application/json")], end_stream=True)
        stream.send(self._engine.take())

    def failed(self, reason: str, detail: str) -> None:
        self._problem = detail or reason
        self.over.set()

    def on_data(self, data: bytes) -> None:
        self._take(self._engine.receive(data))

    def on_eof(self, clean: bool) -> None:
        if clean:
            self._take(self._engine.receive_eof())
        self.over.set()

    def _take(self, events: list[Event]) -> None:
        for event in events:
            end = False
            if isinstance(event, ResponseReceived):
                self._status, end = event.head.status, event.end_stream
            elif isinstance(event, DataReceived):
                self._body += event.data
                end = event.end_stream
            elif isinstance(event, StreamReset | ConnectionEnded):
                self._problem = event.reason or self._problem
                self.over.set()
            if end:
                self._complete = True
                self.over.set()
            if len(self._body) > MAX_DOCUMENT:
                self._complete, self._problem = False, f"the document is longer than {MAX_DOCUMENT} bytes"
                self.over.set()
                return

    def on_lost(self, detail: str) -> None:
        self.failed(detail, detail)

    def on_drained(self) -> None:
        pass

    def on_crash(self, error: Exception) -> None:
        self.failed("bug", f"internal error: {type(error).__name__}")

    def close(self) -> None:
        if self._stream is not None:
            self._stream.abort()

    def document(self) -> bytes:
        """Raises FetchFailed."""
        where = self._parts.geturl()
        if not self._complete:
            raise FetchFailed(f"{where}: {self._problem}")
        if self._status != 200:
            raise FetchFailed(f"{where}: the answer is {self._status}")
        return bytes(self._body)


async def fetch_web(url: str, *, timeout: float = TIMEOUT, context: ssl.SSLContext | None = None) -> bytes:
    """The document at ``url``, from whom the Web's PKI says it is. Raises FetchFailed. ``context``: other roots."""
    check_url(url)
    limiter = trio.CapacityLimiter(1)
    return await trio.to_thread.run_sync(_fetch_web, url, timeout, context, limiter=limiter, abandon_on_cancel=True)


def _fetch_web(url: str, timeout: float, context: ssl.SSLContext | None) -> bytes:
    parts = check_url(url)
    made = context or ssl.create_default_context()
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    connection = http.client.HTTPSConnection(str(parts.hostname), parts.port or 443, timeout=timeout, context=made)
    try:
        connection.request("GET", parts.path or "/", headers={"accept": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise FetchFailed(f"{url}: the answer is {answer.status}")
        body = answer.read(MAX_DOCUMENT + 1)
    except (OSError, http.client.HTTPException) as error:
        raise FetchFailed(f"{url}: {error}") from None
    finally:
        connection.close()
    if len(body) > MAX_DOCUMENT:
        raise FetchFailed(f"{url}: the document is longer than {MAX_DOCUMENT} bytes")
    return body
