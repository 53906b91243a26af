"""`finish`: what a host with session credentials left in the bucket becomes a run, and nothing else does."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from agent.channel.messages import Credentials
from agent.custody.attempt import Attempt, Counts
from agent.custody.countersign import parse_countersignature
from agent.custody.records import RECEIPT
from agent.job import S3, Job
from agent.sealing import parse_recipient
from agent.stores.s3.place import parse_place
from agent.stores.s3.policies import session_policy
from agent.stores.s3.session import session
from agent.stores.s3.store import S3Store
from agent.stores.sealed import SealedObject
from tests.rigs.strict_s3 import StrictS3
from tests.support.runs import keygen
from tests.support.s3_reading import BUCKET, Bucket, log_in

if TYPE_CHECKING:
    from collections.abc import Iterator

RUN = "01a203df-f4aa-7fe1-aa40-54dfdfcb8a21"
PLACE = f"ir/C-1/h-1/{RUN}"
MIB = 1 << 20


@dataclass
class Left:
    """A run that lies in the bucket as uploads, each with all its parts."""

    bucket: Bucket
    server: StrictS3
    key: Path
    receipt_sha256: str
    signer: str
    big: bytes
    host: Any
    """boto3 with the host's own credentials."""

    def finish(self, *more: str) -> tuple[int, dict[str, Any], str]:
        return self.bucket.impound("finish", f"s3://{BUCKET}/{PLACE}", *more)


def store_run(store: S3Store, recipient: str, big: bytes) -> tuple[str, str]:
    """What a run writes: plan, two items, the account. Gives signer and SHA-256 of the receipt."""
    to = [parse_recipient(recipient)]
    job = Job(case="C-1", to=f"s3://{BUCKET}/ir", recipients=[recipient])
    attempt = Attempt(store, to, run=RUN, host="h-1", machine="0" * 64, job=job, asked=["containers.docker"])
    for name, data in (("snapshot/a.jsonl", b"small"), ("containers/docker/b.tar", big)):
        out = SealedObject(store, name, to)
        for start in range(0, len(data), MIB):
            out.write(data[start : start + MIB])
        sealed = out.commit()
        record: dict[str, object] = {
            "type": "stored",
            "item": name,
            "object": out.name,
            "size": sealed.ciphertext_size,
            "sha256": sealed.ciphertext_sha256.hex(),
            "plaintext_size": sealed.plaintext_size,
            "plaintext_sha256": sealed.plaintext_sha256.hex(),
        }
        attempt.manifest.add(record)
        attempt.counts.items += 1
        attempt.whole(out.name, sealed, out.parts, Counts(), record)
    return attempt.key.signer, attempt.close("complete", finished=True)


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Left]:
    key, recipient = keygen(tmp_path)
    with StrictS3(tmp_path) as server:
        server.make_bucket(BUCKET, lock=True)
        log_in(monkeypatch, server.admin)
        bucket = Bucket(server, tmp_path, server.client("s3"))
        policy = json.loads(session_policy(BUCKET, PLACE, "", server.region, "aws"))
        credential = server.add_session("host", policy=None, session_policy=policy)
        s3 = S3(endpoint_url=server.endpoint_url, region=server.region, authority="session")
        given = Credentials(credential.access_key, credential.secret_key, credential.token, 4e9)
        place = parse_place(f"s3://{BUCKET}/{PLACE}")
        store = S3Store(place, s3, session(place, s3, given, None), memory=64 * MIB)
        big = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(20 * MIB // 32))
        try:
            signer, receipt = store_run(store, recipient, big)
        finally:
            store.close()
        yield Left(bucket, server, key, receipt, signer, big, server.client("s3", credential))


def test_nothing_is_there_until_it_is_finished_and_then_all_of_it(left: Left, tmp_path: Path) -> None:
    assert left.server.keys(BUCKET) == []
    code, result, _ = left.finish("--receipt-sha256", left.receipt_sha256)
    assert (code, result["verdict"], result.get("unfinished")) == (0, "intact", None)
    assert left.server.uploads(BUCKET) == []
    place = f"s3://{BUCKET}/{PLACE}"
    code, result, _ = left.bucket.impound("verify", place, "-i", left.key, "--signer", left.signer)
    assert (code, result["verdict"], result["plaintext_checked"]) == (0, "intact", True)
    code, _, _ = left.bucket.impound("open", place, "-i", left.key, "-o", tmp_path / "opened")
    assert code == 0
    assert (tmp_path / "opened/containers/docker/b.tar").read_bytes() == left.big


def test_the_chain_is_followed_where_the_receipt_is_not_known(left: Left) -> None:
    assert left.finish()[0] == 3, "nothing is complete yet, and nobody said which records are true"
    assert left.server.keys(BUCKET) == []
    code, result, _ = left.finish("--follow")
    assert (code, result["verdict"]) == (0, "intact, signer unknown")
    assert left.server.uploads(BUCKET) == []


def test_a_finished_run_is_countersigned_and_known_by_that_alone(left: Left, tmp_path: Path) -> None:
    from tests.support.runs import impound

    _, made, _ = impound("keygen", "--signing", "-o", tmp_path / "ir.sign")
    more = ("--receipt-sha256", left.receipt_sha256, "--countersign-key", str(tmp_path / "ir.sign"))
    code, result, _ = left.finish(*more)
    assert (code, result["countersigner"]) == (0, made["signer"])
    code, result, _ = left.bucket.impound("verify", f"s3://{BUCKET}/{PLACE}", "--signer", str(made["signer"]))
    assert (code, result["verdict"]) == (0, "intact")
    assert left.finish(*more)[0] == 0, "finishing twice changes nothing"


def test_a_part_that_was_put_again_is_not_completed(left: Left) -> None:
    upload = next(one for one in left.server.uploads(BUCKET) if one.key.endswith("b.tar.zst.age"))
    size = left.server.part(BUCKET, upload.upload_id, 1).size
    left.host.upload_part(
        Bucket=BUCKET, Key=upload.key, UploadId=upload.upload_id, PartNumber=1, Body=b"x" * size,
        ChecksumAlgorithm="SHA256",
    )  # fmt: skip
    code, result, _ = left.finish("--receipt-sha256", left.receipt_sha256)
    assert code == 4
    assert result["unfinished"][0]["name"] == "containers/docker/b.tar.zst.age"
    assert "put again" in result["unfinished"][0]["why"]
    assert not any(key.endswith("b.tar.zst.age") for key in left.server.keys(BUCKET))


def test_another_upload_of_the_same_name_is_told_from_the_right_one(left: Left) -> None:
    for name in ("containers/docker/b.tar.zst.age", RECEIPT, "progress/000001.json", "attempt-1/receipt.json"):
        key = f"{PLACE}/{name}"
        other = left.host.create_multipart_upload(Bucket=BUCKET, Key=key, ChecksumAlgorithm="SHA256")["UploadId"]
        left.host.upload_part(
            Bucket=BUCKET, Key=key, UploadId=other, PartNumber=1, Body=b"forged", ChecksumAlgorithm="SHA256"
        )
    code, result, _ = left.finish("--receipt-sha256", left.receipt_sha256)
    assert (code, result["verdict"]) == (0, "intact")
    assert sorted(one["name"] for one in result["unfinished"]) == [
        "attempt-1/receipt.json", "containers/docker/b.tar.zst.age", "progress/000001.json", RECEIPT,
    ]  # fmt: skip


def test_an_upload_that_nobody_signed_for_stays_unfinished_and_is_named(left: Left) -> None:
    key = f"{PLACE}/containers/docker/evil\x1b[2J.tar"
    with pytest.raises(ClientError):  # begun all the same: the answer cannot be parsed, for the name in it
        left.host.create_multipart_upload(Bucket=BUCKET, Key=key, ChecksumAlgorithm="SHA256")
    assert any(upload.key == key for upload in left.server.uploads(BUCKET))
    code, result, error = left.finish("--receipt-sha256", left.receipt_sha256)
    assert (code, len(result["unfinished"])) == (0, 1)
    assert "\x1b" not in error


def test_a_run_that_was_cut_off_is_finished_as_far_as_it_is_signed_for(left: Left) -> None:
    with left.server.world.lock:
        for upload in left.server.uploads(BUCKET):
            if upload.key.endswith(("receipt.json", "manifest.jsonl.zst.age", "custody.jsonl.zst.age")):
                left.server.bucket(BUCKET).uploads.pop(upload.upload_id)
    code, result, _ = left.finish("--signer", left.signer, "--follow")
    assert (code, result["verdict"]) == (4, "partial")
    assert any(key.endswith("b.tar.zst.age") for key in left.server.keys(BUCKET))


def test_the_one_run_below_a_place_is_found_whole_or_only_begun(left: Left) -> None:
    case = f"s3://{BUCKET}/ir/C-1"
    code, result, _ = left.bucket.impound("finish", case, "--receipt-sha256", left.receipt_sha256)
    assert (code, result["verdict"], result["run"]) == (0, "intact", RUN)
    assert left.bucket.impound("finish", f"s3://{BUCKET}/ir", "--receipt-sha256", left.receipt_sha256)[0] == 0
    code, _, error = left.bucket.impound("finish", f"s3://{BUCKET}/elsewhere")
    assert code == 3
    assert "there is no run" in error


def test_what_is_left_over_of_an_object_that_is_whole_is_said_to_be_that(left: Left) -> None:
    assert left.finish("--receipt-sha256", left.receipt_sha256)[0] == 0
    key = f"{PLACE}/containers/docker/b.tar.zst.age"
    left.server.client("s3").create_multipart_upload(Bucket=BUCKET, Key=key, ChecksumAlgorithm="SHA256")
    code, result, _ = left.finish("--receipt-sha256", left.receipt_sha256)
    assert (code, result["verdict"]) == (0, "intact")
    assert "the object itself is whole" in result["unfinished"][0]["why"]


def test_what_was_begun_after_a_run_was_whole_is_never_completed(left: Left) -> None:
    assert left.finish("--receipt-sha256", left.receipt_sha256)[0] == 0
    records = sum("/progress/" in key for key in left.server.keys(BUCKET))
    key = f"{PLACE}/progress/{records:06d}.json"
    upload = left.host.create_multipart_upload(Bucket=BUCKET, Key=key, ChecksumAlgorithm="SHA256")["UploadId"]
    left.host.upload_part(
        Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=b"junk", ChecksumAlgorithm="SHA256"
    )
    for more in (("--receipt-sha256", left.receipt_sha256), ("--follow",), ()):
        code, result, _ = left.finish(*more)
        assert (code, [one["name"] for one in result["unfinished"]]) == (0, [f"progress/{records:06d}.json"])


def test_another_receipt_by_the_same_signer_is_another_run(left: Left, tmp_path: Path) -> None:
    from tests.support.runs import impound

    assert left.finish("--receipt-sha256", left.receipt_sha256)[0] == 0
    impound("keygen", "--signing", "-o", tmp_path / "ir.sign")
    more = ("--signer", left.signer, "--receipt-sha256", "0" * 64, "--countersign-key", str(tmp_path / "ir.sign"))
    code, result, _ = left.finish(*more)
    assert (code, result["verdict"], result["countersigner"]) == (4, "damaged", "")


def test_somebody_elses_countersignature_is_not_called_ours(left: Left, tmp_path: Path) -> None:
    from tests.support.runs import impound

    for name in ("other", "ours"):
        impound("keygen", "--signing", "-o", tmp_path / name)
    pin = ("--receipt-sha256", left.receipt_sha256, "--countersign-key")
    assert left.finish(*pin, str(tmp_path / "other"))[0] == 0
    assert left.finish(*pin, str(tmp_path / "ours"))[0] == 4


def test_an_upload_that_is_gone_meanwhile_does_not_end_the_others(left: Left) -> None:
    left.server.faults.refuse(1, status=404, code="NoSuchUpload", where="CompleteMultipartUpload")
    left.finish("--receipt-sha256", left.receipt_sha256)
    assert left.finish("--receipt-sha256", left.receipt_sha256)[0] == 0


def test_an_upload_that_is_gone_when_its_parts_are_listed_does_not_end_the_others(left: Left) -> None:
    left.server.faults.refuse(
        100,
        status=404,
        code="NoSuchUpload",
        where=lambda asked: asked.operation == "ListParts" and asked.key.endswith("/manifest.jsonl.zst.age"),
    )
    code, result, _ = left.finish("--receipt-sha256", left.receipt_sha256)
    assert (code, [one["name"] for one in result["unfinished"]]) == (4, ["attempt-1/manifest.jsonl.zst.age"]), result
    there = {key.removeprefix(f"{PLACE}/") for key in left.server.keys(BUCKET)}
    assert {"receipt.json", "snapshot/a.jsonl.zst.age", "containers/docker/b.tar.zst.age"} <= there


def test_who_may_not_list_versions_is_told_so_before_it_is_countersigned(
    left: Left, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.runs import impound

    assert left.finish("--receipt-sha256", left.receipt_sha256)[0] == 0
    impound("keygen", "--signing", "-o", tmp_path / "ir.sign")
    rights = ["s3:GetObject", "s3:PutObject", "s3:ListBucket", "s3:ListBucketMultipartUploads"]
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": rights, "Resource": "*"}]}
    log_in(monkeypatch, left.server.add_user("narrow", policy))
    pin = ("--receipt-sha256", left.receipt_sha256, "--countersign-key", str(tmp_path / "ir.sign"))
    code, result, text = left.finish(*pin)
    assert (code, result["verdict"]) == (0, "intact")
    assert "s3:ListBucketVersions" in str(result["notes"])
    assert "  note         this may not list versions" in text
    said, _ = parse_countersignature(left.server.read(BUCKET, f"{PLACE}/countersignature.json"))
    assert "s3:ListBucketVersions" in str(said.findings)
