"""Whatever an archive says: nothing is made outside the output, nothing is overwritten, nothing passes for whole."""

from __future__ import annotations

import os
import random
import stat as stat_module
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from acquirers.base import Kind
from acquirers.files import pax, sparse
from acquirers.syscalls import Stat
from agent.analysis.extract import Summary, extract
from agent.analysis.notes import Note, NoteKind
from agent.errors import DamagedError, ImpoundError

END = bytes(1024)
FILE, DIRECTORY, SYMLINK, HARDLINK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
STAT = Stat(
    mode=0o644, uid=os.geteuid(), gid=os.getegid(), size=0, nlink=1, ino=1, dev=1, rdev=0, atime_ns=10**18 + 1,
    mtime_ns=10**18 + 2, ctime_ns=3, btime_ns=None, blocks=0, attributes=0, mnt_id=None,
)  # fmt: skip
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: devices, owners, mounts")


def stat(**fields: int) -> Stat:
    return replace(STAT, **fields)


def member(name: bytes, typeflag: bytes = FILE, content: bytes = b"", **more: Any) -> bytes:
    more.setdefault("stat", STAT)
    head, _ = pax.encode(pax.Header(name, typeflag, size=len(content), **more))
    return head + content + pax.padding(len(content))


def link(name: bytes, target: bytes, typeflag: bytes = SYMLINK) -> bytes:
    return member(name, typeflag, link_name=target)


def crafted(name: bytes, typeflag: bytes = FILE, link_name: bytes = b"") -> bytes:
    """An empty member with names that the writer does not make."""
    records = pax.record(b"path", name) + pax.record(b"linkpath", link_name)
    extended, block = tarfile.TarInfo("x"), tarfile.TarInfo("")
    extended.type, extended.size, block.type = tarfile.XHDTYPE, len(records), typeflag
    head = extended.tobuf(tarfile.USTAR_FORMAT) + records + pax.padding(len(records))
    return head + block.tobuf(tarfile.USTAR_FORMAT)


def sparse_member(name: bytes, extents: list[tuple[int, int]], size: int, content: bytes) -> bytes:
    return member(name, FILE, sparse.sparse_map(extents, size) + content, real_size=size)


class Place:
    """A directory with something to protect in it, and an output beside that."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.output = path / "output"
        self.notes: list[Note] = []
        (path / "secret").write_bytes(b"secret")
        (path / "dir").mkdir()
        (path / "dir" / "inside").write_bytes(b"inside")
        self.before = self._outside()

    def _outside(self) -> list[tuple[str, int, int, int]]:
        found = []
        for path in [self.path / "secret", self.path / "dir", *(self.path / "dir").iterdir()]:
            status = path.lstat()
            found.append((path.name, status.st_mode, status.st_nlink, status.st_mtime_ns))
        return found

    def extract(self, *members: bytes, faithful: bool = False) -> Summary:
        try:
            return extract([b"".join(members) + END], self.output, on_note=self.notes.append, faithful=faithful)
        finally:
            assert self._outside() == self.before
            assert {path.name for path in self.path.iterdir()} <= {"secret", "dir", "output"}
            assert (self.path / "secret").read_bytes() == b"secret"

    def tree(self) -> dict[str, str]:
        """What there is: `d`, `l` and the target, or `f` and the content."""
        found = {}
        for path in sorted(self.output.rglob("*")):
            name = str(path.relative_to(self.output))
            if path.is_symlink():
                found[name] = f"l {path.readlink()}"
            elif path.is_dir():
                found[name] = "d"
            else:
                found[name] = f"f {path.read_bytes().decode()}"
        return found

    def told(self) -> list[tuple[str, bytes]]:
        return [(note.kind.value, note.where) for note in self.notes]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize(
    "name", [b"/secret", b"../secret", b"a/../../secret", b"..", b"a/..", b"//secret", b"a\0b", b"", b".", b"./", b"a/"]
)
@pytest.mark.parametrize("typeflag", [FILE, SYMLINK, HARDLINK])
def test_a_name_that_leaves_the_output_is_refused(place: Place, name: bytes, typeflag: bytes) -> None:
    summary = place.extract(member(b"good", content=b"good"), crafted(name, typeflag, b"good"))
    assert place.tree() == {"good": "f good"}
    assert summary.left_out == 1
    assert not summary.whole
    assert place.notes[-1].kind is NoteKind.REFUSED


@pytest.mark.parametrize("name", [b"/dir/evil/", b"../dir/evil/", b"a\0b/"])
def test_a_directory_that_leaves_the_output_is_refused(place: Place, name: bytes) -> None:
    place.extract(crafted(name, DIRECTORY))
    assert place.tree() == {}
    assert place.told() == [("refused", name)]


def test_the_output_itself_keeps_its_mode(place: Place) -> None:
    summary = place.extract(member(b"./", DIRECTORY, stat=stat(mode=0o777)), member(b"./a//./b", content=b"b"))
    assert stat_module.S_IMODE(place.output.stat().st_mode) == 0o700
    assert place.tree() == {"a": "d", "a/b": "f b"}
    assert summary.left_out == 0


@pytest.mark.parametrize("target", [b"..", b"../dir", b"/", b".", b"real", b"loop"])
def test_nothing_goes_through_a_symbolic_link(place: Place, target: bytes) -> None:
    place.extract(
        member(b"real/", DIRECTORY),
        link(b"loop", target),
        member(b"loop/inside", content=b"evil"),
        member(b"loop/dir/inside", content=b"evil"),
        member(b"loop/", DIRECTORY, stat=stat(mode=0o777)),
        member(b"loop", content=b"evil"),
        link(b"loop/hard", b"real/x", HARDLINK),
        member(b"after", content=b"after"),
    )
    assert place.tree() == {"after": "f after", "loop": f"l {target.decode()}", "real": "d"}
    assert {kind for kind, _ in place.told()} <= {"failed", "refused"}
    assert len(place.notes) == 5


@pytest.mark.parametrize(
    "target",
    [b"../secret", b"/secret", b"out/inside", b"out", b"d", b"d/../x", b"missing", b"no/such", b"", b".", b"x\0", b"s"],
)
def test_a_hard_link_leads_only_to_a_file_of_the_archive(place: Place, target: bytes) -> None:
    place.extract(
        member(b"d/", DIRECTORY),
        link(b"out", b"../dir"),
        link(b"s", b"../secret"),
        member(b"x", content=b"x"),
        link(b"good", b"x", HARDLINK),
        crafted(b"evil", HARDLINK, target),
    )
    assert place.tree() == {"d": "d", "good": "f x", "out": "l ../dir", "s": "l ../secret", "x": "f x"}
    assert [where for _, where in place.told()] == [b"evil"]


def test_nothing_is_overwritten_and_the_first_of_a_name_stays(place: Place) -> None:
    summary = place.extract(
        member(b"a", content=b"first"),
        member(b"a", content=b"second"),
        link(b"a", b"../secret"),
        link(b"a", b"a", HARDLINK),
        member(b"a/", DIRECTORY),
        member(b"a/b", content=b"below a file"),
        member(b"d/x", content=b"x"),
        member(b"d", content=b"no directory"),
        member(b"d/", DIRECTORY, stat=stat(mode=0o500)),
        member(b"d/y", content=b"y"),
        member(b"d/", DIRECTORY, stat=stat(mode=0o750)),
    )
    assert place.tree() == {"a": "f first", "d": "d", "d/x": "f x", "d/y": "f y"}
    assert stat_module.S_IMODE((place.output / "d").stat().st_mode) == 0o750
    assert summary.left_out == 6
    assert summary.made == {Kind.FILE: 3, Kind.DIRECTORY: 2}


def test_a_name_that_the_filesystem_refuses_is_told_and_the_rest_goes_on(place: Place) -> None:
    place.extract(
        member(b"l" * 256, content=b"x"),
        member(b"l" * 256 + b"/below", content=b"x"),
        link(b"target", b"t" * 5000),
        member(b"after", content=b"after"),
    )
    assert place.tree() == {"after": "f after"}
    assert [kind for kind, _ in place.told()] == ["failed"] * 3
    assert "\n" not in str(Note(NoteKind.FAILED, b"a\nb\x1b[31m\xe2\x80\xae\xff", "why"))


def test_sparse_files_of_any_size_take_no_room(place: Place) -> None:
    huge = (1 << 63) - 1
    summary = place.extract(
        sparse_member(b"holes", [(4096, 512)], 1 << 40, b"d" * 512),
        sparse_member(b"too-large", [(huge - 512, 512)], huge, b"d" * 512),
        sparse_member(b"all-hole", [], 1 << 39, b""),
        member(b"after", content=b"after"),
    )
    status = (place.output / "holes").stat()
    assert status.st_size == 1 << 40
    assert status.st_blocks * 512 < 1 << 20
    assert (place.output / "all-hole").stat().st_size == 1 << 39
    assert not (place.output / "too-large").exists()
    assert [kind for kind, _ in place.told()] == ["failed"]
    assert (place.output / "after").read_bytes() == b"after"
    assert summary.made == {Kind.FILE: 3}


def test_a_sparse_file_that_tools_read_differently_is_told(place: Place) -> None:
    place.extract(sparse_member(b"f", [(0, 7), (20, 3)], 30, b"1234567abc"))
    assert (place.output / "f").read_bytes() == b"1234567" + bytes(13) + b"abc" + bytes(7)
    assert place.told() == [("ambiguous", b"f")]


def test_by_default_nothing_is_restored_that_acts(place: Place) -> None:
    foreign = stat(mode=0o6755, uid=12_345)
    mode = stat(mode=0o666)
    summary = place.extract(
        member(b"suid", content=b"#!", stat=foreign),
        member(b"suid2", content=b"#!", stat=foreign, xattrs={b"security.capability": b"1", b"trusted.x": b"2"}),
        member(b"tmp/", DIRECTORY, stat=stat(mode=0o1777)),
        member(b"null", tarfile.CHRTYPE, stat=mode, device=(1, 3)),
        member(b"disk", tarfile.BLKTYPE, stat=mode, device=(1, 3)),
        member(b"gone", tarfile.CHRTYPE, stat=STAT, device=(0, 0)),
        member(b"gone2", tarfile.CHRTYPE, stat=STAT, device=(0, 0)),
        member(b"pipe", tarfile.FIFOTYPE),
    )
    assert place.tree() == {"suid": "f #!", "suid2": "f #!", "tmp": "d"}
    assert stat_module.S_IMODE((place.output / "suid").stat().st_mode) == 0o755
    assert stat_module.S_IMODE((place.output / "tmp").stat().st_mode) == 0o777
    assert (place.output / "suid").stat().st_uid == os.geteuid()
    assert summary.unrestored == {
        NoteKind.MODE: 3,
        NoteKind.OWNER: 2,
        NoteKind.XATTR: 2,
        NoteKind.DEVICE: 2,
        NoteKind.WHITEOUT: 2,
        NoteKind.FIFO: 1,
    }
    assert summary.left_out == 0
    assert sorted(note.kind for note in place.notes) == sorted(summary.unrestored)  # once each
    assert summary.made == {Kind.FILE: 2, Kind.DIRECTORY: 1}


@needs_root
def test_what_no_system_has_is_told_and_not_guessed(place: Place) -> None:
    summary = place.extract(
        member(b"owner", stat=stat(uid=2**32 - 1)),
        member(b"time", stat=stat(mtime_ns=10**28)),
        member(b"attribute", xattrs={b"user.\0": b"", b"nonsense": b"", b"user.big": b"x" * 70_000}),
        faithful=True,
    )
    assert summary.unrestored == {NoteKind.OWNER: 1, NoteKind.TIMES: 1, NoteKind.XATTR: 3}
    assert (place.output / "owner").stat().st_uid == 0
    assert len(place.tree()) == 3


def test_records_are_bounded(place: Place) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 9 << 20
    with pytest.raises(DamagedError, match="records before one member"):
        place.extract(info.tobuf(tarfile.USTAR_FORMAT))


def test_a_large_record_is_only_large(place: Place) -> None:
    comment = pax.record(b"comment", b"c" * (1 << 20))
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(comment)
    place.extract(info.tobuf(tarfile.USTAR_FORMAT) + comment + pax.padding(len(comment)) + member(b"f")[-512:])
    assert place.tree() == {"f": "f "}


def test_a_path_of_too_many_levels_is_told(place: Place) -> None:
    deep = b"a/" * 131_073 + b"f"
    place.extract(crafted(deep))
    assert place.tree() == {}
    assert place.told() == [("failed", deep)]


PARTS = st.sampled_from([b"a", b"b", b"c", b"..", b".", b"", b"dir", b"inside", b"output", b"secret", b"l" * 256])
NAMES = st.lists(PARTS, min_size=1, max_size=4).map(b"/".join)
MEMBERS = st.lists(
    st.tuples(NAMES, st.sampled_from([FILE, DIRECTORY, SYMLINK, HARDLINK, tarfile.FIFOTYPE, tarfile.CHRTYPE]), NAMES),
    max_size=25,
)


@settings(max_examples=150)
@given(members=MEMBERS, faithful=st.booleans())
def test_no_archive_leaves_the_output(members: list[tuple[bytes, bytes, bytes]], faithful: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        place = Place(Path(directory))
        made = place.extract(
            *(
                member(
                    name,
                    type_,
                    link_name=target if type_ in {SYMLINK, HARDLINK} else b"",
                    device=(0, 0),
                    stat=stat(mode=0o755),  # so that who is not root can remove it
                )
                for name, type_, target in members
            ),
            faithful=faithful,
        )
        skipped = sum(made.unrestored[kind] for kind in made.unrestored if kind in {NoteKind.FIFO, NoteKind.WHITEOUT})
        assert sum(made.made.values()) + made.left_out + skipped == len(members)


def test_changed_bytes_leave_nothing_outside(tmp_path: Path) -> None:
    data = b"".join((
        member(b"d/", DIRECTORY, stat=stat(mode=0o500)),
        member(b"d/f", content=b"content" * 100, xattrs={b"user.a": b"b"}),
        link(b"d/s", b"../../secret"),
        link(b"d/h", b"d/f", HARDLINK),
        sparse_member(b"d/holes", [(4096, 512)], 8192, b"d" * 512),
        END,
    ))  # fmt: skip
    generator = random.Random(5)
    for number in range(300):
        changed = bytearray(data)
        for _ in range(generator.randrange(1, 4)):
            changed[generator.randrange(len(changed))] = generator.choice(b"\0 ./019=x\xff")
        (tmp_path / str(number)).mkdir()
        place = Place(tmp_path / str(number))
        try:
            place.extract(bytes(changed[: -len(END)]))
        except ImpoundError:
            pass  # anything else would fail the test
