"""`agent.db` of the ECS agent as JSON lines: which tasks and containers it knew, knows, and has forgotten.

amazon-ecs-agent `agent/data`: a bbolt database with the buckets tasks, containers, images, eniattachments,
resattachments and metadata, whose values are JSON. {"view", "bucket", "key", "value"}: the view is `current`,
`previous` (the transaction before, where it says something else) or `carved` (a page that nothing leads to any more,
with its number). A value that is no JSON stands in "raw", in base64.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec

from acquirers import bolt
from agent.analysis.logs.rendering import shown

if TYPE_CHECKING:
    from acquirers.bolt import Database

ITEM = "logs/ecs.tar"
MEMBER = b"[root]/var/lib/ecs/data/agent.db"
OUTPUT = "ecs-agent.jsonl"
MAX_DATABASE = 64 << 20
"""Bytes that are read into memory: a real one has a few hundred KiB."""


def agent_records(data: bytes) -> Iterator[bytes]:
    """A line for each key. What is wrong with the database is a line as well, and nothing raises for it."""
    try:
        database = bolt.open_database(bolt.BytesSource(data))
    except bolt.BoltError as error:
        yield _line({"damaged": f"not a bbolt database: {error}"})
        return
    known: set[bytes] = set()
    yield from _view("current", database, known)
    previous = database.previous()
    if previous is not None:
        yield from _view("previous", previous, known)
    for found in bolt.carve(database):
        if found.value is not None and _new(known, found.bucket, found.key, found.value):
            record = _record("carved", found.bucket, found.key, found.value) | {"page": found.page}
            yield _line(record if found.whole else record | {"whole": False})
    for fault in (*database.notes, *map(str, database.faults)):
        yield _line({"damaged": fault})


def _view(view: str, database: Database, known: set[bytes]) -> Iterator[bytes]:
    for path, key, value in database.walk():
        bucket = b"/".join(path)
        if value is not None and _new(known, bucket, key, value):
            yield _line(_record(view, bucket, key, value))


def _new(known: set[bytes], *parts: bytes) -> bool:
    digest = blake2b(b"".join(len(part).to_bytes(8, "big") + part for part in parts), digest_size=16).digest()
    if digest in known:
        return False
    known.add(digest)
    return True


def _record(view: str, bucket: bytes, key: bytes, value: bytes) -> dict[str, object]:
    record: dict[str, object] = {
        "view": view,
        "bucket": bucket.decode("utf-8", "backslashreplace"),
        "key": key.decode("utf-8", "backslashreplace"),
    }
    try:
        record["value"] = msgspec.json.decode(value)
        msgspec.json.encode(record)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError, OverflowError):
        record.pop("value", None)
        record["raw"] = b64encode(value).decode()
    return record


def _line(record: dict[str, object]) -> bytes:
    return shown(msgspec.json.encode(record)) + b"\n"
