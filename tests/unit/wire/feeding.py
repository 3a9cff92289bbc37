"""Parser tests feed the same bytes whole, byte by byte, and with a tail; these functions make that one word."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from proxy.wire.events import DataReceived, Event, TrailersReceived


def whole(engine: Any, data: bytes) -> list[Event]:
    return list(engine.receive(data))


def bytewise(engine: Any, data: bytes) -> list[Event]:
    return [event for place in range(len(data)) for event in engine.receive(data[place : place + 1])]


def at(*cuts: int) -> Any:
    """A way of feeding that cuts at the given places."""

    def feed(engine: Any, data: bytes) -> list[Event]:
        edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(data)), len(data)]
        pieces = [data[a:b] for a, b in pairwise(edges)]
        return [event for piece in pieces for event in engine.receive(piece)]

    return feed


def merged(events: list[Event]) -> list[str]:
    """Events as text, neighbouring body pieces joined: what must not depend on how the bytes were cut."""
    out: list[str] = []
    body: dict[int, bytes] = {}
    for event in events:
        if isinstance(event, DataReceived):
            body[event.stream_id] = body.get(event.stream_id, b"") + event.data
            if event.end_stream:
                out.append(f"{event.stream_id} body {body.pop(event.stream_id)!r} end")
            continue
        if isinstance(event, TrailersReceived) or body:
            out += [f"{key} body {data!r} open" for key, data in body.items() if data]
            body.clear()
        head = getattr(event, "head", None)
        facts = {name: getattr(head, name) for name in dir(head) if name[0] != "_"} if head is not None else ""
        out.append(f"{event!r} {facts}")
    return out + [f"{key} body {data!r} open" for key, data in body.items() if data]
