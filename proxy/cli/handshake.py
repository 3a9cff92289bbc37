"""One handshake as the proxy itself makes it, and whether the far side took our certificate.

In TLS 1.3 a client has finished before the server has looked at its certificate: a refusal arrives as an alert
afterwards. So we stay a moment. A server of HTTP/2 speaks first (SETTINGS), and that ends the wait.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import trio

from identity.mtls import tls_facts
from identity.svid import PeerIdentity, X509Context
from proxy.net.poller import Poller
from proxy.net.stream import TlsStream, no_delay
from proxy.net.tls import Credentials, Handshake

ALPN = (b"h2", b"http/1.1")
_STAY = 0.5  # seconds


@dataclass(frozen=True, slots=True)
class Outcome:
    """``ok`` with what was negotiated in ``text``, or why not."""

    ok: bool
    text: str


def shake_hands(sock: socket.socket, context: X509Context, *, patience: float, minimum: str = "1.3") -> Outcome:
    """Make the handshake on a connected socket, which is closed afterwards. ``patience`` in seconds."""
    no_delay(sock)
    return trio.run(_Attempt(sock, Credentials(context, minimum), patience).run)


class _Attempt:
    def __init__(self, sock: socket.socket, credentials: Credentials, patience: float) -> None:
        self._poller = Poller(linger=0.0)
        self._over = trio.Event()
        self._outcome = Outcome(False, "no answer")
        self._facts = ""
        self._stream: TlsStream | None = None
        self._handshake = Handshake(
            self._poller, sock, credentials, alpn=ALPN, server=False, deadline=time.monotonic() + patience,
            done=self._done, failed=lambda why, detail: self._end(False, f"{why}: {detail}"),
        )  # fmt: skip

    async def run(self) -> Outcome:
        async with trio.open_nursery() as nursery:
            await nursery.start(self._poller.serve)
            self._handshake.start()
            await self._over.wait()
            nursery.cancel_scope.cancel()
        if self._stream is not None:
            self._stream.abort()
        self._poller.close()
        return self._outcome

    def _end(self, ok: bool, text: str) -> None:
        if not self._over.is_set():
            self._outcome = Outcome(ok, text)
            self._over.set()

    def _done(self, stream: TlsStream, peer: PeerIdentity, alpn: str) -> None:
        version, cipher, group, _ = tls_facts(stream.tls)
        self._facts = f"{version} {cipher} {group}, {alpn or 'no ALPN'}"
        self._stream = stream
        stream.owner = _Listener(self._accepted, self._refused)
        stream.start()
        self._poller.call_at(self._poller.now + _STAY, self._accepted)

    def _accepted(self) -> None:
        self._end(True, self._facts)

    def _refused(self, detail: str) -> None:
        self._end(False, f"they did not take our certificate: {detail}")


class _Listener:
    """Hears only whether the connection stands."""

    def __init__(self, accepted: Callable[[], None], refused: Callable[[str], None]) -> None:
        self._accepted = accepted
        self._refused = refused

    def on_data(self, data: bytes) -> None:
        self._accepted()

    def on_eof(self, clean: bool) -> None:
        self._refused("the connection was closed")

    def on_lost(self, detail: str) -> None:
        self._refused(detail)

    def on_drained(self) -> None:
        pass

    def on_crash(self, error: Exception) -> None:
        self._refused(f"internal error: {type(error).__name__}")
