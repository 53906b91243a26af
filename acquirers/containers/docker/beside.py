"""What lies in the directory of an image layer beside its files: nothing but what Docker itself puts there.

A layer that is left out is left out with all of this, so each must hold what the driver wrote, and no byte more. From
moby `daemon/graphdriver/overlay2/overlay.go`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from acquirers.base import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acquirers.layers.disk import Directory
    from acquirers.layers.proof import Found

FILES = b"diff"
_CONTENTS = {
    b"link": re.compile(rb"[A-Z0-9]{26}"),
    b"lower": re.compile(rb"l/[A-Z0-9]{26}(?::l/[A-Z0-9]{26}){0,500}"),
    b"committed": re.compile(rb""),
}
_DIRECTORIES = {b"work": (b"work",), b"merged": (), FILES: ()}
"""Names -> what may lie in them, empty. Of the files themselves others say more."""
_MOST = 1 << 15
_LABEL = b"security.selinux"


def strange(layer: Directory) -> Iterator[tuple[bytes, str]]:
    """Names, as seen from the files, and what is wrong with them. Raises `OSError`."""
    if _more(layer.find(b"")):
        yield b"..", "has attributes that no driver gives it"
    for name in layer.listing(b"", limit=100):
        found = layer.find(name)
        where = b"../" + name
        if found is None or (name not in _CONTENTS and name not in _DIRECTORIES):
            yield where, "lies beside the files of the layer, and is in no tar"
        elif name == FILES:
            if found.kind is not Kind.DIRECTORY:
                yield where, f"is a {found.kind}"
        elif _more(found):
            yield where, "has attributes that no driver gives it"
        elif name in _CONTENTS:
            if found.kind is not Kind.FILE or not _as_written(layer, name, found.size):
                yield where, "does not hold what the driver writes"
        else:
            yield from _inside(layer, name, found, _DIRECTORIES[name])


def _inside(layer: Directory, name: bytes, found: Found, allowed: tuple[bytes, ...]) -> Iterator[tuple[bytes, str]]:
    if found.kind is not Kind.DIRECTORY:
        yield b"../" + name, f"is a {found.kind}"
        return
    for inner in layer.listing(name, limit=100):
        path = name + b"/" + inner
        seen = layer.find(path)
        empty = seen is not None and seen.kind is Kind.DIRECTORY and not layer.listing(path, limit=1)
        if inner not in allowed or not empty or _more(seen):
            yield b"../" + path, "lies beside the files of the layer, and is in no tar"


def _as_written(layer: Directory, name: bytes, size: int) -> bool:
    if size > _MOST:
        return False
    content = b""
    for piece in layer.read(name):
        content += piece
        if len(content) > _MOST:
            return False
    return _CONTENTS[name].fullmatch(content) is not None


def _more(found: Found | None) -> bool:
    return found is not None and any(key != _LABEL or len(value) > 256 for key, value in found.xattrs.items())
