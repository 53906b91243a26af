"""Logs in their places, as the manifest names these for each runtime, are their containers' own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from acquirers.base import Scope
from agent.analysis.items import Items
from agent.analysis.logs import timeline
from agent.analysis.opening import new_output
from agent.custody.manifest import plain
from tests.support.log_files import tar
from tests.unit.containers import containerd_disk, disk, storage_disk
from tests.unit.containers.disk import Taken, hex_id


def timelines(taken: Mapping[str, Taken], output: Path) -> set[str]:
    data = {
        path: tar({name: one.content(name) for name in one.names() if name.endswith(".log")})
        for path, one in taken.items()
        if path.endswith(".tar")
    }
    records = [{"type": "item", "item": path, "about": plain(one.item.about)} for path, one in taken.items()]
    data["attempt-1/manifest.jsonl"] = b"".join(
        json.dumps(record, separators=(",", ":")).encode() + b"\n" for record in records
    )
    with new_output(str(output)) as fd:
        timeline.export(Items(tuple(sorted(data)), lambda name: iter([data[name]])), fd)
    return {path.name for path in output.iterdir()}


def test_docker_whose_data_root_is_a_link(tmp_path: Path) -> None:
    made = disk.Disk(tmp_path / "disk")
    web = made.container("web")
    (made.root / "data").mkdir()
    shutil.move(made.docker, made.root / "data/docker")
    made.docker.symlink_to("/data/docker")
    assert timelines(disk.take(made.host(), Scope()), tmp_path / "out") == {f"{web[:12]}-web.jsonl"}


def test_podman_and_crio_whose_pod_logs_are_a_link(tmp_path: Path) -> None:
    made = storage_disk.StorageDisk(tmp_path / "disk")
    made.image("base", "lower", "upper")
    shell, web = made.podmans("shell"), made.crio("web")
    pods = made.root / "var/log/pods"
    (made.root / "mnt").mkdir()
    pods.rename(made.root / "mnt/pods")
    pods.symlink_to("/mnt/pods")
    found = timelines(made.close().take(), tmp_path / "out")
    assert f"{shell[:12]}-shell.jsonl" in found
    assert any(name.startswith(web[:12]) for name in found)
    assert not [name for name in found if name.startswith("inside-")]


def test_nerdctl_beside_the_data_root_of_containerd(tmp_path: Path) -> None:
    made = containerd_disk.Machine(tmp_path / "disk")
    web = hex_id("web")
    made.snapshot(web, parent=made.image("default"), namespace="default")
    labels = {"nerdctl/name": "web", "nerdctl/namespace": "default"}
    made.container(web, namespace="default", labels=labels)
    home = made.root / "var/lib/nerdctl/1935db59/containers/default" / web
    home.mkdir(parents=True)
    (home / f"{web}-json.log").write_text('{"log":"x\\n","stream":"stdout","time":"2026-01-01T00:00:00Z"}\n')
    assert timelines(containerd_disk.take(made.write(), Scope()), tmp_path / "out") == {f"{web[:12]}-web.jsonl"}
