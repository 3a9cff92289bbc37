"""Credentials made once, and the far side of a handshake driven by hand."""

from __future__ import annotations

import random
import socket
import tempfile
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from OpenSSL import SSL

from identity import authority
from identity.files import CaFolder, create_ca
from identity.spiffe import SpiffeId
from identity.svid import X509Context
from proxy.net.tls import Credentials

WEB = "spiffe://mesh.test/ns/shop/sa/web"
API = "spiffe://mesh.test/ns/shop/sa/api"


@cache
def ca_of(name: str) -> CaFolder:
    """A CA in a temporary folder of its own; only its memory is used afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        return create_ca(Path(folder) / "ca", name, now=datetime.now(UTC))


@cache
def credentials(spiffe_id: str = API, ca: str = "mesh.test") -> Credentials:
    """Credentials with a fresh SVID."""
    folder = ca_of(ca)
    svid = authority.issue(
        folder.authority,
        folder.bundle,
        SpiffeId.parse(spiffe_id),
        now=datetime.now(UTC),
        rng=random.Random(1),
        ttl=timedelta(hours=1),
    )
    return Credentials(X509Context(svid, {folder.trust_domain: folder.bundle}))


class Hand:
    """A TLS peer that takes a step only when told."""

    def __init__(self, sock: socket.socket, context: SSL.Context, *, server: bool) -> None:
        self.sock = sock
        self.tls = SSL.Connection(context, sock)
        if server:
            self.tls.set_accept_state()
        else:
            self.tls.set_connect_state()
        self.done = False

    def step(self) -> None:
        try:
            self.tls.do_handshake()
            self.done = True
        except (SSL.WantReadError, SSL.WantWriteError):
            pass
