"""A run is read where it lies, in a bucket: over TLS, in parallel, and no more of it than is needed."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent.custody.resuming import next_attempt
from agent.errors import UsageError
from agent.job import S3
from agent.sealing import Unsealed, parse_identity_file
from agent.stores.directory import DirectorySource
from agent.stores.s3.client import standard
from agent.stores.s3.place import parse_place
from agent.stores.s3.source import S3Source
from tests.rigs.strict_s3 import StrictS3
from tests.support.runs import Script, acquire, impound, keygen, only_run, play
from tests.support.s3_reading import BUCKET, Bucket, Narrow, log_in

MIB = 1 << 20


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with StrictS3(tmp_path, tls=True) as server:
        server.make_bucket(BUCKET, lock=True, retention=("COMPLIANCE", 1))
        log_in(monkeypatch, server.admin)
        yield Bucket(server, tmp_path, server.client("s3"))


def stored(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *scripts: Script
) -> tuple[Path, str, Path, dict[str, object]]:
    """A run in a directory, the same in the bucket, the key file, the result of acquire."""
    play(monkeypatch, *scripts)
    key, recipient = keygen(tmp_path)
    _, result, _ = acquire(tmp_path / "ev", recipient)
    run = only_run(tmp_path / "ev")
    return run, bucket.copy(run, tmp_path / "ev"), key, result


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_verify_open_range_and_export_give_what_they_give_of_a_directory(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(1).randbytes(3 * MIB)
    run, place, key, result = stored(bucket, tmp_path, monkeypatch, Script("a.bin", [data]), Script("snapshot/b.jsonl"))
    code, verdict, text = bucket.impound("verify", place, "--signer", str(result["signer"]), "-i", key)
    assert (code, verdict["verdict"], verdict["plaintext_checked"]) == (0, "intact", True), text
    assert f"{place}\n" in text
    for above in (f"s3://{BUCKET}", f"s3://{BUCKET}/ir/", f"s3://{BUCKET}/ir/C-1"):
        code, again, _ = bucket.impound("verify", above, "--signer", str(result["signer"]), "-i", key)
        assert again == verdict
    for number, more in enumerate(([], ["--only", "a.bin", "--range", "1000000-2000000"])):
        here, there = tmp_path / f"here{number}", tmp_path / f"there{number}"
        code, opened, text = bucket.impound("open", place, "-i", key, "-o", here, *more)
        assert code == 0, text
        assert impound("open", run, "-i", key, "-o", there, *more)[0] == 0
        assert files(here) == files(there)
        assert opened["bytes"] == sum(map(len, files(here).values()))
    assert (tmp_path / "here1/a.bin.1000000-2000000").read_bytes() == data[1_000_000:2_000_001]


def test_runs_of_a_case_are_found_and_several_are_not_guessed_between(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, key, _ = stored(bucket, tmp_path, monkeypatch)
    recipient = str(impound("keygen", "-y", key)[1]["recipient"])
    acquire(tmp_path / "more", recipient)
    bucket.copy(only_run(tmp_path / "more"), tmp_path / "more")
    # A run that was renamed is known by its account; a prefix with nothing of the kind below it is none.
    renamed = only_run(tmp_path / "more")
    for path in renamed.rglob("*"):
        if path.is_file():
            bucket.put(f"ir/C-1/elsewhere/moved/{path.relative_to(renamed)}", path.read_bytes())
    bucket.put("ir/C-2/notes/readme.txt", b"")
    code, result, text = bucket.impound("verify", f"s3://{BUCKET}/ir")
    assert (code, result["count"]) == (0, 3), text
    code, _, text = bucket.impound("open", f"s3://{BUCKET}/ir", "-i", key, "-o", tmp_path / "out")
    assert code == 2
    assert "there are 3 runs" in text
    for empty in ("ir/C-2", "nothing", "i"):
        code, _, text = bucket.impound("verify", f"s3://{BUCKET}/{empty}")
        assert (code, "there is no run" in text) == (3, True)


def test_a_range_of_a_large_object_takes_a_few_mib_of_it(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = random.Random(2).randbytes(MIB)
    chunks = [number.to_bytes(8, "big") + block[8:] for number in range(256)]
    _, place, key, _ = stored(bucket, tmp_path, monkeypatch, Script("memory/physical.lime", chunks))
    identities = parse_identity_file(key.read_text())
    source = bucket.source(place)
    list(source.names())
    blob = source.open("memory/physical.lime.zst.age")
    assert blob.size > 255 * MIB
    bucket.server.forget_requests()
    sealed = Unsealed(blob, identities)
    assert sealed.size == 256 * MIB
    start, end = 123 * MIB + 17, 126 * MIB + 4242
    assert b"".join(sealed.range(start, end)) == b"".join(chunks[123:127])[17 : 17 + end - start]
    assert 3 * MIB < bucket.read_from_server() < 12 * MIB
    blob.close()
    source.close()


@pytest.mark.parametrize("told", [True, False])
def test_a_large_object_is_read_faster_than_one_connection_carries_it(bucket: Bucket, *, told: bool) -> None:
    """Told that it will be read whole, as `verify` tells, or found out from how it is read."""
    size, rate = 64 * MIB, 16 * MIB
    data = os.urandom(size)
    bucket.put("big/one", data)
    with Narrow(bucket.server.port, rate) as way:
        endpoint = f"https://127.0.0.1:{way.port}"
        narrow = S3(endpoint_url=endpoint, region=bucket.server.region, ca_bundle=bucket.server.ca_pem)
        client = standard(narrow)
        start = time.monotonic()
        assert client.get_object(Bucket=BUCKET, Key="big/one")["Body"].read() == data
        alone = time.monotonic() - start
        source = S3Source(parse_place(f"s3://{BUCKET}/big"), narrow, client=client)
        list(source.names())
        start = time.monotonic()
        if told:
            source.prefetch(["one"])
        blob = source.open("one")
        assert b"".join(blob.read_at(offset, MIB) for offset in range(0, size, MIB)) == data
        together = time.monotonic() - start
        blob.close()
        source.close()
        client.close()
    print(f"one connection {alone:.2f} s, in ranges {together:.2f} s: {alone / together:.1f} times as fast")  # noqa: T201
    assert alone > 3
    assert alone / together > (3 if told else 1.5)


def test_what_is_needed_is_the_right_to_read_and_no_more(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, place, key, _ = stored(bucket, tmp_path, monkeypatch)
    rights = ("s3:ListBucket", "s3:ListBucketVersions", "s3:GetObject", "s3:GetObjectVersion")

    def analyst(*actions: str) -> None:
        statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        log_in(monkeypatch, bucket.server.add_user("analyst", policy))

    analyst(*rights)
    code, result, _ = bucket.impound("verify", place, "-i", key)
    assert (code, "notes" in result) == (0, False)
    analyst("s3:ListBucket", "s3:GetObject")
    code, result, text = bucket.impound("verify", place, "-i", key)
    assert (code, "s3:ListBucketVersions" in str(result["notes"])) == (0, True)
    assert "note " in text
    analyst("s3:ListBucket", "s3:ListBucketVersions")
    code, result, text = bucket.impound("verify", place)
    assert (code, "s3:GetObjectVersion" in str(result["findings"])) == (3, True)
    analyst("s3:GetObject")
    code, _, text = bucket.impound("verify", place)
    assert (code, "this needs s3:ListBucket " in text) == (3, True)
    written = [asked for asked in bucket.server.requests() if asked.principal.endswith("/analyst")]
    assert written
    assert {asked.method for asked in written} == {"GET"}


def test_who_may_not_list_versions_is_told_so_by_whatever_reads_a_run(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, place, key, _ = stored(bucket, tmp_path, monkeypatch, Script("a.bin"))
    proof = ("-i", key, "--only", "a.bin", "--range", "0-1")
    code, result, _ = bucket.impound("export", "proof", place, *proof, "-o", tmp_path / "one")
    assert (code, "source_notes" in result) == (0, False)
    policy = {"Statement": [{"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetObject"], "Resource": "*"}]}
    log_in(monkeypatch, bucket.server.add_user("analyst", {"Version": "2012-10-17"} | policy))
    for kind, more in (("proof", proof), ("host", ("-i", key))):
        code, result, text = bucket.impound("export", kind, place, *more, "-o", tmp_path / kind)
        assert (code, "s3:ListBucketVersions" in str(result.get("source_notes"))) == (0, True), (kind, result, text)
        assert "s3:ListBucketVersions" in text
    partial(tmp_path, run)
    place = bucket.copy(run, tmp_path / "ev", "cut")
    _, _, text = bucket.impound("resume", place, "--authority", "ambient")
    assert "note: this may not list versions (s3:ListBucketVersions)" in text


def partial(tmp_path: Path, run: Path) -> None:
    """What `kill -9` leaves: no receipt, no account of the attempt."""
    for name in ("receipt.json", "attempt-1"):
        for path in sorted((run / name).rglob("*"), reverse=True) if (run / name).is_dir() else [run / name]:
            path.unlink()


def test_resuming_reads_the_bucket_and_follows_nothing_that_the_plan_says_of_it(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Script("a.bin"), Script("b.bin", [b"y" * 9999]))
    _, recipient = keygen(tmp_path)
    _, result, _ = acquire(tmp_path / "ev", recipient)
    run = only_run(tmp_path / "ev")
    partial(tmp_path, run)
    place = bucket.copy(run, tmp_path / "ev")
    there = next_attempt(DirectorySource(str(run)), signers=[], recipients=[recipient])
    asked = replace_s3(bucket.settings, authority="ambient", sse_kms_key="alias/x")
    source = bucket.source(place)
    here = next_attempt(source, signers=[str(result["signer"])], recipients=[], s3=asked)
    source.close()
    assert here.to == f"s3://{BUCKET}/ir"
    assert there.to == str(tmp_path / "ev")
    assert here.s3 == asked
    assert here.earlier == there.earlier
    assert here.earlier is not None
    assert [one.object for one in here.earlier.whole] == ["a.bin.zst.age", "b.bin.zst.age"]
    bucket.copy(run, tmp_path / "ev", "C-1")  # in a bucket of the same name as the case, one level too high
    moved = S3Source(replace(source._place, prefix=source._place.prefix.replace("C-1", "C-9")), bucket.settings)
    for path in run.rglob("*"):
        if path.is_file():
            bucket.put(moved._place.key(str(path.relative_to(run))), path.read_bytes())
    with pytest.raises(UsageError, match="was moved"):
        next_attempt(moved, signers=[], recipients=[])
    moved.close()


def test_a_run_that_was_cut_off_in_a_bucket_is_completed_there(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Script("a.bin", [b"a" * 5000]), Script("b.bin", [b"y" * 9999])
    play(monkeypatch, one)
    key, recipient = keygen(tmp_path)
    to = ("--to", f"s3://{BUCKET}/ir", "--authority", "ambient")
    code, result, text = bucket.impound("acquire", "--case", "C-1", "-r", recipient, *to)
    assert code == 0, text
    place = str(result["store"])
    objects = bucket.server.bucket(BUCKET).objects
    for name in [name for name in objects if "/attempt-1/" in name or name.endswith("/receipt.json")]:
        del objects[name]  # what `kill -9` leaves
    code, verdict, _ = bucket.impound("verify", place)
    assert (code, verdict["verdict"]) == (4, "partial")
    before = {name: versions[0].version_id for name, versions in objects.items()}
    play(monkeypatch, one, two)
    code, resumed, text = bucket.impound("resume", place, "--authority", "ambient", "-r", recipient)
    assert (code, resumed["attempt"], resumed["items"]) == (0, 2, 2), text
    assert resumed["store"] == place
    assert {name: objects[name][0].version_id for name in before} == before
    assert all(len(versions) == 1 for versions in objects.values())
    code, verdict, text = bucket.impound("verify", place, "-i", key, "--signer", str(resumed["signer"]))
    assert (code, verdict["verdict"]) == (0, "intact"), text
    assert bucket.impound("open", place, "-i", key, "-o", tmp_path / "out")[0] == 0
    assert (tmp_path / "out/a.bin").read_bytes() == b"a" * 5000
    assert (tmp_path / "out/b.bin").read_bytes() == b"y" * 9999


def test_many_small_objects_are_asked_for_side_by_side(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = [Script(f"o/{number}.bin", [b"z" * 2000]) for number in range(40)]
    _, place, _, _ = stored(bucket, tmp_path, monkeypatch, *scripts)
    bucket.server.faults.stall(0.05, 10_000, at="answer", where="GetObject")
    assert bucket.impound("verify", place)[0] == 0
    asked = bucket.server.requests("GetObject")
    together = [sum(other.started < one.ended and one.started < other.ended for other in asked) for one in asked]
    assert sum(count > 4 for count in together) > len(asked) / 2


def replace_s3(s3: S3, **changes: Any) -> S3:
    import msgspec

    return msgspec.structs.replace(s3, **changes)


def test_resume_asks_by_whose_right(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, place, _, _ = stored(bucket, tmp_path, monkeypatch)
    code, _, text = bucket.impound("resume", place)
    assert (code, "--authority is missing" in text) == (2, True)
    code, _, text = bucket.impound("resume", place, "--authority", "ambient")
    assert (code, "is finished" in text) == (2, True)
    code, _, text = impound("resume", tmp_path / "ev", "--authority", "ambient")
    assert (code, "for a run in a bucket" in text) == (2, True)
