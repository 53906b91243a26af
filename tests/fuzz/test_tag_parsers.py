"""Headers for tagged and post-quantum keys, with anything in them: `DamagedError` or `IdentityError`, nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import DamagedError, IdentityError
from agent.sealing import Identity, generate, generate_post_quantum, header, open_bytes, seal_bytes
from tests.support.tagkeys import tag_identity, tagpq_identity

CLASSIC, TAG = generate(), tag_identity()
QUANTUM, TAGPQ = generate_post_quantum(), tagpq_identity()
SEALED: dict[str, tuple[bytes, tuple[Identity, ...]]] = {
    "classic": (seal_bytes(b"evidence", [TAG.recipient, CLASSIC.recipient]), (TAG, CLASSIC)),
    "post-quantum": (seal_bytes(b"evidence", [TAGPQ.recipient, QUANTUM.recipient]), (TAGPQ, QUANTUM)),
}
WORDS = st.sampled_from(
    [b"-> p256tag ", b"-> mlkem768p256tag ", b"-> mlkem768x25519 ", b"\n", b" ", b"--- ", b"A" * 6, b"A" * 64]
    + [SEALED[name][0][22:400] for name in SEALED]
)
SOUP = st.lists(WORDS | st.binary(max_size=10), max_size=12).map(b"".join)


def survives(data: bytes, identities: tuple[Identity, ...]) -> bytes | None:
    message = ""
    opened = None
    for identity in identities:
        try:
            opened = open_bytes(data, [identity])
        except (DamagedError, IdentityError) as error:
            message = str(error)
    assert "\n" not in message
    assert len(message) < 400
    return opened


@pytest.mark.parametrize("name", SEALED)
@given(draw=st.data())
@settings(deadline=None, max_examples=300)
def test_a_good_file_with_a_piece_of_the_header_replaced(name: str, draw: st.DataObject) -> None:
    sealed, identities = SEALED[name]
    end_of_header = header.parse(sealed).size
    start = draw.draw(st.integers(0, end_of_header))
    end = draw.draw(st.integers(start, min(end_of_header, start + 200)))
    data = sealed[:start] + draw.draw(SOUP) + sealed[end:]
    assert survives(data, identities) in {None, b"evidence"}
    if data != sealed:
        assert survives(data, identities) is None


@given(SOUP)
@settings(deadline=None, max_examples=300)
def test_any_stanzas(soup: bytes) -> None:
    data = b"age-encryption.org/v1\n" + soup + b"\n--- " + b"A" * 43 + b"\n" + bytes(32)
    for _, identities in SEALED.values():
        assert survives(data, identities) is None


@pytest.mark.parametrize("name", SEALED)
def test_every_single_bit_of_a_header_counts(name: str) -> None:
    sealed, identities = SEALED[name]
    size = header.parse(sealed).size
    for position in range(0, size, 1 if name == "classic" else 17):
        changed = bytearray(sealed)
        changed[position] ^= 1 << position % 8
        assert survives(bytes(changed), identities) is None
