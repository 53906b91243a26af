"""Containers that were built to mislead, of every runtime: nothing outside is read, nothing hangs or grows, and what is
said of them is true. What one runtime's own records can do is in `tests/unit/containers`; here is what all must bear.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import socket
import sqlite3
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from acquirers.base import FlagKind, Gap, Layers, Reason, Scope
from acquirers.containers.census import runtimes
from acquirers.containers.docker import events
from acquirers.containers.docker import known as docker_known
from acquirers.containers.docker import store as docker_store
from acquirers.containers.docker.events import EventRing
from acquirers.files.tree import open_tree
from acquirers.host import Host, Mode
from acquirers.layers import proof as layer_proof
from acquirers.layers import tarsplit
from acquirers.layers.disk import Directory
from acquirers.layers.proof import AS_ROOT, Found, Proof, prove
from agent.analysis.logs import cri, joining
from tests.rigs.trees import Recorder
from tests.support.bolt_maker import BRANCH, BoltMaker, branch
from tests.support.runs import ENVIRONMENT, agent_command, impound, keygen
from tests.unit.analysis.test_container_exports import Evidence
from tests.unit.containers import containerd_disk, disk
from tests.unit.containers.containerd_disk import Machine
from tests.unit.containers.disk import SECRET, Disk, Taken, hex_id
from tests.unit.containers.storage_disk import StorageDisk

RUNTIMES = ("docker", "podman", "containerd")
MAX_RESIDENT = 128 << 10
"""KiB, DESIGN.md: promise 4."""
AT = 1_700_000_000
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="marks of an overlay and devices are made by root")


@dataclass
class Box:
    """One machine with one container, called `web`."""

    root: Path
    upper: Path
    record: Path
    """What the runtime says of the container."""
    close: Callable[[], object]
    items: Callable[[], dict[str, Taken]]

    def taken(self) -> Taken:
        """The container's own item, once nothing secret is in any."""
        self.close()
        taken = self.items()
        assert not [path for path, one in taken.items() if SECRET in one.data]
        mark = os.fsencode(self.upper.relative_to(self.root))
        return next(one for path, one in taken.items() if "/layers/" not in path and mark in one.data)

    def member(self, name: str) -> str:
        return f"[root]/{self.upper.relative_to(self.root)}/{name}"


def make_box(root: Path, runtime: str, name: str = "web") -> Box:
    root.mkdir()
    (root / "etc").mkdir()
    (root / "etc/shadow").write_bytes(SECRET)
    if runtime == "docker":
        docker = Disk(root)
        record = docker.docker / "containers" / docker.container("web", Name="/" + name) / "config.v2.json"
        return Box(root, docker.writable("web") / "diff", record, lambda: None, lambda: disk.take(docker.host()))
    if runtime == "podman":
        podman = StorageDisk(root)
        podman.container("web", names=[name])
        lists = podman.containers / "containers.json"
        return Box(root, podman.writable("web") / "diff", lists, podman.close, podman.take)
    machine = Machine(root)
    key = machine.image()
    number = machine.snapshot("web", parent=key)
    machine.container("web", labels={"io.kubernetes.container.name": name})
    host = machine.write()
    upper = machine.snapshotter("overlayfs") / f"snapshots/{number}/fs"
    record = machine.data / "io.containerd.metadata.v1.bolt/meta.db"
    return Box(root, upper, record, lambda: None, lambda: containerd_disk.take(host))


@pytest.fixture(params=RUNTIMES)
def box(request: pytest.FixtureRequest, tmp_path: Path) -> Box:
    return make_box(tmp_path / "machine", request.param)


# -- what lies in a writable layer ------------------------------------------------------------------------------------


def test_links_that_lead_out_or_round_are_texts(box: Box) -> None:
    targets = {"out": "/etc/shadow", "up": "../" * 40 + "etc/shadow", "self": "self", "a": "b", "b": "a", "root": "/"}
    for name, target in targets.items():
        (box.upper / name).symlink_to(target)
    taken = box.taken()
    with tarfile.open(fileobj=io.BytesIO(taken.data)) as tar:
        found = {name: tar.getmember(box.member(name)) for name in targets}
        assert {name: one.linkname for name, one in found.items() if one.issym()} == targets
    assert not taken.gaps


def test_a_writable_layer_that_is_a_link_is_not_entered(box: Box) -> None:
    box.upper.rename(box.root / "gone")
    (box.root / "secrets").mkdir()
    (box.root / "secrets/key").write_bytes(SECRET)
    box.upper.symlink_to("/secrets")
    box.close()
    assert not [path for path, one in box.items().items() if SECRET in one.data]


def test_a_hole_of_ten_tebibytes(box: Box) -> None:
    with (box.upper / "huge").open("wb") as file:
        file.truncate(10 << 40)
        file.seek(5 << 40)
        file.write(b"in the middle")
    began = time.monotonic()
    taken = box.taken()
    assert time.monotonic() - began < 5
    assert len(taken.data) < 1 << 20
    assert b"in the middle" in taken.data
    [member] = [one for one in taken.members if one.path.endswith(b"/huge")]
    assert member.size == 10 << 40


def test_a_file_that_grows_without_end(box: Box) -> None:
    grown, stop = box.upper / "grows", threading.Event()
    grown.write_bytes(bytes(1 << 20))

    def grow() -> None:
        with grown.open("ab") as file:
            while not stop.is_set() and file.tell() < 100 << 20:
                file.write(b"x" * (1 << 18))

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        taken = box.taken()
    finally:
        stop.set()
        thread.join()
    [member] = [one for one in taken.members if one.path.endswith(b"/grows")]
    assert (member.size or 0) >= 1 << 20
    assert box.member("content") in taken.names()
    assert FlagKind.GREW in {flag.kind for flag in taken.flags} or member.size == grown.stat().st_size


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_many_files_and_a_record_of_a_gibibyte_cost_no_memory(tmp_path: Path, runtime: str) -> None:
    _, recipient = keygen(tmp_path)
    box = make_box(tmp_path / runtime, runtime)
    box.close()
    for number in range(10_000):
        os.mknod(box.upper / f"file-{number:06}")
    whole = box.record.read_bytes()
    with box.record.open("wb") as file:  # a hole, and at its end what was there
        file.truncate((1 << 30) - len(whole))
        file.seek((1 << 30) - len(whole))
        file.write(whole)
    assert resident(tmp_path / "to", box.root, recipient) < MAX_RESIDENT


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_hundred_thousand_files(tmp_path: Path, runtime: str) -> None:
    _, recipient = keygen(tmp_path)
    box = make_box(tmp_path / runtime, runtime)
    box.close()
    for number in range(100_000):
        os.mknod(box.upper / f"file-{number:06}")
    assert resident(tmp_path / "to", box.root, recipient) < MAX_RESIDENT


def resident(to: Path, root: Path, recipient: str) -> int:
    """The most that a run had resident, in KiB. It ends with gaps at the worst."""
    arguments = [*agent_command(), "acquire", "--case", "C-1", "--to", str(to), "-r", recipient, "--root", str(root)]
    for name in ("docker", "podman", "containerd", "census"):
        arguments += ["--only", f"containers.{name}"]
    # What starts a process counts into its peak: so it is started by one that is small.
    starter = "import os, sys; _, code, used = os.wait4(os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:]), 0)"
    told = subprocess.run(
        [sys.executable, "-c", f"{starter}; print(os.waitstatus_to_exitcode(code), used.ru_maxrss)", *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=120,
    )
    code, peak = map(int, told.stdout.splitlines()[-1].split())
    assert code in {0, 1}
    return peak


# -- what a runtime says ----------------------------------------------------------------------------------------------

BOMBS = {
    "deep": b"[" * 1_000_000,
    "deep objects": b'{"a":' * 300_000,
    "wide": b"[" + b"0," * 1_500_000 + b"0]",
    "one long word": b'{"ID":"' + b"a" * (3 << 20) + b'"}',
    "numbers": b'[{"id":' + b"9" * (3 << 20) + b"}]",
}


@pytest.mark.parametrize("runtime", ["docker", "podman"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_json_bombs(tmp_path: Path, runtime: str, bomb: str) -> None:
    box = make_box(tmp_path / "machine", runtime)
    box.close()
    box.record.write_bytes(BOMBS[bomb])
    box.close = lambda: None
    began = time.monotonic()
    taken = box.items()
    assert time.monotonic() - began < 8
    assert any(box.member("content") in one.names() for path, one in taken.items() if path.endswith(".tar"))
    assert any(one.gaps or one.flags for one in taken.values())


@pytest.mark.parametrize("bomb", ["deep", "wide", "one long word"])
def test_a_specification_that_is_a_bomb(tmp_path: Path, bomb: str) -> None:
    machine = Machine(tmp_path)
    machine.snapshot("web")
    kind = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
    machine.container("web")[b"spec"] = containerd_disk.any_of(kind, BOMBS[bomb])
    taken = containerd_disk.take(machine.write())
    assert any(b"of web" in one.data for one in taken.values())


def test_a_database_that_leads_in_circles(tmp_path: Path) -> None:
    box = make_box(tmp_path / "machine", "containerd")
    maker = BoltMaker()
    first = maker.free
    second = maker.add(BRANCH, 2, branch([(b"a", first + 1), (b"v1", first)]))
    maker.add(BRANCH, 2, branch([(b"a", second), (b"v1", first + 1)]))
    box.record.write_bytes(maker.file(first))
    began = time.monotonic()
    taken = box.items()
    assert time.monotonic() - began < 5
    assert "two places" in repr([one.flags for one in taken.values()])
    assert any(b"of web" in one.data for one in taken.values()), "what no record leads to is taken all the same"


NAME = "x\x1b[31m\x07\u009b2J\u202e\n\rforged: complete\x00"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_terminal_is_told_what_to_do(tmp_path: Path, runtime: str) -> None:
    name = NAME.replace("\0", "") if runtime == "containerd" else NAME
    box = make_box(tmp_path / "machine", runtime, name)
    (box.upper / "x\x1b[2J\u009b\n").touch()
    box.close()
    _, recipient = keygen(tmp_path)
    where = f"/{box.upper.relative_to(box.root)}/\x1b[2J\u009b"
    said = ""
    for arguments in (
        ("plan", "--only", f"containers.{runtime}", "--only", "containers.census"),
        ("plan", "--where", where),
        ("plan", "--json", "--where", where),
        ("acquire", "--case", "C", "--to", tmp_path / "to", "-r", recipient, "--only", f"containers.{runtime}"),
    ):
        code, result, err = impound(arguments[0], "--root", box.root, *arguments[1:])
        assert code in {0, 1}
        said += json.dumps(result, ensure_ascii=False) + err
        assert not [line for line in err.splitlines() if line.startswith("forged")]
        if "--where" in arguments:
            assert result["found"] == 1
    assert not [char for char in said if (not char.isprintable() and char not in "\n\u202e") or "\x7f" <= char < "\xa0"]
    assert "\u202e" not in said


def test_the_census_says_what_it_did_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker = Disk(tmp_path)
    for number in range(5):
        docker.container(f"c{number}")
    monkeypatch.setattr(docker_known, "Room", lambda: docker_store.Room(containers=2))
    gaps: list[Gap] = []
    told = [one for one in runtimes.known(docker.host(), gaps) if one.record]
    assert len(told) == 2
    assert Reason.LIMIT in {gap.reason for gap in gaps}


def test_a_database_of_podman_cannot_hang_or_write(tmp_path: Path) -> None:
    """A view in the place of a table, which never ends, and a trigger."""
    podman = StorageDisk(tmp_path)
    podman.podmans("web")
    podman.close()
    base = podman.graph / "db.sql"
    connection = sqlite3.connect(base)
    connection.executescript(
        "DROP TABLE ContainerConfig; CREATE VIEW ContainerConfig AS WITH RECURSIVE n(ID) AS (SELECT 1 UNION ALL SELECT "
        "ID + 1 FROM n) SELECT ID, '' AS PodID, '' AS JSON FROM n;"
    )
    connection.close()
    before = base.read_bytes(), base.stat().st_mtime_ns, sorted(os.listdir(podman.graph))
    began = time.monotonic()
    taken = podman.take()
    assert time.monotonic() - began < 5
    assert (base.read_bytes(), base.stat().st_mtime_ns, sorted(os.listdir(podman.graph))) == before
    assert any(b"written by web" in one.data for one in taken.values())


# -- layer proof ------------------------------------------------------------------------------------------------------

FILES = (("etc", None), ("etc/a", b"original"), ("etc/b", b"second!!"))
Entry = bytes | tuple[str, int]


class Published:
    """A layer as its publisher made it: its tar, its directory, and an honest tar-split."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for name, content in FILES:
                info = tarfile.TarInfo(name)
                info.mtime, info.uid, info.gid = AT, os.getuid(), os.getgid()
                info.type, info.mode = (tarfile.DIRTYPE, 0o755) if content is None else (tarfile.REGTYPE, 0o644)
                info.size = len(content or b"")
                tar.addfile(info, io.BytesIO(content or b""))
                (tree / name).mkdir(mode=0o755) if content is None else (tree / name).write_bytes(content)
                os.chmod(tree / name, info.mode)
        self.tar = out.getvalue()
        self.diff_id = f"sha256:{hashlib.sha256(self.tar).hexdigest()}"
        self.settle()

    def settle(self) -> None:
        """All times as they were published."""
        for path in (*self.tree.rglob("*"), self.tree):
            os.utime(path, (AT, AT), follow_symlinks=False)

    def entries(self, a: Entry = ("etc/a", 8), b: Entry = ("etc/b", 8), *, no_b: bool = False) -> list[Entry]:
        tar, after_a = self.tar, 1024 + (a[1] if isinstance(a, tuple) else 0)
        rest: list[Entry] = [tar[after_a:2048], b, tar[2048 + int(b[1]) :]]
        return [tar[:512], ("etc", 0), tar[512:1024], a, *([tar[after_a:]] if no_b else rest)]

    def proof(self, entries: list[Entry] | None = None) -> Proof:
        text = split(entries or self.entries())
        fd = os.open(self.tree, os.O_PATH | os.O_DIRECTORY)
        try:
            with Directory(open_tree(fd, os.fsencode(self.tree))) as files:
                return prove(lambda: tarsplit.read([text]), files, self.diff_id)
        finally:
            os.close(fd)


def split(entries: list[Entry]) -> bytes:
    lines = [
        {"type": 2, "payload": base64.b64encode(one).decode()}
        if isinstance(one, bytes)
        else {"type": 1, "name": one[0], "size": one[1]}
        for one in entries
    ]
    return b"".join(json.dumps(line | {"position": number}).encode() + b"\n" for number, line in enumerate(lines))


@pytest.fixture
def published(tmp_path: Path) -> Published:
    (tmp_path / "layer").mkdir()
    return Published(tmp_path / "layer")


class TestProof:
    """Whoever owns the machine writes the tar-split; the DiffID alone is known from elsewhere."""

    def test_what_is_as_published_is_proved(self, published: Published) -> None:
        assert published.proof().proved

    def test_content_that_the_record_brings_along(self, published: Published) -> None:
        (published.tree / "etc/a").write_bytes(b"originaX")
        published.settle()
        assert not published.proof(published.entries(a=("etc/a", 1))).proved

    def test_content_that_the_record_brings_along_at_its_end(self, published: Published) -> None:
        (published.tree / "etc/b").write_bytes(b"EVIL!!!!")
        published.settle()
        assert not published.proof(published.entries(b=("etc/b", 0))).proved

    def test_a_deleted_file_that_the_record_brings_along(self, published: Published) -> None:
        (published.tree / "etc/b").unlink()
        published.settle()
        assert not published.proof(published.entries(no_b=True)).proved

    def test_a_file_with_another_name(self, published: Published) -> None:
        (published.tree / "etc/b").rename(published.tree / "etc/cron")
        published.settle()
        assert not published.proof(published.entries(b=("etc/cron", 8))).proved

    @as_root
    @pytest.mark.parametrize("name", ["opaque", "redirect", "metacopy", "whiteout"])
    def test_marks_that_change_what_is_seen(self, published: Published, name: str) -> None:
        os.setxattr(published.tree / "etc", f"trusted.overlay.{name}", b"y")
        published.settle()
        assert not published.proof().proved

    def test_directories_without_end(self, published: Published) -> None:
        fd = os.open(published.tree, os.O_RDONLY)
        for _ in range(1500):
            os.mkdir("d", dir_fd=fd)
            deeper = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = deeper
        os.close(fd)
        assert "deeply" in published.proof().why

    def test_names_without_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(layer_proof, "MAX_NAMES", 1000)
        lines = (b'{"type":1,"name":"%s%d","position":%d}\n' % (b"a/" * 300, at, at) for at in range(5000))
        assert "names" in prove(lambda: tarsplit.read(lines), Nothing(), "sha256:x").why

    def test_whoever_can_choose_names_cannot_make_them_collide(self, published: Published) -> None:
        checks = [layer_proof._Check(Proof(""), Nothing(), AS_ROOT, until=0) for _ in range(2)]
        assert checks[0]._number(b"etc/a") != checks[1]._number(b"etc/a")


class Nothing:
    def find(self, name: bytes) -> Found | None:
        return None

    def read(self, name: bytes) -> Iterator[bytes]:
        return iter(())

    def names(self) -> Iterator[bytes]:
        return iter(())


@pytest.mark.parametrize("hidden", ["", "hidden/tool", "tool", "work/tool", "work/work/tool", "lower"])
def test_nothing_is_left_out_with_a_known_layer(tmp_path: Path, hidden: str) -> None:
    docker = Disk(tmp_path)
    docker.container("web")
    layer = docker.overlay / hex_id("layer top")
    (layer / "diff/content").unlink()
    published = Published(layer / "diff")
    record = docker.layerdb / "sha256" / hex_id("chain top")
    (record / "diff").write_text(published.diff_id)
    (record / "tar-split.json.gz").write_bytes(gzip.compress(split(published.entries())))
    if hidden:
        (layer / hidden).parent.mkdir(exist_ok=True)
        (layer / hidden).parent.chmod(0o755)
        (layer / hidden).write_bytes(SECRET * 10_000)
    taken = disk.take(docker.host(), Scope(layers=Layers.CHANGED, known_layers=frozenset({published.diff_id})))
    left_out = f"containers/docker/layers/{hex_id('layer top')[:12]}.tar" not in taken
    assert left_out == (not hidden)
    assert bool(hidden) == any(SECRET in one.data for one in taken.values())


# -- what a daemon answers --------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_WAIT", 0.5)
    monkeypatch.setattr(events, "SECONDS", 1.0)


def answering(path: Path, serve: Callable[[socket.socket], None]) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def run() -> None:
        try:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                serve(connection)
        except OSError:
            return

    threading.Thread(target=run, daemon=True).start()
    return server


def ask(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> tuple[bytes, Recorder]:
    monkeypatch.setattr(events, "sockets_of", lambda _host, _pid: map(os.fsencode, paths))
    report = Recorder()
    return b"".join(map(bytes, EventRing(Host(Mode.HOST), [os.getpid()])(report))), report


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("piece", [b"X: y", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_an_answer_that_comes_byte_by_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: bytes) -> None:
    def drip(connection: socket.socket) -> None:
        for number in range(100_000):
            connection.sendall(piece if piece.endswith(b"\n") else piece[number % 4 : number % 4 + 1])
            time.sleep(0.1)

    server = answering(tmp_path / "s", drip)
    began = time.monotonic()
    try:
        _, report = ask(monkeypatch, tmp_path / "s")
    finally:
        server.close()
    assert time.monotonic() - began < 4
    assert report.gaps


@pytest.mark.usefixtures("quick")
def test_a_socket_that_became_a_link_or_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "fifo", tmp_path / "loop", tmp_path / "gone", tmp_path):
        _, report = ask(monkeypatch, path)
        assert report.gaps


@as_root
def test_links_in_the_root_of_a_daemon_lead_to_nothing_outside(tmp_path: Path) -> None:
    """`/proc/PID/root/run/docker.sock`, a link of the container: it is looked for in the container."""
    (tmp_path / "root/run").mkdir(parents=True)
    secret = answering(tmp_path / "outside", lambda connection: connection.sendall(SECRET))
    (tmp_path / "root/run/docker.sock").symlink_to(tmp_path / "outside")
    (tmp_path / "root/abs").symlink_to(tmp_path)
    (tmp_path / "mountinfo").write_bytes(Path("/proc/self/mountinfo").read_bytes())
    try:
        for path in (b"/run/docker.sock", b"/abs/outside", b"/../../outside", b"/run/../../outside"):
            with pytest.raises(OSError, match="No such file"):
                list(events._events(os.fsencode(tmp_path), path))
    finally:
        secret.close()


@pytest.mark.usefixtures("quick")
def test_many_sockets_are_not_all_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = ask(monkeypatch, *(tmp_path / str(number) for number in range(10_000)))
    assert len(json.loads(data)["sockets"]) < 100


# -- what an analyst opens --------------------------------------------------------------------------------------------


def test_partial_records_without_content_cost_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "MAX_RECORDS", 100)
    line = b"2026-01-02T03:04:05.000000001Z stdout P \n"
    found = list(joining.join(cri.decode([(0, line * 1000)])))
    assert max(one.records for one in found if isinstance(one, joining.Entry)) <= 100


@as_root
def test_exports_of_layers_made_to_mislead(tmp_path: Path) -> None:
    docker = Disk(tmp_path / "disk")
    docker.container("web")
    upper, top, base = (
        docker.writable("web") / "diff",
        docker.overlay / hex_id("layer top") / "diff",
        docker.overlay / hex_id("layer base") / "diff",
    )
    for layer, name, redirect in (
        (upper, "a", b"/b"), (upper, "b", b"/a"), (top, "a", b"/b"), (top, "b", b"/a"), (base, "a", b"/a"),
        (upper, "self", b"/self/../self"), (upper, "out", b"/../../../etc"), (upper, "up", b"../../etc"),
        (upper, "long", b"/" + b"x/" * 200),
    ):  # fmt: skip
        (layer / name).mkdir()
        os.setxattr(layer / name, "trusted.overlay.redirect", redirect)
    (upper / "meta").write_bytes(b"")
    os.truncate(upper / "meta", 1 << 40)
    os.setxattr(upper / "meta", "trusted.overlay.metacopy", b"")
    for layer in (base, upper):
        (layer / "opaque").mkdir()
    (base / "opaque/x").touch()
    os.setxattr(upper / "opaque", "trusted.overlay.opaque", b"y")
    os.mknod(upper / "opaque/x", stat.S_IFCHR, 0)
    (base / "etc").symlink_to("/etc")
    (upper / "etc").mkdir()
    (upper / "etc/shadow").touch()
    for odd in (b".wh.a", b".wh..wh..opq", b"\x1b[2J\n\xc2\x9b", b"\xff"):
        os.mknod(os.path.join(os.fsencode(upper), odd))
    evidence = Evidence(tmp_path, docker)
    began = time.monotonic()
    assert evidence.tree("web", versions=True)["verdict"] == "done"
    assert evidence.oci("web")["verdict"] == "done"
    assert time.monotonic() - began < 5
    for name in ("tree.tar", "image.tar"):
        with tarfile.open(tmp_path / name) as tar:
            assert not [one.name for one in tar if one.name.startswith("/") or ".." in one.name.split("/")]
    lines = evidence.records()
    assert not [one for one in lines if one.get("path") == "/meta" and "sha256" in one], "no content, no digest"


def test_an_image_has_each_name_once(tmp_path: Path) -> None:
    docker = Disk(tmp_path / "disk")
    docker.container("web")
    (docker.writable("web") / "diff/.wh.a").write_text("one")
    (docker.writable("web") / "diff/%2Ewh.a").write_text("two")
    Evidence(tmp_path, docker).oci("web")
    with tarfile.open(tmp_path / "image.tar") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.startswith("blobs/") and member.isreg() else None
            data = file.read() if file is not None else b""
            if b"ustar" in data[:512]:
                with tarfile.open(fileobj=io.BytesIO(data)) as layer:
                    names = layer.getnames()
                assert len(names) == len(set(names))
