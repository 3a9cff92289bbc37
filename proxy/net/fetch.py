"""One small document over HTTP(S): for key sets and what points to them, never for traffic.

``fetch`` is careful rather than complete: GET only, one request a connection, a bound on bytes and time, the system's
trust store (or SSL_CERT_FILE) and the host's name checked for https, the answer read by the same strict engine as
those of apps. A redirect is followed within the same scheme, host and port only, so that whoever may write one cannot
choose whose keys are believed. Proxies named in the environment are not used.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urljoin, urlsplit

import trio

from proxy.version import VERSION
from proxy.wire.events import DataReceived, Event, Headers, RequestHead, ResponseReceived
from proxy.wire.http1_client import Http1Client
from proxy.wire.limits import WireLimits

_MOST_REDIRECTS: Final = 3
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_READ: Final = 64 * 1024
_PORTS: Final = {"https": 443, "http": 80}


class FetchFailed(Exception):
    """The document could not be had. The text says why, for operators; it never quotes the document."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Headers
    body: bytes


async def fetch(uri: str, *, timeout: float, most: int, trust: ssl.SSLContext | None = None) -> bytes:
    """The body of a 200 answer. ``timeout``: seconds for all of it, redirects included; ``most``: bytes. ``trust``:
    whose certificates are believed, by default those that the system believes. Raises FetchFailed."""
    try:
        with trio.fail_after(timeout):
            return await _follow(uri, most, trust)
    except trio.TooSlowError:
        raise FetchFailed(f"no answer within {timeout:g} s") from None
    except ssl.SSLError as error:
        raise FetchFailed(f"TLS: {error.reason or error}") from None
    except trio.BrokenResourceError as error:
        raise FetchFailed(_cause(error)) from None
    except OSError as error:
        raise FetchFailed(error.strerror or str(error)) from None


async def _follow(uri: str, most: int, trust: ssl.SSLContext | None) -> bytes:
    for _ in range(_MOST_REDIRECTS + 1):
        parts = urlsplit(uri)
        answer = await _get(parts, most, trust)
        if answer.status == 200:
            return answer.body
        if answer.status not in _REDIRECTS:
            raise FetchFailed(f"the answer was {answer.status}")
        location = next((value for name, value in answer.headers if name == b"location"), b"")
        uri = urljoin(uri, location.decode("latin-1"))
        if _origin(urlsplit(uri)) != _origin(parts):
            raise FetchFailed("it redirects to another place: name that place if it is meant")
    raise FetchFailed("too many redirects")


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    try:
        return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        raise FetchFailed("it redirects to no address") from None


async def _get(parts: SplitResult, most: int, trust: ssl.SSLContext | None) -> _Answer:
    scheme, host, port = _origin(parts)
    if host is None or port is None:
        raise FetchFailed("not an http(s) URL")
    stream = await _connect(scheme, host, port, trust)
    try:
        engine = Http1Client(WireLimits())
        engine.open_stream(_head(parts), _HEADERS, end_stream=True)
        await stream.send_all(engine.take())
        return await _read(stream, engine, most)
    except ValueError:
        raise FetchFailed("the URL cannot be asked for") from None
    finally:
        await trio.aclose_forcefully(stream)


async def _connect(scheme: str, host: str, port: int, trust: ssl.SSLContext | None) -> trio.abc.Stream:
    stream = await trio.open_tcp_stream(host, port)
    if scheme != "https":
        return stream
    context = trust if trust is not None else await trio.to_thread.run_sync(ssl.create_default_context)
    secured = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
    try:
        await secured.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return secured


_HEADERS: Final[Headers] = [
    (b"accept", b"application/json"),
    (b"accept-encoding", b"identity"),
    (b"user-agent", f"sidewall/{VERSION}".encode()),
]


def _head(parts: SplitResult) -> RequestHead:
    path = (parts.path or "/").encode("ascii")
    target = path + b"?" + parts.query.encode("ascii") if parts.query else path
    authority = parts.netloc.encode("ascii")
    return RequestHead(
        method=b"GET",
        scheme=parts.scheme.encode("ascii"),
        authority=authority,
        host=authority.lower(),
        path=path,
        target=target,
        headers=[],
        version=11,
        length=0,
    )


async def _read(stream: trio.abc.Stream, engine: Http1Client, most: int) -> _Answer:
    status = 0
    headers: Headers = []
    body = bytearray()
    while True:
        data = await stream.receive_some(_READ)
        events: list[Event] = engine.receive(bytes(data)) if data else engine.receive_eof()
        for event in events:
            if isinstance(event, ResponseReceived):
                status, headers = event.head.status, event.head.headers
                if event.end_stream:
                    return _Answer(status, headers, b"")
            elif isinstance(event, DataReceived):
                body += event.data
                if len(body) > most:
                    raise FetchFailed(f"the answer is longer than {most} bytes")
                if event.end_stream:
                    return _Answer(status, headers, bytes(body))
        if not data or engine.fault:
            raise FetchFailed(f"the answer is not sound HTTP: {engine.fault or 'it was cut off'}")


def _cause(error: BaseException) -> str:
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"TLS: the certificate is not trusted: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return f"TLS: {cause.reason or 'failed'}"
    return "the connection was lost"
