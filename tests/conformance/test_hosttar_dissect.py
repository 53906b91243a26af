"""dissect.target opens a joined host.tar as a Linux host, and the containers in it as targets with merged files."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import stat as stat_module
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dissect.target import Target
from dissect.target.exceptions import FilesystemError
from msgspec.structs import replace

from acquirers.base import Flag, Gap, Kind, Member
from acquirers.files.archive import archive
from acquirers.files.entry import Entry
from acquirers.syscalls import Stat
from agent.analysis.extract import extract
from agent.analysis.hosttar import join

if TYPE_CHECKING:
    from agent.analysis.notes import Note

STAT = Stat(
    mode=0o755, uid=0, gid=0, size=0, nlink=1, ino=1, dev=1, rdev=0, atime_ns=1, mtime_ns=1_700_000_000_000_000_001,
    ctime_ns=3, btime_ns=4, blocks=0, attributes=0, mnt_id=None,
)  # fmt: skip

CONTAINER = "c0ffee" + "1" * 58
IMAGE = "beef" + "2" * 60
BASE, TOP = "aaaa" + "3" * 60, "bbbb" + "4" * 60  # cache ids of the two image layers
BASE_DIFF, TOP_DIFF = "5" * 64, "6" * 64
TOP_CHAIN = hashlib.sha256(f"sha256:{BASE_DIFF} sha256:{TOP_DIFF}".encode()).hexdigest()
MOUNT = "dddd" + "7" * 60
DOCKER = "/var/lib/docker"
OVERLAY = f"{DOCKER}/overlay2"
IMAGES = f"{DOCKER}/image/overlay2"
HOME = f"{DOCKER}/containers/{CONTAINER}"


@dataclass
class Bytes:
    data: bytes
    sha256: bytes | None = None

    @property
    def size(self) -> int:
        return len(self.data)

    true_size = size

    @property
    def extents(self) -> Sequence[tuple[int, int]]:
        return [(0, len(self.data))]

    def chunks(self) -> Iterator[memoryview]:
        yield memoryview(self.data)


class Silent:
    def member(self, member: Member) -> None: ...
    def gap(self, gap: Gap) -> None: ...
    def flag(self, flag: Flag) -> None: ...


Tree = list[Entry]


def directory(path: str) -> Entry:
    return Entry(path.encode(), Kind.DIRECTORY, replace(STAT, mode=stat_module.S_IFDIR | 0o755))


def file(path: str | bytes, data: bytes | str = b"", *, inode: int = 0) -> Entry:
    data = data.encode() if isinstance(data, str) else data
    status = replace(STAT, mode=stat_module.S_IFREG | 0o644, size=len(data), ino=inode, nlink=2 if inode else 1)
    return Entry(path if isinstance(path, bytes) else path.encode(), Kind.FILE, status, content=Bytes(data))


def symlink(path: str, target: str) -> Entry:
    return Entry(path.encode(), Kind.SYMLINK, replace(STAT, mode=stat_module.S_IFLNK | 0o777), target=target.encode())


def whiteout(path: str) -> Entry:
    return Entry(path.encode(), Kind.CHAR_DEVICE, replace(STAT, mode=stat_module.S_IFCHR))


def config() -> dict[str, Any]:
    return {
        "ID": CONTAINER, "Created": "2024-05-01T10:00:00.123456789Z", "Name": "/web", "Path": "/bin/app",
        "Args": ["--serve"], "Driver": "overlay2", "Image": f"sha256:{IMAGE}",
        "State": {
            "Running": True, "Pid": 4242, "StartedAt": "2024-05-01T10:00:01.5Z", "FinishedAt": "0001-01-01T00:00:00Z",
        },
        "Config": {"Image": "base:1", "Env": ["A=b"], "ExposedPorts": {}}, "NetworkSettings": {"Ports": {}},
        "HostnamePath": f"{HOME}/hostname", "HostsPath": f"{HOME}/hosts", "ResolvConfPath": f"{HOME}/resolv.conf",
        "MountPoints": {
            "/data": {
                "Type": "volume", "Name": "store", "Source": f"{DOCKER}/volumes/store/_data", "Destination": "/data",
            },
        },
    }  # fmt: skip


def runtime_tree() -> Tree:
    """containers/docker/runtime.tar."""
    chains = f"{IMAGES}/layerdb/sha256"
    return [
        directory(f"{DOCKER}/image"),
        directory(IMAGES),
        file(f"{IMAGES}/repositories.json", json.dumps({"Repositories": {"base": {"base:1": f"sha256:{IMAGE}"}}})),
        directory(f"{IMAGES}/imagedb"),
        directory(f"{IMAGES}/imagedb/content"),
        directory(f"{IMAGES}/imagedb/content/sha256"),
        file(f"{IMAGES}/imagedb/content/sha256/{IMAGE}", json.dumps({"created": "2024-01-01T00:00:00Z"})),
        directory(f"{IMAGES}/layerdb"),
        directory(f"{IMAGES}/layerdb/mounts"),
        directory(chains),
        directory(f"{chains}/{BASE_DIFF}"),
        file(f"{chains}/{BASE_DIFF}/cache-id", BASE),
        file(f"{chains}/{BASE_DIFF}/diff", f"sha256:{BASE_DIFF}"),
        directory(f"{chains}/{TOP_CHAIN}"),
        file(f"{chains}/{TOP_CHAIN}/cache-id", TOP),
        file(f"{chains}/{TOP_CHAIN}/diff", f"sha256:{TOP_DIFF}"),
        file(f"{chains}/{TOP_CHAIN}/parent", f"sha256:{BASE_DIFF}"),
    ]


def container_tree() -> Tree:
    """containers/docker/<id12>-<name>.tar."""
    upper, mount = f"{OVERLAY}/{MOUNT}", f"{IMAGES}/layerdb/mounts/{CONTAINER}"
    return [
        directory(HOME),
        file(f"{HOME}/config.v2.json", json.dumps(config())),
        file(f"{HOME}/hostname", "web-host\n"),
        file(f"{HOME}/hosts", "127.0.0.1 localhost\n"),
        file(f"{HOME}/resolv.conf", "nameserver 10.0.0.2\n"),
        file(f"{HOME}/{CONTAINER}-json.log", '{"log":"hello\\n","stream":"stdout","time":"2024-05-01T10:00:02Z"}\n'),
        directory(upper),
        file(f"{upper}/link", "UPPER"),
        file(f"{upper}/lower", "l/INIT:l/TOP:l/BASE"),
        directory(f"{upper}/work"),
        directory(f"{upper}/diff"),
        file(f"{upper}/diff/dropped", "malware", inode=7),
        file(f"{upper}/diff/second-name", "malware", inode=7),
        file(f"{upper}/diff/".encode() + b"\xff-name", "bytes"),
        directory(f"{upper}/diff/etc"),
        file(f"{upper}/diff/etc/app.conf", "changed in the container"),
        whiteout(f"{upper}/diff/etc/removed"),
        directory(f"{OVERLAY}/{MOUNT}-init"),
        directory(f"{OVERLAY}/{MOUNT}-init/diff"),
        file(f"{OVERLAY}/{MOUNT}-init/diff/.dockerenv"),
        directory(mount),
        file(f"{mount}/mount-id", MOUNT),
        file(f"{mount}/init-id", f"{MOUNT}-init"),
        file(f"{mount}/parent", f"sha256:{TOP_CHAIN}"),
        directory(f"{DOCKER}/volumes/store"),
        directory(f"{DOCKER}/volumes/store/_data"),
        file(f"{DOCKER}/volumes/store/_data/row", "in the volume"),
    ]


def layer_tree(cache_id: str, inside: Callable[[str], Tree]) -> Tree:
    """containers/docker/layers/<id12>.tar."""
    top = f"{OVERLAY}/{cache_id}"
    return [
        directory(top),
        file(f"{top}/link", cache_id[:4].upper()),
        directory(f"{top}/diff"),
        *inside(f"{top}/diff"),
    ]


def base_tree() -> Tree:
    return layer_tree(
        BASE,
        lambda diff: [
            directory(f"{diff}/etc"),
            file(f"{diff}/etc/app.conf", "of the base"),
            file(f"{diff}/etc/removed", "deleted by the container"),
            directory(f"{diff}/bin"),
            file(f"{diff}/bin/app", "\x7fELF app"),
            file(f"{diff}/bin/upgraded", "old"),
            symlink(f"{diff}/sbin", "bin"),
        ],
    )


def top_tree() -> Tree:
    return layer_tree(
        TOP,
        lambda diff: [
            directory(f"{diff}/bin"),
            file(f"{diff}/bin/tool", "\x7fELF tool"),
            file(f"{diff}/bin/upgraded", "new"),
        ],
    )


def host_tree() -> Tree:
    """What later versions take of the host itself, with directories that containers need, too."""
    return [
        directory("/etc"),
        file("/etc/hostname", "node-17\n"),
        file("/etc/passwd", "root:x:0:0:root:/root:/bin/bash\n"),
        file("/etc/os-release", 'NAME="Amazon Linux"\nID=amzn\nVERSION="2023"\nPRETTY_NAME="Amazon Linux 2023"\n'),
        directory("/run"),
        directory("/var"),
        directory("/var/lib"),
        directory("/var/log"),
        file("/var/log/messages", ""),
    ]


RUN: list[Tree] = [runtime_tree(), container_tree(), base_tree(), top_tree()]


def tar(tree: Tree) -> bytes:
    return b"".join(bytes(chunk) for chunk in archive(tree, Silent()))


def host_tar(path: Path, trees: Sequence[Tree]) -> list[Note]:
    notes: list[Note] = []
    with path.open("xb") as stream:
        for chunk in join([[tar(tree)] for tree in trees], on_note=notes.append):
            stream.write(chunk)
    return notes


@pytest.fixture
def opened() -> Iterator[Callable[[Path], Any]]:
    """`Target.open`, closed at the end, which dissect leaves to the garbage collector."""
    targets = []

    def open_target(path: Path) -> Any:
        targets.append(Target.open(path))
        return targets[-1]

    yield open_target
    for target in targets:
        handle = getattr(target._loader, "fh", None)
        if handle is not None:
            handle.close()


def only_child(target: Any) -> Any:
    children = [child for _, child in target.list_children()]
    assert [(child.type, child.name) for child in children] == [("docker", "web")]
    return target.open_child(children[0].path)


def assert_merged(child: Any) -> None:
    def read(path: str) -> bytes:
        data: bytes = child.fs.path(path).read_bytes()
        return data

    assert read("/dropped") == b"malware"  # only in the writable layer
    assert read("/second-name") == b"malware"  # a hard link
    assert read("/etc/app.conf") == b"changed in the container"  # over that of the base
    assert read("/bin/app") == b"\x7fELF app"  # of the base
    assert read("/bin/tool") == b"\x7fELF tool"  # of the other image layer
    assert read("/sbin/tool") == b"\x7fELF tool"  # through a symbolic link
    assert read("/.dockerenv") == b""
    assert read("/data/row") == b"in the volume"
    assert read("/etc/hostname") == b"web-host\n"
    names = {path.name for path in child.fs.path("/").iterdir()}
    assert {"dropped", "etc", "bin", "sbin", "data", "\udcff-name"} <= names
    with pytest.raises(FilesystemError):
        read("/etc/removed")  # dissect shows its name; its content is not that of the lower layer, which it hides


def test_a_run_of_containers_only_is_a_linux_host_with_children(tmp_path: Path, opened: Callable[[Path], Any]) -> None:
    notes = host_tar(tmp_path / "host.tar", RUN)
    target = opened(tmp_path / "host.tar")
    assert type(target._loader.subloader).__name__ == "UacTarSubloader"
    assert target.os == "linux"
    assert {note.where for note in notes} == {
        b"[root]/var/", b"[root]/var/lib/", b"[root]/var/lib/docker/", b"[root]/var/lib/docker/containers/",
        b"[root]/var/lib/docker/overlay2/", b"[root]/var/lib/docker/volumes/", b"[root]/etc/", b"[root]/run/",
    }  # fmt: skip
    container = next(iter(target.docker.containers()))
    assert (container.container_id, container.running, container.pid) == (CONTAINER, True, 4242)
    assert [image.name for image in target.docker.images()] == ["base"]
    assert [line.message for line in target.docker.logs()] == ["hello"]
    assert_merged(only_child(target))


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="dissect.target 3.25.1 stacks image layers upside down: the base wins"
)
def test_an_upper_image_layer_is_over_the_base(tmp_path: Path, opened: Callable[[Path], Any]) -> None:
    """`Overlay2Filesystem` collects the layers from the top down, but each that it appends covers those before."""
    host_tar(tmp_path / "host.tar", RUN)
    child = only_child(opened(tmp_path / "host.tar"))
    assert child.fs.path("/bin/upgraded").read_bytes() == b"new"


@pytest.mark.parametrize("order", list(itertools.permutations(range(5)))[::17])
def test_archives_may_come_in_any_order(tmp_path: Path, opened: Callable[[Path], Any], order: tuple[int, ...]) -> None:
    trees = [*RUN, host_tree()]
    host_tar(tmp_path / "host.tar", [trees[number] for number in order])
    target = opened(tmp_path / "host.tar")
    assert (target.os, target.hostname) == ("linux", "node-17")
    assert_merged(only_child(target))


def test_what_stands_in_the_way_does_not_make_it_unreadable(tmp_path: Path, opened: Callable[[Path], Any]) -> None:
    crooked: Tree = [
        directory("/var/lib/docker"),  # again: would empty it
        symlink("/var/lib/docker", "/mnt/docker"),
        file("/opt/one", "a file at first"),
        file("/opt/one/two", "and then a directory"),
        whiteout("/dev/gone"),
    ]
    host_tar(tmp_path / "host.tar", [*RUN, crooked])
    target = opened(tmp_path / "host.tar")
    assert target.fs.path("/opt/one/two").read_text() == "and then a directory"
    assert_merged(only_child(target))


def test_an_unpacked_host_tar_is_a_target_too(tmp_path: Path, opened: Callable[[Path], Any]) -> None:
    host_tar(tmp_path / "host.tar", RUN)
    with (tmp_path / "host.tar").open("rb") as stream:
        extract(stream, tmp_path / "host", on_note=lambda _: None)
    target = opened(tmp_path / "host")
    assert type(target._loader).__name__ == "UacLoader"
    assert target.os == "linux"
    assert [child.name for _, child in target.list_children()] == ["web"]


def test_the_command_of_the_analyst(tmp_path: Path) -> None:
    host_tar(tmp_path / "host.tar", RUN)
    query = Path(sys.executable).with_name("target-query")
    done = subprocess.run(
        [query, "-q", tmp_path / "host.tar", "--list-children"], check=True, capture_output=True, text=True
    )
    assert "web" in done.stdout
    assert f"/layerdb/mounts/{CONTAINER}" in done.stdout


@pytest.mark.parametrize("tool", ["tar", "bsdtar"])
def test_stock_tools_take_it_for_one_archive(tmp_path: Path, tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    host_tar(tmp_path / "host.tar", [*RUN, host_tree()])
    done = subprocess.run([tool, "-tf", tmp_path / "host.tar"], check=True, capture_output=True)
    lines = done.stdout.splitlines()
    assert lines[-1] == b"uac.log"
    assert f"[root]{OVERLAY}/{MOUNT}/diff/dropped".encode() in lines
