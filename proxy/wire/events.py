"""What an HTTP engine tells its owner. The same words for HTTP/1.1 and HTTP/2, for both roles.

Names of headers are lower-case bytes; values are bytes without surrounding white space. An engine emits a
head only after it has been validated (``proxy/wire/validate.py``): what reaches the owner can be judged and
forwarded as it is. HTTP/1.1 connections use stream id 1, 2, 3, ... one per exchange.
"""

from __future__ import annotations

# A name and its value. Not ``tuple[bytes, bytes]``: the compiled build takes such pairs apart and puts new ones
# together, which costs time and loses the mark of a field that must not be indexed (``ngh2.NeverIndexed``).
Field = tuple[bytes, ...]
Headers = list[Field]


class RequestHead:
    """One validated request head, in canonical form: judged, logged and forwarded from this one object.

    ``path`` is the canonical path without query; ``target`` is path plus query exactly as it will be
    forwarded. ``host`` is ``authority`` lower-cased without port and trailing dot (S-24). ``headers`` holds
    end-to-end fields only: no host, no hop-by-hop field, no framing field (content-length, transfer-encoding),
    nothing that only we may set (``IDENTITY_HEADERS``).
    ``length`` is the announced body length, None when unknown, 0 when there is no body.
    """

    __slots__ = (
        "authority",
        "expects_continue",
        "headers",
        "host",
        "is_grpc",
        "keep_alive",
        "length",
        "method",
        "path",
        "scheme",
        "target",
        "te_trailers",
        "upgrade",
        "version",
    )

    def __init__(
        self,
        *,
        method: bytes,
        scheme: bytes,
        authority: bytes,
        host: bytes,
        path: bytes,
        target: bytes,
        headers: Headers,
        version: int,
        length: int | None,
        keep_alive: bool = True,
        expects_continue: bool = False,
        upgrade: bytes | None = None,
        is_grpc: bool = False,
        te_trailers: bool = False,
    ) -> None:
        self.method = method
        self.scheme = scheme
        self.authority = authority
        self.host = host
        self.path = path
        self.target = target
        self.headers = headers
        self.version = version  # 10, 11 or 20
        self.length = length
        self.keep_alive = keep_alive
        self.expects_continue = expects_continue
        self.upgrade = upgrade  # b"websocket" after all handshake checks of S-30, else None
        self.is_grpc = is_grpc
        self.te_trailers = te_trailers

    def __repr__(self) -> str:
        return f"<RequestHead {self.method!r} {self.target!r} host={self.host!r} v{self.version}>"


class ResponseHead:
    """One validated final response head. ``headers`` as in ``RequestHead``; ``length`` None when unknown."""

    __slots__ = ("headers", "length", "status", "upgrade")

    def __init__(
        self, status: int, headers: Headers, *, length: int | None = None, upgrade: bytes | None = None
    ) -> None:
        self.status = status
        self.headers = headers
        self.length = length
        self.upgrade = upgrade

    def __repr__(self) -> str:
        return f"<ResponseHead {self.status} length={self.length}>"


class Event:
    __slots__ = ("stream_id",)
    stream_id: int

    def __repr__(self) -> str:
        names = [n for c in type(self).__mro__ for n in getattr(c, "__slots__", ())]
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in names)})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and repr(self) == repr(other)

    __hash__ = None  # type: ignore[assignment]


class RequestReceived(Event):
    __slots__ = ("end_stream", "head")

    def __init__(self, stream_id: int, head: RequestHead, end_stream: bool) -> None:
        self.stream_id = stream_id
        self.head = head
        self.end_stream = end_stream


class RequestRefused(Event):
    """The request (or its body) was malformed; nothing of it may reach the app.

    The engine has already stopped reading (HTTP/1.1) or reset the stream (HTTP/2). For HTTP/1.1 the owner
    must answer with the status of ``reason`` and close, if the response head has not been sent.
    ``opened`` is True when RequestReceived was emitted for this stream before: its exchange must be aborted.
    ``answerable`` is True when an HTTP/2 stream was left open for an answer (431, 405, ...): the owner gives one
    with ``send_response``, and the engine then resets what is left of the request (NO_ERROR).
    """

    __slots__ = ("answerable", "detail", "opened", "reason")

    def __init__(self, stream_id: int, reason: str, detail: str = "", opened: bool = False) -> None:
        self.stream_id = stream_id
        self.reason = reason
        self.detail = detail
        self.opened = opened
        self.answerable = False


class ResponseReceived(Event):
    __slots__ = ("end_stream", "head")

    def __init__(self, stream_id: int, head: ResponseHead, end_stream: bool) -> None:
        self.stream_id = stream_id
        self.head = head
        self.end_stream = end_stream


class InformationalReceived(Event):
    """A 1xx answer other than 101. 100 (Continue) is reported too."""

    __slots__ = ("headers", "status")

    def __init__(self, stream_id: int, status: int, headers: Headers) -> None:
        self.stream_id = stream_id
        self.status = status
        self.headers = headers


class DataReceived(Event):
    """Body bytes. ``size`` is what must be given back with ``acknowledge`` once the other side took them."""

    __slots__ = ("data", "end_stream", "size")

    def __init__(self, stream_id: int, data: bytes, end_stream: bool, size: int | None = None) -> None:
        self.stream_id = stream_id
        self.data = data
        self.end_stream = end_stream
        self.size = len(data) if size is None else size


class TrailersReceived(Event):
    """Trailer fields, already filtered (S-8, RFC 9110 6.5.1). Always ends the stream."""

    __slots__ = ("headers",)

    def __init__(self, stream_id: int, headers: Headers) -> None:
        self.stream_id = stream_id
        self.headers = headers


class StreamReset(Event):
    """The peer reset the stream, or the engine reset it because the peer broke the protocol on it.

    ``by_peer`` tells which; ``reason`` is a word of ``proxy.errors.REASONS``.
    """

    __slots__ = ("by_peer", "code", "reason")

    def __init__(self, stream_id: int, code: int, *, by_peer: bool = True, reason: str = "") -> None:
        self.stream_id = stream_id
        self.code = code
        self.by_peer = by_peer
        self.reason = reason or ("downstream_reset" if by_peer else "frame_error")


class StreamDrained(Event):
    """The peer opened its window: bytes queued for this stream (0 = any stream) may have shrunk."""

    __slots__ = ()

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id


class GoAwayReceived(Event):
    """The peer will process no stream above ``last_stream_id``; those were not processed at all."""

    __slots__ = ("code", "last_stream_id")

    def __init__(self, last_stream_id: int, code: int) -> None:
        self.stream_id = 0
        self.last_stream_id = last_stream_id
        self.code = code


class PingAcknowledged(Event):
    __slots__ = ()

    def __init__(self) -> None:
        self.stream_id = 0


class ConnectionEnded(Event):
    """No more bytes can be exchanged: flush ``take()`` and close. ``reason`` is "" after a clean end."""

    __slots__ = ("detail", "reason")

    def __init__(self, reason: str = "", detail: str = "") -> None:
        self.stream_id = 0
        self.reason = reason
        self.detail = detail
