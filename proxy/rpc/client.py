"""The client's end: a ``Channel`` is one connection with any number of calls on it.

    async with open_channel(Address(path="/run/sidewall/agent.sock")) as channel:
        answer = await channel.unary("/Service/Method", request, timeout=5.0)
        async with channel.stream("/Service/Watch", request) as replies:
            async for reply in replies: ...

Whatever goes wrong is an ``RpcError``: the status the server gave, DEADLINE_EXCEEDED by our own clock, UNAVAILABLE
when there is no connection or it is lost. A channel never connects again by itself; who wants that opens another
(``reconnect.with_reconnect``), because what has to be asked again after a break is for the caller to know.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final, Protocol, Self

import trio

from identity.rpc import RpcError, Status
from identity.svid import PeerIdentity
from proxy.net.dial import Dial
from proxy.net.listener import Address
from proxy.net.poller import Poller
from proxy.net.stream import Stream
from proxy.net.tls import Credentials
from proxy.rpc.connection import CANCEL, Engine, Inbox, RpcConnection
from proxy.rpc.frames import frame
from proxy.wire.events import (
    DataReceived,
    Event,
    GoAwayReceived,
    Headers,
    RequestHead,
    ResponseReceived,
    StreamReset,
    TrailersReceived,
)
from proxy.wire.grpc import decode_message, http_to_grpc, parse_grpc_status, render_grpc_timeout
from proxy.wire.http2 import NgClient
from proxy.wire.limits import WireLimits

MAX_REPLY: Final = 4 * 1024 * 1024  # bytes, the default of other gRPC clients
_PING_AFTER: Final = 30.0  # seconds without a byte while calls are open: as for upstreams (F-19)
_PING_WAIT: Final = 10.0


@asynccontextmanager
async def open_channel(
    address: Address,
    *,
    poller: Poller | None = None,
    credentials: Credentials | None = None,
    expect: frozenset[str] = frozenset(),
    timeout: float = 10.0,
    max_reply: int = MAX_REPLY,
) -> AsyncIterator[Channel]:
    """A connected channel, closed at the end. ``credentials`` and ``expect`` (SPIFFE IDs, one of which the server
    must have) for TLS; a Unix socket needs neither. Without ``poller`` one runs for this channel alone.

    Raises RpcError UNAVAILABLE when there is no connection after ``timeout`` seconds."""
    if poller is not None:
        channel = await _connect(poller, address, credentials, expect, timeout, max_reply)
        try:
            yield channel
        finally:
            channel.shut()
        return
    own = Poller(linger=0.0)
    problem: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(own.serve)
            try:
                async with open_channel(
                    address,
                    poller=own,
                    credentials=credentials,
                    expect=expect,
                    timeout=timeout,
                    max_reply=max_reply,
                ) as channel:
                    yield channel
            except Exception as error:
                problem = error  # raised below: the nursery would wrap it in a group
            own.flush()  # the goodbye
            nursery.cancel_scope.cancel()
    finally:
        own.close()
    if problem is not None:
        raise problem


async def _connect(
    poller: Poller,
    address: Address,
    credentials: Credentials | None,
    expect: frozenset[str],
    timeout: float,
    max_reply: int,
) -> Channel:
    attempt = _Attempt()
    dial = Dial(
        poller,
        address,
        deadline=poller.now + timeout,
        done=attempt.done,
        failed=attempt.failed,
        credentials=credentials,
        alpn=(b"h2",),
        expect=expect,
    )
    dial.start()
    try:
        await attempt.over.wait()
    except BaseException:
        dial.cancel()
        attempt.drop()
        raise
    if attempt.stream is None:
        raise RpcError(Status.UNAVAILABLE, f"{address}: {attempt.problem}")
    return Channel(attempt.stream, address, attempt.peer, max_reply)


class _Attempt:
    """How a dial went."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.stream: Stream | None = None
        self.peer: PeerIdentity | None = None
        self.problem = ""

    def done(self, stream: Stream, peer: PeerIdentity | None, alpn: str) -> None:
        if peer is not None and alpn != "h2":
            stream.abort()
            self.failed("", "the server does not speak HTTP/2")
            return
        self.stream, self.peer = stream, peer
        self.over.set()

    def failed(self, reason: str, detail: str) -> None:
        self.problem = detail or reason
        self.over.set()

    def drop(self) -> None:
        if self.stream is not None:
            self.stream.abort()


class ClientEngine(Engine, Protocol):
    """The client half."""

    @property
    def can_open(self) -> bool: ...
    def open_stream(self, head: RequestHead, headers: Headers, *, end_stream: bool) -> int: ...


class Channel(RpcConnection):
    """See the module's text. ``peer``: who the server is; None on a Unix socket."""

    engine: ClientEngine

    def __init__(self, stream: Stream, address: Address, peer: PeerIdentity | None, max_reply: int) -> None:
        super().__init__(stream, NgClient(WireLimits()))
        self.peer = peer
        self._max_reply = max_reply
        self._authority = b"localhost" if address.path else str(address).encode()
        self._scheme = b"http" if peer is None else b"https"
        self._calls: dict[int, ClientCall] = {}
        self._why = ""
        self._pinged_at = 0.0
        self.start()
        self.poller.call_at(self.poller.now + _PING_AFTER, self._keep_alive)

    # -- calls ------------------------------------------------------------------------------------------------------

    async def unary(
        self, method: str, request: bytes, *, metadata: Mapping[str, str] | None = None, timeout: float = 10.0
    ) -> bytes:
        """The one reply. Raises RpcError. ``timeout``: seconds, told to the server as well."""
        async with self.bidi(method, metadata=metadata, timeout=timeout) as call:
            await call.send(request)
            call.end()
            replies = [reply async for reply in call]
        if len(replies) != 1:
            raise RpcError(Status.INTERNAL, f"{len(replies)} replies to a call that has one")
        return replies[0]

    @asynccontextmanager
    async def stream(
        self, method: str, request: bytes, *, metadata: Mapping[str, str] | None = None, timeout: float | None = None
    ) -> AsyncIterator[ClientCall]:
        """A call with many replies: iterate over what this gives. Leaving the block ends the call."""
        async with self.bidi(method, metadata=metadata, timeout=timeout) as call:
            await call.send(request)
            call.end()
            yield call

    def bidi(
        self, method: str, *, metadata: Mapping[str, str] | None = None, timeout: float | None = None
    ) -> ClientCall:
        """A call to send on and to iterate over, as an async context manager."""
        return ClientCall(self, method, dict(metadata or {}), timeout, self._max_reply)

    def open(self, call: ClientCall, method: str, headers: Headers) -> int:
        """Used by ``ClientCall``: begin a stream. Raises RpcError UNAVAILABLE."""
        if self.closed or not self.engine.can_open:
            raise RpcError(Status.UNAVAILABLE, self._why or "the connection takes no more calls")
        target = method.encode("ascii")
        head = RequestHead(
            method=b"POST",
            scheme=self._scheme,
            authority=self._authority,
            host=self._authority,
            path=target,
            target=target,
            headers=[],
            version=20,
            length=None,
            te_trailers=True,
        )
        stream_id = self.engine.open_stream(head, headers, end_stream=False)
        self._calls[stream_id] = call
        return stream_id

    def forget(self, stream_id: int, *, reset: bool) -> None:
        """Used by ``ClientCall``: its end."""
        if self._calls.pop(stream_id, None) is not None and reset and not self.closed:
            self.engine.reset(stream_id, CANCEL)
            self.touch()

    # -- events -----------------------------------------------------------------------------------------------------

    def on_data(self, data: bytes) -> None:
        self._pinged_at = 0.0
        super().on_data(data)

    def _handle(self, event: Event) -> None:
        call = self._calls.get(event.stream_id)
        if isinstance(event, GoAwayReceived):
            self._on_goaway(event)
        elif isinstance(event, DataReceived) and call is None:
            self.engine.acknowledge(event.stream_id, event.size)
        elif call is None:
            return
        elif isinstance(event, ResponseReceived):
            call.on_head(event.head.status, event.head.headers, event.end_stream)
        elif isinstance(event, DataReceived):
            call.on_data(event.data, event.size, event.end_stream)
        elif isinstance(event, TrailersReceived):
            call.on_trailers(event.headers)
        elif isinstance(event, StreamReset):
            call.fail(RpcError(Status.UNAVAILABLE, f"the stream was reset: {event.reason}"))

    def _on_goaway(self, event: GoAwayReceived) -> None:
        self._why = "the server is going away"
        for stream_id, call in list(self._calls.items()):
            if stream_id > event.last_stream_id:
                call.fail(RpcError(Status.UNAVAILABLE, self._why))

    def _lost(self, detail: str) -> None:
        self._why = self._why or f"connection lost: {detail}"
        for call in list(self._calls.values()):
            call.fail(RpcError(Status.UNAVAILABLE, self._why))

    def _keep_alive(self) -> None:
        if self.closed:
            return
        now = self.poller.now
        if self._pinged_at and now - self._pinged_at >= _PING_WAIT:
            self.close("no answer to PING", abort=True)
            return
        if self._calls and not self._pinged_at and now - self.last_active >= _PING_AFTER:
            self._pinged_at = now
            self.engine.ping()
            self.touch()
        self.poller.call_at(now + _PING_WAIT, self._keep_alive)

    def shut(self) -> None:
        """Close: open calls end with CANCELLED here, and the server sees them reset."""
        for call in list(self._calls.values()):
            call.fail(RpcError(Status.CANCELLED, "the channel was closed"))
        if not self.closed:
            self.transport.send(self.engine.take())
            self.close("the channel was closed")


class ClientCall:
    """One call, as an async context manager: send on it, iterate over its replies. The end of the iteration is the
    status OK; every other status is raised as RpcError."""

    def __init__(
        self, channel: Channel, method: str, metadata: dict[str, str], timeout: float | None, limit: int
    ) -> None:
        self._channel = channel
        self._method = method
        self._metadata = metadata
        self._timeout = timeout
        self._limit = limit
        self._deadline = float("inf")
        self._stream_id = 0
        self._inbox: Inbox | None = None
        self._over = False  # the server has ended its half
        self._said_all = False  # and we ours

    async def __aenter__(self) -> Self:
        headers: Headers = [(b"content-type", b"application/grpc"), (b"user-agent", b"sidewall")]
        if self._timeout is not None:
            self._deadline = trio.current_time() + self._timeout
            headers.append((b"grpc-timeout", render_grpc_timeout(self._timeout)))
        headers += [(name.encode("ascii"), value.encode()) for name, value in self._metadata.items()]
        self._stream_id = self._channel.open(self, self._method, headers)
        self._inbox = Inbox(self._channel, self._stream_id, self._limit)
        self._channel.touch()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._box.abandon()
        self._channel.forget(self._stream_id, reset=not (self._over and self._said_all))

    @property
    def _box(self) -> Inbox:
        if self._inbox is None:
            raise RuntimeError("a call is used with 'async with'")
        return self._inbox

    async def send(self, message: bytes) -> None:
        """Send a message; waits while the server does not read. After the end of the call it goes nowhere, and the
        status says why. Raises RpcError DEADLINE_EXCEEDED."""
        with trio.CancelScope(deadline=self._deadline) as scope:
            await self._channel.writable(self._stream_id)
        if scope.cancelled_caught:
            raise RpcError(Status.DEADLINE_EXCEEDED, f"{self._method}: no room to send in time")
        if not self._channel.closed:
            self._channel.engine.send_data(self._stream_id, frame(message), False)
            self._channel.touch()

    def end(self) -> None:
        """Say that no more messages will be sent."""
        self._said_all = True
        if not self._channel.closed:
            self._channel.engine.send_data(self._stream_id, b"", True)
            self._channel.touch()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        with trio.CancelScope(deadline=self._deadline):
            return await self._box.__anext__()
        # Only here when the scope has swallowed its own cancellation.
        raise RpcError(Status.DEADLINE_EXCEEDED, f"{self._method}: no answer in {self._timeout:g} s")

    # -- called by the channel --------------------------------------------------------------------------------------

    def on_head(self, status: int, headers: Headers, end: bool) -> None:
        if status != 200:
            self.fail(RpcError(Status(http_to_grpc(status)), f"the server answered HTTP {status}"))
        elif end:
            self.on_trailers(headers)

    def on_data(self, data: bytes, size: int, end: bool) -> None:
        try:
            self._box.feed(data, size, False)
        except RpcError as error:
            self.fail(error)
        if end:
            self.fail(RpcError(Status.INTERNAL, "the stream ended without a status"))

    def on_trailers(self, headers: Headers) -> None:
        self._over = True
        fields = {field[0]: field[1] for field in reversed(headers)}
        code = parse_grpc_status(fields.get(b"grpc-status", b""))
        if code == 0:
            try:
                self._box.end()
            except RpcError as error:
                self._box.fail(error)
            return
        status = Status(code) if code is not None and code <= max(Status) else Status.UNKNOWN
        message = decode_message(fields.get(b"grpc-message", b""))
        self._box.fail(RpcError(status, message or "no grpc-status"))

    def fail(self, error: RpcError) -> None:
        self._box.fail(error)
        self._channel.forget(self._stream_id, reset=not self._over)
        self._over = True
