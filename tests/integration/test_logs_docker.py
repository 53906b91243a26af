"""Logs of real containers of a real dockerd, acquired and decoded: what the containers wrote, and in which records."""

from __future__ import annotations

import base64
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from acquirers.base import Item, Scope
from acquirers.containers.docker import Docker
from acquirers.host import Host, Mode
from acquirers.logs import RuntimeLogs
from agent.cli.log_exports import export_logs
from tests.rigs.docker import PrivateDocker, why_not
from tests.rigs.trees import Recorder

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs"),
]

# More than two parts of 16 KiB in one line, in the middle of rotation; both streams; an escape; bytes that are no text.
CHATTER = (
    'i=0; while [ $i -lt 900 ]; do echo "line $i of a log that is rotated"; i=$((i+1));'
    " if [ $((i % 300)) = 0 ]; then head -c 40000 /dev/zero | tr '\\0' $((i / 300)); echo; fi;"
    ' if [ $((i % 100)) = 0 ]; then echo "error $i" >&2; fi; done;'
    " printf 'escape \\033[31m and \\377\\376 bytes\\n'; printf 'no newline at the end';"
)


def wrote() -> tuple[bytes, bytes]:
    """What `CHATTER` writes to its two streams."""
    out, err = [], []
    for number in range(1, 901):
        out.append(b"line %d of a log that is rotated\n" % (number - 1))
        if number % 300 == 0:
            out.append(b"%d" % (number // 300) * 40_000 + b"\n")
        if number % 100 == 0:
            err.append(b"error %d\n" % number)
    out += [b"escape \x1b[31m and \xff\xfe bytes\n", b"no newline at the end"]
    return b"".join(out), b"".join(err)


@dataclass
class Scene:
    directory: Path
    ids: dict[str, str]
    told: tuple[bytes, bytes]
    """What the daemon says that the container `json` wrote."""
    result: dict[str, object]

    def lines(self, name: str) -> list[dict[str, Any]]:
        path = self.directory / "timelines" / f"{self.ids[name][:12]}-{name}.jsonl"
        return [json.loads(line) for line in path.read_bytes().splitlines()]


def write(directory: Path, items: Iterator[Item], wanted: set[str] | None = None) -> list[Recorder]:
    reports = []
    for item in items:
        if wanted is not None and item.path not in wanted:
            continue
        path = directory / item.path
        path.parent.mkdir(parents=True, exist_ok=True)
        reports.append(Recorder())
        with path.open("wb") as file:
            for chunk in item.read(reports[-1]):
                file.write(chunk)
    return reports


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    # Nobody there: the driver would be told, and what it cannot send is not cached either.
    with (
        socket.socket(type=socket.SOCK_DGRAM) as sink,
        PrivateDocker(tmp_path_factory.mktemp("docker") / "rig") as docker,
    ):
        sink.bind(("127.0.0.1", 0))
        docker.import_base()
        options = {
            "json": "json-file max-size=20k max-file=20 compress=true tag=web",
            "local": "local max-size=20k max-file=20",
            "cached": f"gelf gelf-address=udp://127.0.0.1:{sink.getsockname()[1]}",
            "removed": "json-file",
        }
        ids = {}
        for name, words in options.items():
            driver, *more = words.split()
            wait = " sleep 1000000" if name == "removed" else " true"
            ids[name] = docker.run(
                name, "base:1", "sh", "-c", CHATTER + wait,
                options=["--log-driver", driver, *(word for one in more for word in ("--log-opt", one))],
            )  # fmt: skip
        for name in ("json", "local", "cached"):
            docker.wait(name)
        said = docker._docker("logs", "json", timeout=60)
        (docker.data / f"containers/{ids['removed']}/{ids['removed']}-json.log").unlink()
        directory = tmp_path_factory.mktemp("logs")
        host = Host(Mode.HOST)
        mine = {
            item.path
            for item in Docker().items(host, Scope())
            if item.about.get("data_root") == os.fsencode(docker.data)
        }
        write(directory / "run", Docker().items(host, Scope()), mine)
        write(directory / "run", RuntimeLogs().items(host, Scope()), {"logs/deleted.tar"})
        result = export_logs(
            str(directory / "run"), [], str(directory / "timelines"),
            containers=[], signers=(), receipts=(), s3=None, quiet=True,
        )  # fmt: skip
        yield Scene(directory, ids, (said.stdout, said.stderr), result)


def content(lines: list[dict[str, Any]], stream: str) -> bytes:
    """What the stream held, as far as the lines tell it: one that is unfinished had no newline."""
    return b"".join(
        (base64.b64decode(line["raw"]) if "raw" in line else line["line"].encode()) + b"\n" * ("unfinished" not in line)
        for line in lines
        if line["stream"] == stream
    )


@pytest.mark.parametrize("name", ["json", "local", "cached"])
def test_a_timeline_is_what_the_container_wrote(scene: Scene, name: str) -> None:
    lines = scene.lines(name)
    stdout, stderr = wrote()
    if name == "json":
        stdout = stdout.decode("utf-8", "replace").encode()
        assert (stdout, stderr) == scene.told
    # (The daemon itself, 20.10, forgets the end of a line of several parts when it reads what `local` wrote.)
    assert content(lines, "stdout") == stdout
    assert content(lines, "stderr") == stderr
    assert [line["partial_joined"] for line in lines if len(line["line"]) == 40_000] == [3, 3, 3]
    assert [line["line"] for line in lines if "unfinished" in line] == ["no newline at the end"]
    assert not [line for line in lines if "damaged" in line]
    times = [line["time"] for line in lines]
    assert times == sorted(times)
    sources = {line["source"] for line in lines}
    if name == "cached":
        assert all(source.endswith("/container-cached.log") for source in sources)
    else:
        assert len(sources) > 3
        assert any(source.endswith(".gz") for source in sources)
    assert {line["container"] for line in lines} == {scene.ids[name]}


def test_bytes_that_the_local_driver_keeps_and_json_file_does_not(scene: Scene) -> None:
    for name, expected in (("local", b"\xff\xfe"), ("json", "\ufffd\ufffd".encode())):
        (line,) = (one for one in scene.lines(name) if one["line"].startswith("escape"))
        raw = base64.b64decode(line["raw"]) if "raw" in line else line["line"].encode()
        assert raw == b"escape \x1b[31m and " + expected + b" bytes"


def test_attributes_of_records(scene: Scene) -> None:
    assert {json.dumps(line.get("attrs")) for line in scene.lines("json")} == {'{"tag": "web"}'}


def test_a_log_that_was_removed_and_is_still_written(scene: Scene) -> None:
    path = scene.directory / "timelines" / f"{scene.ids['removed'][:12]}.jsonl"
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    stdout, stderr = wrote()
    # What has no newline yet is in no record yet.
    expected = stdout.removesuffix(b"no newline at the end").decode("utf-8", "replace").encode()
    assert (content(lines, "stdout"), content(lines, "stderr")) == (expected, stderr)
    assert all(line["source"].startswith("deleted/proc/") for line in lines)


def test_the_result_counts(scene: Scene) -> None:
    assert scene.result["timelines"] == 4
    assert (scene.result["damaged"], scene.result["unfinished"], scene.result["lines"]) == (0, 3, 4 * 914 - 1)


def test_nothing_acts_on_a_terminal(scene: Scene) -> None:
    for path in (scene.directory / "timelines").iterdir():
        assert b"\x1b" not in path.read_bytes()
