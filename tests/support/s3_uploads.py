"""A store that uploads to the strict fake, as tests want it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent.channel.messages import Credentials
from agent.errors import StoreError
from agent.job import S3
from agent.stores.base import Part
from agent.stores.s3.control import Control
from agent.stores.s3.place import Place, parse_place
from agent.stores.s3.session import Session
from agent.stores.s3.store import S3Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.rigs.s3_signature import Credential
    from tests.rigs.strict_s3 import StrictS3

BUCKET = "evidence"
MIB = 1 << 20
RUN = parse_place(f"s3://{BUCKET}/INC-1/host/run")


def s3_of(server: StrictS3, **more: Any) -> S3:
    return S3(endpoint_url=server.endpoint_url, region=server.region, ca_bundle=server.ca_pem, **more)


def credentials_of(credential: Credential) -> Credentials:
    return Credentials(credential.access_key, credential.secret_key, credential.token, credential.expires or 4e9)


@dataclass
class Controller:
    """The other end of a channel without the channel: it completes and stores with all rights, and mints sessions."""

    server: StrictS3
    place: Place = RUN
    sessions: list[Credential] = field(default_factory=list)
    seconds: float = 3600

    def __post_init__(self) -> None:
        self.control = Control(self.server.client(), self.place, s3_of(self.server))

    def begin(self, name: str) -> str:
        return self.control.begin(name)

    def put(self, name: str, data: bytes) -> None:
        self.control.put(name, data)

    def complete(self, name: str, upload_id: str, parts: Any) -> None:
        listed = list(self.control.parts(name, upload_id))
        if [(one.size, one.sha256) for one in listed] != [*parts]:
            raise StoreError(f"{name}: the bucket has other parts than were told")
        sums = [Part(one.size, one.sha256 or b"") for one in listed]
        self.control.complete(name, upload_id, sums, [one.etag for one in listed])

    def renew(self) -> Credentials:
        self.sessions.append(self.server.add_session("host", seconds=self.seconds))
        return credentials_of(self.sessions[-1])


def store_of(server: StrictS3, *, memory: int = 64 * MIB, controller: Controller | None = None, **more: Any) -> S3Store:
    """A store with authority session: with a controller that completes."""
    s3 = s3_of(server)
    authority = Session(RUN, s3, None, controller or Controller(server))
    return S3Store(RUN, s3, authority, memory=memory, **more)


def send(store: S3Store, name: str, data: bytes, *, step: int = 700_001, estimate: int | None = None) -> Any:
    """Writes in odd pieces, commits; gives the parts."""
    upload = store.begin(name, estimate=estimate)
    try:
        for start in range(0, len(data), step):
            upload.write(memoryview(data)[start : start + step])
        return upload.commit()
    finally:
        upload.abort()


def noise(size: int) -> bytes:
    return os.urandom(size)


def wait_until(ready: Callable[[], bool], seconds: float = 20) -> None:
    """Fails where it does not come true in time."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
