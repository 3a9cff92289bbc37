"""Lines of /proc/PID/cgroup as real machines write them, and as somebody who would like to be another writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity.attest.cgroup import CgroupFacts, parse_cgroup

UID = "c15b2d2c-6d5a-4a4b-9d2c-0f8b8b5c1a11"
UNDERLINED = UID.replace("-", "_")
STATIC = "0123456789abcdef0123456789abcdef"  # the uid of a static pod is a hash
ID = "9" * 32 + "a" * 32
OTHER = "b" * 64
POD = CgroupFacts(pod_uid=UID, container_id=ID)


def pod(unit: str = "", uid: str = UID) -> CgroupFacts:
    return CgroupFacts(unit, uid, ID)


def docker(unit: str = "") -> CgroupFacts:
    return CgroupFacts(unit, "", ID, is_docker=True)


CASES = {
    # systemd
    "a service, v2": ("0::/system.slice/nginx.service", CgroupFacts("nginx.service")),
    "a service, v1": (
        "12:pids:/system.slice/nginx.service\n1:name=systemd:/system.slice/nginx.service\n0::/",
        CgroupFacts("nginx.service"),
    ),
    "a service, hybrid": (
        "5:cpu,cpuacct:/\n1:name=systemd:/system.slice/ssh.service\n0::/system.slice/ssh.service",
        CgroupFacts("ssh.service"),
    ),
    "an instance of a template in a slice of its own": (
        "0::/system.slice/system-getty.slice/getty@tty1.service",
        CgroupFacts("getty@tty1.service"),
    ),
    "a login": ("0::/user.slice/user-1000.slice/session-3.scope", CgroupFacts("session-3.scope")),
    "a service of a user's manager belongs to the manager": (
        "0::/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service",
        CgroupFacts("user@1000.service"),
    ),
    "below a service that may make folders of its own": (
        "0::/system.slice/podman.service/libpod-payload/nginx.service",
        CgroupFacts("podman.service"),
    ),
    "a name that systemd had to escape": ("0::/system.slice/_cpu.service", CgroupFacts("cpu.service")),
    "init": ("0::/init.scope", CgroupFacts("init.scope")),
    # Kubernetes, cgroupfs driver
    "kubelet with cgroupfs, v2, burstable": (f"0::/kubepods/burstable/pod{UID}/{ID}", POD),
    "kubelet with cgroupfs, guaranteed": (f"0::/kubepods/pod{UID}/{ID}", POD),
    "kubelet with cgroupfs, v1": (
        f"11:memory:/kubepods/besteffort/pod{UID}/{ID}\n4:cpu,cpuacct:/kubepods/besteffort/pod{UID}/{ID}\n"
        f"1:name=systemd:/kubepods/besteffort/pod{UID}/{ID}",
        POD,
    ),
    "CRI-O with cgroupfs": (f"0::/kubepods/besteffort/pod{UID}/crio-{ID}", POD),
    "a static pod": (f"0::/kubepods/burstable/pod{STATIC}/{ID}", pod(uid=STATIC)),
    # Kubernetes, systemd driver
    "containerd with systemd": (
        f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERLINED}.slice/cri-containerd-{ID}.scope",
        pod(f"cri-containerd-{ID}.scope"),
    ),
    "containerd with systemd, guaranteed": (
        f"0::/kubepods.slice/kubepods-pod{UNDERLINED}.slice/cri-containerd-{ID}.scope",
        pod(f"cri-containerd-{ID}.scope"),
    ),
    "CRI-O with systemd": (
        f"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UNDERLINED}.slice/crio-{ID}.scope",
        pod(f"crio-{ID}.scope"),
    ),
    "CRI-O, a container with a systemd inside": (
        f"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UNDERLINED}.slice/crio-{ID}.scope"
        "/system.slice/httpd.service",
        pod(f"crio-{ID}.scope"),
    ),
    "Docker below kubelet with systemd, v1": (
        f"3:cpu:/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERLINED}.slice/docker-{ID}.scope",
        POD,
    ),
    "containerd told to use systemd's names without systemd": (
        f"0::/system.slice/containerd.service/kubepods-burstable-pod{UNDERLINED}.slice:cri-containerd:{ID}",
        pod("containerd.service"),
    ),
    "kind: a node in a Docker container, cgroupfs": (
        f"0::/docker/{OTHER}/kubelet/kubepods/besteffort/pod{UID}/{ID}",
        POD,
    ),
    "kind: kubelet with a slice of its own": (
        f"0::/system.slice/docker-{OTHER}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice"
        f"/kubelet-kubepods-besteffort-pod{UNDERLINED}.slice/cri-containerd-{ID}.scope",
        pod(f"docker-{OTHER}.scope"),
    ),
    # Docker
    "Docker with cgroupfs": (f"0::/docker/{ID}", docker()),
    "Docker with cgroupfs, v1": (f"2:cpuset:/docker/{ID}\n1:name=systemd:/docker/{ID}", docker()),
    "Docker with systemd": (f"0::/system.slice/docker-{ID}.scope", docker(f"docker-{ID}.scope")),
    "Docker in Docker: the outer one, which is ours": (f"0::/docker/{ID}/docker/{OTHER}", docker()),
    # nothing to be told
    "no groups": ("0::/", CgroupFacts()),
    "empty": ("", CgroupFacts()),
    "a container's own cgroup namespace": ("0::/../cri-containerd-" + ID + ".scope", CgroupFacts()),
    "outside of our cgroup namespace": (f"0::/../../kubepods/burstable/pod{UID}/{ID}", CgroupFacts()),
    "the pod's monitor is not its workload": (
        f"0::/kubepods.slice/kubepods-pod{UNDERLINED}.slice/crio-conmon-{ID}.scope",
        CgroupFacts(f"crio-conmon-{ID}.scope"),
    ),
    "the pod without a container": (f"0::/kubepods/burstable/pod{UID}", CgroupFacts()),
    "hierarchies that contradict each other": (
        f"3:cpu:/kubepods/pod{UID}/{ID}\n2:memory:/kubepods/pod{UID}/{OTHER}",
        CgroupFacts(),
    ),
    "units that contradict each other": (
        "1:name=systemd:/system.slice/a.service\n0::/system.slice/b.service",
        CgroupFacts(),
    ),
    "a short container id": (f"0::/docker/{ID[:12]}", CgroupFacts()),
    "capitals": (f"0::/docker/{ID.upper()}", CgroupFacts()),
    "no number": (f":: /docker/{ID}", CgroupFacts()),
    "no slash": (f"0::docker/{ID}", CgroupFacts()),
    # somebody would like to be another
    "a user's folder named like a pod": (
        f"0::/user.slice/user-1000.slice/user@1000.service/kubepods/pod{UID}/{ID}",
        CgroupFacts("user@1000.service"),
    ),
    "a user's folder named like a Docker container": (
        f"0::/user.slice/user-1000.slice/user@1000.service/docker/{ID}",
        CgroupFacts("user@1000.service"),
    ),
    "a delegated service's folder named like a pod": (
        f"0::/system.slice/ci.service/kubepods/pod{UID}/{ID}",
        CgroupFacts("ci.service"),
    ),
    "a delegated service's folder named like containerd's": (
        f"0::/system.slice/ci.service/kubepods-burstable-pod{UNDERLINED}.slice:cri-containerd:{ID}",
        CgroupFacts("ci.service"),
    ),
    "a container's folder named like another pod": (
        f"0::/kubepods/pod{UID}/{ID}/kubepods/pod{UID[::-1]}/{OTHER}",
        POD,
    ),
    "a container's folder named like a user's pod": (
        f"0::/docker/{ID}/user.slice/kubepods/pod{UID}/{OTHER}",
        docker(),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_control_groups_tell(name: str) -> None:
    text, expected = CASES[name]
    assert parse_cgroup(text) == expected


def test_the_table_is_long_enough_to_be_worth_something() -> None:
    assert len(CASES) >= 40


WORDS = st.sampled_from(
    ["kubepods", f"pod{UID}", ID, "docker", f"docker-{ID}.scope", "system.slice", "user.slice", "a.service", "..", ""]
)


@given(st.lists(WORDS, max_size=6), st.lists(WORDS, max_size=6))
def test_below_a_users_slice_or_a_service_nothing_is_a_container(above: list[str], below: list[str]) -> None:
    for owned in ("user.slice", "evil.service"):
        found = parse_cgroup(f"0::/{owned}/{'/'.join(below)}")
        assert (found.pod_uid, found.container_id) == ("", "")
    assert parse_cgroup("0::/" + "/".join([*above, "..", *below])) == CgroupFacts()


@given(st.text())
def test_no_text_is_too_strange(text: str) -> None:
    parse_cgroup(text)
    parse_cgroup(f"0::/{text}")


def test_a_pod_and_a_docker_container_have_selectors_of_their_own_kind() -> None:
    assert pod("a.service").selectors() == {
        "systemd:id:a.service",
        f"k8s:pod-uid:{UID}",
        f"k8s:container-id:{ID}",
    }
    assert docker().selectors() == {f"docker:container_id:{ID}"}
    assert CgroupFacts().selectors() == frozenset()
