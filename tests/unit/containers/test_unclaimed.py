"""Writable layers that no container claims, and those that nothing names any more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from acquirers.base import FlagKind
from acquirers.containers.docker import acquirer, items
from tests.unit.containers.disk import ROOT, Disk, all_gaps, hex_id, probe, short, take

if TYPE_CHECKING:
    from collections.abc import Iterable


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def hide(disk: Disk, name: str) -> str:
    """A container of which only the writable layer is left."""
    disk.container(name)
    for path in (
        disk.docker / "containers" / hex_id("container " + name),
        disk.mount_record(name),
        disk.overlay / (hex_id("mount " + name) + "-init"),
    ):
        path.rename(disk.root / f"gone-{name}-{path.parent.name}")
    return f"containers/docker/{hex_id('mount ' + name)[:12]}-unclaimed.tar"


def upper(name: str) -> str:
    return f"{ROOT}/overlay2/{hex_id('mount ' + name)}/diff/content"


def layer_items(taken: Iterable[str]) -> list[str]:
    return [path for path in taken if "/layers/" in path]


def test_it_is_taken_with_what_it_stands_on(disk: Disk) -> None:
    disk.image("lonely")
    path = hide(disk, "web")
    taken = take(disk.host())
    assert not all_gaps(taken)
    assert taken[path].content(upper("web")) == b"written by web"
    assert f"{ROOT}/overlay2/l/{short(hex_id('layer top'))}" in taken[path].names()
    assert [(flag.kind, flag.where.decode()[-64:]) for flag in taken[path].flags] == [
        (FlagKind.FINDING, hex_id("mount web"))
    ]
    assert len(layer_items(taken)) == 2, "and no layer of an image that nothing stands on"
    subjects = [one.state for one in probe(disk.host()).subjects if one.id == hex_id("mount web")]
    assert subjects == ["claimed by no container"]


def test_a_directory_without_a_diff_is_no_layer(disk: Disk) -> None:
    (disk.overlay / hex_id("empty")).mkdir()
    assert not [path for path in take(disk.host()) if "unclaimed" in path]


def test_layers_without_any_record_are_layers_of_what_stands_on_them(disk: Disk) -> None:
    path = hide(disk, "web")
    (disk.docker / "image").rename(disk.root / "gone")
    taken = take(disk.host())
    assert [one for one in taken if "unclaimed" in one] == [path]
    assert len(layer_items(taken)) == 2


def test_layers_in_a_circle_are_taken_all_the_same(disk: Disk) -> None:
    ids = [hex_id("a circle"), hex_id("of layers")]
    for one, other in (ids, ids[::-1]):
        (disk.layer(one, "x") / "lower").write_text("l/" + short(other))
    taken = take(disk.host())
    names = [name for one in taken.values() for name in one.names()]
    assert {f"{ROOT}/overlay2/{one}/diff/content" for one in ids} <= set(names)


def test_many_are_one_item(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "_MAX_SINGLE", 2)
    monkeypatch.setattr(acquirer, "_MAX_LISTED", 3)
    for number in range(6):
        hide(disk, f"c{number}")
    (disk.writable("c5") / "merged").rmdir()
    (disk.writable("c5") / "merged").symlink_to("/etc")
    disk.image("above")
    disk.container("left", lowers=("above", "top"))
    for path in (disk.docker / "containers" / hex_id("container left"), disk.mount_record("left")):
        path.rename(disk.root / f"gone-left-{path.parent.name}")
    taken = take(disk.host())
    many = taken["containers/docker/overlay2-unclaimed.tar"]
    assert len([path for path in taken if "unclaimed" in path]) == 3
    assert many.item.about["unclaimed_layers"] == 5
    assert len(many.flags) == 5
    names = [name for path, one in taken.items() if "unclaimed" in path for name in one.names()]
    for name in [*(f"c{number}" for number in range(6)), "left"]:
        assert names.count(upper(name)) == 1
    assert f"{ROOT}/overlay2/{hex_id('mount left')}-init/diff" in names
    assert sum(name.endswith("/merged") for name in names) == 7, "one of them a link, which nobody follows"
    assert f"containers/docker/layers/{hex_id('layer above')[:12]}.tar" in taken
    states = [one.state for one in probe(disk.host()).subjects if "claimed" in one.state]
    assert states == [*["claimed by no container"] * 3, "4 more, claimed by no container"]


def test_what_is_wrong_with_many_is_counted(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "_MAX_SINGLE", 2)
    for number in range(7):
        (disk.overlay / (hex_id(f"u{number}") + "-init")).mkdir()
        (disk.overlay / hex_id(f"u{number}") / "diff").mkdir(parents=True)
    gaps = take(disk.host())["containers/docker/overlay2-unclaimed.tar"].gaps
    assert [gap.detail.split()[0] for gap in gaps] == ["the", "the", "3"]
