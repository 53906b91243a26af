"""A faithful extraction gives what GNU tar gives, of its archives and of ours; a plain one the same, made harmless."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat as stat_module
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from acquirers.base import Flag, Gap, Kind, Member
from acquirers.files.archive import archive
from acquirers.files.entry import Entry
from acquirers.syscalls import AT_FDCWD, statx
from agent.analysis.extract import extract
from agent.analysis.notes import Note, NoteKind
from agent.analysis.tarheader import BLOCK
from agent.analysis.tarstream import TarStream

ROOT = os.geteuid() == 0
TAR = ["tar", "--warning=no-unknown-keyword", "--warning=no-timestamp"]
NS = 1_234_567_890_123_456_789

pytestmark = pytest.mark.skipif(shutil.which("tar") is None, reason="GNU tar is not installed")
needs_root = pytest.mark.skipif(not ROOT, reason="needs root: owners, devices and trusted attributes")


def make_tree(top: Path) -> None:
    """Everything that a filesystem has and an archive can hold."""
    (top / "etc").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "etc" / "passwd").write_text("root:x:0:0\n")
    (top / "etc" / "nothing").touch()
    (top / "bin").symlink_to("usr/bin")
    (top / "dangling").symlink_to("/no/such/" + "place" * 40)
    (top / "etc" / "again").hardlink_to(top / "etc" / "passwd")
    (top / "zz-link").hardlink_to(top / "etc" / "passwd")
    raw = os.fsencode(top)
    Path(os.fsdecode(raw + b"/not-utf8-\xff\xfe")).write_text("bytes")
    (top / "nötig\nline").write_text("text")
    (top / ("n" * 255)).write_text("long")
    long = top.joinpath(*["d" * 60] * 5)
    long.mkdir(parents=True)
    (long / "inside").write_text("deep")
    with (top / "sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"data" * 1024)
        file.seek(5 << 20)
        file.write(b"odd end")
    with (top / "sparse-tail").open("wb") as file:
        file.write(b"x" * 4096)
        file.truncate(3 << 20)
    with (top / "all-hole").open("wb") as file:
        file.truncate(2 << 20)
    (top / "large").write_bytes(os.urandom(3 << 20))
    os.setxattr(top / "etc" / "passwd", b"user.empty", b"")
    os.setxattr(top / "etc" / "passwd", b"user.a=b%3D%", bytes(range(256)))
    os.setxattr(top / "etc", b"user.dir", b"\xff\n")
    (top / "shut").mkdir()
    (top / "shut" / "in").write_text("in")
    os.mkfifo(top / "pipe")
    (top / "suid").write_text("#!")
    (top / "suid").chmod(0o6755)
    (top / "tmp").mkdir()
    (top / "tmp").chmod(0o1777)
    if ROOT:
        os.chown(top / "etc" / "nothing", 12_345, 3_000_000_000)
        os.chown(top / "bin", 77, 78, follow_symlinks=False)
        os.chown(top / "suid", 5, 6)
        (top / "suid").chmod(0o6755)
        os.mknod(top / "whiteout", stat_module.S_IFCHR, os.makedev(0, 0))
        os.mknod(top / "null", stat_module.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(top / "loop", stat_module.S_IFBLK | 0o660, os.makedev(7, 300))
        os.setxattr(top / "etc", b"trusted.overlay.opaque", b"y")
        os.setxattr(top / "suid", b"security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
        os.setxattr(top / "bin", b"trusted.on-a-link", b"1", follow_symlinks=False)
    (top / "shut").chmod(0o000 if ROOT else 0o500)
    for number, path in enumerate(sorted(top.rglob("*"), reverse=True)):
        os.utime(path, ns=(NS - number, NS + number), follow_symlinks=False)
    os.utime(top / "etc" / "nothing", ns=(-1_500_000_001, -500_000_000))
    os.utime(top, ns=(NS, NS))


@dataclass(frozen=True)
class Seen:
    mode: int
    owner: tuple[int, int]
    times: tuple[int, int]
    """Access and modification. GNU tar stores both and restores only the second."""
    size: int
    device: int
    same_as: tuple[bytes, ...]
    target: bytes
    xattrs: dict[str, bytes]
    content: str
    extents: tuple[tuple[int, int], ...]


def look(top: Path) -> dict[bytes, Seen]:
    """What is below a directory, with all that can be seen of it."""
    names: dict[tuple[int, int], list[bytes]] = {}
    paths = {}
    waiting = [os.fsencode(top)]
    while waiting:
        directory = waiting.pop()
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            status = os.lstat(path)  # before anything is read of it, which moves its access time
            relative = os.path.relpath(path, os.fsencode(top))
            paths[relative] = path, status
            if stat_module.S_ISDIR(status.st_mode):
                waiting.append(path)
            else:
                names.setdefault((status.st_dev, status.st_ino), []).append(relative)
    found = {}
    for relative, (path, status) in paths.items():
        regular = stat_module.S_ISREG(status.st_mode)
        found[relative] = Seen(
            mode=status.st_mode,
            owner=(status.st_uid, status.st_gid),
            times=(status.st_atime_ns, status.st_mtime_ns),
            size=status.st_size if regular else 0,
            device=status.st_rdev,
            same_as=tuple(sorted(names.get((status.st_dev, status.st_ino), []))),
            target=os.readlink(path) if stat_module.S_ISLNK(status.st_mode) else b"",
            xattrs={
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
            },
            content=hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest() if regular else "",
            extents=tuple(extents_of(path, status.st_size)) if regular else (),
        )
    return found


def extents_of(path: bytes, size: int) -> Iterator[tuple[int, int]]:
    fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
    try:
        position = 0
        while position < size:
            try:
                start = os.lseek(fd, position, os.SEEK_DATA)
            except OSError:
                return
            position = os.lseek(fd, start, os.SEEK_HOLE)
            yield start, position - start
    finally:
        os.close(fd)


def without_atime(seen: dict[bytes, Seen]) -> dict[bytes, Seen]:
    return {name: Seen(**{**vars(one), "times": (0, one.times[1])}) for name, one in seen.items()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    top = tmp_path_factory.mktemp("tree") / "[root]"
    make_tree(top)
    time.sleep(0.02)  # more than a tick of the kernel's clock
    look(top)  # moves the access times to now, where looking again leaves them (relatime)
    yield top
    (top / "shut").chmod(0o700)


def by_gnu_tar(tree: Path, tmp_path: Path) -> Path:
    file = tmp_path / "gnu.tar"
    command = [*TAR, "--format=posix", "--sparse", "--xattrs", "--xattrs-include=*", "--atime-preserve=system"]
    subprocess.run([*command, "-C", tree.parent, "-cf", file, "[root]"], check=True)
    return file


@dataclass
class _Content:
    path: bytes
    size: int
    sha256: bytes | None = None
    true_size: int = 0

    @property
    def extents(self) -> Sequence[tuple[int, int]]:
        return [(start, min(length, self.size - start)) for start, length in extents_of(self.path, self.size)]

    def chunks(self) -> Iterator[memoryview]:
        fd = os.open(self.path, os.O_RDONLY | os.O_NOATIME)
        try:
            for start, length in self.extents:
                yield memoryview(os.pread(fd, length, start))
        finally:
            os.close(fd)
        self.true_size = self.size


class _Silent:
    def member(self, member: Member) -> None: ...
    def gap(self, gap: Gap) -> None: ...
    def flag(self, flag: Flag) -> None: ...


def by_our_writer(tree: Path, tmp_path: Path) -> Path:
    def entries() -> Iterator[Entry]:
        top = os.fsencode(tree)
        for path in sorted(os.path.join(top, name) for name in look(tree)):
            status = statx(AT_FDCWD, path)
            kind = Kind.of_mode(status.mode)
            yield Entry(
                path=path.removeprefix(top),
                kind=kind,
                stat=status,
                xattrs={
                    os.fsencode(name): os.getxattr(path, name, follow_symlinks=False)
                    for name in os.listxattr(path, follow_symlinks=False)
                },
                target=os.readlink(path) if kind is Kind.SYMLINK else None,
                content=_Content(path, status.size) if kind is Kind.FILE else None,
            )

    file = tmp_path / "ours.tar"
    with file.open("wb") as stream:
        for chunk in archive(entries(), _Silent()):
            stream.write(chunk)
    return file


MAKERS = {"gnu": by_gnu_tar, "ours": by_our_writer}


@needs_root
@pytest.mark.root
@pytest.mark.parametrize("maker", MAKERS)
def test_a_faithful_extraction_is_that_of_gnu_tar(tree: Path, tmp_path: Path, maker: str) -> None:
    original = look(tree)
    file = MAKERS[maker](tree, tmp_path)
    (tmp_path / "theirs").mkdir()
    command: list[str | Path] = [
        *TAR,
        "-xpf",
        file,
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        "-C",
        tmp_path / "theirs",
    ]
    subprocess.run(command, check=True)
    notes: list[Note] = []
    with file.open("rb") as stream:
        summary = extract(stream, tmp_path / "ours", on_note=notes.append, faithful=True)
    assert notes == []
    assert summary.whole
    ours = look(tmp_path / "ours" / "[root]")
    assert without_atime(ours) == without_atime(look(tmp_path / "theirs" / "[root]"))
    assert ours == original


@pytest.mark.parametrize("maker", MAKERS)
def test_a_plain_extraction_is_the_same_made_harmless(tree: Path, tmp_path: Path, maker: str) -> None:
    original = look(tree)
    with MAKERS[maker](tree, tmp_path).open("rb") as stream:
        summary = extract(stream, tmp_path / "plain", on_note=lambda _: None)
    plain = look(tmp_path / "plain" / "[root]")
    made = {
        name: seen
        for name, seen in original.items()
        if stat_module.S_IFMT(seen.mode) in {stat_module.S_IFREG, stat_module.S_IFDIR, stat_module.S_IFLNK}
    }
    assert plain.keys() == made.keys()
    for name, seen in plain.items():
        was = made[name]
        assert seen.mode == was.mode & ~0o7000
        assert seen.owner == (os.geteuid(), os.getegid())
        assert seen.times == was.times
        assert seen.xattrs == {key: value for key, value in was.xattrs.items() if key.startswith("user.")}
        for what in ("size", "same_as", "target", "content", "extents"):
            assert getattr(seen, what) == getattr(was, what), (name, what)
    assert summary.left_out == 0
    assert summary.unrestored[NoteKind.FIFO] == 1
    assert summary.unrestored[NoteKind.MODE] == 2
    if ROOT:
        assert summary.unrestored == {
            NoteKind.FIFO: 1,
            NoteKind.MODE: 2,
            NoteKind.WHITEOUT: 1,
            NoteKind.DEVICE: 2,
            NoteKind.OWNER: 3,
            NoteKind.XATTR: 3,
        }


@pytest.mark.parametrize("maker", MAKERS)
def test_every_header_is_where_gnu_tar_finds_it(tree: Path, tmp_path: Path, maker: str) -> None:
    file = MAKERS[maker](tree, tmp_path)
    listing = subprocess.run(
        [*TAR, "-tf", file, "--quoting-style=literal", "--null", "--block-number"], check=True, capture_output=True
    ).stdout
    with file.open("rb") as stream:
        names = [header.name for header in TarStream(stream)]
    assert file.stat().st_size % BLOCK == 0
    assert all(name in listing for name in names)
    assert listing.count(b"block ") - listing.count(b"** Block") >= len(names)
