"""`containers.podman` on disks made by hand: what is taken, under which names, and what is said of it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from acquirers.base import FlagKind, Gap, Layers, Reason, Scope, State
from acquirers.containers.storage import Podman, container_names, known
from acquirers.host import Host, Mode
from tests.unit.containers.disk import Taken, all_flags, all_gaps, hex_id, short
from tests.unit.containers.storage_disk import POD_UID, ROOT, StorageDisk, item_of, layer_item


@pytest.fixture
def disk(tmp_path: Path) -> StorageDisk:
    return StorageDisk(tmp_path)


def crio_item(taken: dict[str, Taken], name: str) -> Taken:
    return next(one for path, one in taken.items() if path.startswith("containers/crio/") and f"k8s_{name}_" in path)


def test_one_container(disk: StorageDisk) -> None:
    container = disk.podmans("web")
    taken = disk.close().take()
    assert list(taken) == ["containers/podman/runtime.tar", item_of("web"), layer_item("top"), layer_item("base")]
    assert not all_gaps(taken)
    writable = hex_id("writable web")
    links = [short(writable), short(hex_id("layer top")), short(hex_id("layer base"))]
    assert sorted(taken[item_of("web")].names()) == sorted(
        [
            f"{ROOT}/overlay-containers/{container}",
            f"{ROOT}/overlay-containers/{container}/userdata",
            *(f"{ROOT}/overlay-containers/{container}/userdata/{name}" for name in ("config.json", "ctr.log", "shm")),
            *(
                f"{ROOT}/overlay/{writable}{name}"
                for name in ("", "/diff", "/diff/content", "/link", "/lower", "/merged", "/merged/beneath", "/work")
            ),
            f"{ROOT}/overlay/l",
            *(f"{ROOT}/overlay/l/{link}" for link in links),
        ]
    )
    assert taken[item_of("web")].content(f"{ROOT}/overlay/{writable}/diff/content") == b"written by web"
    top = taken[layer_item("top")]
    assert top.content(f"{ROOT}/overlay/{hex_id('layer top')}/diff/content") == b"file of top"
    assert f"{ROOT}/overlay-layers/{hex_id('layer top')}.tar-split.gz" in top.names()


def test_what_belongs_to_no_container(disk: StorageDisk) -> None:
    disk.podmans("web")
    disk.volume("idle")
    (disk.root / "etc/containers/networks").mkdir(parents=True)
    (disk.graph / "secrets/filedriver").mkdir(parents=True)
    (disk.graph / "stray-directory").mkdir()
    for name in (
        "etc/containers/storage.conf", "etc/containers/networks/web.json",
        *(f"var/lib/containers/storage/{path}" for path in (
            "secrets/secrets.json", "secrets/filedriver/secretsdata.json", "stray", "db.sql-wal",
            "overlay/.has-mount-program", "stray-directory/inside",
        )),
    ):  # fmt: skip
        (disk.root / name).write_text("")
    runtime = disk.close().take()["containers/podman/runtime.tar"]
    names = set(runtime.names())
    assert {
        "[root]/etc/containers/storage.conf", "[root]/etc/containers/networks/web.json",
        f"{ROOT}/overlay-containers/containers.json", f"{ROOT}/overlay-containers/containers.lock",
        f"{ROOT}/overlay-layers/layers.json", f"{ROOT}/overlay-images/images.json", f"{ROOT}/db.sql",
        f"{ROOT}/db.sql-wal", f"{ROOT}/overlay-images/{hex_id('image shop')}/manifest",
        f"{ROOT}/overlay-images/{hex_id('image shop')}/=c2hhMjU2", f"{ROOT}/overlay/.has-mount-program",
        f"{ROOT}/secrets/secrets.json", f"{ROOT}/volumes/idle/_data/file",
    } <= names  # fmt: skip
    assert not [name for name in names if name.endswith(("/stray", "/inside", "tar-split.gz", "ctr.log", "/content"))]
    assert f"{ROOT}/secrets/filedriver/secretsdata.json" not in names
    told = {flag.where for flag in runtime.flags if flag.kind is FlagKind.ELSEWHERE}
    assert told == {
        b"/var/lib/containers/storage/stray", b"/var/lib/containers/storage/secrets/filedriver/secretsdata.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("number", "word"),
    [(1, "created"), (2, "initialized"), (3, "running"), (4, "stopped"), (5, "paused"), (6, "exited"), (99, "unknown")],
)
def test_states(disk: StorageDisk, number: int, word: str) -> None:
    disk.podmans("web", state={"state": number, "pid": 99})
    disk.close()
    subject = next(one for one in disk.probe().subjects if one.kind == "container")
    assert (subject.state, subject.name) == (word, b"web")
    taken = disk.take()
    assert taken[item_of("web")].item.about["state"] == word
    assert len(taken) == 4, "whatever its state, all of it is taken"


def test_about_a_container(disk: StorageDisk) -> None:
    volumes = [{"volumeName": "v", "dest": "/data"}]
    container = disk.podmans("web", pod="crew", namedVolumes=volumes, privileged=True)
    disk.volume("v")
    config = {
        "hostname": "h",
        "process": {"env": ["PASSWORD=hunter2"]},
        "mounts": [{"destination": "/host", "type": "bind", "source": "/", "options": ["rbind", "ro"]}],
    }
    (disk.containers / container / "userdata/config.json").write_text(json.dumps(config))
    taken = disk.close().take()
    about = taken[item_of("web")].item.about
    assert (about["id"], about["name"], about["manager"]) == (container, b"web", "podman")
    assert (about["pod"], about["pod_id"], about["infra"]) == ("crew", hex_id("pod crew"), False)
    assert (about["image"], about["image_names"]) == ("localhost/shop:1", ["localhost/shop:1"])
    assert (about["labels"], about["hostname"], about["privileged"], about["exit_code"]) == (1, "h", True, 3)
    assert about["volumes"] == [b"v"]
    assert about["mounts"] == [{"type": "bind", "source": b"/", "destination": b"/host", "writable": False}]
    overlay = b"/var/lib/containers/storage/overlay/"
    assert about["rootfs"] == {
        "driver": "overlay",
        "upper": overlay + hex_id("writable web").encode() + b"/diff",
        "lowers": [overlay + hex_id(f"layer {name}").encode() + b"/diff" for name in ("top", "base")],
        "userxattr": False,
    }
    assert "hunter2" not in repr(about), "the environment holds secrets"
    assert {flag.where for flag in taken[item_of("web")].flags} == {b"/"}
    layer = taken[layer_item("base")].item.about
    assert layer["path"] == overlay + hex_id("layer base").encode() + b"/diff"
    assert layer["containers"] == [container]


def test_selectors(disk: StorageDisk) -> None:
    disk.podmans("web", pod="crew")
    disk.podmans("other")
    disk.close()
    for selector in ("web", "crew", "crew/web", hex_id("container web")[:8], hex_id("pod crew")[:8]):
        scope = Scope(containers=(selector,))
        assert disk.probe(scope).matched == {selector}
        assert [path for path in disk.take(scope) if "web" in path or "other" in path] == [item_of("web")], selector
    assert disk.take(Scope(containers=("nobody",))) == {}
    assert container_names(disk.host())[hex_id("container web")] == ("web", "crew", "crew/web")


def test_layers_can_be_left_out(disk: StorageDisk) -> None:
    disk.podmans("web")
    taken = disk.close().take(Scope(layers=Layers.UPPER))
    assert set(taken) == {"containers/podman/runtime.tar", item_of("web")}


# -- CRI-O ------------------------------------------------------------------------------------------------------------


def test_containers_of_kubernetes(disk: StorageDisk) -> None:
    disk.crio("shop-1", sandbox=True)
    container = disk.crio("web")
    disk.crio("side")
    taken = disk.close().take()
    assert not all_gaps(taken)
    assert {path.partition("/")[2].partition("/")[0] for path in taken} == {"crio"}
    assert [path for path in taken if "/layers/" in path] == [layer_item("top", "crio"), layer_item("base", "crio")]
    web = crio_item(taken, "web")
    about = web.item.about
    assert (about["id"], about["runtime"], about["manager"]) == (container, "crio", "cri-o")
    assert (about["pod"], about["namespace"], about["container"]) == ("shop-1", "prod", "web")
    assert (about["pod_uid"], about["state"], about["exit_code"], about["labels"]) == (POD_UID, "stopped", 9, 1)
    logs = f"/var/log/pods/prod_shop-1_{POD_UID}/web"
    own = [path for path in about["logs"] if b"/var/log/pods" in path]  # type: ignore[attr-defined]
    assert own == [f"{logs}/0.log".encode(), f"{logs}/0.log.20260102-030405.gz".encode()]
    assert f"[root]{logs}/0.log" in web.names()
    assert f"[root]{logs}/1.log" not in web.names(), "that is another container's"
    sandbox = crio_item(taken, "POD").item.about
    assert (sandbox["infra"], sandbox["pod"], sandbox["container"]) == (True, "shop-1", "")


@pytest.mark.parametrize(
    ("selector", "count"),
    [("web", 1), ("shop-1", 3), ("prod/shop-1", 3), ("prod/shop-1/web", 1), ("prod/shop-2", 0)],
)
def test_selectors_of_kubernetes(disk: StorageDisk, selector: str, count: int) -> None:
    disk.crio("shop-1", sandbox=True)
    disk.crio("web")
    disk.crio("side")
    disk.crio("other", pod="else-1")
    taken = disk.close().take(Scope(containers=(selector,), layers=Layers.UPPER))
    assert len([path for path in taken if "k8s_" in path]) == count


def test_volatile_containers_of_crio(disk: StorageDisk) -> None:
    """CRI-O's records lie in the run root: a reboot takes them away, and the containers' directories stay."""
    disk.crio("web")
    disk.volatile = disk.lists["containers"]
    disk.lists["containers"] = []
    taken = disk.close().take()
    assert crio_item(taken, "web").item.about["container"] == "web"
    assert any("volatile" in flag.detail for flag in crio_item(taken, "web").flags)
    shutil.rmtree(disk.root / "run")
    taken = disk.take()
    (gone,) = [one for path, one in taken.items() if path.endswith("-unnamed.tar")]
    assert gone.item.about["state"] == "record is gone"
    (unclaimed,) = [one for path, one in taken.items() if path.endswith("-unclaimed.tar")]
    name = next(name for name in unclaimed.names() if name.endswith("/diff/content"))
    assert b"written by k8s_web" in unclaimed.content(name)


def test_pod_logs_behind_a_link(disk: StorageDisk) -> None:
    disk.crio("web")
    (disk.root / "mnt").mkdir()
    (disk.root / "var/log/pods").rename(disk.root / "mnt/pods")
    (disk.root / "var/log/pods").symlink_to("/mnt/pods")
    web = crio_item(disk.close().take(), "web")
    assert f"[root]/mnt/pods/prod_shop-1_{POD_UID}/web/0.log" in web.names()
    assert not web.gaps


# -- drivers and places -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["vfs", "btrfs"])
def test_drivers_with_whole_copies(tmp_path: Path, driver: str) -> None:
    disk = StorageDisk(tmp_path, driver=driver)
    disk.podmans("web")
    taken = disk.close().take()
    assert not all_gaps(taken)
    base = {"vfs": "vfs/dir", "btrfs": "btrfs/subvolumes"}[driver]
    content = f"{ROOT}/{base}/{hex_id('writable web')}/content"
    assert taken[item_of("web")].content(content) == b"written by web"
    assert taken[item_of("web")].item.about["rootfs"] == {
        "driver": driver, "upper": content.removeprefix("[root]").removesuffix("/content").encode(), "lowers": [],
        "userxattr": False,
    }  # fmt: skip
    assert layer_item("top") in taken


@pytest.mark.parametrize("driver", ["zfs", "devicemapper"])
def test_drivers_that_are_not_read(tmp_path: Path, driver: str) -> None:
    disk = StorageDisk(tmp_path, driver=driver)
    disk.podmans("web")
    taken = disk.close().take()
    (gap,) = taken[item_of("web")].gaps
    assert gap.reason is Reason.UNSUPPORTED
    assert any(name.endswith("/ctr.log") for name in taken[item_of("web")].names()), "all else is there"


def test_composefs_and_additional_layer_stores_are_gaps(disk: StorageDisk) -> None:
    disk.podmans("web")
    (disk.files / hex_id("layer base") / "composefs-data").mkdir()
    top = disk.files / hex_id("layer top") / "diff"
    shutil.rmtree(top)
    top.symlink_to("/run/stargz-store/x/diff")
    gaps = disk.close().take()[item_of("web")].gaps
    assert {(gap.reason, os.path.basename(gap.where)) for gap in gaps} == {
        (Reason.UNSUPPORTED, b"composefs-data"), (Reason.NOT_CROSSED, b"diff"),
    }  # fmt: skip


def test_image_stores(tmp_path: Path) -> None:
    """Images apart from the containers: `imagestore`, and one that is only read."""
    disk = StorageDisk(tmp_path)
    disk.podmans("web")
    disk.close()
    for place, layer in (("mnt/images", "top"), ("usr/share/images", "base")):
        store = tmp_path / place
        (store / "overlay/l").mkdir(parents=True)
        (store / "overlay-layers").mkdir()
        layer_id = hex_id("layer " + layer)
        (disk.files / layer_id).rename(store / "overlay" / layer_id)
        (disk.files / "l" / short(layer_id)).rename(store / "overlay/l" / short(layer_id))
        records = [one for one in disk.lists["layers"] if one["id"] == layer_id]
        disk.lists["layers"] = [one for one in disk.lists["layers"] if one["id"] != layer_id]
        (store / "overlay-layers/layers.json").write_text(json.dumps(records))
        (disk.layers / f"{layer_id}.tar-split.gz").rename(store / f"overlay-layers/{layer_id}.tar-split.gz")
    (tmp_path / "etc/containers").mkdir()
    (tmp_path / "etc/containers/storage.conf").write_text(
        '[storage]\ndriver = "overlay"\nimagestore = "/mnt/images"\n'
        '[storage.options]\nadditionalimagestores = ["/usr/share/images", "/not/there"]\n'
    )
    (disk.graph / "db.sql").unlink()
    taken = disk.close().take()
    assert [(gap.reason, gap.where) for gap in all_gaps(taken)] == [(Reason.VANISHED, b"/not/there")]
    rootfs = taken[item_of("web")].item.about["rootfs"]
    assert isinstance(rootfs, dict)
    assert [path.partition(b"/overlay/")[0] for path in rootfs["lowers"]] == [b"/mnt/images", b"/usr/share/images"]
    top = taken[layer_item("top")]
    assert top.item.about["image_store"] == b"/mnt/images"
    assert f"[root]/mnt/images/overlay-layers/{hex_id('layer top')}.tar-split.gz" in top.names()


def test_every_place_that_a_configuration_names(tmp_path: Path) -> None:
    """storage.conf of the machine and of a user, crio.conf, and the default of a home."""
    users = "root:x:0:0::/root:/bin/sh\nann:x:1001:1001::/home/ann:/bin/sh\nbob:x:1002:1002::/home/bob:/bin/sh\n"
    places = {
        "srv/graph": "named", "data/crio": "crio", "home/ann/.local/share/containers/storage": "ann",
        "srv/users/bob/x": "bob", "home/ann/own": "own",
    }  # fmt: skip
    for place, name in places.items():
        made = StorageDisk(tmp_path, place)
        made.podmans(name)
        made.close()
    (tmp_path / "etc/passwd").write_text(users)
    (tmp_path / "etc/crio/crio.conf.d").mkdir(parents=True)
    (tmp_path / "etc/crio/crio.conf.d/10-root.conf").write_text('[crio]\nroot = "/data/crio"\n')
    (tmp_path / "etc/containers").mkdir()
    conf = '[storage]\ngraphroot = "/srv/graph"\nrootless_storage_path = "/srv/users/$USER/x"\n'
    (tmp_path / "etc/containers/storage.conf").write_text(conf)
    (tmp_path / "home/ann/.config/containers").mkdir(parents=True)
    (tmp_path / "home/ann/.config/containers/storage.conf").write_text('[storage]\ngraphroot = "$HOME/own"\n')
    names = {one for two in container_names(Host(Mode.DEAD, os.fsencode(tmp_path))).values() for one in two}
    assert names == set(places.values())


def test_nested_roots_are_stored_once(disk: StorageDisk) -> None:
    disk.podmans("web")
    inner = StorageDisk(disk.writable("web") / "diff", "graph")
    inner.podmans("inner")
    inner.close()
    (disk.root / "etc/containers").mkdir()
    where = f"/var/lib/containers/storage/overlay/{hex_id('writable web')}/diff/graph"
    (disk.root / "etc/containers/storage.conf").write_text(f'[storage]\ngraphroot = "{where}"\n')
    taken = disk.close().take()
    assert not [path for path in taken if "inner" in path]
    assert (FlagKind.ELSEWHERE, where.encode()) in {(flag.kind, flag.where) for flag in all_flags(taken)}


def test_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    assert Podman().probe(Host(Mode.DEAD, os.fsencode(tmp_path)), Scope()).state is State.ABSENT
    assert list(Podman().items(Host(Mode.DEAD, os.fsencode(tmp_path)), Scope())) == []


# -- records that do not fit together ---------------------------------------------------------------------------------


def test_short_links_that_are_lost(disk: StorageDisk) -> None:
    """A sudden reboot loses them; layers.json leads to the same layers."""
    disk.podmans("web")
    shutil.rmtree(disk.files / "l")
    (disk.files / "l").mkdir()
    taken = disk.close().take()
    assert not all_gaps(taken)
    assert {layer_item("top"), layer_item("base")} <= set(taken)
    assert any("all image layers are known from layers.json" in flag.detail for flag in taken[item_of("web")].flags)


def test_layers_json_that_is_lost(disk: StorageDisk) -> None:
    disk.podmans("web")
    disk.close()
    (disk.layers / "layers.json").unlink()
    taken = disk.take()
    assert not all_gaps(taken)
    assert {layer_item("top"), layer_item("base")} <= set(taken)
    assert not [path for path in taken if path.endswith("unclaimed.tar")]


def test_an_unclaimed_layer(disk: StorageDisk) -> None:
    disk.podmans("web")
    disk.podmans("gone")
    disk.lists["containers"].pop()
    del disk.podman[hex_id("container gone")]
    shutil.rmtree(disk.containers / hex_id("container gone"))
    (disk.files / "staging/x").mkdir(parents=True)
    (disk.files / "staging/x/half").touch()
    taken = disk.close().take()
    unclaimed = taken[f"containers/podman/{hex_id('writable gone')[:12]}-unclaimed.tar"]
    assert unclaimed.content(f"{ROOT}/overlay/{hex_id('writable gone')}/diff/content") == b"written by gone"
    assert not unclaimed.gaps
    assert [flag.kind for flag in unclaimed.flags] == [FlagKind.FINDING]
    assert f"{ROOT}/overlay/staging/x/half" in taken["containers/podman/temporary-unclaimed.tar"].names()
    told = {one.id: one for one in known(disk.host())}
    assert told[hex_id("writable gone")].state == "unclaimed"
    assert not told[hex_id("writable gone")].record


def test_a_root_that_is_a_directory_of_the_machine(disk: StorageDisk) -> None:
    """`podman run --rootfs`: nothing of it is in the storage but its records."""
    disk.podmans("web", rootfs="/srv/rootfs")
    disk.lists["containers"][0]["layer"] = ""
    web = disk.close().take()[item_of("web")]
    assert not web.gaps
    assert (FlagKind.ELSEWHERE, b"/srv/rootfs") in {(flag.kind, flag.where) for flag in web.flags}


def test_volumes(disk: StorageDisk) -> None:
    volumes = [{"volumeName": name, "dest": "/" + name} for name in ("shared", "gone", "../x", "linked")]
    disk.podmans("web", namedVolumes=volumes)
    disk.podmans("worker", namedVolumes=volumes[:1])
    disk.volume("shared")
    disk.volume("idle")
    (disk.graph / "volumes/linked").symlink_to("/etc")
    taken = disk.close().take()
    items = {path: [name for name in one.names() if name.endswith("_data/file")] for path, one in taken.items()}
    holding = [path for path, names in items.items() if f"{ROOT}/volumes/shared/_data/file" in names]
    assert len(holding) == 1
    assert holding[0] in {item_of("web"), item_of("worker")}
    assert items["containers/podman/runtime.tar"] == [f"{ROOT}/volumes/idle/_data/file"]
    gaps: list[Gap] = taken[item_of("web")].gaps
    assert sorted(gap.reason for gap in gaps) == [Reason.MALFORMED, Reason.MALFORMED, Reason.VANISHED]
