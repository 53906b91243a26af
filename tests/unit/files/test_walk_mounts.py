"""Walks over real mounts, each in a mount namespace that takes them with it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from acquirers import syscalls
from acquirers.files.walk import walk
from acquirers.mounts import below, parse_mountinfo
from tests.rigs.trees import Recorder, age, at, in_private_mounts, opened, paths, take, times
from tests.rigs.trees import mount as mount_here

if TYPE_CHECKING:
    from collections.abc import Mapping

    from acquirers.mounts import Mount

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

both_ways = pytest.mark.parametrize("in_place", [False, True], ids=["clone", "in place"])

MS_BIND = 0x1000


def listed(top: Path) -> Mapping[bytes, Mount]:
    """What is mounted below, as the host would tell it."""
    return below(parse_mountinfo(Path("/proc/thread-self/mountinfo").read_bytes()), os.fsencode(top))


def bind(source: Path, target: Path) -> None:
    mount_here(os.fspath(source), target, "none", MS_BIND)


def make(path: Path, content: bytes = b"content") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@both_ways
@in_private_mounts
def test_local_filesystems_are_entered_and_views_of_the_kernel_are_not(
    top: Path, report: Recorder, *, in_place: bool
) -> None:
    for name in ("memory", "kernel", "bound"):
        (top / name).mkdir()
    make(top / "file")
    mount_here("tmpfs", top / "memory", "tmpfs")
    make(top / "memory" / "below" / "file")
    mount_here("proc", top / "kernel", "proc")
    bind(make(top.parent / "beside" / "file").parent, top / "bound")
    bind(make(top.parent / "single"), make(top / "single", b""))

    with opened(top, recursive=True, in_place=in_place, mounts=listed(top)) as tree:
        found = take(walk(tree, report))
    names = ("file", "memory", "memory/below", "memory/below/file", "kernel", "bound", "bound/file", "single")
    assert set(found) == {at(top), *(at(top, name) for name in names)}
    assert {found[at(top, name)].data for name in ("file", "memory/below/file", "bound/file", "single")} == {b"content"}
    assert report.noticed == []


@both_ways
@in_private_mounts
def test_what_is_mounted_after_the_list_was_read_is_not_entered(top: Path, report: Recorder, *, in_place: bool) -> None:
    """It may be of any type. Neither its device nor its mount is that of the directory above."""
    for name in ("memory", "bound"):
        (top / name).mkdir()
    make(top / "single", b"beneath")
    mounts = listed(top)
    mount_here("tmpfs", top / "memory", "tmpfs")
    make(top / "memory" / "file")
    bind(make(top.parent / "beside" / "file").parent, top / "bound")
    bind(make(top.parent / "single"), top / "single")

    with opened(top, recursive=True, in_place=in_place, mounts=mounts) as tree:
        found = take(walk(tree, report))
    assert set(found) == {at(top)}
    assert sorted(report.noticed) == sorted(("not-crossed", at(top, name)) for name in ("memory", "bound", "single"))


@in_private_mounts
def test_a_plain_clone_reads_what_lies_beneath(top: Path, report: Recorder) -> None:
    make(top / "memory" / "beneath")
    mount_here("tmpfs", top / "memory", "tmpfs")
    make(top / "memory" / "above")
    with opened(top, mounts=listed(top)) as tree:
        assert set(take(walk(tree, report))) == {at(top), at(top, "memory"), at(top, "memory/beneath")}
    assert report.noticed == []


@both_ways
@in_private_mounts
def test_a_directory_that_is_mounted_inside_itself_has_an_end(top: Path, report: Recorder, *, in_place: bool) -> None:
    make(top / "a" / "file")
    (top / "a" / "b" / "again").mkdir(parents=True)
    bind(top / "a", top / "a" / "b" / "again")
    with opened(top, recursive=True, in_place=in_place, mounts=listed(top)) as tree:
        found = take(walk(tree, report))
    assert set(found) == paths(top)
    assert at(top, "a/b/again/b/again") in found
    assert report.noticed == []


@in_private_mounts
def test_where_the_kernel_tells_no_mounts_a_directory_inside_itself_is_found_out(top: Path, report: Recorder) -> None:
    make(top / "a" / "file")
    (top / "a" / "b" / "again").mkdir(parents=True)
    bind(top / "a", top / "a" / "b" / "again")

    def plain(dir_fd: int, name: bytes) -> syscalls.Stat:
        return syscalls._plain_stat(dir_fd, name, follow=False)

    with mock.patch.object(syscalls, "statx", plain), opened(top, in_place=True) as tree:
        found = take(walk(tree, report))
    assert at(top, "a/file") in found
    assert at(top, "a/b/again/file") not in found
    assert report.noticed == [("malformed", at(top, "a/b/again"))]


@in_private_mounts
def test_where_the_kernel_tells_no_mounts_devices_are_compared(top: Path, report: Recorder) -> None:
    (top / "memory").mkdir()
    mount_here("tmpfs", top / "memory", "tmpfs")
    make(top / "memory" / "file")

    def plain(dir_fd: int, name: bytes) -> syscalls.Stat:
        return syscalls._plain_stat(dir_fd, name, follow=False)

    with mock.patch.object(syscalls, "statx", plain):
        with opened(top, in_place=True) as tree:
            assert set(take(walk(tree, report))) == {at(top)}
        assert report.noticed == [("not-crossed", at(top, "memory"))]
        with opened(top, in_place=True, mounts=listed(top)) as tree:
            assert at(top, "memory/file") in take(walk(tree, Recorder()))


@both_ways
@in_private_mounts
def test_an_overlay_is_read_whole_and_no_layer_of_it_changes(top: Path, report: Recorder, *, in_place: bool) -> None:
    """Files of an overlay may have another device than its directories."""
    lower, upper = top.parent / "lower", top.parent / "upper"
    mount_point = top / "merged"
    for path in (lower, upper, top.parent / "work", mount_point):
        path.mkdir()
    mount_here("tmpfs", lower, "tmpfs")  # so that the layers do not lie on one filesystem
    make(lower / "both" / "lower", b"lower")
    make(lower / "changed", b"before")
    make(lower / "removed")
    options = f"lowerdir={lower},upperdir={upper},workdir={top.parent / 'work'}"
    mount_here("overlay", mount_point, "overlay", data=options)
    make(mount_point / "both" / "upper", b"upper")
    make(mount_point / "changed", b"after")
    (mount_point / "removed").unlink()
    layers = {path for layer in (lower, upper) for path in age(layer)}
    expected = paths(mount_point)
    age(mount_point)
    before = times(layers | expected)

    with opened(mount_point, in_place=in_place) as tree:
        found = take(walk(tree, report))
    assert set(found) == expected
    assert {os.path.basename(path): file.data for path, file in found.items() if file.data is not None} == {
        b"lower": b"lower",
        b"upper": b"upper",
        b"changed": b"after",
    }
    assert len({file.entry.stat.dev for file in found.values()}) > 1
    assert report.noticed == []
    assert times(layers | expected) == before
    # The same as a mount below the tree.
    with opened(top, recursive=True, in_place=in_place, mounts=listed(top)) as tree:
        assert set(take(walk(tree, report))) == {at(top)} | expected
    assert report.noticed == []


@both_ways
@in_private_mounts
def test_a_subvolume_of_btrfs_is_no_mount(top: Path, report: Recorder, *, in_place: bool) -> None:
    for program in ("mkfs.btrfs", "mount"):
        if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            pytest.skip(f"needs {program}")
    image = top.parent / "image"
    with image.open("wb") as file:
        file.truncate(120 << 20)
    for command in (
        ["mkfs.btrfs", "-q", str(image)],
        ["mount", "-o", "loop", str(image), str(top)],
        ["btrfs", "-q", "subvolume", "create", str(top / "volume")],
    ):
        subprocess.run(command, check=True, capture_output=True)
    make(top / "volume" / "file")
    assert top.stat().st_dev != (top / "volume").stat().st_dev
    with opened(top, in_place=in_place) as tree:
        found = take(walk(tree, report))
    assert found[at(top, "volume/file")].data == b"content"
    assert report.noticed == []


def test_the_tests_leave_nothing_mounted(tmp_path: Path) -> None:
    """Mounts go with the thread that made them, also when it fails."""

    @in_private_mounts
    def fail() -> None:
        mount_here("tmpfs", tmp_path, "tmpfs")
        raise ValueError(os.fsdecode(at(tmp_path)))

    with pytest.raises(ValueError, match=str(tmp_path)):
        fail()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
