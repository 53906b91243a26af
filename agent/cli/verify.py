"""`impound verify`: whether every byte is as it was sealed and signed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.cli import options
from agent.cli.output import emit, printable, say, size
from agent.custody.signing import parse_signer
from agent.errors import IdentityError, SourceError, UsageError

if TYPE_CHECKING:
    from agent.custody.verify import RunVerdict

SHOWN = 20


@click.command("verify")
@click.argument("source", metavar="SRC")
@options.identity_option
@click.option("--signer", "signers", multiple=True, metavar="KEY", help="The signer that must have signed (ed25519:…).")
@click.option("--receipt-sha256", "receipts", multiple=True, metavar="HEX", help="The receipt that it must be.")
@options.json_option
def command(
    source: str, identities: tuple[str, ...], signers: tuple[str, ...], receipts: tuple[str, ...], as_json: bool
) -> int:
    """Check that every byte of a run, or of every run below SRC, is as it was sealed and signed.

    Without a key: signatures, names, sizes and digests of the ciphertext. With --identity also the plaintext, the
    manifest and the custody log. Only --signer or --receipt-sha256 can tell a run that somebody re-made.

    \b
    Example:
      impound verify ./evidence --signer ed25519:... --identity case.key

    \b
    Exit code: 0 intact, 3 SRC cannot be read, 4 damaged or partial (the verdict says which).
    """
    from agent.custody.verify import verify
    from agent.stores.directory import DirectorySource, find_runs

    pinned = [parse_signer(text) for text in signers]
    digests = [_digest(text) for text in receipts]
    keys = options.read_identities(identities)
    runs = find_runs(source)
    if not runs:
        raise SourceError(f"there is no run in {source!r}")
    verdicts = []
    for path in runs:
        stored = DirectorySource(path)
        try:
            verdict = verify(stored, signers=pinned, receipts=digests, identities=keys)
        except IdentityError as error:
            raise SourceError(f"{path}: none of the identities opens it: {error}") from error
        finally:
            stored.close()
        verdicts.append(verdict)
        if not as_json:
            _describe(verdict)
    worst = max(verdicts, key=lambda verdict: (verdict.exit_code, verdict.verdict == "damaged"))
    code = worst.exit_code
    emit(_result(verdicts[0], code) if len(verdicts) == 1 else _results(verdicts, worst, code))
    return code


def _digest(text: str) -> str:
    text = text.strip().lower()
    if len(text) != 64 or any(char not in "0123456789abcdef" for char in text):
        raise UsageError("--receipt-sha256 is 64 hex digits, as the result of `acquire` prints it")
    return text


def _describe(verdict: RunVerdict) -> None:
    say(f"{verdict.location}")
    say(f"  verdict      {verdict.words}")
    if verdict.run:
        say(f"  run          {verdict.run}, case {verdict.case}, host {verdict.host}, attempt {verdict.attempt}")
    checked = "ciphertext and plaintext" if verdict.opened else "ciphertext; --identity checks the plaintext, too"
    say(f"  checked      {verdict.objects} objects, {size(verdict.bytes)}: {checked}")
    outcome = verdict.outcome or "unfinished"
    say(f"  acquired     {verdict.items} items, {verdict.members} files, {verdict.gaps} gaps ({outcome})")
    if verdict.signer:
        known = "as given" if verdict.signer_known else "nobody vouches for it: compare it with what `acquire` printed"
        say(f"  signer       {verdict.signer} ({known})")
    if verdict.receipt_sha256:
        say(f"  receipt      sha256 {verdict.receipt_sha256}")
    for finding in verdict.findings[:SHOWN]:
        say(f"  damaged      {printable(finding.name)}: {finding.problem}")
    if len(verdict.findings) > SHOWN:
        say(f"  damaged      … and {len(verdict.findings) - SHOWN} more")
    for name in verdict.missing:
        say(f"  missing      {name}")
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
    if verdict.unaccounted:
        result["unaccounted"] = verdict.unaccounted
    return result


def _results(verdicts: list[RunVerdict], worst: RunVerdict, code: int) -> dict[str, object]:
    runs = [
        {"run": one.run, "verdict": one.words, "findings": [finding.name for finding in one.findings[:3]]}
        for one in verdicts
    ]
    return {"verdict": worst.words, "count": len(verdicts), "runs": runs, "exit": code}
