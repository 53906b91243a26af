"""`memory.physical`: the image of physical memory, what had to be read late, and what the image cannot hold.

memory/physical.lime    every block as it was read in one pass; holes split its records
memory/late.lime        blocks that were slow or failed in part, read again; memory that was plugged in meanwhile
memory/pages.jsonl      holes and their reasons, times, page states, owners, smear, and whether it can be analysed
"""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from acquirers.base import (
    AcquirerError,
    Availability,
    Flag,
    FlagKind,
    Gap,
    Item,
    Reason,
    State,
    Subject,
)
from acquirers.memory import crosscheck, footprint, iomem, kallsyms, lime, owners, smear, sources
from acquirers.memory.block import BLOCK, NO_LOSS, PAGE, Hole, Why
from acquirers.memory.proof import Proof
from acquirers.memory.quiet import quiet, settle
from acquirers.memory.ranges import Ranges, Span
from acquirers.memory.spool import Spool, line
from acquirers.memory.workers import Pool, cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from acquirers.base import Buffer, Report, Scope
    from acquirers.host import Host
    from acquirers.memory.block import Block
    from acquirers.memory.source import Source, Survey

NAME = "memory.physical"
PAGES_TYPE = "application/x-ndjson"
FORMAT = 1
WORKERS = 2
AGAIN_SECONDS = 60.0
"""For reading pages again at the end, to measure how much changed."""
MAX_HOLES = 100_000
"""Holes that are listed one by one; further ones are counted."""
_FIRST = 4
_KFENCE_SIZE = 2 << 20

_REASONS = {Why.STUCK: Reason.STUCK, Why.STOPPED: Reason.STOPPED, Why.NOT_COVERED: Reason.DENIED}
_SAYS = {
    Why.HWPOISON: "pages with an uncorrectable error, never touched",
    Why.OFFLINE: "pages that are ballooned or offline, never touched",
    Why.NOPAGE: "addresses that the kernel has no page for, never touched",
    Why.ERROR: "pages for which the kernel gave an error",
    Why.STUCK: "reads that did not return",
    Why.UNMAPPED: "pages that the kernel has unmapped from itself",
    Why.GUARD: "guard pages of KFENCE, which have no content",
    Why.NOT_COVERED: "bytes that no source gives",
    Why.STOPPED: "not read before the run ended",
}


class Physical:
    """Reads all RAM of a live machine."""

    name = NAME

    def __init__(self, survey: Callable[[Host], Survey] = sources.survey, *, workers: int = WORKERS) -> None:
        self._ask, self._workers = survey, workers
        self._survey: Survey | None = None

    def probe(self, host: Host, scope: Scope) -> Availability:  # noqa: ARG002 - the contract of acquirers
        if not host.live:
            return Availability(State.ABSENT, "a mounted disk has no memory")
        found = self._survey = self._ask(host)
        if found.reason:
            return Availability(State.UNAVAILABLE, found.reason, found.remedy)
        limits = "; ".join(f"{one.name}: {one.reason}" for one in found.candidates if one.source and one.reason)
        subjects = tuple(
            Subject(
                "source",
                one.name,
                b"",
                "works" if one.source is not None else "; ".join(filter(None, (one.reason, one.remedy))),
                selected=one.source is not None,
            )
            for one in found.candidates
        )
        return Availability(State.AVAILABLE, limits, estimate=found.ram.total, subjects=subjects)

    def items(self, host: Host, scope: Scope) -> Iterator[Item]:
        if self._survey is None and self.probe(host, scope).state is not State.AVAILABLE:
            return
        survey = self._survey
        assert survey is not None  # noqa: S101 - the probe made it
        image = Image(host, survey, self._workers)
        names = [one.name for one in survey.sources]
        about = {"ram": [list(span) for span in survey.ram], "sources": names, "swap": _swaps(host)}
        with quiet(), closing(image):
            image.start()
            yield Item("memory/physical.lime", lime.MEDIA_TYPE, image.first, survey.ram.total, about)
            if image.wants_more():
                yield Item("memory/late.lime", lime.MEDIA_TYPE, image.late)
            says = {"analysable": image.verdict()} if image.begun else {}
            yield Item("memory/pages.jsonl", PAGES_TYPE, image.pages, says=says)


def _swaps(host: Host) -> list[dict[str, object]]:
    from acquirers.memory.swap import areas

    try:
        return [one.about() for one in areas(host)]
    except OSError:
        return []


class Image:
    """One acquisition of physical memory."""

    def __init__(self, host: Host, survey: Survey, workers: int = WORKERS) -> None:
        self._host, self._survey, self._count = host, survey, workers
        self._spool = Spool()
        self._pool: Pool | None = None
        self._plan = smear.Plan(survey.ram)
        self._digests = smear.Digests()
        self._proof = Proof(host, survey)
        self._again: list[Span] = []
        self._plugged = Ranges()
        self._lost: list[Hole] = []
        """Of the first pass, until the late one has been there."""
        self._covered = Ranges()
        """What was told of: read, or a hole."""
        self._missing: Counter[Why] = Counter()
        self._listed = 0
        self._totals: Counter[str] = Counter()
        self._sources: Counter[str] = Counter()
        self._verdict = ""
        self._began_ns = 0
        self._failed: OSError | None = None
        """Why there are no readers."""
        self.begun = False
        """Reading was begun in this attempt."""

    def start(self) -> None:
        """Forks the readers: before anything is sealed, whose buffers they would keep copies of."""
        flags, guards = self._flags, _guards(self._host, self._survey)
        settle()
        try:
            self._pool = Pool(
                self._survey.sources, flags=flags, wanted=self._plan.wanted, guards=guards, workers=self._count
            )
        except OSError as error:
            self._failed = error

    @property
    def _flags(self) -> bytes:
        """Where the states of pages are; nowhere if something was mounted over them."""
        if b"kpageflags" in self._survey.covered:
            return b"/nowhere"
        return os.path.join(self._host.proc or b"/proc", b"kpageflags")

    # -- memory/physical.lime -----------------------------------------------------------------------------------------

    def first(self, report: Report) -> Iterator[Buffer]:
        """The pass over all of RAM."""
        self.begun = True
        self._began_ns = time.time_ns()
        survey, pool = self._survey, self._pool
        if pool is None:
            why = self._failed.strerror if self._failed is not None else "none was asked for"
            raise AcquirerError(Reason.INTERNAL, f"no reader could be started: {why}")
        for finding in survey.findings:
            report.flag(Flag(FlagKind.FINDING, finding))
        self._proof.prepare()
        self._spool.add(self._head())
        holes: list[Hole] = []
        self._tell("frames", lambda: footprint.lines("begin", [os.getpid(), *pool.pids], survey.sources))
        during = self._during()
        done = Ranges()
        try:
            told: list[Span] = []
            for block in pool.blocks(cut(survey.ram)):
                self._note(block, "physical", holes)
                if during is not None:
                    self._tell("frames", during.lines)
                told.append(Span(block.start, block.end))
                if len(told) > 1024:
                    done, told = done.union(Ranges(told)), []
                yield from lime.records(block)
            done = done.union(Ranges(told))
            self._look_for_changes(report)
        finally:
            done = done.union(Ranges(told))
            unread = survey.ram.subtract(done)
            holes += [Hole(*span, Why.STOPPED) for span in unread]
            self._account(holes, report)

    @staticmethod
    def _during() -> footprint.During | None:
        try:
            return footprint.During()
        except OSError:
            return None

    def _head(self) -> dict[str, object]:
        survey = self._survey
        return {
            "type": "memory",
            "format": FORMAT,
            "page": PAGE,
            "block": BLOCK,
            "machine": os.uname().machine,
            "ram": [list(span) for span in survey.ram],
            "sources": [one.name for one in survey.sources],
            "direct_map": next((f"{one.direct_map:#x}" for one in survey.sources if one.direct_map is not None), None),
            "candidates": [
                {"name": one.name, "works": one.source is not None, "reason": one.reason} for one in survey.candidates
            ],
            "page_flags": os.access(self._flags, os.R_OK),
            "sample": self._plan.line(),
            "began": self._began_ns,
        }

    def _note(self, block: Block, where: str, holes: list[Hole]) -> None:
        """Everything that a block tells besides its bytes."""
        self._proof.block(block)
        self._digests.update(block.digests, block.began_ns)
        self._sources.update(block.sources)
        self._totals.update({"blocks": 1, "changed": block.changed, "zeros": block.zeros})
        self._spool.add(
            {
                "type": "block",
                "in": where,
                "start": block.start,
                "end": block.end,
                "ns": block.began_ns,
                "ms": round((block.ended_ns - block.began_ns) / 1e6, 3),
                "wall": block.wall_ns,
                "source": dict(block.sources),
                "classes": dict(block.classes),
                "changed": block.changed,
                "zeros": block.zeros,
            }
        )
        holes += block.holes
        for hole in block.holes:
            self._hole(hole, where)
        if block.again:
            self._again += [Span(one.start, one.end) for one in block.holes if one.why in {Why.ERROR, Why.STUCK}]

    def _hole(self, hole: Hole, where: str) -> None:
        self._listed += 1
        if self._listed <= MAX_HOLES:
            self._spool.add(
                {
                    "type": "hole",
                    "in": where,
                    "start": hole.start,
                    "end": hole.end,
                    "why": hole.why,
                    "detail": hole.detail,
                }
            )

    def _look_for_changes(self, report: Report) -> None:
        """Memory comes and goes on a live machine."""
        try:
            now = iomem.parse(self._host.read_proc(b"iomem", len(self._survey.iomem) + (1 << 20)))
        except OSError:
            return
        if not now or not self._survey.iomem or now == self._survey.ram:
            return
        self._plugged, gone = now.subtract(self._survey.ram), self._survey.ram.subtract(now)
        self._spool.add(
            {
                "type": "ram-changed",
                "plugged": [list(span) for span in self._plugged],
                "gone": [list(span) for span in gone],
            }
        )
        if self._plugged:
            detail = f"{self._plugged.total} bytes of RAM were plugged in while it was read: they are read late"
            report.flag(Flag(FlagKind.CHANGED, detail))
        if gone:
            detail = f"{gone.total} bytes of RAM were taken out while it was read"
            report.flag(Flag(FlagKind.CHANGED, detail))

    def _account(self, holes: list[Hole], report: Report) -> None:
        """Gaps and flags, one for each reason; what is to be read again is told of when that is done."""
        again = Ranges(self._again)
        waiting = [one for one in holes if one.why in {Why.ERROR, Why.STUCK} and again.covers(one.start, one.end)]
        self._lost = waiting
        chosen = set(map(id, waiting))
        self._report([one for one in holes if id(one) not in chosen], report)

    def _report(self, holes: list[Hole], report: Report) -> None:
        for why in Why:
            found = [one for one in holes if one.why is why]
            if not found:
                continue
            missing = sum(one.end - one.start for one in found)
            self._missing[why] += missing
            first = ", ".join(f"{one.start:#x}-{one.end - 1:#x}" for one in found[:_FIRST])
            more = f" and {len(found) - _FIRST} more" if len(found) > _FIRST else ""
            cause = f" ({found[0].detail})" if found[0].detail else ""
            detail = f"{_SAYS[why]}: {missing} bytes at {first}{more}{cause}"
            if why in NO_LOSS:
                report.flag(Flag(FlagKind.LEFT_OUT, detail))
            else:
                report.gap(Gap(_REASONS.get(why, Reason.IO_ERROR), detail, missing=missing))

    # -- memory/late.lime ---------------------------------------------------------------------------------------------

    def wants_more(self) -> bool:
        """Whether there is something to be read late."""
        return bool(self._again or self._plugged)

    def late(self, report: Report) -> Iterator[Buffer]:
        """What was slow or failed, in small pieces; and what was plugged in meanwhile."""
        holes: list[Hole] = []
        again = Ranges(self._again).union(self._plugged)
        pools = [(Ranges(self._again), self._pool)]
        fresh: Pool | None = None
        if self._plugged:
            survey = sources.survey(self._host) if not self._survey.reason else self._survey
            fresh = Pool(survey.sources, flags=self._flags, workers=1)
            pools.append((self._plugged, fresh))
        done = Ranges()
        try:
            for span in again:
                pool = next((pool for mine, pool in pools if pool is not None and mine.covers(*span)), self._pool)
                if pool is None:
                    break
                # What was plugged in has not hung yet: whole blocks.
                whole = pool is fresh
                for block in pool.blocks(cut(Ranges([span]))) if whole else pool.small(span):
                    block.again = True
                    self._note_late(block, holes)
                    done = done.union(Ranges([(block.start, block.end)]))
                    yield from lime.records(block)
        finally:
            if fresh is not None:
                fresh.close()
            holes += [Hole(*span, Why.STOPPED) for span in again.subtract(done)]
            self._lost = []
            self._report(holes, report)

    def _note_late(self, block: Block, holes: list[Hole]) -> None:
        block.again = False
        self._note(block, "late", holes)

    # -- memory/pages.jsonl -------------------------------------------------------------------------------------------

    def verdict(self) -> str:
        """Whether the image can be analysed: for the result of the run."""
        verdict = self._proof.verdict()
        self._findings = list(verdict.findings)
        self._proof_lines = list(verdict.lines)
        self._analysable = verdict.analysable
        self._verdict = verdict.says
        return self._verdict

    def pages(self, report: Report) -> Iterator[Buffer]:
        """What the image cannot hold."""
        if not self.begun:
            report.gap(Gap(Reason.STOPPED, "the image is of an earlier attempt, and what it noted is lost with it"))
            yield line({"type": "end", "note": "the image is of an earlier attempt"})
            return
        # Of a late item that an earlier attempt left whole, or that was never begun.
        self._report(self._lost, report)
        pids = [os.getpid(), *(self._pool.pids if self._pool is not None else [])]
        survey = self._survey
        if not os.access(self._flags, os.R_OK):
            what = "is covered" if b"kpageflags" in survey.covered else "cannot be read"
            report.gap(Gap(Reason.DENIED, f"/proc/kpageflags {what}: the states of pages are not known"))
        with self._guarded("frames", report):
            for one in footprint.lines("end", pids, survey.sources):
                self._spool.add(one)
        yield from self._spool.take()
        yield from self._lines("owners", lambda: owners.lines(self._host, survey.ram, report.gap), report)
        yield from self._lines("smear", self._smear, report)
        yield from self._lines("cross-check", lambda: self._cross_check(report), report)
        for one in self._proof_lines:
            yield line(one)
        for finding in self._findings:
            report.flag(Flag(FlagKind.FINDING, finding))
        if self._analysable != "yes":
            report.flag(Flag(FlagKind.FINDING, f"analysable: {self._verdict}"))
        yield line(self._end())

    def _smear(self) -> Iterator[dict[str, object]]:
        yield from smear.lines(smear.again(self._survey.sources, self._digests, AGAIN_SECONDS, self._plan))

    def _cross_check(self, report: Report) -> Iterator[dict[str, object]]:
        pair = self._pair()
        if pair is None:
            yield {"type": "crosscheck", "note": "there is no second source"}
            return
        frames = self._plan.wanted(0, 1 << 52)[:: max(1, len(self._plan.wanted(0, 1 << 52)) // 1024)]
        result = crosscheck.check(*pair, frames)
        if result.finding:
            report.flag(Flag(FlagKind.FINDING, result.finding))
        yield from crosscheck.lines(result)

    def _pair(self) -> tuple[Source, Source] | None:
        found = self._survey.sources
        return (found[0], found[1]) if len(found) > 1 else None

    def _end(self) -> dict[str, object]:
        return {
            "type": "end",
            "analysable": self._verdict,
            "sources": dict(self._sources),
            **dict(self._totals),
            "missing": {str(why): count for why, count in self._missing.items()},
            "holes": self._listed,
            "dropped": self._spool.dropped,
            "notes": list(self._pool.notes) if self._pool is not None else [],
            "locked": self._pool.locked if self._pool is not None else False,
            "seconds": round((time.time_ns() - self._began_ns) / 1e9, 3),
        }

    def _lines(self, what: str, make: Callable[[], Iterator[dict[str, object]]], report: Report) -> Iterator[Buffer]:
        with self._guarded(what, report):
            for one in make():
                yield line(one)

    @contextmanager
    def _guarded(self, what: str, report: Report) -> Iterator[None]:
        """One part of the notes that fails is a gap, and never the end of the others."""
        try:
            yield
        except GeneratorExit:
            raise
        except Exception as error:  # noqa: BLE001
            report.gap(Gap(Reason.INTERNAL, f"{what}: {type(error).__name__}: {error}"))

    def _tell(self, what: str, make: Callable[[], Iterator[dict[str, object]]]) -> None:
        """Lines for later. A failure is a line, too."""
        try:
            for one in make():
                self._spool.add(one)
        except Exception as error:  # noqa: BLE001
            self._spool.add({"type": "failed", "what": what, "why": f"{type(error).__name__}: {error}"})

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()


def _guards(host: Host, survey: Survey) -> Ranges:
    """Where KFENCE has its pages, physically: every second one is unmapped by design."""
    base = next((one.direct_map for one in survey.sources if one.direct_map is not None), None)
    if base is None:
        return Ranges()
    try:
        where = kallsyms.find(host, {"__kfence_pool"}).get("__kfence_pool", 0)
    except (OSError, kallsyms.KallsymsError):
        return Ranges()
    if not where:
        return Ranges()
    pointer = _pointer(survey, where)
    start = pointer - base
    return Ranges([(start, start + _KFENCE_SIZE)]) if pointer and survey.ram.covers(start, start + PAGE) else Ranges()


def _pointer(survey: Survey, address: int) -> int:
    """What a pointer of the kernel points to; 0 if it cannot be read."""
    from acquirers.memory import child

    def ask() -> bytes:
        for source in survey.sources:
            try:
                reader = source.open()
                view = memoryview(bytearray(8))
                read = getattr(reader, "read_virtual", None)
                if read is not None:
                    read(address, view)
                    return bytes(view)
            except OSError:
                continue
        return bytes(8)

    try:
        return int.from_bytes(child.call(ask, 5.0)[:8], "little")
    except child.ChildError:
        return 0
