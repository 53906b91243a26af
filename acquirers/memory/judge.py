"""What the copies out of the image say, held against what live memory said: `Verdict`."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING

import msgspec

from acquirers.memory import paging
from acquirers.memory.expected import PACKED_TASK
from acquirers.memory.tasks import COMM

if TYPE_CHECKING:
    from collections.abc import Callable

    from acquirers.memory.expected import Ground, People, Target
    from acquirers.memory.ranges import Ranges

    Get = Callable[[int, int], bytes | None]
    """The bytes of the image at a physical address; None if they are not in it."""

CHECKED = 100_000
"""Tasks, from the head of the list on, that are looked for in the image: 28 bytes of each are copied as it passes."""
MOSTLY = 0.5
"""Of the tasks, this part at least must be in the image as they were before: processes end, but not most of them."""
MISSING = 0.01
"""Of the tasks, this part at most may lie in holes."""


class Check(msgspec.Struct, frozen=True):
    name: str
    state: str
    """`ok`; `bad`: the image does not say what live memory said; `unknown`: there was nothing to compare with."""
    why: str
    facts: dict[str, object]
    fatal: bool = False
    """`bad`, and no program finds its way without it."""

    def line(self) -> dict[str, object]:
        return {"type": "proof", "check": self.name, "state": self.state, "why": self.why, **self.facts}


class Verdict(msgspec.Struct, frozen=True):
    analysable: str
    """`yes`, `partly`, `no`."""
    why: str
    """What is missing, and what works nonetheless; with `yes`, which program cannot read such a machine, if any."""
    lines: list[dict[str, object]]
    """For pages.jsonl, of type `proof`."""
    findings: tuple[str, ...] = ()
    """One line each for a person: hidden processes, a banner that is not the one of /proc/version."""

    @property
    def says(self) -> str:
        """For `Item.says`: printable ASCII."""
        if not self.why:
            return self.analysable
        text = self.why.encode("ascii", "backslashreplace").decode()
        text = "".join(char if char.isprintable() else "?" for char in text)[:400]
        return f"{self.analysable} ({text})" if self.analysable == "yes" else f"{self.analysable}: {text}"


def judge(ground: Ground, people: People, get: Get, ram: Ranges, problem: str = "") -> Verdict:
    if problem:
        line: dict[str, object] = {"type": "proof", "check": "preparation", "state": "unknown", "why": problem}
        return _verdict("no", f"nothing was proved: {problem}", [line], ())
    checks = [_vmcoreinfo(ground, get), _banner(ground, get), _paging(ground, get, ram), _tasks(people, get)]
    lines = [check.line() for check in checks]
    findings = [*_differing(ground), *_uneven(people, lines), *_hidden(people, lines)]
    analysable, why = _weigh({check.name: check for check in checks})
    limits = _limits(ground)
    if limits and analysable != "no":
        why = f"{why}; {limits}" if why else limits
    return _verdict(analysable, why, lines, tuple(findings))


def _verdict(analysable: str, why: str, lines: list[dict[str, object]], findings: tuple[str, ...]) -> Verdict:
    lines.append({"type": "proof", "check": "verdict", "analysable": analysable, "why": why})
    return Verdict(analysable, why, lines, findings)


def _weigh(checks: dict[str, Check]) -> tuple[str, str]:
    """What the checks come to, and which program can work with what is there."""
    failed = [check for check in checks.values() if check.state != "ok"]
    why = "; ".join(check.why for check in failed)
    if not failed:
        return "yes", ""
    if len(failed) == len(checks):
        return "no", why
    if any(check.fatal for check in failed):
        return "no", why
    names = {check.name for check in failed}
    if names == {"vmcoreinfo"}:
        return "partly", f"{why}; Volatility 3 can find the page tables by init_task, drgn needs VMCOREINFO"
    if names == {"banner"}:
        return "partly", f"{why}; drgn reads it, Volatility 3 cannot choose symbols for it"
    if "paging" not in names:
        return "partly", f"{why}; the page tables lead where they should, so that drgn and Volatility 3 can be tried"
    if "banner" not in names:
        return "partly", f"{why}; Volatility 3 knows the kernel by its banner and can search for init_task by itself"
    return "partly", why


def _limits(ground: Ground) -> str:
    if ground.machine == paging.ARM64:
        return "drgn; Volatility 3 up to 2.28 cannot read arm64"
    if ground.levels == 5:
        return "drgn; Volatility 3 up to 2.28 cannot read five-level paging"
    if ground.encrypted:
        return "Volatility 3 up to 2.28 does not remove the bit that marks encrypted memory in page tables"
    return ""


def _vmcoreinfo(ground: Ground, get: Get) -> Check:
    facts: dict[str, object] = {}
    if not ground.note:
        return Check("vmcoreinfo", "unknown", ground.note_why, facts)
    facts |= {"address": ground.note_at, "bytes": len(ground.note)}
    info = ground.info()
    if info is not None:
        facts |= {"release": info.release, "build_id": info.build_id, "kernel_offset": info.kernel_offset}
    return _same("vmcoreinfo", "VMCOREINFO", get(ground.note_at, len(ground.note)), ground.note, facts)


def _banner(ground: Ground, get: Get) -> Check:
    if not ground.banner:
        return Check("banner", "unknown", ground.banner_why, {})
    facts: dict[str, object] = {"address": ground.banner_at, "by": ground.banner_from}
    _put(facts, "text", ground.banner)
    facts["as_proc_version"] = ground.banner == ground.version
    return _same("banner", "the banner", get(ground.banner_at, len(ground.banner)), ground.banner, facts)


def _same(name: str, what: str, found: bytes | None, live: bytes, facts: dict[str, object]) -> Check:
    if found is None:
        return Check(name, "bad", f"{what} lies in a hole of the image", facts)
    if found != live:
        return Check(name, "bad", f"{what} is not in the image as it was in live memory", facts)
    return Check(name, "ok", "", facts)


def _paging(ground: Ground, get: Get, ram: Ranges) -> Check:
    facts: dict[str, object] = {"levels": ground.levels, "root": ground.root}
    if ground.image_shift is not None:  # as text: more than a JSON reader with doubles holds
        facts |= {"image_shift": hex(ground.image_shift), "by": ground.image_shift_from}
    if ground.paging_why:
        return Check("paging", "unknown", f"the page tables could not be followed: {ground.paging_why}", facts)
    shape = ground.shape()
    root = get(ground.root, ground.root_size)
    if root is None:
        return Check("paging", "bad", "the kernel's first page table lies in a hole of the image", facts, fatal=True)
    present, outside = paging.census(shape, root, ram)
    facts |= {"entries": present, "outside_ram": outside}
    ways = [(target, _follow(ground, shape, target, get, ram)) for target in ground.targets if not target.why]
    facts["targets"] = [{"what": target.what, "address": hex(target.address), "why": why} for target, why in ways]
    wrong = [f"{target.what}: {why}" for target, why in ways if why]
    # One way is enough: the kernel splits the large pages of its direct map while it runs, and not those of its text.
    if len(wrong) == len(ways):
        why = f"page tables in the image do not lead to the banner: {'; '.join(wrong)}"
        return Check("paging", "bad", why, facts, fatal=True)
    if outside > ground.outside:
        why = f"{outside} of {present} entries of the first page table lead out of RAM"
        return Check("paging", "bad", why, facts)
    return Check("paging", "ok", "", facts)


def _follow(ground: Ground, shape: paging.Paging, target: Target, get: Get, ram: Ranges) -> str:
    def entry_at(address: int) -> int:
        raw = get(address, 8)
        if raw is None and ground.root <= address < ground.root + ground.root_size:
            raw = get(ground.root, ground.root_size)
            raw = raw and raw[address - ground.root : address - ground.root + 8]
        if raw is None:
            raise paging.WalkError(
                f"the entry at {address:#x} was not caught: it lies in a hole, or the way has changed"
            )
        return int.from_bytes(raw, "little")

    try:
        way = paging.walk(shape, ground.root, target.address, entry_at, ram)
    except paging.WalkError as error:
        return str(error)
    return "" if way.physical == ground.banner_at else f"it leads to {way.physical:#x}"


def _tasks(people: People, get: Get) -> Check:
    facts: dict[str, object] = {
        "by": people.init_from,
        "init": people.init,
        "compared": people.compared or "with /proc",
    }
    if not people.init:
        return Check("tasks", "unknown", f"the list of tasks was not walked: {people.why}", facts)
    live = list(PACKED_TASK.iter_unpack(memoryview(people.tasks)[: CHECKED * PACKED_TASK.size]))
    facts |= {"live": len(people.tasks) // PACKED_TASK.size, "checked": len(live), "why_not_whole": people.why}
    start = _caught(people, people.init, get)
    if start is None:
        return Check("tasks", "bad", "init_task lies in a hole of the image", facts, fatal=True)
    if start[0] or not start[1].startswith(b"swapper"):
        return Check("tasks", "bad", "init_task is not in the image as it was in live memory", facts, fatal=True)
    same = changed = missing = 0
    following: dict[int, int] = {}
    for address, physical, pid, _, comm in live:
        caught = _caught(people, physical, get)
        if caught is None:
            missing += 1
            continue
        following[address + people.tasks_at] = caught[2]
        if caught[:2] == (pid, comm):
            same += 1
        else:
            changed += 1
    reached = _reached(start[2], following)
    facts |= {"same": same, "changed": changed, "missing": missing, "reached": reached}
    if people.why:
        return Check("tasks", "unknown", f"the list of tasks was not walked whole: {people.why}", facts)
    if missing > MISSING * len(live):
        return Check("tasks", "bad", f"{missing} of {len(live)} tasks lie in holes of the image", facts)
    if same < MOSTLY * len(live) or not live:
        return Check("tasks", "bad", f"only {same} of {len(live)} tasks are in the image as they were before", facts)
    if reached < MOSTLY * same:
        return Check("tasks", "bad", f"the list of tasks breaks off in the image after {reached} of {same}", facts)
    return Check("tasks", "ok", "", facts)


def _caught(people: People, physical: int, get: Get) -> tuple[int, bytes, int] | None:
    """Pid, comm and the link to the next, in the image."""
    pid, comm = get(physical + people.pid_at, 4), get(physical + people.comm_at, COMM)
    link = get(physical + people.tasks_at, 8)
    if pid is None or comm is None or link is None:
        return None
    return int.from_bytes(pid, "little", signed=True), comm, int.from_bytes(link, "little")


def _reached(link: int, following: dict[int, int]) -> int:
    """How many of the tasks that were live the list in the image leads to, from init_task on.

    It breaks off at the first that was not known before: a newer task, at the end of the list, or one that has gone.
    """
    count = 0
    while (after := following.pop(link, None)) is not None:
        count, link = count + 1, after
    return count


# -- findings ---------------------------------------------------------------------------------------------------------


def _differing(ground: Ground) -> list[str]:
    found = []
    if ground.banner and ground.banner != ground.version:
        found.append("the banner in the kernel image is not what /proc/version says")
    if ground.kcore_differs:
        found.append("VMCOREINFO in memory is not what /proc/kcore shows")
    info = ground.info()
    if info is not None and info.release.encode() != ground.version[len(b"Linux version ") :].partition(b" ")[0]:
        found.append(f"VMCOREINFO names the kernel {info.release!r}, and /proc/version another")
    return found


def _uneven(people: People, lines: list[dict[str, object]]) -> list[str]:
    for pid, comm, physical in people.uneven:
        lines.append(
            _process("links", pid, comm, physical, "its links in the list of tasks do not fit its neighbours'")
        )
    if not people.uneven:
        return []
    return [f"{len(people.uneven)} links in the kernel's list of tasks do not lead back"]


def _hidden(people: People, lines: list[dict[str, object]]) -> list[str]:
    findings = []
    for pid, comm, missing, physical, opens in people.hidden:
        name = comm.decode("ascii", "backslashreplace")
        if missing == "proc":
            why = "in the kernel's list of tasks, and not in /proc"
            why += ", where it can be opened by its number" if opens else ""
        else:
            why = "in /proc, and not in the kernel's list of tasks"
        lines.append(_process("hidden", pid, comm, physical, why))
        findings.append(f"hidden process {pid} ({name!r}): {why}")
    return findings


def _process(check: str, pid: int, comm: bytes, physical: int, why: str) -> dict[str, object]:
    line: dict[str, object] = {"type": "proof", "check": check, "state": "finding", "why": why, "pid": pid}
    _put(line, "comm", comm)
    if physical:
        line["task"] = physical
    return line


def _put(record: dict[str, object], key: str, raw: bytes) -> None:
    """Bytes that nobody vouches for, as text; where that does not give them back, `KEY_b64` does."""
    try:
        record[key] = raw.decode()
    except UnicodeDecodeError:
        record[key] = raw.decode("utf-8", "backslashreplace")
        record[f"{key}_b64"] = b64encode(raw).decode()
