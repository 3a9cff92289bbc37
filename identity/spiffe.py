"""SPIFFE IDs: the one parser and the one type (SPIFFE-ID.md, sections 2.1 to 2.4).

    spiffe://<trust domain>[/<segment>...]

The reading is strict and byte by byte, because every identity decision of the proxy hangs on it (S-2.3). A
string is either an ID as the standard writes it or it is refused with a word of ``SPIFFE_ID_REASONS``;
nothing is trimmed, folded, decoded or repaired. That keeps one identity to one spelling, so that parsed
values, principals and policy patterns can be compared as plain strings. Characters that end C strings or
header lines (NUL, CR, LF), blanks and everything outside ASCII are refused by name: proxies have been
deceived by each of them (CVE-2025-66220, CVE-2026-47778).

The decision is two anchored patterns without nested repetition; only a string that has failed already is
looked at again to find the word for the failure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MAX_ID: Final = 2048  # bytes, SPIFFE-ID 2.3
MAX_TRUST_DOMAIN: Final = 255  # bytes, SPIFFE-ID 2.3

_SCHEME: Final = "spiffe://"
# Used with fullmatch: "$" would allow a trailing line feed. No character class that knows Unicode.
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._-]+")

SPIFFE_ID_REASONS: Final = frozenset(
    {
        "empty",
        "too_long",
        "not_ascii",
        "control_character",
        "space",
        "scheme",
        "percent_encoding",
        "query",
        "fragment",
        "trust_domain_missing",
        "trust_domain_too_long",
        "trust_domain_character",
        "userinfo",
        "port",
        "trailing_slash",
        "empty_segment",
        "dot_segment",
        "path_character",
    }
)

_WHAT: Final = {
    "empty": "the ID is empty",
    "too_long": f"the ID is longer than {MAX_ID} bytes",
    "not_ascii": "a character outside ASCII",
    "control_character": "a control character",
    "space": "a space",
    "scheme": 'the ID must begin with "spiffe://", in lower case',
    "percent_encoding": "percent-encoding is not allowed",
    "query": 'a query ("?") is not allowed',
    "fragment": 'a fragment ("#") is not allowed',
    "trust_domain_missing": "there is no trust domain",
    "trust_domain_too_long": f"the trust domain is longer than {MAX_TRUST_DOMAIN} bytes",
    "trust_domain_character": "a trust domain has only a-z, 0-9, dot, dash and underscore",
    "userinfo": 'user information ("@") is not allowed',
    "port": "a port is not allowed",
    "trailing_slash": "the path must not end with a slash",
    "empty_segment": "a path segment is empty",
    "dot_segment": 'a path segment is "." or ".."',
    "path_character": "a path segment has only letters, digits, dot, dash and underscore",
}


class SpiffeIdError(ValueError):
    """A string is not a SPIFFE ID. ``reason`` is a word of ``SPIFFE_ID_REASONS``; the text quotes the input
    escaped and cut, so that it can stand in a log line."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"{_WHAT[reason]}: {text[:200]!a}")
        self.reason = reason


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """A parsed SPIFFE ID. ``path`` is empty (the ID of the trust domain itself) or begins with a slash.

    Make one with ``parse`` or ``of``: the plain constructor does not check."""

    trust_domain: str
    path: str

    @classmethod
    def parse(cls, text: str, *, any_case_scheme: bool = False) -> SpiffeId:
        """Read an ID. ``any_case_scheme`` also takes ``SPIFFE://`` (RFC 3986 3.1), for URIs that people
        write into configuration; certificates are always read literally (S-2.3).

        Raises SpiffeIdError."""
        if any_case_scheme and text[:9].lower() == _SCHEME:
            text = _SCHEME + text[9:]
        if len(text) > MAX_ID or not text.startswith(_SCHEME):
            raise SpiffeIdError(_why_not(text), text)
        trust_domain, slash, rest = text[9:].partition("/")
        if _TRUST_DOMAIN.fullmatch(trust_domain) is None or (slash and not _is_path(rest)):
            raise SpiffeIdError(_why_not(text), text)
        return cls(trust_domain, slash + rest)

    @classmethod
    def of(cls, trust_domain: str, path: str = "") -> SpiffeId:
        """The ID of ``path`` (with its leading slash, or empty) in ``trust_domain``. Raises SpiffeIdError."""
        spiffe_id = cls.parse(f"{_SCHEME}{trust_domain}{path}")
        if spiffe_id.trust_domain != trust_domain:  # one part ran over into the other
            raise SpiffeIdError("trust_domain_character" if "/" in trust_domain else "path_character", path)
        return spiffe_id

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain}{self.path}"

    @property
    def principal(self) -> str:
        """The ID without its scheme, as Istio's ``source.principals`` writes it: ``td/ns/a/sa/b``."""
        return self.trust_domain + self.path

    @property
    def namespace(self) -> str | None:
        """``a`` of a path that is exactly ``/ns/a/sa/b``, otherwise None."""
        names = _service(self.path)
        return names and names[0]

    @property
    def service_account(self) -> str | None:
        """``b`` of a path that is exactly ``/ns/a/sa/b``, otherwise None."""
        names = _service(self.path)
        return names and names[1]


def check_trust_domain(name: str) -> str:
    """``name`` itself when it is a trust domain name (SPIFFE-ID 2.1). Raises SpiffeIdError."""
    if _TRUST_DOMAIN.fullmatch(name) is None:
        raise SpiffeIdError(_why_not_trust_domain(name), name)
    return name


def _service(path: str) -> tuple[str, str] | None:
    parts = path.split("/")
    if len(parts) == 5 and parts[1] == "ns" and parts[3] == "sa":
        return parts[2], parts[4]
    return None


def _is_path(rest: str) -> bool:
    """``rest``: what follows the first slash."""
    return all(_SEGMENT.fullmatch(part) and part not in {".", ".."} for part in rest.split("/"))


# -- the word for what is wrong (only after a refusal) ------------------------------------------------------


def _why_not(text: str) -> str:
    if not text:
        return "empty"
    if len(text) > MAX_ID:
        return "too_long"
    return _why_not_characters(text) or _why_not_parts(text)


def _why_not_characters(text: str) -> str | None:
    if not text.isascii():
        return "not_ascii"
    if any(c < " " or c == "\x7f" for c in text):
        return "control_character"
    return "space" if " " in text else None


def _why_not_parts(text: str) -> str:
    if not text.startswith(_SCHEME):
        return "scheme"
    for mark, reason in (("%", "percent_encoding"), ("?", "query"), ("#", "fragment")):
        if mark in text:
            return reason
    trust_domain, _, rest = text[9:].partition("/")
    if _TRUST_DOMAIN.fullmatch(trust_domain) is None:
        return _why_not_trust_domain(trust_domain)
    return _why_not_path(rest)


def _why_not_trust_domain(name: str) -> str:
    if not name:
        return "trust_domain_missing"
    if (odd := _why_not_characters(name)) is not None:
        return odd
    if "@" in name:
        return "userinfo"
    if re.fullmatch(r"[a-z0-9._-]+:[0-9]*", name):
        return "port"
    if re.fullmatch(r"[a-z0-9._-]+", name):
        return "trust_domain_too_long"
    return "trust_domain_character"


def _why_not_path(rest: str) -> str:
    parts = rest.split("/")
    if any(part in {".", ".."} for part in parts):
        return "dot_segment"
    if "" in parts[:-1]:
        return "empty_segment"
    if parts[-1] == "":
        return "trailing_slash"
    return "path_character"
