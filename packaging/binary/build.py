"""Builds the one file: launcher, index, runtime, archive of modules. `scripts/build-binary` calls it."""

from __future__ import annotations

import argparse
import hashlib
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import hardening
import inventory
import pins
import sysroot
from modules import Modules

PAGE = 4096
MARK = b"@IMPOUND-INDEX@\0"
LIBRARY, LOADER, PROGRAM = 1, 2, 4
LOADERS = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}
COMPILERS = {"x86_64": "x86_64-linux-gnu-gcc", "aarch64": "aarch64-linux-gnu-gcc"}
CORE = (
    "libc.so.6", "libm.so.6", "libz.so.1", "libexpat.so.1", "libpthread.so.0", "libdl.so.2", "librt.so.1",
    "libutil.so.1",
)  # fmt: skip
_ENTRY = struct.Struct("<40sQQII")
_INDEX = struct.Struct("<8sII")


def compile_launcher(machine: str, out: Path) -> None:
    _compile(
        machine, out, "launcher.c", "-Os", "-static", "-nostdlib", "-nostartfiles", "-ffreestanding", "-fno-builtin",
        "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-Wl,-z,noseparate-code",
    )  # fmt: skip


def compile_interpreter(machine: str, root: Path, out: Path) -> None:
    triplet = sysroot.TRIPLETS[machine]
    library = root / f"usr/lib/python{pins.PYTHON}/config-{pins.PYTHON}-{triplet}/libpython{pins.PYTHON}-pic.a"
    # Before what it needs; all that extension modules may ask of it is exported.
    libraries: list[str | Path] = [
        library,
        f"-L{root}/usr/lib/{triplet}",
        "-l:libexpat.so.1",
        "-l:libz.so.1",
        "-l:libm.so.6",
    ]
    _compile(
        machine, out, "interpreter.c", f"--sysroot={root}", f"-I{root}/usr/include/python{pins.PYTHON}", "-O2",
        "-fPIE", "-pie", "-Wl,-export-dynamic", "-Wl,-z,relro,-z,now", *libraries,
    )  # fmt: skip


def _compile(machine: str, out: Path, source: str, *options: str | Path) -> None:
    always = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-s", "-Wl,--build-id=none")
    command = [COMPILERS[machine], *always, "-o", out, pins.HERE / source, *options]
    subprocess.run(command, check=True, timeout=300, cwd=pins.HERE)


def build(machine: str, version: str, out: Path) -> str:
    """Writes the file, and beside it what is inside (`.cdx.json`) under which licences; gives the file's SHA-256."""
    with tempfile.TemporaryDirectory(prefix="impound-build.") as name:
        work = Path(name)
        root, site = work / "root", work / "site"
        root.mkdir()
        sysroot.make(machine, root)
        sysroot.wheels(machine, site)
        compile_launcher(machine, work / "launcher")
        compile_interpreter(machine, root, work / "interpreter")
        loader = LOADERS[machine]
        parts = [(loader, LOADER, hardening.loader(sysroot.library(root, machine, loader).read_bytes(), machine))]
        parts.append(("impound", PROGRAM, (work / "interpreter").read_bytes()))
        parts += [(soname, LIBRARY, sysroot.library(root, machine, soname).read_bytes()) for soname in CORE]
        temporary = work / "impound"
        with temporary.open("w+b") as file:
            file.write(_front(bytearray((work / "launcher").read_bytes()), parts))
            Modules(file, machine, root, site).write()
        data = _with_size(bytearray(temporary.read_bytes()))
        digest = hashlib.sha256(data).hexdigest()
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(data)
        out.chmod(0o755)
        beside(out, ".cdx.json").write_text(inventory.bill(machine, version, out.name, digest, site))
        beside(out, ".licences.txt").write_text(inventory.licences(machine, root, site))
    return digest


def beside(out: Path, suffix: str) -> Path:
    return out.with_name(out.name + suffix)


def _front(launcher: bytearray, parts: list[tuple[str, int, bytes]]) -> bytes:
    """Everything before the archive; each part begins at a page."""
    start = _padded(len(launcher))
    if launcher.count(MARK) != 1:
        raise SystemExit("the launcher has no place for the offset of the index")
    at = launcher.index(MARK) + len(MARK)
    launcher[at : at + 8] = struct.pack("<Q", start)
    index, body, offset = [_INDEX.pack(b"IMPOUND1", len(parts), 0)], [], start + PAGE
    for name, kind, data in parts:
        index.append(_ENTRY.pack(name.encode(), offset, len(data), kind, 0))
        body.append(data.ljust(_padded(len(data)), b"\0"))
        offset += _padded(len(data))
    return bytes(launcher).ljust(start, b"\0") + b"".join(index).ljust(PAGE, b"\0") + b"".join(body)


def _with_size(data: bytearray) -> bytes:
    """Its own size into the index, so that a file that was cut is told from one that is whole."""
    (start,) = struct.unpack_from("<Q", data, data.index(MARK) + len(MARK))
    struct.pack_into("<I", data, start + _INDEX.size - 4, len(data))
    return bytes(data)


def _padded(size: int) -> int:
    return -(-size // PAGE) * PAGE


def main() -> None:
    if f"{sys.version_info.major}.{sys.version_info.minor}" != pins.PYTHON:
        raise SystemExit(f"the bytecode is of Python {pins.PYTHON}: build with that, not with {sys.version.split()[0]}")
    version = pins.version()
    parser = argparse.ArgumentParser(prog="scripts/build-binary", description=__doc__)
    parser.add_argument("machine", nargs="?", choices=sorted(LOADERS), default=os.uname().machine)
    parser.add_argument("-o", "--output", type=Path, help="default: dist/impound-VERSION-linux-MACHINE")
    parser.add_argument("--update-pins", action="store_true", help="pin what is newest, and build that")
    given = parser.parse_args()
    if given.update_pins:
        pins.update(given.machine)
    out = given.output or pins.ROOT / f"dist/impound-{version}-linux-{given.machine}"
    print(f"{build(given.machine, version, out)}  {out.name}")


if __name__ == "__main__":
    main()
