"""An app that is never the bottleneck: it answers every request with bytes prepared beforehand.

    python -m benchmarks.canned PORT unary|stream|sink

`unary` and `stream` are gRPC over plaintext HTTP/2: head, one message (or MESSAGES of them), trailers
with `grpc-status: 0`. A grpcio server costs several times what the proxies under test cost, and would set
the pace. `sink` reads a request body to its end and answers 200, over HTTP/2 or HTTP/1.1.

It is fast because it decodes nothing. Only the nine bytes before each HTTP/2 frame are looked at; header
blocks are skipped, and our own are written without the dynamic table (RFC 7541 section 6.2.2), so that no
state of either compressor matters. It keeps the rules that a peer can notice: SETTINGS and PING are
acknowledged, and flow control is honoured in both directions (RFC 9113 section 5.2).

A streamed call sends one message per turn of the event loop, so that messages arrive at the proxy one by
one and interleaved with those of other calls. Sending them in one piece would measure a big body, not a
stream.
"""

from __future__ import annotations

import selectors
import socket
import struct
import sys

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
BIG_WINDOW = 2**31 - 1
READ = 256 * 1024

MESSAGE = b'{"item":"bolt-m8","on_hand":1200,"reserved":31,"site":"north"}'  # about a small protobuf
MESSAGES = 20  # of a streamed call


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">HBBBI", len(payload) >> 8, len(payload) & 255, kind, flags, stream) + payload


def _text(value: bytes) -> bytes:
    return bytes([len(value)]) + value


HEAD_GRPC = b"\x88" + b"\x0f\x10" + _text(b"application/grpc")  # :status 200; content-type is entry 31
HEAD_PLAIN = b"\x88" + b"\x0f\x0d" + _text(b"0")  # content-length is entry 28
TRAILERS = b"\x00" + _text(b"grpc-status") + _text(b"0")
GRPC_MESSAGE = struct.pack(">BI", 0, len(MESSAGE)) + MESSAGE
PLAIN_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


class Http2:
    """The server side of one connection: bytes in, bytes out, and calls that still owe messages."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.rest = b""
        self.skip_preface = len(PREFACE)
        self.window = 65535  # what we may still send on the connection
        self.first_window = 65535  # what a new stream may send
        self.windows: dict[int, int] = {}  # of calls under way
        self.owed: dict[int, int] = {}  # messages not yet sent, by stream
        self.taken = 0  # body bytes read since the last connection WINDOW_UPDATE
        settings = struct.pack(">HIHI", 3, 1000, 4, BIG_WINDOW)
        self.out = [
            frame(SETTINGS, 0, 0, settings),
            frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", BIG_WINDOW - 65535)),
        ]

    def receive(self, data: bytes) -> None:
        data = self.rest + data if self.rest else data
        at, end = self.skip_preface, len(data)
        while end - at >= 9:
            size = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            if end - at - 9 < size:
                break
            stream = int.from_bytes(data[at + 5 : at + 9], "big") & BIG_WINDOW
            self._frame(data[at + 3], data[at + 4], stream, data, at + 9, size)
            at += 9 + size
        if at <= end:
            self.skip_preface, self.rest = 0, data[at:]
        else:
            self.rest = data

    def _frame(self, kind: int, flags: int, stream: int, data: bytes, at: int, size: int) -> None:
        if kind == DATA:
            self._give_back(size)
        if kind in (DATA, HEADERS):
            if flags & END_STREAM:
                self._answer(stream)
        elif kind == WINDOW_UPDATE:
            self._widen(stream, int.from_bytes(data[at : at + 4], "big") & BIG_WINDOW)
        elif kind == SETTINGS and not flags & ACK:
            self._settings(data[at : at + size])
        elif kind == PING and not flags & ACK:
            self.out.append(frame(PING, ACK, 0, data[at : at + size]))
        elif kind == RST_STREAM:
            self.owed.pop(stream, None)
            self.windows.pop(stream, None)

    def _give_back(self, size: int) -> None:
        self.taken += size
        if self.taken > 2**29:
            self.out.append(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self.taken)))
            self.taken = 0

    def _widen(self, stream: int, by: int) -> None:
        if stream == 0:
            self.window += by
        elif stream in self.windows:
            self.windows[stream] += by

    def _settings(self, payload: bytes) -> None:
        for key, value in struct.iter_unpack(">HI", payload):
            if key == 4:
                for stream in self.windows:
                    self.windows[stream] += value - self.first_window
                self.first_window = value
        self.out.append(frame(SETTINGS, ACK, 0, b""))

    def _answer(self, stream: int) -> None:
        if self.mode == "sink":
            self.out.append(frame(HEADERS, END_HEADERS | END_STREAM, stream, HEAD_PLAIN))
            return
        self.out.append(frame(HEADERS, END_HEADERS, stream, HEAD_GRPC))
        self.owed[stream] = 1 if self.mode == "unary" else MESSAGES
        self.windows[stream] = self.first_window

    def send_owed(self) -> None:
        """One message for every call that has one and whose windows are open; trailers after the last."""
        size = len(GRPC_MESSAGE)
        for stream in list(self.owed):
            if self.window < size or self.windows[stream] < size:
                continue
            self.window -= size
            self.windows[stream] -= size
            self.out.append(frame(DATA, 0, stream, GRPC_MESSAGE))
            self.owed[stream] -= 1
            if not self.owed[stream]:
                self.out.append(frame(HEADERS, END_HEADERS | END_STREAM, stream, TRAILERS))
                del self.owed[stream], self.windows[stream]

    @property
    def can_send(self) -> bool:
        size = len(GRPC_MESSAGE)
        return self.window >= size and any(self.windows[stream] >= size for stream in self.owed)


class Http1Sink:
    """Reads one request after the other and answers each when its body is complete."""

    can_send = False

    def __init__(self) -> None:
        self.out: list[bytes] = []
        self.head = b""
        self.left = 0  # body bytes still to come; -1 while a chunked body runs
        self.tail = b""

    def receive(self, data: bytes) -> None:
        if self.left > 0:
            self._body(data)
            return
        if self.left < 0:
            self._chunked(data)
            return
        self.head += data
        head, blank, body = self.head.partition(b"\r\n\r\n")
        if blank:
            self.head = b""
            self._begin(head.lower(), body)

    def _begin(self, head: bytes, body: bytes) -> None:
        if b"transfer-encoding: chunked" in head:
            self.left, self.tail = -1, b""
            self._chunked(body)
            return
        _, _, value = head.partition(b"\r\ncontent-length:")
        self.left = int(value.split(b"\r\n", 1)[0] or b"0")
        if self.left == 0:
            self.out.append(PLAIN_ANSWER)
        elif body:
            self._body(body)

    def _body(self, data: bytes) -> None:
        self.left -= len(data)
        if self.left <= 0:
            self.left = 0
            self.out.append(PLAIN_ANSWER)

    def _chunked(self, data: bytes) -> None:
        """The uploaded file holds zero bytes only, so the text of the last chunk cannot occur inside."""
        self.tail = (self.tail + data)[-5:]
        if self.tail == b"0\r\n\r\n":
            self.left = 0
            self.out.append(PLAIN_ANSWER)

    def send_owed(self) -> None:
        return


class Connection:
    def __init__(self, sock: socket.socket, mode: str) -> None:
        self.sock = sock
        self.mode = mode
        self.talk: Http2 | Http1Sink | None = None
        self.unsent = b""

    def read(self) -> bool:
        """False when the peer is gone."""
        try:
            data = self.sock.recv(READ)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        if self.talk is None:
            self.talk = Http2(self.mode) if data[:3] == PREFACE[:3] else Http1Sink()
        self.talk.receive(data)
        return True

    def flush(self) -> bool:
        """Write what is prepared. True when nothing is left over."""
        if self.talk and self.talk.out:
            self.unsent += b"".join(self.talk.out)
            self.talk.out.clear()
        if self.unsent:
            try:
                self.unsent = self.unsent[self.sock.send(self.unsent) :]
            except BlockingIOError:
                pass
            except OSError:
                self.unsent = b""
        return not self.unsent


def serve(port: int, mode: str) -> None:
    """Run until killed."""
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    listener.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    sending: set[Connection] = set()  # connections with a call that still owes messages
    while True:
        for key, events in selector.select(0 if sending else None):
            if key.data is None:
                _accept(listener, selector, mode)
                continue
            connection: Connection = key.data
            if events & selectors.EVENT_READ and not connection.read():
                selector.unregister(connection.sock)
                connection.sock.close()
                sending.discard(connection)
                continue
            _turn(connection, selector, sending)
        for connection in list(sending):
            _turn(connection, selector, sending)


def _accept(listener: socket.socket, selector: selectors.BaseSelector, mode: str) -> None:
    try:
        sock, _ = listener.accept()
    except OSError:
        return
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    selector.register(sock, selectors.EVENT_READ, Connection(sock, mode))


def _turn(connection: Connection, selector: selectors.BaseSelector, sending: set[Connection]) -> None:
    if connection.talk:
        connection.talk.send_owed()
    written = connection.flush()
    wanted = selectors.EVENT_READ if written else selectors.EVENT_READ | selectors.EVENT_WRITE
    if selector.get_key(connection.sock).events != wanted:
        selector.modify(connection.sock, wanted, connection)
    if written and connection.talk and connection.talk.can_send:
        sending.add(connection)
    else:
        sending.discard(connection)


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])
