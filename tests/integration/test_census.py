"""The census of a real machine: a private dockerd, containers of it, and somebody who hides one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.docker import PrivateDocker, why_not
from tests.support.runs import ENVIRONMENT, agent_command, impound, keygen

pytestmark = [pytest.mark.skipif(bool(why_not()), reason=why_not()), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateDocker]:
    with PrivateDocker(tmp_path_factory.mktemp("docker")) as docker:
        docker.import_base("base:1")
        yield docker


def all_rows(tmp_path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows; the result of the run."""
    key, recipient = keygen(tmp_path)
    command = [*agent_command(), "acquire", "--case", "C", "--to", str(tmp_path / "ev"), "-r", recipient]
    command += ["--only", "containers.census", "--json"]
    done = subprocess.run(command, capture_output=True, timeout=120, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr.decode()
    code, _, error = impound("open", str(tmp_path / "ev"), "-i", str(key), "--output", str(tmp_path / "opened"))
    assert code == 0, error
    lines = [json.loads(line) for line in (tmp_path / "opened/containers/census.jsonl").read_text().splitlines()]
    assert (lines[0]["type"], lines[-1]["type"]) == ("census", "end")
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["gaps"] == 0, result
    return lines[1:-1], result


def census(tmp_path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Rows by container id; the result of the run."""
    lines, result = all_rows(tmp_path)
    rows = {line["id"]: line for line in lines if line["type"] == "container"}
    rows |= {f"in {line['inside']}": line for line in lines if line["type"] == "nested"}
    return rows, result


def test_containers_are_seen_by_all_three_views(docker: PrivateDocker, tmp_path: Path) -> None:
    running = docker.run("running", "base:1", "sleep", "1000")
    docker.run("over", "base:1", "true")
    docker.wait("over")
    rows, _ = census(tmp_path)
    row = rows[running]
    assert (row["name"], row["views"], row["findings"]) == ("running", ["processes", "records", "disk"], [])
    assert docker.pid_of("running") in row["processes"]["pids"]
    over = rows[docker.inspect("over")["Id"]]
    assert (over["views"], over["findings"]) == (["records", "disk"], [])


def test_a_container_whose_record_was_taken_away_is_a_finding(docker: PrivateDocker, tmp_path: Path) -> None:
    hidden = docker.run("hidden", "base:1", "sleep", "1000")
    records = docker.data / "containers" / hidden
    mount = docker.data / "image/overlay2/layerdb/mounts" / hidden
    away = docker.data / "containers/away"
    os.rename(records, away)
    os.rename(mount, docker.data / "image/overlay2/layerdb/mounts/away")
    try:
        rows, _ = census(tmp_path)
    finally:
        os.rename(away, records)
        os.rename(docker.data / "image/overlay2/layerdb/mounts/away", mount)
    row = next(row for row in rows.values() if docker.pid_of("hidden") in row["processes"]["pids"])
    assert row["findings"], row
    assert "records" not in row["views"]


def test_somebody_who_entered_from_outside_is_a_finding(docker: PrivateDocker, tmp_path: Path) -> None:
    entered = docker.run("entered", "base:1", "sleep", "1000")
    command = ["nsenter", "--target", str(docker.pid_of("entered")), "--mount", "/bin/sleep", "1000"]
    with subprocess.Popen(command) as intruder:
        try:
            rows, _ = census(tmp_path)
        finally:
            intruder.kill()
    row = rows[entered]
    assert any("entered it from outside" in one for one in row["findings"]), json.dumps(row)
    assert intruder.pid in row["processes"]["pids"]


@contextlib.contextmanager
def intruder(*command: str | Path) -> Iterator[int]:
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            time.sleep(0.5)
            assert process.poll() is None, "it has ended"
            yield process.pid
        finally:
            process.kill()


def group_of(pid: int) -> Path:
    """The control group of a process in the hierarchy `pids`, or the only one."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        base = Path("/sys/fs/cgroup") / controllers
        if controllers in {"pids", ""} and len(path) > 60 and (base / path.lstrip("/")).is_dir():
            return base / path.lstrip("/")
    pytest.skip("its control group is not to be seen")


def test_whoever_bears_the_name_of_another_container_stays_who_it_is(docker: PrivateDocker, tmp_path: Path) -> None:
    """A control group below its own, with the id of a victim: all of that can be done inside of a container."""
    victim, attacker = (docker.run(name, "base:1", "sleep", "1000") for name in ("victim", "attacker"))
    pid = docker.pid_of("attacker")
    forged = group_of(pid) / victim
    forged.mkdir()
    try:
        (forged / "cgroup.procs").write_text(str(pid))
        rows, _ = census(tmp_path)
        plan = subprocess.run(
            [*agent_command(), "plan", "--only", "live.files", "--container", "victim", "--json"],
            capture_output=True,
            timeout=60,
            env=ENVIRONMENT,
        )
        told = json.loads(plan.stdout.splitlines()[0])
    finally:
        (forged.parent / "cgroup.procs").write_text(str(pid))
        forged.rmdir()
        docker.docker("kill", "victim", "attacker")
    assert rows[attacker]["processes"]["pids"] == [pid]
    assert pid not in rows[victim]["processes"]["pids"]
    assert any("bears its id" in one for one in rows[victim]["findings"])
    chosen = {row["id"] for row in told["subjects"] if row.get("selected", True)}
    assert chosen == {victim}, told


def test_a_host_process_that_is_chrooted_into_it_does_not_make_it_run(docker: PrivateDocker, tmp_path: Path) -> None:
    docker.run("looked-into", "base:1", "sleep", "1000")
    merged = docker.upper_of("looked-into") / "merged"
    with intruder("chroot", merged, "/bin/sleep", "1000") as pid:
        rows, _ = census(tmp_path)
    row = next(row for row in rows.values() if row["name"] == "looked-into")
    assert any("chroot" in one and str(pid) in one for one in row["findings"]), row["findings"]
    assert not [one for one in rows.values() if pid in one["processes"]["pids"]]


def test_a_root_without_overlay_and_a_thread_that_went_elsewhere_are_told(
    docker: PrivateDocker, tmp_path: Path
) -> None:
    docker.run("any", "base:1", "sleep", "1000")
    root = tmp_path / "root"
    (root / "old").mkdir(parents=True)
    shutil.copy(str(shutil.which("busybox")), root / "busybox")
    script = 'mount --bind "$0" "$0"; cd "$0"; pivot_root . old; exec /busybox sleep 1000'
    thread = (
        "import ctypes, os, threading, time\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def go():\n"
        "    assert not libc.unshare(0x00020000 | 0x200)\n"
        f"    assert not libc.mount(b'none', b'{root}', b'tmpfs', 0, None)\n"
        f"    os.mkdir(b'{root}/old')\n"
        f"    assert not libc.syscall(155, b'{root}', b'{root}/old')\n"
        "    time.sleep(1000)\n"
        "threading.Thread(target=go, daemon=True).start()\n"
        "time.sleep(1000)\n"
    )
    with (
        intruder("unshare", "--mount", "sh", "-c", script, root) as hidden,
        intruder(sys.executable, "-c", thread) as threaded,
    ):
        rows, _ = all_rows(tmp_path)
    found = {pid: row for row in rows for pid in row["processes"]["pids"] if not row["id"]}
    for pid in (hidden, threaded):
        assert any("a root of their own" in one for one in found[pid]["findings"]), found


def test_a_path_of_the_host_is_told_apart(docker: PrivateDocker) -> None:
    container = docker.run("where", "base:1", "sleep", "1000")
    upper = docker.upper_of("where") / "diff/tmp/found"
    code, result, said = impound("plan", "--where", str(upper))
    assert (code, result["found"]) == (0, 1)
    assert container[:12] in said
    assert "written by it: /tmp/found" in said
    code, result, said = impound("plan", "--where", "/etc/passwd")
    assert (code, result["found"]) == (0, 0)
    assert "no container" in said
    assert impound("plan", "--where", "relative")[0] == 2


def test_a_path_that_a_container_sees_is_its_path(docker: PrivateDocker) -> None:
    container = docker.run("sees", "base:1", "sh", "-c", "cd /srv; exec sleep 1000", options=("--volume", "vol:/data"))
    layer, pid = docker.upper_of("sees"), docker.pid_of("sees")
    for path, words in (
        (f"{layer}/merged/etc/passwd", "what it sees: /etc/passwd"),
        (f"/proc/{pid}/root/etc/passwd", "what it sees: /etc/passwd"),
        (f"/proc/{pid}/root", "what it sees: itself"),
        (f"/proc/{pid}/cwd/x", "what it sees: /srv/x"),
        (f"/proc/{pid}/root/data/x", "its volume vol: /_data/x"),
        (f"{docker.data}/volumes/vol/_data/x", "its volume vol: /_data/x"),
        (f"{layer}/link", "beside what was written by it: /link"),
        (f"{docker.data}/containers/{container}/config.v2.json", "its records: /config.v2.json"),
    ):
        code, result, said = impound("plan", "--where", path)
        assert (code, result["found"]) == (0, 1), (path, said)
        assert container[:12] in said, path
        assert words in said, (path, said)
    docker.docker("kill", "sees")


def test_a_path_of_no_container_says_why(docker: PrivateDocker) -> None:
    said = impound("plan", "--where", f"{docker.data}/network/files")[2]
    assert "the data root of docker, and in no layer" in said
    assert "nor is it there" in impound("plan", "--where", "/nowhere/at/all")[2]


def test_a_runtime_inside_of_a_container_is_named(docker: PrivateDocker, tmp_path: Path) -> None:
    container = docker.run("nest", "base:1", "sh", "-c", "mkdir -p /var/lib/docker/image/overlay2/layerdb; sleep 1000")
    place = docker.upper_of("nest") / "diff/var/lib/docker"
    for _ in range(100):
        if (place / "image/overlay2/layerdb").exists():
            break
        time.sleep(0.05)
    rows, _ = census(tmp_path)
    assert (rows[f"in {container}"]["runtime"], rows[f"in {container}"]["path"]) == ("docker", str(place))
