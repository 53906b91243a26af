"""Real daemons with other drivers, filesystems and ids than the usual ones: each container whole, by id and by name."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.docker import PrivateDocker, why_not
from tests.rigs.docker_scenes import plant_everything
from tests.rigs.faithful import Node, differences, survey
from tests.support.evidence import Evidence, take, true_bytes
from tests.support.runs import ENVIRONMENT, impound, keygen

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs"),
    pytest.mark.timeout(300),
]

_IDS = 700_000
"""The first id of the machine that the containers of a remapped daemon have."""
_DISK = 1 << 30


@dataclass(frozen=True)
class Sort:
    """How a daemon is started, and what it should be seen as."""

    driver: str
    filesystem: str = ""
    """Of the data root, in an image of its own."""
    remapped: bool = False
    everything: bool = True
    """Its driver can hold all that a filesystem can."""

    def why_not(self) -> str:
        programs = {"fuse-overlayfs": "fuse-overlayfs"}.get(self.driver, "")
        programs = f"mkfs.{self.filesystem}" if self.filesystem else programs
        if programs and shutil.which(programs) is None:
            return f"needs {programs}"
        known = Path("/proc/filesystems").read_text().split()
        if self.filesystem and self.filesystem not in known:
            return f"this kernel has no {self.filesystem}"
        if self.filesystem and not Path("/dev/loop-control").exists():
            return "no loop devices"
        if self.driver == "fuse-overlayfs" and not Path("/dev/fuse").exists():
            return "no /dev/fuse"
        if self.remapped and not (Path("/etc/subuid").exists() and Path("/etc/subgid").exists()):
            return "no /etc/subuid and /etc/subgid to mount others upon"
        return ""


SORTS = {
    "vfs": Sort("vfs"),
    "fuse-overlayfs": Sort("fuse-overlayfs", everything=False),
    "userns-remap": Sort("overlay2", remapped=True),
    "btrfs": Sort("btrfs", "btrfs"),
    "xfs": Sort("overlay2", "xfs"),
}


@dataclass
class Scene:
    sort: Sort
    docker: PrivateDocker
    ids: dict[str, str]
    whole: Evidence
    one: Evidence
    """Asked for by name."""
    timelines: Path

    def here(self, native: bytes) -> bytes:
        """A path of the machine as its daemon sees it."""
        return f"/proc/{self.docker.pid}/root".encode() + native


def rig(sort: Sort, directory: Path) -> PrivateDocker:
    """With /etc/subuid and the disk mounted for the daemon alone."""
    mounts: list[tuple[str, ...]] = []
    options: list[str] = []
    if sort.remapped:
        for name in ("subuid", "subgid"):
            (directory / name).write_text(f"nobody:{_IDS}:65536\n")
            mounts.append(("--bind", str(directory / name), f"/etc/{name}"))
        options = ["--userns-remap", "nobody:nogroup"]
    if sort.filesystem:
        image = directory / "disk"
        image.touch()
        os.truncate(image, _DISK)
        subprocess.run([f"mkfs.{sort.filesystem}", "-q", str(image)], check=True, capture_output=True)
        mounts.append(("-o", "loop", str(image), str(directory / "rig/data")))
    return PrivateDocker(directory / "rig", as_default=True, driver=sort.driver, options=options, mounts=mounts)


@pytest.fixture(scope="module", params=SORTS)
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    sort = SORTS[request.param]
    if sort.why_not():
        pytest.skip(sort.why_not())
    directory = tmp_path_factory.mktemp("kinds")
    with rig(sort, directory) as docker:
        docker.import_base()
        docker.build("web:1", "FROM base:1\nCOPY page /srv/page\nCOPY more /srv/more\n", {"page": b"1", "more": b"2"})
        chatter = "echo to stdout; echo to stderr >&2; "
        ids = {
            "web": docker.run("web", "web:1", "sh", "-c", chatter + "exec sleep 100000", options=("-v", "data:/data")),
            "job": docker.run("job", "web:1", "sh", "-c", chatter + "echo left > /tmp/left; exit 3"),
        }
        docker.wait("job")
        if sort.everything:
            plant_everything(docker.root_of("web"))
        docker.exec("web", "sh", "-c", "rm -f /etc/motd; rm -r /srv/more; echo x > /data/x; echo evil >> /etc/passwd")
        key, recipient = keygen(directory)
        arguments = {"within": docker.command}
        whole = take(directory / "whole", key, recipient, "--only", "containers", **arguments)
        one = take(directory / "one", key, recipient, "--only", "containers", "--container", "web", **arguments)
        yield Scene(sort, docker, ids, whole, one, directory / "timelines")


def rootfs(evidence: Evidence, container_id: str) -> dict[str, Any]:
    found: dict[str, Any] = evidence.about(evidence.container("docker", container_id))["rootfs"]
    return found


def test_there_is_no_gap(scene: Scene) -> None:
    assert not scene.whole.gaps()
    assert not scene.one.gaps()


def test_the_writable_layer_comes_back_bit_for_bit(scene: Scene) -> None:
    for name, container_id in scene.ids.items():
        upper = true_bytes(rootfs(scene.whole, container_id), "upper")
        source = {path: node for path, node in survey(scene.here(upper)).items() if node.kind != stat.S_IFSOCK}
        assert len(source) > (40 if scene.sort.everything and name == "web" else 1)
        source = {path: node for path, node in source.items() if len(path) < 3500}
        copy = {path: node for path, node in survey(scene.whole.extracted(upper)).items() if len(path) < 3500}
        found = differences(source, copy)
        assert not [line for line in found if "d" * 200 not in line and "/deep'" not in line]


def test_by_its_name_there_is_the_same(scene: Scene) -> None:
    assert [item for item in scene.one.items if scene.ids["job"][:12] in item] == []
    item = scene.one.container("docker", scene.ids["web"])
    assert scene.one.about(item) == scene.whole.about(item)
    members = [
        sorted((one["path"], one["kind"], one.get("sha256", "")) for one in evidence.records if is_member(one, item))
        for evidence in (scene.one, scene.whole)
    ]
    assert members[0] == members[1]
    assert len(members[0]) > 10


def is_member(record: dict[str, Any], item: str) -> bool:
    return (record["type"], record.get("item")) == ("member", item)


def test_its_layers_are_there_once(scene: Scene) -> None:
    layers = [item for item in scene.whole.items if "/layers/" in item]
    assert len(layers) == 3
    for item in layers:
        path = true_bytes(scene.whole.about(item), "path")
        assert not differences(survey(scene.here(path)), survey(scene.whole.extracted(path)))


def test_its_logs_are_what_it_wrote(scene: Scene) -> None:
    for name, container_id in scene.ids.items():
        lines = scene.whole.timeline(scene.timelines, container_id, name)
        assert sorted((line["stream"], line["line"]) for line in lines) == [
            ("stderr", "to stderr"),
            ("stdout", "to stdout"),
        ]


def test_the_census_has_each_once_and_nothing_to_find(scene: Scene) -> None:
    rows = scene.whole.census()
    for name, container_id in scene.ids.items():
        (row,) = [row for row in rows if row["id"] == container_id]
        views = ["processes", "records", "disk"] if name == "web" else ["records", "disk"]
        assert (row["name"], row["views"], row["findings"]) == (name, views, [])
        assert true_bytes(row, "upper") == true_bytes(rootfs(scene.whole, container_id), "upper")


def test_a_path_of_it_is_its_own(scene: Scene) -> None:
    upper = os.fsdecode(true_bytes(rootfs(scene.whole, scene.ids["web"]), "upper"))
    command = scene.docker.command([sys.executable, "-c", _WHERE, f"{upper}/etc/passwd"])
    done = subprocess.run(command, capture_output=True, check=True, timeout=60, env=ENVIRONMENT)
    assert json.loads(done.stdout) == [[scene.ids["web"], "written by it", "etc/passwd"]]


_WHERE = """
import json, sys
from acquirers.containers.census import where
from acquirers.containers.docker.known import known
from acquirers.host import Host, Mode
found = where.places(sys.argv[1].encode(), list(known(Host(Mode.HOST))))
print(json.dumps([[one.known.id, one.what, one.path.decode()] for one in found]))
"""


def test_the_merged_tree_is_what_the_container_sees(scene: Scene, tmp_path: Path) -> None:
    output = tmp_path / "web.tar"
    code, _, error = impound("export", "tree", scene.whole.directory, "--container", "web", "-o", output)
    assert code == 0, error
    unpacked = tmp_path / "tree"
    unpacked.mkdir()
    subprocess.run(["tar", "-C", unpacked, "--numeric-owner", "-xpf", output], stderr=subprocess.DEVNULL, check=False)
    root = scene.docker.root_of("web")
    for name in ("etc", "srv/page", "opt", "bin/busybox", "home"):
        seen, copy = survey(str(root / name)) if (root / name).is_dir() else {}, {}
        if seen:
            copy = survey(str(unpacked / name))
            # What Docker mounts over these three is none of the root's own.
            mounted = {b"hosts", b"hostname", b"resolv.conf"}
            shift = _IDS if scene.sort.remapped else 0
            wanted = {
                path: (one.kind, one.digest, *inside(one, shift)) for path, one in seen.items() if path not in mounted
            }
            found = {path: (one.kind, one.digest, *inside(one)) for path, one in copy.items() if path not in mounted}
            assert found == wanted
        else:
            assert (unpacked / name).read_bytes() == (root / name).read_bytes()
    assert not (unpacked / "etc/motd").exists()
    assert not (unpacked / "srv/more").exists()


def inside(node: Node, shift: int = 0) -> tuple[int, int]:
    """Its owners as the container sees them."""
    uid, gid = node.stat.st_uid, node.stat.st_gid
    return uid - shift if uid >= shift else 65534, gid - shift if gid >= shift else 65534


def test_it_can_be_loaded_again_and_run(scene: Scene, tmp_path: Path) -> None:
    output = tmp_path / "job.oci.tar"
    code, _, error = impound("export", "oci", scene.whole.directory, "--container", "job", "-o", output)
    assert code == 0, error
    said = scene.docker.docker("load", "-i", str(output))
    tag = said.split()[-1]
    assert scene.docker.docker("run", "--rm", "--network", "none", "--entrypoint", "cat", tag, "/tmp/left") == "left"
