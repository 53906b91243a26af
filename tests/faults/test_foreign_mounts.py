"""Paths that lead onto a filesystem which never answers: they are refused before it is asked anything.

Who asks it cannot even be killed. So each scene is played by a process of its own, in a mount namespace of its own;
when it does not come back, its whole group is ended, the filesystem's server with it, which frees it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from acquirers.containers.docker.roots import find_roots
from acquirers.files.walk import walk
from acquirers.host import Host, Mode
from acquirers.root import ForeignMountError
from tests.rigs import fuse
from tests.rigs.fuse import Node
from tests.rigs.trees import REPOSITORY, Recorder, libc_call, mount

if TYPE_CHECKING:
    from acquirers.base import Gap

DEADLINE = 40
"""Seconds for one scene: several, if the machine is busy."""

_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 1 << 18
_MNT_DETACH = 2
_PR_SET_NAME, _PR_SET_PDEATHSIG = 15, 1

Told = list[tuple[str, str, str]]


def told(gaps: list[Gap]) -> Told:
    """(reason, where, detail)."""
    return [(str(gap.reason), os.fsdecode(gap.where), gap.detail) for gap in gaps]


def dead(top: Path) -> Host:
    return Host(Mode.DEAD, os.fsencode(top))


# -- scenes: each gets the root of a machine, with a directory srv/fuse, in a private mount namespace -----------------


def data_link(top: Path) -> Told:
    (top / "var/lib/docker").symlink_to("/srv/fuse")
    with fuse.mounted(top / "srv/fuse", {}, silent=True):
        return told(find_roots(dead(top)).gaps)


def data_link_below(top: Path) -> Told:
    (top / "var/lib/docker").symlink_to("../../srv/fuse/docker")
    with fuse.mounted(top / "srv/fuse", {}, silent=True):
        return told(find_roots(dead(top)).gaps)


def home_link(top: Path) -> Told:
    (top / "etc/passwd").write_text("eve:x:1000:1000::/home/eve:/bin/sh\nann:x:1001:1001::/home/ann:/bin/sh\n")
    (top / "home").mkdir()
    for name in ("eve", "ann"):
        (top / "home" / name).symlink_to("/srv/fuse")
    with fuse.mounted(top / "srv/fuse", {}, silent=True):
        return told(find_roots(dead(top)).gaps)


def configuration_link(top: Path) -> Told:
    (top / "etc/docker").mkdir()
    (top / "etc/docker/daemon.json").symlink_to("/srv/fuse/daemon.json")
    (top / "etc/systemd/system").mkdir(parents=True)
    (top / "etc/systemd/system/docker.service.d").symlink_to("/srv/fuse")
    with fuse.mounted(top / "srv/fuse", {}, silent=True):
        return told(find_roots(dead(top)).gaps)


def machine_id(top: Path) -> Told:
    (top / "etc/machine-id").symlink_to("/srv/fuse/machine-id")
    (top / "etc/hostname").write_text("web\n")
    with fuse.mounted(top / "srv/fuse", {}, silent=True):
        facts = dead(top).facts
        return [("", facts.hostname, facts.machine_id)]


def no_root(top: Path) -> Told:
    """Not even to see whether it is a root."""
    (top / "inner").mkdir()
    (top / "inner/etc").symlink_to(top / "srv/fuse")
    (top / "inner/usr").mkdir()
    (top / "inner/usr/note").write_text("here")
    (top / "inner/var").mkdir()
    with fuse.mounted(top / "srv/fuse", {}, silent=True), fuse.mounted(top / "inner/var", {}, silent=True):
        return [("", "", dead(top / "inner").read(b"/usr/note").decode())]


def file_mounted_on_a_file(top: Path) -> Told:
    (top / "etc/machine-id").touch()
    with fuse.mounted(top / "srv/fuse", {"file": Node(10, hangs=["open", "read"])}):
        mount(str(top / "srv/fuse/file"), top / "etc/machine-id", "none", _MS_BIND)
        try:
            dead(top).read(b"/etc/machine-id")
        except ForeignMountError as error:
            return [("", "", str(error.strerror))]
    return []


def daemon(top: Path) -> Told:
    with running("daemon_itself", top / "srv/fuse", "--data-root", f"{top}/srv/fuse") as pid:
        return daemon_gaps(top, pid)


def daemon_with_a_link(top: Path) -> Told:
    (top / "link").symlink_to(top / "srv/fuse/x")
    with running("daemon_itself", top / "srv/fuse", "--data-root", f"{top}/link/docker") as pid:
        return daemon_gaps(top, pid)


def daemon_whose_root_it_is(top: Path) -> Told:
    with running("daemon_chrooted", top / "srv/fuse", "--data-root", "/var/docker") as pid:
        return daemon_gaps(top, pid)


def daemon_gaps(top: Path, pid: int) -> Told:
    found = find_roots(Host(Mode.HOST, os.fsencode(top)))
    return [gap for gap in told(found.gaps) if f"dockerd {pid}" in gap[2]]


@contextmanager
def running(how: str, *arguments: str | Path) -> Iterator[int]:
    """A process with the name of a daemon, in another mount namespace."""
    code = f"from tests.faults.test_foreign_mounts import {how}; {how}()"
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=REPOSITORY, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        process.kill()  # and with it, its server
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def daemon_itself() -> None:
    private()
    with fuse.mounted(Path(sys.argv[1]), {}, silent=True):
        pose()


def daemon_chrooted() -> None:
    private()
    with fuse.mounted(Path(sys.argv[1]), {"var": Node(directory=True, hangs=["lookup"])}):
        os.chroot(sys.argv[1])
        pose()


def pose() -> None:
    libc_call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
    libc_call("prctl", _PR_SET_NAME, b"dockerd")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    time.sleep(600)


def overlay(top: Path) -> Told:
    with over_a_volume(top) as (host, report):
        try:
            os.close(host.open_path(b"/var/lib/docker/volumes/v/_data/file"))
        except ForeignMountError as error:
            return [*told(report.gaps), ("", "", str(error.strerror))]
    return []


def overlay_whose_layer_was_unmounted(top: Path) -> Told:
    """Its name is that of a local directory by now."""
    with over_a_volume(top, unmount=True) as (_, report):
        return told(report.gaps)


@contextmanager
def over_a_volume(top: Path, *, unmount: bool = False) -> Iterator[tuple[Host, Recorder]]:
    data = top / "var/lib/docker/volumes/v/_data"
    data.mkdir(parents=True)
    (top / "upper").mkdir()
    mount("tmpfs", top / "upper", "tmpfs")
    for name in ("u", "w"):
        (top / "upper" / name).mkdir()
    with fuse.mounted(top / "srv/fuse", {"file": Node(10, hangs=["lookup"])}):
        layers = f"lowerdir={top}/srv/fuse,upperdir={top}/upper/u,workdir={top}/upper/w"
        mount("overlay", data, "overlay", data=layers)
        if unmount:
            libc_call("umount2", os.fsencode(top / "srv/fuse"), _MNT_DETACH)
        host, report = dead(top), Recorder()
        with host.tree(b"/var/lib/docker/volumes/v", recursive=True) as tree:
            for _ in walk(tree, report, deadline=0.5):
                pass
        yield host, report


def what_is_local(top: Path) -> Told:
    """Disks and memory, and an overlay of them, are entered as ever; so is a mount that is there twice."""
    for name in ("tmpfs", "tmpfs/overlay", "bound"):
        (top / name).mkdir()
        if name == "tmpfs":
            mount("tmpfs", top / name, "tmpfs")
    for name in ("l", "u", "w"):
        (top / "tmpfs" / name).mkdir()
    (top / "tmpfs/l/file").write_text("from a layer")
    layers = f"lowerdir={top}/tmpfs/l,upperdir={top}/tmpfs/u,workdir={top}/tmpfs/w"
    mount("overlay", top / "tmpfs/overlay", "overlay", data=layers)
    mount(str(top / "tmpfs/overlay"), top / "bound", "none", _MS_BIND)
    (top / "etc/link").symlink_to("/bound/file")
    host = dead(top)
    found = [host.read(path).decode() for path in (b"/tmpfs/l/file", b"/tmpfs/overlay/file", b"/etc/link")]
    return [("", "", text) for text in found]


SCENES: dict[str, tuple[Callable[[Path], Told], Told]] = {
    scene.__name__: (scene, expected)
    for scene, expected in (
        (
            data_link,
            [("not-crossed", "/var/lib/docker", "a Docker data root (default): on fuse, which is not entered")],
        ),
        (
            data_link_below,
            [("not-crossed", "/var/lib/docker", "a Docker data root (default): on fuse, which is not entered")],
        ),
        (home_link, [("not-crossed", "/home", "home directories on fuse, which is not entered")]),
        (
            configuration_link,
            [
                (
                    "not-crossed",
                    "/etc/docker/daemon.json",
                    "the configuration of a Docker daemon: on fuse, which is not entered",
                ),
                (
                    "not-crossed",
                    "/etc/systemd/system/docker.service.d",
                    "drop-ins for a Docker daemon: on fuse, which is not entered",
                ),
            ],
        ),
        (machine_id, [("", "web", "")]),
        (no_root, [("", "", "here")]),
        (file_mounted_on_a_file, [("", "", "on fuse, which is not entered")]),
        (
            daemon,
            [("not-crossed", "TOP/srv/fuse", "the data root of the live dockerd …: on fuse, which is not entered")],
        ),
        (
            daemon_with_a_link,
            [("not-crossed", "TOP/link/docker", "the data root of the live dockerd …: on fuse, which is not entered")],
        ),
        (
            daemon_whose_root_it_is,
            [("not-crossed", "/var/docker", "the data root of the live dockerd …: on fuse, which is not entered")],
        ),
        (
            overlay,
            [
                (
                    "not-crossed",
                    "/var/lib/docker/volumes/v/_data",
                    "overlay is mounted there: read only when asked for",
                ),
                ("", "", "on overlay, which is not entered"),
            ],
        ),
        (
            overlay_whose_layer_was_unmounted,
            [
                ("stuck", "/var/lib/docker/volumes/v/_data/file", "no answer within 0.5 s"),
                (
                    "stuck",
                    "/var/lib/docker/volumes/v/_data",
                    "not all of its names could be read: no answer within 0.5 s",
                ),
            ],
        ),
        (what_is_local, [("", "", "from a layer")] * 3),
    )
}


def private() -> None:
    libc_call("unshare", _CLONE_NEWNS)
    libc_call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)


def play() -> None:
    """The process of one scene."""
    private()
    scene, _ = SCENES[sys.argv[1]]
    sys.stdout.write(json.dumps(scene(Path(sys.argv[2]))))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs root: there is no /dev/fuse")
@pytest.mark.parametrize("name", SCENES)
def test_what_never_answers_is_not_asked(tmp_path: Path, name: str) -> None:
    for directory in ("etc", "var/lib", "srv/fuse"):
        (tmp_path / directory).mkdir(parents=True)
    code = "from tests.faults.test_foreign_mounts import play; play()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, name, tmp_path],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        pytest.fail("hangs")
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # as it should be
        process.communicate()
    assert process.returncode == 0, errors
    found = [tuple(one) for one in json.loads(output)]
    assert [shown(*one, top=tmp_path) for one in found] == SCENES[name][1]


def shown(reason: str, where: str, detail: str, *, top: Path) -> tuple[str, str, str]:
    """Without what differs from run to run."""
    start, dockerd, rest = detail.partition(" dockerd ")
    if dockerd:
        detail = f"{start}{dockerd}…:{rest.partition(':')[2]}"
    return reason, where.replace(str(top), "TOP"), detail
