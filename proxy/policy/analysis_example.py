"""Values on the axes of the analyses become a request again, and a workload if none was given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from proxy.policy.facts import HTTP, AccessRequest, WorkloadFacts

_NESTED: Final = "]["  # between the names of nested claims
_ADDRESSES: Final = ("source_ip", "remote_ip", "destination_ip", "sni")


@dataclass(frozen=True, slots=True)
class Example:
    """A request to a workload. ``axes``: the facts that matter; all others are plain fillings."""

    workload: WorkloadFacts
    request: AccessRequest
    axes: frozenset[str] = frozenset()


def example_of(
    values: Mapping[str, Any], protocol: str, workload: WorkloadFacts | None, root: str
) -> Example:
    """The request that has ``values`` on the axes; axes that are not named get something plain."""
    labels = {axis[6:]: _text(value) for axis, value in _named(values, "label:").items()}
    namespace, name = values.get("namespace", "default"), values.get("name", "")
    to = workload or WorkloadFacts(namespace, labels, root, name)
    peer = values.get("peer", "cluster.local/ns/default/sa/caller")
    facts: dict[str, Any] = {"port": values.get("port", 8080), "principal": peer, "namespace": namespace_of(peer)}
    facts |= {axis: values[axis] or "" for axis in _ADDRESSES if axis in values}
    if protocol == HTTP:
        facts |= _http_facts(values)
    return Example(to, AccessRequest(protocol=protocol, **facts), frozenset(values))


def _http_facts(values: Mapping[str, Any]) -> dict[str, Any]:
    facts = {
        "method": values.get("method", "GET"),
        "path": values.get("path", "/"),
        "host": values.get("host", "api"),
        "route": values.get("route", ""),
    }
    if headers := _named(values, "header:"):
        facts["headers"] = {axis[7:]: tuple(words) for axis, words in headers.items()}
    if claims := _named(values, "claim:"):
        facts["claims"] = _claims({axis[6:]: words for axis, words in claims.items()})
    return facts


def _named(values: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The axes of a family that have a value."""
    return {axis: value for axis, value in values.items() if axis.startswith(family) and value is not None}


def _text(word: str) -> str:
    return word.encode("latin-1").decode("utf-8", "surrogateescape")  # the inverse of ``wire_text``


def _claims(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, words in values.items():
        *outer, last = name.split(_NESTED)
        inner = found
        for step in outer:
            inner = inner.setdefault(step, {})
        inner[last] = words if isinstance(words, str) else words[0] if len(words) == 1 else list(words)
    return found


def namespace_of(principal: str | None) -> str | None:
    """The Kubernetes namespace of an ID of the form ``td/ns/a/sa/b``."""
    parts = (principal or "").split("/")
    return parts[2] if len(parts) == 5 and parts[1] == "ns" and parts[3] == "sa" else None
