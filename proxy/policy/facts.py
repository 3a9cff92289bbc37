"""What policy is asked about (``AccessRequest``) and whom it protects (``WorkloadFacts``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

HTTP = "http"
TCP = "tcp"


class AccessRequest:
    """The canonical facts of one request, or of one connection when ``protocol`` is ``tcp``.

    Strings taken from the wire are the bytes read as Latin-1, so that each character is one byte and a policy's
    text is compared byte by byte. ``principal`` is the caller's SPIFFE ID without its scheme, None for a caller
    without a verified certificate; ``namespace`` its Kubernetes namespace when the ID has that form.
    ``port`` is the workload's port (AUTHZ: never the Service's). ``host`` is the whole authority as sent,
    port included, and is folded here (ASCII only). ``path`` is canonical, without query.
    """

    __slots__ = ("host", "method", "namespace", "path", "port", "principal", "protocol", "source_ip")

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
    ) -> None:
        self.protocol = protocol
        self.principal = principal
        self.namespace = namespace
        self.port = port
        self.method = method
        self.host = fold(host)
        self.path = path
        self.source_ip = source_ip

    def canonical(self) -> dict[str, str | int | None]:
        """The facts by name, for a decision's id and for records."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __repr__(self) -> str:
        return f"AccessRequest({', '.join(f'{k}={v!r}' for k, v in self.canonical().items())})"


@dataclass(frozen=True, slots=True)
class WorkloadFacts:
    """The workload that is protected. ``name`` is for people only; scope is namespace and labels (section 3)."""

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
