"""One measurement of `benchmarks.memory`, in a process of its own, so that its peak of memory is its own.

`python -m benchmarks.memory_ours NAME SIZE TO`: SIZE in bytes of memory; TO is a directory that is not there yet.
Prints one line of JSON.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from msgspec.structs import replace

from acquirers import registry
from acquirers.host import Host, Mode
from acquirers.memory import smear, sources
from acquirers.memory.block import BLOCK, PAGE
from acquirers.memory.pageflags import ANON, BUDDY, LRU, PGTABLE, SLAB, PageFlags
from acquirers.memory.physical import Physical
from acquirers.memory.ranges import Ranges
from acquirers.memory.reading import BlockReader
from acquirers.memory.source import Candidate, Survey
from acquirers.memory.workers import Pool, cut
from agent import events, preparation
from agent.job import Job, Limits, Selection
from agent.run import run
from agent.sealing import generate
from agent.sealing.cores import default_workers
from benchmarks.sealing_ours import seal, stages

if TYPE_CHECKING:
    from acquirers.memory.block import Block
    from acquirers.memory.ranges import Span
    from agent.events import Event

MIB, GIB = 1 << 20, 1 << 30
IMAGE = "memory/physical.lime"
KPAGEFLAGS = b"/proc/kpageflags"
PIECE = 128 * MIB
BARE_STEP = 8 * MIB
SAMPLE = 512 * MIB

# -- what is read -----------------------------------------------------------------------------------------------------


def spread(ram: Ranges, size: int) -> Ranges:
    """About `size` bytes of it, in pieces at even distances: few, since some work is done for each range."""
    pieces = [span for span in cut(ram, PIECE) if span.size == PIECE]
    count = min(len(pieces), max(1, size // PIECE))
    return Ranges(pieces[index * len(pieces) // count] for index in range(count))


def survey(size: int) -> Survey:
    """Of this machine, with so much RAM. Ends the process where memory cannot be read."""
    found = sources.survey(Host(Mode.HOST))
    if found.reason:
        sys.exit(f"memory cannot be read here: {found.reason}")
    # Without that file nothing of the rest is taken for memory that was plugged in meanwhile.
    return replace(found, ram=spread(found.ram, size), iomem=b"")


class MadeUp:
    """Memory of a machine that does not exist: the same MiB everywhere, two thirds of its pages zeros."""

    name, zero_fills = "made-up", False
    direct_map: int | None = None

    def __init__(self, covers: Ranges) -> None:
        self.covers = covers
        programs = Path(sys.executable).read_bytes()[: 80 * PAGE]
        self._pages = (os.urandom(4 * PAGE) + programs).ljust(MIB, b"\0")

    def open(self) -> MadeUp:
        return self

    def read(self, address: int, into: memoryview) -> None:
        at, done = address % MIB, 0
        while done < len(into):
            piece = self._pages[at : at + len(into) - done]
            into[done : done + len(piece)] = piece
            at, done = 0, done + len(piece)

    def close(self) -> None: ...


def made_up(top: Path, size: int) -> tuple[Host, Survey]:
    """A machine with a hole below 4 GiB, as machines have it; every 64th page is a page table."""
    low = min(size, 3 * GIB)
    ram = Ranges([(PAGE, 0x9F000), (MIB, low), (4 * GIB, 4 * GIB + size - low)])
    for directory in ("etc", "proc"):
        (top / directory).mkdir(parents=True)
    iomem = b"".join(b"%08x-%08x : System RAM\n" % (start, end - 1) for start, end in ram)
    (top / "proc/iomem").write_bytes(iomem)
    kinds = [1 << PGTABLE, *[1 << ANON | 1 << LRU] * 30, *[1 << BUDDY] * 20, *[1 << SLAB] * 8, *[1 << LRU] * 5]
    words = b"".join(word.to_bytes(8, sys.byteorder) for word in kinds) * (MIB // PAGE // len(kinds))
    with (top / "proc/kpageflags").open("wb") as file:
        file.writelines(words for _ in range((4 * GIB + size - low) // MIB))
    host = Host(Mode.HOST, os.fsencode(top), os.fsencode(top / "proc"))
    return host, Survey(ram, iomem, (Candidate("made-up", MadeUp(ram)),))


# -- one measurement, in a process of its own -------------------------------------------------------------------------


def seconds_used() -> float:
    """CPU seconds of this process and of its children that have ended."""
    return sum(
        one.ru_utime + one.ru_stime
        for one in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


class Eyes:
    """When the image was begun and whole, what CPU time that took, and what went wrong."""

    def __init__(self) -> None:
        self.began = self.ended = self.cpu = 0.0
        self.size = self.stored = 0
        self.problems: list[str] = []
        self._readers: list[int] = []

    def begin(self, readers: list[int]) -> None:
        self.began, self._readers = time.perf_counter(), readers
        self.cpu = -self._used()

    def _used(self) -> float:
        """CPU seconds of this process and the readers (clock_getcpuclockid(3): the clock of another process)."""
        return time.process_time() + sum(time.clock_gettime((~pid << 3) | 2) for pid in self._readers)

    def __call__(self, event: Event) -> None:
        if isinstance(event, events.ItemDone) and event.item == IMAGE:
            self.ended, self.size, self.stored = time.perf_counter(), event.plaintext, event.stored
            self.cpu += self._used()
        if isinstance(event, events.GapFound) and event.item == IMAGE:
            self.problems.append(event.gap.detail)


def acquire(ask: Callable[[Host], Survey], to: str, *, states: bool = True) -> dict[str, Any]:
    """The product's run with one acquirer, which is told what is RAM."""
    eyes = Eyes()
    registry.acquirers = lambda: [Physical(ask)]
    take_blocks = Pool.blocks

    def blocks(pool: Pool, spans: Iterable[Span]) -> Iterator[Block]:
        eyes.begin(pool.pids)
        return take_blocks(pool, spans)

    Pool.blocks = blocks  # type: ignore[method-assign, assignment]
    if not states:
        PageFlags.__init__ = _no_flags  # type: ignore[method-assign, assignment]
        smear.Plan.wanted = lambda *_: ()  # type: ignore[method-assign]
    job = Job(
        case="memory",
        to=to,
        recipients=[generate().recipient.text],
        selection=Selection(only=["memory.physical"]),
        limits=Limits(nice=0, io="normal"),
    )
    started = time.perf_counter()
    outcome = run(job, eyes)
    if outcome.error is not None or eyes.problems or not eyes.ended:
        sys.exit(f"the run failed: {outcome.error or eyes.problems}")
    return {
        "seconds": time.perf_counter() - started,
        "image": eyes.ended - eyes.began,
        "image_cpu": eyes.cpu,
        "cpu": seconds_used(),
        "size": eyes.size,
        "stored": eyes.stored,
        "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def _no_flags(_self: PageFlags, _path: bytes) -> None:
    raise PermissionError(13, "not asked for")


def whole(size: int, to: str) -> dict[str, Any]:
    found = survey(size)
    return acquire(lambda _host: found, to)


def without(size: int, to: str) -> dict[str, Any]:
    found = survey(size)
    return acquire(lambda _host: found, to, states=False)


def resident(size: int, to: str) -> dict[str, Any]:
    host, found = made_up(Path(to).with_suffix(".machine"), size)
    preparation.find_host = lambda *_: host
    with Proportional() as most:
        told = acquire(lambda _host: found, to)
    return told | {"together_kib": most.kib}


class Proportional:
    """The most that this process and its children had resident together, what they share once: looks now and then."""

    def __init__(self) -> None:
        self.kib = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.2):
            try:
                children = [
                    int(word)
                    for task in Path("/proc/self/task").iterdir()
                    for word in (task / "children").read_text().split()
                ]
                self.kib = max(self.kib, sum(_proportional(pid) for pid in [os.getpid(), *children]))
            except OSError:
                continue  # one of them has ended


def _proportional(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.findall(r"^Pss:\s+(\d+)", text, re.MULTILINE)[0])


def bare(size: int, _to: str) -> dict[str, Any]:
    found = survey(size)
    buffer = memoryview(bytearray(BARE_STEP))
    with closing(found.sources[0].open()) as reader:
        started, used = time.perf_counter(), time.process_time()
        for start, end in found.ram:
            for at in range(start, end, BARE_STEP):
                reader.read(at, buffer[: min(BARE_STEP, end - at)])
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "cpu": time.process_time() - used, "size": found.ram.total}


def ceiling(size: int, to: str) -> dict[str, Any]:
    """CPU seconds per byte of each stage, and what our sealing does, on a sample of the same ranges in memory."""
    found = survey(size)
    blocks = list(cut(found.ram, MIB))
    count = min(len(blocks), SAMPLE // MIB)
    fd = os.memfd_create("sample")
    buffer = memoryview(bytearray(MIB))
    with closing(found.sources[0].open()) as reader:
        for index in range(count):
            span = blocks[index * len(blocks) // count]
            reader.read(span.start, buffer[: span.size])
            os.write(fd, buffer[: span.size])
    path = f"/proc/self/fd/{fd}"
    costs = {name: cost for name, cost in stages(path).items() if name != "read"}
    alone: dict[str, Any] = seal("stream", path, default_workers(), to)
    return {"costs": costs, "sealing": alone["size"] / alone["seconds"]}


def states(size: int, _to: str) -> dict[str, Any]:
    """CPU seconds of the reader with and without states, block by block in turn; and of reading again."""
    found = survey(size)
    plan = smear.Plan(found.ram)
    plain = BlockReader(found.sources)
    full = BlockReader(found.sources, KPAGEFLAGS, wanted=plan.wanted)
    buffer = mmap.mmap(-1, BLOCK)
    digests = smear.Digests()
    used = {"plain": 0.0, "full": 0.0}
    for number, span in enumerate(cut(found.ram)):
        ways: Sequence[tuple[str, BlockReader]] = (("plain", plain), ("full", full))
        # The second one finds some of it in the cache of the processor: both are the second equally often.
        for name, reader in ways if number % 2 else ways[::-1]:
            before = time.process_time()
            answer = reader.read(span.start, span.end, buffer)
            used[name] += time.process_time() - before
        digests.update({frame: (kind, made) for frame, kind, made in answer.digests} if number % 2 else {}, 1)
        if not number % 2:
            again = full.read(span.start, span.end, buffer)
            digests.update({frame: (kind, made) for frame, kind, made in again.digests}, 1)
    before, started = seconds_used(), time.perf_counter()
    smear.again(found.sources, digests, 60.0, plan)
    return used | {
        "again_cpu": seconds_used() - before,
        "again": time.perf_counter() - started,
        "pages": len(digests),
        "size": found.ram.total,
    }


MEASUREMENTS: dict[str, Callable[[int, str], dict[str, Any]]] = {
    "whole": whole,
    "without": without,
    "bare": bare,
    "ceiling": ceiling,
    "states": states,
    "resident": resident,
}


def main() -> None:
    name, size, to = sys.argv[1:]
    print(json.dumps(MEASUREMENTS[name](int(size), to)))


if __name__ == "__main__":
    main()
