"""Real namespaces without a runtime: what is seen in there comes out, and nothing else, whatever is played in there."""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
import time
from pathlib import Path
from unittest import mock

import pytest
from msgspec.structs import replace

from acquirers import nameless, syscalls
from acquirers.base import AcquirerError, Layers, Reason, Scope, State
from acquirers.host import Host, Mode
from acquirers.live import LiveFiles, calls
from acquirers.live import entering as entering_module
from acquirers.live.groups import look
from acquirers.nameless import Recovered
from acquirers.snapshot.process_files import Stat, parse_stat
from acquirers.snapshot.watch import Patience
from tests.rigs.docker import make_rootfs
from tests.rigs.trees import NOBODY, Recorder, become_nobody, paths, times
from tests.unit.live.helpers import box, items_of, joined, read, read_box
from tests.unit.snapshot.helpers import in_child, may_administer, running

pytestmark = [pytest.mark.root, pytest.mark.skipif(not may_administer(), reason="needs root")]


def age(top: Path) -> set[bytes]:
    found = paths(top)
    for path in found:
        os.utime(path, ns=(1_000_000_000, 2_000_000_000), follow_symlinks=False)
    return found


def test_it_comes_out_as_it_sees_itself_and_nothing_moves(tmp_path: Path) -> None:
    inside = """
      mount -t tmpfs none /srv; echo secret > /srv/token
      mkdir /dev/shm; echo shared > /dev/shm/note
      ln -s /etc/shadow /opt/absolute; ln /etc/motd /opt/hard"""
    with box(tmp_path, inside=inside) as one:
        whole = age(one.root)
        before, mounts = times(whole), one.mounts
        found = read_box(one)
        assert times(whole) == before
        assert one.mounts == mounts
        assert os.fsencode(tmp_path) not in Path("/proc/self/mountinfo").read_bytes()
    assert found.content("[root]/srv/token") == b"secret\n"
    assert found.content("[root]/dev/shm/note") == b"shared\n"
    assert found.content("[root]/etc/motd") == b"from the image\n"
    assert found.files["[root]/opt/absolute"].linkname == "/etc/shadow"
    assert {found.files["[root]/opt/hard"].islnk(), found.files["[root]/etc/motd"].islnk()} == {True, False}
    assert "/proc" in found.names
    assert not [name for name in found.names if name.startswith("/proc/")]
    assert (found.gaps, found.report.flags) == ([], [])
    assert f"kernel/proc/{one.pid}/mountinfo" in found.files
    assert found.content(f"kernel/proc/{one.pid}/mountinfo") == mounts


def test_without_a_clone_it_is_read_in_place_and_no_file_is_touched(tmp_path: Path) -> None:
    inside = "mount -t tmpfs none /srv; echo secret > /srv/token; ln -s /etc/shadow /opt/absolute"
    with box(tmp_path, inside=inside) as one:
        files = {path for path in age(one.root) if not os.path.islink(path)}
        before = times(files)
        with mock.patch.object(syscalls, "open_tree_clone", side_effect=OSError(errno.ENOSYS, "no such call")):
            found = read_box(one)
        assert times(files) == before
    assert found.content("[root]/srv/token") == b"secret\n"
    assert found.files["[root]/opt/absolute"].linkname == "/etc/shadow"
    assert found.gaps == []
    assert b"/" in found.flagged("no-clone")


def test_mounts_of_an_unprivileged_user_namespace_are_read(tmp_path: Path) -> None:
    inside = "mount -t tmpfs none /srv; echo secret > /srv/token"
    with box(tmp_path, inside=inside, options=["--map-root-user"]) as one:
        whole = {path for path in age(one.root) if not os.path.islink(path)}
        before = times(whole)
        found = read_box(one)
        assert times(whole) == before
    assert found.content("[root]/srv/token") == b"secret\n"
    assert found.gaps == []
    assert found.content(f"kernel/proc/{one.pid}/uid_map").split() == [b"0", b"0", b"1"]


def test_an_unbindable_mount_is_read_in_place_and_not_what_lies_beneath(tmp_path: Path) -> None:
    inside = """
      echo beneath > /srv/beneath
      mount -t tmpfs none /srv; mkdir /srv/deep; echo above > /srv/deep/above
      mount --make-unbindable /srv"""
    with box(tmp_path, inside=inside) as one:
        found = read_box(one)
    assert found.content("[root]/srv/deep/above") == b"above\n"
    assert "/srv/beneath" not in found.names
    assert found.gaps == []
    assert found.flagged("no-clone") == [b"/srv"]


def test_what_is_mounted_over_proc_is_no_view_of_the_kernel(tmp_path: Path) -> None:
    inside = """
      mount -t tmpfs none /proc/fs; echo hidden > /proc/fs/implant
      mount -t tmpfs none /sys; echo hidden > /sys/implant"""
    with box(tmp_path, inside=inside) as one:
        found = read_box(one)
    assert found.content("[root]/proc/fs/implant") == b"hidden\n"
    assert found.content("[root]/sys/implant") == b"hidden\n"
    assert found.gaps == []


def test_what_another_mount_covers_is_told(tmp_path: Path) -> None:
    inside = "mount -t tmpfs none /srv; echo below > /srv/file; mount -t tmpfs none /srv; echo above > /srv/file"
    with box(tmp_path, inside=inside) as one:
        found = read_box(one)
    assert found.content("[root]/srv/file") == b"above\n"
    assert found.flagged("finding") == [b"/srv"]


def test_the_machine_itself_is_not_taken_once_more(tmp_path: Path) -> None:
    outside = "mkdir host; mount --rbind / host"
    with box(tmp_path, outside=outside, inside="mount -t tmpfs none /srv; echo mine > /srv/file") as one:
        found = read_box(one)
    assert "/host" in found.names
    assert not [name for name in found.names if name.startswith("/host/")]
    assert found.flagged("left-out") == [b"/host"]
    assert found.content("[root]/srv/file") == b"mine\n"
    assert found.gaps == []


def test_a_volume_of_two_is_stored_once(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "file").write_text("shared")
    (tmp_path / "hosts").write_text("127.0.0.1 one\n")
    outside = f"mount --bind {volume} srv; touch etc/hosts; mount --bind {tmp_path}/hosts etc/hosts"
    with box(tmp_path / "a", outside=outside) as one, box(tmp_path / "b", outside=outside) as two:
        boxes = [one, two]
        found = [read(item) for item in items_of(boxes)]
    first, second = found
    assert first.content("[root]/srv/file") == b"shared"
    assert "/srv" in second.names
    assert "/srv/file" not in second.names
    (flag,) = [flag for flag in second.report.flags if flag.where == b"/srv"]
    assert first.item.path in flag.detail
    assert second.content("[root]/etc/hosts") == b"127.0.0.1 one\n", "small files are what makes it a machine"


def test_what_one_container_covered_is_stored_with_the_other(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    (volume / "deep").mkdir(parents=True)
    (volume / "deep/file").write_text("shared")
    outside = f"mount --bind {volume} srv"
    cover = "mount -t tmpfs none /srv/deep"
    with box(tmp_path / "a", outside=outside, inside=cover) as one, box(tmp_path / "b", outside=outside) as two:
        found = [read(item) for item in items_of([one, two])]
    assert found[1].content("[root]/srv/deep/file") == b"shared"


REMOVED = "f = open('/opt/gone', 'w+'); f.write('removed'); f.flush(); os.unlink('/opt/gone')\n"


def test_removed_files_and_memfds_are_recovered(tmp_path: Path) -> None:
    code = REMOVED + "fd = os.memfd_create('implant'); os.write(fd, b'in memory only')"
    with box(tmp_path) as one, joined(one, code) as pid:
        found = read_box(one)
    lines = [json.loads(line) for line in found.content(f"deleted/index-{pid}.jsonl").splitlines()]
    by_path = {line["path"]: line for line in lines}
    assert found.content(by_path["/memfd:implant"]["member"]) == b"in memory only"
    assert found.content(by_path["/opt/gone"]["member"]) == b"removed"
    assert found.gaps == []


def test_what_the_run_has_already_is_not_stored_again(tmp_path: Path) -> None:
    recovered = Recovered()
    item = "memory/process/7-implant.files.tar"
    with box(tmp_path) as one, joined(one, REMOVED) as pid:
        directory = os.open(f"/proc/{pid}", os.O_RDONLY)
        for file in nameless.look(directory, b"", Patience())[0]:
            recovered.add(file, item)
        os.close(directory)
        found = read_box(one, recovered=lambda: recovered)
    assert f"deleted/proc/{pid}/fd/3" not in found.files
    lines = [json.loads(text) for text in found.content(f"deleted/index-{pid}.jsonl").splitlines()]
    assert {line["path"]: line.get("item") for line in lines}["/opt/gone"] == item


def test_a_file_that_grows_without_end_and_one_of_ten_tebibytes(tmp_path: Path) -> None:
    inside = """
      mount -t tmpfs none /srv
      truncate -s 10995116277760 /srv/huge; echo end >> /srv/huge
      dd if=/dev/zero of=/srv/log bs=1M count=32 2>/dev/null
      (while :; do echo more >> /srv/log; done) &"""
    with box(tmp_path, inside=inside, outside="mknod dev/zero c 1 5") as one:
        started = time.monotonic()
        found = read_box(one)
        assert time.monotonic() - started < 30
    member = next(member for member in found.report.members if member.path == b"/srv/huge")
    assert member.size == (10 << 40) + 4
    assert member.stored is not None
    assert member.stored < 1 << 20
    assert len(found.data) < 64 << 20
    assert "grew" in {str(flag.kind) for flag in found.report.flags if flag.where == b"/srv/log"}
    assert found.gaps == []


def test_its_end_in_the_middle_changes_nothing(tmp_path: Path) -> None:
    inside = "mount -t tmpfs none /srv; for i in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of=/srv/$i bs=1M count=1; done"
    outside = "mknod dev/urandom c 1 9"
    with box(tmp_path, inside=inside, outside=outside) as one:
        (item,) = items_of([one])
        report_data = []
        report = Recorder()
        stream = item.read(report)
        report_data.append(bytes(next(stream)))
        os.kill(one.pid, 9)
        deadline = time.monotonic() + 5
        while Path(f"/proc/{one.pid}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        report_data += [bytes(chunk) for chunk in stream]
    names = {member.path for member in report.members}
    assert {b"/srv/%d" % number for number in range(1, 9)} <= names
    assert not report.gaps


def test_one_that_ended_before_is_a_gap_whoever_has_its_number_now(tmp_path: Path) -> None:
    with box(tmp_path) as one:
        (item,) = items_of([one])
    with pytest.raises(AcquirerError) as caught:
        read(item)
    assert caught.value.reason is Reason.VANISHED


def test_a_process_with_its_number_is_not_taken_for_it(tmp_path: Path) -> None:
    with box(tmp_path) as one:
        (item,) = items_of([one])

        def later(data: bytes) -> Stat | None:
            found = parse_stat(data)
            return replace(found, start_ticks=found.start_ticks + 1) if found else None

        with mock.patch("acquirers.live.groups.parse_stat", later), pytest.raises(AcquirerError) as caught:
            read(item)
    assert caught.value.reason is Reason.VANISHED


def test_a_container_that_pivots_and_mounts_without_end_is_read_as_it_was(tmp_path: Path) -> None:
    """It swaps its root for a link farm to the machine while it is read."""
    inside = """
      mkdir /other /other/old /other/bin; cp /bin/busybox /other/bin; ln -s busybox /other/bin/sh
      (while :; do mount -t tmpfs none /tmp; echo x > /tmp/x; umount /tmp; done) &
      (while :; do mv /opt /opt2; ln -s / /opt; rm /opt; mv /opt2 /opt; done) &"""
    with box(tmp_path, inside=inside) as one:
        for _ in range(5):
            found = read_box(one)
            assert "/etc/motd" in found.names
            assert not [name for name in found.names if name.startswith("/opt/etc")]
            assert {reason for reason, _ in found.gaps} <= {"vanished", "not-crossed"}


def test_the_namespace_of_a_service_is_no_container(tmp_path: Path) -> None:
    command = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        "mount -t tmpfs none /mnt; echo ready; exec sleep 60",
    ]
    with running(command, ready=b"ready") as child:
        mnt = os.stat(f"/proc/{child.pid}/ns/mnt").st_ino
        census = look(Host(Mode.HOST), Scope(), {})
    assert mnt not in {group.mnt for group in census.groups}


def test_what_is_chosen_and_what_is_planned(tmp_path: Path) -> None:
    with box(tmp_path) as one:
        label = f"mnt-{one.mnt}"
        found = LiveFiles().probe(Host(Mode.HOST), Scope(containers=(label, "other")))
        assert found.state is State.AVAILABLE
        assert found.matched == {label}
        assert [(subject.id, subject.selected) for subject in found.subjects if subject.selected] == [(label, True)]
        assert f"/proc/{one.pid}/root".encode() in found.reads
        assert LiveFiles().probe(Host(Mode.HOST), Scope(containers=("other",))).state is State.ABSENT


def test_an_item_is_named_after_namespace_and_command(tmp_path: Path) -> None:
    with box(tmp_path) as one:
        (item,) = items_of([one])
    assert re.fullmatch(r"live/mnt-\d+-sleep\.tar", item.path)


def test_a_child_that_hangs_is_given_up(tmp_path: Path) -> None:
    def hang(*_: object, **__: object) -> None:
        time.sleep(60)

    with box(tmp_path) as one:
        (item,) = items_of([one])
        started = time.monotonic()
        with (
            mock.patch.object(calls, "setns", hang),
            mock.patch.object(entering_module.enter, "__defaults__", (Patience(first=0.3),)),
            pytest.raises(AcquirerError) as caught,
        ):
            read(item)
        assert time.monotonic() - started < 10
    assert caught.value.reason is Reason.STUCK


def test_only_the_writable_layer_where_image_layers_were_not_asked_for(tmp_path: Path) -> None:
    for name in ("upper", "work", "merged"):
        (tmp_path / name).mkdir()
    make_rootfs(tmp_path / "lower")
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    script = f"mount -t overlay overlay -o {options} {tmp_path}/merged"
    before = f"cd {tmp_path}/merged; mount -t tmpfs none dev; mount -t proc none proc"
    inside = "echo mine > /opt/config/mine; mount -t tmpfs none /srv; echo volume > /srv/file; rm /etc/motd"
    # Its own script mounts them once more where the overlay will be, and below it.
    for name in ("dev", "proc"):
        (tmp_path / "merged" / name).mkdir()
    with box(tmp_path, outside=f"{script}; {before}", inside=inside, root=tmp_path / "merged") as one:
        scope = Scope(containers=(f"mnt-{one.mnt}",), layers=Layers.UPPER)
        (item,) = items_of([one], scope)
        found = read(item)
        whole = read_box(one)
    assert {"/opt/config/mine", "/srv/file", "/dev", "/proc"} <= found.names
    assert "/etc/passwd" not in found.names
    assert "/opt/config/app.conf" not in found.names
    assert found.flagged("left-out") == [b"/"]
    assert {"/etc/passwd", "/opt/config/app.conf", "/opt/config/mine"} <= whole.names
    assert "/etc/motd" not in whole.names


def test_the_live_host_seen_from_a_pod(tmp_path: Path) -> None:
    with box(tmp_path, inside="mount -t tmpfs none /srv; echo secret > /srv/token") as one:
        live = LiveFiles()
        host = Host(Mode.LIVE_ROOT, b"/", b"/proc")
        (item,) = live.items(host, Scope(containers=(f"mnt-{one.mnt}",)))
        found = read(item)
    assert found.content("[root]/srv/token") == b"secret\n"
    assert found.gaps == []


def test_a_user_reads_what_runs_in_his_own_namespaces() -> None:
    """Rootless, and without root: by way of the user namespace, in which he may do everything."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "rootfs"
        make_rootfs(root)
        for path in (Path(directory), root, *root.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)

        def unprivileged() -> dict[str, object]:
            become_nobody()
            options = ["--map-root-user"]
            inside = "mount -t tmpfs none /srv; echo t > /srv/f"
            with box(Path(directory), inside=inside, options=options, root=root) as one:
                found = read_box(one)
            return {"names": sorted(found.names), "gaps": [str(gap) for gap in found.report.gaps]}

        told = in_child(unprivileged)
    assert "/srv/f" in told["names"]
    assert "/etc/motd" in told["names"]
    assert told["gaps"] == []
