from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from acquirers import syscalls
from acquirers.base import AcquirerError, FlagKind, Kind, Reason
from acquirers.files import xattrs
from acquirers.files.tree import open_noatime
from acquirers.files.walk import walk
from acquirers.mounts import Mount
from tests.rigs.trees import OLD, OLDER, Recorder, age, at, opened, paths, sha256, take, taken, times

if TYPE_CHECKING:
    from acquirers.files.entry import Entry

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
pytestmark = [pytest.mark.root, needs_root]

both_ways = pytest.mark.parametrize("in_place", [False, True], ids=["clone", "in place"])


# -- what comes out ---------------------------------------------------------------------------------------------------


@both_ways
def test_every_file_comes_as_it_is(every_type: Path, report: Recorder, *, in_place: bool) -> None:
    expected = {path: os.lstat(path) for path in age(every_type)}
    found = taken(every_type, report, in_place=in_place)
    assert set(found) == set(expected)
    for path, here in expected.items():
        entry = found[path].entry
        assert entry.kind is Kind.of_mode(here.st_mode)
        seen = entry.stat
        assert (seen.mode, seen.uid, seen.gid, seen.size, seen.nlink, seen.ino, seen.dev, seen.rdev) == (
            here.st_mode, here.st_uid, here.st_gid, here.st_size, here.st_nlink, here.st_ino, here.st_dev, here.st_rdev,
        )  # fmt: skip
        assert (seen.atime_ns, seen.mtime_ns, seen.ctime_ns) == (OLDER, OLD, here.st_ctime_ns)
        assert seen.btime_ns is not None
        if entry.kind is Kind.FILE:
            with open(path, "rb") as file:
                data = file.read()
            assert found[path].data == data
            assert found[path].sha256 == sha256(data)
        elif entry.kind is Kind.SYMLINK:
            assert entry.target == os.readlink(path)
        else:
            assert entry.content is None
            assert entry.target is None
    assert found[at(every_type, "sparse")].extents == ((1 << 21, 4096),)
    assert found[at(every_type, "setuid")].entry.stat.mode == stat.S_IFREG | 0o4750
    assert found[at(every_type, "directory")].entry.stat.mode == stat.S_IFDIR | 0o3775
    assert report.gaps == []


@both_ways
def test_extended_attributes_come_with_their_files(every_type: Path, report: Recorder, *, in_place: bool) -> None:
    found = taken(every_type, report, in_place=in_place)
    with_attributes = {path: dict(file.entry.xattrs) for path, file in found.items() if file.entry.xattrs}
    assert with_attributes == {
        at(every_type, "file"): {b"user.note": b"\x00\xff"},
        at(every_type, "hard"): {b"user.note": b"\x00\xff"},
        at(every_type, "directory"): {b"trusted.overlay.opaque": b"y"},
        at(every_type, "link"): {b"trusted.on.link": b"1"},
        at(every_type, "whiteout"): {b"security.x": b"2"},
    }


@both_ways
def test_a_directory_comes_before_what_it_holds(every_type: Path, report: Recorder, *, in_place: bool) -> None:
    order = list(taken(every_type, report, in_place=in_place))
    assert order[0] == at(every_type)
    for position, path in enumerate(order[1:], 1):
        assert os.path.dirname(path) in order[:position]


@pytest.mark.parametrize("native", [b"/", b"/var/lib/x", b"/var/lib/x/"])
def test_paths_are_those_of_the_examined_machine(every_type: Path, report: Recorder, native: bytes) -> None:
    with opened(every_type, native) as tree:
        found = set(take(walk(tree, report)))
    prefix = native.rstrip(b"/")
    assert found == {native} | {prefix + path[len(at(every_type)) :] for path in paths(every_type)} - {prefix}
    assert all(gap.where in found for gap in report.gaps)


def test_the_same_tree_can_be_walked_twice(every_type: Path, report: Recorder) -> None:
    with opened(every_type) as tree:
        assert set(take(walk(tree, report))) == set(take(walk(tree, report)))


# -- what stays -------------------------------------------------------------------------------------------------------


def test_through_a_clone_no_time_moves(every_type: Path, report: Recorder) -> None:
    everything = age(every_type)
    before = times(everything)
    taken(every_type, report)
    assert times(everything) == before
    assert report.noticed == []
    assert report.flags == []


def test_in_place_only_the_access_times_of_links_move_and_that_is_told(every_type: Path, report: Recorder) -> None:
    everything = age(every_type)
    before = times(everything)
    taken(every_type, report, in_place=True)
    moved = {path for path, now in times(everything).items() if now != before[path]}
    assert moved == {at(every_type, name) for name in ("link", "absolute", "dangling", "loop")}
    assert set(report.noticed) == {("atime-moved", path) for path in moved}
    assert report.kinds(at(every_type)) == [FlagKind.NO_CLONE]


def test_where_noatime_is_refused_what_moved_is_told(top: Path, report: Recorder) -> None:
    (top / "file").write_bytes(b"x")
    (top / "directory").mkdir()
    for path in (top / "file", top / "directory", top):
        os.utime(path, ns=(OLDER, OLD))

    def refused(name: bytes, flags: int, dir_fd: int) -> int:
        return os.open(name, flags, dir_fd=dir_fd)

    with mock.patch("acquirers.files.look.open_noatime", refused):
        found = taken(top, report, in_place=True)
    assert all(file.entry.stat.atime_ns == OLDER for file in found.values())
    # An empty directory has no names to read, but is listed all the same.
    assert {where for kind, where in report.noticed if kind == "atime-moved"} == set(found)


# -- what is left out -------------------------------------------------------------------------------------------------


@both_ways
def test_what_is_not_kept_is_not_touched(every_type: Path, report: Recorder, *, in_place: bool) -> None:
    asked: dict[bytes, Kind] = {}

    def keep(path: bytes, kind: Kind) -> bool:
        asked[path] = kind
        return path not in {b"directory", b"file", b"link", b"fifo"}

    opened_names: list[bytes] = []
    real = open_noatime

    def record(name: bytes, flags: int, dir_fd: int) -> int:
        opened_names.append(name)
        return real(name, flags, dir_fd)

    with mock.patch("acquirers.files.look.open_noatime", record):
        found = taken(every_type, report, in_place=in_place, keep=keep)
    left_out = {at(every_type, name) for name in ("directory", "directory/deeper", "directory/deeper/file")}
    left_out |= {at(every_type, name) for name in ("file", "link", "fifo")}
    assert set(found) == paths(every_type) - left_out
    assert not {b"directory", b"deeper", b"file", b"link", b"fifo"} & set(opened_names)
    assert not {where for _, where in report.noticed} & left_out
    assert b"" not in asked
    assert b"directory/deeper" not in asked
    assert (asked[b"file"], asked[b"hollow"], asked[b"loop"]) == (Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK)


def test_keep_is_asked_with_relative_paths(every_type: Path, report: Recorder) -> None:
    asked: list[bytes] = []
    with opened(every_type, b"/elsewhere") as tree:
        take(walk(tree, report, keep=lambda path, _: not asked.append(path)))  # type: ignore[func-returns-value]
    assert {at(every_type, path) for path in asked} == paths(every_type) - {at(every_type)}


@both_ways
def test_the_destination_of_the_run_is_named_and_not_entered(
    every_type: Path, report: Recorder, *, in_place: bool
) -> None:
    here = (every_type / "directory").stat()
    found = taken(every_type, report, in_place=in_place, exclude=frozenset({(here.st_dev, here.st_ino)}))
    assert found[at(every_type, "directory")].entry.xattrs == {b"trusted.overlay.opaque": b"y"}
    assert at(every_type, "directory/deeper") not in found
    assert report.kinds(at(every_type, "directory")) == [FlagKind.LEFT_OUT]
    assert report.gaps == []


def test_the_destination_may_be_the_tree_itself(every_type: Path, report: Recorder) -> None:
    here = every_type.stat()
    found = taken(every_type, report, exclude=frozenset({(here.st_dev, here.st_ino)}))
    assert set(found) == {at(every_type)}
    assert report.kinds(at(every_type)) == [FlagKind.LEFT_OUT]


# -- mounts that are listed -------------------------------------------------------------------------------------------


def mounted(point: bytes, fstype: bytes) -> dict[bytes, Mount]:
    return {point: Mount(1, 0, 0, b"/", point, b"rw", fstype, b"source", b"rw")}


@both_ways
@pytest.mark.parametrize("fstype", [b"nfs4", b"fuse.sshfs", b"9p", b"ceph", b"cifs", b"lustre"])
def test_a_filesystem_that_is_not_local_is_not_even_looked_at(
    every_type: Path, report: Recorder, monkeypatch: pytest.MonkeyPatch, fstype: bytes, *, in_place: bool
) -> None:
    real = syscalls.statx
    monkeypatch.setattr(syscalls, "statx", lambda fd, name: forbidden() if name == b"directory" else real(fd, name))
    mounts = mounted(at(every_type, "directory"), fstype)
    with opened(every_type, mounts=mounts, in_place=in_place) as tree:
        found = take(walk(tree, report))
    assert not any(path.startswith(at(every_type, "directory")) for path in found)
    (gap,) = report.gaps
    assert (gap.reason, gap.where) == (Reason.NOT_CROSSED, at(every_type, "directory"))
    assert fstype.decode() in gap.detail


def forbidden() -> Any:
    raise AssertionError("this must not be called")


@pytest.mark.parametrize("fstype", [b"proc", b"sysfs", b"cgroup2", b"devpts", b"autofs"])
def test_a_view_of_the_kernel_is_named_and_not_entered(every_type: Path, report: Recorder, fstype: bytes) -> None:
    with opened(every_type, mounts=mounted(at(every_type, "directory"), fstype)) as tree:
        found = take(walk(tree, report))
    assert found[at(every_type, "directory")].entry.kind is Kind.DIRECTORY
    assert at(every_type, "directory/deeper") not in found
    assert report.noticed == []


@pytest.mark.parametrize("fstype", [b"ext4", b"tmpfs", b"xfs", b"btrfs"])
def test_a_local_filesystem_is_entered(every_type: Path, report: Recorder, fstype: bytes) -> None:
    with opened(every_type, mounts=mounted(at(every_type, "directory"), fstype)) as tree:
        assert set(take(walk(tree, report))) == paths(every_type)
    assert report.noticed == []


@pytest.mark.parametrize(("fstype", "named"), [(b"nfs", False), (b"nsfs", True), (b"ext4", True)])
def test_a_file_can_be_mounted_on_too(every_type: Path, report: Recorder, fstype: bytes, *, named: bool) -> None:
    with opened(every_type, mounts=mounted(at(every_type, "file"), fstype)) as tree:
        found = take(walk(tree, report))
    assert (at(every_type, "file") in found) is named
    if named:
        assert (found[at(every_type, "file")].data == b"content") is (fstype == b"ext4")
    assert report.noticed == ([] if named else [("not-crossed", at(every_type, "file"))])


def test_what_is_not_kept_is_no_gap_either(every_type: Path, report: Recorder) -> None:
    with opened(every_type, mounts=mounted(at(every_type, "directory"), b"nfs")) as tree:
        take(walk(tree, report, keep=lambda path, _: path != b"directory"))
    assert report.noticed == []


# -- files that cannot be opened --------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.EACCES, Reason.DENIED), (errno.EIO, Reason.IO_ERROR), (errno.ESTALE, Reason.VANISHED)],
)
def test_what_cannot_be_opened_is_named_with_what_its_directory_knows(
    every_type: Path, report: Recorder, number: int, reason: Reason, *, in_place: bool
) -> None:
    real = open_noatime

    def fail(name: bytes, flags: int, dir_fd: int) -> int:
        if name in {b"file", b"directory"}:
            raise OSError(number, os.strerror(number))
        return real(name, flags, dir_fd)

    with mock.patch("acquirers.files.look.open_noatime", fail):
        found = taken(every_type, report, in_place=in_place)
    file, directory = found[at(every_type, "file")].entry, found[at(every_type, "directory")].entry
    assert (file.kind, file.content, file.stat.size) == (Kind.FILE, None, 7)
    assert file.xattrs == {b"user.note": b"\x00\xff"}
    assert directory.xattrs == {b"trusted.overlay.opaque": b"y"}
    assert at(every_type, "directory/deeper") not in found
    assert report.reasons(at(every_type, "file")) == [reason]
    assert report.reasons(at(every_type, "directory")) == [reason]
    assert {gap.where: gap.missing for gap in report.gaps} == {
        at(every_type, "file"): 7,
        at(every_type, "directory"): None,
    }


def test_attributes_that_cannot_be_read_are_a_gap(
    every_type: Path, report: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> list[str]:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))

    monkeypatch.setattr(os, "listxattr", fail)
    found = taken(every_type, report)
    assert set(found) == paths(every_type)
    assert found[at(every_type, "file")].data == b"content"
    assert {gap.where for gap in report.gaps} == paths(every_type)


def test_without_proc_the_attributes_of_what_is_not_opened_are_left_out_and_that_is_said_once(
    every_type: Path, report: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xattrs, "proc_serves", lambda _fd: False)
    found = taken(every_type, report)
    assert set(found) == paths(every_type)
    assert found[at(every_type, "link")].entry.xattrs == {}
    assert found[at(every_type, "file")].entry.xattrs == {b"user.note": b"\x00\xff"}
    assert [kind for kind, _ in report.noticed] == ["left-out"]


@pytest.fixture
def lease(top: Path) -> Iterator[Path]:
    """A file with a write lease whose holder lets go when it is told to, as a file server does."""
    path = top / "leased"
    path.write_bytes(b"leased")
    fd = os.open(path, os.O_RDWR)
    old = signal.signal(signal.SIGIO, lambda *_: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK))
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield path
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, old)


def test_the_holder_of_a_lease_is_given_a_moment(top: Path, report: Recorder, lease: Path) -> None:
    started = time.monotonic()
    assert taken(top, report)[at(lease)].data == b"leased"
    assert time.monotonic() - started < 5
    assert report.gaps == []


# -- the tree itself --------------------------------------------------------------------------------------------------


@both_ways
def test_only_a_tree_that_cannot_be_read_is_an_error(top: Path, report: Recorder, *, in_place: bool) -> None:
    with opened(top, b"/native", in_place=in_place) as tree:
        top.rmdir()
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(AcquirerError) as caught:
            next(walk(tree, report))
        assert (caught.value.reason, caught.value.where) == (Reason.VANISHED, b"/native")
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_walk_that_is_broken_off_leaves_nothing_open(every_type: Path, report: Recorder) -> None:
    with opened(every_type) as tree:
        before = len(os.listdir("/proc/self/fd"))
        for count in range(1, 25):
            entries = walk(tree, report)
            for _ in range(count):
                next(entries, None)
            entries.close()  # type: ignore[attr-defined]
            assert len(os.listdir("/proc/self/fd")) == before


def test_content_need_not_be_read(every_type: Path, report: Recorder) -> None:
    with opened(every_type) as tree:
        before = len(os.listdir("/proc/self/fd"))
        kept: list[Entry] = list(walk(tree, report))
        assert len(os.listdir("/proc/self/fd")) == before
    assert report.noticed == []
    late = next(entry.content for entry in kept if entry.path == at(every_type, "file"))
    assert late is not None
    assert b"".join(map(bytes, late.chunks())) == bytes(7)
    assert report.noticed == [("io-error", at(every_type, "file"))]


def test_an_old_kernel_tells_neither_birth_nor_mount(every_type: Path, report: Recorder) -> None:
    def plain(dir_fd: int, name: bytes, *, flags: int = syscalls.AT_SYMLINK_NOFOLLOW) -> syscalls.Stat:
        return syscalls._plain_stat(dir_fd, name, follow=not flags & syscalls.AT_SYMLINK_NOFOLLOW)

    with mock.patch.object(syscalls, "statx", plain):
        found = taken(every_type, report, in_place=True)
    assert set(found) == paths(every_type)
    assert {entry.entry.stat.btime_ns for entry in found.values()} == {None}
    assert report.gaps == []
