"""Filesystems that do not answer, or not with what was asked for: FUSE mounts whose daemon is told to fail."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from acquirers.base import AcquirerError, Kind, Reason
from acquirers.files.walk import walk
from acquirers.mounts import below, parse_mountinfo
from tests.rigs import fuse
from tests.rigs.fuse import Node
from tests.rigs.trees import Recorder, at, in_private_mounts, opened, take

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

PAGE = 4096


@pytest.fixture
def report() -> Recorder:
    return Recorder()


@pytest.fixture
def top(tmp_path: Path) -> Path:
    directory = tmp_path / "top"
    directory.mkdir()
    return directory


def needs_fuse() -> None:
    if not os.path.exists("/dev/fuse"):
        pytest.skip("needs root: there is no /dev/fuse")


@in_private_mounts
def test_a_file_whose_read_never_returns_costs_that_file(top: Path, report: Recorder) -> None:
    needs_fuse()
    nodes = {
        "before": Node(100),
        "stuck": Node(5000, hangs=["read"]),
        "after": Node(3000),
        "hollow": Node(directory=True),
    }
    with fuse.mounted(top, nodes):
        started = time.monotonic()
        with opened(top) as tree:
            found = take(walk(tree, report, deadline=0.5))
        assert time.monotonic() - started < 5
        assert found[at(top, "before")].data == fuse.content(100)
        assert found[at(top, "after")].data == fuse.content(3000)
        assert found[at(top, "stuck")].data == bytes(5000)
        assert (found[at(top, "stuck")].true_size, found[at(top, "stuck")].sha256) == (0, None)
        assert at(top, "hollow") in found
        assert [(gap.reason, gap.where, gap.missing) for gap in report.gaps] == [(Reason.STUCK, at(top, "stuck"), 5000)]


@pytest.mark.parametrize("call", ["lookup", "open", "opendir", "readdir"])
@in_private_mounts
def test_whatever_is_stuck_the_rest_is_served(top: Path, report: Recorder, call: str) -> None:
    needs_fuse()
    directory = call in {"opendir", "readdir"}
    nodes = {"before": Node(100), "stuck": Node(5000, directory=directory, hangs=[call]), "after": Node(3000)}
    with fuse.mounted(top, nodes):
        with opened(top) as tree:
            found = take(walk(tree, report, deadline=0.5))
        assert {found[at(top, name)].data for name in ("before", "after")} == {fuse.content(100), fuse.content(3000)}
        assert report.noticed == [("stuck", at(top, "stuck"))]


@in_private_mounts
def test_a_filesystem_that_is_gone_is_one_gap(top: Path, report: Recorder) -> None:
    needs_fuse()
    with fuse.mounted(top, {f"file{number}": Node(10, hangs=["read"]) for number in range(50)}):
        started = time.monotonic()
        with opened(top) as tree:
            found = take(walk(tree, report, deadline=0.3))
        assert time.monotonic() - started < 5
        assert len(found) == 4
        assert [gap.reason for gap in report.gaps] == [Reason.STUCK] * 4
        assert report.gaps[-1].where == at(top)
        assert "the rest" in report.gaps[-1].detail


@in_private_mounts
def test_a_tree_whose_root_is_stuck_is_an_error(top: Path, report: Recorder) -> None:
    needs_fuse()
    with fuse.mounted(top, {"directory": Node(directory=True, hangs=["readdir"])}):
        with opened(top / "directory") as tree, pytest.raises(AcquirerError) as caught:
            next(walk(tree, report, deadline=0.3))
        assert caught.value.reason is Reason.STUCK


@in_private_mounts
def test_closing_that_is_stuck_is_waited_for_by_nobody(top: Path, report: Recorder) -> None:
    needs_fuse()
    with fuse.mounted(top, {"file": Node(100, hangs=["flush"])}):
        started = time.monotonic()
        with opened(top) as tree:
            found = take(walk(tree, report, deadline=0.5))
        assert time.monotonic() - started < 5
        assert found[at(top, "file")].data == fuse.content(100)


@in_private_mounts
def test_below_a_local_tree_a_filesystem_in_user_space_is_not_asked_at_all(top: Path, report: Recorder) -> None:
    needs_fuse()
    (top / "remote").mkdir()
    (top / "file").write_bytes(b"local")
    with fuse.mounted(top / "remote", {"file": Node(10, hangs=["lookup", "open"])}):
        mounts = below(parse_mountinfo(Path("/proc/thread-self/mountinfo").read_bytes()), at(top))
        with opened(top, recursive=True, mounts=mounts) as tree:
            found = take(walk(tree, report))
        assert set(found) == {at(top), at(top, "file")}
        (gap,) = report.gaps
        assert (gap.reason, gap.where) == (Reason.NOT_CROSSED, at(top, "remote"))
        assert "fuse" in gap.detail


@in_private_mounts
def test_pages_that_the_kernel_cannot_read(top: Path, report: Recorder) -> None:
    """The page cache asks for 128 KiB at a time and fails as a whole, then page by page."""
    needs_fuse()
    bad = [3, 4, 100]
    with fuse.mounted(top, {"file": Node(150 * PAGE + 10, bad=bad)}):
        with opened(top) as tree:
            (file,) = (file for file in take(walk(tree, report)).values() if file.kind is Kind.FILE)
        expected = bytearray(fuse.content(150 * PAGE + 10))
        for page in bad:
            expected[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
        assert file.data == bytes(expected)
        assert file.sha256 is None
        assert [(gap.reason, gap.missing) for gap in report.gaps] == [
            (Reason.IO_ERROR, 2 * PAGE),
            (Reason.IO_ERROR, PAGE),
        ]
