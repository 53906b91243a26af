"""The true memory of a guest: what QEMU saves while not one instruction runs, page by page."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from tests.rigs.guest import Guest


PAGE = 4096
_LIME = struct.Struct("<IIQQ8x")
_MAGIC = 0x4C694D45
_PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class Truth:
    """System RAM in one file after the other: (first address, address after the last, its file)."""

    pieces: tuple[tuple[int, int, Path], ...]

    @property
    def size(self) -> int:
        return sum(end - start for start, end, _ in self.pieces)

    def to_lime(self, path: Path) -> None:
        """The same as a LiME image: what an acquisition without any fault would have given."""
        with path.open("wb") as image:
            for start, end, file in self.pieces:
                image.write(_LIME.pack(_MAGIC, 1, start, end - 1))
                with file.open("rb") as data:
                    while piece := data.read(1 << 24):
                        image.write(piece)


def system_ram(iomem: str) -> list[tuple[int, int]]:
    """System RAM at any depth as half-open spans, ascending. The rig's own reading of /proc/iomem."""
    spans = [
        (int(match[1], 16), int(match[2], 16) + 1)
        for match in re.finditer(r"^ *([0-9a-f]+)-([0-9a-f]+) : System RAM\b", iomem, re.MULTILINE)
    ]
    return sorted(spans)


def save(guest: Guest, directory: Path, ram: list[tuple[int, int]] | None = None) -> Truth:
    """What is in RAM now. The guest may be paused already; otherwise it is for as long as it takes."""
    if ram is None:
        ram = system_ram(guest.read("/proc/iomem").decode())
    directory.mkdir(parents=True)
    running = guest.qmp("query-status")["status"] == "running"
    with guest.paused() if running else contextlib.nullcontext():
        pieces = []
        for start, end in ram:
            path = directory / f"{start:x}"
            guest.pmemsave(start, end - start, path)
            pieces.append((start, end, path))
    return Truth(tuple(pieces))


def digest(page: bytes) -> bytes:
    return hashlib.blake2b(page, digest_size=8).digest()


def changed(before: Truth, after: Truth) -> Iterator[tuple[int, bytes]]:
    """Addresses of the pages that differ, and what they hold afterwards. The last of a range may be a part of one."""
    for (start, end, old), (_, _, new) in zip(before.pieces, after.pieces, strict=True):
        with old.open("rb") as left, new.open("rb") as right:
            for at in range(start, end, _PIECE):
                one, two = left.read(_PIECE), right.read(_PIECE)
                if one != two:
                    for page in range(0, len(one), PAGE):
                        if one[page : page + PAGE] != (then := two[page : page + PAGE]):
                            yield at + page, then


class Meanwhile:
    """Looks at a running guest again and again: which pages are, at any of these moments, not as they were before.

    What has the same bytes before and after an acquisition may have had others in between: a page table of the agent
    is all zeros when it is made and when it is given back. A context manager; `states` is whole once it has ended.
    """

    def __init__(self, guest: Guest, before: Truth, directory: Path, seconds: float = 2.0) -> None:
        self._guest, self._before, self._directory, self._seconds = guest, before, directory, seconds
        self.states: dict[int, set[bytes]] = {}
        """Address of a page -> digests of what it held at these moments, where that is not what it held before."""
        self.moments = 0
        self.error: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if self.error is not None and error is None:
            raise self.error

    def _look(self) -> None:
        ram = [(start, end) for start, end, _ in self._before.pieces]
        try:
            while not self._over.wait(self._seconds):
                now = save(self._guest, self._directory, ram)
                for at, page in changed(self._before, now):
                    self.states.setdefault(at, set()).add(digest(page))
                self.moments += 1
                shutil.rmtree(self._directory)
        except Exception as error:  # noqa: BLE001  # it is raised again by whoever waits for the thread
            self.error = error
