"""Asking another process's administrative socket: one request, one answer, bounded in time and size."""

from __future__ import annotations

import trio

from proxy.wire.events import DataReceived, RequestHead, ResponseReceived
from proxy.wire.http1 import Http1Client
from proxy.wire.limits import WireLimits

_TIMEOUT = 5.0
_MOST = 16 * 1024 * 1024


async def ask(path: str, method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
    """Status and body; (503, words) when nobody answers."""
    try:
        with trio.fail_after(_TIMEOUT):
            return await _ask(path, method.encode(), target.encode(), body)
    except (OSError, trio.TooSlowError, trio.BrokenResourceError) as error:
        return 503, str(error).encode() or b"no answer"


async def _ask(path: str, method: bytes, target: bytes, body: bytes) -> tuple[int, bytes]:
    engine = Http1Client(WireLimits())
    head = RequestHead(
        method=method,
        scheme=b"http",
        authority=b"localhost",
        host=b"localhost",
        path=target,
        target=target,
        headers=[],
        version=11,
        length=len(body),
    )
    async with await trio.open_unix_socket(path) as stream:
        stream_id = engine.open_stream(head, [], end_stream=not body)
        if body:
            engine.send_data(stream_id, body, True)
        await stream.send_all(engine.take())
        return await _read(engine, stream)


async def _read(engine: Http1Client, stream: trio.SocketStream) -> tuple[int, bytes]:
    status, body = 503, bytearray()
    while True:
        data = bytes(await stream.receive_some())
        for event in engine.receive(data) if data else engine.receive_eof():
            if isinstance(event, ResponseReceived):
                status = event.head.status
            if isinstance(event, DataReceived):
                body += event.data
            if getattr(event, "end_stream", False):
                return status, bytes(body)
        if not data or len(body) > _MOST:
            return 503, b"the answer was cut off"
