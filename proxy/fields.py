"""One pass over a request's fields that picks out those a hop reads or rewrites. Pure."""

from __future__ import annotations

import random
from typing import Final

from proxy.wire.events import Headers


class Sorted:
    """``kept`` are the fields that pass on unchanged; the rest is b"" when absent."""

    __slots__ = (
        "baggage",
        "forwarded_for",
        "grpc_timeout",
        "kept",
        "request_id",
        "traceparent",
        "tracestate",
        "user_agent",
        "via",
    )

    def __init__(self) -> None:
        self.kept: Headers = []
        self.baggage = b""
        self.forwarded_for = b""
        self.grpc_timeout = b""
        self.request_id = b""
        self.traceparent: bytes | None = None
        self.tracestate: bytes | None = None
        self.user_agent = b""
        self.via = b""


_REQUEST_ID_LENGTH: Final = 128
_BAGGAGE_LENGTH: Final = 8192  # W3C Baggage, 3.3.2: what must be passed on; more is dropped


def sort_fields(headers: Headers) -> Sorted:
    """Sort the validated fields of a request. Repeated list fields are joined (RFC 9110, 5.3)."""
    out = Sorted()
    keep = out.kept.append
    special = _SPECIAL
    for field in headers:
        attribute = special.get(field[0])
        if attribute is None:
            keep(field)
        elif attribute:
            _take(out, attribute, field[1])
            if attribute in _ALSO_KEPT:
                keep(field)
    if len(out.request_id) > _REQUEST_ID_LENGTH:
        out.request_id = b""
    if len(out.baggage) > _BAGGAGE_LENGTH:
        out.baggage = b""
    return out


# "" = dropped: only this hop may say it, and it says it in its own words.
_SPECIAL: Final = {
    b"baggage": "baggage",
    b"x-forwarded-for": "forwarded_for",
    b"x-forwarded-proto": "",
    b"x-forwarded-host": "",
    b"forwarded": "",
    b"grpc-timeout": "grpc_timeout",
    b"x-request-id": "request_id",
    b"traceparent": "traceparent",
    b"tracestate": "tracestate",
    b"user-agent": "user_agent",
    b"via": "via",
}
_ALSO_KEPT: Final = frozenset({"grpc_timeout", "user_agent"})


def _take(out: Sorted, attribute: str, value: bytes) -> None:
    before = getattr(out, attribute)
    setattr(out, attribute, before + b", " + value if before else value)


def new_request_id(rng: random.Random) -> bytes:
    """A random UUID (version 4) as text."""
    text = b"%032x" % rng.getrandbits(128)
    variant = _VARIANT[text[16]]
    return b"%b-%b-4%b-%b%b-%b" % (text[:8], text[8:12], text[13:16], variant, text[17:20], text[20:])


# RFC 9562 4.1: the two highest bits of that digit are 10.
_VARIANT: Final = {digit: b"89ab"[int(chr(digit), 16) & 3 :][:1] for digit in b"0123456789abcdef"}
