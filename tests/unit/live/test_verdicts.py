"""What is done with each mount, decided from lists alone."""

from __future__ import annotations

from acquirers.live.groups import Group
from acquirers.live.upper import UpperOnly
from acquirers.live.verdicts import Judgement, Key, Machine, Stored, Verdict, judge, place_of
from acquirers.mounts import Mount, parse_mountinfo, top_mount
from acquirers.snapshot.placing import Process

CONTAINER = b"""\
500 400 0:60 / / rw - overlay overlay rw,lowerdir=/lib/l1,upperdir=/lib/up/diff,workdir=/lib/up/work
501 500 0:61 / /proc rw - proc proc rw
502 500 0:62 / /dev rw - tmpfs tmpfs rw
503 502 0:63 / /dev/shm rw - tmpfs shm rw
504 500 8:1 /volumes/a /data rw - ext4 /dev/sda1 rw
505 504 0:64 / /data/deep rw - tmpfs tmpfs rw
506 500 8:1 / /host rw - ext4 /dev/sda1 rw
507 506 0:65 / /host/run rw - tmpfs tmpfs rw
508 500 8:1 /lib /lib-of-host rw - ext4 /dev/sda1 rw
509 500 0:66 / /nfs rw - nfs4 server:/ rw
510 509 0:67 / /nfs/local rw - tmpfs tmpfs rw
511 501 0:68 / /proc/acpi ro - tmpfs tmpfs ro
512 500 8:1 /volumes/a/hosts /etc/hosts rw - ext4 /dev/sda1 rw
513 500 0:69 / /mnt rw - tmpfs below rw
514 513 0:70 / /mnt rw - tmpfs above rw
"""
MACHINE = Machine(root=(0x801, b"/"), layers=frozenset({(0x801, b"/lib/up/diff")}), overlays=frozenset({60}))


def group(data: bytes = CONTAINER) -> Group:
    return Group(1, [Process(1)], mounts=parse_mountinfo(data))


def decided(
    machine: Machine = MACHINE, stored: dict[Key, Stored] | None = None, reserved: dict[Key, str] | None = None
) -> Judgement:
    found = judge(group(), machine, stored or {}, reserved or {})
    assert found is not None
    return found


def verdicts(judgement: Judgement) -> dict[bytes, str]:
    return {point: mount.verdict.value for point, mount in judgement.mounts.items()}


def test_each_mount_has_its_verdict() -> None:
    assert decided().root.verdict is Verdict.ENTER
    assert verdicts(decided()) == {
        b"/proc": "view",
        b"/dev": "enter",
        b"/dev/shm": "enter",
        b"/data": "enter",
        b"/data/deep": "enter",
        b"/host": "machine",
        b"/host/run": "enter",
        b"/lib-of-host": "machine",
        b"/nfs": "remote",
        b"/nfs/local": "enter",
        b"/proc/acpi": "enter",
        b"/etc/hosts": "enter",
        b"/mnt": "enter",
    }


def test_what_no_walk_comes_by_is_read_apart_but_not_what_lies_on_the_machine() -> None:
    judgement = decided()
    assert [mount.point for mount in judgement.apart()] == [b"/nfs/local", b"/proc/acpi"]
    assert not judgement.reached(judgement.mounts[b"/host/run"])
    assert judgement.reached(judgement.mounts[b"/host"])
    assert [mount.point for mount in judgement.remote()] == [b"/nfs"]
    assert [(mount.point, mount.source) for mount in judgement.covered] == [(b"/mnt", b"below")]


def test_stored_elsewhere_only_if_nothing_was_covered_there_that_is_seen_here() -> None:
    volume = (0x801, b"/volumes/a")
    same = {volume: Stored("live/other.tar", frozenset({b"deep"}))}
    fewer = {volume: Stored("live/other.tar", frozenset())}
    more = {volume: Stored("live/other.tar", frozenset({b"deep", b"more"}))}
    assert verdicts(decided(stored=same))[b"/data"] == "elsewhere"
    assert verdicts(decided(stored=fewer))[b"/data"] == "elsewhere"
    assert verdicts(decided(stored=more))[b"/data"] == "enter"


def test_the_root_of_another_container_is_left_to_its_item() -> None:
    assert verdicts(decided(reserved={(0x801, b"/volumes/a"): "live/b.tar"}))[b"/data"] == "elsewhere"
    own = decided(reserved={(60, b"/"): "live/b.tar"})
    assert own.root.verdict is Verdict.ENTER


def test_an_overlay_that_the_machine_does_not_know_is_called_with_a_deadline() -> None:
    assert not decided().unsure
    assert decided(Machine()).unsure


def test_a_root_whose_layers_may_not_answer_is_remote() -> None:
    judgement = decided(Machine(check=lambda _group, _mount: "a layer on fuse"))
    assert (judgement.root.verdict, judgement.root.why) == (Verdict.REMOTE, "a layer on fuse")
    assert [mount.point for mount in judgement.apart()][:2] == [b"/data", b"/dev"]


def test_a_container_whose_root_is_the_machine_s_is_the_machine() -> None:
    found = judge(group(b"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"), MACHINE, {}, {})
    assert found is not None
    assert found.root.verdict is Verdict.MACHINE


def test_what_is_no_list_of_mounts_is_no_judgement() -> None:
    assert judge(group(b""), MACHINE, {}, {}) is None
    assert judge(group(b"garbage\n\xff\n1 2 3\n"), MACHINE, {}, {}) is None


def test_what_lies_uppermost() -> None:
    stacked = b"1 0 8:1 / / rw - ext4 a rw\n3 2 8:3 / / rw - ext4 c rw\n2 1 8:2 / / rw - ext4 b rw\n"
    top = top_mount(parse_mountinfo(stacked))
    assert top is not None
    assert top.source == b"c"


def test_where_a_path_lies() -> None:
    mounts = parse_mountinfo(
        b"1 0 8:1 /sub / rw - ext4 a rw\n2 1 8:2 / /var rw - ext4 b rw\n3 2 8:3 /x /var/lib rw - ext4 c rw\n"
    )
    assert place_of(mounts, b"/etc") == (0x801, b"/sub/etc")
    assert place_of(mounts, b"/var/lib/docker") == (0x803, b"/x/docker")
    assert place_of(mounts, b"/var/log") == (0x802, b"/log")
    assert place_of([], b"/var") is None


def test_of_a_path_that_cannot_be_asked_nothing_is_left_out() -> None:
    mount: dict[bytes, Mount] = {}
    only = UpperOnly(-1, mount)
    assert only(b"/" + b"n" * 5000)
