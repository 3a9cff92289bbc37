"""An HTTP(S) server on loopback that answers GET with what a test put there, and says what it was asked."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Issuer:
    """``pages``: body, or (status, header lines, body), by path. A path that is not there is a 404; ``away`` drops
    every connection."""

    def __init__(self, port: int, scheme: str) -> None:
        self.port = port
        self.scheme = scheme
        self.pages: dict[str, bytes | tuple[int, list[str], bytes]] = {}
        self.asked: list[str] = []
        self.away = False

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    async def serve(self, stream: trio.abc.Stream) -> None:
        async with stream:
            if self.away:
                return
            data = b""
            try:
                while b"\r\n\r\n" not in data:
                    got = await stream.receive_some(65536)
                    if not got:
                        return
                    data += got
                path = data.split(b" ")[1].decode()
                self.asked.append(path)
                await stream.send_all(self._answer(path))
            except trio.BrokenResourceError:
                return  # the other side did not want it

    def _answer(self, path: str) -> bytes:
        page = self.pages.get(path, (404, [], b"no"))
        status, lines, body = page if isinstance(page, tuple) else (200, [], page)
        if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in lines):
            lines = [*lines, f"content-length: {len(body)}"]
        return "\r\n".join([f"HTTP/1.1 {status} x", *lines, "connection: close", "", ""]).encode() + body


@asynccontextmanager
async def open_issuer(context: ssl.SSLContext | None = None) -> AsyncIterator[Issuer]:
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        issuer = Issuer(listener.socket.getsockname()[1], "https" if context is not None else "http")

        async def serve(stream: trio.SocketStream) -> None:
            if context is None:
                await issuer.serve(stream)
                return
            secured = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
            try:
                await secured.do_handshake()
                await issuer.serve(secured)
            except trio.BrokenResourceError:
                await trio.aclose_forcefully(secured)

        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield issuer
        nursery.cancel_scope.cancel()


def make_tls(folder: Path, *names: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of a server with a certificate for ``names``, and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")])
    now = datetime.datetime.now(datetime.UTC)
    alternatives = [_name(text) for text in names]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                crl_sign=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "issuer.pem").write_bytes(pem + private)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "issuer.pem")
    return server, ssl.create_default_context(cadata=pem.decode())


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
