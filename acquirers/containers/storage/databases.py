"""The database of podman: SQLite since version 4.8 (`db.sql`), bbolt before (`bolt_state.db`). Both without a lock.

Neither is opened where it lies as its own library would do it: SQLite writes beside a database and takes locks. So
`db.sql` is copied into memory, and that copy is asked for its known tables only, with everything forbidden that a
schema made for mischief could do. What lies in its journal or its write-ahead log is not merged: both are taken raw.
Sources: podman `libpod/sqlite_state_internal.go`, `libpod/boltdb_state_internal.go`.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from acquirers import bolt
from acquirers.base import Kind
from acquirers.containers.records import MalformedError
from acquirers.containers.storage.libpod import MAX_CONTAINERS, MAX_VALUE, Podman
from acquirers.containers.storage.schema import SchemaError, schema_bytes

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from acquirers.containers.storage.lists import Folder

MAX_SQLITE = 32 << 20
"""Bytes of a SQLite database that is read; a larger one is only taken. A container takes some 20 KiB."""
MAX_SCHEMA = 256 << 10
"""Bytes of its schema: podman's has some 5 KiB."""
_MAGIC = b"SQLite format 3\0"
_SECONDS = 20.0
_TRIES = 3
_NEEDED = {
    "DBConfig": {"runroot", "tmpdir", "volumedir"},
    "ContainerConfig": {"id", "podid", "json"},
    "ContainerState": {"id", "json"},
    "PodConfig": {"id", "name"},
    "sqlite_master": {"type", "name", "rowid"},
}
_ROWS = {
    "ContainerConfig": "SELECT ID, PodID, JSON FROM ContainerConfig WHERE rowid = ?",
    "PodConfig": "SELECT ID, Name FROM PodConfig WHERE rowid = ?",
}
_ROW_IDS = {
    "ContainerConfig": "SELECT rowid FROM ContainerConfig LIMIT ?",
    "PodConfig": "SELECT rowid FROM PodConfig LIMIT ?",
}
_STATE = "SELECT JSON FROM ContainerState WHERE ID = ?"
_PLACES = "SELECT RunRoot, TmpDir, VolumeDir FROM DBConfig LIMIT 1"


def read_sqlite(folder: Folder, name: bytes) -> Podman:
    """`db.sql`. Raises `OSError`, or `MalformedError` when it is none or larger than what is read."""
    data, whole = _copy(folder, name)
    if data[:16] != _MAGIC:
        raise MalformedError("no SQLite database")
    found = Podman()
    if not whole:
        found.complain("it was written while it was read")
    if folder.kind(name + b"-journal") is Kind.FILE:
        found.complain("a transaction was being written, or was never finished: see the file -journal")
    if data[18:20] != b"\1\1":  # write-ahead log: a database in memory cannot have one
        data[18:20] = b"\1\1"
        found.complain("what stands in its write-ahead log is not part of this: see the file -wal")
    try:
        schema_bytes(data, MAX_SCHEMA)
    except SchemaError as error:
        raise MalformedError(f"SQLite: {error}") from error
    _query(data, found)
    return found


def _copy(folder: Folder, name: bytes) -> tuple[bytearray, bool]:
    """The file, and whether nobody wrote it meanwhile."""
    fd = folder.open_file(name)
    try:
        for last in (False,) * (_TRIES - 1) + (True,):
            before = os.fstat(fd)
            if before.st_size > MAX_SQLITE:
                raise MalformedError(f"{before.st_size} bytes, of which at most {MAX_SQLITE} are read as a database")
            data = bytearray(before.st_size)
            filled = 0
            while filled < len(data) and (count := os.preadv(fd, [memoryview(data)[filled:]], filled)):
                filled += count
            after = os.fstat(fd)
            same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
            if (same and filled == len(data)) or last:
                return data[:filled] if filled < len(data) else data, same
        raise AssertionError
    finally:
        os.close(fd)


def _query(data: bytearray, found: Podman) -> None:
    import sqlite3

    end = time.monotonic() + _SECONDS
    connection = sqlite3.connect(":memory:")
    try:
        connection.deserialize(data)
        data.clear()
        _restrict(connection, end)
        tables = _tables(connection)
        if "DBConfig" in tables:
            for row in _rows(connection, _PLACES, (), found):
                found.run_root, found.tmp_dir, found.volume_path = (_bytes(value)[:4096] for value in row)
        if "PodConfig" in tables:
            for pod_id, name in _table(connection, "PodConfig", found, end):
                found.add_pod(_text(pod_id), _text(name))
        if "ContainerConfig" not in tables:
            raise MalformedError("it has no table of containers")
        for container_id, pod_id, config in _table(connection, "ContainerConfig", found, end):
            states = list(_rows(connection, _STATE, (container_id,), found)) if "ContainerState" in tables else []
            found.add(_text(container_id), _bytes(config), _bytes(states[0][0]) if states else b"", _text(pod_id))
    except sqlite3.Error as error:
        if not found.containers:
            raise MalformedError(f"SQLite: {str(error)[:200]}") from error
        found.complain(f"SQLite: {str(error)[:200]}")
    finally:
        connection.close()


def _restrict(connection: sqlite3.Connection, end: float) -> None:
    """Known columns of known tables can be read, for a limited time, and nothing else can be done."""
    import sqlite3

    for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "query_only = ON", "temp_store = MEMORY"):
        connection.execute(f"PRAGMA {pragma}")
    for category, value in (
        (sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE), (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 100_000),
        (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 20), (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 2),
        (sqlite3.SQLITE_LIMIT_VDBE_OP, 10_000), (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
        (sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 1), (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
    ):  # fmt: skip
        connection.setlimit(category, value)
    connection.set_progress_handler(lambda: int(time.monotonic() > end), 10_000)
    needed = {table.lower(): columns for table, columns in _NEEDED.items()}

    def allow(action: int, table: str | None, column: str | None, _database: str | None, inside: str | None) -> int:
        if action == sqlite3.SQLITE_SELECT:
            return sqlite3.SQLITE_OK
        # A view or a trigger of the same name would stand behind the name: `inside` names it.
        known = action == sqlite3.SQLITE_READ and inside is None and (table or "").lower() in needed
        if known and (column or "").lower() in {"", "rowid", *needed[(table or "").lower()]}:
            return sqlite3.SQLITE_OK
        return sqlite3.SQLITE_DENY

    connection.set_authorizer(allow)


def _tables(connection: sqlite3.Connection) -> set[str]:
    """Those of the known tables that are tables of this file, and none of a module."""
    names = [name for name in _NEEDED if name != "sqlite_master"]
    query = "SELECT rowid FROM sqlite_master WHERE type = 'table' AND name = ?"
    return {name for name in names if connection.execute(query, (name,)).fetchone() is not None}


def _table(connection: sqlite3.Connection, table: str, found: Podman, end: float) -> Iterator[tuple[object, ...]]:
    """Row by row: one that is damaged, or too large, costs no other."""
    row_ids = [row[0] for row in _rows(connection, _ROW_IDS[table], (MAX_CONTAINERS + 1,), found)]
    if len(row_ids) > MAX_CONTAINERS:
        found.cut = True
    for row_id in row_ids[:MAX_CONTAINERS]:
        if time.monotonic() > end:
            found.complain(f"SQLite: it takes longer than {_SECONDS:.0f} s: the rest was not read")
            found.cut = True
            return
        yield from _rows(connection, _ROWS[table], (row_id,), found)


def _rows(
    connection: sqlite3.Connection, query: str, values: tuple[object, ...], found: Podman
) -> Iterator[tuple[object, ...]]:
    import sqlite3

    try:
        yield from connection.execute(query, values)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        found.complain(f"SQLite: {str(error)[:200]}")


def _bytes(value: object) -> bytes:
    if isinstance(value, bytes):  # podman stores JSON as a blob in a column of text
        return value
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else b""


def _text(value: object) -> str:
    return _bytes(value).decode("utf-8", "replace")


# -- bbolt ------------------------------------------------------------------------------------------------------------


def read_bolt(folder: Folder, name: bytes) -> Podman:
    """`bolt_state.db`. Raises `OSError`, or `MalformedError` when it is none."""
    fd = folder.open_file(name)
    try:
        reading = bolt.read(bolt.FileSource(fd), _take)
    except bolt.BoltError as error:
        raise MalformedError(f"bbolt: {str(error)[:200]}") from error
    finally:
        os.close(fd)
    for complaint in reading.complaints:
        reading.value.complain(f"bbolt: {complaint[:200]}")
    return reading.value


def _take(database: bolt.Database) -> Podman:
    found = Podman()
    root = database.root
    runtime = root.bucket(b"runtime-config")
    if runtime is not None:
        found.run_root = (runtime.get(b"run-root") or b"")[:4096]
        found.tmp_dir = (runtime.get(b"tmp-dir") or b"")[:4096]
        found.volume_path = (runtime.get(b"volume-path") or b"")[:4096]
    names = root.bucket(b"id-registry")
    for pod_id, _ in _some(root.bucket(b"pod"), found):
        name = names.get(pod_id) if names is not None else None
        found.add_pod(pod_id.decode("utf-8", "replace"), (name or b"").decode("utf-8", "replace"))
    for container_id, bucket in _some(root.bucket(b"ctr"), found):
        pod_id = (bucket.get(b"pod-id") or b"")[:64]
        found.add(
            container_id.decode("utf-8", "replace"),
            bucket.get(b"config") or b"",
            bucket.get(b"state") or b"",
            pod_id.decode("utf-8", "replace"),
        )
    return found


def _some(bucket: bolt.Bucket | None, found: Podman) -> Iterator[tuple[bytes, bolt.Bucket]]:
    for count, entry in enumerate(bucket.buckets() if bucket is not None else ()):
        if count >= MAX_CONTAINERS:
            found.cut = True
            return
        yield entry
