"""The one string that makes a machine a member: where the authority is, how to know it, and a secret for one use.

    swt1_<base64url of {"u": addresses, "d": trust domain, "f": "sha256:<hex>", "t": secret}>

``f`` is the SHA-256 of the authority's root certificate (DER). So the machine trusts nobody at first sight: it takes
the certificate that the string names, as kubeadm's ``--discovery-token-ca-cert-hash``. ``u`` is one address or a list
of them, ``https://host:port``. The whole is a secret until it has been used: it is read from a file or from standard
input, never logged, and its ``repr`` shows nothing of ``t``.
"""

from __future__ import annotations

import hmac
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final
from urllib.parse import urlsplit

from identity.spiffe import MAX_TRUST_DOMAIN, SpiffeIdError, check_trust_domain

PREFIX: Final = "swt1_"
MAX_STRING: Final = 8192  # characters
MAX_ADDRESSES: Final = 16
DEFAULT_PORT: Final = 15012
_BODY: Final = re.compile(r"[A-Za-z0-9_-]+")
_PIN: Final = re.compile(r"sha256:[0-9a-f]{64}")
_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{22,256}")
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?\.?|[0-9a-fA-F:]{2,45}")
_KEYS: Final = frozenset("udft")


class JoinStringError(ValueError):
    """The string is not a join string. The text quotes nothing of it."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"not a join string: {problem}; copy it whole from `sidewall ca token`")


@dataclass(frozen=True, slots=True)
class JoinString:
    """addresses: (host, port), in the order to try them. pin: ``sha256:`` and 64 hex digits."""

    addresses: tuple[tuple[str, int], ...]
    trust_domain: str
    pin: str
    secret: str = field(repr=False)

    def encode(self) -> str:
        """The string. Raises JoinStringError for values that ``decode`` would refuse."""
        urls = [f"https://{f'[{host}]' if ':' in host else host}:{port}" for host, port in self.addresses]
        document = {"u": urls[0] if len(urls) == 1 else urls, "d": self.trust_domain, "f": self.pin, "t": self.secret}
        body = json.dumps(document, separators=(",", ":")).encode()
        text = PREFIX + urlsafe_b64encode(body).rstrip(b"=").decode()
        decode(text)
        return text

    def admits(self, certificate: bytes) -> bool:
        """Whether this root certificate (DER) is the one that the string names."""
        return hmac.compare_digest(self.pin, pin_of(certificate))


def pin_of(certificate: bytes) -> str:
    """The fingerprint of a certificate (DER) as it stands in the string."""
    return f"sha256:{sha256(certificate).hexdigest()}"


def decode(text: str) -> JoinString:
    """Raises JoinStringError. Blanks and line feeds around it are taken away: it is pasted."""
    text = text.strip()
    if not text.startswith(PREFIX):
        raise JoinStringError(f'it must begin with "{PREFIX}"')
    if len(text) > MAX_STRING:
        raise JoinStringError(f"it is longer than {MAX_STRING} characters")
    document = _document(text[len(PREFIX) :])
    if set(document) != _KEYS:
        raise JoinStringError("parts are missing, or it is from a newer version")
    return JoinString(
        _addresses(document["u"]),
        _trust_domain(document["d"]),
        _matching(_PIN, document["f"], "the fingerprint is not sha256: and 64 hex digits"),
        _matching(_SECRET, document["t"], "the secret is damaged"),
    )


def _document(body: str) -> dict[str, Any]:
    if not _BODY.fullmatch(body):
        raise JoinStringError("it has characters that do not belong there, or was cut off")
    try:
        found = json.loads(urlsafe_b64decode(body + "=" * (-len(body) % 4)), object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError):
        raise JoinStringError("it is damaged or was cut off") from None
    if not isinstance(found, dict):
        raise JoinStringError("it is damaged")
    return found


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError
    return dict(pairs)


def _addresses(found: object) -> tuple[tuple[str, int], ...]:
    listed: Sequence[object] = found if isinstance(found, list) else [found]
    if not 0 < len(listed) <= MAX_ADDRESSES:
        raise JoinStringError(f"it has no address, or more than {MAX_ADDRESSES}")
    return tuple(_address(one) for one in listed)


def _address(found: object) -> tuple[str, int]:
    problem = "an address is not https://host:port"
    if not isinstance(found, str) or not found.isascii() or not found.isprintable() or " " in found:
        raise JoinStringError(problem)
    try:
        url = urlsplit(found)
        port = DEFAULT_PORT if url.port is None else url.port
    except ValueError:
        raise JoinStringError(problem) from None
    host = url.hostname or ""
    rest = (url.path.removeprefix("/"), url.query, url.fragment, url.username or "", url.password or "")
    if url.scheme != "https" or any(rest) or "@" in found or not _HOST.fullmatch(host) or not port:
        raise JoinStringError(problem)
    return host, port


def _trust_domain(found: object) -> str:
    if not isinstance(found, str) or len(found) > MAX_TRUST_DOMAIN:
        raise JoinStringError("it has no trust domain")
    try:
        return check_trust_domain(found)
    except SpiffeIdError:
        raise JoinStringError("the trust domain is none") from None


def _matching(pattern: re.Pattern[str], found: object, problem: str) -> str:
    if not isinstance(found, str) or not pattern.fullmatch(found):
        raise JoinStringError(problem)
    return found
