from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from acquirers import syscalls
from acquirers.base import Reason
from acquirers.files import descent
from acquirers.files import walk as walk_module
from acquirers.files.walk import walk
from tests.rigs.trees import OLD, OLDER, Recorder, at, opened, paths, taken

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
pytestmark = [pytest.mark.root, needs_root]

both_ways = pytest.mark.parametrize("in_place", [False, True], ids=["clone", "in place"])


# -- listings ---------------------------------------------------------------------------------------------------------


def make_random_tree(top: Path, seed: int) -> None:
    rng = random.Random(seed)
    directories = [top]
    for number in range(150):
        parent = rng.choice(directories[-20:] if rng.random() < 0.8 else directories)
        if rng.random() < 0.6:
            directories.append(parent / f"d{number}")
            directories[-1].mkdir()
        else:
            (parent / f"f{number}").write_bytes(b"x" * number)


@pytest.mark.parametrize(("batch", "waiting", "levels"), [(1, 1, 0), (2, 5, 1), (3, 10_000, 2), (4096, 7, 0)])
@pytest.mark.parametrize("seed", range(3))
def test_however_little_is_held_nothing_is_lost_or_twice(
    top: Path, report: Recorder, monkeypatch: pytest.MonkeyPatch, batch: int, waiting: int, levels: int, seed: int
) -> None:
    make_random_tree(top, seed)
    monkeypatch.setattr(walk_module, "BATCH", batch)
    monkeypatch.setattr(walk_module, "MAX_WAITING", waiting)
    monkeypatch.setattr(descent, "OPEN_LEVELS", levels)
    real = syscalls.getdents
    monkeypatch.setattr(syscalls, "getdents", lambda fd: real(fd, 128))  # a few names at a time
    before = len(os.listdir("/proc/self/fd"))
    most = 0
    seen = set()
    with opened(top) as tree:
        for entry in walk(tree, report):
            assert entry.path not in seen
            seen.add(entry.path)
            most = max(most, len(os.listdir("/proc/self/fd")))
    assert seen == paths(top)
    assert report.noticed == []
    # The tree, the root, the levels, the deepest one, and the file.
    assert most <= before + levels + 4


def test_a_directory_that_keeps_no_types(every_type: Path, report: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = taken(every_type, report)
    real = syscalls.getdents
    monkeypatch.setattr(syscalls, "getdents", lambda fd: [(name, 0, cookie) for name, _, cookie in real(fd)])
    found = taken(every_type, report)
    assert {path: file.entry.kind for path, file in found.items()} == {
        path: file.entry.kind for path, file in expected.items()
    }
    assert report.noticed == []


@pytest.mark.parametrize("name", [b"../../etc/passwd", b"/etc/passwd", b"a/b", b""])
def test_a_name_that_is_a_path_is_not_opened(
    top: Path, report: Recorder, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    (top / "file").touch()
    (top / "a").mkdir()
    (top / "a" / "b").touch()
    real = syscalls.getdents
    monkeypatch.setattr(
        syscalls, "getdents", lambda fd: [(name, kind, cookie) for _, _, cookie in real(fd) for kind in (4, 8, 10)]
    )
    assert set(taken(top, report)) == {at(top)}
    assert set(report.reasons(at(top))) == {Reason.MALFORMED}


def fail_listing(monkeypatch: pytest.MonkeyPatch, call: int, number: int) -> None:
    """Makes `getdents` fail at its n-th call."""
    real, calls = syscalls.getdents, iter(range(1, 1000))

    def fail(fd: int) -> list[tuple[bytes, int, int]]:
        if next(calls) == call:
            raise OSError(number, os.strerror(number))
        return real(fd, 64)

    monkeypatch.setattr(syscalls, "getdents", fail)


def test_a_listing_that_breaks_off_is_a_gap_and_what_was_read_counts(
    top: Path, report: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        (top / f"file{number}").touch()
    (top / "zdirectory").mkdir()
    fail_listing(monkeypatch, 5, errno.EIO)  # the first is the trial at the beginning
    found = taken(top, report)
    assert 1 < len(found) < 22
    assert report.noticed == [("io-error", at(top))]


def test_a_directory_that_cannot_be_listed_is_still_there(
    top: Path, report: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (top / "directory").mkdir()
    fail_listing(monkeypatch, 4, errno.EACCES)
    assert set(taken(top, report)) == {at(top), at(top, "directory")}
    assert report.noticed == [("denied", at(top, "directory"))]


def test_a_listing_without_end_has_one(top: Path, report: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk_module, "MAX_NAMES", 1000)
    monkeypatch.setattr(syscalls, "getdents", lambda _fd: [(b"again", 8, 1)] * 50)
    (top / "again").touch()
    with opened(top) as tree:
        assert sum(1 for _ in walk(tree, report)) < 1200
    assert report.noticed == [("limit", at(top))]


def test_names_that_come_while_a_directory_is_listed(top: Path, report: Recorder) -> None:
    (top / "directory").mkdir()
    for path in (top / "directory", top):
        os.utime(path, ns=(OLDER, OLD))
    with opened(top) as tree:
        for entry in walk(tree, report):
            if entry.path == at(top, "directory"):
                (top / "directory" / "new").touch()
    assert report.noticed == [("changed", at(top, "directory"))]


# -- depth ------------------------------------------------------------------------------------------------------------


def test_what_is_too_deep_is_named(top: Path, report: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    (top / "1/2/3/4").mkdir(parents=True)
    monkeypatch.setattr(walk_module, "MAX_DEPTH", 3)
    assert set(taken(top, report)) == {at(top), at(top, "1"), at(top, "1/2"), at(top, "1/2/3")}
    assert report.noticed == [("limit", at(top, "1/2/3"))]


def chain(top: Path) -> Path:
    """a/b/c/d, and beside each a directory with a file that may be read before or after it."""
    for path in ("", "a", "a/b", "a/b/c", "a/b/c/d"):
        for number in range(6):
            side = top / path / f"side{number}"
            side.mkdir(parents=True)
            (side / "file").touch()
    return top


@pytest.mark.parametrize("moved", ["a", "a/b", "a/b/c"])
def test_directories_that_are_moved_while_we_are_in_them(
    top: Path, report: Recorder, monkeypatch: pytest.MonkeyPatch, moved: str
) -> None:
    """The way back is lost for none: either `..` or the name still leads to the directory that we came from."""
    monkeypatch.setattr(descent, "OPEN_LEVELS", 0)
    chain(top)
    expected = paths(top)
    found = set()
    with opened(top) as tree:
        for entry in walk(tree, report):
            found.add(entry.path)
            if entry.path.endswith(b"/d") and (top / moved).exists():
                (top / moved).rename(top / "elsewhere")
    # What had not been entered below the moved directory is still below it, and is entered.
    assert found == expected
    assert report.gaps == []


def test_a_way_back_that_is_lost_is_a_gap(top: Path, report: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "OPEN_LEVELS", 0)
    for number in range(6):
        for name in (f"a/side{number}", f"other{number}"):
            (top / name).mkdir(parents=True)
            (top / name / "file").touch()
    found = set()
    with opened(top) as tree:
        for entry in walk(tree, report):
            found.add(entry.path)
            if entry.path.startswith(at(top, "a/side")) and entry.path.endswith(b"/file"):
                side = os.path.basename(os.path.dirname(entry.path))
                (top / "a" / os.fsdecode(side)).rename(top / "elsewhere")  # its `..` is another directory
                (top / "a").rename(top / "renamed")  # and its name is gone
    assert report.noticed == [("vanished", at(top, "a"))]
    assert "not read" in report.gaps[0].detail
    assert sum(path.startswith(at(top, "a") + b"/") for path in found) == 2
    assert {at(top, f"other{number}/file") for number in range(6)} <= found
