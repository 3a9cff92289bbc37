"""HTTP/2 client engines, fed by hand, over both libraries."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.errors import UpstreamGone
from proxy.wire.events import (
    ConnectionEnded,
    GoAwayReceived,
    InformationalReceived,
    ResponseReceived,
    StreamReset,
)
from proxy.wire.http2 import H2Client
from proxy.wire.limits import WireLimits
from tests.support import h2_frames as h2
from tests.support.h2_frames import GET, OK, Reader
from tests.support.h2_peer import (
    TAIL,
    Peer,
    asked,
    asking,
    clients,
    kinds,
    request_head,
)
from tests.unit.wire.feeding import bytewise, whole

# -- the client -------------------------------------------------------------------------------------------------------


@clients
def test_a_request_as_it_is_written(made: Any) -> None:
    peer = asking(made)
    head = request_head(b"POST", length=0, te_trailers=True)
    stream_id = peer.engine.open_stream(head, [(b"a", b"b")], end_stream=True)
    peer.written()
    assert peer.reader.fields[stream_id] == [
        [
            (b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"api.shop"), (b":path", b"/a?b=c"),
            (b"a", b"b"), (b"content-length", b"0"), (b"te", b"trailers"),
        ]
    ]  # fmt: skip


@clients
def test_a_client_begins_with_preface_and_settings(made: Any) -> None:
    engine = made(WireLimits())
    engine.start()
    written = engine.take()
    assert written.startswith(h2.PREFACE)
    reader = Reader()
    reader.feed(written)
    assert reader.frames[0].settings.items() >= {1: 4096, 2: 0, 4: 65536, 6: 65536, 9: 1}.items()


@clients
@pytest.mark.parametrize("feed", [whole, bytewise])
def test_an_answer_as_it_is_read(made: Any, feed: Any) -> None:
    peer = asking(made)
    stream_id = asked(peer)
    events = feed(
        peer.engine,
        h2.headers(stream_id, [(b":status", b"103"), (b"link", b"x")], end=False)
        + h2.headers(stream_id, [*OK, (b"content-length", b"5"), (b"a", b"b")], end=False)
        + h2.data(stream_id, b"hello")
        + h2.headers(stream_id, [(b"grpc-status", b"0")])
        + TAIL,
    )
    assert kinds(events) == ["InformationalReceived", "ResponseReceived", "DataReceived", "TrailersReceived"]
    interim, response = events[:2]
    assert isinstance(interim, InformationalReceived)
    assert isinstance(response, ResponseReceived)
    assert (interim.status, interim.headers) == (103, [(b"link", b"x")])
    assert (response.head.status, response.head.length, response.head.headers) == (200, 5, [(b"a", b"b")])
    peer.written()
    assert peer.engine.is_idle


@clients
@pytest.mark.parametrize(
    "frames",
    [
        [h2.headers(1, [(b":status", b"101")], end=False)],
        [h2.headers(1, [(b":status", b"99x")])],
        [h2.headers(1, [(b"a", b"b")])],
        [h2.headers(1, [*OK, (b"connection", b"close")])],
        [h2.headers(1, [*OK, (b"content-length", b"5")])],
        [h2.headers(1, [*OK, (b"content-length", b"5")], end=False), h2.data(1, b"abc", end=True)],
        [h2.headers(1, [*OK, (b"content-length", b"5")], end=False), h2.data(1, b"abcdef")],
        [h2.headers(1, [*OK, (b"content-length", b"5")], end=False), h2.headers(1, [(b"a", b"b")])],
        [h2.headers(1, [(b":status", b"204")], end=False), h2.data(1, b"abc")],
        [h2.headers(1, OK, end=False), h2.headers(1, [(b":status", b"200")])],
        [h2.headers(1, [(b":status", b"103")], end=False)] * 33,
    ],
)
def test_a_malformed_answer_is_the_upstreams_error(made: Any, frames: list[bytes]) -> None:
    peer = asking(made)
    stream_id = asked(peer)
    other = asked(peer)
    events = peer(*frames)
    resets = [event for event in events if isinstance(event, StreamReset)]
    assert [(r.stream_id, r.by_peer, r.reason) for r in resets] == [(1, False, "upstream_protocol_error")]
    assert not any(getattr(event, "end_stream", False) for event in events)
    # Where both sides had ended already, h2 has nothing to reset.
    assert peer.reader.resets(stream_id) == [1] or (made is H2Client and frames[-1][4] & 1)
    assert kinds(peer(h2.headers(other, OK))) == ["ResponseReceived"]
    assert peer.engine.is_idle


@clients
def test_the_answer_to_head_has_a_length_and_no_body(made: Any) -> None:
    peer = asking(made)
    stream_id = asked(peer, b"HEAD")
    (event,) = peer(h2.headers(stream_id, [*OK, (b"content-length", b"500")]))
    assert isinstance(event, ResponseReceived)
    assert (event.head.length, event.end_stream) == (500, True)


@clients
def test_a_push_is_refused(made: Any) -> None:
    peer = asking(made)
    asked(peer)
    events = peer(h2.raw(5, 4, 1, (2).to_bytes(4, "big") + h2.block(GET)))
    assert isinstance(events[-1], ConnectionEnded)
    assert peer.reader.goaways() == [1]


@clients
def test_no_more_streams_than_the_peer_allows(made: Any) -> None:
    peer = Peer(made, hello=h2.settings({3: 2}) + h2.settings(ack=True))
    first, second = asked(peer), asked(peer)
    assert not peer.engine.can_open
    with pytest.raises(UpstreamGone) as caught:
        asked(peer)
    assert not caught.value.wrote
    peer(h2.headers(first, OK))
    assert peer.engine.can_open
    peer(h2.headers(second, OK), h2.settings({3: 0}))
    assert not peer.engine.can_open


@clients
def test_streams_above_the_goaway_were_not_processed(made: Any) -> None:
    peer = asking(made)
    first, second = asked(peer), asked(peer, end=False, method=b"POST")
    events = peer(h2.goaway(first))
    assert events == [GoAwayReceived(first, 0), StreamReset(second, 7, reason="upstream_reset")]
    assert not peer.engine.can_open
    assert not peer.engine.must_close
    assert kinds(peer(h2.headers(first, OK))) == ["ResponseReceived"]
    peer.written()
    assert peer.engine.must_close


@clients
def test_a_reset_after_the_answer_is_no_second_end(made: Any) -> None:
    peer = asking(made)
    stream_id = asked(peer, b"POST", end=False)
    assert kinds(peer(h2.headers(stream_id, OK), h2.reset(stream_id, 0))) == ["ResponseReceived"]
    peer.engine.send_data(stream_id, b"late", True)
    assert peer.engine.take() == b""
    assert peer.engine.is_idle


@clients
def test_a_reset_by_the_server(made: Any) -> None:
    peer = asking(made)
    stream_id = asked(peer)
    assert peer(h2.reset(stream_id, 7)) == [StreamReset(stream_id, 7, reason="upstream_reset")]
    assert peer(h2.reset(stream_id, 7)) == []


@clients
def test_a_client_that_shuts_down_opens_nothing_more(made: Any) -> None:
    peer = asking(made)
    stream_id = asked(peer)
    peer.engine.shut_down()
    assert not peer.engine.can_open
    assert kinds(peer(h2.headers(stream_id, OK))) == ["ResponseReceived"]
    peer.engine.finish()
    peer.written()
    assert peer.reader.goaways() == [0]
    assert peer.engine.must_close


@clients
def test_a_client_meets_floods_as_well(made: Any) -> None:
    peer = asking(made)
    events = peer(*[h2.ping()] * 200)
    assert events[-1].reason == "flood"  # type: ignore[attr-defined]
