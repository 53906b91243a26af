"""What an analyst is told while an archive is unpacked or joined: no silence about what is not as it was."""

from __future__ import annotations

import enum
from collections.abc import Callable

import msgspec


class NoteKind(enum.StrEnum):
    """What is not as the archive says."""

    # Told once for each kind; `Summary.unrestored` counts them.
    DEVICE = "device"  # a character or block device was not made
    WHITEOUT = "whiteout"  # nor was a character device 0/0: the mark of a deleted file in an overlay's upper layer
    FIFO = "fifo"  # a named pipe was not made
    OWNER = "owner"  # user and group are those of whoever extracts
    MODE = "mode"  # set-user-ID, set-group-ID and sticky bits were left out
    XATTR = "xattr"  # an extended attribute was not set
    TIMES = "times"  # times that the filesystem cannot hold
    # Told for each member.
    REFUSED = "refused"  # a name that would leave the output, or that no Linux system gives
    FAILED = "failed"  # the filesystem refused the member
    AMBIGUOUS = "ambiguous"  # stock tools read this member differently
    REPEATED = "repeated"  # joined: a directory that was there already
    SHADOWED = "shadowed"  # joined: no directory, under the name of a directory
    OUTSIDE = "outside"  # joined: not of the machine's filesystem
    OURS = "ours"  # joined: a directory that impound added


class Note(msgspec.Struct, frozen=True):
    """One thing worth telling. `where` is the member's name in the archive; `detail` holds no name."""

    kind: NoteKind
    where: bytes
    detail: str

    def __str__(self) -> str:
        """One line for a person, which no name can break or colour."""
        return f"{printable(self.where)}: {self.detail}"


OnNote = Callable[[Note], None]


def printable(name: bytes) -> str:
    """A name for a person, in one line: what is not printable text is escaped."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def path_parts(name: bytes) -> list[bytes]:
    """The components of a member's name, if it stays below the directory that it is put into.

    Empty components and `.` mean nothing and are dropped. Raises `ValueError`, with the reason, for an absolute name,
    one with `..` and one with a NUL, which no kernel gives to a file.
    """
    if name.startswith(b"/"):
        raise ValueError("an absolute name")
    if b"\0" in name:
        raise ValueError("a name with a NUL in it")
    parts = [part for part in name.split(b"/") if part not in {b"", b"."}]
    if b".." in parts:
        raise ValueError("a name with '..' in it")
    return parts
