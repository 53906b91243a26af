"""What `export`, `verify` and `open` do with range proofs."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from agent.cli import options
from agent.cli.output import emit, say, size
from agent.errors import DamagedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.analysis.proof import Proved
    from agent.job import S3
    from agent.sealing import Identity


def make_proof(
    source: str,
    identities: Sequence[Identity],
    *,
    only: Sequence[str],
    byte_range: tuple[int, int] | None,
    signers: Sequence[str],
    receipts: Sequence[str],
    s3: S3 | None,
) -> bytes:
    """The proof of one range of one object of a run. Raises what `proof.make` does."""
    from agent.analysis.opening import read_sound_run
    from agent.analysis.proof import make

    if not identities:
        raise UsageError("--identity FILE is missing: the private key that opens the evidence")
    if not only or byte_range is None:
        raise UsageError("a proof is of one range of one object: give --only NAME and --range A-B")
    with contextlib.closing(options.one_run(source, s3)) as stored:
        run = read_sound_run(stored, signers=signers, receipts=receipts)
        return make(run, only, identities, *byte_range)


def verify_proof(source: str, signers: Sequence[str], receipts: Sequence[str], *, as_json: bool) -> int:
    """Says whether a proof holds, and of what."""
    from agent.analysis.proof import check, read

    try:
        proved = check(read(source), repr(source), signers=signers, receipts=receipts)
    except DamagedError as error:
        if not as_json:
            say(source)
            say("  verdict      damaged")
            say(f"  damaged      {error}")
        emit({"verdict": "damaged", "findings": [{"name": source, "problem": str(error)}], "exit": 4})
        return 4
    if not as_json:
        _describe(source, proved)
    emit({"verdict": proved.words} | _result(proved))
    return 0


def open_proof(source: str, output: str, signers: Sequence[str], receipts: Sequence[str], *, as_json: bool) -> int:
    """Writes the bytes of a proof that holds. Raises `DamagedError`."""
    from agent.analysis.opening import prepare_output, write_below
    from agent.analysis.proof import check, read

    proved = check(read(source), repr(source), signers=signers, receipts=receipts)
    directory = prepare_output(output)
    try:
        written = write_below(directory, proved.name, proved.plaintext())
    finally:
        os.close(directory)
    if not as_json:
        _describe(source, proved)
        say(f"opened {proved.name}, {size(written)}, into {output}")
    emit({"verdict": "opened", "output": os.path.abspath(output), "bytes": written} | _result(proved))
    return 0


def _describe(source: str, proved: Proved) -> None:
    proof, said = proved.proof, proved.statement.predicate
    known = "as given" if proved.signer_known else "nobody vouches for it: compare it with what `acquire` printed"
    say(source)
    say(f"  verdict      {proved.words}")
    say(f"  proves       bytes {proof.first} to {proof.last} of {proof.object}, opened")
    say(f"  sha256       {proof.sha256}")
    say(f"  run          {said.run}, case {said.case}, host {said.host}, attempt {said.attempt}")
    say(f"  signer       {proved.signer} ({known})")
    say(f"  receipt      sha256 {proved.receipt_sha256}")


def _result(proved: Proved) -> dict[str, object]:
    proof, said = proved.proof, proved.statement.predicate
    return {
        "object": proof.object,
        "first": proof.first,
        "last": proof.last,
        "sha256": proof.sha256,
        "run": said.run,
        "case": said.case,
        "host": said.host,
        "attempt": said.attempt,
        "outcome": said.outcome,
        "signer": proved.signer,
        "signer_known": proved.signer_known,
        "receipt_sha256": proved.receipt_sha256,
        "exit": 0,
    }
