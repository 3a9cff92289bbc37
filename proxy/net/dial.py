"""Opening a connection to an endpoint: TCP (or Unix) connect, then the handshake where mTLS is asked for.

Everything happens on the poller under one deadline (T-6); the caller gets exactly one of ``done`` and
``failed``. There is no name resolution here: endpoints are addresses.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

from identity.svid import PeerIdentity
from proxy.net.listener import Address
from proxy.net.poller import WRITE, Poller, Timer
from proxy.net.stream import Stream, TlsStream, no_delay
from proxy.net.tls import Credentials, Handshake

Connected = Callable[[Stream, PeerIdentity | None, str], None]  # stream, who, ALPN
Refused = Callable[[str, str], None]  # word of REASONS, detail


class Dial:
    """One attempt to connect. Neither callback is ever called from within ``start``."""

    __slots__ = (
        "_address",
        "_credentials",
        "_done",
        "_expect",
        "_failed",
        "_handshake",
        "_noted",
        "_over",
        "_poller",
        "_protocols",
        "_server_name",
        "_sock",
        "_timer",
        "_until",
    )

    def __init__(
        self,
        poller: Poller,
        address: Address,
        *,
        deadline: float,
        done: Connected,
        failed: Refused,
        credentials: Credentials | None = None,
        alpn: tuple[bytes, ...] = (),
        expect: frozenset[str] = frozenset(),
        server_name: str = "",
        noted: Callable[[str], None] = lambda result: None,
    ) -> None:
        self._noted = noted  # told "ok" or a word of PEER_REASONS for each handshake
        self._poller = poller
        self._address = address
        self._done = done
        self._failed = failed
        self._credentials = credentials
        self._protocols = alpn
        self._expect = expect
        self._server_name = server_name
        self._until = deadline
        self._sock: socket.socket | None = None
        self._timer: Timer | None = None
        self._handshake: Handshake | None = None
        self._over = False  # one of the callbacks was called

    def start(self) -> None:
        try:
            sock = self._open()
        except OSError as error:
            words = _words(error)
            self._poller.call_at(self._poller.now, lambda: self._failed("upstream_connect_failed", words))
            return
        self._sock = sock
        self._timer = self._poller.call_at(self._until, self._expire)
        self._poller.register(sock.fileno(), self, WRITE)

    def _open(self) -> socket.socket:
        address = self._address
        if address.path:
            family, target = socket.AF_UNIX, address.path
        else:
            family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            target = (address.host, address.port)  # type: ignore[assignment]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            no_delay(sock)
            code = sock.connect_ex(target)
            if code not in (0, errno.EINPROGRESS):  # EAGAIN: the queue of a Unix socket is full
                raise OSError(code, os.strerror(code))
        except OSError:
            sock.close()
            raise
        return sock

    def on_ready(self, mask: int) -> None:
        sock = self._take_socket()
        if sock is None:
            return
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            sock.close()
            self._fail("upstream_connect_failed", os.strerror(code))
        elif self._credentials is None:
            self._succeed(Stream(self._poller, sock), None, "")
        else:
            self._secure(sock, self._credentials)

    def _take_socket(self) -> socket.socket | None:
        sock, self._sock = self._sock, None
        if self._timer is not None:
            self._timer.cancel()
        if sock is not None:
            self._poller.unregister(sock.fileno())
        return sock

    def _secure(self, sock: socket.socket, credentials: Credentials) -> None:
        self._sock = sock  # ours until the handshake has it
        handshake = Handshake(
            self._poller,
            sock,
            credentials,
            alpn=self._protocols,
            server=False,
            deadline=self._until,
            done=self._secured,
            failed=self._insecure,
            server_name=self._server_name,
        )
        self._sock, self._handshake = None, handshake
        handshake.start()

    def _succeed(self, stream: Stream, peer: PeerIdentity | None, alpn: str) -> None:
        self._over = True
        self._done(stream, peer, alpn)

    def _fail(self, reason: str, detail: str) -> None:
        if not self._over:
            self._over = True
            self._failed(reason, detail)

    def _secured(self, stream: TlsStream, peer: PeerIdentity, alpn: str) -> None:
        # S-7: the far side must be who this upstream is said to be, not just anybody of the trust domain.
        if peer.uri not in self._expect:
            stream.abort()
            self._noted("id_mismatch")
            wanted = ", ".join(sorted(self._expect)) or "nobody"
            self._fail("upstream_identity_mismatch", f"expected {wanted}, the peer is {peer.uri}")
            return
        self._noted("ok")
        self._succeed(stream, peer, alpn)

    def _insecure(self, why: str, detail: str) -> None:
        self._noted(why)
        reason = "upstream_connect_timeout" if why == "timeout" else "upstream_tls_failed"
        self._fail(reason, f"{why}: {detail}")

    def _expire(self) -> None:
        sock = self._take_socket()
        if sock is not None:
            sock.close()
            self._fail("upstream_connect_timeout", f"no connection to {self._address} in time")

    def cancel(self) -> None:
        """Give up silently (shutdown)."""
        sock = self._take_socket()
        if sock is not None:
            sock.close()
        elif self._handshake is not None:
            self._handshake.cancel()

    def release(self) -> None:
        self.cancel()

    def on_crash(self, error: Exception) -> None:
        sock = self._take_socket()
        if sock is not None:
            sock.close()
        self._fail("internal_error", type(error).__name__)


def _words(error: OSError) -> str:
    return error.strerror or str(error)
