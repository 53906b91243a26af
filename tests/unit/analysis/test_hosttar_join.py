"""Joined archives are one archive with the same bytes in it, in which every directory stands once and first."""

from __future__ import annotations

import io
import itertools
import tarfile
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquirers.files import pax, sparse
from acquirers.syscalls import Stat
from agent.analysis.hosttar import COMMENT, join
from agent.analysis.notes import Note, NoteKind
from agent.analysis.tarheader import parse_records
from agent.analysis.tarstream import TarStream
from agent.errors import DamagedError

END = bytes(1024)
FILE, DIRECTORY, SYMLINK, HARDLINK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
STAT = Stat(
    mode=0o644, uid=1, gid=2, size=0, nlink=1, ino=1, dev=1, rdev=0, atime_ns=1, mtime_ns=2, ctime_ns=3,
    btime_ns=None, blocks=0, attributes=0, mnt_id=None,
)  # fmt: skip


def member(name: bytes, typeflag: bytes = FILE, content: bytes = b"", **more: Any) -> bytes:
    head, _ = pax.encode(pax.Header(name, typeflag, STAT, size=len(content), **more))
    return head + content + pax.padding(len(content))


def directories(*names: bytes) -> bytes:
    return b"".join(member(b"[root]/" + name + b"/", DIRECTORY) for name in names)


LINUX = directories(b"etc", b"run", b"var")


def joined(*archives: bytes, about: str = "") -> tuple[bytes, list[tuple[str, bytes]]]:
    notes: list[Note] = []
    streams = [[archive + END] for archive in archives]
    data = b"".join(join(streams, on_note=notes.append, about=about))
    return data, [(note.kind.value, note.where) for note in notes]


def names_of(data: bytes) -> list[bytes]:
    return [header.name for header in TarStream([data])]


def account_of(data: bytes) -> str:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        file = tar.extractfile("uac.log")
        assert file is not None
        return file.read().decode()


def test_members_keep_their_bytes_and_only_one_end_is_left() -> None:
    first = LINUX + member(b"[root]/etc/a", content=b"a" * 1000) + member(b"[root]/etc/\xff", content=b"\0" * 2048)
    second = (
        member(b"[root]/etc/b" + b"b" * 200, content=b"b", xattrs={b"user.x": b"1"})
        + member(b"[root]/etc/hard", HARDLINK, link_name=b"[root]/etc/b" + b"b" * 200)
        + member(b"[root]/etc/s", FILE, sparse.sparse_map([(4096, 512)], 1 << 40) + b"s" * 512, real_size=1 << 40)
        + member(b"[root]/etc/whiteout", tarfile.CHRTYPE, device=(0, 0))
        + member(b"[root]/etc/sym", SYMLINK, link_name=b"../../../anything")
    )
    data, notes = joined(first, second)
    assert data.startswith(first + second)
    assert data.endswith(END)
    assert notes == []
    assert names_of(data)[-1] == b"uac.log"


def test_an_end_is_found_by_headers_and_not_by_zeros() -> None:
    zeros = member(b"[root]/etc/zeros", content=bytes(10_240))
    data, _ = joined(LINUX + zeros + zeros, zeros)
    assert names_of(data) == [*names_of(LINUX + END), *[b"[root]/etc/zeros"] * 3, b"uac.log"]


def test_padding_after_an_end_is_dropped() -> None:
    data = b"".join(join([[LINUX + END + bytes(9 * 1024)], [member(b"[root]/etc/f") + END]]))
    assert data.startswith(LINUX + member(b"[root]/etc/f"))


@pytest.mark.parametrize("cut", [0, 100, 512, 1500])
def test_an_archive_that_is_not_whole_ends_it(cut: int) -> None:
    archive = LINUX + member(b"[root]/etc/f", content=b"f" * 1000) + END
    with pytest.raises(DamagedError):
        list(join([[archive], [archive[: len(archive) - 600 - cut]]]))


def test_a_directory_stands_once_and_before_what_is_in_it() -> None:
    data, notes = joined(
        LINUX + directories(b"var/lib", b"var/lib/docker") + member(b"[root]/var/lib/docker/a"),
        directories(b"var/lib", b"var/lib/docker", b"var/lib/docker/b") + member(b"[root]/var/lib/docker/b/c"),
        member(b"[root]/opt/x/y") + directories(b"opt"),
    )
    assert names_of(data) == [
        b"[root]/etc/", b"[root]/run/", b"[root]/var/", b"[root]/var/lib/", b"[root]/var/lib/docker/",
        b"[root]/var/lib/docker/a", b"[root]/var/lib/docker/b/", b"[root]/var/lib/docker/b/c",
        b"[root]/opt/", b"[root]/opt/x/", b"[root]/opt/x/y", b"uac.log",
    ]  # fmt: skip
    assert notes == [
        ("repeated", b"[root]/var/lib/"),
        ("repeated", b"[root]/var/lib/docker/"),
        ("ours", b"[root]/opt/"),
        ("ours", b"[root]/opt/x/"),
        ("repeated", b"[root]/opt/"),
    ]


def test_what_is_added_says_that_it_is_ours() -> None:
    data, notes = joined(member(b"[root]/opt/\xff\n/f"), about="case INC-42")
    ours = [b"[root]/opt/", b"[root]/opt/\xff\n/", b"[root]/etc/", b"[root]/var/", b"[root]/run/"]
    assert [where for kind, where in notes if kind == "ours"] == ours
    archive = TarStream([data])
    for header in archive:
        records = parse_records(archive.head[512:-512].rstrip(b"\0"))
        assert (records.get(b"comment") == COMMENT.encode()) == (header.name in {*ours, b"uac.log"})
        if header.name in ours:
            assert (header.size, header.mtime_ns, header.uid, header.gid) == (0, 0, 0, 0)
    account = account_of(data)
    assert account.startswith("case INC-42\n")
    assert "\n[root]/opt/\\xff\\n/\n" in account
    assert account.endswith("are not in this file:\nnone\n")


def test_what_linux_needs_is_added_only_where_it_is_missing() -> None:
    data, notes = joined(LINUX)
    assert names_of(data) == [b"[root]/etc/", b"[root]/run/", b"[root]/var/", b"uac.log"]
    assert notes == []
    data, _ = joined(directories(b"etc") + member(b"[root]/run", SYMLINK, link_name=b"/var/run"))
    assert names_of(data) == [b"[root]/etc/", b"[root]/run", b"[root]/var/", b"uac.log"]


def test_what_would_stand_in_the_way_is_left_out_and_told() -> None:
    data, notes = joined(
        LINUX + member(b"[root]/etc/f"),
        member(b"[root]/etc", SYMLINK, link_name=b"/tmp"),  # would hide everything in it
        member(b"[root]/etc/f/below"),  # below what is no directory: that becomes one
        member(b"[root]/etc/f"),
        member(b"[root]", SYMLINK, link_name=b"/") + member(b"[root]/.", SYMLINK, link_name=b"/"),
        member(b"census.json", content=b"{}"),  # impound's own
        member(b"fs/etc/shadow") + member(b"./[root]/x") + member(b"[root]x/y") + member(b"sysvol/", DIRECTORY),
        member(b"[root]/../y") + member(b"/[root]/y") + member(b"[root]/l", HARDLINK, link_name=b"../../etc/shadow"),
        member(b"[root]/m", HARDLINK, link_name=b"etc/shadow"),
    )
    assert names_of(data) == [
        *names_of(LINUX + END),
        b"[root]/etc/f",
        b"[root]/etc/f/",
        b"[root]/etc/f/below",
        b"uac.log",
    ]
    assert notes == [
        ("shadowed", b"[root]/etc"),
        ("ours", b"[root]/etc/f/"),
        ("shadowed", b"[root]/etc/f"),
        ("outside", b"[root]"),
        ("shadowed", b"[root]/."),
        ("outside", b"census.json"),
        ("outside", b"fs/etc/shadow"),
        ("outside", b"./[root]/x"),
        ("outside", b"[root]x/y"),
        ("outside", b"sysvol/"),
        ("refused", b"[root]/../y"),
        ("refused", b"/[root]/y"),
        ("refused", b"[root]/l"),
        ("outside", b"[root]/m"),
    ]
    assert "7 that are not of the machine's filesystem" in account_of(data)


def test_a_path_cannot_make_more_directories_than_a_machine_has() -> None:
    data, notes = joined(LINUX + member(b"[root]/" + b"a/" * 100_000 + b"f") + member(b"[root]/" + b"b/" * 200 + b"f"))
    assert notes[0] == ("refused", b"[root]/" + b"a/" * 100_000 + b"f")
    assert len(names_of(data)) == 3 + 200 + 1 + 1


def test_the_root_itself_is_a_directory_like_another() -> None:
    data, notes = joined(member(b"[root]/", DIRECTORY) + LINUX, member(b"[root]/", DIRECTORY))
    assert names_of(data)[0] == b"[root]/"
    assert notes == [("repeated", b"[root]/")]


def test_the_same_archives_give_the_same_bytes() -> None:
    archives = [LINUX + member(b"[root]/opt/a", content=b"a"), member(b"[root]/opt/b")]
    assert joined(*archives) == joined(*archives)


def test_large_members_stream() -> None:
    size = 9 << 30
    zeros = bytes(1 << 20)
    head, _ = pax.encode(pax.Header(b"[root]/var/big", FILE, STAT, size=size))

    def archive() -> Iterator[bytes]:
        yield LINUX + head
        yield from itertools.repeat(zeros, size >> 20)
        yield member(b"[root]/var/after") + END

    tracemalloc.start()
    try:
        total = sum(map(len, join([archive()])))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert total > size


PATHS = st.lists(st.sampled_from([b"a", b"b", b"etc", b"..", b".", b""]), min_size=1, max_size=4).map(b"/".join)
MEMBERS = st.lists(
    st.tuples(PATHS, st.sampled_from([FILE, DIRECTORY, SYMLINK, HARDLINK]), st.sampled_from([b"[root]/", b""])),
    max_size=12,
)


@given(st.lists(MEMBERS, max_size=4))
def test_any_archives_make_an_archive_that_a_tree_can_be_made_of(
    archives: list[list[tuple[bytes, bytes, bytes]]],
) -> None:
    data, notes = joined(
        *(
            b"".join(
                member(root + path, type_, link_name=b"[root]/a" if type_ == HARDLINK else b"")
                for path, type_, root in members
            )
            for members in archives
        )
    )
    given_count = sum(map(len, archives))
    found: dict[bytes, bool] = {}
    for header in TarStream([data]):
        if header.name == b"uac.log":
            continue
        parts = header.name.split(b"/")
        assert parts[0] == b"[root]"
        path = b"/".join(part for part in parts if part not in {b"", b"."})
        above, _, _ = path.rpartition(b"/")
        assert above in {b"", b"[root]"} or found.get(above) is True
        directory = header.kind.value == "directory"
        assert not (found.get(path) and path in found)  # nothing takes the place of a directory
        found[path] = directory
    left_out = sum(kind != NoteKind.OURS for kind, _ in notes)
    added = sum(kind == NoteKind.OURS for kind, _ in notes)
    assert len(names_of(data)) == given_count - left_out + added + 1


def test_a_data_root_where_dissect_does_not_look_is_a_note_once_for_each() -> None:
    record = b"/containers/" + b"a1" * 32 + b"/config.v2.json"
    again = b"/containers/" + b"b2" * 32 + b"/config.v2.json"
    inside = b"/overlay2/x/diff/var/lib/docker2"
    roots = (b"/var/lib/docker", b"/data/docker\x1b", b"/var/snap/docker/common/var-lib-docker", b"/data" + inside)
    archive = LINUX + b"".join(member(b"[root]" + root + one) for root in roots for one in (record, again))
    notes: list[Note] = []
    for _ in join([[archive + END]], on_note=notes.append):
        pass
    told = [note for note in notes if note.kind is NoteKind.AMBIGUOUS]
    assert [note.where for note in told] == [b"[root]" + root for root in roots[1:3]]
    assert "/data/docker\\x1b: dissect will not list its containers" in told[0].detail
    assert "export tree" in told[0].detail
