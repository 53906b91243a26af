"""Whatever a host says, in any order: no object's bytes differ from what the ledger says, and none is elsewhere."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from agent.channel import messages as say
from agent.channel.framing import ChannelError, Reader
from agent.delivery.grants import Bounds
from tests.rigs.strict_s3 import StrictS3
from tests.unit.delivery.hosts import BUCKET, MIN_PART, Channel, channel, send, sum_of

NAMES = ("a.age", "b.age", "receipt.json")
DATA = (b"1" * 3000, b"2" * 3000, b"3" * 10, b"4" * 1000)

names = st.sampled_from(NAMES)
datas = st.sampled_from(DATA)
numbers = st.integers(1, 3)
actions = st.one_of(
    st.tuples(st.just("begin"), names),
    st.tuples(st.just("sign"), names, names, numbers, datas),
    st.tuples(st.just("upload"), st.integers(0, 5), datas),
    st.tuples(st.just("elsewhere"), names, numbers, datas),
    st.tuples(st.just("put"), names, datas),
    st.tuples(st.just("complete"), names, names, st.lists(datas, min_size=1, max_size=3)),
    st.tuples(st.just("honest"), names),
    st.tuples(st.just("parts"), names, st.lists(datas, min_size=1, max_size=3)),
    st.tuples(st.just("result")),
)


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[StrictS3, Any]]:
    with tempfile.TemporaryDirectory() as directory, StrictS3(Path(directory), min_part=MIN_PART) as server:
        yield server, server.client("s3")


class Enemy:
    """Plays actions: talks to the controller, sends to the bucket, and puts parts by somebody else's right."""

    def __init__(self, client: Any, one: Channel) -> None:
        self._admin, self._one = client, one
        self._reader: Reader[Any] = Reader(one.read_fd, msgspec.json.Decoder(say.FromController), "controller")
        assert isinstance(self._reader.receive(10), say.Start)
        self._uploads: dict[str, str] = {}
        self._signed: list[tuple[say.Signed, str, int, bytes]] = []
        self._sums: dict[str, dict[int, bytes]] = {}
        self._ids = 0

    def _ask(self, message: Any) -> Any:
        self._one.send(message)
        return self._reader.receive(10)

    def _id(self) -> int:
        self._ids += 1
        return self._ids

    def act(self, action: tuple[Any, ...]) -> None:
        match action:
            case ("begin", name):
                answer = self._ask(say.Begin(self._id(), name))
                if isinstance(answer, say.Begun):
                    self._uploads[name] = answer.upload
            case ("sign", name, upload, number, data):
                answer = self._ask(say.Sign(self._id(), name, self._uploads.get(upload, "u"), number, sum_of(data)))
                if isinstance(answer, say.Signed):
                    self._signed.append((answer, name, number, data))
                    sums = self._sums.setdefault(name, {})
                    assert sums.setdefault(number, data) == data, "signed twice with another digest"
            case ("upload", which, data) if self._signed:
                signed, _, _, true = self._signed[which % len(self._signed)]
                status = send(signed, data)
                assert (status == 200) <= (data == true)
                send(signed, true)
            case ("elsewhere", name, number, data) if name in self._uploads:
                try:
                    self._admin.upload_part(
                        Bucket=BUCKET, Key=self._one.prefix + name, UploadId=self._uploads[name], PartNumber=number,
                        Body=data, ChecksumAlgorithm="SHA256",
                    )  # fmt: skip
                except self._admin.exceptions.ClientError:
                    pass
            case ("put", name, data):
                self._ask(say.Put(self._id(), name, data))
            case ("complete", name, upload, parts):
                told = [sum_of(data) for data in parts]
                self._ask(say.Complete(self._id(), name, self._uploads.get(upload, "u"), told))
            case ("honest", name) if name in self._sums:
                told = [sum_of(data) for _, data in sorted(self._sums[name].items())]
                self._ask(say.Complete(self._id(), name, self._uploads[name], told))
            case ("parts", name, parts):
                self.act(("begin", name))
                for number, data in enumerate(parts, 1):
                    self.act(("sign", name, name, number, data))
                    if self._signed:
                        self.act(("upload", len(self._signed) - 1, data))
            case ("result",):
                self._one.send(say.Result({"verdict": msgspec.Raw(b'"complete"')}))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(played=st.lists(actions, max_size=25))
def test_the_bucket_is_what_the_ledger_says(
    s3: tuple[StrictS3, Any], tmp_path: Path, played: list[tuple[Any, ...]]
) -> None:
    server, client = s3
    server.make_bucket(BUCKET)  # a new and empty one of that name
    with (
        tempfile.TemporaryDirectory(dir=tmp_path) as state,
        channel(server, Path(state), client=client, bounds=Bounds(min_part=MIN_PART)) as one,
    ):
        one.hello()
        enemy = Enemy(client, one)
        try:
            for action in played:
                enemy.act(action)
        except ChannelError:
            pass
        told = one.hang_up()
        one.check_ledger()
        assert told.verdict != "complete"
        for name, whole in told.objects.items():
            if whole.sure:
                data = server.read(BUCKET, one.prefix + name)
                assert len(data) == whole.size
                if whole.checked == "whole":
                    assert hashlib.sha256(data).hexdigest() == whole.sha256
                elif name in enemy._sums:
                    assert data == b"".join(part for _, part in sorted(enemy._sums[name].items()))
                    event("completed of parts")
