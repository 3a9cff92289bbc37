"""Counts a peer's HTTP/2 frames before the library sees them, so that limits do not depend on the library. Pure.

Every flood of HTTP/2 (CVE-2019-9511 to 9518, rapid reset CVE-2023-44487, CONTINUATION floods VU#421644,
MadeYouReset CVE-2025-8671) shows itself in frame headers alone: type, flags, length, stream. ``FrameMeter.feed``
walks those nine bytes of each frame, skips payloads by arithmetic, and returns the bytes that the library may
see: always whole frames, whatever the pieces they came in. Whole frames have two more uses. The library never
keeps a part of a DATA frame whose stream then ends (it would lose count of the connection's window), and a
conversation goes the same way fed whole or byte by byte.

What it finds is kept in ``fault``: an error code and the limit's id (L-9 to L-17 of the security specification).
The bytes before the offending frame are still returned; what follows is never looked at. A few rules of RFC 9113
that one of the libraries lacks are held here for both: preface, first frame, frame size, header blocks without
gaps, PRIORITY on stream 0.

PING and SETTINGS share one token bucket (L-11), but each DATA frame we sent buys a token: receivers that estimate
their bandwidth (gRPC's BDP probes) answer data with a PING, up to once a round trip, and mean no harm.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from proxy.wire.limits import WireLimits

PROTOCOL_ERROR: Final = 0x1
FRAME_SIZE_ERROR: Final = 0x6
ENHANCE_YOUR_CALM: Final = 0xB
MAX_FRAME_SIZE: Final = 16384  # we never announce more (RFC 9113 4.2)
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 3.4

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
_END_STREAM = _ACK = 0x1
_END_HEADERS: Final = 0x4
_PADDED: Final = 0x8
_PRIORITY_FIELDS: Final = 5  # bytes in a HEADERS frame that are no field, when the flag 0x20 is set

_head = Struct(">HBBBI").unpack_from  # length (high 16, low 8), type, flags, stream id
_ID_BITS: Final = 0x7FFFFFFF
_WINDOW_UPDATES_FREE: Final = 5  # L-14
_MANY_STREAMS: Final = 200  # L-9: before that, a share of resets says nothing


class Fault:
    """Why the connection must end: an HTTP/2 error code, and a sentence that begins with the limit's id."""

    __slots__ = ("code", "detail")

    def __init__(self, code: int, detail: str) -> None:
        self.code = code
        self.detail = detail

    def __repr__(self) -> str:
        return f"<Fault {self.code:#x} {self.detail}>"


class TokenBucket:
    """``burst`` at once, then ``rate`` a second."""

    __slots__ = ("_at", "_burst", "_level", "_rate")

    def __init__(self, burst: float, rate: float) -> None:
        self._burst = self._level = burst
        self._rate = rate
        self._at = 0.0

    def take(self, now: float, earned: float = 0.0) -> bool:
        """One token at ``now`` (seconds, any origin); False when there is none. ``earned`` ones are added first."""
        if now > self._at:
            earned += (now - self._at) * self._rate
            self._at = now
        level = min(self._burst, self._level + earned)
        if level < 1.0:
            self._level = level
            return False
        self._level = level - 1.0
        return True


def render_goaway(last_stream_id: int, code: int) -> bytes:
    """A GOAWAY frame (RFC 9113 6.8), for when the library cannot write one any more."""
    return b"\0\0\x08\x07\0\0\0\0\0" + last_stream_id.to_bytes(4, "big") + code.to_bytes(4, "big")


class FrameMeter:
    """See the module's text. ``server`` is our role. The owner resets ``acks_owed`` whenever it has written."""

    __slots__ = (
        "_block",
        "_continuations",
        "_control",
        "_earned",
        "_empty",
        "_first",
        "_glitches",
        "_last_id",
        "_late_blocks",
        "_limits",
        "_missing",
        "_others",
        "_own_resets",
        "_partial_kind",
        "_parts",
        "_preface",
        "_premature",
        "_refusals",
        "_resets",
        "_rst",
        "_server",
        "_window_updates",
        "acks_owed",
        "data_sent",
        "fault",
        "opened",
    )

    def __init__(self, limits: WireLimits, *, server: bool) -> None:
        self._limits = limits
        self._server = server
        self._preface = server  # still to come
        self._first = True  # RFC 9113 3.4: the first frame must be SETTINGS
        self._parts: list[bytes] = []  # of the frame that is not whole yet
        self._missing = 0  # bytes until more can be said about it
        self._partial_kind = -1
        self._block = 0  # stream whose header block is open
        self._continuations = 0
        self._last_id = 0
        self._late_blocks = 0
        self._empty = 0
        self._others = 0
        self._window_updates = 0
        self._premature = 0
        self._rst = 0
        self._glitches = 0
        self._earned = 0
        self._control = TokenBucket(limits.control_burst, limits.control_per_second)
        self._resets = TokenBucket(limits.resets_burst, limits.resets_per_second)
        self._refusals = TokenBucket(limits.resets_burst, limits.resets_per_second)
        self._own_resets = TokenBucket(limits.own_resets_burst, limits.own_resets_per_second)
        self.fault: Fault | None = None
        self.opened = 0  # streams, by whichever side opens them
        self.data_sent = 0  # DATA frames we sent, at least
        self.acks_owed = 0

    @property
    def open_header_block(self) -> bool:
        """A header block (or the preface) has begun and not ended: T-2 runs."""
        return bool(self._block) or self._preface or self._partial_kind in (HEADERS, CONTINUATION)

    @property
    def is_inside_frame(self) -> bool:
        return bool(self._parts)

    @property
    def is_faulty(self) -> bool:
        return self.fault is not None

    # -- bytes --------------------------------------------------------------------------------------------

    def feed(self, data: bytes, now: float) -> bytes:
        """The next bytes from the peer -> the whole frames among them (the preface first), up to a fault."""
        if self.fault is not None:
            return b""
        if self._parts:
            self._parts.append(data)
            if len(data) < self._missing:
                self._missing -= len(data)
                return b""
            data = b"".join(self._parts)
            self._parts.clear()
            self._partial_kind = -1
        start = 0
        if self._preface:
            start = self._pass_preface(data)
            if not start:
                return b""
        end = self._walk(data, start, now)
        if end == len(data):
            return data
        if not self.is_faulty:
            self._keep(data[end:])
        return data[:end]

    def _pass_preface(self, data: bytes) -> int:
        """-> 24 once the preface is complete, 0 before."""
        if not data.startswith(PREFACE):
            if PREFACE.startswith(data):
                self._parts.append(data)
                self._missing = 1  # the first wrong byte shall be the last
            else:
                self.fault = Fault(PROTOCOL_ERROR, "no HTTP/2 preface")
            return 0
        self._preface = False
        return len(PREFACE)

    def _keep(self, rest: bytes) -> None:
        self._parts.append(rest)
        if len(rest) < 9:
            self._missing = 9 - len(rest)
        else:
            self._missing = 9 + int.from_bytes(rest[:3], "big") - len(rest)
            self._partial_kind = rest[3]

    def _walk(self, data: bytes, place: int, now: float) -> int:
        """Judge frame after frame; -> the end of the last one that is whole and allowed."""
        size = len(data)
        while place + 9 <= size:
            high, low, kind, flags, stream_id = _head(data, place)
            length = high << 8 | low
            if length > MAX_FRAME_SIZE:  # at once: h2 would first collect up to 16 MiB
                self.fault = Fault(FRAME_SIZE_ERROR, f"frame of {length} bytes")
                return place
            stop = place + 9 + length
            if stop > size:
                return place
            if self._first or (self._block and kind != CONTINUATION):
                self._out_of_place(kind, flags)
            elif kind == DATA:
                if length > 255:  # longer than any padding
                    self._empty = 0
                else:
                    self._judge_data(data, place, length, flags)
            elif kind == HEADERS:
                self._judge_headers(length, flags, stream_id & _ID_BITS)
            if kind > HEADERS and self.fault is None:
                self._judge_other(kind, flags, length, stream_id & _ID_BITS, now)
            if self.is_faulty:
                return place
            place = stop
        return place

    # -- frames -------------------------------------------------------------------------------------------

    def _out_of_place(self, kind: int, flags: int) -> None:
        if self._block:
            self.fault = Fault(PROTOCOL_ERROR, "header block interrupted (RFC 9113 6.10)")
        elif kind == SETTINGS and not flags & _ACK:
            self._first = False
        else:
            self.fault = Fault(PROTOCOL_ERROR, "first frame is not SETTINGS (RFC 9113 3.4)")

    def _calm(self, detail: str) -> None:
        if self.fault is None:
            self.fault = Fault(ENHANCE_YOUR_CALM, detail)

    def _judge_data(self, data: bytes, place: int, length: int, flags: int) -> None:
        if length and flags & _PADDED:
            length -= 1 + data[place + 9]
        if length > 0 or flags & _END_STREAM:
            self._empty = 0
        else:
            self._count_empty("DATA")

    def _count_empty(self, what: str) -> None:
        self._empty += 1
        if self._empty > self._limits.empty_frames:
            self._calm(f"L-12 empty {what} frames")

    def _judge_headers(self, length: int, flags: int, stream_id: int) -> None:
        if stream_id > self._last_id and self._server:
            self._last_id = stream_id
            self.opened += 1
        elif stream_id and self._server:
            self._late_blocks += 1
            if self._late_blocks > self.opened:  # one block of trailers a stream; nghttp2 ignores the others
                self._calm("L-17 header blocks on closed streams")
        if not flags & _END_HEADERS:
            self._block = stream_id
            self._continuations = 0
            if length <= (_PRIORITY_FIELDS if flags & 0x20 else 0):
                self._count_empty("HEADERS")
                return
        self._empty = 0

    def _judge_other(self, kind: int, flags: int, length: int, stream_id: int, now: float) -> None:
        if kind == WINDOW_UPDATE:
            self._judge_window_update()
        elif kind in (SETTINGS, PING, GOAWAY):
            if not flags & _ACK:
                self._judge_control(kind, length, now)
        elif kind == RST_STREAM:
            self._judge_reset(now)
        elif kind == CONTINUATION:
            self._judge_continuation(length, flags, stream_id)
        elif kind != PUSH_PROMISE:
            self._judge_rest(kind, stream_id)

    def _judge_window_update(self) -> None:
        self._window_updates += 1
        allowed = _WINDOW_UPDATES_FREE + 2 * (self.opened + 10 * self.data_sent)
        if self._window_updates > allowed:
            self._calm(f"L-14 {self._window_updates} WINDOW_UPDATE frames")

    def _judge_control(self, kind: int, length: int, now: float) -> None:
        earned, self._earned = self.data_sent - self._earned, self.data_sent
        if not self._control.take(now, earned):
            self._calm("L-11 PING, SETTINGS and GOAWAY frames")
        if kind == SETTINGS and length > 6 * self._limits.settings_entries:
            self._calm("L-11 entries in SETTINGS")
        self.acks_owed += 1
        if self.acks_owed > self._limits.control_burst:
            self._calm("L-11 answers to PING and SETTINGS are not read")

    def _judge_reset(self, now: float) -> None:
        self._rst += 1
        # As a client we open the streams ourselves: each may be reset once, what comes on top is counted.
        if (self._server or self._rst > self.opened) and not self._resets.take(now):
            self._calm("L-9 RST_STREAM frames")

    def _judge_continuation(self, length: int, flags: int, stream_id: int) -> None:
        if not self._block or stream_id != self._block:
            self.fault = Fault(PROTOCOL_ERROR, "CONTINUATION out of place (RFC 9113 6.10)")
            return
        self._continuations += 1
        if self._continuations > self._limits.continuations:
            self._calm("L-15 CONTINUATION frames in one block")
        if flags & _END_HEADERS:
            self._block = 0
        if length:
            self._empty = 0
        elif not flags & _END_HEADERS:
            self._count_empty("CONTINUATION")

    def _judge_rest(self, kind: int, stream_id: int) -> None:
        if kind == PRIORITY and not stream_id:  # RFC 9113 6.3; nghttp2 lets it pass
            self.fault = Fault(PROTOCOL_ERROR, "PRIORITY on stream 0")
            return
        self._others += 1
        if self._others > self._limits.priority_per_stream * (1 + self.opened):
            self._calm("L-13 PRIORITY and unknown frames")

    # -- what only the engine knows -------------------------------------------------------------------------

    def note_glitch(self, points: int = 1) -> None:
        """A protocol oddity that was survived (L-17)."""
        self._glitches += points
        if self._glitches > self._limits.glitches:
            self._calm("L-17 glitch score")

    def note_own_reset(self, now: float) -> None:
        """The peer made us reset a stream (L-10, MadeYouReset)."""
        if not self._own_resets.take(now):
            self._calm("L-10 streams reset by us")

    def note_refusal(self, now: float) -> None:
        """A stream was refused for L-8; a client that has just cancelled much may meet it without ill will."""
        if not self._refusals.take(now):
            self._calm("L-8 refused streams")

    def note_unanswered_reset(self) -> None:
        """The peer reset a stream before we had answered (L-9, second half)."""
        self._premature += 1
        if self.opened > _MANY_STREAMS and self._premature * 2 > self.opened:
            self._calm("L-9 more than half of the streams reset before an answer")
