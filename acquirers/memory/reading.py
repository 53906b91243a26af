"""One block, read as whole as it can be: page by page where it must be, through every source that there is.

Runs in a process of its own (`workers`), since any of these reads may hang.
"""

from __future__ import annotations

import errno
import hashlib
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from acquirers.memory.block import PAGE, Why
from acquirers.memory.pageflags import BUDDY, PGTABLE, Flags, PageFlags, page_class
from acquirers.memory.ranges import Ranges

if TYPE_CHECKING:
    import mmap

    from acquirers.memory.source import Reader, Source

STEP = 2 << 20
"""Bytes that are asked for at once: what one run of the BPF program gives. A tenth less CPU time than with a half."""
_ZERO = bytes(PAGE)

Wanted = Callable[[int, int], Iterable[int]]
"""(first frame, end) -> frames that are to be digested."""


def nothing_wanted(_first: int, _end: int) -> Iterable[int]:
    return ()


class Answer(msgspec.Struct):
    """How the reading of one block went."""

    holes: list[tuple[int, int, Why, str]] = []
    sources: dict[str, int] = {}
    began_ns: int = 0
    ended_ns: int = 0
    wall_ns: int = 0
    classes: dict[str, int] = {}
    changed: int = 0
    zeros: int = 0
    digests: list[tuple[int, str, bytes]] = []


class BlockReader:
    """Has every source open."""

    def __init__(
        self,
        sources: Sequence[Source],
        flags: bytes | None = None,
        *,
        wanted: Wanted = nothing_wanted,
        guards: Ranges | None = None,
        single: bool = False,
    ) -> None:
        """`flags` is the path of kpageflags; `guards` where KFENCE has its pages; `single` reads single pages only."""
        self._sources = list(sources)
        self._readers: dict[str, Reader | OSError] = {}
        self._wanted, self._guards = wanted, guards or Ranges()
        self._step = PAGE if single else STEP
        self._flags: PageFlags | None = None
        if flags is not None:
            try:
                self._flags = PageFlags(flags)
            except OSError:
                pass  # then nothing is known of the pages; who made this says so

    def read(self, start: int, end: int, buffer: mmap.mmap) -> Answer:
        """Fills the buffer from its beginning with what lies at `start` to `end`."""
        answer = Answer(began_ns=time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW), wall_ns=time.time_ns())
        first, last = start // PAGE, -(-end // PAGE)
        before = self._look(first, last)
        holes: list[tuple[int, int, Why, str]] = []
        for frame, count, why in before.bad() if before is not None else ():
            holes.append((max(start, frame * PAGE), min(end, (frame + count) * PAGE), why, ""))
        counted: Counter[str] = Counter()
        view = memoryview(buffer)
        left = Ranges([(start, end)]).subtract(Ranges(one[:2] for one in holes))
        failed, filled = Ranges(), Ranges()
        reasons: dict[int, str] = {}
        for source in self._sources:
            wanted = left.intersect(source.covers)
            if not wanted:
                continue
            got, errors = self._through(source, wanted, start, view)
            failed = failed.union(Ranges(span for span, _ in errors))
            for span, reason in errors:
                reasons.setdefault(span[0], f"{reason} from {source.name}")
            counted[source.name] += got.total
            left = left.subtract(got)
            if source.zero_fills:
                filled = filled.union(got)
        where = sorted(reasons)
        holes += [
            (*span, Why.ERROR, reasons[where[bisect_right(where, span.start) - 1]]) for span in left.intersect(failed)
        ]
        holes += [(*span, Why.NOT_COVERED, "") for span in left.subtract(failed)]
        answer.zeros = self._prove_zeros(filled, before, start, view, holes, counted)
        view.release()
        after = self._look(first, last)
        if before is not None and after is not None:
            answer.classes = dict(before.classes())
            answer.changed = before.differing(after)
        answer.holes = _merged(holes)
        answer.digests = self._digests(before, first, last, start, end, buffer, answer.holes)
        answer.sources = {name: count for name, count in counted.items() if count}
        answer.ended_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        return answer

    def in_single_pages(self) -> BlockReader:
        """The same, which asks for one page at a time."""
        made = BlockReader(self._sources, wanted=self._wanted, guards=self._guards, single=True)
        made._readers, made._flags = self._readers, self._flags
        return made

    def close(self) -> None:
        for reader in self._readers.values():
            if not isinstance(reader, OSError):
                reader.close()
        if self._flags is not None:
            self._flags.close()

    # -- sources ------------------------------------------------------------------------------------------------------

    def _reader(self, source: Source) -> Reader:
        """Raises `OSError`."""
        found = self._readers.get(source.name)
        if found is None:
            try:
                found = source.open()
            except OSError as error:
                found = error
            self._readers[source.name] = found
        if isinstance(found, OSError):
            raise found
        return found

    def _through(
        self, source: Source, wanted: Ranges, start: int, view: memoryview
    ) -> tuple[Ranges, list[tuple[tuple[int, int], str]]]:
        """What one source gives of what is wanted, and what failed with which error."""
        errors: list[tuple[tuple[int, int], str]] = []
        try:
            reader = self._reader(source)
        except OSError as error:
            return Ranges(), [((one.start, one.end), _name(error)) for one in wanted]
        got: list[tuple[int, int]] = []
        for span in wanted:
            at = span.start
            while at < span.end:
                # Steps end at multiples of their size, so that what is halved ends at pages.
                end = min(span.end, at // self._step * self._step + self._step)
                self._halving(reader, at, end, start, view, got, errors)
                at = end
        return Ranges(got), errors

    def _halving(
        self,
        reader: Reader,
        at: int,
        end: int,
        start: int,
        view: memoryview,
        got: list[tuple[int, int]],
        errors: list[tuple[tuple[int, int], str]],
    ) -> None:
        """Reads a piece; of one that fails, its halves, down to single pages."""
        todo = [(at, end)]
        while todo:
            at, end = todo.pop()
            try:
                reader.read(at, view[at - start : end - start])
                got.append((at, end))
            except OSError as error:
                pages = -(-end // PAGE) - at // PAGE
                if pages <= 1:
                    errors.append(((at, end), _name(error)))
                    continue
                middle = (at // PAGE + pages // 2) * PAGE
                todo += [(middle, end), (at, middle)]

    # -- zeros --------------------------------------------------------------------------------------------------------

    def _prove_zeros(
        self,
        filled: Ranges,
        flags: Flags | None,
        start: int,
        view: memoryview,
        holes: list[tuple[int, int, Why, str]],
        counted: Counter[str],
    ) -> int:
        """Asks another source for pages that came as zeros, which may mean that they could not be read.

        Free pages are let be: the kernel can read them, and they are many. Gives how many pages nobody could confirm.
        """
        runs = list(_zero_runs(filled, flags, start, view))
        if not runs:
            return 0
        other = next((one for one in self._sources if not one.zero_fills), None)
        if other is None:
            return sum((end - at) // PAGE for at, end in runs)
        wanted = Ranges(runs).intersect(other.covers)
        got, errors = self._through(other, wanted, start, view)
        for span, reason in errors:
            why = Why.GUARD if self._guards.covers(*span) else Why.UNMAPPED
            holes.append((*span, why, f"zeros, and {reason} from {other.name}"))
            view[span[0] - start : span[1] - start] = bytes(span[1] - span[0])
        counted[other.name] += got.total
        return (Ranges(runs).total - wanted.total) // PAGE

    # -- page flags and digests ---------------------------------------------------------------------------------------

    def _look(self, first: int, last: int) -> Flags | None:
        if self._flags is None:
            return None
        try:
            return self._flags.read(first, last - first)
        except OSError:
            return None

    def _digests(
        self,
        flags: Flags | None,
        first: int,
        last: int,
        start: int,
        end: int,
        buffer: mmap.mmap,
        holes: Sequence[tuple[int, int, Why, str]],
    ) -> list[tuple[int, str, bytes]]:
        frames = set(self._wanted(first, last))
        if flags is not None:
            frames.update(flags.having(1 << PGTABLE))
        missing = Ranges((one[0], one[1]) for one in holes)
        found = []
        for frame in sorted(frames):
            at = frame * PAGE
            if at < start or at + PAGE > end or (missing and missing.clip(at, at + PAGE)):
                continue
            page = buffer[at - start : at - start + PAGE]
            kind = page_class(flags.of(frame)) if flags is not None else ""
            found.append((frame, kind, hashlib.blake2b(page, digest_size=8).digest()))
        return found


def _zero_runs(filled: Ranges, flags: Flags | None, start: int, view: memoryview) -> Iterable[tuple[int, int]]:
    """Runs of whole pages that are zero and are not free."""
    free = 1 << BUDDY
    for span in filled.rounded_in(PAGE):
        # Few pages that are not zero begin with zeros: only the first eight bytes of all of them are looked at.
        heads = view[span.start - start : span.end - start].cast("Q")[:: PAGE // 8].tolist()
        began = None
        for at, head in zip(range(span.start, span.end, PAGE), heads, strict=True):
            zero = (
                not head
                and not (flags is not None and flags.of(at // PAGE) & free)
                and view[at - start : at - start + PAGE].tobytes() == _ZERO
            )
            if zero and began is None:
                began = at
            if not zero and began is not None:
                yield began, at
                began = None
        if began is not None:
            yield began, span.end


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "") or error.strerror or type(error).__name__


def _merged(holes: list[tuple[int, int, Why, str]]) -> list[tuple[int, int, Why, str]]:
    """Ascending; those that touch and have one reason are one."""
    found: list[tuple[int, int, Why, str]] = []
    for one in sorted(holes):
        if found and found[-1][1] == one[0] and found[-1][2:] == one[2:]:
            found[-1] = (found[-1][0], one[1], *one[2:])
        else:
            found.append(one)
    return found
