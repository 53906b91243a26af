"""Reading small records: bounded, and never through a link."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquirers.base import Kind
from acquirers.containers.records import MalformedError, Records, TooManyNamesError, decode
from acquirers.host import Host, Mode


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def records(place: Path) -> Records:
    return Records.open(Host(Mode.DEAD, os.fsencode(place.parent)), b"/place")


def test_reads_what_is_there(place: Path) -> None:
    (place / "a").mkdir()
    (place / "a/file").write_text(" word \n")
    (place / "a/link").symlink_to("../secret")
    with records(place) as found:
        assert found.text(b"a", b"file") == "word"
        assert found.link(b"a", b"link") == b"../secret"
        assert found.names(b"a") == [(b"file", Kind.FILE), (b"link", Kind.SYMLINK)]
        assert found.kind(b"a") is Kind.DIRECTORY
        assert found.kind(b"b") is found.kind(b"b", b"c") is None


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"../../etc/passwd", b"a\0b"])
def test_a_name_is_one_component(place: Path, name: bytes) -> None:
    with records(place) as found:
        for ask in (found.read, found.link, found.kind, found.names):
            with pytest.raises(MalformedError):
                ask(name)


@pytest.mark.parametrize("target", ["/etc/passwd", "loop", "../../../etc/passwd", "real"])
def test_no_link_is_followed(place: Path, target: str) -> None:
    (place / "real").write_text("content")
    (place / "loop").symlink_to(target)
    with records(place) as found, pytest.raises(MalformedError, match="symlink"):
        found.read(b"loop")


def test_no_link_to_a_directory_is_followed(place: Path) -> None:
    (place / "real").mkdir()
    (place / "real/file").write_text("content")
    (place / "link").symlink_to("real")
    with records(place) as found:
        with pytest.raises(OSError, match="Not a directory"):
            found.read(b"link", b"file")
        with pytest.raises(OSError, match="Not a directory"):
            found.names(b"link")
        assert found.kind(b"link", b"file") is None


def test_nothing_but_a_file_is_opened(place: Path) -> None:
    os.mkfifo(place / "fifo")
    (place / "directory").mkdir()
    with records(place) as found:
        for name in (b"fifo", b"directory"):
            with pytest.raises(MalformedError):
                found.read(name)


def test_size_is_bounded_before_anything_is_read(place: Path) -> None:
    with (place / "huge").open("wb") as file:
        file.truncate(1 << 40)
    (place / "just").write_bytes(b"x" * 10)
    with records(place) as found:
        with pytest.raises(MalformedError, match="1099511627776 bytes"):
            found.read(b"huge")
        assert found.read(b"just", limit=10) == b"x" * 10
        with pytest.raises(MalformedError):
            found.read(b"just", limit=9)


def test_names_are_bounded(place: Path) -> None:
    for number in range(12):
        (place / str(number)).touch()
    with records(place) as found:
        assert len(found.names(limit=12)) == 12
        with pytest.raises(TooManyNamesError) as caught:
            found.names(limit=5)
    assert len(caught.value.first) == 5


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 1_000_000,
        b'{"a":' * 100_000,
        b"\xff",
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b"\0" * 100,
    ],
)
def test_json_bombs_are_one_error(data: bytes) -> None:
    with pytest.raises(MalformedError):
        decode(decode(data, dict[str, msgspec.Raw])["a"], str)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists) | st.binary())
def test_decoding_raises_nothing_else(value: object) -> None:
    data = value if isinstance(value, bytes) else msgspec.json.encode(value)
    try:
        decode(data, dict[str, msgspec.Raw])
    except MalformedError:
        pass
