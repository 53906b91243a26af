"""The data that `sealing_pipeline` runs on: one file of exactly so many bytes, or a directory tree."""

from __future__ import annotations

import os
import random
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

MIB = 1 << 20
PAGE = 4096


class _EnoughError(Exception):
    pass


class _Limited:
    """A file that takes a number of bytes and then raises."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size
        self.tell = file.tell

    def write(self, data: bytes) -> int:
        self._file.write(data[: self._left])
        self._left -= min(len(data), self._left)
        if not self._left:
            raise _EnoughError
        return len(data)


def zeros(file: BinaryIO, size: int) -> None:
    file.writelines(bytes(MIB) for _ in range(size // MIB))


def random_bytes(file: BinaryIO, size: int) -> None:
    file.writelines(os.urandom(MIB) for _ in range(size // MIB))


def tar_of_usr(file: BinaryIO, size: int) -> None:
    limited = _Limited(file, size)
    try:
        while True:  # where /usr is smaller than that, again
            with tarfile.TarFile(mode="w", fileobj=limited) as archive:  # type: ignore[arg-type]
                archive.add("/usr")
    except _EnoughError:
        return


def memory(file: BinaryIO, size: int) -> None:
    """40 % zero pages, 25 % pages of programs, 35 % random ones, in shuffled runs of 1 to 64 pages."""
    generator = random.Random(1)  # noqa: S311 - the same data every time
    programs = _pages_of_programs()
    left = size // PAGE
    while left:
        run = min(left, generator.randint(1, 64))
        left -= run
        kind = generator.random()
        if kind < 0.4:
            file.write(bytes(run * PAGE))
        elif kind < 0.65:
            file.write(b"".join(next(programs) for _ in range(run)))
        else:
            file.write(os.urandom(run * PAGE))


def _pages_of_programs() -> Iterator[bytes]:
    while True:
        for path in sorted(Path("/usr/bin").iterdir()):
            if path.is_file():
                data = path.read_bytes()
                for start in range(0, len(data) - PAGE, PAGE):
                    yield data[start : start + PAGE]


STREAMS: dict[str, Callable[[BinaryIO, int], None]] = {
    "zeros": zeros,
    "random": random_bytes,
    "tar": tar_of_usr,
    "memory": memory,
}


def make_stream(kind: str, path: Path, size: int) -> None:
    with path.open("wb") as file:
        STREAMS[kind](file, size)


def make_tree(top: Path, size: int) -> int:
    """Copies files of /usr below `top` until there are `size` bytes. Returns how many files."""
    left, count = size, 0
    for directory, names, files in os.walk("/usr"):
        names.sort()
        below = top / os.path.relpath(directory, "/usr")
        for name in sorted(files):
            source = Path(directory, name)
            if source.is_symlink() or not source.is_file():
                continue
            below.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, below / name)
            left -= source.stat().st_size
            count += 1
            if left <= 0:
                return count
    return count
