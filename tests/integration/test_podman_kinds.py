"""podman in its other kinds: without root (copies of all files, and overlayfs in a user namespace), fuse-overlayfs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from acquirers.base import Scope
from acquirers.containers.storage import Podman
from acquirers.host import Host, Mode
from tests.integration.test_podman import acquire
from tests.rigs.docker import RigError
from tests.rigs.faithful import age_access_times, differences, survey
from tests.rigs.podman import PrivatePodman, why_not

if TYPE_CHECKING:
    from tests.support.acquired import Acquired

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs")]

_UID = 65534
_SCRIPT = "echo said; echo kept > /data/file; rm /etc/motd; rm -r /opt/old; echo new > /opt/new; exec sleep 1000000"
_MERGED = frozenset({b"merged"})


def fill(podman: PrivatePodman) -> str:
    """A container that writes, deletes, and has a volume."""
    podman.import_base()
    container = podman.run("web", "base:1", "sh", "-c", _SCRIPT, options=("--volume", "uploads:/data"))
    for _ in range(100):
        if "new" in podman.exec("web", "ls", "/opt"):
            podman.settle()
            return container
    raise RigError("the container did not do what it should")


def check_extracted(podman: PrivatePodman, found: Acquired, *areas: bytes) -> None:
    """What lies there now, without what only a process has, is what comes out of the archives."""
    prefix = os.fsencode(podman.root.relative_to(podman.disk)) + b"/"
    copy = survey(os.fsencode(found.extracted(str(podman.disk))))
    source = {
        path: node
        for path, node in survey(os.fsencode(podman.disk), _MERGED).items()
        if path.removeprefix(prefix).startswith(areas) and not path.endswith((b"/attach", b"/merged"))
    }
    assert len(source) > 50
    assert not differences(source, {path: node for path, node in copy.items() if path in source})


def test_without_root(tmp_path: Path) -> None:
    """The driver vfs: each layer is a whole copy. Found by conmon's arguments, and in a home of a dead disk."""
    with PrivatePodman(uid=_UID, driver="vfs") as podman:
        container = fill(podman)
        disk = os.fsencode(podman.disk)
        age_access_times(disk, survey(disk))
        before = survey(disk, deep=False)
        live = acquire(Host(Mode.HOST), podman.root, tmp_path / "live")
        after = survey(disk, deep=False)
        assert {path for path, node in before.items() if node.times != after[path].times} == set()
        assert not live.gaps
        about = live.items[live.container(container)].about
        assert (about["name"], about["state"], about["volumes"]) == (b"web", "running", [b"uploads"])
        rootfs = about["rootfs"]
        assert isinstance(rootfs, dict)
        assert (rootfs["driver"], rootfs["lowers"], rootfs["userxattr"]) == ("vfs", [], False)
        upper = Path(os.fsdecode(rootfs["upper"]))
        assert (upper / "opt/new").read_text() == "new\n"
        assert not (upper / "etc/motd").exists()
        assert len(live.layers()) == 1
        assert live.items["containers/podman/runtime.tar"].about["uid"] == _UID
        check_extracted(podman, live, b"vfs", b"volumes", b"libpod", b"vfs-containers")
        podman.reboot()
        dead = acquire(Host(Mode.DEAD, disk), b"/home/user/.local/share/containers/storage", tmp_path / "dead")
        assert not dead.gaps
        assert dead.items[dead.container(container)].about["name"] == b"web"
        assert dead.items["containers/podman/runtime.tar"].about["owner"] == b"user"
        native = os.fsdecode(rootfs["upper"]).removeprefix(str(podman.disk))
        assert dead.members[os.fsencode(native + "/opt/new")].size == 4


def test_overlayfs_without_root(tmp_path: Path) -> None:
    """Whiteouts and opaque directories with marks of its own: `user.overlay.*`."""
    with PrivatePodman(uid=_UID, driver="overlay", options=("--storage-driver", "overlay")) as podman:
        try:
            container = fill(podman)
        except RigError as error:
            if "overlay" not in str(error):
                raise
            pytest.skip("this kernel mounts no overlayfs in a user namespace")
        found = acquire(Host(Mode.HOST), podman.root, tmp_path)
        assert not found.gaps
        rootfs = found.items[found.container(container)].about["rootfs"]
        assert isinstance(rootfs, dict)
        assert (rootfs["driver"], rootfs["userxattr"], len(rootfs["lowers"])) == ("overlay", True, 1)
        check_extracted(podman, found, b"overlay/", b"volumes", b"libpod", b"overlay-containers")


@pytest.mark.skipif(shutil.which("fuse-overlayfs") is None, reason="needs fuse-overlayfs")
def test_fuse_overlayfs(tmp_path: Path) -> None:
    """A filesystem in user space is mounted on `merged`, and nobody asks it anything."""
    options = ("--storage-opt", "overlay.mount_program=" + str(shutil.which("fuse-overlayfs")))
    with PrivatePodman(options=options) as podman:
        container = fill(podman)
        found = acquire(Host(Mode.HOST), podman.root, tmp_path, Scope(containers=(container,)))
        assert not found.gaps
        rootfs = found.items[found.container(container)].about["rootfs"]
        assert isinstance(rootfs, dict)
        assert (rootfs["driver"], rootfs["userxattr"]) == ("fuse-overlayfs", False)
        names = {os.path.basename(path) for path in found.members}
        assert b"new" in names
        assert not [path for path in found.members if b"/merged/" in path]
        check_extracted(podman, found, b"overlay/", b"volumes/uploads")
        subjects = {one.id: one.state for one in Podman().probe(Host(Mode.HOST), Scope()).subjects}
        assert subjects[container] == "running"
