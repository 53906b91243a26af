"""`impound verify`: whether every byte is as it was sealed and signed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from agent.cli import options
from agent.cli.output import emit, printable, say, size
from agent.custody.verify import Finding
from agent.errors import IdentityError, SourceError

if TYPE_CHECKING:
    from agent.custody.verify import RunVerdict
    from agent.sealing import Identity

SHOWN = 20


@click.command("verify")
@click.argument("source", metavar="SRC")
@options.identity_option
@options.signer_option
@options.receipt_option
@options.json_option
def command(
    source: str, identities: tuple[str, ...], signers: tuple[str, ...], receipts: tuple[str, ...], as_json: bool
) -> int:
    """Check that every byte of a run, or of every run below SRC, is as it was sealed and signed.

    Without a key: signatures, names, sizes and digests of the ciphertext. With --identity also the plaintext, the
    manifest and the custody log. Only --signer or --receipt-sha256 can tell a run that somebody re-made; give one for
    each run, repeated ones add up. A resumed run is signed by the key that `resume` printed.

    \b
    Example:
      impound verify ./evidence --signer ed25519:... --identity case.key

    \b
    Exit code: 0 intact, 3 SRC cannot be read, 4 damaged or partial (the verdict says which).
    """
    from agent.stores.directory import MAX_LEVELS, find_runs

    pinned, digests = options.parse_pins(signers, receipts)
    keys = options.read_identities(identities)
    runs = find_runs(source)
    if not runs:
        raise SourceError(f"there is no run in {source!r}, nor {MAX_LEVELS} levels below it")
    verdicts = [_verify(path, pinned, digests, keys) for path in runs]
    for verdict in verdicts:
        if not as_json:
            _describe(verdict, pinned=bool(pinned or digests))
    worst = max(verdicts, key=lambda verdict: (verdict.exit_code, verdict.verdict == "damaged"))
    code = worst.exit_code
    missing = [one for one in (*pinned, *digests) if one not in {known for v in verdicts for known in v.pins}]
    result = _result(verdicts[0], code) if len(verdicts) == 1 else _results(verdicts, worst, code)
    if missing and code != 4:
        # What was pinned and is not here was removed, or this is another place.
        code = 4
        result |= {"verdict": "damaged", "exit": code}
    if missing:
        result["not_found"] = missing
        for one in missing:
            say(f"  damaged      no run here is of {one}")
    emit(result)
    return code


def _verify(path: str, signers: list[str], receipts: list[str], keys: list[Identity]) -> RunVerdict:
    """The verdict on one run: whatever is wrong with it, the others get theirs, too."""
    from agent.custody.verify import RunVerdict, Verdict, verify
    from agent.stores.directory import DirectorySource

    try:
        stored = DirectorySource(path)
        try:
            return verify(stored, signers=signers, receipts=receipts, identities=keys)
        finally:
            stored.close()
    except (SourceError, IdentityError) as error:
        verdict = RunVerdict(path, Verdict.UNREADABLE)
        verdict.findings.append(Finding(os.path.basename(path), str(error)))
        return verdict


def _describe(verdict: RunVerdict, *, pinned: bool) -> None:
    say(f"{verdict.location}")
    say(f"  verdict      {verdict.words}")
    if verdict.run:
        say(f"  run          {verdict.run}, case {verdict.case}, host {verdict.host}, attempt {verdict.attempt}")
    checked = "ciphertext and plaintext" if verdict.opened else "ciphertext; --identity checks the plaintext, too"
    say(f"  checked      {verdict.objects} objects, {size(verdict.bytes)}: {checked}")
    outcome = verdict.outcome or "unfinished"
    say(f"  acquired     {verdict.items} items, {verdict.members} files, {verdict.gaps} gaps ({outcome})")
    if verdict.signer:
        known = "nobody vouches for it: compare it with what `acquire` printed"
        if verdict.signer_known or pinned:
            known = "as given" if verdict.signer_known else "NOT as given"
        say(f"  signer       {verdict.signer} ({known})")
    if verdict.receipt_sha256:
        say(f"  receipt      sha256 {verdict.receipt_sha256}")
    for finding in verdict.findings[:SHOWN]:
        say(f"  damaged      {printable(finding.name)}: {finding.problem}")
    if len(verdict.findings) > SHOWN:
        say(f"  damaged      … and {len(verdict.findings) - SHOWN} more")
    for name in verdict.missing:
        say(f"  missing      {name}")
    if verdict.asked:
        say(f"  asked for    {', '.join(verdict.asked)}: what of them is not among the whole items is missing")
    for name in verdict.strays[:SHOWN]:
        say(f"  stray        {name}: lay there when an attempt began; nobody vouches for it, and it is not opened")
    for name in verdict.unaccounted[:SHOWN]:
        say(f"  unaccounted  {printable(name)}: no signed record names it")


def _result(verdict: RunVerdict, code: int) -> dict[str, object]:
    result: dict[str, object] = {
        "verdict": verdict.words,
        "run": verdict.run,
        "case": verdict.case,
        "host": verdict.host,
        "attempt": verdict.attempt,
        "outcome": verdict.outcome,
        "signer": verdict.signer,
        "signer_known": verdict.signer_known,
        "receipt_sha256": verdict.receipt_sha256,
        "objects": verdict.objects,
        "bytes": verdict.bytes,
        "items": verdict.items,
        "members": verdict.members,
        "gaps": verdict.gaps,
        "plaintext_checked": verdict.opened,
        "exit": code,
    }
    if verdict.findings:
        result["findings"] = [{"name": one.name, "problem": one.problem} for one in verdict.findings]
    if verdict.missing:
        result["missing"] = verdict.missing
    if verdict.asked:
        result["asked"] = verdict.asked
    if verdict.strays:
        result["strays"] = verdict.strays
    if verdict.unaccounted:
        result["unaccounted"] = verdict.unaccounted
    return result


def _results(verdicts: list[RunVerdict], worst: RunVerdict, code: int) -> dict[str, object]:
    runs = [
        {"run": one.run, "verdict": one.words, "findings": [finding.name for finding in one.findings[:3]]}
        for one in verdicts
    ]
    return {"verdict": worst.words, "count": len(verdicts), "runs": runs, "exit": code}
