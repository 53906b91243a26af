"""Which sources of physical memory this machine has, and why the others are none.

Nothing here reads evidence: the header of /proc/kcore, a BPF program and a page of our own are none. What can block,
opening /proc/kcore while memory is being plugged, happens in a child that is given up after `KCORE_SECONDS`.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from acquirers import syscalls
from acquirers.base import State
from acquirers.memory import bpf, child, covered, crash, devmem, directmap, gates, iomem, kcore, vmcoreinfo
from acquirers.memory.block import PAGE
from acquirers.memory.ranges import Ranges
from acquirers.memory.source import Candidate, Survey

if TYPE_CHECKING:
    from acquirers.host import Host

KCORE_SECONDS = 5.0
_NAMES = ("kcore", "bpf", "crash", devmem.NAME)
_COVERED = "something was mounted over it"
_PROC_SUPER_MAGIC = 0x9FA0  # include/uapi/linux/magic.h
_HEADER, _ERROR, _MALFORMED = b"H", b"E", b"M"
_ERRNO = struct.Struct("=i")


def survey(host: Host) -> Survey:
    """What is RAM and what can read it. Raises nothing: what fails is a reason."""
    if why := gates.machine(host):
        return Survey(Ranges(), b"", tuple(Candidate(name, None, *why) for name in _NAMES), *why)
    over = covered.covered(host)
    findings = [f"something was mounted over /proc/{name.decode()}: it is not read" for name in sorted(over)]
    data, ram, hidden = _iomem(host) if b"iomem" not in over else (b"", Ranges(), gates.Why(_COVERED))
    by_kcore = _kcore(host, ram) if b"kcore" not in over else Candidate("kcore", None, f"/proc/kcore: {_COVERED}")
    if isinstance(by_kcore.source, kcore.Kcore):
        beyond = _beyond(by_kcore.source.ram, ram)
        if ram and beyond:
            findings.append(f"/proc/kcore has {beyond.total} bytes of RAM that /proc/iomem does not name")
        ram = ram.union(beyond)
    found = (by_kcore, _bpf(host, ram, by_kcore), _crash(host, ram), devmem.diagnose(host))
    candidates = (_limits(found[0], ram, hidden, filled=found[1].source is not None), *found[1:])
    if not ram and hidden:
        return Survey(ram, data, candidates, *hidden, tuple(findings), over)
    if not any(one.source for one in candidates):
        why = gates.Why(
            "; ".join(f"{one.name}: {one.reason}" for one in candidates[:-1]),
            next((one.remedy for one in candidates if one.remedy), ""),
        )
        return Survey(ram, data, candidates, *why, tuple(findings), over)
    return Survey(ram, data, candidates, findings=tuple(findings), covered=over)


def _beyond(kcore_ram: Ranges, ram: Ranges) -> Ranges:
    """What only /proc/kcore names. It has whole pages, and sections of memory where iomem has bytes."""
    whole = Ranges((one.start // PAGE * PAGE, -(-one.end // PAGE) * PAGE) for one in ram)
    return kcore_ram.subtract(whole)


def describe(found: Survey) -> list[tuple[str, State, str, str]]:
    """(name, state, reason, remedy) of each candidate, in order of preference. An available one's reason limits it."""
    return [
        (one.name, State.UNAVAILABLE if one.source is None else State.AVAILABLE, one.reason, one.remedy)
        for one in found.candidates
    ]


def _iomem(host: Host) -> tuple[bytes, Ranges, gates.Why | None]:
    """The file, what is RAM, and why it does not tell."""
    try:
        data = iomem.read(host)
    except OSError as error:
        return b"", Ranges(), gates.Why(f"/proc/iomem cannot be read: {error.strerror}")
    if iomem.hidden(data):
        return data, Ranges(), gates.iomem(host.facts)
    ram = iomem.parse(data)
    return data, ram, None if ram else gates.Why("/proc/iomem names no System RAM")


# -- /proc/kcore ------------------------------------------------------------------------------------------------------


def _kcore(host: Host, ram: Ranges) -> Candidate:
    path = os.path.join(host.proc or b"/proc", b"kcore")
    try:
        answer = child.call(lambda: _read_header(path), KCORE_SECONDS)
    except child.StuckError:
        return Candidate("kcore", None, f"/proc/kcore did not open in {KCORE_SECONDS:g} s", "try again later")
    except child.ChildError as error:
        return Candidate("kcore", None, f"/proc/kcore could not be tried: {error}")
    kind, said = answer[:1], answer[1:]
    if kind == _ERROR:
        code = _ERRNO.unpack(said)[0]
        return Candidate("kcore", None, *gates.kcore(OSError(code, os.strerror(code)), host.facts))
    if kind == _MALFORMED:
        return Candidate("kcore", None, f"/proc/kcore: {said.decode()}", gates.AS_ROOT)
    try:
        source = kcore.Kcore(path, ram, kcore.parse_header(said))
    except kcore.MalformedError as error:
        return Candidate("kcore", None, f"/proc/kcore: {error}", gates.AS_ROOT)
    if source.covers:
        return Candidate("kcore", source)
    return Candidate("kcore", None, "the segments of /proc/kcore tell no physical addresses")


def _read_header(path: bytes) -> bytes:
    """In a child: its outcome in one byte, and the header or what went wrong."""
    try:
        fd = kcore.open_checked(path)
        return _HEADER + kcore.read_header(fd)
    except OSError as error:
        return _ERROR + _ERRNO.pack(error.errno or 0)
    except kcore.MalformedError as error:
        return _MALFORMED + str(error).encode()


def _limits(found: Candidate, ram: Ranges, hidden: gates.Why | None, *, filled: bool) -> Candidate:
    """What /proc/kcore, which works, does not give."""
    if found.source is None:
        return found
    said = []
    if hidden:
        said.append(f"{hidden.reason}: RAM is what /proc/kcore names, parts of pages at its edges are not known")
    missing = ram.subtract(found.source.covers).total
    if missing:
        edges = ram.subtract(ram.rounded_in(PAGE)).subtract(found.source.covers).total
        said.append(f"does not give {missing} bytes of System RAM, of which {edges} are parts of pages")
        said.append("eBPF gives them" if filled else "no other source gives them")
    return Candidate(found.name, found.source, "; ".join(said), hidden.remedy if hidden else "")


# -- eBPF -------------------------------------------------------------------------------------------------------------


def _bpf(host: Host, ram: Ranges, by_kcore: Candidate) -> Candidate:
    if not _is_running(host):
        return Candidate("bpf", None, "the /proc that was given is not that of the running kernel")
    if why := gates.bpf_beforehand(host.facts):
        return Candidate("bpf", None, *why)
    if not ram:
        return Candidate("bpf", None, "which addresses are RAM is not known")
    hint = by_kcore.source.direct_map if by_kcore.source else None
    try:
        source = bpf.probe(ram, host.facts.architecture, hint)
    except bpf.UnavailableError as error:
        return Candidate("bpf", None, *gates.bpf_failed(error, host.facts))
    except directmap.HiddenError as error:
        return Candidate("bpf", None, str(error), gates.AS_ROOT)
    except directmap.NotFoundError as error:
        return Candidate("bpf", None, f"the kernel's map of memory was not found: {error}")
    except OSError as error:
        return Candidate("bpf", None, f"a page of our own could not be placed: {error.strerror}")
    said = []
    if hint is not None and hint != source.direct_map:
        said.append(f"memory is mapped at {source.direct_map or 0:#x}, /proc/kcore says {hint:#x}: one view is false")
    if wrong := _check_note(host, source):
        said.append(wrong)
    return Candidate("bpf", source, "; ".join(said))


def _is_running(host: Host) -> bool:
    """Whether this /proc is a kernel's, not a recorded one: programs are loaded into the running kernel only."""
    try:
        fd = os.open(host.proc or b"/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return syscalls.filesystem_type(fd) == _PROC_SUPER_MAGIC
        finally:
            os.close(fd)
    except OSError:
        return False


def _check_note(host: Host, source: bpf.Bpf) -> str:
    """What is wrong if the note VMCOREINFO is not where the kernel says; empty if it is, or if it does not say."""
    try:
        address, _ = vmcoreinfo.where(host)
    except (OSError, ValueError):
        return ""
    head = bytearray(vmcoreinfo.HEADER_SIZE)
    try:
        reader = source.open()
        try:
            reader.read(address, memoryview(head))
        finally:
            reader.close()
    except OSError as error:
        return f"VMCOREINFO cannot be read at {address:#x}: {error.strerror}"
    return "" if vmcoreinfo.NAME in head else f"VMCOREINFO is not at {address:#x}, where the kernel says it is"


# -- /dev/crash -------------------------------------------------------------------------------------------------------


def _crash(host: Host, ram: Ranges) -> Candidate:
    source = crash.Crash(host, ram)
    try:
        source.open().close()
    except FileNotFoundError:
        return Candidate("crash", None, "no /dev/crash: a driver of RHEL's kernels, which is not loaded")
    except OSError as error:
        return Candidate("crash", None, f"/dev/crash: {error.strerror}")
    if not ram:
        return Candidate("crash", None, "which addresses are RAM is not known")
    return Candidate("crash", source, "one page per read: slow")
