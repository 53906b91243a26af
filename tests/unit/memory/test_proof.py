"""The proof: what live memory says must be in the image, block by block, and what is not is said."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from acquirers.host import Host, Mode
from acquirers.memory import bpf, expected, iomem
from acquirers.memory.block import BLOCK, Block, Hole, Why
from acquirers.memory.catch import Catch
from acquirers.memory.judge import judge
from acquirers.memory.paging import ARM64
from acquirers.memory.proof import Proof, Verdict
from acquirers.memory.source import Candidate, Reader, Survey
from tests.support.fake_kernel import BANNER_AT, INIT, NOTE_AT, ROOT, SIZE, WHERE, Kernel, blocks

MIB = 1 << 20


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    made = Kernel(tmp_path)
    made.live(range(1, 101))
    return made


def prepared(kernel: Kernel) -> Proof:
    proof = Proof(kernel.host, kernel.survey, machine="x86_64")
    proof.prepare()
    return proof


def proved(kernel: Kernel, image: bytes | bytearray | None = None, *holes: Hole) -> Verdict:
    proof = prepared(kernel)
    for block in blocks(kernel.ram if image is None else image):
        block.holes = tuple(hole for hole in holes if block.start <= hole.start < block.end)
        proof.block(block)
    return proof.verdict()


def line(verdict: Verdict, check: str) -> dict[str, object]:
    found = [line for line in verdict.lines if line["check"] == check]
    assert len(found) == 1
    return found[0]


def test_an_image_that_says_what_live_memory_said_is_analysable(kernel: Kernel) -> None:
    verdict = proved(kernel)
    assert (verdict.analysable, verdict.why, verdict.findings, verdict.says) == ("yes", "", (), "yes")
    assert [line(verdict, check)["state"] for check in ("vmcoreinfo", "banner", "paging", "tasks")] == ["ok"] * 4
    tasks = line(verdict, "tasks")
    assert [tasks[key] for key in ("live", "checked", "same", "changed", "missing", "reached")] == [
        100,
        100,
        100,
        0,
        0,
        100,
    ]
    assert line(verdict, "banner")["address"] == BANNER_AT
    assert line(verdict, "paging")["levels"] == 4
    assert all(one["type"] == "proof" for one in verdict.lines)
    json.dumps(verdict.lines)


def test_five_levels_are_said_to_be_beyond_volatility(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, levels=5)
    kernel.live(range(1, 5))
    verdict = proved(kernel)
    assert verdict.says == "yes (drgn; Volatility 3 up to 2.28 cannot read five-level paging)"
    assert line(verdict, "paging")["levels"] == 5


@pytest.mark.parametrize(
    ("at", "check", "analysable"),
    [
        (NOTE_AT + 40, "vmcoreinfo", "partly"),
        (BANNER_AT + 9, "banner", "partly"),
        (INIT + WHERE.comm, "tasks", "no"),
    ],
)
def test_one_byte_that_differs_in_the_image_is_noticed(kernel: Kernel, at: int, check: str, analysable: str) -> None:
    image = bytearray(kernel.ram)
    image[at] ^= 0xFF
    verdict = proved(kernel, image)
    assert (verdict.analysable, line(verdict, check)["state"]) == (analysable, "bad")
    assert "not in the image as it was" in verdict.says


def test_page_tables_that_lead_elsewhere_make_it_useless(kernel: Kernel) -> None:
    image = bytearray(kernel.ram)
    image[ROOT + 0x1000 : ROOT + 0x8000] = bytes(0x7000)
    verdict = proved(kernel, image)
    assert verdict.analysable == "no"
    assert "do not lead to the banner" in verdict.why
    image = bytearray(kernel.ram)
    struct.pack_into("<Q", image, ROOT + 8 * 300, 0xF_0000_0063)
    verdict = proved(kernel, image)
    assert verdict.says.startswith("partly: 1 of 3 entries of the first page table lead out of RAM")


def test_what_lies_in_a_hole_is_not_taken_for_what_was_there(kernel: Kernel) -> None:
    page = NOTE_AT // 4096 * 4096
    verdict = proved(kernel, None, Hole(page, page + 4096, Why.ERROR))
    assert "VMCOREINFO lies in a hole" in verdict.says
    assert "drgn needs VMCOREINFO" in verdict.says
    holes = [Hole(0x20_0000 + 4096 * pid, 0x20_1000 + 4096 * pid, Why.STUCK) for pid in (7, 8, 50)]
    verdict = proved(kernel, None, *holes)
    assert "3 of 100 tasks lie in holes" in verdict.why
    assert [line(verdict, "tasks")[key] for key in ("same", "missing", "reached")] == [97, 3, 6]


def test_a_block_that_is_read_again_fills_what_lay_in_a_hole(kernel: Kernel) -> None:
    proof = prepared(kernel)
    for block in blocks(kernel.ram):
        block.holes = (Hole(block.start, block.end, Why.STUCK),)
        proof.block(block)
    assert proof.verdict().analysable == "no"
    for block in blocks(kernel.ram):
        block.again = True
        proof.block(block)
    assert proof.verdict().says == "yes"


def test_tasks_that_ended_while_the_image_was_taken_are_no_reason(kernel: Kernel) -> None:
    image = bytearray(kernel.ram)
    for pid in range(90, 101):
        image[0x20_0000 + 4096 * pid : 0x20_1000 + 4096 * pid] = bytes(4096)
    verdict = proved(kernel, image)
    assert verdict.says == "yes"
    assert [line(verdict, "tasks")[key] for key in ("same", "changed", "reached")] == [89, 11, 90]
    image[0x20_0000 + 4096 * 2 : 0x20_1000 + 4096 * 95] = bytes(4096 * 93)
    assert "only 1 of 100 tasks" in proved(kernel, image).why


def test_a_process_that_proc_hides_is_a_finding(kernel: Kernel) -> None:
    (kernel.place / "proc/66").rmdir()
    verdict = proved(kernel)
    assert verdict.analysable == "yes"
    assert verdict.findings == ("hidden process 66 ('task-66'): in the kernel's list of tasks, and not in /proc",)
    hidden = line(verdict, "hidden")
    assert (hidden["pid"], hidden["comm"], hidden["task"]) == (66, "task-66", 0x20_0000 + 4096 * 66)


def test_a_process_unhooked_from_the_list_is_a_finding_and_its_name_is_escaped(kernel: Kernel) -> None:
    (kernel.place / "proc/4242").mkdir()
    (kernel.place / "proc/4242/comm").write_bytes(b"\x1b[31m\xff\n")
    verdict = proved(kernel)
    finding = "hidden process 4242 ('\\x1b[31m\\\\xff'): in /proc, and not in the kernel's list of tasks"
    assert verdict.findings == (finding,)
    assert line(verdict, "hidden")["comm_b64"] == "G1szMW3/"


def test_a_banner_that_proc_does_not_show_is_a_finding(kernel: Kernel) -> None:
    (kernel.place / "proc/version").write_bytes(b"Linux version 5.0.0-other (made@up) (gcc 12) #1 SMP\n")
    verdict = proved(kernel)
    assert verdict.findings == (
        "the banner in the kernel image is not what /proc/version says",
        "VMCOREINFO names the kernel '6.1.0-test', and /proc/version another",
    )
    assert line(verdict, "banner")["as_proc_version"] is False


def test_without_btf_the_list_is_not_proved_and_the_rest_is(kernel: Kernel) -> None:
    (kernel.place / "sys/kernel/btf/vmlinux").unlink()
    verdict = proved(kernel)
    assert verdict.analysable == "partly"
    assert "the kernel has no BTF" in verdict.says
    assert "the page tables lead where they should" in verdict.says
    (kernel.place / "sys/kernel/btf/vmlinux").write_bytes(b"\x9f\xeb\x01" + b"\xff" * 400)
    assert proved(kernel).analysable == "partly"


def test_without_vmcoreinfo_symbols_take_its_place(kernel: Kernel) -> None:
    (kernel.place / "sys/kernel/vmcoreinfo").unlink()
    verdict = proved(kernel)
    assert [line(verdict, check)["state"] for check in ("vmcoreinfo", "banner", "paging", "tasks")] == [
        "unknown", "ok", "unknown", "unknown",
    ]  # fmt: skip
    assert verdict.says.startswith("partly: this kernel was built without VMCOREINFO; ")
    assert verdict.why.endswith("Volatility 3 knows the kernel by its banner and can search for init_task by itself")
    symbols = f"ffffffff80100000 T _text\nffffffff{0x80000000 + ROOT:x} D init_top_pgt\n"
    symbols += f"ffffffff{0x80000000 + BANNER_AT:x} R linux_banner\nffffffff{0x80000000 + INIT:x} D init_task\n"
    (kernel.place / "proc/kallsyms").write_text(symbols)
    (kernel.place / "proc/cpuinfo").write_text("processor : 0\nflags : fpu vme\n")
    verdict = proved(kernel)
    assert (verdict.analysable, line(verdict, "paging")["state"]) == ("partly", "ok")
    assert line(verdict, "tasks")["by"] == "its symbol in /proc/kallsyms"
    assert line(verdict, "banner")["by"] == "its symbol in /proc/kallsyms"


def by_kcore(kernel: Kernel, text: bytes | None = None, reader: int | None = None) -> Verdict:
    source = kernel.kcore(text, reader)
    kernel.survey = replace(kernel.survey, candidates=(Candidate("kcore", source),))
    return proved(kernel)


def test_kcore_tells_of_its_reader_whose_parents_lead_to_init_task(kernel: Kernel) -> None:
    verdict = by_kcore(kernel, reader=kernel.add(200, b"impound"))
    assert (verdict.says, verdict.findings) == ("yes", ())
    assert line(verdict, "tasks")["by"] == "the parents of this process"
    verdict = by_kcore(kernel)
    assert (verdict.says, line(verdict, "tasks")["by"]) == ("yes", "its name in the kernel's data")


def test_vmcoreinfo_of_kcore_is_enough_to_follow_page_tables(kernel: Kernel) -> None:
    (kernel.place / "sys/kernel/vmcoreinfo").unlink()
    verdict = by_kcore(kernel)
    assert [line(verdict, check)["state"] for check in ("vmcoreinfo", "paging", "tasks")] == ["unknown", "ok", "ok"]
    assert "Volatility 3 can find the page tables by init_task" in verdict.says


def test_a_kcore_that_shows_other_than_memory_is_a_finding(kernel: Kernel) -> None:
    verdict = by_kcore(kernel, text=b"OSRELEASE=6.1.0-test\nNUMBER(phys_base)=4096\n")
    assert verdict.findings == ("VMCOREINFO in memory is not what /proc/kcore shows",)


def test_memory_that_cannot_be_read_proves_nothing(kernel: Kernel) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    kernel.before = fail
    verdict = proved(kernel)
    assert verdict.analysable == "no"
    assert "Input/output error" in verdict.why


def test_what_was_never_prepared_says_so(kernel: Kernel) -> None:
    proof = Proof(kernel.host, kernel.survey)
    for block in blocks(kernel.ram):
        proof.block(block)
    assert proof.verdict().says == "no: nothing was proved: it was not prepared"


def test_arm64_is_said_to_be_beyond_volatility(kernel: Kernel) -> None:
    proof = Proof(kernel.host, kernel.survey, machine=ARM64)
    proof.prepare()
    for block in blocks(kernel.ram):
        proof.block(block)
    assert proof.verdict().analysable != "yes"


def test_pieces_cross_pages_and_blocks_and_come_whole_or_not_at_all() -> None:
    ram = bytes(range(256)) * (SIZE // 256)
    wanted = [(MIB - 3, 6), (5, 4), (5, 4), (4094, 4), (2 * MIB, 4096), (2 * MIB, 8), (SIZE - 2, 4)]
    catch = Catch(wanted)
    for block in blocks(ram):
        catch.take(block)
    for at, size in wanted[:-1]:
        assert catch.get(at, size) == ram[at : at + size]
    assert catch.get(SIZE - 2, 4) is None
    assert catch.get(6, 1) is None
    partial = Catch(wanted)
    partial.take(Block(0, MIB, memoryview(ram)[:MIB], (Hole(4096, 8192, Why.ERROR),)))
    assert (partial.get(5, 4), partial.get(4094, 4), partial.get(MIB - 3, 6)) == (ram[5:9], None, None)


# -- this machine's own kernel ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here() -> Survey:
    if os.geteuid() != 0:
        pytest.skip("needs root: the kernel's memory is read")
    host = Host(Mode.HOST)
    data = iomem.read(host)
    try:
        source = bpf.probe(iomem.parse(data), os.uname().machine)
    except bpf.UnavailableError as error:
        pytest.skip(f"needs BPF: {error}")
    return Survey(iomem.parse(data), data, (Candidate("bpf", source),))


@pytest.mark.root
def test_the_running_kernel_is_proved_and_a_planted_process_is_in_its_list(here: Survey) -> None:
    planted = subprocess.Popen(["/bin/sleep", "60"])
    try:
        proof = Proof(Host(Mode.HOST), here)
        proof.prepare()
        reader = here.sources[0].open()
        for block in near(proof, here, reader):
            proof.block(block)
        reader.close()
        verdict = proof.verdict()
    finally:
        planted.kill()
        planted.wait()
    assert verdict.analysable == "yes", verdict.why
    assert verdict.findings == ()
    tasks = line(verdict, "tasks")
    assert (tasks["state"], tasks["compared"], tasks["missing"]) == ("ok", "with /proc", 0)
    assert isinstance(tasks["reached"], int)
    assert tasks["reached"] > 10
    assert tasks["by"] in {"the parents of this process", "its symbol in /proc/kallsyms"}
    listed = {pid: comm for _, _, pid, _, comm in expected.PACKED_TASK.iter_unpack(proof._people.tasks)}
    assert listed[planted.pid].rstrip(b"\0") == b"sleep"
    assert listed.keys() >= {1, 2, os.getpid()}
    assert line(verdict, "vmcoreinfo")["release"] == os.uname().release


def near(proof: Proof, survey: Survey, reader: Reader) -> Iterator[Block]:
    """The blocks of an image in which something is waited for, and no others."""
    starts = proof._catch._starts
    for span in survey.ram:
        for at in range(span.start // BLOCK * BLOCK, span.end, BLOCK):
            start, end = max(at, span.start), min(at + BLOCK, span.end)
            if bisect_left(starts, start) < bisect_left(starts, end):
                data = memoryview(bytearray(end - start))
                reader.read(start, data)
                yield Block(start, end, data)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from([NOTE_AT, BANNER_AT, ROOT, ROOT + 0x1000, INIT + 1056, INIT + 1280, 0x20_1000 + 1056]),
            st.integers(0, 63),
            st.sampled_from([0, 1, 0xFF, 0x80, 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_8880_0020_1420, 0x1_0000_0063]),
        ),
        max_size=6,
    )
)
def test_hostile_memory_is_judged_and_breaks_nothing(kernel: Kernel, writes: list[tuple[int, int, int]]) -> None:
    whole = bytes(kernel.ram)
    (kernel.place / "proc/2/stat").write_bytes(b"")  # not compared with /proc
    try:
        for at, offset, value in writes:
            struct.pack_into("<Q", kernel.ram, at + 8 * offset, value)
        ground = expected.ground(kernel.host, kernel.survey, "x86_64")
        people = expected.people(kernel.host, kernel.survey, ground, 1.0)
        for image in (whole, bytes(kernel.ram)):
            verdict = judge(ground, people, lambda at, size, of=image: of[at : at + size], kernel.survey.ram)  # type: ignore[misc]
            assert verdict.analysable in {"yes", "partly", "no"}
            assert verdict.says.isprintable()
            assert verdict.says.isascii()
            json.dumps(verdict.lines)
    finally:
        kernel.ram[:] = whole
