"""What policy is asked about (``AccessRequest``) and whom it protects (``WorkloadFacts``)."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

HTTP = "http"
TCP = "tcp"

Values = str | Sequence[str]  # of one header: a value for each of its lines
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class AccessRequest:
    """The canonical facts of one request, or of one connection when ``protocol`` is ``tcp``.

    Strings taken from the wire are the bytes read as Latin-1, so that each character is one byte and a policy's
    text is compared byte by byte. Claims are text as JSON has it. "" and None: the request lacks the fact.

    principal   the caller's SPIFFE ID without its scheme, None for a caller without a verified certificate;
                ``namespace``: its Kubernetes namespace when the ID has that form
    port        the workload's port (AUTHZ: never the Service's); ``route``: the name of the route taken to it
    host        the whole authority as sent, port included, folded here (ASCII only); ``authority``: not folded
    path        canonical, without query; ``target``: with it
    source_ip   the peer of the TCP connection; ``remote_ip``: the client as told by X-Forwarded-For, the peer if
                nothing tells; ``destination_ip``: our end. Text of addresses
    sni         folded here
    headers     by name in lower case; a sequence where the field came more than once. Only those that some policy
                asks for need be there
    claims      of a verified token, None without one
    """

    __slots__ = (
        "_account",
        "authority",
        "claims",
        "destination_ip",
        "headers",
        "host",
        "method",
        "namespace",
        "path",
        "port",
        "principal",
        "protocol",
        "remote_ip",
        "route",
        "sni",
        "source_ip",
        "target",
    )

    def __init__(
        self,
        *,
        principal: str | None,
        namespace: str | None,
        port: int,
        protocol: str = HTTP,
        method: str = "",
        host: str = "",
        path: str = "",
        source_ip: str = "",
        remote_ip: str = "",
        destination_ip: str = "",
        sni: str = "",
        headers: Mapping[str, Values] = _NOTHING,
        claims: Mapping[str, Any] | None = None,
        target: str = "",
        route: str = "",
    ) -> None:
        self.protocol = protocol
        self.principal = principal
        self.namespace = namespace
        self.port = port
        self.method = method
        self.host = fold(host)
        self.authority = host
        self.path = path
        self.target = target or path
        self.source_ip = source_ip
        self.remote_ip = remote_ip or source_ip
        self.destination_ip = destination_ip
        self.sni = fold(sni)
        self.headers = headers
        self.claims = claims
        self.route = route
        self._account: str | None = ""  # not looked at yet

    # -- what follows from others -----------------------------------------------------------------------------

    @property
    def service_account(self) -> str | None:
        """``namespace/name`` of an ID of the form ``td/ns/namespace/sa/name``."""
        if self._account == "":
            parts = (self.principal or "").split("/")
            is_kubernetes = len(parts) == 5 and parts[1] == "ns" and parts[3] == "sa"
            self._account = f"{parts[2]}/{parts[4]}" if is_kubernetes else None
        return self._account

    @property
    def trust_domain(self) -> str | None:
        return self.principal.partition("/")[0] if self.principal is not None else None

    @property
    def request_principal(self) -> tuple[str, str] | None:
        """``iss`` and ``sub`` of the token, when both are texts (AUTHZ 6.9)."""
        issuer, subject = self.claim("iss"), self.claim("sub")
        return (issuer, subject) if isinstance(issuer, str) and isinstance(subject, str) else None

    @property
    def audiences(self) -> Any:
        return self.claim("aud")

    @property
    def presenter(self) -> Any:
        return self.claim("azp")

    def claim(self, *names: str) -> Any:
        """A claim, the names leading down through objects; None when it is not there. Lists are not entered.
        ``scope`` and ``permission`` at the top are lists of words, also when written as one text (AUTHZ 6.9)."""
        found: Any = self.claims
        for name in names:
            found = found.get(name) if isinstance(found, Mapping) else None
        if isinstance(found, str) and names in (("scope",), ("permission",)):
            return [word for word in found.split(" ") if word]
        return found

    def header(self, name: str) -> Sequence[str] | None:
        """The values of a header, each by itself; None when it is not there."""
        found = self.headers.get(name)
        return (found,) if isinstance(found, str) else found

    # -- records ----------------------------------------------------------------------------------------------

    def canonical(self) -> dict[str, Any]:
        """The facts by name, for a decision's id and for records. Those that few policies ask for are left out
        where the request lacks them."""
        found = {name: getattr(self, name) for name in _ALWAYS}
        for name, absent in _SOMETIMES.items():
            value = getattr(self, name)
            if value != absent:
                found[name] = value
        if self.remote_ip != self.source_ip:
            found["remote_ip"] = self.remote_ip
        if self.target != self.path:
            found["target"] = self.target
        if self.authority != self.host:
            found["authority"] = self.authority
        if self.headers:
            found["headers"] = {name: list(self.header(name) or ()) for name in sorted(self.headers)}
        return found

    @classmethod
    def from_canonical(cls, facts: Mapping[str, Any]) -> AccessRequest:
        """The request of which ``canonical`` gave ``facts``. Raises TypeError for what it never gives."""
        more = dict(facts)
        more["host"] = more.pop("authority", more.get("host", ""))
        return cls(**more)

    def __repr__(self) -> str:
        shown = self.canonical()
        for name in ("headers", "claims"):  # may hold secrets: their names only
            if shown.get(name):
                shown[name] = sorted(shown[name])
        return f"AccessRequest({', '.join(f'{k}={v!r}' for k, v in shown.items())})"


_ALWAYS: Final = ("host", "method", "namespace", "path", "port", "principal", "protocol", "source_ip")
_SOMETIMES: Final[Mapping[str, Any]] = {"destination_ip": "", "sni": "", "claims": None, "route": ""}


@dataclass(frozen=True, slots=True)
class WorkloadFacts:
    """The workload that is protected. Scope is namespace, labels, and the name for a policy that hangs on a Service
    (AUTHZ 3)."""

    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    root_namespace: str = "istio-system"
    name: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.name else f"namespace {self.namespace}"


def fold(text: str) -> str:
    """``text`` with A-Z in lower case and nothing else changed: bytes above 0x7F are not letters here."""
    if text.isascii():
        return text.lower()
    return "".join(c.lower() if c < "\x80" else c for c in text)


def wire_text(text: str) -> str:
    """A policy's text as it stands on the wire: its UTF-8 bytes, one character each."""
    return text if text.isascii() else text.encode("utf-8", "surrogatepass").decode("latin-1")


def forwarded_client(forwarded_for: str, peer: str) -> str:
    """The client as a sidecar understands it (AUTHZ 6.2): the last address of X-Forwarded-For, the peer of the
    connection if there is none. Whoever may call us can write that header: a policy that believes it believes
    its callers."""
    last = forwarded_for.rpartition(",")[2].strip(" \t")
    try:
        ipaddress.ip_address(last)
    except ValueError:
        return peer
    return last


def host_of(address: str) -> str:
    """The host of ``host:port`` or ``[host]:port``; "" for ``unix:path``."""
    if address.startswith("unix:"):
        return ""
    return address.rpartition(":")[0].removeprefix("[").removesuffix("]")
