"""Hostile bytes become valid JSON, and no byte is lost."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Generator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from acquirers.base import MAX_CHUNK
from acquirers.snapshot.encode import chunks, fragment, line, put, put_list


@given(st.binary(max_size=200))
def test_a_text_or_its_base64_gives_the_bytes_back(raw: bytes) -> None:
    record: dict[str, object] = {}
    put(record, "k", raw)
    found = json.loads(line(record).decode("utf-8"))
    assert (b64decode(found["k_b64"]) if "k_b64" in found else found["k"].encode()) == raw


@given(st.binary(max_size=200) | st.lists(st.sampled_from([b"\0", b"a", b"\xff", b"=", b"\n"])).map(b"".join))
def test_a_list_or_its_base64_gives_the_bytes_back(raw: bytes) -> None:
    record: dict[str, object] = {}
    put_list(record, "k", raw)
    found = json.loads(line(record).decode("utf-8"))
    assert (b64decode(found["k_b64"]) if "k_b64" in found else "".join(p + "\0" for p in found["k"]).encode()) == raw


def test_arguments_are_a_list_without_base64_when_it_says_all() -> None:
    record: dict[str, object] = {}
    put_list(record, "cmdline", b"sh\0-c\0echo a\nb\0\0")
    assert record == {"cmdline": ["sh", "-c", "echo a\nb", ""]}


def test_the_padding_of_a_title_is_not_a_thousand_arguments() -> None:
    record: dict[str, object] = {}
    put_list(record, "cmdline", b"sshd: root@pts/0" + bytes(1000))
    assert record["cmdline"] == ["sshd: root@pts/0", ""]
    assert "cmdline_b64" in record


def test_a_fragment_continues_an_object() -> None:
    record: dict[str, Any] = {"a": '\u2028"\\', "b": [1]}
    assert json.loads(b'{"pid":1' + fragment(record) + b"}") == {"pid": 1, **record}
    assert fragment({}) == b""


@given(st.lists(st.integers(0, 3 * MAX_CHUNK), max_size=4))
def test_chunks_hold_the_same_bytes_within_the_limit(sizes: list[int]) -> None:
    def pieces() -> Generator[bytes, None, None]:
        for size in sizes:
            yield bytes(size)

    lengths = [len(chunk) for chunk in chunks(pieces())]
    assert sum(lengths) == sum(sizes)
    assert all(0 < length <= MAX_CHUNK for length in lengths)
