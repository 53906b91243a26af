"""Image layers of a real daemon against their DiffIDs: as they are, and after somebody with root has been there."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from acquirers.host import Host, Mode
from acquirers.layers import tarsplit
from acquirers.layers.disk import Directory
from acquirers.layers.proof import Proof, prove
from tests.rigs.docker import PrivateDocker, why_not
from tests.support.runs import ENVIRONMENT, agent_command, impound, keygen

pytestmark = [pytest.mark.skipif(bool(why_not()), reason=why_not()), pytest.mark.timeout(300)]

_MAKE = """
    mkdir -p /a/deep; mkfifo /a/pipe; mknod /a/null c 1 3; echo one > /a/one; echo two > /a/deep/two
    ln /a/one /a/hard; ln -s ../one /a/deep/link; chmod 4755 /a/one; chown 12:34 /a/deep/two; : > /a/empty
"""
_CHANGE = """
    rm /a/one; rm -r /a/deep; mkdir /a/deep; echo three > /a/deep/three; touch -d '2001-02-03 04:05:06' /a/empty
"""
STEPS = (_MAKE, _CHANGE)
"""Each becomes a layer of its own, by commit."""


class Layers:
    """The layers of one image, the lowest first."""

    def __init__(self, docker: PrivateDocker) -> None:
        docker.import_base(name := "base:1")
        for number, step in enumerate(STEPS):
            docker.run(f"step{number}", name, "/bin/sh", "-c", step)
            docker.wait(f"step{number}")
            docker.docker("commit", f"step{number}", name := f"step{number}:latest")
        self.root = docker.data
        layerdb = self.root / "image/overlay2/layerdb/sha256"
        by_diff = {(one / "diff").read_text(): one for one in layerdb.iterdir()}
        config = json.loads(docker.docker("inspect", name))[0]
        self.all = [by_diff[diff_id] for diff_id in config["RootFS"]["Layers"]]

    def directory(self, layer: Path) -> Path:
        return self.root / "overlay2" / (layer / "cache-id").read_text() / "diff"

    def prove(self, layer: Path) -> Proof:
        def entries() -> Iterator[tarsplit.Segment | tarsplit.Content]:
            with (layer / "tar-split.json.gz").open("rb") as file:
                yield from tarsplit.read(iter(lambda: file.read(4096), b""))

        with Directory.open(Host(Mode.HOST), os.fsencode(self.directory(layer))) as files:
            return prove(entries, files, (layer / "diff").read_text())


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layers]:
    with PrivateDocker(tmp_path_factory.mktemp("docker")) as docker:
        yield Layers(docker)


def test_what_nobody_touched_is_proved(layers: Layers) -> None:
    assert len(layers.all) >= 3
    for layer in layers.all:
        proof = layers.prove(layer)
        assert proof.proved, (proof.digest, proof.differences, proof.why)
        assert proof.members > 0


def _content(path: Path) -> None:
    stat = path.stat()
    path.write_bytes(b"eno\n"[: stat.st_size])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _mode(path: Path) -> None:
    path.chmod(0o6777)


def _owner(path: Path) -> None:
    os.chown(path, 0, 77)


def _gone(path: Path) -> None:
    path.unlink()


def _put(path: Path) -> None:
    (path.parent / "implant").write_bytes(b"x")


def _capability(path: Path) -> None:
    os.setxattr(path, "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))


@pytest.mark.parametrize(
    ("touch", "named", "what"),
    [
        (_content, b"a/deep/two", "content"),
        (_mode, b"a/deep/two", "mode"),
        (_owner, b"a/deep/two", "belongs"),
        (_gone, b"a/deep/two", "gone"),
        (_put, b"a/deep/implant", "put there"),
        (_capability, b"a/deep/two", "security.capability"),
    ],
    ids=["content", "mode", "owner", "gone", "put", "capability"],
)
def test_what_somebody_changed_is_named(layers: Layers, touch: Callable[[Path], None], named: bytes, what: str) -> None:
    layer = layers.all[-2]
    path = layers.directory(layer) / "a/deep/two"
    stat, parent = path.stat(), path.parent.stat()
    content = path.read_bytes()
    try:
        touch(path)
        proof = layers.prove(layer)
        assert not proof.proved
        assert any(one.name == named and what in one.what for one in proof.differences), proof
    finally:
        (path.parent / "implant").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        path.chmod(stat.st_mode & 0o7777)
        os.chown(path, stat.st_uid, stat.st_gid)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        os.utime(path.parent, ns=(parent.st_atime_ns, parent.st_mtime_ns))
    assert layers.prove(layer).proved


def test_a_whiteout_that_was_taken_away_is_named(layers: Layers) -> None:
    layer = layers.all[-1]
    path = layers.directory(layer) / "a/one"
    stat = path.parent.stat()
    path.unlink()
    try:
        proof = layers.prove(layer)
        assert [(one.name, one.what) for one in proof.differences if one.name == b"a/one"] == [
            (b"a/one", "should be a whiteout")
        ]
    finally:
        os.mknod(path, 0o20000, 0)
        os.utime(path.parent, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_records_that_were_changed_prove_nothing(layers: Layers) -> None:
    layer = layers.all[-1]
    lines = gzip.decompress((layer / "tar-split.json.gz").read_bytes()).splitlines(keepends=True)
    with Directory.open(Host(Mode.HOST), os.fsencode(layers.directory(layer))) as files:
        swapped = [lines[1], lines[0], *lines[2:]]
        proof = prove(lambda: tarsplit.read(iter(swapped)), files, (layer / "diff").read_text())
        assert "number" in proof.why
        assert not proof.proved
        cut = prove(lambda: tarsplit.read(iter(lines[:-3])), files, (layer / "diff").read_text())
        assert not cut.proved


def acquired(layers: Layers, tmp_path: Path, *options: str) -> tuple[Path, dict[str, Any]]:
    """`acquire`, as a responder types it, and `open`; the directory that it opens to, and the result."""
    key, recipient = keygen(tmp_path)
    command = [*agent_command(), "acquire", "--case", "L", "--to", str(tmp_path / "ev"), "-r", recipient]
    command += ["--only", "containers.docker", "--container", "step1", *options, "--json"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=120, env=ENVIRONMENT)
    assert done.returncode in {0, 1}, done.stderr.decode()
    code, _, error = impound("open", str(tmp_path / "ev"), "-i", str(key), "--output", str(tmp_path / "opened"))
    assert code == 0, error
    return tmp_path / "opened", json.loads(done.stdout.splitlines()[-1])


def taken(opened: Path) -> set[str]:
    return {path.name for path in opened.rglob("layers/*.tar")}


def test_layers_that_are_known_and_unchanged_are_left_out(layers: Layers, tmp_path: Path) -> None:
    known = tmp_path / "known"
    below = layers.all[:-1]  # the container stands on these: the last one was made of it
    known.write_text("".join(f"{(layer / 'diff').read_text()}  published\n" for layer in below))
    names = {(layer / "cache-id").read_text()[:12] + ".tar" for layer in below}
    (tmp_path / "all").mkdir()
    opened, _ = acquired(layers, tmp_path / "all")
    assert taken(opened) == names

    changed = layers.directory(below[-1]) / "a/deep/two"
    stat = changed.stat()
    changed.write_bytes(b"owt\n")
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (tmp_path / "changed").mkdir()
    try:
        opened, result = acquired(layers, tmp_path / "changed", "--layers", "changed", "--known-layers", str(known))
    finally:
        changed.write_bytes(b"two\n")
        os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert result["gaps"] == 0, result
    assert taken(opened) == {(below[-1] / "cache-id").read_text()[:12] + ".tar"}
    (proofs,) = opened.rglob("layers/proof.jsonl")
    lines = [json.loads(line) for line in proofs.read_text().splitlines()]
    assert {line["layer"][:12] + ".tar": line["left_out"] for line in lines} == {
        name: name not in taken(opened) for name in names
    }
    assert result["known_left_out"] == len(below) - 1
    assert result["findings"] >= 1
    code, told, said = impound("export", "layers", str(opened), "--output", str(tmp_path / "layers.jsonl"))
    assert (code, told["layers"], told["changed"], told["left_out"]) == (0, 1, 1, len(below) - 1)
    assert "left out when it was acquired" in said
    code, told, said = impound("export", "tree", str(opened), "--container", "step1", "--output", str(tmp_path / "t"))
    assert (code, told["layers_missing"]) == (0, len(below) - 1)
    assert "left out since the responder knew them" in said


def test_a_layer_that_something_is_mounted_over_is_taken(layers: Layers, tmp_path: Path) -> None:
    """Its container sees another directory than the one with the right digest."""
    known = tmp_path / "known"
    known.write_text("".join((layer / "diff").read_text() + "\n" for layer in layers.all))
    (tmp_path / "other/a/deep").mkdir(parents=True)
    covered = layers.directory(layers.all[0])
    subprocess.run(["mount", "--bind", tmp_path / "other", covered], check=True)
    try:
        opened, _ = acquired(layers, tmp_path, "--layers", "changed", "--known-layers", str(known))
    finally:
        subprocess.run(["umount", covered], check=True)
    assert taken(opened) == {covered.parent.name[:12] + ".tar"}
    (item,) = opened.rglob(f"layers/{covered.parent.name[:12]}.tar")
    with tarfile.open(item) as tar:
        assert not [name for name in tar.getnames() if name.endswith("/a/deep")], "what lies beneath was taken"
    (manifest,) = opened.rglob("manifest.jsonl")
    found = [line for line in manifest.read_text().splitlines() if '"finding"' in line and "is a mount" in line]
    assert found


def test_what_is_not_known_is_taken(layers: Layers, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text("0" * 64 + "\n")
    opened, _ = acquired(layers, tmp_path, "--layers", "changed", "--known-layers", str(known))
    assert len(taken(opened)) == len(layers.all) - 1


def test_an_analyst_names_what_differs_out_of_a_run(layers: Layers, tmp_path: Path) -> None:
    changed = layers.directory(layers.all[-2]) / "a/deep/two"
    stat = changed.stat()
    changed.write_bytes(b"owt\n")
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    try:
        opened, _ = acquired(layers, tmp_path)
    finally:
        changed.write_bytes(b"two\n")
        os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    output = tmp_path / "proof.jsonl"
    code, result, said = impound("export", "layers", str(opened), "--output", str(output))
    assert code == 0, said
    assert (result["layers"], result["changed"]) == (len(layers.all) - 1, 1)
    assert result["blobs"] == 3
    assert result["blobs_changed"] == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    (wrong,) = [line for line in lines if not line["proved"]]
    assert [(one["path"], one["what"]) for one in wrong["differences"]] == [
        ("a/deep/two", "its content is another one")
    ]
    assert "a/deep/two" in said
