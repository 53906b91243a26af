"""The product on both ends: `impound deploy command -- impound` as processes, against a server of S3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.runs import ENVIRONMENT, keygen

BUCKET = "evidence"
ALLOW = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}


def make_disk(directory: Path, size: int) -> Path:
    """A dead disk with a Docker daemon's directory on it: one item of about `size` random bytes."""
    disk = directory / "disk"
    for name in ("containers", "image", "overlay2", "volumes/unused/_data"):
        (disk / "var/lib/docker" / name).mkdir(parents=True)
    with (disk / "var/lib/docker/volumes/unused/_data/big").open("wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
    (disk / "etc/docker").mkdir(parents=True)
    (disk / "etc/docker/daemon.json").write_text("{}")
    return disk


@dataclass
class Deploys:
    """What all runs against one server share."""

    directory: Path
    endpoint: str
    region: str
    access_key: str
    secret_key: str
    size: int = 14 << 20
    s3_options: list[str] = field(default_factory=list)
    bucket: str = BUCKET

    def __post_init__(self) -> None:
        self.disk = make_disk(self.directory, self.size)
        self.key, self.recipient = keygen(self.directory)
        self.state = self.directory / "state"
        self.environment = ENVIRONMENT | {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
            "HOME": str(self.directory),
        }
        self.reach = ["--endpoint-url", self.endpoint, "--region", self.region, *self.s3_options]

    def command(self, *more: str, argv: Sequence[str] = (), case: str = "C-1") -> list[str]:
        return [
            sys.executable, "-m", "agent", "deploy", "command", "--case", case, "--to", f"s3://{self.bucket}/cases",
            "-r", self.recipient, "--root", str(self.disk), *self.reach, "--state", str(self.state), *more,
            "--", *(argv or [sys.executable, "-m", "agent"]),
        ]  # fmt: skip

    def start(self, *more: str, argv: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(*more, argv=argv), env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(self, *more: str, argv: Sequence[str] = (), case: str = "C-1") -> tuple[int, dict[str, Any], str]:
        """Exit code, result, standard error."""
        done = subprocess.run(
            self.command(*more, argv=argv, case=case), env=self.environment, capture_output=True, timeout=240
        )
        lines = done.stdout.splitlines()
        assert len(lines) <= 1, done.stdout
        return done.returncode, json.loads(lines[0]) if lines else {}, done.stderr.decode("utf-8", "replace")

    def verify(self, source: str, *more: str) -> tuple[int, dict[str, Any]]:
        command = [sys.executable, "-m", "agent", "verify", source, *self.reach, "--identity", str(self.key), *more]
        done = subprocess.run(command, env=self.environment, capture_output=True, timeout=240)
        lines = done.stdout.splitlines()
        return done.returncode, json.loads(lines[-1]) if lines else {"stderr": done.stderr}
