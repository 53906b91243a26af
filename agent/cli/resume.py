"""`impound resume`: completes a run that was cut off, in the same place."""

from __future__ import annotations

import click

from agent.cli import options
from agent.cli.acquire import perform
from agent.cli.output import say
from agent.custody.resuming import next_attempt
from agent.custody.signing import parse_signer


@click.command("resume")
@click.argument("source", metavar="SRC")
@click.option("--signer", "signers", multiple=True, metavar="KEY", help="Who must have signed the plan (ed25519:…).")
@click.option(
    "--recipient", "-r", "recipients", multiple=True, metavar="KEY", help="Refuse unless sealed to just these."
)
@options.json_option
def command(source: str, signers: tuple[str, ...], recipients: tuple[str, ...], as_json: bool) -> int:
    """Take what is missing into the same run, without repeating what is whole.

    The job is read from the run's signed plan. --signer and --recipient refuse a plan that somebody else has put there.

    \b
    Example:
      impound resume ./evidence/INC-42/i-0abc/01890a5d-... --signer ed25519:...

    \b
    Exit code: as for `acquire`; 4 when what is stored is damaged.
    """
    pinned = [parse_signer(text) for text in signers]
    stored = options.one_run(source)
    try:
        job = next_attempt(stored, signers=pinned, recipients=recipients)
    finally:
        stored.close()
    if not (signers or recipients):
        say(
            f"impound: sealing to {', '.join(job.recipients)}, as the plan stored there says: "
            "--signer or --recipient refuses a plan that somebody else has put there"
        )
    return perform(job, as_json=as_json)
