"""`impound`: finds the verb, runs it, and turns what it raises into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING

import click

from acquirers.near import did_you_mean
from agent import __version__
from agent.cli.output import complain, emit
from agent.errors import ImpoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

VERBS = {
    "acquire": "Acquire evidence from this machine, sealed, into a store.",
    "plan": "Show what would be taken, how big it is, and why something cannot be.",
    "deploy": "Run the agent on another machine, and hold the authority here.",
    "verify": "Check that every byte in a store is as it was sealed and signed.",
    "open": "Decrypt a run into a directory, every byte checked.",
    "export": "Turn a run into what other tools read.",
    "watch": "Show how far all runs of a case are, from their own accounts.",
    "resume": "Complete a run that was cut off.",
    "finish": "Complete, check and countersign what a host left in a bucket.",
    "bucket": "Check an evidence bucket, or print the policies that it and its roles should have.",
    "keygen": "Make a key pair that evidence can be sealed to.",
    "recipient": "Make a recipient of a key in AWS KMS, or show what kind a key is.",
    "self-check": "Check this program itself: its file, what it has loaded, whether it can work here.",
}

PLANNED = {"receive", "report"}
"""Verbs of the design that this version does not have."""
_LONG = 400
"""Characters of a word without blanks, beyond which a message shows its beginning."""


class _Verbs(click.Group):
    """Imports a verb's module when the verb is called."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        given = args[0]
        if given in VERBS or given.startswith("-"):
            return super().resolve_command(ctx, args)
        if given in PLANNED:
            raise UsageError(f"`impound {given}` is not part of this version; `impound --help` lists what is")
        raise UsageError(f"there is no verb {given!r}{did_you_mean(given, VERBS)}; `impound --help` lists them")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"agent.cli.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)  # noqa: S101 - each verb's module defines one
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="impound %(version)s")
def impound() -> None:
    """Forensic acquisition for Linux hosts and containers: faithful, sealed while it streams, provable.

    \b
    Example:
      impound keygen -o case.key
      impound plan
      impound acquire --case INC-42 --to ./evidence --recipient age1...
      impound verify ./evidence --identity case.key
      impound open ./evidence --identity case.key --output ./opened
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and gives its exit code (DESIGN 4.1)."""
    # Python's own TLS would write its secrets to the file that this names, on whatever machine this is.
    os.environ.pop("SSLKEYLOGFILE", None)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = impound.main(args=given, prog_name="impound", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        return _refuse(given, error.format_message(), 2)
    except ImpoundError as error:
        return _refuse(given, str(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _refuse(given, "interrupted", 3)
    except BrokenPipeError:
        sys.stdout = None  # whoever read it has gone; there is nobody left to tell
        return 3
    except Exception as error:  # noqa: BLE001 - the last word to a person is one line, whatever happened
        where = ""
        if error.__traceback__ is not None:
            trace = error.__traceback__
            while trace.tb_next is not None:
                trace = trace.tb_next
            where = f" ({trace.tb_frame.f_code.co_name}, line {trace.tb_lineno})"
        return _refuse(given, f"a fault of impound itself: {type(error).__name__}: {error}{where}", 3)
    return code if isinstance(code, int) else 0


def _refuse(arguments: Sequence[str], message: str, code: int) -> int:
    line = " ".join(word if len(word) <= _LONG else f"{word[:_LONG]}…" for word in message.split())
    complain(line)
    if "--json" in arguments:
        emit({"verdict": "refused" if code == 2 else "failed", "error": line, "exit": code})
    return code
