"""Bech32: the vectors of BIP-173, strictness, and keys of any length."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.sealing import bech32

CHARSET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


@pytest.mark.parametrize(
    "text",
    [
        # BIP-173, "Test vectors": valid, and whole bytes once regrouped.
        "A12UEL5L",
        "a12uel5l",
        "an83characterlonghumanreadablepartthatcontainsthenumber1andtheexcludedcharactersbio1tt5tgs",
        "?1ezyfcl",
    ],
)
def test_the_vectors_of_the_standard_decode_to_nothing(text: str) -> None:
    hrp, data = bech32.decode(text)
    assert data == b""
    assert text.startswith(f"{hrp}1")
    assert bech32.encode(hrp.lower(), data) == text.lower()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\x201nwldj5", "printable"),
        ("\x7f1axkwrx", "printable"),
        ("\x801eym55h", "printable"),
        ("pzry9x0s0muk", "no prefix"),
        ("1pzry9x0s0muk", "no prefix"),
        ("x1b4n0q5v", "character that no key has"),
        ("li1dgmt3", "too short"),
        ("de1lg7wt\xff", "printable"),
        ("A1G7SGD8", "checksum"),
        ("10a06t8", "no prefix"),
        ("1qzzfhee", "no prefix"),
        ("A12uEL5L", "mixes"),
        ("", "no prefix"),
    ],
)
def test_the_invalid_vectors_of_the_standard_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        bech32.decode(text)


@pytest.mark.parametrize("groups", [[31, 29], [31, 30], [31, 31], [0], [0, 0, 0], [0, 0, 1]])
def test_bits_that_stand_for_nothing_must_be_zero_and_fewer_than_five(groups: list[int]) -> None:
    # One byte is two groups of five bits, of which the last two bits are padding.
    values = bech32._expand("x") + groups
    checksum = bech32._polymod([*values, 0, 0, 0, 0, 0, 0]) ^ 1
    tail = [*groups, *[(checksum >> 5 * (5 - i)) & 31 for i in range(6)]]
    with pytest.raises(ValueError, match="stand for nothing"):
        bech32.decode("x1" + "".join(CHARSET[value] for value in tail))


@pytest.mark.parametrize("hrp", ["", "Age", "a e", "\x7f"])
def test_a_prefix_that_no_reader_takes_is_not_written(hrp: str) -> None:
    with pytest.raises(ValueError, match="human-readable"):
        bech32.encode(hrp, b"x")


@given(
    st.text(string.ascii_lowercase + string.digits + "-!~", min_size=1, max_size=100),
    st.binary(max_size=2000),
    st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_what_is_encoded_decodes_in_either_case(hrp: str, data: bytes, upper: bool) -> None:
    text = bech32.encode(hrp, data)
    if upper:
        assert bech32.decode(text.upper()) == (hrp.upper(), data)
    else:
        assert bech32.decode(text) == (hrp, data)


@given(st.binary(min_size=32, max_size=32), st.data())
@settings(deadline=None, max_examples=200)
def test_every_single_wrong_character_is_noticed(key: bytes, draw: st.DataObject) -> None:
    text = bech32.encode("age", key)
    at = draw.draw(st.integers(4, len(text) - 1))
    other = draw.draw(st.sampled_from([character for character in CHARSET if character != text[at]]))
    with pytest.raises(ValueError, match="checksum"):
        bech32.decode(text[:at] + other + text[at + 1 :])


@given(st.text(max_size=200))
@settings(deadline=None, max_examples=300)
def test_any_text_decodes_or_raises_one_error(text: str) -> None:
    try:
        hrp, data = bech32.decode(text)
    except ValueError:
        return
    assert bech32.encode(hrp.lower(), data) == text.lower()
