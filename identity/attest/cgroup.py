"""What the control groups of a process tell: its systemd unit, its pod, its container. Pure.

``/proc/PID/cgroup`` has one line for each hierarchy, ``number:controllers:path`` (man 7 cgroups). The paths are made
by the service manager and the container runtimes, and everyone spells them in their own way. But they are not made by
those alone: below a service with ``Delegate=yes``, and ``user@1000.service`` is one, an unprivileged user makes
folders as he likes and may name one ``nginx.service`` or ``kubepods/pod<uid of another>/<container of another>``.
So a name counts only where nobody but root can have put it:

- The unit is what systemd itself takes it to be: the first component after the slices (cg_path_get_unit), so
  everything that a user runs belongs to ``user@1000.service`` or to a session.
- A pod or a container counts only when neither ``user.slice`` nor a ``*.service`` stands before it. One form of
  containerd (``system.slice/containerd.service/kubepods-...slice:cri-containerd:<id>``) is known as such.
- A path that begins with ``/..`` is outside of our own cgroup namespace; where it hangs cannot be seen: it tells
  nothing.
- Hierarchies that contradict each other tell nothing.

What stands below the container's own component (a systemd inside, a nested Docker) is the container's affair.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

_T = TypeVar("_T")

MAX_CGROUP: Final = 64 * 1024  # bytes of /proc/PID/cgroup

_UID: Final = r"[0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32}"
_POD: Final = re.compile(rf"(?:[a-z0-9_.-]*-)?pod({_UID})(?:\.slice)?")
_CONTAINER: Final = re.compile(r"(?:(?:cri-containerd|docker|crio|libpod|cri-o)-)?([0-9a-f]{64})(?:\.scope)?")
_COLONS: Final = re.compile(rf"(?:kubepods-)(?:[a-z]+-)?pod({_UID})\.slice:cri-containerd:([0-9a-f]{{64}})")
_DOCKER_SCOPE: Final = re.compile(r"docker-([0-9a-f]{64})\.scope")
_LONG_HEX: Final = re.compile(r"[0-9a-f]{64}")
_KUBEPODS: Final = re.compile(r"(?:[a-z0-9]+-)?kubepods(?:\.slice)?")
_RUNTIME_SERVICES: Final = frozenset({"containerd.service", "crio.service", "k3s.service", "rke2-server.service"})
_UNIT_TYPES: Final = (".service", ".scope", ".mount", ".socket", ".swap")


@dataclass(frozen=True, slots=True)
class CgroupFacts:
    """Empty strings are what is not known. ``unit``: as ``systemctl`` names it. ``pod_uid``: with dashes (a static
    pod's is 32 hex digits). ``container_id``: 64 hex digits, of the pod's container or of a plain Docker one."""

    unit: str = ""
    pod_uid: str = ""
    container_id: str = ""
    is_docker: bool = False

    def selectors(self) -> frozenset[str]:
        """``systemd:id``, ``k8s:pod-uid``, ``k8s:container-id``, ``docker:container_id``."""
        found = set()
        if self.unit:
            found.add(f"systemd:id:{self.unit}")
        if self.pod_uid:
            found.add(f"k8s:pod-uid:{self.pod_uid}")
        if self.container_id:
            kind = "docker:container_id" if self.is_docker else "k8s:container-id"
            found.add(f"{kind}:{self.container_id}")
        return frozenset(found)


def parse_cgroup(text: str) -> CgroupFacts:
    """The facts of ``/proc/PID/cgroup``. Never raises: what cannot be read tells nothing."""
    lines = list(_lines(text))
    containers = {found for _, path in lines if (found := _container(path)) is not None}
    units = {unit for controllers, path in lines if controllers in ("", "name=systemd") and (unit := _unit(path))}
    pod_uid, container_id, is_docker = _only(containers) or ("", "", False)
    return CgroupFacts(_only(units) or "", pod_uid, container_id, is_docker)


def _lines(text: str) -> Iterator[tuple[str, list[str]]]:
    """(controllers, components of the path) of each hierarchy whose path is visible from here."""
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if not (number.isdigit() and colon and path.startswith("/")):
            continue
        components = [one for one in path.split("/") if one]
        if ".." not in components and "." not in components:
            yield controllers, components


def _only(found: Iterable[_T]) -> _T | None:
    """The one element; None of none or several."""
    all_of_them = list(found)
    return all_of_them[0] if len(all_of_them) == 1 else None


def _unit(components: list[str]) -> str:
    """systemd's own rule: the first component that is no slice, if it is a unit."""
    for component in components:
        if not component.endswith(".slice"):
            name = component.removeprefix("_")  # systemd escapes names that would collide with the kernel's
            return name if name.endswith(_UNIT_TYPES) else ""
    return ""


def _container(components: list[str]) -> tuple[str, str, bool] | None:
    """(pod uid, container id, Docker?), or None."""
    docker: tuple[str, str, bool] | None = None
    for at, component in enumerate(components):
        before = components[:at]
        below = components[at + 1 :]
        if component == "user.slice":
            return docker
        if component.endswith(".service"):
            return _colon_form(component, below) or docker
        if _KUBEPODS.fullmatch(component):
            return _pod(below)
        if docker is None:
            docker = _plain_docker(before, component)
    return docker


def _colon_form(service: str, below: list[str]) -> tuple[str, str, bool] | None:
    """containerd told to use systemd's names while the runtime does not: all in one component."""
    if service not in _RUNTIME_SERVICES or not below:
        return None
    match = _COLONS.fullmatch(below[0])
    return (_dashed(match[1]), match[2], False) if match else None


def _pod(below: list[str]) -> tuple[str, str, bool] | None:
    """Below ``kubepods``: perhaps one folder of the class of service, the pod, the container."""
    for at, component in enumerate(below[:2]):
        match = _POD.fullmatch(component)
        if match:
            inside = below[at + 1 :]
            container = _CONTAINER.fullmatch(inside[0]) if inside else None
            return (_dashed(match[1]), container[1], False) if container else None  # conmon, a sandbox: no workload
    return None


def _plain_docker(before: list[str], component: str) -> tuple[str, str, bool] | None:
    scope = _DOCKER_SCOPE.fullmatch(component)
    if scope and before in ([], ["system.slice"]):
        return "", scope[1], True
    if before == ["docker"] and _LONG_HEX.fullmatch(component):
        return "", component, True
    return None


def _dashed(uid: str) -> str:
    return uid.replace("_", "-")
