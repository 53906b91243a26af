"""Base64 as age writes it: RFC 4648 section 4, unpadded, canonical (C2SP `age.md`, "Conventions").

Canonical means that one value has one spelling: the unused bits of the last character are zero. It is what keeps a
header from being rewritten into other bytes of the same meaning.
"""

from __future__ import annotations

import base64
import re

_ALPHABET = re.compile(rb"[A-Za-z0-9+/]*\Z")


def encode(data: bytes) -> bytes:
    """Encode without padding."""
    return base64.b64encode(data).rstrip(b"=")


def decode(text: bytes) -> bytes:
    """Decode. Raises `ValueError` for padding, white space, other characters, and spellings that are not canonical."""
    if not _ALPHABET.match(text) or len(text) % 4 == 1:
        raise ValueError("not unpadded base64")
    data = base64.b64decode(text + b"=" * (-len(text) % 4))
    if encode(data) != text:
        raise ValueError("not canonical base64")
    return data
