"""Layers that are directories: nothing leads out of them, nothing moves, nothing is left open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from acquirers.base import Kind
from acquirers.overlay import DirectoryLayer, Handles, Union
from tests.rigs.trees import Recorder


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[DirectoryLayer]:
    (tmp_path / "layer").mkdir()
    fd = os.open(tmp_path / "layer", os.O_RDONLY)
    layer = DirectoryLayer(fd, "layer", handles=Handles(4))
    os.close(fd)
    yield layer
    layer.close()


def test_links_are_not_followed(tmp_path: Path, opened: DirectoryLayer) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (tmp_path / "layer/link").symlink_to(outside)
    (tmp_path / "layer/loop").symlink_to("loop")
    node = opened.look(b"link")
    assert node is not None
    assert (node.kind, node.target) == (Kind.SYMLINK, os.fsencode(outside))
    assert opened.look(b"link/secret") is None
    assert list(opened.names(b"link")) == []
    assert opened.look(b"loop/x") is None
    with pytest.raises(OSError), opened.content(b"link/secret", Recorder()):
        pass
    assert {entry.path for entry in Union([opened]).walk()} == {b"/", b"/link", b"/loop"}


def test_what_is_no_directory_has_no_names(tmp_path: Path, opened: DirectoryLayer) -> None:
    (tmp_path / "layer/file").write_text("x")
    assert list(opened.names(b"file")) == []
    assert opened.look(b"file/x") is None
    assert opened.look(b"no/such") is None
    assert opened.look(b"n" * 300) is None


def test_deeper_than_a_path_may_be(tmp_path: Path, opened: DirectoryLayer) -> None:
    fd = os.open(tmp_path / "layer", os.O_RDONLY)
    for _ in range(60):
        os.mkdir("d" * 200, dir_fd=fd)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    found = [entry.path for entry in Union([opened]).walk()]
    assert len(found) == 62
    assert found[-1].endswith(b"/bottom")
    assert len(found[-1]) > 12_000
    assert len(os.listdir("/proc/self/fd")) <= before + 4
    assert opened.look(found[-1][1:]) is not None, "from the root of the layer again"


def test_access_times_stay(tmp_path: Path, opened: DirectoryLayer) -> None:
    layer = tmp_path / "layer"
    (layer / "d").mkdir()
    (layer / "d/file").write_text("content")
    for path in (layer, layer / "d", layer / "d/file"):
        os.utime(path, ns=(10**18, 2 * 10**18))
    for entry in Union([opened]).walk():
        if entry.object is not None and entry.object.data is not None:
            with opened.content(entry.object.data.path, Recorder()) as content:
                assert b"".join(map(bytes, content.chunks())) == b"content"
    assert {path.stat().st_atime_ns for path in (layer, layer / "d", layer / "d/file")} == {10**18}


def test_attributes_and_devices_are_seen_without_being_opened(tmp_path: Path, opened: DirectoryLayer) -> None:
    os.mkfifo(tmp_path / "layer/fifo")
    (tmp_path / "layer/file").write_text("x")
    os.setxattr(tmp_path / "layer/file", "user.a", b"\0")
    node = opened.look(b"file")
    assert node is not None
    assert node.xattrs == {b"user.a": b"\0"}
    fifo = opened.look(b"fifo")
    assert fifo is not None
    assert fifo.kind is Kind.FIFO


def test_everything_is_closed_again(tmp_path: Path) -> None:
    for name in "abcdef":
        (tmp_path / "layer" / name).mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    fd = os.open(tmp_path / "layer", os.O_RDONLY)
    layer = DirectoryLayer(fd, "layer")
    os.close(fd)
    list(Union([layer]).walk())
    layer.close()
    assert len(os.listdir("/proc/self/fd")) == before
