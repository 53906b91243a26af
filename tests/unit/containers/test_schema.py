"""The size of a SQLite schema, as SQLite itself wrote it, and of whatever else."""

from __future__ import annotations

import random
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquirers.containers.storage.schema import SchemaError, schema_bytes


def database(tables: int, columns: int = 3, page: int = 4096) -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute(f"PRAGMA page_size = {page}")
    for number in range(tables):
        names = ", ".join(f"column{one} TEXT" for one in range(columns))
        connection.execute(f"CREATE TABLE table{number} ({names})")
    data = connection.serialize()
    connection.close()
    return data


@pytest.mark.parametrize("page", [512, 4096, 65536])
@pytest.mark.parametrize("tables", [1, 5, 300])
def test_it_is_what_sqlite_counts(tables: int, page: int) -> None:
    data = database(tables, page=page)
    connection = sqlite3.connect(":memory:")
    connection.deserialize(data)
    (text,) = connection.execute("SELECT sum(length(type || name || tbl_name || sql)) FROM sqlite_master").fetchone()
    connection.close()
    counted = schema_bytes(data, 1 << 20)
    assert text < counted < text + 20 * tables


def test_a_large_one_is_refused() -> None:
    data = database(50, columns=1000)
    with pytest.raises(SchemaError, match="more than"):
        schema_bytes(data, 256 << 10)


@given(st.binary(max_size=2000))
def test_whatever_it_is_it_ends(data: bytes) -> None:
    try:
        assert schema_bytes(data, 1 << 16) <= 1 << 16
    except SchemaError:
        pass


def test_a_damaged_one_ends() -> None:
    data = database(300, page=512)
    generator = random.Random(1)
    for _ in range(500):
        broken = bytearray(data)
        for _ in range(3):
            broken[generator.randrange(100, len(broken))] = generator.randrange(256)
        try:
            schema_bytes(broken, 1 << 20)
        except SchemaError:
            pass
