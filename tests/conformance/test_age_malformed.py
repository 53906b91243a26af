"""One file for each rule of C2SP age.md that a hostile or broken sealer could break: stock age and we refuse them all.

Headers are written here by hand, with a MAC that is right, so that each is refused for its own fault. The other side of
it: what the specification allows, although we never write it, opens here and in stock age.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from agent.errors import DamagedError, IdentityError
from agent.sealing import BytesSource, X25519Identity, open_bytes, render_identity_file
from agent.sealing.age import AgeReader

IDENTITY = X25519Identity(bytes(range(1, 33)))
POINT = IDENTITY.recipient.point
FILE_KEY = bytes(range(16))
NONCE = bytes(range(16, 32))
CHUNK = 65536
VERSION = "age-encryption.org/v1\n"


def derive(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA-256 of 32 bytes (RFC 5869), from the standard library alone."""
    extracted = hmac.digest(salt or bytes(32), secret, hashlib.sha256)
    return hmac.digest(extracted, info + b"\x01", hashlib.sha256)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def not_canonical(text: str) -> str:
    """The same value in another spelling: an unused bit of the last character is set."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return text[:-1] + alphabet[alphabet.index(text[-1]) + 1]


def x25519(file_key: bytes = FILE_KEY) -> tuple[str, str]:
    """The share and the body of a good stanza."""
    ephemeral = X25519PrivateKey.from_private_bytes(bytes(range(50, 82)))
    share = ephemeral.public_key().public_bytes_raw()
    secret = ephemeral.exchange(X25519PublicKey.from_public_bytes(POINT))
    wrap_key = derive(secret, share + POINT, b"age-encryption.org/v1/X25519")
    return b64(share), b64(ChaCha20Poly1305(wrap_key).encrypt(bytes(12), file_key, None))


SHARE, BODY = x25519()
STANZA = f"-> X25519 {SHARE}\n{BODY}\n"


def mac(covered: str) -> str:
    return b64(hmac.digest(derive(FILE_KEY, b"", b"header"), covered.encode("latin-1"), hashlib.sha256))


def header(stanzas: str = STANZA, *, version: str = VERSION, end: Callable[[str], str] | None = None) -> bytes:
    covered = f"{version}{stanzas}---"
    tail = end(mac(covered)) if end else f" {mac(covered)}\n"
    return (covered + tail).encode("latin-1")


def chunk(number: int, data: bytes, *, last: bool) -> bytes:
    cipher = ChaCha20Poly1305(derive(FILE_KEY, NONCE, b"payload"))
    return cipher.encrypt(number.to_bytes(11, "big") + bytes([last]), data, None)


PAYLOAD = NONCE + chunk(0, b"evidence", last=True)

FULL = bytes(CHUNK)
LONG_BODY = b64(bytes(48))  # exactly one full line

GOOD: dict[str, bytes] = {
    "as we write it": header(),
    "an unknown stanza": header(f"-> example.com/enigma a b c\nAAAA\n{STANZA}"),
    "an unknown stanza without a body": header(f"-> grease\n\n{STANZA}-> grease\n\n"),
    "a body that fills its line": header(f"-> grease x\n{LONG_BODY}\n\n{STANZA}"),
    "a body of several lines": header(f"-> grease x\n{LONG_BODY}\n{LONG_BODY}\nAAAA\n{STANZA}"),
    "every printable character": header(f"-> {''.join(map(chr, range(33, 127)))}\n\n{STANZA}"),
    "a second recipient": header(f"-> X25519 {b64(bytes([9] + [0] * 31))}\n{b64(bytes(32))}\n{STANZA}"),
    "another case of a type": header(f"-> x25519 nonsense\n\n{STANZA}"),
}

BAD_HEADERS: dict[str, bytes] = {
    "CRLF": header().replace(b"\n", b"\r\n"),
    "CRLF under the MAC": header(STANZA.replace("\n", "\r\n")),
    "another version": header(version="age-encryption.org/v2\n"),
    "a longer version": header(version="age-encryption.org/v1234\n"),
    "no version": header(version=""),
    "no stanza": header(""),
    "no MAC": header(end=lambda _: "\n"),
    "no MAC after the space": header(end=lambda _: " \n"),
    "no space before the MAC": header(end=lambda code: f"{code}\n"),
    "two spaces before the MAC": header(end=lambda code: f"  {code}\n"),
    "a space after the MAC": header(end=lambda code: f" {code} \n"),
    "a MAC cut off": header(end=lambda code: f" {code[:-1]}\n"),
    "a MAC too long": header(end=lambda code: f" {code}AA\n"),
    "a MAC with padding": header(end=lambda code: f" {code}=\n"),
    "a MAC not canonical": header(end=lambda code: f" {not_canonical(code)}\n"),
    "another MAC": header(end=lambda _: f" {b64(bytes(32))}\n"),
    "no space after the arrow": header(STANZA.replace("-> ", "->")),
    "two spaces after the arrow": header(STANZA.replace("-> ", "->  ")),
    "a space at the end of the arguments": header(STANZA.replace(SHARE, f"{SHARE} ")),
    "an empty argument": header(f"-> grease  x\n\n{STANZA}"),
    "an arrow alone": header(f"{STANZA}->\n\n"),
    "an arrow and a space alone": header(f"{STANZA}-> \n\n"),
    "a control character": header(f"-> grease \x7f\n\n{STANZA}"),
    "a character beyond ASCII": header(f"-> gr\xe9ase\n\n{STANZA}"),
    "a tab between arguments": header(f"-> grease\tx\n\n{STANZA}"),
    "a stanza without its body": header(f"-> grease\n{STANZA}"),
    "a full line without a final one": header(f"{STANZA}-> grease\n{LONG_BODY}\n"),
    "a line of 65": header(f"-> grease\n{LONG_BODY}A\n\n{STANZA}"),
    "a line of 68": header(f"-> grease\n{LONG_BODY}AAAA\n\n{STANZA}"),
    "two short lines": header(f"-> grease\nAAAA\nAAAA\n{STANZA}"),
    "a body with padding": header(f"-> grease\nAAA=\n{STANZA}"),
    "a body not canonical": header(f"-> grease\nAAB\n{STANZA}"),
    "a body of one character": header(f"-> grease\nA\n{STANZA}"),
    "a body with a space": header(f"-> grease\nAA AA\n{STANZA}"),
    "a body in the URL alphabet": header(f"-> grease\n--__\n{STANZA}"),
    "an empty line before the stanzas": header(f"\n{STANZA}"),
    "an X25519 stanza without a share": header(f"-> X25519\n{BODY}\n"),
    "an X25519 stanza with a third argument": header(STANZA.replace(SHARE, f"{SHARE} x")),
    "a share too short": header(STANZA.replace(SHARE, b64(bytes(31)))),
    "a share too long": header(STANZA.replace(SHARE, b64(bytes(33)))),
    "a share not canonical": header(STANZA.replace(SHARE, not_canonical(SHARE))),
    "a share with padding": header(STANZA.replace(SHARE, f"{SHARE}=")),
    "a share of low order": header(STANZA.replace(SHARE, b64(bytes(32)))),
    "another share of low order": header(STANZA.replace(SHARE, b64(bytes([1] + [0] * 31)))),
    "a wrapped key too long": header("-> X25519 {}\n{}\n".format(*x25519(FILE_KEY * 2))),
    "a wrapped key too short": header(STANZA.replace(BODY, BODY[:-3])),
    "a wrapped key not canonical": header(STANZA.replace(BODY, not_canonical(BODY))),
}

NOT_FOR_US: dict[str, bytes] = {
    "another wrapped key": header(STANZA.replace(BODY, b64(bytes(32)))),
    "only unknown stanzas": header("-> grease\n\n"),
    "another case of the type": header(STANZA.replace("X25519", "x25519")),
    "a passphrase alone": header(f"-> scrypt {b64(bytes(16))} 10\n{b64(bytes(32))}\n"),
}

BAD_PAYLOADS: dict[str, tuple[bytes, int]] = {
    "no nonce": (b"", 0),
    "half a nonce": (NONCE[:8], 0),
    "no chunk": (NONCE, 0),
    "a chunk without a whole tag": (NONCE + chunk(0, b"", last=True)[:15], 0),
    "no last chunk": (NONCE + chunk(0, b"evidence", last=False), 0),
    "no last chunk after a full one": (NONCE + chunk(0, FULL, last=False), 0),
    "no last chunk of two": (NONCE + chunk(0, FULL, last=False) + chunk(1, b"x", last=False), 1),
    "an empty last chunk": (NONCE + chunk(0, FULL, last=False) + chunk(1, b"", last=True), 1),
    "two last chunks": (NONCE + chunk(0, FULL, last=True) + chunk(1, b"x", last=True), 0),
    "two last chunks of the same number": (NONCE + chunk(0, FULL, last=True) + chunk(0, b"x", last=True), 0),
    "a second chunk of the first number": (NONCE + chunk(0, FULL, last=False) + chunk(0, b"x", last=True), 1),
    "a number left out": (NONCE + chunk(0, FULL, last=False) + chunk(2, b"x", last=True), 1),
    "a first chunk of another number": (NONCE + chunk(1, b"evidence", last=True), 0),
    "a short chunk before the last": (NONCE + chunk(0, b"short", last=False) + chunk(1, b"x", last=True), 0),
    "a longer chunk than there are": (NONCE + chunk(0, bytes(CHUNK + 1), last=True), 0),
    "an empty chunk before the last": (NONCE + chunk(0, b"", last=False) + chunk(1, b"x", last=True), 0),
    "something after the last chunk": (PAYLOAD + b"x", 0),
    "a chunk after the last": (PAYLOAD + chunk(1, b"more", last=True), 0),
    "another nonce": (bytes(16) + PAYLOAD[16:], 0),
}


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "identity.txt"
    path.write_text(render_identity_file(IDENTITY, datetime.now(UTC)))
    return path


def stock(sealed: bytes, key: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["age", "-d", "-i", key], input=sealed, capture_output=True)


@pytest.mark.parametrize("name", GOOD)
def test_what_the_specification_allows_opens(name: str, key: Path) -> None:
    sealed = GOOD[name] + PAYLOAD
    assert stock(sealed, key).stdout == b"evidence"
    assert open_bytes(sealed, [IDENTITY]) == b"evidence"


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_malformed_header_is_damage(name: str, key: Path) -> None:
    sealed = BAD_HEADERS[name] + PAYLOAD
    assert stock(sealed, key).returncode != 0
    with pytest.raises(DamagedError):
        open_bytes(sealed, [IDENTITY])


def test_a_passphrase_beside_a_recipient_is_damage() -> None:
    """The specification forbids it; stock age notices only where it was asked for the passphrase."""
    sealed = header(f"{STANZA}-> scrypt {b64(bytes(16))} 10\n{b64(bytes(32))}\n") + PAYLOAD
    with pytest.raises(DamagedError, match="passphrase"):
        open_bytes(sealed, [IDENTITY])


@pytest.mark.parametrize("name", NOT_FOR_US)
def test_a_header_that_is_for_someone_else_is_not_damage(name: str, key: Path) -> None:
    sealed = NOT_FOR_US[name] + PAYLOAD
    assert stock(sealed, key).returncode != 0
    with pytest.raises(IdentityError):
        open_bytes(sealed, [IDENTITY])


@pytest.mark.parametrize("name", BAD_PAYLOADS)
def test_a_malformed_payload_is_damage_and_nothing_of_it_is_given_out(name: str, key: Path) -> None:
    payload, good_chunks = BAD_PAYLOADS[name]
    sealed = header() + payload
    assert stock(sealed, key).returncode != 0
    got = bytearray()
    with pytest.raises(DamagedError):
        collect(sealed, got)
    assert len(got) == good_chunks * CHUNK


def collect(sealed: bytes, into: bytearray) -> None:
    for piece in AgeReader(BytesSource(sealed), [IDENTITY]).stream():
        into += piece
