"""Acquisitions of memory in guests, made once for all tests that look at them: image, truth, and who ran."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.rigs import guest_truth
from tests.rigs.guest import EVIDENCE, REPOSITORY, Done, Guest, Machine, cache, why_not
from tests.rigs.guest_judge import Pages, Verdict, judge, pages_of, read_pages
from tests.rigs.guest_planted import plant
from tests.rigs.s3_process import RigError

CASE = "GUEST"
_ACQUIRE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Task:
    """A line of ps(1) in the guest."""

    pid: int
    parent: int
    name: str


@dataclass(frozen=True, slots=True)
class Acquired:
    """One run, opened."""

    machine: Machine
    done: Done
    result: dict[str, Any]
    """The last line on standard output."""
    run: Path
    """The run as it lay on the guest's disk: sealed."""
    opened: Path
    image: Path
    pages: Pages
    verdict: Verdict
    planted: int
    """Process id."""
    tasks: tuple[Task, ...]
    """Those that ran before, kernel threads included; only processes, no threads."""
    release: str

    @property
    def lasting(self) -> set[tuple[int, str]]:
        """(pid, comm) of what was there before and is not of the kind that comes and goes."""
        return {(task.pid, task.name) for task in self.tasks if not re.match(r"kworker|ext4lazyinit|ps$", task.name)}


def needs_guest(architecture: str = "amd64") -> pytest.MarkDecorator:
    reason = why_not("arm64" if architecture == "arm64" else "amd64")
    return pytest.mark.skipif(bool(reason), reason=reason)


_made: dict[Machine, Acquired | str] = {}


def acquired(factory: pytest.TempPathFactory, machine: Machine) -> Acquired:
    """The acquisition of such a machine: the first test that asks waits for it. A failure is not tried again."""
    if machine not in _made:
        _made[machine] = "it was interrupted"
        try:
            _made[machine] = acquire(machine, factory.mktemp("guest"))
        except RigError as error:
            _made[machine] = str(error)
    made = _made[machine]
    if isinstance(made, str):
        raise RigError(made)
    return made


def forget(machine: Machine) -> None:
    """Gives the space of its files back, which is twice its memory and more."""
    made = _made.pop(machine, "")
    if isinstance(made, Acquired):
        shutil.rmtree(made.opened.parent, ignore_errors=True)


def impound(*arguments: str) -> dict[str, Any]:
    """The analyst's side: a verb here, outside; its result. Raises `RigError` where it fails."""
    command = [sys.executable, "-m", "agent", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, timeout=600, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RigError(f"{arguments}: {done.stderr.decode('utf-8', 'replace')[-2000:]}")
    lines = done.stdout.decode().splitlines()
    result: dict[str, Any] = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return result


def acquire(machine: Machine, directory: Path) -> Acquired:
    """Plants a process, saves the true memory, acquires, saves it again, and opens the run outside."""
    key = directory / "case.key"
    impound("keygen", "-o", str(key))
    recipient = impound("keygen", "-y", str(key))["recipient"]
    with Guest(machine, directory / "guest") as guest:
        planted = plant(guest)
        release = guest.run(["uname", "-r"], check=True).out.decode().strip()
        tasks = tuple(_tasks(guest.run(["ps", "-eo", "pid=,ppid=,comm="], check=True).out.decode()))
        before = guest_truth.save(guest, directory / "before")
        arguments = ["acquire", "--case", CASE, "--to", EVIDENCE, "-r", recipient]
        with guest_truth.Meanwhile(guest, before, directory / "meanwhile") as meanwhile:
            done = guest.impound(*arguments, "--only", "memory", "--json", seconds=_ACQUIRE_SECONDS)
        after = guest_truth.save(guest, directory / "after")
        cached = cached_frames(guest)
        if done.code not in {0, 1}:
            raise RigError(f"the acquisition in the guest failed: {done}")
        guest.copy_out(CASE, directory / "sealed")
    run = _only(directory / "sealed" / CASE, "*/*/receipt.json").parent
    opened = directory / "opened"
    impound("open", str(run), "--identity", str(key), "--output", str(opened))
    shutil.rmtree(directory / "guest")
    merged = opened / "memory/merged.lime"
    image = merged if merged.exists() else opened / "memory/physical.lime"
    pages = read_pages(opened / "memory/pages.jsonl")
    verdict = judge(image, pages, cached, before, after, meanwhile.states, pages_of(run))
    for truth in ("before", "after"):
        shutil.rmtree(directory / truth)
    result = json.loads(done.out.splitlines()[-1])
    return Acquired(machine, done, result, run, opened, image, pages, verdict, planted.pid, tasks, release)


def cached_frames(guest: Guest) -> set[int]:
    """Frames that hold the page cache of the destination: its files, and the disk below them."""
    script = (REPOSITORY / "tests/rigs/guest_cached.py").read_text()
    done = guest.run(["python3", "-c", script, EVIDENCE, "/dev/vdc"], check=True, seconds=120)
    return {int(line) for line in done.out.split()}


def dwarf_kernel(acquired: Acquired) -> Path:
    """The kernel with its DWARF, or a skip that says how to get it."""
    path = cache().parent / f"vmlinux-{acquired.release}"
    if not path.exists():
        pytest.skip("needs a guest's DWARF: scripts/guests.sh amd64 --symbols fetches it")
    return path


def dwarf_symbols(acquired: Acquired) -> Path:
    """Volatility's symbols that dwarf2json made, or a skip that says how to get them."""
    path = cache().parent / f"{acquired.release}.json"
    if not path.exists():
        pytest.skip("needs a guest's DWARF: scripts/guests.sh amd64 --symbols has dwarf2json read it")
    return path


def _tasks(text: str) -> list[Task]:
    found = []
    for line in text.splitlines():
        pid, parent, name = line.split(None, 2)
        found.append(Task(int(pid), int(parent), name.strip()[:15]))  # TASK_COMM_LEN
    return found


def _only(directory: Path, pattern: str) -> Path:
    found = list(directory.glob(pattern))
    if len(found) != 1:
        raise RigError(f"{directory} has {len(found)} of {pattern}")
    return found[0]
