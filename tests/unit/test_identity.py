"""Identity: asked briefly, bounded, never for credentials, and nowhere but on EC2."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, ClassVar

import pytest

from acquirers import identity

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENT = json.dumps({"instanceId": "i-0abc1234def567890", "region": "eu-west-1", "accountId": "123456789012"})


class Metadata(http.server.BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []
    answers: ClassVar[dict[str, bytes]] = {}
    delay: ClassVar[float] = 0

    def do_PUT(self) -> None:
        self.answer("token")

    def do_GET(self) -> None:
        self.answer("GET")

    def answer(self, kind: str) -> None:
        self.asked.append(self.path)
        time.sleep(self.delay)
        if kind == "GET" and self.path.startswith("/latest") and self.headers.get("X-aws-ec2-metadata-token") != "tok":
            self.send_error(401)
            return
        body = self.answers.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            return

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def service() -> Iterator[tuple[str, int]]:
    Metadata.asked, Metadata.delay = [], 0
    Metadata.answers = {
        "/latest/api/token": b"tok",
        "/latest/dynamic/instance-identity/document": DOCUMENT.encode(),
        "/latest/dynamic/instance-identity/rsa2048": b"MIIB",
        "/v4/x": b'{"Name":"c"}',
        "/v4/x/task": b'{"TaskARN":"arn:aws:ecs:eu-west-1:123456789012:task/cl/0123456789abcdef"}',
    }
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield ("127.0.0.1", server.server_address[1])
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_identity_document_comes_with_its_signature(service: tuple[str, int]) -> None:
    found = identity.ec2(service)
    assert found["document"] == DOCUMENT.encode()
    assert found["rsa2048"] == b"MIIB"
    assert found["instance_id"] == "i-0abc1234def567890"
    assert not [path for path in Metadata.asked if "iam" in path or "credential" in path]


def test_a_document_that_lies_supplies_no_names(service: tuple[str, int]) -> None:
    Metadata.answers["/latest/dynamic/instance-identity/document"] = b'{"instanceId":"../../x","region":["y"]}'
    found = identity.ec2(service)
    assert "instance_id" not in found
    Metadata.answers["/latest/dynamic/instance-identity/document"] = b"[" * 100_000
    assert "instance_id" not in identity.ec2(service)


def test_a_slow_or_endless_service_costs_no_more_than_the_deadline(service: tuple[str, int]) -> None:
    Metadata.delay = 2
    began = time.monotonic()
    assert identity.ec2(service, deadline_s=0.3) == {}
    assert time.monotonic() - began < 1.5
    Metadata.delay = 0
    Metadata.answers["/latest/dynamic/instance-identity/document"] = b"x" * (identity.MAX_ANSWER + 1)
    assert identity.ec2(service) == {}


def test_a_service_that_drips_costs_no_more_than_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                while not stop.wait(0.05):
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        found = identity.ecs({"ECS_CONTAINER_METADATA_URI_V4": f"http://127.0.0.1:{server.getsockname()[1]}/v4/x"}, 0.4)
        took = time.monotonic() - began
        stop.set()
        thread.join()
    assert found == {}
    assert took < 1.5


def test_ecs_is_asked_at_its_own_address_only(service: tuple[str, int]) -> None:
    found = identity.ecs({"ECS_CONTAINER_METADATA_URI_V4": f"http://127.0.0.1:{service[1]}/v4/x"})
    assert found["task_id"] == "0123456789abcdef"
    for uri in ("http://evil.example/v4/x", "https://169.254.170.2/v4", "file:///etc/passwd", "", "http://10.0.0.1/v4"):
        assert identity.ecs({"ECS_CONTAINER_METADATA_URI_V4": uri}) == {}
    assert not [path for path in Metadata.asked if "credential" in path]


def test_a_machine_that_is_not_ec2_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    if identity.on_ec2():
        return
    from acquirers.root import Root

    def never(*_: object, **__: object) -> dict[str, object]:
        raise AssertionError("asked")

    monkeypatch.setattr(identity, "ec2", never)
    assert "ec2" not in identity.read(Root(b"/"), inside=False)
