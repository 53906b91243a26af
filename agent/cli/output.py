"""What goes to standard output and standard error. Nothing that a machine supplied reaches a terminal unescaped."""

from __future__ import annotations

import sys
import unicodedata

import msgspec

MAX_RESULT = 2000
"""Characters that the result line stays under."""


def printable(text: str | bytes) -> str:
    """Text that a terminal only shows: control, format (bidirectional, zero-width) and odd characters are escaped."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if (char.isprintable() and unicodedata.category(char)[0] not in "CZ") or char == " " else _escape(char)
        for char in text
    )


def _escape(char: str) -> str:
    number = ord(char)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def size(number: int | None) -> str:
    """Bytes as a person reads them."""
    if number is None:
        return "?"
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def complain(message: str) -> None:
    """One line on standard error."""
    say(f"impound: {message}")


def say(line: str) -> None:
    """A line for a person, on standard error."""
    tell("\n".join(printable(part) for part in line.split("\n")))


def tell(text: str) -> None:
    """Text and a newline on standard error. Whoever has gone away is not told, now or later, and nothing else ends."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.stderr = None  # else the interpreter complains of it with an exit code of its own


def emit(result: dict[str, object]) -> None:
    """The result: one compact JSON line on standard output, under `MAX_RESULT` characters.

    That nobody reads it changes nothing about what was done, nor the exit code.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(compact(result) + "\n")
        sys.stdout.flush()
    except (OSError, ValueError):
        sys.stdout = None


def compact(result: dict[str, object]) -> str:
    """Long lists lose their last entries, and say so, until the line is short enough."""
    short = dict(result)
    while len(line := msgspec.json.encode(short).decode("utf-8")) >= MAX_RESULT:
        lists = [(len(str(value)), key) for key, value in short.items() if isinstance(value, list) and value]
        if not lists:
            longest = max(short, key=lambda key: len(str(short[key])))
            short[longest] = str(short[longest])[:200] + "…"
            continue
        _, key = max(lists)
        value = short[key]
        assert isinstance(value, list)  # noqa: S101 - chosen above
        short[key] = value[: len(value) // 2]
        short["shortened"] = True
    return line
