"""A real container of a real dockerd, exported as a tree and as an image: Docker, podman and skopeo are the judges."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.cli import options
from agent.cli.container_exports import export_oci, export_tree
from agent.cli.export import _write
from tests.rigs.docker import PrivateDocker, why_not
from tests.rigs.leftovers import mounts_below
from tests.support.merged_trees import Record, differences, survey
from tests.support.runs import acquire, keygen, only_run

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs"),
]

NAME = "exported-one"
IMAGE = """FROM base:1
COPY app /srv/app
RUN rm -rf /opt/old && rm /etc/motd && mkdir /opt/old && echo again > /opt/old/file && chmod 4755 /bin/busybox
RUN mkdir -p /data/deep/deeper && echo one > /data/deep/one && ln /data/deep/one /data/deep/same && echo two > /data/two
RUN rm -r /data/deep/deeper && rm /srv/app/gone && mv /srv/app/moved /srv/app/there && chmod 600 /srv/app/kept
ENV GREETING=hello
CMD ["sleep", "1000000"]
"""
# In the container. `.wh.` is a name like others there.
CHANGES = r"""
set -e
echo changed > /srv/app/kept
rm -r /data/deep && mkdir /data/deep && echo new > /data/deep/new
rm /etc/group /opt/config/other.conf
mkdir -p /var/implant "/tmp/a b"
printf x > "/tmp/a b/$(printf 'line\nfeed')"
printf y > "/tmp/$(printf 'not\377utf8')"
echo real > /var/.wh.real
ln -s /etc/passwd /tmp/link && ln -s ../../../.. /tmp/out && mkfifo /tmp/fifo && mknod /tmp/null c 1 3
echo shared > /tmp/h1 && ln /tmp/h1 /tmp/h2
chown 1000:1000 /tmp/h1 && chmod 2755 /var/implant && chmod 1777 "/tmp/a b"
dd if=/dev/zero of=/tmp/sparse bs=1 count=1 seek=8388608 2>/dev/null
mv /opt/config/app.conf /opt/config/renamed.conf
"""


@dataclass
class Scene:
    docker: PrivateDocker
    directory: Path
    run: Path
    identity: Path
    id: str
    truth: dict[bytes, Record]
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def tree(self) -> Path:
        return self.directory / "tree.tar"

    @property
    def image(self) -> Path:
        return self.directory / "image.oci.tar"

    def keys(self) -> Any:
        return options.read_identities((str(self.identity),))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("exports")
    with PrivateDocker(directory / "rig") as docker:
        docker.import_base()
        files = {"app/kept": b"kept\n" * 1000, "app/gone": b"gone\n", "app/moved": b"moved\n"}
        docker.build("exported:1", IMAGE, files)
        container = docker.run(NAME, "exported:1")
        docker.exec(NAME, "sh", "-c", CHANGES)
        root = docker.root_of(NAME)
        os.setxattr(root / "var/implant", "user.mark", b"\0\xff")
        subprocess.run(["setcap", "cap_net_raw+ep", str(root / "srv/app/there")], check=True)
        truth = survey(root)
        identity, recipient = keygen(directory)
        code, result, said = acquire(
            directory / "evidence", recipient, "--only", "containers.docker", "--container", NAME
        )
        assert code == 0, (result, said)
        scene = Scene(docker, directory, only_run(directory / "evidence"), identity, container, truth)
        common: Any = {"signers": (), "receipts": (), "s3": None, "quiet": True, "container": NAME}
        scene.results["tree"] = export_tree(
            str(scene.run), scene.keys(), str(scene.tree), _write, versions=True, **common
        )
        scene.results["oci"] = export_oci(str(scene.run), scene.keys(), str(scene.image), **common)
        yield scene


def records(scene: Scene) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"{scene.tree}.jsonl").read_bytes().splitlines()]


def unpacked(archive: Path, directory: Path) -> Path:
    directory.mkdir()
    command: list[str | Path] = [
        "tar",
        "--numeric-owner",
        "--same-permissions",
        "--xattrs",
        "--xattrs-include=*",
        "-C",
        directory,
        "-xf",
        archive,
    ]
    subprocess.run([*command, "--warning=no-unknown-keyword"], check=True)
    return directory


def test_nothing_is_left_beside_the_exports(scene: Scene) -> None:
    assert not [name for name in os.listdir(scene.directory) if name.startswith(".impound")]


def test_the_tree_is_what_the_container_sees(scene: Scene, tmp_path: Path) -> None:
    root = unpacked(scene.tree, tmp_path / "tree")
    shutil.rmtree(root / ".versions")
    assert differences(scene.truth, survey(root)) == []


def test_every_path_says_where_it_is_from(scene: Scene) -> None:
    found = records(scene)
    assert found[-1]["type"] == "end"
    paths = {one["path"]: one for one in found if one["type"] == "path"}
    layers = [one for one in found if one["type"] == "layer"]
    assert [one["number"] for one in layers] == list(range(len(layers)))
    assert all(one["item"] for one in layers)
    upper, base = layers[0]["label"], layers[-1]["label"]
    assert paths["/srv/app/kept"]["layer"] == upper
    assert paths["/etc/passwd"]["layer"] == base
    assert paths["/etc"]["merged"][0] == upper
    assert base in paths["/etc"]["merged"]
    assert set(paths) >= {path.decode("utf-8", "backslashreplace") for path in scene.truth}


def test_what_was_deleted_and_what_was_there_before(scene: Scene, tmp_path: Path) -> None:
    found = records(scene)
    layers = [one["label"] for one in found if one["type"] == "layer"]
    deleted = {one["path"]: one for one in found if one["type"] == "deleted"}
    assert {"/etc/motd", "/etc/group", "/srv/app/gone", "/data/deep/one", "/opt/config/app.conf"} <= set(deleted)
    assert {"/opt/old/deep", "/opt/old/deep/file"} <= set(deleted), "behind a directory that was made anew"
    assert deleted["/etc/group"]["by"]["layer"] == layers[0]
    assert deleted["/etc/motd"]["by"]["layer"] not in {layers[0], layers[-1]}
    older = [one for one in found if one["type"] == "older" and one["path"] == "/srv/app/kept"]
    assert {one["size"] for one in older} == {5000}
    root = unpacked(scene.tree, tmp_path / "tree")
    group = next(one for one in found if one["type"] == "older" and one["path"] == "/etc/group" and "member" in one)
    assert (root / group["member"]).read_text() == "root:x:0:\napp:x:1000:\n"
    assert group["layer"] == layers[-1]


def test_the_archive_is_one_to_all_readers(scene: Scene) -> None:
    assert subprocess.run(["bsdtar", "-tf", scene.tree], capture_output=True, check=False).returncode == 0
    with tarfile.open(scene.image) as tar:
        names = tar.getnames()
    assert names[:2] == ["blobs", "blobs/sha256"]
    assert {"oci-layout", "index.json", "manifest.json"} <= set(names)


def test_docker_loads_and_runs_it(scene: Scene) -> None:
    docker, result = scene.docker, scene.results["oci"]
    docker.docker("load", "-i", str(scene.image))
    inspected = json.loads(docker.docker("image", "inspect", result["image"]))[0]
    assert inspected["Id"] == result["config"]
    assert inspected["Config"]["Env"][-1] == "GREETING=hello"
    assert inspected["Config"]["Labels"]["dev.impound.container"] == scene.id
    container = docker.run("again", result["image"])
    try:
        assert differences(expected(scene), survey(docker.root_of("again"))) == []
    finally:
        docker.rm(container)


def expected(scene: Scene) -> dict[bytes, Record]:
    """An image has a file `.wh.real` under another name, which was told."""
    assert any(".wh.real" in note for note in scene.results["oci"]["notes"])
    return {path.replace(b"/.wh.", b"/%2Ewh."): record for path, record in scene.truth.items()}


@pytest.fixture
def podman() -> Iterator[Callable[..., str]]:
    """A podman of its own. Its directory has a short name, because it takes no runroot of more than 50 characters."""
    directory = tempfile.mkdtemp(prefix="podman-", dir="/tmp")
    base = ["podman", "--root", f"{directory}/root", "--runroot", f"{directory}/run", "--storage-driver", "vfs"]
    base += ["--tmpdir", f"{directory}/tmp", "--events-backend", "none", "--cgroup-manager", "cgroupfs"]

    def call(*arguments: str) -> str:
        done = subprocess.run([*base, *arguments], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    yield call
    subprocess.run([*base, "rm", "--all", "--force", "--time", "0"], capture_output=True, timeout=60, check=False)
    assert mounts_below(Path(directory)) == []
    shutil.rmtree(directory)


@pytest.mark.skipif(shutil.which("podman") is None, reason="needs podman")
def test_podman_loads_it(scene: Scene, podman: Callable[..., str]) -> None:
    podman("load", "-i", str(scene.image))
    image = scene.results["oci"]["config"].removeprefix("sha256:")
    container = podman("create", "--network", "none", image)
    found = survey(Path(podman("mount", container)))
    podman("umount", container)
    assert differences(expected(scene), found) == []


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo")
def test_skopeo_copies_it(scene: Scene, tmp_path: Path) -> None:
    for source in (f"oci-archive:{scene.image}", f"docker-archive:{scene.image}"):
        copy = tmp_path / source.partition(":")[0]
        command = ["skopeo", "copy", "--insecure-policy", source, f"dir:{copy}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        config = json.loads((copy / "manifest.json").read_bytes())["config"]["digest"]
        assert config == scene.results["oci"]["config"]


def test_the_same_run_gives_the_same_image(scene: Scene, tmp_path: Path) -> None:
    again = tmp_path / "again.tar"
    export_oci(
        str(scene.run), scene.keys(), str(again), signers=(), receipts=(), s3=None, quiet=True, container=scene.id[:12]
    )
    assert again.read_bytes() == scene.image.read_bytes()


def test_an_opened_run_gives_the_same(scene: Scene, tmp_path: Path) -> None:
    from tests.support.runs import impound

    code, _, said = impound("open", scene.run, "--identity", scene.identity, "--output", tmp_path / "opened")
    assert code == 0, said
    common: Any = {"signers": (), "receipts": (), "s3": None, "quiet": True, "container": NAME}
    tree = tmp_path / "tree.tar"
    export_tree(str(tmp_path / "opened"), (), str(tree), _write, versions=True, **common)
    assert tree.read_bytes() == scene.tree.read_bytes()
