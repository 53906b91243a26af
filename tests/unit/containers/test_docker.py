"""`containers.docker` on disks made by hand: what is taken, under which names, and what is said of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from acquirers.base import FlagKind, Kind, Layers, Reason, Scope, State
from acquirers.containers.docker import Docker
from tests.unit.containers.disk import (
    NEVER,
    Disk,
    all_flags,
    all_gaps,
    hex_id,
    probe,
    read,
    short,
    take,
    volume_mount,
)

ROOT = "[root]/var/lib/docker"


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def item_of(name: str) -> str:
    return f"containers/docker/{hex_id('container ' + name)[:12]}-{name}.tar"


def layer_item(name: str) -> str:
    return f"containers/docker/layers/{hex_id('layer ' + name)[:12]}.tar"


def test_one_container(disk: Disk) -> None:
    container = disk.container("web")
    taken = take(disk.host())
    assert list(taken) == ["containers/docker/runtime.tar", item_of("web"), layer_item("top"), layer_item("base")]
    assert not all_gaps(taken)
    mount = hex_id("mount web")
    assert sorted(taken[item_of("web")].names()) == sorted(
        [
            f"{ROOT}/containers/{container}",
            *(
                f"{ROOT}/containers/{container}/{name}"
                for name in (
                    "config.v2.json", "hostconfig.json", "mounts", "mounts/shm",
                    f"{container}-json.log", f"{container}-json.log.1.gz",
                )
            ),
            f"{ROOT}/image/overlay2/layerdb/mounts/{container}",
            *(f"{ROOT}/image/overlay2/layerdb/mounts/{container}/{name}" for name in ("init-id", "mount-id", "parent")),
            *(f"{ROOT}/overlay2/{mount}{name}" for name in ("", "/diff", "/diff/content", "/link", "/lower", "/work")),
            *(f"{ROOT}/overlay2/{mount}-init{name}" for name in ("", "/diff", "/link", "/work")),
            f"{ROOT}/overlay2/l",
            *(
                f"{ROOT}/overlay2/l/{short(name)}"
                for name in (mount, mount + "-init", hex_id("layer top"), hex_id("layer base"))
            ),
        ]
    )  # fmt: skip
    assert taken[item_of("web")].content(f"{ROOT}/overlay2/{mount}/diff/content") == b"written by web"
    assert taken[layer_item("top")].content(f"{ROOT}/overlay2/{hex_id('layer top')}/diff/content") == b"file of top"


def test_what_belongs_to_no_container(disk: Disk) -> None:
    disk.container("web")
    for name in ("etc/docker/certs.d/registry", "var/lib/docker/network/files", "var/lib/docker/buildkit/content"):
        (disk.root / name).mkdir(parents=True)
    for name in (
        "etc/docker/daemon.json", "etc/docker/key.json", "etc/docker/certs.d/registry/client.key",
        "etc/docker/certs.d/registry/client.cert", "var/lib/docker/network/files/local-kv.db",
        "var/lib/docker/buildkit/cache.db", "var/lib/docker/buildkit/content/blob", "var/lib/docker/stray",
    ):  # fmt: skip
        (disk.root / name).write_text("{}")
    runtime = take(disk.host())["containers/docker/runtime.tar"]
    names = set(runtime.names())
    assert {
        "[root]/etc/docker/daemon.json",
        "[root]/etc/docker/certs.d/registry/client.cert",
        f"{ROOT}/network/files/local-kv.db",
        f"{ROOT}/buildkit/cache.db",
        f"{ROOT}/engine-id",
        f"{ROOT}/volumes/metadata.db",
        f"{ROOT}/overlay2",
        f"{ROOT}/image/overlay2/layerdb/sha256/{hex_id('chain top')}/parent",
    } <= names
    assert not {name for name in names if name.endswith((".key", "key.json", "/blob", "/stray"))}
    assert not {name for name in names if name.startswith((f"{ROOT}/overlay2/", f"{ROOT}/containers/"))}
    told = {(flag.kind, flag.where) for flag in runtime.flags}
    assert (FlagKind.ELSEWHERE, b"/etc/docker/key.json") in told
    assert (FlagKind.ELSEWHERE, b"/etc/docker/certs.d/registry/client.key") in told
    assert (FlagKind.ELSEWHERE, b"/var/lib/docker/stray") in told


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ({"Running": True, "Pid": 99, "StartedAt": "2026-01-02T03:04:05Z"}, "running"),
        ({"Running": True, "Paused": True, "Pid": 99}, "paused"),
        ({"Running": True, "Restarting": True}, "restarting"),
        ({"Dead": True, "StartedAt": "2026-01-02T03:04:05Z"}, "dead"),
        ({"RemovalInProgress": True}, "removing"),
        ({"StartedAt": NEVER}, "created"),
        ({"StartedAt": "2026-01-02T03:04:05Z", "FinishedAt": "2026-01-02T03:04:06Z"}, "exited"),
    ],
)
def test_states(disk: Disk, state: dict[str, object], word: str) -> None:
    disk.container("web", State=state)
    subject = next(one for one in probe(disk.host()).subjects if one.kind == "container")
    assert (subject.state, subject.name) == (word, b"web")
    taken = take(disk.host())
    assert taken[item_of("web")].item.about["state"] == word
    assert len(taken) == 4, "whatever its state, all of it is taken"


def test_about_a_container(disk: Disk) -> None:
    container = disk.container("web", MountPoints={"/data": volume_mount("v")})
    disk.volume("v")
    about = take(disk.host())[item_of("web")].item.about
    assert about["id"] == container
    assert about["name"] == b"web"
    assert about["image"] == "shop:1"
    assert about["labels"] == 2
    assert about["layers"] == [hex_id("layer top"), hex_id("layer base")]
    assert about["host_config"] == {"Privileged": True, "LogDriver": "json-file"}
    assert about["mounts"] == [
        {"type": "volume", "name": "v", "source": b"", "destination": b"/data", "driver": "local", "writable": True}
    ]
    assert "hunter2" not in repr(about), "the environment holds secrets"


def test_layers_are_taken_once_and_only_those_that_are_needed(disk: Disk) -> None:
    disk.image("lonely")
    disk.container("web")
    disk.container("job", lowers=("base",))
    host = disk.host()
    assert [path for path in take(host) if "/layers/" in path].count(layer_item("base")) == 1
    assert layer_item("lonely") not in take(host)
    assert not [path for path in take(host, Scope(layers=Layers.UPPER)) if "/layers/" in path]
    only_job = take(host, Scope(containers=("job",)))
    assert [path for path in only_job if "/layers/" in path] == [layer_item("base")]


def test_layers_in_probe(disk: Disk) -> None:
    disk.container("web")
    layers = [one for one in probe(disk.host()).subjects if one.kind == "layer"]
    assert [(one.id, one.estimate, one.selected) for one in layers] == [
        (hex_id("layer top"), 12, True), (hex_id("layer base"), 12, True),
    ]  # fmt: skip
    upper = probe(disk.host(), Scope(layers=Layers.UPPER))
    assert not [one for one in upper.subjects if one.kind == "layer" and one.selected]


def test_probe_says_what_is_read_whole(disk: Disk) -> None:
    (disk.root / "mnt").mkdir()
    (disk.docker / "volumes").rename(disk.root / "mnt/volumes")
    (disk.docker / "volumes").symlink_to("/mnt/volumes")
    available = probe(disk.host())
    assert available.state is State.AVAILABLE
    assert set(available.reads) == {os.fsencode(disk.docker), os.fsencode(disk.root / "mnt/volumes")}


class TestSelection:
    @pytest.mark.parametrize("form", ["web", "/web", "{id}", "{id:.12}", "{id:.4}"])
    def test_by_name_or_id(self, disk: Disk, form: str) -> None:
        container = disk.container("web")
        disk.container("job")
        selector = form.format(id=container)
        scope = Scope(containers=(selector,))
        assert probe(disk.host(), scope).matched == {selector}
        taken = take(disk.host(), scope)
        assert item_of("web") in taken
        assert item_of("job") not in taken
        assert "containers/docker/runtime.tar" in taken

    @pytest.mark.parametrize("selector", ["we", "abc", "WEB", "nobody", "", "/", "*"])
    def test_what_matches_nothing(self, disk: Disk, selector: str) -> None:
        disk.container("web")
        available = probe(disk.host(), Scope(containers=(selector,)))
        assert not available.matched
        assert not [one for one in available.subjects if one.selected]
        assert not take(disk.host(), Scope(containers=(selector,)))

    def test_a_prefix_of_several_means_all_of_them(self, disk: Disk) -> None:
        ids = [disk.container(f"c{number}") for number in range(3)]
        for number, container in enumerate(ids):
            twin = "abcd" + container[4:]
            (disk.docker / "containers" / container).rename(disk.docker / "containers" / twin)
            (disk.layerdb / "mounts" / container).rename(disk.layerdb / "mounts" / twin)
            ids[number] = twin
        available = probe(disk.host(), Scope(containers=("abcd",)))
        assert sum(one.selected for one in available.subjects if one.kind == "container") == 3

    def test_a_name_that_looks_like_an_id(self, disk: Disk) -> None:
        disk.container("cafe")
        disk.container("web")
        assert set(take(disk.host(), Scope(containers=("cafe",)))) == {
            "containers/docker/runtime.tar", item_of("cafe"), layer_item("top"), layer_item("base"),
        }  # fmt: skip


class TestVolumes:
    def test_a_volume_goes_with_its_container(self, disk: Disk) -> None:
        disk.volume("data")
        disk.volume("unused")
        disk.container("web", MountPoints={"/data": volume_mount("data")})
        taken = take(disk.host())
        assert taken[item_of("web")].content(f"{ROOT}/volumes/data/_data/file") == b"in volume data\n"
        runtime = taken["containers/docker/runtime.tar"]
        assert runtime.content(f"{ROOT}/volumes/unused/_data/file") == b"in volume unused\n"
        assert f"{ROOT}/volumes/data/opts.json" in runtime.names()
        assert f"{ROOT}/volumes/data/_data/file" not in runtime.names()

    def test_unused_ones_are_left_out_when_a_container_was_asked_for(self, disk: Disk) -> None:
        disk.volume("unused")
        disk.container("web")
        runtime = take(disk.host(), Scope(containers=("web",)))["containers/docker/runtime.tar"]
        assert f"{ROOT}/volumes/unused/_data/file" not in runtime.names()

    def test_a_shared_one_is_stored_once(self, disk: Disk) -> None:
        disk.volume("data")
        first, second = sorted(
            disk.container(name, MountPoints={"/d": volume_mount("data")}) for name in ("web", "job")
        )
        taken = take(disk.host())
        holders = [path for path, one in taken.items() if f"{ROOT}/volumes/data/_data/file" in one.names()]
        assert [path.split("/")[-1][:12] for path in holders] == [first[:12]]
        other = next(one for path, one in taken.items() if second[:12] in path)
        assert [flag.kind for flag in other.flags if flag.where == b"/var/lib/docker/volumes/data"] == [
            FlagKind.ELSEWHERE
        ]
        selected = take(disk.host(), Scope(containers=(second,)))
        assert any(f"{ROOT}/volumes/data/_data/file" in one.names() for one in selected.values())

    def test_bind_mounts_are_named_and_not_read(self, disk: Disk) -> None:
        (disk.root / "srv").mkdir()
        (disk.root / "srv/secret").write_text("x")
        bind = {"Type": "bind", "Source": "/srv", "Destination": "/host", "RW": True, "Name": "", "Driver": ""}
        disk.container("web", MountPoints={"/host": bind})
        taken = take(disk.host())[item_of("web")]
        assert not taken.gaps
        assert (FlagKind.ELSEWHERE, b"/srv") in {(flag.kind, flag.where) for flag in taken.flags}
        assert not [name for name in taken.names() if "secret" in name]

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("gone", Reason.VANISHED), ("../../../etc", Reason.MALFORMED), ("..", Reason.MALFORMED),
            ("", Reason.MALFORMED), ("a/b", Reason.MALFORMED), ("metadata.db", Reason.VANISHED),
            ("x" * 400, Reason.MALFORMED),
        ],
    )  # fmt: skip
    def test_names_that_are_no_volumes(self, disk: Disk, name: str, reason: Reason) -> None:
        disk.container("web", MountPoints={"/data": volume_mount(name)})
        taken = take(disk.host())
        assert [gap.reason for gap in all_gaps(taken)] == [reason]
        assert len(taken) == 4

    def test_other_drivers_are_a_gap(self, disk: Disk) -> None:
        mount = volume_mount("efs", driver="rexray") | {"Source": "/mnt/rexray/efs"}
        disk.container("web", MountPoints={"/data": mount})
        gaps = all_gaps(take(disk.host()))
        assert [(gap.reason, gap.where) for gap in gaps] == [(Reason.UNSUPPORTED, b"/mnt/rexray/efs")]

    def test_links_among_volumes_are_not_followed(self, disk: Disk) -> None:
        (disk.root / "etc/shadow").write_text("secret")
        (disk.docker / "volumes/link").symlink_to("/etc")
        data = disk.volume("data")
        (data / "file").unlink()
        data.rmdir()
        data.symlink_to("/etc")
        disk.container("web", MountPoints={"/a": volume_mount("data"), "/b": volume_mount("link")})
        taken = take(disk.host())
        assert not [name for one in taken.values() for name in one.names() if "shadow" in name]
        assert {gap.where for gap in all_gaps(taken)} == {
            b"/var/lib/docker/volumes/link", b"/var/lib/docker/volumes/data/_data",
        }  # fmt: skip
        link = next(one for one in taken[item_of("web")].members if one.path.endswith(b"/volumes/data/_data"))
        assert (link.kind, link.target) == (Kind.SYMLINK, b"/etc")


class TestDrivers:
    def test_fuse_overlayfs_has_the_same_layout(self, tmp_path: Path) -> None:
        disk = Disk(tmp_path, driver="fuse-overlayfs")
        disk.container("web")
        taken = take(disk.host())
        assert not all_gaps(taken)
        mount = hex_id("mount web")
        assert f"{ROOT}/fuse-overlayfs/{mount}/diff/content" in taken[item_of("web")].names()
        assert layer_item("base") in taken

    @pytest.mark.parametrize("driver", ["vfs", "btrfs", "devicemapper", "zfs", "overlayfs", "stargz"])
    def test_others_keep_records_logs_and_volumes(self, disk: Disk, driver: str) -> None:
        disk.volume("data")
        container = disk.container("web", Driver=driver, MountPoints={"/data": volume_mount("data")})
        for name in ("init-id", "mount-id", "parent"):
            (disk.mount_record("web") / name).unlink()
        disk.mount_record("web").rmdir()
        taken = take(disk.host())
        gaps = taken[item_of("web")].gaps
        assert [gap.reason for gap in gaps] == [Reason.UNSUPPORTED]
        assert driver in gaps[0].detail
        names = taken[item_of("web")].names()
        assert f"{ROOT}/containers/{container}/{container}-json.log" in names
        assert f"{ROOT}/volumes/data/_data/file" in names

    def test_a_classic_one_with_layerdb(self, tmp_path: Path) -> None:
        disk = Disk(tmp_path, driver="vfs")
        disk.container("web")
        disk.overlay.rename(tmp_path / "away")
        gaps = all_gaps(take(disk.host()))
        assert [gap.reason for gap in gaps] == [Reason.UNSUPPORTED]
        assert "full copy" in gaps[0].detail


class TestMovedAway:
    """People move a part of the data root to another disk and leave a link."""

    @pytest.mark.parametrize("area", ["containers", "image", "overlay2"])
    def test_is_followed(self, disk: Disk, area: str) -> None:
        disk.container("web")
        (disk.root / "mnt").mkdir()
        (disk.docker / area).rename(disk.root / "mnt" / area)
        (disk.docker / area).symlink_to(f"/mnt/{area}")
        taken = take(disk.host())
        assert not all_gaps(taken)
        assert item_of("web") in taken
        assert f"{ROOT}/{area}" in taken["containers/docker/runtime.tar"].names(), "the link itself"
        assert [flag.where for flag in all_flags(taken) if flag.kind is FlagKind.FINDING] == [
            f"/var/lib/docker/{area}".encode()
        ]

    @pytest.mark.parametrize("area", ["containers", "image", "overlay2", "volumes"])
    @pytest.mark.parametrize("target", ["/", "/etc", ".", "loop"])
    def test_is_not_followed_to_something_else(self, disk: Disk, area: str, target: str) -> None:
        disk.container("web")
        (disk.root / "etc/shadow").write_text("secret")
        (disk.docker / area).rename(disk.root / "away")
        (disk.docker / area).symlink_to(area if target == "loop" else target)
        taken = take(disk.host())
        assert not [name for one in taken.values() for name in one.names() if "shadow" in name]
        assert f"/var/lib/docker/{area}".encode() in {gap.where for gap in all_gaps(taken)}


def test_two_data_roots(tmp_path: Path) -> None:
    first = Disk(tmp_path)
    second = Disk(tmp_path, "srv/docker")
    for disk in (first, second):
        disk.container("web")
    (tmp_path / "etc/docker").mkdir()
    (tmp_path / "etc/docker/daemon.json").write_text('{"data-root": "/srv/docker"}')
    taken = take(first.host())
    assert "containers/docker/runtime-2.tar" in taken
    assert item_of("web").replace(".tar", "-2.tar") in taken
    assert layer_item("base").replace(".tar", "-2.tar") in taken
    second_web = taken[item_of("web").replace(".tar", "-2.tar")]
    assert second_web.item.about["data_root"] == b"/srv/docker"
    assert list(taken) == list(take(first.host())), "the same names every time"


def test_a_container_that_is_gone_since_the_probe(disk: Disk) -> None:
    container = disk.container("web")
    disk.container("job")
    docker = Docker()
    host = disk.host()
    docker.probe(host, Scope())
    (disk.docker / "containers" / container).rename(disk.root / "removed")
    (disk.layerdb / "mounts" / container).rename(disk.root / "removed-too")
    gaps = all_gaps(take(host, docker=docker))
    assert [(gap.reason, gap.where.decode()[-64:]) for gap in gaps] == [(Reason.VANISHED, container)]


def test_a_container_that_goes_while_items_are_made(disk: Disk) -> None:
    disk.container("web")
    items = Docker().items(disk.host(), Scope())
    made = list(items)
    (disk.docker / "containers" / hex_id("container web")).rename(disk.root / "removed")
    taken = {item.path: read(item) for item in made}
    assert Reason.VANISHED in {gap.reason for gap in taken[item_of("web")].gaps}
    assert f"{ROOT}/overlay2/{hex_id('mount web')}/diff/content" in taken[item_of("web")].names()


def test_the_destination_of_the_run_is_left_out(disk: Disk) -> None:
    data = disk.volume("data")
    (data / "evidence").mkdir()
    (data / "evidence/object").write_text("x")
    disk.container("web", MountPoints={"/data": volume_mount("data")})
    host = disk.host()
    excluded = frozenset({host.identity_of(b"/var/lib/docker/volumes/data/_data/evidence")})
    taken = take(host, Scope(exclude=excluded))
    assert not [name for one in taken.values() for name in one.names() if name.endswith("evidence/object")]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to read without moving access times")
def test_reading_changes_no_time(disk: Disk) -> None:
    disk.volume("data")
    disk.container("web", MountPoints={"/data": volume_mount("data")})
    paths = [disk.docker, *disk.docker.rglob("*")]
    for path in paths:  # listing them has just moved some
        os.utime(path, ns=(1, 2_000_000_000), follow_symlinks=False)

    def times() -> list[tuple[int, int, int]]:
        return [(stat.st_atime_ns, stat.st_mtime_ns, stat.st_ctime_ns) for stat in map(os.lstat, paths)]

    before = times()
    taken = take(disk.host())
    assert not all_gaps(taken)
    assert times() == before


def test_json_that_is_not_ours_to_understand(disk: Disk) -> None:
    """Fields of the wrong type cost themselves, not the container."""
    config = {
        "ID": 5, "Name": ["x"], "Driver": "overlay2", "State": {"Running": "yes", "Pid": "x"}, "Config": [],
        "MountPoints": {"/a": 3, "/b": volume_mount("data")}, "Created": {"a": 1}, "LogPath": 7,
    }  # fmt: skip
    container = disk.container("web")
    disk.volume("data")
    disk.write_config(container, json.dumps(config).encode())
    taken = take(disk.host())
    path = f"containers/docker/{container[:12]}-unnamed.tar"
    assert f"{ROOT}/volumes/data/_data/file" in taken[path].names()
    assert f"{ROOT}/overlay2/{hex_id('mount web')}/diff/content" in taken[path].names()
    assert {gap.reason for gap in taken[path].gaps} == {Reason.MALFORMED}
