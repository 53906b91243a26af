"""Headers of /proc/kcore and lines of /proc/iomem, with anything in them: `MalformedError`, or what holds together."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acquirers.memory import crash, iomem, kcore
from acquirers.memory.kcorelayout import Segment, layout
from acquirers.memory.ranges import Ranges
from tests.support.fake_kcore import build
from tests.unit.memory.test_kcore import FOUR, x86

PAGE = 4096
WHOLE = build(x86(FOUR))
HEAD = kcore.parse_header(WHOLE).verbatim
EXTENDED = kcore.parse_header(build(x86(FOUR), extended=True)).verbatim
WORDS = st.sampled_from([0, 1, 0xFFF, 0x1000, 0xFFFF, 0xFFFF_FFFF, 1 << 52, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
EDITS = st.lists(
    st.tuples(st.integers(0, 700), (WORDS | st.integers(0, (1 << 64) - 1)).map(lambda n: n.to_bytes(8, "little")))
    | st.tuples(st.integers(0, 700), st.binary(min_size=1, max_size=8)),
    max_size=8,
)


def edited(data: bytes, edits: list[tuple[int, bytes]]) -> bytes:
    found = bytearray(data)
    for at, new in edits:
        found[at : at + len(new)] = new
    return bytes(found)


def holds_together(header: kcore.Header, ram: Ranges) -> None:
    for machine in ("x86_64", "aarch64"):
        found = layout(header.segments, machine, ram)
        assert found.ram.rounded_in(PAGE) == found.ram
        assert found.physical.ranges().total >= found.ram.total
        for span in list(found.physical.ranges())[:4]:
            for offset, size in found.physical.places(span.start, min(span.size, 1 << 20)):
                assert 0 <= offset < offset + size < 1 << 63


def parsed(data: bytes) -> kcore.Header | str:
    try:
        return kcore.parse_header(data)
    except kcore.MalformedError as error:
        return str(error)


def code_of(read: Callable[[int, memoryview], None], address: int, size: int) -> int | None:
    try:
        read(address, memoryview(bytearray(size)))
    except OSError as error:
        return error.errno
    return 0


@pytest.mark.parametrize("start", [HEAD, EXTENDED])
@settings(max_examples=500)
@given(EDITS, st.integers(0, 4096))
def test_headers(start: bytes, edits: list[tuple[int, bytes]], cut: int) -> None:
    data = edited(start, edits)
    for given_data in (data, data[:cut]):
        header = parsed(given_data)
        if isinstance(header, str):
            assert "\n" not in header
            assert len(header) < 200
            continue
        assert len(header.verbatim) <= len(given_data)
        assert len(header.notes) <= kcore.MAX_NOTES
        holds_together(header, Ranges([(0x1000, 0x1F000), (0x10_0000, 0x14_0000)]))


@given(st.binary(max_size=4096))
def test_noise(data: bytes) -> None:
    for prefix in (b"", HEAD[:24], HEAD[:64]):
        parsed(prefix + data)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(EDITS, st.lists(st.tuples(st.integers(0, 1 << 21), st.integers(0, 3 * PAGE)), max_size=4))
def test_files(tmp_path: Path, edits: list[tuple[int, bytes]], reads: list[tuple[int, int]]) -> None:
    path = tmp_path / "kcore"
    path.write_bytes(edited(WHOLE, edits))
    try:
        source = kcore.Kcore(os.fsencode(path))
        reader = source.open()
    except (kcore.MalformedError, OSError):
        return
    for address, size in reads:
        for read in (reader.read, reader.read_virtual):
            assert code_of(read, address, size) in {0, errno.EINVAL, errno.EIO, errno.EAGAIN}
    reader.close()


PIECES = st.sampled_from(
    [b"0", b"1000-1fff", b"ffffffffffffffff", b"-", b" : ", b"System RAM", b" (kmem)", b"  ", b"\n", b"\0", b"\xff"]
)


@settings(max_examples=500)
@given(st.lists(PIECES | st.binary(max_size=6), max_size=60).map(b"".join))
def test_lines_of_iomem(data: bytes) -> None:
    found = iomem.parse(data)
    assert all(0 <= start < end <= iomem.MAX_ADDRESS for start, end in found)
    assert found == Ranges() or not iomem.hidden(data)
    assert iomem.kernel_image(data).total <= iomem.MAX_ADDRESS
    number = crash.minor(data)
    assert number is None or 0 <= number < 10**7


def test_many_lines_and_many_segments_are_no_burden() -> None:
    lines = b"".join(b"%x-%x : System RAM\n" % (n * 0x2000, n * 0x2000 + 0xFFF) for n in range(150_000))
    assert 0 < len(iomem.parse(lines)) <= 150_000
    segments = [
        Segment(FOUR + n * 0x2000, n * 0x2000 + (n % 2 << 40), n << 13, 0x3000) for n in range(kcore.MAX_SEGMENTS)
    ]
    assert layout(segments, "x86_64", Ranges()).physical.ranges()
