"""What every document of ``security.istio.io`` has in common: its metadata, and which workloads it is about."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from config.nodes import Document, Node
from config.resources.authorization_model import Place, TargetRef
from config.resources.authorization_values import note_unquoted

API_VERSIONS: Final = ("security.istio.io/v1", "security.istio.io/v1beta1")
GATEWAY: Final = "gateway.networking.k8s.io"
ROOT_NAMESPACE: Final = "istio-system"  # Istio's default
DRY_RUN: Final = "istio.io/dry-run"

# Written by clusters and people, without a meaning here.
_METADATA: Final = (
    *("name", "namespace", "labels", "annotations", "uid", "resourceVersion", "generation", "selfLink"),
    *("creationTimestamp", "managedFields", "ownerReferences", "finalizers", "generateName"),
)
# What a document may hang on (Gateway API); a sidecar has no Gateway, GatewayClass or ServiceEntry.
_TARGETS: Final = {"Service": ("", "core"), "HTTPRoute": (GATEWAY,), "GRPCRoute": (GATEWAY,)}
_LATER_TARGETS: Final = dict.fromkeys(
    ("Gateway", "GatewayClass", "ServiceEntry"), "a sidecar is none: name a Service, HTTPRoute or GRPCRoute"
)
_MAX_TARGETS: Final = 16  # Istio's CRD schema
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")  # RFC 1123 subdomain, as Kubernetes
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123 label
_TIMESTAMP: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")  # RFC 3339

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Metadata:
    """``created``: seconds since 1970, 0.0 when the document does not say: it then counts as the oldest, as in Go."""

    name: str
    namespace: str
    created: float
    annotations: Mapping[str, Node]


def read_envelope(document: Document, root: Node, kind: str, default_namespace: str) -> tuple[Metadata, Node | None]:
    """Metadata and the node of ``spec``; sets the document's title. Problems go onto the document's list."""
    fields = root.fields(("apiVersion", "kind", "metadata", "spec", "status"))
    metadata = read_metadata(root, fields.get("metadata"), default_namespace)
    document.title = f"{kind} {metadata.namespace}/{metadata.name}"
    if "kind" not in fields or fields["kind"].text != kind or "apiVersion" not in fields:
        root.report("SW0106", f"apiVersion and kind must be {API_VERSIONS[0]} and {kind}")
    else:
        fields["apiVersion"].choice(API_VERSIONS, f"an API version of {kind}")
    return metadata, fields.get("spec")


def read_metadata(root: Node, node: Node | None, default_namespace: str) -> Metadata:
    fields = node.fields(_METADATA) if node is not None else {}
    name, namespace = fields.get("name"), fields.get("namespace")
    if name is None:
        (node or root).report("SW0106", "metadata.name is missing", hint="every policy needs a name")
    elif not _NAME.fullmatch(name.string() or ""):
        name.report("SW0105", f"{name.shown} is not a name", hint="lower-case letters, digits, '-' and '.'")
    if namespace is not None and not _NAMESPACE.fullmatch(namespace.string() or ""):
        namespace.report("SW0105", f"{namespace.shown} is not a namespace", hint="lower-case letters, digits, '-'")
    return Metadata(
        name.text if name is not None else "?",
        namespace.text if namespace is not None else default_namespace,
        _created(fields["creationTimestamp"]) if "creationTimestamp" in fields else 0.0,
        fields["annotations"].mapping() if "annotations" in fields else {},
    )


def _created(node: Node) -> float:
    text = node.string() or ""
    try:
        if _TIMESTAMP.fullmatch(text):
            return datetime.fromisoformat(text).astimezone(UTC).timestamp()
    except (ValueError, OverflowError):
        pass  # a date that no calendar has
    node.report("SW0105", f"{node.shown} is not a time", hint="e.g. 2026-01-31T12:00:00Z")
    return 0.0


def refuse_dry_run(metadata: Metadata, kind: str) -> None:
    """AUTHZ 13: only an AuthorizationPolicy has a dry run."""
    value = metadata.annotations.get(DRY_RUN)
    if value is not None:
        value.report_key("SW0105", f"a {kind} has no dry run", hint="remove the annotation")


def read_targets(fields: Mapping[str, Node]) -> tuple[TargetRef, ...]:
    """AUTHZ 13: one of selector, targetRef and targetRefs; same namespace; at most 16."""
    named = [name for name in ("selector", "targetRef", "targetRefs") if name in fields]
    if len(named) > 1:
        fields[named[1]].report_key("SW0106", f"'{named[0]}' and '{named[1]}' exclude each other", hint="keep one")
    nodes = [fields["targetRef"]] if "targetRef" in fields else []
    if "targetRefs" in fields:
        nodes += fields["targetRefs"].sequence()
    if len(nodes) > _MAX_TARGETS:
        nodes[_MAX_TARGETS].report("SW0110", f"a policy has at most {_MAX_TARGETS} targets")
    return tuple(ref for node in nodes[:_MAX_TARGETS] if (ref := _target(node)) is not None)


def _target(node: Node) -> TargetRef | None:
    fields = filled(node, ("group", "kind", "name"), {"namespace": "a target is in the policy's own namespace"})
    if "kind" not in fields or "name" not in fields:
        node.report("SW0106", "a target needs kind and name", hint="e.g. {kind: Service, name: api}")
        return None
    kind = fields["kind"].choice(list(_TARGETS), "a kind of target", _LATER_TARGETS)
    if kind is None:
        return None
    group = fields["group"].text if "group" in fields else _TARGETS[kind][0]
    if group not in _TARGETS[kind]:
        fields["group"].report("SW0105", f"{kind} is of group {_TARGETS[kind][0]!r}")
    return TargetRef(kind, fields["name"].string() or "")


def read_selector(node: Node) -> Labels:
    """``selector``: the labels that a workload must have."""
    fields = filled(node, ("matchLabels",))
    labels = fields["matchLabels"].mapping() if "matchLabels" in fields else {}
    if not labels and node.kind == "mapping":
        node.warn("SW0302", "a selector without labels selects every workload", hint="leave it out to say so")
    pairs = []
    for key, value in labels.items():
        text = value.string()
        if not key:
            value.report_key("SW0105", "a label must have a name")
        if "*" in key or "*" in (text or ""):
            value.report("SW0105", "a selector has no wildcards", hint="labels are compared as they are")
        note_unquoted(value)
        pairs.append((key, text or ""))
    return tuple(pairs)


def filled(node: Node, names: Iterable[str], later: Mapping[str, str] | None = None) -> dict[str, Node]:
    """``Node.fields``, and a problem for each known field without a value."""
    known = tuple(names)
    fields = node.fields(known, later)
    for name, value in node.entries.items():
        if name in known and value.is_null:
            value.report_key("SW0106", f"'{name}' has no value", hint="give it one, or leave it out")
    return fields


def place_of(node: Node) -> Place:
    return Place(node.file, node.line, node.column)
