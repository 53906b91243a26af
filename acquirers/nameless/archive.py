"""What processes hold that has no name any more, as members of an archive, each file once in a run.

Members stand under `deleted/`, at the path at which they were found (`proc/42/fd/5`). Behind those of a process comes
`deleted/index-42.jsonl`, which gives their last names, and in which item lies what another one took already.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

from acquirers import syscalls
from acquirers.base import AcquirerError, Gap, Kind, Reason, reason_of
from acquirers.files import xattrs
from acquirers.files.content import FileContent, Reader
from acquirers.files.deadline import StuckError, guard_for, reason
from acquirers.files.entry import Entry
from acquirers.nameless.find import DELETED, open_one
from acquirers.snapshot.encode import line, put
from acquirers.snapshot.watch import Ended, Outcome, Patience, Watch

if TYPE_CHECKING:
    from acquirers.base import Buffer, Report
    from acquirers.files.archive import ArchiveWriter
    from acquirers.nameless.find import Nameless

PREFIX = b"deleted"
MAX_REMEMBERED = 100_000

Key = tuple[int, int, int]


class Holder(msgspec.Struct, frozen=True):
    """A process, and `/proc/<pid>` of it, open; the descriptor stays its maker's."""

    pid: int
    directory: int


class Recovered:
    """Which files were recovered in this run, and in which item: (device, inode, change time)."""

    def __init__(self) -> None:
        self._items: dict[Key, str] = {}
        self.dead: set[int] = set()
        """Devices of filesystems that gave no answer: nothing further is asked of them."""

    def find(self, file: Nameless) -> str:
        return self._items.get(_key(file), "")

    def add(self, file: Nameless, item: str) -> None:
        if len(self._items) < MAX_REMEMBERED:
            self._items[_key(file)] = item


def _key(file: Nameless) -> Key:
    return file.dev, file.ino, file.ctime_ns


class Recovery:
    """Writes them into an archive that may hold other things as well."""

    def __init__(
        self, writer: ArchiveWriter, report: Report, item: str, recovered: Recovered, patience: Patience
    ) -> None:
        self._writer = writer
        self._report = report
        self._item = item
        self._recovered = recovered
        self._patience = patience

    def add(self, holder: Holder, files: Sequence[Nameless], trouble: str = "") -> Iterator[Buffer]:
        """Those of one process. `trouble` is what kept files from being found.

        Raises `AcquirerError` where no child can be started.
        """
        index: list[bytes] = []
        if trouble:
            detail = f"process {holder.pid}: open files without a name: {trouble}"
            self._report.gap(Gap(Reason.STUCK, detail))
        try:
            for file in files:
                said = self._recovered.find(file)
                if not said and file.error:
                    self._gap(holder, file, OSError(file.error, os.strerror(file.error)))
                elif not said and file.dev in self._recovered.dead:
                    self._gap(holder, file, StuckError(errno.ETIMEDOUT, "not tried: its filesystem gave no answer"))
                elif not said:
                    yield from self._one(holder, file)
                    said = self._recovered.find(file)
                index.append(line(self._record(holder, file, said)))
        except OSError as error:  # no child could be started
            raise AcquirerError(reason_of(error), f"process {holder.pid}: {error.strerror}") from error
        name = b"%s/index-%d.jsonl" % (PREFIX, holder.pid)
        yield from self._writer.add_bytes(name, b"".join(index), time.time_ns())

    def _one(self, holder: Holder, file: Nameless) -> Iterator[Buffer]:
        fd = self._open(holder, file)
        if fd < 0:
            return
        guard = guard_for(fd)
        content: FileContent | None = None
        path = _path(holder, file)
        try:
            stat = guard.call(syscalls.statx, fd, b"")
            attributes = guard.call(xattrs.read, fd)
            content = FileContent(Reader(guard, self._report, in_place=True), fd, path, stat)
            entry = Entry(path, Kind.FILE, stat, attributes.values, content=content)
            yield from self._writer.add([entry], prefix=PREFIX)
            self._recovered.add(file, self._item)
        except OSError as error:
            if isinstance(error, StuckError):
                self._recovered.dead.add(file.dev)
            self._gap(holder, file, error)
        finally:
            if guard.given_up:
                self._recovered.dead.add(file.dev)
            if content is not None:
                content.close()
            elif not guard.given_up:
                os.close(fd)
            guard.close()

    def _open(self, holder: Holder, file: Nameless) -> int:
        fd, error = -1, OSError(errno.ENOENT, "it has gone")
        watch: Watch[Nameless] = Watch(
            lambda wanted: open_one(holder.directory, wanted), keep=[holder.directory], patience=self._patience
        )
        with closing(watch.run([file])) as events:
            for event in events:
                if isinstance(event, Ended):
                    if event.outcome is Outcome.STUCK:
                        self._recovered.dead.add(file.dev)
                        error = StuckError(errno.ETIMEDOUT, f"it could not be opened: {event.detail}")
                    elif event.outcome is Outcome.DIED:
                        error = OSError(errno.EIO, event.detail)
                elif event.notes:
                    fd = event.fd
                elif event.data:
                    number = int(event.data)
                    error = OSError(number, os.strerror(number))
        if fd < 0:
            self._gap(holder, file, error)
        return fd

    def _gap(self, holder: Holder, file: Nameless, error: OSError) -> None:
        name = file.target.decode("utf-8", "backslashreplace")
        self._report.gap(Gap(reason(error), f"{name}: {error.strerror}", _path(holder, file), file.size))

    def _record(self, holder: Holder, file: Nameless, item: str) -> dict[str, object]:
        record: dict[str, object] = {
            "type": "deleted",
            "pid": holder.pid,
            "link": file.link.decode("ascii", "replace"),
            "memfd": file.memfd,
            "dev": f"{os.major(file.dev)}:{os.minor(file.dev)}",
            "ino": file.ino,
            "size": file.size,
            "nlink": file.nlink,
        }
        put(record, "path", file.target.removesuffix(DELETED))
        if file.flags:
            record |= {"flags": file.flags, "pos": file.position}
        if not item:
            record["error"] = os.strerror(file.error) if file.error else "see the gaps of this item"
        elif item != self._item:
            record["item"] = item
        else:
            record["member"] = (PREFIX + _path(holder, file)).decode("ascii", "replace")
        return record


def _path(holder: Holder, file: Nameless) -> bytes:
    return b"/proc/%d/%s" % (holder.pid, file.link)
