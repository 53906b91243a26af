"""dissect.target opens the joined archives of a real podman host and finds its containers as child targets."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from acquirers.base import Scope
from acquirers.containers.storage import Podman
from acquirers.host import Host, Mode
from agent.analysis.hosttar import join
from tests.rigs.podman import PrivatePodman, why_not
from tests.rigs.trees import Recorder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from acquirers.base import Item

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs")]

_SCRIPT = "echo said; echo intruder >> /etc/passwd; echo kept > /opt/kept; exec sleep 1000000"


def test_containers_are_child_targets(tmp_path: Path) -> None:
    from dissect.target import Target

    with PrivatePodman() as podman:
        podman.import_base()
        ids = {
            "web": podman.run("web", "base:1", "sh", "-c", _SCRIPT),
            "never": podman.create("never", "base:1", "true"),
        }
        podman.podman("create", "--network", "none", "--name", "ended", "base:1", "true")
        podman.settle()
        passwd = (podman.root_of("web") / "etc/passwd").read_bytes()
        podman.reboot()
        host = Host(Mode.DEAD, os.fsencode(podman.disk))
        items = sorted(
            Podman().items(host, Scope()), key=lambda item: (not item.path.endswith("/runtime.tar"), item.path)
        )
        with (tmp_path / "host.tar").open("wb") as file:
            file.writelines(join(stream(item) for item in items))
    target = Target.open(tmp_path / "host.tar")
    assert target.has_function("podman")
    found = {record.container_id: record for record in target.podman.containers()}
    # Without db.sql dissect knows containers by their config.json, which is written when one is started.
    assert set(found) == {ids["web"]}
    assert [record.message for record in target.podman.logs()] == ["said"]
    assert [record.name for record in target.podman.images()] == ["localhost/base"]
    (child,) = (child for _, child in target.list_children())
    assert child.type == "podman"
    inside = target.open_child(child.path)
    assert inside.fs.path("/opt/kept").read_text() == "kept\n"
    assert inside.fs.path("/bin/busybox").exists(), "from the image"
    # dissect 3.25 lays the image over what the container changed of it; the writable layer has it.
    assert target.fs.path(str(child.path)).joinpath("diff/etc/passwd").read_bytes() == passwd


def stream(item: Item) -> Iterator[bytes]:
    report = Recorder()
    for chunk in item.read(report):
        yield bytes(chunk)
    assert not report.gaps
