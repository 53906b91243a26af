"""The records of a layer's tar, its checksums and its headers: real forms, and whatever else."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquirers.base import Kind
from acquirers.files.tree import open_tree
from acquirers.layers import headers, tarsplit
from acquirers.layers.crc64 import crc64
from acquirers.layers.disk import Directory
from acquirers.layers.proof import Found, Proof, prove


def test_the_checksum_is_the_one_of_go() -> None:
    assert crc64(b"123456789") == 0xB90956C775A41001  # CRC-64/GO-ISO, reveng's catalogue
    assert crc64(b"") == 0


@given(st.binary(max_size=200), st.integers(0, 200))
def test_a_checksum_can_be_gone_on_with(data: bytes, at: int) -> None:
    assert crc64(data[at:], crc64(data[:at])) == crc64(data)


def split(archive: bytes) -> bytes:
    """`tar-split.json` of a tar, as the packer writes it: the format's other half, made here."""
    lines: list[dict[str, object]] = []

    def segment(data: bytes) -> None:
        if data:
            lines.append({"type": 2, "payload": base64.b64encode(data).decode(), "position": len(lines)})

    end = 0
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for one in tar:
            segment(archive[end : one.offset_data])
            size = one.size if one.isreg() else 0
            content = archive[one.offset_data : one.offset_data + size]
            checksum = base64.b64encode(crc64(content).to_bytes(8, "big")).decode() if size else None
            lines.append({"type": 1, "name": one.name, "size": size, "payload": checksum, "position": len(lines)})
            end = one.offset_data + size
    segment(archive[end:])
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("packed", [False, True])
def test_a_tar_is_put_together_again(tmp_path: Path, form: int, packed: bool) -> None:
    tree = tmp_path / "layer"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / ("long" * 20)).write_bytes(bytes(range(256)) * 100)
    (tree / "empty").touch()
    (tree / "link").symlink_to("deep/nowhere")
    for path in (*tree.rglob("*"), tree):
        os.utime(path, (1_700_000_000, 1_700_000_000), follow_symlinks=False)  # tarfile knows no finer time
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        tar.add(tree, arcname=".")
    archive = out.getvalue()
    text = split(archive)
    stored = gzip.compress(text) if packed else text
    pieces = [stored[at : at + 7] for at in range(0, len(stored), 7)]
    rebuilt = b""
    for entry in tarsplit.read(iter(pieces)):
        if isinstance(entry, tarsplit.Segment):
            rebuilt += entry.data
        elif entry.size:
            rebuilt += (tree / entry.name.decode()).read_bytes()
    assert rebuilt == archive
    proof = proved(tree, text, archive)
    assert proof.proved, proof
    (tree / "deep" / "new").touch()
    assert not proved(tree, text, archive).proved


def proved(tree: Path, text: bytes, archive: bytes) -> Proof:
    fd = os.open(tree, os.O_PATH | os.O_DIRECTORY)
    try:
        with Directory(open_tree(fd, os.fsencode(tree))) as files:
            return prove(lambda: tarsplit.read([text]), files, f"sha256:{hashlib.sha256(archive).hexdigest()}")
    finally:
        os.close(fd)


@given(st.binary(max_size=400))
def test_whatever_a_record_holds_is_an_error_or_entries(data: bytes) -> None:
    for stored in (data, gzip.compress(data), b"\x1f\x8b" + data):
        try:
            for entry in tarsplit.read([stored]):
                assert isinstance(entry, tarsplit.Segment | tarsplit.Content)
        except tarsplit.TarSplitError:
            pass


_LINE = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from([1, 2, 3, -1, "1", None]),
        "position": st.integers(-1, 2),
        "name": st.text(max_size=5) | st.integers(),
        "name_raw": st.sampled_from(["", "Li4vLi4=", "!", None]),
        "size": st.integers(-2, 1 << 70),
        "payload": st.sampled_from(["", "AAAA", "AAAAAAAAAAA=", "=", None, 5]),
    },
)


@given(st.lists(_LINE, max_size=4))
def test_hostile_lines_prove_nothing(lines: list[dict[str, object]]) -> None:
    class Nothing:
        def find(self, name: bytes) -> Found | None:
            assert b".." not in name.split(b"/")
            return None

        def read(self, name: bytes) -> Iterator[bytes]:
            assert b".." not in name.split(b"/")
            yield from self.names()
            raise FileNotFoundError(2, "none")

        def names(self) -> Iterator[bytes]:
            yield from ()

    text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    assert not prove(lambda: tarsplit.read([text]), Nothing(), "sha256:" + "0" * 64).proved


def test_a_line_without_end_costs_no_more_than_its_limit() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b" " * (1 << 16)

    with pytest.raises(tarsplit.TarSplitError, match="line of more than"):
        list(tarsplit.read(endless()))


@given(st.binary(max_size=2048))
def test_whatever_a_header_holds_is_an_error_or_a_header(data: bytes) -> None:
    try:
        headers.parse(data)
    except headers.HeaderError:
        pass


def test_a_header_says_what_tar_wrote() -> None:
    info = tarfile.TarInfo("é" * 120)
    info.type, info.linkname, info.mode, info.uid = tarfile.SYMTYPE, "/x" * 90, 0o4755, 1 << 30
    info.pax_headers = {"mtime": "1700000000.123456789", "SCHILY.xattr.user.a": "b"}
    found = headers.parse(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
    assert (found.name, found.kind, found.target) == (("é" * 120).encode(), Kind.SYMLINK, b"/x" * 90)
    assert (found.mode, found.uid, found.mtime_ns) == (0o4755, 1 << 30, 1_700_000_000_123_456_789)
    assert found.xattrs == {b"user.a": b"b"}
