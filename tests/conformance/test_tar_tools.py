"""What stock tools make of our archives: GNU tar, bsdtar, and dissect.target on top of tarfile."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat as stat_module
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from acquirers.base import Buffer, Flag, Gap, Kind, Member
from acquirers.files import pax, sparse
from acquirers.files.archive import archive
from acquirers.files.entry import Entry
from acquirers.syscalls import Stat

ROOT = os.geteuid() == 0
# Records that GNU tar does not know, and times that are not of our day: it says so, and restores all the same.
TOOLS = {"tar": ["tar", "--warning=no-unknown-keyword", "--warning=no-timestamp"], "bsdtar": ["bsdtar"]}
EXTRACT = {
    "tar": [*TOOLS["tar"], "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"],
    "bsdtar": [*TOOLS["bsdtar"], "--xattrs", "--acls", "--numeric-owner", "-xpf"],
}

STAT = Stat(
    mode=0, uid=os.geteuid(), gid=os.getegid(), size=0, nlink=1, ino=1, dev=1, rdev=0, atime_ns=10**18 + 1,
    mtime_ns=10**18 + 123_456_789, ctime_ns=10**18 + 3, btime_ns=10**18 + 4, blocks=0, attributes=0, mnt_id=1,
)  # fmt: skip
TYPES = {
    Kind.FILE: stat_module.S_IFREG,
    Kind.DIRECTORY: stat_module.S_IFDIR,
    Kind.SYMLINK: stat_module.S_IFLNK,
    Kind.FIFO: stat_module.S_IFIFO,
    Kind.SOCKET: stat_module.S_IFSOCK,
    Kind.CHAR_DEVICE: stat_module.S_IFCHR,
    Kind.BLOCK_DEVICE: stat_module.S_IFBLK,
}

needs_root = pytest.mark.skipif(not ROOT, reason="needs root: owners, devices and trusted attributes")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "tool" in metafunc.fixturenames:
        metafunc.parametrize("tool", TOOLS)


@pytest.fixture(autouse=True)
def _installed(request: pytest.FixtureRequest) -> None:
    tools = [request.getfixturevalue("tool")] if "tool" in request.fixturenames else []
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")


@dataclass
class Bytes:
    """Content from memory."""

    data: bytes
    extents: Sequence[tuple[int, int]]
    size: int
    sha256: bytes | None = None
    true_size: int = 0

    def chunks(self) -> Iterator[memoryview]:
        """Where there are more bytes than `data`, they are zeros."""
        for offset, length in self.extents:
            yield memoryview(self.data[offset : offset + length].ljust(length, b"\0"))
        self.sha256, self.true_size = hashlib.sha256(self.data).digest(), self.size


class Silent:
    def member(self, member: Member) -> None:
        pass

    def gap(self, gap: Gap) -> None:
        pytest.fail(gap.detail)

    def flag(self, flag: Flag) -> None:
        pass


def entry(
    path: bytes,
    kind: Kind = Kind.FILE,
    content: Bytes | None = None,
    *,
    mode: int = 0o644,
    target: bytes | None = None,
    xattrs: dict[bytes, bytes] | None = None,
    **about: Any,
) -> Entry:
    return Entry(path, kind, replace(STAT, mode=TYPES[kind] | mode, **about), xattrs or {}, target, content)


def file(path: bytes, data: bytes, extents: Sequence[tuple[int, int]] | None = None, **about: Any) -> Entry:
    whole = [(0, len(data))] if data else []
    return entry(path, content=Bytes(data, whole if extents is None else extents, len(data)), size=len(data), **about)


def write(entries: Sequence[Entry], path: Path) -> Path:
    chunks: Iterator[Buffer] = archive([entry(b"/", Kind.DIRECTORY, mode=0o755), *entries], Silent())
    with path.open("wb") as stream:
        for chunk in chunks:
            stream.write(chunk)
    return path


def run(command: Sequence[str], path: Path, cwd: Path | None = None) -> bytes:
    done = subprocess.run(
        [*command, str(path)], cwd=cwd, env={**os.environ, "LC_ALL": "C.UTF-8"}, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def extract(tool: str, entries: Sequence[Entry], where: Path) -> bytes:
    """The `[root]` that the tool restored."""
    target = where / tool
    target.mkdir()
    run(EXTRACT[tool], write(entries, where / "t.tar"), target)
    return os.fsencode(target / "[root]")


def xattrs_of(path: bytes) -> dict[bytes, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}


def check(tool: str, found: Entry, root: bytes) -> None:
    path = root + found.path
    about = os.lstat(path)
    assert stat_module.S_IFMT(about.st_mode) == TYPES[found.kind]
    assert (about.st_uid, about.st_gid) == (found.stat.uid, found.stat.gid)
    assert about.st_mtime_ns == found.stat.mtime_ns
    if found.kind is Kind.SYMLINK:
        assert os.readlink(path) == found.target
    else:
        assert about.st_mode == found.stat.mode
    if tool == "tar" or not any(b"%" in name or b"=" in name for name in found.xattrs):
        assert xattrs_of(path) == found.xattrs
    if isinstance(found.content, Bytes):
        with open(path, "rb") as stream:
            assert stream.read() == found.content.data


component = (
    st.binary(min_size=1, max_size=120)
    .map(lambda raw: raw.replace(b"\0", b"0").replace(b"/", b"s"))
    .filter(lambda raw: raw not in {b".", b".."})
)
# ext4 keeps seconds from -2^31 to 2^34. bsdtar reads a fraction of a second before 1970 the wrong way round.
times = st.integers(0, 1 << 63) | st.integers(-(1 << 31), 0).map(lambda seconds: seconds * 10**9)
owners = st.sampled_from([0, 1000, 0x1FFFFF, 0x200000, 0xFFFFFFFE] if ROOT else [STAT.uid])
groups = owners if ROOT else st.just(STAT.gid)
permissions = st.integers(0, 0o7777) if ROOT else st.sampled_from([0o700, 0o755, 0o711])


@st.composite
def trees(draw: st.DrawFn) -> list[Entry]:
    """Directories come with what is in them, as the walker has them; contents have holes of whole blocks."""
    found: dict[bytes, Entry] = {}
    directories = [b""]
    for name in draw(st.lists(component, max_size=10, unique=True)):
        path = draw(st.sampled_from(directories)) + b"/" + name
        kind = draw(st.sampled_from([Kind.FILE, Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK, Kind.FIFO]))
        about: dict[str, Any]
        about = {"uid": draw(owners), "gid": draw(groups), "mtime_ns": draw(times), "mode": draw(permissions)}
        attributes = {}
        if kind in {Kind.FILE, Kind.DIRECTORY}:
            spaces = st.sampled_from([b"user.", b"trusted."] if ROOT else [b"user."])
            names = st.builds(lambda space, name: space + name, spaces, component)
            attributes = draw(st.dictionaries(names, st.binary(max_size=100), max_size=3))
        if kind is Kind.FILE:
            blocks = draw(st.lists(st.none() | st.binary(min_size=4096, max_size=4096), max_size=3))
            tail = draw(st.binary(max_size=100))
            data = b"".join(block or bytes(4096) for block in blocks) + tail
            extents = [(4096 * index, 4096) for index, block in enumerate(blocks) if block]
            extents += [(4096 * len(blocks), len(tail))] if tail else []
            found[path] = file(path, data, extents, xattrs=attributes, **about)
        elif kind is Kind.SYMLINK:
            found[path] = entry(path, kind, target=draw(component), **about)
        else:
            found[path] = entry(path, kind, xattrs=attributes, **about)
            if kind is Kind.DIRECTORY:
                directories.append(path)
    # Depth first: GNU tar sets a directory's times when it meets the first file that is not below.
    return sorted(found.values(), key=lambda found: found.path.split(b"/"))


@given(tree=trees())
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tree_is_restored(tool: str, tree: list[Entry]) -> None:
    with tempfile.TemporaryDirectory() as where:
        root = extract(tool, tree, Path(where))
        listed = {
            os.path.join(directory, name).removeprefix(root)
            for directory, directories, names in os.walk(root)
            for name in directories + names
        }
        assert listed == {found.path for found in tree}
        for found in tree:
            check(tool, found, root)


def test_names_that_are_not_utf8(tool: str, tmp_path: Path) -> None:
    tree = [
        entry(b"/d\xff", Kind.DIRECTORY, mode=0o755),
        file(b"/d\xff/\xfe\n\x01", b"plain", ino=2, nlink=2),
        file(b"/d\xff/" + b"\xfd" * 200, bytes(8192) + b"sparse", [(8192, 6)]),
        entry(b"/to", Kind.SYMLINK, mode=0o777, target=b"d\xff/\xfe\n\x01"),
        file(b"/hard", b"plain", ino=2, nlink=2),
        file("/été ☃".encode(), b"text"),
    ]
    root = extract(tool, tree, tmp_path)
    for found in tree:
        check(tool, found, root)
    assert os.path.samefile(root + b"/hard", root + b"/d\xff/\xfe\n\x01")


def test_times_before_1970(tmp_path: Path) -> None:
    """Only GNU tar: libarchive 3.6.2 reads -1.25 as -0.75, in any notation."""
    tree = [file(b"/%d" % -ns, b"", mtime_ns=ns) for ns in (-1, -500_000_000, -1_250_000_000, -(10**18) - 1)]
    root = extract("tar", tree, tmp_path)
    for found in tree:
        check("tar", found, root)


def test_times_of_no_calendar(tool: str, tmp_path: Path) -> None:
    far = (1 << 63) * 10**9 - 1
    tree = [file(b"/%d" % n, b"", mtime_ns=ns) for n, ns in enumerate((1 << 62, far, -(1 << 63) * 10**9))]
    names = run([*TOOLS[tool], "-tf"], write(tree, tmp_path / "t.tar"))
    assert names.split() == [b"[root]/", b"[root]/0", b"[root]/1", b"[root]/2"]


def test_hard_links(tool: str, tmp_path: Path) -> None:
    hole = bytes(65536) + b"end"
    tree = [
        *(file(b"/plain%d" % n, b"content", ino=2, nlink=3) for n in range(3)),
        *(file(b"/empty%d" % n, b"", ino=3, nlink=2) for n in range(2)),
        *(file(b"/sparse%d" % n, hole, [(65536, 3)], ino=4, nlink=2, xattrs={b"user.a": b"b"}) for n in range(2)),
        file(b"/" + b"long" * 50 + b"1", b"long", ino=5, nlink=2),
        file(b"/" + b"long" * 50 + b"2", b"long", ino=5, nlink=2),
    ]
    root = extract(tool, tree, tmp_path)
    for found in tree:
        check(tool, found, root)
        assert os.lstat(root + found.path).st_nlink == found.stat.nlink


@pytest.mark.parametrize(
    ("size", "extents"),
    [
        (20 << 30, []),
        (20 << 30, [(0, 4096), (9 << 30, 10)]),
        ((9 << 30) + 3, [((9 << 30), 3)]),
        (1 << 20, [(1 << 19, 4096)]),
        (300, []),
        (300, [(10, 10)]),
    ],
)
def test_holes_come_back_as_holes(tool: str, tmp_path: Path, size: int, extents: list[tuple[int, int]]) -> None:
    content = Bytes(b"", extents, size)
    root = extract(tool, [entry(b"/sparse", content=content, size=size), file(b"/after", b"after")], tmp_path)
    about = os.lstat(root + b"/sparse")
    assert about.st_size == size
    assert about.st_blocks * 512 <= sum(length + 8192 for _, length in extents)
    assert Path(os.fsdecode(root), "after").read_bytes() == b"after"


@pytest.mark.parametrize("holes", [False, True])
def test_members_of_more_than_8_gib(tool: str, tmp_path: Path, *, holes: bool) -> None:
    stored, real_size = 9 << 30, 20 << 30
    extents = sparse.sparse_map([(1 << 30, stored)], real_size) if holes else b""
    about = replace(STAT, mode=0o100644)
    header = pax.Header(
        b"[root]/large", b"0", about, size=len(extents) + stored, real_size=real_size if holes else None
    )
    path = tmp_path / "large.tar"
    with path.open("wb") as stream:
        stream.write(pax.encode(header)[0] + extents)
        stream.seek(stored, os.SEEK_CUR)  # a hole in the archive itself, over which the tools seek
        stream.write(pax.encode(pax.Header(b"[root]/after", b"0", about))[0] + pax.end_of_archive())
    large, after = run([*TOOLS[tool], "-tvf"], path).splitlines()
    assert str(real_size if holes else stored).encode() in large.split()
    assert after.endswith(b"[root]/after")


@pytest.mark.root
@needs_root
def test_devices(tool: str, tmp_path: Path) -> None:
    """Whiteouts of an overlay are the device 0/0; they share one inode."""
    numbers = [(0, 0), (0, 0), (1, 3), (259, 70000), (4095, 1048575)]
    tree = [
        entry(b"/c%d" % n, Kind.CHAR_DEVICE, rdev=os.makedev(*number), nlink=2) for n, number in enumerate(numbers)
    ] + [entry(b"/b%d" % n, Kind.BLOCK_DEVICE, rdev=os.makedev(*number)) for n, number in enumerate(numbers)]
    root = extract(tool, tree, tmp_path)
    for found in tree:
        check(tool, found, root)
        assert os.lstat(root + found.path).st_rdev == found.stat.rdev


@pytest.mark.root
@needs_root
def test_attributes_that_mean_something(tool: str, tmp_path: Path) -> None:
    """Overlay markers (one is empty), a file capability (which chown would drop) and an access list.

    libarchive restores access lists from `SCHILY.acl.*` only, which would be a rendering: bsdtar goes without.
    """
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    acl = bytes.fromhex("02000000 01000600ffffffff 02000400e8030000 04000400ffffffff 10000400ffffffff 20000400ffffffff")
    tree = [
        entry(b"/opaque", Kind.DIRECTORY, mode=0o755, xattrs={b"trusted.overlay.opaque": b"y"}),
        file(b"/metacopy", b"", xattrs={b"trusted.overlay.metacopy": b"", b"trusted.overlay.origin": b"\0\xfb\x1d\0"}),
        file(b"/ping", b"ELF", xattrs={b"security.capability": capability}, uid=1000, mode=0o755),
        entry(b"/link", Kind.SYMLINK, mode=0o777, target=b"ping", xattrs={b"trusted.mark": b"\n=\0\xff"}),
    ]
    if tool == "tar":
        tree.append(file(b"/shared", b"", xattrs={b"system.posix_acl_access": acl}))
    root = extract(tool, tree, tmp_path)
    for found in tree:
        check(tool, found, root)


def test_a_hostile_member_does_not_hide_the_next(tool: str, tmp_path: Path) -> None:
    """Enormous attributes and paths, all but one of which stand in the archive: libarchive gives up above 1 MiB."""
    tree = [
        file(b"/attributes", b"a", xattrs={b"user.%d" % number: bytes(65536) for number in range(40)}),
        file(b"/" + (b"d" * 255 + b"/") * 4000 + b"deep", b"d"),
        file(b"/" + (b"d" * 255 + b"/") * 1000 + b"deep", b"d", xattrs={b"user.x": bytes(65536)}),
        file(
            b"/name\n21 hdrcharset=\xff\n", b"n", xattrs={b"user.1 hdrcharset": b"\xff\n", b"user.%=": b"12 size=9\n"}
        ),
        entry(b"/empty", Kind.SYMLINK, target=b""),
        file(b"/last", b"end"),
    ]
    names = run([*TOOLS[tool], "-tf"], write(tree, tmp_path / "t.tar")).splitlines()
    assert len(names) == 6
    assert names[-1] == b"[root]/last"


def test_an_archive_is_read_from_a_pipe(tool: str, tmp_path: Path) -> None:
    path = write([file(b"/a", b"x" * 100_000), file(b"/b", bytes(8192) + b"b", [(8192, 1)])], tmp_path / "t.tar")
    done = subprocess.run([tool, "-tf", "-"], input=path.read_bytes(), capture_output=True, check=True)
    assert done.stdout.split() == [b"[root]/", b"[root]/a", b"[root]/b"]


@pytest.mark.filterwarnings("default")  # not ours to mend
def test_dissect_opens_it(tmp_path: Path) -> None:
    from dissect.target import Target

    xattrs = {b"security.selinux": b"system_u:object_r:etc_t:s0\0", b"user.raw": b"\xff\0\n="}
    hole = bytes(300_000) + b"last entry"
    tree = [
        entry(b"/etc", Kind.DIRECTORY, mode=0o755),
        file(b"/etc/hostname", b"victim\n", xattrs=xattrs, uid=1000, mode=0o600),
        file(b"/etc/passwd", b"mallory:x:0:0::/root:/bin/sh\n", ino=2, nlink=2),
        file(b"/etc/Hostname", b"another\n"),
        entry(b"/var", Kind.DIRECTORY, mode=0o755),
        entry(b"/var/log", Kind.DIRECTORY, mode=0o755),
        file(b"/var/log/lastlog", hole, [(299_008, 1002)]),
        file(b"/var/log/passwd.link", b"mallory:x:0:0::/root:/bin/sh\n", ino=2, nlink=2),
        file(b"/var/log/\xff\xfe", b"not UTF-8"),
        file(b"/var/log/" + b"long" * 60, b"long"),
        entry(b"/var/log/name", Kind.SYMLINK, mode=0o777, target=b"../../etc/hostname"),
        entry(b"/opt", Kind.DIRECTORY, mode=0o755),
    ]
    target = Target.open(write(tree, tmp_path / "host.tar"))
    for path, data in {
        "/etc/hostname": b"victim\n",
        "/etc/Hostname": b"another\n",
        "/var/log/lastlog": hole,
        "/var/log/passwd.link": b"mallory:x:0:0::/root:/bin/sh\n",
        "/var/log/\udcff\udcfe": b"not UTF-8",
        "/var/log/" + "long" * 60: b"long",
        "/var/log/name": b"victim\n",
    }.items():
        assert target.fs.path(path).read_bytes() == data
    assert target.hostname == "victim"
    assert [user.name for user in target.users()] == ["mallory"]
    found = target.fs.path("/etc/hostname").get().entries[0]
    about = found.stat()
    assert (about.st_uid, about.st_mode & 0o7777) == (1000, 0o600)
    records = found.entry.pax_headers
    assert records["mtime"] == "1000000000.123456789"
    assert {
        os.fsencode(name.removeprefix("SCHILY.xattr.")): os.fsencode(value)
        for name, value in records.items()
        if name.startswith("SCHILY.xattr.")
    } == xattrs
