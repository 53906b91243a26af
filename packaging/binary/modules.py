"""The archive of modules: bytecode of the standard library, of what impound needs and of impound; shared objects."""

from __future__ import annotations

import importlib.util
import marshal
import re
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import hardening
import models
import pins
import sysroot

_TIME = (1980, 1, 1, 0, 0, 0)
_UNCHECKED = (1).to_bytes(4, "little") + bytes(8)
"""After the magic number: bytecode that is never compared with a source."""
_WITHOUT = frozenset(
    "__pycache__ distutils ensurepip idlelib lib-dynload lib2to3 msilib pydoc_data site-packages dist-packages"
    " test tests tkinter turtledemo unittest venv wsgiref xmlrpc curses dbm".split()
)
_WITHOUT_FILES = frozenset("antigravity.py doctest.py pydoc.py this.py turtle.py".split())
_WITHOUT_MODULES = re.compile(
    r"_test|_xx|xx|_curses|_dbm|readline|nis|ossaudiodev|audioop|_lsprof|_codecs_(cn|hk|jp|kr|tw|iso2022)|_crypt|_tkinter"
    r"|zstandard\._cffi"
)
PACKAGES = (
    "boto3", "botocore", "cffi", "click", "cryptography", "dateutil", "jmespath", "markdown_it", "mdurl", "msgspec",
    "psutil", "pygments", "rich", "s3transfer", "six.py", "urllib3", "zstandard",
)  # fmt: skip
_LEFT_OUT = ("botocore/data/", "boto3/data/", "boto3/examples/", "pygments/lexers/")
_KEPT = ("pygments/lexers/__init__.py", "pygments/lexers/_mapping.py")
LIBRARIES = (
    "libcrypto.so.3", "libssl.so.3", "libffi.so.8", "liblzma.so.5", "libbz2.so.1.0", "libuuid.so.1", "libgcc_s.so.1",
    "libsqlite3.so.0",
)  # fmt: skip
_STRIP = {"x86_64": "strip", "aarch64": "aarch64-linux-gnu-strip"}


class Modules:
    """Writes the archive to the end of `file`."""

    def __init__(self, file: BinaryIO, machine: str, root: Path, site: Path) -> None:
        self._machine, self._root, self._site = machine, root, site
        self._zip = zipfile.ZipFile(file, "a")
        self._needs: dict[str, list[str]] = {}

    def write(self) -> None:
        standard = self._root / f"usr/lib/python{pins.PYTHON}"
        self._tree(standard, "")
        for path in sorted((standard / "lib-dynload").glob("*.so")):
            self._extension(path, path.name)
        for package in PACKAGES:
            path = self._site / package
            self._tree(path, f"{package}/") if path.is_dir() else self._source(path, package)
        for path in sorted(self._site.glob("*.so")):
            self._extension(path, path.name)
        for name, content in sorted(models.trimmed(self._site / "botocore/data").items()):
            self._put(f"botocore/data/{name}", content)
        self._put("botocore/cacert.pem", (self._site / "botocore/cacert.pem").read_bytes())
        for package in ("acquirers", "agent"):
            self._tree(pins.ROOT / package, f"{package}/", optimize=1)  # the docstrings of verbs are their help
        self._source(pins.HERE / "impound_boot.py", "impound_boot.py")
        self._source(pins.HERE / "impound_services.py", "impound_services.py")
        for soname in LIBRARIES:
            self._put(f"lib/{soname}", self._stripped(sysroot.library(self._root, self._machine, soname)), stored=True)
        needs = "".join(f"{name} {' '.join(found)}\n" for name, found in sorted(self._needs.items()))
        self._put("needs.txt", needs.encode())
        self._zip.close()

    def _tree(self, top: Path, prefix: str, optimize: int = 2) -> None:
        for path, name in _files(top):
            member = prefix + name
            if member.startswith(_LEFT_OUT) and not member.startswith(_KEPT):
                continue
            if name.endswith(".py"):
                self._source(path, member, optimize)
            elif name.endswith(".so"):
                self._extension(path, member)

    def _source(self, path: Path, member: str, optimize: int = 2) -> None:
        code = compile(path.read_bytes(), member, "exec", dont_inherit=True, optimize=optimize)
        self._put(f"{member}c", importlib.util.MAGIC_NUMBER + _UNCHECKED + marshal.dumps(code))

    def _extension(self, path: Path, member: str) -> None:
        name = member.partition(".")[0].replace("/", ".")
        if _WITHOUT_MODULES.match(name):
            return
        data = self._stripped(path)
        self._needs[name] = [library for library in LIBRARIES if library in _needed(path)]
        if "libssl.so.3" in self._needs[name]:
            self._needs[name].sort()  # libcrypto before libssl, which needs it
        self._put(f"ext/{name}.so", data, stored=True)

    def _stripped(self, path: Path) -> bytes:
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "stripped"
            subprocess.run([_STRIP[self._machine], "--strip-unneeded", "-o", out, path], check=True, timeout=60)
            return hardening.openssl(out.read_bytes(), path.name)

    def _put(self, member: str, data: bytes, *, stored: bool = False) -> None:
        """`stored` is for what is copied into memory past Python."""
        info = zipfile.ZipInfo(member, _TIME)
        self._zip.writestr(info, data, zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED, 9)


def _needed(path: Path) -> set[str]:
    told = subprocess.run(
        ["readelf", "--wide", "--dynamic", path], check=True, capture_output=True, text=True, timeout=60
    )
    return set(re.findall(r"\(NEEDED\).*\[(.*)\]", told.stdout))


def _files(top: Path, below: str = "") -> Iterator[tuple[Path, str]]:
    for path in sorted((top / below).iterdir()):
        name = f"{below}{path.name}"
        if path.is_dir():
            if path.name not in _WITHOUT and not path.name.startswith("config-"):
                yield from _files(top, f"{name}/")
        elif path.name not in _WITHOUT_FILES:
            yield path, name
