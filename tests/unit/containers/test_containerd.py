"""`containers.containerd` on disks made by hand: Kubernetes, Docker 29, other snapshotters and places, and malice."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from acquirers.base import FlagKind, Gap, Layers, Reason, Scope, State
from acquirers.containers.containerd import DockerSnapshots, container_names, docker_snapshot
from acquirers.containers.containerd.values import any_of as parse_any
from acquirers.containers.containerd.values import go_time as parse_time
from acquirers.containers.containerd.values import uvarint as parse_uvarint
from acquirers.containers.containerd.values import varint
from acquirers.host import Host, Mode
from tests.unit.containers.containerd_disk import ROOT, Machine, any_of, go_time, probe, take, uvarint
from tests.unit.containers.disk import Taken, all_flags, all_gaps, hex_id

SNAPSHOTS = f"{ROOT}/io.containerd.snapshotter.v1.overlayfs/snapshots"
WEB = hex_id("web")
POD = hex_id("pod")
UID = "6f0a1c4e-5f3b-4a8e-9a41-2f5a3b1c0d9e"
LABELS = {
    "io.cri-containerd.kind": "container",
    "io.kubernetes.container.name": "app",
    "io.kubernetes.pod.name": "web-1",
    "io.kubernetes.pod.namespace": "shop",
    "io.kubernetes.pod.uid": UID,
}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def with_web(machine: Machine, **more: object) -> int:
    """One container of a pod on two layers; the number of its snapshot."""
    number = machine.snapshot(WEB, parent=machine.image(), content="written by web")
    machine.container(WEB, labels=LABELS, **more)  # type: ignore[arg-type]
    return number


def item_of(taken: dict[str, Taken], container: str) -> Taken:
    return next(one for one in taken.values() if one.item.about.get("id") == container)


def cri(**metadata: object) -> bytes:
    value = json.dumps({"Version": "v1", "Metadata": metadata}).encode()
    return any_of("github.com/containerd/cri/pkg/store/container/Metadata", value)


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (go_time(1_700_000_000, 5), "2023-11-14T22:13:20.000000005Z"),
        (go_time(1_700_000_000, 5, 90), "2023-11-14T23:43:20.000000005+01:30"),
        (go_time(-62135596800), "0001-01-01T00:00:00.000000000Z"),
        (b"\x02" + go_time(0)[1:] + b"\x00", "1970-01-01T00:00:00.000000000Z"),
        (b"\x01" + b"\xff" * 14, ""),
        (b"\x01" + b"\x7f" * 14, ""),
        (b"\x03" + bytes(14), ""),
        (b"", ""),
        (None, ""),
    ],
)
def test_times_as_go_writes_them(data: bytes | None, text: str) -> None:
    assert parse_time(data) == text


def test_varints() -> None:
    for value in (0, 1, 127, 128, 300, 1 << 40, (1 << 64) - 1):
        assert parse_uvarint(uvarint(value)) == value
    assert [varint(uvarint(value)) for value in (0, 1, 2, 3, 600)] == [0, -1, 1, -2, 300]
    for data in (b"", b"\x80", b"\xff" * 9 + b"\x7f", b"\xff" * 20, None):
        assert parse_uvarint(data) is None


def test_protobuf_any() -> None:
    assert parse_any(any_of("a/b", b"x" * 300)) == ("a/b", b"x" * 300)
    assert parse_any(b"\x12\x01x\x0a\x01k") == ("k", b"x")
    for data in (b"", None, b"\x0a", b"\x0a\xff\xff\xff\xff\x0fabc", b"\x08\x01", b"\xff" * 50):
        parse_any(data)


# -- one container ----------------------------------------------------------------------------------------------------


def test_a_container_of_a_pod(machine: Machine) -> None:
    log_path = f"/var/log/pods/shop_web-1_{UID}/app/3.log"
    number = with_web(
        machine,
        spec={"hostname": "web-1", "linux": {"cgroupsPath": "kubepods-x.slice:cri-containerd:y"},
              "process": {"env": ["PASSWORD=hunter2"]},
              "mounts": [{"destination": "/data", "source": "/srv/data", "type": "bind"}, {"source": "proc"}]},
        extensions={b"io.cri-containerd.container.metadata": cri(
            SandboxID=POD, ImageRef="sha256:1234", LogPath=log_path, Config={"metadata": {"name": "app"}})},
    )  # fmt: skip
    logs = machine.root / f"var/log/pods/shop_web-1_{UID}/app"
    logs.mkdir(parents=True)
    for name in ("2.log", "3.log", "3.log.20260101-000000.gz"):
        (logs / name).write_text("x")
    status = machine.data / f"io.containerd.grpc.v1.cri/containers/{WEB}/status"
    status.parent.mkdir(parents=True)
    status.write_text(json.dumps({"Version": "v1", "StartedAt": 5, "FinishedAt": 7, "ExitCode": 137}))
    taken = take(machine.write())
    assert not all_gaps(taken)
    assert list(taken) == [
        "containers/containerd/runtime.tar",
        f"containers/containerd/{WEB[:12]}-app.tar",
        f"containers/containerd/layers/{hex_id('chain 1')[:12]}.tar",
        f"containers/containerd/layers/{hex_id('chain 0')[:12]}.tar",
        "containers/containerd/carved.jsonl",
    ]
    web = item_of(taken, WEB)
    base = f"/var/lib/containerd/{SNAPSHOTS.removeprefix(ROOT + '/')}".encode()
    expected = {
        "runtime": "containerd", "containerd_namespace": "k8s.io", "name": b"app", "kind": "container",
        "state": "exited", "exit_code": 137, "created": "2023-11-14T22:13:20.000000005Z", "pod": "web-1",
        "namespace": "shop", "sandbox": POD, "image_id": "sha256:1234", "hostname": "web-1",
        "rootfs": {
            "driver": "overlayfs", "upper": b"%s/%d/fs" % (base, number), "lowers": [base + b"/2/fs", base + b"/1/fs"],
            "userxattr": os.getuid() != 0,
        },
        "logs": [os.fsencode(f"/var/log/pods/shop_web-1_{UID}/app/{name}")
                 for name in ("2.log", "3.log", "3.log.20260101-000000.gz")],
        "mounts": [{"type": "bind", "source": b"/srv/data", "destination": b"/data"}],
    }  # fmt: skip
    assert {name: web.item.about.get(name) for name in expected} == expected
    assert web.content(f"{SNAPSHOTS}/{number}/fs/content") == b"written by web"
    assert f"[root]/var/log/pods/shop_web-1_{UID}/app/3.log.20260101-000000.gz" in web.names()
    assert f"{ROOT}/io.containerd.grpc.v1.cri/containers/{WEB}/status" in web.names()
    assert "hunter2" not in repr([dict(one.item.about) for one in taken.values()])
    layer = taken[f"containers/containerd/layers/{hex_id('chain 1')[:12]}.tar"]
    assert layer.item.about["path"] == base + b"/2/fs"
    assert layer.item.about["size"] == 4096, "a signed varint"
    assert layer.item.about["containers"] == [WEB]


def test_two_containers_share_layers_and_the_directory_of_their_pod(machine: Machine) -> None:
    with_web(machine)
    machine.snapshot(POD, parent="sha256:" + hex_id("chain 1"))
    machine.container(POD, labels={**LABELS, "io.cri-containerd.kind": "sandbox"})
    (machine.root / f"var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~empty-dir/x").mkdir(parents=True)
    taken = take(machine.write())
    assert not all_gaps(taken)
    assert sum("/layers/" in path for path in taken) == 2
    pods = f"[root]/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~empty-dir/x"
    assert [pods in taken[path].names() for path in taken if "-app" in path or "-web-1" in path].count(True) == 1
    assert [flag.kind for flag in all_flags(taken)] == [FlagKind.ELSEWHERE]


@pytest.mark.parametrize("layers", list(Layers))
def test_layers_are_taken_when_they_are_asked_for(machine: Machine, layers: Layers) -> None:
    with_web(machine)
    assert any("/layers/" in path for path in take(machine.write(), Scope(layers=layers))) is (
        layers is not Layers.UPPER
    )


@pytest.mark.parametrize(
    "place",
    [
        "var/lib/rancher/k3s/agent/containerd",
        "var/snap/microk8s/common/var/lib/containerd",
        "var/lib/host-containerd",
        "var/lib/docker/containerd/daemon",
        "srv/elsewhere",
    ],
)
def test_where_it_may_lie(tmp_path: Path, place: str) -> None:
    machine = Machine(tmp_path, place)
    with_web(machine)
    if place == "srv/elsewhere":
        (tmp_path / "etc/containerd/conf.d").mkdir(parents=True)
        (tmp_path / "etc/containerd/config.toml").write_text('version = 2\nimports = ["conf.d/*.toml"]\n')
        (tmp_path / "etc/containerd/conf.d/a.toml").write_text('root = "/srv/link"\nstate = "/srv/state"\n')
        (tmp_path / "srv/link").symlink_to("elsewhere")
    taken = take(machine.write())
    assert item_of(taken, WEB).item.about["root"] == b"/" + place.encode()
    assert not all_gaps(taken)


def test_a_machine_without_it(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    host = Host(Mode.DEAD, os.fsencode(tmp_path))
    assert probe(host).state is State.ABSENT
    assert not take(host)


# -- Docker -----------------------------------------------------------------------------------------------------------


def docker_29(machine: Machine) -> str:
    """A container that Docker keeps in containerd's store; another one whose files are in overlay2."""
    container = hex_id("docker container")
    image = machine.image("moby")
    machine.snapshot(container + "-init", parent=image, namespace="moby", kind=3)
    machine.snapshot(container, parent=container + "-init", namespace="moby", content="written in Docker")
    machine.container(container, namespace="moby", key="")
    machine.container(hex_id("in overlay2"), namespace="moby", key="")
    home = machine.root / "var/lib/docker/containers" / container
    home.mkdir(parents=True)
    (home / "config.v2.json").write_text(json.dumps({"ID": container, "Name": "/shop", "Driver": "overlayfs"}))
    return container


def test_containers_of_docker(machine: Machine) -> None:
    container = docker_29(machine)
    host = machine.write()
    taken = take(host)
    assert [one.item.about["id"] for one in taken.values() if "id" in one.item.about] == [container]
    shop = taken[f"containers/containerd/{container[:12]}-shop.tar"]
    assert shop.content(f"{SNAPSHOTS}/4/fs/content") == b"written in Docker"
    assert shop.item.about["layers"] == ["3", "sha256:" + hex_id("chain 1"), "sha256:" + hex_id("chain 0")]
    assert taken["containers/containerd/runtime.tar"].item.about["containers_of_docker"] == 1
    assert probe(host, Scope(containers=("shop",))).matched == {"shop"}
    assert container_names(host)[container] == ("shop",)


def test_what_docker_asks_for(machine: Machine) -> None:
    container = docker_29(machine)
    host = machine.write()
    snapshots = DockerSnapshots(host)
    stack = snapshots.stack(container, "overlayfs")
    assert stack is not None
    base = b"/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"
    assert stack.upper_path == base + b"/4/fs"
    assert stack.lower_paths == [base + b"/3/fs", base + b"/2/fs", base + b"/1/fs"]
    assert snapshots.stack(container, "native") is None
    assert docker_snapshot(host, hex_id("in overlay2")) is None


# -- other snapshotters -----------------------------------------------------------------------------------------------


def test_a_snapshotter_outside_of_the_root(machine: Machine) -> None:
    """SOCI: a lazily loaded layer is told as missing, the writable one is taken."""
    machine.outside["soci"] = "var/lib/soci-snapshotter-grpc/snapshotter"
    lazy = "sha256:" + hex_id("lazy")
    machine.snapshot(lazy, snapshotter="soci", kind=3, labels={b"containerd.io/snapshot/remote": b"remote snapshot"})
    machine.snapshot(WEB, parent=lazy, snapshotter="soci", content="written by web")
    machine.container(WEB, snapshotter="soci", labels=LABELS)
    taken = take(machine.write())
    path = "[root]/var/lib/soci-snapshotter-grpc/snapshotter/snapshots/2/fs/content"
    assert item_of(taken, WEB).content(path) == b"written by web"
    assert [(gap.reason, gap.where) for gap in all_gaps(taken)] == [
        (Reason.UNSUPPORTED, b"/var/lib/soci-snapshotter-grpc/snapshotter/snapshots/1/fs")
    ]


def test_a_snapshotter_that_was_told_to_keep_its_data_elsewhere(machine: Machine) -> None:
    machine.outside["overlayfs"] = "srv/snapshots"
    with_web(machine)
    (machine.root / "etc/containerd").mkdir()
    told = 'version = 2\n[plugins."io.containerd.snapshotter.v1.overlayfs"]\nroot_path = "/srv/snapshots"\n'
    (machine.root / "etc/containerd/config.toml").write_text(told)
    (machine.data / "io.containerd.snapshotter.v1.overlayfs").mkdir()
    taken = take(machine.write())
    assert not all_gaps(taken)
    assert item_of(taken, WEB).content("[root]/srv/snapshots/snapshots/3/fs/content") == b"written by web"
    assert "[root]/srv/snapshots/metadata.db" in taken["containers/containerd/runtime.tar"].names()


def test_a_sandbox_that_no_container_stands_for(machine: Machine) -> None:
    """containerd 2: a pod in a virtual machine."""
    with_web(machine)
    metadata = json.dumps({"Metadata": {"Config": {"metadata": {"name": "web-1", "namespace": "shop", "uid": UID}}}})
    machine.namespace("k8s.io")[b"sandboxes"] = {
        POD.encode(): {
            b"createdat": go_time(1_700_000_000),
            b"runtime": {b"name": b"io.containerd.kata.v2"},
            b"extensions": {b"io.cri-containerd.sandbox.metadata": any_of("x", metadata.encode())},
        }
    }
    about = item_of(take(machine.write()), POD).item.about
    assert (about["kind"], about["pod"], about["oci_runtime"]) == ("sandbox", "web-1", "io.containerd.kata.v2")
    assert probe(machine.write(), Scope(containers=("shop/web-1",))).matched == {"shop/web-1"}


@pytest.mark.parametrize("snapshotter", ["btrfs", "devmapper", "something-new"])
def test_snapshotters_that_keep_no_directories(machine: Machine, snapshotter: str) -> None:
    machine.container(WEB, snapshotter=snapshotter, labels=LABELS)
    taken = take(machine.write())
    assert [gap.reason for gap in item_of(taken, WEB).gaps] == [Reason.UNSUPPORTED]
    assert snapshotter in item_of(taken, WEB).gaps[0].detail


# -- what is wrong ----------------------------------------------------------------------------------------------------


def reasons(taken: dict[str, Taken]) -> list[Reason]:
    return [gap.reason for gap in all_gaps(taken)]


def test_a_missing_parent_and_a_missing_directory(machine: Machine) -> None:
    number = with_web(machine)
    del machine.records["overlayfs"][machine.name_of("sha256:" + hex_id("chain 0"), "k8s.io", "overlayfs")]
    host = machine.write()
    gaps = item_of(take(host), WEB).gaps
    assert [(gap.reason, gap.where[-2:]) for gap in gaps] == [(Reason.MALFORMED, b"/2")]
    os.rename(machine.snapshotter("overlayfs") / "snapshots" / str(number), machine.root / "gone")
    assert Reason.VANISHED in {gap.reason for gap in item_of(take(host), WEB).gaps}


def test_layers_in_a_circle(machine: Machine) -> None:
    with_web(machine)
    lowest = machine.name_of("sha256:" + hex_id("chain 0"), "k8s.io", "overlayfs")
    machine.records["overlayfs"][lowest][b"parent"] = machine.name_of(WEB, "k8s.io", "overlayfs")
    taken = take(machine.write())
    assert any("leads back" in gap.detail for gap in all_gaps(taken))
    assert "written by web" in item_of(taken, WEB).content(f"{SNAPSHOTS}/3/fs/content").decode()


@pytest.mark.parametrize("damage", [b"", b"no database", bytes(1 << 16)])
def test_without_the_database_of_containers(machine: Machine, damage: bytes) -> None:
    """Every snapshot that was written to is taken, as claimed by nobody."""
    with_web(machine)
    host = machine.write()
    (machine.data / "io.containerd.metadata.v1.bolt/meta.db").write_bytes(damage)
    taken = take(host)
    assert Reason.MALFORMED in reasons(taken)
    unclaimed = taken["containers/containerd/3-unclaimed.tar"]
    assert unclaimed.content(f"{SNAPSHOTS}/3/fs/content") == b"written by web"
    assert sum("/layers/" in path for path in taken) == 2


def test_without_the_database_of_snapshots(machine: Machine) -> None:
    with_web(machine)
    host = machine.write()
    (machine.snapshotter("overlayfs") / "metadata.db").unlink()
    taken = take(host)
    assert {Reason.VANISHED, Reason.MALFORMED} == set(reasons(taken))
    assert {f"containers/containerd/{number}-unclaimed.tar" for number in (1, 2, 3)} <= taken.keys()


def test_many_unclaimed_snapshots_are_one_item(machine: Machine) -> None:
    for number in range(130):
        machine.snapshot(f"left-{number}")
    taken = take(machine.write())
    assert sum("unclaimed" in path for path in taken) == 101
    rest = taken["containers/containerd/overlayfs-unclaimed.tar"]
    assert sum(name.endswith("/content") for name in rest.names()) == 30
    assert len(rest.flags) == 30


@pytest.mark.parametrize(
    "hostile",
    ["../../../../etc", "..", "a/b", "x\ny\x1b[31m", "é", "n" * 300, "-rf"],
)
def test_names_that_lead_elsewhere(machine: Machine, hostile: str) -> None:
    (machine.root / "etc/shadow").write_text("root:secret")
    machine.snapshot("k", content="written")
    labels = {
        **LABELS,
        "io.kubernetes.pod.uid": hostile,
        "io.kubernetes.pod.name": hostile,
        "io.kubernetes.container.name": hostile,
    }
    machine.container(hostile, key="k", labels=labels, extensions={
        b"io.cri-containerd.container.metadata": cri(LogPath=f"/var/log/pods/{hostile}/0.log"),
    })  # fmt: skip
    (machine.root / "var/log/pods").mkdir(parents=True)
    (machine.root / "var/lib/kubelet/pods").mkdir(parents=True)
    taken = take(machine.write())
    assert all(part not in {"", ".", ".."} for path in taken for part in path.split("/"))
    assert not any(b"secret" in one.data for one in taken.values())
    found = item_of(taken, hostile)
    assert found.content(f"{SNAPSHOTS}/1/fs/content") == b"written"
    probe(machine.write())


def test_a_log_path_that_leads_elsewhere(machine: Machine) -> None:
    with_web(machine, extensions={
        b"io.cri-containerd.container.metadata": cri(LogPath="/etc/shadow", Config={"metadata": {"name": "app"}}),
    })  # fmt: skip
    (machine.root / "etc/shadow").write_text("root:secret")
    taken = take(machine.write())
    assert not any(b"secret" in one.data for one in taken.values())
    assert any("/etc/shadow" in flag.detail for flag in item_of(taken, WEB).flags)


def test_links_in_place_of_directories(machine: Machine) -> None:
    number = with_web(machine)
    host = machine.write()
    (machine.root / "etc/shadow").write_text("root:secret")
    directory = machine.snapshotter("overlayfs") / "snapshots" / str(number)
    os.rename(directory, machine.root / "moved")
    directory.symlink_to("/etc")
    logs = machine.root / f"var/log/pods/shop_web-1_{UID}"
    logs.mkdir(parents=True)
    (logs / "app").symlink_to("/etc")
    taken = take(host)
    assert not any(b"secret" in one.data for one in taken.values())
    assert Reason.MALFORMED in reasons(taken)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"spec", any_of("x", b'{"mounts": 5, "annotations": [], "linux": "x"}')),
        (b"spec", any_of("x", b"[" * 100_000)),
        (b"spec", b"\xff" * 100),
        (b"spec", any_of("x", b'{"hostname": "' + b"x" * (5 << 20) + b'"}')),
        (b"createdat", b"garbage"),
        (b"labels", b"no bucket"),
        (b"extensions", {b"io.cri-containerd.container.metadata": any_of("x", b'{"Metadata": {"Config": 7}}')}),
        (b"snapshotKey", b"\xff\xfe"),
        (b"image", b"\xff\x00" * 1000),
        (b"runtime", {}),
    ],
)
def test_a_part_that_is_malformed_costs_itself_only(machine: Machine, name: bytes, value: object) -> None:
    with_web(machine)
    machine.namespace("k8s.io")[b"containers"][WEB.encode()][name] = value
    taken = take(machine.write())
    found = item_of(taken, WEB)
    if name != b"snapshotKey":
        assert found.content(f"{SNAPSHOTS}/3/fs/content") == b"written by web"
        assert not all_gaps(taken)
    else:
        assert "containers/containerd/3-unclaimed.tar" in taken


def test_a_configuration_that_is_none(machine: Machine) -> None:
    with_web(machine)
    (machine.root / "etc/containerd").mkdir()
    (machine.root / "etc/containerd/config.toml").write_bytes(b"root = [[[[\xff")
    taken = take(machine.write())
    where = b"/etc/containerd/config.toml"
    assert [(gap.reason, gap.where) for gap in all_gaps(taken)] == [(Reason.MALFORMED, where)]
    assert item_of(taken, WEB).data


def test_configurations_that_import_each_other(machine: Machine) -> None:
    (machine.root / "etc/containerd").mkdir()
    (machine.root / "etc/containerd/config.toml").write_text('imports = ["config.toml", "b.toml", "/etc/containerd/*"]')
    (machine.root / "etc/containerd/b.toml").write_text('imports = ["config.toml"]\nroot = "../x"\n')
    with_web(machine)
    assert item_of(take(machine.write()), WEB).data


def test_what_is_gone_since_it_was_planned(machine: Machine) -> None:
    from acquirers.containers.containerd import Containerd

    with_web(machine)
    acquirer = Containerd()
    acquirer.probe(machine.write(), Scope())
    del machine.namespace("k8s.io")[b"containers"][WEB.encode()]
    host = machine.write()
    recorded: list[Gap] = []

    class Keeper:
        def member(self, _: object) -> None: ...
        def flag(self, _: object) -> None: ...
        def gap(self, gap: Gap) -> None:
            recorded.append(gap)

    for item in acquirer.items(host, Scope()):
        for _ in item.read(Keeper()):
            pass
    assert [gap.reason for gap in recorded] == [Reason.VANISHED]
    assert "'app'" in recorded[0].detail


def test_private_keys_stay(machine: Machine) -> None:
    with_web(machine)
    certificates = machine.root / "etc/containerd/certs.d/registry"
    certificates.mkdir(parents=True)
    for name in ("client.key", "client.cert", "hosts.toml"):
        (certificates / name).write_text(name)
    names = take(machine.write())["containers/containerd/runtime.tar"].names()
    assert {os.path.basename(name) for name in names if "certs.d/registry/" in name} == {"client.cert", "hosts.toml"}
