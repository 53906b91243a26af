"""A SRC in a bucket on the command line: what is imported for it, what is refused, what a stored plan may say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.custody import resuming
from agent.custody.resuming import next_attempt
from agent.errors import SourceError
from agent.job import S3, Job, Selection
from agent.stores.directory import DirectorySource
from agent.stores.sources import find_runs, open_source
from tests.rigs.strict_s3 import StrictS3
from tests.support.runs import ENVIRONMENT, acquire, agent_command, impound, keygen, only_run, play
from tests.support.s3_reading import BUCKET, Bucket, log_in


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with StrictS3(tmp_path) as server:
        server.make_bucket(BUCKET, versioning=True)
        log_in(monkeypatch, server.admin)
        yield Bucket(server, tmp_path, server.client("s3"))


def test_a_directory_needs_neither_boto3_nor_urllib3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch)
    key, recipient = keygen(tmp_path)
    acquire(tmp_path / "ev", recipient)
    commands = [
        ["verify", tmp_path / "ev", "-i", key],
        ["open", tmp_path / "ev", "-i", key, "-o", tmp_path / "out"],
        ["export", "host", tmp_path / "ev", "-i", key, "-o", tmp_path / "host.tar"],
        ["resume", tmp_path / "ev"],
    ]
    code = (
        "import sys, json\n"
        "from agent.cli import main\n"
        f"codes = [main(command) for command in {[[str(word) for word in command] for command in commands]!r}]\n"
        "print(json.dumps([codes, sorted({'boto3', 'botocore', 'urllib3'} & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    codes, loaded = json.loads(done.stdout.splitlines()[-1])
    assert codes[:2] == [0, 0], done.stderr
    assert codes[3] == 2  # nothing to resume
    assert loaded == []


@pytest.mark.parametrize(
    ("source", "more", "words"),
    [
        ("s3://", [], "no place in S3"),
        ("s3://UPPER/x", [], "no place in S3"),
        ("s3://bucket/a//b", [], "empty or odd component"),
        ("s3://bucket/../x", [], "empty or odd component"),
        ("s3://bucket/x", ["--endpoint-url", "ftp://x"], "--endpoint-url"),
        ("s3://bucket/x", ["--endpoint-url", "https://user:word@s3.test"], "--endpoint-url"),
        ("s3://bucket/x", ["--endpoint-url", "https://s3.test:99999"], "--endpoint-url"),
        ("s3://bucket/x", ["--endpoint-url", "https://[::1"], "--endpoint-url"),
        ("s3://bucket/x", ["--endpoint-url", "https://s3.test/\r\nX: y"], "--endpoint-url"),
        ("s3://bucket/x", ["--endpoint-url", "https://s3.test/#f"], "--endpoint-url"),
        ("s3://bucket/x", ["--region", "Frankfurt am Main"], "--region"),
        ("s3://bucket/x", ["--ca-bundle", "/nonexistent"], "cannot be read"),
        ("s3://bucket/x", ["--bucket-owner", "a b"], "--bucket-owner"),
    ],
)
@pytest.mark.parametrize("verb", ["verify", "open", "export", "resume"])
def test_a_place_or_a_way_that_cannot_be_is_a_usage_error(
    tmp_path: Path, bucket: Bucket, verb: str, source: str, more: list[str], words: str
) -> None:
    key, _ = keygen(tmp_path)
    arguments: dict[str, list[str]] = {
        "verify": [source],
        "open": [source, "-i", str(key), "-o", str(tmp_path / "out")],
        "export": ["host", source, "-i", str(key), "-o", str(tmp_path / "out")],
        "resume": [source, "--authority", "ambient"],
    }
    code, _, text = impound(verb, *arguments[verb], *more)
    assert (code, words in text, text.count("\n")) == (2, True, 1), text
    assert not (tmp_path / "out").exists()
    assert bucket.server.requests() == []


def test_without_credentials_nothing_is_asked(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    code, _, text = bucket.impound("verify", f"s3://{BUCKET}/ir")
    assert code == 2
    assert "there are no AWS credentials" in text


def test_a_bucket_that_is_not_there_is_one_line(bucket: Bucket) -> None:
    for verb, more in (("verify", []), ("resume", ["--authority", "ambient"])):
        code, _, text = bucket.impound(verb, "s3://nowhere/ir", *more)
        assert (code, text.count("\n")) == (3, 1)
        assert "there is no such bucket" in text


def test_a_secret_is_in_no_output(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    credential = bucket.server.add_session("analyst", policy=None, seconds=0)
    log_in(monkeypatch, credential)
    command = [*agent_command(), "verify", f"s3://{BUCKET}/ir", *bucket.options, "--json"]
    environment = ENVIRONMENT | {
        "AWS_ACCESS_KEY_ID": credential.access_key,
        "AWS_SECRET_ACCESS_KEY": credential.secret_key,
        "AWS_SESSION_TOKEN": credential.token,
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 3
    assert "expired" in done.stderr
    for secret in (credential.secret_key, credential.token):
        assert secret not in done.stdout + done.stderr


def test_directories_and_buckets_come_by_the_same_door(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch)
    _, recipient = keygen(tmp_path)
    acquire(tmp_path / "ev", recipient)
    run = only_run(tmp_path / "ev")
    place = bucket.copy(run, tmp_path / "ev")
    [there] = find_runs(str(tmp_path / "ev"))
    [here] = find_runs(f"s3://{BUCKET}", bucket.settings)
    assert (there.location, here.location) == (str(run), place)
    listed = []
    for found in (there, here):
        source = open_source(found)
        listed.append([(one.name, one.size, one.regular) for one in source.names()])
        source.close()
    assert listed[0] == listed[1]
    with pytest.raises(SourceError):
        find_runs(str(tmp_path / "none"))


def test_a_run_deeper_than_a_destination_has_it_is_not_looked_for(bucket: Bucket) -> None:
    bucket.put("a/b/c/d/e/f/progress/000000.json", b"{}")
    assert find_runs(f"s3://{BUCKET}", bucket.settings) == []
    [found] = find_runs(f"s3://{BUCKET}/a/b", bucket.settings)
    assert found.location == f"s3://{BUCKET}/a/b/c/d/e/f"


# -- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/ev/C/h/r", ("/ev", ("C", "h", "r"))),
        ("/C/h/r", ("/", ("C", "h", "r"))),
        ("s3://b/C/h/r", ("s3://b", ("C", "h", "r"))),
        ("s3://b/p/q/C/h/r", ("s3://b/p/q", ("C", "h", "r"))),
        ("s3://C/h/r", ("s3://C/h/r", ())),
        ("s3://b", ("s3://b", ())),
    ],
)
def test_a_destination_is_what_is_above_case_host_and_run(location: str, expected: tuple[str, tuple[str, ...]]) -> None:
    assert resuming._split(location) == expected


def test_a_stored_plan_does_not_say_where_its_bucket_is_reached(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write to the bucket can put a plan there: it must not send an analyst's requests anywhere."""
    play(monkeypatch)
    _, recipient = keygen(tmp_path)
    evil = S3(
        endpoint_url="https://evil.example",
        ca_bundle="-----BEGIN CERTIFICATE-----",
        bucket_owner="666666666666",
        sse_kms_key="arn:aws:kms:eu-central-1:666666666666:key/x",
    )
    job = Job(
        case="C-1",
        to=str(tmp_path / "ev"),
        recipients=[recipient],
        s3=evil,
        selection=Selection(only=["snapshot.processes"]),
    )
    done = subprocess.run(
        [*agent_command(), "acquire", "--job", "-"],
        env=ENVIRONMENT,
        cwd=tmp_path,
        input=msgspec.json.encode(job),
        capture_output=True,
    )
    assert done.returncode in {0, 1}, done.stderr
    run = only_run(tmp_path / "ev")
    for path in (run / "receipt.json", *(run / "attempt-1").iterdir()):
        path.unlink()
    place = bucket.copy(run, tmp_path / "ev")
    given = msgspec.structs.replace(bucket.settings, authority="ambient")
    lines: list[str] = []
    source = bucket.source(place)
    resumed = next_attempt(source, signers=[], recipients=[], s3=given, warn=lines.append)
    source.close()
    assert resumed.s3 == given
    assert len(lines) == 4
    assert "--endpoint-url https://evil.example; now it is http://127.0.0.1" in lines[0]
    assert "--bucket-owner 666666666666; it was not given now, and is not used" in lines[1]
    assert "--sse-kms-key" in lines[2]
    assert "--ca-bundle" in lines[3]
    # In a directory nothing of it means anything, and nothing of it is kept.
    there = DirectorySource(str(run))
    assert next_attempt(there, signers=[], recipients=[], warn=lines.append).s3 == S3()
    there.close()
    assert len(lines) == 4
