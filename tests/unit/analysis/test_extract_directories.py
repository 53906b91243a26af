"""Directories get the mode and times that they have in the archive, in whatever order it comes, and at any depth."""

from __future__ import annotations

import os
import stat as stat_module
import struct
import subprocess
import sys
import tarfile
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from acquirers.files import pax
from acquirers.syscalls import Stat
from agent.analysis import restore, trail
from agent.analysis.extract import Summary, extract
from agent.analysis.notes import Note, NoteKind
from agent.analysis.trail import Trail
from agent.errors import StoreError

END = bytes(1024)
STAT = Stat(
    mode=0o644, uid=os.geteuid(), gid=os.getegid(), size=0, nlink=1, ino=1, dev=1, rdev=0, atime_ns=10**18 + 1,
    mtime_ns=10**18 + 2, ctime_ns=3, btime_ns=None, blocks=0, attributes=0, mnt_id=None,
)  # fmt: skip


def file(name: bytes, content: bytes = b"x") -> bytes:
    head, _ = pax.encode(pax.Header(name, tarfile.REGTYPE, STAT, size=len(content)))
    return head + content + pax.padding(len(content))


def directory(name: bytes, mode: int = 0o755, mtime_ns: int = 1, atime_ns: int = 2) -> bytes:
    status = replace(STAT, mode=mode, mtime_ns=mtime_ns, atime_ns=atime_ns)
    return pax.encode(pax.Header(name + b"/", tarfile.DIRTYPE, status))[0]


def hard_link(name: bytes, target: bytes) -> bytes:
    return pax.encode(pax.Header(name, tarfile.LNKTYPE, STAT, target))[0]


def unpack(output: Path | int, *members: bytes) -> tuple[Summary, list[Note]]:
    notes: list[Note] = []
    return extract([b"".join(members) + END], output, on_note=notes.append), notes


def as_nobody(work: Callable[[int], None]) -> None:
    """Runs `work` on a new directory, by descriptor, in a process that may not override permissions."""
    with tempfile.TemporaryDirectory() as path:
        if os.geteuid() == 0:
            os.chown(path, 65_534, 65_534)
        fd = os.open(path, os.O_RDONLY)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if os.geteuid() == 0:
                    os.setgroups([])
                    os.setresgid(65_534, 65_534, 65_534)
                    os.setresuid(65_534, 65_534, 65_534)
                work(fd)
                status = 0
            except BaseException:  # noqa: BLE001 - it must not return into the test run
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        os.close(fd)
        assert os.waitpid(child, 0)[1] == 0


def test_a_directory_without_permissions_can_be_filled() -> None:
    def work(fd: int) -> None:
        _, notes = unpack(
            fd,
            directory(b"a", 0o000, mtime_ns=10),
            directory(b"a/b", 0o500, mtime_ns=20),
            file(b"a/b/one"),
            file(b"c"),
            file(b"a/b/two"),  # into what was left already
            file(b"a/three"),
            hard_link(b"a/b/four", b"a/three"),
            hard_link(b"five", b"a/b/one"),
        )
        assert notes == [] or {note.kind for note in notes} == {NoteKind.OWNER}
        closed = os.stat("a", dir_fd=fd)
        assert (stat_module.S_IMODE(closed.st_mode), closed.st_mtime_ns) == (0o000, 10)
        os.chmod(f"/proc/self/fd/{fd}/a", 0o700)
        assert sorted(os.listdir(f"/proc/self/fd/{fd}/a/b")) == ["four", "one", "two"]
        inner = os.stat("a/b", dir_fd=fd)
        assert (stat_module.S_IMODE(inner.st_mode), inner.st_mtime_ns) == (0o500, 20)
        assert os.stat("five", dir_fd=fd).st_ino == os.stat("a/b/one", dir_fd=fd).st_ino

    as_nobody(work)


def test_what_only_root_may_is_told_to_others() -> None:
    def work(fd: int) -> None:
        foreign = replace(STAT, uid=1, gid=1, mode=0o4755)
        device, _ = pax.encode(pax.Header(b"null", tarfile.CHRTYPE, foreign, device=(1, 3)))
        head, _ = pax.encode(pax.Header(b"f", tarfile.REGTYPE, foreign, xattrs={b"trusted.a": b"1"}))
        summary = extract([device + head + END], fd, on_note=lambda _: None, faithful=True)
        assert summary.unrestored == {NoteKind.DEVICE: 1, NoteKind.OWNER: 1, NoteKind.XATTR: 1}
        assert stat_module.S_IMODE(os.stat("f", dir_fd=fd).st_mode) == 0o4755

    as_nobody(work)


def test_directories_that_no_member_describes_are_private(tmp_path: Path) -> None:
    unpack(tmp_path / "output", file(b"a/b/f"))
    assert stat_module.S_IMODE((tmp_path / "output" / "a" / "b").stat().st_mode) == 0o700


def test_the_last_description_of_a_directory_counts(tmp_path: Path) -> None:
    unpack(
        tmp_path / "output",
        file(b"a/f"),
        directory(b"a", 0o711, mtime_ns=5, atime_ns=6),
        file(b"b"),
        directory(b"a", 0o755, mtime_ns=7, atime_ns=8),
        file(b"a/g"),
    )
    status = (tmp_path / "output" / "a").stat()
    assert (stat_module.S_IMODE(status.st_mode), status.st_mtime_ns, status.st_atime_ns) == (0o755, 7, 8)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: access control lists are restored by root only")
def test_a_default_access_control_list_is_not_inherited_by_what_is_unpacked(tmp_path: Path) -> None:
    # linux/posix_acl_xattr.h: version 2, then tag, permissions and id of each entry, little-endian.
    entries = [
        (0x01, 7, 0xFFFFFFFF),
        (0x02, 7, 1234),
        (0x04, 5, 0xFFFFFFFF),
        (0x10, 7, 0xFFFFFFFF),
        (0x20, 0, 0xFFFFFFFF),
    ]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    name = "system.posix_acl_default"
    try:
        os.setxattr(tmp_path, name, acl)
        os.removexattr(tmp_path, name)
    except OSError:
        pytest.skip("the filesystem has no access control lists")
    status = replace(STAT, mode=0o755)
    head, _ = pax.encode(pax.Header(b"d/", tarfile.DIRTYPE, status, xattrs={name.encode(): acl}))
    output = tmp_path / "output"
    summary = extract([head + file(b"d/f") + directory(b"d/e") + END], output, on_note=lambda _: None, faithful=True)
    assert summary.whole
    assert os.getxattr(output / "d", name) == acl
    assert os.listxattr(output / "d" / "f") == os.listxattr(output / "d" / "e") == []


def test_attributes_that_wait_for_their_directory_are_bounded(tmp_path: Path) -> None:
    with mock.patch.object(restore, "MAX_PENDING", 100):
        members = []
        for depth in range(1, 5):
            xattrs = {b"system.something": b"x" * 40}
            name = b"d/" * depth
            members.append(pax.encode(pax.Header(name, tarfile.DIRTYPE, STAT, xattrs=xattrs))[0])
        summary, notes = unpack(tmp_path / "output", *members)
    assert summary.unrestored[NoteKind.XATTR] == 4  # not one of them is lost without a count
    assert NoteKind.XATTR in {note.kind for note in notes}


# Who is not root could not look below a directory without permissions afterwards.
MODES = [0o000, 0o500, 0o755] if os.geteuid() == 0 else [0o500, 0o555, 0o755]
NAMES = st.lists(st.sampled_from([b"a", b"b"]), min_size=1, max_size=6).map(b"/".join)
STEPS = st.lists(
    st.tuples(NAMES, st.sampled_from(["directory", "file", "link"]), st.sampled_from(MODES)),
    max_size=20,
)


@given(steps=STEPS, most=st.integers(1, 4))
def test_any_order_gives_every_directory_what_its_last_member_says(
    steps: list[tuple[bytes, str, int]], most: int
) -> None:
    members, expected = [file(b"source")], {}
    for number, (name, what, mode) in enumerate(steps):
        if what == "directory":
            members.append(directory(name, mode, mtime_ns=number + 10, atime_ns=number + 1000))
            expected[name] = (mode, number + 10, number + 1000)
        elif what == "file":
            members.append(file(b"%s/f%d" % (name, number)))
        else:
            members.append(hard_link(b"%s/l%d" % (name, number), b"source"))
    with tempfile.TemporaryDirectory() as path, mock.patch.object(trail, "MAX_OPEN", most):
        output = Path(path) / "output"
        summary, _ = unpack(output, *members)
        assert summary.left_out == 0
        for name, found in expected.items():
            status = os.lstat(os.fsencode(output) + b"/" + name)
            assert (stat_module.S_IMODE(status.st_mode), status.st_mtime_ns, status.st_atime_ns) == found


@pytest.mark.parametrize("depth", [100, 3000])
def test_paths_longer_than_the_system_takes(depth: int) -> None:
    name = b"/".join([b"directory"] * depth)
    with tempfile.TemporaryDirectory() as path:
        output = Path(path) / "output"
        open_before = len(os.listdir("/proc/self/fd"))
        summary, _ = unpack(
            output,
            *(directory(b"directory" + b"/directory" * level, mtime_ns=level + 1) for level in range(0, depth, 50)),
            file(name + b"/file", b"deep"),
            hard_link(name + b"/link", name + b"/file"),
            hard_link(b"shallow", name + b"/link"),
            file(b"after"),
        )
        assert summary.left_out == 0
        assert len(os.listdir("/proc/self/fd")) == open_before
        fd = os.open(output, os.O_RDONLY)
        for level in range(depth):
            below = os.open("directory", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
            if level % 50 == 0:
                assert os.fstat(fd).st_mtime_ns == level + 1
        assert sorted(os.listdir(fd)) == ["file", "link"]
        os.close(fd)
        assert (output / "shallow").read_bytes() == b"deep"
        subprocess.run(["rm", "-rf", output], check=True)  # `shutil.rmtree` does not go that deep


def test_a_directory_that_somebody_moves_ends_it(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    fd = os.open(tmp_path, os.O_RDONLY)
    with mock.patch.object(trail, "MAX_OPEN", 1):
        way = Trail(fd)
        way.enter([b"a", b"b", b"c"])
        (tmp_path / "a" / "b" / "c").rename(tmp_path / "elsewhere" / "c")
        with pytest.raises(StoreError, match="moved"):
            way.enter([b"a", b"b"])
        way.abandon()
    os.close(fd)


def test_what_is_not_to_be_made_is_not_made(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    way = Trail(fd)
    with pytest.raises(FileNotFoundError):
        way.enter([b"a", b"b"], make=False)
    way.enter([b"c"])
    assert way.path == b"c"
    way.close()
    assert way.path == b""
    assert os.listdir(tmp_path) == ["c"]
    os.close(fd)
