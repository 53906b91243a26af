"""`impound verify`: whether every byte is as it was sealed and signed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agent.cli import options, places
from agent.cli.output import emit, printable, say, size
from agent.cli.s3_options import make_s3, s3_options
from agent.custody.verify import OTHER_SIGNER, Finding
from agent.errors import IdentityError, SourceError

if TYPE_CHECKING:
    from agent.custody.verify import RunVerdict
    from agent.sealing import Identity
    from agent.stores.sources import FoundRun

SHOWN = 20


@click.command("verify")
@click.argument("source", metavar="SRC")
@options.identity_option
@options.signer_option
@options.receipt_option
@s3_options
@options.json_option
def command(
    source: str,
    identities: tuple[str, ...],
    signers: tuple[str, ...],
    receipts: tuple[str, ...],
    as_json: bool,
    **values: Any,
) -> int:
    """Check that every byte of a run, or of every run below SRC, is as it was sealed and signed.

    Without a key: signatures, names, sizes and digests of the ciphertext. With --identity also the plaintext, the
    manifest and the custody log. Only --signer or --receipt-sha256 can tell a run that somebody re-made; give one for
    each run, repeated ones add up. A resumed run is signed by the key that `resume` printed. A bucket is read in place,
    as your AWS configuration allows; the first version of each object counts, and any other thing is named. A file is
    taken for a proof that `export proof` made, and needs no key.

    \b
    Example:
      impound verify ./evidence --signer ed25519:... --identity case.key
      impound verify s3://evidence/INC-42 --region eu-central-1

    \b
    Exit code: 0 intact, 3 SRC cannot be read, 4 damaged or partial (the verdict says which).
    """
    from agent.analysis.proof import is_proof
    from agent.stores.directory import MAX_LEVELS
    from agent.stores.sources import find_runs

    s3 = make_s3(values)
    pinned, digests = options.parse_pins(signers, receipts)
    keys = options.read_identities(identities)
    places.check_source(source)
    if is_proof(source):
        from agent.cli.proofs import verify_proof

        places.check_proof_file(source)
        return verify_proof(source, pinned, digests, as_json=as_json)
    runs = find_runs(source, s3)
    if not runs:
        raise places.no_run(source, f", nor {MAX_LEVELS} levels below it")
    checked = [_verify(run, pinned, digests, keys) for run in runs]
    verdicts = [verdict for verdict, _ in checked]
    notes = sorted({note for _, note in checked if note})
    for verdict in verdicts:
        if not as_json:
            _describe(verdict, pinned=bool(pinned or digests))
    for note in notes:
        say(f"  note         {note}")
    worst = max(verdicts, key=lambda verdict: (verdict.exit_code, verdict.verdict == "damaged"))
    code = worst.exit_code
    missing = [one for one in (*pinned, *digests) if one not in {known for v in verdicts for known in v.pins}]
    result = _result(verdicts[0], code) if len(verdicts) == 1 else _results(verdicts, worst, code)
    if missing and code != 4:
        # What was pinned and is not here was removed, or this is another place.
        code = 4
        result |= {"verdict": "damaged", "exit": code}
    if notes:
        result["notes"] = notes
    if missing:
        result["not_found"] = missing
        for one in missing:
            say(f"  not found    no run here is of {one}")
    emit(result)
    return code


def _verify(run: FoundRun, signers: list[str], receipts: list[str], keys: list[Identity]) -> tuple[RunVerdict, str]:
    """The verdict on one run, and a note on how it was read: whatever is wrong with it, the others get theirs, too."""
    from agent.cli.other_key import explain_stored
    from agent.custody.verify import RunVerdict, Verdict, verify
    from agent.stores.sources import open_source

    try:
        stored = open_source(run)
        try:
            read: set[str] = set()
            try:
                verdict = verify(
                    stored,
                    signers=signers,
                    receipts=receipts,
                    identities=keys,
                    watch=lambda name, _size: read.add(name),
                )
            except IdentityError as error:
                # The ciphertext was all compared before a key was tried: that verdict stands, and is not read again.
                verdict = verify(stored, signers=signers, receipts=receipts, compared=read)
                if verdict.verdict is not Verdict.DAMAGED:
                    verdict.verdict = Verdict.UNREADABLE
                    verdict.findings.append(Finding(_leaf(run.location), explain_stored(stored, keys, error)))
            return verdict, getattr(stored, "note", "")
        finally:
            stored.close()
    except SourceError as error:
        verdict = RunVerdict(run.location, Verdict.UNREADABLE)
        verdict.findings.append(Finding(_leaf(run.location), str(error)))
        return verdict, ""


def _leaf(location: str) -> str:
    return location.rstrip("/").rpartition("/")[2]


def _describe(verdict: RunVerdict, *, pinned: bool) -> None:
    say(f"{verdict.location}")
    unread = verdict.verdict == "unreadable"
    opens = ": what is stored is as it was signed, and no key that was given opens it" if unread and verdict.run else ""
    say(f"  verdict      {verdict.words}{opens}")
    if verdict.run:
        say(f"  run          {verdict.run}, case {verdict.case}, host {verdict.host}, attempt {verdict.attempt}")
    checked = "ciphertext and plaintext" if verdict.opened else "ciphertext; --identity checks the plaintext, too"
    checked = "ciphertext" if opens else checked
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
    if verdict.countersigner:
        say(f"  countersigned by {verdict.countersigner}, at {verdict.countersigned_at}")
    kind = "not opened  " if opens else "not read    " if unread else "damaged     "
    if verdict.words == OTHER_SIGNER:  # and nothing else is wrong
        kind = "other signer"
    for finding in verdict.findings[:SHOWN]:
        say(f"  {kind} {printable(finding.name)}: {finding.problem}")
    if len(verdict.findings) > SHOWN:
        say(f"  {kind} … and {len(verdict.findings) - SHOWN} more")
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
    if verdict.countersigner:
        result["countersigner"] = verdict.countersigner
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
