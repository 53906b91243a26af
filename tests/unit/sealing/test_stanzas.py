"""Stanzas: what is written is read back, and whatever is read is bounded and strict."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.sealing.stanzas import Stanza, parse_stanza, render_stanza

ARGUMENTS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=30)


def parse(data: bytes) -> tuple[Stanza, list[bytes]]:
    lines = data.split(b"\n")
    lines.pop()

    def next_line() -> bytes:
        if not lines:
            raise ValueError("no more")
        return lines.pop(0)

    return parse_stanza(next_line), lines


@given(st.lists(ARGUMENTS, min_size=1, max_size=5), st.binary(max_size=200))
@settings(max_examples=300)
def test_what_is_written_is_read_back_and_nothing_behind_it(arguments: list[str], body: bytes) -> None:
    stanza = Stanza(arguments[0], tuple(arguments[1:]), body)
    assert parse(render_stanza(stanza) + b"-> next\n\n") == (stanza, [b"-> next", b""])


@given(st.lists(st.sampled_from([b"-> ", b"->", b"a", b" ", b"\n", b"A" * 64, b"=", b"\xff", b"\t"]), max_size=20))
@settings(max_examples=500)
def test_any_lines(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    try:
        stanza, rest = parse(data)
    except ValueError:
        return
    assert data == render_stanza(stanza) + b"".join(line + b"\n" for line in rest) + data[data.rfind(b"\n") + 1 :]


@pytest.mark.parametrize("bad", ["", " ", "a b", "a\n", "\x7f", "é"])
def test_what_no_argument_can_be_is_not_written(bad: str) -> None:
    for stanza in (Stanza(bad, (), b""), Stanza("x", (bad,), b"")):
        with pytest.raises(ValueError, match="argument"):
            render_stanza(stanza)
