"""Evidence buckets on the strict S3, set up as the template does, and roles with the policies that `impound` prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.delivery.bucket.check import Checked, check
from agent.delivery.bucket.looking import Looking
from agent.delivery.bucket.rows import Row, State
from agent.job import S3
from agent.stores.s3 import policies
from agent.stores.s3.client import standard
from agent.stores.s3.place import Place
from tests.rigs.strict_s3 import ACCOUNT, REGION, StrictS3

if TYPE_CHECKING:
    import pytest

    from tests.rigs.s3_signature import Credential
    from tests.rigs.tls import Certificates

BUCKET, PREFIX = "evidence", "cases"
KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/11111111-2222-3333-4444-555555555555"
UPLOADER = f"arn:aws:iam::{ACCOUNT}:role/uploader"
HOST = f"arn:aws:iam::{ACCOUNT}:role/host"
BREAK_GLASS = f"arn:aws:iam::{ACCOUNT}:role/break-glass"

LIFECYCLE: dict[str, Any] = {
    "Rules": [
        {
            "ID": "unfinished",
            "Status": "Enabled",
            "Filter": {"Prefix": ""},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 14},
        }
    ]
}


def good_policy(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "break_glass": [BREAK_GLASS], "uploaders": [UPLOADER], "hosts": [HOST], "kms_key": KEY, **changes
    }  # fmt: skip
    return policies.bucket_policy(BUCKET, **given)


@dataclass
class Scene:
    """A strict S3 with one bucket, and a responder whose policy is the one that is printed."""

    s3: StrictS3
    monkeypatch: pytest.MonkeyPatch
    directory: Path

    def __post_init__(self) -> None:
        # The bucket's policy lets nobody else change anything.
        self.admin = self.s3.client("s3", self.s3.add_session("break-glass"))

    def responder(self, policy: dict[str, Any] | None = None) -> Credential:
        own = policies.responder_policy(BUCKET, PREFIX, [UPLOADER], KEY)
        return self.use(self.s3.add_user("responder", policy or own))

    def use(self, credential: Credential) -> Credential:
        """From now on the AWS configuration of this machine has these credentials."""
        self.monkeypatch.setenv("AWS_ACCESS_KEY_ID", credential.access_key)
        self.monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", credential.secret_key)
        self.monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
        self.monkeypatch.delenv("AWS_PROFILE", raising=False)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            self.monkeypatch.setenv(name, str(self.directory / "profiles"))
        return credential

    def profile(self, name: str, credential: Credential) -> None:
        (self.directory / "profiles").write_text(
            f"[{name}]\naws_access_key_id={credential.access_key}\naws_secret_access_key={credential.secret_key}\n"
            + (f"aws_session_token={credential.token}\n" if credential.token else ""),
            "utf-8",
        )

    def uploader(self, policy: dict[str, Any] | None = None) -> str:
        """The role of the hosts' sessions."""
        return self.s3.add_role("uploader", policy or policies.uploader_policy(BUCKET, PREFIX, KEY)).arn

    def set_policy(self, document: dict[str, Any]) -> None:
        self.s3.set_policy(BUCKET, document)
        self.s3.bucket(BUCKET).documents["policy"] = json.dumps(document).encode()

    def look(self, **changes: Any) -> Looking:
        s3 = S3(
            **{"endpoint_url": self.s3.endpoint_url, "ca_bundle": self.s3.ca_pem, "bucket_owner": ACCOUNT, **changes}
        )
        return Looking(standard(s3), Place(BUCKET, PREFIX), s3)

    def check(self, **choices: Any) -> tuple[list[Row], list[str]]:
        """All rows, and what was left."""
        look = self.look(**choices.pop("s3", {}))
        checked = Checked()
        return list(check(look, checked, **choices)), checked.left


@contextmanager
def good_bucket(directory: Path, monkeypatch: pytest.MonkeyPatch, certificates: Certificates) -> Iterator[Scene]:
    """A bucket in which the check finds nothing."""
    with StrictS3(directory, tls=True, certificates=certificates) as s3:
        scene = Scene(s3, monkeypatch, directory)
        s3.make_bucket("logs")
        s3.make_bucket(BUCKET, lock=True)
        admin = scene.admin
        admin.put_object_lock_configuration(
            Bucket=BUCKET,
            ObjectLockConfiguration={
                "ObjectLockEnabled": "Enabled",
                "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 30}},
            },
        )
        default = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": KEY}
        rule = {"ApplyServerSideEncryptionByDefault": default, "BucketKeyEnabled": True}
        admin.put_bucket_encryption(Bucket=BUCKET, ServerSideEncryptionConfiguration={"Rules": [rule]})
        admin.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration=LIFECYCLE)
        target = {"TargetBucket": "logs", "TargetPrefix": "evidence/"}
        admin.put_bucket_logging(Bucket=BUCKET, BucketLoggingStatus={"LoggingEnabled": target})
        admin.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(good_policy()))
        scene.responder()
        yield scene


def not_ok(rows: list[Row]) -> dict[str, State]:
    return {row.name: row.state for row in rows if row.state is not State.OK}
