"""The textual header of an age v1 file (C2SP `age.md`, "Header", and its ABNF).

    header     = v1-line 1*stanza end
    v1-line    = "age-encryption.org/v1" LF
    stanza     = see `stanzas.py`
    end        = "--- " 43base64char LF                HMAC-SHA-256 over everything through "---"

The MAC key is HKDF-SHA-256(file key, salt empty, info "header"). Bytes are parsed strictly, and the MAC is checked over
the bytes as they were read, never over a rendering of what was understood.

A header comes from the machine that was examined, so what it can cost is bounded: `MAX_HEADER_SIZE`, `MAX_STANZAS`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from agent.errors import DamagedError
from agent.sealing import keywrap, rawbase64
from agent.sealing.stanzas import Stanza, parse_stanza, render_stanza
from agent.sealing.streams import RandomAccess, read_exactly

MAX_HEADER_SIZE = 1 << 20
MAX_STANZAS = 1024

_VERSION_LINE = b"age-encryption.org/v1\n"
_ARMOR = b"-----BEGIN AGE ENCRYPTED FILE-----"
_END = b"\n--- "
_MAC_SIZE = 32

# One read is enough for a few hundred recipients; only a longer header needs a second.
_FIRST_READ = 16 << 10


class Header(msgspec.Struct, frozen=True):
    """A parsed header, whose MAC has not been checked yet."""

    stanzas: tuple[Stanza, ...]
    covered: bytes
    """The bytes under the MAC: from the first byte of the file through `---`."""
    mac: bytes
    size: int
    """Bytes of the header. The payload's nonce follows."""

    def authenticate(self, file_key: bytes) -> None:
        """Check the MAC. Raises `DamagedError`."""
        code = _mac(file_key, self.covered)
        try:
            code.verify(self.mac)
        except InvalidSignature:
            raise DamagedError("the sealed header is not as it was written: its MAC does not match") from None


def render(stanzas: Sequence[Stanza], file_key: bytes) -> bytes:
    """Write a header. Raises `ValueError` for what the format cannot hold."""
    if not 1 <= len(stanzas) <= MAX_STANZAS:
        raise ValueError(f"a header has 1 to {MAX_STANZAS} stanzas, not {len(stanzas)}")
    lines = bytearray(_VERSION_LINE)
    for stanza in stanzas:
        lines += render_stanza(stanza)
    lines += b"---"
    header = bytes(lines) + b" " + rawbase64.encode(_mac(file_key, bytes(lines)).finalize()) + b"\n"
    if len(header) > MAX_HEADER_SIZE:
        raise ValueError(f"the header would have {len(header)} bytes, more than {MAX_HEADER_SIZE}")
    return header


def read_header(source: RandomAccess) -> Header:
    """Read and parse the header at the beginning of `source`. Raises `DamagedError`."""
    data = read_exactly(source, 0, min(source.size, _FIRST_READ))
    if _length(data) is None and data.startswith(_VERSION_LINE) and len(data) < source.size:
        data = read_exactly(source, 0, min(source.size, MAX_HEADER_SIZE))
    return parse(data)


def parse(data: bytes) -> Header:
    """Parse the header with which `data` begins; what follows it is not looked at. Raises `DamagedError`."""
    if data.startswith(_ARMOR):
        raise DamagedError("this is an age file in ASCII armor, which impound does not write; `age -d` opens it")
    if not data.startswith(_VERSION_LINE):
        raise DamagedError("this is not an age v1 file: it was never sealed by impound, or its beginning is lost")
    size = _length(data)
    if size is None:
        raise DamagedError(f"the sealed header has no end within {MAX_HEADER_SIZE} bytes")
    end = data.rindex(_END, 0, size) + 1
    try:
        mac = rawbase64.decode(data[end + 4 : size - 1])
    except ValueError as error:
        raise DamagedError(f"the sealed header has a MAC that is {error}") from None
    if len(mac) != _MAC_SIZE:
        raise DamagedError(f"the sealed header has a MAC of {len(mac)} bytes, not {_MAC_SIZE}")
    stanzas = _parse_stanzas(data[len(_VERSION_LINE) : end])
    return Header(stanzas, data[: end + 3], mac, size)


def _length(data: bytes) -> int | None:
    """Bytes of the header in `data`, `None` where its end is not there. No line before the last begins with `--- `."""
    end = data.find(_END, 0, MAX_HEADER_SIZE)
    stop = data.find(b"\n", end + len(_END), MAX_HEADER_SIZE) if end >= 0 else -1
    return stop + 1 if stop >= 0 else None


def _parse_stanzas(data: bytes) -> tuple[Stanza, ...]:
    lines = deque(data.split(b"\n"))
    lines.pop()  # what follows the last line feed: nothing
    stanzas: list[Stanza] = []

    def next_line() -> bytes:
        if not lines:
            raise ValueError("stanza whose body does not end")
        return lines.popleft()

    while lines:
        if len(stanzas) == MAX_STANZAS:
            raise DamagedError(f"the sealed header has more than {MAX_STANZAS} stanzas")
        try:
            stanzas.append(parse_stanza(next_line))
        except ValueError as error:
            raise DamagedError(f"the sealed header has a {error}, after {len(stanzas)} good stanzas") from None
    if not stanzas:
        raise DamagedError("the sealed header has no stanza")
    return tuple(stanzas)


def _mac(file_key: bytes, covered: bytes) -> HMAC:
    code = HMAC(keywrap.derive(file_key, b"", b"header"), SHA256())
    code.update(covered)
    return code
