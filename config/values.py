"""The small languages of single values: durations, sizes, addresses, SPIFFE IDs in short form. All pure.

Each ``parse_x`` takes the text as written and raises ValueError with a sentence for the reader; each
``render_x`` gives back a text that parses to the same value.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

# Gateway API's duration (GEP-2257), and fractions, as Istio allows them.
_NUMBER: Final = r"(\d{1,9}(?:\.\d{1,9})?)"
_DURATION: Final = re.compile(rf"(?:{_NUMBER}h)?(?:{_NUMBER}m(?!s))?(?:{_NUMBER}s)?(?:{_NUMBER}ms)?", re.ASCII)
_SECONDS: Final = (3600.0, 60.0, 1.0, 0.001)
_SIZE: Final = re.compile(r"(\d{1,15})\s?([A-Za-z]*)", re.ASCII)
_SIZES: Final = {
    "": 1,
    "B": 1,
    "kB": 1000,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}
_PORT: Final = re.compile(r"[0-9]{1,5}", re.ASCII)
_HOST_NAME: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9_-]{0,62}\.)*[A-Za-z0-9_-]{0,63}\.?", re.ASCII)
_NAME: Final = r"[A-Za-z0-9._-]{1,253}"
_SHORT_ID: Final = re.compile(rf"({_NAME})/({_NAME})", re.ASCII)
_SPIFFE_ID: Final = re.compile(r"spiffe://([a-z0-9._-]{1,255})((?:/[A-Za-z0-9._-]+)+)", re.ASCII)
_UNIX_PATH: Final = 107  # bytes: sun_path of Linux less its NUL

ALL_INTERFACES: Final = "0.0.0.0"  # noqa: S104 (what a bare inbound port means; TLS with client certificates is behind it)
LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen or to connect: a host (IP address, or a name where one is allowed) and port, or the path
    of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_ip(self) -> bool:
        return not self.path and _ip(self.host) is not None

    @property
    def is_local(self) -> bool:
        """Only this machine can reach it: loopback, or a Unix socket."""
        ip = _ip(self.host)
        return bool(self.path) or (ip is not None and ip.is_loopback)

    def overlaps(self, other: Address) -> bool:
        """Both cannot be listened on at the same time."""
        if self.path or other.path:
            return self.path == other.path
        any_host = {ALL_INTERFACES, "::"}
        return self.port == other.port and (self.host == other.host or bool(any_host & {self.host, other.host}))


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def parse_duration(text: str) -> float:
    """``1h30m``, ``250ms``, ``0``: seconds."""
    if text == "0":
        return 0.0
    match = _DURATION.fullmatch(text)
    if match is None or not any(match.groups()):
        example = f"{text}s" if text.isascii() and text.replace(".", "", 1).isdigit() else "250ms, 10s or 1h30m"
        raise ValueError(f"write {example}")
    return sum(float(part) * unit for part, unit in zip(match.groups(), _SECONDS, strict=True) if part)


def render_duration(seconds: float) -> str:
    left = round(seconds * 1000)
    said = ""
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, size)
        said += f"{count}{unit}" if count else ""
    return said or "0s"


def parse_size(text: str) -> int:
    """``64KiB``, ``10MB``, ``4096``: bytes."""
    match = _SIZE.fullmatch(text)
    if match is None or match[2] not in _SIZES:
        raise ValueError("write 64KiB, 10MiB or a number of bytes")
    return int(match[1]) * _SIZES[match[2]]


def render_size(size: int) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % _SIZES[unit] == 0:
            return f"{size // _SIZES[unit]}{unit}"
    return str(size)


def parse_port(text: str) -> int:
    port = int(text) if _PORT.fullmatch(text) else 0
    if not 0 < port < 65536:
        raise ValueError("a port is a number from 1 to 65535")
    return port


def parse_address(text: str, *, bare: str, names: bool = False) -> Address:
    """``8443`` (host ``bare``), ``:8443`` and ``*:8443`` (all interfaces), ``127.0.0.1:80``, ``[::1]:80``,
    ``localhost:80``, ``unix:/path``; with ``names`` also ``host.name:80``."""
    if text.startswith("unix:"):
        return _unix(text[5:])
    if text.startswith("systemd:"):
        raise ValueError("socket activation is not supported yet: write the address")
    if text.isascii() and text.isdigit():
        return Address(bare, parse_port(text))
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(f"the port is missing: write {text}:8443" if text else "write 8443 or 127.0.0.1:8443")
    if host in {"", "*"}:
        return Address(bare if host == "" else ALL_INTERFACES, parse_port(port))
    return Address(_host(host, port, names), parse_port(port))


def _unix(path: str) -> Address:
    if not path or path.startswith("@") or "\0" in path:
        raise ValueError("write unix:/path/to/socket")
    return Address(path=check_socket_path(path))


def check_socket_path(path: str) -> str:
    """``path``, when the kernel takes it as the name of a Unix socket (unix(7): sun_path)."""
    if len(path.encode(errors="surrogateescape")) > _UNIX_PATH:
        raise ValueError(f"the path of a Unix socket has at most {_UNIX_PATH} bytes, with its folders")
    return path


def _host(host: str, port: str, names: bool) -> str:
    if host.startswith("[") and host.endswith("]"):
        ip = _ip(host[1:-1])
        if ip is None or ip.version != 6:
            raise ValueError(f"{host} is not an IPv6 address")
        return str(ip)
    if ":" in host:
        raise ValueError(f"an IPv6 address stands in brackets: [{host}]:{port}")
    if host == "localhost":
        return LOOPBACK
    ip = _ip(host)
    if ip is not None:
        return str(ip)
    if not names:
        raise ValueError("write an IP address")
    if _HOST_NAME.fullmatch(host) is None or host.replace(".", "").isdigit():
        raise ValueError(f"'{host}' is not a host name or an IP address")
    return host


# -- identities ---------------------------------------------------------------------------------------------


def parse_workload(text: str) -> tuple[str, str]:
    """``shop/api``: namespace and service account."""
    match = _SHORT_ID.fullmatch(text)
    if match is None or {match[1], match[2]} & {".", ".."}:
        raise ValueError("write namespace/service-account, such as shop/api")
    return match[1], match[2]


def check_expected(text: str) -> str:
    """One SPIFFE ID that a server may show: ``ns/sa`` of our trust domain, or ``spiffe://td/path`` (S-7)."""
    if "*" in text or text == "any":
        raise ValueError("name each identity; a wildcard would accept any workload as this upstream (S-7)")
    if text.startswith("spiffe:"):
        match = _SPIFFE_ID.fullmatch(text)
        if match is None or {".", ".."} & set(match[2].split("/")) or len(text) > 2048:
            raise ValueError("write spiffe://trust.domain/ns/shop/sa/api")
        return text
    try:
        parse_workload(text)
    except ValueError:
        raise ValueError("write namespace/service-account or spiffe://trust.domain/path") from None
    return text


def expand_expected(text: str, trust_domain: str) -> str:
    """The SPIFFE ID meant by a checked ``expect`` entry."""
    if text.startswith("spiffe:"):
        return text
    namespace, account = parse_workload(text)
    return f"spiffe://{trust_domain}/ns/{namespace}/sa/{account}"


def is_trust_domain(text: str) -> bool:
    """SPIFFE-ID 2.1."""
    return re.fullmatch(r"[a-z0-9._-]{1,255}", text, re.ASCII) is not None
