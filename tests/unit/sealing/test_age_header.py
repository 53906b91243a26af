"""The age header: written as the specification says, parsed as nothing else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import DamagedError
from agent.sealing import BytesSource, Stanza, header, keywrap, rawbase64

KEY = bytes(range(16))

printable = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=80)
stanzas = st.builds(
    Stanza, type=printable, args=st.lists(printable, max_size=4).map(tuple), body=st.binary(max_size=200)
)


@given(st.lists(stanzas, min_size=1, max_size=6), st.binary(max_size=100))
@settings(deadline=None, max_examples=150)
def test_what_is_rendered_parses_to_the_same_whatever_follows(written: list[Stanza], payload: bytes) -> None:
    text = header.render(written, KEY)
    parsed = header.parse(text + payload)
    assert list(parsed.stanzas) == written
    assert parsed.size == len(text)
    assert text.startswith(parsed.covered)
    parsed.authenticate(KEY)
    with pytest.raises(DamagedError, match="MAC"):
        parsed.authenticate(bytes(16))
    assert header.read_header(BytesSource(text + payload)) == parsed


def test_the_bytes_are_those_of_the_specification() -> None:
    text = header.render([Stanza("X25519", ("share",), b"\xff" * 48), Stanza("grease", (), b"")], KEY)
    assert re.fullmatch(
        rb"age-encryption\.org/v1\n-> X25519 share\n/{64}\n\n-> grease\n\n--- [A-Za-z0-9+/]{43}\n", text
    )


def test_the_mac_covers_through_the_three_dashes() -> None:
    text = header.render([Stanza("grease", (), b"")], KEY)
    parsed = header.parse(text)
    assert parsed.covered.endswith(b"\n---")
    assert text[len(parsed.covered) :] == b" " + rawbase64.encode(parsed.mac) + b"\n"


@pytest.mark.parametrize("bad", ["", "a b", "a\nb", "é", "\x7f"])
def test_an_argument_that_the_format_cannot_hold_is_not_written(bad: str) -> None:
    with pytest.raises(ValueError, match="argument"):
        header.render([Stanza("type", (bad,), b"")], KEY)
    with pytest.raises(ValueError, match="argument"):
        header.render([Stanza(bad, (), b"")], KEY)


def test_a_header_that_would_not_be_read_is_not_written() -> None:
    with pytest.raises(ValueError, match="stanzas"):
        header.render([], KEY)
    with pytest.raises(ValueError, match="stanzas"):
        header.render([Stanza("grease", (), b"")] * (header.MAX_STANZAS + 1), KEY)
    with pytest.raises(ValueError, match="bytes"):
        header.render([Stanza("grease", (), bytes(header.MAX_HEADER_SIZE))], KEY)


def test_the_largest_header_is_read_and_a_larger_one_is_refused() -> None:
    # 48 bytes of body are a line of 65; 200 bytes are left for the other lines.
    body = (header.MAX_HEADER_SIZE - 200) // 65 * 48
    text = header.render([Stanza("grease", (), bytes(body))], KEY)
    source = BytesSource(text + b"payload")
    assert header.read_header(source).size == len(text)

    lines = text[: text.index(b"---")]
    longer = lines + b"-> grease\n\n" * 200 + text[text.index(b"---") :]
    with pytest.raises(DamagedError, match="no end within"):
        header.read_header(BytesSource(longer))


def test_too_many_stanzas_are_refused() -> None:
    text = header.render([Stanza("grease", (), b"")] * header.MAX_STANZAS, KEY)
    assert len(header.parse(text).stanzas) == header.MAX_STANZAS
    with pytest.raises(DamagedError, match="more than"):
        header.parse(text.replace(b"-> grease\n\n", b"-> grease\n\n-> grease\n\n", 1))


def test_a_short_header_is_read_at_once_and_a_foreign_file_is_not_read_on() -> None:
    reads: list[int] = []

    class Counting(BytesSource):
        def read_at(self, offset: int, length: int) -> bytes:
            reads.append(length)
            return super().read_at(offset, length)

    header.read_header(Counting(header.render([Stanza("grease", (), b"")], KEY) + bytes(1 << 20)))
    assert reads == [16 << 10]
    reads.clear()
    with pytest.raises(DamagedError, match="not an age v1 file"):
        header.read_header(Counting(bytes(4 << 20)))
    assert reads == [16 << 10]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an age v1 file"),
        (b"age-encryption.org/v1", "not an age v1 file"),
        (b"age-encryption.org/v2\n", "not an age v1 file"),
        (b"-----BEGIN AGE ENCRYPTED FILE-----\nYWdl", "armor"),
        (b"age-encryption.org/v1\n", "no end"),
        (b"age-encryption.org/v1\n-> X25519 a\n", "no end"),
        (b"age-encryption.org/v1\n-> X25519 a\n\n---", "no end"),
        (b"age-encryption.org/v1\n-> X25519 a\n\n--- " + b"A" * 43, "no end"),
        (b"age-encryption.org/v1\n--- " + b"A" * 43 + b"\n", "no stanza"),
    ],
)
def test_what_is_no_header_says_so(data: bytes, reason: str) -> None:
    with pytest.raises(DamagedError, match=reason):
        header.parse(data)


def test_a_wrapped_file_key_of_another_length_is_a_fault_of_the_caller() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        keywrap.unwrap(bytes(32), bytes(48))
