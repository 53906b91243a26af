"""The bbolt reader on files made by hand: every shape of page, and what is left when parts of a file are damaged."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acquirers.bolt import BoltError, BytesSource, Database, FileSource, carve, open_database, open_file, read
from acquirers.bolt import database as database_module
from acquirers.bolt.bucket import MAX_NESTING
from acquirers.bolt.meta import read_metas
from acquirers.bolt.pages import MAX_VALUE
from acquirers.host import Host, Mode
from tests.support.bolt_maker import BRANCH, LEAF, BoltMaker, Tree, branch, bucket_header, leaf, make, nested

KEYS = st.binary(min_size=1, max_size=40)
TREES: st.SearchStrategy[Tree] = st.recursive(
    st.dictionaries(KEYS, st.binary(max_size=300), max_size=8),
    lambda inner: st.dictionaries(KEYS, st.binary(max_size=300) | inner, max_size=6),
    max_leaves=20,
)
SAMPLE: Tree = {
    b"v1": {
        b"ns": {b"containers": {b"c%03d" % number: {b"image": b"i%d" % number} for number in range(300)}},
        b"large": b"x" * 100_000,
    }
}


def opened(data: bytes) -> Database:
    return open_database(BytesSource(data))


def lazily(source: CountingSource) -> Database:
    """Never copied, however small it is."""
    metas, notes = read_metas(source)
    return Database(source, metas[0], tuple(metas[1:]), tuple(notes))


class CountingSource:
    """Counts what is read of it."""

    def __init__(self, data: bytes, size: int | None = None) -> None:
        self._data = data
        self._size = len(data) if size is None else size
        self.bytes_read = 0

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        data = self._data[offset : offset + length]
        self.bytes_read += len(data)
        return data


@given(tree=TREES, page_size=st.sampled_from([512, 4096, 16384, 65536]), fanout=st.sampled_from([2, 3, 1 << 15]))
@settings(max_examples=60, deadline=None)
def test_gives_back_what_was_written(tree: Tree, page_size: int, fanout: int) -> None:
    database = opened(make(tree, page_size=page_size, fanout=fanout))
    assert nested(list(database.walk())) == tree
    assert not database.faults
    assert not database.notes
    for key, value in tree.items():
        if isinstance(value, bytes):
            assert database.root.get(key) == value
            assert database.root.bucket(key) is None
        else:
            assert database.root.get(key) is None
            inner = database.root.bucket(key)
            assert inner is not None
            assert {name: inner.get(name) for name, _ in inner.items()} == {
                name: one if isinstance(one, bytes) else None for name, one in value.items()
            }
    assert database.root.get(b"\xff" * 41) is None


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
def test_a_deep_tree_with_overflow_pages(page_size: int) -> None:
    tree = {b"%06d" % number: os.urandom(10) for number in range(5000)} | {b"long": os.urandom(1 << 20)}
    database = opened(make({b"all": tree}, page_size=page_size, fanout=4))
    bucket = database.root.bucket(b"all")
    assert bucket is not None
    assert dict(bucket.items()) == tree
    assert all(bucket.get(key) == value for key, value in tree.items())
    assert not database.faults


def test_a_value_that_runs_over_the_end_of_the_cached_part(tmp_path: Path) -> None:
    """Read from the file, not from a copy of it."""
    tree = {b"large": os.urandom(database_module.SMALL), b"small": b"1"}
    path = tmp_path / "db"
    path.write_bytes(make(tree))
    fd = os.open(path, os.O_RDONLY)
    try:
        reading = read(FileSource(fd), lambda database: dict(database.root.items()))
    finally:
        os.close(fd)
    assert reading.value == tree
    assert not reading.changed
    assert not reading.complaints


def test_a_value_beyond_the_limit_costs_itself_only() -> None:
    maker = BoltMaker()
    root = maker.add(LEAF, 2, leaf([(0, b"a", b"x" * (MAX_VALUE + 1)), (0, b"b", b"y")]))
    database = opened(maker.file(root))
    assert dict(database.root.items()) == {b"b": b"y"}
    assert database.root.get(b"a") is None
    assert "at most" in str(database.faults[0])


# -- transactions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("txid", [8, 9])
def test_the_newest_transaction_and_the_one_before(txid: int) -> None:
    maker = BoltMaker()
    old = maker.bucket({b"k": b"old", b"deleted": b"still here"})
    database = opened(maker.file(maker.bucket({b"k": b"new"}), txid=txid, previous=old))
    assert (database.txid, dict(database.root.items())) == (txid, {b"k": b"new"})
    previous = database.previous()
    assert previous is not None
    assert (previous.txid, dict(previous.root.items())) == (txid - 1, {b"k": b"old", b"deleted": b"still here"})
    assert previous.previous() is None


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
@pytest.mark.parametrize("slot", [0, 1])
def test_one_meta_page_is_enough(page_size: int, slot: int) -> None:
    data = bytearray(make({b"k": b"v"}, page_size=page_size))
    data[slot * page_size + 40] ^= 1
    database = opened(bytes(data))
    assert database.root.get(b"k") == b"v"
    assert database.notes == (f"meta {slot} does not fit its checksum",)
    assert database.previous() is None


@pytest.mark.parametrize("data", [b"", b"SQLite format 3\0" + bytes(9000), bytes(1 << 16), b"\xed\xda\x0c\xed" * 5000])
def test_what_is_no_database(data: bytes) -> None:
    with pytest.raises(BoltError, match="no bbolt database"):
        opened(data)


def test_reads_again_while_somebody_writes() -> None:
    """A large file, of which the third reading is the first one that nobody disturbs."""
    size = database_module.SMALL + 4096
    files = [make({b"k": b"%d" % number}) for number in range(3)]
    for number, data in enumerate(files):
        maker = BoltMaker()
        files[number] = maker.file(maker.bucket({b"k": b"%d" % number}), txid=10 + number)
        assert len(data) == len(files[number])

    class Changing:
        size = database_module.SMALL + 4096
        now = 0

        def read(self, offset: int, length: int) -> bytes:
            return files[self.now].ljust(size, b"\0")[offset : offset + length]

    source = Changing()

    def take(database: Database) -> bytes | None:
        value = database.root.get(b"k")
        source.now = min(source.now + 1, 2)
        return value

    reading = read(source, take)
    assert (reading.value, reading.changed, reading.database.txid) == (b"2", False, 12)

    class Restless(Changing):
        def read(self, offset: int, length: int) -> bytes:
            self.now = (self.now + 1) % 2 if offset == 0 else self.now
            return super().read(offset, length)

    reading = read(Restless(), lambda database: database.root.get(b"k"), tries=4)
    assert reading.changed
    assert any("changed" in complaint for complaint in reading.complaints)


# -- damage -----------------------------------------------------------------------------------------------------------


def test_one_damaged_page_costs_its_own_keys_only() -> None:
    maker = BoltMaker(fanout=10)
    root = maker.bucket({b"%04d" % number: b"v" for number in range(100)})
    pages = sorted(number for number, page in maker.pages.items() if page[8] == LEAF)
    maker.pages[pages[3]] = bytes(4096)
    database = opened(maker.file(root))
    assert [key for key, _ in database.root.items()] == [b"%04d" % number for number in range(100) if number // 10 != 3]
    assert database.root.get(b"0035") is None
    assert database.root.get(b"0045") == b"v"
    assert [fault.page for fault in database.faults] == [pages[3]]


def test_a_page_that_leads_back_to_itself_is_entered_once() -> None:
    maker = BoltMaker()
    good = maker.add(LEAF, 1, leaf([(0, b"k", b"v")]))
    root = maker.free
    assert maker.add(BRANCH, 3, branch([(b"a", root), (b"k", good), (b"z", good)])) == root
    database = opened(maker.file(root))
    assert list(database.root.items()) == [(b"k", b"v")]
    assert database.root.get(b"a") is None
    assert "two places" in str(database.faults[0])


def test_buckets_that_contain_each_other() -> None:
    maker = BoltMaker()
    root = maker.free
    assert maker.add(LEAF, 2, leaf([(1, b"again", bucket_header(root)), (0, b"k", b"v")])) == root
    database = opened(maker.file(root))
    assert list(database.walk()) == [((), b"again", None), ((), b"k", b"v")]
    assert database.faults


def test_many_keys_that_share_one_bucket_are_not_multiplied() -> None:
    """Six levels of a hundred keys each, all of one level leading to the same page of the next: 100 ** 6 of them."""
    maker = BoltMaker()
    below = maker.add(LEAF, 1, leaf([(0, b"end", b"v")]))
    for _ in range(6):
        below = maker.add(LEAF, 100, leaf([(1, b"%02d" % number, bucket_header(below)) for number in range(100)]))
    source = CountingSource(maker.file(below))
    assert len(list(lazily(source).walk())) == 6 * 100 + 1
    assert source.bytes_read < 20 * source.size


def test_buckets_nested_beyond_the_limit() -> None:
    tree: Tree = {b"k": b"v"}
    for _ in range(MAX_NESTING + 10):
        tree = {b"b": tree}
    database = opened(make(tree, inline=False))
    assert max(len(path) for path, _, _ in database.walk()) == MAX_NESTING
    assert "nested" in str(database.faults[-1])


def test_elements_that_lie_over_each_other_are_read_once() -> None:
    """A page whose every key names the same large value."""
    count, size = 2000, 1 << 20
    maker = BoltMaker()
    heads = b"".join(
        struct.pack("<IIII", 0, 16 * (count - index), 1, size - 1) for index in range(count)
    )  # fmt: skip
    root = maker.add(LEAF, count, heads + b"k" * size)
    source = CountingSource(maker.file(root))
    database = lazily(source)
    assert len(list(database.root.items())) == 1
    assert source.bytes_read < 4 * source.size


def test_overflow_pages_that_belong_to_another_page() -> None:
    maker = BoltMaker()
    first = maker.add(LEAF, 1, leaf([(0, b"a", b"x" * 9000)]))
    inside = maker.add(LEAF, 1, leaf([(0, b"b", b"y")]))
    pages = maker.pages[first]
    maker.pages[first] = pages[:12] + struct.pack("<I", 100) + pages[16:]
    root = maker.add(BRANCH, 2, branch([(b"a", first), (b"b", inside)]))
    database = opened(maker.file(root))
    assert dict(database.root.items()) == {b"a": b"x" * 9000}
    assert database.faults


def test_a_file_that_claims_to_be_huge() -> None:
    """10 TiB of holes behind a sound beginning, and a high water of as many pages."""
    maker = BoltMaker()
    root = maker.bucket({b"k": b"v"})
    source = CountingSource(maker.file(root), size=10 << 40)
    database = open_database(source)
    assert database.root.get(b"k") == b"v"
    assert source.bytes_read < 1 << 20


@pytest.mark.parametrize("field", ["count", "key size", "value size", "offset", "flags", "page type", "child"])
def test_numbers_that_lead_outside(field: str) -> None:
    maker = BoltMaker()
    root = maker.add(LEAF, 2, leaf([(0, b"a", b"1"), (0, b"b", b"2")]))
    page = bytearray(maker.pages[root])
    if field == "child":
        root = maker.add(BRANCH, 2, branch([(b"a", 1 << 60), (b"b", root)]))
    else:
        places = {"count": (10, "<H"), "page type": (8, "<H"), "flags": (32, "<I"), "offset": (36, "<I")}
        at, form = places.get(field) or {"key size": (40, "<I"), "value size": (44, "<I")}[field]
        page[at : at + struct.calcsize(form)] = struct.pack(form, (1 << 8 * struct.calcsize(form)) - 1)
        maker.pages[root] = bytes(page)
    database = opened(maker.file(root))
    items = dict(database.root.items())
    assert b"b" not in items or items[b"b"] == b"2" or field == "count"
    assert database.faults
    database.root.get(b"b")


# -- what is deleted --------------------------------------------------------------------------------------------------


def test_carves_what_no_root_leads_to() -> None:
    maker = BoltMaker()
    gone = maker.bucket({b"web": {b"image": b"shop:1", b"spec": b"{}" * 1500}, b"small": {b"x": b"y"}})
    root = maker.bucket({b"kept": b"1"})
    database = opened(maker.file(root))
    found = list(carve(database))
    assert {(one.bucket, one.key, one.value) for one in found} == {
        (b"", b"web", None), (b"", b"image", b"shop:1"), (b"", b"spec", b"{}" * 1500), (b"", b"small", None),
        (b"small", b"x", b"y"),
    }  # fmt: skip
    web = next(one for one in found if one.key == b"web")
    assert {one.page for one in found if one.key in {b"image", b"spec"}} == {web.root}
    assert web.page == gone
    assert not any(one.key == b"kept" for one in found)
    assert all(one.whole for one in found)


def test_a_carved_value_that_was_partly_overwritten_says_so() -> None:
    maker = BoltMaker()
    gone = maker.add(LEAF, 2, leaf([(0, b"a", b"short"), (0, b"spec", b"x" * 9000)]))
    database_data = bytearray(maker.file(maker.bucket({b"kept": b"1"})))
    # The third page of what is gone is taken by a new bucket.
    fresh = gone + 2
    body = struct.pack("<QHHI", fresh, LEAF, 1, 0) + leaf([(0, b"new", b"1")])
    database_data[fresh * 4096 : fresh * 4096 + len(body)] = body
    again = BoltMaker()
    again.pages, again.free = {}, maker.free
    metas = again.file(fresh)[: 2 * 4096]
    database_data[: 2 * 4096] = metas
    found = {one.key: one.whole for one in carve(opened(bytes(database_data)))}
    assert found[b"a"] is True
    assert found[b"spec"] is False
    assert b"new" not in found


def test_garbage_is_not_carved() -> None:
    generator = random.Random(1)
    maker = BoltMaker()
    root = maker.bucket({b"k": b"v"})
    data = maker.file(root) + b"".join(
        struct.pack("<QHHI", maker.free + number, LEAF, 5, 0) + generator.randbytes(4080) for number in range(50)
    )
    assert len(list(carve(opened(data)))) < 10


# -- files ------------------------------------------------------------------------------------------------------------


def test_opens_regular_files_only(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "db").write_bytes(make({b"k": b"v"}))
    (tmp_path / "link").symlink_to("db")
    os.mkfifo(tmp_path / "fifo")
    host = Host(Mode.DEAD, os.fsencode(tmp_path))
    with open_file(host, b"/db") as source:
        assert read(source, lambda database: database.root.get(b"k")).value == b"v"
    for name in (b"/link", b"/fifo", b"/etc", b"/none"):
        with pytest.raises(OSError), open_file(host, name):
            pass
