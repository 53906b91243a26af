"""LIMITS: what a run may cost the machine that it examines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent.cli.options import parse_duration
from agent.errors import UsageError
from agent.job import Limits

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

# As the document of a job has them: a plan that holds more is no plan to whoever reads the run.
MAX_MEMORY = 1 << 20
MAX_MBIT = 1 << 40
MAX_CPU = 100_000


def limits_options(function: F) -> F:
    """For verbs that acquire."""
    for option in reversed(
        (
            click.option(
                "--deadline", callback=parse_duration, metavar="TIME", help="End after 90s, 30m, 2h; the rest is gaps."
            ),
            click.option(
                "--max-memory",
                type=int,
                metavar="MIB",
                help="Resident at most; 128 into a directory and 256 into S3 otherwise.",
            ),
            click.option("--max-mbit", type=int, metavar="MBIT", help="Store at most so many 10^6 bits a second."),
            click.option("--max-cpu", type=int, metavar="PERCENT", help="Use at most so much CPU; 100 is one core."),
            click.option(
                "--nice", type=click.IntRange(0, 19), default=10, show_default=True, help="Scheduling priority."
            ),
            click.option(
                "--io",
                type=click.Choice(["low", "idle", "normal"]),
                default="low",
                show_default=True,
                help="I/O class: behind others, only when the disk is idle, or as it was started.",
            ),
        )
    ):
        function = option(function)
    return function


def make_limits(values: dict[str, Any]) -> Limits:
    """Takes the options of `limits_options` out of a verb's values. Raises `UsageError`."""
    memory, mbit, cpu = values.pop("max_memory"), values.pop("max_mbit"), values.pop("max_cpu")
    given = (("--max-memory", memory, MAX_MEMORY), ("--max-mbit", mbit, MAX_MBIT), ("--max-cpu", cpu, MAX_CPU))
    for name, value, most in given:
        if value is not None and value < 1:
            raise UsageError(f"{name} is a positive number, not {value}")
        if value is not None and value > most:
            raise UsageError(f"{name} is at most {most}, not {value}")
    return Limits(
        deadline_s=values.pop("deadline"),
        nice=values.pop("nice"),
        io=values.pop("io"),
        max_memory_mib=memory,
        max_mbit=mbit,
        max_cpu=cpu,
    )
