"""FrameMeter alone: whole frames out, whatever the pieces in, and each limit at its number."""

from __future__ import annotations

import random

import pytest

from proxy.wire.frames import FrameMeter, TokenBucket, render_goaway
from proxy.wire.limits import WireLimits
from tests.support import h2_frames as h2

CALM, PROTOCOL, SIZE = 0xB, 0x1, 0x6


def ready(*, server: bool = True, **limits: int) -> FrameMeter:
    """A meter that has seen preface and SETTINGS."""
    meter = FrameMeter(WireLimits(**limits), server=server)
    hello = h2.HELLO if server else h2.SERVER_HELLO
    assert meter.feed(hello, 0.0) == hello
    return meter


def detail(meter: FrameMeter) -> str:
    assert meter.fault is not None
    return meter.fault.detail.split(" ")[0]


def frames(first: int) -> list[bytes]:
    """Some of everything, on two streams."""
    return [
        h2.headers(first, end=False),
        h2.data(first, b"x" * 300),
        h2.data(first, b"", end=True),
        h2.ping(),
        h2.headers(first + 2, done=False, fields=b"\x82"),
        h2.continuation(first + 2, b"\x84"),
        h2.window(0, 7),
    ]


FRAMES = frames(1) + frames(5) + frames(9)


def test_whole_frames_pass_as_the_same_object() -> None:
    meter = ready()
    data = b"".join(FRAMES)
    assert meter.feed(data, 0.0) is data


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_any_size_come_out_as_whole_frames(seed: int) -> None:
    rng = random.Random(seed)
    data = h2.HELLO + b"".join(FRAMES)
    meter = FrameMeter(WireLimits(), server=True)
    out = []
    while data:
        size = rng.choice((1, 2, 5, 8, 9, 10, 40, 200))
        out.append(meter.feed(data[:size], 0.0))
        data = data[size:]
    assert b"".join(out) == h2.HELLO + b"".join(FRAMES)
    ends = {0, 24, len(h2.HELLO)}
    place = len(h2.HELLO)
    for frame in FRAMES:
        place += len(frame)
        ends.add(place)
    seen = 0
    for piece in out:
        seen += len(piece)
        assert seen in ends
    assert meter.fault is None


def test_a_frame_that_is_not_whole_is_held_back() -> None:
    meter = ready()
    frame = h2.data(1, b"hello")
    assert meter.feed(h2.headers(1, end=False) + frame[:-1], 0.0) == h2.headers(1, end=False)
    assert meter.is_inside_frame
    assert meter.feed(frame[-1:], 0.0) == frame
    assert not meter.is_inside_frame


@pytest.mark.parametrize("size", [1, 1000])
def test_a_wrong_preface_is_a_fault_at_its_first_wrong_byte(size: int) -> None:
    meter = FrameMeter(WireLimits(), server=True)
    data = b"PRI * HTTP/1.1\r\n"
    for place in range(0, len(data), size):
        assert meter.feed(data[place : place + size], 0.0) == b""
    assert meter.fault is not None
    assert meter.fault.code == PROTOCOL


@pytest.mark.parametrize("first", [h2.ping(), h2.headers(1), h2.settings(ack=True), h2.data(1, b"")])
@pytest.mark.parametrize("server", [True, False])
def test_the_first_frame_must_be_settings(first: bytes, server: bool) -> None:
    meter = FrameMeter(WireLimits(), server=server)
    assert meter.feed(h2.PREFACE * server + first, 0.0) == h2.PREFACE * server
    assert meter.fault is not None
    assert meter.fault.code == PROTOCOL


def test_a_frame_too_long_is_refused_at_its_header() -> None:
    meter = ready()
    assert meter.feed((16385).to_bytes(3, "big") + b"\0\0\0\0\0\1", 0.0) == b""
    assert meter.fault is not None
    assert meter.fault.code == SIZE


def test_frames_before_a_fault_still_pass_and_nothing_after_it() -> None:
    meter = ready()
    good = h2.headers(1)
    assert meter.feed(good + h2.priority(0) + h2.ping(), 0.0) == good
    assert meter.feed(h2.ping(), 1.0) == b""


@pytest.mark.parametrize(
    "between", [h2.data(1, b"x"), h2.ping(), h2.headers(3), h2.continuation(3, b""), h2.raw(0x16, 0, 0)]
)
def test_nothing_may_come_between_the_parts_of_a_header_block(between: bytes) -> None:
    meter = ready()
    meter.feed(h2.headers(1, done=False) + between, 0.0)
    assert meter.fault is not None
    assert meter.fault.code == PROTOCOL


def test_a_continuation_without_a_block_is_a_fault() -> None:
    meter = ready()
    meter.feed(h2.headers(1) + h2.continuation(1, b"\x84"), 0.0)
    assert meter.fault is not None


def test_an_open_header_block_is_visible() -> None:
    meter = FrameMeter(WireLimits(), server=True)
    assert meter.open_header_block  # the preface has not come
    meter.feed(h2.HELLO, 0.0)
    assert not meter.open_header_block
    meter.feed(h2.headers(1)[:10], 0.0)
    assert meter.open_header_block  # a part of a HEADERS frame
    meter.feed(h2.headers(1)[10:] + h2.headers(3, done=False), 0.0)
    assert meter.open_header_block
    meter.feed(h2.continuation(3, b"\x84"), 0.0)
    assert not meter.open_header_block
    meter.feed(h2.data(1, b"abc")[:-1], 0.0)
    assert not meter.open_header_block


# -- limits, each: the last allowed frame passes, the next one does not ---------------------------------------


def allowed(meter: FrameMeter, frame: bytes, *, most: int = 1000, now: float = 0.0) -> int:
    """How many times a frame passes."""
    for count in range(most):
        meter.acks_owed = 0
        if meter.feed(frame, now) != frame:
            return count
    return most


def test_l9_resets_are_a_token_bucket() -> None:
    meter = ready(resets_burst=10, resets_per_second=2)
    assert allowed(meter, h2.reset(1)) == 10
    assert detail(meter) == "L-9"
    meter = ready(resets_burst=10, resets_per_second=2)
    assert allowed(meter, h2.reset(1), most=10) == 10
    assert allowed(meter, h2.reset(1), now=3.0) == 6


def test_l9_a_server_may_reset_each_stream_we_open() -> None:
    meter = ready(server=False, resets_burst=3)
    meter.opened = 50
    assert allowed(meter, h2.reset(1)) == 53


def test_l9_more_than_half_of_many_streams_reset_before_an_answer() -> None:
    meter = ready()
    for number in range(201):
        meter.feed(h2.headers(1 + 2 * number), 0.0)
    for _ in range(100):
        meter.note_unanswered_reset()
    assert meter.fault is None
    meter.note_unanswered_reset()
    assert detail(meter) == "L-9"


def test_l9_few_streams_say_nothing() -> None:
    meter = ready()
    for number in range(200):
        meter.feed(h2.headers(1 + 2 * number), 0.0)
        meter.note_unanswered_reset()
    assert meter.fault is None


def test_l10_own_resets_are_a_token_bucket() -> None:
    meter = ready(own_resets_burst=5, own_resets_per_second=1)
    for _ in range(5):
        meter.note_own_reset(0.0)
    meter.note_own_reset(1.0)
    assert meter.fault is None
    meter.note_own_reset(1.0)
    assert detail(meter) == "L-10"


@pytest.mark.parametrize("frame", [h2.ping(), h2.settings(), h2.settings({3: 5}), h2.goaway()])
def test_l11_pings_and_settings_are_a_token_bucket(frame: bytes) -> None:
    meter = ready(control_burst=10, control_per_second=1)
    assert allowed(meter, frame) == 9  # the first SETTINGS took one
    assert detail(meter) == "L-11"


def test_l11_acknowledgements_are_free() -> None:
    meter = ready(control_burst=10)
    assert allowed(meter, h2.ping(ack=True), most=100) == 100


def test_l11_data_that_we_sent_pays_for_pings() -> None:
    meter = ready(control_burst=10, control_per_second=0)
    for _ in range(100):
        meter.data_sent += 1
        assert allowed(meter, h2.ping(), most=1) == 1
    assert allowed(meter, h2.ping()) == 9


def test_l11_answers_that_are_not_taken_end_it() -> None:
    meter = ready(control_burst=10, control_per_second=100)
    meter.acks_owed = 0
    passed = [meter.feed(h2.ping(), float(second)) for second in range(11)]
    assert passed[-2]
    assert not passed[-1]
    assert detail(meter) == "L-11"


def test_l11_entries_of_settings() -> None:
    meter = ready()
    assert allowed(meter, h2.raw(4, 0, 0, b"\0\xff\0\0\0\1" * 32), most=1) == 1
    assert allowed(meter, h2.raw(4, 0, 0, b"\0\xff\0\0\0\1" * 33), most=1) == 0
    assert detail(meter) == "L-11"


@pytest.mark.parametrize("frame", [h2.data(1, b""), h2.data(1, b"", padding=5), h2.data(1, b"", padding=0)])
def test_l12_empty_data_in_a_row(frame: bytes) -> None:
    meter = ready()
    assert allowed(meter, frame) == 10
    assert detail(meter) == "L-12"


def test_l12_a_byte_breaks_the_row() -> None:
    meter = ready()
    for _ in range(10):
        assert allowed(meter, h2.data(1, b""), most=10) == 10
        assert allowed(meter, h2.data(1, b"x"), most=1) == 1


def test_l12_an_empty_frame_that_ends_the_stream_is_none() -> None:
    meter = ready()
    assert allowed(meter, h2.data(1, b"", end=True), most=100) == 100


def test_l12_empty_headers_and_continuations_count_as_well() -> None:
    meter = ready(continuations=100)
    assert allowed(meter, h2.headers(1, b"", done=False), most=1) == 1
    assert allowed(meter, h2.continuation(1, b"", done=False)) == 9
    assert detail(meter) == "L-12"


@pytest.mark.parametrize("frame", [h2.priority(1), h2.raw(0x10, 0, 0, bytes(5)), h2.raw(0xFA, 0, 0)])
def test_l13_priority_and_unknown_frames(frame: bytes) -> None:
    meter = ready(priority_per_stream=7)
    meter.feed(h2.headers(1), 0.0)
    assert allowed(meter, frame) == 14
    assert detail(meter) == "L-13"


def test_l14_window_updates() -> None:
    meter = ready()
    meter.feed(h2.headers(1) + h2.headers(3), 0.0)
    meter.data_sent = 1
    assert allowed(meter, h2.window(0, 1)) == 5 + 2 * (2 + 10)
    assert detail(meter) == "L-14"


def test_l15_continuations_of_one_block() -> None:
    meter = ready(continuations=8)
    meter.feed(h2.headers(1, b"\x82", done=False), 0.0)
    assert allowed(meter, h2.continuation(1, b"\x84", done=False)) == 8
    assert detail(meter) == "L-15"


def test_l15_each_block_has_its_own() -> None:
    meter = ready(continuations=2)
    for stream_id in range(1, 41, 2):
        parts = [h2.headers(stream_id, b"\x82", done=False), h2.continuation(stream_id, b"\x84", done=False)]
        assert meter.feed(b"".join(parts) + h2.continuation(stream_id, b"\x84"), 0.0)
    assert meter.fault is None


def test_l17_glitches_add_up() -> None:
    meter = ready(glitches=10)
    meter.note_glitch(4)
    meter.note_glitch(6)
    assert meter.fault is None
    meter.note_glitch()
    assert detail(meter) == "L-17"


def test_l17_each_stream_may_have_one_block_of_trailers() -> None:
    meter = ready()
    meter.feed(h2.headers(1, end=False) + h2.headers(3, end=False), 0.0)
    assert allowed(meter, h2.headers(1)) == 2
    assert detail(meter) == "L-17"


def test_the_first_fault_stays() -> None:
    meter = ready(glitches=0, own_resets_burst=0)
    meter.note_glitch()
    meter.note_own_reset(0.0)
    assert detail(meter) == "L-17"


def test_streams_are_counted_once() -> None:
    meter = ready()
    meter.feed(h2.headers(1, end=False) + h2.headers(3) + h2.headers(1), 0.0)
    assert meter.opened == 2


def test_a_token_bucket_does_not_grow_over_its_burst_nor_by_a_clock_that_goes_back() -> None:
    bucket = TokenBucket(2, 1.0)
    assert [bucket.take(1000.0) for _ in range(3)] == [True, True, False]
    assert not bucket.take(0.0)
    assert bucket.take(1001.0)


def test_a_goaway_can_be_written_without_a_library() -> None:
    assert render_goaway(5, 0xB) == h2.goaway(5, 0xB)
