"""Reading a run in place from real S3 servers that are not ours: Ceph's radosgw, and LocalStack."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from agent.errors import SourceError
from agent.job import S3
from agent.stores.s3.place import parse_place
from agent.stores.s3.source import S3Source
from tests.support.runs import Script, acquire, impound, keygen, only_run, play

pytest_plugins = ["tests.rigs.s3_fixtures"]

MIB = 1 << 20

Reach = tuple[Any, S3, list[str]]
"""A client that may do everything, how the server is reached, and the same as options."""


@pytest.fixture(params=["rados_gateway", "local_stack"])
def reach(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Reach:
    server = request.getfixturevalue(request.param)
    access, secret = "test", "test"
    if request.param == "rados_gateway":
        access, secret = server.admin.access_key, server.admin.secret_key
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", access)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    settings = S3(endpoint_url=server.endpoint_url, region="us-east-1")
    return server.client("s3"), settings, ["--endpoint-url", server.endpoint_url, "--region", "us-east-1"]


def test_a_run_is_verified_and_opened_where_it_lies_and_what_was_done_to_it_is_named(
    reach: Reach, bucket_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _, options = reach
    data = os.urandom(2 * MIB)
    play(monkeypatch, Script("a.bin", [data]), Script("snapshot/b.jsonl"))
    key, recipient = keygen(tmp_path)
    _, result, _ = acquire(tmp_path / "ev", recipient)
    run = only_run(tmp_path / "ev")
    client.create_bucket(Bucket=bucket_name)
    client.put_bucket_versioning(Bucket=bucket_name, VersioningConfiguration={"Status": "Enabled"})
    below = f"ir/{run.relative_to(tmp_path / 'ev')}"
    for path in run.rglob("*"):
        if path.is_file():
            client.put_object(Bucket=bucket_name, Key=f"{below}/{path.relative_to(run)}", Body=path.read_bytes())
    place = f"s3://{bucket_name}/{below}"
    pins: list[str | Path] = ["--signer", str(result["signer"]), "-i", key]
    for source in (place, f"s3://{bucket_name}", f"s3://{bucket_name}/ir/C-1"):
        code, verdict, text = impound("verify", source, *pins, *options)
        assert (code, verdict.get("verdict"), verdict.get("plaintext_checked")) == (0, "intact", True), text
    code, _, text = impound("open", place, "-i", key, "-o", tmp_path / "out", *options)
    assert code == 0, text
    assert (tmp_path / "out/a.bin").read_bytes() == data

    client.put_object(Bucket=bucket_name, Key=f"{below}/a.bin.zst.age", Body=b"put over it")
    client.delete_object(Bucket=bucket_name, Key=f"{below}/snapshot/b.jsonl.zst.age")
    client.put_object(Bucket=bucket_name, Key=f"{below}/extra.tar.zst.age", Body=b"added")
    code, verdict, text = impound("verify", place, *options)
    assert (code, verdict["verdict"]) == (4, "damaged"), text
    findings = verdict["findings"]
    assert isinstance(findings, list)
    found = {one["name"]: one["problem"] for one in findings}
    assert set(found) == {"a.bin.zst.age", "snapshot/b.jsonl.zst.age", "extra.tar.zst.age"}
    assert "has 2 versions" in found["a.bin.zst.age"]
    assert "was marked deleted" in found["snapshot/b.jsonl.zst.age"]


def test_ranges_are_the_bytes_that_are_there(reach: Reach, bucket_name: str) -> None:
    client, settings, _ = reach
    data = os.urandom(21 * MIB + 5)
    client.create_bucket(Bucket=bucket_name)
    client.put_object(Bucket=bucket_name, Key="run/a", Body=data)
    client.put_object(Bucket=bucket_name, Key="run/empty", Body=b"")
    source = S3Source(parse_place(f"s3://{bucket_name}/run"), settings)
    assert [(one.name, one.size, one.problem) for one in source.names()] == [("a", len(data), ""), ("empty", 0, "")]
    blob = source.open("a")
    assert b"".join(blob.read_at(offset, MIB) for offset in range(0, len(data), MIB)) == data
    for offset in (20 * MIB, 0, 7 * MIB + 3, len(data) - 1):
        assert blob.read_at(offset, 5) == data[offset : offset + 5]
    blob.close()
    assert source.open("empty").read_at(0, 5) == b""
    client.put_object(Bucket=bucket_name, Key="run/a", Body=data[::-1])
    with pytest.raises(SourceError, match="changed while it was read"):
        source.open("a").read_at(0, 5)
    source.close()


def test_a_listing_over_several_pages(reach: Reach, bucket_name: str) -> None:
    client, settings, _ = reach
    count = 1100
    client.create_bucket(Bucket=bucket_name)
    client.put_bucket_versioning(Bucket=bucket_name, VersioningConfiguration={"Status": "Enabled"})
    for number in range(count):
        client.put_object(Bucket=bucket_name, Key=f"run/{number:05d}", Body=b"x")
    client.put_object(Bucket=bucket_name, Key="run/00999", Body=b"y")
    source = S3Source(parse_place(f"s3://{bucket_name}/run"), settings)
    listed = list(source.names())
    assert [one.name for one in listed] == [f"{number:05d}" for number in range(count)]
    assert [one.name for one in listed if one.problem] == ["00999"]
    source.close()
