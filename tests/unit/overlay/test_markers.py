"""What overlay marks say, and what of them a container sees."""

from __future__ import annotations

import stat
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquirers.overlay.markers import (
    Dialect,
    Marks,
    bookkeeping,
    marks_of,
    parse_origin,
    parse_override,
    parse_redirect,
    seen_as,
    visible,
)
from tests.unit.overlay.layers import node

KERNEL, ROOTLESS, FUSE = Dialect(), Dialect(userxattr=True), Dialect(fuse=True)


def marks(mode: int, dialect: Dialect = KERNEL, *, size: int = 0, rdev: int = 0, **xattrs: bytes) -> Marks:
    named = {name.replace("__", ".").encode(): value for name, value in xattrs.items()}
    return marks_of(node(mode, size=size, rdev=rdev).stat, named, dialect)


def test_whiteouts() -> None:
    assert marks(stat.S_IFCHR).whiteout
    assert not marks(stat.S_IFCHR, rdev=0x103).whiteout, "/dev/null"
    assert not marks(stat.S_IFBLK).whiteout
    assert marks(stat.S_IFREG, trusted__overlay__whiteout=b"").whiteout
    assert not marks(stat.S_IFREG, size=1, trusted__overlay__whiteout=b"").whiteout, "not empty"
    assert not marks(stat.S_IFDIR, trusted__overlay__whiteout=b"").whiteout


@pytest.mark.parametrize(
    ("value", "opaque"), [(b"y", True), (b"x", False), (b"", False), (b"yy", False), (b"Y", False)]
)
def test_opaque(value: bytes, opaque: bool) -> None:
    assert marks(stat.S_IFDIR, trusted__overlay__opaque=value).opaque is opaque
    assert not marks(stat.S_IFREG, trusted__overlay__opaque=value).opaque


def test_whose_marks_count() -> None:
    assert not marks(stat.S_IFDIR, KERNEL, user__overlay__opaque=b"y").opaque
    assert marks(stat.S_IFDIR, ROOTLESS, user__overlay__opaque=b"y").opaque
    assert not marks(stat.S_IFDIR, ROOTLESS, trusted__overlay__opaque=b"y").opaque
    assert not marks(stat.S_IFDIR, KERNEL, user__fuseoverlayfs__opaque=b"y").opaque
    for prefix in ("trusted__overlay", "user__overlay", "user__fuseoverlayfs"):
        opaque: dict[str, Any] = {prefix + "__opaque": b"y"}
        assert marks(stat.S_IFDIR, FUSE, **opaque).opaque


def test_a_redirect_of_a_file_counts_where_the_data_is_elsewhere() -> None:
    assert marks(stat.S_IFREG, trusted__overlay__redirect=b"a").redirect is None
    both = marks(stat.S_IFREG, trusted__overlay__redirect=b"/a/b", trusted__overlay__metacopy=b"")
    assert (both.metacopy, both.redirect) == (True, b"/a/b")
    assert marks(stat.S_IFDIR, trusted__overlay__redirect=b"a").redirect == b"a"


@pytest.mark.parametrize(
    "value",
    [b"", b"/", b"//", b"a/b", b"/a/", b"/a//b", b"..", b".", b"/a/../b", b"/./a", b"\0", b"\0a", b"/" + b"x" * 4096],
)
def test_redirects_that_are_not_followed(value: bytes) -> None:
    with pytest.raises(ValueError):
        parse_redirect(value)
    found = marks(stat.S_IFDIR, trusted__overlay__redirect=value)
    assert found.redirect is None
    assert found.problem


@given(st.binary(max_size=300))
def test_no_redirect_leads_out(value: bytes) -> None:
    try:
        path = parse_redirect(value)
    except ValueError:
        return
    parts = path.removeprefix(b"/").split(b"/")
    assert all(part not in {b"", b".", b".."} for part in parts)
    assert path.startswith(b"/") or len(parts) == 1


def test_what_a_container_sees_of_attributes() -> None:
    xattrs = {
        b"trusted.overlay.origin": b"o",
        b"trusted.overlay.overlay.opaque": b"y",
        b"trusted.overlay.overlay.overlay.opaque": b"y",
        b"trusted.overlayish": b"1",
        b"user.overlay.opaque": b"y",
        b"security.capability": b"c",
    }
    assert visible(xattrs, KERNEL) == {
        b"trusted.overlay.opaque": b"y",
        b"trusted.overlay.overlay.opaque": b"y",
        b"trusted.overlayish": b"1",
        b"user.overlay.opaque": b"y",
        b"security.capability": b"c",
    }
    assert b"trusted.overlay.origin" in visible(xattrs, ROOTLESS)
    assert b"user.overlay.opaque" not in visible(xattrs, ROOTLESS)
    assert bookkeeping(xattrs, KERNEL) == {b"trusted.overlay.origin": b"o"}


def test_origin_of_ext4() -> None:
    handle = struct.pack("<BBBBB16sII", 0, 0xFB, 29, 0, 1, b"\0" * 16, 1234, 5678)
    found = parse_origin(handle)
    assert (found.inode, found.generation, found.kind) == (1234, 5678, 1)
    for bad in (b"", handle[:-1], b"\1" + handle[1:], handle + b"x"):
        with pytest.raises(ValueError):
            parse_origin(bad)


@given(st.binary(max_size=64))
def test_origins_and_overrides_of_any_bytes(value: bytes) -> None:
    for parse in (parse_origin, parse_override):
        try:
            parse(value)
        except ValueError:
            continue


def test_override_of_owner_and_mode() -> None:
    stored = node(stat.S_IFREG | 0o644).stat
    for name in (b"user.containers.override_stat", b"user.fuseoverlayfs.override_stat"):
        found = seen_as(stored, {name: b"0:42:4755"}, FUSE)
        assert (found.uid, found.gid, found.mode) == (0, 42, stat.S_IFREG | 0o4755)
        assert seen_as(stored, {name: b"0:42:4755"}, KERNEL) == stored
        assert not visible({name: b"0:42:4755"}, FUSE)
        assert seen_as(stored, {name: b"nonsense"}, FUSE) == stored
    device = seen_as(stored, {b"user.containers.override_stat": b"0:0:0600:char-1-3"}, FUSE)
    assert (device.mode, device.rdev) == (stat.S_IFCHR | 0o600, 0x103)
    folder = node(stat.S_IFDIR | 0o700).stat
    assert seen_as(folder, {b"user.containers.override_stat": b"1:1:755:file"}, FUSE).mode == stat.S_IFDIR | 0o755
