"""`memory.swap`: what /proc/swaps names, taken byte by byte, and nothing else."""

from __future__ import annotations

import errno
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquirers.base import AcquirerError, Gap, Reason, Scope, State
from acquirers.host import Host, Mode
from acquirers.memory.swap import Swap, parse_swaps

HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


class Told:
    def __init__(self) -> None:
        self.gaps: list[Gap] = []

    def member(self, member: object) -> None: ...
    def flag(self, flag: object) -> None: ...
    def gap(self, gap: Gap) -> None:
        self.gaps.append(gap)


def machine(root: Path, swaps: str) -> Host:
    (root / "proc").mkdir(exist_ok=True)
    (root / "etc").mkdir(exist_ok=True)
    (root / "proc/swaps").write_text(HEAD + swaps)
    return Host(Mode.HOST, os.fsencode(root), os.fsencode(root / "proc"))


def test_lines_are_read_as_the_kernel_writes_them() -> None:
    data = HEAD + (
        "/dev/zram0                              partition\t4194300\t\t1024\t\t100\n"
        "/swap\\040file\\040(deleted)             file\t\t1048572\t\t0\t\t-2\n"
        "/swap\\011\\012x                         file\t\t4\t\t0\t\t-3\n"
    )
    found = parse_swaps(data.encode())
    assert [(one.path, one.kind, one.size, one.used, one.priority) for one in found] == [
        (b"/dev/zram0", "partition", 4194300 << 10, 1 << 20, 100),
        (b"/swap file", "file", 1048572 << 10, 0, -2),
        (b"/swap\t\nx", "file", 4096, 0, -3),
    ]


@given(st.binary(max_size=2000))
def test_whatever_it_says_it_is_parsed(data: bytes) -> None:
    for area in parse_swaps(HEAD.encode() + data):
        assert area.kind.isascii()


@pytest.mark.root
def test_a_file_is_taken_whole(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    content = os.urandom(3 * (1 << 20) + 4096)
    (tmp_path / "swap file").write_bytes(content)
    host = machine(tmp_path, f"/swap\\040file file {len(content) >> 10} 0 -2\n")
    found = Swap().probe(host, Scope())
    assert (found.state, found.estimate) == (State.AVAILABLE, len(content))
    (item,) = Swap().items(host, Scope())
    assert item.path == "memory/swap/1-swap_file.raw"
    assert item.about["path"] == b"/swap file"
    told = Told()
    assert b"".join(bytes(chunk) for chunk in item.read(told)) == content
    assert told.gaps == []


def failing(monkeypatch: pytest.MonkeyPatch, pages: set[int]) -> None:
    """A disk with bad pages."""
    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if pages.intersection(range(offset // 4096, -(-(offset + len(buffers[0])) // 4096))):
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)


@pytest.mark.root
@pytest.mark.parametrize("bad", [{0}, {255, 256}, {3, 700, 767}, {768}])
def test_a_bad_page_costs_itself_alone(bad: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    content = bytearray(os.urandom(3 * (1 << 20) + 4096))
    (tmp_path / "swap").write_bytes(content)
    host = machine(tmp_path, f"/swap file {len(content) >> 10} 0 -2\n")
    (item,) = Swap().items(host, Scope())
    failing(monkeypatch, bad)
    told = Told()
    found = b"".join(bytes(chunk) for chunk in item.read(told))
    for page in bad:
        content[page * 4096 : (page + 1) * 4096] = bytes(4096)
    assert found == content
    (gap,) = told.gaps
    assert (gap.reason, gap.missing, gap.where) == (Reason.IO_ERROR, 4096 * len(bad), b"/swap")
    assert f"at byte {min(bad) * 4096}" in gap.detail


@pytest.mark.root
def test_a_disk_that_gives_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    (tmp_path / "swap").write_bytes(bytes(3 << 20))
    host = machine(tmp_path, "/swap file 3072 0 -2\n")
    (item,) = Swap().items(host, Scope())
    failing(monkeypatch, set(range(768)))
    told = Told()
    with pytest.raises(AcquirerError, match="after 256 pages: Input/output error"):
        list(item.read(told))
    assert [gap.missing for gap in told.gaps] == [256 * 4096]


@pytest.mark.root
def test_an_area_that_shrank_is_short(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    (tmp_path / "swap").write_bytes(bytes(3 << 20))
    host = machine(tmp_path, "/swap file 3072 0 -2\n")
    (item,) = Swap().items(host, Scope())
    told = Told()
    size = 0
    for chunk in item.read(told):
        os.truncate(tmp_path / "swap", 2 << 20)
        size += len(chunk)
    assert size == 2 << 20
    assert [(gap.reason, gap.missing) for gap in told.gaps] == [(Reason.SHORT, 1 << 20)]


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[tuple[str, bytes]]:
    """A block device with known content."""
    content = secrets.token_bytes(1 << 20) * 2 + secrets.token_bytes(8192)
    image = tmp_path / "image"
    image.write_bytes(content)
    done = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs a loop device: {done.stderr}")
    device = done.stdout.strip()
    try:
        yield device, content
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.mark.root
def test_a_device_is_taken_whole(tmp_path: Path, loop: tuple[str, bytes]) -> None:
    device, content = loop
    root = tmp_path / "root"
    (root / "dev").mkdir(parents=True)
    found = os.stat(device)
    os.mknod(root / "dev/swap", found.st_mode, found.st_rdev)
    host = machine(root, "/dev/swap partition 2056 0 -2\n")
    (item,) = Swap().items(host, Scope())
    assert b"".join(bytes(chunk) for chunk in item.read(Told())) == content


@pytest.mark.root
@pytest.mark.parametrize("kind", ["fifo", "directory", "character device", "link out"])
def test_what_is_no_swap_area_is_not_read(tmp_path: Path, kind: str) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    root = tmp_path / "root"
    root.mkdir()
    if kind == "fifo":
        os.mkfifo(root / "swap")
    elif kind == "directory":
        (root / "swap").mkdir()
    elif kind == "character device":
        os.mknod(root / "swap", 0o020600, os.makedev(1, 5))
    else:
        (tmp_path / "outside").write_text("no")
        (root / "swap").symlink_to("../outside")
    host = machine(root, "/swap file 4 0 -2\n")
    (item,) = Swap().items(host, Scope())
    with pytest.raises(AcquirerError, match="cannot be opened"):
        list(item.read(Told()))


def test_without_swap_there_is_nothing_to_take(tmp_path: Path) -> None:
    assert Swap().probe(machine(tmp_path, ""), Scope()).state is State.ABSENT
