"""What a run may cost: priorities of the process, and how its memory is shared out.

    resident = BASE                                        interpreter, libraries, acquirers, the account
             + blocks * 2 MiB + 3 * 4.1 MiB                the sealing pipeline (`agent.sealing.pipeline` has the
             + (workers + 1) * 1.4 MB                      exact terms), for three objects that are open at once
             + parts                                       into S3: parts that are filled or on their way

The ceiling is 128 MiB into a directory and 256 MiB into S3 unless `--max-memory` says another. A worker wants two
blocks, and two more let reader and store go on; where that does not leave `PARTS_LEAST` for the parts, there are fewer
blocks, and then fewer workers. What the pipeline does not want belongs to the parts. `BASE` was measured: 38 MiB with
every acquirer loaded, 78 MiB with boto3, its TLS and its certificates; the rest of it is what acquirers keep while they
read (the walker's open directories, decoded JSON of a runtime) and what the allocator holds back for each thread.
"""

from __future__ import annotations

import ctypes
import os
import platform
from typing import TYPE_CHECKING

import msgspec

from agent.errors import UsageError
from agent.sealing import Governor, Pipeline, default_workers
from agent.sealing.pipeline import BLOCK_MEMORY, COMPRESSOR_MEMORY, OBJECT_MEMORY, OPEN_OBJECTS

if TYPE_CHECKING:
    from agent.job import Limits

MIB = 1 << 20
DIRECTORY, S3 = "directory", "s3"
DEFAULT_MIB = {DIRECTORY: 128, S3: 256}
BASE = {DIRECTORY: 44 * MIB, S3: 100 * MIB}
PARTS_LEAST = {DIRECTORY: 0, S3: 32 * MIB}

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
"""Number of the system call ioprio_set (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h)."""
_WHO_PROCESS = 1
_CLASS_SHIFT = 13
_BEST_EFFORT, _IDLE = 2, 3
_IO = {"low": _BEST_EFFORT << _CLASS_SHIFT | 7, "idle": _IDLE << _CLASS_SHIFT}
IO_CLASSES = ("low", "idle", "normal")


class Budget(msgspec.Struct, frozen=True):
    """How many threads, and how many bytes for what."""

    workers: int
    blocks: int
    parts: int
    """Bytes for parts on their way, in S3; 0 for a directory."""
    ceiling: int
    """Bytes resident in all."""

    def pipeline(self, limits: Limits) -> Pipeline:
        """Starts the threads."""
        return Pipeline(self.workers, Governor(limits.max_cpu), blocks=self.blocks)


def make_budget(limits: Limits, kind: str, *, workers: int | None = None) -> Budget:
    """Shares out the memory of a run into a store of that kind. Raises `UsageError` where it is too little."""
    ceiling = (limits.max_memory_mib or DEFAULT_MIB[kind]) * MIB
    most = default_workers() if workers is None else workers
    if limits.max_cpu is not None:
        most = min(most, -(-limits.max_cpu // 100))
    left = ceiling - BASE[kind] - PARTS_LEAST[kind]
    for count in range(max(1, most), 0, -1):
        blocks = (left - _fixed(count)) // BLOCK_MEMORY
        if blocks >= count + 1:
            blocks = min(blocks, 2 * count + 2)
            parts = ceiling - BASE[kind] - _fixed(count) - blocks * BLOCK_MEMORY if kind == S3 else 0
            return Budget(count, blocks, parts, ceiling)
    raise UsageError(f"--max-memory {ceiling // MIB} is too little: {least_mib(kind)} MiB is the least here")


def least_mib(kind: str) -> int:
    """The smallest `--max-memory` that works."""
    return -(-(BASE[kind] + PARTS_LEAST[kind] + _fixed(1) + 2 * BLOCK_MEMORY) // MIB)


def _fixed(workers: int) -> int:
    return OPEN_OBJECTS * OBJECT_MEMORY + (workers + 1) * COMPRESSOR_MEMORY


def lower_priority(limits: Limits) -> list[str]:
    """Gives way to others, in CPU time and I/O. For this thread and those that it starts later: call it first.

    Says what could not be done; that ends nothing.
    """
    problems = []
    wanted = limits.nice - os.getpriority(os.PRIO_PROCESS, 0)
    if wanted > 0:
        try:
            os.nice(wanted)
        except OSError as error:
            problems.append(f"nice {limits.nice}: {error.strerror}")
    if limits.io in _IO:
        problem = _ioprio_set(_IO[limits.io])
        if problem:
            problems.append(f"I/O class {limits.io}: {problem}")
    return problems


def _ioprio_set(value: int) -> str:
    """ioprio_set(2) for the calling thread; threads that it starts inherit it. Gives why it failed, or ""."""
    number = _IOPRIO_SET.get(platform.machine())
    if number is None:
        return f"not known how on {platform.machine()}"
    library = ctypes.CDLL(None, use_errno=True)
    if library.syscall(ctypes.c_long(number), ctypes.c_int(_WHO_PROCESS), ctypes.c_int(0), ctypes.c_int(value)) == 0:
        return ""
    return os.strerror(ctypes.get_errno())
