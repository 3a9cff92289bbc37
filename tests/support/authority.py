"""A real `sidewall ca serve` in a process of its own, and clients that speak to it as nodes and commands do."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from identity.ca_api import ADMIN, ATTEST, ISSUE, RENEW, api, own_parent
from identity.mtls import chain_shown_to_strangers
from identity.spiffe import SpiffeId
from identity.svid import TrustBundle, X509Context, X509Svid, load_certificate
from proxy.ca.documents import certificates_of
from proxy.net.listener import Address
from proxy.net.tls import Credentials, StrangerCredentials
from proxy.rpc.client import Channel, open_channel

TD = "shop.internal"
REPOSITORY = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


@dataclass
class Held:
    """An SVID with its key."""

    key: ec.EllipticCurvePrivateKey
    svid: Any
    url: str = ""

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        return tuple(certificates_of(self.svid.chain))


@dataclass
class RunningCa:
    """One server on ``folder``; started by ``start``, at the same addresses each time."""

    folder: Path
    port: int = field(default_factory=free_port)
    http: int = field(default_factory=free_port)
    more: tuple[str, ...] = ()
    authority: Path | None = None  # the folder of keys, when it is shared with other replicas
    process: subprocess.Popen[str] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "ca.sock"

    @property
    def remote(self) -> Address:
        return Address("127.0.0.1", self.port)

    def start(self) -> Self:
        command = [
            sys.executable,
            "-m",
            "proxy",
            "ca",
            "serve",
            "--dir",
            str(self.authority or self.folder / "ca"),
            "--trust-domain",
            TD,
        ]
        command += ["--listen", f"127.0.0.1:{self.port}", "--socket", str(self.socket)]
        command += ["--http", f"127.0.0.1:{self.http}", "--log-format", "json", *self.more]
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(command, cwd=REPOSITORY, stderr=log, text=True)
        self._wait()
        return self

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, self.log()
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise TimeoutError(self.log())

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(20)
        self.process = None
        return code

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def command(self, *arguments: str, user: int | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """``sidewall ca ...`` on its socket."""
        return subprocess.run(
            [sys.executable, "-m", "proxy", "ca", *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "SIDEWALL_CA": str(self.socket), **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            user=user,
        )

    # -- clients --------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def local(self) -> AsyncIterator[Channel]:
        async with open_channel(Address(path=str(self.socket))) as channel:
            yield channel

    async def ask(self, act: str, **facts: Any) -> Any:
        request = api.AdminRequest(json=json.dumps(facts).encode()).SerializeToString()
        async with self.local() as channel:
            return json.loads(api.AdminReply.FromString(await channel.unary(ADMIN + act, request)).json)

    def pinned(self, fingerprint: str) -> TrustBundle:
        """The root that the server shows, if it is the one of the fingerprint."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as sock:
            shown = chain_shown_to_strangers(sock)
        for der in shown:
            if f"sha256:{hashlib.sha256(der).hexdigest()}" == fingerprint:
                return TrustBundle(TD, (load_certificate(der),))
        raise AssertionError("the server does not show that root")

    @asynccontextmanager
    async def stranger(self, roots: TrustBundle) -> AsyncIterator[Channel]:
        credentials = StrangerCredentials({TD: roots})
        async with open_channel(self.remote, credentials=credentials, expect=frozenset({own_parent(TD)})) as channel:
            yield channel

    @asynccontextmanager
    async def node(self, held: Held, roots: TrustBundle) -> AsyncIterator[Channel]:
        svid = X509Svid(SpiffeId.parse(held.svid.spiffe_id), held.chain, held.key)
        credentials = Credentials(X509Context(svid, {TD: roots}))
        async with open_channel(self.remote, credentials=credentials, expect=frozenset({own_parent(TD)})) as channel:
            yield channel

    async def attest(self, channel: Channel, **proof: Any) -> Held:
        key = new_key()
        request = api.AttestRequest(csr=csr(key), **proof)
        reply = api.AttestReply.FromString(await channel.unary(ATTEST, request.SerializeToString()))
        return Held(key, reply.svid, reply.url)

    async def join(self, spiffe_id: str) -> tuple[Held, TrustBundle]:
        """Attest by a token, over TLS pinned by the fingerprint, as `sidewall join` does."""
        token = await self.ask("CreateToken", spiffe_id=spiffe_id)
        roots = self.pinned(token["fingerprint"])
        async with self.stranger(roots) as channel:
            return await self.attest(channel, join_token=token["secret"]), roots

    async def renew(self, channel: Channel, key: ec.EllipticCurvePrivateKey | None = None) -> Held:
        key = key or new_key()
        request = api.RenewRequest(csr=csr(key)).SerializeToString()
        return Held(key, api.Svid.FromString(await channel.unary(RENEW, request)))

    async def issue(self, channel: Channel, entry_id: str) -> Held:
        key = new_key()
        request = api.IssueRequest(items=[api.IssueItem(entry_id=entry_id, csr=csr(key))])
        outcome = api.IssueReply.FromString(await channel.unary(ISSUE, request.SerializeToString())).outcomes[0]
        assert outcome.status == 0, outcome.message
        return Held(key, outcome.svid)
