"""What a client of given credentials does not read, how long a call may last, and lists that do not end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent import aws
from agent.channel.messages import Credentials
from agent.errors import StoreError, UnreachableError, UsageError
from agent.job import S3, Job, validate
from agent.stores.s3 import client as clients
from agent.stores.s3 import control as controls
from agent.stores.s3.client import given
from agent.stores.s3.control import Control
from agent.stores.s3.place import parse_place
from tests.rigs.strict_s3 import StrictS3

HOUSE = Path(__file__).resolve().parents[3]
NS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
KEYS = Credentials("AKIDX", "SECRETX", "TOKENX", 4e9)
CALL = """
import os, sys
from agent.channel.messages import Credentials
from agent.job import S3
from agent.stores.s3.client import given
from botocore.exceptions import ClientError
s3 = S3(endpoint_url=os.environ["EP"], region="eu-central-1", ca_bundle=open(os.environ["CA"]).read())
try:
    given(s3, Credentials("AKIDX", "SECRETX", "TOKENX", 4e9)).list_buckets()
except ClientError as error:
    print("answered", error.response["ResponseMetadata"]["HTTPStatusCode"])
"""


@pytest.mark.parametrize("kind", ["garbage", "fifo"])
def test_a_given_client_reads_nothing_that_lies_in_the_home_or_the_environment(tmp_path: Path, kind: str) -> None:
    home = tmp_path / "home"
    models = home / ".aws" / "models" / "s3" / "2006-03-01"
    models.mkdir(parents=True)
    (models / "service-2.json").write_text('{"metadata": {"x": 1}}')
    for name in ("config", "credentials"):
        if kind == "fifo":
            os.mkfifo(home / ".aws" / name)
        else:
            (home / ".aws" / name).write_text("garbage, not ini\n")
    (tmp_path / "planted.py").write_text("import os\nopen(os.environ['OUT'], 'w').write('ran')\n")
    with StrictS3(tmp_path, tls=True) as server:
        (tmp_path / "ca.pem").write_text(server.ca_pem)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PYTHONPATH": f"{HOUSE}:{tmp_path}",
            "EP": server.endpoint_url,
            "CA": str(tmp_path / "ca.pem"),
            "OUT": str(tmp_path / "out"),
            "SSLKEYLOGFILE": str(tmp_path / "keys.log"),
            "BOTOCORE_EXPERIMENTAL__PLUGINS": "x=planted",
            "BOTOCORE_TCP_KEEPALIVE": "garbage",
        }
        done = subprocess.run(
            [sys.executable, "-c", CALL], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("answered 40")
    assert not (tmp_path / "keys.log").exists()
    assert not (tmp_path / "out").exists()


@contextmanager
def server(answer: Callable[[socket.socket, int], None]) -> Iterator[str]:
    """A server that calls `answer` with each connection, once a request came, and the number of it."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def one(line: socket.socket, number: int) -> None:
        with line:
            try:
                if line.recv(1 << 16):
                    answer(line, number)
            except OSError:
                pass

    def serve() -> None:
        number = 0
        while not over.is_set():
            try:
                line, _ = listener.accept()
            except OSError:
                return
            number += 1
            threading.Thread(target=one, args=(line, number), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def control_of(url: str) -> Control:
    s3 = S3(endpoint_url=url, region="eu-central-1")
    return Control(given(s3, KEYS), parse_place("s3://evidence/run"), s3)


def drip(head: bytes) -> Callable[[socket.socket, int], None]:
    def answer(line: socket.socket, _number: int) -> None:
        line.sendall(head)
        for _ in range(300):
            line.sendall(b" ")
            time.sleep(0.1)

    return answer


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Slow: ",
        b"",
    ],
)
@pytest.mark.parametrize("call", ["begin", "get"])
def test_an_answer_that_drips_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch, head: bytes, call: str) -> None:
    monkeypatch.setattr(aws, "EXCHANGE_S", 1.0)
    monkeypatch.setattr(controls, "EXCHANGE_S", 1.0)
    with server(drip(head)) as url:
        control, begun = control_of(url), time.monotonic()
        with pytest.raises(UnreachableError, match="not complete after 1 seconds"):
            control.begin("x") if call == "begin" else control.get("x", 1000)
        assert time.monotonic() - begun < 10


def test_an_answer_without_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws, "MAX_ANSWER", 1 << 20)
    monkeypatch.setattr(clients, "ATTEMPTS", 1)

    def answer(line: socket.socket, _number: int) -> None:
        line.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            line.sendall(bytes(1 << 16))

    with server(answer) as url, pytest.raises(UnreachableError, match="larger than 1048576 bytes"):
        control_of(url).begin("x")


def listing(body: Callable[[int], str]) -> Callable[[socket.socket, int], None]:
    def answer(line: socket.socket, number: int) -> None:
        text = body(number).encode()
        line.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(text) + text)

    return answer


def uploads_page(number: int, key: str, *, empty: bool = False) -> str:
    upload = "" if empty else f"<Upload><Key>run/a</Key><UploadId>{number}</UploadId><Initiated>2024-01-01T00:00:00Z"
    upload += "" if empty else "</Initiated></Upload>"
    return (
        f"<ListMultipartUploadsResult {NS}><IsTruncated>true</IsTruncated><NextKeyMarker>{key}</NextKeyMarker>"
        f"<NextUploadIdMarker>{number % 2}</NextUploadIdMarker>{upload}</ListMultipartUploadsResult>"
    )


@pytest.mark.parametrize(
    "body",
    [
        lambda _: uploads_page(1, "a"),
        lambda number: uploads_page(number, f"k{9 - number}"),
        lambda number: uploads_page(number, "a", empty=True),
    ],
    ids=["the same marker", "backwards", "nothing in it"],
)
def test_a_list_of_uploads_that_does_not_move_on_is_an_error(body: Callable[[int], str]) -> None:
    with server(listing(body)) as url, pytest.raises(StoreError, match="does not move on"):
        list(control_of(url).uploads())


def test_there_are_no_more_uploads_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controls, "MAX_UPLOADS", 20)
    body = lambda number: uploads_page(number, f"k{number:04}")  # noqa: E731
    with server(listing(body)) as url, pytest.raises(StoreError, match="more than 20 unfinished"):
        list(control_of(url).uploads())


def parts_page(marker: int, count: int) -> str:
    part = '<Part><PartNumber>1</PartNumber><ETag>"x"</ETag><Size>5</Size></Part>'
    return (
        f"<ListPartsResult {NS}><IsTruncated>true</IsTruncated>"
        f"<NextPartNumberMarker>{marker}</NextPartNumberMarker>{part * count}</ListPartsResult>"
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (lambda _: parts_page(1, 1), "does not move on"),
        (lambda number: parts_page(number, 0), "does not move on"),
        (lambda number: parts_page(number, 1000), "more than 10000 parts"),
    ],
)
def test_a_list_of_parts_that_does_not_end_is_an_error(body: Callable[[int], str], said: str) -> None:
    with server(listing(body)) as url, pytest.raises(StoreError, match=said):
        list(control_of(url).parts("x", "up"))


@pytest.mark.parametrize(
    "s3",
    [
        S3(endpoint_url="https://minio:99999"),
        S3(endpoint_url="https://minio:0"),
        S3(endpoint_url="http://u:p@minio:9000"),
        S3(endpoint_url="http://@minio"),
        S3(endpoint_url="http://[::1"),
        S3(endpoint_url="ftp://minio"),
        S3(endpoint_url="https://minio/?x=1"),
        S3(endpoint_url="https://mi nio"),
        S3(region="EU/x"),
        S3(bucket_owner="a b"),
    ],
)
def test_a_job_with_a_bucket_that_cannot_be_is_refused(s3: S3) -> None:
    with pytest.raises(UsageError) as caught:
        validate(Job(case="INC-1", to="s3://evidence/run", recipients=["age1x"], s3=s3))
    assert "u:p" not in str(caught.value)


def test_a_job_with_an_endpoint_is_taken() -> None:
    validate(
        Job(
            case="INC-1",
            to="s3://evidence/run",
            recipients=["age1x"],
            s3=S3(endpoint_url="https://minio:9000", region="eu-central-1", bucket_owner="123456789012"),
        )
    )
