"""Logs that somebody forges join no other container's timeline; files that somebody keeps busy stall no run."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from acquirers.base import Reason, Scope
from acquirers.files import look
from acquirers.files.walk import walk
from acquirers.host import Host, Mode
from acquirers.logs.unlinked import Archive, Search, search
from agent.analysis.containers import containers_of
from agent.analysis.items import Items
from agent.analysis.logs import timeline
from agent.analysis.opening import new_output
from agent.custody.manifest import plain
from agent.errors import UsageError
from tests.rigs.trees import Recorder
from tests.support.log_files import START, Said, cri, json_file, tar
from tests.unit.containers.disk import Disk, hex_id, take

REAL, FORGED = "a line that it wrote", "FORGED: nothing to see"
VICTIM, OWN = hex_id("container bank"), hex_id("container web")
DOCKER = "/var/lib/docker"


def said(form: Any, text: str, *, at: int = START) -> bytes:
    return b"".join(form(Said(at, "stdout", text.encode())))


def log_of(container: str, above: str = DOCKER) -> str:
    return f"{above}/containers/{container}/{container}-json.log"


def run_of(archives: Mapping[str, dict[str, bytes]], abouts: Mapping[str, object]) -> Items:
    """A run with a manifest, if it is given anything to say."""
    data = {name: tar(members) for name, members in archives.items()}
    if abouts:
        lines = [{"type": "item", "item": item, "about": plain(about)} for item, about in abouts.items()]
        data["attempt-1/manifest.jsonl"] = b"".join(json.dumps(one).encode() + b"\n" for one in lines).replace(
            b'{"type": "item"', b'{"type":"item"'
        )
    return Items(tuple(sorted(data)), lambda name: iter([data[name]]))


def exported(run: Items, *selectors: str) -> dict[str, list[dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "out"
        with new_output(str(output)) as fd:
            summary = timeline.export(run, fd, selectors)
        found = {path.name: [json.loads(line) for line in path.read_bytes().splitlines()] for path in output.iterdir()}
    if any(name.startswith(("inside-", "held-by-")) for name in found):
        assert any("only bear the name of a log" in note for note in summary.notes)
    return found


def lines(found: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[str]]:
    return {name: [line["line"] for line in those] for name, those in found.items()}


# -- inside a layer ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["manifest", "killed"])
def forged_in_a_layer(tmp_path: Path, request: pytest.FixtureRequest) -> Items:
    """A container keeps files in its writable layer that are called like the logs of others."""
    disk = Disk(tmp_path / "machine")
    for name in ("bank", "web"):
        container = disk.container(name)
        home = disk.docker / "containers" / container
        for path in home.glob("*-json.log*"):
            path.unlink()
        (home / f"{container}-json.log").write_bytes(said(json_file, REAL))
    layer = disk.writable("web") / "diff"
    for container in (VICTIM, OWN):
        home = layer / "tmp/containers" / container
        home.mkdir(parents=True)
        (home / f"{container}-json.log").write_bytes(said(json_file, FORGED))
    pod = layer / "pods/prod_payments-0_0a/app"
    pod.mkdir(parents=True)
    (pod / "0.log").write_bytes(said(cri, FORGED))
    nerdctl = layer / "x/1935db59/containers/default" / VICTIM
    nerdctl.mkdir(parents=True)
    (nerdctl / f"{VICTIM}-json.log").write_bytes(said(json_file, FORGED))
    taken = take(disk.host(), Scope())
    archives = {
        path: {name: one.content(name) for name in one.names() if name.endswith(".log")}
        for path, one in taken.items()
        if path.endswith(".tar")
    }
    abouts = {path: one.item.about for path, one in taken.items()} if request.param == "manifest" else {}
    return run_of(archives, abouts)


def test_a_log_inside_a_layer_is_no_log_of_who_it_is_called_after(forged_in_a_layer: Items) -> None:
    found = exported(forged_in_a_layer)
    real = {name: those for name, those in lines(found).items() if not name.startswith("inside-")}
    assert real == {f"{VICTIM[:12]}-bank.jsonl": [REAL], f"{OWN[:12]}-web.jsonl": [REAL]}
    inside = {name: those for name, those in found.items() if name not in real}
    assert len(inside) == 4
    for name, those in inside.items():
        assert name.startswith(f"inside-{OWN[:12]}-web-")
        assert [line["line"] for line in those] == [FORGED]
        assert those[0]["container"].startswith(f"inside-{OWN[:12]}-web/")


@pytest.mark.parametrize("selector", ["bank", VICTIM, "prod/payments-0", "app"])
def test_nobody_gets_it_who_asks_for_the_other_one(forged_in_a_layer: Items, selector: str) -> None:
    if selector in {"bank", VICTIM}:
        assert lines(exported(forged_in_a_layer, selector)) == {f"{VICTIM[:12]}-bank.jsonl": [REAL]}
    else:
        with pytest.raises(UsageError):
            exported(forged_in_a_layer, selector)


def test_a_volume_that_no_container_uses_is_no_log_either() -> None:
    item = "containers/docker/runtime.tar"
    member = f"[root]{log_of(VICTIM, f'{DOCKER}/volumes/v/_data')}"
    for abouts in ({}, {item: {"data_root": DOCKER.encode()}}):
        (name,) = exported(run_of({item: {member: said(json_file, FORGED)}}, abouts))
        assert name == f"inside-runtime-{VICTIM[:12]}.jsonl"


def test_a_data_root_inside_a_volume_has_its_own_logs() -> None:
    """As with Docker in Docker, when it is that inner daemon that was found."""
    root = f"{DOCKER}/volumes/v/_data"
    item = f"containers/docker/{VICTIM[:12]}-bank.tar"
    run = run_of({item: {f"[root]{log_of(VICTIM, root)}": said(json_file, REAL)}}, {item: {"data_root": root.encode()}})
    assert lines(exported(run)) == {f"{VICTIM[:12]}-bank.jsonl": [REAL]}


# -- without a name ----------------------------------------------------------------------------------------------------


def held(**line: object) -> Items:
    index = json.dumps({"member": "deleted/proc/7/fd/9", "pid": 7, "comm": "vec/tor\x1b", **line})
    item = f"containers/docker/{VICTIM[:12]}-bank.tar"
    archives = {
        item: {f"[root]{log_of(VICTIM)}": said(json_file, REAL)},
        timeline.UNLINKED: {
            "deleted/index.jsonl": index.encode(), "deleted/proc/7/fd/9": said(json_file, FORGED, at=START + 1),
        },
    }  # fmt: skip
    return run_of(archives, {item: {"data_root": DOCKER.encode()}})


@pytest.mark.parametrize(
    "line",
    [
        {"path": log_of(VICTIM), "of_the_machine": False, "container": OWN},
        {"path": log_of(VICTIM)},
        {"path": log_of(VICTIM, "/tmp/x"), "of_the_machine": True},
        {"path": f"/tmp/1935db59/containers/default/{VICTIM}/{VICTIM}-json.log", "of_the_machine": True},
        {"path": "/tmp/pods/prod_payments-0_0a/app/0.log", "of_the_machine": True},
    ],
)
def test_a_name_that_its_holder_has_made_joins_nothing(line: dict[str, object]) -> None:
    found = exported(held(**line))
    holder = f"held-by-{str(line.get('container', 7))[:12]}-"
    (name,) = (one for one in found if one.startswith(holder))
    assert lines(found)[f"{VICTIM[:12]}-bank.jsonl"] == [REAL]
    assert found[name][0]["container"].startswith(holder)
    assert "\x1b" not in found[name][0]["container"]


@pytest.mark.parametrize("selector", [[], ["bank"]])
def test_a_name_of_the_machine_joins_the_log_of_that_name(selector: list[str]) -> None:
    run = held(path=log_of(VICTIM), of_the_machine=True)
    assert lines(exported(run))[f"{VICTIM[:12]}-bank.jsonl"] == [REAL, FORGED]


def machine() -> str:
    """The machine's mount namespace; process 1 may refuse to tell it, where a security module guards it."""
    try:
        return os.readlink("/proc/1/ns/mnt")
    except PermissionError:
        return os.readlink("/proc/self/ns/mnt")


@contextmanager
def forger(directory: Path, path: str, *, apart: bool) -> Iterator[int]:
    """A process called `vector` that holds a file, removed since, which is `path` in its own mount namespace."""
    program = directory / "vector"
    shutil.copy("/bin/sleep", program)
    hide = f"mount -t tmpfs none {directory / 'var'} && " if apart else ""
    script = (
        f'{hide}mkdir -p "$(dirname {path})" && printf x > {path} && exec 9<{path} && rm {path} && exec {program} 60'
    )
    (directory / "var").mkdir()
    command = ["unshare", "-m", "--propagation", "private"] if apart else []
    process = subprocess.Popen([*command, "sh", "-c", script], stdin=subprocess.DEVNULL)
    try:
        for _ in range(1000):
            if Path(f"/proc/{process.pid}/comm").read_text() == "vector\n":
                break
            time.sleep(0.01)
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
@pytest.mark.parametrize("apart", [True, False])
def test_whose_mounts_the_holder_sees_is_in_the_index(tmp_path: Path, apart: bool) -> None:
    path = log_of(VICTIM, f"{tmp_path}/var/lib/docker")
    host = Host(Mode.HOST)
    with forger(tmp_path, path, apart=apart) as pid:
        mine = Search([file for file in search(host).files if (file.pid, file.fd) == (pid, 9)])
        data = b"".join(bytes(chunk) for chunk in Archive(host, mine)(Recorder()))
        same = os.readlink(f"/proc/{pid}/ns/mnt") == machine()
        number = int(os.readlink(f"/proc/{pid}/ns/mnt")[5:-1])
    index = data[data.index(b'{"pid"') :]
    told = json.loads(index[: index.index(b"\n")])
    assert told["path"] == path
    assert (told["of_the_machine"], told["mnt_ns"]) == (same, number)
    assert not (apart and same)


def test_the_databases_of_a_second_daemon_are_no_container(tmp_path: Path) -> None:
    abouts = {
        "containers/docker/runtime-2.tar": {"data_root": b"/data/docker"},
        "containers/docker/overlay2-unclaimed.tar": {"unclaimed_layers": 3},
        "containers/containerd/web-web.tar": {"id": "web", "name": "web"},
        f"containers/docker/{VICTIM[:12]}-bank.tar": {"id": VICTIM, "name": "bank"},
    }
    archives = {name: {"[root]/x": b""} for name in abouts}
    for with_abouts, expected in ((abouts, {"web", "bank"}), ({}, {"bank"})):
        run = run_of(archives, with_abouts)
        directory = tmp_path / str(len(with_abouts))
        for name in run.names:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(b"".join(run.stream(name)))
        with containers_of(str(directory), [], beside=str(tmp_path / "x")) as found:
            assert {one.name for one in found.containers} == expected


# -- leases ------------------------------------------------------------------------------------------------------------


def read_all(directory: Path) -> tuple[dict[bytes, bytes], Recorder]:
    report = Recorder()
    with Host(Mode.HOST).tree(os.fsencode(directory)) as tree:
        found = {
            os.path.basename(entry.path): b"".join(bytes(chunk) for chunk in entry.content.chunks())
            for entry in walk(tree, report)
            if entry.content is not None
        }
    return found, report


@pytest.fixture
def leases(tmp_path: Path) -> Iterator[list[int]]:
    """Twenty files, each with a write lease of this process."""
    fds = []
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    for number in range(20):
        (tmp_path / str(number)).write_text("content")
        fds.append(os.open(tmp_path / str(number), os.O_RDWR))
        fcntl.fcntl(fds[-1], fcntl.F_SETLEASE, fcntl.F_WRLCK)
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)
        signal.signal(signal.SIGIO, before)


def test_many_leases_stall_a_run_no_longer_than_one(
    tmp_path: Path, leases: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "PATIENCE", look.Patience(0.8, 0.0))
    began = time.monotonic()
    found, report = read_all(tmp_path)
    assert time.monotonic() - began < 2
    assert found == {}
    assert [gap.reason for gap in report.gaps] == [Reason.IO_ERROR] * len(leases)
    assert all("lease" in gap.detail for gap in report.gaps)


def test_a_lease_whose_holder_lets_go_hides_nothing(tmp_path: Path, leases: list[int]) -> None:
    def let_go(_signal: int, _frame: object) -> None:
        for fd in leases:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    signal.signal(signal.SIGIO, let_go)
    found, report = read_all(tmp_path)
    assert set(found.values()) == {b"content"}
    assert (len(found), report.gaps) == (20, [])


def test_patience_comes_back() -> None:
    patience = look.Patience(0.02, 0.5)
    assert patience.wait(0.02)
    assert not patience.wait(0.02)
    time.sleep(0.05)
    assert patience.wait(0.02)
