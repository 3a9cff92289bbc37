"""Our bundle by HTTPS, for other trust domains (SPIFFE Federation 5). One document; GET and HEAD of any path.

Profile https_spiffe: the server shows our own SVID, and who reads the bundle knows our SPIFFE ID and an older bundle.
Profile https_web: it shows a web certificate from files, which are read again when they change. What is served is
public, so nobody is asked who he is; there are bounds for connections and their time instead.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from identity.disk import IdentityFileError, read_workload_key
from identity.files import parse_private_key, read_certificates
from identity.spiffe import SpiffeId
from identity.svid import PeerIdentity, X509Context, X509Svid
from proxy.net.listener import Accepted, Listener
from proxy.net.poller import Poller
from proxy.net.stream import Stream, TlsStream
from proxy.net.tls import Credentials, Handshake
from proxy.wire.events import Event, Headers, RequestReceived, RequestRefused
from proxy.wire.http1 import Http1Server
from proxy.wire.limits import WireLimits

log = logging.getLogger("proxy.ca")

_CONNECTIONS: Final = 256
_LIFE: Final = 10.0  # seconds of one connection, its handshake included
_ALPN: Final = (b"http/1.1",)
_LIMITS: Final = WireLimits(head=8 * 1024, body=0)
_LOOK: Final = 10.0  # seconds between looks at the web certificate


@dataclass(frozen=True, slots=True)
class WebFiles:
    """A web certificate with its intermediates, and its key, in PEM."""

    certificate: Path
    key: Path

    def load(self, spiffe_id: SpiffeId) -> Credentials:
        """Raises IdentityFileError. ``spiffe_id`` is in nothing that is shown."""
        chain = read_certificates(self.certificate)
        key = parse_private_key(self.key, read_workload_key(self.key))
        return Credentials(X509Context(X509Svid(spiffe_id, chain, key), {}))

    def mark(self) -> tuple[int, int]:
        """Changes with the files. Raises OSError."""
        return os.stat(self.certificate).st_mtime_ns, os.stat(self.key).st_mtime_ns


class BundleEndpoint:
    """Serves ``document()``. ``credentials``: our own SVID's, as they are now."""

    def __init__(
        self,
        poller: Poller,
        document: Callable[[], bytes],
        credentials: Callable[[], Credentials | None],
        web: WebFiles | None,
        spiffe_id: SpiffeId,
    ) -> None:
        self._poller = poller
        self._document = document
        self._own = credentials
        self._web = web
        self._id = spiffe_id
        self._shown: Credentials | None = None
        self._mark = (0, 0)
        self.open: set[object] = set()
        self.served = 0

    def check(self) -> None:
        """Read the web certificate for the first time. Raises IdentityFileError."""
        if self._web is not None:
            self._shown = self._web.load(self._id)

    async def serve(self, sock: socket.socket) -> None:
        """Accept on ``sock`` until cancelled. ``check`` was called before."""
        listener = Listener(self._poller, sock, self._accept, lambda: len(self.open) < _CONNECTIONS)
        listener.start()
        try:
            while True:
                self._read_again()
                await trio.sleep(_LOOK)
        finally:
            listener.close()
            for one in list(self.open):
                one.cancel()  # type: ignore[attr-defined]

    def _read_again(self) -> None:
        if self._web is None:
            return
        try:
            mark = self._web.mark()
            if mark != self._mark:
                self._shown, self._mark = self._web.load(self._id), mark
        except (OSError, IdentityFileError) as error:
            facts = {"event": "ca.bundle_certificate", "problem": str(error)}
            log.error("the web certificate cannot be read again; the old one is shown", extra=facts)

    def _accept(self, accepted: Accepted) -> None:
        credentials = self._shown if self._web is not None else self._own()
        if credentials is None or credentials.expired(self._poller.wall()):
            accepted.sock.close()
            return
        _Arrival(self, self._poller, accepted.sock, credentials)

    def answer(self, engine: Http1Server, event: RequestReceived) -> None:
        """The reply to one request."""
        if event.head.method not in (b"GET", b"HEAD"):
            engine.send_response(event.stream_id, 405, [(b"allow", b"GET, HEAD")], length=0, end_stream=True)
            return
        body = self._document()
        headers: Headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-cache")]
        bare = event.head.method == b"HEAD"
        engine.send_response(event.stream_id, 200, headers, length=len(body), end_stream=bare)
        if not bare:
            engine.send_data(event.stream_id, body, True)
        self.served += 1


class _Arrival:
    """A handshake of a reader, then its visit."""

    def __init__(
        self, endpoint: BundleEndpoint, poller: Poller, sock: socket.socket, credentials: Credentials
    ) -> None:
        self._endpoint = endpoint
        self._until = poller.now + _LIFE
        endpoint.open.add(self)
        self._handshake = Handshake(
            poller,
            sock,
            credentials,
            alpn=_ALPN,
            server=True,
            deadline=self._until,
            done=self._done,
            failed=self._failed,
            stranger=self._stranger,
        )
        self._handshake.start()

    def _done(self, stream: TlsStream, peer: PeerIdentity, alpn: str) -> None:
        self._stranger(stream, alpn)

    def _stranger(self, stream: TlsStream, alpn: str) -> None:
        self._endpoint.open.discard(self)
        _Visit(self._endpoint, stream, self._until)

    def _failed(self, why: str, detail: str) -> None:
        self._endpoint.open.discard(self)

    def cancel(self) -> None:
        self._endpoint.open.discard(self)
        self._handshake.cancel()


class _Visit:
    """One connection of a reader."""

    def __init__(self, endpoint: BundleEndpoint, stream: Stream, until: float) -> None:
        self._endpoint = endpoint
        self._stream = stream
        self._engine = Http1Server(_LIMITS, scheme=b"https")
        endpoint.open.add(self)
        stream.owner = self
        stream.start()
        self._timer = stream.poller.call_at(until, self.cancel)

    def on_data(self, data: bytes) -> None:
        self._handle(self._engine.receive(data))

    def _handle(self, events: list[Event]) -> None:
        while events:
            for event in events:
                if isinstance(event, RequestReceived):
                    self._endpoint.answer(self._engine, event)
                elif isinstance(event, RequestRefused) and event.answerable:
                    self._engine.send_response(event.stream_id, 400, [], length=0, end_stream=True)
            events = self._engine.resume()
        self._stream.send(self._engine.take())
        if self._engine.must_close:
            self._end()

    def on_eof(self, clean: bool) -> None:
        self._end()

    def on_lost(self, detail: str) -> None:
        self._end()

    def on_drained(self) -> None:
        pass

    def on_crash(self, error: Exception) -> None:
        self._end()

    def _end(self) -> None:
        if self in self._endpoint.open:
            self._endpoint.open.discard(self)
            self._timer.cancel()
            self._stream.close()

    def cancel(self) -> None:
        if self in self._endpoint.open:
            self._endpoint.open.discard(self)
            self._timer.cancel()
            self._stream.abort()
