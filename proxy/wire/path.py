"""The canonical path: what policy judges, what is logged, and what is forwarded (S-23). Pure.

Most bypasses of proxies' path rules are two readings of one path: the proxy matches ``/public/..%2Fadmin``
against its rules, the server behind it decodes and serves ``/admin``. So there is one reading, made here, and
the server gets the bytes this module wrote, never those that came in:

1. escapes of unreserved characters are decoded, exactly once; the others get upper-case digits (RFC 3986 6.2.2);
2. dot segments are removed (RFC 3986 5.2.4);
3. ``//`` is merged to ``/``.

The result is a fixed point: a canonical path is its own canonical path. What cannot be brought to one reading is
refused, whichever way the setting stands: a backslash, ``%00``, a malformed escape, ``..;`` (path parameters
that Java servers cut off before they resolve dots), and dots that hide behind an escape. Escaped slashes and
backslashes, plain (``%2F``) or escaped twice (``%252F``), are refused with ``escaped_slash="reject"``; with
``"keep"`` they stay, as data inside a segment, except where a server that decodes them would see a dot segment.

``istio_target`` is what Istio's meshConfig calls pathNormalization (AUTHZ 8), for those who bring policies that
were written for it: it mends where we refuse, so that more gets through, always as the very bytes that policy saw.
In two things it is stricter than Istio: a segment that still is dots with parameters after all steps is refused,
where Istio forwards it and a Java server would climb; and a path of slashes alone is merged to one, not to two.
"""

from __future__ import annotations

import re
from typing import Final

from proxy.errors import MalformedRequest

# RFC 3986 pchar, "/", and what browsers leave unescaped: ^ ` { | } [ ]. No control, space, 8-bit, " # < > ?
_PATH_BYTES: Final = bytes(c for c in range(0x21, 0x7F) if c not in b'"#<>?\\')
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_MALFORMED_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_HIDDEN_DOTS: Final = re.compile(rb"(?:^|/)(?:\.|%2[eE]){1,2}(?=/|\Z)")
_SLASHES: Final = re.compile(rb"//+")
# A segment of dots with parameters, "..;x", also with the semicolon escaped.
_DOTS_SEMICOLON: Final = re.compile(rb"(?:^|/)\.\.?(?:;|%3B)")
# What follows "%25" is plain text and kept as it came, so its case is open.
_ESCAPED_SLASH: Final = re.compile(rb"%(?:25)*(?:2[Ff]|5[Cc])")
_ESCAPED_TWICE: Final = re.compile(rb"%(?:25)+(?:2[FfEe]|5[Cc]|00)")


NORMALIZATIONS: Final = ("NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES")  # Istio's names
_VISIBLE: Final = bytes(range(0x21, 0x7F))
_DOTS_WITH_PARAMETERS: Final = re.compile(rb"/(\.\.?);[^/]*")
_LEFT_AS_DOTS: Final = re.compile(rb"/\.\.?(?:;|%3[bB])")
_NOW_AN_ESCAPE: Final = re.compile(rb"\0(?=[0-9A-Fa-f]{2})")
_ESCAPED_NUL: Final = re.compile(rb"%00")
_UNSAFE: Final = re.compile(rb"[\"<>^`{|}]")


def _refuse(raw: bytes, why: str) -> MalformedRequest:
    return MalformedRequest(f"{why}: {raw[:128]!r}", reason="bad_path")


def canonical_path(raw: bytes, *, escaped_slash: str) -> bytes:
    """The canonical form of an absolute path without query. ``escaped_slash`` is "reject" or "keep".

    Raises MalformedRequest("bad_path") for what has no single reading.
    """
    if raw[:1] != b"/" or raw.translate(None, _PATH_BYTES):
        raise _refuse(raw, "not the path of a URI")
    if b"%" in raw:
        raw = _decode_once(raw, escaped_slash)
    if b"/." in raw:
        raw = _without_dots(raw)
    return _SLASHES.sub(b"/", raw) if b"//" in raw else raw


def _decode_once(raw: bytes, escaped_slash: str) -> bytes:
    if _MALFORMED_ESCAPE.search(raw):
        raise _refuse(raw, "malformed escape")
    for match in _HIDDEN_DOTS.finditer(raw):
        if b"%" in match[0]:
            raise _refuse(raw, "escaped dot segment")
    decoded = _ESCAPE.sub(_unreserved, raw)
    if b"%00" in decoded:
        raise _refuse(raw, "escaped NUL")
    if escaped_slash != "keep":
        if _ESCAPED_SLASH.search(decoded) or _ESCAPED_TWICE.search(decoded):
            raise _refuse(raw, "escaped slash")
    else:
        _check_kept(raw, decoded)
    return decoded


def _unreserved(match: re.Match[bytes]) -> bytes:
    code = int(match[1], 16)  # two hex digits, checked by the pattern
    return bytes((code,)) if code in _UNRESERVED else match[0].upper()


def _check_kept(raw: bytes, decoded: bytes) -> None:
    # "..%2Fadmin" is a dot segment to a server that decodes: kept slashes may not stand beside dots.
    slashed = _ESCAPED_SLASH.sub(b"/", decoded)
    pieces, before = slashed.split(b"/"), decoded.split(b"/")
    if _DOTS_SEMICOLON.search(slashed):
        raise _refuse(raw, "dots with parameters")
    for dots in (b".", b".."):
        if pieces.count(dots) != before.count(dots):
            raise _refuse(raw, "escaped slash beside dots")


def _without_dots(path: bytes) -> bytes:
    """Remove dot segments (RFC 3986 5.2.4). A path never climbs above its root."""
    if _DOTS_SEMICOLON.search(path):
        raise _refuse(path, "dots with parameters")
    return _resolve_dots(path)


def _resolve_dots(path: bytes) -> bytes:
    out: list[bytes] = []
    segments = path.split(b"/")[1:]
    for segment in segments:
        if segment == b"..":
            if out:
                out.pop()
        elif segment != b".":
            out.append(segment)
    if segments[-1] in (b".", b".."):
        out.append(b"")  # "/a/." names the directory: its slash stays
    return b"/" + b"/".join(out)


def istio_target(raw: bytes, normalization: str) -> tuple[bytes, bytes]:
    """The path that policy judges, and the target that is forwarded: the path with its query. ``normalization`` is
    one of NORMALIZATIONS. Raises MalformedRequest("bad_path")."""
    if raw[:1] != b"/" or raw.translate(None, _VISIBLE):
        raise _refuse(raw, "not the path of a URI")
    path, mark, query = raw.partition(b"#")[0].partition(b"?")
    if normalization == "DECODE_AND_MERGE_SLASHES":
        path = _decode_slashes(path)
    if normalization != "NONE":
        path = _as_envoy(path)
    if normalization.endswith("MERGE_SLASHES"):
        path = _SLASHES.sub(b"/", path)
    return path, path + mark + query


def _decode_slashes(path: bytes) -> bytes:
    path = path.replace(b"%2F", b"/").replace(b"%2f", b"/")
    return path.replace(b"%5C", b"\\").replace(b"%5c", b"\\")


def _as_envoy(path: bytes) -> bytes:
    """Steps 3 and 4 of AUTHZ 8. Other than in ours, escapes keep the case of their digits, what is no escape stays,
    and empty segments count."""
    path = _DOTS_WITH_PARAMETERS.sub(rb"/\1", path).replace(b"\\", b"/")
    if b"%" in path:
        path = _ESCAPE.sub(_unreserved_only, _MALFORMED_ESCAPE.sub(b"\0", path))
        # A "%" that is no escape stays one, also when what follows it has been decoded to digits.
        path = _NOW_AN_ESCAPE.sub(b"%25", path).replace(b"\0", b"%")
    if _ESCAPED_NUL.search(path):
        raise _refuse(path, "escaped NUL")
    path = _resolve_dots(path) if b"/." in path else path
    if _LEFT_AS_DOTS.search(path):
        raise _refuse(path, "dots with parameters")
    return _UNSAFE.sub(_escaped, path)


def _escaped(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % ord(match[0])


def _unreserved_only(match: re.Match[bytes]) -> bytes:
    code = int(match[1], 16)
    return bytes((code,)) if code in _UNRESERVED else match[0]
