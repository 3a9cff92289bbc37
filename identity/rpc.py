"""What a gRPC method of ours is, without any transport: a name, a kind, a function over bytes and a caller.

The services (Workload API, SDS, the authority's API) are written against this module; ``proxy.rpc`` carries
them over HTTP/2 on Unix sockets and mTLS. A handler gets the serialised request and gives serialised replies,
so neither side needs the other's libraries.

    unary   async def(call, request: bytes) -> bytes
    stream  async def(call, request: bytes) -> yields bytes             (server streaming)
    bidi    async def(call, requests: AsyncIterator[bytes]) -> yields bytes

``requests`` of a bidi handler ends when the caller has said all; waiting for its next item may be cancelled without
losing one. A handler may be cancelled at any await: the caller went away, or its deadline passed.

A handler ends a call with an error by raising ``RpcError``; whatever else it raises is INTERNAL towards the
caller, with nothing of its text, and one log line here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, Protocol

from identity.svid import PeerIdentity


class Status(IntEnum):
    """gRPC status codes (grpc/doc/statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RpcError(Exception):
    """Ends a call. ``message`` goes to the caller: no secrets, no paths of ours."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(f"{status.name}: {message}")
        self.status = status
        self.message = message


class LocalPeer(Protocol):
    """The process at the other end of a Unix socket, held by a pidfd (C-9). See ``identity.attest.unix``."""

    @property
    def pid(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    def still_there(self) -> bool:
        """Whether the very process that connected still runs, with the credentials it had. False once closed."""
        ...

    def close(self) -> None:
        """The connection has ended: let go of what the process is held by."""
        ...


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. ``peer``: proven by mTLS; ``local``: seen through a Unix socket; neither: a TLS caller that has
    shown no certificate (it may only attest). ``address``: for rate limits and the journal."""

    peer: PeerIdentity | None = None
    local: LocalPeer | None = None
    address: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """One call. ``method``: ``/package.Service/Name``. ``metadata``: lower-case names, first value of each."""

    method: str
    caller: Caller
    metadata: Mapping[str, str] = field(default_factory=dict)


Unary = Callable[[Call, bytes], Awaitable[bytes]]
Streaming = Callable[[Call, bytes], AsyncIterator[bytes]]
Bidirectional = Callable[[Call, AsyncIterator[bytes]], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a service. ``max_request``: bytes; a longer message ends in RESOURCE_EXHAUSTED (C-10)."""

    kind: Literal["unary", "stream", "bidi"]
    handler: Unary | Streaming | Bidirectional
    max_request: int = 4096


Methods = Mapping[str, Method]  # by "/package.Service/Name"
