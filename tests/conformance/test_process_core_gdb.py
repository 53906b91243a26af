"""Cores of processes under the tools of others: gdb, readelf, pyelftools, Volatility's ELF layer."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from acquirers.base import Scope
from tests.unit.memory.process.helpers import PAGE, Core, Target, items, python, read

CODE = """
def wait(barrier=threading.Barrier(6)):
    barrier.wait()
    time.sleep(1000)
for _ in range(5):
    threading.Thread(target=wait, daemon=True).start()
file = mmap.mmap(os.open(sys.executable, os.O_RDONLY), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
known = area(1 << 16, b"text that gdb finds ")
hidden = area(1 << 16, b"behind PROT_NONE ", prot=0)
never = area(1 << 20)
threading.Timer(0.5, tell, (os.getpid(), known, hidden, never)).start()
wait()
"""


class Taken:
    """A core on disk, and what its process said."""

    def __init__(self, target: Target, directory: Path) -> None:
        self.target = target
        found = items(Scope(pids=(target.pid,)))
        self.core = Core(read(next(found)))
        self.path = directory / "core"
        self.path.write_bytes(self.core.data)


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Taken]:
    with python(CODE) as target:
        yield Taken(target, tmp_path_factory.mktemp("core"))


def gdb(core: Path, *commands: str) -> str:
    if shutil.which("gdb") is None:
        pytest.skip("needs gdb")
    program = str(Path(sys.executable).resolve())
    words = [word for command in commands for word in ("-ex", command)]
    done = subprocess.run(
        ["gdb", "-nx", "-batch", "-iex", "set auto-load no", *words, program, str(core)],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout


def test_gdb_sees_the_threads_and_where_they_wait(taken: Taken) -> None:
    said = gdb(taken.path, "info threads", "thread apply all bt 3")
    threads = set(re.findall(r"\(LWP (\d+)\)", said.split("Id   Target Id")[1]))
    assert str(taken.target.pid) in threads
    assert len(threads) == taken.core.process["threads"] == 7
    assert len(re.findall(r"^#0 .*clock_nanosleep", said, re.MULTILINE)) >= 6
    assert len(re.findall(r"^#2 ", said, re.MULTILINE)) == 7  # every stack leads on: registers and memory agree


def test_gdb_reads_memory_and_maps(taken: Taken) -> None:
    known, hidden, never = taken.target.said
    said = gdb(taken.path, f"x/s {known}", f"x/s {hidden}", f"x/gx {never + PAGE}", "info proc mappings", "info auxv")
    assert f'{known:#x}:\t"text that gdb finds text' in said
    assert f'{hidden:#x}:\t"behind PROT_NONE behind' in said
    assert re.search(rf"{never + PAGE:#x}:\s+0x0+\n", said)
    assert re.search(r"0x[0-9a-f]+ +0x[0-9a-f]+ .*/libc", said)
    assert "AT_ENTRY" in said


def test_gdb_says_that_it_cannot_read_what_is_not_there(tmp_path: Path) -> None:
    """A page that was not present is no zeros, to gdb either."""
    file = tmp_path / "mapped"
    file.write_bytes(b"F" * (8 * PAGE))
    code = f"""
fd = os.open({str(file)!r}, os.O_RDONLY)
at = libc.mmap(None, {8 * PAGE}, 1, 2, fd, 0)
os.unlink({str(file)!r})
tell(os.getpid(), at)
"""
    with python(code) as target:
        taken = Taken(target, tmp_path)
    assert "Cannot access memory" in gdb_errors(taken.path, f"x/gx {target.said[0]}")


def gdb_errors(core: Path, command: str) -> str:
    return gdb(core, f"python\ntry:\n  gdb.execute('{command}')\nexcept gdb.MemoryError as e:\n  print(e)\nend")


def test_readelf_has_no_complaint(taken: Taken) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf")
    done = subprocess.run(
        ["readelf", "--file-header", "--segments", "--sections", "--wide", "-p", ".impound.pages", str(taken.path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not done.stderr
    assert "CORE (Core file)" in done.stdout
    assert '{"type":"end"}' in done.stdout


def test_pyelftools(taken: Taken) -> None:
    elffile = pytest.importorskip("elftools.elf.elffile", reason="needs pyelftools")
    with taken.path.open("rb") as file:
        elf: Any = elffile.ELFFile(file)
        notes = [note for segment in elf.iter_segments("PT_NOTE") for note in segment.iter_notes()]
        assert [note["n_type"] for note in notes].count("NT_PRSTATUS") == 7
        (files,) = [note["n_desc"] for note in notes if note["n_type"] == "NT_FILE"]
        assert any(b"libc" in name for name in files["filename"])
        loads = {segment["p_vaddr"]: segment for segment in elf.iter_segments("PT_LOAD")}
        assert loads[taken.target.said[0]].data()[:20] == b"text that gdb finds "


def test_volatility_reads_it_as_a_layer(taken: Taken) -> None:
    pytest.importorskip("volatility3", reason="needs volatility3")
    contexts: Any = importlib.import_module("volatility3.framework.contexts")
    physical: Any = importlib.import_module("volatility3.framework.layers.physical")
    elf: Any = importlib.import_module("volatility3.framework.layers.elf")
    context = contexts.Context()
    context.config["base.location"] = taken.path.as_uri()
    context.add_layer(physical.FileLayer(context, "base", "base"))
    context.config["core.base_layer"] = "base"
    layer = elf.Elf64Layer(context, "core", "core")
    known, hidden, _ = taken.target.said
    assert layer.read(known, 20) == b"text that gdb finds "
    assert layer.read(hidden, 16) == b"behind PROT_NONE"


def test_more_segments_than_sixteen_bits_hold(tmp_path: Path) -> None:
    code = f"""
at = area(80_000 * {PAGE})
libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(80_000 * {PAGE}), 15)  # MADV_NOHUGEPAGE
for page in range(0, 80_000, 2):
    ctypes.memmove(at + page * {PAGE}, b"PAGE %d" % page, 12)
tell(os.getpid(), at)
"""
    with python(code) as target:
        taken = Taken(target, tmp_path)
    assert taken.core.count > 0xFFFF
    assert '"PAGE 79998"' in gdb(taken.path, f"x/s {target.said[0] + 79_998 * PAGE}")
