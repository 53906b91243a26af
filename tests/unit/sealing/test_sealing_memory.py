"""Memory does not grow with what is sealed or opened.

Measured in a process of its own, as the high-water mark of its own address space (`VmHWM`): the `ru_maxrss` of a child
begins with what its parent had, and would hide growth.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.sealing.pipeline import BLOCK_MEMORY, COMPRESSOR_MEMORY, OBJECT_MEMORY

PROLOGUE = """
import random, sys
from agent.sealing import Sealer, Unsealed, generate

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

MIB = 1 << 20
identity = generate()
"""

SEAL = """
from agent.sealing.pipeline import Pipeline

kind, workers, mebibytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
block = bytearray(random.randbytes(MIB)) if kind == "random" else bytearray(MIB)
pipeline = Pipeline(workers) if workers else None
size = 0

def sink(piece):
    global size
    size += len(piece)

def seal(mebibytes):
    sealer = Sealer([identity.recipient], sink, pipeline=pipeline)
    for number in range(mebibytes):
        block[:8] = number.to_bytes(8, "big")
        for start in range(0, MIB, MIB // 4):
            sealer.write(memoryview(block)[start : start + MIB // 4])
    assert sealer.finish().plaintext_size == mebibytes * MIB

before = peak()
seal(8)
warm = peak()
seal(mebibytes)
print(warm - before, peak() - warm, size // MIB)
"""

OPEN = """
class FileSource:
    def __init__(self, file):
        self.file = file
        self.size = file.seek(0, 2)

    def read_at(self, offset, length):
        self.file.seek(offset)
        return self.file.read(length)

with open(sys.argv[1], "w+b") as file:
    sealer = Sealer([identity.recipient], file.write)
    block = bytearray(random.randbytes(MIB))
    for number in range(100):
        block[:8] = number.to_bytes(8, "big")
        sealer.write(block)
    for _ in range(200):
        sealer.write(bytes(MIB))
    sealer.finish()
    file.flush()

    unsealed = Unsealed(FileSource(file), [identity])
    before = peak()
    assert sum(len(piece) for piece in unsealed.stream()) == 300 * MIB
    assert sum(len(piece) for piece in unsealed.range(0, 300 * MIB)) == 300 * MIB
    print(peak() - before, file.seek(0, 2) // MIB)
"""


def run(program: str, *arguments: str) -> list[int]:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + program, *arguments], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@pytest.mark.parametrize("kind", ["random", "zeros"])
def test_sealing_300_mebibytes_takes_no_more_memory_than_8(kind: str) -> None:
    first, growth, size = run(SEAL, kind, "0", "300")
    assert first < 16 << 10  # KiB: a sealer, its buffers, and the libraries it loads on first use
    assert growth < 2 << 10
    assert (size > 300) is (kind == "random")


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("kind", ["random", "zeros"])
def test_threads_take_what_the_pipeline_says_and_no_more_for_300_mebibytes(kind: str, workers: int) -> None:
    first, growth, _ = run(SEAL, kind, str(workers), "300")
    check_threads(first, growth, workers)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "zeros"])
def test_threads_take_no_more_for_20_gibibytes(kind: str) -> None:
    first, growth, _ = run(SEAL, kind, "2", "20480")
    check_threads(first, growth, 2)


def check_threads(first: int, growth: int, workers: int) -> None:
    """The formula of the pipeline, for one open object, and 10 MiB for the libraries that are loaded on first use."""
    blocks = 2 * workers + 2
    most = blocks * BLOCK_MEMORY + OBJECT_MEMORY + (workers + 1) * COMPRESSOR_MEMORY
    assert first << 10 < most + (10 << 20)
    # Whether all blocks are ever in use at once depends on the moment.
    assert (first + growth) << 10 < most + (10 << 20)


def test_opening_300_mebibytes_takes_a_few(tmp_path: Path) -> None:
    growth, size = run(OPEN, str(tmp_path / "object.zst.age"))
    assert growth < 16 << 10
    assert size >= 100
