"""Whether a layer's directory is what the image's publisher made: nothing changed, nothing gone, nothing put in.

The tar that the layer was is put together again from what the runtime kept of it and the files as they lie there now;
its SHA-256 is the layer's DiffID, or it is not. That digest says nothing of what the tar never had, and nothing of
owner, mode, times and attributes on the disk, since the tar's own headers are used: so each header is compared with
its file, and each file must have had a header.

A root on the machine can rewrite files, headers and DiffID together: the DiffID has to be known from elsewhere.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import stat
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

import msgspec

from acquirers.base import Kind
from acquirers.layers import headers
from acquirers.layers.crc64 import crc64
from acquirers.layers.headers import Header, HeaderError
from acquirers.layers.tarsplit import Content, Segment, TarSplitError

if TYPE_CHECKING:
    from acquirers.syscalls import Stat

MAX_DIFFERENCES = 200
"""That are named; further ones are counted."""
MAX_NAMES = 1_000_000
"""Members, and directories above them: what is kept of them takes some 30 MiB. Real layers have 100,000."""
MAX_OPAQUE = 10_000
_RUN = 1 << 16
"""Names that are sorted at once: as numbers of Python they take five times the room."""
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
OPAQUE = (b"trusted.overlay.opaque",)
"""Attributes that make a directory hide what is below it, for overlay as root mounts it. The value is `y`."""
_HARMLESS = {
    b"security.selinux": 256,
    **{
        space + b".overlay." + name: size
        for space in (b"trusted", b"user")
        for name, size in {b"origin": 160, b"upper": 160, b"uuid": 16, b"nlink": 16, b"impure": 1}.items()
    },
}
"""What the kernel or the system puts onto files of a layer, and at most how many bytes: it decides nothing of what is
seen, and holds nothing else. fs/overlayfs/overlayfs.h"""
MODES = (0o755,)
"""Of a directory that the tar has no member of, as Docker makes it. It belongs to root."""


class Found(msgspec.Struct, frozen=True):
    """A file of the layer as it is now. `identity` is the same for names of one file."""

    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    device: tuple[int, int] = (0, 0)
    target: bytes = b""
    xattrs: Mapping[bytes, bytes] = msgspec.field(default_factory=dict)
    identity: object = None

    @classmethod
    def of(cls, seen: Stat, target: bytes | None, xattrs: Mapping[bytes, bytes]) -> Found:
        """As it was looked at, on the machine or in an archive."""
        kind = Kind.of_mode(seen.mode)
        return cls(
            kind=kind,
            mode=stat.S_IMODE(seen.mode),
            uid=seen.uid,
            gid=seen.gid,
            mtime_ns=seen.mtime_ns,
            size=seen.size if kind is Kind.FILE else 0,
            device=(os.major(seen.rdev), os.minor(seen.rdev)),
            target=target or b"",
            xattrs=xattrs,
            identity=(seen.dev, seen.ino),
        )


class Files(Protocol):
    """A layer's files by their path in it, without a slash at either end."""

    def find(self, name: bytes) -> Found | None:
        """What it is. Raises `OSError` where that cannot be known; None: there is none."""

    def read(self, name: bytes) -> Iterator[bytes | memoryview]:
        """Its content, holes as zeros. Raises `OSError`."""

    def names(self) -> Iterator[bytes]:
        """Every path, directories included, but not the layer itself. Raises `OSError`."""


class Difference(msgspec.Struct, frozen=True):
    """One file that is not as it was published."""

    name: bytes
    what: str


class Proof(msgspec.Struct):
    """What came of it."""

    expected: str
    digest: str = ""
    """`sha256:…` of the tar as it is now; "" where it could not be put together."""
    members: int = 0
    differences: list[Difference] = msgspec.field(default_factory=list)
    more: int = 0
    """Differences beyond those that are listed."""
    why: str = ""
    """Why nothing can be said, or not all."""

    @property
    def proved(self) -> bool:
        """All of it is as published, names and metadata included."""
        return not self.why and not self.differences and not self.more and self.digest == self.expected

    def add(self, name: bytes, what: str) -> None:
        if len(self.differences) < MAX_DIFFERENCES:
            self.differences.append(Difference(name, what))
        else:
            self.more += 1

    def about(self) -> dict[str, object]:
        """For a record. Names are the machine's own bytes."""
        return {
            "proved": self.proved,
            "expected": self.expected,
            "digest": self.digest,
            "members": self.members,
            "differences": [{"path": one.name, "what": one.what} for one in self.differences],
            "more": self.more,
            "why": self.why,
        }


Entries = Callable[[], Iterable[Segment | Content]]


class Rules(msgspec.Struct, frozen=True):
    """How the files of a layer differ from its tar's members by right."""

    shift: tuple[int, int] | None = (0, 0)
    """What is added to each user and group on the disk (userns-remap). None: that is not known, and not compared."""
    opaque: tuple[bytes, ...] = OPAQUE
    """The attributes by which the driver marks an opaque directory."""
    modes: tuple[int, ...] = MODES
    """That a directory may have which the tar has no member of."""


AS_ROOT = Rules()


def prove(
    entries: Entries,
    files: Files,
    expected: str,
    *,
    rules: Rules = AS_ROOT,
    seconds: float = 3600.0,
    name: bool = True,
) -> Proof:
    """Puts the tar together and compares. `expected`: `sha256:…`. Raises nothing for what the machine holds.

    `name`: names the files whose content differs, for which all of them are read once more, slowly.
    """
    proof = Proof(expected)
    check = _Check(proof, files, rules, time.monotonic() + seconds)
    try:
        check.run(entries())
        if proof.digest != expected and name and not proof.why:
            check.name_contents(entries())
    except TarSplitError as error:
        proof.why = f"tar-split: {error}"
    except OSError as error:
        proof.why = f"the layer could not be read: {error.strerror or error}"
    except _LateError:
        proof.why = "it took too long"
    return proof


class _LateError(Exception):
    pass


class _Check:
    def __init__(self, proof: Proof, files: Files, rules: Rules, until: float) -> None:
        self._proof, self._files, self._rules, self._until = proof, files, rules, until
        self._root: Header | None = None
        self._known: array[int] = array("Q")
        self._salt = os.urandom(16)
        self._opaque_found: dict[int, bytes] = {}
        self._opaque_told: set[int] = set()
        self._above = b""
        """The last directory that a member was in: it and those above it are known."""
        self._pending = bytearray()
        self._padding = 0
        """Bytes of the next segment that belong to the last file."""

    def run(self, entries: Iterable[Segment | Content]) -> None:
        whole = hashlib.sha256()
        for entry in entries:
            self._hurry()
            if isinstance(entry, Segment):
                whole.update(entry.data)
                self._keep(entry.data)
                continue
            self._proof.members += 1
            if self._proof.members > MAX_NAMES:
                raise TarSplitError(f"more than {MAX_NAMES} members")
            self._compare(entry)
            size = self._content(entry, whole.update)
            self._padding = -entry.size % headers.BLOCK
            if size != entry.size:
                # From here on it cannot be the same tar: the rest is only compared.
                whole.update(b"\0" * min(entry.size - size, 1))
        if any(self._pending[: 2 * headers.BLOCK]):
            self._proof.add(b"", "the tar goes on behind its last member")
        self._proof.digest = f"sha256:{whole.hexdigest()}"
        for number, path in self._opaque_found.items():
            if number not in self._opaque_told:
                self._proof.add(path, "hides what is below it, and did not")
        self._look_at_root()
        runs = (array("Q", sorted(self._known[at : at + _RUN])) for at in range(0, len(self._known), _RUN))
        self._known = array("Q", heapq.merge(*runs))
        for path in self._files.names():
            self._hurry()
            known = self._is_known(path)
            if known is None:
                self._proof.add(path, "is in no tar of this layer: it was put there")
            elif not known:
                self._implied(path)

    def name_contents(self, entries: Iterable[Segment | Content]) -> None:
        """Which files have another content than they had."""
        for entry in entries:
            if not isinstance(entry, Content) or entry.crc is None or not entry.size:
                continue
            self._hurry()
            found = 0

            def add(piece: bytes | memoryview) -> None:
                nonlocal found
                self._hurry()
                found = crc64(piece, found)

            if self._content(entry, add, tell=False) == entry.size and found != entry.crc:
                self._proof.add(_path(entry.name), "its content is another one")

    # -- one member ---------------------------------------------------------------------------------------------------

    def _keep(self, data: bytes) -> None:
        drop = min(self._padding, len(data))
        self._padding -= drop
        self._pending += data[drop:]
        if len(self._pending) > headers.MAX_HEADERS:
            raise TarSplitError(f"headers of more than {headers.MAX_HEADERS} bytes before one member")

    def _compare(self, entry: Content) -> None:
        data = bytes(self._pending)
        self._pending.clear()
        path = _path(entry.name)
        try:
            header = headers.parse(data)
        except HeaderError as error:
            self._proof.add(path, f"its header cannot be read: {error}")
            self._learn(path)
            return
        # Only so is every byte of the tar either a header that was compared, or read from the file of that name.
        if (_path(header.name), header.size, header.length) != (path, entry.size, len(data)):
            self._proof.add(path, "is not what stands in the tar at its place")
        directory, _, base = path.rpartition(b"/")
        if base == _OPAQUE:
            self._opaque(directory)
        elif base.startswith(_WHITEOUT + _WHITEOUT):
            pass  # AUFS's own notes, which nobody unpacks
        elif base.startswith(_WHITEOUT):
            self._whiteout(directory + b"/" + base[len(_WHITEOUT) :] if directory else base[len(_WHITEOUT) :])
        elif path:
            self._learn(path)
            self._file(path, header)
        else:
            self._root = header

    def _file(self, path: bytes, header: Header) -> None:
        found = self._files.find(path)
        if found is None:
            self._proof.add(path, "is gone")
            return
        for what in _differing(header, found, self._rules):
            self._proof.add(path, what)
        self._note_opaque(path, found)
        if header.kind is Kind.HARDLINK:
            other = self._files.find(_path(header.target))
            if other is None or other.identity != found.identity:
                self._proof.add(path, "is no further name of the file that it was")

    def _look_at_root(self) -> None:
        """The layer itself. Not every version of Docker gives it what its tar says of `./`."""
        found = self._files.find(b"")
        if found is None or self._root is None or any(_differing(self._root, found, self._rules)):
            self._implied(b"")

    def _whiteout(self, path: bytes) -> None:
        self._learn(path)
        found = self._files.find(path)
        if found is None or found.kind is not Kind.CHAR_DEVICE or found.device != (0, 0):
            self._proof.add(path, "should be a whiteout")

    def _note_opaque(self, path: bytes, found: Found) -> None:
        if self._is_opaque(found):
            self._opaque_found[self._number(path)] = path
            if len(self._opaque_found) > MAX_OPAQUE:
                raise TarSplitError("too many opaque directories")

    def _implied(self, path: bytes) -> None:
        """A directory that the tar has no member of, only what is in it."""
        found = self._files.find(path)
        if found is None or found.kind is not Kind.DIRECTORY:
            self._proof.add(path, "is a directory in the tar")
            return
        owner = self._rules.shift or (found.uid, found.gid)
        if found.mode not in self._rules.modes or (found.uid, found.gid) != owner:
            self._proof.add(path, "has no member in the tar, and another mode or owner than it is made with")
        for key, value in found.xattrs.items():
            if not _harmless(key, value) and not (key in self._rules.opaque and self._is_told_opaque(path, value)):
                self._proof.add(path, f"has no member in the tar, and an attribute {os.fsdecode(key)!r}")

    def _opaque(self, path: bytes) -> None:
        self._opaque_told.add(self._number(path))
        if len(self._opaque_told) > MAX_OPAQUE:
            raise TarSplitError("too many opaque directories")
        found = self._files.find(path) if path else None
        if path and (found is None or not self._is_opaque(found)):
            self._proof.add(path, "should be opaque")

    def _is_opaque(self, found: Found) -> bool:
        return any(found.xattrs.get(key) == b"y" for key in self._rules.opaque)

    def _is_told_opaque(self, path: bytes, value: bytes) -> bool:
        return value == b"y" and self._number(path) in self._opaque_told

    def _content(self, entry: Content, take: Callable[[bytes | memoryview], object], *, tell: bool = True) -> int:
        """Hands on what the file has, at most what it had. Returns how much that was; `tell`: of what is missing."""
        if not entry.size:
            return 0
        path, got = _path(entry.name), 0
        try:
            for piece in self._files.read(path):
                self._hurry()
                left = entry.size - got
                got += min(left, len(piece))
                take(piece[:left])
                if len(piece) >= left:
                    break
        except OSError as error:
            if tell and not isinstance(error, FileNotFoundError):
                self._proof.add(path, f"cannot be read: {error.strerror}")
        return got

    # -- names --------------------------------------------------------------------------------------------------------

    def _learn(self, path: bytes) -> None:
        """Also the directories above it, which need no member of their own. The last bit tells them apart."""
        self._known.append(self._number(path) | 1)
        above = directory = path.rpartition(b"/")[0]
        while above and not (self._above + b"/").startswith(above + b"/"):
            self._known.append(self._number(above))
            above = above.rpartition(b"/")[0]
        self._above = directory
        if len(self._known) > MAX_NAMES:
            raise TarSplitError(f"more than {MAX_NAMES} names")

    def _is_known(self, path: bytes) -> bool | None:
        """True: a member; False: above one; None: neither."""
        number = self._number(path)
        at = bisect_left(self._known, number | 1)
        if at < len(self._known) and self._known[at] == number | 1:
            return True
        return False if at and self._known[at - 1] == number else None

    def _number(self, path: bytes) -> int:
        """Even. Salted, so that nobody can look for a name with the number of another."""
        return int.from_bytes(hashlib.blake2b(path, digest_size=8, key=self._salt).digest(), "little") & ~1

    def _hurry(self) -> None:
        if time.monotonic() > self._until:
            raise _LateError


def _harmless(key: bytes, value: bytes) -> bool:
    return len(value) <= _HARMLESS.get(key, -1)


def _path(name: bytes) -> bytes:
    """A member's name as a path in the layer. What would lead out of it stays in it, as it does when it is unpacked."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in {b"", b"."}:
            parts.append(part)
    return b"/".join(parts)


def _differing(header: Header, found: Found, rules: Rules) -> Iterator[str]:
    if header.kind is not Kind.HARDLINK and header.kind is not found.kind:
        yield f"is a {found.kind}, and was a {header.kind}"
        return
    if header.kind is Kind.HARDLINK:
        return  # its first name was compared
    if header.kind is not Kind.SYMLINK and header.mode != found.mode:
        yield f"its mode is {found.mode:04o}, and was {header.mode:04o}"
    if rules.shift is not None:
        owner = header.uid + rules.shift[0], header.gid + rules.shift[1]
        if owner != (found.uid, found.gid):
            yield f"it belongs to {found.uid}:{found.gid}, and did to {owner[0]}:{owner[1]}"
    if header.kind is Kind.FILE and header.size != found.size:
        yield f"it has {found.size} bytes, and had {header.size}"
    if header.kind is Kind.SYMLINK and header.target != found.target:
        yield "it leads elsewhere"
    if header.kind in {Kind.CHAR_DEVICE, Kind.BLOCK_DEVICE} and header.device != found.device:
        yield "it is another device"
    exact = found.mtime_ns == header.mtime_ns
    if not exact and not (header.whole_seconds and found.mtime_ns // 10**9 == header.mtime_ns // 10**9):
        yield "its time of modification is another one"
    for key in sorted({*header.xattrs, *found.xattrs}):
        value = found.xattrs.get(key)
        own = value is not None and (_harmless(key, value) or (key in rules.opaque and value == b"y"))
        if not own and header.xattrs.get(key) != value:
            yield f"its attribute {os.fsdecode(key)!r} is another one"
