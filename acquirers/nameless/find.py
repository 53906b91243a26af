"""Files that a process holds and that no name leads to any more: removed ones, and memfds. Each of them whole.

They are found through the links of `/proc/<pid>/fd`, `exe` and `map_files`, which lead to the file itself wherever the
process lives. Nothing is opened before it is known to be a regular file: the link is opened with O_PATH, which only
points to it, and what it points to is then opened through that. Runs in the child that `watch` keeps.
"""

from __future__ import annotations

import os
import re
import stat as stat_module
from collections.abc import Iterator
from contextlib import closing

import msgspec

from acquirers.files.tree import open_noatime
from acquirers.snapshot.process_files import parse_fdinfo
from acquirers.snapshot.watch import Outcome, Part, Patience, Received, Watch

MAX_LINKS = 100_000
MAX_FOUND = 10_000
DELETED = b" (deleted)"
_MAX_LINE = 1 << 15

# Memory that the kernel keeps in files of its own: SysV segments, shared mappings of no file, rings of io_setup, huge
# pages. What is present of it stands in the core.
_KERNELS = (b"/SYSV", b"/dev/zero (", b"/[aio]", b"/anon_hugepage", b"/drm mm object", b"/i915")

# A line of /proc/<pid>/maps, proc_pid_maps(5), that ends as one of a removed file does.
_GONE = re.compile(
    rb"^([0-9a-f]{1,16}-[0-9a-f]{1,16}) [r-][w-][x-][ps-] [0-9a-f]{1,16} ([0-9a-f]{2,8}:[0-9a-f]{2,8}) (\d{1,20})"
    rb" *(/.*" + re.escape(DELETED) + rb")\n?$",
    re.DOTALL,
)

_encode = msgspec.msgpack.Encoder().encode


class Nameless(msgspec.Struct, omit_defaults=True):
    """One file, and where it was found: `link` below `/proc/<pid>`."""

    link: bytes
    target: bytes
    """The text of the link, or the name of the mapping: its last name, as the process's mount namespace has it."""
    dev: int = 0
    ino: int = 0
    size: int = 0
    nlink: int = 0
    ctime_ns: int = 0
    flags: str = ""
    """With which the process opened it, octal."""
    position: int = -1
    error: int = 0

    @property
    def executable(self) -> bool:
        return self.link.endswith(b"exe")

    @property
    def memfd(self) -> bool:
        return self.nlink == 0 and self.target.startswith(b"/memfd:")


_decode = msgspec.msgpack.Decoder(Nameless)


def look(directory: int, base: bytes, patience: Patience) -> tuple[list[Nameless], str]:
    """What one process holds, and what kept it from being found.

    `directory` is `/proc/<pid>`, open; `base` is empty, or `task/<tid>/` of a thread that lives where the first one
    has ended. Raises `OSError` where no child can be started.
    """
    found: list[Nameless] = []
    watch: Watch[int] = Watch(lambda one: find(one, base), keep=[directory], patience=patience)
    with closing(watch.run([directory])) as events:
        for event in events:
            if isinstance(event, Received):
                if event.notes:
                    found.append(_decode.decode(event.notes))
            elif event.outcome is not Outcome.DONE:
                return found, event.detail or event.outcome.value
    return found, ""


# -- in the child -----------------------------------------------------------------------------------------------------


def find(directory: int, base: bytes) -> Iterator[Part]:
    """A part with a `Nameless` in its notes for each, one by inode. Ends early beyond `MAX_FOUND`."""
    seen: set[tuple[int, int]] = set()
    for link, target, inode in _links(directory, base):
        yield Part()
        found = _inode(directory, link, target)
        if found is None or (found.dev, found.ino) in seen:
            continue
        if found.error and any(inode == known for _, known in seen):
            continue  # a mapping whose link only root may follow, of a file that was found open
        if not found.error:
            seen.add((found.dev, found.ino))
        if b"fd/" in link:
            more = _flags(directory, link.replace(b"fd/", b"fdinfo/"))
            found.flags, position = str(more.get("flags", "")), more.get("pos", -1)
            found.position = position if isinstance(position, int) else -1
        yield Part(notes=_encode(found))
        if len(seen) >= MAX_FOUND:
            break
    yield Part(last=True)


def _flags(directory: int, name: bytes) -> dict[str, object]:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return {}
    try:
        return parse_fdinfo(os.read(fd, 4096))
    except OSError:
        return {}
    finally:
        os.close(fd)


def _links(directory: int, base: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """Links whose text says that the name is gone, mappings last; and the inode that a mapping names."""
    for name in (base + b"exe", *_descriptors(directory, base + b"fd")):
        try:
            target = os.readlink(name, dir_fd=directory)
        except OSError:
            continue
        if target.endswith(DELETED):
            yield name, target, 0
    mapped: set[tuple[bytes, int]] = set()
    try:
        with open(os.open(base + b"maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory), "rb", 1 << 16) as lines:
            while text := lines.readline(_MAX_LINE):
                gone = _GONE.match(text)
                if gone is None or gone[3] == b"0" or gone[4].startswith(_KERNELS):
                    continue
                key = (gone[2], int(gone[3]))
                if key not in mapped and len(mapped) < MAX_FOUND:
                    mapped.add(key)
                    start, _, end = gone[1].partition(b"-")
                    yield b"map_files/%x-%x" % (int(start, 16), int(end, 16)), gone[4], key[1]
    except OSError:
        return


def _descriptors(directory: int, table: bytes) -> list[bytes]:
    try:
        fd = os.open(table, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return []
    try:
        numbers = sorted(int(name) for name in os.listdir(fd) if name.isascii() and name.isdigit())
        return [b"%s/%d" % (table, number) for number in numbers[:MAX_LINKS]]
    except OSError:
        return []
    finally:
        os.close(fd)


def _inode(directory: int, link: bytes, target: bytes) -> Nameless | None:
    """None for what is no regular file, and for what has gone."""
    try:
        found = os.stat(link, dir_fd=directory)
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError as error:
        return Nameless(link, target, error=error.errno or 5)
    if not stat_module.S_ISREG(found.st_mode):
        return None
    return Nameless(link, target, found.st_dev, found.st_ino, found.st_size, found.st_nlink, ctime_ns=found.st_ctime_ns)


def open_one(directory: int, wanted: Nameless) -> Iterator[Part]:
    """Its descriptor, or in the data the errno for which there is none."""
    pointer = fd = -1
    try:
        pointer = os.open(wanted.link, os.O_PATH | os.O_CLOEXEC, dir_fd=directory)
        found = os.fstat(pointer)
        if not stat_module.S_ISREG(found.st_mode) or (found.st_dev, found.st_ino) != (wanted.dev, wanted.ino):
            raise FileNotFoundError(2, "it was closed")
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        fd = open_noatime(b"/proc/self/fd/%d" % pointer, flags, -100)
    except OSError as error:
        yield Part(b"%d" % (error.errno or 5), last=True)
        return
    finally:
        if pointer >= 0:
            os.close(pointer)
    yield Part(notes=b"open", fd=fd, last=True)
