"""Which control group each page frame is charged to: `/proc/kpagecgroup`, as runs, joined to paths and container ids.

The file (fs/proc/page.c, since Linux 4.3, CONFIG_MEMCG) holds for every frame number one u64 in the machine's byte
order: the inode of the directory of its memory control group, 0 where it is charged to none. It ends behind the last
frame; only root may read it.

What the kernel does not tell:
* A group that was removed has no directory. Its pages are told under the nearest group above that is still there.
* Objects of the slab allocator are charged one by one: their pages belong to none.
* Kernels that look at the page and not at the folio (`page_cgroup_ino`, mm/memcontrol.c) tell 0 for all but the first
  page of a huge page. Where `/proc/kpageflags` calls such a page the tail of a compound page, it gets the owner of its
  head; the line `owners` counts them as `tails`.
* Groups come and go while this is read. An inode that no directory has, before and after, gets no path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from array import array
from collections import Counter
from itertools import chain, compress
from operator import ne
from typing import TYPE_CHECKING

from acquirers.base import Gap, Reason, reason_of
from acquirers.memory import cgroups, child
from acquirers.memory.block import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from acquirers.host import Host
    from acquirers.memory.ranges import Ranges

WORD = 8
CHUNK = 1 << 20
"""Bytes of one read."""
SLICE = 1 << 17
"""Frames that one child reads: 512 MiB of memory of 4 KiB pages."""
SECONDS = 10.0
"""For one child; it needs a tenth of a second."""
MAX_RUNS = 1 << 20
"""Lines; beyond it only the totals of each owner are told."""
MAX_OWNERS = 1 << 16
MAX_STUCK = 4

_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_BLOCK = 512 * WORD
_TAIL = 1 << 16  # KPF_COMPOUND_TAIL, include/uapi/linux/kernel-page-flags.h
_MAX_ASKED = 1 << 14
"""Pages in one slice that are asked for being a tail, as long as none is one."""

Run = tuple[int, int, int]
"""First frame number, pages, owner."""


def encode(words: bytes) -> Iterator[tuple[int, int]]:
    """(pages, owner) of the runs of equal words of `kpagecgroup`. Bytes behind the last whole word are left out.

    Most of a machine's memory lies in long runs, which are found by comparing 4 KiB with itself, one word further on.
    """
    size = len(words) // WORD * WORD
    pages, owner = 0, 0
    for at in range(0, size, _BLOCK):
        end = min(at + _BLOCK, size)
        if words[at : end - WORD] == words[at + WORD : end]:
            found = [((end - at) // WORD, int.from_bytes(words[at : at + WORD], sys.byteorder))]
        else:
            found = _encode_block(words[at:end])
        for count, value in found:
            if value == owner:
                pages += count
                continue
            if pages:
                yield pages, owner
            pages, owner = count, value
    if pages:
        yield pages, owner


def _encode_block(words: bytes) -> list[tuple[int, int]]:
    values = array("Q", words)
    starts = [0, *compress(range(1, len(values)), map(ne, values, values[1:]))]
    ends = [*starts[1:], len(values)]
    return [(end - start, values[start]) for start, end in zip(starts, ends, strict=True)]


def read_runs(proc: bytes, first: int, end: int) -> tuple[list[Run], int]:
    """The runs of the frames `first` to `end` (not included), ascending, and how many of their pages are tails.

    Stops where the file ends. Raises `OSError`.
    """
    runs: list[Run] = []
    fd = os.open(os.path.join(proc, b"kpagecgroup"), _OPEN)
    try:
        at = first
        while at < end:
            words = os.pread(fd, min(CHUNK, (end - at) * WORD), at * WORD)
            if len(words) < WORD:
                break
            for pages, owner in encode(words):
                if runs and runs[-1][2] == owner:
                    runs[-1] = (runs[-1][0], runs[-1][1] + pages, owner)
                else:
                    runs.append((at, pages, owner))
                at += pages
    finally:
        os.close(fd)
    try:
        flags = os.open(os.path.join(proc, b"kpageflags"), _OPEN)
    except OSError:
        return runs, 0
    try:
        return with_tails(runs, lambda frame, count: os.pread(flags, count * WORD, frame * WORD))
    finally:
        os.close(flags)


def with_tails(runs: list[Run], flags: Callable[[int, int], bytes]) -> tuple[list[Run], int]:
    """Gives the tails of huge pages to the owner of their head.

    `flags(frame, count)` gives the words of `kpageflags`, fewer at the end of the file. A head stands right before its
    tails, so only pages of no owner behind an owned one are looked at.
    """
    found: list[Run] = []
    tails, asked = 0, 0
    for first, pages, owner in runs:
        taken = 0
        before = found[-1] if found else None
        if owner == 0 and before is not None and before[2] and (tails or asked < _MAX_ASKED):
            asked += 1
            with contextlib.suppress(OSError):
                taken = _count_tails(first, pages, flags)
            tails += taken
        if before is not None and (taken or before[2] == owner):
            more = taken or pages
            found[-1] = (before[0], before[1] + more, before[2])
            first, pages = first + more, pages - more  # noqa: PLW2901 - what is left of it
        if pages:
            found.append((first, pages, owner))
    return found, tails


def _count_tails(first: int, pages: int, flags: Callable[[int, int], bytes]) -> int:
    """How many pages from `first` on are tails, at most `pages`."""
    count, step = 0, 1
    while count < pages:
        words = array("Q")
        raw = flags(first + count, min(step, pages - count))
        words.frombytes(raw[: len(raw) // WORD * WORD])
        for word in words:
            if not word & _TAIL:
                return count
            count += 1
        if not words:
            break
        step = 512
    return count


class Owners:
    """Reads the owners of all frames of `ram`, a slice at a time, each in a child of its own."""

    def __init__(self, host: Host, ram: Ranges, gap: Callable[[Gap], None] | None = None) -> None:
        self._host = host
        self._proc = host.proc or b""
        self._where = b"/proc/kpagecgroup"
        self._frames = [(start // PAGE, end // PAGE) for start, end in ram.rounded_out(PAGE)]
        self._all = sum(end - first for first, end in self._frames)
        self._gap = gap or (lambda _: None)
        self._stuck = 0
        self._trouble = (Reason.SHORT, "the file ends before the memory does")
        self.pages: Counter[int] = Counter()
        """By owner; what is beyond `MAX_OWNERS` owners is not in it."""
        self.runs = self.tails = self.unread = self.others = 0

    def lines(self) -> Iterator[dict[str, object]]:
        """`owner-run` and `owner` lines, at last one line `owners` with the totals."""
        problem = self._problem()
        if problem is not None:
            yield problem
            return
        known = cgroups.inodes(self._host)
        cut: int | None = None
        for frame, pages, owner in self._all_runs():
            self._count(owner, pages)
            if not owner:
                continue
            self.runs += 1
            if self.runs <= MAX_RUNS:
                yield {"type": "owner-run", "first": frame, "pages": pages, "cgroup": owner}
            elif cut is None:
                cut = frame
        if any(owner not in known for owner in self.pages if owner):
            known = {**cgroups.inodes(self._host), **known}
        for owner, pages in sorted(self.pages.items()):
            yield cgroups.describe(owner, known.get(owner), pages)
        if self.unread:
            reason, why = self._trouble
            detail = f"owners of {self.unread} of {self._all} pages: {why}"
            self._gap(Gap(reason, detail, self._where, self.unread * WORD))
        yield self._totals(cut)

    def _problem(self) -> dict[str, object] | None:
        """A line that says why there are none; a kernel that has no such file is no gap."""
        if not self._host.live:
            return {"type": "owners", "error": "nothing is running here"}
        try:
            os.close(os.open(os.path.join(self._proc, b"kpagecgroup"), _OPEN))
        except OSError as error:
            if error.errno != errno.ENOENT:
                self._gap(Gap(reason_of(error), f"owners of pages: {error.strerror}", self._where))
            return {"type": "owners", "error": errno.errorcode.get(error.errno or 0, "?")}
        return None

    def _all_runs(self) -> Iterator[Run]:
        """Those of all slices; a run that goes over the end of a slice is one."""
        last: Run | None = None
        for first, end in self._frames:
            for start in range(first, end, SLICE):
                for run in self._slice(start, min(start + SLICE, end)):
                    if last is not None and last[0] + last[1] == run[0] and last[2] == run[2]:
                        last = (last[0], last[1] + run[1], run[2])
                        continue
                    if last is not None:
                        yield last
                    last = run
        if last is not None:
            yield last

    def _slice(self, first: int, end: int) -> Iterator[Run]:
        if self._stuck >= MAX_STUCK:
            self.unread += end - first
            return

        def work() -> bytes:
            runs, tails = read_runs(self._proc, first, end)
            return array("Q", [tails, *chain.from_iterable(runs)]).tobytes()

        try:
            words = array("Q", child.call(work, SECONDS))
        except (child.StuckError, child.ChildError) as error:
            self.unread += end - first
            stuck = isinstance(error, child.StuckError)
            self._stuck += stuck
            self._trouble = (Reason.STUCK if stuck else Reason.IO_ERROR, str(error))
            return
        self.tails += words[0]
        self.unread += end - (words[-3] + words[-2] if len(words) > 1 else first)
        yield from zip(words[1::3], words[2::3], words[3::3], strict=True)

    def _count(self, owner: int, pages: int) -> None:
        if owner in self.pages or len(self.pages) < MAX_OWNERS:
            self.pages[owner] += pages
        else:
            self.others += pages

    def _totals(self, cut: int | None) -> dict[str, object]:
        line: dict[str, object] = {
            "type": "owners",
            "frames": self._all,
            "runs": self.runs,
            "tails": self.tails,
            "unread": self.unread,
        }
        if cut is not None:
            line |= {"runs_told": MAX_RUNS, "not_told_from": cut}
        if self.others:
            line["pages_of_other_owners"] = self.others
        return line


def lines(host: Host, ram: Ranges, gap: Callable[[Gap], None] | None = None) -> Iterator[dict[str, object]]:
    """What `pages.jsonl` says of owners. `gap` is told what was not read."""
    return Owners(host, ram, gap).lines()
