"""Layers of an image applied one upon the other, as image-spec/layer.md has it, in memory."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterable

Record = tuple[object, ...]
_TYPES = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


def apply(layers: Iterable[bytes]) -> dict[bytes, Record]:
    """Path -> type and mode, owner, mtime, device, target, attributes, digest. `layers` are tars, the lowest first."""
    tree: dict[bytes, Record] = {}
    for layer in layers:
        _apply(tree, layer)
    return tree


def _apply(tree: dict[bytes, Record], layer: bytes) -> None:
    new: dict[bytes, Record] = {}
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        for member in tar:
            path = b"/" + os.fsencode(os.path.normpath(member.name)) if os.path.normpath(member.name) != "." else b"/"
            directory, name = os.path.split(path)
            if name == b".wh..wh..opq":
                _remove_below(tree, directory)
            elif name.startswith(b".wh."):
                _remove(tree, os.path.join(directory, name[4:]))
            elif member.islnk():
                new[path] = new[b"/" + os.fsencode(os.path.normpath(member.linkname))]
            else:
                assert directory == path or directory in new or directory in tree, f"{path!r} has no directory"
                new[path] = _record(tar, member)
    for path, record in new.items():
        before = tree.get(path)
        if before is not None and not (_is_directory(before) and _is_directory(record)):
            _remove(tree, path)
        tree[path] = record


def _record(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Record:
    digest = ""
    if member.isreg():
        file = tar.extractfile(member)
        assert file is not None
        digest = hashlib.sha256(file.read()).hexdigest()
    xattrs = {
        os.fsencode(key.removeprefix("SCHILY.xattr.")): os.fsencode(value)
        for key, value in member.pax_headers.items()
        if key.startswith("SCHILY.xattr.")
    }
    device = os.makedev(member.devmajor, member.devminor) if member.isdev() and not member.isfifo() else 0
    return (
        _TYPES[member.type] | member.mode,
        member.uid,
        member.gid,
        member.pax_headers["mtime"],
        device,
        os.fsencode(member.linkname) if member.issym() else None,
        xattrs,
        digest,
    )


def _is_directory(record: Record) -> bool:
    return stat.S_ISDIR(int(str(record[0])))


def _remove(tree: dict[bytes, Record], path: bytes) -> None:
    tree.pop(path, None)
    _remove_below(tree, path)


def _remove_below(tree: dict[bytes, Record], path: bytes) -> None:
    below = path.rstrip(b"/") + b"/"
    for other in [other for other in tree if other.startswith(below) and other != path]:
        del tree[other]
