"""Logs of containers are whatever the examined machine holds: any bytes are decoded, in order and within bounds."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.analysis.logs import cri, jsonfile, local
from agent.analysis.logs.inflate import Inflated
from agent.analysis.logs.joining import Entry, join
from agent.analysis.logs.names import classify
from agent.analysis.logs.records import Decoder, format_time, parse_time
from agent.analysis.logs.rendering import entry_line
from tests.support import log_files
from tests.support.log_files import START, Said, frame

DECODERS = {"json-file": jsonfile.decode, "cri": cri.decode_either, "local": local.decode}

_BITS = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([
        b"\n", b"\0" * 16, b'{"log":"', b'{"log":"a\\n","stream":"stdout","time":"2026-01-02T03:04:05Z"}\n', b'"}',
        b"2026-01-02T03:04:05.1Z stdout P part\n", b"2026-01-02T03:04:05.1Z stdout F", b" stderr F:x y\n",
        b"\0\0\0\x08\x0a\x06stdout\0\0\0\x08", b"\0\0\0\x0a\x0a\x06std", b"\0\x10\0\0\x0a", b"\0\0\0\0",
        log_files.local(Said(START, "stdout", b"whole"))[0], log_files.json_file(Said(START, "stderr", b"whole"))[0],
    ]),
    st.binary(max_size=30).map(frame),
)  # fmt: skip
DATA = st.lists(_BITS, max_size=30).map(b"".join)


def pieces(data: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    for at in range(0, len(data), size):
        yield at, data[at : at + size]


@pytest.mark.parametrize("name", DECODERS)
@given(data=DATA, size=st.integers(1, 300), hole=st.integers(0, 1 << 40))
def test_any_bytes(name: str, data: bytes, size: int, hole: int) -> None:
    decode: Decoder = DECODERS[name]
    found = list(decode(pieces(data, size)))
    ranges = [(one.offset, one.end) for one in found]
    assert all(0 <= offset < end <= len(data) for offset, end in ranges)
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))
    assert found == list(decode([(0, data)] if data else []))
    for one in join(found):
        if isinstance(one, Entry):
            assert entry_line(one, "source", "container").count(b"\n") == 1
    list(decode([(0, data), (len(data) + hole, data)]))


@given(DATA, st.integers(1, 300), st.integers(0, 400), st.binary(max_size=20))
def test_any_gzip(data: bytes, size: int, at: int, junk: bytes) -> None:
    packed = gzip.compress(data)
    broken = packed[:at] + junk + packed[at + len(junk) :]
    found = Inflated(pieces(broken, size), limit=1 << 16)
    out = b"".join(piece for _, piece in found)
    assert out == data or found.damage is not None


@given(st.binary(max_size=100))
def test_any_name(name: bytes) -> None:
    classify(name)
    classify(b"[root]/var/log/pods/" + name)


@given(st.text(max_size=40))
def test_any_time(text: str) -> None:
    time_ns = parse_time(text)
    assert time_ns is None or format_time(time_ns) is None or format_time(time_ns)
