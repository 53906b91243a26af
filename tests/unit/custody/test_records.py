"""Canonical bytes, envelopes, the custody chain, names of objects."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.custody.canonical import decode, decode_base64, encode
from agent.custody.log import CustodyLog, check
from agent.custody.manifest import lines_of, plain, put_bytes, records
from agent.custody.records import Digest, Size, Subject, is_object_name
from agent.custody.signing import AttemptKey, Envelope, open_envelope, parse_signer
from agent.errors import DamagedError, UsageError
from agent.job import Job, Selection

RECORD = Subject("a/b", Digest("0" * 64), Size(5))


def test_a_record_has_one_spelling() -> None:
    data = encode(RECORD)
    assert decode(data, Subject, "x") == RECORD
    loose = json.loads(data)
    for other in (
        data + b"\n",
        b" " + data,
        json.dumps(loose).encode(),
        json.dumps(loose, separators=(",", ":"), sort_keys=True).encode().replace(b'"name"', b'"n\\u0061me"'),
        data.replace(b"5", b"5.0"),
        data.replace(b"}}", b'},"more":1}'),
        data[:-1],
        b"",
        b"\xff",
    ):
        with pytest.raises(DamagedError):
            decode(other, Subject, "x")


@given(st.binary(max_size=300))
def test_no_bytes_at_all_do_anything_but_be_refused(data: bytes) -> None:
    for kind in (Subject, Envelope):
        with pytest.raises(DamagedError):
            decode(data, kind, "x")
    with pytest.raises(DamagedError):
        open_envelope(data, "t", "x")


@given(st.text(max_size=40))
def test_base64_has_one_spelling(text: str) -> None:
    import base64

    try:
        data = decode_base64(text, "x")
    except DamagedError:
        return
    assert base64.b64encode(data).decode() == text


def test_an_envelope_names_its_signer_and_holds_its_body() -> None:
    key = AttemptKey()
    data = key.sign("a/type", RECORD)
    assert open_envelope(data, "a/type", "x") == (encode(RECORD), key.signer)
    assert parse_signer(key.signer.upper()) == key.signer
    with pytest.raises(DamagedError):
        open_envelope(data, "another/type", "x")
    other = AttemptKey().signer.encode()
    with pytest.raises(DamagedError):
        open_envelope(data.replace(key.signer.encode(), other), "a/type", "x")
    assert "private" not in repr(key)


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:" + "g" * 64, "rsa:" + "0" * 64, "0" * 64])
def test_a_signer_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_signer(text)


def test_the_custody_log_is_a_chain() -> None:
    lines: list[bytes] = []
    log = CustodyLog(lines.append)
    for number in range(5):
        log.add("event", {"number": number, "text": "\x1b\n\u202e"})
    raw = [line.rstrip(b"\n") for line in lines]
    assert check(raw, "x") == (log.head, 5)
    assert log.head == hashlib.sha256(raw[-1]).hexdigest()
    for wrong in (
        raw[1:],
        raw[:2] + raw[3:],
        [raw[1], raw[0], *raw[2:]],
        [*raw, raw[-1]],
        [b"{}"],
        [raw[0] + b" ", raw[1]],
    ):
        with pytest.raises(DamagedError):
            check(wrong, "x")


@pytest.mark.parametrize("name", ["a", "a/b.tar.zst.age", "progress/000000.json", "attempt-1/receipt.json", "_x", "-a"])
def test_names_that_impound_writes(name: str) -> None:
    assert is_object_name(name)


@pytest.mark.parametrize(
    "name", ["", "/", "/a", "a/", "a//b", "..", "a/../b", ".a", "a/.b", "a b", "é", "a\n", "x" * 300]
)
def test_names_that_impound_does_not_write(name: str) -> None:
    assert not is_object_name(name)


@given(st.binary(max_size=50))
def test_bytes_survive_in_a_record(value: bytes) -> None:
    import base64

    record: dict[str, object] = {}
    put_bytes(record, "path", value)
    encoded = record.get("path_b64")
    back = base64.b64decode(encoded) if isinstance(encoded, str) else str(record["path"]).encode()
    assert back == value
    assert plain({"a": [value, {"b": value}]})


@given(st.lists(st.binary(max_size=20).map(lambda data: data.replace(b"\n", b"")), max_size=20), st.integers(1, 7))
def test_lines_are_cut_where_they_end(lines: list[bytes], size: int) -> None:
    data = b"".join(line + b"\n" for line in lines)
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    assert list(lines_of(chunks, "x")) == lines


def test_a_manifest_line_without_an_end_is_damage() -> None:
    with pytest.raises(DamagedError):
        list(lines_of([b"{}\n{"], "x"))
    with pytest.raises(DamagedError):
        list(records([b"[]\n"], "x"))


def test_a_plan_holds_only_what_was_asked_for() -> None:
    """A later version, which has further fields, reads and writes it in the same bytes."""
    job = Job(case="C-1", to="/evidence", recipients=["age1x"], selection=Selection(freeze=True))
    written = encode(job)
    assert b'"selection":{"freeze":true},"where":{},"limits":{},"s3":{}' in written
    assert decode(written, Job, "the job") == job
