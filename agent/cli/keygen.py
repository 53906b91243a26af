"""`impound keygen`: the key pair that evidence is sealed to, as `age-keygen` writes it, or one that countersigns."""

from __future__ import annotations

import os
from datetime import datetime
from typing import TYPE_CHECKING

import click

from agent.cli import options
from agent.cli.keyfiles import PRIVATE, PUBLIC, check_new, signer_of, write_new
from agent.cli.output import emit, say
from agent.errors import UsageError

if TYPE_CHECKING:
    from agent.sealing import Recipient


@click.command("keygen")
@click.option("--output", "-o", metavar="FILE", help="Where the private key goes, mode 0600; never overwritten.")
@click.option("--post-quantum", is_flag=True, help="One that quantum computers do not open; its recipient in FILE.pub.")
@click.option("--signing", is_flag=True, help="A key that countersigns runs (Ed25519, PEM) instead of one that opens.")
@click.option("--public", "-y", "source", metavar="FILE", help="Print the public key of a key file instead.")
@options.json_option
def command(output: str | None, source: str | None, post_quantum: bool, signing: bool, as_json: bool) -> int:
    """Make a key pair. Keep the private key off the machines that you examine.

    \b
    Example:
      impound keygen -o case.key        # writes what `age-keygen` would write
      impound keygen -y case.key        # prints its public key, as "recipient" in the result (JSON)
      impound acquire -r "$(impound keygen -y case.key | jq -r .recipient)" ...
      impound keygen -y ir.sign         # prints the "signer" that a key which countersigns is known by
      impound keygen -o pq.key --post-quantum && impound acquire -R pq.key.pub ...
      impound keygen -o ir.sign --signing && impound finish SRC --countersign-key ir.sign ...
    """
    from agent.sealing import generate, generate_post_quantum, parse_identity_file, render_identity_file

    if (output is None) == (source is None):
        raise UsageError("give either --output FILE for a new key or --public FILE for the public half of one")
    if signing and (post_quantum or source is not None):
        raise UsageError("--signing makes a new key that signs: it goes with --output alone")
    if source is not None:
        if post_quantum:
            raise UsageError("--post-quantum is for a new key: --public shows whatever the file holds")
        text = options.read_key_file(source, "key file")
        if signer := signer_of(text):
            emit({"verdict": "done", "signer": signer, "exit": 0})
            return 0
        for identity in parse_identity_file(text):
            _show(identity.recipient)
        return 0
    assert output is not None  # noqa: S101 - one of the two was given
    created = datetime.now().astimezone()
    result: dict[str, object] = {"verdict": "done"}
    if signing:
        from agent.custody.countersign import new_signing_key

        pem, signer = new_signing_key()
        write_new(output, pem, PRIVATE)
        if not as_json:
            say(f"signing key in {output}: keep it off the machines that you examine")
        emit(result | {"signer": signer, "key": os.path.abspath(output), "exit": 0})
        return 0
    if post_quantum:
        public = f"{output}.pub"
        check_new(output, public)
        new = generate_post_quantum()
        write_new(output, render_identity_file(new, created), PRIVATE)
        write_new(public, f"{new.recipient.text}\n", PUBLIC)
        result["recipients_file"] = os.path.abspath(public)
    else:
        identity = generate()
        write_new(output, render_identity_file(identity, created), PRIVATE)
        result["recipient"] = identity.recipient.text
    if not as_json:
        say(f"private key in {output}: keep it off the machines that you examine")
    emit(result | {"identity": os.path.abspath(output), "exit": 0})
    return 0


def _show(recipient: Recipient) -> None:
    """One result. A post-quantum recipient is longer than a result may be: it stands on a line of its own before."""
    if recipient.post_quantum:
        click.echo(recipient.text)
        emit({"verdict": "done", "exit": 0})
    else:
        emit({"verdict": "done", "recipient": recipient.text, "exit": 0})
