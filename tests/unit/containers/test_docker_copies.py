"""Drivers of Docker whose layers are whole root filesystems: vfs, and btrfs where it is mounted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from acquirers.base import FlagKind, Layers, Reason, Scope
from acquirers.containers.docker.known import known
from tests.unit.containers.disk import ROOT, Disk, all_flags, all_gaps, hex_id, take

PLACES = {"vfs": "vfs/dir", "btrfs": "btrfs/subvolumes"}
CONTAINER, MOUNT = hex_id("container web"), hex_id("mount web")
ITEM = f"containers/docker/{CONTAINER[:12]}-web.tar"


class CopyDisk(Disk):
    @property
    def overlay(self) -> Path:
        return self.docker / PLACES[self.driver]

    def layer(self, layer_id: str, content: str = "") -> Path:
        directory = self.overlay / layer_id
        directory.mkdir(parents=True)
        (directory / "content").write_text(content)
        return directory

    def container(self, name: str, *, lowers: tuple[str, ...] = ("top", "base"), **record: Any) -> str:
        found = super().container(name, lowers=lowers, **record)
        (self.writable(name) / "merged/note").write_text("a name like any other")
        return found


@pytest.fixture(params=PLACES)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> CopyDisk:
    return CopyDisk(tmp_path, driver=request.param)


def base(disk: CopyDisk) -> str:
    return f"/var/lib/docker/{PLACES[disk.driver]}"


def test_everything_of_a_container_is_taken(disk: CopyDisk) -> None:
    disk.container("web")
    taken = take(disk.host())
    assert not all_gaps(taken)
    assert not [flag for flag in all_flags(taken) if flag.kind is FlagKind.FINDING]
    one = taken[ITEM]
    place = f"[root]{base(disk)}"
    assert one.content(f"{place}/{MOUNT}/content") == b"written by web"
    assert one.content(f"{place}/{MOUNT}/merged/note") == b"a name like any other"
    assert f"{place}/{MOUNT}-init/content" in one.names()
    assert f"{ROOT}/image/{disk.driver}/layerdb/mounts/{CONTAINER}/mount-id" in one.names()
    rootfs = one.item.about["rootfs"]
    upper = f"{base(disk)}/{MOUNT}".encode()
    assert rootfs == {"driver": disk.driver, "upper": upper, "lowers": [], "userxattr": False}
    layers = {path for path in taken if "/layers/" in path}
    assert layers == {f"containers/docker/layers/{hex_id('layer ' + name)[:12]}.tar" for name in ("base", "top")}
    for path in layers:
        assert str(taken[path].item.about["path"]).endswith(f"{taken[path].item.about['cache_id']}'")


def test_image_layers_are_left_out_when_nobody_wants_them(disk: CopyDisk) -> None:
    disk.container("web")
    taken = take(disk.host(), Scope(layers=Layers.UPPER))
    assert not [path for path in taken if "/layers/" in path]
    assert f"[root]{base(disk)}/{MOUNT}/content" in taken[ITEM].names()


def test_a_layer_that_nobody_claims_is_taken_and_told(disk: CopyDisk) -> None:
    disk.container("web")
    stray = hex_id("stray")
    disk.layer(stray, "of nobody")
    taken = take(disk.host())
    one = taken[f"containers/docker/{stray[:12]}-unclaimed.tar"]
    assert one.content(f"[root]{base(disk)}/{stray}/content") == b"of nobody"
    assert [flag.kind for flag in one.flags] == [FlagKind.FINDING]
    assert not all_gaps(taken)


def test_the_census_knows_its_layer(disk: CopyDisk) -> None:
    disk.container("web")
    (one,) = known(disk.host())
    assert (one.id, one.disk, one.upper) == (CONTAINER, True, f"{base(disk)}/{MOUNT}".encode())
    assert [path.rpartition(b"/")[2].decode() for path in one.lowers] == [
        f"{MOUNT}-init", hex_id("layer top"), hex_id("layer base"),
    ]  # fmt: skip


def test_a_layer_that_is_gone_is_a_gap_and_the_census_does_not_have_it(disk: CopyDisk) -> None:
    disk.container("web")
    shutil.rmtree(disk.writable("web"))
    assert Reason.VANISHED in {gap.reason for gap in take(disk.host())[ITEM].gaps}
    (one,) = known(disk.host())
    assert not one.disk


def test_a_link_instead_of_the_directory_is_not_followed_to_something_else(disk: CopyDisk) -> None:
    disk.container("web")
    (disk.root / "etc/shadow").write_text("secret")
    disk.overlay.rename(disk.root / "away")
    disk.overlay.symlink_to("/etc")
    taken = take(disk.host())
    assert not [name for one in taken.values() for name in one.names() if "shadow" in name]
    assert f"{base(disk)}".encode() in {gap.where for gap in all_gaps(taken)}


def test_a_mount_id_that_leads_out_is_not_followed(disk: CopyDisk) -> None:
    disk.container("web")
    (disk.mount_record("web") / "mount-id").write_text("../../../etc")
    taken = take(disk.host())
    assert Reason.MALFORMED in {gap.reason for gap in taken[ITEM].gaps}
    assert not [name for one in taken.values() for name in one.names() if "/etc/" in name.removeprefix("[root]/var")]


def test_a_record_that_names_no_image_of_that_driver_is_a_gap(disk: CopyDisk) -> None:
    disk.container("web")
    shutil.rmtree(disk.mount_record("web"))
    gaps = take(disk.host())[ITEM].gaps
    assert [gap.reason for gap in gaps] == [Reason.MALFORMED]
