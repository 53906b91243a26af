from __future__ import annotations

import io
import tarfile
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from acquirers.files import pax, sparse
from acquirers.syscalls import Stat

INT64 = 1 << 63


def make_stat(
    mode: int = 0o100644,
    *,
    uid: int = 0,
    gid: int = 0,
    mtime_ns: int = 0,
    atime_ns: int = 0,
    ctime_ns: int = 0,
    btime_ns: int | None = None,
) -> Stat:
    return Stat(mode, uid, gid, 0, 1, 1, 1, 0, atime_ns, mtime_ns, ctime_ns, btime_ns, 0, 0, None)


SENTINEL = pax.encode(pax.Header(b"[root]/sentinel", tarfile.REGTYPE, make_stat()))[0]


def parse(head: bytes, content: bytes = b"") -> tarfile.TarInfo:
    """The member as tarfile sees it, after checking that the member behind it is found too."""
    assert len(head) % 512 == 0
    stream = head + content + pax.padding(len(content)) + SENTINEL + pax.end_of_archive()
    with tarfile.open(fileobj=io.BytesIO(stream)) as tar:
        info, sentinel = tar.getmembers()
    assert sentinel.name == "[root]/sentinel"
    return info


def split_records(head: bytes) -> dict[bytes, bytes]:
    """The extended records, strictly read: their lengths must add up to what the x block says."""
    assert head[156:157] == b"x"
    size = int(head[124:135], 8)
    data, records = head[512 : 512 + size], {}
    while data:
        length = int(data[: data.index(b" ")])
        line, data = data[:length], data[length:]
        assert line.endswith(b"\n")
        keyword, _, value = line.partition(b" ")[2][:-1].partition(b"=")
        assert keyword not in records
        records[keyword] = value
    return records


names = st.binary(min_size=1, max_size=300).map(lambda raw: raw.replace(b"\0", b"n").replace(b"/", b"s"))
times = st.integers(-INT64 * 10**9, INT64 * 10**9 - 1) | st.integers(-(10**12), 10**12)
stats = st.builds(
    make_stat,
    st.integers(0, 0xFFFF),
    uid=st.integers(0, 0xFFFFFFFF),
    gid=st.integers(0, 0xFFFFFFFF),
    mtime_ns=times,
    atime_ns=times,
    ctime_ns=times,
    btime_ns=st.none() | times,
)
xattrs = st.dictionaries(names, st.binary(max_size=300), max_size=5)


@given(st.binary(min_size=1, max_size=40).filter(lambda raw: b"=" not in raw), st.binary(max_size=1200))
@example(b"path", b"x" * 91)
@example(b"path", b"x" * 92)
@example(b"path", b"x" * 93)
@example(b"path", b"x" * 990)
@example(b"path", b"x" * 9987)
@settings(deadline=None)
def test_a_record_counts_its_own_digits(keyword: bytes, value: bytes) -> None:
    line = pax.record(keyword, value)
    length, _, rest = line.partition(b" ")
    assert int(length) == len(line)
    assert rest == keyword + b"=" + value + b"\n"


@given(times)
@settings(deadline=None)
def test_a_time_is_exact(ns: int) -> None:
    assert Fraction(pax.time_text(ns).decode()) * 10**9 == ns


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, b"0.000000000"),
        (1, b"0.000000001"),
        (1_700_000_000_123_456_789, b"1700000000.123456789"),
        (-500_000_000, b"-0.500000000"),
        (-1, b"-0.000000001"),
        (-1_250_000_000, b"-1.250000000"),
        (-5_000_000_000, b"-5.000000000"),
        (1 << 62, b"4611686018.427387904"),
    ],
)
def test_a_time_has_nine_digits(ns: int, text: bytes) -> None:
    assert pax.time_text(ns) == text


@given(names, stats, xattrs)
@settings(deadline=None)
def test_nothing_that_stat_can_say_breaks_a_header(name: bytes, stat: Stat, attributes: dict[bytes, bytes]) -> None:
    head, left_out = pax.encode(pax.Header(b"[root]/" + name, tarfile.REGTYPE, stat, xattrs=attributes))
    assert not left_out
    info, records = parse(head), split_records(head)
    assert info.name.encode(errors="surrogateescape") == b"[root]/" + name
    assert (info.mode, info.uid, info.gid) == (stat.mode & 0o7777, stat.uid, stat.gid)
    for keyword, ns in (("mtime", stat.mtime_ns), ("atime", stat.atime_ns), ("ctime", stat.ctime_ns)):
        assert Fraction(info.pax_headers[keyword]) * 10**9 == ns
    assert records.get(b"LIBARCHIVE.creationtime") == (None if stat.btime_ns is None else pax.time_text(stat.btime_ns))
    prefix = "SCHILY.xattr."
    read = {
        keyword.removeprefix(prefix).replace("%3D", "=").replace("%25", "%"): value
        for keyword, value in info.pax_headers.items()
        if keyword.startswith(prefix)
    }
    assert {
        name.encode(errors="surrogateescape"): value.encode(errors="surrogateescape") for name, value in read.items()
    } == attributes


@given(names, names, stats)
@settings(deadline=None)
def test_link_names_come_back(name: bytes, target: bytes, stat: Stat) -> None:
    head, _ = pax.encode(pax.Header(b"[root]/" + name, tarfile.SYMTYPE, stat, target))
    info = parse(head)
    assert info.issym()
    assert info.linkname.encode(errors="surrogateescape") == target


@given(names, names)
@example(b"d" * 91 + b"/" + b"n" * 50, b"target")
@settings(deadline=None)
def test_the_blocks_themselves_are_ascii(name: bytes, target: bytes) -> None:
    """Go's archive/tar tells formats apart by it; libarchive needs a link name to be there at all."""
    block = pax.encode(pax.Header(b"[root]/" + name, tarfile.SYMTYPE, make_stat(), target))[0][-512:]
    assert block.isascii()
    assert block[157:158] != b"\0"
    assert block[:100].rstrip(b"\0")[-1:] != b"/"


@pytest.mark.parametrize(
    ("name", "extended"), [(b"a" * 100, False), (b"a" * 101, True), ("é".encode(), True), (b"\xff", True)]
)
def test_a_path_record_only_where_the_block_cannot_hold_the_name(name: bytes, *, extended: bool) -> None:
    records = split_records(pax.encode(pax.Header(name, tarfile.REGTYPE, make_stat()))[0])
    assert (b"path" in records) is extended
    assert records.get(b"hdrcharset") == (b"BINARY" if name == b"\xff" else None)


@pytest.mark.parametrize("length", [98, 99, 100, 101, 102, 300])
def test_directories_keep_the_slash_in_the_block(length: int) -> None:
    head, _ = pax.encode(pax.Header(b"d" * (length - 1) + b"/", tarfile.DIRTYPE, make_stat(0o40755)))
    assert head[-512:][:100].rstrip(b"\0").endswith(b"/")
    assert parse(head).name == "d" * (length - 1)


def test_names_of_attributes_are_encoded_as_gnu_tar_does() -> None:
    assert pax.xattr_keyword(b"user.a=b%3D\xff\n") == b"SCHILY.xattr.user.a%3Db%253D\xff\n"


@pytest.mark.parametrize(
    "attributes",
    [
        {b"user.bait": b"21 hdrcharset=\xff\n"},
        {b"user.1 hdrcharset": b"\xff"},
        {b"user.bait": b"9 GNU.sparse.major=1\n9 GNU.sparse.minor=0\n5 size=99999\n"},
    ],
)
def test_an_attribute_cannot_pass_for_a_record(attributes: dict[bytes, bytes]) -> None:
    """tarfile before the fix of CVE-2024-6232 looks for `hdrcharset=` everywhere and fails to decode it."""
    info = parse(pax.encode(pax.Header("é".encode(), tarfile.REGTYPE, make_stat(), xattrs=attributes))[0])
    assert (info.name, info.size, info.sparse) == ("é", 0, None)
    assert list(attributes.values()) == [
        value.encode(errors="surrogateescape")
        for keyword, value in info.pax_headers.items()
        if keyword.startswith("SCHILY.xattr.")
    ]


def test_a_name_cannot_pass_for_a_record() -> None:
    name = "é 1 hdrcharset=ISO\n".encode() + b"n" * 90
    head, _ = pax.encode(pax.Header(name, tarfile.REGTYPE, make_stat()))
    assert split_records(head)[b"hdrcharset"].endswith(b"UTF-8")
    assert parse(head).name == name.decode()


def test_records_stay_below_what_libarchive_reads() -> None:
    attributes = {b"user.large%d" % number: bytes(65536) for number in range(20)} | {b"user.small": b"kept"}
    name = b"[root]/" + b"n" * (pax.NAME_LIMIT - 7)
    link_name = b"l" * pax.NAME_LIMIT
    head, left_out = pax.encode(pax.Header(name, tarfile.SYMTYPE, make_stat(), link_name, xattrs=attributes))
    records = split_records(head)
    kept = {keyword for keyword in records if keyword.startswith(b"SCHILY.xattr.")}
    assert len(head) <= pax.RECORDS_LIMIT + 3 * 512
    assert records[b"SCHILY.xattr.user.small"] == b"kept"
    assert len(kept) + len(left_out) == len(attributes)
    assert len(kept) >= 7
    info = parse(head)
    assert (info.name.encode(), info.linkname.encode()) == (name, link_name)


def test_one_enormous_attribute_is_left_out() -> None:
    head, left_out = pax.encode(pax.Header(b"f", tarfile.REGTYPE, make_stat(), xattrs={b"user.x": bytes(1_000_000)}))
    assert left_out == [b"user.x"]
    assert len(head) < 2048


@given(st.integers(0, 1000).map(lambda extra: b"/d" * (pax.NAME_LIMIT // 2 + extra)), st.sampled_from([b"", b"/"]))
@settings(deadline=None)
def test_a_name_that_is_too_long_is_cut_to_one_of_its_own(name: bytes, slash: bytes) -> None:
    cut = pax.cut_name(name + slash)
    assert len(cut) <= pax.NAME_LIMIT
    assert cut.endswith(b"/") is bool(slash)
    assert cut != pax.cut_name(name + b"/x" + slash)


@pytest.mark.parametrize("size", [8**11 - 1, 8**11, 3 * 8**11 + 5])
def test_sizes_beyond_the_octal_field(tmp_path: Path, size: int) -> None:
    """A member of 8 GiB and more, in a file that is itself a hole, is stepped over to the one behind it."""
    path = tmp_path / "large.tar"
    with path.open("wb") as file:
        file.write(pax.encode(pax.Header(b"[root]/large", tarfile.REGTYPE, make_stat(), size=size))[0])
        file.seek(size + len(pax.padding(size)), io.SEEK_CUR)
        file.write(SENTINEL + pax.end_of_archive())
    with tarfile.open(path) as tar:
        assert [(info.name, info.size) for info in tar] == [("[root]/large", size), ("[root]/sentinel", 0)]


@pytest.mark.parametrize(
    ("extents", "size", "text"),
    [
        ([], 20 << 30, b"1\n21474836480\n0\n"),
        ([(4096, 7)], 4103, b"1\n4096\n7\n"),
        ([(0, 4096)], 8192, b"2\n0\n4096\n8192\n0\n"),
        ([(0, 5), (9 << 30, 5)], (9 << 30) + 6, b"3\n0\n5\n9663676416\n5\n9663676422\n0\n"),
        ([(0, 0), (3, 5), (9, 0)], 9, b"2\n3\n5\n9\n0\n"),
    ],
)
def test_maps_of_sparse_files(extents: list[tuple[int, int]], size: int, text: bytes) -> None:
    assert sparse.sparse_map(extents, size) == text + bytes(-len(text) % 512)


def test_a_sparse_member_of_more_than_8_gib_does_not_hide_the_next(tmp_path: Path) -> None:
    """With a `size` record tarfile would lose the member behind it; the base-256 field is read by all."""
    size, stored = 20 << 30, 9 << 30
    extents = sparse.sparse_map([(1 << 30, stored)], size)
    header = pax.Header(b"[root]/lastlog", tarfile.REGTYPE, make_stat(), size=len(extents) + stored, real_size=size)
    path = tmp_path / "large.tar"
    with path.open("wb") as file:
        file.write(pax.encode(header)[0] + extents)
        file.seek(stored, io.SEEK_CUR)
        file.write(SENTINEL + pax.end_of_archive())
    with tarfile.open(path) as tar:
        assert [(info.name, info.size) for info in tar] == [("[root]/lastlog", size), ("[root]/sentinel", 0)]


def test_device_numbers() -> None:
    head, _ = pax.encode(pax.Header(b"w", tarfile.CHRTYPE, make_stat(0o20000), device=(0, 0)))
    info = parse(head)
    assert (info.ischr(), info.devmajor, info.devminor) == (True, 0, 0)
    head, _ = pax.encode(pax.Header(b"w", tarfile.BLKTYPE, make_stat(0o60000), device=(4095, 1048575)))
    assert (parse(head).devmajor, parse(head).devminor) == (4095, 1048575)
    assert pax.device_fits((4095, 1048575))
    assert not pax.device_fits((1 << 21, 0))
    parse(pax.encode(pax.Header(b"w", tarfile.BLKTYPE, make_stat(), device=(0xFFFFFFFF, 0xFFFFFFFF)))[0])


def block_of_tarfile(name: bytes, typeflag: bytes, target: bytes, size: int, stat: Stat) -> bytes:
    info = tarfile.TarInfo(name.decode("ascii", "replace"))
    info.type, info.linkname = typeflag, target.decode("ascii", "replace")
    info.mode, info.uid, info.gid, info.size = stat.mode & 0o7777, stat.uid, stat.gid, size
    info.mtime = stat.mtime_ns // 10**9
    info.devmajor, info.devminor = 7, 1234
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "replace")


@given(
    name=st.binary(min_size=1, max_size=99).map(lambda raw: raw.replace(b"\0", b"n").replace(b"/", b"s")),
    typeflag=st.sampled_from([tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]),
    target=st.binary(min_size=1, max_size=100).map(lambda raw: raw.replace(b"\0", b"n")),
    size=st.integers(0, 8**11 - 1),
    mode=st.integers(0, 0o177777),
    owners=st.tuples(st.integers(0, 8**7 - 1), st.integers(0, 8**7 - 1)),
    mtime=st.integers(0, 8**11 - 1),
)
@example(
    b"~" * 99, tarfile.LNKTYPE, b"~" * 100, 8**11 - 1, 0o177777, (8**7 - 1, 8**7 - 1), 8**11 - 1
)  # the largest sum
def test_blocks_are_those_that_tarfile_makes(
    name: bytes, typeflag: bytes, target: bytes, size: int, mode: int, owners: tuple[int, int], mtime: int
) -> None:
    name += b"/" if typeflag == tarfile.DIRTYPE else b""
    target = target if typeflag in {tarfile.LNKTYPE, tarfile.SYMTYPE} else b""
    stat = make_stat(mode, uid=owners[0], gid=owners[1], mtime_ns=mtime * 10**9 + 5)
    header = pax.Header(name, typeflag, stat, target, size, device=(7, 1234) if typeflag == tarfile.CHRTYPE else None)
    head, _ = pax.encode(header)
    assert head[-512:] == block_of_tarfile(name, typeflag, target, size, stat)
    records = int(head[124:135], 8)
    assert head[:512] == block_of_tarfile(b"././@PaxHeader", tarfile.XHDTYPE, b"", records, make_stat(0o644))


def test_what_is_usual_has_the_same_records() -> None:
    """Times of ten digits have a way of their own; one second before and after there are nine and eleven."""
    for seconds in (10**9 - 1, 10**9, 1_700_000_000, 10**10 - 1, 10**10):
        ns = seconds * 10**9 + 42
        stat = make_stat(mtime_ns=ns, atime_ns=ns + 1, ctime_ns=ns + 2, btime_ns=ns + 3)
        for name in (b"short", b"long" * 30):
            found = split_records(pax.encode(pax.Header(name, tarfile.REGTYPE, stat))[0])
            expected = {b"path": name} if len(name) > 100 else {}
            keywords = (b"mtime", b"atime", b"ctime", b"LIBARCHIVE.creationtime")
            expected |= {keyword: pax.time_text(ns + more) for more, keyword in enumerate(keywords)}
            assert found == expected
            assert list(found) == list(expected)
