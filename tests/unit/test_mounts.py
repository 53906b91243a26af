from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acquirers.mounts import KERNEL, LOCAL, Mount, below, find_mount, parse_mountinfo
from tests.rigs.trees import in_private_mounts
from tests.rigs.trees import mount as mount_here

# proc(5), with what a Docker host and a kubelet add.
EXAMPLE = rb"""27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
22 27 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:5 - proc proc rw
25 27 0:23 / /dev/shm rw shared:4 master:7 propagate_from:2 unbindable - tmpfs tmpfs rw,size=24684084k
36 27 0:40 / /var/lib/docker/overlay2/aa/merged rw - overlay overlay rw,lowerdir=/l/X:/l/Y,upperdir=/a\134,b/diff
40 27 254:0 /srv/data\040disk /mnt/a\040b\011c\012d\134e rw master:1 - ext4 /dev/vda rw
41 27 0:50 / /mnt/efs rw - nfs4 127.0.0.1:/ rw,vers=4.1
42 27 0:51 / /mnt/s3 ro - fuse.mount-s3 mountpoint-s3 rw
43 27 259:1048575 / /big rw - xfs /dev/nvme255n1 rw
"""


def by_point(data: bytes) -> dict[bytes, Mount]:
    return {mount.point: mount for mount in parse_mountinfo(data)}


def test_the_lines_of_mountinfo() -> None:
    mounts = by_point(EXAMPLE)
    assert len(mounts) == 8
    root = mounts[b"/"]
    assert (root.mount_id, root.parent_id, root.device, root.fstype) == (27, 1, os.makedev(254, 0), b"ext4")
    assert mounts[b"/dev/shm"].fstype == b"tmpfs"  # whatever optional fields stand before it
    assert mounts[b"/big"].device == os.makedev(259, 1048575)


def test_escapes_are_undone() -> None:
    mount = by_point(EXAMPLE)[b"/mnt/a b\tc\nd\\e"]
    assert mount.root == b"/srv/data disk"


def test_options_are_split_before_their_escapes_are_undone() -> None:
    merged = by_point(EXAMPLE)[b"/var/lib/docker/overlay2/aa/merged"]
    assert merged.option(b"lowerdir") == b"/l/X:/l/Y"
    assert merged.option(b"upperdir") == b"/a\\"  # a comma ends an option; one inside a value is written \054
    assert merged.option(b"rw") is None
    assert merged.option(b"workdir") is None
    escaped = by_point(rb"1 0 0:1 / /m rw - overlay o rw,upperdir=/a\054b/c\040d")[b"/m"]
    assert escaped.option(b"upperdir") == b"/a,b/c d"


@pytest.mark.parametrize(
    ("point", "local", "kernel"),
    [
        (b"/", True, False),
        (b"/var/lib/docker/overlay2/aa/merged", False, False),  # the name of a layer is cut off
        (b"/proc", False, True),
        (b"/mnt/efs", False, False),
        (b"/mnt/s3", False, False),
    ],
)
def test_what_may_be_entered(point: bytes, *, local: bool, kernel: bool) -> None:
    mount = by_point(EXAMPLE)[point]
    assert (mount.local, mount.kernel) == (local, kernel)


MACHINE = b"""1 0 254:0 / / rw - ext4 /dev/vda rw
2 1 254:1 / /var rw - xfs /dev/vdb rw
3 1 0:9 / /srv/fuse rw - fuse.sshfs far:/ rw
4 1 0:8 / /tmp rw - tmpfs t rw
5 1 0:7 / /tmp/view rw - proc proc rw
"""


@pytest.mark.parametrize(
    ("options", "local"),
    [
        (b"lowerdir=/var/l/A:/var/l/B,upperdir=/var/x/diff,workdir=/var/x/work", True),
        (b"lowerdir+=/var/l/A,lowerdir+=/opt/B,datadir+=/opt/C", True),
        (b"lowerdir=/opt/a::/opt/data", True),
        (b"lowerdir=/m,upperdir=/tmp/u,workdir=/tmp/w", True),  # over one of its own layers
        (b"lowerdir=/var/l/A:/srv/fuse/l", False),
        (b"lowerdir=/srv/fuse", False),
        (b"lowerdir=//srv//fuse/l", False),
        (b"lowerdir=/opt/../srv/fuse", False),
        (b"lowerdir+=/var/l/A,lowerdir+=/srv/fuse/l", False),
        (b"lowerdir=/var/l/A,upperdir=/srv/fuse/u,workdir=/var/w", False),
        (b"lowerdir=/var/l/A,upperdir=/var/u,workdir=/srv/fuse/w", False),
        (b"lowerdir=l/A:l/B", False),
        (b"lowerdir=.", False),
        (b"lowerdir=/srv/fus\\145", False),
        (b"lowerdir=/a\\134:/b", False),
        (b"lowerdir=/tmp/view/1", False),
        (b"lowerdir=", False),
        (b"rw", False),
    ],
)
def test_an_overlay_is_as_local_as_its_layers(options: bytes, *, local: bool) -> None:
    data = MACHINE + b"9 1 0:50 / /m rw - overlay o rw," + options + b"\n"
    assert by_point(data)[b"/m"].local is local
    found = find_mount(data, 9)
    assert found is not None
    assert found.local is local


def test_an_overlay_on_an_overlay_is_as_local_as_the_lowest_layer() -> None:
    def machine(lowest: bytes) -> dict[bytes, Mount]:
        lines = [b"10 1 0:60 / /o/0 rw - overlay o rw,lowerdir=" + lowest]
        lines += [b"%d 1 0:6%d / /o/%d rw - overlay o rw,lowerdir=/o/%d/x" % (10 + n, n, n, n - 1) for n in range(1, 5)]
        return by_point(MACHINE + b"\n".join(lines))

    assert machine(b"/var/l")[b"/o/4"].local
    assert not machine(b"/srv/fuse/l")[b"/o/4"].local


def test_overlays_in_a_circle_end() -> None:
    lines = b"10 1 0:60 / /a rw - overlay o rw,lowerdir=/b/x\n11 1 0:61 / /b rw - overlay o rw,lowerdir=/a/x\n"
    assert by_point(MACHINE + lines)[b"/a"].local
    hidden = b"12 1 0:9 / /b rw - fuse f rw\n"
    assert not by_point(MACHINE + hidden + lines)[b"/a"].local


def test_an_overlay_at_the_root_is_accepted_wherever_it_is_mounted_again() -> None:
    lines = b"1 0 0:50 / / rw - overlay o rw,lowerdir=l/A\n2 1 0:50 /etc /mnt rw - overlay o rw,lowerdir=l/A\n"
    mounts = by_point(lines + b"3 1 0:51 / /other rw - overlay o rw,lowerdir=l/B\n")
    assert [mounts[point].local for point in (b"/", b"/mnt", b"/other")] == [True, True, False]


def test_one_mount_of_a_list() -> None:
    data = MACHINE + EXAMPLE
    for mount in parse_mountinfo(data):
        assert find_mount(data, mount.mount_id) == mount
    assert find_mount(data, 999) is None
    assert find_mount(data, 7) is None
    assert find_mount(b"", 1) is None


def test_no_filesystem_is_both() -> None:
    assert not LOCAL & KERNEL


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"-",
        b"27 1 254:0 / / rw ext4 /dev/vda rw",
        b"27 1 254:0 / - ext4 /dev/vda rw",
        b"x 1 254:0 / / rw - ext4 /dev/vda rw",
        b"27 1 2540 / / rw - ext4 /dev/vda rw",
        b"27 1 254:-1 / / rw - ext4 /dev/vda rw",
        b"27 1 254:0 / / rw - ext4",
        b"99999999999999 1 254:0 / / rw - ext4 /dev/vda rw",
    ],
)
def test_a_line_that_is_not_well_formed_is_left_out(line: bytes) -> None:
    assert parse_mountinfo(line + b"\n" + EXAMPLE) == parse_mountinfo(EXAMPLE)


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_no_bytes_make_the_parser_fail(data: bytes) -> None:
    for mount in parse_mountinfo(data.replace(b"~", b" - ")):
        below([mount], b"/")


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.sampled_from([b"/", b"/a", b"/a/b", b"/a/b/c"]))))
def test_no_parents_make_the_search_endless(lines: list[tuple[int, int, bytes]]) -> None:
    data = b"".join(b"%d %d 0:1 / %s rw - tmpfs t rw\n" % line for line in lines)
    mounts = parse_mountinfo(data)
    assert {mount.point for mount in below(mounts, b"/").values()} <= {mount.point for mount in mounts}


def test_what_is_mounted_below_a_directory() -> None:
    mounts = parse_mountinfo(EXAMPLE)
    assert set(below(mounts, b"/mnt")) == {b"/mnt/a b\tc\nd\\e", b"/mnt/efs", b"/mnt/s3"}
    assert set(below(mounts, b"/mnt/")) == set(below(mounts, b"/mnt"))
    assert below(mounts, b"/mnt/efs") == {}
    assert below(mounts, b"/mn") == {}
    assert b"/" not in below(mounts, b"/")
    assert len(below(mounts, b"/")) == 7


def test_of_a_stack_the_topmost_counts_in_whatever_order_it_is_listed() -> None:
    lines = [
        b"1 0 0:1 / / rw - ext4 d rw",
        b"2 1 0:2 / /m rw - tmpfs lower rw",
        b"3 2 0:3 / /m rw - nfs upper rw",
    ]
    for order in (lines, lines[::-1]):
        assert below(parse_mountinfo(b"\n".join(order)), b"/")[b"/m"].source == b"upper"


def test_what_another_mount_covers_is_not_there() -> None:
    mounts = parse_mountinfo(
        b"1 0 0:1 / / rw - ext4 d rw\n"
        b"2 1 0:2 / /a/b rw - nfs covered rw\n"
        b"3 2 0:3 / /a/b/c rw - tmpfs inside-the-covered rw\n"
        b"4 1 0:4 / /a rw - tmpfs cover rw\n"
        b"5 4 0:5 / /a/x rw - tmpfs on-the-cover rw\n"
    )
    assert set(below(mounts, b"/")) == {b"/a", b"/a/x"}


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@in_private_mounts
def test_the_kernel_s_own_mountinfo(tmp_path: Path) -> None:
    odd = tmp_path / "a b\tc\nd\\e,f:g"
    stack = tmp_path / "stack"
    for directory in (odd, stack):
        directory.mkdir()
    mount_here("over here", odd, "tmpfs", data="size=64k")
    mount_here("below", stack, "tmpfs")
    (stack / "inner").mkdir()
    mount_here("hidden", stack / "inner", "tmpfs")
    mount_here("above", stack, "tmpfs")

    mounts = parse_mountinfo(Path("/proc/thread-self/mountinfo").read_bytes())
    found = below(mounts, os.fsencode(tmp_path))

    assert set(found) == {os.fsencode(odd), os.fsencode(stack)}
    assert found[os.fsencode(odd)].source == b"over here"
    assert found[os.fsencode(odd)].device == odd.stat().st_dev
    assert found[os.fsencode(odd)].option(b"size") == b"64k"
    assert found[os.fsencode(stack)].source == b"above"
    assert found[os.fsencode(stack)].device == stack.stat().st_dev
