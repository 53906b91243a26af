"""An archive as a filesystem: names, links, holes, and what is damaged or hostile."""

from __future__ import annotations

import contextlib
import hashlib
import io
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acquirers.base import Kind
from agent.analysis.tarindex import TarIndex, TarLayer
from agent.errors import DamagedError

if TYPE_CHECKING:
    from agent.analysis.notes import Note


class Blob:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read_at(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]

    def close(self) -> None: ...


def tar_of(*members: tuple[str, bytes, dict[str, object]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content, fields in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in fields.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


@contextlib.contextmanager
def index_of(path: Path, *archives: bytes) -> Iterator[tuple[TarIndex, list[Note]]]:
    told: list[Note] = []
    with contextlib.closing(TarIndex(str(path / "index"), on_note=told.append)) as index:
        for archive in archives:
            index.add(Blob(archive))
        yield index, told


def test_names_content_and_links(tmp_path: Path) -> None:
    archive = tar_of(
        ("[root]/l", b"", {"type": tarfile.DIRTYPE, "mode": 0o1777}),
        ("[root]/l/a", b"content", {"mode": 0o4755, "uid": 5, "mtime": 7}),
        ("[root]/l/same", b"", {"type": tarfile.LNKTYPE, "linkname": "[root]/l/a"}),
        ("[root]/l/link", b"", {"type": tarfile.SYMTYPE, "linkname": "../../etc/passwd"}),
        ("elsewhere/x", b"not of the machine", {}),
    )
    with index_of(tmp_path, archive) as (index, told):
        layer = TarLayer(index, b"/l", "l")
        assert sorted(layer.names(b"")) == [b"a", b"link", b"same"]
        one, same = layer.look(b"a"), layer.look(b"same")
        assert one is not None
        assert same is not None
        assert (one.stat.mode, one.stat.uid, one.stat.mtime_ns) == (0o104755, 5, 7 * 10**9)
        assert one.stat == same.stat
        assert one.stat.nlink == 2
        assert index.read(b"/l/same", 100) == b"content"
        assert index.read(b"/l/same", 3) is None
        link = layer.look(b"link")
        assert link is not None
        assert link.target == b"../../etc/passwd"
        assert layer.look(b"link/x") is None
        assert index.node(b"/elsewhere/x") is None
        assert not told


def test_holes(tmp_path: Path) -> None:
    import subprocess

    source = tmp_path / "source/[root]"
    source.mkdir(parents=True)
    with (source / "sparse").open("wb") as file:
        file.seek(3 << 20)
        file.write(b"data" * 2000)
        file.truncate(20 << 20)
    archive = tmp_path / "a.tar"
    subprocess.run(
        ["tar", "--format=posix", "--sparse", "-C", tmp_path / "source", "-cf", archive, "[root]"], check=True
    )
    with index_of(tmp_path, archive.read_bytes()) as (index, _):
        content = index.content(b"/sparse")
        stored = sum(len(chunk) for chunk in content.chunks())
        assert stored < 1 << 20
        assert content.size == 20 << 20
        assert content.sha256 == hashlib.sha256((source / "sparse").read_bytes()).digest()


def test_the_first_of_several_counts_and_links_need_their_target(tmp_path: Path) -> None:
    one = tar_of(
        ("[root]/a", b"first", {}), ("[root]/broken", b"", {"type": tarfile.LNKTYPE, "linkname": "[root]/gone"})
    )
    two = tar_of(("[root]/a", b"second", {}))
    with index_of(tmp_path, one, two) as (index, _):
        assert index.read(b"/a", 10) == b"first"
        node = index.node(b"/broken")
        assert node is not None
        assert node.problem
        with pytest.raises(FileNotFoundError):
            index.content(b"/broken")


def test_a_link_to_a_link_to_itself(tmp_path: Path) -> None:
    archive = tar_of(
        ("[root]/a", b"", {"type": tarfile.LNKTYPE, "linkname": "[root]/b"}),
        ("[root]/b", b"", {"type": tarfile.LNKTYPE, "linkname": "[root]/a"}),
    )
    with index_of(tmp_path, archive) as (index, _):
        node = index.node(b"/a")
        assert node is not None
        assert node.kind is Kind.FILE
        assert node.problem
        assert index.read(b"/a", 10) is None


def test_names_that_leave_are_refused(tmp_path: Path) -> None:
    archive = tar_of(
        ("[root]/../../etc/passwd", b"x", {}),
        ("[root]/ok", b"", {"type": tarfile.LNKTYPE, "linkname": "/etc/shadow"}),
        ("[root]/fine", b"x", {}),
    )
    with index_of(tmp_path, archive) as (index, told):
        assert len(told) == 2
        assert list(index.names(b"/")) == [b"fine"]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_an_archive_holds_it_is_damaged_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = tar_of(("[root]/a", b"x" * 700, {}), ("[root]/d", b"", {"type": tarfile.DIRTYPE}), ("[root]/d/b", b"y", {}))
    position = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    changed = (
        whole[:position]
        if cut
        else whole[:position] + data.draw(st.binary(min_size=1, max_size=8)) + whole[position + 8 :]
    )
    try:
        with index_of(tmp_path_factory.mktemp("index"), changed) as (index, _):
            for path in (b"/a", b"/d/b"):
                index.read(path, 1 << 20)
    except DamagedError:
        pass


def test_memory_does_not_grow_with_the_archive(tmp_path: Path) -> None:
    archive = tar_of(*((f"[root]/d{number % 100}/file-{number}", b"", {}) for number in range(20_000)))
    tracemalloc.start()
    try:
        with index_of(tmp_path, archive) as (index, _):
            assert sum(1 for _ in index.names(b"/d7")) == 200
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
