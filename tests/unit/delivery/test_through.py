"""A program on the other end of a channel: started without a shell, heard with bounds, ended with all it started."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from agent.delivery.lines import MAX_LINE, MAX_SAID
from agent.delivery.through import Program
from agent.errors import UsageError


def gone(pid: int) -> bool:
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_pipe_through_and_back() -> None:
    with Program(["cat"], lambda _line: None) as program:
        os.write(program.reads, b"hello\n")
        assert os.read(program.writes, 100) == b"hello\n"
        assert program.end(5) == 0


def test_arguments_are_a_list_and_no_shell_sees_them(tmp_path: Path) -> None:
    lines: list[bytes] = []
    with Program(["sh", "-c", 'printf "%s\\n" "$@" >&2', "sh", "$(touch x)", "; rm", "*"], lines.append) as program:
        assert program.end(5) == 0
    assert lines == [b"$(touch x)", b"; rm", b"*"]


def test_what_cannot_be_started() -> None:
    with pytest.raises(UsageError, match="cannot be started"):
        Program(["/there/is/no/such/program"], lambda _line: None)
    with pytest.raises(UsageError, match="cannot be started"):
        Program(["cat\x00"], lambda _line: None)


@pytest.mark.parametrize(
    "script",
    [
        "sleep 60",
        "trap '' TERM HUP; while :; do sleep 1; done",
        "trap '' TERM; (trap '' TERM; exec sleep 60) & echo $! >&2; wait; sleep 60",
    ],
)
def test_what_does_not_end_is_ended_with_all_it_started(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.delivery.through.KILL_S", 0.3)
    lines: list[bytes] = []
    with Program(["sh", "-c", script], lines.append) as program:
        pid = program._process.pid
        time.sleep(0.3)
        began = time.monotonic()
        assert program.end(0.2) < 0
        assert time.monotonic() - began < 5
    assert gone(pid)
    assert all(gone(int(line)) for line in lines)


def test_leaving_the_context_ends_it() -> None:
    with Program(["sleep", "60"], lambda _line: None) as program:
        pid = program._process.pid
        assert Path(f"/proc/{pid}").exists()
    assert gone(pid)


def test_what_it_says_is_bounded() -> None:
    lines: list[bytes] = []
    script = "printf 'first\\nlast without an end' >&2"
    with Program(["sh", "-c", script], lines.append) as program:
        program.end(5)
    assert lines == [b"first", b"last without an end"]
    lines.clear()
    with Program(["sh", "-c", "yes | tr -d '\\n' | head -c 3000000 >&2; echo >&2; echo next >&2"], lines.append) as one:
        one.end(20)
    assert lines[0].startswith(b"yyy")
    assert len(lines[0]) <= MAX_LINE + 4
    assert lines[-1] == b"next"
    assert len(lines) == 2
    lines.clear()
    with Program(["sh", "-c", "yes 'a line that says nothing' | head -n 200000 >&2"], lines.append) as one:
        one.end(20)
    assert sum(len(line) + 1 for line in lines) < MAX_SAID + 2 * MAX_LINE
    assert b"not shown" in lines[-1]
