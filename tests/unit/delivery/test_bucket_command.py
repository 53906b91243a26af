"""`impound bucket`: what it prints, and what it refuses before it asks anybody."""

from __future__ import annotations

import json

import pytest

from agent.cli import main
from agent.delivery.bucket.contents import run_of
from agent.delivery.bucket.tries import is_probe
from agent.stores.s3 import policies

ROLE = "arn:aws:iam::111122223333:role"
KEY = "arn:aws:kms:eu-central-1:111122223333:key/1234"


@pytest.mark.parametrize(
    ("arguments", "document"),
    [
        (["--break-glass", f"{ROLE}/bg"], policies.bucket_policy("evidence", break_glass=[f"{ROLE}/bg"])),
        (["--kind", "session", "--kms-key", KEY], json.loads(policies.session_policy("evidence", "cases", KEY))),
        (["--kind", "uploader"], policies.uploader_policy("evidence", "cases")),
        (["--kind", "host", "--kms-key", KEY], policies.host_policy("evidence", "cases", KEY)),
        (
            ["--kind", "responder", "--uploader-role", f"{ROLE}/up", "--signing-key", KEY],
            policies.responder_policy("evidence", "cases", [f"{ROLE}/up"], signing_key=KEY),
        ),
        (
            ["--kind", "analyst", "--kms-key", KEY, "--sealing-key", KEY],
            policies.analyst_policy("evidence", "cases", KEY, KEY),
        ),
        (["--kind", "break-glass"], policies.break_glass_policy("evidence")),
        (
            ["--kind", "endpoint", "--bucket-owner", "111122223333", "--region", "eu-central-1"],
            policies.endpoint_policy("evidence", "cases", "111122223333", "eu-central-1"),
        ),
        (
            ["--kind", "uploader", "--partition", "aws-cn"],
            policies.uploader_policy("evidence", "cases", partition="aws-cn"),
        ),
    ],
)  # fmt: skip
def test_each_kind_is_printed(
    arguments: list[str], document: policies.Document, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bucket", "policy", "s3://evidence/cases", *arguments]) == 0
    assert json.loads(capsys.readouterr().out) == document


def test_a_bucket_without_a_prefix_means_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bucket", "policy", "s3://evidence", "--kind", "uploader"]) == 0
    assert json.loads(capsys.readouterr().out)["Statement"][0]["Resource"] == "arn:aws:s3:::evidence/*"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["policy", "s3://evidence"], "break-glass"),
        (["policy", "evidence"], "s3://BUCKET/PREFIX"),
        (["policy", "s3://evidence", "--kind", "session", "--kms-key", "alias/x"], "KMS key"),
        (["policy", "s3://evidence", "--break-glass", "*"], "ARN"),
        (["policy", "s3://evidence", "--break-glass", f"{ROLE}/bg", "--source-vpce", "*"], "vpce-"),
        (["policy", "s3://evidence", "--kind", "uploader", "--partition", "aws:x"], "partition"),
        (["policy", "s3://evidence", "--kind", "endpoint"], "account"),
        (["check", "s3://evidence", "--role", f"{ROLE}/up", "--profile", "x"], "one of"),
        (["check", "./directory"], "s3://BUCKET/PREFIX"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anybody_is_asked(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bucket", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert word in err


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("INC-1/i-0abc/018f3b1e-7c00-7abc-8def-0123456789ab/memory/physical.lime.zst.age",
         "INC-1/i-0abc/018f3b1e-7c00-7abc-8def-0123456789ab"),
        ("team/a/INC-1/h/018f3b1e-7c00-7abc-8def-0123456789ab/x", "INC-1/h/018f3b1e-7c00-7abc-8def-0123456789ab"),
        ("INC-1/h/018f3b1e-7c00-4abc-8def-0123456789ab/x", ""),
        ("impound-check-018f3b1e-7c00-7abc-8def-0123456789ab/adds", ""),
        ("x", ""),
    ],
)  # fmt: skip
def test_a_key_belongs_to_its_run(name: str, run: str) -> None:
    assert run_of(name) == run


CHECK = "impound-check-018f3b1e-7c00-7abc-8def-0123456789ab"


@pytest.mark.parametrize("name", ["impound-check/object", f"{CHECK}/absent", f"{CHECK}/put", f"{CHECK}/complete"])
def test_names_of_probes(name: str) -> None:
    assert is_probe(name)


@pytest.mark.parametrize(
    "name",
    [
        "impound-check/object\n", "impound-check/object/x", "x/impound-check/object", "impound-check/other", "",
        f"{CHECK}/memory", f"{CHECK}/absent/x", f"C/{CHECK}/absent", f"{CHECK.replace('-7abc', '-4abc')}/absent",
        "impound-check-x/absent", f"{CHECK.upper()}/absent",
    ],
)  # fmt: skip
def test_names_that_only_look_like_those_of_probes(name: str) -> None:
    assert not is_probe(name)
