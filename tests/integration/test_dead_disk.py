"""Docker after everything of it was killed, and its disk, mounted read-only elsewhere: the same containers, whole."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.rigs.docker import PrivateDocker, why_not
from tests.rigs.docker_scenes import Scene, build_intruded
from tests.rigs.faithful import Node, differences, survey
from tests.support.evidence import Evidence, take, true_bytes
from tests.support.runs import keygen

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs"),
    pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="needs mkfs.ext4"),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="no loop devices"),
    pytest.mark.timeout(300),
]

_DISK = 512 << 20
_HOW = ["alive", "daemon killed", "all killed", "mounted disk"]
# No journal is replayed: the disk is not to change. Everything goes with the mount namespace.
_MOUNT = 'mount -o loop,ro,noload "$1" "$2" && shift 2 && exec "$@"'
_COPY = 'mount -o loop "$1" "$2" && mkdir -p "$2/etc" "$2/var/lib" && cp -a "$3" "$2/var/lib/docker" && sync -f "$2"'


def in_private(*command: str) -> list[str]:
    return ["unshare", "--mount", "--propagation", "private", "--", *command]


@dataclass
class Story:
    """The same Docker at four moments."""

    scene: Scene
    sources: dict[str, dict[bytes, Node]]
    """Name of a container -> its writable layer, before anything was killed."""
    runs: dict[str, Evidence]
    names: dict[str, Evidence]
    """Of each moment, what `--container web` gave."""
    disk_before: bytes
    disk_after: bytes


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    directory = tmp_path_factory.mktemp("dead")
    key, recipient = keygen(directory)
    runs: dict[str, Evidence] = {}
    names: dict[str, Evidence] = {}
    image, point = directory / "disk", directory / "point"
    point.mkdir()

    def on_disk(command: Sequence[str]) -> list[str]:
        return in_private("sh", "-c", _MOUNT, "sh", str(image), str(point), *command)

    with PrivateDocker(directory / "rig", as_default=True) as docker:
        scene = build_intruded(docker)
        sources = {name: survey(str(docker.upper_of(name) / "diff")) for name in scene.ids}
        namespace = os.open(f"/proc/{docker.pid}/ns/mnt", os.O_RDONLY)  # there when the daemon is gone

        def beside(command: Sequence[str]) -> list[str]:
            return ["nsenter", f"--mount=/proc/{os.getpid()}/fd/{namespace}", "--", *command]

        def look(moment: str, within: Callable[[Sequence[str]], list[str]], *more: str) -> None:
            at, selection = directory / moment.replace(" ", "-"), ("--only", "containers", *more)
            runs[moment] = take(at, key, recipient, *selection, within=within)
            web = at.with_name(f"{at.name}-web")
            names[moment] = take(web, key, recipient, *selection, "--container", "web", within=within)

        try:
            look("alive", beside)
            docker.kill_daemon()
            look("daemon killed", beside)
            docker.kill_everything()
            look("all killed", beside)
        finally:
            os.close(namespace)
        image.touch()
        os.truncate(image, _DISK)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(image)], check=True)
        subprocess.run(in_private("sh", "-c", _COPY, "sh", str(image), str(point), str(docker.data)), check=True)
        before = image.read_bytes()
        look("mounted disk", on_disk, "--root", str(point))
        yield Story(scene, sources, runs, names, before, image.read_bytes())


@pytest.mark.parametrize("moment", _HOW)
def test_there_is_no_gap(story: Story, moment: str) -> None:
    assert not story.runs[moment].gaps()
    assert not story.names[moment].gaps()


@pytest.mark.parametrize("moment", _HOW)
def test_every_container_is_whole(story: Story, moment: str) -> None:
    evidence = story.runs[moment]
    for name, container_id in story.scene.ids.items():
        about = evidence.about(evidence.container("docker", container_id))
        upper = true_bytes(about["rootfs"], "upper")
        copy = survey(evidence.extracted(upper))
        source = story.sources[name]
        if moment == "mounted disk":  # `cp` gives directories the times that they had, and nothing else is lost
            assert {path: (one.kind, one.digest, one.xattrs, one.stat.st_mode) for path, one in copy.items()} == {
                path: (one.kind, one.digest, one.xattrs, one.stat.st_mode) for path, one in source.items()
            }
        assert not differences(source, copy)
    assert sum(node.kind == stat.S_IFCHR for node in story.sources["web"].values()) == 2, "two deletions"


@pytest.mark.parametrize("moment", _HOW)
def test_by_name_and_by_id_it_is_the_same_container(story: Story, moment: str) -> None:
    container_id = story.scene.ids["web"]
    one, whole = story.names[moment], story.runs[moment]
    assert not [item for item in one.items if story.scene.ids["files"][:12] in item]
    members = [
        sorted(
            (line["path"], line["kind"], line.get("sha256", "")) for line in evidence.records if is_member(line, item)
        )
        for evidence, item in ((run, run.container("docker", container_id)) for run in (one, whole))
    ]
    assert members[0] == members[1]
    alive = story.runs["alive"]
    before = {
        (line["path"], line.get("sha256", ""))
        for line in alive.records
        if is_member(line, alive.container("docker", container_id)) and "/overlay2/" in line["path"]
    }
    assert before <= {(path, digest) for path, _, digest in members[1]}


def is_member(record: dict[str, object], item: str) -> bool:
    return record["type"] == "member" and record["item"] == item


@pytest.mark.parametrize("moment", _HOW)
def test_layers_and_logs_are_the_same(story: Story, moment: str, tmp_path: Path) -> None:
    layers = [
        {
            line["path"]: line.get("sha256", "")
            for line in evidence.records
            # Others' layers may lie on the machine.
            if line["type"] == "member" and "/layers/" in line["item"] and line["path"].startswith("/var/lib/docker/")
        }
        for evidence in (story.runs["alive"], story.runs[moment])
    ]
    assert layers[0] == layers[1]
    assert len(layers[0]) > 300
    lines = story.runs[moment].timeline(tmp_path / "timelines", story.scene.ids["job"], "job")
    assert sorted(line["line"] for line in lines) == ["cannot connect", "migrating"]


@pytest.mark.parametrize("moment", _HOW)
def test_the_census_has_each_once(story: Story, moment: str) -> None:
    found = story.runs[moment].census()
    for name, container_id in story.scene.ids.items():
        (row,) = [row for row in found if row["id"] == container_id]
        runs = name != "job" and moment in {"alive", "daemon killed"}
        assert (name, row["views"]) == (name, [*(["processes"] if runs else []), "records", "disk"])
        stale = ["its record says that it runs, and no process is in it"]
        # Where there is /proc, a record that says so is held against it.
        expected = stale if moment == "all killed" and name != "job" else []
        assert row["findings"] == expected


def test_the_disk_is_bit_for_bit_what_it_was(story: Story) -> None:
    assert story.disk_before == story.disk_after


def test_nothing_is_mounted_or_attached_any_more(story: Story) -> None:
    assert str(story.scene.docker.directory.parent) not in Path("/proc/self/mountinfo").read_text()
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        assert str(story.scene.docker.directory.parent) not in backing.read_text()
