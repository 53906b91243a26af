"""/proc/kallsyms: read as the kernel writes it, masked ones recognized, and KASLR taken out."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquirers.host import Host, Mode
from acquirers.memory.kallsyms import (
    MAX_LINE,
    X86_LINK,
    KallsymsError,
    Symbol,
    find,
    lines_of,
    link_time,
    parse,
    slide,
    system_map,
)

SLID = X86_LINK + 0x1120_0000
TEXT = b"""0000000000000000 A fixed_percpu_data
%x T _stext
%x T _text
%x D init_task
ffffffffc0000000 t init_task\t[evil]
ffffffffc0300000 t bpf_prog_6deef7357e7b4530\t[bpf]
""" % (SLID, SLID, SLID + 0x1000)


def host(root: Path, text: bytes) -> Host:
    (root / "etc").mkdir()
    (root / "proc").mkdir()
    (root / "proc/kallsyms").write_bytes(text)
    return Host(Mode.HOST, os.fsencode(root), os.fsencode(root / "proc"))


def test_lines_are_read_as_the_kernel_writes_them() -> None:
    found = list(parse(lines_of([TEXT[:50], TEXT[50:]])))
    assert found[2] == Symbol(SLID, "T", "_text", "")
    assert found[-1] == Symbol(0xFFFFFFFFC0300000, "t", "bpf_prog_6deef7357e7b4530", "bpf")
    assert len(found) == 6


@pytest.mark.parametrize(
    "line",
    [b"xyz T a", b"ffffffff81000000  T a", b"ffffffff81000000 T", b"ffffffff81000000 T a b c", b"1" * 17 + b" T a"],
)
def test_what_is_no_symbol_is_said(line: bytes) -> None:
    with pytest.raises(KallsymsError, match="line 2"):
        list(parse([b"0 A a", line]))


def test_a_line_without_end_ends() -> None:
    with pytest.raises(KallsymsError, match=str(MAX_LINE)):
        list(lines_of(b"a" * 1000 for _ in range(1 << 40)))


@given(st.lists(st.binary(max_size=60)))
def test_any_bytes(chunks: list[bytes]) -> None:
    with contextlib.suppress(KallsymsError):
        for symbol in parse(lines_of(chunks)):
            assert 0 <= symbol.address < 1 << 64
            assert "\n" not in symbol.name


def test_names_are_those_of_the_kernel_itself(tmp_path: Path) -> None:
    assert find(host(tmp_path, TEXT), {"init_task", "_text", "nothing"}) == {"init_task": SLID + 0x1000, "_text": SLID}


def test_masked_addresses_are_none(tmp_path: Path) -> None:
    masked = b"".join(b"0" * 16 + line[16:] + b"\n" for line in TEXT.splitlines() if line.startswith(b"ffff"))
    assert find(host(tmp_path, masked), {"init_task", "_text"}) == {}


def test_the_slide_is_what_vmcoreinfo_says_or_what_only_one_place_allows() -> None:
    assert slide(SLID, 0x1120_0000, "x86_64").offset == 0x1120_0000
    assert slide(SLID, None, "x86_64").offset == 0x1120_0000
    assert slide(X86_LINK, None, "x86_64").offset == 0
    assert slide(SLID + 0x1000, None, "x86_64").offset is None  # not aligned as a kernel is
    assert slide(0xFFFF800008000000, None, "aarch64").offset is None
    assert slide(None, None, "x86_64").offset is None


def test_a_system_map_is_the_same_at_every_boot() -> None:
    lines = list(system_map(parse(lines_of([TEXT])), 0x1120_0000))
    assert lines == [
        b"0000000000000000 A fixed_percpu_data\n",
        b"ffffffff81000000 T _stext\n",
        b"ffffffff81000000 T _text\n",
        b"ffffffff81001000 D init_task\n",
    ]
    assert link_time(0x3000, 0x1000) == 0x3000
