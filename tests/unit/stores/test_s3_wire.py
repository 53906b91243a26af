"""What goes over the wire, and what is believed of what comes back."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.stores.s3.authority import SignedRequest
from agent.stores.s3.connection import tls_context
from agent.stores.s3.wire import Answer, Ticket, Wire, WireError
from tests.rigs.strict_s3 import StrictS3
from tests.rigs.tls import make_certificates, server_context


@contextmanager
def peer(*answers: bytes, hold: bool = False) -> Iterator[tuple[str, list[bytes]]]:
    """A server that gives these answers, one a request, whatever is asked; closes after the last one."""
    got: list[bytes] = []
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                for answer in answers:
                    got.append(connection.recv(65536))
                    connection.sendall(answer)
                if hold:
                    done.wait(20)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/b/k", got
        done.set()
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def ask(url: str, *, seconds: float = 5, ticket: Ticket | None = None, limit: int = 65536) -> Answer:
    wire = Wire()
    try:
        return wire.exchange(SignedRequest("GET", url, {"x-a": "1"}), seconds=seconds, ticket=ticket, limit=limit)
    finally:
        wire.close()


def test_an_answer_is_given_whatever_its_status_is() -> None:
    with peer(b"HTTP/1.1 418 No\r\nX-Amz-Thing: a\r\nContent-Length: 2\r\n\r\nhi") as (url, got):
        answer = ask(url)
    assert (answer.status, answer.headers["x-amz-thing"], answer.body) == (418, "a", b"hi")
    assert got[0].startswith(b"GET /b/k HTTP/1.1\r\n")
    assert b"x-a: 1\r\n" in got[0]


def test_redirects_are_not_followed() -> None:
    with peer(b"HTTP/1.1 307 Away\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n") as (url, got):
        assert ask(url).status == 307
    assert len(got) == 1


def test_a_connection_is_used_again_and_one_that_was_closed_meanwhile_is_not() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    with StrictServer([answer, answer]) as (url, connections):
        wire = Wire()
        for _ in range(2):
            assert wire.exchange(SignedRequest("PUT", url, {}), seconds=5).status == 200
        assert len(connections) == 1
        time.sleep(0.1)  # it closes after the second answer
        assert wire.exchange(SignedRequest("PUT", url, {}), seconds=5).status == 200
        assert len(connections) == 2
        wire.close()


class StrictServer:
    """Gives the same answers over each connection, and closes it."""

    def __init__(self, answers: list[bytes]) -> None:
        self._answers = answers
        self._connections: list[socket.socket] = []

    def __enter__(self) -> tuple[str, list[socket.socket]]:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/", self._connections

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            connection.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            try:
                for answer in self._answers:
                    if connection.recv(65536):
                        connection.sendall(answer)
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the test closed it


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x16\x03\x01",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 5000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"SSH-2.0-OpenSSH\r\n",
    ],
    ids=["nothing", "tls", "no status", "long line", "many headers", "short body", "bad chunk", "ssh"],
)
def test_what_is_no_answer_is_an_error_of_the_wire(answer: bytes) -> None:
    with peer(answer) as (url, _), pytest.raises(WireError):
        ask(url)


def test_an_endless_body_is_cut() -> None:
    with peer(b"HTTP/1.1 500 No\r\nContent-Length: 1000000\r\n\r\n" + b"a" * 200_000, hold=True) as (url, _):
        assert len(ask(url, limit=1000).body) == 1000


@pytest.mark.parametrize("part", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\na"])
def test_the_deadline_ends_it(part: bytes) -> None:
    with peer(part, hold=True) as (url, _):
        began = time.monotonic()
        with pytest.raises(WireError, match="deadline") as caught:
            ask(url, seconds=0.5)
        assert time.monotonic() - began < 2
        assert caught.value.late


def test_whoever_holds_the_ticket_ends_it_at_once() -> None:
    with peer(b"", hold=True) as (url, _):
        ticket = Ticket()
        threading.Timer(0.3, ticket.cancel).start()
        began = time.monotonic()
        with pytest.raises(WireError, match="given up"):
            ask(url, seconds=30, ticket=ticket)
        assert time.monotonic() - began < 2
        with pytest.raises(WireError, match="given up"):
            ask(url, ticket=ticket)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(WireError, match="the connection failed: Connection refused") as caught:
        ask(f"http://127.0.0.1:{port}/")
    assert caught.value.address == "127.0.0.1"
    with pytest.raises(WireError, match="cannot be looked up"):
        ask("http://no-such-name.invalid/")


def test_a_wire_that_is_closed_sends_nothing() -> None:
    wire = Wire()
    wire.close()
    with pytest.raises(WireError, match="closed"):
        wire.exchange(SignedRequest("GET", "http://127.0.0.1:9/", {}), seconds=5)


def test_certificates_must_be_trusted_and_of_that_name(tmp_path: Path) -> None:
    with StrictS3(tmp_path, tls=True, addresses=("127.0.0.1", "127.0.0.20")) as server:
        for bundle, url in [
            ("", server.endpoint_url),
            (make_certificates(tmp_path / "other").ca_pem, server.endpoint_url),
            (server.ca_pem, f"https://127.0.0.20:{server.port}"),
        ]:
            wire = Wire(bundle)
            with pytest.raises(WireError, match="certificate is not trusted") as caught:
                wire.exchange(SignedRequest("GET", url, {}), seconds=5)
            assert caught.value.trust
            wire.close()
        wire = Wire(server.ca_pem)
        assert wire.exchange(SignedRequest("GET", server.endpoint_url, {}), seconds=5).status == 403
        wire.close()


def test_tls_before_1_2_is_not_spoken(tmp_path: Path) -> None:
    assert tls_context("").minimum_version == ssl.TLSVersion.TLSv1_2
    with StrictS3(tmp_path, tls=True, highest_tls=ssl.TLSVersion.TLSv1_2) as server:
        wire = Wire(server.ca_pem)
        assert wire.exchange(SignedRequest("GET", server.endpoint_url, {}), seconds=5).status == 403
        wire.close()


def test_bodies_are_sent_as_they_are(tmp_path: Path) -> None:
    received = bytearray()
    certificates = make_certificates(tmp_path)
    context = server_context(certificates)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with context.wrap_socket(connection, server_side=True) as secure:
                while b"\r\n\r\n" not in received or len(received.partition(b"\r\n\r\n")[2]) < 2_500_000:
                    received.extend(secure.recv(1 << 20))
                secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        blocks = [bytearray(b"a" * 1_000_000), bytearray(b"b" * 1_000_000), bytearray(b"c" * 1_000_000)]
        body = [memoryview(blocks[0]), memoryview(blocks[1]), memoryview(blocks[2])[:500_000]]
        wire = Wire(certificates.ca_pem)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/k?partNumber=1"
        wire.exchange(SignedRequest("PUT", url, {"content-length": "2500000"}), body, seconds=10)
        wire.close()
        thread.join(5)
    head, _, rest = bytes(received).partition(b"\r\n\r\n")
    assert head.startswith(b"PUT /k?partNumber=1 HTTP/1.1\r\n")
    assert head.lower().count(b"content-length") == 1
    assert b"chunked" not in head.lower()
    assert rest == b"a" * 1_000_000 + b"b" * 1_000_000 + b"c" * 500_000


def test_no_signature_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    """Not in a repr, not in an error, and not in what urllib3 says of malformed headers."""
    with peer(b"HTTP/1.1 200 OK\r\nno header at all\r\nContent-Length: 0\r\n\r\n") as (url, _):
        signed = SignedRequest("GET", url + "?X-Amz-Signature=secret", {"authorization": "secret"})
        wire = Wire()
        said = repr(signed)
        try:
            said += repr(wire.exchange(signed, seconds=5))
        except WireError as error:
            said += repr(error)
        wire.close()
    out, err = capfd.readouterr()
    assert "secret" not in said + out + err
