"""Large sealed objects into servers that are not ours: every part checked, memory bounded, ranges readable.

LocalStack takes 20 GiB in parts with a SHA-256 each, radosgw 2 GiB with real signatures.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent.errors import ObjectExistsError, StoreError
from agent.job import S3
from agent.sealing import Unsealed, parse_identity_file
from agent.stores.base import Part
from agent.stores.s3.ambient import ambient
from agent.stores.s3.control import composite_sha256
from agent.stores.s3.place import parse_place
from agent.stores.s3.source import S3Source
from tests.support.runs import keygen

if TYPE_CHECKING:
    from tests.rigs.localstack import LocalStack
    from tests.rigs.radosgw import RadosGateway

pytest_plugins = ["tests.rigs.s3_fixtures"]

GIB, MIB = 1 << 30, 1 << 20
NAME = "memory/physical.lime"

SEALER = r"""
import json, os, re, sys
from agent.job import S3
from agent.sealing import parse_recipient
from agent.sealing.pipeline import Pipeline
from agent.stores.s3.ambient import ambient
from agent.stores.s3.place import parse_place
from agent.stores.s3.store import S3Store
from agent.stores.sealed import SealedObject

told = json.loads(sys.stdin.read())
place, s3 = parse_place(told["place"]), S3(**told["s3"])
store = S3Store(place, s3, ambient(place, s3), memory=128 << 20)
block = bytearray(os.urandom(1 << 20))
with Pipeline(2) as pipeline:
    item = SealedObject(store, told["name"], [parse_recipient(told["recipient"])], pipeline=pipeline)
    for number in range(told["size"] >> 20):
        block[:8] = number.to_bytes(8, "big")
        item.write(block)
    sealed = item.commit()
store.close()
peak = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
parts = [[part.size, part.sha256.hex()] for part in item.parts]
print(json.dumps({"peak_kib": peak, "parts": parts, "size": sealed.ciphertext_size, "tail": bytes(block).hex()}))
"""


def seal_into(s3: S3, place: str, size: int, directory: Path) -> tuple[dict[str, Any], Path]:
    """Seals and stores so much in a process of its own; gives what it says, and the key."""
    key, recipient = keygen(directory)
    settings = {"endpoint_url": s3.endpoint_url, "region": s3.region}
    told = {"place": place, "s3": settings, "recipient": recipient, "size": size, "name": NAME}
    run = subprocess.run(
        [sys.executable, "-c", SEALER], input=json.dumps(told), capture_output=True, text=True, timeout=2400,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    assert found["peak_kib"] < 256 * 1024, f"{found['peak_kib'] / 1024:.0f} MiB resident"
    return found, key


def check_tail(s3: S3, place: str, key: Path, found: dict[str, Any], size: int) -> None:
    """The last MiB, read in place through the seek table, is what was sealed last."""
    source = S3Source(parse_place(place), s3)
    try:
        blob = source.open(f"{NAME}.zst.age")
        assert blob.size == found["size"]
        unsealed = Unsealed(blob, parse_identity_file(key.read_text()))
        assert unsealed.size == size
        assert b"".join(unsealed.range(size - MIB, size)).hex() == found["tail"]
    finally:
        source.close()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_20_gib_in_parts_into_localstack(
    local_stack: LocalStack, bucket_name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    client = local_stack.client("s3")
    client.create_bucket(Bucket=bucket_name, ObjectLockEnabledForBucket=True)
    s3, place = S3(endpoint_url=local_stack.endpoint_url, region="us-east-1"), f"s3://{bucket_name}/ir/run"
    found, key = seal_into(s3, place, 20 * GIB, tmp_path)
    answer = client.head_object(Bucket=bucket_name, Key=f"ir/run/{NAME}.zst.age", ChecksumMode="ENABLED")
    parts = [Part(size, bytes.fromhex(sha256)) for size, sha256 in found["parts"]]
    assert (answer["ContentLength"], answer["ChecksumSHA256"]) == (found["size"], composite_sha256(parts))
    check_tail(s3, place, key, found, 20 * GIB)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_2_gib_in_parts_into_radosgw(
    rados_gateway: RadosGateway, bucket_name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", rados_gateway.admin.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", rados_gateway.admin.secret_key)
    client = rados_gateway.client("s3")
    client.create_bucket(Bucket=bucket_name, ObjectLockEnabledForBucket=True)
    try:
        s3, place = S3(endpoint_url=rados_gateway.endpoint_url, region="us-east-1"), f"s3://{bucket_name}/ir/run"
        found, key = seal_into(s3, place, 2 * GIB, tmp_path)
        check_tail(s3, place, key, found, 2 * GIB)
    finally:
        rados_gateway.empty(bucket_name)


def test_localstack_refuses_a_wrong_digest_an_overwrite_and_the_removal_of_what_is_locked(
    local_stack: LocalStack, bucket_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import ClientError

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    client = local_stack.client("s3")
    client.create_bucket(Bucket=bucket_name, ObjectLockEnabledForBucket=True)
    client.put_object_lock_configuration(
        Bucket=bucket_name,
        ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled",
            "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}},
        },
    )
    s3 = S3(endpoint_url=local_stack.endpoint_url, region="us-east-1")
    authority = ambient(parse_place(f"s3://{bucket_name}/ir"), s3)
    authority.put("small", b"first")
    with pytest.raises(ObjectExistsError):
        authority.put("small", b"second")
    data = os.urandom(5 * MIB)
    upload = authority.begin("big")
    right = Part(len(data), hashlib.sha256(data).digest())
    wrong = Part(len(data), hashlib.sha256(b"other").digest())
    assert send(authority, upload, wrong, data) == 400
    assert list(authority.control.parts("big", upload)) == []
    assert send(authority, upload, right, data) == 200
    [part] = authority.control.parts("big", upload)
    with pytest.raises(StoreError):
        authority.control.complete("big", upload, [wrong], [part.etag])
    authority.complete("big", upload, [right], [part.etag])
    version = client.head_object(Bucket=bucket_name, Key="ir/big")["VersionId"]
    with pytest.raises(ClientError, match=r"Access ?Denied"):
        client.delete_object(Bucket=bucket_name, Key="ir/big", VersionId=version)


def send(authority: Any, upload: str, part: Part, data: bytes) -> int:
    """One part as it is signed; the status that the server answers."""
    from agent.stores.s3.wire import Wire

    wire = Wire("")
    try:
        request = authority.sign("big", upload, 1, part)
        return int(wire.exchange(request, [memoryview(data)], seconds=60).status)
    finally:
        wire.close()
