"""What a header name means to us: one look-up per field, the same for HTTP/1.1 and HTTP/2. Pure.

``kind_of`` sorts a lower-case name into one of the kinds below. Known names are looked up in a dictionary that is
filled at import with what traffic is made of, and learns valid names up to a bound (an attacker who sends
random names gains nothing but the slower path for them).

Two spellings are the same name when they are equal after lower-casing and mapping "_" to "-": CGI-like
servers (WSGI, PHP, CGI) see no difference, which is how identity headers have been forged past proxies (S-8, S-9).
"""

from __future__ import annotations

import re
from typing import Final

from proxy.errors import MalformedRequest

PLAIN: Final = 0  # end-to-end, any number of lines
KEPT_ONCE: Final = 1  # end-to-end, a second line is refused
ONCE: Final = 2  # for this hop (framing, routing), a second line is refused
LIST: Final = 3  # for this hop, lines are joined with ", "
COOKIE: Final = 4  # end-to-end, lines (crumbs, RFC 9113 8.2.3) are joined with "; "
HOP: Final = 5  # hop-by-hop, dropped; refused on HTTP/2 where it is connection-specific (RFC 9113 8.2.2)
OURS: Final = 6  # only we may say it: dropped (S-8)
UNDERSCORE: Final = 7  # S-9

# S-8: whatever tells the app who called, or what we decided. Everything under x-sidewall- belongs here too.
IDENTITY_HEADERS: Final = frozenset(
    {
        b"x-forwarded-client-cert",
        b"x-sidewall-decision",
        b"x-sidewall-identity",
        b"x-sidewall-peer",
        b"x-sidewall-reason",
        b"x-sidewall-trace",
    }
)
_OUR_PREFIX: Final = b"x-sidewall-"

FRAMING_HEADERS: Final = frozenset({b"content-length", b"transfer-encoding"})

# RFC 9113 8.2.2: a message with one of these is malformed on HTTP/2.
CONNECTION_SPECIFIC: Final = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"http2-settings"}
)

# S-15: a Connection header that nominates one of these asks us to take off what security rests on.
PROTECTED_HEADERS: Final = (
    IDENTITY_HEADERS
    | FRAMING_HEADERS
    | {
        b"authorization",
        b"content-encoding",
        b"content-type",
        b"cookie",
        b"expect",
        b"forwarded",
        b"host",
        b"origin",
        b"traceparent",
        b"tracestate",
        b"via",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-proto",
        b"x-real-ip",
        b"x-request-id",
    }
)

# RFC 9110 6.5.1: fields that frame, route, authenticate or modify a message have no business in trailers.
NOT_IN_TRAILERS: Final = PROTECTED_HEADERS | {
    b"age",
    b"cache-control",
    b"connection",
    b"content-location",
    b"content-range",
    b"date",
    b"expires",
    b"http2-settings",
    b"if-match",
    b"if-modified-since",
    b"if-none-match",
    b"if-range",
    b"if-unmodified-since",
    b"keep-alive",
    b"location",
    b"max-forwards",
    b"pragma",
    b"range",
    b"retry-after",
    b"set-cookie",
    b"te",
    b"trailer",
    b"upgrade",
    b"vary",
    b"warning",
    b"www-authenticate",
}

_ONCE: Final = (b"host", b"content-length", b"transfer-encoding", b"expect", b"upgrade")
_KEPT_ONCE: Final = (b"authorization", b"content-type", b"x-request-id", b"traceparent", b"grpc-timeout")
_COMMON: Final = (
    b"accept accept-charset accept-encoding accept-language accept-ranges "
    b"access-control-allow-origin age baggage cache-control content-disposition content-encoding "
    b"content-language content-location content-range date dnt etag expires forwarded from "
    b"grpc-accept-encoding grpc-encoding grpc-message grpc-status if-match if-modified-since "
    b"if-none-match if-range if-unmodified-since last-modified link location max-forwards origin "
    b"pragma priority range referer retry-after sec-fetch-dest sec-fetch-mode sec-fetch-site "
    b"sec-fetch-user server set-cookie strict-transport-security tracestate trailer user-agent "
    b"vary via warning www-authenticate x-content-type-options x-envoy-attempt-count "
    b"x-forwarded-for x-forwarded-host x-forwarded-port x-forwarded-proto x-frame-options "
    b"x-real-ip x-requested-with b3 x-b3-traceid x-b3-spanid x-b3-parentspanid x-b3-sampled "
).split()

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")  # RFC 9110 5.6.2, lower case
_MOST_KNOWN: Final = 1024
_LONGEST_KNOWN: Final = 64


def fold(name: bytes) -> bytes:
    """The form in which CGI-like servers compare names."""
    return name.lower().replace(b"_", b"-")


def is_token(name: bytes) -> bool:
    """True for a lower-case token (RFC 9110 5.6.2)."""
    return _TOKEN.fullmatch(name) is not None


def is_ours(name: bytes) -> bool:
    """True when only we may set ``name``, in whatever spelling (S-8)."""
    folded = fold(name)
    return folded in IDENTITY_HEADERS or folded.startswith(_OUR_PREFIX)


def _sort(name: bytes) -> int:
    if b"_" in name:
        return UNDERSCORE
    if is_ours(name):
        return OURS
    if name.startswith(b"sec-websocket-"):
        return KEPT_ONCE
    return HOP if name.startswith(b"proxy-") else PLAIN


def learn(name: bytes) -> int:
    """The kind of a name that is not in ``KINDS``. Raises MalformedRequest when it is not a lower-case token."""
    if not is_token(name):
        reason = "bad_pseudo_header" if name[:1] == b":" else "bad_header_name"
        raise MalformedRequest(repr(name[:64]), reason=reason)
    kind = _sort(name)
    if len(KINDS) < _MOST_KNOWN and len(name) <= _LONGEST_KNOWN:
        KINDS[name] = kind
    return kind


KINDS: Final[dict[bytes, int]] = {
    **dict.fromkeys(_COMMON, PLAIN),
    **dict.fromkeys(_KEPT_ONCE, KEPT_ONCE),
    **dict.fromkeys(_ONCE, ONCE),
    **dict.fromkeys((b"connection", b"te"), LIST),
    **dict.fromkeys((b"keep-alive", b"proxy-connection", b"http2-settings"), HOP),
    **dict.fromkeys(IDENTITY_HEADERS, OURS),
    b"cookie": COOKIE,
}
