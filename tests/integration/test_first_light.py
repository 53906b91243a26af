"""The main job on a real Docker host, by the command line: acquire, verify, open, stock tools, and nothing changed."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.rigs.docker import PrivateDocker, why_not
from tests.rigs.docker_scenes import build_everything
from tests.rigs.faithful import age_access_times, differences, survey
from tests.support.runs import ENVIRONMENT, agent_command, impound, keygen, only_run
from tests.support.traces import OPTIONS, changes, linked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.rigs.docker_scenes import Scene
    from tests.rigs.faithful import Node

pytestmark = [pytest.mark.docker, pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs")]

MERGED = frozenset({b"merged"})


@dataclass
class Host:
    """A machine with Docker, what it looked like before, and one run on it under strace."""

    docker: PrivateDocker
    scene: Scene
    before: dict[bytes, Node]
    after: dict[bytes, Node]
    to: Path
    key: Path
    result: dict[str, object]
    trace: str
    out: Path


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    directory = tmp_path_factory.mktemp("host")
    key, recipient = keygen(directory)
    with PrivateDocker(directory / "docker") as docker:
        scene = build_everything(docker)
        docker.pause("second")
        root = str(docker.data)
        age_access_times(root, survey(root, MERGED, deep=False))
        before = survey(root, MERGED, deep=False)
        to = directory / "ev"
        done = subprocess.run(
            ["strace", *OPTIONS, "-o", directory / "trace",
             *agent_command(), "acquire", "--case", "INC-42", "--to", to, "-r", recipient,
             "--skip", "memory"],
            capture_output=True, env=ENVIRONMENT, timeout=280, check=False,
        )  # fmt: skip
        after = survey(root, MERGED, deep=False)
        result = json.loads(done.stdout.splitlines()[-1])
        out = directory / "opened"
        assert impound("open", to, "-i", key, "-o", out)[0] == 0
        trace = (directory / "trace").read_text(errors="replace")
        yield Host(docker, scene, before, after, to, key, result, trace, out)
        docker.unpause("second")


def archive_of(host: Host, name: str) -> Path:
    return next(host.out.glob(f"containers/docker/{host.scene.ids[name][:12]}-*.tar"))


def test_the_run_is_whole_but_for_what_this_machine_refuses_even_to_root(host: Host) -> None:
    assert host.result["exit"] in {0, 1}
    records = [json.loads(line) for line in (host.out / "attempt-1/manifest.jsonl").read_text().splitlines()]
    mine = [one for one in records if one["type"] == "gap" and not str(one["item"]).startswith("snapshot/")]
    assert not [one for one in mine if str(host.docker.data) in str(one.get("where"))], mine
    code, verdict, _ = impound("verify", host.to, "-i", host.key, "--signer", str(host.result["signer"]))
    assert (code, verdict["verdict"], verdict["plaintext_checked"]) == (0, "intact", True)


def test_every_container_is_there_with_its_state(host: Host) -> None:
    records = [json.loads(line) for line in (host.out / "attempt-1/manifest.jsonl").read_text().splitlines()]
    states = {
        one["about"]["name"]: one["about"]["state"]
        for one in records
        if one["type"] == "item"
        and one["item"].startswith("containers/docker/")
        and one["about"].get("id") in host.scene.ids.values()
    }
    assert states == {
        "rich": "running", "second": "paused", "local-log": "running", "remote-log": "running",
        "ended": "exited", "never": "created",
    }  # fmt: skip


def test_stock_tools_give_what_open_gives(host: Host) -> None:
    run = only_run(host.to)
    checked = 0
    for sealed in run.rglob("*.zst.age"):
        plain = host.out / str(sealed.relative_to(run)).removesuffix(".zst.age")
        with subprocess.Popen(["age", "-d", "-i", host.key, sealed], stdout=subprocess.PIPE) as age:
            digest = subprocess.run(
                ["sh", "-c", "zstd -dc | sha256sum"], stdin=age.stdout, capture_output=True, check=True, timeout=120
            )
        mine = subprocess.run(["sha256sum", plain], capture_output=True, check=True, timeout=120)
        assert digest.stdout.split()[0] == mine.stdout.split()[0], sealed
        checked += 1
    assert checked > 15


def test_a_container_comes_back_bit_for_bit_through_gnu_tar(host: Host, tmp_path: Path) -> None:
    """Content, modes, owners, ns times, xattrs, holes, links, devices: as `tar` restores them, as the disk has them."""
    done = subprocess.run(
        ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-permissions",
         "--warning=no-unknown-keyword", "--warning=no-timestamp", "-C", tmp_path, "-xf", archive_of(host, "rich")],
        capture_output=True, timeout=200, check=False,
    )  # fmt: skip
    told = [line for line in done.stderr.splitlines() if b"File name too long" not in line]
    assert all(b"previous errors" in line for line in told), told
    upper = host.docker.upper_of("rich") / "diff"
    source = survey(str(upper))
    copy = survey(str(tmp_path / "[root]" / str(upper).lstrip("/")))
    # A socket has no place in a tar, and a name beyond PATH_MAX none in the tool: both are in the manifest.
    sockets = {path for path, node in source.items() if node.kind == stat.S_IFSOCK}
    deep = {path for path in source if len(path) > 3500}
    assert sockets
    found = differences({path: node for path, node in source.items() if path not in sockets | deep}, copy)
    found = [line for line in found if "was never there" not in line]
    assert not found, found[:10]
    assert len(copy) > 40


def test_extract_gives_the_content_that_tar_gives(host: Host, tmp_path: Path) -> None:
    code, _, error = impound(
        "open",
        host.to,
        "-i",
        host.key,
        "-o",
        tmp_path / "x",
        "--extract",
        "--only",
        f"*{archive_of(host, 'rich').name}",
    )
    assert code == 0, error
    upper = host.docker.upper_of("rich") / "diff"
    directory = tmp_path / "x/containers/docker" / archive_of(host, "rich").name.removesuffix(".tar")
    source = survey(str(upper))
    copy = survey(str(directory / "[root]" / str(upper).lstrip("/")))
    for path, node in source.items():
        if node.kind in {stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR}:
            assert path in copy, path
            mine = copy[path]
            assert (mine.kind, mine.digest, mine.target) == (node.kind, node.digest, node.target), path
            assert mine.stat.st_mtime_ns == node.stat.st_mtime_ns, path
            assert not mine.stat.st_mode & 0o7000 or node.kind == stat.S_IFLNK, path
        else:
            assert path not in copy


def test_the_manifest_tells_every_member_of_the_writable_layer(host: Host) -> None:
    upper = host.docker.upper_of("rich") / "diff"
    prefix = str(upper).encode()
    told: dict[bytes, dict[str, object]] = {}
    with open(host.out / "attempt-1/manifest.jsonl", encoding="utf-8") as lines:
        for line in lines:
            one = json.loads(line)
            if one["type"] == "member":
                path = base64.b64decode(one["path_b64"]) if "path_b64" in one else one["path"].encode()
                told[path] = one
    source = survey(str(upper), deep=False)
    for path, node in source.items():
        record = told[prefix + b"/" + path if path else prefix]
        assert int(str(record["mode"]), 8) == node.stat.st_mode & 0o7777
        assert (record["uid"], record["gid"]) == (node.stat.st_uid, node.stat.st_gid)
        assert (record["mtime_ns"], record["ctime_ns"]) == (node.stat.st_mtime_ns, node.stat.st_ctime_ns)
    shadow = next(one for path, one in told.items() if one.get("target") == "/etc/shadow")
    assert shadow["kind"] == "symlink"
    assert "sha256" not in shadow


def test_the_deleted_executable_that_still_runs_is_whole(host: Host) -> None:
    gone = next(host.out.glob("snapshot/executables/*busybox-gone*.bin"))
    with open("/bin/busybox", "rb") as file:
        assert gone.read_bytes() == file.read()


def test_no_time_of_any_file_moved(host: Host) -> None:
    """The daemon's own work aside: containers still write their logs, and dockerd its databases."""
    moved = {
        path: [one - other for one, other in zip(host.after[path].times, node.times, strict=True)]
        for path, node in host.before.items()
        if path in host.after and host.after[path].times != node.times
    }
    assert not {path: times for path, times in moved.items() if times[0] != 0}, "access times moved"
    assert not moved, list(moved.items())[:5]
    assert host.before.keys() == host.after.keys()


def test_no_file_was_opened_for_writing_but_the_destination(host: Host) -> None:
    assert not changes(host.trace, host.to)
    assert linked(host.trace) == {path.name for path in host.to.rglob("*") if path.is_file()}


def test_plan_lists_what_acquire_takes(host: Host) -> None:
    code, result, _ = impound("plan", "--container", "rich")
    assert (code, result["unavailable"]) == (0, [])
    assert os.listdir(host.to) == ["INC-42"]


@pytest.mark.parametrize("where", ["containers", "overlay2", "volumes/shared/_data", "image", "new"])
def test_a_destination_inside_docker_is_refused(host: Host, where: str) -> None:
    before = survey(str(host.docker.data), MERGED, deep=False).keys()
    target = host.docker.data / where
    recipient = impound("keygen", "-y", host.key)[1]["recipient"]
    code, _, error = impound("acquire", "--case", "C", "--to", target, "-r", str(recipient))
    assert code == 2
    assert "inside" in error
    assert survey(str(host.docker.data), MERGED, deep=False).keys() == before


@pytest.mark.parametrize("name", ["rich", "local-log"])
def test_a_destination_inside_a_container_is_refused_by_every_name(host: Host, name: str) -> None:
    recipient = str(impound("keygen", "-y", host.key)[1]["recipient"])
    pid = host.docker.pid_of(name)
    merged = host.docker.upper_of(name) / "merged"
    for place in (Path(f"/proc/{pid}/root/tmp/ev"), Path(f"/proc/{pid}/root/ev"), merged / "tmp/ev"):
        code, _, error = impound("acquire", "--case", "C", "--to", place, "-r", recipient)
        assert code == 2, error
        assert "choose a" in error
    assert not (merged / "tmp/ev").exists()


def test_one_container_by_id_and_name(host: Host, tmp_path: Path) -> None:
    recipient = str(impound("keygen", "-y", host.key)[1]["recipient"])
    for number, selector in enumerate(("ended", host.scene.ids["ended"][:12], host.scene.ids["ended"])):
        to = tmp_path / str(number)
        code, result, error = impound(
            "acquire", "--case", "C", "--to", to, "-r", recipient, "--container", selector, "--only", "containers",
            "--layers", "upper",
        )  # fmt: skip
        assert code == 0, (result, error)
        names = {path.name for path in only_run(to).glob("containers/docker/*.age")}
        assert f"{host.scene.ids['ended'][:12]}-ended.tar.zst.age" in names
        assert not [name for name in names if "ended" not in name and not name.startswith("runtime")]
        assert not list(only_run(to).glob("containers/docker/layers/*"))


AS_NOBODY = """
import os, sys
from agent.cli import main
import difflib
to = sys.argv.pop(1)
main(["acquire", "--to", to, *sys.argv[4:]])  # as root: imports what a stranger could not read
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(main(sys.argv[1:]))
"""


def test_somebody_who_is_not_root_takes_what_is_readable_and_the_rest_is_gaps(
    host: Host, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    recipient = str(impound("keygen", "-y", host.key)[1]["recipient"])
    to = tmp_path / "ev"
    to.mkdir()
    os.chown(to, 65534, 65534)
    for parent in to.parents[: to.parents.index(tmp_path_factory.getbasetemp()) + 2]:
        if parent.owner() == "root" and not parent.stat().st_mode & 0o1000:
            os.chmod(parent, 0o755)  # noqa: S103 - so that nobody reaches the destination
    command = ["acquire", "--to", str(to), "--case", "C", "-r", recipient, "--skip", "memory"]
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(tmp_path / "warm"), *command],
        capture_output=True, env=ENVIRONMENT, timeout=200, check=False,
    )  # fmt: skip
    result = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, result["verdict"]) == (1, "gaps"), done.stderr[-2000:]
    assert result["gap_reasons"]["denied"] >= 1
    assert impound("verify", to)[0] == 0
