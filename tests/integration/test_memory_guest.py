"""An image that a real kernel gave through /proc/kcore, held page by page against what QEMU knows of the memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rigs.guest import Machine
from tests.rigs.guest_scenes import Acquired, acquired, forget, needs_guest

pytestmark = [needs_guest(), pytest.mark.timeout(900)]

SMALL = Machine(memory=512)
MATRIX = [
    SMALL,
    Machine(memory=512, paging=5),
    Machine(memory=512, hole=True),
    Machine(memory=512, paging=5, hole=True),
    Machine(memory=2048),
    Machine(memory=2048, paging=5),
    Machine(memory=2048, paging=5, hole=True),
]
OWN_LIMIT = 128 << 20
LONG_LIMIT = 176 << 20
"""A longer run takes and gives back more: all that it ever had is told, and counted. docs/memory.md says so."""


def _name(machine: Machine) -> str:
    return f"{machine.memory}M-{machine.paging}-level" + ("-hole" if machine.hole else "")


@pytest.fixture(scope="module", params=[
    pytest.param(machine, id=_name(machine), marks=[] if machine == SMALL else pytest.mark.slow) for machine in MATRIX
])  # fmt: skip
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Acquired]:
    yield acquired(tmp_path_factory, request.param)
    if request.param.memory > SMALL.memory:
        forget(request.param)


def test_every_byte_of_system_ram_is_in_the_image_or_in_a_hole_with_its_reason(run: Acquired) -> None:
    verdict = run.verdict
    assert verdict.total * 4096 >= run.machine.memory * 0.95 * (1 << 20)
    assert (verdict.missing, verdict.beyond) == (0, 0), verdict
    assert all(why for _, _, why in run.pages.holes)


def test_an_idle_machine_is_imaged_without_a_hole(run: Acquired) -> None:
    assert run.verdict.in_holes == 0, run.pages.holes


def test_what_is_not_the_agents_own_is_as_it_was(run: Acquired) -> None:
    """As the paused guest had it before, afterwards, or at one of the moments in between.

    Not all of it is as it was afterwards: what the agent used and gave back is free again, and in no list of frames.
    """
    assert run.verdict.share >= 0.99, run.verdict
    assert run.verdict.share_after >= 1 - 0.1 * 512 / run.machine.memory, run.verdict


def test_the_agent_and_what_it_writes_occupy_little(run: Acquired) -> None:
    assert run.verdict.own > 0
    assert run.verdict.own_bytes < (OWN_LIMIT if run.machine == SMALL else LONG_LIMIT), run.verdict


def test_no_page_that_did_not_change_is_wrong(run: Acquired) -> None:
    assert run.verdict.wrong == [], run.verdict


def test_the_run_is_whole_and_says_that_it_can_be_analysed(run: Acquired) -> None:
    assert run.done.code == 0, run.done
    says = "yes" if run.machine.paging == 4 else "yes (drgn; Volatility 3 up to 2.28 cannot read five-level paging)"
    assert (run.result["verdict"], run.result["gaps"], run.result["analysable"]) == ("complete", 0, says)
    (end,) = run.pages.of("end")
    assert (end["analysable"], end["missing"], end["holes"]) == (says, {}, 0)
    proved = {line["check"]: line["state"] for line in run.pages.of("proof") if "state" in line}
    assert proved == dict.fromkeys(("vmcoreinfo", "banner", "paging", "tasks"), "ok")
