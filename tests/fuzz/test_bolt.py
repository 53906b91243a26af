"""bbolt files with bytes changed at random: nothing but `BoltError`, and work that the size of the file bounds."""

from __future__ import annotations

import random
import struct

import pytest

from acquirers.bolt import BoltError, Database, carve, open_database
from acquirers.bolt.meta import fnv1a
from tests.support.bolt_maker import Tree, make
from tests.unit.bolt.test_bolt import CountingSource, lazily

TREE: Tree = {
    b"v1": {
        b"k8s.io": {
            b"containers": {
                b"%064x" % number: {b"image": b"shop:1", b"spec": b"s" * 700, b"labels": {b"a": b"b", b"c": b"d"}}
                for number in range(12)
            },
            b"images": {b"shop:%d" % number: {b"target": {b"digest": b"sha256:0"}} for number in range(30)},
        },
        b"large": b"x" * 9000,
        b"version": b"\x06",
    }
}


def mutate(data: bytes, generator: random.Random, page_size: int) -> bytes:
    """Some changes beyond the meta pages; sometimes in them, with a checksum that fits."""
    changed = bytearray(data)
    for _ in range(generator.choice([1, 2, 8, 64])):
        at = generator.randrange(2 * page_size, len(changed) - 8)
        how = generator.randrange(5)
        if how == 0:
            changed[at] ^= 1 << generator.randrange(8)
        elif how == 1:
            start = at // page_size * page_size + 16 * generator.randrange(8)
            changed[start : start + 4] = struct.pack("<I", generator.choice([0, 1, 2, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
        elif how == 2:  # one page number for another
            changed[at : at + 8] = struct.pack("<Q", generator.randrange(len(changed) // page_size + 2))
        elif how == 3:  # one page over another
            source = generator.randrange(2, len(changed) // page_size) * page_size
            target = at // page_size * page_size
            changed[target + 8 : target + page_size] = changed[source + 8 : source + page_size]
        else:
            changed[at : at + 8] = generator.randbytes(8)
    if generator.randrange(4) == 0:
        slot = generator.randrange(2) * page_size + 16
        at = slot + generator.randrange(56)
        changed[at] ^= 1 << generator.randrange(8)
        changed[slot + 56 : slot + 64] = struct.pack("<Q", fnv1a(bytes(changed[slot : slot + 56])))
    if generator.randrange(8) == 0:
        del changed[generator.randrange(len(changed)) :]
    return bytes(changed)


def go_through(database: Database) -> None:
    for _ in database.walk():
        pass
    for key in [key for key, _ in database.root.items()]:
        database.root.get(key)
    bucket = database.root.bucket(b"v1", b"k8s.io", b"containers")
    for key, inner in bucket.buckets() if bucket is not None else ():
        assert bucket is not None
        bucket.bucket(key, b"labels")
        inner.get(b"spec")
    for _ in carve(database):
        pass


@pytest.mark.parametrize("page_size", [512, 4096])
@pytest.mark.parametrize("seed", range(6))
def test_any_file(seed: int, page_size: int) -> None:
    generator = random.Random(seed)
    data = make(TREE, page_size=page_size, fanout=generator.choice([3, 1000]))
    for _ in range(120):
        source = CountingSource(mutate(data, generator, page_size))
        try:
            database = lazily(source)
            go_through(database)
            previous = database.previous()
            if previous is not None:
                go_through(previous)
        except BoltError:
            continue
        assert source.bytes_read <= 20 * len(data)


@pytest.mark.parametrize("seed", range(3))
def test_any_bytes(seed: int) -> None:
    generator = random.Random(seed)
    for size in (0, 15, 79, 80, 512, 4095, 4096, 8192, 70_000):
        with pytest.raises(BoltError):
            open_database(CountingSource(generator.randbytes(size)))
