"""Graph roots that lie: every record that leads somewhere leads out, round in circles, or is a bomb.

In each case nothing is raised, nothing outside is read, it says what is wrong, and everything else that is there is
taken.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from acquirers.base import FlagKind, Gap, Reason, Scope, State
from acquirers.containers.storage import container_names
from tests.unit.containers.disk import SECRET, Taken, all_flags, all_gaps, hex_id, short
from tests.unit.containers.storage_disk import ROOT, StorageDisk, item_of, layer_item

ESCAPES = "\x1b[2J\n../../etc/\u202eshadow"


@pytest.fixture
def disk(tmp_path: Path) -> StorageDisk:
    made = StorageDisk(tmp_path / "disk")
    (made.root / "etc/shadow").write_bytes(SECRET)
    outside = tmp_path / "outside/diff"
    outside.mkdir(parents=True)
    (outside / "secret").write_bytes(SECRET)
    made.podmans("web")
    made.podmans("witness")
    return made


def check(disk: StorageDisk) -> tuple[dict[str, Taken], list[Gap]]:
    """Takes everything. The witness is whole, and no secret is anywhere."""
    assert disk.probe().state is State.AVAILABLE
    taken = disk.take()
    witness = taken[next(path for path in taken if hex_id("container witness")[:12] in path)]
    assert not witness.gaps
    assert witness.content(f"{ROOT}/overlay/{hex_id('writable witness')}/diff/content") == b"written by witness"
    assert not [path for path, one in taken.items() if SECRET in one.data]
    container_names(disk.host())
    return taken, all_gaps(taken)


def web(taken: dict[str, Taken]) -> Taken:
    return next(one for path, one in taken.items() if hex_id("container web")[:12] in path)


def sparse(path: Path, size: int = 1 << 30) -> None:
    with path.open("wb") as file:
        file.truncate(size)


@pytest.mark.parametrize(
    "lower",
    ["l/../../../../etc", "../../../etc", "/etc", "l/" + "A" * 26, "l/" + short("x") + "/../../..", ":" * 1000, "\0"],
)
def test_a_lower_that_leads_out(disk: StorageDisk, lower: str) -> None:
    (disk.writable("web") / "lower").write_text(lower)
    disk.close()
    taken, gaps = check(disk)
    assert not gaps, "layers.json knows all layers"
    assert any("all image layers are known from layers.json" in flag.detail for flag in web(taken).flags)
    assert layer_item("top") in taken


@pytest.mark.parametrize("target", ["/etc", "../../../../../etc", "../../../../../../outside/diff", "../x/diff", "l"])
def test_short_links_that_lead_out(disk: StorageDisk, target: str) -> None:
    link = disk.files / "l" / short(hex_id("layer top"))
    link.unlink()
    link.symlink_to(target)
    disk.close()
    taken, gaps = check(disk)
    assert not gaps
    assert layer_item("top") in taken
    assert any("leads to no layer" in flag.detail for flag in all_flags(taken))


def test_both_records_that_lead_out(disk: StorageDisk) -> None:
    (disk.writable("web") / "lower").write_text("../../../etc")
    disk.lists["layers"] = [one for one in disk.lists["layers"] if one["id"] != hex_id("writable web")]
    disk.close()
    taken, gaps = check(disk)
    assert {gap.reason for gap in gaps} == {Reason.MALFORMED}
    assert any(name.endswith(f"{hex_id('writable web')}/diff/content") for name in web(taken).names())


@pytest.mark.parametrize("value", ["../../../../etc", "/etc", ESCAPES, "", 17, None, ["x"], {"a": 1}, "a" * 64 + "\n"])
def test_layers_of_containers_that_are_no_ids(disk: StorageDisk, value: object) -> None:
    disk.lists["containers"][0]["layer"] = value
    disk.close()
    taken, _ = check(disk)
    assert any("no writable layer was found" in gap.detail for gap in web(taken).gaps)
    unclaimed = [one for path, one in taken.items() if path.endswith("-unclaimed.tar")]
    assert any(b"written by web" in one.data for one in unclaimed), "what nobody claims is taken all the same"


def test_circles(disk: StorageDisk) -> None:
    by_id = {one["id"]: one for one in disk.lists["layers"]}
    by_id[hex_id("layer base")]["parent"] = hex_id("layer top")
    for layer in ("top", "base"):
        other = {"top": "base", "base": "top"}[layer]
        (disk.files / hex_id(f"layer {layer}") / "lower").write_text("l/" + short(hex_id(f"layer {other}")))
    disk.close()
    taken, _ = check_circles(disk)
    assert layer_item("top") in taken


def check_circles(disk: StorageDisk) -> tuple[dict[str, Taken], list[Gap]]:
    """Here the witness stands on the circle as well."""
    taken = disk.take()
    assert any("leads back to itself" in flag.detail for flag in all_flags(taken))
    return taken, all_gaps(taken)


def test_a_layer_without_end(disk: StorageDisk) -> None:
    parent = ""
    for number in range(1000):
        record = {"id": hex_id(f"chain {number}"), "diff-digest": "sha256:" + hex_id("d")}
        disk.lists["layers"].append(record | ({"parent": parent} if parent else {}))
        parent = record["id"]
    next(one for one in disk.lists["layers"] if one["id"] == hex_id("writable web"))["parent"] = parent
    disk.close()
    taken, _ = check(disk)
    assert any("more than 500 layers" in flag.detail for flag in web(taken).flags)


@pytest.mark.parametrize("name", ["containers", "layers", "images"])
@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[", b"[{]", b"null", b"[1, 2, [3]]", b'[{"id": 5}, {"id": "../x"}, "x"]', b"[" * 100_000,
     b'[{"id":' + b"[" * 100_000, b"\xff\xfe", b'[{"id":"\\ud800"}]', b'{"a":' * 1000],
)  # fmt: skip
def test_lists_that_are_none(disk: StorageDisk, name: str, content: bytes) -> None:
    disk.close()
    (disk.graph / f"overlay-{name}/{name}.json").write_bytes(content)
    taken, gaps = check_list(disk)
    if content not in {b"", b"null", b"[1, 2, [3]]"}:
        assert gaps
    if name == "layers":
        assert layer_item("top") in taken, "the driver's own links lead there"
    assert all(hex_id("container web")[:12] in "".join(taken) for _ in "x")


def check_list(disk: StorageDisk) -> tuple[dict[str, Taken], list[Gap]]:
    """A damaged list may cost a record, and never what lies on the disk."""
    taken = disk.take()
    data = b"".join(one.data for one in taken.values())
    assert b"written by web" in data
    assert b"written by witness" in data
    assert SECRET not in data
    return taken, all_gaps(taken)


def test_names_with_escapes(disk: StorageDisk) -> None:
    disk.podmans(ESCAPES)
    disk.close()
    taken, gaps = check(disk)
    assert not gaps
    (path,) = [path for path in taken if hex_id("container " + ESCAPES)[:12] in path]
    assert set(path) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/")
    assert taken[path].item.about["name"] == ESCAPES.encode()


def test_surrogates(disk: StorageDisk) -> None:
    """Half of a pair is no character, and what cannot be decoded costs only itself."""
    text = json.dumps(disk.lists["containers"]).replace('"names": ["web"]', '"names": ["\\ud800web"]')
    disk.close()
    (disk.containers / "containers.json").write_text(text)
    check(disk)


@pytest.mark.parametrize("name", ["containers", "layers", "images"])
def test_a_list_of_a_gibibyte(disk: StorageDisk, name: str) -> None:
    disk.close()
    path = disk.graph / f"overlay-{name}/{name}.json"
    whole = path.read_bytes()
    with path.open("wb") as file:
        file.write(whole.rstrip()[:-1] + b", ")
        file.truncate(1 << 30)
    survey = limited(disk)
    assert survey["gaps"] == [["limit", f"overlay-{name}/{name}.json"]]
    assert survey["containers"] == 2, "those at its beginning are found"


def test_one_record_of_a_gibibyte(disk: StorageDisk) -> None:
    disk.close()
    path = disk.containers / "containers.json"
    with path.open("wb") as file:
        file.write(b'[{"id": "')
        file.truncate(1 << 30)
    survey = limited(disk)
    assert survey["containers"] == 2, "their directories tell of them"


@pytest.mark.parametrize("name", ["db.sql", "libpod/bolt_state.db"])
def test_databases_of_a_gibibyte(disk: StorageDisk, name: str) -> None:
    (disk.graph / "libpod").mkdir()
    disk.podman.clear()
    sparse(disk.close().graph / name)
    assert limited(disk)["containers"] == 2


@pytest.mark.parametrize("name", ["config.json", "state.json"])
def test_records_of_a_gibibyte(disk: StorageDisk, name: str) -> None:
    sparse(disk.close().containers / hex_id("container web") / "userdata" / name)
    assert limited(disk)["containers"] == 2


def limited(disk: StorageDisk) -> dict[str, object]:
    """Looks at everything and reads no item, in a process that has little memory."""
    script = (
        "import json, os, re, sys\n"
        "from acquirers.base import Scope\n"
        "from acquirers.containers.storage import Podman\n"
        "from acquirers.host import Host, Mode\n"
        "host = Host(Mode.DEAD, os.fsencode(sys.argv[1]))\n"
        "items = list(Podman().items(host, Scope()))\n"
        "class Report:\n"
        "    def __init__(self): self.gaps = []\n"
        "    def gap(self, gap): self.gaps.append(gap)\n"
        "    def flag(self, flag): pass\n"
        "    def member(self, member): pass\n"
        "report = Report()\n"
        "for chunk in items[0].read(report):\n"
        "    break\n"
        "names = [[str(gap.reason), b'/'.join(gap.where.split(b'/')[-2:]).decode()] for gap in report.gaps]\n"
        "peak = int(re.search(r'VmHWM:\\s+([0-9]+)', open('/proc/self/status').read())[1]) // 1024\n"
        "containers = sum('state' in item.about for item in items)\n"
        "print(json.dumps({'gaps': names, 'containers': containers, 'peak': peak}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(disk.root)], capture_output=True, text=True, timeout=60, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, object] = json.loads(done.stdout)
    peak = found["peak"]
    assert isinstance(peak, int)
    assert peak < 128
    return found


def replaced_by(kind: str, path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to("/etc/shadow")
    elif kind == "link to a directory":
        path.symlink_to("/etc")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", ["link", "link to a directory", "fifo", "directory"])
@pytest.mark.parametrize(
    "name",
    ["overlay-containers/containers.json", "overlay-layers/layers.json", "overlay-images/images.json", "db.sql",
     "overlay-images", "overlay-layers", "volumes", "libpod", "db.sql-wal"],
)  # fmt: skip
def test_other_things_in_the_place_of_records(disk: StorageDisk, name: str, kind: str) -> None:
    disk.close()
    (disk.graph / "volumes").mkdir()
    (disk.graph / "libpod").mkdir()
    replaced_by(kind, disk.graph / name)
    taken, _ = check_list(disk)
    assert [path for path in taken if hex_id("container web")[:12] in path]


@pytest.mark.parametrize("kind", ["link", "link to a directory", "fifo", "directory"])
@pytest.mark.parametrize(
    "name", ["", "userdata", "userdata/config.json", "userdata/ctr.log", "userdata/state.json", "userdata/shm"]
)
def test_other_things_in_a_container(disk: StorageDisk, name: str, kind: str) -> None:
    disk.close()
    replaced_by(kind, disk.containers / hex_id("container web") / name)
    check(disk)


@pytest.mark.parametrize("kind", ["link", "link to a directory", "fifo"])
@pytest.mark.parametrize("name", ["", "diff", "lower", "link", "work"])
def test_other_things_in_a_layer(disk: StorageDisk, name: str, kind: str) -> None:
    replaced_by(kind, disk.writable("web") / name)
    disk.close()
    taken, _ = check(disk)
    if name in {"", "diff"}:
        assert web(taken).gaps


def test_a_graph_root_that_is_everything(disk: StorageDisk) -> None:
    """Somebody configures `/` and gives it the shape of a graph root: the others do not disappear."""
    disk.close()
    (disk.root / "etc/containers").mkdir()
    (disk.root / "etc/containers/storage.conf").write_text('[storage]\ngraphroot = "/"\n')
    (disk.root / "overlay-layers").mkdir()
    check(disk)


@pytest.mark.parametrize(
    "text",
    ["graphroot", "[storage]\ngraphroot = 5", '[storage]\ngraphroot = "../x"', '[storage]\ngraphroot = "\\u0000"',
     "[storage]\nx = " + "[" * 5000, 'storage = "x"', "a." * 5000 + "b = 1", "x" * 100_000, "\0",
     '[storage.options]\nadditionalimagestores = ["/etc", "relative", 7]'],
)  # fmt: skip
def test_configurations(disk: StorageDisk, text: str) -> None:
    disk.close()
    (disk.root / "etc/containers").mkdir()
    (disk.root / "etc/containers/storage.conf").write_text(text)
    check(disk)


# -- the database -----------------------------------------------------------------------------------------------------


def tampered(disk: StorageDisk, *statements: str) -> None:
    connection = sqlite3.connect(disk.close().graph / "db.sql")
    connection.execute("PRAGMA writable_schema = ON")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


FOREVER = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x, x, x, x FROM c"

DISGUISED = f"CREATE VIEW ContainerConfig(ID, Name, PodID, JSON) AS {FOREVER}"


@pytest.mark.parametrize(
    "statements",
    [
        ("DROP TABLE ContainerConfig", f"CREATE VIEW ContainerConfig(ID, Name, PodID, JSON) AS {FOREVER}"),
        ("DROP TABLE ContainerState", f"CREATE VIEW ContainerState(ID, State, ExitCode, JSON) AS {FOREVER}"),
        ("UPDATE sqlite_master SET sql = 'CREATE TABLE ContainerConfig(' || hex(zeroblob(100000)) || ')'",),
        ("UPDATE sqlite_master SET sql = 'CREATE VIRTUAL TABLE PodConfig USING fts5(x)' WHERE name = 'PodConfig'",),
        ("UPDATE sqlite_master SET rootpage = 1",),
        ("UPDATE sqlite_master SET rootpage = 999999999",),
        ("DROP TABLE ContainerConfig",),
        ("DROP TABLE DBConfig", "DROP TABLE PodConfig", "DROP TABLE VolumeConfig"),
        ("ALTER TABLE ContainerConfig RENAME COLUMN JSON TO Other",),
        ("UPDATE ContainerConfig SET JSON = zeroblob(6000000)",),
        ("UPDATE ContainerConfig SET JSON = replace(hex(zeroblob(1000000)), '00', '[')",),
        ("UPDATE ContainerConfig SET ID = '../../' || Name", "UPDATE ContainerState SET JSON = 7"),
        (
            f"UPDATE sqlite_master SET sql = '{DISGUISED}' WHERE name = 'ContainerConfig'",  # noqa: S608
        ),
        (
            "DROP TABLE ContainerConfig",
            "CREATE TABLE ContainerConfig(ID TEXT, Name TEXT, PodID TEXT, JSON TEXT AS (hex(zeroblob(300000000))))",
            "INSERT INTO ContainerConfig(ID) VALUES ('x')",
        ),
        ("DROP TABLE ContainerState", f"CREATE VIEW x AS {FOREVER}", "CREATE TABLE ContainerState(ID TEXT, JSON TEXT)"),
        ("UPDATE DBConfig SET RunRoot = '/etc', TmpDir = '/', VolumeDir = '/etc'",),
    ],
)
def test_schemas_made_for_mischief(disk: StorageDisk, statements: tuple[str, ...]) -> None:
    tampered(disk, *statements)
    start = time.monotonic()
    check(disk)
    assert time.monotonic() - start < 15


def test_a_row_that_is_too_large_costs_no_other(disk: StorageDisk) -> None:
    tampered(disk, "UPDATE ContainerConfig SET JSON = zeroblob(6000000) WHERE Name = 'web'")
    taken, _ = check(disk)
    assert taken[item_of("witness")].item.about["state"] == "exited"
    assert any("the database of podman" in flag.detail for flag in all_flags(taken))


@pytest.mark.parametrize("damage", [0, 16, 18, 28, 100, 4096, 8192])
def test_a_damaged_database(disk: StorageDisk, damage: int) -> None:
    path = disk.close().graph / "db.sql"
    data = bytearray(path.read_bytes())
    data[damage : damage + 64] = b"\xff" * 64
    path.write_bytes(data)
    check(disk)


def test_a_database_with_a_write_ahead_log(disk: StorageDisk) -> None:
    path = disk.close().graph / "db.sql"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("DELETE FROM ContainerState")
    connection.commit()
    files = {one.name: one.read_bytes() for one in disk.graph.glob("db.sql*")}
    assert files["db.sql-wal"]
    taken, gaps = check(disk)
    connection.close()
    assert not gaps
    assert taken[item_of("web")].item.about["state"] == "exited", "as the file itself has it"
    runtime = taken["containers/podman/runtime.tar"]
    assert runtime.content(f"{ROOT}/db.sql-wal") == files["db.sql-wal"]
    assert any("write-ahead log" in flag.detail for flag in runtime.flags)


def test_nothing_is_written_beside_the_database(disk: StorageDisk) -> None:
    disk.close()
    before = sorted((path, path.lstat().st_mtime_ns) for path in disk.root.rglob("*"))
    disk.take()
    assert sorted((path, path.lstat().st_mtime_ns) for path in disk.root.rglob("*")) == before


def test_two_databases(disk: StorageDisk) -> None:
    disk.close()
    (disk.graph / "libpod").mkdir()
    shutil.copy(disk.graph / "db.sql", disk.graph / "libpod/db.sql")
    taken, _ = check(disk)
    second = b"/var/lib/containers/storage/libpod/db.sql"
    assert (FlagKind.FINDING, second) in {(flag.kind, flag.where) for flag in all_flags(taken)}
    assert f"{ROOT}/libpod/db.sql" in taken["containers/podman/runtime.tar"].names()


# -- many -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda number: hex_id(str(number)), lambda _: hex_id("container web")])
def test_more_containers_than_there_is_room_for(disk: StorageDisk, make: Callable[[int], str]) -> None:
    disk.lists["containers"] += [{"id": make(number), "names": ["x" * 200] * 8} for number in range(12_000)]
    disk.close()
    found = disk.probe(Scope(containers=("witness",)))
    assert found.matched == {"witness"}
    assert len(found.subjects) < 12_000
