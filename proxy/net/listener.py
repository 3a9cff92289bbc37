"""Listening sockets: accepted on the poller, bounded, and kept across reloads.

Accepting happens in the dispatch of the poller, a few connections a time, so that a flood of connects takes
turns with traffic. When descriptors run out (EMFILE, ENFILE) the listener sleeps 100 ms instead of spinning
(F-11); when the gate refuses (L-20, L-23) the connection is closed at once, which costs the caller more than
it costs us.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from proxy.net.poller import Poller
from proxy.net.stream import no_delay

_ACCEPTS: Final = 16  # per readiness event
_BACK_OFF: Final = 0.1  # seconds, F-11
_BACKLOG: Final = 1024


@dataclass(frozen=True, slots=True)
class Accepted:
    """A connection as the kernel gave it. Addresses are ``host:port`` texts, or ``unix:path``."""

    sock: socket.socket
    peer: str
    local: str
    peer_host: str


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen or to connect: a host and port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ListenFailed(Exception):
    """The address cannot be listened on. ``exit_code`` follows sysexits (73 in use, 77 not permitted)."""

    def __init__(self, address: Address, error: OSError) -> None:
        self.exit_code = 77 if error.errno in (errno.EACCES, errno.EPERM) else 73
        self.address = address
        hint = "; choose a port above 1023 or grant CAP_NET_BIND_SERVICE" if self.exit_code == 77 else ""
        super().__init__(f"cannot listen on {address}: {error.strerror or error}{hint}")


def bind(address: Address, *, shared: bool = False, mode: int = 0o660) -> socket.socket:
    """A listening, non-blocking socket. ``shared`` sets SO_REUSEPORT so that several workers can bind it.

    A stale Unix socket is replaced only when it is a socket and nobody answers on it (F-21)."""
    try:
        return _bind_unix(address, mode) if address.path else _bind_tcp(address, shared)
    except OSError as error:
        raise ListenFailed(address, error) from error


def _bind_tcp(address: Address, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address.host != "::"))
        sock.bind((address.host, address.port))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _bind_unix(address: Address, mode: int) -> socket.socket:
    _remove_stale(address.path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o777 & ~mode)
    try:
        sock.bind(address.path)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(old)
    return sock


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EADDRINUSE, "the path exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, "another process answers on this socket")


class Bucket:
    """A token bucket: ``rate`` per second, ``burst`` at once. Time is an argument."""

    __slots__ = ("_at", "_level", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._level = burst
        self._at = now

    def take(self, now: float) -> float:
        """Take one token: 0.0, or the seconds until there will be one (none is taken then)."""
        self._level = min(self.burst, self._level + (now - self._at) * self.rate)
        self._at = now
        if self._level >= 1.0:
            self._level -= 1.0
            return 0.0
        return (1.0 - self._level) / self.rate

    def give_back(self) -> None:
        """The token taken last was not needed."""
        self._level += 1.0


class Listener:
    """Accepts on one socket and hands each connection to ``accept``.

    ``gate`` is asked first; False closes the connection uncounted by the owner. ``pace`` (L-23) may hold
    accepting back: what is not accepted waits in the kernel's queue, at no cost to us."""

    def __init__(
        self,
        poller: Poller,
        sock: socket.socket,
        accept: Callable[[Accepted], None],
        gate: Callable[[], bool] = lambda: True,
        pace: Bucket | None = None,
    ) -> None:
        self.accept = accept  # replaced by a reload; the socket stays open
        self.gate = gate
        self.pace = pace
        self.accepted = 0
        self._poller = poller
        self._sock = sock
        self._open = False

    def start(self) -> None:
        self._open = True
        self._poller.register(self._sock.fileno(), self, 1)

    def on_ready(self, mask: int) -> None:
        for _ in range(_ACCEPTS):
            wait = self.pace.take(self._poller.now) if self.pace is not None else 0.0
            if wait:
                self._rest(wait)
                return
            try:
                sock, peer = self._sock.accept()
            except OSError as error:
                if self.pace is not None:
                    self.pace.give_back()
                self._on_error(error)
                return
            self._take(sock, peer)

    def _take(self, sock: socket.socket, peer: object) -> None:
        if not self.gate():
            sock.close()
            return
        self.accepted += 1
        try:
            no_delay(sock)
            accepted = Accepted(sock, *_addresses(sock, peer))
        except OSError:  # the peer is gone already
            sock.close()
            return
        self.accept(accepted)

    def _on_error(self, error: OSError) -> None:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            self._rest(_BACK_OFF)
        # EAGAIN: all are accepted. ECONNABORTED, EPROTO and the like concern the one that went away (F-24).

    def _rest(self, seconds: float) -> None:
        self._poller.unregister(self._sock.fileno())
        self._poller.call_at(self._poller.now + seconds, self._again)

    def _again(self) -> None:
        if self._open:
            self._poller.register(self._sock.fileno(), self, 1)

    def close(self) -> None:
        """Stop listening; connections already accepted go on."""
        self._open = False
        self._poller.unregister(self._sock.fileno())
        self._sock.close()

    def release(self) -> None:
        self.close()

    def on_crash(self, error: Exception) -> None:
        """Accepting one connection failed in an unforeseen way; the listener itself goes on."""


def _addresses(sock: socket.socket, peer: object) -> tuple[str, str, str]:
    if sock.family == socket.AF_UNIX:
        local = sock.getsockname()
        return "unix:", f"unix:{local}", ""
    host, port = peer[0], peer[1]  # type: ignore[index]
    name = sock.getsockname()
    return _join(host, port), _join(name[0], name[1]), plain_host(host)


def plain_host(host: str) -> str:
    """An IPv4 address that came over an IPv6 socket is written as IPv4."""
    return host[7:] if host.startswith("::ffff:") and "." in host else host


def _join(host: str, port: int) -> str:
    host = plain_host(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
