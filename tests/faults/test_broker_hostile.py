"""A host that is the enemy: whatever it says, nothing outside its run is touched, and nothing is believed."""

from __future__ import annotations

import hashlib
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.channel import messages as say
from agent.channel.framing import Reader
from agent.cli.deploy_result import end_of
from agent.delivery.controller import WORKERS
from agent.delivery.grants import Bounds
from agent.errors import AuthorityError, ObjectExistsError, StoreError, UnreachableError
from tests.rigs.strict_s3 import StrictS3
from tests.unit.delivery.hosts import BUCKET, HOST, MIN_PART, SIGNER, Channel, channel, part_of, result, send, sum_of
from tests.unit.delivery.test_controller import known_key, sound_receipt  # noqa: F401 - a fixture for every test

OTHER = "cases/C-1/i-0abc/01890a5d-ac96-774b-bcce-b302099a8057/a.age"


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[StrictS3]:
    with StrictS3(tmp_path, min_part=MIN_PART) as server:
        server.make_bucket(BUCKET, lock=True)
        server.client("s3").put_object(Bucket=BUCKET, Key=OTHER, Body=b"of another run", ChecksumAlgorithm="SHA256")
        yield server
        others = [key for key in server.keys(BUCKET) if key == OTHER]
        assert others == [OTHER]
        assert server.read(BUCKET, OTHER) == b"of another run"


def answers(one: Channel) -> Reader[Any]:
    reader: Reader[Any] = Reader(one.read_fd, msgspec.json.Decoder(say.FromController), "controller")
    assert isinstance(reader.receive(10), say.Start)
    return reader


def below(s3: StrictS3, one: Channel) -> list[str]:
    """Keys and uploads of the bucket that are not of this run."""
    uploads = [upload.key for upload in s3.uploads(BUCKET)]
    return [key for key in [*s3.keys(BUCKET), *uploads] if not key.startswith(one.prefix) and key != OTHER]


GARBAGE: dict[str, bytes] = {
    "binary": bytes(range(256)) * 10,
    "text": b"Welcome to Ubuntu 22.04\n",
    "no message": b'{"say":"shutdown"}\n',
    "an answer": b'{"say":"done","id":1}\n',
    "half a line": b'{"say":"begin","id":1,',
    "nested": b'{"say":"event","name":"x","fields":{"a":' + b"[" * 100_000 + b"\n",
    "a number": b'{"say":"begin","id":1e999,"name":"a"}\n',
}


@pytest.mark.parametrize("greeted", [False, True])
@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_ends_the_channel(s3: StrictS3, tmp_path: Path, kind: str, greeted: bool) -> None:
    with channel(s3, tmp_path / "state") as one:
        if greeted:
            one.hello()
        one.send(GARBAGE[kind])
        told = one.hang_up()
        one.check_ledger_only()
    assert told.verdict == ("partial" if greeted else "failed")
    assert told.why
    assert len(told.findings) == 1


def test_a_line_of_a_gibibyte_costs_no_memory(s3: StrictS3, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with channel(s3, tmp_path / "state") as one:
        one.hello()
        block = b"x" * (1 << 20)

        def flood() -> None:
            one.send(b'{"say":"put",', *([block] * 1024))

        thread = threading.Thread(target=flood, daemon=True)
        thread.start()
        told = one.told()
        thread.join(10)
        assert not thread.is_alive()
    assert told.verdict == "partial"
    assert "no message" in told.why
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 << 10, f"{grown} KiB"


HELLOS: dict[str, dict[str, Any]] = {
    "another run": {"run": "01890a5d-ac96-774b-bcce-b302099a8057"},
    "another case": {"case": "C-2"},
    "another attempt": {"attempt": 2},
    "climbing": {"host": ".."},
    "climbing far": {"host": "../../C-2/x"},
    "slashes": {"host": "a/b"},
    "no host": {"host": ""},
    "odd host": {"host": "a\x1b[2Jb"},
    "long host": {"host": "a" * 101},
    "no signer": {"signer": "ed25519:"},
    "another version": {"version": 2},
    "odd tool": {"tool": "\x1b]0;x\x07"},
}


@pytest.mark.parametrize("kind", HELLOS)
def test_a_host_on_another_run_is_not_answered(s3: StrictS3, tmp_path: Path, kind: str) -> None:
    with channel(s3, tmp_path / "state") as one:
        one.hello(**HELLOS[kind])
        one.send(say.Put(1, "a.json", b"x"))
        told = one.hang_up()
    assert told.verdict == "failed"
    assert told.host == ""
    assert s3.keys(BUCKET) == [OTHER]


def test_nothing_is_answered_before_hello(s3: StrictS3, tmp_path: Path) -> None:
    for message in (say.Put(1, "a.json", b"x"), say.Begin(1, "a"), say.Renew(1), say.Head("ab" * 32, 1, 1)):
        with channel(s3, tmp_path / "state") as one:
            one.send(message)
            told = one.hang_up()
        assert told.verdict == "failed"
        assert "before it said which run" in told.why
    assert s3.keys(BUCKET) == [OTHER]


def test_hello_is_said_once(s3: StrictS3, tmp_path: Path) -> None:
    with channel(s3, tmp_path / "state") as one:
        one.hello()
        one.hello(host="i-0def")
        told = one.hang_up()
    assert (told.verdict, told.host) == ("partial", HOST)


NAMES = [
    "../a",
    "a/../../b",
    "/a",
    "a//b",
    "a/",
    ".hidden",
    "a/.b",
    "a\x00b",
    "a b",
    "a\nb",
    "ä",
    "a?versionId=1",
    "a%2f..%2fb",
    "x" * 1000,
    "countersignature.json",
    "attempt-2/receipt.json",
    "attempt-01/receipt.json",
    "attempt-0/x",
]


def test_names_that_impound_does_not_write(s3: StrictS3, tmp_path: Path) -> None:
    with channel(s3, tmp_path / "state") as one:
        end = one.end()
        for name in NAMES:
            with pytest.raises(AuthorityError):
                end.put(name, b"x")
            with pytest.raises(AuthorityError):
                end.begin(name)
            with pytest.raises(AuthorityError):
                end.sign(name, "u", 1, 3000, b"1" * 32)
            with pytest.raises(AuthorityError):
                end.complete(name, "u", [(3000, b"1" * 32)])
        end.close()
        told = one.hang_up()
        assert below(s3, one) == []
    assert told.refused == 4 * len(NAMES)
    assert s3.requests("PutObject")[1:] == []
    assert s3.requests("CreateMultipartUpload") == []


PARTS: dict[str, tuple[int, int]] = {
    "empty": (1, 0),
    "too small in front": (1, MIN_PART - 1),
    "too large": (4, (5 << 30)),
}


def test_parts_that_no_upload_has(s3: StrictS3, tmp_path: Path) -> None:
    bounds = Bounds(min_part=MIN_PART, max_part=1 << 20)
    with channel(s3, tmp_path / "state", bounds=bounds) as one:
        end = one.end()
        upload = end.begin("a.age")
        end.sign("a.age", upload, 2, 3000, b"1" * 32)
        for number, size in PARTS.values():
            with pytest.raises(AuthorityError):
                end.sign("a.age", upload, number, size, b"2" * 32)
        end.sign("a.age", upload, 3, 5, b"3" * 32)
        for number, size in ((4, 3000), (1, 5), (4, 5)):
            with pytest.raises(AuthorityError):
                end.sign("a.age", upload, number, size, b"2" * 32)
        end.sign("a.age", upload, 1, 3000, b"2" * 32)
        end.close()
        one.hang_up()


def test_numbers_beyond_s3_are_no_message(s3: StrictS3, tmp_path: Path) -> None:
    for number in (0, 10_001, -1):
        with channel(s3, tmp_path / "state") as one:
            one.hello()
            one.send(say.Sign(1, "a", "u", number, say.PartSum(5, "ab" * 32)))
            assert "no message" in one.hang_up().why


def test_uploads_of_others_are_not_signed_and_not_completed(s3: StrictS3, tmp_path: Path) -> None:
    admin = s3.client("s3")
    data = b"1" * 3000
    theirs = admin.create_multipart_upload(Bucket=BUCKET, Key=OTHER + "2", ChecksumAlgorithm="SHA256")["UploadId"]
    admin.upload_part(
        Bucket=BUCKET, Key=OTHER + "2", UploadId=theirs, PartNumber=1, Body=data, ChecksumAlgorithm="SHA256"
    )
    with channel(s3, tmp_path / "state") as one:
        end = one.end()
        mine, second = end.begin("a.age"), end.begin("b.age")
        for name, upload in (("a.age", theirs), ("a.age", second), ("b.age", mine), ("c.age", mine), ("a.age", "")):
            with pytest.raises(AuthorityError, match="no such upload"):
                end.sign(name, upload, 1, len(data), part_of(data).sha256)
            with pytest.raises(AuthorityError, match="no such upload"):
                end.complete(name, upload, [(len(data), part_of(data).sha256)])
        end.close()
        one.hang_up()
    assert s3.keys(BUCKET) == [OTHER]


def test_a_session_does_not_complete_an_upload_of_another_name(s3: StrictS3, tmp_path: Path) -> None:
    """With a session the host begins for itself: an id that is of another key is no upload of this one."""
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    role = s3.add_role("uploader", everything)
    admin = s3.client("s3")
    theirs = admin.create_multipart_upload(Bucket=BUCKET, Key=OTHER + "2", ChecksumAlgorithm="SHA256")["UploadId"]
    data = b"1" * 3000
    admin.upload_part(
        Bucket=BUCKET, Key=OTHER + "2", UploadId=theirs, PartNumber=1, Body=data, ChecksumAlgorithm="SHA256"
    )
    with channel(s3, tmp_path / "state", role=role.arn) as one:
        end = one.end()
        for upload in (theirs, "../x?y", "a b", "\r\nx-amz-acl: public-read", ""):
            with pytest.raises(StoreError):
                end.complete("a.age", upload, [(len(data), part_of(data).sha256)])
        end.close()
        one.hang_up()
    assert s3.keys(BUCKET) == [OTHER]


def test_what_was_not_uploaded_is_not_completed(s3: StrictS3, tmp_path: Path) -> None:
    data = b"1" * 3000
    with channel(s3, tmp_path / "state") as one:
        end = one.end()
        upload = end.begin("a.age")
        claims = [(len(data), part_of(data).sha256)]
        with pytest.raises(AuthorityError, match="not those that were signed"):
            end.complete("a.age", upload, claims)
        assert send(end.sign("a.age", upload, 1, len(data), part_of(data).sha256), data) == 200
        for wrong in ([*claims, (5, b"1" * 32)], [(5, b"1" * 32)], [(3000, b"1" * 32)]):
            with pytest.raises(AuthorityError, match="not those that were signed"):
                end.complete("a.age", upload, wrong)
        end.sign("a.age", upload, 2, 10, b"1" * 32)
        with pytest.raises(StoreError, match="part 2 is not in the bucket"):
            end.complete("a.age", upload, [*claims, (10, b"1" * 32)])
        end.close()
        told = one.hang_up()
        one.check_ledger_only()
    assert s3.keys(BUCKET) == [OTHER]
    assert told.findings == []


def test_nothing_is_completed_twice(s3: StrictS3, tmp_path: Path) -> None:
    data = b"1" * 3000
    with channel(s3, tmp_path / "state") as one:
        end = one.end()
        upload = end.begin("a.age")
        assert send(end.sign("a.age", upload, 1, len(data), part_of(data).sha256), data) == 200
        results: list[str] = []

        def complete() -> None:
            try:
                end.complete("a.age", upload, [(len(data), part_of(data).sha256)])
                results.append("done")
            except StoreError as error:
                results.append(type(error).__name__)

        threads = [threading.Thread(target=complete) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results.count("done") == 1
        with pytest.raises(ObjectExistsError):
            end.complete("a.age", upload, [(len(data), part_of(data).sha256)])
        with pytest.raises(AuthorityError):
            end.sign("a.age", upload, 2, 10, b"1" * 32)
        end.close()
        one.hang_up()
    assert len(s3.requests("CompleteMultipartUpload")) == 1


def test_a_name_is_begun_once(s3: StrictS3, tmp_path: Path) -> None:
    """Else the same part could be signed with another digest, in a second upload of the same object."""
    with channel(s3, tmp_path / "state") as one:
        end = one.end()
        end.begin("a.age")
        with pytest.raises(AuthorityError, match="begun before"):
            end.begin("a.age")
        with pytest.raises(AuthorityError, match="begun in parts"):
            end.put("a.age", b"x")
        end.close()
        one.hang_up()


def test_limits_of_a_run(s3: StrictS3, tmp_path: Path) -> None:
    bounds = Bounds(min_part=MIN_PART, parts=3, size=20_000, objects=5, uploads=2)
    with channel(s3, tmp_path / "state", bounds=bounds) as one:
        end = one.end()
        first = end.begin("a.age")
        end.begin("b.age")
        with pytest.raises(AuthorityError, match="are open"):
            end.begin("c.age")
        for number in (1, 2, 3):
            end.sign("a.age", first, number, 3000, b"1" * 32)
        with pytest.raises(AuthorityError, match="at most 3 parts"):
            end.sign("a.age", first, 4, 3000, b"1" * 32)
        end.put("d", b"x" * 8000)
        with pytest.raises(AuthorityError, match="at most 20000 bytes"):
            end.put("e", b"x" * 4000)
        end.put("e", b"x")
        end.put("f", b"x")
        with pytest.raises(AuthorityError, match="at most 5 objects"):
            end.put("g", b"x")
        end.close()
        one.hang_up()


def test_refusals_have_an_end(s3: StrictS3, tmp_path: Path) -> None:
    bounds = Bounds(min_part=MIN_PART, refusals=50, findings=20)
    with channel(s3, tmp_path / "state", bounds=bounds) as one:
        one.hello()
        for number in range(200):
            one.send(say.Begin(number, "../x"))
        told = one.told()
        noted = Path(one.ledger.path).read_text("utf-8")
    assert told.verdict == "partial"
    assert 51 <= told.refused <= 51 + WORKERS  # several are answered at once
    assert noted.count('"event":"refused"') == 20


def test_a_flood_is_slowed(s3: StrictS3, tmp_path: Path) -> None:
    bounds = Bounds(min_part=MIN_PART, messages_s=500, burst=100)
    with channel(s3, tmp_path / "state", bounds=bounds) as one:
        one.hello()
        began, cpu = time.monotonic(), time.process_time()
        head = msgspec.json.encode(say.Head("ab" * 32, 1, 1)) + b"\n"
        for _ in range(11):
            one.send(head * 100)
        told = one.hang_up()
        took = time.monotonic() - began
    assert 1.5 < took < 10
    assert time.process_time() - cpu < 1.5
    assert told.heads == 1


def test_a_host_that_reads_no_answers_is_left(s3: StrictS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.delivery.controller.ANSWER_S", 0.5)
    monkeypatch.setattr("agent.channel.framing.ROOM", 1 << 16)
    with channel(s3, tmp_path / "state", bounds=Bounds(min_part=MIN_PART, messages_s=1e6, burst=10**6)) as one:
        one.hello()
        thread = threading.Thread(
            target=lambda: one.send(*[say.Begin(number, "../" + "x" * 90) for number in range(5000)]), daemon=True
        )
        thread.start()
        told = one.told()
        thread.join(10)
    assert "does not read" in told.why
    assert told.verdict == "partial"


RESULTS: dict[str, dict[str, Any]] = {
    "no verdict": {"verdict": "splendid"},
    "odd verdict": {"verdict": ["complete"]},
    "another run": {"run": "x"},
    "another signer": {"signer": SIGNER[:-1] + ("0" if SIGNER[-1] != "0" else "1")},
    "another receipt": {"receipt_sha256": "ab" * 32},
}


@pytest.mark.parametrize("kind", RESULTS)
def test_a_result_that_something_speaks_against(s3: StrictS3, tmp_path: Path, kind: str) -> None:
    with channel(s3, tmp_path / "state") as one:
        end = one.end()
        end.put("attempt-1/receipt.json", sound_receipt(one))
        end.put("receipt.json", sound_receipt(one))
        good = {"receipt_sha256": hashlib.sha256(sound_receipt(one)).hexdigest()}
        end.result(result(one, **(good | RESULTS[kind])))
        end.close()
        told = one.hang_up()
    assert told.verdict == "failed"
    assert told.findings == [told.why]


@pytest.mark.parametrize("kind", ["junk", "case", "outcome", "attempt", "unfinished"])
def test_a_receipt_that_is_none_or_another_is_not_believed(s3: StrictS3, tmp_path: Path, kind: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "case": {"case": "C-2"}, "outcome": {"outcome": "gaps"}, "attempt": {"attempt": 2},
        "unfinished": {"finished": False},
    }  # fmt: skip
    with channel(s3, tmp_path / "state") as one:
        end = one.end()
        receipt = b"junk" if kind == "junk" else sound_receipt(one, **changes[kind])
        end.put("receipt.json", receipt)
        end.result(result(one, receipt_sha256=hashlib.sha256(receipt).hexdigest()))
        end.close()
        told = one.hang_up()
    assert (told.verdict, end_of(told).code) == ("failed", 3)
    assert "receipt" in told.why
    assert s3.read(BUCKET, f"{one.prefix}receipt.json") == receipt


def test_a_host_that_drips_is_left_in_time(s3: StrictS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its last word, and after a signal: bytes without an end of line earn no time."""
    monkeypatch.setattr("agent.delivery.controller.LAST_S", 1.0)
    for signal in ("", "SIGINT"):
        with channel(s3, tmp_path / f"state{signal}", stop_s=1.0) as one:
            one.hello()
            one.send(b"{" if signal else say.Result({"verdict": msgspec.Raw(b'"failed"')}))
            if signal:
                one.controller.request_stop(signal)
            began = time.monotonic()
            while one.thread.is_alive() and time.monotonic() - began < 10:
                one.send(b"{")
                time.sleep(0.1)
            assert time.monotonic() - began < 5
            one.told()


@pytest.mark.parametrize("signals", [1, 2])
def test_a_call_that_hangs_does_not_keep_the_controller(s3: StrictS3, tmp_path: Path, signals: int) -> None:
    client, released, asked = s3.client("s3"), threading.Event(), threading.Event()

    def hang(**_values: Any) -> None:
        asked.set()
        released.wait(60)

    client.put_object = hang
    with channel(s3, tmp_path / "state", client=client, stop_s=1.0 if signals == 1 else 30.0) as one:
        one.hello()
        one.send(say.Put(1, "a.json", b"x"))
        assert asked.wait(10)
        began = time.monotonic()
        for _ in range(signals):
            one.controller.request_stop("SIGINT")
        told = one.told()
        assert time.monotonic() - began < 8
        assert told.verdict == "partial"
        assert all(thread.daemon for thread in threading.enumerate() if thread.name == "controller")
        released.set()


def test_a_result_without_a_receipt_is_not_complete(s3: StrictS3, tmp_path: Path) -> None:
    with channel(s3, tmp_path / "state") as one:
        end = one.end()
        end.result(result(one))
        end.close()
        told = one.hang_up()
    assert told.verdict == "failed"
    assert "stored no receipt" in told.why


def test_a_result_with_uploads_open_is_partial(s3: StrictS3, tmp_path: Path) -> None:
    with channel(s3, tmp_path / "state") as one:
        end = one.end()
        end.begin("memory/physical.lime.zst.age")
        end.put("receipt.json", sound_receipt(one))
        end.result(result(one, receipt_sha256=hashlib.sha256(sound_receipt(one)).hexdigest()))
        end.close()
        told = one.hang_up()
    assert (told.verdict, told.unfinished[0][0]) == ("partial", "memory/physical.lime.zst.age")


def test_after_the_result_nothing_is_done(s3: StrictS3, tmp_path: Path) -> None:
    with channel(s3, tmp_path / "state") as one:
        end = one.end()
        end.put("receipt.json", sound_receipt(one))
        end.result(result(one, receipt_sha256=hashlib.sha256(sound_receipt(one)).hexdigest()))
        with pytest.raises(AuthorityError, match="has ended"):
            end.put("more.json", b"{}")
        end.close()
        told = one.hang_up()
    assert told.verdict == "complete"


def test_a_large_result_and_large_events_are_not_kept(s3: StrictS3, tmp_path: Path) -> None:
    with channel(s3, tmp_path / "state") as one:
        one.hello()
        one.send(say.Event("ItemSkipped", {"item": msgspec.Raw(b'"' + b"x" * 100_000 + b'"')}))
        one.send(say.Event("ItemSkipped", {"item": msgspec.Raw(b'"a"'), "object": msgspec.Raw(b"5")}))
        one.send(say.Event("Exit", {}))
        one.send(say.Result({"x": msgspec.Raw(b'"' + b"x" * 100_000 + b'"')}))
        told = one.hang_up()
        assert one.events == []
    assert told.verdict == "partial"
    assert "a result of" in told.why


def test_the_bucket_goes_away(s3: StrictS3, tmp_path: Path) -> None:
    with channel(s3, tmp_path / "state") as one:
        end = one.end()
        upload = end.begin("a.age")
        s3.vanish(BUCKET)
        with pytest.raises(StoreError, match="no such bucket"):
            end.put("b.json", b"x")
        with pytest.raises(StoreError, match="no such bucket"):
            end.begin("c.age")
        s3.vanish(BUCKET, back=True)
        data = os.urandom(3000)
        assert send(end.sign("a.age", upload, 1, len(data), part_of(data).sha256), data) == 200
        end.complete("a.age", upload, [(len(data), part_of(data).sha256)])
        end.put("b.json", b"x")
        end.close()
        one.hang_up()
        one.check_ledger_only()


def test_the_controller_has_no_right(s3: StrictS3, tmp_path: Path) -> None:
    listing = {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "*"}
    nobody = s3.add_user("nobody", {"Version": "2012-10-17", "Statement": [listing]})
    with channel(s3, tmp_path / "state", client=s3.client("s3", nobody)) as one:
        end = one.end()
        with pytest.raises(AuthorityError, match="AccessDenied"):
            end.begin("a.age")
        with pytest.raises(AuthorityError, match="AccessDenied"):
            end.put("a.age", b"x")
        end.close()
        assert one.hang_up().verdict == "partial"


def test_a_session_that_is_not_given(s3: StrictS3, tmp_path: Path) -> None:
    with channel(s3, tmp_path / "state", role="arn:aws:iam::111122223333:role/there-is-none") as one:
        end = one.end()
        with pytest.raises((AuthorityError, UnreachableError)):
            end.renew()
        end.close()
        one.hang_up()


def test_what_is_summed_is_what_is_claimed(s3: StrictS3, tmp_path: Path) -> None:
    """A claim in the right form, about bytes that are not there."""
    with channel(s3, tmp_path / "state") as one:
        one.hello()
        reader = answers(one)
        one.send(say.Complete(7, "a.age", "upload", [sum_of(b"1" * 3000)]))
        refused = reader.receive(10)
        assert isinstance(refused, say.Refused)
        assert (refused.id, refused.kind) == (7, "authority")
        one.hang_up()
