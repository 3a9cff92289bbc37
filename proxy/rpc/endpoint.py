"""Where a Workload API is (SPIFFE Workload Endpoint 4), and a stream of identities from there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from identity.workload_source import FETCH, METADATA, Connect
from proxy.net.listener import Address
from proxy.net.poller import Poller
from proxy.rpc.client import open_channel

_LONGEST = 107  # bytes of sun_path, less the final NUL (unix(7))


def parse_endpoint(text: str) -> Address:
    """``unix:///path`` as in SPIFFE_ENDPOINT_SOCKET, or ``unix:/path`` as gRPC and Envoy write it.

    ValueError with what is wrong; ``tcp://`` too, because callers are known by their Unix socket only."""
    scheme, _, rest = text.partition(":")
    if scheme != "unix":
        raise ValueError(f"{text!r}: a Unix socket is expected, for example unix:///run/spire/agent.sock")
    path = rest[2:] if rest.startswith("//") else rest
    if not path.startswith("/"):
        raise ValueError(f"{text!r}: the path must be absolute, for example unix:///run/spire/agent.sock")
    if "?" in path or "#" in path or "\0" in path:
        raise ValueError(f"{text!r}: a socket has neither query nor fragment")
    if len(path.encode()) > _LONGEST:
        raise ValueError(f"{text!r}: the path of a Unix socket has at most {_LONGEST} bytes")
    return Address(path=path)


def x509_stream(address: Address, poller: Poller | None = None) -> Connect:
    """What ``identity.workload_source.WorkloadSource`` is given: opens FetchX509SVID at ``address``."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[AsyncIterator[bytes]]:
        async with (
            open_channel(address, poller=poller) as channel,
            channel.stream(FETCH, b"", metadata=METADATA) as replies,
        ):
            yield replies

    return connect
