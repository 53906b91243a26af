"""drgn opens the ELF twin of an acquired image, with four and with five levels of paging, and finds the same tasks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.guest import Machine
from tests.rigs.guest_planted import NAME, PROGRAM
from tests.rigs.guest_scenes import Acquired, acquired, dwarf_kernel, impound, needs_guest

pytestmark = [needs_guest(), pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", params=[4, 5], ids=["four-level", "five-level"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Acquired:
    return acquired(tmp_path_factory, Machine(memory=512, paging=request.param))


@pytest.fixture(scope="module")
def program(run: Acquired, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    drgn = pytest.importorskip("drgn")
    kernel = dwarf_kernel(run)
    core = tmp_path_factory.mktemp("drgn") / "vmcore"
    impound("export", "elf", str(run.opened), "--output", str(core))
    program = drgn.Program()
    program.set_core_dump(str(core))
    program.load_debug_info([str(kernel)])
    yield program
    with contextlib.suppress(OSError):
        Path(core).unlink()


def test_it_is_this_kernel(run: Acquired, program: Any) -> None:
    assert program["init_uts_ns"].name.release.string_().decode() == run.release


def test_the_same_tasks(run: Acquired, program: Any) -> None:
    from drgn.helpers.linux.pid import for_each_task

    tasks = {(task.tgid.value_(), task.comm.string_().decode()) for task in for_each_task(program)}
    assert run.lasting <= tasks
    assert (run.planted, NAME) in tasks


def test_the_deleted_program_and_its_memory(run: Acquired, program: Any) -> None:
    """Through the page tables of the process, which only a right image of physical memory can give."""
    from drgn.helpers.linux.fs import d_path
    from drgn.helpers.linux.mm import access_remote_vm
    from drgn.helpers.linux.pid import find_task

    task = find_task(program, run.planted)
    assert d_path(task.mm.exe_file.f_path).decode() in {PROGRAM, f"{PROGRAM} (deleted)"}
    assert access_remote_vm(task.mm, task.mm.arg_start.value_(), len(PROGRAM)) == PROGRAM.encode()
