"""The TLS handshake as a state machine on the poller, and the contexts made from one X.509 context.

A handshake is finished only after ``identity.mtls.peer_identity`` has judged the peer's chain from its DER
(S-2): the callback of a successful handshake therefore always carries a ``PeerIdentity``. It is judged after
*every* handshake, there is no resumption to skip it (S-3).
"""

from __future__ import annotations

import datetime
import socket
from collections.abc import Callable, Mapping
from typing import Literal

from OpenSSL import SSL

from identity import mtls
from identity.svid import PeerIdentity, SvidError, TrustBundle, X509Context
from proxy.net.poller import READ, WRITE, Poller, Timer
from proxy.net.stream import TlsStream

Done = Callable[[TlsStream, PeerIdentity, str], None]  # stream, who, ALPN ("" = none)
Failed = Callable[[str, str], None]  # word of PEER_REASONS, detail for operators
Stranger = Callable[[TlsStream, str], None]  # stream, ALPN: the peer has shown no certificate


class Credentials:
    """SSL contexts of one ``X509Context``, made when first asked for. A rotation makes new ``Credentials``;
    connections that are open keep what they were opened with."""

    def __init__(self, context: X509Context, minimum: str = "1.3") -> None:
        self.context = context
        self.minimum = minimum
        self._made: dict[tuple[str, tuple[bytes, ...]], SSL.Context] = {}

    @property
    def bundles(self) -> Mapping[str, TrustBundle]:
        """By what peers are judged."""
        return self.context.bundles

    def expired(self, wall: float) -> bool:
        """Whether our own SVID has ended at wall-clock time ``wall``."""
        return wall >= self.context.not_after

    def server(self, alpn: tuple[bytes, ...], *, strangers: bool = False) -> SSL.Context:
        """``strangers``: see ``mtls.server_context``."""
        return self._get("open server" if strangers else "server", alpn)

    def client(self, alpn: tuple[bytes, ...]) -> SSL.Context:
        return self._get("client", alpn)

    def _get(self, side: str, alpn: tuple[bytes, ...]) -> SSL.Context:
        made = self._made.get((side, alpn))
        if made is None:
            made = self._made[side, alpn] = self._make(side, alpn)
        return made

    def _make(self, side: str, alpn: tuple[bytes, ...]) -> SSL.Context:
        minimum: Literal["1.2", "1.3"] = "1.2" if self.minimum == "1.2" else "1.3"
        if side == "client":
            return mtls.client_context(self.context, alpn=alpn, minimum=minimum)
        return mtls.server_context(self.context, alpn=alpn, minimum=minimum, strangers=side == "open server")

    def judge(self, tls: SSL.Connection, role: Literal["client", "server"], wall: float) -> PeerIdentity:
        """Who the peer is. ``role`` is what the *peer* was in the handshake. Raises SvidError."""
        now = datetime.datetime.fromtimestamp(wall, datetime.UTC)
        return mtls.peer_identity(tls, self.bundles, now=now, role=role)


class StrangerCredentials(Credentials):
    """Of someone who has no SVID yet and only dials: it shows nothing, and judges the server by ``bundles``."""

    def __init__(self, bundles: Mapping[str, TrustBundle]) -> None:
        self.minimum = "1.3"
        self._bundles = bundles
        self._made = {}

    @property
    def bundles(self) -> Mapping[str, TrustBundle]:
        return self._bundles

    def expired(self, wall: float) -> bool:
        return False

    def _make(self, side: str, alpn: tuple[bytes, ...]) -> SSL.Context:
        if side != "client":
            raise ValueError("nobody can serve without an SVID")
        return mtls.stranger_context(self._bundles, alpn=alpn)


class Handshake:
    """One handshake. Owns the socket until it calls ``done`` (stream handed over) or ``failed`` (closed).

    ``stranger`` (servers only): called in place of ``done`` when the peer has shown no certificate at all; without
    it that is a failure. A certificate that is shown is judged in either case."""

    __slots__ = (
        "_credentials",
        "_done",
        "_failed",
        "_mask",
        "_poller",
        "_role",
        "_sock",
        "_stranger",
        "_timer",
        "_tls",
    )

    def __init__(
        self,
        poller: Poller,
        sock: socket.socket,
        credentials: Credentials,
        *,
        alpn: tuple[bytes, ...],
        server: bool,
        deadline: float,
        done: Done,
        failed: Failed,
        server_name: str = "",
        stranger: Stranger | None = None,
    ) -> None:
        self._poller = poller
        self._sock = sock
        self._credentials = credentials
        self._stranger = stranger
        self._role: Literal["client", "server"] = "client" if server else "server"
        self._done = done
        self._failed = failed
        strangers = stranger is not None
        context = credentials.server(alpn, strangers=strangers) if server else credentials.client(alpn)
        self._tls = SSL.Connection(context, sock)
        if server:
            self._tls.set_accept_state()
        else:
            if server_name:
                self._tls.set_tlsext_host_name(server_name.encode())
            self._tls.set_connect_state()
        self._timer: Timer = poller.call_at(deadline, self._expire)
        self._mask = READ

    def start(self) -> None:
        self._poller.register(self._sock.fileno(), self, READ)
        self._step()

    def on_ready(self, mask: int) -> None:
        self._step()

    def _step(self) -> None:
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            self._watch(READ)
        except SSL.WantWriteError:
            self._watch(WRITE)
        except (SSL.Error, OSError) as error:
            refusal = mtls.handshake_failure(self._tls, error)
            self._fail(refusal.why, refusal.detail)
        else:
            self._finish()

    def _watch(self, mask: int) -> None:
        if mask != self._mask:
            self._mask = mask
            self._poller.modify(self._sock.fileno(), mask)

    def _finish(self) -> None:
        if self._stranger is not None and self._tls.get_peer_certificate() is None:
            self._stranger(*self._hand_over())
            return
        try:
            peer = self._credentials.judge(self._tls, self._role, self._poller.wall())
        except SvidError as error:
            self._fail(error.why, error.detail)
            return
        stream, alpn = self._hand_over()
        self._done(stream, peer, alpn)

    def _hand_over(self) -> tuple[TlsStream, str]:
        self._timer.cancel()
        self._poller.unregister(self._sock.fileno())
        alpn = self._tls.get_alpn_proto_negotiated().decode("ascii", "replace")
        return TlsStream(self._poller, self._sock, self._tls), alpn

    def _fail(self, why: str, detail: str) -> None:
        self._timer.cancel()
        self._poller.unregister(self._sock.fileno())
        self._sock.close()
        self._failed(why, detail)

    def _expire(self) -> None:
        self._fail("timeout", "the handshake did not finish in time")

    def cancel(self) -> None:
        """Give up silently (shutdown); nothing happens once it has finished."""
        if self._timer.action is None:
            return
        self._timer.cancel()
        self._poller.unregister(self._sock.fileno())
        self._sock.close()

    def release(self) -> None:
        self.cancel()

    def on_crash(self, error: Exception) -> None:
        if self._timer.action is not None:
            self._fail("protocol", f"internal error: {type(error).__name__}")
            return
        # Handed over already: it was the new owner that failed, and it must not hear of both ends.
        self._poller.unregister(self._sock.fileno())
        self._sock.close()

