"""Docker 29, which keeps images and writable layers in containerd: a real one where there is one, and what one left."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.rigs.docker29 import docker29
from tests.rigs.docker29 import why_not as why_no_daemon
from tests.rigs.faithful import differences, survey
from tests.support.docker29 import Truth, build, tree_of, unpack
from tests.support.evidence import Evidence, take, true_bytes
from tests.support.runs import impound, keygen

if TYPE_CHECKING:
    from tests.rigs.docker import PrivateDocker

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(300),
]

_WROTE = [("stderr", "to stderr"), ("stdout", "to stdout")]


@dataclass
class Scene:
    truth: Truth
    directory: Path
    machine: Path
    """The root of the machine, for whoever looks at it from outside."""
    docker: PrivateDocker | None
    """The daemon, where it runs; else there is its disk."""

    def take(self, name: str, *selection: str) -> Evidence:
        key, recipient = self.directory / "case.key", (self.directory / "recipient").read_text()
        where = [] if self.docker is not None else ["--root", str(self.machine)]
        directory = self.directory / name
        if self.docker is None:
            return take(directory, key, recipient, *selection, *where)
        return take(directory, key, recipient, *selection, within=self.docker.command)

    def here(self, native: bytes) -> bytes:
        return os.fsencode(self.machine) + native


@pytest.fixture(scope="module", params=["daemon", "disk"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("docker29")
    (directory / "recipient").write_text(keygen(directory)[1])
    if request.param == "disk":
        yield Scene(unpack(directory / "machine"), directory, directory / "machine", None)
        return
    if why_no_daemon():
        pytest.skip(why_no_daemon())
    with docker29(directory, as_default=True) as docker:
        yield Scene(build(docker), directory, Path(f"/proc/{docker.pid}/root"), docker)


@pytest.fixture(scope="module")
def whole(scene: Scene) -> Evidence:
    return scene.take("whole", "--only", "containers", "--only", "logs")


def rootfs(evidence: Evidence, container_id: str) -> dict[str, Any]:
    found: dict[str, Any] = evidence.about(evidence.container("containerd", container_id))["rootfs"]
    return found


def test_there_is_no_gap(whole: Evidence) -> None:
    assert not whole.gaps()


def test_each_runtime_has_its_part_of_a_container_under_the_same_id(scene: Scene, whole: Evidence) -> None:
    for name, container_id in scene.truth.ids.items():
        about = [whole.about(whole.container(runtime, container_id)) for runtime in ("docker", "containerd")]
        assert [one["id"] for one in about] == [container_id, container_id]
        assert about[0]["name"] == name
        assert about[1]["docker"]["name"] == name if "docker" in about[1] else about[1]["name"] in {name, container_id}
    assert not [item for item in whole.items if "unclaimed" in item]


def test_what_a_container_wrote_comes_back_bit_for_bit(scene: Scene, whole: Evidence) -> None:
    for container_id in scene.truth.ids.values():
        about = rootfs(whole, container_id)
        for path in (true_bytes(about, "upper"), *(true_bytes(one, "bytes") for one in about["lowers"])):
            assert not differences(survey(scene.here(path)), survey(whole.extracted(path)))
        assert len(about["lowers"]) == 3
        volume = b"/var/lib/docker/volumes/uploads/_data"
        assert not differences(survey(scene.here(volume)), survey(whole.extracted(volume)))


def test_the_merged_tree_is_what_the_kernel_and_the_daemon_showed(
    scene: Scene, whole: Evidence, tmp_path: Path
) -> None:
    for name, tree in scene.truth.trees.items():
        output = tmp_path / f"{name}.tar"
        code, _, error = impound("export", "tree", whole.directory, "--container", name, "-o", output)
        assert code == 0, error
        assert tree_of(output) == tree


def test_by_id_and_by_its_beginning_the_same_container_is_exported(
    scene: Scene, whole: Evidence, tmp_path: Path
) -> None:
    container_id = scene.truth.ids["web"]
    for number, selector in enumerate((container_id, container_id[:8])):
        output = tmp_path / f"{number}.tar"
        code, _, error = impound("export", "tree", whole.directory, "--container", selector, "-o", output)
        assert code == 0, error
        assert tree_of(output) == scene.truth.trees["web"]


def test_the_image_of_a_container_has_its_layers_and_its_deletions(
    scene: Scene, whole: Evidence, tmp_path: Path
) -> None:
    output = tmp_path / "web.oci.tar"
    code, _, error = impound("export", "oci", whole.directory, "--container", "web", "-o", output)
    assert code == 0, error
    with tarfile.open(output) as tar:
        index = json.load(read(tar, "index.json"))
        manifest = json.load(read(tar, _blob(index["manifests"][0]["digest"])))
        config = json.load(read(tar, _blob(manifest["config"]["digest"])))
        names = [members_of(read(tar, _blob(layer["digest"]))) for layer in manifest["layers"]]
    assert config["config"]["Labels"]["tier"] == "web", "the image's own configuration, out of containerd's blobs"
    assert {"etc/.wh.motd", "opt/old/new", "tmp/written"} <= names[-1]
    assert "srv/page" in names[1]
    assert "bin/app" in names[0]
    if scene.docker is not None:
        tag = scene.docker.docker("load", "-i", str(output)).split()[-1]
        scene.docker.docker("create", "--name", "again", "--network", "none", tag, "/bin/app")
        scene.docker.docker("export", "-o", str(tmp_path / "again.tar"), "again")
        scene.docker.rm("again")
        assert tree_of(tmp_path / "again.tar") == scene.truth.trees["web"]


def members_of(layer: Any) -> set[str]:
    with tarfile.open(fileobj=layer) as tar:
        return {one.name.removeprefix("./") for one in tar}


def read(tar: tarfile.TarFile, name: str) -> Any:
    file = tar.extractfile(name)
    assert file is not None
    return file


def _blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def test_logs_are_what_the_containers_wrote(scene: Scene, whole: Evidence, tmp_path: Path) -> None:
    for name, container_id in scene.truth.ids.items():
        lines = whole.timeline(tmp_path / "timelines", container_id, name)
        assert sorted((line["stream"], line["line"]) for line in lines) == _WROTE


def test_the_census_has_each_once(scene: Scene, whole: Evidence) -> None:
    # Others' containers may run on the machine.
    rows = [row for row in whole.census() if str(row.get("root", "")).startswith("/var/lib/docker")]
    assert sorted(row["id"] for row in rows) == sorted(scene.truth.ids.values())
    for name, container_id in scene.truth.ids.items():
        (row,) = [row for row in rows if row["id"] == container_id]
        runs = ["processes"] if scene.docker is not None and name == "web" else []
        assert (row["runtime"], row["name"], row["findings"]) == ("docker", name, [])
        assert row["views"] == [*runs, "records", "disk"]
        assert true_bytes(row, "upper") == true_bytes(rootfs(whole, container_id), "upper")


@pytest.mark.parametrize("by", ["id", "beginning", "name"])
def test_one_container_is_taken_whole(scene: Scene, whole: Evidence, by: str) -> None:
    container_id = scene.truth.ids["web"]
    selector = {"id": container_id, "beginning": container_id[:6], "name": "web"}[by]
    one = scene.take(f"by-{by}", "--only", "containers", "--container", selector)
    assert not one.gaps()
    for runtime in ("docker", "containerd"):
        item = one.container(runtime, container_id)
        assert item == whole.container(runtime, container_id)
        assert members(one, item) == members(whole, item)
    assert not [item for item in one.items if scene.truth.ids["job"][:12] in item]
    layers = {true_bytes(one.about(item), "path") for item in one.items if "/layers/" in item}
    about = rootfs(one, container_id)
    inside = {true_bytes(member, "path") for member in one.records if member["type"] == "member"}
    for path in (true_bytes(lower, "bytes") for lower in about["lowers"]):
        assert path in inside or path in layers


def members(evidence: Evidence, item: str) -> list[tuple[str, str, str]]:
    """Less what a daemon goes on writing."""
    return sorted(
        (one["path"], one["kind"], one.get("sha256", ""))
        for one in evidence.records
        if one["type"] == "member" and one["item"] == item and not one["path"].endswith(".db")
    )


def test_without_containerd_that_is_a_gap(scene: Scene) -> None:
    alone = scene.take("alone", "--only", "containers.docker", "--container", "web")
    (gap,) = alone.gaps()
    assert (gap["reason"], "ask for containers.containerd" in gap["detail"]) == ("unsupported", True)


def test_a_container_that_containerd_knows_no_more_is_a_gap(scene: Scene, tmp_path: Path) -> None:
    """Not a flag that says that somebody else has it."""
    if scene.docker is not None:
        pytest.skip("of the disk only: a running daemon's database is not changed")
    machine = tmp_path / "machine"
    subprocess.run(["cp", "--archive", scene.machine, machine], check=True)
    database = machine / "var/lib/docker/containerd/daemon/io.containerd.metadata.v1.bolt/meta.db"
    changed = re.sub(scene.truth.ids["web"].encode(), b"0" * 64, database.read_bytes())
    database.write_bytes(changed)
    recipient = (scene.directory / "recipient").read_text()
    found = take(
        tmp_path / "run", scene.directory / "case.key", recipient,
        "--only", "containers", "--container", "web", "--root", str(machine),
    )  # fmt: skip
    assert "whose databases do not name it" in " ".join(gap["detail"] for gap in found.gaps())
