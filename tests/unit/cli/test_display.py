"""What a person sees: a live display on a terminal, JSON lines elsewhere, and never a name that a terminal obeys."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from typing import TYPE_CHECKING

import pytest

from acquirers.base import Availability, Flag, FlagKind, Gap, Reason, State
from agent import events
from agent.cli.display import JsonLines
from agent.cli.output import compact, json_line, printable, size
from tests.support.docker_disk import make_disk
from tests.support.runs import ENVIRONMENT, agent_command, impound, keygen

if TYPE_CHECKING:
    from pathlib import Path


def on_a_terminal(command: list[str]) -> tuple[int, bytes, bytes]:
    """Exit code, standard output, and what was written to the terminal as standard error."""
    leader, follower = pty.openpty()
    environment = ENVIRONMENT | {"TERM": "xterm", "COLUMNS": "150", "LINES": "40"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env=environment) as process:
        os.close(follower)
        seen = b""
        while True:
            try:
                data = os.read(leader, 65536)
            except OSError:
                break
            if not data:
                break
            seen += data
        assert process.stdout is not None
        out = process.stdout.read()
    os.close(leader)
    return process.returncode, out, seen


def test_a_terminal_shows_what_is_read_and_what_is_whole(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    make_disk(disk, containers=2, files=4, size=3_000_000)
    _, recipient = keygen(tmp_path)
    to = str(tmp_path / "ev")
    code, out, seen = on_a_terminal(
        [*agent_command(), "acquire", "--case", "C-7", "--to", to, "-r", recipient, "--root", str(disk)]
    )
    assert code == 0, seen
    assert json.loads(out.splitlines()[-1])["verdict"] == "complete"
    text = seen.decode()
    assert "case C-7" in text
    assert text.count("whole") >= 3
    assert "0 gaps" in text
    assert "complete: everything" in text
    assert '"event"' not in text


def test_without_a_terminal_there_is_a_json_line_per_event(capsys: pytest.CaptureFixture[str]) -> None:
    lines = JsonLines()
    lines.observe(events.RunStarted("r", "c", "h", 1, "s", "/x"))
    lines.observe(events.GapFound("i", Gap(Reason.DENIED, "no\x1b[31m", b"/a\xff\n\x1b]0;x\x07", 5)))
    lines.observe(events.FlagRaised("i", Flag(FlagKind.CHANGED, "c", b"/b")))
    lines.observe(events.AcquirerStarted("a", Availability(State.AVAILABLE)))
    written = capsys.readouterr().err
    assert "\x1b" not in written
    records = [json.loads(line) for line in written.splitlines()]
    assert [record["event"] for record in records] == ["run-started", "gap-found", "flag-raised", "acquirer-started"]
    assert records[1]["gap"]["where_b64"]


def test_no_event_gives_a_terminal_anything_to_obey(capsys: pytest.CaptureFixture[str]) -> None:
    JsonLines().observe(events.GapFound("i\x9b2J", Gap(Reason.DENIED, "a\u202eb\ud800", b"/x")))
    written = capsys.readouterr().err
    assert printable(written.rstrip("\n")) == written.rstrip("\n")
    assert json.loads(written)["item"] == "i\x9b2J"


def test_a_flood_of_gaps_does_not_flood_the_channel(capsys: pytest.CaptureFixture[str]) -> None:
    lines = JsonLines()
    for _ in range(5000):
        lines.observe(events.GapFound("i", Gap(Reason.DENIED, "no")))
    assert len(capsys.readouterr().err.splitlines()) == 1000


@pytest.mark.parametrize(
    "name",
    ["a\x1b[31mb", "a\nb", "a\r\bb", "\u202egpj.exe", "\u200bx", "\x00", "\x9b31m", "a\u2028b", "\U000e0041", "\ud800"],
)
def test_no_name_moves_a_cursor_or_turns_a_line(name: str) -> None:
    shown = printable(name)
    assert shown.isprintable()
    assert "\\" in shown


def test_ordinary_names_stay_as_they_are() -> None:
    for name in ("web-1", "naïve café", "日本語", "a b"):
        assert printable(name) == name
    assert printable(b"\xff\xfe") == "\\xff\\xfe"
    assert (size(0), size(1536), size(None), size(5 << 40)) == ("0 B", "1.5 KiB", "?", "5.0 TiB")


def test_a_result_line_is_cut_until_it_is_short() -> None:
    line = compact({"verdict": "gaps", "list": ["x" * 50] * 200, "other": ["y" * 90] * 50, "text": "z" * 5000})
    assert len(line) < 2000
    assert json.loads(line)["verdict"] == "gaps"


def test_a_result_line_is_safe_on_a_terminal_and_its_values_stay() -> None:
    result = {"key": "a\x9b2J\u202eb\x7f\u200b\u2028", "far": ["\U000e0041"], "na\x9bme": {"\u202e": "naïve 日本語 \n"}}
    line = compact(dict(result))
    assert line.isprintable()
    assert printable(line) == line
    assert "naïve 日本語" in line
    assert json.loads(line) == result
    assert len(compact({"verdict": "x", "list": ["\x9b" * 30] * 40})) < 2000


def test_bytes_that_are_no_text_are_escaped_and_end_nothing() -> None:
    result: dict[str, object] = {"key": "a\udcffb", "list": ["\ud800"], "dict": {"na\udc9bme": {"x": "\udfff"}}}
    assert json.loads(compact(dict(result))) == {
        "key": "a\\udcffb", "list": ["\\ud800"], "dict": {"na\\udc9bme": {"x": "\\udfff"}}
    }  # fmt: skip
    assert json_line(result) == compact(result)
    assert printable(json_line({"a": "\x9b2J\u202e\x1b"})) == '{"a":"\\u009b2J\\u202e\\u001b"}'


def test_a_standard_error_that_is_closed_does_not_end_a_run(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    make_disk(disk, containers=1, files=2)
    _, recipient = keygen(tmp_path)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*agent_command(), "acquire", "--case", "C", "--to", tmp_path / "ev", "-r", recipient, "--root", disk],
        stdout=subprocess.PIPE, stderr=writer, env=ENVIRONMENT, timeout=60, check=False,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, json.loads(done.stdout)["verdict"]) == (0, "complete")


@pytest.mark.parametrize("closing", ["2>&-", ">&-", ">&- 2>&- <&-"])
def test_streams_that_are_not_there_do_not_end_a_run(tmp_path: Path, closing: str) -> None:
    disk = tmp_path / "disk"
    make_disk(disk, containers=1, files=2)
    _, recipient = keygen(tmp_path)
    words = ["acquire", "--case", "C", "--to", str(tmp_path / "ev"), "-r", recipient, "--root", str(disk)]
    command = ["sh", "-c", f'exec "$@" {closing}', "sh", *agent_command(), *words]
    assert subprocess.run(command, env=ENVIRONMENT, timeout=60, check=False, capture_output=True).returncode == 0
    assert impound("verify", tmp_path / "ev")[0] == 0
