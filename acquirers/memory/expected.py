"""What must be found in the image for it to be of use: looked up in live memory before the image is taken.

All of this runs in a child with a deadline (`proof`), because every read may hang, and gives a record that can cross to
the parent. What could not be found has a reason instead.
"""

from __future__ import annotations

import os
import re
import struct
from typing import TYPE_CHECKING

import msgspec

from acquirers.memory import banner, bpf, btf, iomem, kallsyms, paging, tasks, views, vmcoreinfo
from acquirers.memory.block import PAGE
from acquirers.memory.kcore import Kcore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from acquirers.host import Host
    from acquirers.memory.ranges import Ranges
    from acquirers.memory.source import Reader, Source, Survey
    from acquirers.memory.vmcoreinfo import Vmcoreinfo

BTF = b"/sys/kernel/btf/vmlinux"
MAX_BTF = 64 << 20
SYMBOLS = frozenset(
    {"_text", "_stext", "linux_banner", "init_task", "swapper_pg_dir", "init_top_pgt", "init_level4_pgt"}
)
_NT_TASKSTRUCT = 4  # include/uapi/linux/elf.h
PACKED_TASK = struct.Struct("<QQii16s")
"""Of `People.tasks`: virtual and physical address, pid, tgid, comm."""


class Target(msgspec.Struct, frozen=True):
    """A virtual address that the kernel's page tables must lead to the physical address of the banner."""

    what: str
    address: int
    steps: list[int]
    """Physical addresses of the entries on the way, live."""
    why: str = ""
    """Why the live tables did not lead there."""


class Ground(msgspec.Struct):
    """What does not move while the image is taken."""

    machine: str
    page: int = PAGE
    direct_map: int | None = None
    image_shift: int | None = None
    image_shift_from: str = ""
    symbols: dict[str, int] = {}

    note_at: int = 0
    note: bytes = b""
    """The ELF note of VMCOREINFO as it lies in memory."""
    note_why: str = ""
    """Why there is none: then `note` is empty."""
    text: bytes = b""
    """VMCOREINFO, out of the note, or out of /proc/kcore if that is all there is."""
    kcore_differs: bool = False
    """/proc/kcore and memory do not have the same."""

    banner_at: int = 0
    banner: bytes = b""
    banner_from: str = ""
    banner_why: str = ""
    version: bytes = b""
    """/proc/version."""

    root: int = 0
    """Physical address of the kernel's first page table."""
    root_size: int = 0
    outside: int = 0
    """Entries of the kernel's half of that table that lead out of RAM in live memory: usually none."""
    levels: int = 0
    encrypted: bool = False
    """Entries of page tables have a bit that marks encrypted memory."""
    targets: list[Target] = []
    paging_why: str = ""

    def info(self) -> Vmcoreinfo | None:
        return vmcoreinfo.parse(self.text) if self.text else None

    def layout(self, ram: Ranges, image: Ranges) -> paging.Layout:
        return paging.Layout(self.machine, ram, image, self.image_shift, self.direct_map)

    def shape(self) -> paging.Paging:
        """Raises `paging.WalkError`."""
        return paging.paging(self.machine, self.info() or _told(self.levels), self.page)


class People(msgspec.Struct):
    """The tasks."""

    why: str = ""
    """Why the list was not walked, or not whole."""
    init: int = 0
    """Physical address of init_task, and virtual address; 0 if it was not found."""
    init_address: int = 0
    init_from: str = ""
    pid_at: int = 0
    """Bytes from the start of a task_struct."""
    comm_at: int = 0
    tasks_at: int = 0
    tasks: bytes = b""
    """`PACKED_TASK` records, in the order of the list."""
    uneven: list[tuple[int, bytes, int]] = []
    """(pid, comm, physical address) of tasks whose links do not fit their neighbours'."""
    hidden: list[tuple[int, bytes, str, int, bool]] = []
    """The members of `views.Finding`."""
    compared: str = ""
    """Why they were not compared with /proc; empty if they were."""


class Live:
    """Live memory through every source that there is, the preferred one first. Opened by the process that reads."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._readers: list[tuple[Reader, bool]] = []
        error: OSError | None = None
        for source in sources:
            try:
                self._readers.append((source.open(), source.zero_fills))
            except OSError as failed:
                error = failed
        if not self._readers:
            raise error or OSError(19, "no source of physical memory")

    def __call__(self, address: int, size: int) -> bytes:
        """What lies at a physical address; zeros of a source that fills with them only if no other gives more."""
        into = bytearray(size)
        zeros, error = False, OSError(14, "not read")
        for reader, fills in self._readers:
            try:
                reader.read(address, memoryview(into))
            except OSError as failed:
                error = failed
                continue
            if not fills or any(into):
                return bytes(into)
            zeros = True
        if zeros:
            return bytes(size)
        raise error


def ground(host: Host, survey: Survey, machine: str) -> Ground:
    """VMCOREINFO, banner and page tables. Raises `OSError` only if no source can be opened."""
    read = Live(survey.sources)
    found = Ground(machine, direct_map=next((s.direct_map for s in survey.sources if s.direct_map is not None), None))
    image = iomem.kernel_image(survey.iomem)
    try:
        found.symbols = dict(kallsyms.find(host, set(SYMBOLS)))
    except (OSError, ValueError):  # masked or absent: what it would have told is looked for
        found.symbols = {}
    _note(host, read, found)
    _kcore_note(survey, found)
    info = found.info()
    found.image_shift, found.image_shift_from = paging.image_shift(machine, info, found.symbols, image)
    _banner(host, read, found, survey.ram, image)
    _tables(host, read, found, survey.ram, image, info)
    return found


def _note(host: Host, read: Callable[[int, int], bytes], found: Ground) -> None:
    try:
        address, size = vmcoreinfo.where(host)
        note = read(address, size)
        text = vmcoreinfo.parse_note(note)
        vmcoreinfo.parse(text)
        found.note_at, found.note, found.text = address, note[: vmcoreinfo.HEADER_SIZE + len(text)], text
    except FileNotFoundError:
        found.note_why = "this kernel was built without VMCOREINFO"
    except (OSError, ValueError) as error:
        found.note_why = f"VMCOREINFO could not be read: {error}"


def _kcore_note(survey: Survey, found: Ground) -> None:
    for source in survey.sources:
        if isinstance(source, Kcore) and source.header.vmcoreinfo:
            shown = source.header.vmcoreinfo
            if found.text:
                found.kcore_differs = shown.rstrip(b"\0") != found.text.rstrip(b"\0")
                return
            try:
                vmcoreinfo.parse(shown)
                found.text = shown
            except vmcoreinfo.MalformedError:
                return


def _banner(
    host: Host, read: Callable[[int, int], bytes], found: Ground, ram: Ranges, image: Ranges
) -> None:  # fmt: skip
    try:
        found.version = host.read_proc(b"version", banner.MAX_BANNER)
        if address := found.symbols.get("linux_banner"):
            at = banner.at(read, found.layout(ram, image), address)
            found.banner_from = "its symbol in /proc/kallsyms"
        else:
            at = None
        if at is None:
            at = banner.search(read, image, found.version)
            found.banner_from = "the kernel image, searched"
    except OSError as error:
        found.banner_why = f"the banner could not be read: {error}"
        return
    if at is None:
        found.banner_why = "no banner is in the kernel image" if image else "/proc/iomem does not show the kernel image"
    else:
        found.banner_at, found.banner = at


def _tables(
    host: Host,
    read: Callable[[int, int], bytes],
    found: Ground,
    ram: Ranges,
    image: Ranges,
    info: Vmcoreinfo | None,
) -> None:
    layout = found.layout(ram, image)
    root = _root({**(info.symbols if info else {}), **found.symbols})
    try:
        shape = paging.paging(found.machine, info or _told(_levels(host)), PAGE)
    except paging.WalkError as error:
        found.paging_why = str(error)
        return
    found.levels = shape.levels
    found.encrypted = bool(info and info.numbers.get("sme_mask"))
    if root is None:
        found.paging_why = "neither VMCOREINFO nor /proc/kallsyms names the kernel's page tables"
        return
    place = layout.of_image(root, shape.root_size)
    if place is None:
        found.paging_why = (
            found.image_shift_from if found.image_shift is None else f"swapper_pg_dir {root:#x}: not in RAM"
        )
        return
    found.root, found.root_size = place, shape.root_size
    if not found.banner:
        found.paging_why = "without the banner there is nothing that the page tables could be seen to lead to"
        return
    try:
        _, found.outside = paging.census(shape, read(place, shape.root_size), ram)
    except OSError as error:
        found.paging_why = f"the kernel's first page table could not be read: {error}"
        return
    found.targets = _targets(read, found, shape, layout)
    if all(target.why for target in found.targets):
        found.paging_why = found.targets[0].why if found.targets else "it is not known where the kernel is mapped"


def _targets(
    read: Callable[[int, int], bytes], found: Ground, shape: paging.Paging, layout: paging.Layout
) -> list[Target]:
    def entry_at(address: int) -> int:
        return int.from_bytes(read(address, 8), "little")

    wanted = [("the kernel image", layout.image_address(found.banner_at))]
    if found.direct_map is not None:
        wanted.append(("the direct map", (found.direct_map + found.banner_at) % paging.WORD))
    targets = []
    for what, address in wanted:
        if address is None:
            continue
        try:
            way = paging.walk(shape, found.root, address, entry_at, layout.ram)
            why = "" if way.physical == found.banner_at else f"it leads to {way.physical:#x}, not to the banner"
            targets.append(Target(what, address, [step.address for step in way.steps], why))
        except (paging.WalkError, OSError) as error:
            targets.append(Target(what, address, [], str(error)))
    return targets


def _root(symbols: Mapping[str, int]) -> int | None:
    names = ("swapper_pg_dir", "init_top_pgt", "init_level4_pgt")
    return next((symbols[name] for name in names if symbols.get(name)), None)


def _told(levels: int) -> Vmcoreinfo:
    return vmcoreinfo.Vmcoreinfo(b"", numbers={"pgtable_l5_enabled": int(levels == 5)})


def _levels(host: Host) -> int:
    """x86: the kernel clears `la57` where it does not use it (arch/x86/kernel/cpu/common.c, since 4.17)."""
    try:
        flags = re.search(rb"^flags\s*:(.*)$", host.read_proc(b"cpuinfo", 1 << 16), re.MULTILINE)
    except OSError:
        return 4
    return 5 if flags and b"la57" in flags[1].split() else 4


def people(host: Host, survey: Survey, found: Ground, seconds: float) -> People:
    """The list of tasks, walked in live memory for at most `seconds`, and compared with /proc."""
    result = People()
    layout = found.layout(survey.ram, iomem.kernel_image(survey.iomem))
    try:
        types = btf.parse(vmcoreinfo.read_sys(host, BTF, MAX_BTF))
        where = tasks.Offsets.of(types)
        memory = tasks.Memory(Live(survey.sources), layout, where)
        current = _some_task(survey, where)
        init, result.init_from = memory.init(symbol=found.symbols.get("init_task"), current=current)
    except FileNotFoundError:
        result.why = "the kernel has no BTF, so that it is not known where the members of task_struct lie"
        return result
    except (OSError, ValueError) as error:
        result.why = str(error)
        return result
    result.init, result.init_address = init.physical, init.address
    result.pid_at, result.comm_at, result.tasks_at = where.pid, where.comm, where.tasks
    hidden: list[views.Finding] = []
    result.compared = views.comparable(host)
    if result.compared:
        listing = memory.walk(init, seconds)
    else:
        listing, hidden = views.compare(host, lambda: memory.walk(init, seconds / 2))
    result.why = listing.why
    own = _own_pid(host)  # this child: it ends before the image begins
    result.tasks = b"".join(
        PACKED_TASK.pack(task.address, task.physical, task.pid, task.tgid, task.comm)
        for task in listing.tasks
        if task.pid != own
    )
    result.uneven = [(task.pid, task.name, task.physical) for task in listing.uneven[: views.MAX_FOUND]]
    result.hidden = [(one.pid, one.comm, one.missing, one.physical, one.opens) for one in hidden]
    return result


def _some_task(survey: Survey, where: tasks.Offsets) -> int | None:
    """The virtual address of a living task, as a source knows it without symbols; None if none does."""
    for source in survey.sources:
        if isinstance(source, Kcore):
            for note in source.header.notes:  # NT_TASKSTRUCT: all of the task_struct of whoever read the header
                if (note.name, note.kind) == (b"CORE", _NT_TASKSTRUCT) and len(note.data) >= where.real_parent + 8:
                    return int.from_bytes(note.data[where.real_parent : where.real_parent + 8], "little")
        elif isinstance(source, bpf.Bpf):
            try:
                return bpf.current_task(source.label)
            except bpf.UnavailableError:
                continue
    return None


def _own_pid(host: Host) -> int:
    """Of this process, as that /proc counts; 0 if it does not see it."""
    try:
        return int(os.readlink(os.path.join(host.proc or b"/proc", b"self")))
    except (OSError, ValueError):
        return 0
