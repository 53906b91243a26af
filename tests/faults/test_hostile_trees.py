"""Trees that somebody made to break a walk."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from acquirers.base import Kind
from acquirers.files import walk as walk_module
from acquirers.files.walk import walk
from tests.rigs.trees import NOBODY, Recorder, at, in_private_mounts, opened, run_python, sha256, taken
from tests.rigs.trees import mount as mount_here

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


# -- deep and wide ----------------------------------------------------------------------------------------------------

DEPTH = 3000
NAME = b"d" * 200

WALK_DEEP = """
import os, resource, sys
from acquirers.files.walk import walk
from tests.rigs.trees import Recorder, opened
resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))
report = Recorder()
longest = count = content = 0
with opened(sys.argv[1], in_place=sys.argv[2] == "True") as tree:
    for entry in walk(tree, report):
        count += 1
        longest = max(longest, len(entry.path))
        if entry.content:
            content += sum(len(chunk) for chunk in entry.content.chunks())
print(count, longest, content, report.noticed)
"""


def make_deep(top: Path) -> None:
    """3,000 directories inside each other, a file at the bottom, and on every hundredth level a directory beside."""
    fd = os.open(top, os.O_RDONLY)
    for level in range(DEPTH):
        if level % 100 == 0:
            os.mkdir(b"beside", dir_fd=fd)
            os.close(os.open(b"beside/file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.mkdir(NAME, dir_fd=fd)
        below_it = os.open(NAME, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below_it
    bottom = os.open(b"bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.write(bottom, b"found")
    os.close(bottom)
    os.close(fd)


@pytest.mark.parametrize("in_place", [False, True], ids=["clone", "in place"])
@in_private_mounts
def test_a_tree_deeper_than_paths_and_descriptors_reach(top: Path, *, in_place: bool) -> None:
    mount_here("tmpfs", top, "tmpfs")  # goes with all that is in it: removing it by paths would not be easy
    make_deep(top)
    count, longest, content, noticed = run_python(WALK_DEEP, top, str(in_place)).split(maxsplit=3)
    assert int(count) == 1 + DEPTH + 1 + 2 * (DEPTH // 100)
    assert int(longest) == len(at(top)) + DEPTH * (len(NAME) + 1) + len(b"/bottom")
    assert int(content) == len(b"found")
    assert noticed.strip() == "[]"


WALK_WIDE = """
import os, resource, sys
from acquirers.files.walk import walk
from tests.rigs.trees import Recorder, opened
report = Recorder()
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with opened(sys.argv[1]) as tree:
    entries = walk(tree, report)
    for _ in range(2000):
        next(entries)
    before = peak()
    rest = sum(1 for _ in entries)
print(2000 + rest, peak() - before, report.noticed)
"""


@in_private_mounts
def test_a_wide_directory_takes_no_memory(top: Path) -> None:
    mount_here("tmpfs", top, "tmpfs")
    for number in range(100_000):
        os.mknod(top / f"file-{number}")
    for number in range(20_000):
        (top / f"directory-{number}").mkdir()
    count, grown, noticed = run_python(WALK_WIDE, top).split(maxsplit=2)
    assert int(count) == 1 + 100_000 + 20_000
    assert int(grown) < 4096  # KiB
    assert noticed.strip() == "[]"


def test_many_directories_on_many_levels_wait_in_bounded_number(
    top: Path, report: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk_module, "MAX_WAITING", 100)
    path = top
    for _ in range(6):
        for number in range(60):
            (path / f"{number}").mkdir()
        path /= "0"
    with opened(top) as tree:
        assert sum(1 for _ in walk(tree, report)) == 1 + 6 * 60
    assert report.noticed == []


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_sparse_file_of_ten_tebibytes(top: Path, report: Recorder) -> None:
    with (top / "huge").open("wb") as file:
        file.truncate(10 << 40)
        os.pwrite(file.fileno(), b"needle", 7 << 40)
    started = time.monotonic()
    with opened(top) as tree:
        for entry in walk(tree, report):
            if entry.content is not None:
                assert list(entry.content.extents) == [(7 << 40, PAGE)]
                assert b"needle" in b"".join(map(bytes, entry.content.chunks()))
                assert entry.content.sha256 is None
    assert time.monotonic() - started < 2
    assert report.noticed == [("digest-of-extents", at(top, "huge"))]


def test_a_file_that_grows_faster_than_it_is_read(top: Path, report: Recorder) -> None:
    (top / "log").write_bytes(b"line\n" * 500_000)
    stop = threading.Event()

    def grow() -> None:
        with (top / "log").open("ab", buffering=0) as file:
            while not stop.is_set() and file.tell() < 1 << 28:
                file.write(b"line\n" * 100_000)

    writer = threading.Thread(target=grow)
    with opened(top) as tree:
        for entry in walk(tree, report):
            if entry.content is not None:
                writer.start()
                size = sum(len(chunk) for chunk in entry.content.chunks())
                assert size == entry.stat.size == entry.content.true_size
                stop.set()
                writer.join()
                # It may have grown between the look and the last chunk, or only afterwards.
                assert entry.content.sha256 == sha256(b"line\n" * 500_000)
    assert report.gaps == []


def test_hard_links_by_the_thousand(top: Path, report: Recorder) -> None:
    (top / "0").write_bytes(b"x" * 1000)
    for number in range(1, 3000):
        os.link(top / "0", top / str(number))
    with opened(top) as tree:
        links = [entry for entry in walk(tree, report) if entry.kind is Kind.FILE]
    assert len(links) == 3000
    assert {(entry.stat.nlink, entry.stat.ino) for entry in links} == {(3000, (top / "0").stat().st_ino)}


def test_links_that_lead_out_or_round_are_only_read(top: Path, report: Recorder) -> None:
    texts = [b"/", b"..", b"../../../../etc/shadow", b"self", b"/proc/self/root", b"l" * 4095, b"\xff\n", b"."]
    for number, text in enumerate(texts):
        os.symlink(text, os.fsencode(top / str(number)))
    os.symlink(b"self", os.fsencode(top / "self"))
    found = taken(top, report)
    assert [found[at(top, str(number))].entry.target for number in range(len(texts))] == texts
    assert set(found) == {at(top), at(top, "self"), *(at(top, str(number)) for number in range(len(texts)))}
    assert report.noticed == []


def test_no_fifo_socket_or_device_is_opened(every_device: Path, report: Recorder) -> None:
    started = time.monotonic()
    found = taken(every_device, report, in_place=True)
    assert time.monotonic() - started < 2
    assert all(file.entry.content is None for file in found.values())
    assert report.noticed == []


@pytest.fixture
def every_device(top: Path) -> Path:
    """A FIFO that nobody writes, /dev/zero that never ends, a terminal, a watchdog that reboots, a disk."""
    os.mkfifo(top / "fifo")
    for name, kind, major, minor in (
        ("zero", stat.S_IFCHR, 1, 5),
        ("tty", stat.S_IFCHR, 5, 0),
        ("watchdog", stat.S_IFCHR, 10, 130),
        ("disk", stat.S_IFBLK, 7, 0),
        ("whiteout", stat.S_IFCHR, 0, 0),
    ):
        os.mknod(top / name, kind | 0o666, os.makedev(major, minor))
    return top


# -- as a user --------------------------------------------------------------------------------------------------------

WALK_AS_NOBODY = """
import json, sys
from acquirers.files.walk import walk
from tests.rigs.trees import Recorder, become_nobody, opened, take
become_nobody()
report = Recorder()
with opened(sys.argv[1]) as tree:
    found = take(walk(tree, report))
print(json.dumps({
    "clone": tree.clone,
    "why_not": tree.why_not,
    "entries": {
        path.decode(): [file.kind, file.data.decode() if file.data is not None else None, file.entry.stat.size,
                        file.entry.target.decode() if file.entry.target is not None else None]
        for path, file in found.items()
    },
    "noticed": [[kind, where.decode()] for kind, where in report.noticed],
}))
"""


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that another user can get to."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def test_a_user_takes_what_is_readable_and_names_the_rest(open_directory: Path) -> None:
    top = open_directory
    for name, mode, owner in (
        ("mine", 0o600, NOBODY),
        ("public", 0o644, 0),
        ("secret", 0o600, 0),
        ("closed/inside", 0o644, 0),
        ("names-only/inside", 0o644, 0),
    ):
        (top / name).parent.mkdir(exist_ok=True)
        (top / name).write_text(name)
        (top / name).chmod(mode)
        os.chown(top / name, owner, owner)
    (top / "link").symlink_to("secret")
    (top / "closed").chmod(0o700)
    (top / "names-only").chmod(0o744)
    for path in (top / "mine", top / "public", top / "secret", top):
        os.utime(path, ns=(1_000_000_000, 2_000_000_000))

    result: dict[str, Any] = json.loads(run_python(WALK_AS_NOBODY, top))

    assert result["clone"] is False
    assert "not permitted" in result["why_not"]
    assert result["entries"] == {
        str(top): ["directory", None, top.stat().st_size, None],
        str(top / "mine"): ["file", "mine", 4, None],
        str(top / "public"): ["file", "public", 6, None],
        str(top / "secret"): ["file", None, 6, None],
        str(top / "link"): ["symlink", None, 6, "secret"],
        str(top / "closed"): ["directory", None, (top / "closed").stat().st_size, None],
        str(top / "names-only"): ["directory", None, (top / "names-only").stat().st_size, None],
    }
    gaps = {where: kind for kind, where in result["noticed"] if kind != "atime-moved"}
    assert gaps == {
        str(top / "secret"): "denied",
        str(top / "closed"): "denied",
        str(top / "names-only/inside"): "denied",
    }
    # O_NOATIME is for owners: what moved the access time of others' files was told.
    assert (top / "mine").stat().st_atime_ns == 1_000_000_000
    moved = {where for kind, where in result["noticed"] if kind == "atime-moved"}
    assert {str(top), str(top / "public")} <= moved
    assert str(top / "mine") not in moved
