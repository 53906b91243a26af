"""Random overlays on a real kernel, compared with the union: a program of its own, because it lives in a mount
namespace of its own, which goes with it.

    python -m tests.rigs.overlay_cases DIRECTORY FIRST COUNT

makes COUNT cases from the seeds FIRST on, and prints one line of JSON: what was compared and what differs. DIRECTORY is
empty; a tmpfs is mounted on it that nobody else sees.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import random
import shutil
import stat
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from acquirers.base import Kind
from acquirers.files.pax import time_text
from acquirers.overlay import Dialect, DirectoryLayer, Handles, Place, Union
from agent.analysis.ocilayer import layer_tar
from tests.rigs.trees import Recorder
from tests.support.oci_apply import apply

if TYPE_CHECKING:
    from acquirers.overlay import Entry, Layer
    from acquirers.overlay.union import OnProblem

_CLONE_NEWNS = 0x20000
_MS_REC = 0x4000
_MS_PRIVATE = 1 << 18
_MNT_DETACH = 2
NAMES = ("a", "b", "c", "d", "e", ".wh.f", "\udcff\n")
_libc = ctypes.CDLL(None, use_errno=True)


class MountError(OSError):
    """The kernel does not take this combination."""


def mount(source: str, target: Path, kind: str, options: str = "", flags: int = 0) -> None:
    result = _libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, options.encode() or None)
    if result:
        number = ctypes.get_errno()
        raise MountError(number, f"{os.strerror(number)}: {options}")


def unmount(target: Path) -> None:
    if _libc.umount2(os.fsencode(target), 0):
        raise OSError(ctypes.get_errno(), "umount")


def own_namespace(directory: Path) -> None:
    """From here on what this process mounts is seen by nobody else."""
    if _libc.unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    mount("none", Path("/"), "none", flags=_MS_REC | _MS_PRIVATE)
    mount("cases", directory, "tmpfs", "size=256m,mode=0700")


@dataclass
class Layers:
    """What `ocilayer` makes layers of."""

    layers: tuple[Layer, ...]
    dialect: Dialect

    def union(self, start: int = 0, *, on_problem: OnProblem = lambda _path, _problem: None) -> Union:
        return Union(self.layers[start:], dialect=self.dialect, on_problem=on_problem)


@dataclass
class Case:
    """One random overlay."""

    seed: int
    base: Path
    used: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)
    names: tuple[str, ...] = NAMES
    without: set[str] = field(default_factory=set)
    """Operations that are not made."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        chance = self.random.random
        self.userxattr = chance() < 0.2
        self.redirect = not self.userxattr and chance() < 0.7
        self.metacopy = self.redirect and chance() < 0.7
        self.data_only = not self.userxattr and chance() < 0.3
        if self.data_only:
            self.redirect = self.metacopy = True
        self.read_only = chance() < 0.25
        self.count = self.random.randint(2, 5)
        self.layers = [self.base / f"l{number}" for number in range(self.count)]
        self.data = [self.base / f"d{number}" for number in range(self.random.randint(1, 2))] if self.data_only else []
        self.merged = self.base / "m"
        self.prefix = "user.overlay." if self.userxattr else "trusted.overlay."

    def run(self) -> None:
        for directory in (*self.layers, *self.data, self.merged):
            directory.mkdir(parents=True)
        self.change(self.layers[-1], self.random.randint(10, 40))
        for number in range(self.count - 2, -1, -1):
            work = self.base / f"w{number}"
            work.mkdir()
            with self.mounted(self.layers[number + 1 :], self.layers[number], work):
                self.change(self.merged, self.random.randint(5, 30))
        self.by_hand()
        work = self.base / "w"
        work.mkdir()
        upper = None if self.read_only else self.layers[0]
        lowers = self.layers if self.read_only else self.layers[1:]
        with self.mounted(lowers, upper, work, final=True):
            self.compare()

    @contextlib.contextmanager
    def mounted(self, lowers: list[Path], upper: Path | None, work: Path, *, final: bool = False):  # type: ignore[no-untyped-def]  # noqa: ANN201
        lower = ":".join(map(str, lowers))
        if final:
            lower += "".join(f"::{path}" for path in self.data)
        options = [f"lowerdir={lower}"]
        if upper is not None:
            options += [f"upperdir={upper}", f"workdir={work}"]
        if self.userxattr:
            options.append("userxattr")
        else:
            # Metacopy needs `redirect_dir=on`, which is refused without an upper layer: there it needs `follow`.
            metacopy = self.metacopy or final
            redirect = upper is not None and (self.redirect or metacopy)
            options += [f"redirect_dir={'on' if redirect else 'follow'}", f"metacopy={'on' if metacopy else 'off'}"]
        mount("case", self.merged, "overlay", ",".join(options))
        try:
            yield
        finally:
            unmount(self.merged)

    # -- making -------------------------------------------------------------------------------------------------------

    def path(self, root: Path, depth: int = 3) -> Path:
        return root.joinpath(*(self.random.choice(self.names) for _ in range(self.random.randint(1, depth))))

    def existing(self, root: Path, wanted: Callable[[os.stat_result], bool] = lambda _: True) -> Path | None:
        """Something that is there, chosen at random."""
        found = []
        for directory, directories, files in os.walk(root):
            directories.sort()
            for name in sorted((*directories, *files)):
                path = Path(directory, name)
                with contextlib.suppress(OSError):
                    if wanted(path.lstat()):
                        found.append(path)
        return self.random.choice(sorted(found)) if found else None

    def change(self, root: Path, count: int) -> None:
        operations = (
            self.write, self.write, self.write, self.directory, self.directory, self.remove, self.remove, self.rename,
            self.rename, self.rename, self.chmod, self.chmod, self.xattr, self.symlink, self.link, self.node,
            self.replace, self.exchange,
        )  # fmt: skip
        for _ in range(count):
            operation = self.random.choice(operations)
            if operation.__name__ in self.without:
                continue
            try:
                operation(root)
            except OSError as error:
                if error.errno in {errno.EIO, errno.ESTALE, errno.EUCLEAN}:
                    raise
                continue  # what is not there, not empty, or on the way
            self.used[operation.__name__] += 1

    def write(self, root: Path) -> None:
        path = self.path(root)
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = self.random.choice((os.O_TRUNC, os.O_APPEND, 0))
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            return
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | mode, 0o644), "wb") as file:
            file.write(self.random.randbytes(self.random.choice((0, 1, 100, 5000))))
        os.utime(path, ns=(0, self.random.randrange(10**18)))

    def directory(self, root: Path) -> None:
        path = self.path(root)
        path.mkdir(parents=True, mode=self.random.choice((0o755, 0o700, 0o1777)))

    def remove(self, root: Path) -> None:
        path = self.existing(root)
        if path is not None:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def rename(self, root: Path) -> None:
        path = self.existing(root, lambda found: stat.S_ISDIR(found.st_mode) or self.random.random() < 0.4)
        if path is not None:
            path.rename(self.path(root))

    def replace(self, root: Path) -> None:
        """A directory made anew where one was deleted: opaque."""
        path = self.existing(root, lambda found: stat.S_ISDIR(found.st_mode))
        if path is not None:
            shutil.rmtree(path)
            path.mkdir()
            (path / self.random.choice(self.names)).write_bytes(b"new")

    def exchange(self, root: Path) -> None:
        one, other = self.existing(root), self.existing(root)
        if one is not None and other is not None and one != other:
            result = _libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2)
            if result:
                raise OSError(ctypes.get_errno(), "renameat2")

    def chmod(self, root: Path) -> None:
        path = self.existing(root, lambda found: not stat.S_ISLNK(found.st_mode))
        if path is not None:
            path.chmod(self.random.choice((0o600, 0o644, 0o755, 0o4755, 0o2750)))
            os.chown(path, self.random.randrange(3), self.random.choice((0, 1000, 100000)))

    def xattr(self, root: Path) -> None:
        path = self.existing(root, lambda found: not stat.S_ISLNK(found.st_mode))
        if path is not None:
            name = self.random.choice(
                ("user.a", "user.b", "trusted.c", "trusted.overlay.nested", "user.overlay.nested")
            )
            os.setxattr(path, name, self.random.randbytes(self.random.randrange(20)))

    def symlink(self, root: Path) -> None:
        self.path(root).symlink_to(self.random.choice(("a", "/etc", "../..", "nowhere")))

    def link(self, root: Path) -> None:
        path = self.existing(root, lambda found: stat.S_ISREG(found.st_mode))
        if path is not None:
            os.link(path, self.path(root))

    def node(self, root: Path) -> None:
        kind = self.random.choice((stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK))
        os.mknod(self.path(root), kind | 0o600, os.makedev(240, self.random.randrange(1, 300)))

    # -- by hand ------------------------------------------------------------------------------------------------------

    def by_hand(self) -> None:
        """What tools write and kernels do not, and what nobody should write."""
        chance = self.random.random
        for number, layer in enumerate(self.layers):
            lower = number > 0 or self.read_only
            if lower and chance() < 0.5:
                self.xattr_whiteouts(layer)
            if chance() < 0.2:
                self.opaque(layer)
            if not self.userxattr and chance() < 0.25:
                self.redirected(layer)
            if not self.userxattr and chance() < 0.15:
                self.hollow(layer)
            if self.data and lower:
                self.composed(layer)

    def xattr_whiteouts(self, layer: Path) -> None:
        directories = [layer, *(path for path in [self.existing(layer, _is_directory)] if path)]
        for directory in directories:
            with contextlib.suppress(OSError):
                if self.random.random() < 0.8 and not self.is_opaque(directory):
                    os.setxattr(directory, self.prefix + "opaque", b"x")
                path = directory / self.random.choice(self.names)
                if path.is_dir() and not path.is_symlink():
                    continue
                path.unlink(missing_ok=True)
                path.touch()
                os.setxattr(path, self.prefix + "whiteout", self.random.choice((b"", b"y")))
                self.used["xattr whiteout"] += 1

    def is_opaque(self, directory: Path) -> bool:
        try:
            return os.getxattr(directory, self.prefix + "opaque") == b"y"
        except OSError:
            return False

    def opaque(self, layer: Path) -> None:
        path = self.existing(layer, _is_directory)
        if path is not None:
            os.setxattr(path, self.prefix + "opaque", self.random.choice((b"y", b"y", b"yy", b"n")))
            self.used["opaque by hand"] += 1

    def redirected(self, layer: Path) -> None:
        path = self.existing(layer, _is_directory)
        if path is not None:
            names = [self.random.choice(self.names) for _ in range(self.random.randint(1, 3))]
            value = names[0] if self.random.random() < 0.5 else "/" + "/".join(names)
            if self.random.random() < 0.15:
                value = self.random.choice(("", "/", "a/b", "/a//b", "..", "/a/../b", "x" * 300))
            os.setxattr(path, self.prefix + "redirect", os.fsencode(value))
            self.used["redirect by hand"] += 1

    def hollow(self, layer: Path) -> None:
        path = self.existing(layer, lambda found: stat.S_ISREG(found.st_mode))
        if path is not None:
            os.setxattr(path, self.prefix + "metacopy", b"")
            if self.random.random() < 0.5:
                os.setxattr(path, self.prefix + "redirect", os.fsencode("/" + self.random.choice(self.names)))
            self.used["metacopy by hand"] += 1

    def composed(self, layer: Path) -> None:
        """Files whose data lies in a layer for data only, as composefs has them."""
        for number in range(2):
            name = f"{layer.name}-{number}"
            content = self.random.randbytes(1000)
            store = self.random.choice(self.data) / "objects"
            store.mkdir(exist_ok=True)
            if self.random.random() < 0.9:
                (store / name).write_bytes(content)
            path = self.path(layer, 2)
            if not path.parent.is_dir() or os.path.lexists(path):
                continue
            with path.open("wb") as file:
                file.truncate(len(content))
            os.setxattr(path, self.prefix + "metacopy", b"")
            os.setxattr(path, self.prefix + "redirect", f"/objects/{name}".encode())
            self.used["data-only"] += 1

    # -- comparing ----------------------------------------------------------------------------------------------------

    def compare(self) -> None:
        truth = kernel_view(self.merged)
        problems: dict[bytes, str] = {}
        handles = Handles()
        with contextlib.ExitStack() as stack:

            def opened(path: Path) -> DirectoryLayer:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    layer = DirectoryLayer(fd, path.name, handles=handles)
                finally:
                    os.close(fd)
                stack.callback(layer.close)
                return layer

            union = Union(
                [opened(path) for path in self.layers],
                data=[opened(path) for path in self.data],
                dialect=Dialect(userxattr=self.userxattr),
                on_problem=problems.__setitem__,
            )
            seen: dict[bytes, Entry] = {}
            found = {}
            for entry in union.walk():
                if entry.path in seen:
                    self.differences.append(f"{entry.path!r} comes twice")
                seen[entry.path] = entry
                if entry.object is not None:
                    found[entry.path] = union_view(union, entry)
            for entry in union.walk(history=False):
                full = seen[entry.path].object
                if entry.object is None or full is None or full.places != entry.object.places:
                    self.differences.append(f"{entry.path!r} differs without history")
            if not self.data and not problems:
                self.as_image(union, seen)
        self.judge(truth, found, seen, problems)

    def as_image(self, union: Union, seen: dict[bytes, Entry]) -> None:
        """The layers of an image that say the same, applied one upon the other."""
        things = {path: entry.object for path, entry in seen.items() if entry.object is not None}
        if any(thing.problems for thing in things.values()):
            return
        layers = Layers(union.layers, union.dialect)
        told: list[str] = []
        tars = [b"".join(map(bytes, layer_tar(layers, number, told.append))) for number in reversed(range(self.count))]
        found = {path.replace(b"%2E", b"."): record for path, record in apply(tars).items()}
        expected = {}
        for path, thing in things.items():
            if thing.kind is not Kind.SOCKET:
                view = union_view(union, seen[path])
                assert isinstance(view, tuple)
                _, numbers, mtime_ns, target, xattrs, digest = view
                expected[path] = (
                    thing.stat.mode, numbers["uid"], numbers["gid"],
                    time_text(mtime_ns).decode(), numbers["rdev"], target, xattrs, digest or "",
                )  # fmt: skip
        self.used["images"] += 1
        self.differences += [
            f"image: {path!r}: {expected.get(path)}, and {found.get(path)}"
            for path in sorted(expected.keys() | found.keys())
            if expected.get(path) != found.get(path)
        ]

    def judge(
        self,
        truth: dict[bytes, object],
        found: dict[bytes, object],
        seen: dict[bytes, Entry],
        problems: dict[bytes, str],
    ) -> None:
        self.used["paths"] += len(truth)
        failed = [path for path, value in truth.items() if isinstance(value, str)]
        wrong = [path for path, entry in seen.items() if entry.object is not None and entry.object.problems]
        above = {os.path.dirname(path) for path in wrong}
        shared = self.shared(seen)
        wild = bool(self.used["redirect by hand"] or self.used["metacopy by hand"])
        self.used["without marks that no kernel writes"] += not wild
        wrong += shared
        for path in failed:
            # The kernel lists the name and gives an error for it.
            entry = seen.get(path)
            if truth[path] == "ENOENT":
                self.used["listed and not there"] += 1
                if entry is None or (entry.object is not None and not entry.object.problems):
                    self.differences.append(f"{path!r} is listed and not there: {entry}")
            else:
                self.used[f"error {truth[path]}"] += 1
                # That of a name makes the listing of its directory fail, too.
                told = entry is not None and (entry.object is None or entry.object.problems or path in above)
                # What was copied up may stand in for its lower file, which a mark by hand gives to another path, too.
                told = told or path in shared or (wild and truth[path] == "ESTALE")
                if not told and path not in problems:
                    self.differences.append(f"{path!r} gives {truth[path]}, and nothing is said of it")
        below = tuple(path.rstrip(b"/") + b"/" for path in (*failed, *(path for path in wrong if path not in truth)))
        for path in truth.keys() | found.keys():
            if path in failed or path in shared or path.startswith(below):
                continue
            entry = seen.get(path)
            if path not in truth and entry is not None and entry.object is not None and (entry.object.problems or wild):
                self.used["error in the listing"] += 1  # the kernel looks some names up while it lists, and drops these
            elif truth.get(path) != found.get(path):
                self.differences.append(f"{path!r}: kernel {truth.get(path)}, union {found.get(path)}")
        for path, entry in seen.items():
            self.used["deleted paths"] += entry.object is None
            self.used["older versions"] += sum(one.object is not None for one in entry.older)
            if entry.object is not None:
                self.used["redirects"] += entry.object.redirected
                self.used["metacopy"] += entry.object.data not in {None, entry.object.place}
                self.used["opaque"] += entry.object.marks.opaque
            if entry.object is None and entry.hidden_by is None:
                self.differences.append(f"{path!r} is deleted and nothing has deleted it")

    def shared(self, seen: dict[bytes, Entry]) -> set[bytes]:
        """Paths whose lower part is that of another path, too, because somebody set redirects by hand, or took away
        what made a directory opaque whose lower part had gone elsewhere.

        The kernel knows an inode once: it gives one of them the other's, or ESTALE, or does not list it.
        """
        users: dict[Place, list[bytes]] = {}
        odd = set()
        for path, entry in seen.items():
            thing = entry.object
            if thing is not None:
                if thing.kind is Kind.FILE and thing.data != thing.place:
                    odd.add(path)  # its data may be that of a file which was copied up since, and has its place
                for place in {*thing.places, *([thing.data] if thing.data is not None else [])}:
                    users.setdefault(place, []).append(path)
        if not any(self.used[f"{mark} by hand"] for mark in ("redirect", "metacopy", "opaque")):
            return set()
        found = {path for paths in users.values() if len(paths) > 1 for path in paths} | odd
        self.used["shared"] += len(found)
        return found


def _is_directory(found: os.stat_result) -> bool:
    return stat.S_ISDIR(found.st_mode)


def kernel_view(root: Path) -> dict[bytes, object]:
    """Path -> what the kernel says of it, or the name of the error that it gives."""
    found: dict[bytes, object] = {}

    def look(real: bytes, path: bytes) -> None:
        try:
            status = os.lstat(real)
            target = os.readlink(real) if stat.S_ISLNK(status.st_mode) else None
            xattrs = {
                name: os.getxattr(real, name, follow_symlinks=False)
                for name in os.listxattr(real, follow_symlinks=False)
            }
            digest = None
            if stat.S_ISREG(status.st_mode):
                with open(real, "rb") as file:
                    digest = hashlib.sha256(file.read()).hexdigest()
            found[path] = _record(
                status.st_mode,
                status,
                status.st_mtime_ns,
                target,
                {os.fsencode(k): v for k, v in xattrs.items()},
                digest,
            )
            names = sorted(os.listdir(real)) if stat.S_ISDIR(status.st_mode) else []
        except OSError as error:
            found[path] = errno.errorcode.get(error.errno or 0, "?")
            return
        for name in names:
            look(real + b"/" + name, path.rstrip(b"/") + b"/" + name)

    look(os.fsencode(root), b"/")
    return found


def union_view(union: Union, entry: Entry) -> object:
    thing = entry.object
    assert thing is not None
    digest = None
    if thing.kind is Kind.FILE:
        if thing.data is None:
            return "no data"
        report = Recorder()
        with union.layers[thing.data.layer].content(thing.data.path, report) as content:
            for _ in content.chunks():
                pass
            assert content.sha256 is not None
            digest = content.sha256.hex()
        if report.gaps:
            return "gaps"
    return _record(thing.stat.mode, thing.stat, thing.stat.mtime_ns, thing.node.target, thing.xattrs, digest)


def _record(
    mode: int, status: object, mtime_ns: int, target: bytes | None, xattrs: object, digest: str | None
) -> object:
    names = ("uid", "gid", "size", "rdev")
    numbers = {
        name: getattr(status, name, None) if hasattr(status, name) else getattr(status, "st_" + name) for name in names
    }
    if stat.S_ISDIR(mode):
        numbers["size"] = 0
    if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
        numbers["rdev"] = 0
    return oct(mode), numbers, mtime_ns, target, xattrs, digest


def main(directory: Path, first: int, count: int) -> int:
    own_namespace(directory)
    used: Counter[str] = Counter()
    wrong: dict[int, list[str]] = {}
    refused: Counter[str] = Counter()
    for seed in range(first, first + count):
        case = Case(seed, directory / str(seed))
        try:
            case.run()
        except MountError as error:
            refused[str(error)[:200].replace(str(seed), "N")] += 1
        else:
            used["cases"] += 1
        if case.differences:
            wrong[seed] = case.differences[:5]
        used += case.used
        shutil.rmtree(case.base)
    sys.stdout.write(json.dumps({"used": used, "wrong": wrong, "refused": refused}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
