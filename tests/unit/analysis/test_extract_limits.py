"""What ends an extraction, what is left of it then, and how much memory and how many descriptors it takes."""

from __future__ import annotations

import errno
import io
import os
import resource
import stat as stat_module
import subprocess
import tarfile
import tracemalloc
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from acquirers.files import pax
from acquirers.syscalls import Stat
from agent.analysis.extract import Summary, extract
from agent.errors import DamagedError, StoreError, StoreFullError, UsageError

if TYPE_CHECKING:
    from agent.analysis.notes import Note

END = bytes(1024)
FILE, DIRECTORY = tarfile.REGTYPE, tarfile.DIRTYPE
STAT = Stat(
    mode=0o644, uid=os.geteuid(), gid=os.getegid(), size=0, nlink=1, ino=1, dev=1, rdev=0, atime_ns=10**18 + 1,
    mtime_ns=10**18 + 2, ctime_ns=3, btime_ns=None, blocks=0, attributes=0, mnt_id=None,
)  # fmt: skip
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts")


def member(name: bytes, typeflag: bytes = FILE, content: bytes = b"") -> bytes:
    head, _ = pax.encode(pax.Header(name, typeflag, STAT, size=len(content)))
    return head + content + pax.padding(len(content))


def unpack(output: Path, *parts: bytes) -> tuple[Summary, list[Note]]:
    notes: list[Note] = []
    return extract([b"".join(parts)], output, on_note=notes.append), notes


def files_below(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_a_file_that_breaks_off_does_not_stay(tmp_path: Path, keep: float) -> None:
    broken = member(b"d/broken", content=os.urandom(100_000))
    with pytest.raises(DamagedError, match="breaks off"):
        unpack(tmp_path / "output", member(b"whole", content=b"whole"), broken[: int(len(broken) * keep)])
    assert files_below(tmp_path / "output") == {"whole": b"whole"}


@pytest.mark.parametrize("tail", [b"", bytes(512), bytes(512) + b"x" * 512, b"x" * 1024])
def test_an_archive_without_its_end_is_damaged(tmp_path: Path, tail: bytes) -> None:
    with pytest.raises(DamagedError):
        unpack(tmp_path / "output", member(b"f", content=b"f"), tail)


def test_an_output_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    with pytest.raises(UsageError, match="not empty"):
        unpack(tmp_path, member(b"f"), END)
    for place in (tmp_path / "no" / "such", tmp_path / "mine"):
        with pytest.raises(UsageError, match="cannot unpack into"):
            unpack(place, END)
    assert files_below(tmp_path) == {"mine": b"mine"}


def test_a_new_output_is_private_and_a_descriptor_stays_open(tmp_path: Path) -> None:
    unpack(tmp_path / "output", member(b"f"), END)
    assert stat_module.S_IMODE((tmp_path / "output").stat().st_mode) == 0o700
    (tmp_path / "other").mkdir()
    fd = os.open(tmp_path / "other", os.O_RDONLY)
    extract(io.BytesIO(member(b"f") + END), fd, on_note=lambda _: None)
    assert os.listdir(fd) == ["f"]
    os.close(fd)


@needs_root
@pytest.mark.root
def test_a_full_output_ends_it_and_keeps_no_part(tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", output], check=True)
    try:
        with pytest.raises(StoreFullError, match="No space left"):
            unpack(output, member(b"d/small", content=b"small"), member(b"d/large", content=b"x" * 500_000), END)
        assert files_below(output) == {"d/small": b"small"}
    finally:
        subprocess.run(["umount", output], check=True)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, StoreFullError), (errno.EDQUOT, StoreFullError), (errno.EIO, StoreError)]
)
def test_what_is_not_of_one_member_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StoreError]
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(kind):
        unpack(tmp_path / "output", member(b"f", content=b"f"), END)
    assert files_below(tmp_path / "output") == {}


def test_a_file_beyond_what_may_be_written_is_told(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        large = member(b"large", content=bytes(2 << 20))
        summary, notes = unpack(tmp_path / "output", large, member(b"small", content=b"small"), END)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files_below(tmp_path / "output") == {"small": b"small"}
    assert [(note.kind.value, note.where) for note in notes] == [("failed", b"large")]
    assert summary.left_out == 1


def test_memory_and_descriptors_do_not_grow_with_members(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        def archive() -> Iterator[bytes]:
            for number in range(count):
                yield member(b"d%d/" % (number % 50), DIRECTORY)
                yield member(b"d%d/%d" % (number % 50, number), content=b"x" * 100)
            yield END

        tracemalloc.start()
        try:
            extract(archive(), tmp_path / str(count), on_note=lambda _: None)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    open_before = len(os.listdir("/proc/self/fd"))
    assert peak(600) < peak(60) + 30_000
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_a_large_file_streams(tmp_path: Path) -> None:
    zeros = bytes(1 << 20)
    head, _ = pax.encode(pax.Header(b"f", FILE, STAT, size=64 << 20))
    tracemalloc.start()
    try:
        summary = extract(chain([head], repeat(zeros, 64), [END]), tmp_path / "output", on_note=lambda _: None)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert summary.content == (tmp_path / "output" / "f").stat().st_size == 64 << 20
