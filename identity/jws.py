"""A signed JWT in compact form (RFC 7515 3.1, RFC 7519), taken apart strictly and judged in no way.

Nothing that two readers could read in two ways gets through: three parts in the one form of base64url, UTF-8, JSON
objects in which no member is said twice, no number that JSON does not have, no half of a surrogate pair. Length and
depth are bounded before anything is parsed.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass, field
from typing import Any, Final

MAX_DEPTH: Final = 32
_URL: Final = str.maketrans("-_", "+/")
_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class NotAToken(ValueError):
    """The text is not a signed JWT in compact form. The message never quotes it."""


@dataclass(frozen=True, slots=True)
class Compact:
    """``payload``: as it stands in the token; ``signed``: what the signature is of. Nothing of it is shown."""

    header: dict[str, Any] = field(repr=False)
    claims: dict[str, Any] = field(repr=False)
    payload: str = field(repr=False)
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)


def take_apart(token: str, longest: int) -> Compact:
    """Raises NotAToken. ``longest``: characters."""
    if len(token) > longest:
        raise NotAToken("the token is too long")
    parts = token.split(".")
    if len(parts) != 3 or not token.isascii():
        raise NotAToken("not three parts")
    try:
        header, payload, signature = map(decoded, parts)
        signed = f"{parts[0]}.{parts[1]}".encode("ascii")
        return Compact(json_object(header), json_object(payload), parts[1], signed, signature)
    except (ValueError, RecursionError):
        raise NotAToken("not base64url of JSON objects") from None


def decoded(part: str) -> bytes:
    """base64url without padding, in its one form. Raises ValueError."""
    if "=" in part or "+" in part or "/" in part:
        raise ValueError("not base64url")
    try:
        found = base64.b64decode(part.translate(_URL) + "=" * (-len(part) % 4), validate=True)
    except binascii.Error:
        raise ValueError("not base64url") from None
    if base64.urlsafe_b64encode(found).rstrip(b"=").decode() != part:
        raise ValueError("not the one form")
    return found


def json_object(data: bytes) -> dict[str, Any]:
    """Raises ValueError for what is no object, or says a member twice: readers differ on which one counts."""
    text = data.decode("utf-8")
    if _depth(text) > MAX_DEPTH:
        raise ValueError("too deep")
    found = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    if not isinstance(found, dict):
        raise ValueError("not an object")  # noqa: TRY004 (a kind of malformed token)
    if "\\u" in text and _SURROGATE.search(json.dumps(found, ensure_ascii=False)):
        raise ValueError("half a character")
    return found


def _depth(text: str) -> int:
    """How deep brackets are nested, outside of strings. A text that is no JSON has some depth too."""
    deepest = depth = 0
    for character in _STRING.sub("", text):
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member is said twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
