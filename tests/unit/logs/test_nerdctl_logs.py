"""nerdctl's logs: in the archive of the container that wrote them, and decoded. As nerdctl's sources say, not run."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from acquirers.base import Scope
from agent.analysis.logs import timeline
from agent.analysis.logs.names import Format, classify
from agent.analysis.opening import new_output
from tests.support.log_files import START, Said, items, json_file
from tests.unit.containers.containerd_disk import Machine, take
from tests.unit.containers.disk import all_gaps, hex_id

WEB, JOB = hex_id("web"), hex_id("job")
HOME = "var/lib/nerdctl/1935db59/containers"


def write(*words: str, start: int = START) -> bytes:
    said = (Said(start + number * 10**9, "stdout", word.encode()) for number, word in enumerate(words))
    return b"".join(record for one in said for record in json_file(one))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Two containers in two namespaces, as nerdctl makes them, one with a log that was rotated."""
    made = Machine(tmp_path / "disk")
    for container_id, name, namespace in ((WEB, "web", "default"), (JOB, "job", "batch")):
        top = made.image(namespace)
        made.snapshot(container_id, parent=top, namespace=namespace)
        labels = {"nerdctl/name": name, "nerdctl/namespace": namespace}
        made.container(container_id, namespace=namespace, labels=labels)
        home = made.root / HOME / namespace / container_id
        home.mkdir(parents=True)
        (home / f"{container_id}-json.log").write_bytes(write("three", f"of {name}", start=START + 5 * 10**9))
        (home / "log-config.json").write_text("{}")
    home = made.root / HOME / "default" / WEB
    (home / f"{WEB}-json.log.2.gz").write_bytes(gzip.compress(write("one")))
    (home / f"{WEB}-json.log.1").write_bytes(write("two", start=START + 2 * 10**9))
    return made


def exported(machine: Machine, output: Path, *selectors: str) -> dict[str, list[dict[str, Any]]]:
    taken = take(machine.write(), Scope(containers=tuple(selectors)))
    assert not all_gaps(taken)
    members = {
        path: {name: one.content(name) for name in one.names() if name.endswith((".log", ".1", ".gz"))}
        for path, one in taken.items()
        if path.endswith(".tar")
    }
    with new_output(str(output)) as fd:
        timeline.export(items(members), fd, selectors)
    return {
        path.name: [json.loads(line) for line in path.read_bytes().splitlines()] for path in sorted(output.iterdir())
    }


def test_each_log_is_in_the_archive_of_its_container_and_in_no_other(machine: Machine) -> None:
    taken = take(machine.write())
    for container_id, name, namespace in ((WEB, "web", "default"), (JOB, "job", "batch")):
        log = f"[root]/{HOME}/{namespace}/{container_id}/{container_id}-json.log"
        holders = [path for path, one in taken.items() if path.endswith(".tar") and log in one.names()]
        assert holders == [f"containers/containerd/{container_id[:12]}-{name}.tar"]


def test_they_are_one_timeline_for_each_container(machine: Machine, tmp_path: Path) -> None:
    found = exported(machine, tmp_path / "out")
    assert {name: [line["line"] for line in lines] for name, lines in found.items()} == {
        f"{WEB[:12]}-web.jsonl": ["one", "two", "three", "of web"],
        f"{JOB[:12]}-job.jsonl": ["three", "of job"],
    }
    assert {line["container"] for line in found[f"{WEB[:12]}-web.jsonl"]} == {WEB}


@pytest.mark.parametrize("selector", ["job", JOB, JOB[:8]])
def test_one_is_chosen_by_name_and_by_id(machine: Machine, tmp_path: Path, selector: str) -> None:
    found = exported(machine, tmp_path / "out", selector)
    assert list(found) == [f"{JOB[:12]}-job.jsonl"]


@pytest.mark.parametrize(
    "path",
    [
        f"{HOME}/default/{WEB}/{JOB}-json.log",
        f"var/lib/nerdctl/volumes/containers/default/{WEB}/{WEB}-json.log",
        f"{HOME}/a/b/{WEB}/{WEB}-json.log",
        f"{HOME}/default/{WEB}/{WEB}-json.log.1.gz.2",
    ],
)
def test_what_only_looks_like_one_is_none(path: str) -> None:
    assert classify(f"[root]/{path}".encode()) is None


def test_it_is_written_as_json_file() -> None:
    log = classify(f"[root]/{HOME}/default/{WEB}/{WEB}-json.log.3.gz".encode())
    assert log is not None
    assert (log.format, log.container, log.compressed) == (Format.JSON_FILE, WEB, True)
