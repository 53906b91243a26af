"""Which container a process belongs to, in every form that runtimes write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquirers.container_id import from_cgroup, from_mountinfo

ID = "4f" * 32
OUTER = "a0" * 32
POD = "0f3c1b2a-9d8e-4f70-a1b2-c3d4e5f60718"
POD_ = POD.replace("-", "_")
STATIC = "9c" * 16
TASK = "7e" * 16


@pytest.mark.parametrize(
    ("path", "container", "pod"),
    [
        (f"/docker/{ID}", ID, ""),
        (f"/system.slice/docker-{ID}.scope", ID, ""),
        (f"/ecs/{TASK}/{ID}", ID, ""),
        (f"/ecstasks.slice/ecstasks-{TASK}.slice/docker-{ID}.scope", ID, ""),
        (f"/ecs/{TASK}/{TASK}-3054012820", f"{TASK}-3054012820", ""),
        (f"/kubepods/burstable/pod{POD}/{ID}", ID, POD),
        (f"/kubepods/pod{STATIC}/{ID}", ID, STATIC),
        (f"/kubepods.slice/kubepods-pod{POD_}.slice/cri-containerd-{ID}.scope", ID, POD),
        (f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{POD_}.slice/crio-{ID}.scope", ID, POD),
        (
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice/docker-{ID}.scope",
            ID,
            STATIC,
        ),
        (f"/system.slice/containerd.service/kubepods-burstable-pod{POD_}.slice:cri-containerd:{ID}", ID, POD),
        (f"/machine.slice/libpod-{ID}.scope/container", ID, ""),
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope", ID, ""),
        (f"/docker/{ID}/init.scope", ID, ""),
        (f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{POD_}.slice", "", POD),
        (f"/machine.slice/libpod-conmon-{ID}.scope", "", ""),
        (f"/system.slice/crio-conmon-{ID}.scope", "", ""),
        ("/", "", ""),
        ("/user.slice/user-0.slice/session-3.scope", "", ""),
        (f"/docker/{ID[:-1]}", "", ""),
        (f"/docker/{ID}0", "", ""),
        (f"/build/x{ID}", "", ""),
    ],
)
def test_each_form(path: str, container: str, pod: str) -> None:
    version_2 = from_cgroup(f"0::{path}\n".encode())
    assert (version_2.container, version_2.pod) == (container, pod)
    lines = [f"{n}:{name}:{path}" for n, name in ((12, "pids"), (4, "cpu,cpuacct"), (1, "name=systemd"))]
    assert from_cgroup("\n".join(lines).encode()) == version_2
    assert version_2.source == ("cgroup" if container or pod else "")


def test_nested_containers_give_the_outermost_and_the_way_on() -> None:
    """What is below a container's control group can be named by whoever is in it."""
    found = from_cgroup(f"0::/docker/{OUTER}/docker/{ID}\n".encode())
    assert found.container == OUTER
    assert found.chain == (OUTER, ID)
    assert found.group == f"/docker/{OUTER}".encode()


@pytest.mark.parametrize("inner", [f"/kubepods/pod{STATIC}/{ID}", f"/pod{STATIC}"])
def test_nobody_in_a_container_names_its_pod(inner: str) -> None:
    found = from_cgroup(f"0::/kubepods/burstable/pod{POD}/{OUTER}{inner}\n".encode())
    assert (found.container, found.pod) == (OUTER, POD)


def test_a_pod_of_podman_is_no_container() -> None:
    found = from_cgroup(f"0::/libpod_parent/{OUTER}/libpod-{ID}\n".encode())
    assert (found.container, found.chain) == (ID, ())


def test_one_hierarchy_that_knows_is_enough() -> None:
    """Hybrid machines leave the unified hierarchy at the root."""
    assert from_cgroup(f"0::/\n9:memory:/docker/{ID}\n1:name=systemd:/\n".encode()).container == ID


def mountinfo(*lines: tuple[str, str, str]) -> bytes:
    return "\n".join(f"{n} 1 8:1 {root} {point} rw - {rest}" for n, (root, point, rest) in enumerate(lines, 1)).encode()


def test_docker_is_known_by_the_files_it_binds() -> None:
    layer = "/var/lib/docker/overlay2/" + "c1" * 32
    found = from_mountinfo(
        mountinfo(
            ("/", "/", f"overlay overlay rw,lowerdir=/l/A:/l/B,upperdir={layer}/diff,workdir={layer}/work"),
            (f"/var/lib/docker/containers/{ID}/hostname", "/etc/hostname", "ext4 /dev/sda1 rw"),
        )
    )
    assert (found.container, found.upperdir, found.source) == (ID, f"{layer}/diff".encode(), "mountinfo")


def test_kubernetes_is_known_by_pod_and_sandbox() -> None:
    found = from_mountinfo(
        mountinfo(
            (f"/var/lib/kubelet/pods/{POD}/etc-hosts", "/etc/hosts", "xfs /dev/nvme0n1p1 rw"),
            (f"/io.containerd.grpc.v1.cri/sandboxes/{ID}/resolv.conf", "/etc/resolv.conf", "xfs /dev/nvme0n1p1 rw"),
        )
    )
    assert (found.pod, found.sandbox, found.container) == (POD, ID, "")


def test_podman_is_known_by_its_userdata() -> None:
    root = f"/containers/storage/overlay-containers/{ID}/userdata/hosts"
    assert from_mountinfo(mountinfo((root, "/etc/hosts", "tmpfs tmpfs rw"))).container == ID


def test_the_mounts_of_a_host_are_not_those_of_a_container() -> None:
    """A host has every container's directory mounted somewhere: only what is bound over its own files counts."""
    found = from_mountinfo(
        mountinfo(
            ("/", "/", "ext4 /dev/sda1 rw"),
            ("/", f"/var/lib/docker/containers/{ID}/mounts/shm", "tmpfs shm rw"),
            ("/", f"/var/lib/kubelet/pods/{POD}/volumes/kubernetes.io~empty-dir/x", "tmpfs tmpfs rw"),
        )
    )
    assert found.source == ""


pieces = st.sampled_from([ID, OUTER, POD_, "pod", "docker-", ".scope", "/", ":", "\n", "0::", "kubepods-", "-", " - "])


@given(st.lists(pieces).map("".join).map(str.encode) | st.binary(max_size=300))
def test_parsers_take_anything(data: bytes) -> None:
    for found in (from_cgroup(data), from_mountinfo(data)):
        assert len(found.container) in {0, 64} or "-" in found.container
        assert len(found.pod) in {0, 32, 36}
