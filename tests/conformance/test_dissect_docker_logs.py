"""dissect.target reads Docker's logs out of what was acquired: what the containers wrote, by every driver on disk."""

from __future__ import annotations

import socket
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from tests.rigs.docker import PrivateDocker, why_not
from tests.support.evidence import take
from tests.support.runs import impound, keygen

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.docker, pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs")]

_CHATTER = (
    'i=0; while [ $i -lt 300 ]; do echo "line $i of a log that is rotated"; i=$((i+1)); done; echo "an error" >&2'
)
_DRIVERS = {
    "json": "json-file max-size=8k max-file=9 compress=true",
    "local": "local max-size=1m",
    "cached": "gelf gelf-address=udp://127.0.0.1:{port}",
}


def test_logs_are_what_the_containers_wrote(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    from dissect.target import Target

    key, recipient = keygen(tmp_path)
    ids = {}
    with (
        # Nobody there: the driver would be told, and what it cannot send is not cached either.
        socket.socket(type=socket.SOCK_DGRAM) as sink,
        PrivateDocker(tmp_path_factory.mktemp("d") / "d", as_default=True) as docker,
    ):
        sink.bind(("127.0.0.1", 0))
        docker.import_base()
        for name, words in _DRIVERS.items():
            driver, *more = words.format(port=sink.getsockname()[1]).split()
            options = ["--log-driver", driver, *(word for one in more for word in ("--log-opt", one))]
            ids[docker.run(name, "base:1", "sh", "-c", _CHATTER, options=options)] = name
            docker.wait(name)
        evidence = take(tmp_path / "run", key, recipient, "--only", "containers", within=docker.command)
    assert not evidence.gaps()
    code, _, error = impound("export", "host", evidence.directory, "-o", tmp_path / "host.tar")
    assert code == 0, error
    target = Target.open(tmp_path / "host.tar")
    assert {one.container_id for one in target.docker.containers()} == set(ids)
    found: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for line in target.docker.logs():
        # Of a cached log, which lies beside the records, it calls the directory above the container.
        container_id = line.container if line.container in ids else str(line.source).split("/")[-2]
        found[ids[container_id]].append((str(line.source), line.stream, line.message))
    wrote = sorted([("stderr", "an error"), *(("stdout", f"line {i} of a log that is rotated") for i in range(300))])
    for name, lines in found.items():
        assert sorted((stream, message) for _, stream, message in lines) == wrote, name
    assert found.keys() == set(_DRIVERS)
    assert any(source.endswith(".gz") for source, _, _ in found["json"]), "rotated, and read all the same"
    # And by our own export, to the same lines.
    for container_id, name in ids.items():
        told = evidence.timeline(tmp_path / "timelines", container_id, name)
        assert sorted((line["stream"], line["line"]) for line in told) == wrote
