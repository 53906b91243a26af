"""`containers.docker`: volumes, drivers, and parts of the data root that were moved elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from acquirers.base import FlagKind, Kind, Reason, Scope
from tests.unit.containers.disk import (
    ROOT,
    Disk,
    all_flags,
    all_gaps,
    hex_id,
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
        disk = Disk(tmp_path, driver="aufs")
        disk.container("web")
        disk.overlay.rename(tmp_path / "away")
        gaps = all_gaps(take(disk.host()))
        assert [gap.reason for gap in gaps] == [Reason.UNSUPPORTED]
        assert "aufs/diff" in gaps[0].detail


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
