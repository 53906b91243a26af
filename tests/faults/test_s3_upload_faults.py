"""What networks, servers and others do to an upload: nothing is lost, nothing is told that is not so, nobody hangs."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import pytest

from agent.errors import AuthorityError, StoreError, UnreachableError
from agent.stores.s3 import addresses, hedge, pace, senders, wire
from agent.stores.s3.ambient import ambient
from agent.stores.s3.authority import SignedRequest
from agent.stores.s3.session import session
from agent.stores.s3.store import S3Store
from tests.support.s3_reading import log_in
from tests.support.s3_uploads import (
    BUCKET,
    MIB,
    RUN,
    Controller,
    credentials_of,
    noise,
    s3_of,
    send,
    store_of,
    wait_until,
)

if TYPE_CHECKING:
    from agent.stores.s3.upload import S3Upload
    from tests.rigs.strict_s3 import StrictS3

pytest_plugins = ["tests.rigs.s3_fixtures"]

KEY = RUN.key("x")
DATA = noise(40 * MIB)  # five parts


@pytest.fixture
def server(strict_s3_tls: StrictS3) -> StrictS3:
    strict_s3_tls.make_bucket(BUCKET, lock=True)
    return strict_s3_tls


@pytest.fixture
def store(server: StrictS3) -> Iterator[S3Store]:
    made = store_of(server, patience=20)
    yield made
    made.close()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def stored(server: StrictS3, store: S3Store) -> None:
    """The object goes through, whole, and every block comes back."""
    assert len(send(store, "x", DATA)) == 5
    assert server.read(BUCKET, KEY) == DATA
    wait_until(lambda: store._pool.out == 0, 3)


def write_all(upload: S3Upload, data: bytes) -> None:
    upload.write(data)
    upload.commit()


# -- what passes ------------------------------------------------------------------------------------------------------


def test_connections_that_are_cut_in_the_middle_of_parts(server: StrictS3, store: S3Store) -> None:
    fault = server.faults.cut(6, after_body=3_000_000, where="UploadPart")
    stored(server, store)
    assert fault.hits == 6


def test_answers_that_never_come_back(server: StrictS3, store: S3Store) -> None:
    server.faults.cut(4, before_answer=True, where="UploadPart")
    stored(server, store)
    server.faults.cut(2, after_response=20, where="UploadPart")
    send(store, "y", DATA)


@pytest.mark.parametrize("early", [False, True], ids=["after", "before the body is read"])
def test_a_storm_of_503(server: StrictS3, store: S3Store, *, early: bool) -> None:
    fault = server.faults.refuse(12, status=503, code="SlowDown", where="UploadPart", early=early)
    stored(server, store)
    assert fault.hits == 12


def test_slow_down_lowers_what_is_sent_at_once_and_retry_after_is_kept(server: StrictS3, store: S3Store) -> None:
    server.faults.refuse(1, status=503, code="SlowDown", where="UploadPart", retry_after=2)
    upload = store.begin("x")
    upload.write(DATA[: 8 * MIB + 1])
    wait_until(lambda: len(server.requests("UploadPart")) == 2)
    first, second = server.requests("UploadPart")
    assert second.started - first.ended >= 2
    assert store._senders.pace.limit <= pace.START // 2 + 1
    upload.abort()


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (400, "RequestTimeout"), (400, "BadDigest")])
def test_other_answers_that_pass(server: StrictS3, store: S3Store, status: int, code: str) -> None:
    server.faults.refuse(2, status=status, code=code, where="UploadPart")
    stored(server, store)


@pytest.mark.parametrize("at", ["start", "body", "answer"])
def test_a_peer_that_stalls(
    server: StrictS3, monkeypatch: pytest.MonkeyPatch, at: Literal["start", "body", "answer"]
) -> None:
    monkeypatch.setattr(pace, "GRACE_S", 1.0)
    monkeypatch.setattr(pace, "SLOWEST", 8_000_000)
    fault = server.faults.stall(60, 2, at=at, after_body=2_000_000, where="UploadPart")
    store = store_of(server, patience=60)
    with within(30):
        stored(server, store)
    assert fault.hits == 2
    store.close()


def test_a_peer_that_trickles_its_answer_is_held_to_the_deadline(server: StrictS3) -> None:
    """Each byte comes in time, the whole does not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)
                try:
                    for byte in b"HTTP/1.1 200 OK\r\nX: " + b"a" * 10_000:
                        peer.sendall(bytes([byte]))
                        time.sleep(0.05)
                except OSError:
                    pass  # cut, as it should be

        threading.Thread(target=trickle, daemon=True).start()
        line = wire.Wire()
        request = SignedRequest("GET", f"http://127.0.0.1:{listener.getsockname()[1]}/", {})
        with within(4), pytest.raises(wire.WireError, match="deadline") as caught:
            line.exchange(request, seconds=1.5)
        assert caught.value.late
        line.close()


def test_credentials_that_expire_in_the_middle(server: StrictS3) -> None:
    controller = Controller(server)
    store = store_of(server, controller=controller)
    upload = store.begin("x")
    upload.write(DATA[: 20 * MIB])
    wait_until(lambda: [one.status for one in server.requests("UploadPart")] == [200, 200])
    server.expire()
    upload.write(DATA[20 * MIB :])
    assert len(upload.commit()) == 5
    assert server.read(BUCKET, KEY) == DATA
    assert len(controller.sessions) == 2
    assert "ExpiredToken" in {one.code for one in server.requests("UploadPart")}
    server.expire()
    send(store, "begun with expired credentials", DATA)
    store.close()


def test_credentials_are_renewed_before_they_expire(server: StrictS3) -> None:
    controller = Controller(server, seconds=250)  # less than the five minutes
    store = store_of(server, controller=controller)
    stored(server, store)
    store.close()
    assert len(controller.sessions) == 2
    assert {one.code for one in server.requests()} == {""}


def test_a_network_that_is_away_for_a_while(server: StrictS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "MAX_PENALTY_S", 1.0)
    store = store_of(server, patience=60)
    fault = server.faults.cut(1_000_000, where=lambda _asked: True)
    done = threading.Event()

    def work() -> None:
        stored(server, store)
        done.set()

    threading.Thread(target=work, daemon=True).start()
    time.sleep(6)
    assert fault.hits > 3
    server.faults.clear()
    assert done.wait(40)
    store.close()


# -- what does not ----------------------------------------------------------------------------------------------------


def test_a_network_that_stays_away_is_told_after_the_stores_patience(server: StrictS3) -> None:
    store = store_of(server, patience=2)
    server.faults.cut(1_000_000, after_body=1000, where="UploadPart")
    with (
        within(20),
        pytest.raises(UnreachableError, match=r"part [1-5] of x could not be stored: the connection failed"),
    ):
        send(store, "x", DATA)
    wait_until(lambda: store._pool.out == 0, 3)
    store.close()


def test_a_run_that_is_told_to_stop_is_less_patient(server: StrictS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(senders, "HURRY_S", 1.0)
    store = store_of(server, patience=600, hurry=lambda: True)
    server.faults.refuse(1_000_000, status=503, code="SlowDown", where="UploadPart", retry_after=60)
    with within(10), pytest.raises(UnreachableError, match="SlowDown"):
        send(store, "x", DATA)
    store.close()


def test_access_denied_is_asked_twice_and_no_more(server: StrictS3, store: S3Store) -> None:
    server.faults.refuse(1_000_000, status=403, code="AccessDenied", where="UploadPart")
    with within(10), pytest.raises(AuthorityError, match="S3 refuses it"):
        send(store, "x", DATA[: 9 * MIB])
    counted = [one.query["partNumber"] for one in server.requests("UploadPart")]
    assert max(counted.count(number) for number in {*counted}) <= 2


def test_a_clock_that_is_an_hour_off_is_said(server: StrictS3) -> None:
    host = server.add_session("host")
    host.expires = None
    server.clock_offset = 3700
    s3 = s3_of(server)
    store = S3Store(RUN, s3, session(RUN, s3, credentials_of(host)), memory=64 * MIB)
    with within(10), pytest.raises(AuthorityError, match="clock of this machine is more than 15 minutes off"):
        send(store, "x", DATA)
    store.close()


def test_a_clock_that_jumps_in_the_middle_is_said(server: StrictS3, store: S3Store) -> None:
    upload = store.begin("x")
    upload.write(DATA[: 9 * MIB])
    wait_until(lambda: len(server.requests("UploadPart")) == 1)
    server.clock_offset = 3000
    with within(10), pytest.raises(AuthorityError, match="15 minutes off"):
        write_all(upload, DATA)
    upload.abort()


@pytest.mark.parametrize("what", ["bucket", "upload"])
def test_a_bucket_or_an_upload_that_is_gone_is_said_at_once(server: StrictS3, store: S3Store, what: str) -> None:
    upload = store.begin("x")
    upload.write(DATA[: 9 * MIB])
    wait_until(lambda: len(server.requests("UploadPart")) == 1)
    if what == "bucket":
        server.vanish(BUCKET)
    else:
        server.client().abort_multipart_upload(Bucket=BUCKET, Key=KEY, UploadId=upload.upload_id)
    with within(5), pytest.raises(StoreError, match="no such bucket" if what == "bucket" else "the upload is gone"):
        write_all(upload, DATA)
    upload.abort()
    wait_until(lambda: store._pool.out == 0, 3)


def test_a_part_that_somebody_put_again_is_not_completed(server: StrictS3, store: S3Store) -> None:
    upload = store.begin("x")
    upload.write(DATA[: 9 * MIB])
    wait_until(lambda: [one.status for one in server.requests("UploadPart")] == [200])
    server.client().upload_part(
        Bucket=BUCKET,
        Key=KEY,
        UploadId=upload.upload_id,
        PartNumber=1,
        Body=noise(8 * MIB),
        ChecksumAlgorithm="SHA256",
    )
    with pytest.raises(StoreError, match="other parts than were told"):
        upload.commit()
    assert server.keys(BUCKET) == []


@pytest.mark.parametrize("same", [True, False])
def test_ambient_completes_over_a_part_that_was_put_again_only_if_it_is_the_same(
    server: StrictS3, monkeypatch: pytest.MonkeyPatch, *, same: bool
) -> None:
    """With SSE-KMS the same bytes get another ETag each time."""
    log_in(monkeypatch, server.admin)
    s3 = s3_of(server, sse_kms_key=f"arn:aws:kms:{server.region}:{server.account}:key/1")
    store = S3Store(RUN, s3, ambient(RUN, s3), memory=64 * MIB)
    data = DATA[: 9 * MIB]
    upload = store.begin("x")
    upload.write(data)
    wait_until(lambda: [one.status for one in server.requests("UploadPart")] == [200])
    before = server.part(BUCKET, upload.upload_id, 1).etag
    server.client().upload_part(
        Bucket=BUCKET,
        Key=KEY,
        UploadId=upload.upload_id,
        PartNumber=1,
        Body=data[: 8 * MIB] if same else noise(8 * MIB),
        ChecksumAlgorithm="SHA256",
    )
    assert server.part(BUCKET, upload.upload_id, 1).etag != before
    if same:
        upload.commit()
        assert server.read(BUCKET, KEY) == data
    else:
        with pytest.raises(StoreError, match="InvalidPart"):
            upload.commit()
        assert server.keys(BUCKET) == []
    store.close()


def test_a_wrong_digest_is_tried_three_times(server: StrictS3, store: S3Store) -> None:
    server.faults.refuse(1_000_000, status=400, code="BadDigest", where="UploadPart")
    with within(10), pytest.raises(StoreError, match="other bytes than were sent"):
        send(store, "x", DATA[: 9 * MIB])
    counted = [one.query["partNumber"] for one in server.requests("UploadPart")]
    assert max(counted.count(number) for number in {*counted}) == 3


def test_an_answer_without_an_etag_is_no_success(server: StrictS3, store: S3Store) -> None:
    server.faults.refuse(1_000_000, status=200, code="InternalError", where="UploadPart")
    with within(10), pytest.raises(StoreError, match="no ETag"):
        send(store, "x", DATA[: 9 * MIB])
    assert server.keys(BUCKET) == []


def test_an_error_inside_a_200_to_complete_is_no_success(server: StrictS3, store: S3Store) -> None:
    server.faults.refuse(1, status=200, code="InternalError", where="CompleteMultipartUpload")
    stored(server, store)
    server.faults.refuse(1_000_000, status=200, code="AccessDenied", where="CompleteMultipartUpload")
    with within(20), pytest.raises(StoreError):
        send(store, "y", DATA)
    assert server.keys(BUCKET) == [KEY]


# -- giving up --------------------------------------------------------------------------------------------------------


def test_an_abort_does_not_wait_for_a_server_that_stalls(server: StrictS3, store: S3Store) -> None:
    server.faults.stall(60, 10, at="body", after_body=100_000, where="UploadPart")
    upload = store.begin("x")
    upload.write(DATA)
    wait_until(lambda: len(server.requests("UploadPart")) >= 3)
    with within(1):
        upload.abort()
    wait_until(lambda: store._pool.out == 0, 2)
    server.faults.clear()
    send(store, "y", DATA)
    assert server.keys(BUCKET) == [RUN.key("y")]
    assert not server.requests("AbortMultipartUpload")


def test_who_waits_for_memory_is_woken_by_an_abort(server: StrictS3) -> None:
    store = store_of(server, memory=32 * MIB)
    server.faults.stall(60, 100, at="body", after_body=100_000, where="UploadPart")
    upload = store.begin("x")
    raised: list[BaseException] = []

    def write() -> None:
        try:
            upload.write(DATA + DATA)
        except StoreError as error:
            raised.append(error)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    wait_until(lambda: store._pool.out == 32)
    upload.abort()
    thread.join(2)
    assert [str(error) for error in raised] == ["x was given up"]
    with within(3):
        store.close()


def test_the_end_of_a_store_ends_what_is_under_way(server: StrictS3) -> None:
    store = store_of(server)
    server.faults.stall(60, 100, at="answer", where="UploadPart")
    upload = store.begin("x")
    upload.write(DATA)
    raised: list[BaseException] = []

    def commit() -> None:
        try:
            upload.commit()
        except StoreError as error:
            raised.append(error)

    thread = threading.Thread(target=commit, daemon=True)
    thread.start()
    wait_until(lambda: len(server.requests("UploadPart")) >= 3)
    with within(3):
        store.close()
    thread.join(3)
    assert [str(error) for error in raised] == ["x was given up"]
    assert not [one for one in store._senders._threads if one.is_alive()]


# Python's `ssl` leaves a socket to the collector, which closes it, where the peer resets it just before the handshake.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning")
def test_an_abort_in_the_middle_of_a_write_gives_no_block_away_twice(server: StrictS3) -> None:
    """Blocks of an upload that was aborted are filled by the next one: nothing late may be written into them."""
    store = store_of(server, memory=32 * MIB)
    for number in range(12):
        first = store.begin("first")
        writer = threading.Thread(target=_write_until_refused, args=(first,), daemon=True)
        writer.start()
        time.sleep(0.01 * (number % 4))
        first.abort()
        name, data = f"second{number}", noise(9 * MIB)
        send(store, name, data)
        writer.join(5)
        assert not writer.is_alive()
        assert server.read(BUCKET, RUN.key(name)) == data
    store.close()


def _write_until_refused(upload: object) -> None:
    try:
        while True:
            upload.write(b"\xee" * 300_000)  # type: ignore[attr-defined]
    except StoreError:
        pass  # it was aborted


# -- addresses --------------------------------------------------------------------------------------------------------


def test_an_address_that_is_dead_or_slow_is_used_less(server: StrictS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three addresses of one name: the first takes in 2 MB/s, the last refuses connections."""

    def resolve(host: str, port: int) -> list[tuple[int, tuple[str, int] | tuple[str, int, int, int]]]:
        return [(socket.AF_INET, (one, port)) for one in ("127.0.0.1", "127.0.0.2", "127.0.0.9")]

    monkeypatch.setattr(addresses, "resolve", resolve)
    monkeypatch.setattr(addresses.Addresses.__init__, "__kwdefaults__", {"resolver": resolve, "clock": time.monotonic})
    server.limit(2_000_000, "127.0.0.1")
    store = store_of(server)
    began = time.monotonic()
    data = noise(96 * MIB)
    send(store, "x", data)
    took = time.monotonic() - began
    store.close()
    assert server.read(BUCKET, KEY) == data
    used = [one.address for one in server.requests("UploadPart")]
    assert used.count("127.0.0.2") > 2 * used.count("127.0.0.1")
    assert took < 96 * MIB / 2e6 / 2


def test_the_last_part_on_a_slow_address_is_sent_once_more(server: StrictS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone it would take 27 s, and each of its bytes comes in time."""

    def resolve(host: str, port: int) -> list[tuple[int, tuple[str, int] | tuple[str, int, int, int]]]:
        return [(socket.AF_INET, (one, port)) for one in ("127.0.0.1", "127.0.0.2")]

    monkeypatch.setattr(addresses.Addresses.__init__, "__kwdefaults__", {"resolver": resolve, "clock": time.monotonic})
    monkeypatch.setattr(hedge, "AT_LEAST_S", 2.0)
    server.limit(300_000, "127.0.0.1")
    store = store_of(server, memory=96 * MIB)
    data = noise(80 * MIB)
    with within(15):
        assert len(send(store, "x", data)) == 10
    assert server.read(BUCKET, KEY) == data
    numbers = [one.query["partNumber"] for one in server.requests("UploadPart")]
    assert len(numbers) > len({*numbers}) == 10
    assert store._pool.out == 0
    store.close()
