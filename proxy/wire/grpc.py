"""The few facts about gRPC a proxy must know (gRPC over HTTP/2, PROTOCOL-HTTP2.md). Pure."""

from __future__ import annotations

import re
from typing import Final

STATUS_NAMES: Final = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)

# google.rpc.Code: the HTTP status that says the same; 499 is nginx's word for a caller that went away.
_TO_HTTP: Final = (200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401)

# gRPC "HTTP to gRPC Status Code Mapping": what a caller makes of an HTTP answer without grpc-status.
_FROM_HTTP: Final = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}

_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_STATUS: Final = re.compile(rb"(?:0|[1-9][0-9]?)")
_TO_ESCAPE: Final = re.compile(rb"[^\x20-\x24\x26-\x7e]")
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")


def is_grpc(content_type: bytes) -> bool:
    """True for ``application/grpc`` with an optional ``+proto`` or parameter; gRPC-Web is plain HTTP to us."""
    kind = content_type[:17].lower()
    return kind[:16] == b"application/grpc" and kind[16:] in (b"", b"+", b";", b" ")


def parse_grpc_timeout(value: bytes) -> float | None:
    """``grpc-timeout`` -> seconds; None when malformed (1 to 8 digits and one unit, nothing else)."""
    match = _TIMEOUT.fullmatch(value)
    return None if match is None else int(match[1]) * _UNITS[match[2]]


def render_grpc_timeout(seconds: float) -> bytes:
    """Seconds -> ``grpc-timeout``, in the finest unit that fits in 8 digits, rounded up; 0 when it has passed."""
    for unit, size in ((b"n", 1e-9), (b"u", 1e-6), (b"m", 1e-3), (b"S", 1.0), (b"M", 60.0), (b"H", 3600.0)):
        count = max(0, -int(-seconds / size // 1))
        if count < 100_000_000:
            return b"%d%b" % (count, unit)
    return b"99999999H"


def parse_grpc_status(value: bytes) -> int | None:
    """``grpc-status`` -> code; None when it is not a decimal number of one or two digits."""
    return int(value) if _STATUS.fullmatch(value) else None


def status_name(code: int) -> str:
    """The name of a gRPC status code; codes unknown to us count as UNKNOWN, as clients do."""
    return STATUS_NAMES[code] if 0 <= code < len(STATUS_NAMES) else "UNKNOWN"


def grpc_to_http(code: int) -> int:
    """The HTTP status that says the same as a gRPC status (google.rpc.Code)."""
    return _TO_HTTP[code] if 0 <= code < len(_TO_HTTP) else 500


def http_to_grpc(status: int) -> int:
    """What a gRPC caller makes of an HTTP answer that carries no grpc-status."""
    return _FROM_HTTP.get(status, 2)


def encode_message(text: str) -> bytes:
    """``grpc-message``: UTF-8, then everything but printable ASCII, and the percent sign, percent-encoded."""
    return _TO_ESCAPE.sub(lambda match: b"%%%02X" % match[0][0], text.encode("utf-8", "replace"))


def decode_message(value: bytes) -> str:
    """The reverse of ``encode_message``. Lenient as the gRPC text demands: malformed escapes stay as they are."""
    raw = _ESCAPE.sub(lambda match: bytes((int(match[1], 16),)), value)
    return raw.decode("utf-8", "replace")
