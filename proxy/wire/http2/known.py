"""Small field blocks that were checked before: gRPC's response heads and trailers are nearly always the same. Pure.

Checking is a function of the fields alone as long as the limits allow anything so small, so its result is kept, in a
dictionary that is emptied when full. Fields that must never be indexed (RFC 7541 6.2.3) are not kept, because they
equal plain ones. Callers get a list of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from proxy.wire.events import Field, Headers, ResponseHead
from proxy.wire.framing import check_sizes
from proxy.wire.limits import WireLimits
from proxy.wire.validate import check_h2_response, check_trailers

_MOST_FIELDS: Final = 6
_MOST_BYTES: Final = 512
_MOST_KNOWN: Final = 512
_LEAST_HEAD: Final = 1024  # below such limits nothing is taken as known
_Fields = Sequence[Field]
_responses: Final[dict[tuple[Field, ...], tuple[int, Headers, int | None]]] = {}
_trailers: Final[dict[tuple[Field, ...], Headers]] = {}


def _key(fields: _Fields, limits: WireLimits) -> tuple[Field, ...] | None:
    if len(fields) > _MOST_FIELDS or limits.head < _LEAST_HEAD or limits.header < _MOST_BYTES:
        return None
    for field in fields:
        if type(field) is not tuple:
            return None
    return tuple(fields)


def _is_small(fields: _Fields) -> bool:
    return sum([len(name) + len(value) for name, value in fields]) <= _MOST_BYTES


def response_head(fields: _Fields, method: bytes, limits: WireLimits) -> ResponseHead:
    """``check_h2_response``. Raises MalformedResponse."""
    key = _key(fields, limits)
    known = _responses.get(key) if key is not None else None
    if known is not None:
        return ResponseHead(known[0], known[1].copy(), length=known[2])
    head = check_h2_response(fields, request_method=method, limits=limits)
    if key is not None and head.upgrade is None and _is_small(fields):
        if len(_responses) >= _MOST_KNOWN:
            _responses.clear()
        _responses[key] = (head.status, head.headers.copy(), head.length)
    return head


def trailers(fields: _Fields, limits: WireLimits, *, of_response: bool = False) -> Headers:
    """``check_sizes`` and ``check_trailers``. Raises MalformedRequest."""
    key = _key(fields, limits) if of_response else None  # those of requests are rare
    known = _trailers.get(key) if key is not None else None
    if known is not None:
        return known.copy()
    check_sizes(fields, limits)
    checked = check_trailers(fields, of_response=of_response)
    if key is not None and _is_small(fields):
        if len(_trailers) >= _MOST_KNOWN:
            _trailers.clear()
        _trailers[key] = checked.copy()
    return checked
