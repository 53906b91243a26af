"""Layers of a real fuse-overlayfs, compared with the union: a program of its own, as `overlay_cases`.

python -m tests.rigs.overlay_fuse DIRECTORY FIRST COUNT
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from acquirers.base import Kind
from acquirers.overlay import Dialect, DirectoryLayer, Union
from tests.rigs.overlay_cases import Case, kernel_view, own_namespace, union_view, unmount


def fuse_case(seed: int, base: Path, used: Counter[str]) -> list[str]:
    """Two or three layers that fuse-overlayfs wrote, and what it shows of them."""
    case = Case(seed, base)
    case.names = ("a", "b", "c", "d", "e")  # it takes `.wh.` names for its own marks, wherever they come from
    case.without = {"link", "exchange"}  # it takes one inode for another now and then
    case.count = min(case.count, 3)
    case.layers = case.layers[: case.count]
    for directory in (*case.layers, case.merged):
        directory.mkdir(parents=True)
    case.change(case.layers[-1], 25)
    for number in range(case.count - 2, -1, -1):
        work = base / f"w{number}"
        work.mkdir()
        lowers = ":".join(map(str, case.layers[number + 1 :]))
        options = f"lowerdir={lowers},upperdir={case.layers[number]},workdir={work}"
        with mounted(options, case.merged):
            for _ in range(25):
                with contextlib.suppress(OSError):  # EIO, as it is
                    case.change(case.merged, 1)
        # Anew: what it remembers is not what lies in the layers.
        with mounted(options, case.merged):
            truth = kernel_view(case.merged)
        used["mounts"] += 1
        if any(isinstance(value, str) for value in truth.values()):
            used["it failed itself"] += 1  # ENOMEM for the root, now and then: it is no judge of these layers
            return []
        found = merged_view(case.layers[number:], used)
        differences = [
            f"layer {number}: {path!r}: {truth.get(path)}, union {found.get(path)}"
            for path in sorted(truth.keys() | found.keys())
            if truth.get(path) != found.get(path)
        ]
        if differences:
            return differences
    used["paths"] += len(truth)
    return []


@contextlib.contextmanager
def mounted(options: str, target: Path) -> Iterator[None]:
    daemon = subprocess.Popen(
        ["fuse-overlayfs", "-f", "-o", options, target], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 20
        while not os.path.ismount(target) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert os.path.ismount(target)
        yield
    finally:
        with contextlib.suppress(OSError):
            unmount(target)
        daemon.kill()
        daemon.wait()


def merged_view(layers: list[Path], used: Counter[str]) -> dict[bytes, object]:
    with contextlib.ExitStack() as stack:
        opened = []
        for path in layers:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            opened.append(DirectoryLayer(fd, path.name))
            os.close(fd)
            stack.callback(opened[-1].close)
        union = Union(opened, dialect=Dialect(fuse=True))
        found = {}
        for entry in union.walk():
            used["deleted"] += entry.object is None
            if entry.object is not None:
                used["opaque"] += entry.object.marks.opaque and entry.object.kind is Kind.DIRECTORY
                found[entry.path] = union_view(union, entry)
        return found


def main(directory: Path, first: int, count: int) -> int:
    own_namespace(directory)
    used: Counter[str] = Counter()
    wrong = {}
    for seed in range(first, first + count):
        if differences := fuse_case(seed, directory / str(seed), used):
            wrong[seed] = differences[:5]
        shutil.rmtree(directory / str(seed))
    sys.stdout.write(json.dumps({"used": used, "wrong": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
