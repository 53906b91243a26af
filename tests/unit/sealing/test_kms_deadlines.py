"""What answers for KMS or STS and never ends, and what lies in the environment, cost no more than a deadline."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent import aws
from agent.delivery.bucket.check import of_profile
from agent.errors import ImpoundError, UsageError
from agent.sealing import kms
from agent.sealing.kms import Kms
from tests.support.kms import REGION, arn, environment, kms_double

DRIPS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX-Slow: ",
)


@contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that calls `answer` with each connection once a request came."""
    listener = socket.create_server(("127.0.0.1", 0))

    def one(line: socket.socket) -> None:
        with line:
            try:
                if line.recv(1 << 16):
                    answer(line)
            except OSError:
                pass  # the other side has had enough

    def serve() -> None:
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(line,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def drip(head: bytes) -> Callable[[socket.socket], None]:
    def answer(line: socket.socket) -> None:
        line.sendall(head)
        for _ in range(100):
            line.sendall(b" ")
            time.sleep(0.1)

    return answer


def endless(line: socket.socket) -> None:
    line.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(200):
        line.sendall(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")


def use(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name, value in environment(url).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("head", DRIPS)
def test_a_kms_that_drips_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    monkeypatch.setattr(kms, "CALL_S", 1.0)
    with server(drip(head)) as url:
        use(monkeypatch, url)
        began = time.monotonic()
        with pytest.raises(ImpoundError, match=r"does not answer kms:GetPublicKey .the answer was not complete"):
            Kms(REGION).public_half(arn(1))
        assert time.monotonic() - began < 5


def test_a_kms_that_sends_without_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws, "MAX_ANSWER", 1 << 20)
    monkeypatch.setattr(kms, "ATTEMPTS", 1)
    with server(endless) as url:
        use(monkeypatch, url)
        with pytest.raises(ImpoundError, match="larger than 1048576 bytes"):
            Kms(REGION).public_half(arn(1))


def test_what_was_planted_in_the_environment_is_taken_out_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "planted_for_kms.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with kms_double() as double:
        use(monkeypatch, double.url)
        monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys.log"))
        monkeypatch.setenv("BOTOCORE_EXPERIMENTAL__PLUGINS", "x=planted_for_kms")
        Kms(REGION).public_half(double.add())
    assert "planted_for_kms" not in sys.modules
    assert not {"SSLKEYLOGFILE", "BOTOCORE_EXPERIMENTAL__PLUGINS"} & set(os.environ)


# -- the profile that `bucket check` is given -------------------------------------------------------------------------


def write_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str) -> None:
    """A profile whose credentials STS must be asked for."""
    (tmp_path / "config").write_text(
        f"[profile host]\nrole_arn = arn:aws:iam::111122223333:role/host\nsource_profile = base\nregion = {REGION}\n"
        "[profile base]\naws_access_key_id = AKIDX\naws_secret_access_key = SECRETX\n"
    )
    use(monkeypatch, url)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)


@pytest.mark.parametrize("head", DRIPS)
def test_a_profile_whose_sts_drips_ends_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, head: bytes
) -> None:
    monkeypatch.setattr(aws, "EXCHANGE_S", 1.0)
    with server(drip(head)) as url:
        write_profile(monkeypatch, tmp_path, url)
        began = time.monotonic()
        with pytest.raises(UsageError, match="'host' gives no credentials: the answer was not complete"):
            of_profile("host")
        assert time.monotonic() - began < 5


def test_a_profile_that_sts_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    body = (
        b"<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>no</Message></Error>"
        b"</ErrorResponse>"
    )
    head = b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/xml\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    with server(lambda line: line.sendall(head % len(body) + body)) as url:
        write_profile(monkeypatch, tmp_path, url)
        with pytest.raises(UsageError, match=r"'host' gives no credentials: .*AccessDenied"):
            of_profile("host")


def test_a_profile_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "http://127.0.0.1:1")
    with pytest.raises(UsageError, match="'nobody' gives no credentials"):
        of_profile("nobody")
