"""What the kernel says of the first process of a container, beside its files: small members under `kernel/`.

Without them nobody knows later what was mounted where, whose numbers the owners of the files are (`uid_map`), and what
was given to the container in its environment.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING

from msgspec.structs import replace

from acquirers import syscalls
from acquirers.base import Gap, Kind, Reason, reason_of
from acquirers.files.entry import Entry
from acquirers.live.groups import MAX_MOUNTINFO
from acquirers.snapshot.placing import read_below
from acquirers.snapshot.watch import Ended, Outcome, Part, Patience, Watch
from acquirers.syscalls import Stat

if TYPE_CHECKING:
    from acquirers.base import Report

PREFIX = b"kernel"
FILES = (b"mountinfo", b"cgroup", b"status", b"uid_map", b"gid_map", b"environ", b"cmdline")
_MAX = MAX_MOUNTINFO
_PATIENCE = Patience(first=2.0, later=1.0, generous=2)


class Bytes:
    """`entry.Content` of what is in memory already."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.sha256: bytes | None = None

    @property
    def size(self) -> int:
        return len(self._data)

    @property
    def extents(self) -> tuple[tuple[int, int], ...]:
        return ((0, len(self._data)),) if self._data else ()

    @property
    def true_size(self) -> int:
        return len(self._data)

    def chunks(self) -> Iterator[memoryview]:
        self.sha256 = hashlib.sha256(self._data).digest()
        view = memoryview(self._data)
        for start in range(0, len(view), 1 << 20):
            yield view[start : start + (1 << 20)]


def files_of(directory: int, pid: int, base: bytes, report: Report) -> Iterator[Entry]:
    """`/proc/<pid>` is `directory`. Read in a child: an environment can hang its reader."""
    watch: Watch[bytes] = Watch(lambda name: _read(directory, base + name), keep=[directory], patience=_PATIENCE)
    data = bytearray()
    with closing(watch.run(FILES)) as events:
        for event in events:
            path = b"/proc/%d/%s" % (pid, event.task)
            if not isinstance(event, Ended):
                if event.notes:
                    error = OSError(int(event.notes), os.strerror(int(event.notes)))
                    report.gap(Gap(reason_of(error), os.strerror(error.errno or 5), path))
                    data.clear()
                data += event.data
                continue
            if event.outcome is not Outcome.DONE:
                report.gap(Gap(Reason.STUCK, event.detail or event.outcome.value, path))
            elif data:
                yield _entry(path, bytes(data), _stat(directory, base + event.task))
            data.clear()


def _read(directory: int, name: bytes) -> Iterator[Part]:
    try:
        yield Part(read_below(directory, name, _MAX), last=True)
    except OSError as error:
        yield Part(notes=b"%d" % (error.errno or 5), last=True)


def metadata(identity: Mapping[str, object]) -> Iterator[Entry]:
    """What the task or pod says of itself (`acquirers.identity`): documents as they were answered, else as JSON."""
    ecs = identity.get("ecs")
    if isinstance(ecs, dict):
        for key in ("task", "container"):
            if isinstance(ecs.get(key), bytes):
                yield _entry(b"/metadata/ecs-%s.json" % key.encode(), ecs[key], None)
    pod = identity.get("kubernetes")
    if isinstance(pod, dict):
        text = {key: value for key, value in pod.items() if isinstance(value, str)}
        yield _entry(b"/metadata/kubernetes.json", json.dumps(text, sort_keys=True).encode() + b"\n", None)


def _stat(directory: int, name: bytes) -> Stat | None:
    try:
        return syscalls.statx(directory, name)
    except OSError:
        return None


def _entry(path: bytes, data: bytes, stat: Stat | None) -> Entry:
    if stat is None:
        moment = time.time_ns()
        stat = Stat(
            mode=0o100400, uid=0, gid=0, size=0, nlink=1, ino=0, dev=0, rdev=0, atime_ns=moment, mtime_ns=moment,
            ctime_ns=moment, btime_ns=None, blocks=0, attributes=0, mnt_id=None,
        )  # fmt: skip
    return Entry(path, Kind.FILE, replace(stat, size=len(data), nlink=1), content=Bytes(data))
