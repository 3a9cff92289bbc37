"""Response heads, read as strictly as requests: the app is not trusted with the next caller's answer (S-31). Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from proxy.errors import MalformedRequest, MalformedResponse
from proxy.wire.events import Field, Headers, ResponseHead
from proxy.wire.framing import (
    NO_OPTIONS,
    OPTIONS_OF_OURS,
    body_length,
    check_sizes,
    check_values,
    connection_options,
    refuse,
)
from proxy.wire.limits import WireLimits
from proxy.wire.names import (
    CONNECTION_SPECIFIC,
    COOKIE,
    FRAMING_HEADERS,
    HOP,
    KEPT_ONCE,
    KINDS,
    LIST,
    ONCE,
    PROTECTED_HEADERS,
    fold,
    learn,
)


def check_response(
    status: int,
    fields: Sequence[Field],
    *,
    version: int,
    request_method: bytes,
    limits: WireLimits,
) -> ResponseHead:
    """One response head as a codec read it -> its canonical form (S-31). Raises MalformedResponse.

    ``length`` of the result is what content-length says, also for HEAD and 304, which have no body.
    """
    return frame_response(status, fields, version=version, request_method=request_method, limits=limits)[0]


def frame_response(
    status: int,
    fields: Sequence[Field],
    *,
    version: int,
    request_method: bytes,
    limits: WireLimits,
) -> tuple[ResponseHead, bool, bool]:
    """``check_response`` -> (head, its body is chunked, the connection persists)."""
    try:
        return _frame_response(status, fields, version, request_method, limits)
    except MalformedRequest as error:
        raise MalformedResponse(error.detail, reason=error.reason) from None


def _frame_response(
    status: int,
    fields: Sequence[Field],
    version: int,
    request_method: bytes,
    limits: WireLimits,
) -> tuple[ResponseHead, bool, bool]:
    if not 100 <= status <= 599:
        refuse("bad_status_line", str(status))
    if len(fields) > limits.headers:
        refuse("too_many_headers")
    if not check_values(fields, strict_space=version == 20):
        refuse("bad_header_value")
    headers, found = _sort_response(fields)
    options = NO_OPTIONS
    if found:
        if version == 20 and not CONNECTION_SPECIFIC.isdisjoint(found):
            refuse("connection_header")
        options = connection_options(found)
        if options:
            headers = _without_nominated(headers, options)
    # An answer without framing fields goes on to the end of the connection, unless its status says otherwise.
    length = body_length(found, version) if not FRAMING_HEADERS.isdisjoint(found) else None
    chunked = b"transfer-encoding" in found
    if status < 200 or status == 204:
        length, chunked = None, False
    elif status == 304 or request_method == b"HEAD":
        chunked = False
    return ResponseHead(status, headers, length=length), chunked, version != 10 and b"close" not in options


def _sort_response(fields: Sequence[Field]) -> tuple[Headers, dict[bytes, bytes]]:
    """As ``_sort_fields``, but only framing may not be repeated, and "_" is no danger towards a caller."""
    headers: Headers = []
    found: dict[bytes, bytes] = {}
    kinds = KINDS.get
    for field in fields:
        name = field[0]
        kind = kinds(name)
        if kind is None:
            kind = learn(name)
        if kind <= KEPT_ONCE or kind == COOKIE:
            headers.append(field)
        elif kind in (ONCE, LIST):
            if name in found and kind == ONCE:
                refuse("duplicate_header", name)
            found[name] = found[name] + b", " + field[1] if name in found else field[1]
        elif kind == HOP:
            found[name] = field[1]
        elif fold(name) != b"x-forwarded-client-cert":  # S-8: never reflected; an x-sidewall-reason passes on
            headers.append(field)
    return headers, found


def _without_nominated(headers: Headers, options: frozenset[bytes]) -> Headers:
    nominated = options - OPTIONS_OF_OURS - PROTECTED_HEADERS
    return [field for field in headers if field[0] not in nominated] if nominated else headers


_STATUS: Final = re.compile(rb"[1-5][0-9]{2}")


def check_h2_response(
    fields: Sequence[Field], *, request_method: bytes = b"", limits: WireLimits
) -> ResponseHead:
    """A decoded HTTP/2 field block -> head; 1xx too, for the engine to tell apart. Raises MalformedResponse."""
    try:
        check_sizes(fields, limits)
        if not fields or fields[0][0] != b":status" or not _STATUS.fullmatch(fields[0][1]):
            refuse("bad_pseudo_header", ":status")
        if fields[0][1] == b"101":  # RFC 9113 8.6
            refuse("bad_upgrade")
    except MalformedRequest as error:
        raise MalformedResponse(error.detail, reason=error.reason) from None
    return check_response(
        int(fields[0][1]), fields[1:], version=20, request_method=request_method, limits=limits
    )
