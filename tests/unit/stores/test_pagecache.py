"""What the directory store writes does not stay in memory: measured with mincore(2) on a real ext4."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from agent.errors import StoreError
from agent.stores import pagecache
from agent.stores.directory import DirectoryStore, DirectoryUpload
from agent.stores.pagecache import WINDOW
from tests.rigs.trees import in_private_mounts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RUN = "C-1/host/01890a5d-ac96-774b-bcce-b302099a8057"
MIB = 1 << 20


def resident(path: str) -> int:
    """Bytes of a file that are in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        address = libc.mmap(None, ctypes.c_size_t(size), mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(0))
        assert address != ctypes.c_void_p(-1).value
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages) == 0
        assert libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size)) == 0
    finally:
        os.close(fd)
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


def mount_ext4(top: Path) -> None:
    for program in ("mkfs.ext4", "mount"):
        if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            pytest.skip(f"needs {program}")
    image = top / "image"
    with image.open("wb") as file:
        file.truncate(200 * MIB)
    (top / "disk").mkdir()
    for command in (["mkfs.ext4", "-q", str(image)], ["mount", "-o", "loop", str(image), str(top / "disk")]):
        subprocess.run(command, check=True, capture_output=True, timeout=60)


@in_private_mounts
def test_what_is_written_does_not_stay_in_memory(tmp_path: Path) -> None:
    mount_ext4(tmp_path)
    store = DirectoryStore(str(tmp_path / "disk/ev"), RUN)
    upload = store.begin("memory/physical.lime.zst.age")
    data = os.urandom(MIB + 123)
    most = 0
    for _ in range(100):
        upload.write(data)
        most = max(most, resident(f"/proc/self/fd/{upload._fd}"))
    assert 0 < most <= 3 * WINDOW
    upload.commit()
    stored = tmp_path / "disk/ev" / RUN / "memory/physical.lime.zst.age"
    store.close()
    assert resident(str(stored)) == 0
    with stored.open("rb") as file:
        assert all(file.read(len(data)) == data for _ in range(100))
        assert file.read(1) == b""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Where each window that is synchronised begins, and how."""
    made: list[tuple[int, int]] = []

    def call(fd: int, start: int, count: int, flags: int) -> int:
        assert count == WINDOW
        made.append((start, flags))
        return 0

    monkeypatch.setattr(pagecache, "_sync_file_range", lambda: call)
    return made


def upload_of(tmp_path: Path) -> DirectoryUpload:
    return DirectoryStore(str(tmp_path / "ev"), RUN).begin("a")


def test_each_window_is_begun_once_and_waited_for_once(tmp_path: Path, calls: list[tuple[int, int]]) -> None:
    upload = upload_of(tmp_path)
    for size in (1, WINDOW - 2, 1, 3 * WINDOW, 5):
        upload.write(bytes(size))
    upload.commit()
    assert [start for start, flags in calls if flags == 2] == [0, WINDOW, 2 * WINDOW, 3 * WINDOW]
    assert [start for start, flags in calls if flags == 7] == [0, WINDOW, 2 * WINDOW]
    assert (tmp_path / "ev" / RUN / "a").stat().st_size == 4 * WINDOW + 5


def failing(number: int) -> Callable[[int, int, int, int], int]:
    def call(fd: int, start: int, count: int, flags: int) -> int:
        ctypes.set_errno(number)
        return -1

    return call


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_an_error_of_writing_back_is_an_error_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The kernel tells it once: whoever passes over it here finds `fsync` content."""
    monkeypatch.setattr(pagecache, "_sync_file_range", lambda: failing(number))
    upload = upload_of(tmp_path)
    with pytest.raises(StoreError):
        upload.write(bytes(2 * WINDOW))
    upload.abort()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.EPERM, None])
def test_where_it_cannot_be_done_it_is_stored_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    monkeypatch.setattr(pagecache, "_sync_file_range", lambda: None if number is None else failing(number))
    upload = upload_of(tmp_path)
    upload.write(b"x" * (3 * WINDOW))
    upload.commit()
    assert (tmp_path / "ev" / RUN / "a").read_bytes() == b"x" * (3 * WINDOW)
