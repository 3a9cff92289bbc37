"""Plays one conformance case against a server engine, in memory, and says in a word what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hyperframe.frame import DataFrame, HeadersFrame, PingFrame, SettingsFrame

from proxy.wire.events import DataReceived, RequestReceived, TrailersReceived
from proxy.wire.limits import WireLimits
from tests.support import h2_frames as h2

BODY = b"0123456789"  # what every complete request is answered with

# Outcomes: a word, with the code of the error in brackets.
ANSWERED, PONG, SETTLED, CLOSED, IGNORED = "answered", "pong", "settings acknowledged", "closed", "ignored"


def rst(code: int) -> str:
    return f"RST_STREAM({code})"


def goaway(code: int) -> str:
    return f"GOAWAY({code})"


@dataclass(frozen=True)
class Case:
    """``steps`` are sent one after the other; between them complete requests are answered unless ``mute``.

    ``name`` is h2spec's group, section and number. ``outcomes`` are those that RFC 9113 or 7541 allows.
    """

    name: str
    title: str
    steps: Sequence[bytes]
    outcomes: tuple[str, ...]
    stream: int = 1
    mute: bool = False
    hello: bytes = h2.HELLO + h2.settings(ack=True)


class Play:
    """One server engine with an owner that answers."""

    def __init__(self, made: Any, case: Case) -> None:
        self.case = case
        self.engine = made(WireLimits())
        self.reader = h2.Reader()
        self.frames: list[Any] = []
        self.engine.start()
        self.reader.feed(self.engine.take())

    def run(self, *, bytewise: bool) -> str:
        self.send(self.case.hello, bytewise)
        self.frames.clear()
        for step in self.case.steps:
            self.send(step, bytewise)
        return self.outcome()

    def send(self, data: bytes, bytewise: bool) -> None:
        size = 1 if bytewise else len(data) or 1
        events = []
        for place in range(0, len(data), size):
            events += self.engine.receive(data[place : place + size])
        for event in events:
            ended = isinstance(event, TrailersReceived) or getattr(event, "end_stream", False)
            if isinstance(event, DataReceived):
                self.engine.acknowledge(event.stream_id, event.size)
            if ended and not self.case.mute:
                self.answer(event.stream_id)
            elif isinstance(event, RequestReceived):
                assert event.head.path
        self.frames += self.reader.feed(self.engine.take())

    def answer(self, stream_id: int) -> None:
        self.engine.send_response(stream_id, 200, [], length=len(BODY), end_stream=False)
        self.engine.send_data(stream_id, BODY, True)
        self.engine.release(stream_id)

    def outcome(self) -> str:
        """The first of: connection error, stream error, what the case asked for, silence."""
        errors = [code for code in self.reader.goaways() if code]
        if errors:
            assert self.engine.must_close
            return goaway(errors[0])
        resets = [code for code in self.reader.resets(self.case.stream) if code]
        if resets:
            assert not self.engine.must_close
            return rst(resets[0])
        return self.good_outcome()

    def good_outcome(self) -> str:
        for frame in self.frames:
            if isinstance(frame, PingFrame) and "ACK" in frame.flags:
                return f"{PONG} {frame.opaque_data.decode()}"
        data = [f for f in self.frames if isinstance(f, DataFrame) and f.stream_id == self.case.stream]
        if data and len(data[0].data) != len(BODY):
            return f"{len(data[0].data)} bytes"
        if any(isinstance(f, HeadersFrame) and f.stream_id == self.case.stream for f in self.frames):
            return ANSWERED
        if self.engine.must_close:
            return CLOSED
        if any(isinstance(f, SettingsFrame) and "ACK" in f.flags for f in self.frames):
            return SETTLED
        return IGNORED
