"""Fixtures for tests that talk to an S3 server. A module of tests that wants them says

    pytest_plugins = ["tests.rigs.s3_fixtures"]

strict_s3, strict_s3_tls: a fake for each test. local_stack, rados_gateway: one server for the whole session, skipped
where it is not installed; use buckets of your own (`bucket_name`).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs import localstack, radosgw
from tests.rigs.kms_server import KmsServer
from tests.rigs.strict_s3 import StrictS3
from tests.rigs.tls import Certificates, make_certificates


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """One authority and one server certificate for the session."""
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def strict_s3(tmp_path: Path) -> Iterator[StrictS3]:
    """Over plain HTTP."""
    with StrictS3(tmp_path) as server:
        yield server


@pytest.fixture
def strict_s3_tls(tmp_path: Path, certificates: Certificates) -> Iterator[StrictS3]:
    """Over TLS, on 127.0.0.1 and 127.0.0.2."""
    with StrictS3(tmp_path, tls=True, certificates=certificates, addresses=("127.0.0.1", "127.0.0.2")) as server:
        yield server


@pytest.fixture
def kms_server() -> Iterator[KmsServer]:
    with KmsServer() as server:
        yield server


@pytest.fixture(scope="session")
def local_stack() -> Iterator[localstack.LocalStack]:
    if not localstack.is_installed():
        pytest.skip("needs LocalStack: scripts/s3-servers.sh could not install it")
    with localstack.LocalStack() as server:
        yield server


@pytest.fixture(scope="session")
def rados_gateway() -> Iterator[radosgw.RadosGateway]:
    missing = radosgw.missing_program()
    if missing:
        pytest.skip(f"needs {missing}")
    with radosgw.RadosGateway() as server:
        yield server


@pytest.fixture
def bucket_name() -> str:
    """A name that no other test has."""
    return f"evidence-{secrets.token_hex(6)}"
