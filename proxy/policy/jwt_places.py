"""Where tokens stand in a request, and what becomes of its head: all that touches headers and the query. Pure.

Two spellings are the same header when they are equal after lower-casing and mapping "_" to "-" (S-8): what only a
verified token may fill is removed in every spelling, from every request.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from config.resources.request_authentication import HeaderPlace, JwtRule
from proxy.wire.events import Headers

_LONGEST_VALUE: Final = 8192  # bytes of a header that is made of a claim
_BAD_IN_VALUE: Final = frozenset(bytes(range(0x20))) | {0x7F}
_USUAL_HEADERS: Final = (HeaderPlace("authorization", "Bearer "),)
_USUAL_PARAMS: Final = ("access_token",)


def canonical(name: bytes) -> bytes:
    """A name in lower case as one spelling of all."""
    return name.replace(b"_", b"-") if b"_" in name else name


class Places:
    """Where the tokens of one rule stand (AUTHZ 12): the usual places, unless the rule names any."""

    __slots__ = ("_cookies", "_headers", "_params")

    def __init__(self, rule: JwtRule) -> None:
        own = bool(rule.from_headers or rule.from_params or rule.from_cookies)
        headers = rule.from_headers if own else _USUAL_HEADERS
        params = rule.from_params if own else _USUAL_PARAMS
        self._headers = [(canonical(one.name.encode()), one.prefix.encode()) for one in headers]
        self._params = frozenset(name.encode() for name in params)
        self._cookies = frozenset(name.encode() for name in rule.from_cookies)

    def find(self, headers: Headers, target: bytes) -> list[bytes]:
        """Every token: headers first, then query parameters, then cookies."""
        found: list[bytes] = []
        for name, prefix in self._headers:
            for field in headers:
                if canonical(field[0]) == name and (token := _after(prefix, field[1], name)) is not None:
                    found.append(token)
        if self._params and b"?" in target:
            found += [unquote_to_bytes(pair.partition(b"=")[2]) for pair in _pairs(target) if self._is_ours(pair)]
        if self._cookies:
            found += self._in_cookies(headers)
        return found

    def _in_cookies(self, headers: Headers) -> Iterator[bytes]:
        for field in headers:
            if field[0] == b"cookie":
                for crumb in field[1].split(b";"):
                    name, _, value = crumb.partition(b"=")
                    if name.strip() in self._cookies:
                        yield value.strip().strip(b'"')

    def _is_ours(self, pair: bytes) -> bool:
        return unquote_to_bytes(pair.partition(b"=")[0].replace(b"+", b" ")) in self._params

    def without_tokens(self, headers: Headers, target: bytes) -> tuple[Headers, bytes]:
        """The head after its tokens were taken out: every header and parameter that held one. Cookies stay."""
        holding = {
            name
            for name, prefix in self._headers
            for field in headers
            if canonical(field[0]) == name and _after(prefix, field[1], name) is not None
        }
        path, mark, _ = target.partition(b"?")
        pairs = list(_pairs(target)) if mark and self._params else []
        kept = [pair for pair in pairs if not self._is_ours(pair)]
        if len(kept) < len(pairs):
            target = path + b"?" + b"&".join(kept) if kept else path
        return without(headers, holding), target


def _pairs(target: bytes) -> Iterable[bytes]:
    return target.partition(b"?")[2].split(b"&")


def _after(prefix: bytes, value: bytes, name: bytes) -> bytes | None:
    """The token after ``prefix``; None when there is none. White space around a value is gone already, so that an
    empty token is found as well. The scheme of Authorization has no case (RFC 9110 11.1)."""
    if not prefix:
        return value or None
    padded, wanted = value + b" ", prefix
    if name == b"authorization":
        padded, wanted = padded.lower(), prefix.lower()
    return value[len(prefix) :].strip(b" \t") if padded.startswith(wanted) else None


def without(headers: Headers, names: Iterable[bytes]) -> Headers:
    """``headers`` less those of ``names`` (canonical); the same object when none is there."""
    gone = frozenset(names)
    if not gone or not any(canonical(field[0]) in gone for field in headers):
        return headers
    return [field for field in headers if canonical(field[0]) not in gone]


# -- what the app is told -------------------------------------------------------------------------------------


def told(rule: JwtRule, claims: Mapping[str, Any], payload: str) -> Headers:
    """The headers that ``rule`` makes of a verified token. A claim that no header can carry is not told."""
    headers: Headers = []
    if rule.payload_header:
        headers.append((rule.payload_header.encode(), payload.encode()))
    for output in rule.claim_headers:
        value = _header_value(_claim(claims, output.claim))
        if value:
            headers.append((output.header.encode(), value))
    return headers


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, else by a path with dots down through objects, as Envoy."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _header_value(claim: Any) -> bytes:
    """Strings as they are, numbers and booleans as JSON writes them, lists and objects in base64 (AUTHZ 12). b"" for
    what cannot stand in a header: a claim is the issuer's word, not a way to write a second header."""
    if isinstance(claim, str):
        value = claim.encode("utf-8", "replace").strip(b" \t")
    elif isinstance(claim, list | dict):
        value = base64.b64encode(json.dumps(claim, ensure_ascii=False, separators=(",", ":")).encode())
    elif isinstance(claim, float):  # as Envoy writes them
        value = (str(int(claim)) if claim.is_integer() and abs(claim) < 2**63 else f"{claim:f}").encode()
    elif claim is not None:
        value = json.dumps(claim).encode()
    else:
        return b""
    return value if len(value) <= _LONGEST_VALUE and not _BAD_IN_VALUE.intersection(value) else b""
