"""The directory store: whole or not there, never over something else, and out of reach of links."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from agent.errors import ObjectExistsError, SourceError, StoreError
from agent.stores.directory import PARTIAL, DirectorySource, DirectoryStore, find_runs, sweep_partials

if TYPE_CHECKING:
    from pathlib import Path

RUN = "C-1/host/01890a5d-ac96-774b-bcce-b302099a8057"


@pytest.fixture(params=["unnamed", "named"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DirectoryStore:
    """With unnamed files, and as on a filesystem that has none."""
    if request.param == "named":
        real = os.open

        def refuse(path: str, flags: int, *more: int, **options: int) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "no unnamed files here")
            return real(path, flags, *more, **options)

        monkeypatch.setattr(os, "open", refuse)
    return DirectoryStore(str(tmp_path / "ev"), RUN)


def test_an_object_appears_only_when_it_is_whole(store: DirectoryStore, tmp_path: Path) -> None:
    upload = store.begin("a/b.zst.age")
    upload.write(b"x" * 100_000)
    assert not (tmp_path / "ev" / RUN / "a/b.zst.age").exists()
    upload.commit()
    path = tmp_path / "ev" / RUN / "a/b.zst.age"
    assert path.read_bytes() == b"x" * 100_000
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["b.zst.age"]


def test_nothing_is_overwritten(store: DirectoryStore, tmp_path: Path) -> None:
    for data in (b"first", b"second"):
        upload = store.begin("a")
        upload.write(data)
        if data == b"first":
            upload.commit()
        else:
            with pytest.raises(ObjectExistsError):
                upload.commit()
    path = tmp_path / "ev" / RUN
    assert (path / "a").read_bytes() == b"first"
    assert [one.name for one in path.iterdir()] == ["a"]


def test_an_aborted_object_leaves_nothing(store: DirectoryStore, tmp_path: Path) -> None:
    upload = store.begin("a")
    upload.write(b"x")
    upload.abort()
    upload.abort()
    assert list((tmp_path / "ev" / RUN).iterdir()) == []


def test_a_run_is_not_begun_where_one_is(store: DirectoryStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        DirectoryStore(str(tmp_path / "ev"), RUN)
    DirectoryStore(str(tmp_path / "ev"), RUN, resume=True).close()
    with pytest.raises(StoreError):
        DirectoryStore(str(tmp_path / "ev"), RUN.replace("host", "other"), resume=True)


def test_links_in_the_way_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "ev").mkdir()
    (tmp_path / "away").mkdir()
    (tmp_path / "ev/C-1").symlink_to(tmp_path / "away")
    with pytest.raises(StoreError):
        DirectoryStore(str(tmp_path / "ev"), RUN)
    store = DirectoryStore(str(tmp_path / "ev2"), RUN)
    (tmp_path / "ev2" / RUN / "a").symlink_to(tmp_path / "away")
    with pytest.raises(StoreError):
        store.begin("a/b")
    assert list((tmp_path / "away").iterdir()) == []


def test_a_source_reads_no_further_than_itself(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    base = tmp_path / "run"
    (base / "d").mkdir(parents=True)
    (base / "link").symlink_to(tmp_path / "secret")
    (base / "dirlink").symlink_to(tmp_path)
    os.mkfifo(base / "fifo")
    source = DirectorySource(str(base))
    for name in ("link", "dirlink/secret", "../secret", "/etc/passwd", "d", "fifo", "none", "d/../link", ""):
        with pytest.raises(SourceError):
            source.open(name)
    assert {one.name: one.regular for one in source.names()} == {"dirlink": False, "fifo": False, "link": False}


def test_runs_are_found_from_every_level(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path / "ev"), RUN)
    upload = store.begin("progress/000000.json")
    upload.commit()
    path = tmp_path / "ev" / RUN
    for level in (path, path.parent, path.parents[1], path.parents[2]):
        assert find_runs(str(level)) == [str(path)]
    with pytest.raises(SourceError):
        find_runs(str(tmp_path / "none"))


def test_what_a_dead_writer_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / (PARTIAL + "0011")).write_bytes(b"x")
    (tmp_path / "a/kept").write_bytes(b"x")
    sweep_partials(str(tmp_path))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]
