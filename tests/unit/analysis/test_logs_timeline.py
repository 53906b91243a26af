"""`export logs`: which members are whose logs, whole lines across rotation, one timeline by time for each container."""

from __future__ import annotations

import base64
import gzip
import json
import os
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.analysis.items import Items
from agent.analysis.logs import belonging, ecs, spool, timeline
from agent.analysis.logs.names import Format, classify
from agent.analysis.logs.rendering import shown
from agent.analysis.logs.spool import Spool, Writer
from agent.analysis.opening import new_output, write_below
from agent.errors import DamagedError, StoreFullError, UsageError
from tests.support.bolt_maker import make
from tests.support.log_files import START, Said, cri, items, json_file, local

WEB, DB = "a1" * 32, "b2" * 32
POD = "shop_web-7d9f_01234567-89ab-cdef-0123-456789abcdef"
DOCKER = "[root]/var/lib/docker/containers"
PODS = "[root]/var/log/pods"
ITEM = f"containers/docker/{WEB[:12]}-web.tar"


def said(*words: str, start: int = START, stream: str = "stdout") -> list[Said]:
    return [Said(start + number * 10**9, stream, word.encode()) for number, word in enumerate(words)]


def write(form: Any, lines: list[Said], *, part: int = 16384) -> bytes:
    return b"".join(record for one in lines for record in form(one, part))


def export(output: Path, run: Items, *selectors: str) -> dict[str, list[dict[str, Any]]]:
    with new_output(str(output)) as fd:
        timeline.export(run, fd, selectors)
    return {
        path.name: [json.loads(line) for line in path.read_bytes().splitlines()] for path in sorted(output.iterdir())
    }


def test_rotated_and_compressed_files_are_one_timeline(tmp_path: Path) -> None:
    """In the order of the archive, which is none, with the rest of a line in a younger file."""
    log = f"{DOCKER}/{WEB}/{WEB}-json.log"
    long = Said(START + 5 * 10**9, "stdout", b"L" * 40_000)
    first, second, third = json_file(long)
    run = items(
        {
            ITEM: {
                log: third + write(json_file, said("six", "seven", start=START + 6 * 10**9)),
                f"{log}.2.gz": gzip.compress(write(json_file, said("zero", "one", "two"))),
                f"{DOCKER}/{WEB}/config.v2.json": b"{}",
                f"{log}.1": write(json_file, said("three", "four", start=START + 3 * 10**9)) + first + second,
            }
        }
    )
    (lines,) = export(tmp_path / "out", run).values()
    assert [line["line"][:5] for line in lines] == ["zero", "one", "two", "three", "four", "LLLLL", "six", "seven"]
    assert lines[5]["line"] == "L" * 40_000
    assert (lines[5]["partial_joined"], lines[5]["source"], lines[5]["time"]) == (
        3,
        f"{log}.1",
        "2023-11-14T22:13:25.000000000Z",
    )
    assert lines[0] == {
        "time": "2023-11-14T22:13:20.000000000Z", "stream": "stdout", "line": "zero", "partial_joined": 1,
        "source": f"{log}.2.gz", "offset": 0, "container": WEB,
    }  # fmt: skip
    assert lines[1]["offset"] == len(write(json_file, said("zero")))


@pytest.mark.parametrize("form", [cri, local], ids=["cri", "local"])
def test_a_line_over_three_files(tmp_path: Path, form: Any) -> None:
    one, two, three = form(Said(START, "stderr", b"aaabbbccc"), 3)
    other = write(form, said("between", start=START + 1))
    if form is cri:
        names = [f"{PODS}/{POD}/web/0.log.20260101-000000.gz", f"{PODS}/{POD}/web/0.log.20260101-000001"]
        names.append(f"{PODS}/{POD}/web/0.log")
    else:
        names = [f"{DOCKER}/{WEB}/local-logs/container.log{suffix}" for suffix in (".2.gz", ".1", "")]
    run = items({ITEM: {names[0]: gzip.compress(one), names[1]: other + two, names[2]: three}})
    (lines,) = export(tmp_path / "out", run).values()
    assert sorted((line["line"], line["partial_joined"]) for line in lines) == [("aaabbbccc", 3), ("between", 1)]
    assert not any("unfinished" in line for line in lines)


def test_a_rest_that_never_came_is_unfinished(tmp_path: Path) -> None:
    first, _ = cri(Said(START, "stdout", b"aaabbb"), 3)
    run = items({
        belonging.KUBERNETES: {
            f"{PODS}/{POD}/web/0.log": first,
            f"{PODS}/{POD}/web/1.log": write(cri, said("restarted", start=START + 1)),
        }
    })  # fmt: skip
    (lines,) = export(tmp_path / "out", run).values()
    assert {line["line"]: line.get("unfinished", False) for line in lines} == {"aaa": True, "restarted": False}


def test_each_container_has_its_own(tmp_path: Path) -> None:
    run = items({
        ITEM: {f"{DOCKER}/{WEB}/{WEB}-json.log": write(json_file, said("web"))},
        f"containers/docker/{DB[:12]}-db.tar": {
            f"{DOCKER}/{DB}/container-cached.log": write(local, said("db"))
        },
        f"containers/containerd/{DB[:12]}-web.tar": {f"{PODS}/{POD}/web/0.log": write(cri, said("pod"))},
        belonging.KUBERNETES: {f"{PODS}/other_gone_{'f' * 32}/c/3.log": write(cri, said("orphan"))},
        f"containers/docker/layers/{WEB[:12]}.tar": {f"{DOCKER}/{WEB}/{WEB}-json.log": b"not looked at"},
        timeline.UNLINKED: {
            "deleted/index.jsonl": json.dumps(
                {"member": "deleted/proc/7/fd/9", "path": f"/var/lib/docker/containers/{DB}/container-cached.log",
                 "of_the_machine": True}
            ).encode(),
            "deleted/proc/7/fd/9": write(local, said("removed", start=START - 1)),
            "deleted/proc/7/fd/10": b"of no container",
        },
    })  # fmt: skip
    found = export(tmp_path / "out", run)
    assert {name: [line["line"] for line in lines] for name, lines in found.items()} == {
        f"{WEB[:12]}-web.jsonl": ["web"],
        f"{DB[:12]}-db.jsonl": ["removed", "db"],
        f"{DB[:12]}-web.jsonl": ["pod"],
        "other_gone_c.jsonl": ["orphan"],
    }
    assert found[f"{DB[:12]}-web.jsonl"][0]["container"] == "shop/web-7d9f/web"
    for selector, name in (
        ("web", f"{WEB[:12]}-web.jsonl"), (WEB[:6], f"{WEB[:12]}-web.jsonl"), (WEB, f"{WEB[:12]}-web.jsonl"),
        ("shop/web-7d9f", f"{DB[:12]}-web.jsonl"), ("other/gone/c", "other_gone_c.jsonl"),
        ("/db", f"{DB[:12]}-db.jsonl"),
    ):  # fmt: skip
        chosen = export(tmp_path / selector.replace("/", "."), run, selector)
        assert name in chosen
        assert len(chosen) == (2 if selector == "web" else 1)
    with pytest.raises(UsageError, match=r"no logs of a container 'nobody'.*web"):
        export(tmp_path / "none", run, "nobody")
    assert not (tmp_path / "none").exists()


def test_bytes_that_are_no_text_and_what_acts_on_terminals(tmp_path: Path) -> None:
    line = b"\x1b[31m\x9b\xc2\x9b31m\xe2\x80\xae\x7f\xff\xf0\x9f\x98\x80"
    run = items({ITEM: {f"{DOCKER}/{WEB}/local-logs/container.log": write(local, [Said(START, "stdout", line)])}})
    (found,) = export(tmp_path / "out", run).values()
    assert found[0]["line"] == line.decode("utf-8", "backslashreplace")
    assert base64.b64decode(found[0]["raw"]) == line
    raw = (tmp_path / "out" / f"{WEB[:12]}-web.jsonl").read_bytes()
    assert not {0x1B, 0x7F, 0x9B} & set(raw.replace("😀".encode(), b""))
    assert "\u202e".encode() not in raw


@given(st.text())
def test_what_is_escaped_stays_the_same(text: str) -> None:
    encoded = json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass") if text.isprintable() else None
    if encoded is not None:
        assert json.loads(shown(encoded)) == text


def test_damage_is_a_line_and_is_counted(tmp_path: Path) -> None:
    first, second, third = (write(local, [one]) for one in said("one", "two", "three"))
    log = f"{DOCKER}/{WEB}/local-logs/container.log"
    run = items({
        ITEM: {
            log: first + b"\xff" * len(second) + third,
            f"{log}.1.gz": gzip.compress(write(local, said("old", start=START - 10**9)))[:-4],
        }
    })  # fmt: skip
    with new_output(str(tmp_path / "out")) as fd:
        made = timeline.export(run, fd)
    assert (made.counts.lines, made.counts.damaged, made.counts.damaged_bytes) == (3, 2, len(second))
    lines = [json.loads(line) for line in next((tmp_path / "out").iterdir()).read_bytes().splitlines()]
    assert [line.get("line", line.get("damaged")) for line in lines] == [
        "old", "the compressed file ends too early", "one", "not a record of the local driver", "three",
    ]  # fmt: skip
    assert lines[3] == {
        "damaged": "not a record of the local driver", "time": "2023-11-14T22:13:20.000000000Z", "source": log,
        "offset": len(first), "end": len(first) + len(second), "container": WEB,
    }  # fmt: skip


def test_names_do_not_lead_out_or_collide(tmp_path: Path) -> None:
    run = items({
        belonging.KUBERNETES: {
            f"{PODS}/{POD}/{name}/0.log": write(cri, said(name)) for name in ("..", "a b", "a\x1bb", "A_b")
        }
    })  # fmt: skip
    found = export(tmp_path / "out", run)
    assert sorted(found) == [
        "shop_web-7d9f_...jsonl",
        "shop_web-7d9f_A_b-3.jsonl",
        "shop_web-7d9f_a_b-2.jsonl",
        "shop_web-7d9f_a_b.jsonl",
    ]
    assert os.listdir(tmp_path) == ["out"]


def test_nothing_is_left_of_an_archive_that_is_damaged(tmp_path: Path) -> None:
    run = items({ITEM: {f"{DOCKER}/{WEB}/{WEB}-json.log": write(json_file, said("web"))}})

    def broken(name: str) -> Any:
        yield from run.stream(name)
        raise DamagedError("the end is not as it was signed")

    with pytest.raises(DamagedError):
        export(tmp_path / "out", Items(run.names, broken))
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_when_the_disk_is_full(tmp_path: Path) -> None:
    run = items({
        f"containers/docker/{name[:12]}-web.tar": {f"{DOCKER}/{name}/{name}-json.log": write(json_file, said("web"))}
        for name in (WEB, DB)
    })  # fmt: skip

    def full(output: int, name: str, chunks: Any) -> int:
        if name.startswith(DB[:12]):
            raise StoreFullError("no room")
        return write_below(output, name, chunks)

    with mock.patch("agent.analysis.logs.timeline.write_below", full), pytest.raises(StoreFullError):
        export(tmp_path / "out", run)
    assert not (tmp_path / "out").exists()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.lists(st.integers(-50, 50), max_size=60), max_size=12), st.integers(300, 3000))
def test_any_disorder_is_sorted_on_disk(tmp_path: Path, sources: list[list[int]], window: int) -> None:
    """By time, then the order of the files, then the place in the file; in more runs than are merged at once."""
    directory = Path(tempfile.mkdtemp(dir=tmp_path))
    fd = os.open(directory, os.O_RDONLY)
    with mock.patch.object(spool, "WINDOW", window), mock.patch.object(spool, "FAN_IN", 2), Spool(fd) as runs:
        names = []
        for source, times in enumerate(sources):
            writer = Writer(runs, source)
            for at, time_ns in enumerate(times):
                writer.add(time_ns, 0, b"%d %d" % (source, at))
            writer.finish()
            names += writer.runs
        found = [(row.time_ns, -row.source, row.number, row.data) for row in runs.merge(names, lambda one: -one)]
    os.close(fd)
    assert found == sorted(
        (time_ns, -source, at, b"%d %d" % (source, at))
        for source, times in enumerate(sources)
        for at, time_ns in enumerate(times)
    )
    assert list(directory.iterdir()) == []


def test_what_is_a_log_of_whom() -> None:
    found = classify(f"/data/docker/volumes/x/_data/containers/{WEB}/{WEB}-json.log.12.gz".encode())
    assert found is not None
    assert (found.format, found.container, found.rank, found.compressed) == (Format.JSON_FILE, WEB, (0, -24, ""), True)
    for name in (
        f"{DOCKER}/{WEB}/{DB}-json.log",
        f"{DOCKER}/{WEB}/{WEB}-json.log.1.gz.tmp",
        f"{DOCKER}/{WEB}/{WEB}-json.log.1234567",
        f"{DOCKER}/{WEB[:-1]}/container-cached.log",
        "[root]/var/log/pods/a_b/c/0.log",
        "",
    ):
        assert classify(name.encode()) is None
    podman = classify(f"[root]/var/lib/containers/storage/overlay-containers/{WEB}/userdata/ctr.log".encode())
    assert podman is not None
    assert (podman.format, podman.container) == (Format.CRI, WEB)
    ranks = [
        classify(f"{PODS}/{POD}/c/{name}".encode(), unlinked=gone)
        for name, gone in (
            ("0.log.20260101-000000.gz", False), ("0.log.20260102-000000", False), ("0.log", True), ("0.log", False),
            ("1.log", False),
        )
    ]  # fmt: skip
    assert [one.rank for one in ranks if one] == sorted(one.rank for one in ranks if one)


def test_the_database_of_the_ecs_agent(tmp_path: Path) -> None:
    task = {"Arn": "arn:aws:ecs:eu-west-1:1:task/shop/0123abcd", "Family": "web"}
    tree = {
        b"tasks": {b"0123abcd": json.dumps(task).encode()},
        b"metadata": {b"agent-version": b'"1.2"', b"x": b"\xff"},
    }
    run = items({ecs.ITEM: {ecs.MEMBER.decode(): make(tree), "[root]/etc/ecs/ecs.config": b"ECS_CLUSTER=shop"}})
    (lines,) = export(tmp_path / "out", run).values()
    assert lines == [
        {"view": "current", "bucket": "metadata", "key": "agent-version", "value": "1.2"},
        {"view": "current", "bucket": "metadata", "key": "x", "raw": "/w=="},
        {"view": "current", "bucket": "tasks", "key": "0123abcd", "value": task},
    ]


@given(st.binary(max_size=50), st.integers(0, 12000))
def test_a_damaged_database_of_the_ecs_agent(junk: bytes, at: int) -> None:
    whole = make({b"tasks": {b"%d" % number: b'{"Arn":%d}' % number for number in range(200)}})
    data = whole[:at] + junk + whole[at + len(junk) :]
    for line in [*ecs.agent_records(data), *ecs.agent_records(whole[:at]), *ecs.agent_records(junk)]:
        assert isinstance(json.loads(line), dict)


def test_nothing_is_left_when_a_later_archive_is_damaged(tmp_path: Path) -> None:
    run = items({
        ITEM: {f"{DOCKER}/{WEB}/{WEB}-json.log": write(json_file, said("web"))},
        ecs.ITEM: {ecs.MEMBER.decode(): make({})},
    })  # fmt: skip

    def broken(name: str) -> Any:
        yield from run.stream(name)
        if name == ecs.ITEM:
            raise DamagedError("the end is not as it was signed")

    with pytest.raises(DamagedError):
        export(tmp_path / "out", Items(run.names, broken))
    assert not (tmp_path / "out").exists()
