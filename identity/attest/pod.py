"""A pod as the API server shows it: whether it is the one that a token was made for, and what it is. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from identity.attest.service_token import TokenFacts, TokenRefused

_MAX_CONTAINERS: Final = 200
_LISTS: Final = (
    ("containers", "containerStatuses"),
    ("initContainers", "initContainerStatuses"),
    ("ephemeralContainers", "ephemeralContainerStatuses"),
)


@dataclass(frozen=True, slots=True)
class Container:
    """``images``: the name that it was started by, and the digest. ``id``: 64 hex digits, "" before it has one."""

    name: str
    images: tuple[str, ...]
    id: str = ""
    running: bool = False


@dataclass(frozen=True, slots=True)
class PodFacts:
    """Who bears a service-account token. ``cluster``: our name for it. ``labels`` and ``containers`` are empty when
    only the token was looked at. ``container_id``: which of the containers it is, when that is known."""

    token: TokenFacts
    cluster: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    containers: tuple[Container, ...] = ()
    container_id: str = ""

    def selectors(self) -> frozenset[str]:
        """SPIRE's ``k8s:*`` and ``k8s_psat:*``. A container's name and image only when it is certain which it is: by
        its id, or because the pod has only one; images of all are ``k8s:pod-image``."""
        token = self.token
        named = {
            "k8s:ns": token.namespace,
            "k8s:sa": token.service_account,
            "k8s:pod-name": token.pod,
            "k8s:pod-uid": token.pod_uid,
            "k8s:node-name": token.node,
            "k8s_psat:cluster": self.cluster,
            "k8s_psat:agent_ns": token.namespace,
            "k8s_psat:agent_sa": token.service_account,
            "k8s_psat:agent_pod_name": token.pod,
            "k8s_psat:agent_pod_uid": token.pod_uid,
            "k8s_psat:agent_node_name": token.node,
            "k8s_psat:agent_node_uid": token.node_uid,
        }
        found = {f"{name}:{value}" for name, value in named.items() if value}
        for key, value in self.labels.items():
            found |= {f"k8s:pod-label:{key}:{value}", f"k8s_psat:agent_pod_label:{key}:{value}"}
        return frozenset(found | self._container_selectors())

    def _container_selectors(self) -> set[str]:
        found = {f"k8s:pod-image:{image}" for one in self.containers for image in one.images}
        caller = self._caller()
        if caller is not None:
            found.add(f"k8s:container-name:{caller.name}")
            found |= {f"k8s:container-image:{image}" for image in caller.images}
        return found

    def _caller(self) -> Container | None:
        if self.container_id:
            return next((one for one in self.containers if one.id == self.container_id), None)
        return self.containers[0] if len(self.containers) == 1 else None


def check_pod(
    document: Mapping[str, Any], token: TokenFacts, *, cluster: str = "", container_id: str = ""
) -> PodFacts:
    """The facts of the pod, when it is still the one that ``token`` was made for, and runs.

    A pod in phase Pending counts as running when one of its containers does: sidecars start before the others and
    need their identity then, and without a running container nobody is there who could have the token. Raises
    TokenRefused.
    """
    metadata, spec, status = (_part(document, name) for name in ("metadata", "spec", "status"))
    if (metadata.get("namespace"), metadata.get("name")) != (token.namespace, token.pod):
        raise TokenRefused("the API server has answered with another pod")
    if metadata.get("uid") != token.pod_uid:
        raise TokenRefused("its pod has gone; another one has the name by now")
    if metadata.get("deletionTimestamp") is not None:
        raise TokenRefused("its pod is being deleted")
    if spec.get("serviceAccountName") != token.service_account:
        raise TokenRefused("its pod runs as another service account")
    node = spec.get("nodeName")
    if not isinstance(node, str) or not node or token.node not in ("", node):
        raise TokenRefused("its pod is not on its node")
    containers = tuple(_containers(spec, status))
    _check_phase(status.get("phase"), containers)
    return PodFacts(replace(token, node=node), cluster, _labels(metadata), containers, container_id)


def _check_phase(phase: object, containers: tuple[Container, ...]) -> None:
    starting = phase == "Pending" and any(one.running for one in containers)
    if phase != "Running" and not starting:
        raise TokenRefused(f"its pod does not run (phase {phase if isinstance(phase, str) else 'unknown'})")


def _part(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = document.get(name)
    if not isinstance(found, dict):
        raise TokenRefused(f'the API server\'s pod has no "{name}"')
    return found


def _labels(metadata: Mapping[str, Any]) -> dict[str, str]:
    labels = metadata.get("labels")
    if not isinstance(labels, dict):
        return {}
    return {key: value for key, value in labels.items() if isinstance(key, str) and isinstance(value, str)}


def _containers(spec: Mapping[str, Any], status: Mapping[str, Any]) -> Iterator[Container]:
    """All that can run beside each other: containers, and init containers that stay (or run now)."""
    for listed, told in _LISTS:
        statuses = {one.get("name"): one for one in _objects(status, told)}
        for one in _objects(spec, listed):
            container = _container(one, statuses.get(one.get("name"), {}))
            if listed == "containers" or one.get("restartPolicy") == "Always" or container.running:
                yield container


def _container(declared: Mapping[str, Any], told: Mapping[str, Any]) -> Container:
    _, _, identifier = str(told.get("containerID") or "").rpartition("://")
    _, scheme, digest = str(told.get("imageID") or "").rpartition("://")
    images = [str(told.get("image") or ""), digest if scheme else str(told.get("imageID") or "")]
    state = told.get("state")
    running = isinstance(state, dict) and "running" in state
    return Container(str(declared.get("name", "")), tuple(filter(None, images)), identifier, running)


def _objects(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = document.get(name)
    if not isinstance(found, list):
        return []
    return [one for one in found[:_MAX_CONTAINERS] if isinstance(one, dict)]
