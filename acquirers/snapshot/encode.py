"""JSON lines out of bytes that nobody vouches for.

Names, arguments and environments are bytes that a process chose. `KEY` holds them as text; where the text does not give
the bytes back, `KEY_b64` holds the true bytes beside it (the habit of borg's JSON output for paths that are not UTF-8).
"""

from __future__ import annotations

from base64 import b64encode
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

from acquirers.base import MAX_CHUNK

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

MEDIA_TYPE = "application/x-ndjson"

_BATCH = 1 << 17
_json = msgspec.json.Encoder()


def put(record: dict[str, object], key: str, raw: bytes) -> None:
    """`raw` as text under `key`; where it is not UTF-8, the text has escapes for what is not, and `KEY_b64` is true."""
    try:
        record[key] = raw.decode()
    except UnicodeDecodeError:
        record[key] = raw.decode("utf-8", "backslashreplace")
        record[f"{key}_b64"] = b64encode(raw).decode()


def put_list(record: dict[str, object], key: str, raw: bytes, separator: bytes = b"\0") -> None:
    """The parts of `raw`, each ended by `separator`, as a list of texts under `key`.

    `KEY_b64` is `raw` whole, where the list does not give it back: bytes that are not UTF-8, a missing last separator,
    or the padding of a process that wrote a title over its arguments.
    """
    parts = raw.split(separator)
    if parts[-1] == b"":
        parts.pop()
    while len(parts) > 1 and parts[-1] == parts[-2] == b"":
        parts.pop()
    exact = raw == b"".join(part + separator for part in parts)
    try:
        record[key] = [part.decode() for part in parts]
    except UnicodeDecodeError:
        record[key] = [part.decode("utf-8", "backslashreplace") for part in parts]
        exact = False
    if not exact:
        record[f"{key}_b64"] = b64encode(raw).decode()


def fragment(record: dict[str, object]) -> bytes:
    """The members of a JSON object with a comma before them and no braces around them; nothing for an empty record."""
    return b"," + _json.encode(record)[1:-1] if record else b""


def line(record: dict[str, object]) -> bytes:
    return _json.encode(record) + b"\n"


def chunks(pieces: Generator[bytes, None, None]) -> Iterator[bytes]:
    """The same bytes in chunks that are worth sealing, none longer than `MAX_CHUNK`. Closes what it is given."""
    batch: list[bytes] = []
    size = 0
    with closing(pieces):
        for piece in pieces:
            batch.append(piece)
            size += len(piece)
            if size < _BATCH:
                continue
            data = b"".join(batch)
            batch, size = [], 0
            for start in range(0, len(data), MAX_CHUNK):
                yield data[start : start + MAX_CHUNK]
    if size:
        yield b"".join(batch)
