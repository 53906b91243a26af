"""Which binary is brought to a host: the one of this release, or one that a person names."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from agent.delivery import released
from agent.errors import UsageError

X86, ARM = 62, 183


def elf(path: Path, machine: int, more: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x7fELF\x02\x01" + bytes(12) + machine.to_bytes(2, "little") + more)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(released, "released", lambda: json.loads((tmp_path / "released.json").read_text()))
    (tmp_path / "released.json").write_text("{}")
    return tmp_path


def release(home: Path, path: Path, architecture: str = "x86_64") -> str:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (home / "released.json").write_text(json.dumps({architecture: digest}))
    return digest


def test_the_one_of_this_release_lies_where_releases_are_put(home: Path) -> None:
    path = elf(Path(released.place("x86_64")), X86)
    assert path.is_relative_to(home / "impound")
    digest = release(home, path)
    found = released.find("x86_64")
    assert (found.path, found.sha256, found.size, found.released) == (str(path), digest, 20, True)


def test_another_one_is_refused_there_and_taken_by_name(home: Path) -> None:
    path = elf(Path(released.place("x86_64")), X86)
    digest = release(home, path)
    elf(path, X86, b"changed")
    with pytest.raises(UsageError, match=f"is not the agent of this release: it has SHA-256 [0-9a-f]+, not {digest}"):
        released.find("x86_64")
    assert released.find("x86_64", str(path)).released is False


def test_without_a_release_one_must_be_named(home: Path, tmp_path: Path) -> None:
    elf(Path(released.place("x86_64")), X86)
    with pytest.raises(UsageError, match="not made by a release"):
        released.find("x86_64")
    assert released.find("aarch64", str(elf(tmp_path / "arm", ARM))).architecture == "aarch64"


def test_it_says_where_to_put_one_that_is_missing(home: Path) -> None:
    (home / "released.json").write_text(json.dumps({"x86_64": "0" * 64}))
    with pytest.raises(UsageError, match=re.escape(released.place("x86_64")) + ".*put impound-linux-x86_64 of release"):
        released.find("x86_64")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is no agent"),
        (b"#!/bin/sh\n", "is for no machine"),
        (b"\x7fELF\x01\x01" + bytes(20), "is for no machine"),
    ],
)
def test_what_is_no_binary(home: Path, content: bytes, why: str) -> None:
    (home / "file").write_bytes(content)
    with pytest.raises(UsageError, match=why):
        released.find("x86_64", str(home / "file"))
    with pytest.raises(UsageError, match="is no agent"):
        released.find("x86_64", "/dev/zero")


def test_other_machines_have_none(home: Path) -> None:
    with pytest.raises(UsageError, match="there is no agent for riscv64"):
        released.find("riscv64")


def test_this_tree_is_no_release() -> None:
    assert released.released() == {}
