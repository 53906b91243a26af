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


def say(line: str = "") -> None:
    """One line for a person, on standard error, whatever the names in it hold."""
    tell(printable(line))


def tell(text: str) -> None:
    """Text and a newline on standard error. Whoever has gone away is not told, now or later, and nothing else ends."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.stderr = None  # else the interpreter complains of it with an exit code of its own


def is_terminal() -> bool:
    """Whether a person looks at standard error."""
    return sys.stderr is not None and sys.stderr.isatty()


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
    """Long lists lose their last entries and long texts their ends, and it says so, until the line is short enough."""
    short = {key: _encodable(value) for key, value in result.items()}
    while len(line := _json(short)) >= MAX_RESULT:
        short["shortened"] = True
        length, key = max((len(_json(value)), key) for key, value in short.items())
        value = short[key]
        if isinstance(value, list) and value:
            short[key] = value[: len(value) // 2]
        elif isinstance(value, str) and length > 40:
            short[key] = value[: len(value) // 2] + "…"
        else:
            del short[key]
    return line


def json_line(value: object) -> str:
    """A value as one line of JSON that a terminal only shows, whatever the names in it hold."""
    return _json(_encodable(value))


def _json(value: object) -> str:
    """JSON that a terminal only shows. What `printable` escapes is written as JSON escapes it: the value stays."""
    text = msgspec.json.encode(value).decode("utf-8")
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if printable(char) == char else _escape_json(char) for char in text)


def _escape_json(char: str) -> str:
    units = char.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _encodable(value: object) -> object:
    """The same without lone surrogates, which stand for bytes of a name that are not UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, list):
        return [_encodable(inner) for inner in value]
    if isinstance(value, dict):
        return {_encodable(key): _encodable(inner) for key, inner in value.items()}
    return value
