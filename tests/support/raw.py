"""Bytes on sockets, without any HTTP library between: for input that no library would send.

``RawApp`` is an app that keeps every byte it was sent, and knows of each connection whether the requests on it
were complete when it ended. ``talk`` sends bytes and reads what comes back until the other side closes.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from identity.svid import X509Context
from tests.support.apps import free_socket

_OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
_LENGTH = re.compile(rb"\r\ncontent-length: ([0-9]+)\r\n", re.IGNORECASE)


def tls_client(context: X509Context, folder: Path, *, certificate: bool = True) -> ssl.SSLContext:
    """A client of the standard library with this SVID; it does not judge the server, that is not under test."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    if certificate:
        made.load_cert_chain(*write_svid(context, folder))
    return made


def write_svid(context: X509Context, folder: Path, name: str = "svid") -> tuple[Path, Path]:
    """Chain and key as PEM files in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    chain, key = folder / f"{name}.pem", folder / f"{name}.key"
    chain.write_bytes(b"".join(cert.public_bytes(Encoding.PEM) for cert in context.svid.chain))
    key.touch(mode=0o600)
    key.write_bytes(context.svid.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return chain, key


def write_bundle(context: X509Context, folder: Path) -> Path:
    """The authorities of the SVID's own trust domain as one PEM file."""
    path = folder / "bundle.pem"
    authorities = context.bundles[context.svid.id.trust_domain].authorities
    path.write_bytes(b"".join(cert.public_bytes(Encoding.PEM) for cert in authorities))
    return path


# -- the app --------------------------------------------------------------------------------------------------


class RawApp:
    """Answers 200 to each complete request. ``complete``: those requests, as bytes. ``cut``: what connections
    had sent of an incomplete one when they ended. ``everything``: every byte of every connection."""

    def __init__(self) -> None:
        self.sock, self.port = free_socket()
        self.complete: list[bytes] = []
        self.cut: list[bytes] = []
        self.everything = bytearray()
        self.open = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self.sock.setblocking(False)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self.sock))
        task_status.started()
        await trio.serve_listeners(self._serve, [listener])

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.open += 1
        waiting = bytearray()
        try:
            async with stream:
                async for data in stream:
                    waiting += data
                    self.everything += data
                    while size := request_size(bytes(waiting)):
                        self.complete.append(bytes(waiting[:size]))
                        del waiting[:size]
                        await stream.send_all(_OK)
        except trio.BrokenResourceError:
            pass
        finally:
            self.open -= 1
            if waiting:
                self.cut.append(bytes(waiting))


def request_size(data: bytes) -> int:
    """Bytes of the first request in ``data``, 0 while it is incomplete. Reads what *we* write, nothing else."""
    end = data.find(b"\r\n\r\n") + 4
    if end < 4:
        return 0
    head = data[:end]
    if b"transfer-encoding: chunked\r\n" in head.lower():
        last = re.search(rb"(?:^|\r\n)0\r\n(?:[^\r\n]+\r\n)*\r\n", data[end:])
        return end + last.end() if last else 0
    match = _LENGTH.search(head)
    size = end + (int(match[1]) if match else 0)
    return size if len(data) >= size else 0


# -- the client -----------------------------------------------------------------------------------------------


@dataclass
class Heard:
    """What came back. ``statuses`` of all answers in order, interim ones too."""

    data: bytes = b""
    closed: bool = False
    reset: bool = False
    statuses: list[int] = field(default_factory=list)

    @property
    def status(self) -> int:
        return self.statuses[0] if self.statuses else 0

    @property
    def reason(self) -> str:
        match = re.search(rb"\r\nx-sidewall-reason: ([a-z_]+)\r\n", self.data)
        return match[1].decode() if match else ""


async def connect(port: int, tls: ssl.SSLContext | None = None) -> trio.abc.Stream:
    """A connection, after the handshake if ``tls`` is given."""
    tcp = await trio.open_tcp_stream("127.0.0.1", port)
    if tls is None:
        return tcp
    stream: trio.SSLStream[trio.SocketStream] = trio.SSLStream(tcp, tls, https_compatible=True)
    try:
        await stream.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(tcp)
        raise
    return stream


async def talk(stream: trio.abc.Stream, data: bytes, *, seconds: float = 5.0) -> Heard:
    """Send, and read until the other side closes (or ``seconds`` are over: ``closed`` stays False)."""
    heard = Heard()
    try:
        with trio.move_on_after(seconds):
            await stream.send_all(data)
            while more := await stream.receive_some(65536):
                heard.data += bytes(more)
            heard.closed = True
    except trio.BrokenResourceError:
        heard.closed = heard.reset = True
    finally:
        await trio.aclose_forcefully(stream)
    heard.statuses = [int(code) for code in re.findall(rb"(?:^|\n|ok)HTTP/1\.1 ([0-9]{3}) ", heard.data)]
    return heard


async def ask(port: int, data: bytes, tls: ssl.SSLContext | None = None) -> Heard:
    """``talk`` on a connection of its own."""
    return await talk(await connect(port, tls), data)


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until ``condition`` holds; TooSlowError when it does not in time."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


GOOD = b"GET /good HTTP/1.1\r\nHost: api.shop\r\nConnection: close\r\n\r\n"
