"""HTTP engines without HTTP: a test says which events one readable byte stands for, and sees what was asked.

One byte on the wire is one batch of events (``inbox``), so a conversation goes through real sockets, the real
poller and the real connections, while its events are chosen by hand. What is written is readable text:
``<head 1 200>``, body bytes as they are, ``<end 1>``.

HTTP/2 bookkeeping is strict: to give back more than was received raises, which costs the connection and is
counted in ``poller.crashes``.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from proxy.wire.events import DataReceived, Event, Headers, RequestHead, RequestReceived, ResponseReceived

MARK = b"."


class FakeEngine:
    """What both sides share. ``window``: body bytes ``take`` may still hand out (HTTP/2), None = any."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.now = 0.0
        self.must_close = False
        self.half_close = False
        self.mid_head = False
        self.wants_read = True
        self.reusable = True
        self.window: int | None = None
        self.inbox: deque[list[Event]] = deque()
        self.at_eof: list[Event] = []
        self.later: deque[list[Event]] = deque()
        self.calls: list[tuple[Any, ...]] = []
        self.given: Counter[int] = Counter()
        self.taken_back: Counter[int] = Counter()
        self.open: set[int] = set()
        self._out: list[bytes] = []
        self._bodies: dict[int, bytearray] = {}
        self._ends: dict[int, bytes] = {}

    # -- bytes in

    def receive(self, data: bytes) -> list[Event]:
        return self._note([event for _ in data for event in (self.inbox.popleft() if self.inbox else [])])

    def receive_eof(self) -> list[Event]:
        return self._note(self.at_eof)

    def resume(self) -> list[Event]:
        self.calls.append(("resume",))
        return self._note(self.later.popleft()) if self.later and not self.open else []

    def _note(self, events: list[Event]) -> list[Event]:
        for event in events:
            if isinstance(event, DataReceived):
                self.given[event.stream_id] += event.size
            if isinstance(event, RequestReceived):
                self.open.add(event.stream_id)
        return events

    def acknowledge(self, stream_id: int, n: int) -> None:
        self.taken_back[stream_id] += n
        if self.taken_back[stream_id] > self.given[stream_id]:
            raise ValueError(f"stream {stream_id}: more given back than received")

    @property
    def owed(self) -> int:
        """Bytes of window that were not given back."""
        return self.given.total() - self.taken_back.total()

    # -- bytes out

    def put(self, *words: object) -> None:
        self.calls.append(words)
        self._out.append(f"<{' '.join(map(str, words))}>".encode())

    def take(self) -> bytes:
        out = b"".join(self._out)
        self._out.clear()
        for stream_id in list(self._bodies):
            out += self._take_body(stream_id)
        return out

    def _take_body(self, stream_id: int) -> bytes:
        body = self._bodies[stream_id]
        size = len(body) if self.window is None else min(self.window, len(body))
        out = bytes(body[:size])
        del body[:size]
        if self.window is not None:
            self.window -= size
        if not body and stream_id in self._ends:
            del self._bodies[stream_id]
            out += self._ends.pop(stream_id)
            self.ended(stream_id)
        return out

    def queued(self, stream_id: int) -> int:
        return sum(map(len, self._bodies.values())) if not stream_id else len(self._bodies.get(stream_id, b""))

    def send_data(self, stream_id: int, data: bytes, end_stream: bool) -> None:
        self.calls.append(("data", stream_id, len(data), end_stream))
        self._bodies.setdefault(stream_id, bytearray()).extend(data)
        if end_stream:
            self._finish(stream_id, b"<end %d>" % stream_id)

    def _finish(self, stream_id: int, words: bytes) -> None:
        self._ends[stream_id] = words
        if self.version != 20:
            self.ended(stream_id)  # HTTP/1.1 is through with it; HTTP/2 when the last frame is taken

    def send_trailers(self, stream_id: int, headers: Headers) -> None:
        self.calls.append(("trailers", stream_id))
        self._bodies.setdefault(stream_id, bytearray())
        self._finish(stream_id, b"<trailers %d>" % stream_id)

    def reset(self, stream_id: int, code: int = 0x8) -> None:
        self._bodies.pop(stream_id, None)
        self._ends.pop(stream_id, None)
        self.ended(stream_id)
        if self.version == 20:
            self.put("reset", stream_id, code)
        else:
            self.calls.append(("reset", stream_id, code))
            self.must_close = True
            self.reusable = False

    def ended(self, stream_id: int) -> None:
        self.open.discard(stream_id)

    def release(self, stream_id: int) -> None:
        self.calls.append(("release", stream_id))

    # -- the connection

    def start(self) -> None:
        self.calls.append(("start",))

    def shut_down(self) -> None:
        if self.version == 20:
            self.put("goaway", "soon")
        else:
            self.calls.append(("shut_down",))
            self.reusable = False

    def finish(self) -> None:
        if self.version == 20:
            self.put("goaway", "last")

    def fail(self, code: int, reason: str) -> None:
        self.put("fail", code, reason)
        self.must_close = True

    def ping(self) -> None:
        self.put("ping")

    @property
    def is_idle(self) -> bool:
        return not self.open

    @property
    def open_streams(self) -> int:
        return len(self.open)

    def called(self, name: str) -> list[tuple[Any, ...]]:
        """The calls of this name."""
        return [call for call in self.calls if call[0] == name]


class FakeServer(FakeEngine):
    """Towards a caller."""

    def __init__(self, version: int = 20) -> None:
        super().__init__(version)
        self.closing = False

    def shut_down(self) -> None:
        super().shut_down()
        self.closing = True

    def ended(self, stream_id: int) -> None:
        super().ended(stream_id)
        if self.version != 20 and self.closing:
            self.must_close = True

    def send_informational(self, stream_id: int, status: int, headers: Headers) -> None:
        self.put("interim", stream_id, status)

    def send_response(
        self, stream_id: int, status: int, headers: Headers, *, length: int | None, end_stream: bool
    ) -> None:
        self.put("head", stream_id, status)
        if end_stream:
            self._out.append(b"<end %d>" % stream_id)
            self.ended(stream_id)


class FakeClient(FakeEngine):
    """Towards an upstream. ``room``: how many streams may be open at once."""

    def __init__(self, version: int = 20, room: int = 100) -> None:
        super().__init__(version)
        self.room = room if version == 20 else 1
        self.heads: list[RequestHead] = []
        self.refuse_open = False
        self._given_up: set[int] = set()

    @property
    def can_open(self) -> bool:
        return not self.must_close and self.reusable and len(self.open) < self.room

    def open_stream(self, head: RequestHead, headers: Headers, *, end_stream: bool) -> int:
        if self.refuse_open:
            raise ValueError("cannot open")
        self.heads.append(head)
        stream_id = len(self.heads) * 2 - 1 if self.version == 20 else len(self.heads)
        self.open.add(stream_id)
        self.put("open", stream_id, head.path.decode())
        if end_stream:
            self._out.append(b"<end %d>" % stream_id)
        return stream_id

    def ended(self, stream_id: int) -> None:
        """Writing the request's end ends nothing here: the answer does (``answered``)."""

    def reset(self, stream_id: int, code: int = 0x8) -> None:
        super().reset(stream_id, code)
        self._given_up.add(stream_id)

    def take(self) -> bytes:
        self.open -= self._given_up  # a stream that was reset counts until its RST_STREAM has left
        self._given_up.clear()
        return super().take()

    def _note(self, events: list[Event]) -> list[Event]:
        for event in events:
            if isinstance(event, ResponseReceived) and event.head.upgrade is not None:
                self.reusable = False
            if getattr(event, "end_stream", False) or type(event).__name__ in ("TrailersReceived", "StreamReset"):
                self.open.discard(event.stream_id)
        return super()._note(events)
