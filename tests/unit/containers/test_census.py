"""The census: what processes, records and disks say of containers, joined, and where they disagree."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from acquirers.containers.census import table, where
from acquirers.containers.census.processes import Group, Processes
from acquirers.containers.census.table import Row, join
from acquirers.containers.known import UNCLAIMED, Known

ID, OTHER = "a" * 64, "b" * 64
UPPER = b"/var/lib/docker/overlay2/" + b"1" * 64 + b"/diff"
HOST, INSIDE, SECOND = 1, 2, 3
KNOWN = Known("docker", ID, "web", "running", pid=100, image="web:1", upper=UPPER, lowers=(b"/l/2/diff", b"/l/1/diff"))
HOME = Group(HOST, pids=[1], count=40)
RUNNING = Group(INSIDE, ID, upper=UPPER, by="cgroup", pids=[100, 101], count=2, comms=[b"sh"])


def rows(*known: Known, groups: tuple[Group, ...]) -> list[Row]:
    everything = (HOME, *groups)
    return list(join(Processes(HOST, list(everything), total=sum(one.count for one in everything)), known))


def test_what_all_views_agree_on_is_one_row_without_a_finding() -> None:
    (row,) = rows(KNOWN, groups=(RUNNING,))
    assert (row.id, row.views, row.findings) == (ID, ["processes", "records", "disk"], [])
    line = row.line()
    assert line["name"] == "web"
    assert line["processes"]["pids"] == [100, 101]  # type: ignore[index]


@pytest.mark.parametrize(
    ("known", "groups", "finding"),
    [
        ((), (RUNNING,), table.HIDDEN),
        ((KNOWN,), (), table.STALE),
        ((replace(KNOWN, state="exited"),), (RUNNING,), table.UNRECORDED),
        ((replace(KNOWN, state=UNCLAIMED, record=False),), (), table.ORPHAN),
        ((replace(KNOWN, state="exited", disk=False, upper=b""),), (), table.BARE),
        ((KNOWN,), (replace(RUNNING, upper=b"/elsewhere/x/diff"),), table.MOVED),
        ((KNOWN,), (RUNNING, Group(INSIDE, "", pids=[7], count=1)), table.ENTERED),
        ((KNOWN,), (RUNNING, Group(HOST, ID, pids=[8], count=1)), table.LEFT),
        ((KNOWN,), (RUNNING, Group(SECOND, ID, upper=b"/tmp/evil", by="mountinfo", pids=[9], count=1)), table.MOVED),
        ((KNOWN,), (Group(HOST, upper=UPPER, pids=[9], count=1),), table.STALE),
        ((KNOWN,), (RUNNING, Group(HOST, upper=UPPER, pids=[9], count=1)), f"{table.CHROOTED}: process 9"),
        ((KNOWN,), (RUNNING, Group(INSIDE, OTHER, pids=[9], count=1)), f"{table.SHARED}: {OTHER[:12]}"),
        (
            (KNOWN,),
            (replace(RUNNING, place=b"/docker/a"), Group(INSIDE, ID, by="cgroup", place=b"/x/a", pids=[9], count=1)),
            f"{table.TWICE}: /docker/a, /x/a",
        ),
        (
            (KNOWN,),
            (RUNNING, Group(SECOND, OTHER, by="cgroup", inner=(ID,), pids=[9], count=1)),
            f"{table.PRETENDED}: process 9 of container {OTHER[:12]}",
        ),
    ],
    ids=(
        "hidden stale unrecorded orphan bare moved entered left foreign-root chroot-only chroot shared twice pretended"
    ).split(),
)
def test_what_does_not_fit_together_is_a_finding(
    known: tuple[Known, ...], groups: tuple[Group, ...], finding: str
) -> None:
    row = rows(*known, groups=groups)[0]
    assert any(one.startswith(finding) for one in row.findings), row.findings


def test_an_overlay_without_control_group_and_record_is_hidden() -> None:
    (row,) = rows(groups=(Group(SECOND, "", upper=b"/tmp/evil/upper", pids=[9], count=1),))
    assert row.findings == [table.HIDDEN]
    assert row.id == ""


def test_a_root_of_its_own_is_told_without_an_overlay() -> None:
    (row,) = rows(groups=(Group(SECOND, "", pids=[9], count=1, apart=True),))
    assert row.findings == [table.APART]


def test_a_container_in_a_container_may_have_another_root() -> None:
    inner = Group(SECOND, ID, upper=b"/var/lib/docker/overlay2/x/diff", by="cgroup", inner=(OTHER,), pids=[9], count=1)
    (row,) = rows(KNOWN, groups=(RUNNING, inner))
    assert row.findings == []


def test_a_mount_namespace_of_a_service_is_no_container() -> None:
    assert rows(groups=(Group(SECOND, "", pids=[9], count=1),)) == []


def test_a_container_that_is_known_by_its_layer_alone_is_found_by_it() -> None:
    (row,) = rows(KNOWN, groups=(replace(RUNNING, container=""),))
    assert row.views == ["processes", "records", "disk"]


def test_a_disk_without_processes_has_no_stale_records() -> None:
    (row,) = list(join(Processes(), [KNOWN]))
    assert row.findings == []


def test_containers_are_kept_apart() -> None:
    second = replace(KNOWN, id=OTHER, upper=UPPER + b"2", pid=0, state="exited")
    found = rows(KNOWN, second, groups=(RUNNING,))
    assert [(row.id, row.views) for row in found] == [
        (ID, ["processes", "records", "disk"]),
        (OTHER, ["records", "disk"]),
    ]


def test_a_path_is_named_by_every_container_that_it_is_part_of() -> None:
    second = replace(KNOWN, id=OTHER, upper=b"/u2", logs=(b"/log/x.log",))
    everything = [KNOWN, second]
    assert [(one.known.id, one.what, one.path) for one in where.places(UPPER + b"/tmp/x", everything)] == [
        (ID, "written by it", b"tmp/x")
    ]
    assert [(one.known.id, one.what) for one in where.places(b"/l/1/diff/etc", everything)] == [
        (ID, "layer 1 of 2 below it"),
        (OTHER, "layer 1 of 2 below it"),
    ]
    assert [one.what for one in where.places(b"/log/x.log", everything)] == ["its log"]
    assert [(one.what, one.path) for one in where.places(UPPER + b"x", everything)] == [
        ("beside what was written by it", b"diffx")
    ]
    assert list(where.places(UPPER[:-5] + b"x", everything)) == []
