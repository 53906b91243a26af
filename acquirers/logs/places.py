"""A place where logs lie: one directory, and which of its names are logs."""

from __future__ import annotations

import errno
import os
import re
import stat as stat_module
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import Flag, FlagKind, Kind, Report
from acquirers.files.tree import DIRECTORY, open_noatime

if TYPE_CHECKING:
    from acquirers.host import Host

Keep = Callable[[bytes, Kind], bool]
"""Is asked with the path relative to the place, a directory before what is in it. What it refuses is not opened."""

MAX_LOOKED_AT = 1_000_000
"""Names of a directory among which a log is looked for."""
MAX_MEASURED = 5000
"""Files whose sizes an estimate adds up."""

_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_KEY = re.compile(rb"(?:.*\.key|.*-key\.pem|key\.pem|kubelet-(?:client|server)-.*\.pem)", re.DOTALL)


class Place(msgspec.Struct, frozen=True):
    """One directory, or what its filters leave of it."""

    path: bytes
    """Native and absolute. Links on the way are followed inside the machine, and stored as well."""
    names: re.Pattern[bytes] | None = None
    """Which names of the directory itself are taken, with all that is below them; None: every one."""
    keep: Callable[[Report, bytes], Keep] | None = None
    """Makes a further filter; the bytes are the native path of the directory."""
    recursive: bool = True
    """What is mounted below belongs to it."""

    def takes(self, path: bytes) -> bool:
        return self.names is None or self.names.fullmatch(path.partition(b"/")[0]) is not None


def names(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, re.DOTALL)


def rotated(*stems: bytes) -> re.Pattern[bytes]:
    """These names and what rotation makes of them: `messages`, `messages-20260101.gz`, `messages.1`."""
    return names(rb"(?:%s)(?:[.-].*)?" % b"|".join(re.escape(stem) for stem in stems))


def without_keys(report: Report, directory: bytes) -> Keep:
    """Everything but private keys, which are no evidence of anything and a loss to everybody if they leak."""

    def keep(path: bytes, kind: Kind) -> bool:
        if kind is Kind.DIRECTORY or not _KEY.fullmatch(path.rpartition(b"/")[2]):
            return True
        report.flag(Flag(FlagKind.ELSEWHERE, "a private key: left out", directory.rstrip(b"/") + b"/" + path))
        return False

    return keep


def below(*wanted: bytes) -> Callable[[Report, bytes], Keep]:
    """Only what lies at or below one of these paths, `*` standing for one name; and the way to it."""
    patterns = [tuple(path.split(b"/")) for path in wanted]

    def make(_report: Report, _directory: bytes) -> Keep:
        def keep(path: bytes, kind: Kind) -> bool:
            parts = path.split(b"/")
            for pattern in patterns:
                if len(parts) < len(pattern) and kind is not Kind.DIRECTORY:
                    continue
                if all(want in {b"*", part} for want, part in zip(pattern, parts, strict=False)):
                    return True
            return False

        return keep

    return make


def is_there(host: Host, place: Place) -> bool:
    """Whether there is anything to take. Raises `OSError` where it cannot be told: not allowed, not entered."""
    try:
        found = host.follow(place.path)
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise
    try:
        if found.view or not stat_module.S_ISDIR(os.fstat(found.fd).st_mode):
            return False
        listing = open_noatime(b".", DIRECTORY, found.fd)
    finally:
        os.close(found.fd)
    try:
        with os.scandir(listing) as entries:
            for count, entry in enumerate(entries):
                if place.takes(os.fsencode(entry.name)):
                    return True
                if count >= MAX_LOOKED_AT:
                    break
    finally:
        os.close(listing)
    return False


def measure(host: Host, place: Place) -> int:
    """Bytes of the files in a place, roughly: those of the first few thousand. Raises `OSError`."""
    total, left = 0, MAX_MEASURED
    tree = host.tree(place.path)
    base = tree.path.rstrip(b"/") + b"/"
    with tree:
        todo = [(os.dup(tree.fd), b"")]
        try:
            while todo and left > 0:
                fd, above = todo.pop()
                try:
                    with os.scandir(fd) as entries:
                        for entry in entries:
                            left -= 1
                            if left <= 0:
                                break
                            path = above + os.fsencode(entry.name)
                            if not place.takes(path) or base + path in tree.mounts:
                                continue  # what is mounted is not even asked for its size
                            found = entry.stat(follow_symlinks=False)
                            if stat_module.S_ISREG(found.st_mode):
                                total += min(found.st_size, found.st_blocks * 512)
                            elif stat_module.S_ISDIR(found.st_mode) and found.st_dev == os.fstat(tree.fd).st_dev:
                                todo.append((open_noatime(os.fsencode(entry.name), DIRECTORY, fd), path + b"/"))
                except OSError:
                    continue  # an estimate, not an account
                finally:
                    os.close(fd)
        finally:
            for fd, _ in todo:
                os.close(fd)
    return total
