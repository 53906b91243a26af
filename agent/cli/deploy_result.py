"""What a deploy says at its end, once: what the controller knows, and of the host's words what has the right form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from agent.cli.output import printable, say, size
from agent.custody.records import OUTCOMES

if TYPE_CHECKING:
    from agent.delivery.told import Told

SHOWN = 20
MAX_SHOWN = 200
"""Characters of what a host says that stand in the result line."""
GAPS = 5
_FINISHED = OUTCOMES[:2]
_NUMBERS = ("items", "members", "gaps", "flags", "read_bytes", "stored_bytes", "seconds", "findings", "known_left_out")


class Ending(msgspec.Struct, frozen=True):
    """How a deploy ended. The three say the same: to a program, to the shell, and to a person."""

    verdict: str
    """As the controller's, but `doubtful` where the host did what it may not, and `failed` where a countersignature was
    asked for and could not be made."""
    code: int
    words: str


def end_of(told: Told, why_not_countersigned: str = "") -> Ending:
    """DESIGN 4.1. A host that asked for what it may not have is no gap. What was found in this attempt is more."""
    nothing = "nothing was stored"
    valid = "what is stored is valid, and partial"
    said = {
        "complete": "everything that was asked for was acquired",
        "gaps": "what was asked for was not all read",
        "refused": "the host read nothing",
    }
    verdict = told.verdict
    if told.found and verdict in said:
        host = {"complete": "has acquired everything", "gaps": "has finished, with gaps", "refused": "read nothing"}
        return Ending("doubtful", 3, f"doubtful: the host says that it {host[verdict]}; see what was found")
    if why_not_countersigned and verdict in _FINISHED:
        return Ending("failed", 3, f"failed: {said[verdict]}, and the run is NOT countersigned")
    match verdict:
        case "complete":
            more = ", as far as that version can" if _texts(told, "not_in_this_version") else ""
            return Ending(verdict, 0, f"complete: {said[verdict]}{more}")
        case "gaps":
            return Ending(verdict, 1, f"finished with gaps: {said[verdict]}")
        case "refused":
            return Ending(verdict, 2, f"refused: {said[verdict]}")
        case "failed" if told.result.get("verdict") in _FINISHED:
            return Ending(verdict, 3, "failed: what the host says of its run is not so; verify what is stored")
        case "partial" if told.objects:
            return Ending(verdict, 3, "partial: what is stored is valid, and not all of it")
        case _:
            return Ending(verdict, 3, f"{verdict}: {valid if told.objects else nothing}")


def summarize(told: Told, ending: Ending, ended: int, *, countersigner: str = "", why_not: str = "") -> None:
    """A few lines for a person: the only ones, since what the host says of itself at its end is not shown."""
    sure = [one for one in told.objects.values() if one.sure]
    say()
    say(ending.words)
    error = told.why or str(told.result.get("error", ""))[:1000]
    if error:
        say(f"  because      {printable(error)}")
    if told.location:
        say(f"  evidence     {told.location}")
        say(f"  case, host   {told.case}, {told.host}; run {told.run}, attempt {told.attempt}")
        _say_counts(told)
        say(f"  objects      {len(sure)} whole, {len(told.unfinished)} uploads not completed")
        by_size = sum(one.checked == "size" for one in sure)
        if by_size:
            say(f"  compared     {by_size} objects by sizes alone: the bucket tells no SHA-256 of parts")
    _say_gaps(told)
    for line in _texts(told, "not_here"):
        say(f"  not there    {printable(line)}")
    left_out = _texts(told, "not_in_this_version")
    if left_out:
        say(f"  not in that version: {', '.join(left_out)}")
    earlier = "" if told.found else " (of an earlier attempt)"
    for finding in told.findings[:SHOWN]:
        say(f"  finding      {printable(finding)}{earlier}")
    if len(told.findings) > SHOWN:
        say(f"  finding      … and {len(told.findings) - SHOWN} more, in the ledger")
    if told.refused:
        say(f"  refused      {told.refused} requests of the host")
    if told.signer:
        say(f"  signer       {told.signer}")
    if told.receipt_sha256:
        say(f"  receipt      sha256 {told.receipt_sha256}")
    if countersigner:
        say(f"  countersigned by {countersigner}")
    if why_not:
        say(f"  not countersigned: {printable(why_not)}")
    say(f"  ledger       {told.ledger}, {told.ledger_lines} lines")
    if ended:
        say(f"  program      {'was ended by signal' if ended < 0 else 'ended with'} {abs(ended)}")
        if not told.signer:
            say("  program      impound did not answer behind it: try it by hand, with --version at its end")
    for line in _next(told, ending, countersigner):
        say(f"  next         {line}")


def _say_counts(told: Told) -> None:
    """In the host's own words, as far as it gave any."""
    numbers = _numbers(told)
    if not {"items", "members", "gaps", "flags"} <= numbers.keys():
        return
    items, members, gaps, flags = (f"{numbers[key]:.0f}" for key in ("items", "members", "gaps", "flags"))
    if {"read_bytes", "stored_bytes", "seconds"} <= numbers.keys():
        read, seconds = int(numbers["read_bytes"]), numbers["seconds"]
        rate = f" ({size(int(read / seconds))}/s)" if seconds >= 0.001 else ""
        say(f"  read         {size(read)} in {seconds:.1f} s{rate}, stored {size(int(numbers['stored_bytes']))}")
    say(f"  items        {items} items, {members} files, {gaps} gaps, {flags} flags")
    for finding in _texts(told, "first_findings"):
        say(f"  finding      {finding}")
    if known := numbers.get("known_left_out"):
        say(f"  left out     {known:.0f} image layers that you named as known, proved by digest")


def _say_gaps(told: Told) -> None:
    gaps = _first_gaps(told)
    for gap in gaps:
        where = f" {gap['where']}" if gap["where"] else ""
        say(f"  gap          {gap['item']}{where}: {gap['reason']}: {gap['detail']}")
    more = int(_numbers(told).get("gaps", 0)) - len(gaps)
    if gaps and more > 0:
        say(f"  gap          … and {more} more, in the manifest")


def _next(told: Told, ending: Ending, countersigner: str) -> list[str]:
    """What to do now."""
    if not told.location or not told.objects:
        return []
    pin = f" --receipt-sha256 {told.receipt_sha256}" if told.receipt_sha256 else ""
    verify = f"impound verify {told.location}{pin} --identity …"
    if told.verdict not in _FINISHED:
        if ending.words.endswith("verify what is stored"):
            return [verify]
        relay = " --relay" if told.authority == "relay" else ""
        return [f"impound deploy … --resume {told.location}{relay}, by the way that you came"]
    if ending.code <= 1:
        return (
            [verify] if not countersigner else [f"impound verify {told.location} --signer {countersigner} --identity …"]
        )
    return [
        verify,
        f"impound finish {told.location}{pin} --countersign-key …, once what speaks against it is explained",
    ]


def result_of(told: Told, ending: Ending, why_not_countersigned: str = "") -> dict[str, object]:
    """The result line: what the controller knows, and of the host's own words what has the right form."""
    sure = [one for one in told.objects.values() if one.sure]
    result: dict[str, object] = {
        "verdict": ending.verdict,
        "run": told.run,
        "case": told.case,
        "host": told.host,
        "attempt": told.attempt,
        "store": told.location,
        "signer": told.signer,
        "receipt_sha256": told.receipt_sha256,
        "authority": told.authority,
        "objects": len(sure),
        "unfinished": len(told.unfinished),
        "custody": told.custody,
        "ledger": told.ledger,
        "ledger_head": told.ledger_head,
    }
    if ending.verdict != told.verdict:
        result["host_says"] = told.verdict
    result |= _numbers(told)
    error = told.why or told.result.get("error")
    if ending.verdict == "doubtful":
        error = error or "the run has findings"
    elif ending.verdict != told.verdict:
        error = f"not countersigned: {why_not_countersigned}"
    if isinstance(error, str) and error:
        result["error"] = printable(error[:1000])
    if told.findings:
        result["findings"] = [printable(finding)[:MAX_SHOWN] for finding in told.findings[:SHOWN]]
    if told.refused:
        result["refused"] = told.refused
    if gaps := _first_gaps(told):
        result["first_gaps"] = gaps
    if left_out := _texts(told, "not_in_this_version"):
        result["not_in_this_version"] = left_out
    result["exit"] = ending.code
    return result


# -- the host's words -------------------------------------------------------------------------------------------------


def _numbers(told: Told) -> dict[str, int | float]:
    found: dict[str, int | float] = {}
    for key in _NUMBERS:
        value = told.result.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1 << 62:
            found[key] = value
    return found


def _texts(told: Told, key: str) -> list[str]:
    values = told.result.get(key)
    return [_text(value) for value in values[:SHOWN]] if isinstance(values, list) else []


def _first_gaps(told: Told) -> list[dict[str, str]]:
    gaps = told.result.get("first_gaps")
    if not isinstance(gaps, list):
        return []
    keys = ("item", "where", "reason", "detail")
    return [{key: _text(gap.get(key, "")) for key in keys} for gap in gaps[:GAPS] if isinstance(gap, dict)]


def _text(value: object) -> str:
    return printable(str(value)[:MAX_SHOWN])
