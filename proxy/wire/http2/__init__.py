"""HTTP/2 engines: one behaviour, two libraries. ``ngh2`` (libnghttp2) is the default, ``h2`` the second."""

from __future__ import annotations

from proxy.wire.http2.h2_engine import H2Client, H2Server
from proxy.wire.http2.ngh2_engine import NgClient, NgServer

__all__ = ["H2Client", "H2Server", "NgClient", "NgServer", "client_engine", "server_engine"]

_SERVERS: dict[str, type[NgServer] | type[H2Server]] = {"ngh2": NgServer, "h2": H2Server}
_CLIENTS: dict[str, type[NgClient] | type[H2Client]] = {"ngh2": NgClient, "h2": H2Client}


def server_engine(name: str) -> type[NgServer] | type[H2Server]:
    """``ngh2`` or ``h2`` -> the class to call with ``WireLimits``. KeyError for another name."""
    return _SERVERS[name]


def client_engine(name: str) -> type[NgClient] | type[H2Client]:
    """As ``server_engine``, for connections we open."""
    return _CLIENTS[name]
