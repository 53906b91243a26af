"""The age testkit of C2SP/CCTV: every vector that has to do with what impound reads, and the others refused as such.

Armor and passphrases are no part of evidence: whatever is in them is refused, in words that say so.
"""

from __future__ import annotations

import hashlib
import hmac
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from agent.errors import DamagedError, IdentityError
from agent.sealing import BytesSource, header, parse_identity_file
from agent.sealing.age import AgeReader

VECTORS = Path(__file__).resolve().parents[1] / "golden/age/cctv"
NAMES = sorted(path.name for path in VECTORS.iterdir())


@dataclass
class Vector:
    """One file: what is expected, and the age file."""

    expect: str = ""
    payload: str = ""
    identities: list[str] = field(default_factory=list)
    passphrase: bool = False
    armored: bool = False
    age: bytes = b""


def read(name: str) -> Vector:
    head, _, body = (VECTORS / name).read_bytes().partition(b"\n\n")
    vector = Vector(age=body)
    for line in head.decode("utf-8").split("\n"):
        key, _, value = line.partition(": ")
        match key:
            case "expect":
                vector.expect = value
            case "payload":
                vector.payload = value
            case "identity":
                vector.identities.append(value)
            case "passphrase":
                vector.passphrase = True
            case "armored":
                vector.armored = value == "yes"
            case "compressed":
                assert value == "zlib"
                vector.age = zlib.decompress(body)
            case "file key" | "comment":
                pass
            case _:
                raise AssertionError(f"{name}: {key!r} is not known: the vectors are newer than this test")
    return vector


def test_all_vectors_are_here() -> None:
    assert len(NAMES) == 143
    vectors = [read(name) for name in NAMES]
    assert sum(not (vector.armored or vector.passphrase) for vector in vectors) == 85


@pytest.mark.parametrize("name", NAMES)
def test_a_vector_does_what_it_should(name: str) -> None:
    vector = read(name)
    identities = parse_identity_file("\n".join(vector.identities)) if vector.identities else []
    released = bytearray()
    try:
        for chunk in AgeReader(BytesSource(vector.age), identities).stream():
            released += chunk
        outcome = "success"
    except DamagedError as error:
        outcome = f"damaged: {error}"
    except IdentityError as error:
        outcome = f"identity: {error}"
    assert outcome.startswith(expected_of(vector)), outcome
    if vector.payload and not (vector.armored or vector.passphrase):
        # A reader that does not know the size decrypts more before it finds the damage; never anything else.
        whole = as_a_pipe_reads_it(vector.age, name)
        assert hashlib.sha256(whole).hexdigest() == vector.payload
        assert whole.startswith(released)
        assert len(whole) == len(released) or outcome != "success"
    else:
        assert not released


def as_a_pipe_reads_it(data: bytes, name: str) -> bytes:
    """What a reader releases that has not seen the end: each chunk that is full may be the last one."""
    _, _, key = (VECTORS / name).read_bytes().partition(b"file key: ")
    start = header.parse(data).size
    nonce, body = data[start : start + 16], data[start + 16 :]
    prk = hmac.digest(nonce, bytes.fromhex(key[:32].decode()), hashlib.sha256)
    cipher = ChaCha20Poly1305(hmac.digest(prk, b"payload\x01", hashlib.sha256))
    released = bytearray()
    for number, at in enumerate(range(0, len(body), 65552)):
        sealed = body[at : at + 65552]
        for last in (False, True) if len(sealed) == 65552 else (True,):
            try:
                chunk = cipher.decrypt(number.to_bytes(11, "big") + bytes([last]), sealed, None)
            except (InvalidTag, ValueError):
                continue
            if number and not chunk:
                return bytes(released)
            released += chunk
            break
        else:
            return bytes(released)
        if last:
            break
    return bytes(released)


def expected_of(vector: Vector) -> str:
    """What `outcome` begins with."""
    if vector.armored:
        return "damaged"
    if vector.passphrase and vector.expect in {"success", "no match"}:
        return "identity: "
    if vector.passphrase:
        return ""  # refused either way: the reason may be the passphrase, or what is wrong with it
    return {
        "success": "success",
        "no match": "identity: none of the identities",
        "HMAC failure": "damaged: the sealed header is not as it was written",
        "header failure": "damaged: ",
        "payload failure": "damaged: ",
    }[vector.expect]


@pytest.mark.parametrize("name", NAMES)
def test_a_header_that_parses_is_written_back_as_the_same_bytes(name: str) -> None:
    vector = read(name)
    try:
        parsed = header.parse(vector.age)
    except DamagedError:
        assert vector.armored or vector.expect in {"header failure", "armor failure"}
        return
    key = bytes.fromhex("59454c4c4f57205355424d4152494e45")
    if vector.expect in {"success", "payload failure"} and not vector.armored:
        again = header.render(parsed.stanzas, key)
        assert again == vector.age[: parsed.size] or key_differs(name)


def key_differs(name: str) -> bool:
    """The vectors that name another file key than all the others, or none."""
    return b"file key: 59454c4c4f57205355424d4152494e45" not in (VECTORS / name).read_bytes()
