"""HTTP/1.1 streams made up at random: how they are cut changes nothing, and whoever else reads them agrees.

The other readers are llhttp as a whole (``httptools``, bodies included) and, where installed, h11. They may
refuse less than we do; what we accept they must accept, as the same messages with the same bodies. A
disagreement about where a message ends would be request smuggling.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.errors import MalformedRequest
from proxy.wire.chunked import ChunkedReader
from proxy.wire.events import DataReceived, Event, RequestReceived, RequestRefused
from proxy.wire.http1 import Http1Client, Http1Server
from proxy.wire.limits import WireLimits
from proxy.wire.path import canonical_path
from tests.unit.wire.feeding import at, merged
from tests.unit.wire.test_http1_client import opened

LIMITS = WireLimits()
NEXT = b"GET /next HTTP/1.1\r\nhost: n\r\n\r\n"

Message = tuple[bytes, bytes, bytes]  # method, path, body

names = st.sampled_from(
    [b"accept", b"X-A", b"x-b", b"Cookie", b"Content-Type", b"TE", b"Trailer", b"X_Under"]
)
values = st.sampled_from([b"", b"1", b"a, b", b"\tx \t", b"caf\xe9", b"trailers", b'"q"', b"text/plain"])
paths = st.sampled_from([b"/", b"/a/b", b"/a?b=c", b"http://h/x", b"/%7Ea", b"*", b"/a//b", b"//a"])
methods = st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"FOO"])
bodies = st.binary(max_size=40)


@st.composite
def chunks(draw: Any) -> bytes:
    out = b""
    for piece in draw(st.lists(st.binary(min_size=1, max_size=20), max_size=4)):
        size = draw(
            st.sampled_from([b"%x", b"%X", b"0%x", b"%x;a=b", b'%x;a="b c"', b"%x;a", b"%x ", b"0x%x"])
        )
        out += size % len(piece) + b"\r\n" + piece + b"\r\n"
    trailer = draw(st.sampled_from([b"", b"", b"X-Sum: 1\r\n", b"Host: evil\r\n", b"bad\r\n"]))
    return out + b"0\r\n" + trailer + b"\r\n"


@st.composite
def requests(draw: Any) -> bytes:
    fields = [
        b"Host: h",
        *(name + b": " + value for name, value in draw(st.lists(st.tuples(names, values), max_size=4))),
    ]
    body = draw(bodies)
    framing = draw(st.sampled_from(["none", "length", "chunked", "both"]))
    if framing in ("length", "both"):
        fields.append(b"Content-Length: %d" % len(body))
    if framing in ("chunked", "both"):
        fields.append(b"Transfer-Encoding: chunked")
        body = draw(chunks())
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0"]))
    start = draw(methods) + b" " + draw(paths) + b" HTTP/" + version
    return b"\r\n".join([start, *draw(st.permutations(fields)), b"", b""]) + (
        b"" if framing == "none" else body
    )


@st.composite
def streams(draw: Any) -> bytes:
    """One or two requests, a few bytes of them spoiled."""
    data = bytearray(b"".join(draw(st.lists(requests(), min_size=1, max_size=2))))
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(data)))
        cut = draw(st.integers(0, 2))
        data[place : place + cut] = draw(
            st.sampled_from([b"", b"\r", b"\n", b"\r\n", b" ", b"\t", b"0", b":", b"\x00", b"a"])
        )
    return bytes(data)


def answered(engine: Http1Server, events: list[Event]) -> list[Event]:
    """Answer whatever is complete, so that pipelined requests are read as well."""
    seen = list(events)
    while events and getattr(events[-1], "end_stream", True) and not isinstance(events[-1], RequestRefused):
        engine.send_response(events[-1].stream_id, 204, [], length=None, end_stream=True)
        events = engine.resume()
        seen += events
    return seen


def serve(data: bytes, *cuts: int) -> list[Event]:
    engine = Http1Server(LIMITS)
    return answered(engine, at(*cuts)(engine, data))


def outline(events: list[Event]) -> list[str]:
    """What must not depend on cuts; the word for a refusal may, since less was known when it was spoken."""
    plain = [
        RequestRefused(e.stream_id, "", "", e.opened) if isinstance(e, RequestRefused) else e for e in events
    ]
    return merged(plain)


@settings(max_examples=200, deadline=None)
@given(streams(), st.lists(st.integers(0, 400), max_size=6))
def test_how_requests_are_cut_changes_nothing(data: bytes, cuts: list[int]) -> None:
    whole = outline(serve(data))
    assert outline(serve(data, *cuts)) == whole
    assert outline(serve(data, *range(len(data)))) == whole


def ours(data: bytes) -> list[Message] | None:
    """The messages we read in ``data``; None when we refuse any of it or do not get to its end."""
    found: list[Message] = []
    for event in serve(data):
        if isinstance(event, RequestReceived):
            found.append((event.head.method, event.head.path, b""))
        elif isinstance(event, RequestRefused):
            return None
        elif isinstance(event, DataReceived):
            method, path, body = found[-1]
            found[-1] = (method, path, body + event.data)
    return found


class Llhttp:
    """llhttp reading whole messages, for comparison."""

    def __init__(self) -> None:
        self.found: list[Message] = []
        self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        self.url, self.body = b"", b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.found.append((self.parser.get_method(), canonical(self.url), self.body))


def canonical(target: bytes) -> bytes:
    path = target.removeprefix(b"http://h").partition(b"?")[0]
    return path if path == b"*" else canonical_path(path, escaped_slash="reject")


def persistent(data: bytes) -> bool:
    return b"HTTP/1.0" not in data


@settings(max_examples=200, deadline=None)
@given(streams().filter(persistent))
@example(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
@example(b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1; a=b\r\nx\r\n0\r\n\r\n")
def test_llhttp_reads_the_same_messages(data: bytes) -> None:
    found = ours(data + NEXT)
    if found is None or found[-1][1] != b"/next":
        return
    oracle = Llhttp()
    try:
        oracle.parser.feed_data(data + NEXT)
    except httptools.HttpParserError as error:
        # RFC 9112 7.1.1 allows white space around the ";" of a chunk extension; llhttp does not.
        if "chunk extensions" not in str(error):
            raise
        return
    assert oracle.found == found


@settings(max_examples=200, deadline=None)
@given(streams().filter(persistent))
@example(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
def test_h11_reads_the_same_messages(data: bytes) -> None:
    h11 = pytest.importorskip("h11")
    found = ours(data + NEXT)
    if found is None or found[-1][1] != b"/next":
        return
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data + NEXT)
    read: list[Message] = []
    for _ in found:
        try:
            head = connection.next_event()
        except h11.RemoteProtocolError as error:
            if "no request line" in str(error):  # h11 does not skip empty lines (RFC 9112 2.2), we do
                return
            raise
        body = b""
        while type(event := connection.next_event()) is h11.Data:
            body += bytes(event.data)
        assert type(event) is h11.EndOfMessage
        read.append((head.method, canonical(head.target), body))
        connection.send(h11.Response(status_code=204, headers=[]))
        connection.send(h11.EndOfMessage())
        connection.start_next_cycle()
    assert read == found
    assert not connection.trailing_data[0]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=50), max_size=8),
    st.lists(st.integers(0, 600), max_size=8),
    st.binary(max_size=9),
)
def test_what_one_end_writes_the_other_reads(pieces: list[bytes], cuts: list[int], tail: bytes) -> None:
    writer = Http1Server(LIMITS)
    writer.receive(NEXT)
    writer.send_response(1, 200, [(b"x-a", b"1")], length=None, end_stream=False)
    for piece in pieces:
        writer.send_data(1, piece, False)
    writer.send_trailers(1, [(b"x-sum", b"1")])
    reader: Http1Client = opened()
    data = writer.take()
    events = at(*cuts)(reader, data)
    assert b"".join(event.data for event in events if isinstance(event, DataReceived)) == b"".join(pieces)
    assert reader.reusable
    assert reader.receive(tail) == []
    assert reader.must_close is bool(tail)


@settings(max_examples=100, deadline=None)
@given(chunks(), st.binary(max_size=9), st.lists(st.integers(0, 200), max_size=6))
def test_a_chunked_body_ends_where_it_ends(data: bytes, tail: bytes, cuts: list[int]) -> None:
    def read(*places: int) -> tuple[bytes, bytes | None] | None:
        reader, out, edges = ChunkedReader(LIMITS), [], [0, *sorted(places), len(data + tail)]
        for start, end in pairwise(edges):
            try:
                if reader.feed((data + tail)[start:end], out):
                    return b"".join(out), reader.rest + (data + tail)[end:]
            except MalformedRequest:
                return None
        return b"".join(out), None

    whole = read()
    assert whole is None or whole[1] == tail
    assert read(*(cut for cut in cuts if cut < len(data + tail))) == whole
