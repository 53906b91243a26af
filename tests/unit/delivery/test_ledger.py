"""The controller's ledger: whole after a restart, cut where it was torn, refused where it was changed."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.delivery.ledger import LEDGER, MAX_LINE, Ledger, state_directory
from agent.delivery.notes import (
    Appeared,
    Begun,
    Completing,
    Ended,
    Found,
    Greeted,
    Heading,
    Minted,
    Note,
    Opened,
    PartSigned,
    Reported,
    Storing,
    Unmade,
)
from agent.errors import DamagedError, ImpoundError, UsageError
from agent.stores.base import Part

RUN = "01890a5d-ac96-774b-bcce-b302099a8057"
AB = "ab" * 32
NOTES: list[Note] = [
    Opened(RUN, "C-1", "s3://b/p", "broker", 1, "impound 0", AB),
    Greeted("i-0abc", 1, "ed25519:" + AB, "impound 0"),
    Storing(RUN, "progress/000000.json", 2, AB),
    Appeared(RUN, "progress/000000.json"),
    Begun(RUN, "a.age", "upload-1"),
    PartSigned(RUN, "a.age", "upload-1", 2, 100, AB),
    PartSigned(RUN, "a.age", "upload-1", 1, 5 << 20, AB),
    Heading(AB, 5, 1),
    Completing(RUN, "a.age", "upload-1", 2, (5 << 20) + 100, "x-2", "sha256"),
    Appeared(RUN, "a.age"),
    Begun(RUN, "b.age", "upload-2"),
    PartSigned(RUN, "b.age", "upload-2", 1, 5 << 20, AB),
    Storing(RUN, "c.json", 3, AB),
    Unmade(RUN, "c.json", "there is one"),
    Minted("role", "session", "s3://b/p", 1.0),
    Found("something"),
    Reported("{}"),
    Ended("partial", "why"),
]


def write(base: Path) -> Path:
    with Ledger.create(str(base), RUN) as ledger:
        for note in NOTES:
            ledger.note(note)
    return base / RUN / LEDGER


def test_what_is_read_back_is_what_was_known(tmp_path: Path) -> None:
    with Ledger.create(str(tmp_path), RUN) as ledger:
        for note in NOTES:
            ledger.note(note)
        state, head, lines = Ledger.load(ledger.path)
        assert (state, head, lines) == (ledger.state, ledger.head, ledger.lines)
    assert set(state.objects) == {"progress/000000.json", "a.age"}
    assert state.uploads["b.age"].parts == {1: Part(5 << 20, bytes.fromhex(AB))}
    assert (state.parts, state.size, state.verdict) == (3, 2 * (5 << 20) + 105, "partial")
    assert state.findings == ["something"]


def test_the_next_attempt_begins_anew_what_was_not_completed(tmp_path: Path) -> None:
    """What was being completed when a controller was killed is not known to be there: the bucket says it."""
    with Ledger.create(str(tmp_path), RUN) as ledger:
        for note in NOTES[:9]:
            ledger.note(note)
        assert not ledger.state.objects["a.age"].sure
        ledger.note(Opened(RUN, "C-1", "s3://b/p", "broker", 2, "impound 0", AB))
        assert set(ledger.state.objects) == {"progress/000000.json"}
        assert [one.name for one in ledger.state.abandoned] == ["a.age"]
        assert ledger.state.uploads == {}
        with pytest.raises(DamagedError, match="two runs"):
            ledger.note(Opened(RUN, "C-2", "s3://b/p", "broker", 3, "impound 0", AB))


def test_nobody_else_reads_it(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        path = write(tmp_path / "new" / "base")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_there_is_one_ledger_of_a_run_and_one_controller_on_it(tmp_path: Path) -> None:
    with Ledger.create(str(tmp_path), RUN):
        with pytest.raises(UsageError, match="another controller"):
            Ledger.reopen(str(tmp_path), RUN)
        with pytest.raises(UsageError, match="cannot be made"):
            Ledger.create(str(tmp_path), RUN)
    Ledger.reopen(str(tmp_path), RUN).close()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError):
        Ledger.load(str(path))
    with pytest.raises(UsageError):
        Ledger.reopen(str(tmp_path), RUN)


def test_cut_anywhere_it_says_less_and_goes_on(tmp_path: Path) -> None:
    """What `kill -9` leaves: every length of the file is a ledger, and its chain goes on from there."""
    path = write(tmp_path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        before = whole[:length].count(b"\n")
        state, head, lines = Ledger.load(str(path))
        assert lines == before
        with Ledger.reopen(str(tmp_path), RUN) as ledger:
            torn = length - len(b"".join(whole.splitlines(keepends=True)[:before]))
            assert ledger.lines == before + (torn > 0)
            if not torn:
                assert (ledger.head, ledger.state) == (head, state)
            ledger.note(Found("goes on"))
        state, _, lines = Ledger.load(str(path))
        assert lines == before + (torn > 0) + 1
        assert state.findings[-1] == "goes on"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(data=st.data())
def test_any_change_of_a_line_is_seen(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / RUN / LEDGER
    whole = path.read_bytes() if path.exists() else write(tmp_path).read_bytes()
    lines = whole.splitlines(keepends=True)
    kind = data.draw(st.sampled_from(["bit", "out", "swap", "twice"]))
    first = data.draw(st.integers(0, len(lines) - 2))
    if kind == "bit":
        at = data.draw(st.integers(0, len(whole) - len(lines[-1]) - 1))
        changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    elif kind == "out":
        changed = b"".join(lines[:first] + lines[first + 1 :])
    elif kind == "swap":
        changed = b"".join([*lines[:first], lines[first + 1], lines[first], *lines[first + 2 :]])
    else:
        changed = b"".join([*lines[: first + 1], *lines[first:]])
    path.write_bytes(changed)
    try:
        with pytest.raises(DamagedError):
            Ledger.load(str(path))
    finally:
        path.write_bytes(whole)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(garbage=st.binary(max_size=300))
def test_garbage_is_no_ledger(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(garbage + b"\n")
    with pytest.raises(DamagedError):
        Ledger.load(str(path))


def test_a_line_without_an_end_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "long"
    with path.open("wb") as file:
        file.truncate(MAX_LINE * 4000)
    with pytest.raises(DamagedError, match="longer"):
        Ledger.load(str(path))


def test_a_chain_that_says_what_cannot_be(tmp_path: Path) -> None:
    """The chain alone can be made by anybody: what it says is held against what was said before, too."""
    second = PartSigned(RUN, "a.age", "upload-1", 1, 6 << 20, AB)
    with Ledger.create(str(tmp_path), RUN) as ledger:
        ledger.note(NOTES[0])
        ledger.note(Begun(RUN, "a.age", "upload-1"))
        ledger.note(PartSigned(RUN, "a.age", "upload-1", 1, 5 << 20, AB))
        with pytest.raises(DamagedError):
            ledger.note(second)
    with pytest.raises(DamagedError, match="signs it twice"):
        Ledger.load(ledger.path)


def test_after_a_failed_write_nothing_more_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.create(str(tmp_path), RUN) as ledger:
        ledger.note(NOTES[0])

        def full(_fd: int, _data: bytes) -> int:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as broken:
            broken.setattr("agent.delivery.ledger.os.write", full)
            with pytest.raises(ImpoundError, match="No space left"):
                ledger.note(NOTES[1])
        with pytest.raises(ImpoundError, match="could not be written before"):
            ledger.note(NOTES[1])
        assert not ledger.state.host


def test_the_head_is_the_digest_of_the_last_line(tmp_path: Path) -> None:
    path = write(tmp_path)
    last = path.read_bytes().splitlines()[-1]
    assert Ledger.load(str(path))[1] == hashlib.sha256(last).hexdigest()


def test_where_ledgers_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert state_directory() == "/state/impound/runs"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/ir")
    assert state_directory() == "/home/ir/.local/state/impound/runs"
