"""Both ends of a channel in one process: a controller with the strict fake behind it, and a host that a test plays."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import urllib3

from agent.channel import messages as say
from agent.channel.host import HostEnd
from agent.custody.signing import AttemptKey
from agent.delivery.controller import Controller
from agent.delivery.grants import Bounds
from agent.delivery.ledger import Ledger
from agent.delivery.session import Minter
from agent.errors import ImpoundError
from agent.ids import uuid7
from agent.job import S3, Job
from agent.stores.base import Part

if TYPE_CHECKING:
    from agent.delivery.told import Told
    from agent.events import Event
    from agent.stores.s3.authority import SignedRequest
    from tests.rigs.strict_s3 import StrictS3

MIN_PART = 1000
BUCKET = "evidence"
HOST = "i-0abc"
SIGNER = AttemptKey().signer
KEY = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"


@dataclass
class Channel:
    """A controller that talks, and the host's end of its channel."""

    s3: StrictS3
    run: str
    read_fd: int
    write_fd: int
    controller: Controller
    ledger: Ledger
    thread: threading.Thread
    events: list[Event] = field(default_factory=list)
    _ends: list[HostEnd] = field(default_factory=list)
    _told: list[Told] = field(default_factory=list)
    _errors: list[ImpoundError] = field(default_factory=list)

    @property
    def prefix(self) -> str:
        return f"cases/C-1/{HOST}/{self.run}/"

    def end(self, **settings: Any) -> HostEnd:
        """A host that has started, listens, and has said hello."""
        end = HostEnd(self.read_fd, self.write_fd, **settings)
        self._ends.append(end)
        assert end.start(10).run == self.run
        end.listen(lambda _signal: None)
        end.hello(run=self.run, case="C-1", host=HOST, attempt=1, signer=SIGNER)
        return end

    def send(self, *data: say.Message | bytes) -> None:
        """Raw bytes, or messages as lines. A controller that has hung up is no error here."""
        with contextlib.suppress(BrokenPipeError):
            for one in data:
                rest = one if isinstance(one, bytes) else msgspec.json.encode(one) + b"\n"
                while rest:
                    rest = rest[os.write(self.write_fd, rest) :]

    def hello(self, **changes: Any) -> None:
        hello = say.Hello(1, "impound 0", self.run, "C-1", HOST, 1, SIGNER)
        self.send(msgspec.structs.replace(hello, **changes))

    def hang_up(self) -> Told:
        """Closes the host's side, and gives what the controller was told."""
        self.close()
        return self.told()

    def close(self) -> None:
        """First whoever uses the descriptors: a number that is closed may be somebody else's at once."""
        for end in self._ends:
            end.close()
        for name in ("write_fd", "read_fd"):
            if getattr(self, name) >= 0:
                os.close(getattr(self, name))
                setattr(self, name, -1)

    def told(self) -> Told:
        self.thread.join(30)
        assert not self.thread.is_alive(), "the controller did not end"
        if self._errors:
            raise self._errors[0]
        return self._told[0]

    def check_ledger_only(self) -> None:
        """The chain holds, and gives what the controller knew."""
        state, head, lines = Ledger.load(self.ledger.path)
        assert (state, head, lines) == (self.ledger.state, self.ledger.head, self.ledger.lines)

    def check_ledger(self) -> None:
        """The chain holds, and what is in the bucket is what the ledger says, byte for byte."""
        self.check_ledger_only()
        state = self.ledger.state
        keys = self.s3.keys(BUCKET)
        assert all(key.startswith(self.prefix) for key in keys)
        sure = {name for name, one in state.objects.items() if one.sure}
        assert sure <= {key.removeprefix(self.prefix) for key in keys} <= set(state.objects)
        for key in keys:
            data, whole = self.s3.read(BUCKET, key), state.objects[key.removeprefix(self.prefix)]
            assert len(data) == whole.size
            if whole.sha256:
                assert hashlib.sha256(data).hexdigest() == whole.sha256


@contextlib.contextmanager
def channel(
    s3: StrictS3, state: Path, *, role: str = "", client: Any = None, job: Job | None = None, **settings: Any
) -> Iterator[Channel]:
    """A controller in a thread, waiting for its host."""
    run = str(uuid7())
    authority = "session" if role else "broker"
    job = job or make_job(s3, authority)
    minter = Minter(s3.client("sts"), job.s3, role) if role else None
    settings = dict[str, Any](bounds=Bounds(min_part=MIN_PART), silence_s=20.0) | settings
    from_controller, to_host = os.pipe()
    from_host, to_controller = os.pipe()
    events: list[Event] = []
    told: list[Told] = []
    errors: list[ImpoundError] = []
    with Ledger.create(str(state), run) as ledger:
        controller = Controller(
            job, run, client or s3.client("s3"), ledger, minter=minter, observe=events.append, **settings
        )

        def talk() -> None:
            try:
                told.append(controller.talk(from_host, to_host))
            except ImpoundError as error:
                errors.append(error)
            finally:
                os.close(from_host)
                os.close(to_host)

        thread = threading.Thread(target=talk)
        one = Channel(
            s3, run, from_controller, to_controller, controller, ledger, thread, events, _told=told, _errors=errors
        )
        thread.start()
        try:
            yield one
        finally:
            one.close()
            thread.join(30)


def make_job(s3: StrictS3, authority: str, **changes: Any) -> Job:
    settings = S3(endpoint_url=s3.endpoint_url, region=s3.region, authority=authority, **changes)
    return Job(case="C-1", to=f"s3://{BUCKET}/cases", recipients=[KEY], s3=settings)


def part_of(data: bytes) -> Part:
    return Part(len(data), hashlib.sha256(data).digest())


def sum_of(data: bytes) -> say.PartSum:
    return say.PartSum(len(data), hashlib.sha256(data).hexdigest())


_POOL = urllib3.PoolManager(retries=False, timeout=20)


def send(request: SignedRequest | say.Signed, data: bytes, pool: urllib3.PoolManager = _POOL) -> int:
    """Sends one part as the signed request says, with the length that it has; gives the status."""
    headers = dict(request.headers) | {"content-length": str(len(data))}
    answer = pool.request(request.method, request.url, body=data, headers=headers)
    return int(answer.status)


def result(one: Channel, **changes: Any) -> dict[str, object]:
    """A result that nothing speaks against but the receipt."""
    said: dict[str, object] = {
        "verdict": "complete", "run": one.run, "case": "C-1", "host": HOST, "attempt": 1, "signer": SIGNER,
        "receipt_sha256": "",
    }  # fmt: skip
    return said | changes
