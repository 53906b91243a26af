"""What a walk costs per file, with a warm cache: `python -m benchmarks.files_walk [DIRECTORY]`.

Without a directory it makes 20,000 files of 1 KiB in memory. The calls below are those that a file is made of.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path

from acquirers import syscalls
from acquirers.files import xattrs
from acquirers.files.tree import open_tree
from acquirers.files.walk import walk
from tests.rigs.trees import Recorder

FILES = 20_000


def through(top: Path) -> None:
    count, report, data = 0, Recorder(), 0
    fd = os.open(top, os.O_PATH)
    with open_tree(fd, os.fsencode(top)) as tree:
        started = time.perf_counter()
        for entry in walk(tree, report):
            count += 1
            if entry.content is not None:
                data += sum(map(len, entry.content.chunks()))
        taken = time.perf_counter() - started
    os.close(fd)
    way = "clone" if tree.clone else "in place"
    print(
        f"{way}: {count} entries, {data >> 20} MiB, {taken:.2f} s, {taken / count * 1e6:.1f} us per entry, "
        f"{len(report.gaps)} gaps, {len(report.flags)} flags"
    )


def calls(top: Path) -> None:
    path = top / "call"
    path.write_bytes(bytes(1024))
    fd = os.open(path, os.O_RDONLY)
    directory = os.open(top, os.O_RDONLY)
    names = len(syscalls.getdents(directory))

    def list_names() -> None:
        os.lseek(directory, 0, os.SEEK_SET)
        syscalls.getdents(directory)

    for what, call, divisor in (
        ("statx", lambda: syscalls.statx(fd, b""), 1),
        ("fstat", lambda: os.fstat(fd), 1),
        ("no attributes", lambda: xattrs.read(fd), 1),
        ("open and close", lambda: os.close(os.open(b"call", os.O_RDONLY | os.O_NOATIME, dir_fd=directory)), 1),
        ("a name of a listing", list_names, max(names, 1)),
    ):
        print(f"{what}: {best(call) / divisor:.2f} us")


def best(call: Callable[[], object], number: int = 2000) -> float:
    return min(timeit.repeat(call, number=number, repeat=5)) / number * 1e6


def main() -> None:
    if len(sys.argv) > 1:
        through(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:  # memory: no disk is measured
        top = Path(name)
        calls(top)
        for number in range(FILES):
            path = top / f"{number // 500}" / f"{number}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(os.urandom(1024))
        for _ in range(3):
            through(top)


if __name__ == "__main__":
    main()
