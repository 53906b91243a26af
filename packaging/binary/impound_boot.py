"""The first module: imports come out of the one file, shared objects out of memory, and nothing from the machine.

Modules are bytecode in a zip archive that stands at the end of the file. An extension module needs a file of its own to
be loaded from: anonymous memory, or a file without a name in the stage's directory. The descriptors stay open, because
glibc takes a path that it has seen before for the library that it has loaded from there.
"""

from __future__ import annotations

import _imp
import os
import sys
import zipimport
from importlib.machinery import ExtensionFileLoader, ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MFD_EXEC = 0x10
_STORED = 0
_LOCAL_HEADER = 30
_TOLD = os.environ.pop("IMPOUND_BOOT").split(",")
STAGE, _FILE, _DIRECTORY = _TOLD[0], int(_TOLD[1]), int(_TOLD[2])
ARCHIVE = f"/proc/self/fd/{_FILE}"


def _keep_descriptors() -> None:
    """No child of this process has what the launcher opened, or what whoever started it left open."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.set_inheritable(int(name), False)  # noqa: FBT003
            except OSError:
                pass


def nameless(name: str) -> int:
    """A file without a name, open for writing, in memory: anonymous, or where the stage has its own."""
    if _DIRECTORY >= 0:
        return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o700, dir_fd=_DIRECTORY)
    try:
        return os.memfd_create(name[:200], os.MFD_CLOEXEC | _MFD_EXEC)
    except OSError:  # before 6.3
        return os.memfd_create(name[:200], os.MFD_CLOEXEC)


class SharedObjects:
    """A finder of extension modules: `ext/<module>.so`, and `lib/<soname>` of what they need."""

    def __init__(self, importer: zipimport.zipimporter) -> None:
        self._importer = importer
        self._members: dict[str, tuple[Any, ...]] = importer._files  # type: ignore[attr-defined]  # noqa: SLF001
        self._paths: dict[str, str] = {}
        needs = importer.get_data(f"{ARCHIVE}/needs.txt").decode().splitlines()
        self._needs = {module: libraries for module, *libraries in map(str.split, needs)}

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        member = f"ext/{name}.so"
        if member not in self._members:
            return None
        for library in self._needs.get(name, ()):
            self._load(library)
        at = self._path(name, member)
        return ModuleSpec(name, ExtensionFileLoader(name, at), origin=at)

    def _load(self, library: str) -> None:
        """It has no PyInit: that is said after it was loaded, and it stays."""
        if library in self._paths:
            return
        at = self._path(library, f"lib/{library}")
        try:
            _imp.create_dynamic(ModuleSpec(library.replace(".", "_").replace("-", "_"), None, origin=at))
        except ImportError as error:
            if "define" not in str(error):
                raise

    def _path(self, name: str, member: str) -> str:
        if name not in self._paths:
            fd = nameless(name)
            self._fill(fd, member)
            if _DIRECTORY >= 0:
                # A kernel may refuse to execute what is open for writing.
                fd, writable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC), fd
                os.close(writable)
            self._paths[name] = f"/proc/self/fd/{fd}"
        return self._paths[name]

    def _fill(self, fd: int, member: str) -> None:
        _, compression, _, size, offset, *_ = self._members[member]
        if compression == _STORED:
            # Past this process: what is copied here would count as its memory.
            header = os.pread(_FILE, _LOCAL_HEADER, offset)
            offset += _LOCAL_HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            while size:
                sent = os.sendfile(fd, _FILE, offset, size)
                if not sent:
                    raise ImportError(f"{member}: the file is cut")
                offset, size = offset + sent, size - sent
            return
        data = memoryview(self._importer.get_data(f"{ARCHIVE}/{member}"))
        while data:
            data = data[os.write(fd, data) :]


def _start() -> None:
    _keep_descriptors()
    importer = zipimport.zipimporter(ARCHIVE)
    import impound_services

    sys.meta_path.append(SharedObjects(importer))
    sys.meta_path.insert(0, impound_services.WhenAsked(ARCHIVE))
    from agent.start import main

    raise SystemExit(main())


_start()
