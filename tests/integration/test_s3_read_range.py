"""`open --range` of a large object in a bucket reads the parts that hold the range, and proves them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs.strict_s3 import StrictS3
from tests.support.runs import Script, keygen, play
from tests.support.s3_reading import BUCKET, Bucket, log_in

MIB = 1 << 20


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with StrictS3(tmp_path, tls=True) as server:
        server.make_bucket(BUCKET, versioning=True)
        log_in(monkeypatch, server.admin)
        yield Bucket(server, tmp_path, server.client("s3"))


def test_a_range_of_256_mib_reads_a_few_parts_and_a_changed_part_is_not_opened(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = random.Random(2).randbytes(MIB)
    chunks = [number.to_bytes(8, "big") + block[8:] for number in range(256)]
    play(monkeypatch, Script("memory/physical.lime", chunks))
    key, recipient = keygen(tmp_path)
    arguments = ("--case", "C-1", "--to", f"s3://{BUCKET}/ir", "-r", recipient, "--authority", "ambient")
    code, result, text = bucket.impound("acquire", *arguments)
    assert code == 0, text
    place = str(result["store"])
    bucket.server.forget_requests()
    first, last = 123 * MIB + 17, 126 * MIB + 4242
    wanted = ("--only", "memory/physical.lime", "--range", f"{first}-{last}")
    code, _, text = bucket.impound("open", place, "-i", key, "-o", tmp_path / "out", *wanted)
    assert code == 0, text
    found = tmp_path / f"out/memory/physical.lime.{first}-{last}"
    assert found.read_bytes() == b"".join(chunks[123:127])[17 : 17 + last + 1 - first]
    assert bucket.read_from_server() < 40 * MIB

    # Another object of the same size below the same signatures: one byte differs, in the part that is wanted.
    object_key = f"{place.removeprefix(f's3://{BUCKET}/')}/memory/physical.lime.zst.age"
    data = bytearray(bucket.server.read(BUCKET, object_key))
    data[124 * MIB] ^= 1
    del bucket.server.bucket(BUCKET).objects[object_key]
    bucket.put(object_key, bytes(data))
    code, _, text = bucket.impound("open", place, "-i", key, "-o", tmp_path / "damaged", *wanted)
    assert (code, "is not the one that was signed" in text) == (4, True), text
    assert not list((tmp_path / "damaged").rglob("*.lime*"))
