"""Disks that lie: every record that leads somewhere leads out, round in circles, or is a bomb.

In each case nothing is raised, nothing outside of the data root is read, it says what is wrong, and everything else
that is there is taken.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from acquirers.base import FlagKind, Gap, Reason, State
from tests.unit.containers.disk import (
    ROOT,
    SECRET,
    Disk,
    Taken,
    all_flags,
    all_gaps,
    has_logs,
    has_upper,
    hex_id,
    probe,
    short,
    take,
    volume_mount,
)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    made = Disk(tmp_path)
    (tmp_path / "etc/shadow").write_bytes(SECRET)
    (tmp_path / "etc/mount-id").write_bytes(SECRET)
    made.container("web")
    made.container("witness")
    return made


def check(disk: Disk) -> tuple[dict[str, Taken], list[Gap]]:
    """Takes everything. The witness is whole, and no secret is anywhere."""
    assert probe(disk.host()).state is State.AVAILABLE
    taken = take(disk.host())
    witness = taken[f"containers/docker/{hex_id('container witness')[:12]}-witness.tar"]
    assert not witness.gaps
    assert witness.content(f"{ROOT}/overlay2/{hex_id('mount witness')}/diff/content") == b"written by witness"
    assert not [path for path, one in taken.items() if SECRET in one.data]
    return taken, all_gaps(taken)


def web(taken: dict[str, Taken]) -> Taken:
    return next(one for path, one in taken.items() if hex_id("container web")[:12] in path)


def sparse(path: Path, size: int = 1 << 30) -> None:
    with path.open("wb") as file:
        file.truncate(size)


class TestConfig:
    @pytest.mark.parametrize(
        "data",
        [b"", b"{", b"null", b"[]", b'{"ID":' + b"[" * 300_000, b"\xff\xfe", b"\0" * 4096,
         b'{"State":{"Running":true,"Pid":' + b"9" * 4000 + b"}}"],
        ids=["empty", "cut", "null", "list", "deep", "no-utf8", "zeros", "number"],
    )  # fmt: skip
    def test_malformed(self, disk: Disk, data: bytes) -> None:
        disk.write_config(hex_id("container web"), data)
        taken, gaps = check(disk)
        assert has_upper(web(taken))
        assert has_logs(web(taken))
        assert data.startswith(b'{"State"') or {gap.reason for gap in gaps} == {Reason.MALFORMED}

    def test_one_gibibyte_of_hole(self, disk: Disk) -> None:
        sparse(disk.docker / "containers" / hex_id("container web") / "config.v2.json")
        taken, gaps = check(disk)
        assert has_upper(web(taken))
        assert [gap.reason for gap in gaps] == [Reason.MALFORMED]
        assert len(web(taken).data) < 1 << 20, "stored as the hole that it is"

    def test_not_there(self, disk: Disk) -> None:
        (disk.docker / "containers" / hex_id("container web") / "config.v2.json").unlink()
        taken, gaps = check(disk)
        assert has_upper(web(taken))
        assert [gap.reason for gap in gaps] == [Reason.MALFORMED]

    @pytest.mark.parametrize("target", ["/etc/shadow", "config.v2.json", "../../../../../../etc/shadow"])
    @pytest.mark.parametrize("name", ["config.v2.json", "hostconfig.json"])
    def test_a_link(self, disk: Disk, name: str, target: str) -> None:
        path = disk.docker / "containers" / hex_id("container web") / name
        path.unlink()
        path.symlink_to(target)
        taken, _ = check(disk)
        assert has_upper(web(taken))
        assert "not a" in repr(web(taken).gaps + web(taken).flags) or "symlink" in repr(
            web(taken).gaps + web(taken).flags
        )

    def test_a_fifo(self, disk: Disk) -> None:
        path = disk.docker / "containers" / hex_id("container web") / "config.v2.json"
        path.unlink()
        os.mkfifo(path)
        taken, gaps = check(disk)
        assert has_upper(web(taken))
        assert [gap.reason for gap in gaps] == [Reason.MALFORMED]

    @pytest.mark.parametrize(
        "name", ["/../../etc/x", "/a\nb", "/\x1b[31mred", "/" + "x" * 5000, "/", "", "/.hidden", "/ä/ö", "/con\0trol"]
    )
    def test_names(self, disk: Disk, name: str) -> None:
        container = disk.container("strange", Name=name)
        taken, gaps = check(disk)
        path = next(path for path in taken if container[:12] in path)
        assert set(path) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/")
        assert path.count("/") == 2
        assert len(path) < 200
        assert not gaps
        if len(name) < 500:
            assert taken[path].item.about["name"] == name.removeprefix("/").encode()

    def test_the_same_name_twice(self, disk: Disk) -> None:
        """Ids that begin alike and names that are reduced to the same word still make two items."""
        ids = []
        for number, name in enumerate(("/ä", "/ö")):
            container = disk.container(f"twin{number}", Name=name)
            ids.append("a" * 12 + container[12:])
            (disk.docker / "containers" / container).rename(disk.docker / "containers" / ids[-1])
            (disk.layerdb / "mounts" / container).rename(disk.layerdb / "mounts" / ids[-1])
        taken, _ = check(disk)
        assert {f"containers/docker/{'a' * 12}-_.tar", f"containers/docker/{'a' * 12}-_-2.tar"} <= set(taken)

    def test_somebody_elses_id_and_log(self, disk: Disk) -> None:
        disk.container("liar", ID="../../../etc", LogPath="/etc/shadow")
        taken, gaps = check(disk)
        assert not gaps
        findings = {flag.where for flag in all_flags(taken) if flag.kind is FlagKind.FINDING}
        assert b"/etc/shadow" in findings

    def test_many_mounts(self, disk: Disk) -> None:
        disk.container("many", MountPoints={f"/{number}": volume_mount("../../etc") for number in range(2000)})
        _, gaps = check(disk)
        assert {gap.reason for gap in gaps} == {Reason.MALFORMED}
        assert len(gaps) < 300


class TestContainers:
    @pytest.mark.parametrize("target", ["/etc", "/", "..", "{self}", "../volumes"])
    def test_a_container_that_is_a_link(self, disk: Disk, target: str) -> None:
        name = hex_id("linked")
        (disk.docker / "containers" / name).symlink_to(target.format(self=name))
        taken, gaps = check(disk)
        assert [gap.where for gap in gaps] == [f"/var/lib/docker/containers/{name}".encode()]
        assert f"{ROOT}/containers/{name}" in taken["containers/docker/runtime.tar"].names()

    @pytest.mark.parametrize("name", [b"A" * 64, b"a" * 63, b"a" * 65, b"new\nline", b"\xff\xfe", b"g" * 64, b"..."])
    def test_what_is_no_container_is_taken_with_the_runtime(self, disk: Disk, name: bytes) -> None:
        path = os.path.join(os.fsencode(disk.docker), b"containers", name)
        os.mkdir(path)
        (Path(os.fsdecode(path)) / "config.v2.json").write_text("hidden")
        taken, gaps = check(disk)
        assert not gaps
        runtime = taken["containers/docker/runtime.tar"]
        assert b"/var/lib/docker/containers/" + name + b"/config.v2.json" in [one.path for one in runtime.members]
        assert FlagKind.FINDING in {flag.kind for flag in runtime.flags}

    def test_the_log_is_a_link(self, disk: Disk) -> None:
        container = hex_id("container web")
        log = disk.docker / "containers" / container / f"{container}-json.log"
        log.unlink()
        log.symlink_to("/etc/shadow")
        taken, _ = check(disk)
        assert has_upper(web(taken))


class TestLayers:
    @pytest.mark.parametrize("record", ["mount-id", "init-id", "parent"])
    @pytest.mark.parametrize(
        "text",
        [
            "../..", "../../../../../etc", "/etc", "", "x" * 300, "a" * 64, "A" * 64, "l", ".", "sha256:../../../etc",
            "sha256:" + "a" * 64, "ünïcode", "a\nb",
        ],
    )  # fmt: skip
    def test_records_that_lead_elsewhere(self, disk: Disk, record: str, text: str) -> None:
        (disk.mount_record("web") / record).write_text(text)
        taken, gaps = check(disk)
        assert has_logs(web(taken))
        assert web(taken).gaps or web(taken).flags
        assert all(gap.reason in {Reason.MALFORMED, Reason.VANISHED} for gap in gaps)
        if record != "mount-id":
            assert has_upper(web(taken))
        else:
            unclaimed = f"containers/docker/{hex_id('mount web')[:12]}-unclaimed.tar"
            assert has_upper(taken[unclaimed]), "what no record leads to is still there, and taken"

    @pytest.mark.parametrize("record", ["mount-id", "init-id", "parent"])
    def test_records_that_are_links_or_holes(self, disk: Disk, record: str) -> None:
        path = disk.mount_record("web") / record
        path.unlink()
        path.symlink_to("/etc/mount-id")
        check(disk)
        path.unlink()
        sparse(path, 1 << 24)
        taken, _ = check(disk)
        assert has_logs(web(taken))

    def test_no_layerdb(self, disk: Disk) -> None:
        (disk.root / "var/lib/docker/image").rename(disk.root / "gone")
        taken = take(disk.host())
        assert has_logs(web(taken))
        assert web(taken).gaps[0].reason is Reason.MALFORMED
        unclaimed = [path for path in taken if path.endswith("-unclaimed.tar")]
        assert len(unclaimed) == 2
        assert any(has_upper(taken[path]) for path in unclaimed)
        layers = [path for path in taken if "/layers/" in path]
        assert len(layers) == 2, "found by the overlay's own records"

    def test_no_record_of_one(self, disk: Disk) -> None:
        disk.mount_record("web").rename(disk.root / "gone")
        taken, gaps = check(disk)
        assert has_logs(web(taken))
        assert [gap.reason for gap in gaps] == [Reason.MALFORMED]

    def test_a_container_that_only_layerdb_knows(self, disk: Disk) -> None:
        (disk.docker / "containers" / hex_id("container web")).rename(disk.root / "gone")
        taken, gaps = check(disk)
        assert has_upper(web(taken))
        assert not gaps
        assert FlagKind.FINDING in {flag.kind for flag in web(taken).flags}

    def test_no_short_links(self, disk: Disk) -> None:
        (disk.overlay / "l").rename(disk.root / "gone")
        taken, gaps = check_but_witness(disk)
        assert has_upper(web(taken))
        assert len([path for path in taken if "/layers/" in path]) == 2, "found by layerdb"
        assert not [gap for gap in gaps if gap.where.startswith(b"/var/lib/docker/overlay2/l")]
        assert FlagKind.FINDING in {flag.kind for flag in web(taken).flags}

    @pytest.mark.parametrize(
        "target",
        [
            "/etc",
            "../../../../../etc",
            "../l",
            ".",
            "",
            "../{id}",
            "../{id}/diff/..",
            "../{id}/diff/",
            "../{id}/diff\n",
        ],
    )
    def test_short_links_that_lead_out(self, disk: Disk, target: str) -> None:
        link = disk.overlay / "l" / short(hex_id("layer top"))
        link.unlink()
        if target:
            link.symlink_to(target.format(id=hex_id("layer top")))
        taken, _ = check_but_witness(disk)
        assert has_upper(web(taken))
        assert f"containers/docker/layers/{hex_id('layer top')[:12]}.tar" in taken
        assert FlagKind.FINDING in {flag.kind for flag in web(taken).flags}

    @pytest.mark.parametrize(
        "text", ["", "l/../../../etc", "../../../etc", "l/" + "A" * 26, ":" * 3000, "\0", "l/x:" * 2000]
    )
    def test_lower_that_leads_out(self, disk: Disk, text: str) -> None:
        (disk.writable("web") / "lower").write_text(text)
        taken, _ = check(disk)
        assert has_upper(web(taken))
        assert len([path for path in taken if "/layers/" in path]) == 2
        assert web(taken).flags or web(taken).gaps

    def test_both_are_gone(self, disk: Disk) -> None:
        (disk.writable("web") / "lower").unlink()
        (disk.mount_record("web") / "parent").write_text("nonsense")
        taken, gaps = check(disk)
        assert has_upper(web(taken))
        assert {gap.reason for gap in gaps} == {Reason.MALFORMED}

    @pytest.mark.parametrize("parent", ["top", "base"])
    def test_parents_in_a_circle(self, disk: Disk, parent: str) -> None:
        record = disk.layerdb / "sha256" / hex_id("chain base") / "parent"
        record.write_text("sha256:" + hex_id("chain " + parent))
        taken = take(disk.host())
        assert has_upper(web(taken))
        assert "back to itself" in repr(web(taken).flags)
        assert len([path for path in taken if "/layers/" in path]) == 2

    def test_an_endless_chain(self, disk: Disk) -> None:
        names = [f"n{number}" for number in range(600)]
        disk.image(*names)
        disk.container("tall", lowers=(names[-1], names[0]))
        taken, gaps = check(disk)
        assert "more than 500" in repr([*gaps, *all_flags(taken)])

    @pytest.mark.parametrize("cache_id", ["../../../etc", "l", "", "/etc", "x" * 64])
    def test_cache_ids_that_lead_out(self, disk: Disk, cache_id: str) -> None:
        disk.image("bad")
        disk.container("victim", lowers=("bad",))
        (disk.layerdb / "sha256" / hex_id("chain bad") / "cache-id").write_text(cache_id)
        taken, gaps = check(disk)
        assert not gaps, "its short link still leads to it"
        assert f"containers/docker/layers/{hex_id('layer bad')[:12]}.tar" in taken

    def test_both_records_name_another_layer(self, disk: Disk) -> None:
        disk.image("other")
        (disk.writable("web") / "lower").write_text("l/" + short(hex_id("layer other")))
        taken, gaps = check(disk)
        assert not gaps
        assert "name different image layers" in repr(web(taken).flags)
        assert f"containers/docker/layers/{hex_id('layer other')[:12]}.tar" in taken
        assert f"containers/docker/layers/{hex_id('layer top')[:12]}.tar" in taken

    def test_a_layer_that_is_a_link(self, disk: Disk) -> None:
        disk.image("linked")
        disk.container("victim", lowers=("linked",))
        directory = disk.overlay / hex_id("layer linked")
        directory.rename(disk.root / "gone")
        directory.symlink_to("/etc")
        _, gaps = check(disk)
        assert {gap.reason for gap in gaps} == {Reason.VANISHED}

    def test_links_inside_of_a_writable_layer(self, disk: Disk) -> None:
        diff = disk.writable("web") / "diff"
        (diff / "abs").symlink_to("/etc/shadow")
        (diff / "up").symlink_to("../" * 40 + "etc/shadow")
        (diff / "self").symlink_to("self")
        taken, gaps = check(disk)
        assert not gaps
        assert {f"{ROOT}/overlay2/{hex_id('mount web')}/diff/{name}" for name in ("abs", "up", "self")} <= set(
            web(taken).names()
        )

    @pytest.mark.parametrize("area", ["mount", "init", "work"])
    def test_the_writable_layer_is_a_link(self, disk: Disk, area: str) -> None:
        directory = disk.overlay / (hex_id("mount web") + ("-init" if area == "init" else ""))
        if area == "work":
            directory /= "work"
        directory.rename(disk.root / "gone")
        directory.symlink_to("/etc")
        taken, _ = check(disk)
        assert has_logs(web(taken))


def check_but_witness(disk: Disk) -> tuple[dict[str, Taken], list[Gap]]:
    """As `check`, where what is broken is broken for all containers."""
    taken = take(disk.host())
    assert not [path for path, one in taken.items() if SECRET in one.data]
    return taken, all_gaps(taken)


def test_an_area_that_is_a_file_or_a_fifo(disk: Disk) -> None:
    for area, make in (("volumes", Path.touch), ("network", os.mkfifo), ("buildkit", Path.touch)):
        path = disk.docker / area
        if path.exists():
            path.rename(disk.root / f"gone-{area}")
        make(path)
    _, gaps = check(disk)
    assert b"/var/lib/docker/volumes" in {gap.where for gap in gaps}
