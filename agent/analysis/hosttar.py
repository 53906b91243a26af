"""`impound export host`: the archives of a run joined into one `host.tar` that dissect.target opens.

Members are passed on byte for byte, under the native paths that they have; each archive's end is found by reading its
headers, and dropped. What dissect.target 3.25 needs beyond that, and what follows from it here:

- A tar with a member below `[root]/` is taken for a UAC collection (loaders/uac.py, `UacTarSubloader`), unless it has a
  top-level `fs/` or `sysvol/` or the names of a container image: those are asked for first (loaders/tar.py). So what
  is not below `[root]/` is left out; it is impound's own account of an archive and stays there. Once unpacked, a UAC
  collection also needs a `uac.log` beside `[root]` (`UacLoader`): ours says what this file is.
- A system is Linux if it has `/etc`, `/var` and one of a few more, `/run` among them (plugins/os/unix/linux/_os.py). A
  run that took only containers may have none of them: what is missing is added, empty, at the end.
- A directory that comes again, or after what is in it, *replaces* what was there with everything in it; and one member
  below what is no directory makes the whole tar impossible to open (`VirtualFilesystem.map_file_entry`). So every
  directory stands once, before what is in it: what archives have in common is kept where it is first met, directories
  that no archive has are added, and what is no directory does not get the name of one.

What is added is empty, has owner and time 0 and a pax `comment` that says so, and is listed in `uac.log`.

Memory: some 100 bytes for each directory. dissect takes far more than that for every member.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from acquirers.base import Kind
from agent.analysis.archives import LEFT_OUT
from agent.analysis.notes import Note, NoteKind, OnNote, path_parts, printable
from agent.analysis.tarheader import END
from agent.analysis.tarstream import ByteStream, TarStream

if TYPE_CHECKING:
    from agent.analysis.tarheader import Header

ROOT = b"[root]"
"""What the native paths of a machine stand under."""
COMMENT = "added by impound export, not from the examined machine"

_LINUX = (b"etc", b"var", b"run")
# plugins/apps/container/docker.py looks there, and where `/etc/docker/daemon.json` says.
_DATA_ROOT = b"/var/lib/docker"
_RECORD = re.compile(rb"\[root\](/.{1,4096})/containers/[0-9a-f]{64}/config\.v2\.json", re.DOTALL)
_NESTED = re.compile(rb"/(?:overlay2|fuse-overlayfs)/[^/]+/diff/|/vfs/dir/|/snapshots/\d+/|/volumes/|/subvolumes/")
_MAX_ROOTS = 20
_MAX_ADDED = 256  # directories added for one member: one with a path of 100,000 would make gigabytes of headers
_LISTED = 1000  # names in `uac.log`, and bytes of each
_GATHER = 1 << 18  # small members are handed on in chunks of this size,
_LARGE = 1 << 16  # and content from this size as it comes


def join(archives: Iterable[ByteStream], *, on_note: OnNote = lambda _note: None, about: str = "") -> Iterator[bytes]:
    """One pax tar of all archives, in their order.

    `about` is the first line of `uac.log`: which run this is. `on_note` hears of every member that is left out, of
    every directory that is added, and of each data root of Docker that dissect does not look for; `uac.log` lists the
    directories and counts the rest. Archives that hold the host's
    own directories are best given first: a directory has the metadata that it comes with where it is met first.

    Raises `DamagedError` for an archive that is not whole; what was given out until then must not be kept.
    """
    joiner = _Joiner(on_note)
    for archive in archives:
        yield from joiner.archive(archive)
    yield from joiner.end(about)


def not_joined(names: Iterable[str]) -> list[str]:
    """Which items of a run have no place in a `host.tar`, by their plaintext names: what is no archive of the host.

    Neither the run's own account, nor what items go on in, nor what was unpacked beside an archive is an item.
    """
    known = set(names)
    beside = {name.removesuffix(".tar") for name in known if name.endswith(".tar")}
    return sorted(
        (
            name
            for name in known
            if (not name.endswith(".tar") or name.startswith(LEFT_OUT))
            and not re.match(r"attempt-\d+/", name)
            and not ((cut := re.fullmatch(r"(.+)\.\d{4}", name, re.DOTALL)) and cut[1] in known)
            and not any(name[: slash.start()] in beside for slash in re.finditer("/", name))
        ),
        key=lambda name: (name.count("/"), name),
    )


class _Joiner:
    def __init__(self, on_note: OnNote) -> None:
        self._on_note = on_note
        self._directories: set[bytes] = set()  # digests of the paths that are directories in the joined archive
        self._parent: list[bytes] = [ROOT]  # the last one that was looked up
        self._top: set[bytes] = set()  # those of `_LINUX` that are there and are no directories
        self._added: list[bytes] = []
        self._roots: set[bytes] = set()  # data roots of Docker elsewhere than dissect looks
        self._counts: Counter[NoteKind] = Counter()
        self._pending = bytearray()

    def archive(self, stream: ByteStream) -> Iterator[bytes]:
        tar = TarStream(stream)
        for header in tar:
            if not self._admit(header):
                continue
            self._pending += tar.head
            if header.size >= _LARGE:
                yield from self._flush()
                yield from map(bytes, tar.raw())
            else:
                for piece in tar.raw():
                    self._pending += piece
            if len(self._pending) >= _GATHER:
                yield from self._flush()

    def end(self, about: str) -> Iterator[bytes]:
        """What dissect needs and nobody had, our account, and the end of the archive."""
        for name in _LINUX:
            if name not in self._top and not self._is_directory([ROOT, name]):
                self._add_directory([ROOT, name])
        text = self._account(about).encode()
        info = _info(b"uac.log", tarfile.REGTYPE)
        info.size = len(text)
        self._pending += _header(info) + text + bytes(-len(text) % tarfile.BLOCKSIZE)
        self._pending += END + END
        yield from self._flush()

    def _flush(self) -> Iterator[bytes]:
        if self._pending:
            yield bytes(self._pending)
            self._pending.clear()

    def _admit(self, header: Header) -> bool:
        """Whether a member comes into the joined archive; makes room for it if it does."""
        try:
            parts = path_parts(header.name)
            link_parts = path_parts(header.link_name) if header.kind is Kind.HARDLINK else [ROOT]
        except ValueError as error:
            return self._leave_out(NoteKind.REFUSED, header, str(error))
        if not header.name.startswith(ROOT + b"/") or link_parts[:1] != [ROOT]:
            return self._leave_out(NoteKind.OUTSIDE, header, "not of the machine's filesystem")
        directory = header.kind is Kind.DIRECTORY
        if len(parts) == 1 and not directory:
            return self._leave_out(NoteKind.SHADOWED, header, "the root is a directory")
        if self._is_directory(parts):
            if directory:
                return self._leave_out(NoteKind.REPEATED, header, "a directory that was there already")
            return self._leave_out(NoteKind.SHADOWED, header, "another member has a directory of this name")
        if not self._make_parents(parts):
            return self._leave_out(NoteKind.REFUSED, header, "too many directories above it are missing")
        if directory:
            self._directories.add(_digest(parts))
        elif len(parts) == 2 and parts[1] in _LINUX:
            self._top.add(parts[1])
        elif parts[-1] == b"config.v2.json":
            self._look_for_docker(header)
        return True

    def _look_for_docker(self, header: Header) -> None:
        match = _RECORD.fullmatch(header.name)
        if match is None or match[1] == _DATA_ROOT or match[1] in self._roots or _NESTED.search(match[1] + b"/"):
            return
        if len(self._roots) < _MAX_ROOTS:
            self._roots.add(match[1])
            detail = (
                f"Docker's data root is {printable(match[1])}: dissect will not list its containers, unless "
                "/etc/docker/daemon.json names it; use export tree"
            )
            self._on_note(Note(NoteKind.AMBIGUOUS, header.name[: match.end(1)], detail))

    def _leave_out(self, kind: NoteKind, header: Header, detail: str) -> bool:
        self._counts[kind] += 1
        self._on_note(Note(kind, header.name, detail))
        return False

    def _is_directory(self, parts: list[bytes]) -> bool:
        return _digest(parts) in self._directories

    def _make_parents(self, parts: list[bytes]) -> bool:
        """Adds the directories above a member that are not there. False if these are too many."""
        parent = parts[:-1]
        if parent == self._parent or len(parent) < 2:
            return True
        known = len(parent)
        while known > 1 and not self._is_directory(parent[:known]):
            known -= 1
            if len(parent) - known > _MAX_ADDED:
                return False
        for depth in range(known + 1, len(parent) + 1):
            self._add_directory(parent[:depth])
        self._parent = parent
        return True

    def _add_directory(self, parts: list[bytes]) -> None:
        name = b"/".join(parts) + b"/"
        self._pending += _header(_info(name, tarfile.DIRTYPE))
        self._directories.add(_digest(parts))
        self._counts[NoteKind.OURS] += 1
        if len(self._added) < _LISTED:
            self._added.append(name[:_LISTED])
        self._on_note(Note(NoteKind.OURS, name, "a directory that no archive had up to here"))

    def _account(self, about: str) -> str:
        lines = [
            *([about] if about else []),
            "This is a host.tar of impound: the archives of one run, joined for tools that open a whole machine.",
            "The archives, the manifest and the receipt of the run are the evidence. This one file, and the empty",
            "directories that are listed here, are impound's own: they are not from the examined machine.",
            "",
            *(printable(name) for name in self._added),
            *([f"and {more} more"] if (more := self._counts[NoteKind.OURS] - len(self._added)) else []),
            "",
            "Members of the archives that are not in this file:",
            *(f"{self._counts[kind]} {what}" for kind, what in _LEFT_OUT.items() if self._counts[kind]),
            *([] if any(self._counts[kind] for kind in _LEFT_OUT) else ["none"]),
        ]
        return "\n".join(lines) + "\n"


_LEFT_OUT = {
    NoteKind.REPEATED: "directories that came again: the first one counts",
    NoteKind.SHADOWED: "others that have the name of a directory",
    NoteKind.OUTSIDE: "that are not of the machine's filesystem",
    NoteKind.REFUSED: "with names that leave it, or that miss too much above them",
}


def _digest(parts: list[bytes]) -> bytes:
    return hashlib.blake2b(b"/".join(parts), digest_size=16).digest()


def _info(name: bytes, type_: bytes) -> tarfile.TarInfo:
    """A member of our own, which says so."""
    info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
    info.type = type_
    info.mode = 0o755 if type_ == tarfile.DIRTYPE else 0o644
    info.pax_headers = {"comment": COMMENT}
    return info


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
