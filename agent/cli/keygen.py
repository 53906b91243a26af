"""`impound keygen`: the key pair that evidence is sealed to, as `age-keygen` writes it."""

from __future__ import annotations

import os
from datetime import datetime

import click

from agent.cli import options
from agent.cli.output import emit, say
from agent.errors import UsageError


@click.command("keygen")
@click.option("--output", "-o", metavar="FILE", help="Where the private key goes, mode 0600; never overwritten.")
@click.option("--public", "-y", "source", metavar="FILE", help="Print the public key of an identity file instead.")
@options.json_option
def command(output: str | None, source: str | None, as_json: bool) -> int:
    """Make a key pair. Keep the private key off the machines that you examine.

    \b
    Example:
      impound keygen -o case.key        writes what `age-keygen` would write
      impound keygen -y case.key        prints its public key, for --recipient
    """
    from agent.sealing import generate, parse_identity_file, render_identity_file

    if (output is None) == (source is None):
        raise UsageError("give either --output FILE for a new key or --public FILE for the public half of one")
    if source is not None:
        for identity in parse_identity_file(options.read_key_file(source, "identity file")):
            emit({"verdict": "done", "recipient": identity.recipient.text, "exit": 0})
        return 0
    assert output is not None  # noqa: S101 - one of the two was given
    identity = generate()
    text = render_identity_file(identity, datetime.now().astimezone())
    try:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(f"{output!r} is there already and is not overwritten") from None
    except OSError as error:
        raise UsageError(f"{output!r} cannot be written: {error.strerror}") from error
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if not as_json:
        say(f"private key in {output}: keep it off the machines that you examine")
    emit({"verdict": "done", "recipient": identity.recipient.text, "identity": os.path.abspath(output), "exit": 0})
    return 0
