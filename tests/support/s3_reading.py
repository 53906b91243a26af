"""A run in a bucket of the strict fake, and the command line against it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from agent.job import S3
from agent.stores.s3.place import parse_place
from agent.stores.s3.source import S3Source
from tests.support.runs import impound

if TYPE_CHECKING:
    import pytest

    from tests.rigs.s3_signature import Credential
    from tests.rigs.strict_s3 import StrictS3

BUCKET = "evidence"
PREFIX = "ir"


def log_in(monkeypatch: pytest.MonkeyPatch, credential: Credential) -> None:
    """The environment of whoever calls AWS tools."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", credential.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", credential.secret_key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    if credential.token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", credential.token)


@dataclass
class Bucket:
    """A bucket of the fake that runs are copied into and read from."""

    server: StrictS3
    directory: Path
    """For the certificates."""
    client: Any

    @property
    def options(self) -> list[str]:
        found = ["--endpoint-url", self.server.endpoint_url, "--region", self.server.region]
        if self.server.ca_pem:
            (self.directory / "ca.pem").write_text(self.server.ca_pem)
            found += ["--ca-bundle", str(self.directory / "ca.pem")]
        return found

    @property
    def settings(self) -> S3:
        return S3(endpoint_url=self.server.endpoint_url, region=self.server.region, ca_bundle=self.server.ca_pem)

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data)

    def copy(self, run: Path, destination: Path, prefix: str = PREFIX) -> str:
        """Puts a run, object by object, under the same path below `prefix`. Gives its place."""
        for path in sorted(run.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(destination)}", path.read_bytes())
        return f"s3://{BUCKET}/{prefix}/{run.relative_to(destination)}"

    def impound(self, verb: str, *arguments: str | Path) -> tuple[int, dict[str, object], str]:
        return impound(verb, *arguments, *self.options)

    def source(self, place: str) -> S3Source:
        return S3Source(parse_place(place), self.settings)

    def read_from_server(self) -> int:
        """Bytes that GETs asked for, by their ranges."""
        total = 0
        for asked in self.server.requests("GetObject"):
            first, _, last = asked.headers["range"].removeprefix("bytes=").partition("-")
            total += int(last) + 1 - int(first)
        return total


class Narrow:
    """A way to a server of which every connection carries so many bytes a second, from there to here."""

    def __init__(self, port: int, rate: float) -> None:
        self._to, self._rate = port, rate
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self.connections = 0
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for one in self._sockets:
            one.close()

    def _start(self, work: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self._to))
            self.connections += 1
            self._sockets += [here, there]
            self._start(self._carry, here, there, 0.0)
            self._start(self._carry, there, here, self._rate)

    @staticmethod
    def _carry(one: socket.socket, other: socket.socket, rate: float) -> None:
        free_at = 0.0
        try:
            while data := one.recv(1 << 16):
                other.sendall(data)
                if rate:
                    free_at = max(free_at, time.monotonic()) + len(data) / rate
                    time.sleep(max(0.0, free_at - time.monotonic()))
            other.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # one of the two has gone
