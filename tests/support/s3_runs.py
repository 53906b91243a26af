"""The agent in a process of its own, storing into the strict fake by the machine's own right."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.runs import ENVIRONMENT, agent_command, impound, keygen
from tests.support.s3_reading import log_in

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.rigs.s3_faults import Asked, Fault
    from tests.rigs.s3_signature import Credential
    from tests.rigs.strict_s3 import StrictS3

BUCKET, PREFIX = "evidence", "ir"
TO = f"s3://{BUCKET}/{PREFIX}"


@dataclass
class Field:
    """A bucket, a key pair, and the credentials of the examined machine and of the analyst."""

    server: StrictS3
    directory: Path
    host: Credential
    key: Path
    recipient: str

    @classmethod
    def make(cls, server: StrictS3, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Field:
        server.make_bucket(BUCKET, lock=True)
        log_in(monkeypatch, server.add_user("analyst"))
        (directory / "ca.pem").write_text(server.ca_pem)
        key, recipient = keygen(directory)
        return cls(server, directory, server.add_user("host"), key, recipient)

    @property
    def options(self) -> list[str]:
        found = ["--endpoint-url", self.server.endpoint_url, "--region", self.server.region]
        return [*found, "--ca-bundle", str(self.directory / "ca.pem")] if self.server.ca_pem else found

    @property
    def environment(self) -> dict[str, str]:
        return ENVIRONMENT | {
            "AWS_ACCESS_KEY_ID": self.host.access_key,
            "AWS_SECRET_ACCESS_KEY": self.host.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def start(self, *more: str | Path, to: str = TO) -> subprocess.Popen[bytes]:
        """`acquire` by authority ambient."""
        own = ["--case", "C", "--to", to, "-r", self.recipient, "--authority", "ambient", *self.options]
        return subprocess.Popen(
            [*agent_command(), "acquire", *own, *map(str, more)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self.environment,
        )

    def acquire(self, *more: str | Path, to: str = TO) -> tuple[int, dict[str, object]]:
        process = self.start(*more, to=to)
        out, _ = process.communicate(timeout=300)
        return process.returncode, json.loads(out.splitlines()[-1]) if out else {}

    def runs(self) -> list[str]:
        """Every run that has a plan, as a SRC."""
        end = "/progress/000000.json"
        return [f"s3://{BUCKET}/{key.removesuffix(end)}" for key in self.server.keys(BUCKET) if key.endswith(end)]

    @property
    def run(self) -> str:
        [run] = self.runs()
        return run

    def names(self, run: str) -> dict[str, int]:
        """What is there of a run: name -> how many versions."""
        prefix = run.removeprefix(f"s3://{BUCKET}/") + "/"
        objects = self.server.bucket(BUCKET).objects
        return {key.removeprefix(prefix): len(found) for key, found in objects.items() if key.startswith(prefix)}

    def verify(self, run: str, *more: str) -> tuple[int, dict[str, object], str]:
        return impound("verify", run, "-i", self.key, *self.options, *more)

    def resume(self, run: str, *more: str) -> tuple[int, dict[str, object], str]:
        return impound("resume", run, "--authority", "ambient", *self.options, *more)

    def open(self, run: str, name: str, *more: str) -> Path:
        code, _, error = impound("open", run, "-i", self.key, "-o", self.directory / name, *self.options, *more)
        assert code == 0, error
        return self.directory / name

    def hold(self, operation: str, end: str = "", *, done: bool = False, seconds: float = 3600) -> Fault:
        """Lets the first such request, of a key that ends so, wait: before it is done or before it is answered."""

        def fits(asked: Asked) -> bool:
            return is_evidence(asked, operation) and asked.key.endswith(end)

        return self.server.faults.stall(seconds, where=fits, at="answer" if done else "start")


def is_evidence(asked: Asked, operation: str) -> bool:
    """Whether it is such a request, and not the one by which the bucket is tried before anything is read."""
    return asked.operation == operation and not asked.key.endswith("/probe")


def wait_for(fault: Fault, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Until the request came that the fault is for."""
    until = time.monotonic() + seconds
    while not fault.hits:
        assert process.poll() is None, "the agent ended before it came so far"
        assert time.monotonic() < until, "the agent never came so far"
        time.sleep(0.01)
    time.sleep(0.3)  # what is to be done before the answer is done by then
