"""The control point between codec and policy: every head of either protocol passes through here. Pure.

The codecs (llhttp, nghttp2, h2) let through what a proxy must not: two Hosts, an authority beside a different
Host, CONNECT, underscore twins of identity headers, paths with spaces. So nothing is believed because a codec
accepted it. One set of rules makes a ``RequestHead`` of a field list, the same for HTTP/1.1 and HTTP/2, and
what comes out is in one canonical form: judged by policy, logged, and forwarded from that same object.

Where an RFC lets a proxy choose between repairing and refusing what frames a message, routes it or says who
sent it, it is refused. What only concerns this hop is taken out of the field list and said in attributes
(``length``, ``keep_alive``, ``te_trailers``, ``upgrade``, ``expects_continue``); the next hop's engine says it
anew in its own words. What only we may say (``IDENTITY_HEADERS``) is dropped in every spelling (S-8).

One pass looks up each name once (``names.KINDS``); values are checked joined, with one ``bytes.translate``.
A message is refused by raising ``MalformedRequest`` or ``MalformedResponse`` whose reason is a word of
``proxy.errors.MALFORMED``. Sources: RFC 9110, 9112, 9113 8.2-8.3, 6455; ids such as S-16 name our requirements.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Final, NoReturn

from proxy.wire.authority import parse_authority, same_authority
from proxy.wire.events import Field, Headers, RequestHead
from proxy.wire.framing import (
    NO_OPTIONS,
    OPTIONS_OF_OURS,
    body_length,
    check_sizes,
    check_values,
    connection_options,
    list_members,
    refuse,
)
from proxy.wire.grpc import is_grpc
from proxy.wire.limits import WireLimits
from proxy.wire.names import (
    CONNECTION_SPECIFIC,
    COOKIE,
    HOP,
    IDENTITY_HEADERS,
    KEPT_ONCE,
    KINDS,
    NOT_IN_TRAILERS,
    ONCE,
    OURS,
    PLAIN,
    PROTECTED_HEADERS,
    UNDERSCORE,
    fold,
    is_ours,
    is_token,
    learn,
)
from proxy.wire.path import canonical_path, istio_target
from proxy.wire.validate_response import check_h2_response, check_response, frame_response

__all__ = [
    "IDENTITY_HEADERS",
    "METHODS",
    "check_h2_request",
    "check_h2_response",
    "check_request",
    "check_response",
    "check_trailers",
    "check_values",
    "frame_response",
    "list_members",
    "refuse_method",
]

# What llhttp knows as HTTP methods (RFC 9110, 5789, WebDAV, UPnP, QUERY), without those refused below. Case matters.
METHODS: Final = frozenset(
    b"GET HEAD POST PUT DELETE OPTIONS PATCH QUERY ACL BIND CHECKOUT COPY LINK LOCK M-SEARCH MERGE MKACTIVITY "
    b"MKCALENDAR MKCOL MOVE NOTIFY PROPFIND PROPPATCH PURGE REBIND REPORT SEARCH SUBSCRIBE UNBIND UNLINK UNLOCK "
    b"UNSUBSCRIBE".split()
)
_NOT_ALLOWED: Final = frozenset({b"CONNECT", b"TRACE", b"TRACK"})  # 2.3, S-20

# RFC 3986 3.4 and what browsers leave as it is in a query; no space, control, 8-bit or fragment.
_QUERY_BYTES: Final = bytes(c for c in range(0x21, 0x7F) if c not in b'"#<>')
_ABSOLUTE: Final = re.compile(rb"(?i:https?)://([^/?]*)(.*)", re.DOTALL)


def _sort_fields(
    fields: Sequence[Field], version: int, drop_underscore: bool
) -> tuple[Headers, dict[bytes, bytes]]:
    """Field list -> (end-to-end fields, those we act on by name). Names are checked, values are not."""
    headers: Headers = []
    keep = headers.append
    found: dict[bytes, bytes] = {}
    kinds = KINDS.get
    for field in fields:
        name = field[0]
        kind = kinds(name)
        if kind is None:
            kind = learn(name)
        if kind == PLAIN:
            keep(field)
        elif kind <= ONCE:
            if name in found:
                refuse("duplicate_header", name)
            found[name] = field[1]
            if kind == KEPT_ONCE:
                keep(field)
        elif kind == UNDERSCORE:
            if not drop_underscore:
                refuse("underscore_header", name)
        elif kind != OURS:
            _collect(found, kind, name, field[1], version)
    return headers, found


def _collect(found: dict[bytes, bytes], kind: int, name: bytes, value: bytes, version: int) -> None:
    if kind == HOP:
        if version == 20 and name in CONNECTION_SPECIFIC:
            refuse("connection_header", name)
        return
    before = found.get(name)
    separator = b"; " if kind == COOKIE else b", "
    found[name] = value if before is None else before + separator + value


def _check_nominated(options: frozenset[bytes]) -> frozenset[bytes]:
    """The names a request's Connection header nominates for removal. Refuses protected ones (S-8, S-15)."""
    nominated = options - OPTIONS_OF_OURS
    for name in nominated:
        if not is_token(name):
            refuse("connection_header", name)
        if fold(name) in PROTECTED_HEADERS or is_ours(name) or name.startswith(b"sec-websocket-"):
            refuse("connection_header", name)
    return nominated


# -- requests --------------------------------------------------------------------------------------------


def check_request(
    method: bytes,
    scheme: bytes,
    authority: bytes,
    target: bytes,
    fields: Sequence[Field],
    *,
    version: int,
    limits: WireLimits,
) -> RequestHead:
    """One request as a codec read it -> its canonical head. Raises MalformedRequest.

    ``authority`` is HTTP/2's pseudo-header or b""; ``target`` is the request target as sent; ``fields`` are
    all others with lower-case names, Host included; ``version`` is 10, 11 or 20.
    """
    if method not in METHODS:
        refuse_method(method)
    if scheme not in (b"https", b"http"):
        refuse("bad_scheme", scheme)
    if len(fields) > limits.headers:
        refuse("too_many_headers")
    if not check_values(fields, strict_space=version == 20):
        refuse("bad_header_value")
    headers, found = _sort_fields(fields, version, limits.underscore == "drop")
    options = NO_OPTIONS
    if b"connection" in found:
        options = connection_options(found)
        if not options <= OPTIONS_OF_OURS:
            nominated = _check_nominated(options)
            headers = [field for field in headers if field[0] not in nominated]
    if target[:1] != b"/" and version != 20:
        authority, target = _split_absolute(method, target)
    path, target = _check_target(method, target, limits)
    if limits.authority == "ignore":
        authority = host = b"localhost"
    else:
        authority, host = _check_authority(authority, found.get(b"host"), scheme, version)
    head = RequestHead(
        method=method,
        scheme=scheme,
        authority=authority,
        host=host,
        path=path,
        target=target,
        headers=headers,
        version=version,
        length=body_length(found, version),
        keep_alive=version != 10 and b"close" not in options,
    )
    if found.keys() != _USUAL:
        _apply_rarer(head, found, options, limits)
    return head


_USUAL: Final = {b"host"}


def refuse_method(method: bytes) -> NoReturn:
    """Raise for a method that is not one of ``METHODS`` (S-20, S-26)."""
    if method in _NOT_ALLOWED:
        refuse("method_not_allowed", method)
    if is_token(method.lower()):
        refuse("method_unknown", method)
    refuse("bad_request_line", method)


def _split_absolute(method: bytes, target: bytes) -> tuple[bytes, bytes]:
    """Absolute-form -> (authority, origin-form) (RFC 9112 3.2.2); ``*`` stays for ``_check_target``."""
    if target == b"*":
        return b"", target
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        refuse("bad_target", target)
    authority, rest = match[1], match[2]
    if not authority:
        refuse("bad_host", target)
    if rest[:1] != b"/":
        rest = b"*" if method == b"OPTIONS" and not rest else b"/" + rest
    return authority, rest


def _check_target(method: bytes, target: bytes, limits: WireLimits) -> tuple[bytes, bytes]:
    """Origin-form or ``*`` -> (canonical path, canonical target)."""
    if target[:1] != b"/":
        if target != b"*" or method != b"OPTIONS":
            refuse("bad_target", target)
        return target, target
    if limits.path_normalization != "strict":
        return _istio_target(target, limits)
    mark = target.find(b"?")
    if mark < 0:
        path = canonical_path(target, escaped_slash=limits.escaped_slash)
        return path, path
    query = target[mark:]
    if query.translate(None, _QUERY_BYTES):
        refuse("bad_target", target)
    path = canonical_path(target[:mark], escaped_slash=limits.escaped_slash)
    return path, path + query


def _istio_target(target: bytes, limits: WireLimits) -> tuple[bytes, bytes]:
    path, whole = istio_target(target, limits.path_normalization)
    if whole[len(path) :].translate(None, _QUERY_BYTES):
        refuse("bad_target", target)
    return path, whole


def _check_authority(
    authority: bytes, host: bytes | None, scheme: bytes, version: int
) -> tuple[bytes, bytes]:
    """-> (authority, host) in canonical form. HTTP/1.1: absolute-form replaces Host; HTTP/2: they must agree."""
    if host is None:
        if version != 20:
            refuse("bad_host", "absent")
        return parse_authority(authority)
    parsed = parse_authority(host)
    if not authority:
        return parsed
    stated = parse_authority(authority)
    if version == 20 and not same_authority(stated[0], parsed[0], scheme):
        refuse("bad_host", "differs from :authority")
    return stated


def _apply_rarer(
    head: RequestHead, found: dict[bytes, bytes], options: frozenset[bytes], limits: WireLimits
) -> None:
    content_type = found.get(b"content-type")
    if content_type is not None:
        head.is_grpc = _check_content_type(content_type)
    if b"cookie" in found:
        head.headers.append((b"cookie", found[b"cookie"]))
    if head.version == 20 and not CONNECTION_SPECIFIC.isdisjoint(found):
        refuse("connection_header")
    if head.length and limits.body and head.length > limits.body:
        refuse("body_too_large")
    te = found.get(b"te")
    if te is not None:
        _apply_te(head, te)
    expectation = found.get(b"expect")
    if expectation is not None:
        _apply_expect(head, expectation)
    if b"upgrade" in found:
        _apply_upgrade(head, found, options)


def _check_content_type(value: bytes) -> bool:
    """Whether the type is gRPC. A comma outside of quotes joins two types, which is as bad as two lines (2.3)."""
    if b"," in value and any(b"," in part for part in value.split(b'"')[::2]):
        refuse("duplicate_header", "content-type")
    return is_grpc(value)


def _apply_te(head: RequestHead, te: bytes) -> None:
    if head.version == 20 and te.lower() != b"trailers":  # RFC 9113 8.2.2
        refuse("connection_header", te)
    head.te_trailers = any(member.split(b";")[0].strip(b" \t") == b"trailers" for member in list_members(te))


def _apply_expect(head: RequestHead, expectation: bytes) -> None:
    """S-14. An HTTP/1.0 caller's expectation is ignored (RFC 9110 10.1.1); without a body nothing is waited for."""
    if expectation.lower() != b"100-continue":
        refuse("expectation_failed", expectation)
    head.expects_continue = head.version != 10 and head.length != 0


def _apply_upgrade(head: RequestHead, found: dict[bytes, bytes], options: frozenset[bytes]) -> None:
    """S-30: a sound WebSocket handshake is passed on, any other Upgrade is taken out.

    After a WebSocket handshake that was not sound the caller may send anything: the connection is closed.
    """
    if b"websocket" not in list_members(found[b"upgrade"]):
        return
    sound = (
        head.method == b"GET"
        and head.version == 11
        and head.length == 0
        and b"upgrade" in options
        and found[b"upgrade"].lower() == b"websocket"
        and found.get(b"sec-websocket-version") == b"13"
        and _is_key(found.get(b"sec-websocket-key", b""))
    )
    if sound:
        head.upgrade = b"websocket"
    else:
        head.keep_alive = False


def _is_key(value: bytes) -> bool:
    """RFC 6455 4.1: 16 bytes in base64."""
    if len(value) != 24:
        return False
    try:
        return len(base64.b64decode(value, validate=True)) == 16
    except binascii.Error:
        return False


def check_h2_request(fields: Sequence[Field], limits: WireLimits) -> RequestHead:
    """A decoded HTTP/2 field block -> the canonical head (S-16, S-20, L-2..L-4). Raises MalformedRequest."""
    check_sizes(fields, limits)
    pseudo: dict[bytes, bytes] = {}
    place = 0
    for name, value in fields:
        if name[:1] != b":":
            break
        if name not in _REQUEST_PSEUDO or name in pseudo:
            refuse("bad_pseudo_header", name)
        pseudo[name] = value
        place += 1
    authority = pseudo.get(b":authority")
    if len(pseudo) - (authority is not None) != 3:
        if pseudo.get(b":method") in _NOT_ALLOWED:  # a plain CONNECT has no :scheme and :path (RFC 9113 8.5)
            refuse("method_not_allowed")
        refuse("bad_pseudo_header", "missing")
    if authority == b"" and limits.authority == "check":
        refuse("bad_host", "empty :authority")
    return check_request(
        pseudo[b":method"],
        pseudo[b":scheme"],
        authority or b"",
        pseudo[b":path"],
        fields[place:],
        version=20,
        limits=limits,
    )


_REQUEST_PSEUDO: Final = frozenset({b":method", b":scheme", b":authority", b":path"})


# -- trailers --------------------------------------------------------------------------------------------


def check_trailers(fields: Sequence[Field], *, of_response: bool = False) -> Headers:
    """Trailer fields -> those that may pass (S-8, RFC 9110 6.5.1). Raises MalformedRequest for illegal bytes.

    What would frame, route, authenticate or name the caller is dropped in every spelling, never merged. A response's
    may say why it was refused, as its head may.
    """
    for name, _ in fields:
        if name[:1] == b":":
            refuse("bad_pseudo_header", name)
        if not is_token(name):
            refuse("bad_trailer", name)
    if not check_values(fields, strict_space=True):
        refuse("bad_trailer", "value")
    return [field for field in fields if _may_trail(fold(field[0])) or (of_response and field[0] in _TOLD)]


_TOLD: Final = frozenset({b"x-sidewall-reason", b"x-sidewall-decision"})


def _may_trail(folded: bytes) -> bool:
    if folded in NOT_IN_TRAILERS or is_ours(folded):
        return False
    return not folded.startswith((b"proxy-", b"sec-websocket-"))
