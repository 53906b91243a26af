from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acquirers import syscalls
from acquirers.mounts import parse_mountinfo
from tests.rigs.trees import run_python

if TYPE_CHECKING:
    from acquirers.syscalls import Stat

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def every_type(tmp_path: Path) -> Path:
    """A directory with a file of each type that this user can make."""
    (tmp_path / "file").write_bytes(b"x" * 5000)
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "hard").hardlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(tmp_path / "socket"))
    if os.geteuid() == 0:
        os.mknod(tmp_path / "char", stat.S_IFCHR | 0o600, os.makedev(4095, 1048575))
        os.mknod(tmp_path / "block", stat.S_IFBLK | 0o640, os.makedev(7, 300))
    (tmp_path / "file").chmod(0o6750)
    os.utime(tmp_path / "file", ns=(1_234_567_890, -1_500_000_001))
    return tmp_path


def same(found: Stat, expected: os.stat_result) -> bool:
    return (
        found.mode, found.uid, found.gid, found.size, found.nlink, found.ino, found.dev, found.rdev,
        found.atime_ns, found.mtime_ns, found.ctime_ns, found.blocks,
    ) == (
        expected.st_mode, expected.st_uid, expected.st_gid, expected.st_size, expected.st_nlink, expected.st_ino,
        expected.st_dev, expected.st_rdev, expected.st_atime_ns, expected.st_mtime_ns, expected.st_ctime_ns,
        expected.st_blocks,
    )  # fmt: skip


def test_statx_says_what_stat_says(every_type: Path) -> None:
    directory = os.open(every_type, os.O_RDONLY)
    try:
        for name in os.listdir(every_type):
            found = syscalls.statx(directory, os.fsencode(name))
            assert same(found, os.lstat(every_type / name)), name
        assert same(syscalls.statx(directory, b""), os.fstat(directory))
        assert same(syscalls.statx(directory, b"link", flags=0), os.stat(every_type / "link"))
        assert syscalls.statx(directory, b"file").mtime_ns == -1_500_000_001
    finally:
        os.close(directory)


def test_statx_knows_the_mount_and_the_time_of_birth(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        found = syscalls.statx(directory, b"")
        fdinfo = Path(f"/proc/self/fdinfo/{directory}").read_text()
    finally:
        os.close(directory)
    if found.mnt_id is None:
        pytest.skip("a kernel before 5.8")
    assert f"mnt_id:\t{found.mnt_id}\n" in fdinfo
    mounts = {mount.mount_id: mount for mount in parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())}
    assert mounts[found.mnt_id].device == found.dev
    if found.btime_ns is not None:
        assert 0 < found.btime_ns <= found.ctime_ns


def test_statx_raises_the_errno(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(FileNotFoundError):
            syscalls.statx(directory, b"nothing")
        with pytest.raises(OSError, match="too long"):
            syscalls.statx(directory, b"n" * 256)
    finally:
        os.close(directory)
    with pytest.raises(OSError, match="descriptor") as caught:
        syscalls.statx(directory, b"")
    assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_where_statx_is_refused_stat_answers(every_type: Path, number: int) -> None:
    def refused() -> Callable[..., int]:
        def call(*_: object) -> int:
            ctypes.set_errno(number)
            return -1

        return call

    expected = os.lstat(every_type / "link")  # following it moves its access time
    directory = os.open(every_type, os.O_RDONLY)
    try:
        with mock.patch.object(syscalls, "_statx_call", refused):
            link = syscalls.statx(directory, b"link")
            followed = syscalls.statx(directory, b"link", flags=0)
            itself = syscalls.statx(directory, b"")
        assert same(link, expected)
        assert same(followed, os.stat(every_type / "link"))
        assert same(itself, os.fstat(directory))
        assert (link.btime_ns, link.mnt_id, link.attributes) == (None, None, 0)
    finally:
        os.close(directory)


ODD_NAMES = [b"n" * 255, b"new\nline", b"\xff\xfe", b" ", b"-rf", b"...", "ü".encode(), b"\\", b"a"]


def test_getdents_gives_every_name_with_its_type(every_type: Path) -> None:
    for name in ODD_NAMES:
        (every_type / os.fsdecode(name)).touch()
    directory = os.open(every_type, os.O_RDONLY)
    try:
        found = syscalls.getdents(directory)
        assert syscalls.getdents(directory) == []
    finally:
        os.close(directory)
    assert sorted(name for name, _, _ in found) == sorted(os.fsencode(name) for name in os.listdir(every_type))
    types = {name: kind for name, kind, _ in found}
    for name, kind in types.items():
        if kind:
            assert kind == stat.S_IFMT(os.lstat(every_type / os.fsdecode(name)).st_mode) >> 12


def test_getdents_goes_on_where_a_cookie_says(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number:0100}").touch()
    first, again = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    try:
        whole: list[tuple[bytes, int, int]] = []
        while found := syscalls.getdents(first, 4096):
            assert len(found) < 300
            whole += found
        assert len({name for name, _, _ in whole}) == 300
        os.lseek(again, whole[122][2], os.SEEK_SET)
        rest = []
        while found := syscalls.getdents(again, 4096):
            rest += found
        assert rest == whole[123:]
    finally:
        os.close(first)
        os.close(again)


def test_getdents_of_what_is_no_directory(every_type: Path) -> None:
    fd = os.open(every_type / "file", os.O_RDONLY)
    try:
        with pytest.raises(NotADirectoryError):
            syscalls.getdents(fd)
    finally:
        os.close(fd)


def dirent(name: bytes, kind: int, cookie: int) -> bytes:
    length = -(-(19 + len(name) + 1) // 8) * 8
    return struct.pack("=QqHB", 1, cookie, length, kind) + name.ljust(length - 19, b"\0")


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.binary(min_size=1, max_size=255).map(lambda name: name.replace(b"\0", b"0")),
            st.integers(0, 255),
            st.integers(-(1 << 63), (1 << 63) - 1),
        )
    )
)
def test_directory_records_come_back_as_they_were(records: list[tuple[bytes, int, int]]) -> None:
    data = dirent(b".", 4, 1) + dirent(b"..", 4, 2) + b"".join(dirent(*record) for record in records)
    expected = [record for record in records if record[0] not in {b".", b".."}]
    assert syscalls.parse_dirents(data) == expected


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_directory_records_make_the_parser_fail(data: bytes) -> None:
    syscalls.parse_dirents(data)


def test_the_type_of_a_filesystem() -> None:
    fd = os.open("/proc", os.O_RDONLY)
    try:
        assert syscalls.filesystem_type(fd) == 0x9FA0
    finally:
        os.close(fd)
    with pytest.raises(OSError, match="descriptor"):
        syscalls.filesystem_type(fd)


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("recursive", [False, True])
def test_a_clone_made_inert(tmp_path: Path, *, recursive: bool) -> None:
    (tmp_path / "file").write_bytes(b"x")
    directory = os.open(tmp_path, os.O_PATH)
    clone = syscalls.open_tree_clone(directory, b"", recursive=recursive)
    try:
        syscalls.make_inert(clone, recursive=recursive)
        fd = os.open("file", os.O_RDONLY, dir_fd=clone)
        flags = os.fstatvfs(fd).f_flag
        os.close(fd)
        wanted = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME
        assert flags & wanted == wanted
    finally:
        os.close(clone)
        os.close(directory)


def test_without_the_privilege_there_is_no_clone() -> None:
    code = (
        "import os\n"
        "from acquirers import syscalls\n"
        "from tests.rigs.trees import become_nobody\n"
        "become_nobody()\n"
        "try:\n"
        "    syscalls.open_tree_clone(os.open('/', os.O_PATH), b'', recursive=False)\n"
        "except OSError as error:\n"
        "    print(error.errno)\n"
    )
    assert int(run_python(code)) in {errno.EPERM, errno.ENOSYS}


def test_the_clock_is_asked_and_not_set() -> None:
    assert 0 <= syscalls.adjtimex().state <= 5
