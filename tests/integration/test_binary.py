"""The one file, as a user runs it: `scripts/build-binary -o .cache/binary/impound` makes it."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.docker import PrivateDocker, why_not
from tests.support.docker_disk import make_disk
from tests.support.quiet import quickest
from tests.support.runs import impound, keygen
from tests.support.traces import OPTIONS, changes, linked

BINARY = Path(__file__).parents[2] / ".cache/binary/impound"

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason="needs the binary: scripts/build-binary could not make it")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SCRATCH = """
set -e
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount -t tmpfs -o mode=1777 none "$1/ev"
mount -o remount,bind,ro "$1"
user=$2; shift 2
chroot $user "$0" /impound "$@" || echo "exit $?" >&2
"""


def run(*arguments: str | Path, **environment: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [BINARY, *arguments], env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )
    lines = done.stdout.splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else {}, done.stderr


def checks(result: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["state"] for check in result["checks"]}


@pytest.mark.parametrize("stage", ["memfd", pytest.param("tmpfs", marks=needs_root), "dir"])
def test_every_stage_loads_nothing_of_the_machine(stage: str, tmp_path: Path) -> None:
    sums = tmp_path / "SHA256SUMS"
    sums.write_text(f"{hashlib.sha256(BINARY.read_bytes()).hexdigest()}  impound\n")
    code, result, said = run("self-check", "--sums", sums, IMPOUND_STAGE=stage)
    assert (code, result["stage"]) == (0, stage), said
    assert set(checks(result).values()) == {"good"}
    sums.write_text(f"{'0' * 64}  impound\n")
    code, result, _ = run("self-check", "--sums", sums, IMPOUND_STAGE=stage)
    assert (code, checks(result)["file"]) == (1, "bad")


def test_what_the_environment_would_have_loaded_is_not(tmp_path: Path) -> None:
    """The libraries are the machine's own, and good: they are only not to be taken."""
    trap = tmp_path / "trap.py"
    trap.write_text("raise SystemExit('taken')")
    found = subprocess.run(["ldd", "/bin/ls"], capture_output=True, text=True, timeout=30).stdout
    library = next(word for word in found.split() if word.startswith("/") and "libc.so" in word)
    code, result, said = run(
        "self-check",
        LD_PRELOAD=library,
        LD_LIBRARY_PATH=str(Path(library).parent),
        PYTHONPATH=str(tmp_path),
        PYTHONSTARTUP=str(trap),
        OPENSSL_CONF=str(trap),
        GLIBC_TUNABLES="glibc.malloc.check=3",
    )
    assert code == 0, said
    assert checks(result)["loaded"] == "good"


@pytest.mark.parametrize("size", [14_000, 20_000_000, -1])
def test_a_cut_file_says_so(size: int, tmp_path: Path) -> None:
    cut = tmp_path / "impound"
    cut.write_bytes(BINARY.read_bytes()[:size])
    cut.chmod(0o755)
    done = subprocess.run([cut, "--version"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 70
    assert "damaged or cut" in done.stderr


@pytest.mark.parametrize("count", [12, 16, 20, 26])
def test_too_few_descriptors_are_one_line(count: int) -> None:
    command: list[str | Path] = ["sh", "-c", f'ulimit -n {count}; exec "$0" self-check', BINARY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode in {3, 70}
    assert len(done.stderr.splitlines()) == 1
    assert "Too many open files" in done.stderr or "error 24" in done.stderr


def test_a_stage_that_is_none_is_told() -> None:
    code, _, said = run("--version", IMPOUND_STAGE="disk")
    assert code == 70
    assert said == "impound: IMPOUND_STAGE names none of memfd, tmpfs, dir: disk\n"


@needs_root
@pytest.mark.parametrize("user", ["", "--userspec=65534:65534"])
def test_a_read_only_root_with_nothing_but_proc(tmp_path: Path, user: str) -> None:
    """The whole of a container that was made from scratch, and the memory of its processes."""
    key, recipient = keygen(tmp_path)
    root, kept = tmp_path / "root", tmp_path / "kept"
    for name in ("proc", "ev"):
        (root / name).mkdir(parents=True)
    os.link(BINARY, root / "impound") if os.stat(BINARY).st_dev == os.stat(root).st_dev else (
        root / "impound"
    ).write_bytes(BINARY.read_bytes())
    (root / "impound").chmod(0o755)
    asked = ["acquire", "--inside", "--case", "C-1", "--to", "/ev", "-r", recipient, "--skip", "memory.physical"]
    script = SCRATCH.replace('"$0"', '"$root"').replace("user=$2;", "root=$1 user=$2;")
    script += f'cp -a "$root/ev" {kept}\n'
    done = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "sh", "-c", script, "sh", root, user, *asked],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    result = json.loads(done.stdout.splitlines()[-1])
    # Somebody who is not root cannot read the shell's memory.
    assert result["verdict"] == ("gaps" if user else "complete"), done.stderr
    code, verified, said = impound("verify", kept, "-i", key)
    assert (code, verified["plaintext_checked"]) == (0, True), said
    assert sorted(path.name for path in root.iterdir()) == ["ev", "impound", "proc"]


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_in_a_container_of_docker_nothing_is_written_to_its_layer(tmp_path: Path) -> None:
    _, recipient = keygen(tmp_path)
    asked = ["/impound", "acquire", "--case", "C-1", "-r", recipient, "--skip", "memory.physical", "--to"]
    with PrivateDocker(tmp_path / "docker") as docker:
        docker.import_base()
        volume = ("--volume", f"{BINARY}:/impound:ro")
        docker.run("inside", "base:1", "sleep", "1000", options=volume)
        before = {path: os.lstat(path).st_mtime_ns for path in (docker.upper_of("inside") / "diff").rglob("*")}
        said = subprocess.run(
            ["docker", "-H", f"unix://{docker.socket}", "exec", "inside", *asked, "/tmp/ev"],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert said.returncode == 2, said.stderr
        assert "in the container's own filesystem" in said.stderr
        told = docker.docker("exec", "inside", *asked, "/dev/shm/ev")
        assert json.loads(told.splitlines()[-1])["verdict"] == "complete", told
        after = {path: os.lstat(path).st_mtime_ns for path in (docker.upper_of("inside") / "diff").rglob("*")}
        assert after == before


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_it_writes_to_the_destination_and_nowhere_else(tmp_path: Path) -> None:
    make_disk(tmp_path / "disk", containers=2, files=3)
    key, recipient = keygen(tmp_path)
    to = tmp_path / "ev"
    done = subprocess.run(
        ["strace", *OPTIONS, "-o", tmp_path / "trace", BINARY, "acquire", "--case", "C", "--to", to, "-r", recipient,
         "--root", tmp_path / "disk"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    trace = (tmp_path / "trace").read_text(errors="replace")
    assert not changes(trace, to)
    assert linked(trace) == {path.name for path in to.rglob("*") if path.is_file()}
    assert impound("verify", to, "-i", key)[0] == 0


@pytest.mark.parametrize("stage", ["memfd", pytest.param("tmpfs", marks=needs_root), "dir"])
def test_killed_it_leaves_nothing(tmp_path: Path, stage: str) -> None:
    """Neither where it lies in memory nor in a directory: what it made has no name."""
    make_disk(tmp_path / "disk", containers=1, files=2, size=30_000_000)
    _, recipient = keygen(tmp_path)
    places = [Path("/dev/shm"), Path("/run")]  # where the stage of a directory looks for one
    before = [set(os.listdir(place)) for place in places]
    mounts = Path("/proc/self/mountinfo").read_text()
    with subprocess.Popen(
        [BINARY, "acquire", "--case", "C", "--to", tmp_path / "ev", "-r", recipient, "--root", tmp_path / "disk",
         "--max-mbit", "8"],
        env={"IMPOUND_STAGE": stage}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 20
        while not list((tmp_path / "ev").rglob("progress/*")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert process.poll() is None
        process.kill()
    assert [set(os.listdir(place)) - was for place, was in zip(places, before, strict=True)] == [set()] * len(places)
    assert Path("/proc/self/mountinfo").read_text() == mounts


SIZE, START_S, FIRST_BYTE_S, RESIDENT_KIB = 25_000_000, 0.06, 0.4, 64 << 10
"""What the one file may cost: bytes for transport, seconds to `--version` and to the first stored byte, memory."""


def test_it_is_small_enough_for_transport() -> None:
    packer = zlib.compressobj(9, wbits=31)
    with BINARY.open("rb") as file:
        packed = sum(len(packer.compress(block)) for block in iter(lambda: file.read(1 << 20), b""))
    assert packed + len(packer.flush()) < SIZE


def test_it_starts_at_once() -> None:
    def start() -> float:
        began = time.monotonic()
        assert subprocess.run([BINARY, "--version"], capture_output=True, timeout=20).returncode == 0
        return time.monotonic() - began

    times = quickest(start, START_S, 20)
    assert min(times) < START_S, times


def test_the_first_byte_is_stored_soon(tmp_path: Path) -> None:
    make_disk(tmp_path / "disk", containers=1, files=1, size=1000)
    _, recipient = keygen(tmp_path)
    runs = itertools.count()

    def store() -> float:
        to = tmp_path / f"{next(runs)}"
        began = time.time()
        code, _, said = run("acquire", "--case", "C", "--to", to, "-r", recipient, "--root", tmp_path / "disk")
        assert code == 0, said
        (record,) = to.rglob("progress/000000.json")
        return record.stat().st_mtime - began

    times = quickest(store, FIRST_BYTE_S, 20)
    assert min(times) < FIRST_BYTE_S, times


def test_it_keeps_to_its_memory(tmp_path: Path) -> None:
    """Four times as much evidence as it may hold."""
    make_disk(tmp_path / "disk", containers=2, files=3, size=40_000_000)
    key, recipient = keygen(tmp_path)
    to = tmp_path / "ev"
    asked = ("acquire", "--case", "C", "--to", to, "-r", recipient, "--root", tmp_path / "disk", "--max-memory", "64")
    code, _, said = run(*asked)
    assert code == 0, said
    assert impound("open", to, "-i", key, "--output", tmp_path / "opened")[0] == 0
    lines = (tmp_path / "opened/attempt-1/manifest.jsonl").read_text().splitlines()
    took = next(record for line in lines if (record := json.loads(line))["type"] == "footprint")
    assert took["max_resident_kib"] <= RESIDENT_KIB, took
    assert took["read_bytes"] > 200_000_000


def test_it_stays_when_it_is_asked_to(tmp_path: Path) -> None:
    """What starts it again when it ends, as a DaemonSet does, would acquire the same again and again."""
    make_disk(tmp_path / "disk", containers=1, files=1, size=1000)
    _, recipient = keygen(tmp_path)
    asked = ("acquire", "--case", "C", "--to", tmp_path / "ev", "-r", recipient, "--root", tmp_path / "disk", "--stay")
    with subprocess.Popen([BINARY, *asked], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["verdict"] == "complete"
        time.sleep(0.5)
        assert process.poll() is None
        process.terminate()
        assert process.wait(timeout=10) == 0
    assert len(list((tmp_path / "ev").glob("*/*/*/receipt.json"))) == 1
