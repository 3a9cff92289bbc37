"""PeerAuthentication: whether callers of a port must use mTLS, may, or cannot.

The levels replace each other (workload over namespace over root namespace), where those of AuthorizationPolicy add
up; in each level the oldest document wins alone (AUTHZ 11).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from config.nodes import Document, Node
from config.resources.authorization_model import NOWHERE, Place
from config.resources.scope import (
    ROOT_NAMESPACE,
    Labels,
    filled,
    place_of,
    read_envelope,
    read_selector,
    refuse_dry_run,
)

KIND: Final = "PeerAuthentication"


class Mode(StrEnum):
    """STRICT: mTLS only. PERMISSIVE: plaintext too. DISABLE: plaintext only, no identity. UNSET: as above."""

    UNSET = "UNSET"
    DISABLE = "DISABLE"
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


@dataclass(frozen=True, slots=True)
class PeerAuthentication:
    """One document. ``selector`` is empty for a whole namespace, or, in the root namespace, for all of them;
    ``ports``: modes by workload port; ``created``: seconds since 1970, 0.0 when not said."""

    name: str
    namespace: str
    mode: Mode = Mode.UNSET
    ports: tuple[tuple[int, Mode], ...] = ()
    selector: Labels = ()
    created: float = 0.0
    place: Place = dataclasses.field(default=NOWHERE, compare=False)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Protected:
    """The workload that is asked about."""

    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    root_namespace: str = ROOT_NAMESPACE


# -- meaning --------------------------------------------------------------------------------------------------


def mtls_mode(
    documents: Iterable[PeerAuthentication], workload: Protected, port: int, default: Mode = Mode.PERMISSIVE
) -> Mode:
    """The mode for a port of a workload, never UNSET. ``port`` is the workload's; ``default`` is what holds where no
    document says anything: Istio's is PERMISSIVE. A selector in the root namespace selects nothing (AUTHZ 11)."""
    mesh, namespace, workloads = [], [], []
    for document in documents:
        if document.selector:
            if document.namespace == workload.namespace != workload.root_namespace and _selects(document, workload):
                workloads.append(document)
        elif document.namespace == workload.root_namespace:
            mesh.append(document)
        elif document.namespace == workload.namespace:
            namespace.append(document)
    mode = default
    for level in (mesh, namespace, workloads):
        if level and (found := min(level, key=_age).mode) != Mode.UNSET:
            mode = found
    of_port = dict(min(workloads, key=_age).ports).get(port, Mode.UNSET) if workloads else Mode.UNSET
    return mode if of_port == Mode.UNSET else of_port


def _selects(document: PeerAuthentication, workload: Protected) -> bool:
    return all(workload.labels.get(key) == value for key, value in document.selector)


def _age(document: PeerAuthentication) -> tuple[float, str, str]:
    return document.created, document.name, document.namespace


# -- reading --------------------------------------------------------------------------------------------------


def parse_peer_authentication(document: Document, default_namespace: str) -> PeerAuthentication | None:
    """The document's meaning; None when anything in it is an error (``document.problems`` says what)."""
    root = document.root
    if root is None:
        return None
    errors = document.problems.errors
    metadata, spec = read_envelope(document, root, KIND, default_namespace)
    refuse_dry_run(metadata, KIND)
    later = dict.fromkeys(("targetRef", "targetRefs"), "a PeerAuthentication selects workloads: write a selector")
    fields = filled(spec, ("selector", "mtls", "portLevelMtls"), later) if spec is not None else {}
    selector = read_selector(fields["selector"]) if "selector" in fields else ()
    found = PeerAuthentication(
        name=metadata.name,
        namespace=metadata.namespace,
        mode=_mtls(fields["mtls"]) if "mtls" in fields else Mode.UNSET,
        ports=_ports(fields["portLevelMtls"], selector) if "portLevelMtls" in fields else (),
        selector=selector,
        created=metadata.created,
        place=place_of(root),
    )
    return found if document.problems.errors == errors else None


def _mtls(node: Node) -> Mode:
    fields = filled(node, ("mode",))
    text = fields["mode"].choice(list(Mode), "an mTLS mode") if "mode" in fields else None
    return Mode(text or Mode.UNSET)


def _ports(node: Node, selector: Labels) -> tuple[tuple[int, Mode], ...]:
    found: dict[int, Mode] = {}
    if not selector:
        hint = "ports are those of a workload: select one by its labels"
        node.report_key("SW0106", "'portLevelMtls' needs a selector with labels", hint=hint)
    if node.kind == "mapping" and not node.entries:
        node.report_key("SW0106", "'portLevelMtls' names no port", hint="leave it out")
    for text, value in node.mapping().items():
        port = int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 else 0
        if not 1 <= port <= 65535:
            value.report_key("SW0105", f"'{text[:80]}' is not a port", hint="a number from 1 to 65535")
        elif port in found:
            value.report_key("SW0106", f"port {port} is there twice", hint="keep one")
        found[port] = _mtls(value)
    return tuple(found.items())
