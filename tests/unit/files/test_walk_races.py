from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from acquirers.base import FlagKind, Kind, Reason
from acquirers.files.tree import open_noatime
from acquirers.files.walk import walk
from tests.rigs.trees import Recorder, at, opened, take, taken

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
pytestmark = [pytest.mark.root, needs_root]

both_ways = pytest.mark.parametrize("in_place", [False, True], ids=["clone", "in place"])


# -- files that are swapped while we look -----------------------------------------------------------------------------


def to_fifo(path: Path) -> None:
    os.mkfifo(path)


def to_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def to_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(path))


def to_device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero


def to_directory(path: Path) -> None:
    path.mkdir()
    (path / "inside").touch()


def to_file(path: Path) -> None:
    path.write_bytes(b"another")


def swap(path: Path, make: Callable[[Path], None]) -> bool:
    path.rename(path.parent.parent / "away")  # so that its inode is not used again
    make(path)
    return True


@both_ways
@pytest.mark.parametrize("make", [to_fifo, to_link, to_socket, to_device, to_directory])
def test_a_file_that_becomes_something_else_is_a_gap(
    top: Path, report: Recorder, make: Callable[[Path], None], *, in_place: bool
) -> None:
    """Between the listing, which says that it is a file, and its opening."""
    (top / "victim").write_bytes(b"x")
    with opened(top, in_place=in_place) as tree:
        found = take(walk(tree, report, keep=lambda *_: swap(top / "victim", make)))
    assert set(found) == {at(top)}
    assert report.reasons(at(top, "victim")) == [Reason.VANISHED]


@pytest.mark.parametrize("make", [to_fifo, to_link, to_socket, to_device, to_directory])
def test_in_place_a_device_is_not_opened_in_the_last_moment(
    top: Path, report: Recorder, make: Callable[[Path], None]
) -> None:
    """Between the look before and the opening: what can still be done is to close it unread."""
    (top / "victim").write_bytes(b"x")
    real = open_noatime

    def late(name: bytes, flags: int, dir_fd: int) -> int:
        if name == b"victim":
            swap(top / "victim", make)
        return real(name, flags, dir_fd)

    before = len(os.listdir("/proc/self/fd"))
    with (
        mock.patch("acquirers.files.look.open_noatime", late),
        mock.patch.object(os, "preadv", side_effect=AssertionError),
    ):
        assert set(taken(top, report, in_place=True)) == {at(top)}
    assert report.reasons(at(top, "victim")) == [Reason.VANISHED]
    assert len(os.listdir("/proc/self/fd")) == before


@both_ways
def test_another_file_in_its_place_is_read_and_told(top: Path, report: Recorder, *, in_place: bool) -> None:
    (top / "victim").write_bytes(b"x")
    real = open_noatime

    def late(name: bytes, flags: int, dir_fd: int) -> int:
        if name == b"victim":
            swap(top / "victim", to_file)
        return real(name, flags, dir_fd)

    with mock.patch("acquirers.files.look.open_noatime", late):
        found = taken(top, report, in_place=in_place)
    assert found[at(top, "victim")].data == b"another"
    assert found[at(top, "victim")].entry.stat.ino == (top / "victim").stat().st_ino
    if in_place:  # a clone needs no look before, so all of it is of one file
        assert report.kinds(at(top, "victim")) == [FlagKind.CHANGED]


@both_ways
def test_another_directory_in_its_place_is_read_and_told(top: Path, report: Recorder, *, in_place: bool) -> None:
    (top / "victim").mkdir()
    real = open_noatime

    def late(name: bytes, flags: int, dir_fd: int) -> int:
        if name == b"victim":
            swap(top / "victim", to_directory)
        return real(name, flags, dir_fd)

    with mock.patch("acquirers.files.look.open_noatime", late):
        found = taken(top, report, in_place=in_place)
    assert at(top, "victim/inside") in found
    assert found[at(top, "victim")].entry.stat.ino == (top / "victim").stat().st_ino
    assert report.kinds(at(top, "victim")) == [FlagKind.CHANGED]
    assert report.gaps == []


@both_ways
@pytest.mark.parametrize("make", [to_fifo, to_link, to_socket, to_device, to_file])
def test_a_directory_that_has_become_something_else_is_taken_as_that(
    top: Path, report: Recorder, make: Callable[[Path], None], *, in_place: bool
) -> None:
    """Between the listing and the time that it is entered, which can be long."""
    (top / "victim").mkdir()
    (top / "victim" / "inside").touch()
    swapped: list[bytes] = []

    def once(path: bytes, _: Kind) -> bool:
        if path == b"victim" and not swapped:
            swapped.append(path)
            swap(top / "victim", make)
        return True

    found = taken(top, report, in_place=in_place, keep=once)
    assert set(found) == {at(top), at(top, "victim")}
    assert found[at(top, "victim")].kind is Kind.of_mode((top / "victim").lstat().st_mode)
    assert report.gaps == []


@both_ways
def test_a_directory_that_becomes_a_link_as_it_is_opened_leads_nowhere(
    top: Path, report: Recorder, *, in_place: bool
) -> None:
    (top / "victim").mkdir()
    real = open_noatime

    def late(name: bytes, flags: int, dir_fd: int) -> int:
        if name == b"victim":
            swap(top / "victim", lambda path: path.symlink_to("/etc"))
        return real(name, flags, dir_fd)

    with mock.patch("acquirers.files.look.open_noatime", late):
        assert set(taken(top, report, in_place=in_place)) == {at(top)}
    assert report.reasons(at(top, "victim")) == [Reason.VANISHED]


@pytest.mark.parametrize(
    ("make", "noticed"),
    [
        (to_fifo, "vanished"),
        (lambda path: path.symlink_to("/another"), "changed"),
        (lambda _: None, "vanished"),
    ],
    ids=["fifo", "link", "gone"],
)
def test_a_link_that_is_swapped_before_it_is_read(
    top: Path, report: Recorder, make: Callable[[Path], None], noticed: str
) -> None:
    (top / "victim").symlink_to("/before")
    real = os.readlink

    def late(name: bytes, *, dir_fd: int) -> bytes:
        swap(top / "victim", make)
        return real(name, dir_fd=dir_fd)

    with mock.patch.object(os, "readlink", late):
        found = taken(top, report)
    assert [kind for kind, where in report.noticed if where == at(top, "victim")] == [noticed]
    assert found[at(top, "victim")].entry.target == (b"/another" if noticed == "changed" else None)


@both_ways
def test_files_that_go_while_we_walk(top: Path, report: Recorder, *, in_place: bool) -> None:
    (top / "file").touch()
    (top / "link").symlink_to("x")
    (top / "directory").mkdir()

    def remove(path: bytes, kind: Kind) -> bool:
        (top / "directory").rmdir() if kind is Kind.DIRECTORY else (top / os.fsdecode(path)).unlink()
        return True

    assert set(taken(top, report, in_place=in_place, keep=remove)) == {at(top)}
    assert {gap.reason for gap in report.gaps} == {Reason.VANISHED}
    assert {gap.where for gap in report.gaps} == {at(top, name) for name in ("file", "link", "directory")}
