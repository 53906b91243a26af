"""A server that announces a length and goes on in chunks for ever: a range takes no more than its own size."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from agent.errors import SourceError
from agent.job import S3
from agent.stores.s3.client import standard
from agent.stores.s3.read_ranges import Ranges, Target

SIZE = 1 << 20
STEP = 1 << 16
MOST = 64 << 20
"""More than sockets hold between the two."""


class Endless(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    sent = 0

    def do_GET(self) -> None:
        self.send_response(206)
        self.send_header("Content-Length", str(SIZE))
        self.send_header("Content-Range", f"bytes 0-{SIZE - 1}/{SIZE}")
        self.send_header("ETag", '"e"')
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        try:
            while Endless.sent < MOST:
                self.wfile.write(b"%x\r\n" % STEP + bytes(STEP) + b"\r\n")
                Endless.sent += STEP
        except OSError:
            return

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as answering:
        threading.Thread(target=answering.serve_forever, daemon=True).start()
        yield answering
        answering.shutdown()


def test_a_body_without_end_is_refused_at_the_length_of_its_range(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    client = standard(S3(endpoint_url=f"http://127.0.0.1:{server.server_address[1]}", region="us-east-1"))
    ranges = Ranges(client, "bucket", "")
    asked = ranges.ask(Target("a", "a", SIZE, '"e"', ""), 0, SIZE)
    with pytest.raises(SourceError, match="S3 gives more of a range of 1048576"):
        asked.result(30)
    ranges.close()
    assert Endless.sent < MOST
