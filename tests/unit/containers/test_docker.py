"""`containers.docker` on disks made by hand: what is taken, under which names, and what is said of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from acquirers.base import FlagKind, Layers, Reason, Scope, State
from acquirers.containers.docker import Docker
from tests.unit.containers.disk import (
    NEVER,
    ROOT,
    Disk,
    all_gaps,
    hex_id,
    probe,
    read,
    short,
    take,
    volume_mount,
)


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
            f"{ROOT}/overlay2/{mount}/merged",
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
