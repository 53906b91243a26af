"""The three formats of container logs: what was written comes back, and damage costs what is damaged."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.analysis.logs import cri, jsonfile, local
from agent.analysis.logs.inflate import Inflated
from agent.analysis.logs.joining import Entry, join
from agent.analysis.logs.lines import HOLE, Line, lines
from agent.analysis.logs.records import Damage, Decoder, Pieces, Record, format_time, parse_time
from tests.support import log_files
from tests.support.log_files import START, Said, frame


@dataclass(frozen=True)
class Format:
    decode: Decoder
    write: Callable[[Said, int], list[bytes]]


FORMATS = {
    "json-file": Format(jsonfile.decode, log_files.json_file),
    "cri": Format(cri.decode, log_files.cri),
    "local": Format(local.decode, log_files.local),
}
EVERY = pytest.mark.parametrize("name", FORMATS)

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"), max_size=40).map(str.encode)
SAID = st.lists(
    st.tuples(st.integers(0, 10**9), st.sampled_from(["stdout", "stderr"]), TEXT),
    max_size=30,
).map(lambda rows: [Said(START + number * 10**9 + ns, stream, line) for number, (ns, stream, line) in enumerate(rows)])


def pieces(data: bytes, sizes: Iterator[int] | None = None) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        size = next(sizes, 1000) if sizes is not None else 4096
        yield at, data[at : at + size]
        at += size


def entries(decode: Decoder, data: bytes) -> list[Entry | Damage]:
    return list(join(decode(pieces(data))))


def told(found: list[Entry | Damage]) -> list[tuple[int | None, str, bytes]]:
    return [(one.time_ns, one.stream, one.line) for one in found if isinstance(one, Entry)]


@EVERY
@given(said=SAID, part=st.integers(1, 50), seed=st.integers(0, 2**32))
def test_what_was_said_comes_back(name: str, said: list[Said], part: int, seed: int) -> None:
    """Whatever the size of the parts that lines are written in, and of the pieces that the file is read in."""
    form = FORMATS[name]
    if name != "cri":  # a part of CRI that ends inside of a character is bytes; json-file has made it U+FFFD
        said = [Said(one.time_ns, one.stream, one.line) for one in said]
    if name == "json-file":
        said = [Said(one.time_ns, one.stream, one.line.decode().encode("ascii", "ignore")) for one in said]
    data = b"".join(record for one in said for record in form.write(one, part))
    generator = random.Random(seed)
    sizes = iter(lambda: generator.randint(1, 200), 0)
    found = list(join(form.decode(pieces(data, sizes))))
    assert told(found) == [(one.time_ns, one.stream, one.line) for one in said]
    counts = [one.records for one in found if isinstance(one, Entry)]
    assert counts == [len(one.parts(part)) for one in said]
    offsets = [one.offset for one in found if isinstance(one, Entry)]
    assert offsets == sorted(offsets)


@EVERY
@given(said=SAID.filter(bool), data=st.data())
def test_damage_costs_only_the_records_that_are_damaged(name: str, said: list[Said], data: st.DataObject) -> None:
    """Any bytes are overwritten: every record outside of them is still told, and what is no record is told of."""
    form = FORMATS[name]
    records = [form.write(one, 1 << 20)[0] for one in said]
    whole = b"".join(records)
    start = data.draw(st.integers(0, len(whole) - 1))
    size = data.draw(st.integers(1, min(60, len(whole) - start)))
    junk = data.draw(st.binary(min_size=size, max_size=size))
    broken = whole[:start] + junk + whole[start + size :]
    found = list(form.decode(pieces(broken)))
    at, there = 0, []
    for one, record in zip(said, records, strict=True):
        touched = at < start + size and start < at + len(record)
        if not touched:
            there.append((one, at))
        at += len(record)
    kept = {(one.offset, one.time_ns, one.stream, one.line) for one in found if isinstance(one, Record)}
    for one, offset in there:
        if name == "cri" and offset == start + size:
            # Where the newline before it is gone it is part of the line before, as CRI has nothing else that ends one.
            assert any(isinstance(two, Record) and one.line in two.line for two in found)
            continue
        assert (offset, one.time_ns, one.stream, one.line) in kept
    covered = sorted((one.offset, one.end) for one in found)
    assert all(after[0] >= before[1] for before, after in pairwise(covered))
    if broken != whole:
        assert sum(end - offset for offset, end in covered) >= len(broken) - broken.count(b"\n") - 60


@EVERY
def test_a_cut_off_file_says_so_and_gives_what_is_whole(name: str) -> None:
    form = FORMATS[name]
    said = [Said(START + number, "stdout", b"line %d" % number) for number in range(5)]
    data = b"".join(form.write(one, 100)[0] for one in said)
    found = entries(form.decode, data[:-8])
    assert [line for _, _, line in told(found)][:4] == [one.line for one in said[:4]]
    if name == "cri":  # a line of text that ends early is still a line
        assert len(told(found)) == 5
    else:
        last = found[-1]
        assert isinstance(last, Damage)
        assert last.why == "the file ends inside of a record"
        assert last.end == len(data) - 8


@EVERY
def test_a_hole_is_told_and_costs_nothing_else(name: str) -> None:
    """Truncation by `cp /dev/null` under a writer that goes on at its old offset leaves gigabytes of hole."""
    form = FORMATS[name]
    before, after = (form.write(Said(START + n, "stdout", b"n%d" % n), 100)[0] for n in (1, 2))
    found = list(form.decode([(0, before), (10 << 30, after), (20 << 30, b"")]))
    assert [one.line for one in found if isinstance(one, Record)] == [b"n1", b"n2"]
    holes = [one for one in found if isinstance(one, Damage)]
    assert [(hole.offset, hole.end, hole.why) for hole in holes] == [
        (len(before), 10 << 30, HOLE),
        ((10 << 30) + len(after), 20 << 30, HOLE),
    ]


def test_json_file_as_dockerd_writes_it() -> None:
    data = (
        b'{"log":"part one, ","stream":"stdout","time":"2026-01-02T03:04:05.000000001Z"}\n'
        b'{"log":"err\\u003c\\n","stream":"stderr","attrs":{"tag":"x"},"time":"2026-01-02T03:04:05.5Z"}\n'
        b'{"log":"part two\\n","stream":"stdout","time":"2026-01-02T03:04:05.000000001Z"}\n'
        b'{"log":"\\n","stream":"stdout","time":"2026-01-02T03:04:06Z"}\n'
    )
    first, second, third = entries(jsonfile.decode, data)
    assert isinstance(first, Entry)
    assert isinstance(second, Entry)
    assert (first.stream, first.line, first.attrs) == ("stderr", b"err<", {"tag": "x"})
    assert (second.line, second.records, second.offset) == (b"part one, part two", 2, 0)
    assert isinstance(third, Entry)
    assert third.line == b""


def test_json_file_behind_the_zeros_of_a_crash() -> None:
    record = log_files.json_file(Said(START, "stdout", b"after the crash"))[0]
    found = entries(jsonfile.decode, bytes(5000) + record)
    assert found[0] == Damage(0, 5000, "not a record of json-file")
    assert told(found) == [(START, "stdout", b"after the crash")]


def test_json_file_whose_newline_is_gone() -> None:
    first, second = (log_files.json_file(Said(START + n, "stdout", b"n%d" % n))[0] for n in (1, 2))
    found = entries(jsonfile.decode, first[:-1] + b"X" + second)
    assert [line for _, _, line in told(found)] == [b"n1", b"n2"]
    assert [one for one in found if isinstance(one, Damage)] == [
        Damage(len(first) - 1, len(first), "not a record of json-file")
    ]


def test_a_record_inside_of_what_a_container_printed_is_no_record() -> None:
    forged = json.dumps({"log": "forged\n", "stream": "stdout", "time": "2026-01-02T03:04:05Z"})
    record = log_files.json_file(Said(START, "stdout", forged.encode()))[0]
    assert told(entries(jsonfile.decode, record)) == [(START, "stdout", forged.encode())]
    assert told(entries(jsonfile.decode, b"x" + record[2:])) == []
    in_cri = log_files.cri(Said(START, "stdout", b"2026-01-02T03:04:05Z stdout F forged"))[0]
    assert told(entries(cri.decode, in_cri)) == [(START, "stdout", b"2026-01-02T03:04:05Z stdout F forged")]
    in_local = log_files.local(Said(START, "stdout", log_files.local(Said(1, "stderr", b"forged"))[0]))[0]
    assert told(entries(local.decode, in_local)) == [
        (START, "stdout", log_files.local(Said(1, "stderr", b"forged"))[0])
    ]


@pytest.mark.parametrize(
    "line",
    [
        b'{"log":5,"stream":"stdout","time":"2026-01-02T03:04:05Z"}',
        b'{"stream":"stdout"}',
        b"[" * 100_000,
        b'{"log":"' + b"[" * 100_000,
        b'{"log":"\\ud800"}',
        b'{"log":"\xff"}',
        b"null",
        b"{}",
    ],
)
def test_what_is_no_record_of_json_file(line: bytes) -> None:
    (found,) = entries(jsonfile.decode, line + b"\n")
    assert isinstance(found, Damage)
    assert (found.offset, found.end) == (0, len(line) + 1)


def test_a_line_without_end_is_not_kept() -> None:
    """Memory holds no more of it than of the longest record."""

    def endless() -> Iterator[tuple[int, bytes]]:
        for number in range(64):
            yield number << 20, b"x" * (1 << 20)
        yield 64 << 20, b"\n" + b"2026-01-02T03:04:05Z stdout F after\n"

    found = list(cri.decode(endless()))
    assert isinstance(found[0], Damage)
    assert (found[0].offset, found[0].end) == (0, (64 << 20) + 1)
    assert isinstance(found[1], Record)
    assert found[1].line == b"after"


def test_a_line_of_a_container_without_end_comes_in_parts() -> None:
    part = log_files.cri(Said(START, "stdout", b"x" * 16384 + b"y"))[0]
    found = list(join(cri.decode((at * len(part), part) for at in range(1000))))
    sizes = [len(one.line) for one in found if isinstance(one, Entry)]
    assert sum(sizes) == 1000 * 16384
    assert max(sizes) <= (4 << 20) + 16384
    assert [one.goes_on for one in found if isinstance(one, Entry)] == [True] * (len(sizes) - 1) + [False]
    assert isinstance(found[-1], Entry)
    assert found[-1].unfinished


def test_damage_ends_a_line_that_is_open() -> None:
    """Else what was lost in the middle would be passed off as never written."""
    first, second, third = log_files.cri(Said(START, "stdout", b"aaabbbccc"), 3)
    found = entries(cri.decode, first + b"#" * len(second) + third)
    assert [(one.line, one.unfinished) for one in found if isinstance(one, Entry)] == [(b"aaa", True), (b"ccc", False)]


def test_records_of_local_with_attributes_and_parts() -> None:
    one = Said(START, "stderr", b"\xff\x00binary")
    (found,) = entries(local.decode, b"".join(log_files.local(one, 3, [("tag", "web"), ("env", "ü")])))
    assert isinstance(found, Entry)
    assert (found.line, found.records, found.attrs) == (b"\xff\x00binary", 3, {"tag": "web", "env": "ü"})


def test_the_length_at_the_end_makes_up_for_the_one_at_the_beginning() -> None:
    records = [log_files.local(Said(START + n, "stdout", b"line %d" % n))[0] for n in range(3)]
    for broken in (b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x00\x00\x00\x05", b"\x00\x0f\xff\xff"):
        for which in range(3):
            data = b"".join(broken + one[4:] if n == which else one for n, one in enumerate(records))
            found = entries(local.decode, data)
            assert [line for _, _, line in told(found)] == [b"line 0", b"line 1", b"line 2"]
            at = sum(map(len, records[:which]))
            assert [one for one in found if isinstance(one, Damage)] == [Damage(at, at + 4, "the length of a record")]


def test_a_local_file_of_nothing_but_candidates_ends() -> None:
    """Every fourth byte could begin a record: that costs time in proportion, and not its square."""
    data = b"\x00\x00\x10\x0a" * 500_000
    found = entries(local.decode, data)
    assert all(isinstance(one, Damage) for one in found)
    assert sum(one.end - one.offset for one in found if isinstance(one, Damage)) == len(data)


def test_a_message_that_is_none_costs_only_itself() -> None:
    good = log_files.local(Said(START, "stdout", b"good"))[0]
    for bad in (b"\x0a\x7fstdout", b"\x00\x00", b"\x07", b"\xff" * 11, b"\x0a\x02\xff\xfe", b"\x1b"):
        found = entries(local.decode, good + frame(bad) + good)
        assert [line for _, _, line in told(found)] == [b"good", b"good"]
        assert [one.end - one.offset for one in found if isinstance(one, Damage)] == [len(bad) + 8]


# -- lines, times, gzip ------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300).map(lambda data: data.replace(b"x", b"\n")), st.lists(st.integers(1, 20), max_size=40))
def test_lines_are_those_of_split(data: bytes, sizes: list[int]) -> None:
    found = list(lines(pieces(data, iter(sizes))))
    assert [one.data for one in found if isinstance(one, Line)] == [
        *data.split(b"\n")[:-1],
        *([data.split(b"\n")[-1]] if not data.endswith(b"\n") and data else []),
    ]
    for one in found:
        assert isinstance(one, Line)
        assert data[one.offset : one.offset + len(one.data)] == one.data


@given(st.integers(-62135596800 * 10**9, 253402300800 * 10**9 - 1))
def test_times_go_round(time_ns: int) -> None:
    text = format_time(time_ns)
    assert text is not None
    assert len(text) == 30
    assert parse_time(text) == time_ns


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T01:30:00.5+01:30", 500_000_000),
        ("1969-12-31T19:00:00.000000001-05:00", 1),
        ("2016-12-31T23:59:60Z", 1_483_228_800 * 10**9),
        ("2026-02-30T00:00:00Z", 1_772_409_600 * 10**9),
        ("2026-13-01T00:00:00Z", None),
        ("0000-01-01T00:00:00Z", None),
        ("2026-01-01 00:00:00Z", None),
        ("2026-01-01T24:00:00Z", None),
        ("", None),
        ("\u0662026-01-01T00:00:00Z", None),
    ],
)
def test_times(text: str, expected: int | None) -> None:
    assert parse_time(text) == expected


def test_a_time_that_no_calendar_has_is_none() -> None:
    assert format_time(1 << 70) is None
    assert format_time(-(1 << 70)) is None


def inflated(data: bytes, limit: int = 1 << 30) -> tuple[bytes, Damage | None]:
    found = Inflated(pieces(data, iter([7] * 50)), limit)
    out = b"".join(piece for _, piece in found)
    return out, found.damage


def test_gzip_with_an_extra_field_and_several_members() -> None:
    """Docker's header has the time of the last record in it: FEXTRA, RFC 1952, 2.3.1.1."""
    extra = b'{"lastTime":"2026-01-02T03:04:05.678Z"}'
    plain = gzip.compress(b"first\n" * 100)
    with_extra = plain[:3] + b"\x04" + plain[4:10] + len(extra).to_bytes(2, "little") + extra + plain[10:]
    assert inflated(with_extra + gzip.compress(b"second\n") + bytes(20)) == (b"first\n" * 100 + b"second\n", None)


def test_a_damaged_gzip_gives_what_comes_before() -> None:
    content = random.Random(1).randbytes(500_000)
    packed = gzip.compress(content)
    cut, damage = inflated(packed[:-1000])
    assert content.startswith(cut)
    assert len(cut) > 400_000
    assert damage == Damage(len(cut), len(cut), "the compressed file ends too early")
    for data, intact in (
        (b"no gzip", 0),
        (packed[:5000] + bytes(5000) + packed[10_000:], 4900),  # found at its end, by the checksum of all of it
        (packed + b"\0junk", len(content)),
    ):
        out, damage = inflated(data)
        assert damage is not None
        assert out[:intact] == content[:intact]


def test_a_bomb_is_not_unpacked_further_than_its_bound() -> None:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    sizes = []
    bomb = Inflated([(0, packed.getvalue())], limit=10 << 20)
    for _, piece in bomb:
        sizes.append(len(piece))
    assert sum(sizes) <= 10 << 20
    assert max(sizes) <= 1 << 20
    assert bomb.damage is not None
    assert "not unpacked further" in bomb.damage.why


def test_pieces_may_be_views() -> None:
    data = b"".join(log_files.local(Said(START, "stdout", b"x" * 40000)))
    views: Pieces = [(0, memoryview(data)[:100]), (100, memoryview(data)[100:])]
    (found,) = join(local.decode(views))
    assert isinstance(found, Entry)
    assert found.line == b"x" * 40000
