"""Containers with filesystems that never answer: they are not asked, or only with a deadline."""

from __future__ import annotations

import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from acquirers.base import Reason
from tests.rigs import fuse
from tests.rigs.docker import make_rootfs
from tests.rigs.fuse import Node
from tests.rigs.trees import in_private_mounts
from tests.support.runs import ENVIRONMENT, agent_command, keygen
from tests.unit.live.helpers import box, read_box

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="no /dev/fuse"),
]

TMPFS = "mount -t tmpfs none /tmp; echo here > /tmp/file"


@pytest.fixture
def mount_point(tmp_path: Path) -> Path:
    point = tmp_path / "fuse"
    point.mkdir()
    return point


@in_private_mounts
def test_a_volume_that_never_answers_is_a_gap_and_costs_no_time(tmp_path: Path, mount_point: Path) -> None:
    with (
        fuse.mounted(mount_point, {}, silent=True),
        box(tmp_path, outside=f"mount --bind {mount_point} srv", inside=TMPFS) as one,
    ):
        started = time.monotonic()
        found = read_box(one)
        assert time.monotonic() - started < 5
    assert found.gaps == [("not-crossed", b"/srv")]
    assert found.content("[root]/tmp/file") == b"here\n"
    assert "/etc/passwd" in found.names


@in_private_mounts
def test_a_volume_on_one_that_never_answers_is_read(tmp_path: Path, mount_point: Path) -> None:
    """What is mounted below what is not entered: the way there is asked with a deadline."""
    nodes = {"deep": Node(directory=True)}
    with fuse.mounted(mount_point, nodes):
        outside = f"mount --bind {mount_point} srv; mount -t tmpfs none srv/deep; echo deep > srv/deep/file"
        with box(tmp_path, outside=outside) as one:
            found = read_box(one)
    assert found.gaps == [("not-crossed", b"/srv")]
    assert found.content("[root]/srv/deep/file") == b"deep\n"


@in_private_mounts
def test_asked_for_it_is_read_with_deadlines(tmp_path: Path, mount_point: Path) -> None:
    nodes = {"good": Node(5000), "stuck": Node(5000, hangs=["read"]), "last": Node(100)}
    with (
        fuse.mounted(mount_point, nodes),
        box(tmp_path, outside=f"mount --bind {mount_point} srv", inside=TMPFS) as one,
    ):
        started = time.monotonic()
        found = read_box(one, remote=True, deadline=0.5)
        assert time.monotonic() - started < 8
    assert found.content("[root]/srv/good") == fuse.content(5000)
    assert found.content("[root]/srv/last") == fuse.content(100)
    assert [gap.reason for gap in found.report.gaps] == [Reason.STUCK]
    assert found.content("[root]/tmp/file") == b"here\n"


@in_private_mounts
def test_the_option_asks_for_it(tmp_path: Path, mount_point: Path) -> None:
    key, recipient = keygen(tmp_path)
    only = ("--only", "live.files")
    found: dict[tuple[str, ...], tuple[int, bool]] = {}
    with (
        fuse.mounted(mount_point, {"good": Node(5000)}),
        box(tmp_path, outside=f"mount --bind {mount_point} srv") as one,
    ):
        for option in ((), ("--remote",)):
            to, out = tmp_path / f"ev{len(option)}", tmp_path / f"out{len(option)}"
            to_it = ("--container", f"mnt-{one.mnt}", "--case", "C-1", "--to", to, "-r", recipient)
            done = subprocess.run([*agent_command(), "acquire", *only, *option, *to_it], env=ENVIRONMENT, timeout=60)
            opened: list[str | Path] = [*agent_command(), "open", to, "-i", key, "-o", out]
            assert subprocess.run(opened, env=ENVIRONMENT, timeout=60).returncode == 0
            (item,) = out.glob("live/*.tar")
            with tarfile.open(item) as archive:
                found[option] = done.returncode, any(name.endswith("/srv/good") for name in archive.getnames())
    assert found == {(): (1, False), ("--remote",): (0, True)}


@in_private_mounts
def test_asked_for_and_silent_it_is_given_up(tmp_path: Path, mount_point: Path) -> None:
    with (
        fuse.mounted(mount_point, {}, silent=True),
        box(tmp_path, outside=f"mount --bind {mount_point} srv", inside=TMPFS) as one,
    ):
        started = time.monotonic()
        found = read_box(one, remote=True, deadline=0.3)
        assert time.monotonic() - started < 8
    assert {gap.reason for gap in found.report.gaps} == {Reason.STUCK}
    assert found.content("[root]/tmp/file") == b"here\n"


@in_private_mounts
def test_a_root_of_lazy_layers_is_a_gap_and_its_volumes_are_read(tmp_path: Path, mount_point: Path) -> None:
    make_rootfs(tmp_path / "lower")
    for name in ("upper", "work", "root"):
        (tmp_path / name).mkdir()
    for name in ("dev", "proc"):
        (tmp_path / "root" / name).mkdir()
    options = f"lowerdir={tmp_path}/lower:{mount_point},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    with fuse.mounted(mount_point, {"lazy": Node(100)}):
        outside = f"mount -t overlay overlay -o {options} {tmp_path}/root; cd {tmp_path}/root; mount -t proc none proc"
        with box(tmp_path, outside=outside, inside=TMPFS, root=tmp_path / "root") as one:
            found = read_box(one)
    assert found.gaps == [("not-crossed", b"/")]
    assert found.content("[root]/tmp/file") == b"here\n"
    assert "/etc/passwd" not in found.names
