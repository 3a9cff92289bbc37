"""What is known of a connection apart from its bytes: whose it is, what it may take, how long it may last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from identity.svid import PeerIdentity
from proxy.wire.events import Headers


class Facts:
    """What is known of a connection before its first request; shared by all its records."""

    __slots__ = (
        *("direction", "listener", "local", "local_port", "peer", "peer_address", "peer_host"),
        *("server_name", "tls_version"),
    )

    def __init__(
        self,
        *,
        direction: str,
        listener: str,
        local: str,
        local_port: int,
        peer_address: str,
        peer_host: str,
        peer: PeerIdentity | None = None,
        tls_version: str = "",
        server_name: str = "",
    ) -> None:
        self.direction = direction
        self.listener = listener
        self.local = local
        self.local_port = local_port
        self.peer_address = peer_address
        self.peer_host = peer_host
        self.peer = peer
        self.tls_version = tls_version
        self.server_name = server_name  # SNI


class Shown:
    """What a request came with and when, so that its tokens can be judged again; ``claims`` as they are now.
    ``reserved``: names of fields that only we may fill, "_" written "-"."""

    __slots__ = ("at", "claims", "headers", "reserved", "target")

    def __init__(self, headers: Headers, target: bytes, at: float, reserved: frozenset[bytes]) -> None:
        self.reserved = reserved
        self.headers = headers
        self.target = target
        self.at = at
        self.claims: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        return "<Shown>"


class Use:
    """What one peer (SPIFFE ID, or the local app) uses at the moment (L-20, L-21)."""

    __slots__ = ("connections", "requests")

    def __init__(self) -> None:
        self.connections = 0
        self.requests = 0


class Times:
    """Limits in seconds of one listener (T-2, T-3, T-5, T-7, T-10); 0 lifts one."""

    __slots__ = ("age", "head", "idle", "stream_idle", "write")

    def __init__(
        self,
        *,
        head: float = 10.0,
        stream_idle: float = 60.0,
        idle: float = 600.0,
        age: float = 3600.0,
        write: float = 30.0,
    ) -> None:
        self.head = head
        self.stream_idle = stream_idle
        self.idle = idle
        self.age = age
        self.write = write
