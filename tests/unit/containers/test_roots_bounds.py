"""Where Docker keeps its data: what is not looked at because of a limit, or ignored, is a gap that names the file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from acquirers.base import Reason
from acquirers.containers import search
from acquirers.containers.docker import roots, settings
from acquirers.containers.docker.roots import Found, find_roots
from acquirers.host import Host, Mode


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc/docker").mkdir(parents=True)
    return tmp_path


def told(root: Path) -> tuple[Found, set[tuple[Reason, bytes]]]:
    found = find_roots(Host(Mode.DEAD, os.fsencode(root)))
    return found, {(gap.reason, gap.where) for gap in found.gaps}


def test_too_many_homes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MAX_LINES", 100)
    (root / "home/first/.local/share/docker/containers").mkdir(parents=True)
    users = "".join(f"u{number}:x:1:1::/home/first:/\n" for number in range(100))
    (root / "etc/passwd").write_text(users)
    assert told(root)[1] == set()
    (root / "etc/passwd").write_text(users + "late:x:1:1::/home/late:/\n")
    found, gaps = told(root)
    assert gaps == {(Reason.LIMIT, b"/etc/passwd")}
    assert [one.path for one in found.roots] == [b"/home/first/.local/share/docker"]


def test_a_list_of_homes_that_is_too_large_or_none(root: Path) -> None:
    (root / "etc/passwd").write_bytes(b"#" * (5 << 20))
    assert told(root)[1] == {(Reason.LIMIT, b"/etc/passwd")}
    (root / "etc/passwd").unlink()
    assert told(root)[1] == set()
    (root / "etc/passwd").mkdir()
    assert {where for _, where in told(root)[1]} == {b"/etc/passwd"}


def test_a_large_list_of_homes_is_read(root: Path) -> None:
    (root / "home/late/.local/share/docker/containers").mkdir(parents=True)
    filler = "".join(f"u{number}:x:1:1:{'x' * 200}:/:/\n" for number in range(9000))
    (root / "etc/passwd").write_text(filler + "late:x:1:1::/home/late:/\n")
    found, gaps = told(root)
    assert len(filler) > 1 << 20
    assert not gaps
    assert [one.path for one in found.roots] == [b"/home/late/.local/share/docker"]


def test_a_unit_with_too_many_lines(root: Path) -> None:
    unit = root / "etc/systemd/system/docker.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("\n" * 10_000 + "[Service]\nExecStart=/usr/bin/dockerd --data-root /late\n")
    assert told(root)[1] == {(Reason.LIMIT, b"/etc/systemd/system/docker.service")}


@pytest.mark.parametrize("path", ["docker", "./x", "~/docker", "x" * 3000, "/" + "x" * 4095])
def test_a_data_root_that_is_no_absolute_path(root: Path, path: str) -> None:
    (root / "etc/docker/daemon.json").write_text(json.dumps({"data-root": path}))
    found, gaps = told(root)
    assert gaps == {(Reason.MALFORMED, b"/etc/docker/daemon.json")}
    assert len(found.gaps[0].detail) < 400


@pytest.mark.parametrize("argument", ["--data-root=%h/docker", "-g $ROOT", "--config-file=etc/d.json"])
def test_a_unit_that_leaves_the_path_to_systemd(root: Path, argument: str) -> None:
    unit = root / "etc/systemd/system/docker.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(f"[Service]\nExecStart=/usr/bin/dockerd {argument}\n")
    assert told(root)[1] == {(Reason.MALFORMED, b"/etc/systemd/system/docker.service")}


def test_configuration_that_is_too_large(root: Path) -> None:
    (root / "etc/docker/daemon.json").write_bytes(b" " * 300_000)
    assert told(root)[1] == {(Reason.LIMIT, b"/etc/docker/daemon.json")}


def test_a_data_root_with_too_many_names(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roots, "_MAX_NAMES", 20)
    (root / "big").mkdir()
    for number in range(30):
        (root / f"big/{number}").touch()
    (root / "etc/docker/daemon.json").write_text('{"data-root": "/big"}')
    assert told(root)[1] == {(Reason.LIMIT, b"/big")}


def test_many_sources_and_many_gaps(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MAX_TOLD", 10)
    (root / "var/lib/docker/containers").mkdir(parents=True)
    drop_ins = root / "etc/systemd/system/docker.service.d"
    drop_ins.mkdir(parents=True)
    for number in range(60):
        (drop_ins / f"{number:02}.conf").write_text("ExecStart=dockerd -g /var/lib/docker\n")
    for number in range(60, 80):
        (drop_ins / f"{number}.conf").write_text(f"ExecStart=dockerd -g /gone{number}\n")
    found, gaps = told(root)
    assert len(found.roots[0].found_by) == len(found.roots[0].configs) == 20
    assert {reason for reason, _ in gaps} == {Reason.LIMIT}
    assert len(found.gaps) == len(found.flags) == 10
    assert "not told" in found.gaps[-1].detail
    assert "not told" in found.flags[-1].detail
