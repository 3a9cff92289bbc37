"""HTTP/1.1 (RFC 9112): the two engines. Pure.

Who does what:

- ``http1_heads``       raw heads -> fields; the only user of httptools, and the checks that come before it
- ``validate``          fields -> ``RequestHead`` / ``ResponseHead``: every rule shared with HTTP/2
- ``chunked``           the chunked coding
- ``http1_connection``  bodies both ways, and writing
- ``http1_server``, ``http1_client``  the two roles: what follows what, and when a connection may be used again
"""

from __future__ import annotations

from proxy.wire.http1_client import Http1Client
from proxy.wire.http1_server import Http1Server

__all__ = ["Http1Client", "Http1Server"]
