"""The one grammar of Host, :authority and the authority of an absolute-form target. Pure.

Stricter than RFC 3986 on purpose: what differs between parsers (user info, percent escapes, lists, empty
ports, IPv6 zones) is refused instead of repaired, because policy and routing are decided on the result (S-24).
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from proxy.errors import MalformedRequest

_LABEL: Final = rb"[A-Za-z0-9_-]+"  # "_" is no host name, but container names have it and every client sends it
_NAME: Final = re.compile(rb"(%b(?:\.%b)*)\.?(?::([0-9]{1,5}))?" % (_LABEL, _LABEL))
_IPV6: Final = re.compile(rb"\[([0-9A-Fa-f:.]{2,45})\](?::([0-9]{1,5}))?")
_LONGEST: Final = 262  # 255 of a name, a dot, a colon and five digits
_MOST_KNOWN: Final = 1024
_known: Final[dict[bytes, tuple[bytes, bytes]]] = {}  # bounded: emptied when full


def _refuse(raw: bytes, why: str) -> MalformedRequest:
    return MalformedRequest(f"{why}: {raw[:64]!r}", reason="bad_host")


def parse_authority(raw: bytes) -> tuple[bytes, bytes]:
    """``host[:port]`` -> (canonical authority with port, canonical host without).

    Canonical is lower case and without the trailing dot. Raises MalformedRequest("bad_host").
    """
    known = _known.get(raw)
    if known is not None:
        return known
    result = _parse_untrusted(raw)
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    _known[raw] = result
    return result


def _parse_untrusted(raw: bytes) -> tuple[bytes, bytes]:
    if len(raw) > _LONGEST:
        raise _refuse(raw, "too long")
    match = _NAME.fullmatch(raw) or _IPV6.fullmatch(raw)
    if match is None:
        raise _refuse(raw, "not host[:port]")
    host, port = match[1].lower(), match[2]
    if raw[:1] == b"[":
        _check_ipv6(raw, host)
        host = b"[" + host + b"]"
    if port is None:
        return host, host
    if port[:1] == b"0" or int(port) > 65535:
        raise _refuse(raw, "port")
    return host + b":" + port, host


def _check_ipv6(raw: bytes, address: bytes) -> None:
    try:
        ipaddress.IPv6Address(address.decode("ascii"))
    except ValueError:
        raise _refuse(raw, "IPv6 address") from None


_DEFAULT_PORTS: Final = {b"http": b":80", b"https": b":443"}


def same_authority(one: bytes, other: bytes, scheme: bytes) -> bool:
    """True when two canonical authorities name the same host and port under ``scheme`` (RFC 9110 4.2.3)."""
    default = _DEFAULT_PORTS[scheme]
    return one.removesuffix(default) == other.removesuffix(default)
