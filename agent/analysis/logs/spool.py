"""Rows sorted by time on disk: as many runs as it takes, merged a few at a time. Memory does not grow with the rows.

A log file is nearly sorted, so one file is one run nearly always: rows wait in a window, and only what is older than
what was written already begins a new one. Runs lie in a directory of their own below the output, and go with it.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple, Self

from agent.errors import StoreError, StoreFullError

DIRECTORY = ".unsorted"
WINDOW = 8 << 20
"""Bytes of rows that wait to be sorted."""
FAN_IN = 64
"""Runs that are merged at once."""

_HEAD = struct.Struct(">qIQBI")  # time, source, number in the source, mark, length
_ROW_COST = 200
_MIN, _MAX = -(1 << 63), (1 << 63) - 1


class Row(NamedTuple):
    """One line of a timeline, or what becomes of one."""

    time_ns: int
    source: int
    number: int
    mark: int
    data: bytes


class Spool:
    """A directory of runs. A context manager; all that was written is gone in the end."""

    def __init__(self, output: int) -> None:
        self._output = output
        self._fd = -1
        self._count = 0

    def __enter__(self) -> Self:
        with _telling():
            os.mkdir(DIRECTORY, 0o700, dir_fd=self._output)
            self._fd = os.open(
                DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._output
            )
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            for name in os.listdir(self._fd):
                os.unlink(name, dir_fd=self._fd)
            os.rmdir(DIRECTORY, dir_fd=self._output)
        os.close(self._fd)

    def create(self) -> tuple[str, BinaryIO]:
        self._count += 1
        name = f"{self._count}"
        with _telling():
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
        return name, os.fdopen(fd, "wb", buffering=1 << 18)

    def merge(self, runs: Sequence[str], order: Callable[[int], int]) -> Iterator[Row]:
        """All rows of the runs, by time; of the same time by the order of their sources, and by number in a source."""
        left = list(runs)

        def key(row: Row) -> tuple[int, int, int]:
            return row.time_ns, order(row.source), row.number

        while len(left) > FAN_IN:
            some, left = left[:FAN_IN], left[FAN_IN:]
            name, file = self.create()
            with _telling(), file:
                for row in heapq.merge(*map(self._read, some), key=key):
                    _write(file, row)
            left.append(name)
        yield from heapq.merge(*map(self._read, left), key=key)

    def _read(self, name: str) -> Iterator[Row]:
        """The rows of one run, which is gone when the last one was taken."""
        with _telling():
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
            with os.fdopen(fd, "rb", buffering=1 << 16) as file:
                while head := file.read(_HEAD.size):
                    time_ns, source, number, mark, length = _HEAD.unpack(head)
                    yield Row(time_ns, source, number, mark, file.read(length))
            os.unlink(name, dir_fd=self._fd)


class Writer:
    """The rows of one source, in any order."""

    def __init__(self, spool: Spool, source: int) -> None:
        self._spool = spool
        self._source = source
        self._rows: list[Row] = []
        self._size = 0
        self._number = 0
        self._written: tuple[int, int] | None = None
        self._file: BinaryIO | None = None
        self.runs: list[str] = []

    def add(self, time_ns: int, mark: int, data: bytes) -> None:
        time_ns = min(max(time_ns, _MIN), _MAX)
        self._rows.append(Row(time_ns, self._source, self._number, mark, data))
        self._number += 1
        self._size += len(data) + _ROW_COST
        if self._size >= WINDOW:
            self._flush(len(self._rows) // 2 or 1)

    def finish(self) -> None:
        self._flush(len(self._rows))
        if self._file is not None:
            with _telling():
                self._file.close()
            self._file = None

    def abandon(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _flush(self, count: int) -> None:
        self._rows.sort()
        rows, self._rows = self._rows[:count], self._rows[count:]
        self._size = sum(len(row.data) + _ROW_COST for row in self._rows)
        with _telling():
            for row in rows:
                at = row.time_ns, row.number
                if self._file is None or self._written is None or at < self._written:
                    self._begin()
                if self._file is not None:
                    _write(self._file, row)
                self._written = at

    def _begin(self) -> None:
        if self._file is not None:
            self._file.close()
        name, self._file = self._spool.create()
        self.runs.append(name)


def _write(file: BinaryIO, row: Row) -> None:
    file.write(_HEAD.pack(row.time_ns, row.source, row.number, row.mark, len(row.data)))
    file.write(row.data)


def in_batches(lines: Iterable[bytes], size: int = 1 << 18) -> Iterator[bytes]:
    """Lines as chunks that are worth writing."""
    batch: list[bytes] = []
    length = 0
    for line in lines:
        batch.append(line)
        length += len(line)
        if length >= size:
            yield b"".join(batch)
            batch, length = [], 0
    if batch:
        yield b"".join(batch)


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = StoreFullError if error.errno == 28 else StoreError
        raise kind(f"the output could not be written: {error.strerror or error}") from error
