"""A caller's connection and its calls, on the server's side.

``ServerConnection`` gets the engine's events and decides what becomes a call; ``ServerCall`` is the task of one: it
runs the handler under a cancel scope, and ``_finish`` is the one place where a call ends, whatever ended it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from identity.rpc import Call, Caller, Method, RpcError, Status
from proxy.net.stream import Stream
from proxy.rpc.connection import ENHANCE_YOUR_CALM, NO_ERROR, Engine, Inbox, RpcConnection
from proxy.rpc.frames import frame
from proxy.rpc.limits import Account
from proxy.wire.events import (
    DataReceived,
    Event,
    Headers,
    RequestHead,
    RequestReceived,
    RequestRefused,
    StreamReset,
    TrailersReceived,
)
from proxy.wire.grpc import encode_message, parse_grpc_timeout

if TYPE_CHECKING:
    from proxy.rpc.server import RpcServer

log = logging.getLogger("proxy.rpc")

_TYPE: Final = (b"content-type", b"application/grpc")
_LONGEST_TIMEOUT: Final = 10 * 365 * 86400.0


class ServerEngine(Engine, Protocol):
    """The server half."""

    def send_response(
        self, stream_id: int, status: int, headers: Headers, *, length: int | None, end_stream: bool
    ) -> None: ...
    def release(self, stream_id: int) -> None: ...


class ServerConnection(RpcConnection):
    """A caller's connection with its open calls."""

    engine: ServerEngine

    def __init__(
        self, stream: Stream, engine: ServerEngine, server: RpcServer, caller: Caller, account: Account, key: str
    ) -> None:
        super().__init__(stream, engine)
        self.server = server
        self.caller = caller
        self.account = account
        self.key = key
        self.calls: dict[int, ServerCall] = {}
        self._head_since = 0.0
        self._draining = False
        self._has_called = False

    # -- events -----------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        call = self.calls.get(event.stream_id)
        if isinstance(event, RequestReceived):
            self._on_request(event)
        elif isinstance(event, RequestRefused):
            self._on_refused(event, call)
        elif isinstance(event, DataReceived):
            if call is None:
                self.engine.acknowledge(event.stream_id, event.size)
            else:
                call.receive(event.data, event.size, event.end_stream)
        elif isinstance(event, TrailersReceived) and call is not None:
            call.receive(b"", 0, True)
        elif isinstance(event, StreamReset) and call is not None:
            call.stop(RpcError(Status.CANCELLED, "the caller has reset the stream"))

    def _on_request(self, event: RequestReceived) -> None:
        head, stream_id = event.head, event.stream_id
        if head.method != b"POST" or not head.is_grpc:
            status = 405 if head.method != b"POST" else 415
            self.engine.send_response(stream_id, status, [], length=0, end_stream=True)
            self._forget(stream_id, event.end_stream)
            return
        try:
            call = self._begin(head, stream_id)
        except RpcError as error:
            self.answer(stream_id, error, begun=False)
            self._forget(stream_id, event.end_stream)
            return
        self._has_called = True
        self.account.streams += 1
        self.calls[stream_id] = call
        if event.end_stream:
            call.receive(b"", 0, True)
        self.server.nursery.start_soon(call.run)  # type: ignore[union-attr]  # the connection lives in it

    def _begin(self, head: RequestHead, stream_id: int) -> ServerCall:
        """The call of a request. Raises RpcError when it is refused."""
        limits, account = self.server.limits, self.account
        if account.streams >= limits.streams:
            raise RpcError(Status.RESOURCE_EXHAUSTED, f"more than {limits.streams} calls are open")
        if account.bucket.take(self.poller.now):
            raise RpcError(Status.RESOURCE_EXHAUSTED, f"more than {limits.messages_per_second:g} messages a second")
        name = head.target.decode("ascii")
        method = self.server.methods.get(name)
        if method is None:
            raise RpcError(Status.UNIMPLEMENTED, "unknown method")
        metadata = _metadata(head.headers)
        timeout = _timeout(metadata)
        return ServerCall(self, stream_id, method, Call(name, self.caller, metadata), timeout)

    def _on_refused(self, event: RequestRefused, call: ServerCall | None) -> None:
        if call is not None:
            call.stop(RpcError(Status.INTERNAL, f"malformed request: {event.reason}"))
        elif event.answerable:
            self.engine.send_response(event.stream_id, 400, [], length=0, end_stream=True)

    def answer(self, stream_id: int, verdict: RpcError | None, *, begun: bool) -> None:
        """End a call towards the caller: trailers, or a head that is trailers at once when nothing was sent."""
        fields: Headers = [(b"grpc-status", b"%d" % (verdict.status if verdict else Status.OK))]
        if verdict is not None and verdict.message:
            fields.append((b"grpc-message", encode_message(verdict.message)))
        if begun:
            self.engine.send_trailers(stream_id, fields)
        else:
            self.engine.send_response(stream_id, 200, [_TYPE, *fields], length=None, end_stream=True)

    def _forget(self, stream_id: int, request_ended: bool) -> None:
        self.engine.release(stream_id)
        if not request_ended:
            self.engine.reset(stream_id, NO_ERROR)  # after the answer has left (RFC 9113 8.1)
        self.touch()

    def ended(self, call: ServerCall, request_ended: bool) -> None:
        """The task of a call is over and its answer was given."""
        self.calls.pop(call.stream_id, None)
        self.account.streams -= 1
        self.last_active = self.poller.now
        self.server.call_ended()
        if not self.closed:
            self._forget(call.stream_id, request_ended)

    # -- ending -----------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """GOAWAY; calls that stream end now, the others go on."""
        if self._draining or self.closed:
            return
        self._draining = True
        self.engine.finish()
        for call in list(self.calls.values()):
            if call.method.kind != "unary":
                call.stop(RpcError(Status.UNAVAILABLE, "the server is shutting down"))
        self.touch()

    def shut(self, detail: str) -> None:
        """End now, with what was answered already and a last GOAWAY on the wire."""
        if not self.closed:
            self.engine.finish()
            self.transport.send(self.engine.take())
            self.close(detail)

    def _lost(self, detail: str) -> None:
        for call in list(self.calls.values()):
            call.stop(RpcError(Status.CANCELLED, detail))
        self.server.gone(self)
        if self.caller.local is not None:
            self.caller.local.close()

    def sweep(self, now: float) -> None:
        """Slow heads, callers that do not read, idle connections, ended certificates (S-4) and processes (C-9)."""
        limits, peer, local = self.server.limits, self.caller.peer, self.caller.local
        self._head_since = (self._head_since or now) if self.engine.mid_head else 0.0
        if peer is not None and self.poller.wall() > peer.not_after:
            self.shut("the caller's certificate has expired")
        elif local is not None and not local.still_there():
            self.shut("the process that connected has gone")  # and has left its socket to another
        elif self._head_since and now - self._head_since > limits.request:
            self.engine.fail(ENHANCE_YOUR_CALM, "head_timeout")
            self.touch()
        elif self.transport.pending and now - self.transport.last_write > limits.write:
            self.close("the caller does not read", abort=True)
        elif not self.calls and now - self.last_active > (limits.idle if self._has_called else limits.request):
            self.shut("idle")


class ServerCall:
    """One call: its inbox, its cancel scope, and how it ends."""

    def __init__(
        self, connection: ServerConnection, stream_id: int, method: Method, call: Call, timeout: float | None
    ) -> None:
        self.connection = connection
        self.stream_id = stream_id
        self.method = method
        self._call = call
        self._inbox = Inbox(connection, stream_id, method.max_request)
        self._scope = trio.CancelScope()
        self._verdict: RpcError | None = None
        self._request_ended = False
        self._begun = False
        self._since = trio.current_time()
        if method.kind == "unary":
            longest = connection.server.limits.longest_unary
            timeout = min(timeout, longest) if timeout is not None else longest
        if timeout is not None:
            self._scope.deadline = self._since + timeout

    # -- called by the connection -----------------------------------------------------------------------------------

    def receive(self, data: bytes, size: int, end: bool) -> None:
        self._request_ended = self._request_ended or end
        try:
            self._inbox.feed(data, size, end)
        except RpcError as error:
            self.stop(error)

    def stop(self, verdict: RpcError) -> None:
        """End the call with ``verdict``, whatever its handler is doing. The first verdict counts."""
        if self._verdict is None:
            self._verdict = verdict
            self._scope.cancel()

    # -- the task ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        verdict: RpcError | None = RpcError(Status.UNAVAILABLE, "the server has ended")
        try:
            with self._scope:
                verdict = await self._handled()
            if self._scope.cancelled_caught:
                verdict = self._verdict or RpcError(Status.DEADLINE_EXCEEDED, "the deadline has passed")
        finally:  # also when the whole server is cancelled
            self._finish(verdict)

    async def _handled(self) -> RpcError | None:
        """Run the handler; how it ended."""
        try:
            await self._handle()
        except Exception as error:
            return self._verdict_of(error)
        return None

    async def _handle(self) -> None:
        handler: Any = self.method.handler
        if self.method.kind == "unary":
            await self._send(await handler(self._call, await self._single()))
            return
        request = self._paced() if self.method.kind == "bidi" else await self._single()
        async with aclosing(handler(self._call, request)) as replies:
            async for reply in replies:
                await self._send(reply)

    async def _single(self) -> bytes:
        """The one request of a call that has exactly one (grpc/doc/statuscodes.md: otherwise UNIMPLEMENTED)."""
        messages: list[bytes] = []
        with trio.move_on_after(self.connection.server.limits.request) as waiting:
            async for message in self._inbox:
                messages.append(message)
                if len(messages) > 1:
                    break
        if waiting.cancelled_caught:
            raise RpcError(Status.DEADLINE_EXCEEDED, "the request did not arrive in time")
        if len(messages) != 1:
            raise RpcError(Status.UNIMPLEMENTED, f"exactly one request is expected, not {len(messages) or 'none'}")
        return messages[0]

    def _paced(self) -> AsyncIterator[bytes]:
        return _Paced(self._inbox, self.connection.account)

    async def _send(self, message: bytes) -> None:
        connection = self.connection
        await connection.writable(self.stream_id)
        if not self._begun:
            self._begun = True
            connection.engine.send_response(self.stream_id, 200, [_TYPE], length=None, end_stream=False)
        connection.engine.send_data(self.stream_id, frame(message), False)
        connection.touch()

    def _verdict_of(self, error: Exception) -> RpcError:
        while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]  # a handler waited for several things at once
        if isinstance(error, RpcError):
            return error
        facts = {"event": "bug", "method": self._call.method}
        log.error("internal error in an RPC handler", exc_info=error, extra=facts)
        return RpcError(Status.INTERNAL, "internal error")

    def _finish(self, verdict: RpcError | None) -> None:
        connection = self.connection
        self._inbox.abandon()
        if not connection.closed:
            connection.answer(self.stream_id, verdict, begun=self._begun)
        connection.ended(self, self._request_ended)
        status = verdict.status if verdict is not None else Status.OK
        connection.server.observe(self._call, status, trio.current_time() - self._since)


class _Paced:
    """The messages of a bidi call, no faster than its caller may send. A wait may be cancelled without loss."""

    def __init__(self, inbox: Inbox, account: Account) -> None:
        self._inbox = inbox
        self._account = account
        self._paid = True  # the first message came with the call, which was paid for

    def __aiter__(self) -> _Paced:
        return self

    async def __anext__(self) -> bytes:
        while not self._paid:
            wait = self._account.bucket.take(time.monotonic())
            if not wait:
                self._paid = True
                break
            await trio.sleep(wait)
        message = await self._inbox.__anext__()
        self._paid = False
        return message


def _metadata(headers: Headers) -> dict[str, str]:
    metadata: dict[str, str] = {}
    for name, value in headers:
        metadata.setdefault(name.decode("ascii", "replace"), value.decode("utf-8", "replace"))
    return metadata


def _timeout(metadata: dict[str, str]) -> float | None:
    text = metadata.get("grpc-timeout")
    if text is None:
        return None
    seconds = parse_grpc_timeout(text.encode())
    if seconds is None:
        raise RpcError(Status.INTERNAL, "malformed grpc-timeout")
    return min(seconds, _LONGEST_TIMEOUT)
