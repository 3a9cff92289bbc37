"""Health, readiness, metrics and tables over HTTP, for people and programs on this machine only.

Three doors (S-34): a Unix socket (mode 0660; everything), a loopback port (reads only; ``Host`` must name this
machine, which stops DNS rebinding), and a probes port (``/live /ready /startup /metrics`` and nothing else; it
may face the network because the kubelet and Prometheus do). Changes need POST over the Unix socket, and the
peer's uid must be ours or root's: the kernel vouches for it (SO_PEERCRED).

Everything runs in trio tasks, apart from traffic, through the same strict HTTP/1.1 engine.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

import orjson
import trio

from proxy.wire.events import DataReceived, Event, Headers, RequestHead, RequestReceived, RequestRefused
from proxy.wire.http1 import Http1Server
from proxy.wire.limits import WireLimits

_CONNECTIONS = 64
_IDLE = 30.0  # seconds a client may keep a connection without asking
_BODY = 1024 * 1024
_LOCAL_HOSTS = frozenset({b"localhost", b"127.0.0.1", b"[::1]", b"::1"})
_PROBES = frozenset({"/live", "/ready", "/startup", "/metrics"})
_READ = 64 * 1024

log = logging.getLogger("proxy.admin")


@dataclass(frozen=True, slots=True)
class Request:
    """One administrative request. ``uid`` is the peer's on a Unix socket, None elsewhere."""

    method: str
    path: str
    query: dict[str, str]
    accept: str
    uid: int | None
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back; ``body`` may be given in pieces so that a long page does not stall traffic."""

    status: int = 200
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    pieces: list[bytes] = field(default_factory=list)


Handler = Callable[[Request], Awaitable[Reply]]


def json_reply(value: object, status: int = 200) -> Reply:
    """``value`` as indented JSON."""
    body = orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS, default=str)
    return Reply(status, body + b"\n", "application/json")


def text_reply(text: str, status: int = 200) -> Reply:
    return Reply(status, text.encode())


class Admin:
    """The administrative server. ``reads`` and ``changes`` map paths to handlers."""

    def __init__(self, reads: dict[str, Handler], changes: dict[str, Handler]) -> None:
        self._reads = reads
        self._changes = changes
        self._open = 0

    async def serve(self, sock: socket.socket, *, door: str) -> None:
        """Accept on ``sock`` until cancelled. ``door`` is "unix", "loopback" or "probes"."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))

        async def serve_one(stream: trio.SocketStream) -> None:
            await self._serve_one(stream, door)

        await trio.serve_listeners(serve_one, [listener])

    async def _serve_one(self, stream: trio.SocketStream, door: str) -> None:
        if self._open >= _CONNECTIONS:
            await stream.aclose()
            return
        self._open += 1
        try:
            async with stream:
                await _Connection(self, stream, door).run()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except Exception:
            log.exception("an administrative request failed", extra={"event": "bug"})
        finally:
            self._open -= 1

    async def answer(self, request: Request, door: str) -> Reply:
        """The reply to one request."""
        if request.method in ("GET", "HEAD"):
            if door == "probes" and request.path not in _PROBES:
                return text_reply("not served on this port\n", 404)
            handler = self._reads.get(request.path)
            return await handler(request) if handler is not None else self._unknown(request)
        if request.method == "POST":
            return await self._change(request, door)
        return text_reply("GET, HEAD or POST\n", 405)

    async def _change(self, request: Request, door: str) -> Reply:
        handler = self._changes.get(request.path)
        if handler is None:
            return self._unknown(request)
        if door != "unix" or request.uid not in (0, os.geteuid()):
            return text_reply("changes are made over the Unix socket, by root or the proxy's own user\n", 403)
        log.info("administrative change", extra={"event": "admin.change", "path": request.path, "uid": request.uid})
        return await handler(request)

    def _unknown(self, request: Request) -> Reply:
        known = " ".join(sorted(self._reads))
        return text_reply(f"no such page {request.path}; there are: {known}\n", 404)


class _Connection:
    """One client of the administrative server: requests one after the other."""

    def __init__(self, admin: Admin, stream: trio.SocketStream, door: str) -> None:
        self._admin = admin
        self._stream = stream
        self._door = door
        self._engine = Http1Server(WireLimits(head=16 * 1024), scheme=b"http")
        self._uid = _peer_uid(stream) if door == "unix" else None

    async def run(self) -> None:
        head: RequestHead | None = None
        stream_id, body = 0, bytearray()
        with trio.move_on_after(_IDLE) as patience:
            while not self._engine.must_close:
                for event in await self._next_events():
                    patience.deadline = trio.current_time() + _IDLE
                    if isinstance(event, RequestReceived):
                        head, stream_id, body = event.head, event.stream_id, bytearray()
                    if isinstance(event, DataReceived):
                        body += event.data
                    if isinstance(event, RequestRefused) or len(body) > _BODY:
                        await self._refuse(event)
                        return
                    if head is not None and getattr(event, "end_stream", False):
                        await self._reply(head, stream_id, bytes(body))
                        head = None

    async def _next_events(self) -> list[Event]:
        events = self._engine.resume()
        if events:
            return events
        data = await self._stream.receive_some(_READ)
        if not data:
            raise trio.ClosedResourceError
        return self._engine.receive(bytes(data))

    async def _refuse(self, event: Event) -> None:
        self._engine.send_response(event.stream_id, 400, [], length=0, end_stream=True)
        await self._stream.send_all(self._engine.take())

    async def _reply(self, head: RequestHead, stream_id: int, body: bytes) -> None:
        request = Request(
            method=head.method.decode("ascii"),
            path=head.path.decode("latin-1"),
            query=dict(parse_qsl(head.target.partition(b"?")[2].decode("latin-1"))),
            accept=next((v.decode("latin-1") for n, v in head.headers if n == b"accept"), ""),
            uid=self._uid,
            body=body,
        )
        if self._door == "loopback" and head.host not in _LOCAL_HOSTS:
            reply = text_reply("Host must be localhost, 127.0.0.1 or [::1]\n", 403)
        else:
            reply = await self._admin.answer(request, self._door)
        await self._write(stream_id, reply)

    async def _write(self, stream_id: int, reply: Reply) -> None:
        pieces = reply.pieces or [reply.body]
        headers: Headers = [
            (b"content-type", reply.content_type.encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]
        engine = self._engine
        length = sum(map(len, pieces))
        engine.send_response(stream_id, reply.status, headers, length=length, end_stream=not length)
        for number, piece in enumerate(pieces, 1):
            if length:
                engine.send_data(stream_id, piece, number == len(pieces))
            await self._stream.send_all(engine.take())


def _peer_uid(stream: trio.SocketStream) -> int:
    raw = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", raw)[1])
