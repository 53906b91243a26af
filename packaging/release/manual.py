"""Manual pages and completions, made of the very commands that they describe."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import get_completion_class

SHELLS = {"bash": "impound.bash", "zsh": "_impound", "fish": "impound.fish"}
_STATUS = (
    ("0", "everything that was asked for was done; of verify: every byte is as it was signed"),
    ("1", "done, with gaps that the result names; of bucket check and self-check: there are findings"),
    ("2", "usage: nothing was read, nothing was created"),
    ("3", "failed or stopped: what was stored is valid, and says that it is partial"),
    ("4", "of verify, open and export: damaged, partial, or another identity"),
)


def write_pages(program: click.Command, version: str, date: str, directory: Path) -> None:
    """A page for the program, and one for each verb and each verb of a verb."""
    directory.mkdir(parents=True, exist_ok=True)
    pages = dict(_pages(program, None, "impound"))
    for name, context in pages.items():
        text = _page(name, context, f'"{date}" "impound {version}"', sorted(pages))
        (directory / f"{name}.1").write_text(text, "utf-8")


def _pages(command: click.Command, parent: click.Context | None, name: str) -> Iterator[tuple[str, click.Context]]:
    context = click.Context(command, parent=parent, info_name=name)
    yield context.command_path.replace(" ", "-"), context
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None  # noqa: S101 - it has just been listed
            yield from _pages(found, context, below)


def escaped(text: str) -> str:
    """Text in which roff finds nothing of its own."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "\\[u2026]")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def _page(name: str, context: click.Context, edition: str, pages: list[str]) -> str:
    command = context.command
    paragraphs = _paragraphs(command.help or "")
    summary = escaped(" ".join(paragraphs[0].split()).rstrip(".") if paragraphs else name)
    lines = [
        f'.TH "{name.upper()}" "1" {edition} "impound"',
        ".SH NAME",
        f"{escaped(name)} \\- {summary}",
        ".SH SYNOPSIS",
        f".B {escaped(context.command_path)}",
        escaped(" ".join(command.collect_usage_pieces(context))),
        ".SH DESCRIPTION",
    ]
    examples = [part for part in paragraphs if part.startswith("\b\nExample:\n")]
    told = [part for part in paragraphs if part not in examples]
    lines += "\n.PP\n".join(_paragraph(part) for part in told).splitlines()
    records = [param.get_help_record(context) for param in command.get_params(context)]
    if known := [record for record in records if record is not None]:
        lines.append(".SH OPTIONS")
        for option, meaning in known:
            lines += [".TP", f"\\fB{escaped(option)}\\fR", escaped(" ".join(meaning.split())) or "\\&"]
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            meaning = found.get_short_help_str(200) if found is not None else ""
            lines += [".TP", f"\\fB{escaped(below)}\\fR", escaped(meaning)]
    if examples:
        commands = "\n".join(textwrap.dedent(part.partition("Example:\n")[2]) for part in examples)
        lines += [".SH EXAMPLES", ".EX", escaped(commands), ".EE"]
    lines.append(".SH EXIT STATUS")
    for code, meaning in _STATUS:
        lines += [".TP", f"\\fB{code}\\fR", escaped(meaning)]
    others = [page for page in pages if name.startswith(f"{page}-") or page.startswith(f"{name}-")]
    lines += [".SH SEE ALSO", *_references(others)]
    return "\n".join(lines) + "\n"


def _references(pages: list[str]) -> Iterator[str]:
    for number, page in enumerate(pages, 1):
        yield f".BR {escaped(page)} (1)" + ("," if number < len(pages) else "")


def _paragraph(text: str) -> str:
    """One of them; what follows a backspace keeps its lines, as click has it."""
    if text.startswith("\b\n"):
        return f".EX\n{escaped(text[2:])}\n.EE"
    return escaped(" ".join(text.split()))


def _paragraphs(text: str) -> list[str]:
    return [part.strip("\n") for part in re.split(r"\n[ \t]*\n", inspect.cleandoc(text)) if part.strip()]


def write_completions(program: click.Command, directory: Path) -> None:
    """For each shell, what it is to source."""
    directory.mkdir(parents=True, exist_ok=True)
    for shell, name in SHELLS.items():
        kind = get_completion_class(shell)
        assert kind is not None  # noqa: S101 - click knows these
        (directory / name).write_text(kind(program, {}, "impound", "_IMPOUND_COMPLETE").source(), "utf-8")
