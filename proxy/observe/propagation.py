"""W3C Trace Context: read what came in, decide the sampling bit, write what goes out.

One exchange takes two span ids here, whatever the direction: ``span_id`` for our server side and
``client_span_id`` for our client side. The upstream gets ``client_span_id`` as its parent. Making ids is all
the hot path does for tracing; spans are built afterwards from the record (``spans.py``).

The rules, from https://www.w3.org/TR/trace-context-2/:

- a traceparent is lower-case hex, ``version-traceid-parentid-flags``; version ff is invalid; version 00 is
  exactly 55 bytes; a higher version may be longer if a dash follows, and is read as if it were 00 (3.2.2);
- all-zero ids are invalid (3.2.2.3, 3.2.2.4). Anything invalid restarts the trace, never refuses the request;
- a bad tracestate does not spoil a good traceparent: it is dropped alone (3.3);
- we always write version 00. Flag bits other than sampled and random are set to zero (3.2.2.5).

Who is asked: a caller without identity is a stranger, and a stranger's traceparent would let him write into
our traces and switch sampling on for us. ``trusted=False`` begins a new trace and keeps his as a link.

Sampling is parent-based; for a new trace the lowest 64 bits of the trace id are compared with
``ratio * 2**64``, which is what OpenTelemetry SDKs' TraceIdRatioBased does, so that every hop and every app
with the same ratio decides the same.
"""

from __future__ import annotations

import random
import re
from typing import Final

_match = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL).fullmatch
_ZERO_TRACE: Final = b"0" * 32
_ZERO_SPAN: Final = b"0" * 16

# Level 2, 3.3.1.3: key=value of a list member. Values are printable ASCII without comma and equals sign, so
# that the two separators are never ambiguous and the pattern for a list runs in linear time.
_MEMBER: Final = (
    rb"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_match_member = re.compile(_MEMBER).fullmatch
_match_list = re.compile(_MEMBER + rb"(?:[ \t]*,[ \t]*" + _MEMBER + rb"){0,31}").fullmatch
TRACESTATE_BYTES: Final = 512  # 3.3.1.5: at least this much must be passed on; more may be cut
_TRACESTATE_MEMBERS: Final = 32
_LONG_MEMBER: Final = 128  # 3.3.1.5: members longer than this go first

# W3C Baggage 3.3: what must be passed on. More than this from anybody is dropped whole.
BAGGAGE_BYTES: Final = 8192
BAGGAGE_MEMBERS: Final = 64

_SAMPLED: Final = 0x01
_RANDOM: Final = 0x02
_FLAGS: Final = {b"%02x" % bits: bits for bits in range(256)}  # a quarter of the price of int(flags, 16)
_LOW_64_BITS: Final = 2**64 - 1


class TraceContext:
    """Where one exchange stands in its trace. All ids are lower-case hex bytes."""

    __slots__ = (
        "client_span_id",
        "link",
        "parent_id",
        "random",
        "remote",
        "sampled",
        "span_id",
        "trace_id",
        "tracestate",
    )

    def __init__(
        self, trace_id: bytes, parent_id: bytes | None, span_id: bytes, client_span_id: bytes, sampled: bool
    ) -> None:
        self.trace_id = trace_id
        self.parent_id = parent_id  # the caller's span, None in a trace begun here
        self.span_id = span_id
        self.client_span_id = client_span_id
        self.sampled = sampled
        self.tracestate: bytes | None = None
        self.remote = False  # the trace was continued, not begun here
        self.random = True  # level 2 flag: the lowest 56 bits of the trace id are random
        self.link: tuple[bytes, bytes] | None = None  # a stranger's (trace id, span id), not continued

    def __repr__(self) -> str:
        how = "continued" if self.remote else "new"
        return f"<TraceContext {self.trace_id.decode()} {how} sampled={self.sampled}>"


def parse_traceparent_untrusted(value: bytes) -> tuple[bytes, bytes, int] | None:
    """One traceparent header value -> (trace id, parent id, flags), or None when it is not valid.

    Two traceparent headers joined by a comma are invalid too, as they should be (3.2.1).
    """
    match = _match(value)
    if match is None:
        return None
    version, trace_id, parent_id, flags, more = match.groups()
    if version == b"ff" or trace_id == _ZERO_TRACE or parent_id == _ZERO_SPAN:
        return None
    if version == b"00" and more is not None:
        return None
    return trace_id, parent_id, _FLAGS[flags]


def check_tracestate_untrusted(value: bytes) -> bytes | None:
    """A tracestate (several headers joined by commas) -> what to pass on.

    Unchanged when it is well formed and short, shortened by whole members when long, None when malformed.
    """
    if len(value) <= TRACESTATE_BYTES and _match_list(value) is not None:
        return value
    members = value.split(b",", _TRACESTATE_MEMBERS)
    if len(members) > _TRACESTATE_MEMBERS:
        return None
    kept = [m for m in (member.strip(b" \t") for member in members) if m]  # 3.3.1.1 allows empty members
    if not all(map(_match_member, kept)):
        return None
    return _shorten(kept)


def _shorten(members: list[bytes]) -> bytes | None:
    """Cut as 3.3.1.5 says: members over 128 bytes first, then from the right, never within a member."""
    size = sum(map(len, members)) + len(members) - 1
    for at in range(len(members) - 1, -1, -1):
        if size > TRACESTATE_BYTES and len(members[at]) > _LONG_MEMBER:
            size -= len(members.pop(at)) + 1
    while members and size > TRACESTATE_BYTES:
        size -= len(members.pop()) + 1
    return b",".join(members) or None


def is_sampled(trace_id: bytes, ratio: float) -> bool:
    """Whether a trace begun with this id is sampled at ``ratio`` (0..1)."""
    return int(trace_id[16:], 16) < ratio * 2.0**64


def start_trace(
    traceparent: bytes | None,
    tracestate: bytes | None,
    *,
    trusted: bool,
    ratio: float,
    rng: random.Random,
    parent_based: bool = True,
) -> TraceContext:
    """The context of one exchange. ``rng`` is seeded by its owner. Raises on no bytes whatever.

    ``parent_based=False`` decides by ratio whatever the caller decided (OTEL_TRACES_SAMPLER=traceidratio).
    """
    # One draw for all ids: 64 + 64 + 128 bits. An all-zero id has a chance of 2**-63 and is left alone.
    bits = rng.getrandbits(256)
    ids = b"%064x" % bits
    came = None if traceparent is None else parse_traceparent_untrusted(traceparent)
    if came is None or not trusted:
        sampled = (bits & _LOW_64_BITS) < ratio * 2.0**64  # is_sampled(ids[32:], ratio) without the way back
        context = TraceContext(ids[32:], None, ids[:16], ids[16:32], sampled)
        if came is not None:
            context.link = came[:2]
        return context
    trace_id, parent_id, flags = came
    sampled = flags & _SAMPLED != 0 if parent_based else is_sampled(trace_id, ratio)
    context = TraceContext(trace_id, parent_id, ids[:16], ids[16:32], sampled)
    context.remote = True
    context.random = flags & _RANDOM != 0
    if tracestate:
        context.tracestate = check_tracestate_untrusted(tracestate)
    return context


def render_traceparent(context: TraceContext, span_id: bytes) -> bytes:
    """The header value that makes ``span_id`` (normally ``context.client_span_id``) the upstream's parent."""
    if context.sampled:
        flags = b"-03" if context.random else b"-01"
    else:
        flags = b"-02" if context.random else b"-00"
    return b"00-" + context.trace_id + b"-" + span_id + flags


def check_baggage(value: bytes) -> bool:
    """Whether baggage of a trusted peer may pass: within the W3C limits and printable. It is never parsed."""
    return len(value) <= BAGGAGE_BYTES and value.count(b",") < BAGGAGE_MEMBERS and value.isascii()
