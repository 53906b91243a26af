"""`impound deploy`: the controller's side of a run. It sends the job, holds the authority, and keeps the ledger."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from agent.cli.deploy_job import job_options
from agent.cli.deploy_run import perform
from agent.cli.output import printable
from agent.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.delivery.remote import Reached

KINDS = ("ssh", "kubectl")
"""Kinds with a file of their own, which is imported when it is asked for."""
PLANNED = {"ssm", "ecs"}
"""Kinds of the design that this version does not have."""
ACQUIRE = ("acquire", "--job", "-", "--channel")
"""What the agent on the far side is started with."""
ATTACH = ("acquire", "--attach")
"""What an agent is started with that becomes the channel of one that runs there; its name follows."""


def lasting(name: str) -> list[str]:
    """`ACQUIRE`, where the channel may break and come back under a name."""
    return [*ACQUIRE, "--lasting", name]


class _Kinds(click.Group):
    """Shows in its own help what every kind is told."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *KINDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in KINDS:
            found: click.Command = import_module(f"agent.cli.deploy_{cmd_name}").command
            return found
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in PLANNED:
            raise UsageError(
                f"`deploy {args[0]}` is not part of this version: `deploy command … -- ARGV` goes through any program "
                "that connects, such as ssh -T root@web-1 /run/impound"
            )
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options_of = [one for one in self.commands["command"].params if isinstance(one, click.Option)]
        rows = [row for one in options_of if (row := one.get_help_record(ctx)) is not None]
        with formatter.section("Options of every kind"):
            formatter.write_dl(rows)


@click.group("deploy", cls=_Kinds)
def command() -> None:
    """Run the agent on another machine, and hold the authority here.

    The host gets the job and no more right than to start uploads and add parts below its own run: it can read, list,
    overwrite, delete and complete nothing. What it stores is noted here first, in a hash-chained ledger.

    \b
    Example:
      impound deploy command --case INC-42 --to s3://evidence/cases -r age1... -- ssh -T root@web-1 /run/impound
    """


@command.command("command")
@job_options
@click.argument("argv", nargs=-1, required=True, metavar="-- ARGV...")
def through_command(argv: tuple[str, ...], as_json: bool, **values: Any) -> int:
    """Deploy through any program that connects to an agent: ARGV, and `acquire --job - --channel` behind it.

    \b
    Example:
      impound deploy command --case INC-42 --to s3://evidence/cases -r age1... -- ssh -T root@web-1 /run/impound
      impound deploy command --case INC-42 --to s3://evidence/cases -r age1... -- docker exec -i web impound
      impound deploy command --resume s3://evidence/cases/INC-42/web-1/01890a5d-... -- ssh -T root@web-1 /run/impound

    \b
    Exit code: as for `acquire`; 3, too, when the channel broke (what was stored is valid and partial).
    """
    from agent.delivery.remote import Reached
    from agent.delivery.through import Program

    def reach(on_line: Callable[[bytes], object]) -> Reached:
        return Reached(Program([*argv, *ACQUIRE], on_line), {"transport": "command", "program": printable(argv[0])})

    return perform(reach, values, as_json=as_json)
