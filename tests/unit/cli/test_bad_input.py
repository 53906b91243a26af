"""Bad input gets one clear line and exit 2, nothing is read and nothing is created."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.runs import Script, acquire, agent_command, impound, keygen, play


def refused(result: tuple[int, dict[str, object], str], *words: str) -> None:
    code, line, error = result
    assert code == 2, (code, error)
    assert len(error.splitlines()) == 1, error
    assert all(word in error for word in words), error
    assert not line


@pytest.fixture
def recipient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    play(monkeypatch, Script())
    return keygen(tmp_path)[1]


@pytest.mark.parametrize("text", ["bogus", "age1qqqq", "age1" + "q" * 58, "ssh-ed25519 AAAA", "age1tag1xyz", ""])
def test_an_unknown_recipient_is_refused(tmp_path: Path, recipient: str, text: str) -> None:
    refused(acquire(tmp_path / "ev", text))
    assert not (tmp_path / "ev").exists()


def test_a_private_key_as_recipient_is_refused_and_not_repeated(tmp_path: Path, recipient: str) -> None:
    secret = next(line for line in (tmp_path / "case.key").read_text().splitlines() if line.startswith("AGE-SECRET"))
    result = acquire(tmp_path / "ev", secret)
    refused(result, "private")
    assert secret not in result[2]
    assert secret.lower() not in result[2].lower()
    assert not (tmp_path / "ev").exists()


@pytest.mark.parametrize("case", ["../x", "a/b", ".hidden", "", "x" * 65, "a b", "a\x1b[31m", "é", "a\n"])
def test_a_case_id_with_a_path_is_refused(tmp_path: Path, recipient: str, case: str) -> None:
    refused(impound("acquire", "--case", case, "--to", tmp_path / "ev", "-r", recipient), "case")
    assert not (tmp_path / "ev").exists()


def test_a_destination_that_cannot_be_one_is_refused(tmp_path: Path, recipient: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    refused(acquire(tmp_path / "file", recipient), "not a directory")
    refused(acquire(tmp_path / "no/such", recipient), "not there")
    refused(acquire(tmp_path / "file/below", recipient))
    refused(impound("acquire", "--case", "C", "--to", "s3://bucket/x", "-r", recipient), "--authority ambient")


def test_a_destination_that_is_not_writable_is_refused(tmp_path: Path, recipient: str) -> None:
    if os.geteuid() == 0:
        refused(acquire(Path("/sys/ev"), recipient))  # not writable, whoever asks
        refused(acquire(Path("/proc/self"), recipient))
    else:
        (tmp_path / "ro").mkdir(mode=0o500)
        refused(acquire(tmp_path / "ro/ev", recipient), "writable")
        refused(acquire(tmp_path / "ro", recipient), "writable")


def test_a_destination_inside_what_is_read_is_refused(
    tmp_path: Path, recipient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence = tmp_path / "evidence"
    (evidence / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(evidence / "deep")
    play(monkeypatch, Script(), reads=(os.fsencode(evidence),))
    for place in (evidence, evidence / "deep", evidence / "new", evidence / "deep/new", tmp_path / "link/new"):
        refused(acquire(place, recipient), "inside", "choose another place")
    assert sorted(path.name for path in evidence.rglob("*")) == ["deep"]


def test_a_destination_inside_the_root_is_refused(tmp_path: Path, recipient: str) -> None:
    root = tmp_path / "disk"
    (root / "etc").mkdir(parents=True)
    refused(acquire(root / "ev", recipient, "--root", str(root)), "inside")
    assert not (root / "ev").exists()


def test_unknown_names_are_refused(tmp_path: Path, recipient: str) -> None:
    refused(acquire(tmp_path / "ev", recipient, "--container", "nope"), "nope", "web")
    refused(acquire(tmp_path / "ev", recipient, "--only", "nope"), "no acquirer")
    refused(acquire(tmp_path / "ev", recipient, "--only", "host.artifacts"), "not part of this version")
    refused(acquire(tmp_path / "ev", recipient, "--skip", "nope"), "no acquirer")
    refused(acquire(tmp_path / "ev", recipient, "--skip", "containers"), "nothing is left")
    refused(acquire(tmp_path / "ev", recipient, "--profile", "memory"))
    refused(acquire(tmp_path / "ev", recipient, "--profile", "most"), "profile")
    refused(acquire(tmp_path / "ev", recipient, "--layers", "some"), "--layers")
    refused(acquire(tmp_path / "ev", recipient, "--layers", "changed"), "--known-layers")
    (tmp_path / "known").write_text("0" * 64 + "\n")
    refused(acquire(tmp_path / "ev", recipient, "--known-layers", str(tmp_path / "known")), "--layers changed")
    (tmp_path / "wrong").write_text("12 apples\n")
    wrong = acquire(tmp_path / "ev", recipient, "--layers", "changed", "--known-layers", str(tmp_path / "wrong"))
    refused(wrong, "64 digits")
    refused(acquire(tmp_path / "ev", recipient, "--pid", "999999999"), "process")
    refused(acquire(tmp_path / "ev", recipient, "--pid", "0"))
    refused(acquire(tmp_path / "ev", recipient, "--pid", "x"))
    refused(acquire(tmp_path / "ev", recipient, "--deadline", "soon"), "duration")
    refused(acquire(tmp_path / "ev", recipient, "--nonsense"), "--nonsense")
    assert not (tmp_path / "ev").exists()


def test_a_root_that_is_none_is_refused(tmp_path: Path, recipient: str) -> None:
    (tmp_path / "empty").mkdir()
    refused(acquire(tmp_path / "ev", recipient, "--root", str(tmp_path / "empty")), "etc")
    refused(acquire(tmp_path / "ev", recipient, "--root", str(tmp_path / "nothing")), "etc")
    refused(acquire(tmp_path / "ev", recipient, "--root", "/", "--live-root", "/"), "exclude")


def test_what_is_missing_is_named(tmp_path: Path, recipient: str) -> None:
    refused(impound("acquire", "--case", "C", "-r", recipient), "--to")
    refused(impound("acquire", "--to", tmp_path / "ev", "-r", recipient), "--case")
    refused(impound("acquire", "--case", "C", "--to", tmp_path / "ev"), "--recipient")
    refused(impound("acquire", "--case", "C", "--to", tmp_path / "ev", "-R", tmp_path / "none"), "recipients file")
    refused(impound("nonsense"))
    refused(impound("verify", tmp_path, "--signer", "me"), "ed25519")
    refused(impound("open", tmp_path, "-o", tmp_path / "o"), "--identity")
    refused(impound("export", "nonsense", tmp_path, "-o", tmp_path / "o"), "host")


def test_json_asks_for_the_refusal_as_json_too(tmp_path: Path, recipient: str) -> None:
    code, result, error = impound("acquire", "--case", "../x", "--to", tmp_path / "ev", "-r", recipient, "--json")
    assert (code, result["verdict"], result["exit"]) == (2, "refused", 2)
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"case":"C"}',
        b'{"case":"C","to":"/x","recipients":[],"nonsense":1}',
        b'{"case":"C","to":"/x","recipients":[]}',
        b'{"case":"C","to":"/x","recipients":["age1x"],"version":2}',
        b"[" * 100_000,
    ],
)
def test_a_job_that_is_not_valid_is_refused(document: bytes) -> None:
    done = subprocess.run(
        [*agent_command(), "acquire", "--job", "-"], input=document, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == b""


def test_open_wants_a_new_or_empty_directory(tmp_path: Path, recipient: str) -> None:
    acquire(tmp_path / "ev", recipient)
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").write_bytes(b"")
    refused(impound("open", tmp_path / "ev", "-i", tmp_path / "case.key", "-o", full), "not empty")
    refused(impound("keygen", "-o", tmp_path / "case.key"), "not overwritten")
