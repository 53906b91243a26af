"""Whether what a package put on a machine is what was released, and whether only root can change it.

The package brings `SHA256SUMS`, a list of its files as sha256sum(1) writes it, and where the release was signed, an
Ed25519 signature of that list. A list that lies beside the files is worth as much as the machine; the signature, with a
signer that came from elsewhere, is worth more.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACE = "/opt/impound"
SUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"
_LINE = re.compile(r"([0-9a-f]{64})  ((?!/)[A-Za-z0-9._/+-]{1,200})")
_CHUNK = 1 << 20
_MAX_FILES = 10_000
_MAX_BYTES = 256 << 20
"""Of one file. The largest that is released has a sixth of it."""


def listed(text: str) -> dict[str, str]:
    """Name -> SHA-256, of a list as sha256sum writes it. Raises `ValueError`."""
    found = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None or ".." in match[2].split("/"):
            raise ValueError(f"a line that is none of sha256sum: {line[:100]!r}")
        found[match[2]] = match[1]
    return found


def problems(place: str, sums: dict[str, str]) -> Iterator[str]:
    """What is not as it was released, below the directory `place`. Raises `OSError` where that cannot be read."""
    left = dict(sums)
    directories = {".", *itertools.chain.from_iterable(map(_leading, sums))}
    for above in _above(place):
        status = os.lstat(above)
        # Where the sticky bit is set, nobody else can put something in the place of what is root's.
        if not status.st_mode & stat.S_ISVTX and (why := _in_others_hands(status)):
            yield f"{above}: {why}"
    for number, path in enumerate(_below(place)):
        if number > _MAX_FILES:
            yield f"more than {_MAX_FILES} files"
            return
        name = os.path.relpath(path, place)
        status = os.lstat(path)
        if why := _in_others_hands(status):
            yield f"{name}: {why}"
        if _has_capabilities(path):
            yield f"{name}: has capabilities of its own"
        if stat.S_ISDIR(status.st_mode):
            if name not in directories:
                yield f"{name}: is not part of the release"
            continue
        digest = left.pop(name, None)
        if digest is None:
            if name not in {SUMS, SIGNATURE} or not stat.S_ISREG(status.st_mode):
                yield f"{name}: is not part of the release"
        elif not stat.S_ISREG(status.st_mode):
            yield f"{name}: is no file"
        elif _sha256(path) != digest:
            yield f"{name}: is not the file that was released"
    for name in left:
        yield f"{name}: is missing"


def _leading(name: str) -> Iterator[str]:
    """The directories that lead to a file of the list."""
    while name := os.path.dirname(name):
        yield name


def _has_capabilities(path: str) -> bool:
    """capabilities(7): a file's, which whoever runs it gets."""
    try:
        return bool(os.getxattr(path, "security.capability", follow_symlinks=False))
    except OSError:
        return False  # none, or a filesystem without


def _in_others_hands(status: os.stat_result) -> str:
    """Why somebody but root could have changed it, or with it become root."""
    if status.st_uid != 0 or status.st_gid != 0:
        return f"belongs to {status.st_uid}:{status.st_gid}, not to root"
    if stat.S_ISLNK(status.st_mode):
        return ""
    if status.st_mode & 0o022:
        return "others than root may write to it"
    return "is set-user-ID or set-group-ID" if status.st_mode & 0o6000 else ""


def _above(place: str) -> Iterator[str]:
    """The directories that lead to it."""
    above = os.path.dirname(os.path.realpath(place))
    while above != "/":
        yield above
        above = os.path.dirname(above)


def _below(place: str) -> Iterator[str]:
    """Itself, and everything in it; no link is followed."""
    yield place
    for directory, names, files in os.walk(place, onerror=_raise):
        yield from (os.path.join(directory, name) for name in sorted([*names, *files]))


def _raise(error: OSError) -> None:
    raise error


def _sha256(path: str) -> str:
    """Of a regular file, at most so much of it that a larger one is told from any that was released."""
    digest = hashlib.sha256()
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        left = _MAX_BYTES
        while left > 0 and (block := os.read(fd, _CHUNK)):
            digest.update(block)
            left -= len(block)
    finally:
        os.close(fd)
    return digest.hexdigest()
