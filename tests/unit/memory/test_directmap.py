"""The direct map, found by a page of our own: on every layout that kernels have, and never by accident."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquirers.memory import directmap
from acquirers.memory.block import PAGE
from acquirers.memory.directmap import Canary, HiddenError, NotFoundError
from acquirers.memory.ranges import Ranges

GIB = 1 << 30
WORD = 1 << 64
X86_RAM = Ranges([(0x1000, 0x9FC00), (0x10_0000, 3 * GIB), (4 * GIB, 25 * GIB)])
ARM_RAM = Ranges([(GIB, 4 * GIB), (0x4_0000_0000, 0x5_F800_0000)])
CONTENT = bytes(range(64))


class Machine:
    """Memory that is mapped at `base` and holds nothing but the canary's page."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, base: int, ram: Ranges, frames: list[int]) -> None:
        self.base, self.ram, self.tries = base, ram, 0
        self.frame = frames[0]
        left = list(frames)

        def physical(_: Canary) -> int:
            """Where it says it is; the kernel moves it after each look."""
            told = left.pop(0) if len(left) > 1 else left[0]
            self.frame = left[0]
            return told * PAGE

        monkeypatch.setattr(Canary, "physical", physical)
        monkeypatch.setattr("acquirers.memory.directmap.secrets.token_bytes", lambda _: CONTENT)

    def read(self, address: int, into: memoryview) -> None:
        self.tries += 1
        physical = (address - self.base) % WORD
        if not self.ram.covers(physical, physical + len(into)):
            raise OSError(14, "Bad address")
        into[:] = CONTENT if physical == self.frame * PAGE else bytes(len(into))


@pytest.mark.parametrize(
    ("machine", "base", "ram", "task"),
    [
        ("x86_64", 0xFFFF_8880_0000_0000, X86_RAM, 24 * GIB + 0x4C0),  # four levels, no KASLR
        ("x86_64", 0xFFFF_9A3F_C000_0000, X86_RAM, 0x12_3480),  # four levels, KASLR
        ("x86_64", 0xFF11_0000_0000_0000, X86_RAM, 5 * GIB),  # five levels, no KASLR
        ("x86_64", 0xFF2C_1240_0000_0000, X86_RAM, 3 * GIB - 0x2000),  # five levels, KASLR
        ("aarch64", 0xFFFF_0000_0000_0000 - GIB, ARM_RAM, GIB + 0x8000),  # 48 bits, RAM from 1 GiB
        ("aarch64", 0xFFF0_0000_0000_0000 - GIB, ARM_RAM, 0x5_F7FF_0000),  # 52 bits
        ("aarch64", 0xFFFF_0000_0000_0000 + 77 * GIB - 0x3800_0000, ARM_RAM, 3 * GIB),  # KASLR, sections of 128 MiB
        ("aarch64", 0xFFFF_FF80_0000_0000 - GIB, ARM_RAM, 2 * GIB),  # 39 bits
    ],
)
def test_it_is_found_on_every_layout(
    monkeypatch: pytest.MonkeyPatch, machine: str, base: int, ram: Ranges, task: int
) -> None:
    made = Machine(monkeypatch, base, ram, [(2 * GIB) // PAGE])
    assert directmap.find(made.read, base + task, ram, machine) == base
    assert made.tries < 500


def test_a_tagged_pointer_leads_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    base = 0xFFFF_0000_0000_0000 - GIB
    made = Machine(monkeypatch, base, ARM_RAM, [(2 * GIB) // PAGE])
    assert directmap.find(made.read, (base + 2 * GIB) & ~(0xFF << 56) | 0xF4 << 56, ARM_RAM, "aarch64") == base


def test_a_hint_is_tried_first_and_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    base = 0xFFFF_8880_0000_0000
    made = Machine(monkeypatch, base, X86_RAM, [1000])
    assert directmap.find(made.read, base + 20 * GIB, X86_RAM, "x86_64", [base]) == base
    assert made.tries == 1
    assert directmap.find(made.read, base + 20 * GIB, X86_RAM, "x86_64", [base + GIB]) == base


def test_a_page_that_moves_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    base = 0xFFFF_8880_0000_0000
    made = Machine(monkeypatch, base, X86_RAM, [1000, 2000, 2000])
    assert directmap.find(made.read, base + 20 * GIB, X86_RAM, "x86_64") == base


def test_it_is_not_found_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Machine(monkeypatch, 0xFFFF_8880_0000_1000, X86_RAM, [1000])
    with pytest.raises(NotFoundError):
        directmap.find(made.read, 0xFFFF_8880_0000_0000 + 20 * GIB, X86_RAM, "x86_64")
    assert made.tries <= 25
    huge = Ranges([(0, 1 << 52)])
    with pytest.raises(NotFoundError):
        directmap.find(made.read, 0xFFFF_8880_0000_0000, huge, "x86_64")
    assert made.tries <= 25 + directmap.MAX_TRIES
    with pytest.raises(NotFoundError):
        directmap.find(made.read, 0xFFFF_8880_0000_0000, Ranges(), "x86_64")


@given(
    st.integers(0, 1 << 12),
    st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(PAGE, 1 << 38)), min_size=1, max_size=5).map(
        lambda spans: Ranges((start, start + size) for start, size in spans)
    ),
    st.data(),
)
def test_the_base_is_always_among_the_candidates(gibs: int, ram: Ranges, draw: st.DataObject) -> None:
    base = 0xFFFF_8880_0000_0000 + gibs * GIB
    span = draw.draw(st.sampled_from(list(ram)))
    task = base + draw.draw(st.integers(span.start, span.end - 1))
    found = list(directmap.candidates(task, ram, "x86_64"))
    assert base in found
    assert all(task - one in ram for one in found)


def needs_frames(test: Callable[[], None]) -> Callable[[], None]:
    return pytest.mark.root(pytest.mark.skipif(os.geteuid() != 0, reason="needs root")(test))


@needs_frames
def test_the_canary_has_a_frame_and_leaves_nothing() -> None:
    with Canary() as canary:
        assert canary.physical() % PAGE == 0
        assert len(canary.content) == 64
        with Canary() as other:
            assert other.physical() != canary.physical()
            assert other.content != canary.content


def test_hidden_frames_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CAP_SYS_ADMIN the kernel shows that a page is there, and 0 for its number."""
    monkeypatch.setattr(os, "pread", lambda *_: (1 << 63).to_bytes(8, "little"))
    with Canary() as canary, pytest.raises(HiddenError, match="hides"):
        canary.physical()
