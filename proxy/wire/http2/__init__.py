"""HTTP/2 engines: one behaviour, two libraries. ``ngh2`` (libnghttp2) is the default, ``h2`` the second.

h2 is imported when it is first asked for: most processes never need it (15 ms and 1.3 MiB).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.wire.http2.ngh2_engine import NgClient, NgServer

if TYPE_CHECKING:
    from proxy.wire.http2.h2_engine import H2Client, H2Server

__all__ = ["H2Client", "H2Server", "NgClient", "NgServer", "client_engine", "server_engine"]


def __getattr__(name: str) -> object:
    if name in ("H2Client", "H2Server"):
        from proxy.wire.http2 import h2_engine

        return getattr(h2_engine, name)
    raise AttributeError(name)


def server_engine(name: str) -> type[NgServer] | type[H2Server]:
    """``ngh2`` or ``h2`` -> the class to call with ``WireLimits``. KeyError for another name."""
    if name == "h2":
        from proxy.wire.http2.h2_engine import H2Server

        return H2Server
    return {"ngh2": NgServer}[name]


def client_engine(name: str) -> type[NgClient] | type[H2Client]:
    """As ``server_engine``, for connections we open."""
    if name == "h2":
        from proxy.wire.http2.h2_engine import H2Client

        return H2Client
    return {"ngh2": NgClient}[name]
