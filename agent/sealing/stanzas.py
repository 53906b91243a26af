"""Stanzas: the parts of an age header, which plugins speak in as well (C2SP `age.md`, "Recipient stanza").

    stanza     = "-> " argument *(SP argument) LF  *full-line final-line
    argument   = 1*VCHAR                               0x21 to 0x7E
    full-line  = 64base64char LF                       48 bytes of body
    final-line = *63base64char LF                      the rest of it; there even when it is empty

The first argument is the type. A reader leaves alone what is of a type that it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from agent.errors import DamagedError
from agent.sealing import keywrap, rawbase64

COLUMNS = 64

_ARGUMENT = re.compile(rb"[\x21-\x7e]+\Z")


class Stanza(msgspec.Struct, frozen=True):
    """One recipient's part of an age header: its first argument, the others, and the decoded body."""

    type: str
    args: tuple[str, ...]
    body: bytes


def render_stanza(stanza: Stanza) -> bytes:
    """The stanza as it is written. Raises `ValueError` for arguments that the format cannot hold."""
    arguments = [argument.encode() for argument in (stanza.type, *stanza.args)]
    if not all(_ARGUMENT.match(argument) for argument in arguments):
        raise ValueError("an argument of a stanza is empty or not printable ASCII")
    lines = bytearray(b"-> " + b" ".join(arguments) + b"\n")
    body = rawbase64.encode(stanza.body)
    # A body that fills its last line is followed by an empty one: the range runs one past the end.
    for start in range(0, len(body) + 1, COLUMNS):
        lines += body[start : start + COLUMNS] + b"\n"
    return bytes(lines)


def parse_stanza(next_line: Callable[[], bytes]) -> Stanza:
    """Read one stanza. `next_line` gives a line without its line feed, and raises where there is none.

    Raises `ValueError` with what is wrong with it.
    """
    arrow, *arguments = next_line().split(b" ")
    if arrow != b"->" or not arguments or not all(_ARGUMENT.match(argument) for argument in arguments):
        raise ValueError("malformed stanza")
    body = bytearray()
    while True:
        line = next_line()
        if len(line) > COLUMNS:
            raise ValueError(f"line of {len(line)} columns, more than {COLUMNS}")
        try:
            body += rawbase64.decode(line)
        except ValueError as error:
            raise ValueError(f"body that is {error}") from None
        if len(line) < COLUMNS:
            break
    kind, *rest = (argument.decode("ascii") for argument in arguments)
    return Stanza(kind, tuple(rest), bytes(body))


def values(stanza: Stanza, *sizes: int) -> list[bytes]:
    """The decoded arguments of a stanza that has just as many, of these sizes, and the body of a wrapped file key.

    Raises `DamagedError`. The body's length is checked before any key is tried (`keywrap.unwrap` says why).
    """
    what = f"the sealed header has {'an' if stanza.type[0] in 'Xaeimo' else 'a'} {stanza.type} stanza"
    if len(stanza.args) != len(sizes):
        raise DamagedError(f"{what} with {len(stanza.args)} arguments, not {len(sizes)}")
    try:
        decoded = [rawbase64.decode(argument.encode("ascii")) for argument in stanza.args]
    except ValueError as error:
        raise DamagedError(f"{what} with an argument that is {error}") from None
    if tuple(map(len, decoded)) != sizes or len(stanza.body) != keywrap.WRAPPED_SIZE:
        raise DamagedError(f"{what} of the wrong length")
    return decoded
