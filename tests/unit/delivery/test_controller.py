"""A controller and an honest host: what is signed is noted first, what is completed was compared first."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from acquirers.base import Availability, Flag, FlagKind, Gap, Reason, State
from agent import events
from agent.cli.deploy_result import end_of
from agent.custody.records import PREDICATE, STATEMENT, Acquisition, Statement
from agent.custody.signing import STATEMENT_TYPE, AttemptKey
from agent.delivery.grants import Bounds, difference
from agent.delivery.ledger import Ledger
from agent.errors import AuthorityError, ImpoundError, ObjectExistsError, StoreError, UnreachableError
from agent.stores.base import Part
from agent.stores.s3.broker import Broker
from agent.stores.s3.client import given as with_credentials
from agent.stores.s3.control import ListedPart, composite_sha256
from tests.rigs.strict_s3 import StrictS3
from tests.unit.delivery import hosts
from tests.unit.delivery.hosts import BUCKET, MIN_PART, Channel, channel, part_of, result, send


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[StrictS3]:
    with StrictS3(tmp_path, min_part=MIN_PART) as server:
        server.make_bucket(BUCKET, lock=True)
        yield server


SIGNING = AttemptKey()


@pytest.fixture(autouse=True)
def known_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host of the tests signs, too."""
    monkeypatch.setattr(hosts, "SIGNER", SIGNING.signer)


def sound_receipt(one: Channel, **changes: Any) -> bytes:
    """A receipt that lists nothing, of the attempt that the channel is about."""
    said = Acquisition(
        run=one.run, case="C-1", host=hosts.HOST, attempt=1, outcome="complete", signer=SIGNING.signer, started="",
        ended="", tool="impound 0", authority="broker", recipients=[], items=0, members=0, gaps=0, flags=0,
        manifest_sha256="", custody_head="", custody_lines=0, earlier=[], finished=True, strays=[],
    )  # fmt: skip
    predicate = msgspec.structs.replace(said, **changes)
    statement = Statement(kind=STATEMENT, subject=[], predicate_type=PREDICATE, predicate=predicate)
    return SIGNING.sign(STATEMENT_TYPE, statement)


def upload(broker: Broker, name: str, parts: list[bytes]) -> None:
    upload_id = broker.begin(name)
    for number, data in enumerate(parts, 1):
        assert send(broker.sign(name, upload_id, number, part_of(data)), data) == 200
    broker.complete(name, upload_id, [part_of(data) for data in parts], ["" for _ in parts])


def finish(one: Channel, end: Any) -> None:
    receipt = sound_receipt(one)
    end.put("attempt-1/receipt.json", receipt)
    end.put("receipt.json", receipt)
    end.result(result(one, receipt_sha256=hashlib.sha256(receipt).hexdigest()))
    end.close()


def test_a_whole_run_by_the_broker(s3: StrictS3, tmp_path: Path) -> None:
    parts = [os.urandom(5000), os.urandom(2000), b"last"]
    with channel(s3, tmp_path / "state") as one:
        end = one.end()
        broker = Broker(end)
        upload(broker, "memory/physical.lime.zst.age", parts)
        broker.put("progress/000000.json", b"{}")
        end.head("ab" * 32, 7)
        finish(one, end)
        told = one.hang_up()
        one.check_ledger()
    assert (told.verdict, told.why, told.findings, told.unfinished, told.refused) == ("complete", "", [], [], 0)
    assert s3.read(BUCKET, f"{one.prefix}memory/physical.lime.zst.age") == b"".join(parts)
    whole = told.objects["memory/physical.lime.zst.age"]
    assert (whole.size, whole.checked, whole.sure) == (7004, "sha256", True)
    assert whole.checksum == composite_sha256([part_of(data) for data in parts])
    assert (told.custody, told.custody_lines, told.heads) == ("ab" * 32, 7, 1)
    assert told.receipt_sha256 == hashlib.sha256(sound_receipt(one)).hexdigest()
    assert end_of(told).code == 0


def test_a_part_is_noted_before_it_is_signed(s3: StrictS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment of signing, the line is on the disk."""
    seen: list[bytes] = []
    with channel(s3, tmp_path / "state") as one:
        end = one.end()
        upload_id = end.begin("a.age")
        client = one.controller._client
        true = client.generate_presigned_url

        def look(*arguments: Any, **values: Any) -> Any:
            seen.append(Path(one.ledger.path).read_bytes().splitlines()[-1])
            return true(*arguments, **values)

        monkeypatch.setattr(client, "generate_presigned_url", look)
        data = os.urandom(3000)
        end.sign("a.age", upload_id, 1, len(data), hashlib.sha256(data).digest())
    [line] = seen
    assert b'"event":"signed"' in line
    assert hashlib.sha256(data).hexdigest().encode() in line


def test_a_ledger_that_cannot_be_written_signs_nothing(
    s3: StrictS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with channel(s3, tmp_path / "state") as one:
        end = one.end(deadline_s=5)
        upload_id = end.begin("a.age")

        def full(_fd: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("agent.delivery.ledger.os.fdatasync", full)
        with pytest.raises(UnreachableError):
            end.sign("a.age", upload_id, 1, 3000, b"1" * 32)
        with pytest.raises(ImpoundError, match="ledger cannot be written"):
            one.hang_up()


def test_the_same_part_is_signed_again_and_another_never(s3: StrictS3, tmp_path: Path) -> None:
    with channel(s3, tmp_path / "state") as one:
        broker = Broker(one.end())
        upload_id = broker.begin("a.age")
        first, other = b"1" * 3000, b"2" * 3000
        broker.sign("a.age", upload_id, 1, part_of(first))
        assert send(broker.sign("a.age", upload_id, 1, part_of(first)), first) == 200
        for changed in (part_of(other), Part(2999, part_of(first).sha256)):
            with pytest.raises(AuthorityError, match="signed before, with another digest or length"):
                broker.sign("a.age", upload_id, 1, changed)
        assert one.ledger.state.uploads["a.age"].parts == {1: part_of(first)}
        lines = Path(one.ledger.path).read_text("utf-8")
    assert lines.count('"event":"signed"') == 1


def test_a_signed_url_takes_no_other_bytes(s3: StrictS3, tmp_path: Path) -> None:
    with channel(s3, tmp_path / "state") as one:
        broker = Broker(one.end())
        upload_id = broker.begin("a.age")
        data = b"1" * 3000
        request = broker.sign("a.age", upload_id, 1, part_of(data))
        assert send(request, b"2" * 3000) == 400
        assert send(request, data + b"1") == 403
        assert "Signature" not in repr(request)
        assert "Signature" not in repr(one.ledger.state)


def test_a_url_that_binds_nothing_is_not_given(s3: StrictS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As botocore makes them with signature version 2."""
    with channel(s3, tmp_path / "state") as one:
        end = one.end()
        upload_id = end.begin("a.age")
        url = "https://evidence/a.age?partNumber=1&x-amz-checksum-sha256=x&Signature=y"
        monkeypatch.setattr(one.controller._client, "generate_presigned_url", lambda *_, **__: url)
        with pytest.raises(StoreError, match="do not bind"):
            end.sign("a.age", upload_id, 1, 3000, b"1" * 32)


def test_parts_may_be_asked_for_in_any_order(s3: StrictS3, tmp_path: Path) -> None:
    parts = [os.urandom(MIN_PART + 10) for _ in range(20)] + [b"the last is short"]
    with channel(s3, tmp_path / "state") as one:
        broker = Broker(one.end())
        upload_id = broker.begin("a.age")

        def put(number: int) -> int:
            data = parts[number - 1]
            return send(broker.sign("a.age", upload_id, number, part_of(data)), data)

        with ThreadPoolExecutor(8) as senders:
            assert set(senders.map(put, range(len(parts), 0, -1))) == {200}
        broker.complete("a.age", upload_id, [part_of(data) for data in parts], [])
        one.check_ledger()
    assert s3.read(BUCKET, f"{one.prefix}a.age") == b"".join(parts)


@pytest.mark.parametrize("fault", ["another", "missing", "more"])
def test_an_upload_is_completed_only_of_what_was_notified(s3: StrictS3, tmp_path: Path, fault: str) -> None:
    data = b"1" * 3000
    with channel(s3, tmp_path / "state") as one:
        end = one.end()
        broker = Broker(end)
        upload_id = broker.begin("a.age")
        request = broker.sign("a.age", upload_id, 1, part_of(data))
        admin = s3.client("s3")
        where = {"Bucket": BUCKET, "Key": f"{one.prefix}a.age", "UploadId": upload_id, "ChecksumAlgorithm": "SHA256"}
        if fault != "missing":
            assert send(request, data) == 200
        if fault == "another":
            admin.upload_part(**where, PartNumber=1, Body=b"2" * 3000)
        if fault == "more":
            admin.upload_part(**where, PartNumber=2, Body=b"2" * 3000)
        with pytest.raises(StoreError, match="not completed: part"):
            broker.complete("a.age", upload_id, [part_of(data)], [""])
        end.close()
        told = one.hang_up()
    assert s3.keys(BUCKET) == []
    assert told.verdict == "partial"
    assert told.unfinished == [("a.age", upload_id, 1)]
    by_somebody = [finding for finding in told.findings if "by somebody else" in finding]
    assert len(by_somebody) == (fault != "missing")


def test_parts_beyond_the_first_page_are_compared(s3: StrictS3, tmp_path: Path) -> None:
    """A bucket lists a thousand parts at once."""
    data = b"1" * MIN_PART
    with channel(s3, tmp_path / "state", bounds=Bounds(min_part=MIN_PART, messages_s=1e5, burst=10**5)) as one:
        broker = Broker(one.end())
        upload_id = broker.begin("a.age")

        def put(number: int) -> int:
            return send(broker.sign("a.age", upload_id, number, part_of(data)), data)

        with ThreadPoolExecutor(4) as senders:
            assert set(senders.map(put, range(1, 1003))) == {200}
        where = {"Bucket": BUCKET, "Key": f"{one.prefix}a.age", "UploadId": upload_id, "PartNumber": 1002}
        s3.client("s3").upload_part(**where, Body=b"2" * MIN_PART, ChecksumAlgorithm="SHA256")
        parts = [part_of(data)] * 1002
        with pytest.raises(StoreError, match="part 1002 is not the one"):
            broker.complete("a.age", upload_id, parts, [])
        assert put(1002) == 200
        broker.complete("a.age", upload_id, parts, [])
        one.hang_up()
        one.check_ledger()


def test_parts_are_compared_by_size_where_the_bucket_tells_no_digest() -> None:
    wanted = [part_of(b"1" * 3000), part_of(b"2" * 10)]
    listed = [ListedPart(number, part.size, "etag", None) for number, part in enumerate(wanted, 1)]
    assert difference(listed, wanted) == ("", False)
    assert difference([replace(listed[0], size=2999), listed[1]], wanted)[1]
    assert difference(listed, wanted[:1])[1]
    assert difference(listed[:1], wanted) == ("part 2 is not in the bucket", False)


def test_a_part_put_between_the_comparison_and_the_completion_is_refused(
    s3: StrictS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"1" * 3000
    with channel(s3, tmp_path / "state") as one:
        broker = Broker(one.end())
        upload_id = broker.begin("a.age")
        assert send(broker.sign("a.age", upload_id, 1, part_of(data)), data) == 200
        client = one.controller._client
        true = client.complete_multipart_upload

        def late(**values: Any) -> Any:
            where = {"Bucket": BUCKET, "Key": f"{one.prefix}a.age", "UploadId": upload_id, "PartNumber": 1}
            s3.client("s3").upload_part(**where, Body=b"2" * 3000, ChecksumAlgorithm="SHA256")
            return true(**values)

        monkeypatch.setattr(client, "complete_multipart_upload", late)
        with pytest.raises(StoreError):
            broker.complete("a.age", upload_id, [part_of(data)], [""])
        one.hang_up()
        one.check_ledger()
    assert s3.keys(BUCKET) == []


@pytest.mark.parametrize("operation", ["PutObject", "CompleteMultipartUpload"])
def test_what_was_done_and_not_answered_is_done(s3: StrictS3, tmp_path: Path, operation: str) -> None:
    """The connection breaks after S3 has acted: asked again it refuses, and the object is the right one."""
    data = b"1" * 3000
    with channel(s3, tmp_path / "state") as one:
        broker = Broker(one.end())
        s3.faults.cut(1, before_answer=True, where=operation)
        if operation == "PutObject":
            broker.put("a.json", data)
        else:
            upload(broker, "a.json", [data])
        one.hang_up()
        one.check_ledger()
    assert s3.read(BUCKET, f"{one.prefix}a.json") == data


def test_nothing_is_overwritten(s3: StrictS3, tmp_path: Path) -> None:
    with channel(s3, tmp_path / "state") as one:
        end = one.end()
        broker = Broker(end)
        broker.put("a.json", b"first")
        with pytest.raises(ObjectExistsError):
            broker.put("a.json", b"second")
        with pytest.raises(ObjectExistsError):
            broker.begin("a.json")
        s3.client("s3").put_object(
            Bucket=BUCKET, Key=f"{one.prefix}b.json", Body=b"of another", ChecksumAlgorithm="SHA256"
        )
        with pytest.raises(ObjectExistsError):
            broker.put("b.json", b"of the host")
        with pytest.raises(ObjectExistsError):
            upload(broker, "b.json", [b"1" * 2000])
    assert s3.read(BUCKET, f"{one.prefix}a.json") == b"first"
    assert s3.read(BUCKET, f"{one.prefix}b.json") == b"of another"


def test_events_come_through_as_they_were(s3: StrictS3, tmp_path: Path) -> None:
    said: list[events.Event] = [
        events.RunStarted("r", "c", "h", 1, "s", "l"),
        events.AcquirerStarted("memory", Availability(State.UNAVAILABLE, "why", "remedy", 5)),
        events.ItemStarted("memory", "memory/a", None),
        events.ItemProgress("memory/a", 5, 4, 3, 2),
        events.ItemDone("memory/a", "memory/a.zst.age", 1, 2, 3, 4, 5, 0.5),
        events.ItemSkipped("a", "b"),
        events.GapFound("a", Gap(Reason.DENIED, "no\udcff", b"/\xff/x", 7)),
        events.FlagRaised("a", Flag(FlagKind.GREW, "grew", b"/y")),
        events.StoreWaiting(65.0),
        events.StoreWaiting(0.0),
        events.RunEnded("gaps"),
    ]
    with channel(s3, tmp_path / "state") as one:
        end = one.end()
        for event in said:
            end.observe(event)
        end.close()
        one.hang_up()
    said[6] = events.GapFound("a", Gap(Reason.DENIED, "no\\udcff", b"/\xff/x", 7))
    assert one.events == said


def test_heads_are_noted_once_a_second(s3: StrictS3, tmp_path: Path) -> None:
    with channel(s3, tmp_path / "state") as one:
        end = one.end()
        for number in range(1, 2001):
            end.head(f"{number:064x}", number)
            if number % 200 == 0:
                time.sleep(0.02)
        end.close()
        told = one.hang_up()
    assert told.heads <= 5
    assert told.custody_lines == 2000
    assert told.findings == []


def test_a_custody_log_that_goes_back_is_a_finding(s3: StrictS3, tmp_path: Path) -> None:
    with channel(s3, tmp_path / "state") as one:
        end = one.end()
        end.head("ab" * 32, 100)
        end.head("cd" * 32, 50)
        end.close()
        told = one.hang_up()
    assert told.findings == ["the custody log of the host went back from line 100 to 50"]
    assert end_of(replace(told, verdict="complete")).code == 3


def test_stop_is_passed_on_and_the_host_has_its_time(s3: StrictS3, tmp_path: Path) -> None:
    stopped = threading.Event()
    with channel(s3, tmp_path / "state") as one:
        end = one.end()
        end._on_stop = lambda _signal: stopped.set()
        one.controller.request_stop("SIGINT")
        assert stopped.wait(5)
        end.put("attempt-1/receipt.json", b"{}")
        end.result(result(one, verdict="stopped", receipt_sha256=hashlib.sha256(b"{}").hexdigest()))
        end.close()
        told = one.hang_up()
    assert (told.verdict, told.why) == ("stopped", "")


def test_a_host_that_does_not_stop_is_left_after_its_time(s3: StrictS3, tmp_path: Path) -> None:
    with channel(s3, tmp_path / "state", stop_s=1.0) as one:
        end = one.end()
        end.heads(lambda: ("ab" * 32, 1))
        began = time.monotonic()
        one.controller.request_stop("SIGTERM")
        told = one.told()
        assert 0.9 < time.monotonic() - began < 4
        assert told.verdict == "partial"
        assert "did not end in time after SIGTERM" in told.why
        end.close()


def test_asked_twice_it_ends_at_once(s3: StrictS3, tmp_path: Path) -> None:
    with channel(s3, tmp_path / "state") as one:
        one.end()
        one.controller.request_stop("SIGINT")
        time.sleep(0.2)
        one.controller.request_stop("SIGINT")
        assert one.told().verdict == "partial"


def test_silence_ends_the_channel(s3: StrictS3, tmp_path: Path) -> None:
    with channel(s3, tmp_path / "state", silence_s=0.5) as one:
        one.end()
        told = one.told()
    assert told.verdict == "partial"
    assert "nothing came" in told.why
    assert told.findings == []


def test_a_host_that_refuses_the_job_says_why(s3: StrictS3, tmp_path: Path) -> None:
    from agent.channel.host import HostEnd

    with channel(s3, tmp_path / "state") as one:
        end = HostEnd(one.read_fd, one.write_fd)
        end.start(10)
        end.refuse("there is no container 'web'", 2)
        told = one.hang_up()
    assert (told.verdict, told.why) == ("refused", "there is no container 'web'")


def test_session_credentials_add_parts_below_their_own_run_and_nothing_else(s3: StrictS3, tmp_path: Path) -> None:
    from botocore.exceptions import ClientError

    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    role = s3.add_role("uploader", everything)
    with channel(s3, tmp_path / "state", role=role.arn) as one:
        end = one.end()
        given = end.renew()
        assert given.secret_key not in repr(given) + str(given)
        client = with_credentials(one.controller._job.s3, given)
        where = {"Bucket": BUCKET, "Key": f"{one.prefix}a.age"}
        upload_id = client.create_multipart_upload(**where, ChecksumAlgorithm="SHA256")["UploadId"]
        parts = [b"1" * 3000, b"2" * 10]
        for number, data in enumerate(parts, 1):
            client.upload_part(**where, UploadId=upload_id, PartNumber=number, Body=data, ChecksumAlgorithm="SHA256")
        forbidden: list[Callable[[], object]] = [
            lambda: client.put_object(**where, Body=b"x", ChecksumAlgorithm="SHA256", IfNoneMatch="*"),
            lambda: client.list_parts(**where, UploadId=upload_id),
            lambda: client.abort_multipart_upload(**where, UploadId=upload_id),
            lambda: client.create_multipart_upload(Bucket=BUCKET, Key=f"cases/C-1/i-0def/{one.run}/a"),
        ]
        for attempt in forbidden:
            with pytest.raises(ClientError, match="AccessDenied"):
                attempt()
        end.complete("a.age", upload_id, [(len(data), part_of(data).sha256) for data in parts])
        with pytest.raises(AuthorityError, match="signs for itself"):
            end.sign("b.age", "x", 1, 3000, b"1" * 32)
        end.close()
        one.hang_up()
        one.check_ledger()
        noted = Path(one.ledger.path).read_text("utf-8")
    assert s3.read(BUCKET, f"{one.prefix}a.age") == b"".join(parts)
    assert '"event":"minted"' in noted
    for secret in (given.secret_key, given.token, given.access_key):
        assert secret not in noted


def test_renewals_are_counted(s3: StrictS3, tmp_path: Path) -> None:
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    role = s3.add_role("uploader", everything)
    bounds = Bounds(min_part=MIN_PART, renewals=3, renewals_s=0.001)
    with channel(s3, tmp_path / "state", role=role.arn, bounds=bounds) as one:
        end = one.end()
        assert len({end.renew().access_key for _ in range(3)}) == 3
        with pytest.raises(UnreachableError, match="too often"):
            end.renew()


def test_a_run_that_goes_on_uses_the_ledger_it_has(s3: StrictS3, tmp_path: Path) -> None:
    with channel(s3, tmp_path / "state") as one:
        broker = Broker(one.end())
        broker.put("a.json", b"{}")
        upload_id = broker.begin("b.age")
        broker.sign("b.age", upload_id, 1, part_of(b"1" * 3000))
        told = one.hang_up()
    assert told.verdict == "partial"
    with Ledger.reopen(str(tmp_path / "state"), one.run) as again:
        assert again.head == told.ledger_head
        assert again.state.objects["a.json"].sure
        assert again.state.uploads["b.age"].parts == {1: part_of(b"1" * 3000)}
