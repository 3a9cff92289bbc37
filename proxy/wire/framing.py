"""What a head says about its own hop: legal bytes, how long the body is, what Connection lists. Pure.

Shared by requests (``validate.py``) and responses (``validate_response.py``): both are held to the same framing
rules, because a response that two parties frame differently poisons a pool as surely as a request does (S-31).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NoReturn

from proxy.errors import MalformedRequest
from proxy.wire.events import Field
from proxy.wire.limits import WireLimits

_VALUE_BYTES: Final = bytes(c for c in range(256) if c == 0x09 or (c >= 0x20 and c != 0x7F))  # RFC 9110 5.5
_LENGTH: Final = re.compile(rb"0|[1-9][0-9]{0,17}")  # below 2^63; a leading zero is octal to some, so refused
_PSEUDO_HEADERS: Final = 4  # they come on top of the fields L-3 counts
# Registered codings that a Transfer-Encoding may list and that we do not undo (RFC 9112 7).
_CODINGS: Final = frozenset({b"gzip", b"x-gzip", b"deflate", b"compress", b"x-compress"})
OPTIONS_OF_OURS: Final = frozenset({b"close", b"keep-alive", b"te", b"upgrade", b"trailers"})
NO_OPTIONS: Final[frozenset[bytes]] = frozenset()
_KNOWN_OPTIONS: Final = {
    **{text: frozenset({b"keep-alive"}) for text in (b"keep-alive", b"Keep-Alive")},
    **{text: frozenset({b"close"}) for text in (b"close", b"Close")},
    **{text: frozenset({b"upgrade"}) for text in (b"upgrade", b"Upgrade")},
}


def check_values(fields: Sequence[Field], *, strict_space: bool = False) -> bool:
    """True when every value is free of controls (RFC 9110 5.5) and, if asked, of white space at its ends."""
    values = [value for _, value in fields]
    if b"".join(values).translate(None, _VALUE_BYTES):
        return False
    return not strict_space or [value.strip(b" \t") for value in values] == values


def list_members(value: bytes) -> list[bytes]:
    """The lower-case members of a comma-separated list; empty ones are skipped (RFC 9110 5.6.1)."""
    members = (member.strip(b" \t") for member in value.lower().split(b","))
    return [member for member in members if member]


def refuse(reason: str, detail: bytes | str = "") -> NoReturn:
    raise MalformedRequest(detail if isinstance(detail, str) else repr(detail[:128]), reason=reason)


def connection_options(found: dict[bytes, bytes]) -> frozenset[bytes]:
    """The lower-case members of Connection (RFC 9110 7.6.1)."""
    value = found.get(b"connection")
    if value is None:
        return NO_OPTIONS
    return _KNOWN_OPTIONS.get(value) or frozenset(list_members(value))


def _parse_length(value: bytes) -> int:
    if not _LENGTH.fullmatch(value):
        refuse("bad_content_length", value)
    return int(value)


def _check_chunked(value: bytes) -> None:
    """Only ``chunked`` alone is spoken here (RFC 9112 6.1)."""
    coding = value.lower()
    if coding == b"chunked":
        return
    members = [member.strip(b" \t") for member in coding.split(b",")]
    if members[-1] == b"chunked" and len(members) > 1 and _CODINGS.issuperset(members[:-1]):
        refuse("encoding_unsupported", value)
    refuse("bad_transfer_encoding", value)


def body_length(found: dict[bytes, bytes], version: int) -> int | None:
    """How long the body is by its framing fields; None when only its end will tell."""
    encoding, length = found.get(b"transfer-encoding"), found.get(b"content-length")
    if encoding is not None:
        _check_chunked(encoding)
        if length is not None:
            refuse("bad_transfer_encoding", "beside content-length")
        if version == 10:
            refuse("bad_transfer_encoding", "in HTTP/1.0")
        return None
    if length is not None:
        return _parse_length(length)
    return None if version == 20 else 0


def check_sizes(fields: Sequence[Field], limits: WireLimits) -> None:
    """L-2 counts as RFC 9113 6.5.2 does: name, value and 32 bytes a field."""
    if len(fields) > limits.headers + _PSEUDO_HEADERS:
        refuse("too_many_headers")
    sizes = [len(name) + len(value) for name, value in fields]
    if sum(sizes) + 32 * len(sizes) > limits.head or (sizes and max(sizes) > limits.header):
        refuse("head_too_large")
