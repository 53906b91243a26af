"""A place in a bucket as the store of one run.

Memory, in bytes, for `memory` given, M senders (`memory` / 8 MiB, at most 16), whatever is stored:

    memory                      the blocks that parts are kept in until the bucket has them, made as they are needed
  + 8 MiB * puts at once        a small object, joined to be stored whole (and 4/3 of that again through a channel)
  + M * 100 KiB                 a connection: TLS and HTTP buffers, the stack of its thread
  + what boto3 takes            about 35 MiB, with the authorities that use it

An upload has at least a part's worth of blocks of its own (see `pool`), which is the smaller the less memory there is:
a third of what no other upload claims, so that one part is filled while two are on their way. Smaller parts make the
largest object smaller (`S3Upload.capacity`). With manifest and custody log open, which have 5 MiB each, 32 MiB make
9,900 parts of 7 MiB, 67 GiB; 64 MiB make parts of up to 18 MiB, 170 GiB; 202 MiB all of the schedule, 556 GiB.

Measured: a process with authority session has 52 MiB resident, and 110 to 118 MiB at most while it sends 1 to 4 GiB
with 64 MiB for parts.
"""

from __future__ import annotations

import ssl
import threading
import time
from typing import TYPE_CHECKING

from agent.errors import UsageError
from agent.stores.base import Moment
from agent.stores.s3.authority import SignedRequest
from agent.stores.s3.parts import MIB, SMALLEST, is_small, schedule
from agent.stores.s3.pool import BLOCK, Pool
from agent.stores.s3.senders import MAX_SENDERS, PATIENCE_S, Senders
from agent.stores.s3.upload import S3Upload
from agent.stores.s3.wire import Answer, Wire, WireError

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.job import S3
    from agent.stores.s3.authority import Authority
    from agent.stores.s3.place import Place
    from agent.stores.throttle import Throttle

MIN_MEMORY = 32 * MIB
_USUAL_PART = 8 * MIB
_SHARE = 3
"""A part is filled while two are on their way."""
_CLOSE_S = 1.0
_MOMENT_S = 10.0


class S3Store:
    """One run below a prefix of a bucket. For any number of threads."""

    def __init__(
        self,
        place_of_run: Place,
        s3: S3,
        authority: Authority,
        *,
        memory: int,
        throttle: Throttle | None = None,
        patience: float = PATIENCE_S,
        hurry: Callable[[], bool] | None = None,
    ) -> None:
        """`memory`: bytes for parts (see above). `patience`: seconds without any progress after which it gives up;
        15 where `hurry`, asked now and then, says that the run was told to stop. Raises `UsageError`.
        """
        if memory < MIN_MEMORY:
            raise UsageError(f"storing in S3 needs {MIN_MEMORY // MIB} MiB for parts; there are {memory // MIB}")
        self.location, self.authority = str(place_of_run), authority.kind
        self._s3, self._authority, self._throttle = s3, authority, throttle
        self._wire = open_wire(s3)
        self._pool = Pool(memory // BLOCK)
        self._beginning = threading.Lock()
        most = min(MAX_SENDERS, memory // _USUAL_PART)
        if throttle is not None:
            # Shared among too many, each connection would be idle for so long that S3 closes it.
            most = max(1, min(most, int(throttle.rate // MIB)))
        self._senders = Senders(
            self._wire, authority, most=most, throttle=throttle, patience=patience, hurry=hurry, region=s3.region
        )

    def begin(self, name: str, *, estimate: int | None = None) -> S3Upload:
        """Nothing is sent yet. Raises `StoreError` where too many objects are on their way for the memory."""
        with self._beginning:
            most = SMALLEST if is_small(estimate) else max(SMALLEST, self._pool.unreserved // _SHARE * BLOCK)
            parts = schedule(estimate, most)
            share = self._pool.share(parts.largest // BLOCK)
        return S3Upload(name, parts, share, self._senders, self._authority, self._throttle)

    def moment(self) -> Moment | None:
        url = endpoint_of(self._s3)
        try:
            self._head(url)  # so that the connection is there, and the exchange is as short as it can be
            before, wall = time.monotonic_ns(), time.time_ns()
            answer = self._head(url)
        except WireError:
            return None
        took = time.monotonic_ns() - before
        date = answer.headers.get("date", "")
        return Moment(date[:64], wall + took // 2, took) if date.isascii() and date.isprintable() and date else None

    def close(self) -> None:
        """Gives up what is still under way. Never raises."""
        self._senders.close()
        self._wire.close()
        self._senders.join(_CLOSE_S)
        self._pool.clear()
        self._authority.close()

    def _head(self, url: str) -> Answer:
        for _ in range(2 * MAX_SENDERS):
            try:
                return self._wire.exchange(SignedRequest("HEAD", url, {}), seconds=_MOMENT_S)
            except WireError as error:
                if not error.stale:
                    raise
                # S3 had closed a connection that was idle; there may be as many as there were senders.
        raise WireError("it closes every connection")


def open_wire(s3: S3) -> Wire:
    """Raises `UsageError` where the certificates of the job are none."""
    try:
        return Wire(s3.ca_bundle)
    except (ssl.SSLError, ValueError) as error:
        raise UsageError("the certificates given with --ca-bundle cannot be read: PEM is what is needed") from error


def endpoint_of(s3: S3) -> str:
    """Where the service answers, for a request that needs no bucket."""
    if s3.endpoint_url:
        return s3.endpoint_url.rstrip("/") + "/"
    region = s3.region or "us-east-1"
    return f"https://s3.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}/"
