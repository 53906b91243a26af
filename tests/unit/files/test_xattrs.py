from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from unittest import mock

import pytest

from acquirers.files import xattrs

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
pytestmark = [pytest.mark.root, needs_root]

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
ACL = bytes.fromhex("0200000001000600ffffffff02000400e803000004000400ffffffff10000600ffffffff20000400ffffffff")


def test_every_namespace_comes_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    wanted = {
        b"user.text": b"value",
        b"user.\xff\xfe": bytes(range(256)),
        b"user.empty": b"",
        b"trusted.overlay.origin": b"\x00\xfb",
        b"security.capability": CAPABILITY,
        b"system.posix_acl_access": ACL,
    }
    for name, value in wanted.items():
        os.setxattr(path, name, value)
    fd = os.open(path, os.O_RDONLY)
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        assert xattrs.read(fd) == xattrs.Attributes(wanted)
        assert xattrs.by_name(directory, b"file") == xattrs.Attributes(wanted)
    finally:
        os.close(fd)
        os.close(directory)


def test_what_is_not_opened_is_not_followed_either(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.touch()
    os.setxattr(target, "trusted.where", b"target")
    (tmp_path / "link").symlink_to("target")
    os.mkfifo(tmp_path / "fifo")
    os.mknod(tmp_path / "device", stat.S_IFCHR, os.makedev(0, 0))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(tmp_path / "socket"))
    odd = os.fsdecode(b"new\nline \xff" + b"n" * 200)
    (tmp_path / odd).symlink_to("nowhere")
    names = ["link", "fifo", "device", "socket", odd]
    for name in names:
        os.setxattr(tmp_path / name, "trusted.where", name.encode(errors="surrogateescape"), follow_symlinks=False)
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        for name in names:
            found = xattrs.by_name(directory, os.fsencode(name))
            assert found.values == {b"trusted.where": os.fsencode(name)}
            assert found.error is None
    finally:
        os.close(directory)


def test_no_attributes_are_no_error(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    proc = os.open("/proc", os.O_RDONLY)
    try:
        assert xattrs.read(directory) is xattrs.EMPTY
        assert xattrs.read(proc) is xattrs.EMPTY
    finally:
        os.close(directory)
        os.close(proc)


@pytest.mark.parametrize("number", [errno.E2BIG, errno.EACCES, errno.EIO])
def test_a_list_that_cannot_be_had_is_told(number: int) -> None:
    with mock.patch.object(os, "listxattr", side_effect=OSError(number, os.strerror(number))):
        found = xattrs.read(0)
    assert found.error is not None
    assert (found.error.errno, found.values) == (number, {})


def test_a_value_that_cannot_be_had_costs_no_other() -> None:
    def value(_fd: int, name: bytes, *, follow_symlinks: bool) -> bytes:
        if name == b"user.denied":
            raise PermissionError(errno.EACCES, "denied")
        if name == b"user.gone":
            raise OSError(errno.ENODATA, "gone")
        return b"x"

    with (
        mock.patch.object(os, "listxattr", return_value=["user.a", "user.denied", "user.gone", "user.z"]),
        mock.patch.object(os, "getxattr", value),
    ):
        found = xattrs.read(0)
    assert found.values == {b"user.a": b"x", b"user.z": b"x"}
    assert isinstance(found.error, PermissionError)
    assert found.lost == 1


def test_their_sum_is_bounded() -> None:
    asked = []

    def value(_fd: int, name: bytes, *, follow_symlinks: bool) -> bytes:
        asked.append(name)
        return bytes(65536)

    with (
        mock.patch.object(os, "listxattr", return_value=[f"user.{number}" for number in range(5000)]),
        mock.patch.object(os, "getxattr", value),
    ):
        found = xattrs.read(0)
    assert sum(map(len, found.values.values())) <= xattrs.MAX_TOTAL
    assert len(asked) == len(found.values) + 1
    assert found.lost == 5000 - len(found.values)
    assert found.error is not None
    assert found.error.errno == errno.E2BIG


def test_proc_serves_only_if_it_is_ours(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert xattrs.proc_serves(fd)
        with mock.patch.object(os, "stat", return_value=os.stat("/")):
            assert not xattrs.proc_serves(fd)
        with mock.patch.object(os, "stat", side_effect=FileNotFoundError):
            assert not xattrs.proc_serves(fd)
    finally:
        os.close(fd)
