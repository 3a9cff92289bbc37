"""Bytes -> events -> bytes: what one exchange costs inside each HTTP engine, without socket, TLS or policy.

    python -m benchmarks.engines [--exchanges N] [--rounds N]

The engines are pure, so a connection can be played to them from memory: requests written beforehand by a
client of our own (its HPACK state is followed, as a real connection's would be), a fixed answer to each.
*receive* is bytes to validated events; *answer* is response head, body and the bytes to write. Requests
arrive alone and 32 in one read. Best of the rounds.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hpack

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.canned import (
    BIG_WINDOW,
    DATA,
    END_HEADERS,
    END_STREAM,
    GRPC_MESSAGE,
    HEADERS,
    PREFACE,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)

FIELDS = [
    ("user-agent", "python-httpx/0.28.1"),
    ("accept", "application/json"),
    ("accept-encoding", "gzip, deflate"),
    ("x-request-id", "0b1f8d1e-6a0f-4a57-9d6c-{0:012x}"),
    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e{0:04x}-00f067aa0ba902b7-01"),
]
ANSWER = b'{"order":42,"state":"packed","lines":[{"item":"bolt-m8","n":12}]}'
ANSWER_FIELDS = [
    (b"content-type", b"application/json"),
    (b"date", b"Mon, 23 Nov 2026 11:00:00 GMT"),
    (b"server", b"app"),
]
GRPC_FIELDS = [(b"content-type", b"application/grpc")]
GRPC_TRAILERS = [(b"grpc-status", b"0")]


def _fields(i: int) -> list[tuple[str, str]]:
    return [(name, value.format(i % 65536)) for name, value in FIELDS]


def http1_requests(n: int) -> Iterator[bytes]:
    for i in range(n):
        lines = "".join(f"{name}: {value}\r\n" for name, value in _fields(i))
        yield f"GET /v1/orders/{i} HTTP/1.1\r\nhost: api.shop\r\n{lines}\r\n".encode()


def http2_requests(n: int, *, grpc: bool) -> Iterator[bytes]:
    """A client's half of a connection. The first piece opens it, with windows that never close."""
    settings = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, BIG_WINDOW))
    yield PREFACE + settings + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", BIG_WINDOW - 65535))
    encoder = hpack.Encoder()
    for i in range(n):
        head = [
            (":method", "POST" if grpc else "GET"),
            (":scheme", "https"),
            (":authority", "api.shop"),
            (":path", "/shop.Stock/Reserve" if grpc else f"/v1/orders/{i}"),
            *_fields(i),
            *([("content-type", "application/grpc"), ("te", "trailers")] if grpc else []),
        ]
        block, stream = encoder.encode(head), 2 * i + 1
        yield frame(HEADERS, END_HEADERS | (0 if grpc else END_STREAM), stream, block) + (
            frame(DATA, END_STREAM, stream, GRPC_MESSAGE) if grpc else b""
        )


@dataclass
class Spent:
    """Microseconds per exchange."""

    receive: float
    answer: float


@dataclass(frozen=True)
class Subject:
    """One engine under one kind of request."""

    name: str
    module: str
    engine: str
    requests: Callable[[int], Iterator[bytes]]
    opening: bool  # is the first piece the connection's opening?
    grpc: bool = False
    together: int = 1  # requests in one read; HTTP/1.1 has no use for more: it answers in order


def _subjects() -> Sequence[Subject]:
    plain: list[Subject] = [Subject("http1 GET", "proxy.wire.http1", "Http1Server", http1_requests, opening=False)]
    for engine in ("NgServer", "H2Server"):
        for grpc in (False, True):
            for together in (1, 32):
                name = f"{engine} {'gRPC unary' if grpc else 'GET'}, {together} a read"
                plain.append(
                    Subject(
                        name,
                        "proxy.wire.http2",
                        engine,
                        partial(http2_requests, grpc=grpc),
                        opening=True,
                        grpc=grpc,
                        together=together,
                    )
                )
    return plain


class Player:
    """Plays a recorded client to one engine and answers what it reports."""

    def __init__(self, engine: Any, *, grpc: bool) -> None:
        events = importlib.import_module("proxy.wire.events")
        self.request, self.data = events.RequestReceived, events.DataReceived
        self.refused = (events.RequestRefused, events.ConnectionEnded)
        self.engine = engine
        self.answer = self._answer_grpc if grpc else self._answer
        self.answered = 0

    def react(self, reported: Sequence[Any]) -> None:
        for event in reported:
            kind = type(event)
            if kind is self.request:
                if event.end_stream:
                    self.answer(event.stream_id)
            elif kind is self.data:
                self.engine.acknowledge(event.stream_id, event.size)
                if event.end_stream:
                    self.answer(event.stream_id)
            elif kind in self.refused:
                raise RuntimeError(f"the engine refused: {event!r}")

    def _answer(self, stream: int) -> None:
        self.answered += 1
        engine = self.engine
        engine.send_response(stream, 200, ANSWER_FIELDS, length=len(ANSWER), end_stream=False)
        engine.send_data(stream, ANSWER, True)

    def _answer_grpc(self, stream: int) -> None:
        self.answered += 1
        engine = self.engine
        engine.send_response(stream, 200, GRPC_FIELDS, length=None, end_stream=False)
        engine.send_data(stream, GRPC_MESSAGE, False)
        engine.send_trailers(stream, GRPC_TRAILERS)


def _pieces(subject: Subject, n: int) -> tuple[bytes, list[bytes]]:
    """(opening bytes, one piece per read)."""
    requests = list(subject.requests(n))
    opening = requests.pop(0) if subject.opening else b""
    step = subject.together
    return opening, [b"".join(requests[i : i + step]) for i in range(0, len(requests), step)]


def play(subject: Subject, n: int) -> Spent:
    """One connection with ``n`` exchanges through a new engine."""
    limits = importlib.import_module("proxy.wire.limits").WireLimits()
    engine = getattr(importlib.import_module(subject.module), subject.engine)(limits)
    opening, pieces = _pieces(subject, n)
    player = Player(engine, grpc=subject.grpc)
    engine.now = 0.0
    engine.start()
    if opening:
        player.react(engine.receive(opening))
    engine.take()
    receive = answer = 0
    clock = time.perf_counter_ns
    for piece in pieces:
        engine.now += 0.001
        begin = clock()
        reported = engine.receive(piece)
        middle = clock()
        player.react(reported)
        if not engine.take():
            raise RuntimeError("the engine had nothing to write")
        if not subject.opening:
            player.react(engine.resume())
        answer += clock() - middle
        receive += middle - begin
    if player.answered != n:
        raise RuntimeError(f"{player.answered} of {n} requests came out")
    return Spent(receive / n / 1000, answer / n / 1000)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__.split("\n")[0])
    parser.add_argument("--exchanges", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    failed = 0
    print(f"{'µs per exchange':<34}{'receive':>10}{'answer':>10}{'both':>10}")
    for subject in _subjects():
        gc.collect()
        try:
            rounds = [play(subject, options.exchanges) for _ in range(options.rounds)]
        except (ImportError, AttributeError, RuntimeError) as error:
            print(f"{subject.name:<34}  cannot run: {error}")
            failed = 1
            continue
        best = min(rounds, key=lambda spent: spent.receive + spent.answer)
        both = best.receive + best.answer
        print(f"{subject.name:<34}{best.receive:>10.1f}{best.answer:>10.1f}{both:>10.1f}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
