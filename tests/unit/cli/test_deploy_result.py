"""What `deploy` says at its end: to a program, to the shell and to a person the same, and never more than is known."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest

from agent.cli.deploy_result import Ending, end_of, result_of, summarize
from agent.cli.output import compact, printable
from agent.delivery.notes import Whole
from agent.delivery.told import Told

VERDICTS = ("complete", "gaps", "stopped", "failed", "partial", "refused")
PLACE = "s3://evidence/cases/C-1/h-1/01a203df-f4aa-7fe1-aa40-54dfdfcb8a21"
SIGNER, MINE = "ed25519:" + "a" * 64, "ed25519:" + "b" * 64
OBJECT = Whole("receipt.json", 5, "x", "c" * 64, "whole", sure=True)


def told(verdict: str, *, found: int = 0, stored: bool = True, why: str = "", said: str = "", **result: Any) -> Told:
    result |= {"verdict": said} if said else {}
    return Told(
        verdict=verdict, why=why, run=PLACE.rpartition("/")[2], case="C-1", host="h-1", attempt=1, signer=SIGNER,
        tool="impound 0", location=PLACE, authority="broker", objects={"receipt.json": OBJECT} if stored else {},
        unfinished=[], custody="", custody_lines=0, heads=0, result=result,
        findings=[f"odd {number}" for number in range(found)], refused=0, ledger="/ledger", ledger_head="d" * 64,
        ledger_lines=3, receipt_sha256="c" * 64 if stored else "", found=found,
    )  # fmt: skip


def shown(capsys: pytest.CaptureFixture[str], one: Told, ending: Ending, **more: str) -> str:
    summarize(one, ending, 0, **more)
    return capsys.readouterr().err


EXPECTED = {
    # host's verdict, findings, countersigned (None: not asked for): verdict, exit code, how the line begins
    ("complete", 0, None): ("complete", 0, "complete: everything"),
    ("complete", 0, True): ("complete", 0, "complete: everything"),
    ("complete", 0, False): (
        "failed",
        3,
        "failed: everything that was asked for was acquired, and the run is NOT count",
    ),
    ("gaps", 0, None): ("gaps", 1, "finished with gaps"),
    ("gaps", 0, True): ("gaps", 1, "finished with gaps"),
    ("gaps", 0, False): ("failed", 3, "failed: what was asked for was not all read, and the run is NOT countersigned"),
    ("stopped", 0, None): ("stopped", 3, "stopped: what is stored is valid, and partial"),
    ("failed", 0, None): ("failed", 3, "failed: what is stored is valid, and partial"),
    ("partial", 0, None): ("partial", 3, "partial: what is stored is valid, and not all of it"),
    ("refused", 0, None): ("refused", 2, "refused: the host read nothing"),
    ("complete", 1, None): ("doubtful", 3, "doubtful: the host says that it has acquired everything"),
    ("gaps", 1, None): ("doubtful", 3, "doubtful: the host says that it has finished, with gaps"),
    ("stopped", 1, None): ("stopped", 3, "stopped: "),
    ("failed", 1, None): ("failed", 3, "failed: "),
    ("partial", 1, None): ("partial", 3, "partial: "),
    ("refused", 1, None): ("doubtful", 3, "doubtful: the host says that it read nothing"),
}


ENDINGS = [
    (verdict, found, countersigned)
    for verdict, found, countersigned in product(VERDICTS, (0, 1), (None, True, False))
    if not countersigned or (verdict, found, True) in EXPECTED  # nothing else is ever countersigned
]


@pytest.mark.parametrize(("verdict", "found", "countersigned"), ENDINGS)
def test_every_ending_says_the_same_to_everybody(
    capsys: pytest.CaptureFixture[str], verdict: str, found: int, countersigned: bool | None
) -> None:
    why = "" if countersigned is not False else "KMS is away"
    one = told(verdict, found=found)
    ending = end_of(one, why)
    known = EXPECTED.get((verdict, found, countersigned)) or EXPECTED[(verdict, found, None)]
    assert (ending.verdict, ending.code) == known[:2]
    assert ending.words.startswith(known[2])
    text = shown(capsys, one, ending, countersigner=MINE if countersigned else "", why_not=why)
    assert text.splitlines()[1] == ending.words
    assert ("complete:" in text) <= (ending.code == 0)
    assert ("finished with gaps" in text) <= (ending.code == 1)
    assert ("NOT countersigned" in text) <= (ending.code == 3)
    assert (f"countersigned by {MINE}" in text) == (countersigned is True)
    assert ("not countersigned: KMS is away" in text) == (countersigned is False)
    assert text.count("  finding ") == found
    result = result_of(one, ending, why)
    assert (result["verdict"], result["exit"]) == (ending.verdict, ending.code)
    assert result.get("host_says", verdict) == verdict
    assert ("error" in result) >= (ending.verdict != verdict)


def test_what_speaks_against_a_finished_run_is_not_called_valid(capsys: pytest.CaptureFixture[str]) -> None:
    one = told("failed", found=1, why="the host names another receipt than the one it stored", said="complete")
    text = shown(capsys, one, end_of(one))
    assert "failed: what the host says of its run is not so; verify what is stored" in text
    assert f"next         impound verify {PLACE}" in text
    assert "valid" not in text


@pytest.mark.parametrize("verdict", ["stopped", "failed", "partial"])
def test_where_nothing_is_stored_nothing_is_called_valid(capsys: pytest.CaptureFixture[str], verdict: str) -> None:
    one = told(verdict, stored=False)
    text = shown(capsys, one, end_of(one))
    assert text.splitlines()[1] == f"{verdict}: nothing was stored"
    assert "next" not in text


def test_what_comes_next_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    def following(one: Told, **more: str) -> str:
        text = shown(capsys, one, end_of(one, more.get("why_not", "")), **more)
        return "\n".join(line for line in text.splitlines() if line.startswith("  next"))

    pin = f"--receipt-sha256 {'c' * 64}"
    assert following(told("complete")).strip() == f"next         impound verify {PLACE} {pin} --identity …"
    assert f"--signer {MINE}" in following(told("gaps"), countersigner=MINE)
    assert f"--resume {PLACE}" in following(told("partial"))
    assert f"impound finish {PLACE} {pin}" in following(told("complete", found=1))
    assert f"impound finish {PLACE} {pin}" in following(told("complete"), why_not="KMS is away")


def test_one_summary_names_what_the_host_tells_of_its_gaps(capsys: pytest.CaptureFixture[str]) -> None:
    gap = {"item": "host/a.tar", "where": "/etc/shadow", "reason": "denied", "detail": "not allowed"}
    one = told(
        "gaps", items=3, members=40, gaps=7, flags=1, read_bytes=3 << 20, stored_bytes=1 << 20, seconds=1.5,
        first_gaps=[gap] * 5, not_in_this_version=["memory.physical"],
    )  # fmt: skip
    text = shown(capsys, one, end_of(one))
    assert "read         3.0 MiB in 1.5 s (2.0 MiB/s), stored 1.0 MiB" in text
    assert "items        3 items, 40 files, 7 gaps, 1 flags" in text
    assert text.count("gap          host/a.tar /etc/shadow: denied: not allowed") == 5
    assert "… and 2 more, in the manifest" in text
    assert "not in that version: memory.physical" in text
    result = result_of(one, end_of(one))
    assert result["first_gaps"] == [gap] * 5
    assert result["not_in_this_version"] == ["memory.physical"]


HOSTILE = "a\x1b[31m\x9b2J\u202e\n\ud800"


@pytest.mark.parametrize(
    "result",
    [
        {"first_gaps": [{"item": HOSTILE, "where": HOSTILE, "reason": HOSTILE, "detail": HOSTILE * 9999}] * 9999},
        {"first_gaps": [[], None, 3, {"item": {"a": HOSTILE}}], "not_in_this_version": [HOSTILE, 5, None]},
        {"first_gaps": {"a": 1}, "not_in_this_version": HOSTILE, "error": {"x": HOSTILE}, "gaps": HOSTILE},
        {"items": -1, "gaps": 1e308, "seconds": 0, "members": True, "flags": 1 << 70, "error": HOSTILE},
        {"items": 1, "members": 1, "gaps": 1, "flags": 1, "read_bytes": 5, "stored_bytes": 5, "seconds": 0},
        {"items": 1, "members": 1, "gaps": 1, "flags": 1, "read_bytes": 1 << 61, "stored_bytes": 5, "seconds": 1e-300},
    ],
)
@pytest.mark.parametrize("verdict", ["complete", "gaps", "failed"])
def test_a_hostile_result_is_shown_bounded_and_escaped(
    capsys: pytest.CaptureFixture[str], result: dict[str, Any], verdict: str
) -> None:
    one = told(verdict, **result)
    ending = end_of(one)
    text = shown(capsys, one, ending)
    assert len(text) < 12_000
    assert all(printable(line) == line for line in text.splitlines())
    line = compact(result_of(one, ending))
    assert line.isprintable()
    assert len(line) < 2000
    assert json.loads(line)["exit"] == ending.code
