"""What protocol the first bytes of a connection speak. Pure, and never in doubt for long: at most 24 bytes decide."""

from __future__ import annotations

from typing import Final, Literal

Protocol = Literal["h2", "http1", "tls", "unknown", "more"]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 3.4
_TLS_HANDSHAKE: Final = b"\x16\x03"  # record type handshake, legacy version 3.x (RFC 8446 5.1)
_LONGEST_METHOD: Final = 16
_LONGEST_LEAD: Final = 4 * 2 + _LONGEST_METHOD  # empty lines before a request line, L-5
_TOKEN: Final = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


def sniff(data: bytes) -> Protocol:
    """First bytes -> protocol; "more" when they are too few to say.

    "h2" only after the whole client preface; "http1" when a method is followed by a space.
    """
    if PREFACE.startswith(data[: len(PREFACE)]):
        return "h2" if len(data) >= len(PREFACE) else "more"
    if _TLS_HANDSHAKE.startswith(data[:2]):
        return "tls" if len(data) >= 2 else "more"
    start = data[:_LONGEST_LEAD].lstrip(b"\r\n")
    if not start and len(data) >= _LONGEST_LEAD:
        return "unknown"
    return _sniff_method(start)


def _sniff_method(data: bytes) -> Protocol:
    for place, byte in enumerate(data[: _LONGEST_METHOD + 1]):
        if byte == 0x20:
            return "http1" if place else "unknown"
        if byte not in _TOKEN:
            return "unknown"
    return "unknown" if len(data) > _LONGEST_METHOD else "more"
