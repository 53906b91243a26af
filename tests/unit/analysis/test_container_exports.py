"""Exports of containers from runs of a disk made by hand: which is meant, what is there, what is missing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from agent.analysis.ociimage import write_image
from agent.cli import options
from agent.cli.container_exports import export_oci, export_tree
from agent.cli.export import _write
from agent.errors import DamagedError, ImpoundError, SourceError, UsageError
from tests.support.runs import acquire, impound, keygen, only_run
from tests.unit.containers.disk import Disk, hex_id


class Evidence:
    """A run, and the key to it."""

    def __init__(self, directory: Path, disk: Disk, *more: str) -> None:
        self.directory = directory
        self.key, recipient = keygen(directory)
        code, result, said = acquire(
            directory / "ev", recipient, "--root", str(disk.root), "--only", "containers.docker", *more
        )
        assert code in {0, 1}, (result, said)
        self.run = only_run(directory / "ev")

    def tree(
        self, container: str, *, source: Path | None = None, name: str = "tree.tar", versions: bool = False
    ) -> Any:
        return export_tree(
            str(source or self.run),
            options.read_identities((str(self.key),)) if source is None else (),
            str(self.directory / name),
            _write,
            container=container,
            versions=versions,
            signers=(),
            receipts=(),
            s3=None,
            quiet=True,
        )

    def oci(self, container: str, name: str = "image.tar") -> Any:
        return export_oci(
            str(self.run), options.read_identities((str(self.key),)), str(self.directory / name),
            container=container, signers=(), receipts=(), s3=None, quiet=True,
        )  # fmt: skip

    def records(self, name: str = "tree.tar") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / f"{name}.jsonl").read_bytes().splitlines()]

    def content(self, member: str, name: str = "tree.tar") -> bytes:
        with tarfile.open(self.directory / name) as tar:
            file = tar.extractfile(member)
            assert file is not None
            return file.read()


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    (tmp_path / "disk").mkdir()
    disk = Disk(tmp_path / "disk")
    disk.container("web")
    base, top = (disk.overlay / hex_id(f"layer {name}") / "diff" for name in ("base", "top"))
    for path, text in ((base / "old", "from base"), (base / "both", "base"), (top / "both", "top"), (top / "run", "x")):
        path.write_text(text)
    os.link(base / "old", base / "linked")
    return disk


def test_a_tree_and_its_records(disk: Disk, tmp_path: Path) -> None:
    evidence = Evidence(tmp_path, disk)
    result = evidence.tree("web")
    assert result["layers"] == 4
    assert result["layers_missing"] == 0
    assert evidence.content("./content") == b"written by web"
    assert evidence.content("./both") == b"top"
    records = evidence.records()
    [content] = [one for one in records if one["type"] == "path" and one["path"] == "/content"]
    assert content["layer"].startswith("000-")
    older = [one for one in records if one["type"] == "older" and one["path"] == "/content"]
    assert [one["layer"][:4] for one in older] == ["002-", "003-"]
    assert len({one["sha256"] for one in (content, *older)}) == 3
    with tarfile.open(tmp_path / "tree.tar") as tar:
        assert {member.name: member.linkname for member in tar if member.islnk()} == {"./old": "./linked"}
    assert [one["type"] for one in records][-1] == "end"
    assert not list(tmp_path.glob(".impound-*"))


def test_versions_stand_where_nothing_of_the_container_does(disk: Disk, tmp_path: Path) -> None:
    (disk.writable("web") / "diff/.versions").mkdir()
    evidence = Evidence(tmp_path, disk)
    evidence.tree("web", versions=True)
    members = [one["member"] for one in evidence.records() if one["type"] == "older"]
    assert members
    assert all(member.startswith("./.versions-2/") for member in members)
    assert {evidence.content(member) for member in members} >= {b"file of base", b"file of top", b"base"}


def test_which_container_is_meant(disk: Disk, tmp_path: Path) -> None:
    disk.container("other")
    evidence = Evidence(tmp_path, disk)
    for number, selector in enumerate((hex_id("container web"), hex_id("container web")[:12], "web", "/web")):
        assert evidence.tree(selector, name=f"{number}.tar")["container"] == hex_id("container web")
    for selector in ("nobody", "", "zz"):
        with pytest.raises(UsageError, match="container"):
            evidence.tree(selector)
    assert not (tmp_path / "tree.tar").exists()
    assert not (tmp_path / "tree.tar.jsonl").exists()


def test_what_is_there_is_not_overwritten(disk: Disk, tmp_path: Path) -> None:
    evidence = Evidence(tmp_path, disk)
    for name in ("tree.tar", "tree.tar.jsonl"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(UsageError, match="not overwritten"):
            evidence.tree("web")
        assert (tmp_path / name).read_text() == "mine"
        assert len(list(tmp_path.glob("tree.tar*"))) == 1
        (tmp_path / name).unlink()


def test_layers_that_were_not_acquired_are_told(disk: Disk, tmp_path: Path) -> None:
    evidence = Evidence(tmp_path, disk, "--layers", "upper")
    result = evidence.tree("web")
    assert result["layers_missing"] == 2
    assert "2 of 4 layers were not acquired" in result["notes"][0]
    assert [one.get("missing", False) for one in evidence.records() if one["type"] == "layer"] == [
        False,
        False,
        True,
        True,
    ]
    image = evidence.oci("web")
    assert image["layers_missing"] == 2


def test_a_run_without_a_manifest(disk: Disk, tmp_path: Path) -> None:
    """It was killed: Docker's own records in the container's archive say what it stands on."""
    evidence = Evidence(tmp_path, disk)
    code, _, said = impound("open", evidence.run, "--identity", evidence.key, "--output", tmp_path / "opened")
    assert code == 0, said
    whole = evidence.tree("web", source=tmp_path / "opened", name="whole.tar")
    shutil.rmtree(tmp_path / "opened/attempt-1")
    result = evidence.tree("web", source=tmp_path / "opened", name="less.tar")
    assert "the manifest does not say" in result["notes"][0]
    assert result["layers"] == whole["layers"] == 4
    assert (tmp_path / "less.tar").read_bytes() == (tmp_path / "whole.tar").read_bytes()


def test_a_socket_and_a_file_that_could_not_be_read_are_in_the_records(disk: Disk, tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(disk.writable("web") / "diff")
        try:
            server.bind("socket")
        finally:
            os.chdir("/")
    evidence = Evidence(tmp_path, disk)
    evidence.tree("web")
    [found] = [one for one in evidence.records() if one["type"] == "path" and one["path"] == "/socket"]
    assert (found["kind"], found["in_tar"]) == ("socket", False)


def test_an_archive_that_was_damaged(disk: Disk, tmp_path: Path) -> None:
    evidence = Evidence(tmp_path, disk)
    code, _, _ = impound("open", evidence.run, "--identity", evidence.key, "--output", tmp_path / "opened")
    assert code == 0
    [archive] = (tmp_path / "opened/containers/docker").glob("*-web.tar")
    archive.write_bytes(archive.read_bytes()[:-1000])
    with pytest.raises(DamagedError):
        evidence.tree("web", source=tmp_path / "opened")
    archive.write_bytes(b"")
    with pytest.raises(ImpoundError):
        evidence.tree("web", source=tmp_path / "opened")
    assert not (tmp_path / "tree.tar").exists()


@pytest.mark.parametrize(
    "rootfs",
    [
        None, 1, [], {}, {"upper": 7}, {"upper": "/etc", "lowers": 3}, {"upper": "", "lowers": []},
        {"upper": "/../../etc", "lowers": [1, {"bytes": 2}, {"bytes": "/"}]},
        {"upper": "/var/lib/docker", "lowers": [{"bytes": "/", "bytes_b64": "!"}], "lowers_left_out": "x"},
    ],
)  # fmt: skip
def test_whatever_a_manifest_says(disk: Disk, tmp_path: Path, rootfs: object) -> None:
    """Only what is below `[root]` in the archives is ever read: a manifest names places in these."""
    evidence = Evidence(tmp_path, disk)
    assert impound("open", evidence.run, "--identity", evidence.key, "--output", tmp_path / "opened")[0] == 0
    manifest = tmp_path / "opened/attempt-1/manifest.jsonl"
    lines = []
    for line in manifest.read_bytes().splitlines():
        record = json.loads(line)
        if record["type"] == "item" and isinstance(record["about"], dict):
            record["about"]["rootfs"] = rootfs
            line = json.dumps(record, separators=(",", ":")).encode()  # noqa: PLW2901 - the line as it is then
        lines.append(line + b"\n")
    manifest.write_bytes(b"".join(lines))
    try:
        evidence.tree("web", source=tmp_path / "opened")
    except SourceError:
        return
    paths = {one["path"] for one in evidence.records() if one["type"] == "path"}
    assert not paths & {"/etc/passwd", "/passwd"}


class TestImage:
    def image(self, path: Path) -> dict[str, Any]:
        with tarfile.open(path) as tar:
            found = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]
        [saved] = json.loads(found["manifest.json"])
        [listed] = json.loads(found["index.json"])["manifests"]
        manifest = json.loads(found["blobs/" + listed["digest"].replace(":", "/")])
        config = json.loads(found["blobs/" + manifest["config"]["digest"].replace(":", "/")])
        assert saved["Layers"] == ["blobs/" + one["digest"].replace(":", "/") for one in manifest["layers"]]
        assert config["rootfs"]["diff_ids"] == [one["digest"] for one in manifest["layers"]]
        assert all(one["size"] == len(found["blobs/" + one["digest"].replace(":", "/")]) for one in manifest["layers"])
        layers = []
        for one in manifest["layers"]:
            with tarfile.open(fileobj=io.BytesIO(found["blobs/" + one["digest"].replace(":", "/")])) as tar:
                layers.append(tar.getnames())
        return {"config": config, "layers": layers, "manifest": manifest}

    def test_without_a_configuration(self, disk: Disk, tmp_path: Path) -> None:
        evidence = Evidence(tmp_path, disk)
        result = evidence.oci("web")
        made = self.image(tmp_path / "image.tar")
        assert result["config_from"] == ""
        assert any("configuration" in note for note in result["notes"])
        assert [sorted(names) for names in made["layers"]] == [
            [".", "both", "content", "linked", "old"], [".", "both", "content", "run"], ["."], [".", "content"],
        ]  # fmt: skip
        assert made["config"]["config"]["Labels"]["dev.impound.name"] == "web"
        assert len(made["config"]["history"]) == 4

    def test_with_a_hostile_one(self, disk: Disk, tmp_path: Path) -> None:
        """It is the examined machine that wrote it: what loads the image gets only what it can be."""
        text = json.dumps(
            {
                "architecture": ["x"], "os": {"a": 1}, "created": 5, "config": {
                    "Env": ["A=b", 3], "Cmd": "sh", "User": 0, "Labels": {"a": 1, "b": "c"}, "Volumes": {"/v": 3},
                    "Entrypoint": ["/run"], "Unknown": {"deep": [1]},
                },
                "rootfs": {"type": "layers", "diff_ids": ["sha256:no"]}, "history": [{"created_by": 1}, 7],
            }
        )  # fmt: skip
        digest = hashlib.sha256(text.encode()).hexdigest()
        self.keep(disk, digest, text)
        evidence = Evidence(tmp_path, disk)
        evidence.oci("web")
        config = self.image(tmp_path / "image.tar")["config"]
        assert config["os"] == "linux"
        assert set(config["config"]) == {"Entrypoint", "Labels", "Volumes"}
        assert config["config"]["Volumes"] == {"/v": {}}
        assert config["config"]["Labels"]["b"] == "c"

    def test_with_one_of_somebody_else(self, disk: Disk, tmp_path: Path) -> None:
        """A file with the right name says what is to be started where the image is loaded: it is not believed."""
        self.keep(disk, hex_id("image"), json.dumps({"config": {"Entrypoint": ["/evil"]}, "rootfs": {}, "history": []}))
        evidence = Evidence(tmp_path, disk)
        result = evidence.oci("web")
        assert any("or it was changed" in note for note in result["notes"]), result
        assert "Entrypoint" not in self.image(tmp_path / "image.tar")["config"]["config"]

    def keep(self, disk: Disk, digest: str, text: str) -> None:
        content = disk.docker / "image/overlay2/imagedb/content/sha256"
        content.mkdir(parents=True)
        (content / digest).write_text(text)
        for record in disk.docker.glob("containers/*/config.v2.json"):
            record.write_text(record.read_text().replace(hex_id("image"), digest))

    def test_names_that_would_delete_something(self, disk: Disk, tmp_path: Path) -> None:
        diff = disk.writable("web") / "diff"
        for name in (".wh.real", ".wh..wh..opq", ".wh."):
            (diff / name).write_text("no whiteout")
        evidence = Evidence(tmp_path, disk)
        result = evidence.oci("web")
        names = self.image(tmp_path / "image.tar")["layers"][-1]
        assert sorted(names) == ["%2Ewh.", "%2Ewh..wh..opq", "%2Ewh.real", ".", "content"]
        assert sum("means a deletion" in note for note in result["notes"]) == 3
        evidence.tree("web")
        assert evidence.content("./.wh.real") == b"no whiteout"


def test_an_image_needs_a_file_that_can_be_sought_in() -> None:
    """Its headers are written last: this is why it has a way of its own to write."""
    assert write_image.__annotations__["out"] == "BinaryIO"
