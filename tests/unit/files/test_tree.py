from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from unittest import mock

import pytest

from acquirers import syscalls
from acquirers.files.tree import DIRECTORY, open_noatime, open_tree
from tests.rigs.trees import in_private_mounts, opened
from tests.rigs.trees import mount as mount_here

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
pytestmark = [pytest.mark.root, needs_root]

MOUNTINFO = Path("/proc/self/mountinfo")


def age_access_time(path: Path, *, follow: bool = True) -> int:
    """Makes the access time older than the modification, so that relatime moves it at the next read."""
    os.utime(path, ns=(1_000_000_000, 2_000_000_000), follow_symlinks=follow)
    return 1_000_000_000


def test_a_clone_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"evidence")
    with opened(tmp_path) as tree:
        assert tree.clone
        assert not tree.why_not
        for flags in (os.O_WRONLY, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_TRUNC):
            with pytest.raises(OSError, match="Read-only") as caught:
                os.open("file", flags, dir_fd=tree.fd)
            assert caught.value.errno == errno.EROFS
        with pytest.raises(OSError, match="Read-only"):
            os.unlink("file", dir_fd=tree.fd)
    assert (tmp_path / "file").read_bytes() == b"evidence"


def test_a_clone_refuses_devices_and_links(tmp_path: Path) -> None:
    os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (tmp_path / "link").symlink_to("/etc/passwd")
    with opened(tmp_path) as tree:
        with pytest.raises(PermissionError):
            os.open("null", os.O_RDONLY, dir_fd=tree.fd)
        with pytest.raises(OSError, match="symbolic links"):
            os.open("link", os.O_RDONLY, dir_fd=tree.fd)
        assert os.readlink("link", dir_fd=tree.fd) == "/etc/passwd"


def test_a_clone_is_seen_by_nobody(tmp_path: Path) -> None:
    before = MOUNTINFO.read_bytes()
    with opened(tmp_path):
        assert MOUNTINFO.read_bytes() == before
    assert MOUNTINFO.read_bytes() == before


@pytest.mark.parametrize("in_place", [False, True], ids=["clone", "in place"])
def test_opening_and_listing_moves_no_access_time(tmp_path: Path, *, in_place: bool) -> None:
    expected = age_access_time(tmp_path)
    with opened(tmp_path, in_place=in_place) as tree:
        assert syscalls.getdents(tree.fd) == []
    assert tmp_path.stat().st_atime_ns == expected


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EINVAL])
def test_where_the_kernel_refuses_a_clone_the_directory_is_read_in_place(tmp_path: Path, number: int) -> None:
    fd = os.open(tmp_path, os.O_PATH)
    try:
        with (
            mock.patch.object(syscalls, "open_tree_clone", side_effect=OSError(number, os.strerror(number))),
            open_tree(fd, b"/native") as tree,
        ):
            assert not tree.clone
            assert os.strerror(number) in tree.why_not
            assert os.path.sameopenfile(tree.fd, fd)
    finally:
        os.close(fd)


def test_a_clone_that_cannot_be_made_read_only_is_not_used(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_PATH)
    before = len(os.listdir("/proc/self/fd"))
    try:
        with (
            mock.patch.object(syscalls, "make_inert", side_effect=OSError(errno.ENOSYS, "no such call")),
            open_tree(fd, b"/native") as tree,
        ):
            assert not tree.clone
            assert "read-only" in tree.why_not
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(fd)


def test_closing_twice_does_not_close_another_file(tmp_path: Path) -> None:
    with opened(tmp_path) as tree:
        tree.close()
        other = os.open(tmp_path, os.O_RDONLY)
    try:
        os.fstat(other)
    finally:
        os.close(other)


def test_a_file_is_no_tree(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", os.O_PATH)
    try:
        with pytest.raises(NotADirectoryError):
            open_tree(fd, b"/file")
    finally:
        os.close(fd)


@in_private_mounts
def test_a_recursive_clone_takes_along_what_is_mounted_below(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "bare").touch()
    mount_here("tmpfs", tmp_path / "below", "tmpfs")
    (tmp_path / "below" / "mounted").write_bytes(b"in memory")
    expected = age_access_time(tmp_path / "below" / "mounted")

    with opened(tmp_path, recursive=True) as tree:
        below = os.open("below", DIRECTORY, dir_fd=tree.fd)
        try:
            assert [name for name, _, _ in syscalls.getdents(below)] == [b"mounted"]
            fd = os.open("mounted", os.O_RDONLY, dir_fd=below)
            try:
                assert os.read(fd, 100) == b"in memory"
            finally:
                os.close(fd)
            with pytest.raises(OSError, match="Read-only"):
                os.open("mounted", os.O_WRONLY, dir_fd=below)
            above = os.open("..", DIRECTORY, dir_fd=below)
            try:
                assert os.path.sameopenfile(above, tree.fd)
            finally:
                os.close(above)
        finally:
            os.close(below)
    assert (tmp_path / "below" / "mounted").stat().st_atime_ns == expected


@in_private_mounts
def test_a_plain_clone_shows_what_lies_beneath_the_mounts(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "bare").touch()
    mount_here("tmpfs", tmp_path / "below", "tmpfs")
    with opened(tmp_path) as tree:
        below = os.open("below", DIRECTORY, dir_fd=tree.fd)
        try:
            assert [name for name, _, _ in syscalls.getdents(below)] == [b"bare"]
        finally:
            os.close(below)


def test_open_noatime_does_without_where_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    asked: list[int] = []
    real = os.open

    def refuse(name: bytes, flags: int, *, dir_fd: int) -> int:
        asked.append(flags)
        if flags & os.O_NOATIME:
            raise PermissionError(errno.EPERM, "not the owner")
        return real(name, flags, dir_fd=dir_fd)

    directory = os.open(tmp_path, os.O_PATH)
    try:
        with mock.patch.object(os, "open", refuse):
            fd = open_noatime(b"file", os.O_RDONLY, directory)
        os.close(fd)
    finally:
        os.close(directory)
    assert [bool(flags & os.O_NOATIME) for flags in asked] == [True, False]
