"""Records that are too much: what is said of them stays small and flat, and every limit that is reached is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from acquirers.base import Reason, Scope
from acquirers.containers.docker import acquirer, items, store
from acquirers.containers.docker.about import MAX_ABOUT
from acquirers.containers.docker.config import parse_config, parse_host_config
from acquirers.containers.records import MalformedError
from agent.custody.manifest import plain
from tests.unit.containers.disk import (
    ROOT,
    Disk,
    Taken,
    all_flags,
    all_gaps,
    hex_id,
    probe,
    read,
    take,
    volume_mount,
)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def of(taken: dict[str, Taken], name: str) -> Taken:
    return next(one for path, one in taken.items() if hex_id("container " + name)[:12] in path)


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


class TestHostConfig:
    @pytest.mark.parametrize("levels", [2, 20, 700, 900])
    @pytest.mark.parametrize("name", ["CapAdd", "Privileged", "SecurityOpt", "NetworkMode", "LogConfig"])
    def test_what_is_nested_is_left_out(self, name: str, levels: int) -> None:
        found = parse_host_config(f'{{"{name}": {"[" * levels}{"]" * levels}, "Runtime": "runc"}}'.encode())
        assert found == {"Runtime": "runc", "left_out": [name]}

    def test_what_is_nested_too_deeply_to_be_read_is_one_error(self) -> None:
        with pytest.raises(MalformedError):
            parse_host_config(b'{"CapAdd": ' + b"[" * 3000 + b"]" * 3000 + b"}")

    @pytest.mark.parametrize(
        ("value", "kept"),
        [
            ("true", True), ("false", None), ("null", None), ("5", 5), ('"x"', "x"), ('["a", "b"]', ["a", "b"]),
            ("[]", None),
        ],
    )  # fmt: skip
    def test_what_is_flat_is_kept(self, value: str, kept: object) -> None:
        assert parse_host_config(f'{{"CapAdd": {value}}}'.encode()) == ({} if kept is None else {"CapAdd": kept})

    @pytest.mark.parametrize("value", ["9" * 40, "-" + "9" * 40, "1e400", '{"a": 1}', "[1]", '[["a"]]', "1.5", "nul"])
    def test_what_is_neither_is_named(self, value: str) -> None:
        try:
            assert parse_host_config(f'{{"CapAdd": {value}}}'.encode()) == {"left_out": ["CapAdd"]}
        except ValueError:
            assert value == "nul"

    def test_lists_and_words_are_cut(self) -> None:
        profile = "seccomp=" + "x" * 50_000
        found = parse_host_config(
            json.dumps({"SecurityOpt": [profile], "CapAdd": ["a"] * 1000, "Runtime": "y" * 5000}).encode()
        )
        assert found["SecurityOpt"] == [profile[:128]]
        assert found["CapAdd"] == ["a"] * 64
        assert found["Runtime"] == "y" * 512
        assert found["left_out"] == ["Runtime", "CapAdd", "SecurityOpt"]

    def test_a_log_driver_and_none_of_its_options(self) -> None:
        config = {"LogConfig": {"Type": "splunk", "Config": {"splunk-token": "hunter2"}}}
        assert parse_host_config(json.dumps(config).encode()) == {"LogDriver": "splunk"}


def test_numbers_that_fit_no_manifest_are_none() -> None:
    record = parse_config(b'{"RestartCount": %s, "State": {"Pid": -%s, "ExitCode": 137}}' % (b"9" * 40, b"9" * 30))
    assert (record.restarts, record.pid, record.exit_code) == (0, 0, 137)
    assert len(record.complaints) == 2


def test_the_mounts_are_the_first_complaint() -> None:
    names = ("ID", "Name", "Driver", "Image", "Created", "LogPath", "RestartCount", "MountPoints")
    assert parse_config(json.dumps({name: [1] for name in names}).encode()).complaints[0].startswith("MountPoints")


WORD = "\x01" * 9000
RECORD: Any = {
    "Name": WORD,
    "LogPath": WORD,
    "Config": {"Image": WORD, "Hostname": WORD},
    "MountPoints": {f"/{number}": {"Type": "bind", "Source": "x" * 900} for number in range(250)},
}
HOST_CONFIG: Any = {
    **dict.fromkeys(("NetworkMode", "PidMode", "Runtime"), WORD),
    **{name: [WORD] * 20 for name in ("CapAdd", "CapDrop", "SecurityOpt")},
}


class TestAbout:
    """Whatever the records say, one line of the manifest holds it."""

    def test_is_small_and_flat(self, disk: Disk) -> None:
        container = disk.container("web", **RECORD)
        (disk.docker / "containers" / container / "hostconfig.json").write_text(json.dumps(HOST_CONFIG))
        about = plain(dict(of(take(disk.host()), "web").item.about))
        assert isinstance(about, dict)
        assert len(msgspec.json.encode(about)) <= MAX_ABOUT
        assert depth(about) <= 4
        assert about["mounts_left_out"] == 250 - len(about["mounts"]) > 0
        assert about["mounts"]

    def test_nothing_is_left_out_of_an_ordinary_one(self, disk: Disk) -> None:
        disk.container("web", MountPoints={f"/{number}": volume_mount("v") for number in range(100)})
        disk.volume("v")
        about = of(take(disk.host()), "web").item.about
        assert len(about["mounts"]) == 100  # type: ignore[arg-type]
        assert not [key for key in about if "left_out" in key]

    def test_a_layer_with_many_users(self, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(items, "_MAX_USERS", 2)
        for number in range(5):
            disk.container(f"c{number}")
        about = take(disk.host())[f"containers/docker/layers/{hex_id('layer top')[:12]}.tar"].item.about
        assert len(about["containers"]) == 2  # type: ignore[arg-type]
        assert about["containers_left_out"] == 3


class TestRoom:
    """What there is no room for is a gap, and whatever can be taken without being known is taken."""

    @pytest.fixture
    def room(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
        limits: dict[str, int] = {}

        room = store.Room

        def small() -> store.Room:
            return room(**limits)

        monkeypatch.setattr(acquirer, "Room", small)
        monkeypatch.setattr(store, "Room", small)
        return limits

    def test_containers(self, disk: Disk, room: dict[str, int]) -> None:
        room["containers"] = 2
        for number in range(5):
            disk.container(f"c{number}")
        taken = take(disk.host())
        assert [(gap.reason, gap.where) for gap in all_gaps(taken)] == [(Reason.LIMIT, b"/var/lib/docker/containers")]
        assert sum("unclaimed" in path for path in taken) == 3, "their writable layers have no container now"

    def test_layers(self, disk: Disk, room: dict[str, int]) -> None:
        room["layers"] = 1
        for number in range(3):
            disk.container(f"c{number}")
        taken = take(disk.host())
        assert [gap.reason for gap in all_gaps(taken)] == [Reason.LIMIT]
        assert sum("/layers/" in path for path in taken) == 1

    def test_volumes(self, disk: Disk, room: dict[str, int]) -> None:
        room["volumes"] = 1
        for name in ("a", "b", "c"):
            disk.volume(name)
            disk.container(name, MountPoints={"/data": volume_mount(name)})
        taken = take(disk.host())
        assert not all_gaps(taken)
        for name in ("a", "b", "c"):
            assert f"{ROOT}/volumes/{name}/_data/file" in of(taken, name).names()

    def test_unclaimed_layers(self, disk: Disk, room: dict[str, int]) -> None:
        room["unclaimed"] = 1
        for number in range(4):
            for name in (hex_id(f"u{number}"), hex_id(f"u{number}") + "-init"):
                disk.layer(name)
        gaps = [gap for gap in all_gaps(take(disk.host())) if gap.reason is Reason.LIMIT]
        assert [gap.detail.split()[0] for gap in gaps] == ["3"]


def test_strangers_do_not_crowd_out_containers(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_MAX_STRANGERS", 3)
    disk.container("web")
    for number in range(20):
        (disk.docker / "containers" / f"stranger{number}").mkdir()
        (disk.docker / "containers" / f"stranger{number}/file").write_text("x")
    taken = take(disk.host())
    assert not all_gaps(taken)
    runtime = taken["containers/docker/runtime.tar"].names()
    assert sum(name.endswith("/file") for name in runtime) == 20
    assert len([flag for flag in all_flags(taken) if "no container" in flag.detail]) == 4
    assert of(taken, "web").members


def test_a_plan_lists_so_many_volumes_and_all_are_taken(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_MAX_LISTED", 5)
    for number in range(9):
        disk.volume(f"v{number}")
    listed = [one for one in probe(disk.host()).subjects if one.kind == "volume"]
    assert listed[-1].state == "more, which are not listed"
    assert len(listed) <= 6
    names = take(disk.host())["containers/docker/runtime.tar"].names()
    assert sum(name.endswith("/_data/file") for name in names) == 9


def test_unused_volumes_that_are_links_are_gaps(disk: Disk) -> None:
    (disk.docker / "volumes/link").symlink_to("/etc")
    data = disk.volume("data")
    (data / "file").unlink()
    data.rmdir()
    data.symlink_to("/etc")
    gaps = all_gaps(take(disk.host()))
    assert sorted((gap.reason, gap.where) for gap in gaps) == [
        (Reason.MALFORMED, b"/var/lib/docker/volumes/data/_data"), (Reason.MALFORMED, b"/var/lib/docker/volumes/link"),
    ]  # fmt: skip


def test_a_container_whose_record_is_rewritten_keeps_its_volumes(disk: Disk) -> None:
    """It is read a second time when its turn comes; what the survey left to it is taken nowhere else."""
    disk.volume("data")
    disk.volume("new")
    container = disk.container("web", MountPoints={"/data": volume_mount("data")})
    making = acquirer.Docker().items(disk.host(), Scope())
    taken = [read(next(making))]
    disk.write_config(container, json.dumps({"ID": container, "MountPoints": {"/new": volume_mount("new")}}).encode())
    taken += [read(item) for item in making]
    names = [name for one in taken for name in one.names()]
    assert names.count(f"{ROOT}/volumes/data/_data/file") == 1
    assert f"{ROOT}/volumes/new/_data/file" in names
    assert f"containers/docker/{container[:12]}-web.tar" in [one.item.path for one in taken]


def test_a_data_root_that_goes_before_its_containers_are_read(disk: Disk) -> None:
    disk.container("web")
    making = acquirer.Docker().items(disk.host(), Scope())
    first = next(making)
    disk.docker.rename(disk.root / "gone")
    taken = [read(first), *(read(item) for item in making)]
    assert all(one.gaps for one in taken)
