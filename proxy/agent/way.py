"""The way to the authority: where it is, and whom to believe there.

    https://ca.shop.internal:15012     TLS; the server shows the identity ``own_parent(trust domain)``, under a root
                                       that we hold already, or that a join string names by its fingerprint
    unix:/run/sidewall/ca.sock         on the authority's own machine; the file system says whose socket it is

A name is resolved at each connection, and its addresses are tried one after the other.
"""

from __future__ import annotations

import hmac
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import trio

from identity.attest.join import pin_of
from identity.ca_api import own_parent
from identity.mtls import chain_shown_to_strangers
from identity.rpc import RpcError, Status
from identity.svid import SvidError, TrustBundle, X509Context, check_authority, load_certificate
from proxy.net.listener import Address
from proxy.net.poller import Poller
from proxy.net.tls import Credentials, StrangerCredentials
from proxy.rpc.client import Channel, open_channel

DEFAULT_PORT: Final = 15012
_TIMEOUT: Final = 10.0  # seconds to connect, all addresses together
_MAX_ADDRESSES: Final = 8


class NotThere(Exception):
    """The address of an authority is malformed; the text says what to write."""


@dataclass(frozen=True, slots=True)
class Way:
    """Where the authority is: ``host`` and ``port``, or ``path`` of its Unix socket."""

    host: str = ""
    port: int = DEFAULT_PORT
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Way:
        """``https://host[:port]``, ``unix:/path`` or ``unix:///path``. Raises NotThere."""
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            path = path[2:] if path.startswith("//") else path
            if not path.startswith("/") or "\0" in path or len(path.encode()) > 107:
                raise NotThere(f"{text!r}: write unix:/absolute/path, of at most 107 bytes")
            return cls(path=path)
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise NotThere(f"{text!r} is not an address; e.g. https://ca.shop.internal:{DEFAULT_PORT}") from None
        extra = parts.path.strip("/") or parts.query or parts.fragment or parts.username
        if parts.scheme != "https" or not parts.hostname or extra or port == 0:
            raise NotThere(f"{text!r}: write https://host:port, or unix:/path")
        return cls(parts.hostname, port or DEFAULT_PORT)

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"https://[{self.host}]:{self.port}" if ":" in self.host else f"https://{self.host}:{self.port}"

    async def addresses(self) -> list[Address]:
        """Where to connect to. Raises RpcError UNAVAILABLE when the name is not known."""
        if self.path:
            return [Address(path=self.path)]
        try:
            found = await trio.socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise RpcError(Status.UNAVAILABLE, f"{self.host}: {error.strerror or error}") from None
        unique = dict.fromkeys(Address(str(item[4][0]), int(item[4][1])) for item in found)
        return list(unique)[:_MAX_ADDRESSES]


@asynccontextmanager
async def connected(
    way: Way, credentials: Credentials | None, trust_domain: str, *, poller: Poller | None = None
) -> AsyncIterator[Channel]:
    """A channel to the authority of ``trust_domain``. ``credentials``: of a node, or of a stranger that knows the
    bundle; None on a Unix socket. Raises RpcError UNAVAILABLE when no address answers."""
    if credentials is None and not way.path:
        raise RpcError(Status.FAILED_PRECONDITION, "nothing is known by which the authority could be recognised")
    expect = frozenset({own_parent(trust_domain)})
    problems = []
    for address in await way.addresses():
        opening = open_channel(
            address,
            poller=poller,
            credentials=None if way.path else credentials,
            expect=frozenset() if way.path else expect,
            timeout=_TIMEOUT,
        )
        try:
            channel = await opening.__aenter__()
        except RpcError as error:
            problems.append(error.message)
            continue
        try:
            yield channel
        except BaseException as error:
            if not await opening.__aexit__(type(error), error, error.__traceback__):
                raise
        else:
            await opening.__aexit__(None, None, None)
        return
    raise RpcError(Status.UNAVAILABLE, "; ".join(problems) or f"{way}: no address")


def as_node(context: X509Context) -> Credentials:
    """Credentials of a node that has an SVID."""
    return Credentials(context)


def as_stranger(bundle: TrustBundle) -> Credentials:
    """Credentials of who has none yet, but knows the bundle."""
    return StrangerCredentials({bundle.trust_domain: bundle})


async def find_root(way: Way, pin: str, trust_domain: str) -> TrustBundle:
    """The root of ``trust_domain`` that ``pin`` names (``identity.attest.join.pin_of``), among what the server shows.
    Nothing else of the server is believed here: who uses the bundle makes a handshake of its own.

    Raises RpcError: UNAVAILABLE without a connection, UNAUTHENTICATED when that root is not shown."""
    problems = []
    for address in await way.addresses():
        try:
            chain = await trio.to_thread.run_sync(_shown_at, address, abandon_on_cancel=True)
        except OSError as error:
            problems.append(f"{address}: {error.strerror or error}")
            continue
        for der in chain:
            if hmac.compare_digest(pin_of(der), pin):
                return _as_bundle(der, trust_domain)
        raise RpcError(Status.UNAUTHENTICATED, f"{way} does not show the root that the token names: a wrong address?")
    raise RpcError(Status.UNAVAILABLE, "; ".join(problems) or f"{way}: no address")


def _shown_at(address: Address) -> list[bytes]:
    """Blocks. Raises OSError."""
    with socket.create_connection((address.host, address.port), timeout=_TIMEOUT) as sock:
        return chain_shown_to_strangers(sock)


def _as_bundle(der: bytes, trust_domain: str) -> TrustBundle:
    try:
        root = load_certificate(der)
        check_authority(root)
    except SvidError as error:
        raise RpcError(Status.UNAUTHENTICATED, f"the root that the token names cannot be used: {error}") from None
    return TrustBundle(trust_domain, (root,))
