"""As little gRPC as the demo needs: calls and a server over h2c with the ``h2`` package, blocking, in threads.

Messages are JSON (``application/grpc+json``), so nothing is generated from a schema and nothing to install.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError

Pairs = Sequence[tuple[str, str]]
Message = dict[str, Any]
Handler = Callable[[Message], Iterable[Message]]

_PIECE: Final = 64 * 1024
_UNIMPLEMENTED: Final = "12"


def pack(message: Message) -> bytes:
    """One message with gRPC's five-byte prefix."""
    body = json.dumps(message).encode()
    return b"\0" + len(body).to_bytes(4, "big") + body


def unpack(data: bytes) -> list[Message]:
    """All whole messages in ``data``."""
    messages = []
    while len(data) >= 5:
        size = 5 + int.from_bytes(data[1:5], "big")
        messages.append(json.loads(data[5:size]))
        data = data[size:]
    return messages


def _text(headers: Any) -> dict[str, str]:
    return {_plain(name): _plain(value) for name, value in headers or ()}


def _plain(value: bytes | str) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


# -- calling ------------------------------------------------------------------------------------------------


@dataclass
class Reply:
    """What came back: ``status`` is the gRPC status, -1 when there was none."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False

    @property
    def status(self) -> int:
        return int(self.headers.get("grpc-status", "-1"))

    @property
    def messages(self) -> list[Message]:
        return unpack(bytes(self.body))


def call(port: int, method: str, message: Message, headers: Pairs = (), timeout: float = 5.0) -> Reply:
    """One call on a connection of its own. Raises OSError and h2's ProtocolError."""
    connection = H2Connection(H2Configuration(client_side=True))
    connection.initiate_connection()
    stream_id = connection.get_next_available_stream_id()
    connection.send_headers(stream_id, _request(port, method, headers))
    connection.send_data(stream_id, pack(message), end_stream=True)
    with socket.create_connection(("127.0.0.1", port), timeout) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _read_reply(sock, connection)


def _request(port: int, method: str, headers: Pairs) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", f"127.0.0.1:{port}"),
        (":path", method),
        ("content-type", "application/grpc+json"),
        ("te", "trailers"),
        *headers,
    ]


def _read_reply(sock: socket.socket, connection: H2Connection) -> Reply:
    reply = Reply()
    while not reply.ended:
        sock.sendall(connection.data_to_send())
        data = sock.recv(_PIECE)
        if not data:
            raise ConnectionError("the connection ended before the call did")
        for event in connection.receive_data(data):
            _note(reply, event, connection)
    return reply


def _note(reply: Reply, event: Event, connection: H2Connection) -> None:
    if isinstance(event, ResponseReceived | TrailersReceived):
        reply.headers.update(_text(event.headers))
    elif isinstance(event, DataReceived):
        reply.body += event.data or b""
        connection.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
    elif isinstance(event, StreamEnded | StreamReset | ConnectionTerminated):
        reply.ended = True


# -- serving ------------------------------------------------------------------------------------------------


class Server:
    """Serves ``handlers`` (by path) on a loopback port, one thread for each connection."""

    def __init__(self, port: int, handlers: dict[str, Handler]) -> None:
        self.handlers = handlers
        self._sock = socket.create_server(("127.0.0.1", port))

    def serve_forever(self) -> None:
        while True:
            sock, _ = self._sock.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            with sock:
                _ServerConnection(sock, self.handlers).run()
        except (OSError, ProtocolError):
            pass


class _ServerConnection:
    def __init__(self, sock: socket.socket, handlers: dict[str, Handler]) -> None:
        self.sock = sock
        self.handlers = handlers
        self.h2 = H2Connection(H2Configuration(client_side=False))
        self.calls: dict[int, tuple[str, bytearray]] = {}

    def run(self) -> None:
        self.h2.initiate_connection()
        self.sock.sendall(self.h2.data_to_send())
        while data := self.sock.recv(_PIECE):
            for event in self.h2.receive_data(data):
                self._on_event(event)
            self.sock.sendall(self.h2.data_to_send())

    def _on_event(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self.calls[event.stream_id or 0] = (_text(event.headers)[":path"], bytearray())
        elif isinstance(event, DataReceived):
            self.calls[event.stream_id or 0][1].extend(event.data or b"")
            self.h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
        elif isinstance(event, StreamEnded):
            self._answer(event.stream_id or 0)
        elif isinstance(event, StreamReset):
            self.calls.pop(event.stream_id or 0, None)

    def _answer(self, stream_id: int) -> None:
        path, body = self.calls.pop(stream_id)
        handler = self.handlers.get(path)
        head = [(":status", "200"), ("content-type", "application/grpc+json")]
        if handler is None:
            self.h2.send_headers(stream_id, [*head, ("grpc-status", _UNIMPLEMENTED)], end_stream=True)
            return
        self.h2.send_headers(stream_id, head)
        for message in handler(unpack(bytes(body))[0]):
            self.h2.send_data(stream_id, pack(message))
            self.sock.sendall(self.h2.data_to_send())
        self.h2.send_headers(stream_id, [("grpc-status", "0")], end_stream=True)
