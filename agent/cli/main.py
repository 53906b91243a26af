"""`impound`: finds the verb, runs it, and turns what it raises into one line and an exit code."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

import click

from agent import __version__
from agent.cli.output import complain, emit
from agent.errors import ImpoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

VERBS = {
    "acquire": "Acquire evidence from this machine, sealed, into a store.",
    "plan": "Show what would be taken, how big it is, and why something cannot be.",
    "verify": "Check that every byte in a store is as it was sealed and signed.",
    "open": "Decrypt a run into a directory, every byte checked.",
    "export": "Turn a run into what other tools read.",
    "resume": "Complete a run that was cut off.",
    "keygen": "Make a key pair that evidence can be sealed to.",
}


class _Verbs(click.Group):
    """Imports a verb's module when the verb is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"agent.cli.{cmd_name}").command
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
    line = " ".join(message.split())
    complain(line)
    if "--json" in arguments:
        emit({"verdict": "refused" if code == 2 else "failed", "error": line, "exit": code})
    return code
