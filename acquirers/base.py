"""What an acquirer is, and the words in which it speaks: items, members, gaps and flags.

An acquirer reads one kind of source and knows nothing of sealing or storage. It is asked twice: `probe` says whether it
can, why not, and how much there is, without reading evidence; `items` yields one `Item` after another, and each item is
a stream of chunks. What is noticed while a chunk is made (a file's record, a gap, a flag) goes to the `Report` that the
reader of the item hands in, so that nothing has to be kept until the end.

Adding a source is one class with the three names of `Acquirer` and one line in `acquirers.registry`.
"""

from __future__ import annotations

import enum
import errno
import stat as stat_module
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from acquirers.host import Host
    from acquirers.syscalls import Stat

Buffer = bytes | bytearray | memoryview
"""A chunk of an item. It may be reused by its maker: it is valid until the next chunk is asked for."""

MAX_CHUNK = 1 << 20
"""Bytes that one chunk holds at the most."""


class Reason(enum.StrEnum):
    """Why something that was asked for was not read whole."""

    DENIED = "denied"  # permission, capability, lockdown
    VANISHED = "vanished"  # was listed and was gone when it was opened
    IO_ERROR = "io-error"  # the kernel returned an error for the data
    SHORT = "short"  # the file shrank while it was read; the tail is padded
    STUCK = "stuck"  # a read did not return before its deadline
    MALFORMED = "malformed"  # not what its format says, so that what it names could not be found
    UNSUPPORTED = "unsupported"  # this version cannot read it
    NOT_CROSSED = "not-crossed"  # another filesystem is mounted there and was not entered
    LIMIT = "limit"  # a limit of the job or of the format
    STOPPED = "stopped"  # the run ended before it was read
    INTERNAL = "internal"  # a fault of impound itself


class FlagKind(enum.StrEnum):
    """What is worth knowing and is no loss."""

    CHANGED = "changed"  # times or size moved while it was read
    GREW = "grew"  # longer than declared: what was declared is whole
    ATIME_MOVED = "atime-moved"  # reading it moved its access time
    NO_CLONE = "no-clone"  # read in place, not through a read-only clone of the mount
    COPY = "copy"  # a hard link that is stored as a copy
    HOLES_MERGED = "holes-merged"  # too many extents: small holes are stored as zeros
    DIGEST_OF_EXTENTS = "digest-of-extents"  # too sparse to digest its holes
    ELSEWHERE = "elsewhere"  # stored under another item, or outside what was asked for
    LEFT_OUT = "left-out"  # the destination of this very run
    KNOWN = "known"  # proved to be what the responder named as known, and so not stored
    FINDING = "finding"  # two views of the machine disagree, or a record is not what it should be


class Gap(msgspec.Struct, frozen=True):
    """Something that was asked for and was not read whole. `where` is the native path, or b"" for the item itself."""

    reason: Reason
    detail: str
    where: bytes = b""
    missing: int | None = None
    """Bytes that are missing, where it is known."""


class Flag(msgspec.Struct, frozen=True):
    """Something worth knowing that is no loss: recorded, without effect on the exit code."""

    kind: FlagKind
    detail: str
    where: bytes = b""


class Kind(enum.StrEnum):
    """The type of a file, as `st_mode` gives it; a further name of an inode already stored is a hard link."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"
    FIFO = "fifo"
    SOCKET = "socket"
    CHAR_DEVICE = "char-device"
    BLOCK_DEVICE = "block-device"
    UNKNOWN = "unknown"

    @classmethod
    def of_mode(cls, mode: int) -> Kind:
        return _KINDS.get(stat_module.S_IFMT(mode), cls.UNKNOWN)


_KINDS = {
    stat_module.S_IFREG: Kind.FILE,
    stat_module.S_IFDIR: Kind.DIRECTORY,
    stat_module.S_IFLNK: Kind.SYMLINK,
    stat_module.S_IFIFO: Kind.FIFO,
    stat_module.S_IFSOCK: Kind.SOCKET,
    stat_module.S_IFCHR: Kind.CHAR_DEVICE,
    stat_module.S_IFBLK: Kind.BLOCK_DEVICE,
}


class Member(msgspec.Struct, frozen=True):
    """One file inside an item that is an archive."""

    path: bytes
    """Native absolute path on the examined machine."""
    kind: Kind
    stat: Stat
    sha256: bytes | None = None
    """Digest of the content, holes as zeros (see `FlagKind.DIGEST_OF_EXTENTS`). None for what has no content."""
    size: int | None = None
    """True length of the content that was read; less than `stat.size` when the file shrank. None without content."""
    target: bytes | None = None
    """Of a symbolic link its text; of a hard link the native path under which the content is stored."""
    xattrs: Mapping[bytes, bytes] = msgspec.field(default_factory=dict)
    offset: int | None = None
    """Byte offset in the item of the member's first header; None when it is only recorded (a socket)."""
    stored: int | None = None
    """Bytes of content in the archive, without holes."""


class Report(Protocol):
    """Where an item tells what it notices while it is read."""

    def member(self, member: Member) -> None: ...
    def gap(self, gap: Gap) -> None: ...
    def flag(self, flag: Flag) -> None: ...


class Item(msgspec.Struct, frozen=True):
    """One named stream of evidence."""

    path: str
    """Relative path in the run, of `[A-Za-z0-9._-]` components, without the suffixes of sealing."""
    media_type: str
    read: Callable[[Report], Iterator[Buffer]]
    """Starts the stream. Chunks of at most `MAX_CHUNK` bytes; raises only `AcquirerError`."""
    estimate: int | None = None
    """Bytes of plaintext, roughly; None when nobody knows."""
    about: Mapping[str, object] = msgspec.field(default_factory=dict)
    """What the manifest says of the item as a whole, of JSON types and `bytes` (the true bytes of a name)."""
    says: Mapping[str, str] = msgspec.field(default_factory=dict)
    """What the result of the run is to say besides counts, e.g. {"analysable": "yes"}: short, of printable ASCII."""


class State(enum.StrEnum):
    AVAILABLE = "available"
    ABSENT = "absent"  # there is nothing of the kind here: neither gap nor flag
    UNAVAILABLE = "unavailable"  # there is, or may be, something that cannot be read: a gap


class Subject(msgspec.Struct, frozen=True):
    """One thing that `plan` lists by name: a container, a layer, a volume. `name` is the machine's own bytes."""

    kind: str
    id: str
    name: bytes
    state: str = ""
    estimate: int | None = None
    selected: bool = True


class Availability(msgspec.Struct, frozen=True):
    """What `probe` found out without reading evidence."""

    state: State
    reason: str = ""
    """Why not, or what limits it: one line for a person."""
    remedy: str = ""
    """What would make it available."""
    estimate: int | None = None
    subjects: tuple[Subject, ...] = ()
    matched: frozenset[str] = frozenset()
    """Those of `Scope.containers` and `str(pid)` of `Scope.pids` that this acquirer found."""
    reads: tuple[bytes, ...] = ()
    """Paths, as this process would open them, of trees that are read whole: no destination may lie inside."""


class Layers(enum.StrEnum):
    """Which image layers are taken: `changed` leaves out what is proved equal to a digest named as known."""

    ALL = "all"
    UPPER = "upper"
    CHANGED = "changed"


class Scope(msgspec.Struct, frozen=True):
    """What a job asks of the acquirers. Empty selectors mean everything."""

    containers: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    layers: Layers = Layers.ALL
    known_layers: frozenset[str] = frozenset()
    """DiffIDs (`sha256:…`) of layers that need not be taken where they are proved to be unchanged."""
    freeze: bool = False
    """Containers may be frozen while their processes are read."""
    fault_in: bool = False
    """Pages of processes that are not present are read, too, which brings them into memory."""
    remote: bool = False
    """What containers mount from servers, programs and lazily loaded layers is read, with deadlines."""
    beside: frozenset[str] = frozenset()
    """Names of all acquirers of the run: what one leaves to another is no gap if the other is there."""
    exclude: frozenset[tuple[int, int]] = frozenset()
    """(device, inode) of directories that are never entered: the destination of this very run."""


class Acquirer(Protocol):
    """Reads one kind of source."""

    name: str

    def probe(self, host: Host, scope: Scope) -> Availability: ...
    def items(self, host: Host, scope: Scope) -> Iterator[Item]: ...


class AcquirerError(Exception):
    """An item cannot go on. What was yielded stays evidence; the run records a gap and takes the next item."""

    def __init__(self, reason: Reason, detail: str, where: bytes = b"") -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.where = where

    def gap(self) -> Gap:
        return Gap(self.reason, self.detail, self.where)


def reason_of(error: OSError) -> Reason:
    """The `Reason` that an errno stands for."""
    if error.errno in {errno.EACCES, errno.EPERM}:
        return Reason.DENIED
    if error.errno in {errno.ENOENT, errno.ESTALE, errno.ESRCH, errno.ENOTDIR}:
        return Reason.VANISHED
    if error.errno == errno.EREMOTE:  # `acquirers.root.ForeignMountError`
        return Reason.NOT_CROSSED
    return Reason.IO_ERROR
