"""Small services for tests, made of the real engines: one trio task a connection.

``EchoApp`` answers every request with a JSON description of what it saw and, on ``/echo``, with the request's
own body, streamed. Behaviour is chosen by the path, so that a test reads like a conversation:

    /echo           the body back, as it comes            /bytes/N        N bytes
    /status/N       an empty answer with status N         /slow/SECONDS   waits, then answers
    /close          closes without an answer              /trailers       body, then a trailer
    /half           promises 100 bytes, sends 10, closes  /early          answers before the body was read
    anything else   200 with a JSON description
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import trio

from proxy.wire.events import (
    ConnectionEnded,
    DataReceived,
    Headers,
    RequestHead,
    RequestReceived,
    StreamReset,
    TrailersReceived,
)
from proxy.wire.http1 import Http1Server
from proxy.wire.http2 import NgServer
from proxy.wire.limits import WireLimits

_LIMITS = WireLimits(head=256 * 1024, headers=500, underscore="drop")
_PIECE = 64 * 1024


def free_socket() -> tuple[socket.socket, int]:
    """A listening loopback socket and its port."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    sock.listen(512)
    return sock, sock.getsockname()[1]


class EchoApp:
    """See the module's text. ``http2`` speaks h2c with prior knowledge."""

    def __init__(self, *, http2: bool = False) -> None:
        self.http2 = http2
        self.sock, self.port = free_socket()
        self.seen: list[RequestHead] = []
        self.connections = 0
        self.resets = 0
        self.request_trailers: Headers = []
        self.aborted = 0
        self.ended: list[tuple[str, str]] = []  # why connections ended, by the engine

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self.sock.setblocking(False)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self.sock))
        task_status.started()
        await trio.serve_listeners(self._serve, [listener])

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        try:
            async with stream, trio.open_nursery() as nursery:
                await _AppConnection(self, stream, nursery).run()
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError, ConnectionError):
            pass


class _AppConnection:
    def __init__(self, app: EchoApp, stream: trio.SocketStream, nursery: trio.Nursery) -> None:
        self.app = app
        self.stream = stream
        self.nursery = nursery
        self.engine: Any = NgServer(_LIMITS) if app.http2 else Http1Server(_LIMITS, scheme=b"http")
        self.lock = trio.Lock()
        self.bodies: dict[int, trio.MemorySendChannel[tuple[bytes, int, bool]]] = {}
        self.progress = trio.Event()

    async def run(self) -> None:
        self.engine.start()
        await self.flush()
        while True:
            data = bytes(await self.stream.receive_some(_PIECE))
            events = self.engine.receive(data) if data else self.engine.receive_eof()
            for event in events:
                await self.on_event(event)
            await self.flush()
            self.wake()
            if not data or (self.engine.must_close and not self.bodies):
                return

    def wake(self) -> None:
        self.progress.set()
        self.progress = trio.Event()

    async def on_event(self, event: Any) -> None:
        if isinstance(event, RequestReceived):
            self.app.seen.append(event.head)
            send, receive = trio.open_memory_channel[tuple[bytes, int, bool]](10_000)
            self.bodies[event.stream_id] = send
            if event.end_stream:
                send.send_nowait((b"", 0, True))
            self.nursery.start_soon(self.answer, event.stream_id, event.head, receive)
        elif isinstance(event, DataReceived) and event.stream_id in self.bodies:
            self.bodies[event.stream_id].send_nowait((event.data, event.size, event.end_stream))
        elif isinstance(event, TrailersReceived) and event.stream_id in self.bodies:
            self.app.request_trailers += event.headers
            self.bodies[event.stream_id].send_nowait((b"", 0, True))
        elif isinstance(event, StreamReset):
            self.app.resets += 1
            channel = self.bodies.pop(event.stream_id, None)
            if channel is not None:
                channel.close()
        elif isinstance(event, ConnectionEnded):
            self.app.ended.append((event.reason, event.detail))
            for channel in self.bodies.values():
                channel.close()

    async def flush(self) -> None:
        async with self.lock:
            while data := self.engine.take():
                await self.stream.send_all(data)

    async def answer(self, stream_id: int, head: RequestHead, body: Any) -> None:
        try:
            await self.route(stream_id, head, body)
        except (trio.EndOfChannel, trio.ClosedResourceError):
            self.app.aborted += 1
        finally:
            self.bodies.pop(stream_id, None)
            self.release(stream_id)
        for event in self.engine.resume():
            await self.on_event(event)
        await self.flush()

    async def route(self, stream_id: int, head: RequestHead, body: Any) -> None:
        if head.method == b"HEAD":
            await self.read_all(body)
            self.respond(stream_id, 200, [], length=None, end_stream=True)
            return
        parts = head.path.decode().split("/")
        routes: dict[str, Callable[..., Any]] = {
            "echo": self.echo,
            "bytes": self.many,
            "status": self.status,
            "slow": self.slow,
            "close": self.close,
            "half": self.half,
            "early": self.early,
            "trailers": self.trailers,
        }
        await routes.get(parts[1], self.describe)(stream_id, head, body, *parts[2:3])

    async def read_all(self, body: Any) -> bytes:
        whole = bytearray()
        while True:
            data, size, end = await body.receive()
            whole += data
            if end:
                return bytes(whole)

    def respond(self, stream_id: int, status: int, headers: Any, **more: Any) -> None:
        self.engine.send_response(stream_id, status, headers, **more)
        if more.get("end_stream"):
            self.release(stream_id)

    def release(self, stream_id: int) -> None:
        """Before the last frame leaves: the caller may use the slot as soon as it has read it (L-8)."""
        if self.app.http2:
            self.engine.release(stream_id)

    async def send(self, stream_id: int, data: bytes, end: bool) -> None:
        self.engine.send_data(stream_id, data, end)
        if end:
            self.release(stream_id)
        await self.flush()
        while self.engine.queued(stream_id) > 4 * _PIECE:
            await self.progress.wait()
            await self.flush()

    async def describe(self, stream_id: int, head: RequestHead, body: Any, *rest: str) -> None:
        whole = await self.read_all(body)
        text = json.dumps(
            {
                "method": head.method.decode(),
                "target": head.target.decode("latin-1"),
                "authority": head.authority.decode("latin-1"),
                "headers": [[n.decode(), v.decode("latin-1")] for n, v in head.headers],
                "version": head.version,
                "body": len(whole),
            }
        ).encode()
        self.respond(stream_id, 200, [(b"content-type", b"application/json")], length=len(text), end_stream=False)
        await self.send(stream_id, text, True)

    async def echo(self, stream_id: int, head: RequestHead, body: Any, *rest: str) -> None:
        self.respond(stream_id, 200, [(b"content-type", b"application/octet-stream")], length=head.length, end_stream=False)
        while True:
            data, size, end = await body.receive()
            await self.send(stream_id, data, end)
            self.engine.acknowledge(stream_id, size)
            await self.flush()
            if end:
                return

    async def many(self, stream_id: int, head: RequestHead, body: Any, count: str) -> None:
        left = int(count)
        self.respond(stream_id, 200, [], length=left, end_stream=not left)
        while left:
            size = min(left, _PIECE)
            left -= size
            await self.send(stream_id, b"x" * size, not left)

    async def status(self, stream_id: int, head: RequestHead, body: Any, code: str) -> None:
        await self.read_all(body)
        self.respond(stream_id, int(code), [], length=0 if int(code) not in (204, 304) else None, end_stream=True)

    async def slow(self, stream_id: int, head: RequestHead, body: Any, seconds: str) -> None:
        await trio.sleep(float(seconds))
        self.respond(stream_id, 200, [], length=0, end_stream=True)

    async def close(self, stream_id: int, head: RequestHead, body: Any, *rest: str) -> None:
        await self.stream.aclose()

    async def half(self, stream_id: int, head: RequestHead, body: Any, *rest: str) -> None:
        self.respond(stream_id, 200, [], length=100, end_stream=False)
        await self.send(stream_id, b"x" * 10, False)
        await self.stream.aclose()

    async def early(self, stream_id: int, head: RequestHead, body: Any, *rest: str) -> None:
        self.respond(stream_id, 200, [], length=5, end_stream=False)
        await self.send(stream_id, b"early", True)

    async def trailers(self, stream_id: int, head: RequestHead, body: Any, *rest: str) -> None:
        await self.read_all(body)
        self.respond(stream_id, 200, [(b"trailer", b"x-sum")], length=None, end_stream=False)
        self.engine.send_data(stream_id, b"counted", False)
        self.engine.send_trailers(stream_id, [(b"x-sum", b"7")])
        await self.flush()
