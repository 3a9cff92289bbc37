"""A small HTTP client for tests, on the product's client engines: HTTP/1.1 or HTTP/2 with prior knowledge.

It keeps everything it saw, so that a test can ask about trailers, interim answers, resets and truncation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from proxy.wire.events import (
    ConnectionEnded,
    DataReceived,
    GoAwayReceived,
    Headers,
    InformationalReceived,
    RequestHead,
    ResponseReceived,
    StreamReset,
    TrailersReceived,
)
from proxy.wire.http1 import Http1Client
from proxy.wire.http2 import NgClient
from proxy.wire.limits import WireLimits

_PIECE = 64 * 1024


@dataclass
class Response:
    """What came back. ``reset`` is the code of a reset stream, ``broken`` says the connection ended early."""

    status: int = 0
    headers: Headers = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    trailers: Headers = field(default_factory=list)
    interim: list[int] = field(default_factory=list)
    complete: bool = False
    reset: int | None = None
    broken: bool = False

    def header(self, name: str) -> str:
        """The value of a header, "" when absent."""
        wanted = name.encode()
        return next((v.decode("latin-1") for n, v in self.headers if n == wanted), "")


class Client:
    """One connection. HTTP/2 carries any number of requests at a time, HTTP/1.1 one."""

    def __init__(self, stream: trio.abc.Stream, *, http2: bool) -> None:
        limits = WireLimits(head=256 * 1024, headers=500)
        self.stream = stream
        self.engine: Any = NgClient(limits) if http2 else Http1Client(limits)
        self.responses: dict[int, Response] = {}
        self.goaway = False
        self.ended = False
        self._changed = trio.Event()
        self._lock = trio.Lock()

    async def flush(self) -> None:
        async with self._lock:
            while data := self.engine.take():
                await self.stream.send_all(data)

    async def read_forever(self) -> None:
        """Feed the engine until the connection ends."""
        try:
            while True:
                data = bytes(await self.stream.receive_some(_PIECE))
                for event in self.engine.receive(data) if data else self.engine.receive_eof():
                    self._on_event(event)
                self._wake()
                if not data:
                    break
                await self.flush()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self.ended = True
        for response in self.responses.values():
            response.broken = response.broken or not response.complete
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _on_event(self, event: Any) -> None:
        if isinstance(event, GoAwayReceived):
            self.goaway = True
        if isinstance(event, ConnectionEnded):
            self.ended = True
        response = self.responses.get(event.stream_id)
        if response is None:
            return
        if isinstance(event, ResponseReceived):
            response.status, response.headers = event.head.status, event.head.headers
            response.complete = event.end_stream
        elif isinstance(event, InformationalReceived):
            response.interim.append(event.status)
        elif isinstance(event, DataReceived):
            response.body += event.data
            self.engine.acknowledge(event.stream_id, event.size)
            response.complete = response.complete or event.end_stream
        elif isinstance(event, TrailersReceived):
            response.trailers, response.complete = event.headers, True
        elif isinstance(event, StreamReset):
            response.reset = event.code

    async def begin(
        self, method: str, target: str, headers: Headers, *, length: int | None, end: bool, **more: Any
    ) -> int:
        """Send a head; returns the stream id."""
        if (b"te", b"trailers") in headers:
            headers = [field for field in headers if field[0] != b"te"]
            more["te_trailers"] = True
        head = RequestHead(
            method=method.encode(),
            scheme=b"http",
            authority=b"api.shop",
            host=b"api.shop",
            path=target.partition("?")[0].encode(),
            target=target.encode(),
            headers=headers,
            version=self.engine.version,
            length=length,
            **more,
        )
        stream_id = int(self.engine.open_stream(head, headers, end_stream=end))
        self.responses[stream_id] = Response()
        await self.flush()
        return stream_id

    async def send(self, stream_id: int, data: bytes, end: bool) -> None:
        """Send body bytes, waiting while the peer does not take them."""
        self.engine.send_data(stream_id, data, end)
        await self.flush()
        while self.engine.queued(stream_id) > 4 * _PIECE and not self.ended:
            await self._changed.wait()
            await self.flush()

    async def wait(self, stream_id: int, *, head: bool = False) -> Response:
        """The response, when it is complete or can no longer become so (``head``: when it has begun)."""
        response = self.responses[stream_id]
        while not (response.complete or response.broken or response.reset is not None):
            if head and response.status:
                break
            if self.ended:
                response.broken = True
                break
            await self._changed.wait()
        return response

    async def request(
        self,
        method: str,
        target: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
        chunked: bool = False,
        trailers: Headers | None = None,
    ) -> Response:
        """One whole exchange."""
        fields = [(n.encode(), v.encode("latin-1")) for n, v in headers]
        if body is None:
            stream_id = await self.begin(method, target, fields, length=0, end=True)
            return await self.wait(stream_id)
        length = None if chunked else len(body)
        stream_id = await self.begin(method, target, fields, length=length, end=False)
        pieces = [body[at : at + _PIECE] for at in range(0, len(body), _PIECE)] or [b""]
        for number, piece in enumerate(pieces, 1):
            await self.send(stream_id, piece, number == len(pieces) and trailers is None)
        if trailers is not None:
            self.engine.send_trailers(stream_id, trailers)
            await self.flush()
        return await self.wait(stream_id)


@asynccontextmanager
async def open_client(port: int, *, http2: bool = False) -> AsyncIterator[Client]:
    """A connected client, reading in the background."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    client = Client(stream, http2=http2)
    async with trio.open_nursery() as nursery:
        client.engine.start()
        await client.flush()
        nursery.start_soon(client.read_forever)
        try:
            yield client
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)


async def call(port: int, method: str, target: str, *, http2: bool = False, **more: Any) -> Response:
    """One exchange on a connection of its own."""
    async with open_client(port, http2=http2) as client:
        return await client.request(method, target, **more)
