"""LocalStack 4.4.0 in its own environment (`scripts/s3-servers.sh`): S3, KMS, STS, IAM and CloudFormation on loopback.

    with LocalStack() as stack:                          # about 10 s; needs .venv-localstack
        client = stack.client("s3")                      # boto3; credentials test/test
        client.create_bucket(Bucket="evidence", ObjectLockEnabledForBucket=True)
        url = client.generate_presigned_url("upload_part", ...)     # its signature is checked
        stack.client("cloudformation").create_stack(StackName="evidence", TemplateBody=...)

It checks checksums, If-None-Match, locks and presigned URLs. It does not check a signature in a header, nor any policy;
its DeriveSharedSecret gives HKDF of the secret where AWS gives the secret; CloudFormation leaves out encryption and
lifecycle of a bucket.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.rigs.s3_process import Program, RigError, answers, free_port

REGION = "us-east-1"
ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv-localstack"
_PYTHON = ENVIRONMENT / "bin/python"
_START = """
import sys
from localstack.services.s3 import provider
from localstack.runtime.main import main
provider.DEFAULT_S3_TMP_DIR = sys.argv.pop()
main()
"""
"""It has one place for all that it stores, the same for every process: this gives it another."""


def is_installed() -> bool:
    return (ENVIRONMENT / "installed").is_file() and _PYTHON.is_file()


class LocalStack:
    """The server. What it stores lies in a temporary directory."""

    region = REGION
    access_key = secret_key = "test"  # noqa: S105 - what LocalStack takes for its own

    def __init__(self, services: str = "s3,kms,sts,iam,cloudformation") -> None:
        self._services = services
        self._closing = contextlib.ExitStack()
        self.port = 0
        self.pid = 0

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        if not is_installed():
            raise RigError("needs LocalStack: scripts/s3-servers.sh")
        with contextlib.ExitStack() as closing:
            name = closing.enter_context(tempfile.TemporaryDirectory(prefix="localstack-", ignore_cleanup_errors=True))
            directory = Path(name)
            self.port = free_port()
            for part in ("fs", "tmp", "home"):
                (directory / part).mkdir()
            environment = {
                "PATH": os.environ.get("PATH", ""),
                "HOME": str(directory / "home"),
                "TMPDIR": str(directory / "tmp"),
                "FILESYSTEM_ROOT": str(directory / "fs"),
                "SERVICES": self._services,
                "EAGER_SERVICE_LOADING": "1",
                "STRICT_SERVICE_LOADING": "1",
                "GATEWAY_LISTEN": f"127.0.0.1:{self.port}",
                "S3_SKIP_SIGNATURE_VALIDATION": "0",
                "DISABLE_EVENTS": "1",
                "SKIP_SSL_CERT_DOWNLOAD": "1",
                "DNS_ADDRESS": "0",
                "PYTHONDONTWRITEBYTECODE": "1",
            }
            arguments = [str(_PYTHON), "-c", _START, str(directory / "s3")]
            program = Program(arguments, directory / "log", environment, directory)
            closing.callback(program.stop)
            self.pid = program.pid
            health = f"{self.endpoint_url}/_localstack/health"
            program.wait_until(lambda: "Ready." in program.tail() and answers(health), 120)
            self._closing = closing.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.__exit__(kind, error, trace)

    def client(self, service: str = "s3", *, credentials: Any = None, **config: Any) -> Any:
        """A boto3 client with boto3's own defaults; it retries nothing. `credentials`: what AssumeRole answered."""
        import boto3
        from botocore.config import Config

        session = boto3.Session(self.access_key, self.secret_key, region_name=REGION)
        if credentials:
            session = boto3.Session(
                credentials["AccessKeyId"], credentials["SecretAccessKey"], credentials["SessionToken"], REGION
            )
        settings = {"retries": {"total_max_attempts": 1}, "s3": {"addressing_style": "path"}, **config}
        made = session.client(service, endpoint_url=self.endpoint_url, config=Config(**settings))
        self._closing.callback(made.close)
        return made


def version() -> str:
    """What is installed, for a report."""
    code = "import importlib.metadata as m; print(m.version('localstack-core'))"
    done = subprocess.run([str(_PYTHON), "-c", code], capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.strip()
