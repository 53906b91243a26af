"""Records as bytes: JSON that has exactly one spelling.

A record is a `msgspec.Struct`; its canonical bytes are what msgspec writes for it, fields in the order of the class, no
blanks. What is read back is accepted only when writing it again gives the very same bytes, so that nothing can be
hidden in a signed document and no byte of it can change unnoticed.
"""

from __future__ import annotations

import base64
import binascii
from typing import TypeVar

import msgspec

from agent.errors import DamagedError

T = TypeVar("T")


def encode(record: object) -> bytes:
    """Canonical bytes of a record, without a newline."""
    return msgspec.json.encode(record)


def decode(data: bytes, kind: type[T], what: str) -> T:
    """The record that `data` spells canonically. Raises `DamagedError` naming `what`."""
    try:
        record = msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedError(f"{what}: not a record that impound wrote") from error
    if msgspec.json.encode(record) != data:
        raise DamagedError(f"{what}: not in the exact bytes that impound writes")
    return record


def encode_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def decode_base64(text: str, what: str) -> bytes:
    """Standard base64 in its one canonical spelling. Raises `DamagedError` naming `what`."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DamagedError(f"{what}: not base64") from error
    if encode_base64(data) != text:
        raise DamagedError(f"{what}: base64 that is not canonical")
    return data
