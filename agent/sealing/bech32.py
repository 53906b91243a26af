"""Bech32 (BIP-173) without its limit of 90 characters, as C2SP `age.md` uses it for keys.

A string is `hrp "1" data checksum`: a human-readable part of characters 33 to 126, the separator (the last "1"), the
data in groups of five bits, each a character of a set of 32, and six characters of BCH checksum over all of it.
The checksum is computed over the lower-case string; a string is all lower or all upper case, never mixed.
"""

from __future__ import annotations

from collections.abc import Iterable

_CHARSET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_VALUES = {character: value for value, character in enumerate(_CHARSET)}
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM_LENGTH = 6


def encode(hrp: str, data: bytes) -> str:
    """Encode `data` under the lower-case `hrp`. The result is lower case; `.upper()` of it is as valid.

    Raises `ValueError` for an `hrp` that is empty, not lower case or not printable ASCII.
    """
    if not hrp or hrp != hrp.lower() or not _printable(hrp):
        raise ValueError("the human-readable part is not lower-case printable ASCII")
    groups = _regroup(data, 8, 5, pad=True)
    checksum = _polymod([*_expand(hrp), *groups, *([0] * _CHECKSUM_LENGTH)]) ^ 1
    groups += [(checksum >> 5 * (_CHECKSUM_LENGTH - 1 - i)) & 31 for i in range(_CHECKSUM_LENGTH)]
    return f"{hrp}1{''.join(_CHARSET[group] for group in groups)}"


def decode(text: str) -> tuple[str, bytes]:
    """Decode into the human-readable part, in the case in which it was written, and the data.

    Raises `ValueError` with the reason, for a person, and never with any part of `text`: it may be a private key.
    """
    if not _printable(text):
        raise ValueError("it has a character that is not printable ASCII")
    if text not in {text.lower(), text.upper()}:
        raise ValueError("it mixes upper and lower case")
    hrp, separator, tail = text.rpartition("1")
    if not separator or not hrp:
        raise ValueError("it has no prefix that ends with '1'")
    if len(tail) < _CHECKSUM_LENGTH:
        raise ValueError("it is too short")
    try:
        groups = [_VALUES[character] for character in tail.lower()]
    except KeyError:
        raise ValueError("it has a character that no key has") from None
    if _polymod([*_expand(hrp.lower()), *groups]) != 1:
        raise ValueError("its checksum does not match: a character was changed or lost")
    return hrp, bytes(_regroup(groups[:-_CHECKSUM_LENGTH], 5, 8, pad=False))


def _printable(text: str) -> bool:
    return all(33 <= ord(character) <= 126 for character in text)


def _expand(hrp: str) -> list[int]:
    return [ord(character) >> 5 for character in hrp] + [0] + [ord(character) & 31 for character in hrp]


def _polymod(values: Iterable[int]) -> int:
    checksum = 1
    for value in values:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for bit, term in enumerate(_GENERATOR):
            if top >> bit & 1:
                checksum ^= term
    return checksum


def _regroup(values: Iterable[int], width: int, into: int, *, pad: bool) -> list[int]:
    """Regroup bits. Without `pad`, what is left over must be fewer than `width` bits, all of them zero."""
    groups: list[int] = []
    held = bits = 0
    for value in values:
        held = held << width | value
        bits += width
        while bits >= into:
            bits -= into
            groups.append(held >> bits)
            held &= (1 << bits) - 1
    if pad and bits:
        groups.append(held << (into - bits))
    elif not pad and (bits >= width or held):
        raise ValueError("its last character has bits that stand for nothing")
    return groups
